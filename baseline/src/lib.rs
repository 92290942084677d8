//! What is normal on the edges of a pod, and what is not.
//!
//! Records go in as [`Observation`]s, [`Event`]s come out of [`Engine::drain_events`]: deviations that open with evidence and
//! close, never one per request. The story of a record, in the order of the modules: an edge takes it in (`edge`) and counts it
//! in five channels (`latency`, `errors`, `rate`, `volume`, `first_byte`); every five seconds the engine looks at what all edges have in
//! common (`common`) and tests each for what it does beyond that (`engine`); who changed to plaintext is traced beside it
//! (`engine::plaintext`). What was learnt is a [`State`]: it can be
//! written, merged with that of siblings, given to a new pod, and compared.
//!
//! Each channel's module says what its test assumes and where it comes from. There is one set of constants (`limits`); a limit
//! is either bought from a false-alarm budget or is a stated tolerance.
//!
//! Promises: no clock, no I/O, no thread; bounded memory and no panic, whatever comes. Leaves to others: what counts as an
//! error, keeping states, telling people.

mod limits;
mod observation;
mod deviation;
mod stats;
mod sketch;
mod latency;
mod errors;
mod rate;
mod volume;
mod first_byte;
mod gauge;
mod edge;
mod common;
mod engine;
mod state;
mod codec;
mod diff;
mod record;

pub use self::record::{address_class, observation};
pub use codec::{STATE_VERSION, StateError};
pub use deviation::{Deviation, Ending, Event, Kind, OTHERS_MAX, digits};
pub use diff::Difference;
pub use engine::{Counters, Engine, Phase, Summary};
pub use gauge::{Channel, Gauge, Said};
pub use limits::Limits;
pub use observation::{Direction, EdgeKey, EdgeRef, NAME_BYTES_MAX, Observation, Protection, Protocol};
pub use sketch::Sketch;
pub use state::{STATE_EDGES_MAX, State};
