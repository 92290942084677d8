//! The promises of `lifecycle`: each rule by itself, and all of them over random histories of a small mesh.

use proptest::prelude::*;

use crate::lifecycle::{
    self, LEASE, Proxy, Refusal, Rollback, Rules, SETTLE, Step, View, Wait, begin, deny, drop_old, drop_root, forget,
    is_stuck, next, override_stage, raise_longest_leaf, replace_issuer, rollback, serving, sign, turn_back, undeny,
    undo, waits,
};
use crate::state::{Dropped, Outcome, RootUse, Seconds, Sha256, Stage, State, Subject};
use crate::test_support::{digest, issuer, root, rules, state};

const LEAF: Seconds = 100;
const WINDOW: Seconds = 30;

fn proxy(name: &str, generation: u64, shows: u32) -> Proxy {
    Proxy {
        name: name.into(),
        connected: true,
        first_seen: 0,
        last_seen: 0,
        generation,
        refused: String::new(),
        issuer: Some(digest(shows)),
        not_after: 90,
    }
}

fn view(proxies: &[Proxy]) -> View<'_> {
    View { proxies, observing_since: -2 * WINDOW }
}

/// Root 3 has joined at 10; root 1 and issuer 2 sign.
fn distributing() -> State {
    begin(&state(), root(3, 100_000), None, 10).unwrap()
}

/// Root 3 signs by issuer 4 since 20.
fn signing() -> State {
    sign(&distributing(), issuer(4, 3, 20, 10_000, LEAF), 20).unwrap()
}

#[test]
fn nothing_is_due_in_a_quiet_life() {
    assert_eq!(next(&state(), &view(&[]), &rules(), 100), None);
    assert_eq!(waits(&state(), &view(&[]), &rules(), 100), []);
}

#[test]
fn distribution_waits_for_every_live_proxy_by_name() {
    let state = distributing();
    assert_eq!(state.generation, 2);
    let good = proxy("good", 2, 2);
    assert_eq!(next(&state, &view(std::slice::from_ref(&good)), &rules(), 11), Some(Step::Sign));
    let behind = proxy("behind", 1, 2);
    let away = Proxy { connected: false, last_seen: 5, ..proxy("away", 1, 2) };
    let boast = proxy("boast", 3, 2);
    for slow in [&behind, &away, &boast] {
        let proxies = [good.clone(), slow.clone()];
        let waiting = waits(&state, &view(&proxies), &rules(), 11);
        assert_eq!(waiting, [Wait::Acknowledgement { proxy: slow, generation: 2, since: 10 }]);
    }
    // Away for longer than the window, or with a certificate that has ended: it does not hold the others up.
    let long_away = Proxy { last_seen: 5, ..away.clone() };
    assert_eq!(next(&state, &view(&[long_away]), &rules(), 5 + WINDOW + 1), Some(Step::Sign));
    let ended = Proxy { not_after: 11, ..away };
    assert_eq!(next(&state, &view(&[ended]), &rules(), 11), Some(Step::Sign));
}

#[test]
fn after_a_start_the_proxies_get_time_to_come_back() {
    let late = View { proxies: &[], observing_since: 15 };
    assert_eq!(waits(&distributing(), &late, &rules(), 20), [Wait::Return { until: 15 + WINDOW }]);
    assert_eq!(next(&distributing(), &late, &rules(), 15 + WINDOW + 1), Some(Step::Sign));
    let overridden = override_stage(&distributing()).unwrap();
    assert_eq!(next(&overridden, &late, &rules(), 20), Some(Step::Sign));
    assert_eq!(overridden.generation, 2, "proxies do not hear of it");
}

#[test]
fn signing_waits_for_certificates_and_for_the_last_old_leaf() {
    let state = signing();
    assert_eq!((state.generation, state.signing().id, state.signing_root().id), (3, 4, 3));
    let end = 20 + LEAF + LEASE;
    let renewed = [proxy("renewed", 3, 4)];
    assert_eq!(waits(&state, &view(&renewed), &rules(), 50), [Wait::Leaves { until: end }]);
    assert_eq!(next(&state, &view(&renewed), &rules(), end + SETTLE - 1), None);
    assert_eq!(next(&state, &view(&renewed), &rules(), end + SETTLE), Some(Step::Drop));
    let old = [proxy("old", 3, 2)];
    assert_eq!(next(&state, &view(&old), &rules(), end + SETTLE), Some(Step::Forget), "issuer 2 has no leaves");
    let waiting = waits(&state, &view(&old), &rules(), end + SETTLE);
    assert_eq!(waiting, [Wait::Renewal { proxy: &old[0], since: 20 }]);
    let overridden = override_stage(&state).unwrap();
    assert_eq!(
        waits(&overridden, &view(&old), &rules(), 50),
        [Wait::Leaves { until: end }],
        "leaves are not overridden"
    );
    let dropped = drop_old(&state, end + SETTLE).unwrap();
    assert_eq!((dropped.roots.len(), dropped.issuers.len(), dropped.rotation.is_none()), (1, 1, true));
    assert_eq!(dropped.last_rotation.unwrap().outcome, Outcome::RootRotated);
    dropped.check().unwrap();
}

#[test]
fn a_longer_leaf_granted_earlier_is_waited_for() {
    let state = raise_longest_leaf(&distributing(), 5000);
    let state = sign(&state, issuer(4, 3, 20, 10_000, LEAF), 20).unwrap();
    assert_eq!(waits(&state, &view(&[]), &rules(), 200), [Wait::Leaves { until: 20 + 5000 + LEASE }]);
    assert_eq!(raise_longest_leaf(&state, 5).signing().longest_leaf, LEAF, "never lowered");
}

#[test]
fn our_serving_certificate_is_one_that_the_furthest_behind_trusts() {
    let state = signing();
    let end = 20 + LEAF + LEASE;
    assert_eq!(serving(&distributing(), 15).id, 2);
    assert_eq!(serving(&state, end - 1).id, 2);
    assert_eq!(serving(&state, end).id, 4, "before the drop");
    let back = turn_back(&state, issuer(5, 1, 30, 10_000, LEAF), 30).unwrap();
    assert_eq!(serving(&back, 31).id, 5);
}

#[test]
fn an_issuer_that_is_denied_signs_nothing_for_us_either() {
    let mut first = state();
    let (_, key, id) = crate::test_support::serving();
    assert_eq!(id.trust_domain().as_str(), first.trust_domain);
    let pem = pem::encode(&pem::Pem::new("CERTIFICATE", key.cert[1].to_vec()));
    let key = crate::pki::key_of("the issuer", &pem).unwrap();
    first.issuers[0].chain = vec![pem];
    // Its leaves may live longer than those of the issuer that followed it.
    first.issuers[0].longest_leaf = 5 * LEAF;
    let replaced = replace_issuer(&first, issuer(3, 1, 10, 10_000, LEAF), 10);
    let denied = deny(&replaced, Subject::Key(key), "stolen".into(), 11).unwrap();
    let rotated = |state| sign(&begin(&state, root(4, 100_000), None, 12).unwrap(), issuer(5, 4, 20, 10_000, LEAF), 20);
    let (replaced, denied) = (rotated(replaced).unwrap(), rotated(denied).unwrap());
    let end = 20 + LEAF + LEASE;
    assert_eq!((serving(&denied, end - 1).id, serving(&replaced, end).id), (3, 2));
    assert_eq!(serving(&denied, end).id, 5);
}

#[test]
fn a_rollback_undoes_or_turns_round() {
    let state = distributing();
    assert_eq!(rollback(&state, 20), Ok(Rollback::Undo));
    let undone = undo(&state, 20).unwrap();
    assert_eq!((undone.generation, undone.roots.len(), undone.next_id), (3, 1, 4), "ids are not used again");
    assert_eq!(undone.last_rotation.unwrap().outcome, Outcome::RootRolledBack);

    let state = signing();
    assert_eq!(rollback(&state, 30), Ok(Rollback::TurnBack(1)));
    assert_eq!(undo(&state, 30), Err(Refusal::UnderWay(Stage::Sign)));
    let back = turn_back(&state, issuer(5, 1, 30, 10_000, LEAF), 30).unwrap();
    back.check().unwrap();
    assert_eq!((back.signing_root().id, back.root(3).unwrap().r#use), (1, RootUse::Old));
    let waiting = waits(&back, &view(&[]), &rules(), 31);
    assert_eq!(waiting, [Wait::Leaves { until: 30 + LEAF + LEASE }], "leaves of the new root");
    let dropped = drop_old(&back, 200).unwrap();
    assert_eq!((dropped.roots[0].id, dropped.last_rotation.unwrap().outcome), (1, Outcome::RootRolledBack));
    assert_eq!(rollback(&dropped, 200), Err(Refusal::NotUnderWay));

    let mut keyless = signing();
    keyless.roots[0].key_file = None;
    assert_eq!(rollback(&keyless, 30), Err(Refusal::NoKey(1)));
    assert_eq!(rollback(&signing(), 100_000), Err(Refusal::RootEnded(1)));
}

#[test]
fn a_root_is_dropped_before_its_time_but_never_the_one_that_signs() {
    let state = signing();
    let [old, new] = [0, 1].map(|root| state.roots[root].sha256);
    assert_eq!(drop_root(&state, &new, None, 30), Err(Refusal::RootSigns(3)));
    assert_eq!(drop_root(&state, &Sha256([7; 32]), None, 30), Err(Refusal::UnknownRoot));
    let dropped = drop_root(&state, &old, Some(digest(9)), 30).unwrap();
    dropped.check().unwrap();
    assert_eq!((dropped.roots.len(), dropped.issuers.len(), dropped.rotation.is_none()), (1, 1, true));
    assert_eq!((dropped.signing().id, dropped.generation), (4, state.generation + 1));
    assert_eq!(serving(&dropped, 31).id, 4, "nobody accepts the old one");
    let end = 20 + LEAF + LEASE;
    let expected = Dropped { root: 1, sha256: old, leaves_end: end };
    assert_eq!((dropped.last_rotation.unwrap().outcome, &dropped.dropped[..]), (Outcome::RootDropped, &[expected][..]));
    assert_eq!(next(&dropped, &view(&[]), &rules(), end - 1), None);
    assert_eq!(next(&dropped, &view(&[]), &rules(), end), Some(Step::Forget));
    let later = forget(&dropped, end);
    assert!(later.dropped.is_empty());
    for state in [&dropped, &later] {
        assert!(state.denies(&Subject::Key(digest(9))).is_some(), "for proxies that come back late");
    }
    let denied = deny(&state, Subject::Key(digest(9)), "stolen".into(), 25).unwrap();
    assert_eq!(drop_root(&denied, &old, Some(digest(9)), 30).unwrap().denied.len(), 1, "once");
    assert!(drop_root(&state, &old, None, 30).unwrap().denied.is_empty(), "another root has its key");
    assert_eq!(drop_root(&dropped, &old, None, 31), Err(Refusal::UnknownRoot));

    // A root that has signed nothing is taken out as by a rollback.
    let mut brought = issuer(4, 3, 10, 10_000, LEAF);
    brought.brought = true;
    let state = begin(&self::state(), root(3, 100_000), Some(brought), 10).unwrap();
    assert_eq!(drop_root(&state, &state.roots[0].sha256, None, 20), Err(Refusal::RootSigns(1)));
    let dropped = drop_root(&state, &state.roots[1].sha256, None, 20).unwrap();
    dropped.check().unwrap();
    assert_eq!((dropped.signing().id, dropped.roots.len(), dropped.declined), (2, 1, Some(digest(4))));
}

#[test]
fn what_an_operator_rolled_back_is_remembered() {
    let mut brought = issuer(4, 3, 10, 10_000, LEAF);
    brought.brought = true;
    let state = begin(&state(), root(3, 100_000), Some(brought.clone()), 10).unwrap();
    assert_eq!(undo(&state, 20).unwrap().declined, Some(digest(4)));
    let state = sign(&state, brought, 20).unwrap();
    assert_eq!(turn_back(&state, issuer(5, 1, 30, 10_000, LEAF), 30).unwrap().declined, Some(digest(4)));
}

#[test]
fn one_rotation_at_a_time() {
    let another = begin(&distributing(), root(9, 100_000), None, 11);
    assert_eq!(another, Err(Refusal::UnderWay(Stage::Distribute)));
    assert_eq!(sign(&state(), issuer(9, 1, 0, 1, 1), 0), Err(Refusal::NotUnderWay));
    assert_eq!(sign(&signing(), issuer(9, 1, 0, 1, 1), 0), Err(Refusal::UnderWay(Stage::Sign)));
    assert_eq!(drop_old(&distributing(), 0), Err(Refusal::UnderWay(Stage::Distribute)));
    assert_eq!(drop_old(&state(), 0), Err(Refusal::NotUnderWay));
    assert_eq!(override_stage(&state()), Err(Refusal::NotUnderWay));
    assert_eq!(turn_back(&distributing(), issuer(9, 1, 0, 1, 1), 0), Err(Refusal::UnderWay(Stage::Distribute)));
}

#[test]
fn issuers_and_roots_are_replaced_by_themselves() {
    let (state, none) = (state(), view(&[]));
    assert_eq!(next(&state, &none, &rules(), 5_999), None);
    assert_eq!(next(&state, &none, &rules(), 6_000), Some(Step::ReplaceIssuer));
    assert_eq!(next(&state, &none, &rules(), 50_000), Some(Step::ReplaceIssuer), "an ended one as well");
    let replaced = replace_issuer(&state, issuer(3, 1, 6_000, 16_000, LEAF), 6_000);
    assert_eq!((replaced.signing().id, replaced.generation), (3, 2));
    assert_eq!(replaced.issuers[0].leaves_end, Some(6_000 + LEAF + LEASE));
    assert_eq!(next(&replaced, &none, &rules(), 6_000 + LEAF + LEASE + SETTLE), Some(Step::Forget));
    assert_eq!(forget(&replaced, 6_000 + LEAF + LEASE + SETTLE).issuers.len(), 1);

    assert_eq!(next(&state, &none, &rules(), 80_001), Some(Step::BeginRoot));
    let mut late = state.clone();
    late.issuers[0].not_after = 100_000;
    // The root's end has come: that is for a person to judge, and a new issuer would be of no use.
    assert_eq!(next(&late, &none, &rules(), 100_001), None);
    let brought = Rules { brought: true, ..rules() };
    assert_eq!(next(&state, &none, &brought, 80_001), None);
    // An issuer that lives as long as its root cannot be followed by a better one.
    let pinned = begin(&late, root(3, 200_000), None, 90_000).unwrap();
    let behind = [proxy("behind", 1, 2)];
    assert_eq!(next(&pinned, &view(&behind), &rules(), 99_000), None);
}

#[test]
fn a_stage_that_takes_too_long_is_stuck() {
    assert!(!is_stuck(&state(), &rules(), 1_000_000));
    assert!(!is_stuck(&distributing(), &rules(), 1_010));
    assert!(is_stuck(&distributing(), &rules(), 1_011));
    let end = 20 + LEAF + LEASE;
    assert!(!is_stuck(&signing(), &rules(), end + 1_000));
    assert!(is_stuck(&signing(), &rules(), end + 1_001));
}

#[test]
fn denials_come_and_go_and_each_is_a_generation() {
    let serial = Subject::Serial("ab".into());
    let denied = deny(&state(), serial.clone(), "stolen".into(), 50).unwrap();
    assert_eq!((denied.generation, denied.denied[0].until), (2, Some(50 + LEAF + LEASE)));
    assert_eq!(deny(&denied, serial.clone(), String::new(), 51), Err(Refusal::DeniedAlready));
    assert_eq!(next(&denied, &view(&[]), &rules(), 50 + LEAF + LEASE), Some(Step::Forget));
    let later = forget(&denied, 50 + LEAF + LEASE);
    assert_eq!((later.denied.len(), later.generation), (0, 3));
    let key = Subject::Key(Sha256([1; 32]));
    let denied = deny(&denied, key.clone(), String::new(), 50).unwrap();
    assert_eq!(forget(&denied, 1_000_000).denied.len(), 1, "a key is denied for good");
    let lifted = undeny(&denied, &key).unwrap();
    assert_eq!((lifted.denied.len(), lifted.generation), (1, 4));
    assert_eq!(undeny(&lifted, &key), Err(Refusal::NotDenied));
    let mut full = state();
    for number in 0..lifecycle::DENIED_MAX {
        full = deny(&full, Subject::PodUid(number.to_string()), String::new(), 0).unwrap();
    }
    assert_eq!(deny(&full, key, String::new(), 0), Err(Refusal::DenyListFull));
}

/// A proxy as it really is.
#[derive(Clone, Debug)]
struct Member {
    connected: bool,
    /// When it was connected last.
    seen: Seconds,
    trusts: Vec<u32>,
    generation: u64,
    shows: u32,
    under: u32,
    leaf_end: Seconds,
    /// False once the authority has lost what it knew of it.
    known: bool,
}

/// A mesh and its authority.
struct Mesh {
    now: Seconds,
    state: State,
    observing_since: Seconds,
    members: Vec<Member>,
    /// The issuer before the present one and when it was replaced: another process may not know yet.
    before: (u32, u32, Seconds),
    overridden: bool,
    /// Roots that were taken out before their time.
    dropped: Vec<u32>,
}

#[derive(Clone, Debug)]
enum Event {
    Wait(Seconds),
    Join,
    Connect(usize),
    Disconnect(usize),
    Deliver(usize),
    Renew(usize),
    RenewAtAProcessThatIsBehind(usize),
    RotateRoot,
    RotateIssuer,
    RollBack,
    Override,
    DropRoot(usize),
    Crash { forgets: usize },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let who = || 0..6usize;
    let event = prop_oneof![
        4 => (1..40i64).prop_map(Event::Wait),
        2 => Just(Event::Join),
        3 => who().prop_map(Event::Connect),
        2 => who().prop_map(Event::Disconnect),
        6 => who().prop_map(Event::Deliver),
        6 => who().prop_map(Event::Renew),
        2 => who().prop_map(Event::RenewAtAProcessThatIsBehind),
        3 => Just(Event::RotateRoot),
        1 => Just(Event::RotateIssuer),
        1 => Just(Event::RollBack),
        1 => Just(Event::Override),
        1 => (0..2usize).prop_map(Event::DropRoot),
        1 => who().prop_map(|forgets| Event::Crash { forgets }),
    ];
    proptest::collection::vec(event, 1..120)
}

impl Mesh {
    fn new() -> Self {
        let mut mesh = Self {
            now: 0,
            state: state(),
            observing_since: -2 * WINDOW,
            members: Vec::new(),
            before: (2, 1, 0),
            overridden: false,
            dropped: Vec::new(),
        };
        mesh.join();
        mesh.join();
        mesh
    }

    fn join(&mut self) {
        let trusts = self.state.roots.iter().map(|root| root.id).collect();
        let (shows, under) = (self.state.signing().id, self.state.signing().root);
        let (generation, leaf_end) = (self.state.generation, self.now + LEAF);
        let seen = self.now;
        self.members.push(Member { connected: true, seen, trusts, generation, shows, under, leaf_end, known: true });
    }

    fn deliver(&mut self, member: usize) {
        let Some(member) = self.members.get_mut(member).filter(|member| member.connected) else { return };
        member.trusts = self.state.roots.iter().map(|root| root.id).collect();
        member.generation = self.state.generation;
    }

    fn renew(&mut self, member: usize, shows: u32, under: u32) {
        let now = self.now;
        let member = self.members.get_mut(member).filter(|member| member.connected);
        // It does not take what its own bundle would refuse.
        if let Some(member) = member.filter(|member| member.trusts.contains(&under)) {
            (member.shows, member.under, member.leaf_end) = (shows, under, now + LEAF);
        }
    }

    fn event(&mut self, event: &Event) {
        let (now, id) = (self.now, self.state.next_id);
        match *event {
            Event::Wait(seconds) => {
                self.now += seconds;
                for member in self.members.iter_mut().filter(|member| member.connected) {
                    member.seen = self.now;
                }
            }
            Event::Join if self.members.len() < 6 => self.join(),
            Event::Join => {}
            Event::Connect(member) => {
                let Some(found) = self.members.get_mut(member) else { return };
                // Nobody waited for it: it takes the bundle before it asks for a certificate.
                let forgotten = now - found.seen > WINDOW || now >= found.leaf_end;
                (found.connected, found.known, found.seen) = (true, true, now);
                if forgotten {
                    self.deliver(member);
                }
            }
            Event::Disconnect(member) => {
                if let Some(member) = self.members.get_mut(member) {
                    member.connected = false;
                }
            }
            Event::Deliver(member) => self.deliver(member),
            Event::Renew(member) => self.renew(member, self.state.signing().id, self.state.signing().root),
            Event::RenewAtAProcessThatIsBehind(member) => {
                let (shows, under, until) = self.before;
                if now <= until + LEASE && self.state.root(under).is_some() {
                    self.renew(member, shows, under);
                }
            }
            Event::RotateRoot => {
                if let Ok(state) = begin(&self.state, root(id, 100_000), None, now) {
                    self.change(state);
                }
            }
            Event::RotateIssuer => self.change_issuer(),
            Event::RollBack => match rollback(&self.state, now) {
                Ok(Rollback::Undo) => self.change(undo(&self.state, now).unwrap()),
                Ok(Rollback::TurnBack(to)) => {
                    self.change(turn_back(&self.state, issuer(id, to, now, 100_000, LEAF), now).unwrap());
                }
                Err(refusal) => assert_eq!(refusal, Refusal::NotUnderWay),
            },
            Event::Override => {
                if let Ok(state) = override_stage(&self.state) {
                    self.overridden = true;
                    self.change(state);
                }
            }
            Event::DropRoot(number) => {
                let Some(root) = self.state.roots.get(number).cloned() else { return };
                match drop_root(&self.state, &root.sha256, Some(root.sha256), now) {
                    Ok(state) => {
                        // Who has not renewed, or has not got the new root, is left behind by it.
                        self.overridden = true;
                        self.dropped.push(root.id);
                        self.change(state);
                    }
                    Err(refusal) => assert_eq!(refusal, Refusal::RootSigns(self.state.signing_root().id)),
                }
            }
            Event::Crash { forgets } => {
                self.observing_since = now;
                for (number, member) in self.members.iter_mut().enumerate() {
                    member.connected = false;
                    member.known &= number != forgets;
                }
            }
        }
    }

    fn change_issuer(&mut self) {
        let (id, under) = (self.state.next_id, self.state.signing_root().id);
        self.change(replace_issuer(&self.state, issuer(id, under, self.now, 100_000, LEAF), self.now));
    }

    fn change(&mut self, state: State) {
        state.check().unwrap();
        let visible = |state: &State| {
            (state.roots.iter().map(|root| root.id).collect::<Vec<_>>(), state.signing().id, state.denied.clone())
        };
        if visible(&state) != visible(&self.state) {
            assert!(state.generation > self.state.generation, "proxies could not tell");
        }
        if state.signing().id != self.state.signing().id {
            self.before = (self.state.signing().id, self.state.signing().root, self.now);
        }
        assert_eq!(State::parse(&state.to_text().unwrap()).unwrap(), state, "a crash here loses nothing");
        self.state = state;
    }

    fn proxies(&self) -> Vec<Proxy> {
        let known = self.members.iter().enumerate().filter(|(_, member)| member.known);
        known
            .map(|(number, member)| Proxy {
                connected: member.connected,
                last_seen: member.seen,
                not_after: member.leaf_end,
                ..proxy(&number.to_string(), member.generation, member.shows)
            })
            .collect()
    }

    /// Does what is due, and says how much that was.
    fn run(&mut self) -> usize {
        for steps in 0..10 {
            let proxies = self.proxies();
            let view = View { proxies: &proxies, observing_since: self.observing_since };
            let id = self.state.next_id;
            let Some(step) = next(&self.state, &view, &rules(), self.now) else { return steps };
            match step {
                Step::BeginRoot => self.change(begin(&self.state, root(id, 100_000), None, self.now).unwrap()),
                Step::Sign => {
                    let to = self.state.rotation.as_ref().unwrap().to;
                    self.change(sign(&self.state, issuer(id, to, self.now, 100_000, LEAF), self.now).unwrap());
                }
                Step::Drop => self.change(drop_old(&self.state, self.now).unwrap()),
                Step::ReplaceIssuer => self.change_issuer(),
                Step::Forget => self.change(forget(&self.state, self.now)),
            }
        }
        panic!("the steps do not end");
    }

    fn is_live(&self, member: &Member) -> bool {
        member.connected || self.now - member.seen <= WINDOW
    }

    fn check(&self) {
        assert!(self.dropped.iter().all(|root| self.state.root(*root).is_none()), "what was dropped came back");
        let kept = |member: &&Member| self.now < member.leaf_end && !self.dropped.contains(&member.under);
        for member in self.members.iter().filter(kept) {
            assert!(self.state.root(member.under).is_some(), "a leaf is valid whose root is gone: {member:?}");
        }
        if self.overridden {
            return;
        }
        // Both sides of a handshake show a certificate.
        let live = || self.members.iter().filter(|member| self.is_live(member) && self.now < member.leaf_end);
        for member in live() {
            for other in live() {
                assert!(other.trusts.contains(&member.under), "{other:?} refuses {member:?} at {}", self.now);
            }
        }
        let serving = serving(&self.state, self.now).root;
        for member in self.members.iter().filter(|member| self.now < member.leaf_end) {
            assert!(member.trusts.contains(&serving), "{member:?} does not trust our own certificate at {}", self.now);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_history_breaks_a_handshake_or_gives_two_signing_roots(events in events()) {
        let mut mesh = Mesh::new();
        for event in &events {
            mesh.event(event);
            mesh.run();
            mesh.check();
        }
        // Whatever happened: once all proxies do their part, the rotation comes to its end.
        for _round in 0..3 {
            mesh.event(&Event::Wait(WINDOW + LEAF));
            for member in 0..mesh.members.len() {
                mesh.event(&Event::Connect(member));
            }
            for _turn in 0..4 {
                for member in 0..mesh.members.len() {
                    mesh.event(&Event::Deliver(member));
                    mesh.event(&Event::Renew(member));
                }
                mesh.run();
                mesh.check();
            }
        }
        prop_assert_eq!(mesh.state.roots.len(), 1);
        prop_assert!(mesh.state.rotation.is_none());
        let root = mesh.state.signing_root().id;
        prop_assert!(mesh.members.iter().all(|member| member.under == root));
    }
}
