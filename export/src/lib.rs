//! From encoded records to those who keep them: an OTLP collector, and the access log on stdout.
//!
//! Promises: nobody who makes records ever waits for a sink; what a full queue costs is counted in records; the bytes
//! are those that the crate `record` made, sent on without a second encoding. The spool on disk comes in front of this
//! in its own change: until then, what waits at a crash is lost.

mod queue;
pub mod access_log;
mod backoff;
pub mod otlp;
mod events;

pub use events::{Alerts, Events};
pub use queue::{Batch, Counters, Full, Receiver, Sender, queue};
