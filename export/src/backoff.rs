//! Pauses between attempts: they double, with jitter, up to a limit (OTLP specification, "Throttling").

use std::time::Duration;

/// Half of it is the shortest pause, so that whoever refuses sees two attempts a second at most.
const MIN: Duration = Duration::from_secs(1);

/// The pauses of one run of failures.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next pause: between half of its nominal length and all of it; the nominal length is `max` at most.
    pub(crate) fn next(&mut self, max: Duration) -> Duration {
        let nominal = MIN.saturating_mul(1 << self.failures.min(10)).min(max);
        self.failures = self.failures.saturating_add(1);
        jitter(nominal)
    }
}

/// Between half of it and all of it.
pub(crate) fn jitter(nominal: Duration) -> Duration {
    nominal.mul_f64(0.5 + random() / 2.0)
}

/// Between 0 and 1; spreads load, keeps no secret.
fn random() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit() {
        let (mut backoff, max) = (Backoff::default(), Duration::from_secs(5));
        let first = backoff.next(max);
        assert!(first >= MIN / 2 && first <= MIN);
        let last = (0..20).map(|_| backoff.next(max)).last().unwrap();
        assert!(last >= max / 2 && last <= max);
    }
}
