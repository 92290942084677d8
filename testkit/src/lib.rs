//! What the demo, the integration tests and the benches share: pods, processes, a collector, a packet capture.
//!
//! Promises: everything here is blocking and bounded by a deadline; whatever is started ends with the value that stands
//! for it, and with the process that started it even if that is killed. Nothing outside our own namespaces is changed.
//! Leaves to others: what is sent through the mesh and what must be true of it.

mod wait;
mod clock;
mod net;
mod process;
mod mesh;
mod collector;
mod records;
mod capture;
mod follow;

pub use capture::{Capture, Counts};
pub use clock::Clock;
pub use collector::Collector;
pub use follow::{Bundles, follow};
pub use mesh::{Endpoint, Mesh, MeshPod, PROXY_UID, Plaintext, Service, ServicePort, Settings, TRUST_DOMAIN, Workload};
pub use net::{LINK_IPV4, LINK_IPV6, Namespace, Net, Pod};
pub use process::{Process, RunDir, Stream, binaries, run};
pub use records::Record;
pub use wait::until;
