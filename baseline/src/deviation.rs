//! What comes out: deviations that open with evidence, and close.
//!
//! Promises: a deviation is opened once and closed once, under the same id; never one per request. Between them it is
//! updated at most [`OTHERS_MAX`] times.

use crate::{Difference, EdgeKey, EdgeRef};

/// What is not as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// All answers are slower.
    Latency,
    /// A part of the answers is much slower.
    LatencyTail,
    /// Answers begin later, though they end as ever.
    FirstByte,
    /// More of them fail.
    Errors,
    /// More requests than expected.
    RateUp,
    /// Fewer requests than expected.
    RateDown,
    /// None at all.
    Silence,
    /// Each request brings more bytes.
    BytesIn,
    /// Each request takes more bytes.
    BytesOut,
    /// Somebody who was not there while the pod learnt.
    NewPeer,
    /// Somebody who used to be there.
    VanishedPeer,
    /// Plaintext where there was mutual TLS.
    Plaintext,
    /// The CPU of the pod.
    Cpu,
    /// The memory of the pod.
    Memory,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Latency,
        Self::LatencyTail,
        Self::FirstByte,
        Self::Errors,
        Self::RateUp,
        Self::RateDown,
        Self::Silence,
        Self::BytesIn,
        Self::BytesOut,
        Self::NewPeer,
        Self::VanishedPeer,
        Self::Plaintext,
        Self::Cpu,
        Self::Memory,
    ];

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::LatencyTail => "latency_tail",
            Self::FirstByte => "first_byte",
            Self::Errors => "errors",
            Self::RateUp => "rate_up",
            Self::RateDown => "rate_down",
            Self::Silence => "silence",
            Self::BytesIn => "bytes_in",
            Self::BytesOut => "bytes_out",
            Self::NewPeer => "new_peer",
            Self::VanishedPeer => "vanished_peer",
            Self::Plaintext => "plaintext",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        }
    }

    /// What `expected` and `observed` count, as UCUM has it.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Latency | Self::LatencyTail | Self::FirstByte => "s",
            Self::Errors => "1",
            Self::RateUp | Self::RateDown | Self::Silence => "{request}/s",
            Self::BytesIn | Self::BytesOut | Self::Memory => "By",
            Self::NewPeer | Self::VanishedPeer => "{peer}",
            Self::Plaintext => "{request}",
            Self::Cpu => "{cpu}",
        }
    }
}

/// Why a deviation is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// It is as it was.
    Recovered,
    /// An operator said that this is normal now.
    Accepted,
    /// It lasted so long that it is normal now.
    Adopted,
    /// The edge was forgotten: at the bound, or its peer is gone for good.
    Forgotten,
}

impl Ending {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Recovered => "recovered",
            Self::Accepted => "accepted",
            Self::Adopted => "adopted",
            Self::Forgotten => "forgotten",
        }
    }
}

/// So many other edges are named by a deviation at most; `peers` counts all.
pub const OTHERS_MAX: usize = 7;

/// A deviation and its evidence.
#[derive(Debug, Clone, PartialEq)]
pub struct Deviation {
    /// Counts up over the life of an engine.
    pub id: u64,
    /// What is not as it was.
    pub kind: Kind,
    /// On which edge, of several the one that said it first and most clearly; none if it is about the pod.
    pub edge: Option<EdgeKey>,
    /// Other edges that it is about, in the order in which they came, at most [`OTHERS_MAX`].
    pub others: Vec<EdgeKey>,
    /// When it began, as far as the test can say, in milliseconds since 1970 UTC.
    pub since: u64,
    /// When it was opened.
    pub opened: u64,
    /// The range that was expected, in [`Kind::unit`].
    pub expected: (f64, f64),
    /// What was observed instead.
    pub observed: f64,
    /// How many records say so.
    pub records: u64,
    /// How many edges it is about: more than one for new peers that came together, and for what most edges do together.
    pub peers: u32,
    /// The test statistic over its limit: 1 at the moment of opening, more the surer.
    pub score: f64,
}

impl Deviation {
    /// Names one more edge that it is about, if there is room.
    pub(crate) fn name(&mut self, edge: EdgeRef<'_>) {
        let edge = (self.others.len() < OTHERS_MAX).then(|| edge.to_key());
        // Who was forgotten at the bound of edges may come again.
        let new = edge.filter(|edge| self.edge.as_ref() != Some(edge) && !self.others.contains(edge));
        self.others.extend(new);
    }
}

/// What an engine has to say.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A deviation opened.
    Opened(Deviation),
    /// It is about more edges than were named when it opened.
    Updated(Deviation),
    /// It is over; the evidence is what it was in the end.
    Closed {
        /// The deviation.
        deviation: Deviation,
        /// When it was closed, in milliseconds since 1970 UTC.
        at: u64,
        /// Why.
        ending: Ending,
    },
    /// What this pod does otherwise than its template's predecessor; once, when it has learnt.
    RolledOut {
        /// When, in milliseconds since 1970 UTC.
        at: u64,
        /// What differs; empty if nothing does.
        differences: Vec<Difference>,
    },
}

/// A value for people, in whatever [`Kind::unit`]: three digits that count, and whole numbers whole.
pub fn digits(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 || !size.is_finite() {
        return "0".to_owned();
    }
    let behind = (2 - size.log10().floor() as i32).clamp(0, 9);
    format!("{value:.*}", usize::try_from(behind).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_count() {
        let cases = [(0.0, "0"), (0.000_281_4, "0.000281"), (0.123_4, "0.123"), (12.34, "12.3"), (4321.0, "4321")];
        for (value, text) in cases {
            assert_eq!(digits(value), text);
        }
    }
}
