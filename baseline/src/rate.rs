//! How many come: more than expected, fewer, or none.
//!
//! What is expected follows the rate slowly, and from the second day on also knows the hour: a rate is only unexpected if
//! neither explains it. **More and fewer**: CUSUMs of the block's count over what is expected, with allowances halfway between
//! normal and threefold, and between normal and a quarter. Their variance is that of counts that scatter more than Poisson's
//! (negative binomial, its dispersion learnt); the limit is never below what a scheduled burst may bring ([`BURST`]). A block
//! counts for no more than a little over threefold ([`MOST`]): so what is tolerated is how long a burst lasts, not how high it is.
//! Neither is told below a tenth of the busiest hours ([`NIGHT`]): edges that fall asleep one by one, and wake so, are no news.
//! **Silence**: the logarithm of the probability that so many blocks in a row are empty, under the negative binomial. Assumes
//! that the counts of different blocks are independent given the rate.

use crate::{
    limits::{BLOCK_S, BUDGET},
    stats::{Cusum, Mean},
};

/// Counted in multiples of what is expected: threefold is told from normal best at this.
const UP: f32 = 1.8;
/// And a quarter at this.
const DOWN: f32 = 0.54;
/// What one block counts for at most, and the room for chance: so many standard deviations of a Poisson count.
const MOST: (f32, f32) = (3.0, 1.5);
/// What is tolerated: a scheduled burst of a minute, however high, with room for the blocks that it begins and ends in and for
/// its noise.
const BURST: f32 = 100.0;
/// Of bursts that were seen: room for the next one, blocks in which they are forgotten, and blocks that are still short.
const BURST_ROOM: f32 = 1.4;
const BURST_BLOCKS: f32 = 17_280.0;
const SHORT_BLOCKS: u32 = 24;
/// What is tolerated of less: four minutes at a quarter.
const LULL: f32 = 80.0;
/// Seconds that the expected rate looks back, and the longest for rare requests.
const MEMORY_S: f32 = 1200.0;
const MEMORY_MAX_S: f32 = 1800.0;
/// A rate that is known from so many requests is known to a tenth; rare ones are remembered for longer.
const REQUESTS: f32 = 100.0;
/// What an edge does at less than this share of its busiest hours is its night: nothing is missed, and up to it nothing is much.
const NIGHT: f32 = 0.1;
/// Silence must be improbable by so many nats, and be tested against somewhat less than what is expected.
const SILENCE: f32 = BUDGET + 2.0;
const SILENCE_SHARE: f32 = 0.7;
/// Silence that could only be told after so many seconds is not tested: by then the rate itself may have changed.
const SILENCE_MAX_S: f32 = 1800.0;

/// What is known of the rate of one edge.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rate {
    /// Records per block, and how many blocks that stands on.
    pub(crate) mean: Mean,
    /// Variance beyond Poisson's, as a square of the mean.
    pub(crate) dispersion: Mean,
    /// Mean per block by hour of the day, as binary logarithms in 1/256; 0 is unknown.
    pub(crate) hours: [i16; 24],
    hour: (u8, f32, u16),
    block: u32,
    recent: (f32, f32),
    up: Cusum,
    /// The highest that a short burst brought the chart to, with room; and of the burst at hand, with when it came there.
    pub(crate) burst: f32,
    peak: (f32, u32),
    down: Cusum,
    silence: Cusum,
    /// How near the nearest chart is to its limit.
    pub(crate) nearness: f32,
}

/// How near the charts are to their limits, and for how many blocks they have risen.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Verdict {
    pub(crate) up: (f32, u32),
    pub(crate) down: (f32, u32),
    pub(crate) silence: (f32, u32),
}

impl Rate {
    #[inline]
    pub(crate) fn record(&mut self) {
        self.block = self.block.saturating_add(1);
    }

    /// Records in the block at hand.
    pub(crate) fn in_block(&self) -> f32 {
        self.block as f32
    }

    /// Observed per second, over the last minute.
    pub(crate) fn observed(&self) -> f32 {
        self.recent.0 / self.recent.1.max(1.0) / BLOCK_S
    }

    /// The smallest and largest rate per second that level and hour expect.
    pub(crate) fn expected(&self) -> (f32, f32) {
        let (level, hour) = (self.mean.value, self.of_hour());
        (level.min(hour.unwrap_or(level)) / BLOCK_S, level.max(hour.unwrap_or(level)) / BLOCK_S)
    }

    /// What the busiest hour but one had, per block: one hour alone may have been an accident.
    fn busiest(&self) -> f32 {
        let known = self.hours.iter().filter(|hour| **hour != 0);
        let [_, second] =
            known.fold(
                [i16::MIN; 2],
                |[first, second], hour| {
                    if *hour > first { [*hour, first] } else { [first, second.max(*hour)] }
                },
            );
        if second == i16::MIN { 0.0 } else { (f32::from(second) / 256.0).exp2() }
    }

    /// What this hour of the day had before, per block.
    fn of_hour(&self) -> Option<f32> {
        let known = self.hours[usize::from(self.hour.0) % 24];
        (known != 0).then(|| (f32::from(known) / 256.0).exp2())
    }

    /// The logarithm of the recent rate over what is expected, and its variance.
    pub(crate) fn recent_change(&self) -> Option<(f32, f32)> {
        let expected = self.mean.value * self.recent.1;
        if self.mean.weight < 60.0 || expected < 1.0 {
            return None;
        }
        let change = ((self.recent.0 + 0.5) / (expected + 0.5)).ln();
        Some((change, 1.0 / (expected + 0.5) + self.dispersion.value.max(0.0) / self.recent.1))
    }

    /// How many requests of the last half minute are missing from what is expected at least.
    pub(crate) fn missing(&self) -> f32 {
        self.expected().0 * BLOCK_S * self.recent.1 - self.recent.0
    }

    /// How many there were beyond what is expected at most if all edges have changed by `common`, and the standard error of
    /// that; nothing before the rate is known.
    pub(crate) fn surplus(&self, common: f32) -> (f32, f32) {
        if self.mean.weight < 24.0 {
            return (0.0, 0.0);
        }
        let mean = self.expected().1 * BLOCK_S * common.max(0.0).exp();
        let variance = self.recent.1 * (mean + mean * mean * self.dispersion.value.max(0.02));
        (self.recent.0 - mean * self.recent.1, variance.sqrt())
    }

    /// Ends a block: what it says about the level.
    pub(crate) fn end_block(&mut self) {
        const KEEP: f32 = 0.85; // five seconds of thirty
        self.recent = (self.recent.0 * KEEP + self.block as f32, self.recent.1 * KEEP + 1.0);
    }

    /// Runs the tests: all edges have changed by `common` (a logarithm). Then learns.
    pub(crate) fn test(&mut self, hour: u8, test: bool, share: f32, common: f32) -> Verdict {
        let count = std::mem::take(&mut self.block) as f32;
        let mut verdict = Verdict::default();
        if test && self.mean.weight >= 120.0 && self.mean.value > 0.0 {
            let (low, high) = self.expected();
            // The rate itself is only known as well as the requests that it stands on allow: two standard errors.
            let doubt = 1.0 + 2.0 / (self.mean.value * self.mean.weight + 1.0).sqrt();
            let (low, high) = (low * common.min(0.0).exp() / doubt, high * common.max(0.0).exp() * doubt);
            let (low, high) = (low * BLOCK_S, high * BLOCK_S);
            let dispersion = self.dispersion.value.max(0.02);
            let variance = |mean: f32| BLOCK_S * (1.0 / mean + 2.0 * dispersion);
            let limit = (variance(high) * BUDGET / (2.0 * (UP - 1.0))).max(BURST.max(self.burst));
            let most = MOST.0 + MOST.1 / high.max(0.1).sqrt();
            let night = NIGHT * self.busiest();
            let high = high.max(night);
            self.up.add(((count / high).min(most) - UP) * BLOCK_S, 1.3 * limit);
            verdict.up = (self.up.sum / limit, self.up.blocks);
            self.learn_burst();
            let limit = (variance(low) * BUDGET / (2.0 * (1.0 - DOWN))).max(LULL);
            if low >= night {
                self.down.add((DOWN - count / low) * BLOCK_S, 1.3 * limit);
                self.listen(count, low * SILENCE_SHARE, dispersion);
            } else if self.down.sum < limit && self.silence.sum < SILENCE {
                self.settle();
            }
            verdict.down = (self.down.sum / limit, self.down.blocks);
            verdict.silence = (self.silence.sum / SILENCE, self.silence.blocks);
        }
        self.nearness = verdict.up.0.max(verdict.down.0).max(verdict.silence.0);
        self.learn(count, hour, share);
        verdict
    }

    /// Short bursts recur: what they bring is tolerated when they come again, for a day or so.
    fn learn_burst(&mut self) {
        self.burst -= self.burst / BURST_BLOCKS;
        if self.up.sum > self.peak.0 {
            self.peak = (self.up.sum, self.up.blocks);
        } else if self.up.sum <= 0.0 {
            let (peak, blocks) = std::mem::take(&mut self.peak);
            if blocks <= SHORT_BLOCKS {
                self.burst = self.burst.max(peak * BURST_ROOM);
            }
        }
    }

    fn listen(&mut self, count: f32, mean: f32, dispersion: f32) {
        if count > 0.0 {
            self.silence = Cusum::default();
            return;
        }
        let nats = (1.0 + mean * dispersion).ln() / dispersion;
        if nats * SILENCE_MAX_S / BLOCK_S > SILENCE {
            self.silence.add(nats, 1.3 * SILENCE);
        }
    }

    fn learn(&mut self, count: f32, hour: u8, share: f32) {
        let mean = self.mean.value;
        let blocks = self.mean.weight;
        let spread = (mean + mean * mean * self.dispersion.value.max(0.05)).sqrt();
        let usual = if blocks < 60.0 { count } else { count.min(mean + 4.0 * spread + 1.0) };
        if share > 0.0 && mean >= 0.05 && blocks >= 24.0 {
            let excess = ((usual - mean).powi(2) - mean) / (mean * mean);
            self.dispersion.add(excess, share * mean / (mean + 1.0), 720.0);
        }
        let memory = (REQUESTS * BLOCK_S / mean.max(1e-3)).clamp(MEMORY_S, MEMORY_MAX_S) / BLOCK_S;
        self.mean.add(usual, share, memory);
        if hour == self.hour.0 {
            self.hour = (hour, self.hour.1 + count, self.hour.2.saturating_add(1));
        } else {
            self.close_hour();
            self.hour = (hour, count, 1);
        }
    }

    /// Keeps the mean of an hour that was seen nearly whole; later days count half.
    fn close_hour(&mut self) {
        let (hour, count, blocks) = self.hour;
        if blocks < 600 {
            return;
        }
        let new = (count / f32::from(blocks) + 1e-3).log2() * 256.0;
        let old = &mut self.hours[usize::from(hour) % 24];
        let value = if *old == 0 { new } else { (f32::from(*old) + new) / 2.0 };
        *old = value.clamp(-32000.0, 32000.0) as i16;
        if *old == 0 {
            *old = 1;
        }
    }

    pub(crate) fn up_is_over(&self) -> bool {
        self.up.sum <= 0.0
    }

    pub(crate) fn down_is_over(&self) -> bool {
        self.down.sum <= 0.0
    }

    pub(crate) fn silence_is_over(&self) -> bool {
        self.silence.sum <= 0.0
    }

    /// After silence or a lull is over: what was left of it does not open the next one.
    pub(crate) fn settle(&mut self) {
        (self.down, self.silence) = (Cusum::default(), Cusum::default());
    }

    pub(crate) fn relearn(&mut self) {
        self.mean = Mean::default();
        self.reset_charts();
    }

    pub(crate) fn reset_charts(&mut self) {
        (self.up, self.down, self.silence) = (Cusum::default(), Cusum::default(), Cusum::default());
        self.block = 0;
    }
}
