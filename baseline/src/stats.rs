//! Small statistics: a cheap logarithm, the normal quantile, one-sided charts.
//!
//! Promises: finite in, finite out.

/// Base-2 logarithm to 0.09, which is less than what one record tells; `x` below 1 counts as 1.
#[inline]
pub(crate) fn log2_coarse(x: u64) -> f32 {
    let bits = (x.max(1) as f32).to_bits();
    bits as f32 * (1.0 / 8_388_608.0) - 127.0
}

/// The standard normal quantile, to 4.5e-4 (Abramowitz and Stegun 26.2.23).
pub(crate) fn normal_quantile(p: f32) -> f32 {
    let p = p.clamp(1e-6, 1.0 - 1e-6);
    let tail = p.min(1.0 - p);
    let t = (-2.0 * tail.ln()).sqrt();
    let above = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let below = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
    let z = t - above / below;
    if p < 0.5 { -z } else { z }
}

/// A CUSUM (Page, Biometrika 1954): what speaks for a change since it last spoke against it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cusum {
    /// The statistic.
    pub(crate) sum: f32,
    /// Blocks since it was last zero.
    pub(crate) blocks: u32,
}

impl Cusum {
    /// Adds what a block says; `cap` bounds how long it takes to return.
    pub(crate) fn add(&mut self, increment: f32, cap: f32) {
        self.sum = (self.sum + increment).clamp(0.0, cap);
        self.blocks = if self.sum > 0.0 { self.blocks.saturating_add(1) } else { 0 };
    }
}

/// A mean over about `memory` seconds that is exact at first: the plain mean until that much was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Mean {
    /// The mean.
    pub(crate) value: f32,
    /// What it weighs, at most the memory.
    pub(crate) weight: f32,
}

impl Mean {
    /// Takes in `value` with `weight`.
    pub(crate) fn add(&mut self, value: f32, weight: f32, memory: f32) {
        if weight > 0.0 {
            self.weight = (self.weight + weight).min(memory.max(weight));
            self.value += (value - self.value) * weight / self.weight;
        }
    }

    /// Adds what another one stands on.
    pub(crate) fn merge(&mut self, other: Self) {
        let weight = self.weight + other.weight;
        if weight > 0.0 {
            self.value = (self.value * self.weight + other.value * other.weight) / weight;
            self.weight = weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_tables() {
        for (p, z) in [(0.5, 0.0), (0.975, 1.96), (0.025, -1.96), (0.999, 3.09)] {
            assert!((normal_quantile(p) - z).abs() < 0.01, "{p}");
        }
    }

    #[test]
    fn the_coarse_logarithm_is_close_everywhere() {
        for x in [0_u64, 1, 2, 3, 1000, 123_456_789, u64::MAX] {
            assert!((log2_coarse(x) - (x.max(1) as f32).log2()).abs() < 0.09, "{x}");
        }
    }
}
