//! From encoded records to those who keep them: an OTLP collector, a syslog server, the access log on stdout, and
//! metrics made from records.
//!
//! Promises: nobody who makes records ever waits for a sink; what a full queue costs is counted in records; the bytes
//! are those that the crate `record` made, sent on without a second encoding. With a spool ([`Spooled`]) what waits
//! survives a crash; without one it is lost then.

mod queue;
pub mod access_log;
mod backoff;
pub mod otlp;
pub mod red;
mod events;
mod spooled;
pub mod syslog;

pub use events::{Alerts, Events};
pub use queue::{Batch, Counters, Full, Receiver, Sender, queue};
pub use spooled::{Sealing, Sign, Spooled};
