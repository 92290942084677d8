//! The authority's numbers: the catalogue, and how it is written out.

use std::sync::atomic::Ordering::Relaxed;

use telemetry::metrics::{Exposition, Kind, Metric};

use crate::followers::Followers;
use crate::journal::Journal;
use crate::refusal::Reason;
use crate::state::{Seconds, State};

const fn gauge(name: &'static str, unit: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, unit, labels: &[], help }
}

const ISSUED: Metric = Metric {
    name: "picket_ca_certificates_issued_total",
    kind: Kind::Counter,
    unit: "{certificate}",
    labels: &[],
    help: "Certificates issued to workloads.",
};
const REFUSED: Metric = Metric {
    name: "picket_ca_certificates_refused_total",
    kind: Kind::Counter,
    unit: "{request}",
    labels: &["reason"],
    help: "Calls that were refused, by reason.",
};
const ISSUER_LEFT: Metric =
    gauge("picket_ca_issuer_remaining_seconds", "s", "Time until the issuer that signs ends; 0 when it has.");
const ROOT_LEFT: Metric =
    gauge("picket_ca_root_remaining_seconds", "s", "Time until the root that signs ends; 0 when it has.");
const GENERATION: Metric = gauge("picket_ca_trust_generation", "{generation}", "Generation of the trust bundle.");
const CONNECTED: Metric =
    gauge("picket_ca_proxies_connected", "{proxy}", "Proxies that follow the trust bundle at this process.");
const BEHIND: Metric = gauge("picket_ca_proxies_behind", "{proxy}", "Of these, those that do not use its generation.");
const STREAMS_LIMIT: Metric =
    gauge("picket_ca_streams_limit", "{stream}", "Proxies that may follow the trust bundle at this process.");
const ROTATING: Metric = gauge(
    "picket_ca_root_rotation_stage_seconds",
    "s",
    "How long the root rotation has been in its stage; 0 when there is none.",
);
const LAST_ROTATION: Metric = gauge(
    "picket_ca_last_rotation_timestamp_seconds",
    "s",
    "When the last rotation ended, in seconds since 1970; 0 when none has.",
);
const DENIED: Metric = gauge("picket_ca_denials", "{denial}", "Entries of the deny list.");
const LEADS: Metric = gauge("picket_ca_leader", "1", "1 for the process that rotates, 0 for the others.");

/// Every metric, in the order of the documented table.
pub const CATALOGUE: &[Metric] = &[
    ISSUED,
    REFUSED,
    ISSUER_LEFT,
    ROOT_LEFT,
    GENERATION,
    CONNECTED,
    BEHIND,
    STREAMS_LIMIT,
    ROTATING,
    LAST_ROTATION,
    DENIED,
    LEADS,
];

/// What the numbers are made of.
pub struct Numbers<'a> {
    /// The state in use.
    pub state: &'a State,
    /// Who follows here.
    pub followers: &'a Followers,
    /// The counts.
    pub journal: &'a Journal,
    /// How many may follow.
    pub streams_max: usize,
    /// Whether this process leads.
    pub leads: bool,
    /// The time.
    pub now: Seconds,
}

/// Appends them to `out`.
pub fn write(out: &mut String, numbers: &Numbers<'_>) {
    let (state, now) = (numbers.state, numbers.now);
    let positive = |seconds: Seconds| u64::try_from(seconds).unwrap_or(0);
    let left = |end: Seconds| positive(end.saturating_sub(now));
    let (connected, behind) = numbers.followers.counts(state.generation);
    let rotating = state.rotation.as_ref().map_or(0, |rotation| positive(now.saturating_sub(rotation.since)));
    let last = state.last_rotation.map_or(0, |ended| positive(ended.at));
    let mut text = Exposition::new(out);
    text.family(&ISSUED).sample(&[], numbers.journal.counters.issued.load(Relaxed));
    let mut refused = text.family(&REFUSED);
    for reason in Reason::ALL {
        refused.sample(&[reason.as_str()], numbers.journal.counters.refused(*reason));
    }
    let gauges = [
        (&ISSUER_LEFT, left(state.signing().not_after)),
        (&ROOT_LEFT, left(state.signing_root().not_after)),
        (&GENERATION, state.generation),
        (&CONNECTED, connected as u64),
        (&BEHIND, behind as u64),
        (&STREAMS_LIMIT, numbers.streams_max as u64),
        (&ROTATING, rotating),
        (&LAST_ROTATION, last),
        (&DENIED, state.denied.len() as u64),
        (&LEADS, u64::from(numbers.leads)),
    ];
    for (metric, number) in gauges {
        text.family(metric).sample(&[], number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::state;

    #[test]
    fn the_catalogue_is_good_and_all_of_it_is_written() {
        telemetry::metrics::check(CATALOGUE).unwrap();
        let (followers, journal) = (Followers::new(9, || 0), Journal::new(None));
        let mut state = state();
        state.generation = 7;
        let numbers = Numbers {
            state: &state,
            followers: &followers,
            journal: &journal,
            streams_max: 5,
            leads: true,
            now: 9_000,
        };
        let mut out = String::new();
        write(&mut out, &numbers);
        for metric in CATALOGUE {
            assert!(out.contains(&format!("# TYPE {} ", metric.name)), "{}", metric.name);
        }
        for line in ["picket_ca_issuer_remaining_seconds 1000", "picket_ca_trust_generation 7", "picket_ca_leader 1"] {
            assert!(out.lines().any(|found| found == line), "{line}\n{out}");
        }
    }

    #[test]
    fn the_documented_table_is_fresh() {
        let page = include_str!("../../docs/reference/metrics-ca.md");
        let table = telemetry::metrics::table(CATALOGUE);
        assert!(page.contains(&table), "docs/reference/metrics-ca.md must hold:\n{table}");
    }
}
