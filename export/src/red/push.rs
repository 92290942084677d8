//! Pushes the numbers to a collector, over and over. What a collector misses is in the next request: numbers are cumulative.

use std::{sync::Arc, time::Duration};

use super::Red;
use crate::otlp::{Config, Error, Metrics};

/// Pushes every `interval`, and once more when `drain` is over.
///
/// # Errors
/// When the configuration cannot be used.
pub fn push(
    red: Arc<Red>,
    config: Config,
    interval: Duration,
    drain: impl Future<Output = ()> + Send,
) -> Result<impl Future<Output = ()> + Send, Error> {
    let resource = config.resource.clone();
    let mut collector = Metrics::new(&config)?;
    Ok(async move {
        tokio::pin!(drain);
        let mut away = false;
        loop {
            let is_over = tokio::select! {
                () = tokio::time::sleep(interval) => false,
                () = &mut drain => true,
            };
            let done = collector.send(&red.request(&resource)).await;
            match (&done, away) {
                (Err(error), false) => {
                    tracing::warn!(error, "the collector does not take metrics; the next ones will make up for it")
                }
                (Ok(()), true) => tracing::info!("the collector takes metrics again"),
                (Ok(()), false) | (Err(_), true) => {}
            }
            away = done.is_err();
            if is_over {
                return;
            }
        }
    })
}
