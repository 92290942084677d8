//! How long answers take: a shift of all of them, and a slow minority.
//!
//! **Shift.** Each duration becomes its normal score under the learnt distribution: the rank, as the quantile of a normal
//! distribution (van der Waerden 1952). Whatever the shape, the scores of unchanged traffic have mean 0 and variance about 1,
//! and no test of means on the durations is more powerful asymptotically (Chernoff and Savage, Ann. Math. Stat. 1958). Four
//! CUSUMs (Page 1954) look for shifts from a little to severalfold, each with half of its shift as allowance. Their variance
//! per second is that of sampling plus what the level of this edge wanders from minute to minute, which is learnt (random
//! effects, as in an analysis of variance). The limit is the larger of `variance / (2 allowance) × budget` (Brownian
//! approximation of the run length, Siegmund 1985) and of what a restarting peer may cost ([`RESTART`]).
//!
//! **Tail.** A CUSUM of the likelihood ratio of "5 % take ten times as long" against the learnt distribution, in which every
//! value may also stem from one half again as small, so that small shifts do not count. Assumes that records are independent
//! once the share of one block is capped.

use crate::{
    limits::BUDGET,
    sketch::{BINS, Sketch, quarter},
    stats::{Cusum, Mean, normal_quantile},
};

/// Allowances of the four charts, as logarithms of the factor: half of what each is best for.
const ALLOWANCES: [f32; 4] = [0.1, 0.2, 0.38, 0.8];
/// What is tolerated: a peer restarts and is cold for that many seconds, slower by this factor's logarithm.
const RESTART: (f32, f32) = (0.5, 36.0);
/// Shifts are tabled up to three octaves.
const SHIFTS: usize = 13;
/// Logarithm of a quarter octave.
const QUARTER: f32 = 0.173_286_8;
/// Seconds that the reference remembers, at least so many records.
const MEMORY_S: f32 = 2400.0;
/// The reference keeps at least so many records, however old.
const MEMORY_RECORDS: f32 = 300.0;
/// Charts run from so many records on.
const ENOUGH: f32 = 100.0;
/// The tail's chart runs from so many on: fewer say nothing about one in a hundred.
const TAIL_ENOUGH: f32 = 290.0;
/// How much the level of an edge wanders from minute to minute, before its own measure has come: log scale.
const WANDER: f32 = 0.05;
/// The minutes that this assumption weighs.
const WANDER_MINUTES: f32 = 15.0;
/// Levels of neighbouring minutes resemble each other: sums over minutes vary so much more than of independent ones.
const WANDER_MEMORY: f32 = 1.8;
/// Levels change by the minute, so a chart that follows them cannot renew itself more often: two nats less than the budget.
const SHIFT_BUDGET: f32 = BUDGET - 4.0;
/// Limit of the tail's chart, and the most that one block may bring: it takes six blocks, so that one pause is not enough.
const TAIL_LIMIT: f32 = BUDGET - 1.0;
const TAIL_BLOCK: f32 = TAIL_LIMIT / 5.5;
/// Ten times as long, in quarter octaves; and the share.
const TAIL_BINS: usize = 13;
const TAIL_SHARE: f32 = 0.05;

/// What is known of the durations of one edge.
#[derive(Debug, Clone)]
pub(crate) struct Latency {
    pub(crate) reference: Sketch,
    /// How much a record counts in the reference: less while something looks wrong.
    pub(crate) share: f32,
    scores: [i8; BINS],
    tails: [i8; BINS],
    /// Mean score if all durations were longer by so many quarter octaves.
    means: [f32; SHIFTS],
    variance: f32,
    /// How well the reference itself is known: the standard error of its mean score.
    doubt: f32,
    pub(crate) wander: Mean,
    block: Block,
    minute: (f32, f32),
    /// Sum of scores and number, over the last half minute or so.
    recent: (f32, f32),
    charts: [Cusum; 4],
    tail: Cusum,
}

#[derive(Debug, Clone, Copy, Default)]
struct Block {
    records: u32,
    scores: i32,
    tails: i32,
}

/// What a block's tests say.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Verdict {
    /// The largest statistic over its limit.
    pub(crate) shift: f32,
    /// Blocks since that chart was zero.
    pub(crate) shift_blocks: u32,
    /// The same of the tail.
    pub(crate) tail: f32,
    pub(crate) tail_blocks: u32,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            reference: Sketch::default(),
            share: 1.0,
            scores: [0; BINS],
            tails: [0; BINS],
            means: [0.0; SHIFTS],
            variance: 1.0,
            doubt: 0.0,
            wander: Mean::default(),
            block: Block::default(),
            minute: (0.0, 0.0),
            recent: (0.0, 0.0),
            charts: [Cusum::default(); 4],
            tail: Cusum::default(),
        }
    }
}

impl Latency {
    /// Takes in one duration.
    #[inline]
    pub(crate) fn record(&mut self, micros: u64) {
        let quarter = quarter(micros);
        if self.reference.is_new() {
            self.reference.begin(quarter);
        }
        let bin = self.reference.bin(quarter);
        self.reference.counts[bin] += self.share;
        self.block.records = self.block.records.saturating_add(1);
        self.block.scores = self.block.scores.saturating_add(i32::from(self.scores[bin]));
        self.block.tails = self.block.tails.saturating_add(i32::from(self.tails[bin]));
    }

    /// Whether there is enough to test against.
    pub(crate) fn ready(&self) -> bool {
        self.means[SHIFTS - 1] > 0.0
    }

    /// The shift that the last half minute shows, as a logarithm, and its variance; none if nothing is known.
    pub(crate) fn recent_shift(&self) -> Option<(f32, f32)> {
        if !self.ready() || self.recent.1 < 0.5 {
            return None;
        }
        let slope = self.means[1] / QUARTER;
        Some((self.shift_of(self.recent.0 / self.recent.1), self.variance / (self.recent.1 * slope * slope)))
    }

    /// The shift that this block shows by itself, as a logarithm; none if there are too few to tell.
    pub(crate) fn block_shift(&self) -> Option<f32> {
        let records = self.block.records as f32;
        (self.ready() && records >= 5.0).then(|| self.shift_of(self.block.scores as f32 / 32.0 / records))
    }

    /// Ends a block: what it says about the level.
    pub(crate) fn end_block(&mut self) {
        let (records, sum) = (self.block.records as f32, self.block.scores as f32 / 32.0);
        const KEEP: f32 = 0.78; // five seconds of twenty
        self.recent = (self.recent.0 * KEEP + sum, self.recent.1 * KEEP + records);
        self.minute = (self.minute.0 + sum, self.minute.1 + records);
        if !self.ready() {
            // The first minute's end may be far, and what comes until then would be learnt as normal.
            self.tables();
        }
    }

    /// Runs the tests on the block that was ended: `rate` per second is expected, and all edges are slower by `common` (a
    /// logarithm).
    pub(crate) fn test(&mut self, rate: f32, common: f32) -> Verdict {
        let block = std::mem::take(&mut self.block);
        if !self.ready() {
            return Verdict::default();
        }
        let mut verdict = Verdict::default();
        let (records, sum) = (block.records as f32, block.scores as f32 / 32.0);
        let rate = rate.max(self.recent.1 / 40.0).max(0.003);
        let wander = self.wander_variance();
        let restart = self.mean_at(RESTART.0);
        for (chart, allowance) in self.charts.iter_mut().zip(ALLOWANCES) {
            let drift = mean_of(&self.means, allowance);
            let variance = self.variance / rate + 60.0 * WANDER_MEMORY * wander;
            let limit = (variance * SHIFT_BUDGET / (2.0 * drift)).max((restart - drift) * RESTART.1);
            let expected = mean_of(&self.means, allowance + common) + self.doubt;
            chart.add((sum - records * expected) / rate, 1.5 * limit);
            if chart.sum / limit > verdict.shift {
                verdict.shift = chart.sum / limit;
                verdict.shift_blocks = chart.blocks;
            }
        }
        let nats = (block.tails as f32 / 16.0).min(TAIL_BLOCK);
        self.tail.add(nats, 1.5 * TAIL_LIMIT);
        verdict.tail = self.tail.sum / TAIL_LIMIT;
        verdict.tail_blocks = self.tail.blocks;
        verdict
    }

    /// Variance of a minute's mean score beyond sampling.
    fn wander_variance(&self) -> f32 {
        let slope = self.means[1] / QUARTER;
        let prior = (WANDER * slope).powi(2);
        let weight = self.wander.weight.min(240.0);
        ((prior * WANDER_MINUTES + self.wander.value.max(0.0) * weight) / (WANDER_MINUTES + weight)).max(0.1 * prior)
    }

    /// Ends a minute: what was learnt comes into force, unless it looks suspicious, and old records fade.
    pub(crate) fn end_minute(&mut self) {
        let share = self.share;
        let (sum, records) = std::mem::take(&mut self.minute);
        if self.ready() && records >= 1.0 && share > 0.0 {
            // An estimate of the variance of levels, robust by its clipping, weighted by how much the minute tells.
            let usual = records * self.variance + records * records * self.wander_variance();
            let excess = (sum * sum).min(6.0 * usual) - records * self.variance;
            let weight = records * records / (records * records + records / self.wander_variance().max(1e-4));
            self.wander.add(excess / (records * records), weight * share, 240.0);
        }
        self.fade(share);
        self.tables();
    }

    fn fade(&mut self, share: f32) {
        let weight = self.reference.weight();
        let keep = (-60.0 / MEMORY_S).exp();
        if weight * keep > MEMORY_RECORDS {
            self.reference.scale(1.0 - (1.0 - keep) * share);
        }
        let median = self.reference.median_bin() as i16;
        if !self.reference.is_new() && !(14..=38).contains(&median) && self.reference.weight() >= 1.0 {
            self.reference.move_to((self.reference.origin + median - 26).clamp(-200, 200));
        }
    }

    fn tables(&mut self) {
        let weight = self.reference.weight();
        if weight < ENOUGH {
            return;
        }
        let density = self.density(weight);
        let mut below = 0.0;
        let mut scores = [0.0_f32; BINS];
        for (score, p) in scores.iter_mut().zip(density) {
            *score = normal_quantile((below + p / 2.0).clamp(0.5 / weight, 1.0 - 0.5 / weight)).clamp(-3.5, 3.5);
            below += p;
        }
        let zero = mean_at_scores(&density, &scores, 0);
        for score in &mut scores {
            *score -= zero;
        }
        for (shift, mean) in self.means.iter_mut().enumerate() {
            *mean = mean_at_scores(&density, &scores, shift);
        }
        self.doubt = weight.sqrt().recip();
        self.variance = density.iter().zip(&scores).map(|(p, score)| p * score * score).sum::<f32>().max(0.1);
        for bin in 0..BINS {
            self.scores[bin] = (scores[bin] * 32.0).round().clamp(-127.0, 127.0) as i8;
            let usual = density[bin];
            let slow = if bin >= TAIL_BINS && weight >= TAIL_ENOUGH { density[bin - TAIL_BINS] } else { 0.0 };
            let ratio = (1.0 - TAIL_SHARE) + TAIL_SHARE * slow / usual;
            self.tails[bin] = (ratio.ln() * 16.0).round().clamp(-127.0, 127.0) as i8;
        }
    }

    /// The reference as probabilities, smoothed over neighbours and never zero.
    fn density(&self, weight: f32) -> [f32; BINS] {
        let counts = &self.reference.counts;
        let median = self.reference.median_bin() as f32;
        let mut density = [0.0; BINS];
        let mut total = 0.0;
        for bin in 0..BINS {
            let (left, right) = (counts[bin.saturating_sub(1)], counts[(bin + 1).min(BINS - 1)]);
            let far = (bin as f32 - median).abs();
            density[bin] = 0.5 * counts[bin] + 0.25 * (left + right) + 0.1 * (-far / 8.0).exp() + 1e-7 * weight;
            total += density[bin];
        }
        density.map(|p| p / total)
    }

    fn mean_at(&self, shift: f32) -> f32 {
        mean_of(&self.means, shift)
    }

    /// The shift at which scores have that mean.
    fn shift_of(&self, mean: f32) -> f32 {
        if mean <= 0.0 {
            return mean * QUARTER / self.means[1].max(1e-3);
        }
        match self.means.iter().position(|other| *other >= mean) {
            None => QUARTER * (SHIFTS - 1) as f32,
            Some(0) => 0.0,
            Some(above) => {
                let (low, high) = (self.means[above - 1], self.means[above]);
                QUARTER * ((above - 1) as f32 + (mean - low) / (high - low).max(1e-6))
            }
        }
    }

    /// The usual range of the median, the observed one in microseconds, and the recent 99th percentile's reference.
    pub(crate) fn evidence(&self) -> ((f64, f64), f64) {
        let median = self.reference.quantile(0.5).unwrap_or(0.0);
        let room = f64::from(ALLOWANCES[0].exp());
        let observed = self.recent_shift().map_or(median, |(shift, _)| median * f64::from(shift.exp()));
        ((median / room, median * room), observed)
    }

    /// Whether a deviation may close: no chart holds anything, or hardly.
    pub(crate) fn shift_is_over(&self) -> bool {
        self.recent_shift().is_none_or(|(shift, _)| shift < ALLOWANCES[0])
            && self.charts[1..].iter().all(|chart| chart.sum <= 0.0)
    }

    /// The same of the tail.
    pub(crate) fn tail_is_over(&self) -> bool {
        self.tail.sum <= 0.0
    }

    /// Forgets what speaks for a change.
    pub(crate) fn reset_charts(&mut self) {
        self.charts = [Cusum::default(); 4];
        self.tail = Cusum::default();
        self.block = Block::default();
    }

    /// Forgets the reference, to learn what is normal now.
    pub(crate) fn relearn(&mut self) {
        self.reference.scale(0.0);
        self.means = [0.0; SHIFTS];
        // Scores of what was normal before would still be counted in the block in which the new ones come into force.
        (self.scores, self.tails) = ([0; BINS], [0; BINS]);
        (self.minute, self.recent) = ((0.0, 0.0), (0.0, 0.0));
        self.share = 1.0;
        self.reset_charts();
    }
}

fn mean_at_scores(density: &[f32; BINS], scores: &[f32; BINS], shift: usize) -> f32 {
    density.iter().enumerate().map(|(bin, p)| p * scores[(bin + shift).min(BINS - 1)]).sum()
}

/// The mean score under a shift, between the tabled ones; negative shifts by the slope at zero.
fn mean_of(means: &[f32; SHIFTS], shift: f32) -> f32 {
    let at = shift / QUARTER;
    if at <= 0.0 {
        return at * means[1];
    }
    let low = (at as usize).min(SHIFTS - 2);
    means[low] + (means[low + 1] - means[low]) * (at - low as f32).min(1.0)
}
