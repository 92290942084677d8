//! One exponential histogram of durations (OpenTelemetry's metrics data model, "ExponentialHistogram"), at a fixed scale.

/// Eight buckets for each doubling: a value is known to 4.4 % either way.
pub(super) const SCALE: i32 = 3;
const PER_DOUBLING: i32 = 1 << SCALE;
/// 2^-20 s, about a microsecond; what is not longer counts as zero.
pub(super) const ZERO_THRESHOLD: f64 = 1.0 / 1_048_576.0;
/// The buckets that there may be: up to 2^20 s, about twelve days; what is longer is in the last one.
const INDEX_MIN: i32 = -20 * PER_DOUBLING;
const INDEX_MAX: i32 = 20 * PER_DOUBLING - 1;

/// At most 320 buckets of eight bytes; only the stretch between the least and the greatest value is kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Histogram {
    pub(super) count: u64,
    pub(super) sum: f64,
    pub(super) zeros: u64,
    pub(super) min: f64,
    pub(super) max: f64,
    /// Index of the first bucket.
    pub(super) offset: i32,
    pub(super) buckets: Vec<u64>,
}

impl Histogram {
    pub(super) fn record(&mut self, seconds: f64) {
        if !seconds.is_finite() || seconds < 0.0 {
            return;
        }
        self.min = if self.count == 0 { seconds } else { self.min.min(seconds) };
        self.max = self.max.max(seconds);
        self.count += 1;
        self.sum += seconds;
        if seconds <= ZERO_THRESHOLD {
            self.zeros += 1;
            return;
        }
        let index = index(seconds);
        if self.buckets.is_empty() {
            self.offset = index;
        }
        if index < self.offset {
            let missing = (self.offset - index) as usize;
            self.buckets.splice(0..0, std::iter::repeat_n(0, missing));
            self.offset = index;
        }
        let at = (index - self.offset) as usize;
        if at >= self.buckets.len() {
            self.buckets.resize(at + 1, 0);
        }
        self.buckets[at] += 1;
    }

    /// How many values are at most 2^`exponent` s: exact, as each power of two is the border of a bucket.
    pub(super) fn at_most(&self, exponent: i32) -> u64 {
        let end = (exponent * PER_DOUBLING - self.offset).clamp(0, self.buckets.len() as i32) as usize;
        self.zeros + self.buckets[..end].iter().sum::<u64>()
    }
}

/// The bucket `(2^(i/8), 2^((i+1)/8)]` that holds the value.
fn index(seconds: f64) -> i32 {
    let index = (seconds.log2() * f64::from(PER_DOUBLING)).ceil() as i32 - 1;
    index.clamp(INDEX_MIN, INDEX_MAX)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn a_power_of_two_is_the_last_of_its_bucket() {
        for exponent in -19..20 {
            assert_eq!(index(2f64.powi(exponent)), exponent * PER_DOUBLING - 1);
            assert_eq!(index(2f64.powi(exponent) * 1.001), exponent * PER_DOUBLING);
        }
        assert_eq!((index(f64::MIN_POSITIVE), index(f64::MAX)), (INDEX_MIN, INDEX_MAX));
    }

    proptest! {
        #[test]
        fn every_value_is_counted_once_and_within_bounds(values in vec(0.0f64..1e7, 1..200)) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|value| histogram.record(*value));
            prop_assert_eq!(histogram.count, values.len() as u64);
            prop_assert_eq!(histogram.zeros + histogram.buckets.iter().sum::<u64>(), histogram.count);
            prop_assert!(histogram.buckets.len() <= (INDEX_MAX - INDEX_MIN + 1) as usize);
            for exponent in [-12, -2, 0, 6] {
                let expected = values.iter().filter(|value| **value <= 2f64.powi(exponent)).count() as u64;
                prop_assert_eq!(histogram.at_most(exponent), expected);
            }
        }
    }
}
