//! Answers that begin later: found where the whole takes as long as ever, and one deviation with it where it does not.

mod traffic;

use baseline::{Ending, Engine, Event, Kind, Limits, State};
use traffic::{Doing, MIDNIGHT, MINUTE, Random, USUAL, World, edge, opened};

const LEARNT: u64 = MIDNIGHT + 60 * MINUTE;

fn learnt(seed: u64) -> (World, Engine) {
    let (mut world, mut engine) = (World::new(seed), Engine::new(Limits::default(), MIDNIGHT));
    assert_eq!(world.run(&mut engine, (MIDNIGHT, LEARNT), &|_, _| USUAL), []);
    (world, engine)
}

/// Edge 2 does something else for ten minutes; all that is said until an hour later.
fn fault(seed: u64, fault: Doing) -> Vec<Event> {
    let (mut world, mut engine) = learnt(seed);
    let over = LEARNT + 10 * MINUTE;
    let doing = |place: usize, at: u64| if place == 2 && at < over { fault } else { USUAL };
    world.run(&mut engine, (LEARNT, over + 60 * MINUTE), &doing)
}

fn kinds(events: &[Event]) -> Vec<Kind> {
    opened(events).iter().map(|one| one.kind).collect()
}

#[test]
fn an_answer_that_begins_later_and_ends_as_ever_is_found_and_closes() {
    for (later, within) in [(2.0, 75_000), (5.0, 25_000)] {
        for seed in 1..6 {
            let events = fault(seed, Doing { later, ..USUAL });
            assert_eq!(kinds(&events), [Kind::FirstByte], "{events:?}");
            let one = opened(&events)[0];
            assert_eq!(one.edge, Some(edge("orders", false)));
            assert!(one.opened <= LEARNT + within, "after {} s", (one.opened - LEARNT) / 1000);
            let (low, high) = one.expected;
            assert!(low < 0.002 && 0.002 < high && one.observed > high, "{one:?}");
            assert!(events.iter().any(|event| matches!(event, Event::Closed { ending: Ending::Recovered, .. })));
        }
    }
}

#[test]
fn what_is_slower_as_a_whole_is_one_deviation() {
    for seed in 1..6 {
        for slower in [1.5, 2.0, 5.0, 20.0] {
            let events = fault(seed, Doing { slower, ..USUAL });
            assert_eq!(kinds(&events), [Kind::Latency], "{slower} {events:?}");
        }
        // A late beginning that the duration shows, too.
        let events = fault(seed, Doing { slower: 1.6, later: 4.0, ..USUAL });
        assert_eq!(kinds(&events).len(), 1, "{events:?}");
    }
}

#[test]
fn what_was_accepted_of_the_whole_is_accepted_of_the_beginning() {
    for seed in 1..4 {
        let (mut world, mut engine) = learnt(seed);
        let slow = |place, _| if place == 2 { Doing { slower: 2.5, ..USUAL } } else { USUAL };
        let events = world.run(&mut engine, (LEARNT, LEARNT + 5 * MINUTE), &slow);
        assert!(engine.accept(opened(&events)[0].id));
        let events = world.run(&mut engine, (LEARNT + 5 * MINUTE, LEARNT + 120 * MINUTE), &slow);
        assert_eq!(kinds(&events), [], "{events:?}");
    }
}

#[test]
fn answers_that_become_shorter_pauses_and_restarts_are_no_late_beginning() {
    for seed in 1..6 {
        // As late as ever, half as long.
        let events = fault(seed, Doing { slower: 0.5, later: 2.0, ..USUAL });
        assert!(!kinds(&events).contains(&Kind::FirstByte), "{events:?}");
        for (seconds, later) in [(30, 1.65), (3, 20.0), (7, 4.0)] {
            let (mut world, mut engine) = learnt(seed);
            let over = LEARNT + seconds * 1000;
            let doing = |place, at| if place == 2 && at < over { Doing { later, ..USUAL } } else { USUAL };
            let events = world.run(&mut engine, (LEARNT, LEARNT + 30 * MINUTE), &doing);
            assert_eq!(kinds(&events), [], "{seconds} s of x{later}: {events:?}");
        }
    }
}

#[test]
fn weeks_of_answers_whose_beginning_wanders_by_itself_raise_little() {
    let (mut world, mut engine) = (World::new(7), Engine::new(Limits::default(), MIDNIGHT));
    let mut random = Random::new(99);
    let mut found = 0;
    let mut level = 0.0_f64;
    for minute in 0..7 * 24 * 60 {
        // Minutes resemble each other; a tenth up and down is usual.
        level = 0.8 * level + 0.06 * random.normal();
        let from = MIDNIGHT + minute * MINUTE;
        let doing = |_, _| Doing { later: level.exp(), ..USUAL };
        let events = world.run(&mut engine, (from, from + MINUTE), &doing);
        found += kinds(&events).iter().filter(|kind| **kind == Kind::FirstByte).count();
    }
    assert_eq!(found, 0);
}

#[test]
fn a_new_pod_knows_when_answers_begin_and_a_rollout_says_so() {
    let (mut world, engine) = learnt(1);
    let kept = State::decode(&engine.state().encode()).unwrap();
    let late = |place, _| if place == 2 { Doing { later: 3.0, ..USUAL } } else { USUAL };
    let mut young = Engine::from_state(Limits::default(), LEARNT, &kept);
    let events = world.run(&mut young, (LEARNT, LEARNT + 5 * MINUTE), &late);
    assert_eq!(kinds(&events), [Kind::FirstByte], "{events:?}");
    let mut fresh = Engine::new(Limits::default(), LEARNT);
    fresh.compare_with(kept);
    let events = world.run(&mut fresh, (LEARNT, LEARNT + 40 * MINUTE), &late);
    let [Event::RolledOut { differences, .. }] = &events[..] else { panic!("{events:?}") };
    let found: Vec<_> = differences.iter().map(|one| (one.kind, one.edge.clone())).collect();
    assert_eq!(found, [(Kind::FirstByte, edge("orders", false))]);
}

#[test]
fn a_rare_request_is_not_judged_by_one_answer() {
    let (mut world, mut engine) = (World::new(5), Engine::new(Limits::default(), MIDNIGHT));
    world.edges.push((edge("hourly", false), 0.07, 3000.0));
    let start = MIDNIGHT + 120 * MINUTE;
    assert_eq!(world.run(&mut engine, (MIDNIGHT, start), &|_, _| USUAL), []);
    for hour in 0..40 {
        // About one answer of the hour begins very late.
        let from = start + hour * 60 * MINUTE;
        let doing = |place, at| {
            let odd = place == 5 && at < from + 15_000;
            if odd { Doing { later: 20.0, ..USUAL } } else { USUAL }
        };
        let events = world.run(&mut engine, (from, from + 60 * MINUTE), &doing);
        assert_eq!(kinds(&events), [], "{events:?}");
    }
}

#[test]
fn bytes_of_a_busy_edge_are_found_before_they_are_learnt() {
    let (mut world, mut engine) = (World::new(1), Engine::new(Limits::default(), MIDNIGHT));
    world.edges.push((edge("bulk", false), 500.0, 2000.0));
    let start = MIDNIGHT + 40 * MINUTE;
    assert_eq!(world.run(&mut engine, (MIDNIGHT, start), &|_, _| USUAL), []);
    let more = |place, _| if place == 5 { Doing { bytes: 10.0, ..USUAL } } else { USUAL };
    let events = world.run(&mut engine, (start, start + 2 * MINUTE), &more);
    assert_eq!(kinds(&events), [Kind::BytesOut], "{events:?}");
}
