//! Shifts that most edges share, explained as one.
//!
//! A noisy neighbour slows everything; a pod that gets its traffic back, is scaled or idles at night sees all rates move
//! together. Such a shift is not the doing of an edge. What an edge is charged with is what it does beyond the others: beyond
//! the quartile of the *other* edges that is nearer to no shift at all, weighted by what each can tell. So a slow upstream
//! that slows the inbound edges does not hide behind them, since the other upstreams are not slow. A client that sends more
//! moves the upstreams, but less than itself: who leads by far is not excused by who follows.

/// How much shift of latency is excused at most: doubled.
const LATENCY_MAX: f32 = 0.7;
/// The same of rates: a third more than doubled, and down to next to nothing.
const RATE: (f32, f32) = (-5.0, 0.85);
/// An edge that moves so many times as far as the others leads them (on a log scale).
const LEADS: f32 = 1.6;
/// A weighted quartile scatters more than the weighted mean by about so much.
const QUARTILE_DOUBT: f32 = 1.25;
/// Other edges that must tell something.
const OTHERS: usize = 2;
/// Edges up to which each is compared with the others only, and beyond which one hardly matters.
const FEW: usize = 64;
/// Shares of the weight below the quartiles.
const QUARTILES: [f32; 2] = [0.25, 0.75];

/// Shifts of all edges, from which the common one is told.
#[derive(Debug, Default)]
pub(crate) struct Shifts {
    /// Slot, shift, weight; in order of the shift.
    sorted: Vec<(usize, f32, f32)>,
    /// The weights together.
    weight: f32,
    /// The quartiles of all, where one edge hardly matters.
    of_all: Option<[Option<f32>; 2]>,
}

impl Shifts {
    pub(crate) fn clear(&mut self) {
        self.sorted.clear();
        self.weight = 0.0;
        self.of_all = None;
    }

    /// Takes in an edge whose shift is known with `variance`.
    pub(crate) fn add(&mut self, slot: usize, shift: f32, variance: f32) {
        let weight = weight_of(variance);
        self.sorted.push((slot, shift, weight));
        self.weight += weight;
    }

    pub(crate) fn sort(&mut self) {
        self.sorted.sort_by(|a, b| a.1.total_cmp(&b.1));
        if self.sorted.len() > FEW {
            self.of_all = Some(QUARTILES.map(|share| self.quartile(usize::MAX, share)));
        }
    }

    /// The lower and the upper quartile, without the edge `slot`.
    fn quartiles(&self, slot: usize) -> [Option<f32>; 2] {
        self.of_all.unwrap_or_else(|| QUARTILES.map(|share| self.quartile(slot, share)))
    }

    fn quartile(&self, except: usize, share: f32) -> Option<f32> {
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
        self.quartiles(slot)[0].unwrap_or(0.0).clamp(0.0, LATENCY_MAX)
    }

    /// How well that shift is known without an edge whose own is known with `variance`: its standard error.
    pub(crate) fn slower_doubt(&self, variance: Option<f32>) -> f32 {
        let others = self.weight - variance.map_or(0.0, weight_of);
        QUARTILE_DOUBT / others.max(1.0).sqrt()
    }

    /// The common shift of rates, without the edge `slot`, whose own is `own`.
    pub(crate) fn busier(&self, slot: usize, own: f32) -> f32 {
        let [low, high] = self.quartiles(slot).map(|shift| shift.unwrap_or(0.0));
        if low > 0.0 && own > LEADS * low {
            0.0
        } else if low > 0.0 {
            low.min(RATE.1)
        } else {
            high.clamp(RATE.0, 0.0)
        }
    }
}

/// The weight of a shift that is known with `variance`: no edge follows the others exactly.
fn weight_of(variance: f32) -> f32 {
    1.0 / (variance + 0.02)
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
        assert_eq!(shifts(&[-4.0, -4.1, -3.9]).busier(1, -4.1), -3.9);
        assert_eq!(shifts(&[1.1, 0.1, -0.1]).busier(0, 1.1), 0.0);
        assert_eq!(shifts(&[0.7, 0.7]).slower(0), 0.0);
    }

    #[test]
    fn who_leads_by_far_is_not_excused_by_who_follows() {
        let rates = shifts(&[1.1, 0.4, 0.45, 0.5]);
        assert_eq!(rates.busier(0, 1.1), 0.0);
        assert!(rates.busier(3, 0.5) > 0.35);
    }

    #[test]
    fn what_is_common_is_known_better_from_more_edges() {
        let (few, many) = (shifts(&[0.0; 3]), shifts(&[0.0; 12]));
        assert!(many.slower_doubt(Some(0.01)) < 0.6 * few.slower_doubt(Some(0.01)));
        assert!(few.slower_doubt(Some(0.01)) > few.slower_doubt(None));
    }

    #[test]
    fn among_many_edges_one_is_told_as_among_few() {
        let mut many = vec![0.3; 3 * FEW];
        many[0] = 2.0;
        assert_eq!((shifts(&many).slower(0), shifts(&many).busier(0, 0.3)), (0.3, 0.3));
    }
}
