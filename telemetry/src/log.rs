//! The program's own log: text or JSON lines on stderr, with a level that changes while it runs.
//!
//! Promises that libraries stay at `info` or above unless they are named: at `debug` an HTTP library prints header
//! fields, and credentials must not enter a log because somebody looked for something else.

use std::{
    io,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer, Registry,
    filter::{ParseError, Targets},
    fmt::MakeWriter,
    layer::SubscriberExt,
    reload,
};

/// Targets whose lines are ours: crates and, for `main.rs`, binaries.
const OURS: [&str; 13] = [
    "record",
    "identity",
    "settings",
    "api",
    "telemetry",
    "export",
    "ca",
    "proxy",
    "demo",
    "picket_ca",
    "picket_proxy",
    "picket_demo",
    "picket_bench",
];

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Why there is no log, or why its level did not change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a level or a list of `target=level`.
    #[error(
        "`{given}` is not a log level: expected off, error, warn, info, debug or trace, or a list such as info,h2=debug"
    )]
    BadLevel {
        /// What was given.
        given: String,
        /// What the parser said, if it could read it at all.
        #[source]
        source: Option<ParseError>,
    },
    /// [`init`] was called before in this process.
    #[error("the log is already set up")]
    AlreadySet,
    /// The subscriber is gone; only possible when a test dropped it.
    #[error("the log is no longer there")]
    Gone,
}

/// Changes the level of the log that [`init`] set up.
#[derive(Debug, Clone)]
pub struct LevelHandle {
    filter: reload::Handle<Targets, Registry>,
    level: Arc<Mutex<String>>,
}

impl LevelHandle {
    /// Applies a level to all threads from their next line on.
    ///
    /// # Errors
    /// When `level` is none; the level then stays as it was.
    pub fn set(&self, level: &str) -> Result<(), Error> {
        let level = level.trim();
        let filter = filter(level)?;
        self.filter.reload(filter).map_err(|_| Error::Gone)?;
        // A poisoned lock holds a whole string all the same.
        level.clone_into(&mut self.level.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    /// The level as it was last set.
    pub fn get(&self) -> String {
        self.level.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Sets up the process's log on stderr.
///
/// # Errors
/// When `level` is none, or the log was set up before.
pub fn init(format: Format, level: &str) -> Result<LevelHandle, Error> {
    let (subscriber, handle) = subscriber(format, level, io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| Error::AlreadySet)?;
    Ok(handle)
}

/// A log to any writer, not yet installed; for tests and for programs that write elsewhere.
///
/// # Errors
/// When `level` is none.
pub fn subscriber<W>(
    format: Format,
    level: &str,
    writer: W,
) -> Result<(impl Subscriber + Send + Sync, LevelHandle), Error>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match format {
        Format::Text => lines.with_ansi(false).boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    let handle = LevelHandle { filter: handle, level: Arc::new(Mutex::new(level.to_owned())) };
    Ok((Registry::default().with(filter).with(lines), handle))
}

/// The filter for a level; a bare level is ours in full and everybody else's only from `info` upwards.
fn filter(level: &str) -> Result<Targets, Error> {
    let bad = |source| Error::BadLevel { given: level.chars().take(80).collect(), source };
    // To the parser, a word that is no level is the name of a target: a slip of the pen would silence everything else.
    let is_known = |part: &str| part.contains('=') || !part.is_empty() && LevelFilter::from_str(part).is_ok();
    if !level.split(',').map(str::trim).all(is_known) {
        return Err(bad(None));
    }
    let asked = Targets::from_str(level).map_err(|error| bad(Some(error)))?;
    let Some(default) = asked.default_level() else { return Ok(asked) };
    let named: Vec<(String, LevelFilter)> = asked.iter().map(|(target, level)| (target.to_owned(), level)).collect();
    let filter = Targets::new().with_default(default.min(LevelFilter::INFO));
    Ok(filter.with_targets(OURS.map(|target| (target, default))).with_targets(named))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut self.0.lock().unwrap())).unwrap()
        }
    }

    fn with_log(format: Format, level: &str, test: impl FnOnce(&Lines, &LevelHandle)) {
        let lines = Lines::default();
        let writer = lines.clone();
        let (subscriber, handle) = subscriber(format, level, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || test(&lines, &handle));
    }

    #[test]
    fn level_changes_while_running() {
        with_log(Format::Text, "info", |lines, level| {
            tracing::debug!(target: "proxy", "before");
            assert_eq!(lines.take(), "");
            level.set("debug\n").unwrap();
            assert_eq!(level.get(), "debug");
            tracing::debug!(target: "proxy", "after");
            assert!(lines.take().contains("after"));
        });
    }

    #[test]
    fn a_bad_level_changes_nothing() {
        with_log(Format::Text, "warn", |_, level| {
            for bad in ["proxy=loudly", "inof", "info,h2", ""] {
                assert!(matches!(level.set(bad), Err(Error::BadLevel { .. })), "{bad:?}");
            }
            assert_eq!(level.get(), "warn");
        });
    }

    #[test]
    fn libraries_stay_quiet_unless_named() {
        with_log(Format::Text, "trace", |lines, level| {
            tracing::debug!(target: "h2", "authorization: secret");
            assert_eq!(lines.take(), "");
            level.set("trace,h2=debug").unwrap();
            tracing::debug!(target: "h2", "frame");
            assert!(lines.take().contains("frame"));
        });
    }

    #[test]
    fn json_lines_are_json() {
        with_log(Format::Json, "info", |lines, _| {
            tracing::info!(target: "proxy", port = 15001, "listening");
            let line = lines.take();
            assert!(line.starts_with('{') && line.ends_with("}\n"), "{line}");
            assert!(line.contains("\"port\":15001") && line.contains("\"message\":\"listening\""), "{line}");
        });
    }
}
