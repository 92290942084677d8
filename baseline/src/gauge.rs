//! A measured quantity of the pod: CPU, memory, or any other series.
//!
//! What is expected is a level that follows slowly; a residual is measured in units of its own robust scale, and an
//! exponentially weighted mean of the residuals is charted (Roberts, Technometrics 1959).

use crate::{Kind, stats::Mean};

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
    /// Something begins here.
    pub alert: bool,
    /// Nothing is left of it.
    pub over: bool,
    /// How anomalous the beginning is; 0 if nothing begins.
    pub score: f32,
    /// The statistic over its limit.
    pub level: f32,
    /// The range that was expected.
    pub expected: (f64, f64),
}

/// One measured quantity and what is known of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Channel {
    pub(crate) seen: u32,
    pub(crate) level: f32,
    pub(crate) scale: f32,
    pub(crate) chart: f32,
    pub(crate) hours: [Mean; 24],
    on: bool,
}

impl Channel {
    /// Takes in a measurement.
    pub fn observe(&mut self, _at: u64, value: f64) -> Said {
        let x = value.clamp(-1e30, 1e30) as f32;
        let x = if x.is_finite() { x } else { 0.0 };
        self.seen = self.seen.saturating_add(1);
        if self.seen == 1 {
            self.level = x;
            return Said::default();
        }
        let pace = (1.0 / self.seen as f32).max(1.0 / 200.0);
        let scale = (self.scale * 1.2533).max(1e-6 + 1e-4 * self.level.abs());
        let residual = x - self.level;
        let z = (residual / scale).clamp(-20.0, 20.0);
        self.level += pace * z.clamp(-4.0, 4.0) * scale;
        self.scale += pace * (residual.abs().min(5.0 * scale) - self.scale);
        self.chart += 0.35 * (z - self.chart);
        let level = self.chart.abs() * 2.2 / 10.0;
        let hot = self.seen > 100 && level > 1.0;
        let said = Said {
            alert: hot && !self.on,
            over: level < 0.5,
            score: if hot && !self.on { level } else { 0.0 },
            level,
            expected: (f64::from(self.level - 3.0 * scale), f64::from(self.level + 3.0 * scale)),
        };
        self.on = hot || (self.on && level > 0.5);
        said
    }

    /// How many numbers it takes to write one down.
    pub(crate) const NUMBERS: usize = 52;

    /// What was learnt, as numbers.
    pub(crate) fn numbers(&self) -> [f32; Self::NUMBERS] {
        let mut numbers = [0.0; Self::NUMBERS];
        numbers[..4].copy_from_slice(&[self.seen as f32, self.level, self.scale, self.chart]);
        for (pair, hour) in numbers[4..].chunks_exact_mut(2).zip(self.hours) {
            pair.copy_from_slice(&[hour.value, hour.weight]);
        }
        numbers
    }

    /// The reverse; none if they cannot be what was learnt.
    pub(crate) fn from_numbers(numbers: &[f32; Self::NUMBERS]) -> Option<Self> {
        let [seen, level, scale, chart] = numbers[..4].try_into().ok()?;
        let mut channel = Self { seen: seen as u32, level, scale, chart, ..Self::default() };
        for (hour, pair) in channel.hours.iter_mut().zip(numbers[4..].chunks_exact(2)) {
            *hour = Mean { value: pair[0], weight: pair[1] };
        }
        (seen >= 0.0 && scale >= 0.0).then_some(channel)
    }
}
