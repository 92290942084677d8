//! Whether records are what was written, and whether they are all there: of spools, and of what collectors and syslog
//! servers wrote (docs/formats/evidence.md).
//!
//! Promises: order and duplicates do not matter; memory is bounded ([`RECORDS_MAX`], some 24 bytes for each record), as what
//! was read waits in a file without a name; whatever is read causes a verdict or an error, never a panic.
//! Leaves to others: how verdicts are shown, and the clock (none is read: certificates count at the time of signing).

mod otlp_json;
mod gather;
mod spill;
mod syslog;
mod verdict;
mod walk;

pub use gather::{Evidence, RECORDS_MAX, STREAMS_MAX};
pub use otlp_json::LINE_BYTES_MAX;
pub use verdict::{Completeness, Explained, Finding, Integrity, StreamReport};

/// Why evidence cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory.
    #[error("{0} cannot be read")]
    Read(String, #[source] std::io::Error),
    /// The file in which records wait.
    #[error("the temporary directory cannot be used")]
    Spill(#[source] std::io::Error),
    /// More than is taken.
    #[error("{0}")]
    TooMuch(String),
    /// No checkpoint in a file that should hold one.
    #[error("{0} holds no checkpoint")]
    NoCheckpoint(String),
}
