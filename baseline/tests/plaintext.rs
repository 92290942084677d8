//! Who spoke mutual TLS and comes in plaintext is found, also where others always did; probes and the like are not.

mod traffic;

use std::net::IpAddr;

use baseline::{EdgeKey, Ending, Engine, Event, Kind, Limits, Observation, Protection};
use traffic::{Doing, MIDNIGHT, MINUTE, USUAL, World, edge, opened, source_of};

const LEARNT: u64 = MIDNIGHT + 60 * MINUTE;
/// The place of the probes among the edges, and of who comes in mutual TLS to the same service.
const PROBES: usize = 5;
const GATEWAY: usize = 0;

/// Who has no identity and comes to the service of the gateway.
fn class() -> EdgeKey {
    EdgeKey { peer: "private".to_owned(), ..edge("gateway", true) }
}

fn usual(place: usize) -> Doing {
    if place == PROBES { Doing { protection: Protection::Plaintext, errors: 0.0, ..USUAL } } else { USUAL }
}

/// A pod that knows its gateway in mutual TLS, six times a second, and probes in plaintext, one each five seconds.
fn learnt(seed: u64) -> (World, Engine) {
    let (mut world, mut engine) = (World::new(seed), Engine::new(Limits::default(), MIDNIGHT));
    world.edges.push((class(), 0.2, 1000.0));
    let said = world.run(&mut engine, (MIDNIGHT, LEARNT), &|place, _| usual(place));
    assert_eq!(said, []);
    (world, engine)
}

fn plaintext(events: &[Event]) -> Vec<&baseline::Deviation> {
    opened(events).into_iter().filter(|one| one.kind == Kind::Plaintext).collect()
}

fn request(key: &EdgeKey, source: Option<IpAddr>) -> Observation<'_> {
    Observation {
        at: LEARNT,
        edge: key.as_ref(),
        source,
        error: false,
        duration_us: Some(1000),
        first_byte_us: Some(500),
        bytes_in: 100,
        bytes_out: 100,
        protection: Protection::Plaintext,
    }
}

/// One request in plaintext at `at`, from an address.
fn come(engine: &mut Engine, at: u64, source: Option<IpAddr>) {
    engine.observe(&Observation { at, ..request(&class(), source) });
}

#[test]
fn who_comes_back_in_plaintext_from_another_address_is_found_by_what_he_leaves() {
    for (seed, share) in [(1, 1.0), (2, 1.0), (3, 0.7)] {
        let (mut world, mut engine) = learnt(seed);
        let over = LEARNT + 10 * MINUTE;
        let doing = |place, at| match place {
            GATEWAY if at < over => Doing { rate: 1.0 - share, ..USUAL },
            PROBES if at < over => Doing { rate: 1.0 + share * 6.0 / 0.2, ..usual(PROBES) },
            _ => usual(place),
        };
        let events = world.run(&mut engine, (LEARNT, over + 60 * MINUTE), &doing);
        let found = plaintext(&events);
        assert_eq!(found.len(), 1, "{events:?}");
        assert_eq!(found[0].edge, Some(edge("gateway", true)));
        let within = if share < 1.0 { 8 * MINUTE } else { 30_000 };
        assert!(found[0].opened <= LEARNT + within, "after {} s", (found[0].opened - LEARNT) / 1000);
        assert!(found[0].observed >= 1.0 && found[0].records >= 1, "{found:?}");
        let over = |event: &&Event| matches!(event, Event::Closed { deviation, ending: Ending::Recovered, .. } if deviation.id == found[0].id);
        assert_eq!(events.iter().filter(over).count(), 1, "{events:?}");
    }
}

#[test]
fn silence_alone_more_probes_alone_and_both_at_different_services_are_no_downgrade() {
    let silent = |place, _| if place == GATEWAY { Doing { rate: 0.0, ..USUAL } } else { usual(place) };
    let probed = |place, _| if place == PROBES { Doing { rate: 8.0, ..usual(PROBES) } } else { usual(place) };
    // Prices are fetched from elsewhere, and nobody comes to us for them.
    let apart = |place, _| match place {
        4 => Doing { rate: 0.0, ..USUAL },
        PROBES => Doing { rate: 8.0, ..usual(PROBES) },
        _ => usual(place),
    };
    type Case<'a> = (&'a dyn Fn(usize, u64) -> Doing, Kind);
    let cases: [Case<'_>; 3] = [(&silent, Kind::Silence), (&probed, Kind::RateUp), (&apart, Kind::Silence)];
    for (doing, kind) in cases {
        let (mut world, mut engine) = learnt(1);
        let events = world.run(&mut engine, (LEARNT, LEARNT + 20 * MINUTE), doing);
        assert!(opened(&events).iter().any(|one| one.kind == kind), "{events:?}");
        assert!(plaintext(&events).is_empty(), "{events:?}");
    }
}

#[test]
fn one_request_in_plaintext_from_where_mutual_tls_comes_is_found_at_once() {
    let (mut world, mut engine) = learnt(1);
    come(&mut engine, LEARNT, source_of(GATEWAY));
    let events = world.run(&mut engine, (LEARNT, LEARNT + MINUTE), &|place, _| usual(place));
    let found = opened(&events);
    let [one] = &found[..] else { panic!("{events:?}") };
    assert_eq!((one.kind, &one.edge, one.observed), (Kind::Plaintext, &Some(edge("gateway", true)), 1.0));
    assert!(one.opened <= LEARNT + 5000);
    // Once it is accepted it is normal, and the gateway's mutual TLS from there changes nothing in that.
    assert!(engine.accept(one.id));
    for minute in 1..30 {
        come(&mut engine, LEARNT + minute * MINUTE, source_of(GATEWAY));
        let span = (LEARNT + minute * MINUTE, LEARNT + (minute + 1) * MINUTE);
        let events = world.run(&mut engine, span, &|place, _| usual(place));
        assert_eq!(opened(&events).len(), 0, "{events:?}");
    }
}

#[test]
fn an_address_of_both_or_of_somebody_else_by_now_is_no_downgrade() {
    // Nodes translate addresses: mutual TLS and plaintext have always come from there.
    let (mut world, mut engine) = (World::new(1), Engine::new(Limits::default(), MIDNIGHT));
    world.edges.push((class(), 0.2, 1000.0));
    for at in (MIDNIGHT..LEARNT + 60 * MINUTE).step_by(5000) {
        come(&mut engine, at, source_of(GATEWAY));
        assert_eq!(world.run(&mut engine, (at, at + 5000), &|place, _| usual(place)), []);
    }
    // Elsewhere, from nowhere, and where nobody has spoken mutual TLS for a quarter of an hour.
    let (mut world, mut engine) = learnt(2);
    for source in [source_of(77), None] {
        come(&mut engine, LEARNT, source);
    }
    let gone = |place, _| if place == GATEWAY { Doing { rate: 0.0, ..USUAL } } else { usual(place) };
    let mut events = world.run(&mut engine, (LEARNT, LEARNT + 15 * MINUTE), &gone);
    come(&mut engine, LEARNT + 15 * MINUTE, source_of(GATEWAY));
    events.extend(world.run(&mut engine, (LEARNT + 15 * MINUTE, LEARNT + 20 * MINUTE), &gone));
    assert!(plaintext(&events).is_empty(), "{events:?}");
}

#[test]
fn of_two_who_leave_he_is_told_who_came_back_in_plaintext() {
    let (mut world, mut engine) = learnt(4);
    let doing = |place, _| match place {
        0 | 1 => Doing { rate: 0.0, ..USUAL },
        // As many as the gateway had.
        PROBES => Doing { rate: 1.0 + 6.0 / 0.2, ..usual(PROBES) },
        _ => usual(place),
    };
    let events = world.run(&mut engine, (LEARNT, LEARNT + 5 * MINUTE), &doing);
    let found: Vec<_> = plaintext(&events).iter().filter_map(|one| one.edge.clone()).collect();
    assert_eq!(found, [edge("gateway", true)], "{events:?}");
    // Both came back: six and two a second.
    let (mut world, mut engine) = learnt(4);
    let doing = |place, at| match place {
        PROBES => Doing { rate: 1.0 + 8.0 / 0.2, ..usual(PROBES) },
        _ => doing(place, at),
    };
    let events = world.run(&mut engine, (LEARNT, LEARNT + 5 * MINUTE), &doing);
    assert!(plaintext(&events).iter().any(|one| one.edge == Some(edge("gateway", true))), "{events:?}");
}

#[test]
fn a_crowd_of_addresses_is_no_flood() {
    let (mut world, mut engine) = learnt(3);
    let (gateway, mut events) = (edge("gateway", true), Vec::new());
    for second in 0..1200_u32 {
        // Each address comes 25 times in mutual TLS and as often in plaintext.
        let at = LEARNT + u64::from(second) * 1000;
        for number in 0..100 {
            let source = source_of(1000 + (second * 2 + number / 50) as usize);
            if number % 50 < 25 {
                let seen = Observation { at, protection: Protection::MutualTls, ..request(&gateway, source) };
                engine.observe(&seen);
            } else {
                come(&mut engine, at, source);
            }
        }
        events.extend(world.run(&mut engine, (at, at + 1000), &|place, _| usual(place)));
    }
    assert_eq!(plaintext(&events).len(), 1, "{events:?}");
    assert!(opened(&events).len() < 10, "{events:?}");
}
