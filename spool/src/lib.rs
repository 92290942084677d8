//! Records that survive a crash: append-only segments between those who make records and those who send them.
//!
//! The format, the recovery policy, and for each promise the test that keeps it: docs/formats/segment.md.
//!
//! * What [`Spool::append`] wrote survives the end of the process; what [`Spool::sync`] covered survives the end of the machine.
//! * Only what is synced is read, so that no sequence number which left the machine is given again.
//! * Each record has a number. A number that is missing at a sink stands in a gap record, and nowhere else.
//! * A segment stays until every sink has acknowledged it, or goes by name.
//! * After a failed sync or a write that could not be undone nothing is written until [`Spool::reopen`]; what was in doubt is lost by name.
//! * Memory is bounded by one batch here, and by one chunk at the reader.
//!
//! Blocking, without threads and without a clock: the time is an argument. Threads, queues and the collector are those of
//! the crate `export`.

mod checksum;
mod segment;
mod context;
mod chain;
mod storage;
mod cursor;
mod sink;
mod gap;
mod checkpoint;
mod shared;
mod append;
mod retain;
mod recover;
mod replay;

use std::time::Duration;

pub use append::{Spool, Tip};
pub use chain::{Chain, Rule, next as chain};
pub use checkpoint::{CHECKPOINT_FILE, Checkpoint, DISTANCE_MAX, Kept, Seal, Signed};
pub use gap::{Gap, Reason};
pub use recover::{Recovery, Torn};
pub use replay::{Chunk, Damage, Reader, SET_ASIDE};
pub use segment::{Entry, HEADER_BYTES, Header, Kind, Scan, Scanned, parse_name};
pub use shared::Status;
pub use sink::Sink;
pub use storage::{Disk, File, Storage};

/// When written records are made to survive the end of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// Each batch, before the next one is taken.
    Always,
    /// All batches of this long together.
    Interval(Duration),
}

/// What happens when the spool is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// The oldest segment goes, and a gap record says what was in it.
    DropOldest,
    /// Nothing goes; [`Status::is_full`] asks for no more traffic, and what still comes and does not fit is lost by name.
    Refuse,
}

/// What a spool may use, and how.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Bytes of all segments at most; 256 KiB at least.
    pub max_bytes: u64,
    /// How long a record is kept at most.
    pub max_age: Duration,
    /// What must stay free on the file system.
    pub min_free_bytes: u64,
    /// When records are synced.
    pub sync: Sync,
    /// What happens when there is no room.
    pub on_full: OnFull,
    /// Makes the uids of gap records unlike those of other sources.
    pub uid_seed: u128,
}

impl Config {
    /// Bytes after which a segment ends: a sixteenth of the whole, so that the oldest one is not much to lose.
    fn segment_bytes(&self) -> u64 {
        (self.max_bytes / 16).clamp(16 << 10, 8 << 20)
    }
}

/// Why a spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process uses it.
    #[error("the spool {0:?} is used by another process")]
    Locked(std::path::PathBuf),
    /// The directory or a file in it cannot be used.
    #[error("{what}")]
    Storage {
        /// What was tried.
        what: String,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A write or a sync failed before; see [`Spool::reopen`].
    #[error("the spool takes nothing until it is opened again")]
    Failed,
    /// There is no room, and the policy is to refuse.
    #[error("the spool is full")]
    Full,
    /// A batch does not consist of finished records.
    #[error("a batch does not consist of finished log_records fields")]
    Malformed,
}

/// Names what was tried when storage failed.
fn storage(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Storage { what: what.into(), source }
}
