//! How long answers take: a shift of all of them, and a slow minority.
//!
//! **Scores.** Each duration becomes a score under the learnt distribution: partly its rank, as the quantile of a normal
//! distribution (van der Waerden 1952), which keeps growing however large a shift is; partly the slope of the log density, which
//! is the locally most powerful score (Hájek and Šidák 1967) and tells much more where a distribution has two humps. Scores of
//! unchanged traffic have mean 0, whatever the shape.
//!
//! **Shift.** Three CUSUMs (Page 1954) say since when scores may be higher, each for another size of shift. The mean since then
//! is held against what else explains it ([`Latency::near`]): sampling, and how much the level of this edge wanders from minute
//! to minute, which is learnt (random effects, as in an analysis of variance); a peer that restarts; a noisy neighbour, as far
//! as the other edges leave room for one. It assumes that a mean of scores is normal, with less trust in few records.
//!
//! **Tail.** A CUSUM of the likelihood ratio of "5 % take ten times as long" against the learnt distribution. Assumes that
//! records are independent once the share of one block is capped.

use crate::{
    edge::Common,
    limits::{BLOCK_S, BUDGET_S},
    sketch::{BINS, Sketch, quarter},
    stats::{Cusum, Mean, normal_quantile},
};

/// Allowances of the charts, as logarithms of the factor: half of what each is best for.
const ALLOWANCES: [f32; 3] = [0.1, 0.2, 0.38];
/// How much of a score is the slope of the log density, and its bound: with more, large shifts of two-humped durations take longer.
const SLOPE_SHARE: f32 = 0.4;
const SLOPE_MAX: f32 = 2.5;
/// Standard deviations that a shift must be beyond chance. That is once in so many years for one edge and window, but there are
/// ten edges and ten thousand minutes a week, and levels are not quite normal.
const CHANCE: f32 = 4.1;
/// What levels do without being remarkable, as a logarithm: at once, and more for each second, as load and caches change.
const LEVEL: (f32, f32) = (0.02, 0.02 / 600.0);
/// Standard deviations beyond what happens a few times a day: restarts and neighbours.
const EVENTS: f32 = 2.8;
/// A peer restarts and is cold: slower by this factor's logarithm, for so many seconds.
const RESTART: (f32, f32) = (0.405, 31.0);
/// A neighbour lasts that many seconds; the other edges hide one of so many of their standard errors.
const NEIGHBOUR: (f32, f32) = (1.2, 90.0);
/// The variance of a mean of so many records is twice that of a normal one: scores are skewed.
const FEW: f32 = 8.0;
/// The reference itself is an estimate: so many standard errors; and beyond its usual age levels move by so much in six hours.
const DOUBT: f32 = 1.5;
const AGEING: (f32, f32) = (0.2, 21_600.0);
/// Shifts are tabled up to two and a half octaves.
const SHIFTS: usize = 11;
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
/// Records after which the tail's chart is renewed, so little does one of them say; its limits, in nats.
const TAIL_RENEWAL: f32 = 600.0;
const TAIL_LIMIT: (f32, f32) = (8.0, 16.0);
/// The most that one block may bring of the limit: it takes six, so that one pause is not enough.
const TAIL_BLOCK: f32 = 1.0 / 5.5;
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
    /// The records that the tables stand on.
    weight: f32,
    pub(crate) wander: Mean,
    block: Block,
    minute: (f32, f32),
    /// Sum of scores and number, over the last half minute or so.
    recent: (f32, f32),
    charts: [Chart; 3],
    tail: Cusum,
}

/// A chart of scores, and the records since it was zero.
#[derive(Debug, Clone, Copy, Default)]
struct Chart {
    cusum: Cusum,
    records: f32,
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
            weight: 0.0,
            wander: Mean::default(),
            block: Block::default(),
            minute: (0.0, 0.0),
            recent: (0.0, 0.0),
            charts: [Chart::default(); 3],
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

    /// Runs the tests on the block that was ended: `rate` per second is expected, and `common` is what all edges do.
    pub(crate) fn test(&mut self, rate: f32, common: &Common) -> Verdict {
        let block = std::mem::take(&mut self.block);
        if !self.ready() {
            return Verdict::default();
        }
        let mut verdict = Verdict::default();
        let (records, sum) = (block.records as f32, block.scores as f32 / 32.0);
        let rate = rate.max(self.recent.1 / 40.0).max(0.003);
        let (excused, doubt) = (mean_of(&self.means, common.latency), self.doubt(rate));
        let hidden = mean_of(&self.means, common.latency + NEIGHBOUR.0 * common.latency_doubt) - excused;
        for (index, allowance) in ALLOWANCES.into_iter().enumerate() {
            let drift = mean_of(&self.means, allowance);
            let most = 1.5 * self.most(rate, drift);
            let chart = &mut self.charts[index];
            chart.cusum.add(sum - records * (excused + drift + doubt), most);
            chart.records = if chart.cusum.sum > 0.0 { chart.records + records } else { 0.0 };
            let chart = self.charts[index];
            let near = self.near(chart, drift, hidden);
            if near > verdict.shift {
                verdict.shift = near;
                verdict.shift_blocks = chart.cusum.blocks;
            }
        }
        let limit = (BUDGET_S * rate / TAIL_RENEWAL).ln().clamp(TAIL_LIMIT.0, TAIL_LIMIT.1);
        self.tail.add((block.tails as f32 / 16.0).min(limit * TAIL_BLOCK), 1.5 * limit);
        verdict.tail = self.tail.sum / limit;
        verdict.tail_blocks = self.tail.blocks;
        verdict
    }

    /// How near a chart is to what nothing else explains: over each explanation, the standard deviations that the mean since it
    /// was zero is beyond it, over those that it takes. `hidden` is the mean of a neighbour that the other edges do not show.
    fn near(&self, chart: Chart, drift: f32, hidden: f32) -> f32 {
        if chart.cusum.sum <= 0.0 {
            return 0.0;
        }
        let (records, seconds) = (chart.records.max(1.0), BLOCK_S * chart.cusum.blocks as f32);
        let mean = drift + chart.cusum.sum / records;
        let minutes = 1.0 + (seconds - 60.0).max(0.0) / (60.0 * WANDER_MEMORY);
        let variance = self.variance / records * (1.0 + FEW / records) + self.wander_variance() / minutes;
        let deviation = variance.sqrt();
        let level = (LEVEL.0 + LEVEL.1 * seconds) * self.means[1] / QUARTER;
        let restart = mean_of(&self.means, RESTART.0) * (RESTART.1 / seconds).min(1.0);
        let neighbour = hidden * (NEIGHBOUR.1 / seconds).min(1.0);
        let event = (mean - restart.max(neighbour)) / deviation / EVENTS;
        event.min((mean - level) / deviation / CHANCE).max(0.0)
    }

    /// What a chart need not exceed, so that it comes back soon: where a shift of twice its allowance would be beyond chance.
    fn most(&self, rate: f32, drift: f32) -> f32 {
        let variance = self.variance + rate * 60.0 * WANDER_MEMORY * self.wander_variance();
        (variance * CHANCE * CHANCE / (4.0 * drift)).max(rate * RESTART.1)
    }

    /// How far the mean score may be off because the reference is: few records, or old ones.
    fn doubt(&self, rate: f32) -> f32 {
        let older = (self.weight / rate - MEMORY_S).max(0.0);
        let ageing = AGEING.0 * (older / AGEING.1).min(1.0) * self.means[1] / QUARTER;
        DOUBT / self.weight.sqrt() + ageing
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
        let scores = scores(&density, weight);
        for (shift, mean) in self.means.iter_mut().enumerate() {
            *mean = mean_at_scores(&density, &scores, shift);
        }
        self.weight = weight;
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
        // The last half minute may have begun before the shift did; the chart has not.
        let chart = self.charts[1];
        let mean = mean_of(&self.means, ALLOWANCES[1]) + chart.cusum.sum / chart.records.max(1.0);
        let charted = if self.ready() && chart.cusum.sum > 0.0 { self.shift_of(mean) } else { f32::MIN };
        let observed = self.recent_shift().map_or(median, |(shift, _)| median * f64::from(shift.max(charted).exp()));
        ((median / room, median * room), observed)
    }

    /// Whether a deviation may close: no chart holds anything, or hardly.
    pub(crate) fn shift_is_over(&self) -> bool {
        self.recent_shift().is_none_or(|(shift, _)| shift < ALLOWANCES[0])
            && self.charts[1..].iter().all(|chart| chart.cusum.sum <= 0.0)
    }

    /// The same of the tail.
    pub(crate) fn tail_is_over(&self) -> bool {
        self.tail.sum <= 0.0
    }

    /// Forgets what speaks for a change.
    pub(crate) fn reset_charts(&mut self) {
        self.charts = [Chart::default(); 3];
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

/// The score of each bin: rank and slope, with mean 0.
fn scores(density: &[f32; BINS], weight: f32) -> [f32; BINS] {
    let logs = density.map(f32::ln);
    let slope = |bin: usize| (logs[bin.saturating_sub(1)] - logs[(bin + 1).min(BINS - 1)]) / 2.0;
    let spread = (0..BINS).map(|bin| density[bin] * slope(bin).powi(2)).sum::<f32>().sqrt().max(0.05);
    let mut below = 0.0;
    let mut scores = [0.0; BINS];
    for (bin, score) in scores.iter_mut().enumerate() {
        let share = (below + density[bin] / 2.0).clamp(0.5 / weight, 1.0 - 0.5 / weight);
        below += density[bin];
        let slope = (slope(bin) / spread).clamp(-SLOPE_MAX, SLOPE_MAX);
        *score = (1.0 - SLOPE_SHARE) * normal_quantile(share).clamp(-3.5, 3.5) + SLOPE_SHARE * slope;
    }
    let zero = mean_at_scores(density, &scores, 0);
    scores.map(|score| score - zero)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Humps around two bins, so many bins wide, the second with a share.
    fn humps(places: [f32; 2], width: f32, second: f32) -> [f32; BINS] {
        let hump = |bin: usize, place: f32| (-(bin as f32 - place).powi(2) / (2.0 * width * width)).exp();
        let density: [f32; BINS] =
            std::array::from_fn(|bin| (1.0 - second) * hump(bin, places[0]) + second * hump(bin, places[1]) + 1e-6);
        let total: f32 = density.iter().sum();
        density.map(|p| p / total)
    }

    /// What one record tells about a small shift: the square of its slope over the variance.
    fn information(density: &[f32; BINS], scores: &[f32; BINS]) -> f32 {
        let variance: f32 = density.iter().zip(scores).map(|(p, score)| p * score * score).sum();
        (mean_at_scores(density, scores, 1) / QUARTER).powi(2) / variance
    }

    fn means(density: &[f32; BINS]) -> Vec<f32> {
        let scores = scores(density, 3000.0);
        (0..SHIFTS).map(|shift| mean_at_scores(density, &scores, shift)).collect()
    }

    #[test]
    fn scores_have_mean_zero_and_grow_with_the_shift() {
        let one = means(&humps([26.0, 26.0], 3.0, 0.0));
        assert!(one[0].abs() < 1e-4 && one.windows(2).all(|pair| pair[0] < pair[1]), "{one:?}");
        // Where one hump comes to lie on the other the slope says nothing; the rank still does.
        let two = means(&humps([22.0, 34.0], 2.0, 0.3));
        let most = two.iter().copied().fold(0.0, f32::max);
        assert!(two[0].abs() < 1e-4 && two[3..].iter().all(|mean| *mean > 0.7 * most), "{two:?}");
    }

    #[test]
    fn two_humps_tell_more_than_their_ranks() {
        let density = humps([22.0, 34.0], 2.0, 0.3);
        let mut below = 0.0;
        let ranks = density.map(|p| {
            below += p;
            normal_quantile(below - p / 2.0)
        });
        assert!(information(&density, &scores(&density, 3000.0)) > 1.4 * information(&density, &ranks));
    }
}
