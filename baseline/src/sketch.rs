//! A distribution of durations: counts in quarter octaves, decayed, mergeable, of fixed size.
//!
//! Promises: 64 bins that cover sixteen octaves around the middle of what was seen; what lies outside counts in the outermost
//! bin. Merging is adding. Leaves to others: when to learn and when to forget.

/// Bins of a sketch.
pub(crate) const BINS: usize = 64;
/// Bins in an octave.
pub(crate) const OCTAVE: f32 = 4.0;

/// Decayed counts in bins.
#[derive(Debug, Clone, PartialEq)]
pub struct Sketch {
    /// What the first bin holds: values from `2^(origin/4)` on.
    pub(crate) origin: i16,
    pub(crate) counts: [f32; BINS],
}

impl Default for Sketch {
    fn default() -> Self {
        Self { origin: i16::MIN, counts: [0.0; BINS] }
    }
}

/// The absolute number of the quarter octave that `value` is in.
#[inline]
pub(crate) fn quarter(value: u64) -> i32 {
    let bits = (value.max(1) as f32).to_bits();
    let octave = (bits >> 23) as i32 - 127;
    let part = bits & 0x007f_ffff;
    // 2^(1/4), 2^(1/2) and 2^(3/4), as mantissas of f32.
    let quarter = i32::from(part >= 0x0018_37f0) + i32::from(part >= 0x0035_04f3) + i32::from(part >= 0x0057_44fd);
    octave * 4 + quarter
}

impl Sketch {
    /// The bin of an absolute quarter octave.
    #[inline]
    pub(crate) fn bin(&self, quarter: i32) -> usize {
        (quarter - i32::from(self.origin)).clamp(0, BINS as i32 - 1) as usize
    }

    /// True until something was counted.
    pub(crate) fn is_new(&self) -> bool {
        self.origin == i16::MIN
    }

    /// Puts the first value a little below the middle: there is more to come above than below.
    pub(crate) fn begin(&mut self, quarter: i32) {
        self.origin = (quarter - 26).clamp(-200, 200) as i16;
    }

    /// How many values it holds.
    pub fn weight(&self) -> f32 {
        self.counts.iter().sum()
    }

    /// Multiplies all counts.
    pub(crate) fn scale(&mut self, factor: f32) {
        for count in &mut self.counts {
            *count *= factor;
        }
    }

    /// Moves the window so that it begins at `origin`; what falls out counts in the outermost bin.
    pub(crate) fn move_to(&mut self, origin: i16) {
        let old = std::mem::replace(self, Self { origin, counts: [0.0; BINS] });
        if !old.is_new() {
            for (bin, count) in old.counts.iter().enumerate().filter(|(_, count)| **count > 0.0) {
                self.counts[self.bin(i32::from(old.origin) + bin as i32)] += count;
            }
        }
    }

    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: &Self) {
        if other.is_new() {
            return;
        }
        if self.is_new() {
            self.origin = other.origin;
        }
        for (bin, count) in other.counts.iter().enumerate().filter(|(_, count)| **count > 0.0) {
            self.counts[self.bin(i32::from(other.origin) + bin as i32)] += count;
        }
    }

    /// The value below which a share `q` lies, interpolated within its bin; none if it is empty.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let total = f64::from(self.weight());
        if total <= 0.0 {
            return None;
        }
        let mut left = q.clamp(0.0, 1.0) * total;
        for (bin, count) in self.counts.iter().map(|count| f64::from(*count)).enumerate() {
            if left <= count && count > 0.0 {
                let at = f64::from(self.origin) + bin as f64 + left / count;
                return Some((at / f64::from(OCTAVE)).exp2());
            }
            left -= count;
        }
        Some(((f64::from(self.origin) + BINS as f64) / f64::from(OCTAVE)).exp2())
    }

    /// The bin in which the median lies.
    pub(crate) fn median_bin(&self) -> usize {
        let half = self.weight() / 2.0;
        let mut sum = 0.0;
        self.counts
            .iter()
            .position(|count| {
                sum += count;
                sum >= half
            })
            .unwrap_or(BINS / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters_are_quarter_octaves() {
        for value in [1_u64, 2, 3, 5, 7, 100, 119, 1000, 1414, 1415, 1_000_000, 4_000_000_000] {
            let exact = ((value as f64).log2() * 4.0 + 1e-6).floor() as i32;
            assert_eq!(quarter(value), exact, "{value}");
        }
        assert_eq!(quarter(0), 0);
        assert_eq!(quarter(u64::MAX), 256);
    }

    #[test]
    fn quantiles_are_within_a_bin() {
        let mut sketch = Sketch::default();
        sketch.begin(quarter(500));
        for value in 1..=1000_u64 {
            let bin = sketch.bin(quarter(value));
            sketch.counts[bin] += 1.0;
        }
        for q in [0.1, 0.5, 0.9] {
            let found = sketch.quantile(q).unwrap_or_default();
            assert!((found / (q * 1000.0)).log2().abs() < 0.25, "{q}: {found}");
        }
        assert!(Sketch::default().quantile(0.5).is_none());
    }

    #[test]
    fn a_moved_sketch_holds_as_much() {
        let mut sketch = Sketch::default();
        sketch.begin(40);
        for quarter in 20..90 {
            let bin = sketch.bin(quarter);
            sketch.counts[bin] += 1.0;
        }
        let (weight, median) = (sketch.weight(), sketch.quantile(0.5));
        sketch.move_to(18);
        assert_eq!((sketch.weight(), sketch.quantile(0.5)), (weight, median));
    }
}
