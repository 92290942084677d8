//! How many fail: a burst of errors that is more than a restart of the peer.
//!
//! Three Bernoulli CUSUMs (Reynolds and Stoumbos, J. Quality Technology 1999): the likelihood ratio of one, five and 25 points
//! more against the learnt share, which starts from a prior so that an edge without errors is not taken to be perfect. Assumes
//! that records fail independently of each other; since a restart fails many in a few seconds, what they may add is
//! rationed so that only half a minute of them reaches the limit.
//!
//! Such a chart is renewed by errors only. So the limit is the logarithm of how many errors a healthy edge has in the budget's
//! time: an edge that hardly ever fails needs less evidence for the same rate of false alarms.

use crate::{limits::BUDGET_S, stats::Cusum};

/// How many points more each chart looks for.
const MORE: [f32; 3] = [0.01, 0.05, 0.25];
/// Before anything is known: so many errors in so many records.
const PRIOR: (f32, f32) = (1.5, 750.0);
/// Records that are remembered.
const MEMORY: f32 = 60_000.0;
/// Limits in nats, at least and at most: three errors in a row are never enough, and 25 points on a busy edge never need long.
const LIMIT: (f32, f32) = (12.0, 13.0);
/// What errors may add at once, and what more for each block, as shares of the limit: a restart whose errors fill five blocks
/// stays below it, while single errors, block after block, count in full.
const AT_ONCE: f32 = 0.42;
const PER_BLOCK: f32 = 0.13;

/// What is known of the errors of one edge.
#[derive(Debug, Clone, Default)]
pub(crate) struct Errors {
    /// Errors and records that were learnt.
    pub(crate) errors: f32,
    pub(crate) records: f32,
    block: (u32, u32),
    recent: (f32, f32),
    /// How much of the ration is spent, as a share of the limit.
    spent: f32,
    charts: [Cusum; 3],
}

impl Errors {
    #[inline]
    pub(crate) fn record(&mut self, error: bool) {
        self.block.0 = self.block.0.saturating_add(u32::from(error));
        self.block.1 = self.block.1.saturating_add(1);
    }

    /// The share that is expected to fail.
    pub(crate) fn expected(&self) -> f32 {
        ((self.errors + PRIOR.0) / (self.records + PRIOR.1)).min(0.98)
    }

    /// The share that failed in the last minute.
    pub(crate) fn observed(&self) -> f32 {
        self.recent.0 / self.recent.1.max(1.0)
    }

    /// The limit of an edge where `rate` per second are expected.
    fn limit(&self, rate: f32) -> f32 {
        (BUDGET_S * rate * self.expected()).max(1.0).ln().clamp(LIMIT.0, LIMIT.1)
    }

    /// Ends a block, `rate` per second being expected, and says how near the nearest chart is to its limit, and for how many
    /// blocks it has risen.
    pub(crate) fn end_block(&mut self, rate: f32, test: bool, share: f32) -> (f32, u32) {
        let (errors, records) = std::mem::take(&mut self.block);
        let (errors, records) = (errors as f32, records as f32);
        self.recent = (self.recent.0 * 0.9 + errors, self.recent.1 * 0.9 + records);
        let mut nearest = (0.0, 0);
        if test {
            let usual = self.expected();
            let limit = self.limit(rate);
            let ration = (AT_ONCE - self.spent) * limit;
            let mut taken = 0.0_f32;
            for (chart, more) in self.charts.iter_mut().zip(MORE) {
                let bad = (usual + more).min(0.99);
                let nats = errors * (bad / usual).ln() + (records - errors) * ((1.0 - bad) / (1.0 - usual)).ln();
                let nats = nats.min(ration);
                taken = taken.max(nats);
                chart.add(nats, 1.3 * limit);
                if chart.sum / limit > nearest.0 {
                    nearest = (chart.sum / limit, chart.blocks);
                }
            }
            self.spent = (self.spent + taken / limit - PER_BLOCK).max(0.0);
        }
        self.errors += errors * share;
        self.records += records * share;
        if self.records > MEMORY {
            let keep = MEMORY / self.records;
            (self.errors, self.records) = (self.errors * keep, MEMORY);
        }
        nearest
    }

    /// How near the nearest chart was to its limit.
    pub(crate) fn nearness(&self, rate: f32) -> f32 {
        self.charts.iter().map(|chart| chart.sum).fold(0.0, f32::max) / self.limit(rate)
    }

    /// Whether a deviation may close.
    pub(crate) fn is_over(&self) -> bool {
        self.charts.iter().all(|chart| chart.sum <= 0.0)
    }

    /// Takes what the last minute was like as normal: what is steady would be found again before it could be learnt.
    pub(crate) fn relearn(&mut self) {
        let share = (self.observed() * 1.2).min(0.98);
        let records = 4.0 * PRIOR.1;
        *self = Self { errors: share * records, records, ..Self::default() };
    }

    pub(crate) fn reset_charts(&mut self) {
        self.charts = [Cusum::default(); 3];
        self.spent = 0.0;
        self.block = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of 25 records with so many errors until the limit is reached.
    fn blocks(errors: &mut Errors, rate: f32, failing: u32) -> u32 {
        for block in 1..100 {
            for record in 0..25 {
                errors.record(record < failing);
            }
            if errors.end_block(rate, true, 0.0).0 >= 1.0 {
                return block;
            }
        }
        100
    }

    #[test]
    fn who_hardly_ever_fails_needs_less_evidence() {
        let sure = Errors { errors: 10.0, records: 50_000.0, ..Errors::default() };
        assert!(sure.limit(0.5) < sure.limit(50.0));
        assert!(sure.limit(0.0) >= LIMIT.0 && sure.limit(f32::MAX) <= LIMIT.1);
    }

    #[test]
    fn five_blocks_of_errors_are_a_restart_and_more_are_not() {
        for failing in [3, 25] {
            let taken = blocks(&mut Errors { errors: 10.0, records: 50_000.0, ..Errors::default() }, 5.0, failing);
            assert!((6..=7).contains(&taken), "{failing}: {taken}");
        }
    }
}
