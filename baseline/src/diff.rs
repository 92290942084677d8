//! What one baseline does otherwise than another: for rollout reports and for people.
//!
//! Promises: what differs by less than an operator would act on, or by less than chance explains, is not listed.

use crate::{EdgeKey, Kind, State, state::EdgeState, stats::Mean};

/// Durations and bytes are listed from this factor on.
const FACTOR: f64 = 1.25;
/// Deviations from no difference, in units of their standard error, that chance does not explain.
const SURE: f64 = 4.5;
/// Records that both must have.
const RECORDS: f32 = 200.0;

/// One thing that differs.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// On which edge.
    pub edge: EdgeKey,
    /// What differs: of a new or vanished peer, a latency, errors or bytes.
    pub kind: Kind,
    /// What it was, in [`Kind::unit`].
    pub before: f64,
    /// What it is.
    pub after: f64,
}

impl State {
    /// What `self` becomes in `after`: new and vanished edges, median and 99th percentile, time to the first
    /// byte, errors, bytes. Rates depend on how
    /// many pods share them and are not compared.
    pub fn diff(&self, after: &Self) -> Vec<Difference> {
        let mut differences = Vec::new();
        for (key, new) in &after.edges {
            match self.edges.get(key) {
                Some(old) => compare(key, old, new, &mut differences),
                None => differences.push(difference(key, Kind::NewPeer, 0.0, 1.0)),
            }
        }
        let gone = self.edges.iter().filter(|(key, old)| old.learnt && !after.edges.contains_key(*key));
        differences.extend(gone.map(|(key, _)| difference(key, Kind::VanishedPeer, 1.0, 0.0)));
        differences
    }
}

fn difference(edge: &EdgeKey, kind: Kind, before: f64, after: f64) -> Difference {
    Difference { edge: edge.clone(), kind, before, after }
}

fn compare(key: &EdgeKey, old: &EdgeState, new: &EdgeState, differences: &mut Vec<Difference>) {
    let mut add = |kind, before: f64, after: f64| differences.push(difference(key, kind, before, after));
    if old.records < RECORDS || new.records < RECORDS {
        return;
    }
    for (q, kind, factor) in [(0.5, Kind::Latency, FACTOR), (0.99, Kind::LatencyTail, 2.0 * FACTOR)] {
        if let (Some(before), Some(after)) = (old.latency.quantile(q), new.latency.quantile(q))
            && (after / before).ln().abs() > f64::ln(factor)
        {
            add(kind, before / 1e6, after / 1e6);
        }
    }
    let (n, m) = (f64::from(old.records), f64::from(new.records));
    let level = |state: &EdgeState| (state.first_byte_level[0], state.first_byte_level[1]);
    let (old_level, new_level) = (level(old), level(new));
    if old_level.0.weight >= RECORDS && new_level.0.weight >= RECORDS && differs(old_level, new_level, (n, m)) {
        let seconds = |mean: f32| f64::from(mean.exp()) / 1e6;
        add(Kind::FirstByte, seconds(old_level.0.value), seconds(new_level.0.value));
    }
    let (before, after) = (f64::from(old.errors) / n, f64::from(new.errors) / m);
    let both = (f64::from(old.errors + new.errors) + 1.0) / (n + m);
    if (after - before).abs() > SURE * (both * (1.0 - both).max(0.0) * (1.0 / n + 1.0 / m)).sqrt() {
        add(Kind::Errors, before, after);
    }
    for (kind, at) in [(Kind::BytesIn, 0), (Kind::BytesOut, 2)] {
        let (before, after) = ((old.bytes[at], old.bytes[at + 1]), (new.bytes[at], new.bytes[at + 1]));
        if differs(before, after, (n, m)) {
            add(kind, f64::from(old.bytes[at].value.exp()), f64::from(new.bytes[at].value.exp()));
        }
    }
}

/// Whether means of logarithms, each with its variance, differ by more than an operator would not act on.
fn differs(old: (Mean, Mean), new: (Mean, Mean), (n, m): (f64, f64)) -> bool {
    let change = f64::from(new.0.value - old.0.value);
    let spread = f64::from(old.1.value.max(new.1.value).max(0.0));
    change.abs() > f64::ln(FACTOR) + SURE * (spread * (1.0 / n + 1.0 / m)).sqrt()
}
