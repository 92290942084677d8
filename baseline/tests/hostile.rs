//! Whatever comes, in whatever order: bounded memory, no panic, no flood; and bytes that are no baseline are refused.

mod traffic;

use std::net::Ipv6Addr;

use baseline::{
    Direction, EdgeRef, Engine, Event, Gauge, Limits, OTHERS_MAX, Observation, Protection, Protocol, State,
};
use proptest::prelude::*;
use traffic::{MIDNIGHT, MINUTE, Random, USUAL, World};

fn observation(peer: &str, at: u64, value: u64) -> Observation<'_> {
    Observation {
        at,
        edge: EdgeRef { direction: Direction::Inbound, peer, service: "web", port: 80, protocol: Protocol::Http },
        source: Some(Ipv6Addr::from_bits(u128::from(value)).into()),
        error: value.is_multiple_of(3),
        duration_us: Some(value),
        first_byte_us: Some(value / 2),
        bytes_in: value,
        bytes_out: u64::MAX - value,
        protection: Protection::Plaintext,
    }
}

#[test]
fn a_million_peers_are_one_deviation_in_bounded_memory() {
    let limits = Limits { edges: 256, ..Limits::default() };
    let mut engine = Engine::new(limits, MIDNIGHT);
    let start = MIDNIGHT + 31 * MINUTE;
    (MIDNIGHT..=start).step_by(5000).for_each(|at| engine.advance(at));
    let mut events = Vec::new();
    for number in 0..1_000_000_u64 {
        engine.observe(&observation(&format!("peer-{number}"), start + number / 10, number));
        if number.is_multiple_of(1000) {
            events.extend(engine.drain_events());
        }
    }
    events.extend(engine.drain_events());
    let opened = events.iter().filter(|event| matches!(event, Event::Opened(_))).count();
    assert_eq!(opened, 1);
    let updated = events.iter().filter(|event| matches!(event, Event::Updated(_))).count();
    assert!(updated <= OTHERS_MAX, "{updated}");
    assert_eq!(engine.summaries().count(), 256);
    assert_eq!(engine.counters().evicted, 1_000_000 - 256);
    assert_eq!(engine.open_deviations().next().map(|deviation| deviation.peers), Some(1_000_000));
}

#[test]
fn who_is_known_stays_when_strangers_come() {
    let limits = Limits { edges: 16, ..Limits::default() };
    let (mut world, mut engine) = (World::new(1), Engine::new(limits, MIDNIGHT));
    let end = MIDNIGHT + 60 * MINUTE;
    world.run(&mut engine, (MIDNIGHT, end), &|_, _| USUAL);
    for number in 0..10_000 {
        engine.observe(&observation(&format!("peer-{number}"), end, number));
    }
    let known: Vec<_> = engine.summaries().map(|summary| summary.edge).collect();
    assert!(world.edges.iter().all(|(edge, ..)| known.contains(edge)));
}

#[test]
fn clocks_that_jump_are_not_silence() {
    let (mut world, mut engine) = (World::new(1), Engine::new(Limits::default(), MIDNIGHT));
    let mut at = MIDNIGHT + 60 * MINUTE;
    world.run(&mut engine, (MIDNIGHT, at), &|_, _| USUAL);
    let mut events = Vec::new();
    for step in [3 * 3_600_000_i64, -7_200_000, 600_000, -10_000, 86_400_000, -86_400_000] {
        at = at.saturating_add_signed(step);
        events.extend(world.run(&mut engine, (at, at + 5 * MINUTE), &|_, _| USUAL));
        at += 5 * MINUTE;
    }
    assert_eq!(events, []);
    assert_eq!(engine.counters().jumps, 5);
}

#[test]
fn nobody_who_takes_events_leaves_them_bounded() {
    let limits = Limits { open: 4, events: 3, ..Limits::default() };
    let (mut world, mut engine) = (World::new(1), Engine::new(limits, MIDNIGHT));
    world.run(&mut engine, (MIDNIGHT, MIDNIGHT + 60 * MINUTE), &|_, _| USUAL);
    let mut random = Random::new(1);
    let mut at = MIDNIGHT + 60 * MINUTE;
    for _ in 0..200_000 {
        at += random.next() % 300;
        let (edge, ..) = &world.edges[(random.next() % 5) as usize];
        let bad = Observation { edge: edge.as_ref(), ..observation("", at, random.next() >> (random.next() % 64)) };
        engine.observe(&bad);
    }
    assert!(engine.open_deviations().count() <= 4);
    assert!(engine.drain_events().len() <= 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn anything_in_any_order(
        records in prop::collection::vec((any::<u64>(), any::<u64>(), 0..40_u8, any::<bool>()), 1..600),
        edges in 0..20_usize,
    ) {
        let limits = Limits { edges, open: 8, events: 16, learn_ms: 1000, ..Limits::default() };
        let mut engine = Engine::new(limits, MIDNIGHT);
        for (at, value, peer, near) in records {
            let at = if near { MIDNIGHT + at % 1_000_000 } else { at };
            engine.observe(&observation(&"x".repeat(usize::from(peer) * 20), at, value));
            engine.gauge(Gauge::Cpu, at, f64::from_bits(value));
        }
        prop_assert!(engine.summaries().count() <= edges.max(1));
        prop_assert!(engine.open_deviations().count() <= 8);
        let state = engine.state();
        let bytes = state.encode();
        prop_assert_eq!(State::decode(&bytes).map(|state| state.encode()), Ok(bytes));
    }

    #[test]
    fn damage_is_refused(seed in any::<u64>(), flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8), 1..4)) {
        let bytes = state(seed).encode();
        let mut damaged = bytes.clone();
        for (index, bit) in &flips {
            damaged[index.index(bytes.len())] ^= 1_u8 << bit;
        }
        prop_assert!(damaged == bytes || State::decode(&damaged).is_err());
        let cut = flips[0].0.index(bytes.len());
        prop_assert!(State::decode(&bytes[..cut]).is_err());
    }

    /// Whoever can write a file can make its checksum right.
    #[test]
    fn damage_with_a_right_checksum_is_refused_or_harmless(
        seed in any::<u64>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut bytes = state(seed).encode();
        let length = bytes.len() - 10;
        for (index, byte) in changes {
            bytes[10 + index.index(length)] = byte;
        }
        let checksum = crc32c::crc32c(&bytes[10..]).to_le_bytes();
        bytes[6..10].copy_from_slice(&checksum);
        if let Ok(mut read) = State::decode(&bytes) {
            prop_assert_eq!(State::decode(&read.encode()).map(|again| again.encode()), Ok(read.encode()));
            let mut engine = Engine::from_state(Limits::default(), MIDNIGHT, &read);
            World::new(seed).run(&mut engine, (MIDNIGHT, MIDNIGHT + 4 * MINUTE), &|_, _| USUAL);
            read.merge(&engine.state());
            prop_assert!(read.edges() >= engine.state().edges());
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(State::decode(&bytes).is_err());
    }

    #[test]
    fn merging_is_associative(seeds in any::<[u64; 3]>()) {
        let [a, b, c] = seeds.map(state);
        let mut left = a.clone();
        left.merge(&b);
        left.merge(&c);
        let mut right = b.clone();
        right.merge(&c);
        let mut whole = a;
        whole.merge(&right);
        prop_assert_eq!(left.edges(), whole.edges());
        prop_assert!(left.diff(&whole).is_empty());
        prop_assert!(whole.diff(&left).is_empty());
    }
}

/// What a few minutes of some traffic leave.
fn state(seed: u64) -> State {
    let mut engine = Engine::new(Limits { learn_ms: MINUTE, ..Limits::default() }, MIDNIGHT);
    World::new(seed).run(&mut engine, (MIDNIGHT, MIDNIGHT + 3 * MINUTE), &|_, _| USUAL);
    engine.state()
}
