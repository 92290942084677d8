//! Tests of the real program: over real TLS, with real keys, killed where it hurts.

#![expect(clippy::unwrap_used, reason = "a test ends where its preparation fails")]

mod support;
mod end_to_end;
mod rotation;
mod faults;
mod brought;
mod several;
mod records;
mod recovery;
mod memory;
mod follow;
