//! The one schema of what Picket records: connections, requests and events, encoded once as OTLP log records.
//!
//! A record is encoded when its connection or request ends, as a finished `log_records` field of an OTLP `ScopeLogs`
//! message; queues, spool and export only move and concatenate these bytes, and access-log lines are made from them.
//! No clock and no I/O: the time is an argument.
//!
//! Promises: every record ends in one code of a closed list; text over its limit is cut and says so; encoding needs no
//! memory but the output buffer; reading damaged bytes never panics.

pub mod code;
pub mod key;
pub mod otlp;
mod uid;
mod context;
mod connection;
mod captured;
mod request;
mod event;
pub mod field;
pub mod line;
pub mod rebuild;
pub mod structured;

pub use captured::{CAPTURED_BYTES_MAX, Captured};
pub use code::{Code, Side, Step};
pub use connection::{ClosedBy, Connection, State};
pub use context::{Context, ContextAttributes, Decision, DetectedBy, Direction, EstablishedBy, Protocol, Tls};
pub use event::{Event, EventName, Value};
pub use otlp::Severity;
pub use request::{HttpVersion, Request};
pub use uid::{Uid, UidSource};
