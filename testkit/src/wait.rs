//! Waiting for a state with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Polls `state` every 10 ms until it gives a value.
///
/// # Errors
/// When `state` fails, or after `deadline` with `what` was waited for.
pub fn until<T>(what: &str, deadline: Duration, mut state: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = state().with_context(|| format!("while waiting for {what}"))? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("{what}: not after {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
