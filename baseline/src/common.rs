//! Shifts that most edges share, explained as one.
//!
//! A noisy neighbour slows everything; a pod that gets its traffic back, is scaled or idles at night sees all rates move
//! together. Such a shift is not the doing of an edge. What an edge is charged with is what it does beyond the others: beyond
//! the quartile of the *other* edges that is nearer to no shift at all, weighted by what each can tell. So a slow upstream
//! that slows the inbound edges does not hide behind them, since the other upstreams are not slow.

/// How much shift of latency is excused at most: doubled.
const LATENCY_MAX: f32 = 0.7;
/// The same of rates: a third more than doubled, and down to next to nothing.
const RATE: (f32, f32) = (-5.0, 0.85);
/// Other edges that must tell something.
const OTHERS: usize = 2;
/// Edges up to which each is compared with the others only, and beyond which one hardly matters.
const FEW: usize = 64;

/// Shifts of all edges, from which the common one is told.
#[derive(Debug, Default)]
pub(crate) struct Shifts {
    /// Slot, shift, weight; in order of the shift.
    sorted: Vec<(usize, f32, f32)>,
}

impl Shifts {
    pub(crate) fn clear(&mut self) {
        self.sorted.clear();
    }

    /// Takes in an edge whose shift is known with `variance`.
    pub(crate) fn add(&mut self, slot: usize, shift: f32, variance: f32) {
        self.sorted.push((slot, shift, 1.0 / (variance + 0.02)));
    }

    pub(crate) fn sort(&mut self) {
        self.sorted.sort_by(|a, b| a.1.total_cmp(&b.1));
    }

    fn quartile(&self, except: usize, share: f32) -> Option<f32> {
        let except = if self.sorted.len() > FEW { usize::MAX } else { except };
        let others = || self.sorted.iter().filter(|(slot, ..)| *slot != except);
        if others().count() < OTHERS {
            return None;
        }
        let mut left = share * others().map(|(.., weight)| weight).sum::<f32>();
        others()
            .find(|(.., weight)| {
                left -= weight;
                left <= 0.0
            })
            .map(|(_, shift, _)| *shift)
    }

    /// The common shift of latency, without the edge `slot`.
    pub(crate) fn slower(&self, slot: usize) -> f32 {
        self.quartile(slot, 0.25).unwrap_or(0.0).clamp(0.0, LATENCY_MAX)
    }

    /// The common shift of rates, without the edge `slot`.
    pub(crate) fn busier(&self, slot: usize) -> f32 {
        let low = self.quartile(slot, 0.25).unwrap_or(0.0);
        let high = self.quartile(slot, 0.75).unwrap_or(0.0);
        if low > 0.0 { low.min(RATE.1) } else { high.clamp(RATE.0, 0.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shifts(of: &[f32]) -> Shifts {
        let mut shifts = Shifts::default();
        for (slot, shift) in of.iter().enumerate() {
            shifts.add(slot, *shift, 0.01);
        }
        shifts.sort();
        shifts
    }

    #[test]
    fn what_all_share_is_excused_and_what_one_does_is_not() {
        assert!(shifts(&[0.3, 0.31, 0.29, 0.3]).slower(0) > 0.28);
        assert_eq!(shifts(&[0.7, 0.3, 0.0, 0.0]).slower(0), 0.0);
        assert_eq!(shifts(&[-4.0, -4.1, -3.9]).busier(1), -3.9);
        assert_eq!(shifts(&[1.1, 0.1, -0.1]).busier(0), 0.0);
        assert_eq!(shifts(&[0.7, 0.7]).slower(0), 0.0);
    }
}
