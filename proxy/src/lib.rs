//! The sidecar: everything that touches a live connection.
//!
//! A connection takes these steps, and the modules stand in their order; `inbound` and `outbound` tell each direction:
//!
//! ```text
//! 1 accept ─► 2 original destination ─► 3 detect ─► 4 TLS, identity ─► 5 discover, balance ─► 6 forward ─► 7 record
//! ```
//!
//! One control thread keeps credentials, discovery, the admin port and the export going; each worker thread has its own
//! listeners, runtime and state, so that nothing on the way of a connection waits for a lock, the disk, the CA, or the
//! collector. Kubernetes is unknown here.

pub mod cli;
pub mod config;
pub mod app;
pub mod worker;
pub mod inbound;
pub mod outbound;
pub mod original_dst;
pub mod detect;
pub mod stream;
pub mod clock;
pub mod trust_state;
pub mod trust;
pub mod ca_client;
pub mod credentials;
pub mod follow;
pub mod policy;
pub mod discover;
pub mod balance;
pub mod connect;
pub mod forward;
pub mod capture;
pub mod account;
pub mod journal;
pub mod baseline;
pub mod redirect;
pub mod drain;
pub mod metrics;
pub mod admin;
pub mod annotations;
pub mod error;
#[cfg(test)]
mod test_ca;
#[cfg(test)]
mod follow_tests;
#[cfg(test)]
mod deny_tests;
#[cfg(test)]
mod cut_tests;
