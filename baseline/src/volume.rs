//! How many bytes each request takes or brings; and, told by the same test, how soon an answer begins (`first_byte`).
//!
//! A CUSUM of the logarithm of the value over its learnt mean, with half of a shift as allowance. Variance is learnt; the
//! limit is never below what is tolerated ([`Tolerances`]). Assumes that values of different requests are independent.

use crate::{
    limits::{BLOCK_S, BUDGET},
    stats::{Cusum, Mean, log2_coarse},
};

/// What a chart allows for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tolerances {
    /// Half of the shift that is looked for, as a natural logarithm.
    pub(crate) allowance: f32,
    /// What healthy edges bring: logarithm beyond the allowance times seconds.
    pub(crate) tolerated: f32,
    /// What a block's mean may say at most beyond the allowance.
    pub(crate) at_most: f32,
    /// Values that it takes at least to reach the limit: rare requests must not be judged by one of them.
    pub(crate) values: f32,
    /// How much less counts what is a block older, in what was observed lately.
    pub(crate) keep: f32,
}

/// Bytes: half of a threefold, and a minute of threefold size with room for its noise.
pub(crate) const BYTES: Tolerances =
    Tolerances { allowance: 0.55, tolerated: 70.0, at_most: 3.0, values: 3.0, keep: 0.9 };
/// Records that the mean remembers, or seconds if those are more: else a busy edge would learn a shift before it is found.
const MEMORY: f32 = 5000.0;
const MEMORY_S: f32 = 1200.0;
const LN_2: f32 = std::f32::consts::LN_2;

/// What is known of a value on one edge: of sizes, one way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Volume {
    /// Mean of the natural logarithm.
    pub(crate) mean: Mean,
    pub(crate) variance: Mean,
    /// Sums of logarithms: of the block, and lately.
    block: f32,
    recent: f32,
    chart: Cusum,
    /// How near the chart is to its limit.
    pub(crate) nearness: f32,
}

/// A block that ended, apart from its values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    /// Values in it, and lately.
    pub(crate) records: f32,
    pub(crate) recent: f32,
    /// Values that are expected in a second.
    pub(crate) rate: f32,
    /// What explains a shift, as a logarithm.
    pub(crate) excused: f32,
}

impl Volume {
    #[inline]
    pub(crate) fn record(&mut self, value: u64) {
        self.block += log2_coarse(value);
    }

    /// Ends a block. How near the chart is to its limit, and since how many blocks.
    pub(crate) fn end_block(&mut self, block: &Block, allow: Tolerances, test: bool, share: f32) -> (f32, u32) {
        let Block { records, recent, rate, excused } = *block;
        let sum = std::mem::take(&mut self.block) * LN_2;
        let mut verdict = (0.0, 0);
        self.recent = self.recent * allow.keep + sum;
        let variance = self.variance.value.max(0.02);
        let rate = rate.max(recent * (1.0 - allow.keep) / BLOCK_S).max(0.003);
        if test && self.mean.weight >= 60.0 {
            let limit = (variance / rate * BUDGET / (2.0 * allow.allowance)).max(allow.tolerated);
            let above = (sum - records * (self.mean.value + allow.allowance + excused)).min(allow.at_most * records);
            self.chart.add((above / rate).min(records * limit / allow.values), 1.3 * limit);
            verdict = (self.chart.sum / limit, self.chart.blocks);
        }
        self.nearness = verdict.0;
        if records > 0.0 {
            let off = sum / records - self.mean.value;
            if self.mean.weight >= 20.0 {
                self.variance.add((off * off * records).min(9.0 * variance.max(0.25)), share, MEMORY / 10.0);
            }
            self.mean.add(sum / records, records * share, MEMORY.max(rate * MEMORY_S));
        }
        verdict
    }

    /// Geometric means: expected, and observed lately.
    pub(crate) fn evidence(&self, recent: f32, allow: Tolerances) -> ((f64, f64), f64) {
        let (mean, room) = (f64::from(self.mean.value.exp()), f64::from(allow.allowance.exp()));
        ((mean / room, mean * room), f64::from((self.recent / recent.max(1e-6)).exp()))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.chart.sum <= 0.0
    }

    pub(crate) fn relearn(&mut self) {
        *self = Self { recent: self.recent, ..Self::default() };
    }

    pub(crate) fn reset_charts(&mut self) {
        self.chart = Cusum::default();
        self.block = 0.0;
    }
}
