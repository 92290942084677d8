//! Reads a settings document (YAML with environment variables over it) and reports every mistake in it at once.
//!
//! Promises: a document that reads without [`Mistakes`] held only keys that the program knows, each of the type and
//! range that was asked for. Memory and time are bounded whatever the file holds: 1 MiB of text, 32 levels, aliases
//! that cannot multiply. Nothing here panics on bad input.
//!
//! Left to others: which keys exist and what they mean (each component reads its own [`Section`]), and the exit code.
//!
//! Keys are camelCase as in Kubernetes. The environment variable of a key is the prefix and the key's path in upper
//! case with underscores: `outbound.idleTimeout` is `PICKET_OUTBOUND_IDLE_TIMEOUT`. Keys inside lists have none.
//!
//! ```
//! use settings::{Document, Noted, Section};
//! use std::time::Duration;
//!
//! struct Outbound { port: u16, idle: Duration }
//!
//! fn outbound(section: &Section) -> Result<Outbound, Noted> {
//!     let port = section.required("port"); // no `?` yet: read every key first, so that all mistakes are noted
//!     let idle = section.default("idleTimeout", Duration::from_secs(60));
//!     Ok(Outbound { port: port?, idle })
//! }
//!
//! let document = Document::parse("proxy.yaml", "outbound: {port: 15001}", "PICKET_", [])?;
//! let outbound = document.read(|root| outbound(&root.section("outbound")))?;
//! assert_eq!((outbound.port, outbound.idle.as_secs()), (15001, 60));
//! # Ok::<(), settings::Error>(())
//! ```

mod document;
mod section;
mod value;
mod mistake;

pub use document::{Document, Error, FILE_LIMIT_BYTES, to_yaml};
pub use mistake::{Mistake, Mistakes, Noted};
pub use section::Section;
pub use value::{Bytes, HostPort, Scalar, Setting};
