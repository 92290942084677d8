//! One edge: its channels, what they learnt, and what they say when a block ends.
//!
//! Promises: at most [`EDGE_BYTES_MAX`] bytes without its names, whatever comes. Leaves to others: which deviations are open
//! (`engine`), and what other edges do (`common`).

use crate::{
    EdgeKey, EdgeRef, Kind, Observation, Protection,
    errors::Errors,
    first_byte::FirstByte,
    latency::Latency,
    limits::{BLOCK_MS, Limits},
    observation::{read_key, service_of},
    rate::Rate,
    volume::{BYTES, Block, Volume},
};

/// Size of an edge without its names.
pub(crate) const EDGE_BYTES_MAX: usize = 912;
/// So many times mutual TLS was seen before plaintext is remarkable.
const TLS_ENOUGH: u16 = 20;

/// One edge.
#[derive(Debug)]
pub(crate) struct Edge {
    /// Its names, in the form under which it is found.
    names: Box<[u8]>,
    /// When it was first seen, and last.
    pub(crate) born: u64,
    pub(crate) last: u64,
    pub(crate) latency: Latency,
    pub(crate) first_byte: FirstByte,
    pub(crate) errors: Errors,
    pub(crate) rate: Rate,
    pub(crate) bytes_in: Volume,
    pub(crate) bytes_out: Volume,
    /// Records of the last minute or so.
    recent: f32,
    /// Never adopt anything for it.
    pub(crate) pinned: bool,
    /// Its baseline came from siblings: nothing to learn first.
    pub(crate) inherited: bool,
    /// Its silence was reported as a peer that vanished.
    pub(crate) vanished: bool,
    /// How often it was mutual TLS; how often in this block it was not.
    pub(crate) mutual_tls: u16,
    pub(crate) plaintext: u16,
}

const _: () = assert!(size_of::<Edge>() <= EDGE_BYTES_MAX);

/// What the tests of one block say: per kind, how near to the limit, and for how many blocks the chart has risen.
pub(crate) type Verdicts = [(Kind, f32, u32); 10];

impl Edge {
    pub(crate) fn new(names: &[u8], at: u64) -> Self {
        Self {
            names: names.into(),
            born: at,
            last: at,
            latency: Latency::default(),
            first_byte: FirstByte::default(),
            errors: Errors::default(),
            rate: Rate::default(),
            bytes_in: Volume::default(),
            bytes_out: Volume::default(),
            recent: 0.0,
            pinned: false,
            inherited: false,
            vanished: false,
            mutual_tls: 0,
            plaintext: 0,
        }
    }

    /// Its names.
    pub(crate) fn key(&self) -> EdgeKey {
        read_key(&self.names)
    }

    /// Whether plaintext would be a deviation.
    pub(crate) fn expects_mutual_tls(&self) -> bool {
        self.mutual_tls >= TLS_ENOUGH
    }

    /// Makes plaintext a deviation from the beginning.
    pub(crate) fn expect_mutual_tls(&mut self) {
        self.mutual_tls = TLS_ENOUGH;
    }

    /// Whether it leads that way to that service, whoever the peer is.
    pub(crate) fn leads_to(&self, edge: EdgeRef<'_>) -> bool {
        service_of(&self.names, edge.direction, edge.port).is_some_and(|service| service == edge.service.as_bytes())
    }

    #[inline]
    pub(crate) fn record(&mut self, observation: &Observation<'_>) {
        self.last = self.last.max(observation.at);
        self.rate.record();
        self.errors.record(observation.error);
        if let Some(micros) = observation.duration_us {
            self.latency.record(micros);
            if let Some(micros) = observation.first_byte_us {
                self.first_byte.record(micros);
            }
        }
        self.bytes_in.record(observation.bytes_in);
        self.bytes_out.record(observation.bytes_out);
        match observation.protection {
            Protection::MutualTls => self.mutual_tls = self.mutual_tls.saturating_add(1),
            Protection::Plaintext => self.plaintext = self.plaintext.saturating_add(1),
            Protection::Unknown => {}
        }
    }

    /// Whether it has learnt for long enough: who came only for a while has nothing that could be held against him.
    pub(crate) fn is_watching(&self, limits: &Limits) -> bool {
        self.inherited || self.last.saturating_sub(self.born) >= limits.learn_ms
    }

    /// Plaintext where there was mutual TLS.
    pub(crate) fn take_plaintext(&mut self) -> u16 {
        let plaintext = std::mem::take(&mut self.plaintext);
        if self.expects_mutual_tls() { plaintext } else { 0 }
    }

    /// First pass over a block that ended.
    pub(crate) fn end_block(&mut self) {
        self.latency.end_block();
        self.rate.end_block();
    }

    /// Second pass: tests and learns. `open` are the kinds that are open; `common` what all edges have in common.
    pub(crate) fn test(&mut self, hour: u8, test: bool, open: &dyn Fn(Kind) -> bool, common: &Common) -> Verdicts {
        let (_, expected) = self.rate.expected();
        let share = |open: bool, near: f32| if open { 0.0 } else { share(near) };
        let whole = [self.latency.block_shift(), self.latency.recent_shift().map(|(shift, _)| shift)];
        let excused = whole.into_iter().flatten().fold(common.latency.max(0.0), f32::max);
        let latency = self.latency.test(expected, common);
        let latency = if test { latency } else { Default::default() };
        if !test {
            self.latency.reset_charts();
        }
        let slow = open(Kind::Latency) || open(Kind::LatencyTail);
        self.latency.share = share(slow, latency.shift.max(latency.tail));
        // What the charts of the block before said decides how much of this one is learnt.
        let errors = self.errors.end_block(expected, test, share(open(Kind::Errors), self.errors.nearness(expected)));
        let records = self.rate.in_block();
        self.recent = self.recent * BYTES.keep + records;
        let late = share(slow || open(Kind::FirstByte), self.first_byte.level.nearness);
        let first_byte = self.first_byte.end_block(expected, excused, test, late);
        let block = Block { records, recent: self.recent, rate: expected, excused: 0.0 };
        let more = share(open(Kind::BytesIn), self.bytes_in.nearness);
        let bytes_in = self.bytes_in.end_block(&block, BYTES, test, more);
        let more = share(open(Kind::BytesOut), self.bytes_out.nearness);
        let bytes_out = self.bytes_out.end_block(&block, BYTES, test, more);
        let moved = open(Kind::RateUp) || open(Kind::RateDown) || open(Kind::Silence);
        let rate = self.rate.test(hour, test, share(moved, self.rate.nearness), common.rate);
        [
            (Kind::Latency, latency.shift, latency.shift_blocks),
            (Kind::LatencyTail, latency.tail, latency.tail_blocks),
            (Kind::FirstByte, first_byte.0, first_byte.1),
            (Kind::Errors, errors.0, errors.1),
            (Kind::Silence, rate.silence.0, rate.silence.1),
            (Kind::RateUp, rate.up.0, rate.up.1),
            (Kind::RateDown, rate.down.0, rate.down.1),
            (Kind::BytesIn, bytes_in.0, bytes_in.1),
            (Kind::BytesOut, bytes_out.0, bytes_out.1),
            (Kind::Plaintext, f32::from(self.take_plaintext()), 1),
        ]
    }

    /// What was expected and observed of a kind whose test says `near`, and how many records of the last `blocks` say so.
    pub(crate) fn facts(&self, kind: Kind, near: f32, blocks: u32) -> (((f64, f64), f64), u64) {
        if kind == Kind::Plaintext {
            // Each record is one too many.
            return (((0.0, 0.0), f64::from(near)), near as u64);
        }
        (self.evidence(kind), self.records_in(blocks))
    }

    /// Expected range and observed value of a kind.
    fn evidence(&self, kind: Kind) -> ((f64, f64), f64) {
        let seconds = |(low, high): (f64, f64), at: f64| ((low / 1e6, high / 1e6), at / 1e6);
        match kind {
            Kind::Latency | Kind::LatencyTail => {
                let (range, observed) = self.latency.evidence();
                seconds(range, observed)
            }
            Kind::FirstByte => {
                let (range, observed) = self.first_byte.evidence();
                seconds(range, observed)
            }
            Kind::Errors => ((0.0, f64::from(self.errors.expected())), f64::from(self.errors.observed())),
            Kind::RateUp | Kind::RateDown | Kind::Silence => {
                let (low, high) = self.rate.expected();
                ((f64::from(low), f64::from(high)), f64::from(self.rate.observed()))
            }
            Kind::BytesIn => self.bytes_in.evidence(self.recent, BYTES),
            Kind::BytesOut => self.bytes_out.evidence(self.recent, BYTES),
            Kind::Plaintext | Kind::NewPeer | Kind::VanishedPeer | Kind::Cpu | Kind::Memory => ((0.0, 0.0), 1.0),
        }
    }

    /// Whether a deviation of that kind may close.
    pub(crate) fn is_over(&self, kind: Kind) -> bool {
        match kind {
            Kind::Latency => self.latency.shift_is_over(),
            Kind::LatencyTail => self.latency.tail_is_over(),
            Kind::FirstByte => self.first_byte.level.is_over(),
            Kind::Errors => self.errors.is_over(),
            Kind::RateUp => self.rate.up_is_over(),
            Kind::RateDown => self.rate.down_is_over(),
            Kind::Silence => self.rate.silence_is_over() && self.rate.down_is_over(),
            Kind::BytesIn => self.bytes_in.is_over(),
            Kind::BytesOut => self.bytes_out.is_over(),
            Kind::Plaintext | Kind::NewPeer | Kind::VanishedPeer | Kind::Cpu | Kind::Memory => false,
        }
    }

    /// After a deviation has closed: what was left of it does not open the next one.
    pub(crate) fn settle(&mut self, kind: Kind) {
        if matches!(kind, Kind::Latency | Kind::LatencyTail | Kind::FirstByte) {
            self.latency.reset_charts();
            self.first_byte.reset_charts();
        } else if matches!(kind, Kind::RateDown | Kind::Silence) {
            self.rate.settle();
        }
    }

    /// Learns anew what a kind is about.
    pub(crate) fn relearn(&mut self, kind: Kind) {
        match kind {
            // Both: what explains a later beginning would be gone.
            Kind::Latency | Kind::LatencyTail => {
                self.latency.relearn();
                self.first_byte.relearn();
            }
            Kind::FirstByte => self.first_byte.relearn(),
            Kind::Errors => self.errors.relearn(),
            Kind::RateUp | Kind::RateDown | Kind::Silence => self.rate.relearn(),
            Kind::BytesIn => self.bytes_in.relearn(),
            Kind::BytesOut => self.bytes_out.relearn(),
            Kind::Plaintext => self.mutual_tls = 0,
            Kind::NewPeer | Kind::VanishedPeer | Kind::Cpu | Kind::Memory => {}
        }
    }

    /// After a pause of the clock: nothing is concluded from what lies across it.
    pub(crate) fn reset_charts(&mut self) {
        self.latency.reset_charts();
        self.first_byte.reset_charts();
        self.errors.reset_charts();
        self.rate.reset_charts();
        self.bytes_in.reset_charts();
        self.bytes_out.reset_charts();
    }

    /// How many blocks' worth of records a chart has seen.
    pub(crate) fn records_in(&self, blocks: u32) -> u64 {
        (f64::from(self.rate.observed()) * f64::from(blocks) * BLOCK_MS as f64 / 1000.0).round() as u64
    }
}

/// How much of a block is learnt, by how near its tests are to their limits.
fn share(near: f32) -> f32 {
    if near > 0.35 { 0.1 } else { 1.0 }
}

/// What most edges have in common, as logarithms of factors.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Common {
    pub(crate) latency: f32,
    /// Standard error of the shift of latency.
    pub(crate) latency_doubt: f32,
    pub(crate) rate: f32,
}
