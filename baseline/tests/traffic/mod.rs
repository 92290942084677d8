//! Traffic of a made-up pod: a few edges, lognormal durations, Poisson arrivals; the same for the same seed.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::net::{IpAddr, Ipv4Addr};

use baseline::{Direction, EdgeKey, Engine, Event, Observation, Protection, Protocol};

pub(crate) const DAY: u64 = 86_400_000;
pub(crate) const MINUTE: u64 = 60_000;
/// A midnight.
pub(crate) const MIDNIGHT: u64 = 1_700_006_400_000;

/// Small, fast, good enough for tests (xorshift64*).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub(crate) fn poisson(&mut self, mean: f64) -> u32 {
        let (limit, mut product, mut count) = ((-mean).exp(), self.uniform(), 0);
        while product > limit && count < 10_000 {
            product *= self.uniform();
            count += 1;
        }
        count
    }
}

/// What an edge does at some time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Doing {
    pub(crate) rate: f64,
    pub(crate) slower: f64,
    /// How much later answers begin than half of their duration.
    pub(crate) later: f64,
    pub(crate) errors: f64,
    pub(crate) bytes: f64,
    pub(crate) protection: Protection,
}

pub(crate) const USUAL: Doing =
    Doing { rate: 1.0, slower: 1.0, later: 1.0, errors: 0.002, bytes: 1.0, protection: Protection::MutualTls };

pub(crate) fn edge(name: &str, inbound: bool) -> EdgeKey {
    EdgeKey {
        direction: if inbound { Direction::Inbound } else { Direction::Outbound },
        peer: format!("spiffe://td/ns/shop/sa/{name}"),
        service: if inbound { "web".to_owned() } else { name.to_owned() },
        port: 8080,
        protocol: Protocol::Http,
    }
}

/// From where the edge at that place comes.
pub(crate) fn source_of(place: usize) -> Option<IpAddr> {
    Some(Ipv4Addr::from_bits(0x0a01_0000 + place as u32).into())
}

pub(crate) struct World {
    pub(crate) random: Random,
    /// Edge, requests per second, median in microseconds.
    pub(crate) edges: Vec<(EdgeKey, f64, f64)>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let edges = vec![
            (edge("gateway", true), 6.0, 9000.0),
            (edge("mobile", true), 2.0, 12_000.0),
            (edge("orders", false), 4.0, 4000.0),
            (edge("stock", false), 3.0, 2500.0),
            (edge("prices", false), 1.0, 7000.0),
        ];
        Self { random: Random::new(seed), edges }
    }

    /// Traffic from `from` to `to`; `doing` says what an edge, by its place, does at a time. Returns what the engine said.
    pub(crate) fn run(
        &mut self,
        engine: &mut Engine,
        (from, to): (u64, u64),
        doing: &dyn Fn(usize, u64) -> Doing,
    ) -> Vec<Event> {
        let mut said = Vec::new();
        for second in (from..to).step_by(1000) {
            for (place, (key, rate, median)) in self.edges.iter().enumerate() {
                let doing = doing(place, second);
                for _ in 0..self.random.poisson(rate * doing.rate) {
                    let duration = median * doing.slower * (0.5 * self.random.normal()).exp();
                    engine.observe(&Observation {
                        at: second + self.random.next() % 1000,
                        edge: key.as_ref(),
                        source: source_of(place),
                        error: self.random.uniform() < doing.errors,
                        duration_us: Some(duration as u64),
                        first_byte_us: Some((duration / 2.0 * doing.later) as u64),
                        bytes_in: (500.0 * (0.4 * self.random.normal()).exp()) as u64,
                        bytes_out: (3000.0 * doing.bytes * (0.4 * self.random.normal()).exp()) as u64,
                        protection: doing.protection,
                    });
                }
            }
            engine.advance(second + 1000);
            said.extend(engine.drain_events());
        }
        said
    }
}

/// The deviations that opened.
pub(crate) fn opened(events: &[Event]) -> Vec<&baseline::Deviation> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Opened(deviation) => Some(deviation),
            Event::Updated(_) | Event::Closed { .. } | Event::RolledOut { .. } => None,
        })
        .collect()
}
