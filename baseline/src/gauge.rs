//! A measured quantity of the pod: CPU, memory, or any other series.
//!
//! What is expected is a level that follows slowly or, from the second day on and where it has been the better guess, what this
//! hour of the day had before. Three statistics are made of a value. The **chart**: an exponentially weighted mean of residuals
//! in units of their robust scale (Roberts, Technometrics 1959; clipping after Huber 1964). The **spike**: one residual. The
//! **range**: how far a value lies outside everything seen.
//!
//! Their limits keep an alarm budget whatever the distribution, in the manner of adaptive conformal inference (Gibbs and
//! Candès, NeurIPS 2021): an alarm raises the limit of its statistic, time without one lowers it to its floor again, at paces
//! that balance at one alarm in [`BUDGET_S`], however often is measured. Nothing is assumed but that the future alarms no more
//! often than the past. Before a whole day was seen neither rhythm nor extremes are known: then no single residual is enough,
//! and a value must be further outside the range.

use crate::{Kind, stats::Mean};

/// Samples before anything is said.
const LEARN: u32 = 100;
/// Pace of level and scale: about a hundred samples.
const PACE: f32 = 0.01;
/// Pace of the mean of an hour, once it is known: about two days of 5-minute samples.
const HOUR_PACE: f32 = 0.02;
/// Pace of the chart, and its limit in its own standard deviations.
const CHART_PACE: f32 = 0.35;
const CHART_LIMIT: f32 = 8.0;
/// One residual is an event from so many robust deviations on.
const SPIKE_LIMIT: f32 = 10.0;
/// A value is outside the range when it is so much of the range beyond it: on the first day, later.
const RANGE_LIMIT: (f32, f32) = (1.0, 0.05);
/// Residuals move level and hour by no more than this, and the chart by no more than that: first day, later.
const LEARN_CLIP: f32 = 6.0;
const CHART_CLIP: (f32, f32) = (7.0, 20.0);
/// An alarm raises a limit by this much (a logarithm).
const RAISE: f32 = 0.3;
/// One alarm in so many seconds is what a limit balances at: a week. People count alarms by time, not by samples.
const BUDGET_S: f32 = 7.0 * DAY_S;
/// An event is over after so many samples well below the limit.
const HOLD: u8 = 3;
const CALM: f32 = 0.6;
/// Seconds after which the rhythm of a day is known, and the longest gap that counts as seen.
const DAY_S: f32 = 86_400.0;
const GAP_S: f32 = 7200.0;

/// What is measured of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gauge {
    /// CPUs in use.
    Cpu = 0,
    /// Bytes of memory in use.
    Memory = 1,
}

impl Gauge {
    /// The kind of its deviations.
    pub const fn kind(self) -> Kind {
        match self {
            Self::Cpu => Kind::Cpu,
            Self::Memory => Kind::Memory,
        }
    }
}

/// What a measurement says.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Said {
    /// An event begins here.
    pub alert: bool,
    /// No event is on.
    pub over: bool,
    /// How anomalous the beginning is; 0 if nothing begins.
    pub score: f32,
    /// The largest statistic over its limit.
    pub level: f32,
    /// The range that was expected.
    pub expected: (f64, f64),
}

/// One measured quantity and what is known of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Channel {
    pub(crate) seen: u32,
    /// Seconds that it was watched.
    age: f32,
    level: f32,
    scale: f32,
    chart: f32,
    /// Mean absolute error of the level and of the hour.
    errors: [f32; 2],
    range: [f32; 2],
    /// Limits of chart, spike and range, in multiples of their floors.
    limits: [f32; 3],
    hours: [Mean; 24],
    last: u64,
    /// Samples until an event is over; 0 if none is on.
    on: u8,
}

impl Channel {
    /// Takes in a measurement, at a time in milliseconds since 1970 UTC.
    pub fn observe(&mut self, at: u64, value: f64) -> Said {
        if !value.is_finite() {
            return Said { over: self.on == 0, ..Said::default() };
        }
        let value = value.clamp(-1e18, 1e18) as f32;
        let passed = if self.last == 0 { 0.0 } else { (at.saturating_sub(self.last) as f32 / 1000.0).min(GAP_S) };
        self.age += passed;
        self.last = at;
        self.seen = self.seen.saturating_add(1);
        if self.seen == 1 {
            (self.level, self.range, self.limits) = (value, [value; 2], [1.0; 3]);
            return Said { over: true, ..Said::default() };
        }
        let hour = (at / 3_600_000 % 24) as usize;
        let expected = self.expected(hour, value);
        let scale = (self.scale * 1.2533).max(1e-6 + 1e-4 * self.level.abs());
        let statistics = self.statistics(value, expected, scale);
        self.learn(hour, value, expected, scale);
        let mut said = self.judge(statistics, passed);
        said.expected = (f64::from(expected - 3.0 * scale), f64::from(expected + 3.0 * scale));
        said
    }

    fn is_young(&self) -> bool {
        self.age < DAY_S
    }

    /// The better guess, and how good both have been.
    fn expected(&mut self, hour: usize, value: f32) -> f32 {
        let by_hour = self.hours[hour];
        if by_hour.weight <= 0.0 || self.seen <= LEARN || self.is_young() {
            return self.level;
        }
        let guess = if self.errors[1] < 0.9 * self.errors[0] { by_hour.value } else { self.level };
        for (error, expected) in self.errors.iter_mut().zip([self.level, by_hour.value]) {
            let off = (value - expected).abs();
            *error += if *error > 0.0 { PACE * (off.min(5.0 * self.scale + 1e-9) - *error) } else { off };
        }
        guess
    }

    /// Chart, spike and range, each over its floor.
    fn statistics(&mut self, value: f32, expected: f32, scale: f32) -> [f32; 3] {
        let young = self.is_young();
        let residual = (value - expected) / scale;
        let clip = if young { CHART_CLIP.0 } else { CHART_CLIP.1 };
        self.chart += CHART_PACE * (residual.clamp(-clip, clip) - self.chart);
        let [low, high] = self.range;
        let outside = (low - value).max(value - high).max(0.0) / (high - low).max(1e-9);
        self.range = [low.min(value), high.max(value)];
        let chart = self.chart.abs() / (CHART_PACE / (2.0 - CHART_PACE)).sqrt() / CHART_LIMIT;
        let spike = if young { 0.0 } else { residual.abs().min(100.0) / SPIKE_LIMIT };
        let limit = if young { RANGE_LIMIT.0 } else { RANGE_LIMIT.1 };
        [chart, spike, (outside / limit).min(1e6)]
    }

    fn learn(&mut self, hour: usize, value: f32, expected: f32, scale: f32) {
        let pace = PACE.max(1.0 / self.seen as f32);
        let (off, missed) = (value - self.level, (value - expected).abs());
        if self.seen > 20 {
            self.level += pace * off.clamp(-LEARN_CLIP * scale, LEARN_CLIP * scale);
            self.scale += pace * (missed.min(5.0 * scale) - self.scale);
        } else {
            self.level += pace * off;
            self.scale += pace * (missed - self.scale);
        }
        let by_hour = &mut self.hours[hour];
        let off = value - by_hour.value;
        let room = LEARN_CLIP * scale;
        let off = if by_hour.weight > 4.0 { off.clamp(-room, room) } else { off };
        by_hour.value += off * HOUR_PACE.max(1.0 / (by_hour.weight + 1.0));
        by_hour.weight = (by_hour.weight + 1.0).min(1e6);
    }

    /// Holds the statistics against their limits, and moves those by the seconds that have passed.
    fn judge(&mut self, statistics: [f32; 3], passed: f32) -> Said {
        let mut level = 0.0_f32;
        for (statistic, limit) in statistics.into_iter().zip(&mut self.limits) {
            level = level.max(statistic / *limit);
            if self.seen > LEARN {
                if statistic > *limit && self.on == 0 {
                    *limit *= RAISE.exp();
                }
                *limit = (*limit * (-RAISE * passed / BUDGET_S).exp()).max(1.0);
            } else if self.seen > 20 {
                *limit = limit.max((statistic * 1.1).min(8.0));
            }
        }
        let begins = self.seen > LEARN && level > 1.0 && self.on == 0;
        if self.seen > LEARN && level > 1.0 {
            self.on = HOLD;
        } else if level < CALM {
            self.on = self.on.saturating_sub(1);
        }
        let score = if begins { level } else { 0.0 };
        Said { alert: begins, over: self.on == 0, score, level, expected: (0.0, 0.0) }
    }

    /// How many numbers it takes to write one down.
    pub(crate) const NUMBERS: usize = 60;

    /// What was learnt, as numbers.
    pub(crate) fn numbers(&self) -> [f32; Self::NUMBERS] {
        let mut numbers = [0.0; Self::NUMBERS];
        numbers[..5].copy_from_slice(&[self.seen as f32, self.age, self.level, self.scale, self.chart]);
        numbers[5..7].copy_from_slice(&self.errors);
        numbers[7..9].copy_from_slice(&self.range);
        numbers[9..12].copy_from_slice(&self.limits);
        for (pair, hour) in numbers[12..].chunks_exact_mut(2).zip(self.hours) {
            pair.copy_from_slice(&[hour.value, hour.weight]);
        }
        numbers
    }

    /// The reverse; none if they cannot be what was learnt.
    pub(crate) fn from_numbers(numbers: &[f32; Self::NUMBERS]) -> Option<Self> {
        let [seen, age, level, scale, chart] = numbers[..5].try_into().ok()?;
        let mut channel = Self { seen: seen as u32, age, level, scale, chart, ..Self::default() };
        channel.errors = numbers[5..7].try_into().ok()?;
        channel.range = numbers[7..9].try_into().ok()?;
        channel.limits = numbers[9..12].try_into().ok()?;
        for (hour, pair) in channel.hours.iter_mut().zip(numbers[12..].chunks_exact(2)) {
            *hour = Mean { value: pair[0], weight: pair[1] };
        }
        let positive = numbers[..2].iter().chain([&scale]).chain(&channel.limits).all(|number| *number >= 0.0);
        positive.then_some(channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Five minutes.
    const STEP: u64 = 300_000;

    fn day_and_night(step: u64) -> f64 {
        let phase = (step % 288) as f64 / 288.0 * std::f64::consts::TAU;
        100.0 + 50.0 * phase.sin() + (step.wrapping_mul(2_654_435_761) >> 16) as f64 % 7.0
    }

    #[test]
    fn a_rhythm_is_quiet_and_a_step_in_it_is_one_event() {
        let mut channel = Channel::default();
        let mut alerts = Vec::new();
        for step in 0..4 * 288 {
            let more = if step >= 3 * 288 { 120.0 } else { 0.0 };
            if channel.observe(step * STEP, day_and_night(step) + more).alert {
                alerts.push(step);
            }
        }
        let late: Vec<_> = alerts.into_iter().filter(|step| *step >= 288).collect();
        assert_eq!(late.len(), 1, "{late:?}");
        assert!((3 * 288..3 * 288 + 5).contains(&late[0]));
    }

    #[test]
    fn a_raised_limit_is_down_again_after_a_week_however_often_is_measured() {
        for step in [60_000, STEP] {
            let mut channel = Channel::default();
            let steps = 2 * 86_400_000 / step;
            for number in 0..steps {
                channel.observe(number * step, 100.0 + (number % 7) as f64);
            }
            assert!(channel.observe(steps * step, 1000.0).alert);
            let after = |channel: &mut Channel, days: u64| {
                let from = channel.last / step + 1;
                for number in from..from + days * 86_400_000 / step {
                    channel.observe(number * step, 100.0 + (number % 7) as f64);
                }
                channel.limits.iter().copied().fold(0.0, f32::max)
            };
            assert!(after(&mut channel, 5) > 1.05, "{step} {:?}", channel.limits);
            assert!(after(&mut channel, 3) < 1.01, "{step} {:?}", channel.limits);
        }
    }

    #[test]
    fn what_was_learnt_is_written_whole() {
        let mut channel = Channel::default();
        for step in 0..500 {
            channel.observe(step * STEP, day_and_night(step));
        }
        let again = Channel::from_numbers(&channel.numbers()).unwrap_or_default();
        assert_eq!(again.numbers(), channel.numbers());
    }
}
