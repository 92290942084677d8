//! Step 5: which endpoint of a service takes the next connection or request.
//!
//! Power of two choices on peak-EWMA latency times the requests in flight (Mitzenmacher 2001; Finagle's peak EWMA).
//! An endpoint that could not be reached is left out for a time that doubles up to a minute. State is per worker.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::discover::Endpoint;

/// Endpoints that one worker remembers; beyond, all are forgotten.
const ENDPOINTS_MAX: usize = 16 * 1024;
/// A latency counts for a third after this time.
const MEMORY: Duration = Duration::from_secs(10);
const EJECTION_MIN: Duration = Duration::from_secs(1);
const EJECTION_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, Default)]
struct Load {
    in_flight: u32,
    latency_seconds: f64,
    measured: Option<Instant>,
    failures: u32,
    out_until: Option<Instant>,
}

impl Load {
    /// The latency as far as it still counts: one slow answer, or one long stream, must not keep an endpoint away for
    /// ever, and it is only measured when the endpoint is picked.
    fn latency_at(&self, now: Instant) -> f64 {
        let age = self.measured.map_or(Duration::ZERO, |measured| now.saturating_duration_since(measured));
        self.latency_seconds * (-age.as_secs_f64() / MEMORY.as_secs_f64()).exp()
    }
}

/// What one worker knows of the endpoints it uses.
#[derive(Debug, Default)]
pub struct Balancer {
    loads: RefCell<HashMap<SocketAddr, Load>>,
    random: RefCell<u64>,
}

/// One use of an endpoint; ends when dropped.
#[derive(Debug)]
pub struct InFlight {
    balancer: Rc<Balancer>,
    address: SocketAddr,
    started: Instant,
}

impl Balancer {
    /// Picks an endpoint that is not among `tried`, or `None` when all were.
    pub fn pick(
        self: &Rc<Self>,
        endpoints: &[Arc<Endpoint>],
        tried: &[SocketAddr],
        now: Instant,
    ) -> Option<(Arc<Endpoint>, InFlight)> {
        let loads = self.loads.borrow();
        let load = |endpoint: &Endpoint| loads.get(&endpoint.address).copied().unwrap_or_default();
        let untried = |endpoint: &&Arc<Endpoint>| !tried.contains(&endpoint.address);
        let reachable = |endpoint: &&Arc<Endpoint>| load(endpoint).out_until.is_none_or(|until| until <= now);
        let mut candidates: Vec<&Arc<Endpoint>> = endpoints.iter().filter(untried).filter(reachable).collect();
        if candidates.is_empty() {
            candidates = endpoints.iter().filter(untried).collect();
        }
        let chosen = match candidates.len() {
            0 => return None,
            1 => candidates[0],
            n => {
                let first = self.random_below(n);
                let second = (first + 1 + self.random_below(n - 1)) % n;
                let cost = |at: usize| {
                    let load = load(candidates[at]);
                    load.latency_at(now).max(1e-6) * f64::from(load.in_flight + 1)
                };
                candidates[if cost(second) < cost(first) { second } else { first }]
            }
        };
        let chosen = Arc::clone(chosen);
        drop(loads);
        self.change(chosen.address, |load| load.in_flight += 1);
        let in_flight = InFlight { balancer: Rc::clone(self), address: chosen.address, started: now };
        Some((chosen, in_flight))
    }

    /// Notes that the endpoint could not be reached.
    pub fn failed(&self, address: SocketAddr, now: Instant) {
        self.change(address, |load| {
            let ejection = EJECTION_MIN.saturating_mul(1 << load.failures.min(6)).min(EJECTION_MAX);
            load.failures += 1;
            load.out_until = Some(now + ejection);
        });
    }

    /// Notes that the endpoint could be reached.
    pub fn reached(&self, address: SocketAddr) {
        self.change(address, |load| (load.failures, load.out_until) = (0, None));
    }

    fn change(&self, address: SocketAddr, change: impl FnOnce(&mut Load)) {
        let mut loads = self.loads.borrow_mut();
        if loads.len() >= ENDPOINTS_MAX && !loads.contains_key(&address) {
            loads.clear();
        }
        change(loads.entry(address).or_default());
    }

    /// splitmix64: spreads load, keeps no secret.
    fn random_below(&self, n: usize) -> usize {
        let mut state = self.random.borrow_mut();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % n as u64) as usize
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let now = Instant::now();
        let taken = now.saturating_duration_since(self.started).as_secs_f64();
        self.balancer.change(self.address, |load| {
            load.in_flight = load.in_flight.saturating_sub(1);
            let before = load.latency_at(now);
            load.latency_seconds = if taken > before { taken } else { before * 0.9 + taken * 0.1 };
            load.measured = Some(now);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(port: u16) -> Arc<Endpoint> {
        Arc::new(Endpoint { address: SocketAddr::from(([10, 0, 0, 1], port)), workload: None, identity: None })
    }

    #[test]
    fn an_endpoint_that_failed_is_left_out_until_its_time_is_over() {
        let (balancer, now) = (Rc::new(Balancer::default()), Instant::now());
        let endpoints = [endpoint(1), endpoint(2)];
        balancer.failed(endpoints[0].address, now);
        for _ in 0..50 {
            assert_eq!(balancer.pick(&endpoints, &[], now).unwrap().0.address, endpoints[1].address);
        }
        let later = now + Duration::from_secs(2);
        assert!((0..200).any(|_| balancer.pick(&endpoints, &[], later).unwrap().0.address == endpoints[0].address));
    }

    #[test]
    fn a_busy_endpoint_gets_less() {
        let (balancer, now) = (Rc::new(Balancer::default()), Instant::now());
        let endpoints = [endpoint(1), endpoint(2)];
        let held: Vec<_> = (0..20).filter_map(|_| balancer.pick(&endpoints, &[], now)).collect();
        let first = held.iter().filter(|(endpoint, _)| endpoint.address.port() == 1).count();
        assert!((8..=12).contains(&first), "{first} of 20 went to the first of two equal endpoints");
    }

    #[test]
    fn one_long_stream_does_not_keep_an_endpoint_away() {
        let (balancer, now) = (Rc::new(Balancer::default()), Instant::now());
        let endpoints = [endpoint(1), endpoint(2)];
        let hour_ago = now.checked_sub(Duration::from_secs(3600)).expect("Linux counts below zero");
        drop(balancer.pick(&endpoints[..1], &[], hour_ago));
        let later = now + Duration::from_secs(300);
        // All stay in flight: only the choice counts here, not how long they took.
        let picks: Vec<_> = (0..1000).filter_map(|_| balancer.pick(&endpoints, &[], later)).collect();
        let first = picks.iter().filter(|(chosen, _)| chosen.address.port() == 1).count();
        assert!((400..=600).contains(&first), "{first} of 1000 went to the endpoint that once had a long stream");
    }

    #[test]
    fn nothing_is_left_when_all_were_tried() {
        let balancer = Rc::new(Balancer::default());
        assert!(balancer.pick(&[endpoint(1)], &[endpoint(1).address], Instant::now()).is_none());
    }
}
