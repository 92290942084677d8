//! What an operator sees of a running program besides its records: logs, metrics, health, exit codes.
//!
//! Promises: metric text is always valid for Prometheus, whatever label values hold; the admin port changes nothing
//! and cannot be held by slow or many clients; state is changed only over a Unix socket that its owner alone may open.
//!
//! Left to others: what is counted (each component keeps its own atomics and renders them), and the records, which are
//! never made from logs nor logs from them.

pub mod log;
pub mod chain;
pub mod exit;
pub mod metrics;
pub mod admin;

pub use chain::chain;
pub use exit::Exit;
