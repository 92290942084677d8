//! Time on the control thread: what the wall clock says, waits that either clock may end, pauses that grow.
//!
//! Timers follow a clock that stands still while a machine sleeps and that no correction moves; certificates end by the
//! wall clock. So a wait for something that is written in a certificate is over as soon as either of them says so.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls_pki_types::UnixTime;

/// How often a wait looks at the wall clock.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// What the wall clock says: time since 1970 UTC.
pub fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// As [`wall`], in the form that certificates are held against.
pub fn unix_time() -> UnixTime {
    UnixTime::since_unix_epoch(wall())
}

/// A moment, by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    timer: Instant,
    wall: Duration,
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        Self { timer: Instant::now(), wall: wall() }
    }

    /// The time since, by the clock that says more.
    pub fn elapsed(&self) -> Duration {
        self.timer.elapsed().max(wall().saturating_sub(self.wall))
    }

    /// How far the wall clock was moved since: a machine slept, or somebody set it.
    pub fn moved(&self) -> Duration {
        wall().abs_diff(self.wall + self.timer.elapsed())
    }
}

/// Waits this long, by the clock that is first.
///
/// # Cancellation
/// Safe.
pub async fn pass(wait: Duration) {
    let begun = Moment::now();
    loop {
        let left = wait.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK_INTERVAL)).await;
    }
}

/// The pauses of one run of failures: they double up to a limit, each by chance between half and all of its length.
#[derive(Debug, Clone)]
pub struct Pauses {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Pauses {
    /// Pauses from `first` to `last`.
    pub fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, next: first }
    }

    /// The next one.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.last);
        pause.mul_f64(0.5 + random() / 2.0)
    }

    /// Begins again with the first.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Between 0 and 1; spreads load, keeps no secret.
pub fn random() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn what_has_passed_is_what_either_clock_says() {
        let now = Moment::now();
        assert!(now.elapsed() < HOUR && now.moved() < HOUR);
        let corrected = Moment { wall: now.wall - HOUR, ..now };
        assert!(corrected.elapsed() >= HOUR, "the wall clock went ahead");
        let set_back = Moment { wall: now.wall + HOUR, ..now };
        assert!(set_back.elapsed() < HOUR, "the wall clock went back, the timers did not");
        for moment in [corrected, set_back] {
            assert!(moment.moved() > HOUR - Duration::from_secs(60) && moment.moved() < HOUR + Duration::from_secs(60));
        }
    }

    #[test]
    fn pauses_grow_to_their_limit_and_begin_again() {
        let [first, last] = [Duration::from_millis(200), Duration::from_secs(30)];
        let mut pauses = Pauses::new(first, last);
        let all: Vec<_> = (0..20).map(|_| pauses.next_pause()).collect();
        assert!(all[0] >= first / 2 && all[0] <= first);
        assert!(all[10..].iter().all(|pause| *pause >= last / 2 && *pause <= last));
        assert!(all[10..].windows(2).any(|pair| pair[0] != pair[1]), "they are spread");
        pauses.reset();
        assert!(pauses.next_pause() <= first);
    }

    #[test]
    fn chance_is_spread() {
        let all: Vec<f64> = (0..100).map(|_| random()).collect();
        assert!(all.iter().all(|one| (0.0..1.0).contains(one)));
        assert!(all.iter().any(|one| *one < 0.5) && all.iter().any(|one| *one > 0.5));
    }
}
