//! The life of a pod's baseline: what healthy life brings raises nothing; what is not as it was opens once, with evidence, and
//! closes.

mod traffic;

use baseline::{
    Direction, EdgeRef, Ending, Engine, Event, Kind, Limits, OTHERS_MAX, Observation, Phase, Protection, State,
};
use traffic::{DAY, Doing, MIDNIGHT, MINUTE, USUAL, World, edge, opened};

const LEARNT: u64 = MIDNIGHT + 60 * MINUTE;

fn learnt(seed: u64) -> (World, Engine) {
    let (mut world, mut engine) = (World::new(seed), Engine::new(Limits::default(), MIDNIGHT));
    let said = world.run(&mut engine, (MIDNIGHT, LEARNT), &|_, _| USUAL);
    assert_eq!(said, []);
    assert!(engine.summaries().all(|summary| summary.phase == Phase::Watching));
    (world, engine)
}

/// Lets edge 2 do something else for `minutes`, and gives what was said until it is long over.
fn fault(seed: u64, minutes: u64, fault: Doing) -> Vec<Event> {
    let (mut world, mut engine) = learnt(seed);
    let over = LEARNT + minutes * MINUTE;
    let doing = |place: usize, at: u64| if place == 2 && at < over { fault } else { USUAL };
    world.run(&mut engine, (LEARNT, over + 60 * MINUTE), &doing)
}

/// One deviation of `kind` opens within `seconds`, on the right edge, and closes.
fn found(events: &[Event], kind: Kind, seconds: u64) -> &baseline::Deviation {
    let deviations = opened(events);
    assert_eq!(deviations.iter().map(|deviation| deviation.kind).collect::<Vec<_>>(), [kind]);
    let deviation = deviations[0];
    assert_eq!(deviation.edge, Some(edge("orders", false)));
    assert!(deviation.opened <= LEARNT + seconds * 1000, "after {} s", (deviation.opened - LEARNT) / 1000);
    assert!(deviation.since <= deviation.opened && deviation.since + 5 * MINUTE >= LEARNT);
    let closed = events.iter().filter(|event| {
        matches!(event, Event::Closed { deviation: closed, ending: Ending::Recovered, .. } if closed.id == deviation.id)
    });
    assert_eq!(closed.count(), 1);
    deviation
}

#[test]
fn twice_as_slow_is_found_with_its_evidence_and_closes() {
    for seed in 1..5 {
        let events = fault(seed, 10, Doing { slower: 2.0, ..USUAL });
        let deviation = found(&events, Kind::Latency, 60);
        let (low, high) = deviation.expected;
        assert!(low < 0.004 && 0.004 < high, "{low} to {high}");
        assert!((0.0055..0.0105).contains(&deviation.observed), "{}", deviation.observed);
        assert!(deviation.records > 10);
    }
}

#[test]
fn errors_are_found_and_a_restart_is_not_an_error() {
    for seed in 1..5 {
        let deviation = found(&fault(seed, 10, Doing { errors: 0.07, ..USUAL }), Kind::Errors, 90).clone();
        let (expected, observed) = (deviation.expected.1, deviation.observed);
        assert!(expected < 0.01 && observed > 2.0 * expected, "{expected} {observed}");
        let (mut world, mut engine) = learnt(seed);
        let doing = |place, at| if place == 2 && at < LEARNT + 15_000 { Doing { errors: 0.1, ..USUAL } } else { USUAL };
        assert_eq!(world.run(&mut engine, (LEARNT, LEARNT + 60 * MINUTE), &doing), []);
    }
}

#[test]
fn rates_and_silence_and_bytes_are_found() {
    for seed in 1..3 {
        found(&fault(seed, 15, Doing { rate: 3.5, ..USUAL }), Kind::RateUp, 300);
        found(&fault(seed, 15, Doing { rate: 0.1, ..USUAL }), Kind::RateDown, 300);
        found(&fault(seed, 10, Doing { rate: 0.0, ..USUAL }), Kind::Silence, 60);
        found(&fault(seed, 10, Doing { bytes: 10.0, ..USUAL }), Kind::BytesOut, 60);
    }
}

#[test]
fn plaintext_where_there_was_mutual_tls_opens_at_once() {
    let plain = Doing { protection: Protection::Plaintext, ..USUAL };
    found(&fault(1, 1, plain), Kind::Plaintext, 10);
}

#[test]
fn new_peers_open_at_once_and_a_scan_is_one_deviation() {
    let (mut world, mut engine) = learnt(1);
    for peer in 0..40 {
        world.edges.push((edge(&format!("scanned-{peer}"), false), 0.1, 1000.0));
    }
    let events = world.run(&mut engine, (LEARNT, LEARNT + 5 * MINUTE), &|_, _| USUAL);
    let deviations = opened(&events);
    assert_eq!(deviations.len(), 1);
    assert_eq!(deviations[0].kind, Kind::NewPeer);
    assert!(deviations[0].edge.as_ref().unwrap().peer.contains("scanned-"));
    assert_eq!(engine.open_deviations().next().unwrap().peers, 40);
    // All that there is room for are named, without a record for each.
    let last = events.iter().rev().find_map(|event| match event {
        Event::Opened(deviation) | Event::Updated(deviation) => Some(deviation),
        Event::Closed { .. } | Event::RolledOut { .. } => None,
    });
    let named: Vec<_> = last.iter().flat_map(|one| one.edge.iter().chain(&one.others)).map(|edge| &edge.peer).collect();
    assert_eq!(named.len(), 1 + OTHERS_MAX, "{events:?}");
    assert!(named.iter().all(|peer| peer.contains("scanned-")), "{named:?}");
    let updates = events.iter().filter(|event| matches!(event, Event::Updated(_))).count();
    assert!(updates <= OTHERS_MAX, "{updates} updates");
    world.edges.truncate(5);
    let later = world.run(&mut engine, (LEARNT + 5 * MINUTE, LEARNT + 60 * MINUTE), &|_, _| USUAL);
    assert!(matches!(&later[..], [Event::Closed { ending: Ending::Adopted, .. }]));
}

#[test]
fn new_peers_that_come_together_are_all_named_when_they_come() {
    let (mut world, mut engine) = learnt(1);
    let names = ["first", "second", "third"];
    world.edges.extend(names.map(|name| (edge(name, true), 20.0, 1000.0)));
    let events = world.run(&mut engine, (LEARNT, LEARNT + 2 * MINUTE), &|_, _| USUAL);
    let [Event::Opened(deviation)] = &events[..] else { panic!("{events:?}") };
    let named = deviation.edge.iter().chain(&deviation.others).cloned().collect::<Vec<_>>();
    assert_eq!((named, deviation.peers), (names.map(|name| edge(name, true)).to_vec(), 3));
    // Who comes a minute later is named then.
    world.edges.push((edge("late", true), 20.0, 1000.0));
    let events = world.run(&mut engine, (LEARNT + 2 * MINUTE, LEARNT + 3 * MINUTE), &|_, _| USUAL);
    let [Event::Updated(deviation)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((deviation.others.last(), deviation.peers), (Some(&edge("late", true)), 4));
}

#[test]
fn a_peer_that_is_gone_for_a_day_has_vanished_once() {
    let (mut world, mut engine) = learnt(1);
    let last = world.edges.pop().unwrap();
    let quiet = |_, _| Doing { rate: 0.2, ..USUAL };
    let events = world.run(&mut engine, (LEARNT, LEARNT + DAY + 10 * MINUTE), &quiet);
    let vanished: Vec<_> = opened(&events).into_iter().filter(|one| one.kind == Kind::VanishedPeer).cloned().collect();
    assert_eq!(vanished.len(), 1);
    assert_eq!(vanished[0].edge, Some(last.0));
}

#[test]
fn a_restart_an_unchanged_rollout_and_scaling_raise_nothing_and_leave_no_gap() {
    for seed in 1..4 {
        let (mut world, engine) = learnt(seed);
        let mut siblings = engine.state();
        siblings.merge(&learnt(seed + 100).1.state());
        let kept = State::decode(&siblings.encode()).unwrap();
        // Three times as many pods: each has a third; caches are cold for a while.
        let mut engine = Engine::from_state(Limits::default(), LEARNT, &kept);
        engine.compare_with(kept.clone());
        let cold = |_, at| {
            let age = (at - LEARNT) as f64 / 40_000.0;
            Doing { rate: 1.0 / 3.0, slower: 1.0 + 1.5 * (-age).exp(), ..USUAL }
        };
        let events = world.run(&mut engine, (LEARNT, LEARNT + 60 * MINUTE), &cold);
        let [Event::RolledOut { differences, .. }] = &events[..] else { panic!("{events:?}") };
        assert_eq!(differences, &[]);
        // No gap: ten minutes after its creation it finds what a pod of an hour finds.
        let mut young = Engine::from_state(Limits::default(), LEARNT, &kept);
        let start = LEARNT + 10 * MINUTE;
        let doing = |place, at| if place == 2 && at >= start { Doing { slower: 2.0, ..USUAL } } else { USUAL };
        let events = world.run(&mut young, (LEARNT, start + 2 * MINUTE), &doing);
        let deviations = opened(&events);
        assert_eq!(deviations.iter().map(|one| one.kind).collect::<Vec<_>>(), [Kind::Latency]);
        assert!(deviations[0].opened < start + 60_000);
    }
}

#[test]
fn a_changed_rollout_is_reported_once() {
    let (mut world, engine) = learnt(1);
    let mut new = Engine::new(Limits::default(), LEARNT);
    new.compare_with(engine.state());
    world.edges.push((edge("search", false), 2.0, 3000.0));
    let doing = |place, _| if place == 2 { Doing { slower: 1.6, errors: 0.03, ..USUAL } } else { USUAL };
    let events = world.run(&mut new, (LEARNT, LEARNT + 120 * MINUTE), &doing);
    let [Event::RolledOut { differences, .. }] = &events[..] else { panic!("{events:?}") };
    let of = |name: &str| -> Vec<Kind> {
        differences.iter().filter(|one| one.edge == edge(name, false)).map(|one| one.kind).collect()
    };
    assert!(of("orders").contains(&Kind::Latency) && of("orders").contains(&Kind::Errors));
    assert_eq!(of("search"), [Kind::NewPeer]);
    assert_eq!(of("stock"), []);
}

/// Day and night: full at noon, `least` at midnight, along a cosine.
fn daily(at: u64, least: f64) -> Doing {
    let phase = (at % DAY) as f64 / DAY as f64 * std::f64::consts::TAU;
    Doing { rate: least + (1.0 - least) * (0.5 - 0.5 * phase.cos()), ..USUAL }
}

#[test]
fn an_idle_night_raises_nothing_not_even_the_first() {
    let noon = MIDNIGHT + DAY / 2;
    let (mut world, mut engine) = (World::new(3), Engine::new(Limits::default(), noon));
    let events = world.run(&mut engine, (noon, noon + DAY), &|_, at| daily(at, 0.01));
    assert_eq!(events, []);
}

#[test]
fn nights_that_end_at_nothing_raise_nothing() {
    let noon = MIDNIGHT + DAY / 2;
    // Down to nothing slowly, and for hours after a fall that ends at once.
    for (steeper, less) in [(1.0, 0.0), (1.4, 0.4)] {
        let (mut world, mut engine) = (World::new(1), Engine::new(Limits::default(), noon));
        let doing = |_, at| Doing { rate: (steeper * daily(at, 0.0).rate - less).max(0.0), ..USUAL };
        let events = world.run(&mut engine, (noon, noon + 2 * DAY), &doing);
        assert_eq!(events, [], "{steeper} {less}");
    }
}

#[test]
fn from_the_second_day_on_the_hour_is_known() {
    // From 20:00 to 06:00 one edge does nothing, sharply: a surprise once, and not any more.
    let doing = |place, at: u64| {
        let hour = at / 3_600_000 % 24;
        if place == 2 && !(6..20).contains(&hour) { Doing { rate: 0.0, ..USUAL } } else { USUAL }
    };
    let noon = MIDNIGHT + DAY / 2;
    let (mut world, mut engine) = (World::new(4), Engine::new(Limits::default(), noon));
    let first = world.run(&mut engine, (noon, noon + DAY), &doing);
    assert!(opened(&first).iter().any(|one| one.kind == Kind::Silence));
    let second = world.run(&mut engine, (noon + DAY, noon + 2 * DAY), &doing);
    assert_eq!(opened(&second), Vec::<&baseline::Deviation>::new());
}

#[test]
fn a_clock_that_steps_makes_nobody_vanish_and_nothing_older() {
    let slow = |place, _| if place == 2 { Doing { slower: 2.0, ..USUAL } } else { USUAL };
    let (mut world, mut engine) = learnt(1);
    let events = world.run(&mut engine, (LEARNT, LEARNT + 5 * MINUTE), &slow);
    assert_eq!(opened(&events).len(), 1, "{events:?}");
    // Two days ahead: longer than what is adopted, and than what vanishes.
    let later = LEARNT + 5 * MINUTE + 2 * DAY;
    let events = world.run(&mut engine, (later, later + 5 * MINUTE), &slow);
    assert_eq!(events, []);
    // And back to where it was.
    let events = world.run(&mut engine, (LEARNT + 10 * MINUTE, LEARNT + 15 * MINUTE), &slow);
    assert_eq!(events, []);
}

#[test]
fn who_is_known_from_siblings_alone_does_not_vanish_and_who_has_vanished_is_normal_some_time_later() {
    let (_, engine) = learnt(1);
    let state = engine.state();
    let mut alone = Engine::from_state(Limits::default(), LEARNT, &state);
    let mut said = Vec::new();
    for at in (LEARNT..LEARNT + 2 * DAY).step_by(5000) {
        alone.advance(at);
        said.extend(alone.drain_events());
    }
    assert!(opened(&said).iter().all(|one| one.kind != Kind::VanishedPeer), "{said:?}");

    let (mut world, mut engine) = learnt(1);
    let gone = |place, _| if place == 2 { Doing { rate: 0.0, ..USUAL } } else { USUAL };
    let events = world.run(&mut engine, (LEARNT, LEARNT + DAY + 300 * MINUTE), &gone);
    assert_eq!(opened(&events).iter().filter(|one| one.kind == Kind::VanishedPeer).count(), 1, "{events:?}");
    let adopted = |event: &&Event| matches!(event, Event::Closed { deviation, ending: Ending::Adopted, .. } if deviation.kind == Kind::VanishedPeer);
    assert_eq!(events.iter().filter(adopted).count(), 1, "{events:?}");
}

#[test]
fn who_comes_in_plaintext_where_the_others_had_mutual_tls_is_said_so() {
    for protection in [Protection::Plaintext, Protection::MutualTls] {
        let (_, mut engine) = learnt(1);
        let known = edge("orders", false);
        for number in 0..100 {
            let edge = EdgeRef { peer: "private", ..known.as_ref() };
            let (at, duration_us, first_byte_us) = (LEARNT + number * 200, Some(4000), None);
            let (error, bytes_in, bytes_out) = (false, 100, 100);
            engine.observe(&Observation {
                at,
                edge,
                source: None,
                error,
                duration_us,
                first_byte_us,
                bytes_in,
                bytes_out,
                protection,
            });
        }
        let events = engine.drain_events();
        let of_stranger = |kind| {
            let stranger = |one: &&baseline::Deviation| one.edge.as_ref().is_some_and(|edge| edge.peer == "private");
            opened(&events).into_iter().filter(stranger).any(|one| one.kind == kind)
        };
        assert!(of_stranger(Kind::NewPeer), "{events:?}");
        assert_eq!(of_stranger(Kind::Plaintext), protection == Protection::Plaintext, "{events:?}");
    }
}

#[test]
fn errors_that_are_accepted_are_normal_and_more_of_them_are_not() {
    let failing = |errors: f64| move |place, _| if place == 2 { Doing { errors, ..USUAL } } else { USUAL };
    let (mut world, mut engine) = learnt(1);
    let events = world.run(&mut engine, (LEARNT, LEARNT + 5 * MINUTE), &failing(0.1));
    assert!(engine.accept(opened(&events)[0].id));
    let events = world.run(&mut engine, (LEARNT + 5 * MINUTE, LEARNT + 65 * MINUTE), &failing(0.1));
    assert!(matches!(&events[..], [Event::Closed { ending: Ending::Accepted, .. }]), "{events:?}");
    let events = world.run(&mut engine, (LEARNT + 65 * MINUTE, LEARNT + 75 * MINUTE), &failing(0.4));
    assert!(opened(&events).iter().any(|one| one.kind == Kind::Errors), "{events:?}");
}

#[test]
fn who_cannot_be_reached_fails_on_his_own_edge_and_is_nobody_new() {
    let (_, mut engine) = learnt(1);
    let known = edge("orders", false);
    for number in 0..600 {
        let edge = EdgeRef { peer: "", ..known.as_ref() };
        let (at, protection) = (LEARNT + number * 200, Protection::Unknown);
        let (duration_us, first_byte_us, bytes_in, bytes_out) = (None, None, 0, 0);
        engine.observe(&Observation {
            at,
            edge,
            source: None,
            error: true,
            duration_us,
            first_byte_us,
            bytes_in,
            bytes_out,
            protection,
        });
    }
    let events = engine.drain_events();
    let mut errors = opened(&events).into_iter().filter(|one| one.kind == Kind::Errors);
    assert_eq!(errors.next().and_then(|one| one.edge.clone()), Some(known.clone()), "{events:?}");
    assert!(opened(&events).iter().all(|one| one.kind != Kind::NewPeer), "{events:?}");
    let edges = engine.edge_count();
    let nobody = EdgeRef { peer: "", service: "unknown", ..known.as_ref() };
    let (at, protection) = (LEARNT + 200_000, Protection::Unknown);
    let nothing = Observation {
        at,
        edge: nobody,
        source: None,
        error: true,
        duration_us: None,
        first_byte_us: None,
        bytes_in: 0,
        bytes_out: 0,
        protection,
    };
    engine.observe(&nothing);
    assert_eq!(engine.edge_count(), edges);
}

#[test]
fn what_is_accepted_is_normal_and_what_lasts_too_unless_pinned() {
    let slow = |place, _| if place == 2 { Doing { slower: 1.8, ..USUAL } } else { USUAL };
    let (mut world, mut engine) = learnt(1);
    let events = world.run(&mut engine, (LEARNT, LEARNT + 5 * MINUTE), &slow);
    let id = opened(&events)[0].id;
    assert!(engine.accept(id) && !engine.accept(id));
    let events = world.run(&mut engine, (LEARNT + 5 * MINUTE, LEARNT + 65 * MINUTE), &slow);
    assert!(matches!(&events[..], [Event::Closed { ending: Ending::Accepted, .. }]), "{events:?}");

    for pinned in [false, true] {
        let (mut world, mut engine) = learnt(1);
        assert!(engine.pin(edge("orders", false).as_ref(), pinned));
        assert!(!engine.pin(edge("nobody", false).as_ref(), pinned));
        let events = world.run(&mut engine, (LEARNT, LEARNT + 300 * MINUTE), &slow);
        let adopted = events.iter().any(|event| matches!(event, Event::Closed { ending: Ending::Adopted, .. }));
        assert_eq!((opened(&events).len(), adopted), (1, !pinned), "{events:?}");
    }
}

#[test]
fn what_slows_everything_is_no_edges_doing() {
    let (mut world, mut engine) = learnt(2);
    let doing = |_, at| if at < LEARNT + 90_000 { Doing { slower: 1.4, ..USUAL } } else { USUAL };
    assert_eq!(world.run(&mut engine, (LEARNT, LEARNT + 30 * MINUTE), &doing), []);
}

#[test]
fn an_inbound_and_an_outbound_stranger_are_two_deviations() {
    let (mut world, mut engine) = learnt(1);
    world.edges.push((edge("stranger", true), 1.0, 1000.0));
    world.edges.push((edge("elsewhere", false), 1.0, 1000.0));
    let events = world.run(&mut engine, (LEARNT, LEARNT + MINUTE), &|_, _| USUAL);
    let directions = opened(&events).iter().map(|one| one.edge.as_ref().unwrap().direction).collect::<Vec<_>>();
    assert_eq!(directions.len(), 2);
    assert!(directions.contains(&Direction::Inbound) && directions.contains(&Direction::Outbound));
}

#[test]
fn a_burst_of_a_minute_raises_nothing_however_high() {
    for rate in [4.0, 8.0] {
        assert_eq!(fault(1, 1, Doing { rate, ..USUAL }), []);
    }
}

/// What opened, and whom each of it names: the place of each edge.
fn named(world: &World, events: &[Event]) -> Vec<(Kind, Vec<usize>)> {
    let place = |key: &baseline::EdgeKey| world.edges.iter().position(|(edge, ..)| edge == key);
    let names = |deviation: &baseline::Deviation| {
        let mut places: Vec<_> = deviation.edge.iter().chain(&deviation.others).filter_map(place).collect();
        places.sort_unstable();
        places
    };
    let last = |id| {
        let of = |event: &Event| match event {
            Event::Opened(deviation) | Event::Updated(deviation) if deviation.id == id => Some(names(deviation)),
            Event::Opened(_) | Event::Updated(_) | Event::Closed { .. } | Event::RolledOut { .. } => None,
        };
        events.iter().rev().find_map(of).unwrap_or_default()
    };
    opened(events).iter().map(|deviation| (deviation.kind, last(deviation.id))).collect()
}

#[test]
fn what_happens_to_most_edges_is_one_deviation_that_names_them() {
    let cases: [(Kind, Doing); 4] = [
        (Kind::Latency, Doing { slower: 5.0, ..USUAL }),
        (Kind::Errors, Doing { errors: 0.4, ..USUAL }),
        (Kind::BytesOut, Doing { bytes: 10.0, ..USUAL }),
        (Kind::FirstByte, Doing { later: 1.9, ..USUAL }),
    ];
    for (kind, fault) in cases {
        let (mut world, mut engine) = learnt(1);
        let doing = |_, at| if at < LEARNT + 10 * MINUTE { fault } else { USUAL };
        let events = world.run(&mut engine, (LEARNT, LEARNT + 60 * MINUTE), &doing);
        let named = named(&world, &events);
        let closed = events.iter().filter(|event| matches!(event, Event::Closed { .. })).count();
        assert!(named.len() == 1 && closed == 1, "{kind:?}: {named:?} {events:?}");
        assert!(named[0].0 == kind && named[0].1.len() >= 4, "{kind:?}: {named:?}");
    }
}

#[test]
fn a_client_that_triples_is_found_although_the_others_follow() {
    let (mut world, mut engine) = learnt(1);
    let over = LEARNT + 10 * MINUTE;
    let doing = |place: usize, at: u64| match place {
        _ if at >= over => USUAL,
        2 => Doing { rate: 3.3, ..USUAL },
        _ => Doing { rate: 1.6, ..USUAL },
    };
    let events = world.run(&mut engine, (LEARNT, over), &doing);
    let found = opened(&events).iter().map(|one| (one.kind, one.edge.clone())).collect::<Vec<_>>();
    assert_eq!(found, [(Kind::RateUp, Some(edge("orders", false)))]);
}

#[test]
fn two_edges_of_five_are_two_deviations() {
    let (mut world, mut engine) = learnt(1);
    let doing = |place, _| if place % 3 == 0 { Doing { errors: 0.4, ..USUAL } } else { USUAL };
    let events = world.run(&mut engine, (LEARNT, LEARNT + 5 * MINUTE), &doing);
    assert_eq!(opened(&events).len(), 2, "{events:?}");
}

#[test]
fn what_was_idle_for_two_days_is_still_readable_and_tested() {
    let (mut world, mut engine) = learnt(1);
    let visitor = edge("visitor", true);
    world.edges.push((visitor, 1.0, 1000.0));
    world.run(&mut engine, (LEARNT, LEARNT + 5000), &|_, _| USUAL);
    world.edges.pop();
    let idle = LEARNT + 2 * DAY;
    let few = |place: usize, _| Doing { rate: if place == 0 { 0.05 } else { 0.0 }, ..USUAL };
    world.run(&mut engine, (LEARNT + 5000, idle), &few);
    let state = State::decode(&engine.state().encode()).unwrap();
    assert_eq!(state, engine.state(), "every number is one");
}

#[test]
fn one_request_in_two_minutes_does_not_end_a_silence() {
    let (mut world, mut engine) = learnt(1);
    let doing = |place, _| if place == 0 { Doing { rate: 0.0015, ..USUAL } } else { USUAL };
    let events = world.run(&mut engine, (LEARNT, LEARNT + 150 * MINUTE), &doing);
    assert!(opened(&events).len() <= 2, "{:?}", opened(&events).len());
}

#[test]
fn time_in_which_nobody_asks_makes_nothing_normal() {
    let (mut world, mut engine) = learnt(1);
    let slow = |place: usize, at: u64| match (at - LEARNT) / MINUTE {
        _ if place != 2 => USUAL,
        3..240 => Doing { rate: 0.0, ..USUAL },
        _ => Doing { slower: 3.0, ..USUAL },
    };
    let events = world.run(&mut engine, (LEARNT, LEARNT + 250 * MINUTE), &slow);
    let adopted = |event: &Event| matches!(event, Event::Closed { deviation, ending: Ending::Adopted, .. } if deviation.kind == Kind::Latency);
    assert!(!events.iter().any(adopted), "{events:?}");
}

#[test]
fn what_lasts_is_adopted_edge_by_edge_by_the_time_in_use() {
    let (mut world, mut engine) = learnt(1);
    // All slow together; the first of them is not used any more after five minutes.
    let doing = |place: usize, at: u64| match (at - LEARNT) / MINUTE {
        5.. if place == 0 => Doing { rate: 0.0, ..USUAL },
        _ => Doing { slower: 5.0, ..USUAL },
    };
    let events = world.run(&mut engine, (LEARNT, LEARNT + 200 * MINUTE), &doing);
    let is_slow = |event: &&Event| matches!(event, Event::Opened(deviation) if deviation.kind == Kind::Latency);
    assert_eq!(events.iter().filter(is_slow).count(), 1, "{events:?}");
    let slow = engine.summaries().filter(|summary| summary.open.contains(&Kind::Latency));
    assert_eq!(slow.map(|summary| summary.edge).collect::<Vec<_>>(), [edge("gateway", true)]);
}
