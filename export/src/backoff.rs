//! Pauses between attempts: they double, with jitter, up to a limit (OTLP specification, "Throttling").

use std::time::Duration;

const MIN: Duration = Duration::from_millis(100);
const MAX: Duration = Duration::from_secs(5);

/// The pauses of one run of failures.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next pause: between half of its nominal length and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let nominal = MIN.saturating_mul(1 << self.failures.min(10)).min(MAX);
        self.failures += 1;
        nominal.mul_f64(0.5 + random() / 2.0)
    }
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
        let mut backoff = Backoff::default();
        assert!(backoff.next() <= MIN);
        let last = (0..20).map(|_| backoff.next()).last().unwrap();
        assert!(last >= MAX / 2 && last <= MAX);
    }
}
