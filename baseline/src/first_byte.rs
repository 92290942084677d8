//! How soon an answer begins: what a streaming server does slower while the whole takes as long as ever.
//!
//! The test is that of sizes (`volume`), with half of a twofold as allowance. An answer that takes longer as a whole also
//! begins later: what durations have shifted, in this block and in the last half minute, is excused, so that both are explained
//! as one, by `latency`. The limit is never below what a peer that restarts may cost, and a pause ([`TOLERANCES`]). Where there is no
//! duration, on opaque connections, it is up to the client when the first byte is due, and nothing is tested.
//!
//! What is kept besides is a mergeable sketch in octaves, scaled down when full.

use crate::{
    sketch::quarter,
    volume::{Block, Tolerances, Volume},
};

/// Bins of the sketch: octaves from 1 µs on.
pub(crate) const FIRST_BYTE_BINS: usize = 32;
/// Half of a twofold; half a minute at twice is tolerated, one block whatever it says, and a few answers in a row.
const TOLERANCES: Tolerances = Tolerances { allowance: 0.35, tolerated: 12.0, at_most: 1.5, values: 12.0, keep: 0.78 };

/// What is known of the time to the first byte on one edge.
#[derive(Debug, Clone, Default)]
pub(crate) struct FirstByte {
    pub(crate) level: Volume,
    pub(crate) bins: [u8; FIRST_BYTE_BINS],
    /// Answers in this block, and in the last half minute or so.
    records: u32,
    recent: f32,
}

impl FirstByte {
    #[inline]
    pub(crate) fn record(&mut self, micros: u64) {
        let bin = (quarter(micros) / 4).clamp(0, FIRST_BYTE_BINS as i32 - 1) as usize;
        if self.bins[bin] == u8::MAX {
            self.bins = self.bins.map(|count| count / 2);
        }
        self.bins[bin] += 1;
        self.records = self.records.saturating_add(1);
        self.level.record(micros);
    }

    /// Ends a block of an edge with `rate` requests a second whose durations are shifted by `excused`.
    pub(crate) fn end_block(&mut self, rate: f32, excused: f32, test: bool, share: f32) -> (f32, u32) {
        let records = std::mem::take(&mut self.records) as f32;
        self.recent = self.recent * TOLERANCES.keep + records;
        let block = Block { records, recent: self.recent, rate, excused };
        self.level.end_block(&block, TOLERANCES, test, share)
    }

    /// Geometric mean in seconds, if anything is known.
    pub(crate) fn expected(&self) -> Option<f64> {
        let mean = self.level.mean;
        (mean.weight > 0.0).then(|| f64::from(mean.value.exp()) / 1e6)
    }

    /// Geometric means in microseconds: expected, and observed lately.
    pub(crate) fn evidence(&self) -> ((f64, f64), f64) {
        self.level.evidence(self.recent, TOLERANCES)
    }

    pub(crate) fn relearn(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn reset_charts(&mut self) {
        self.level.reset_charts();
        self.records = 0;
    }
}
