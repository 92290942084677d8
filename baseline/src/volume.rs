//! How many bytes each request takes or brings.
//!
//! A CUSUM of the logarithm of the size over its learnt mean, with half of a threefold as allowance. Variance is learnt; the
//! limit is never below what a batch may bring ([`BATCH`]). Assumes that sizes of different requests are independent.

use crate::{
    limits::BUDGET,
    stats::{Cusum, Mean, log2_coarse},
};

/// Half of a threefold, as a natural logarithm.
const ALLOWANCE: f32 = 0.55;
/// What is tolerated: a minute of threefold size, with room for its noise.
const BATCH: f32 = 70.0;
/// Records that the mean remembers.
const MEMORY: f32 = 5000.0;
const LN_2: f32 = std::f32::consts::LN_2;

/// What is known of the sizes on one edge, one way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Volume {
    /// Mean of the natural logarithm.
    pub(crate) mean: Mean,
    pub(crate) variance: Mean,
    block: (u32, f32),
    recent: (f32, f32),
    chart: Cusum,
    /// How near the chart is to its limit.
    pub(crate) nearness: f32,
}

impl Volume {
    #[inline]
    pub(crate) fn record(&mut self, bytes: u64) {
        self.block = (self.block.0.saturating_add(1), self.block.1 + log2_coarse(bytes));
    }

    /// Ends a block: `rate` per second is expected. How near the chart is to its limit, and since how many blocks.
    pub(crate) fn end_block(&mut self, rate: f32, test: bool, share: f32) -> (f32, u32) {
        let (records, sum) = std::mem::take(&mut self.block);
        let mut verdict = (0.0, 0);
        let records = records as f32;
        let sum = sum * LN_2;
        self.recent = (self.recent.0 * 0.9 + sum, self.recent.1 * 0.9 + records);
        let variance = self.variance.value.max(0.02);
        if test && self.mean.weight >= 60.0 {
            let rate = rate.max(self.recent.1 / 50.0).max(0.003);
            let limit = (variance / rate * BUDGET / (2.0 * ALLOWANCE)).max(BATCH);
            let above = (sum - records * (self.mean.value + ALLOWANCE)).min(3.0 * records);
            self.chart.add(above / rate, 1.3 * limit);
            verdict = (self.chart.sum / limit, self.chart.blocks);
        }
        self.nearness = verdict.0;
        if records > 0.0 {
            let off = sum / records - self.mean.value;
            if self.mean.weight >= 20.0 {
                self.variance.add((off * off * records).min(9.0 * variance.max(0.25)), share, MEMORY / 10.0);
            }
            self.mean.add(sum / records, records * share, MEMORY);
        }
        verdict
    }

    /// Geometric means of bytes: expected and observed over the last minute.
    pub(crate) fn evidence(&self) -> ((f64, f64), f64) {
        let (mean, room) = (f64::from(self.mean.value.exp()), f64::from(ALLOWANCE.exp()));
        ((mean / room, mean * room), f64::from((self.recent.0 / self.recent.1.max(1e-6)).exp()))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.chart.sum <= 0.0
    }

    pub(crate) fn relearn(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn reset_charts(&mut self) {
        self.chart = Cusum::default();
        self.block = (0, 0.0);
    }
}
