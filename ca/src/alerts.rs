//! Operational trouble: what is wrong now, told once when it begins and once when it ends.
//!
//! Promises: [`of_state`] is a function of the state, what a rotation waits for, and the time; a condition that lasts is
//! told once, however often it is found. Leaves to others: the record and the line (`journal`).

use std::collections::BTreeMap;

use crate::issue::utc;
use crate::journal::{Alert, Journal};
use crate::lifecycle::{self, Rules, Wait};
use crate::pki;
use crate::state::{Seconds, State};

/// Somebody should look at a certificate that ends within this, or within a quarter of its life if that is shorter.
const ENDING: Seconds = 30 * 86400;
/// Proxies that are named in a detail; the rest is a number.
const NAMED_MAX: usize = 5;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What it is about.
    pub alert: Alert,
    /// Which one.
    pub subject: String,
    /// What there is to know.
    pub detail: String,
}

/// What was told and has not ended.
#[derive(Debug, Default)]
pub struct Alerts {
    firing: BTreeMap<(Alert, String), String>,
}

impl Alerts {
    /// Tells what is new in `conditions`, and what of before is not in them any more.
    pub fn update(&mut self, conditions: Vec<Condition>, journal: &Journal) {
        let found = conditions.into_iter().map(|found| ((found.alert, found.subject), found.detail));
        let found: BTreeMap<_, _> = found.collect();
        for ((alert, subject), detail) in &found {
            if !self.firing.contains_key(&(*alert, subject.clone())) {
                journal.alert(*alert, subject, true, detail, &[]);
            }
        }
        for ((alert, subject), detail) in &self.firing {
            if !found.contains_key(&(*alert, subject.clone())) {
                journal.alert(*alert, subject, false, detail, &[]);
            }
        }
        self.firing = found;
    }
}

/// A time for people.
pub fn time(at: Seconds) -> String {
    pki::at(at).map_or_else(|_| at.to_string(), utc)
}

/// What is wrong with the state at `now`.
pub fn of_state(state: &State, waits: &[Wait<'_>], rules: &Rules, now: Seconds) -> Vec<Condition> {
    let mut conditions = Vec::new();
    let (issuer, root) = (state.signing(), state.signing_root());
    let issuer_life = (issuer.created, issuer.not_after);
    conditions.extend(ending(Alert::IssuerEnding, format!("issuer {}", issuer.id), issuer_life, now));
    let root_life = (root.not_before, root.not_after);
    conditions.extend(ending(Alert::RootEnding, format!("root {}", root.id), root_life, now));
    for dropped in state.dropped.iter().filter(|dropped| now < dropped.leaves_end) {
        let detail = format!(
            "an operator dropped {}; certificates under it, which nobody accepts, end by {}",
            dropped.sha256,
            time(dropped.leaves_end)
        );
        conditions.push(Condition { alert: Alert::RootDropped, subject: format!("root {}", dropped.root), detail });
    }
    if let Some(rotation) = &state.rotation
        && lifecycle::is_stuck(state, rules, now)
    {
        let (stage, since) = (rotation.stage.as_str(), time(rotation.since));
        let waiting: Vec<String> = waits.iter().take(NAMED_MAX).map(describe).collect();
        let more = waits.len().saturating_sub(NAMED_MAX);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        let detail = format!("in stage {stage} since {since}: {}{more}", waiting.join("; "));
        let subject = format!("root {} to root {}, stage {stage}", rotation.from, rotation.to);
        conditions.push(Condition { alert: Alert::RotationStuck, subject, detail });
    }
    conditions
}

fn ending(alert: Alert, subject: String, life: (Seconds, Seconds), now: Seconds) -> Option<Condition> {
    let (begin, end) = life;
    let quarter = end.saturating_sub(begin) / 4;
    let left = end.saturating_sub(now);
    (left < ENDING.min(quarter)).then(|| {
        let word = if left > 0 { "ends" } else { "ended" };
        let detail = format!("{subject} {word} {}, this machine's clock says {}", time(end), time(now));
        Condition { alert, subject, detail }
    })
}

/// What a stage waits for, as a sentence.
pub fn describe(wait: &Wait<'_>) -> String {
    match wait {
        Wait::Return { until } => {
            format!("proxies may come back until {}, after a start of the authority", time(*until))
        }
        Wait::Acknowledgement { proxy, generation, since } => {
            let (name, uses, since) = (&proxy.name, proxy.generation, time(*since));
            let away = away(proxy.connected, proxy.last_seen);
            let why = if proxy.refused.is_empty() { String::new() } else { format!(", refuses it: {}", proxy.refused) };
            format!("{name} uses generation {uses} and not {generation}, since {since}{away}{why}")
        }
        Wait::Renewal { proxy, since } => {
            let (name, since) = (&proxy.name, time(*since));
            let away = away(proxy.connected, proxy.last_seen);
            let shows = match proxy.issuer {
                Some(_) => "shows a certificate under the old root",
                None => "shows no certificate",
            };
            format!("{name} {shows}, since {since}{away}")
        }
        Wait::Leaves { until } => format!("the last certificate under the old root ends {}", time(*until)),
    }
}

fn away(connected: bool, last_seen: Seconds) -> String {
    if connected { String::new() } else { format!(", away since {}", time(last_seen)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::{Proxy, View, begin, waits};
    use crate::test_support::{root, rules, state};

    fn names(conditions: &[Condition]) -> Vec<&'static str> {
        conditions.iter().map(|condition| condition.alert.as_str()).collect()
    }

    #[test]
    fn an_end_is_told_in_time_with_both_clocks() {
        let state = state();
        let at = |now| of_state(&state, &[], &rules(), now);
        assert!(at(7_500).is_empty());
        assert_eq!(names(&at(7_501)), ["issuer_ending"]);
        assert_eq!(names(&at(75_001)), ["issuer_ending", "root_ending"]);
        let ended = &at(100_001)[1];
        let detail = "root 1 ended 1970-01-02T03:46:40Z, this machine's clock says 1970-01-02T03:46:41Z";
        assert_eq!(ended.detail, detail);
    }

    #[test]
    fn a_stuck_rotation_names_who_is_behind() {
        let state = begin(&state(), root(3, 100_000), None, 10).unwrap();
        let proxy = |number: u32| Proxy {
            name: format!("spiffe://td/ns/a/sa/b (pod web-{number})"),
            connected: number > 0,
            first_seen: 0,
            last_seen: 5,
            generation: 1,
            refused: if number == 1 { "too many roots".into() } else { String::new() },
            issuer: None,
            not_after: 5000,
        };
        let proxies: Vec<_> = (0..7).map(proxy).collect();
        let rules = Rules { absence_window: 5000, ..rules() };
        let view = View { proxies: &proxies, observing_since: -5000 };
        let waits = waits(&state, &view, &rules, 1_500);
        assert!(of_state(&state, &waits, &rules, 900).is_empty());
        let conditions = of_state(&state, &waits, &rules, 1_500);
        assert_eq!(names(&conditions), ["rotation_stuck"]);
        let detail = &conditions[0].detail;
        let away =
            "(pod web-0) uses generation 1 and not 2, since 1970-01-01T00:00:10Z, away since 1970-01-01T00:00:05Z";
        for part in [away, "refuses it: too many roots", "; and 2 more"] {
            assert!(detail.contains(part), "{part}: {detail}");
        }
    }

    #[test]
    fn a_root_that_was_dropped_is_told_for_as_long_as_its_leaves_live() {
        let state = begin(&state(), root(3, 100_000), None, 10).unwrap();
        let state = lifecycle::sign(&state, crate::test_support::issuer(4, 3, 20, 10_000, 100), 20).unwrap();
        let old = state.roots[0].sha256;
        let dropped = lifecycle::drop_root(&state, &old, None, 30).unwrap();
        let end = 20 + 100 + lifecycle::LEASE;
        let with_another_issuer =
            lifecycle::replace_issuer(&dropped, crate::test_support::issuer(5, 3, 40, 10_000, 100), 40);
        for state in [&dropped, &with_another_issuer, &lifecycle::forget(&with_another_issuer, end - 1)] {
            let conditions = of_state(state, &[], &rules(), end - 1);
            assert_eq!(names(&conditions), ["root_dropped"]);
            assert!(conditions[0].subject == "root 1" && conditions[0].detail.contains(&old.to_string()));
            assert!(of_state(state, &[], &rules(), end).is_empty());
        }
    }

    #[test]
    fn what_lasts_is_told_once() {
        let (sender, mut receiver) = export::queue(1 << 20);
        let (journal, mut alerts) = (Journal::new(Some(sender)), Alerts::default());
        let condition =
            |detail: &str| Condition { alert: Alert::KeySetRefused, subject: String::new(), detail: detail.into() };
        let mut told = |conditions| {
            alerts.update(conditions, &journal);
            std::iter::from_fn(|| receiver.try_recv()).count()
        };
        assert_eq!(told(vec![condition("a")]), 1);
        assert_eq!(told(vec![condition("a, a moment later")]), 0);
        assert_eq!(told(Vec::new()), 1);
        assert_eq!(told(Vec::new()), 0);
    }
}
