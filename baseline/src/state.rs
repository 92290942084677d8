//! What was learnt, apart from an engine: to be kept over a restart, merged with that of siblings, compared with another.
//!
//! Promises: merging adds, so its order does not matter beyond rounding. What is seeded from a state tests at once. Leaves to
//! others: bytes (`codec`), files and names of templates.

use std::collections::BTreeMap;

use crate::{Channel, EdgeKey, Engine, Sketch, edge::Edge, first_byte::FIRST_BYTE_BINS, stats::Mean};

/// What a seeded mean weighs at most: enough to test against, little enough to be corrected within the hour.
const SEED_BLOCKS: f32 = 240.0;
/// The same of records.
const SEED_RECORDS: f32 = 5000.0;
/// Edges that a state holds at most.
pub const STATE_EDGES_MAX: usize = 65_536;

/// What was learnt.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// By edge.
    pub(crate) edges: BTreeMap<EdgeKey, EdgeState>,
    /// CPU and memory of the pod.
    pub(crate) gauges: [Channel; 2],
}

/// What was learnt about an edge; everything in it can be added.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EdgeState {
    pub(crate) latency: Sketch,
    pub(crate) wander: Mean,
    pub(crate) first_byte: [f32; FIRST_BYTE_BINS],
    /// Mean of the logarithm of the time to the first byte, and its variance.
    pub(crate) first_byte_level: [Mean; 2],
    pub(crate) errors: f32,
    pub(crate) records: f32,
    pub(crate) rate: Mean,
    pub(crate) dispersion: Mean,
    pub(crate) hours: [Mean; 24],
    pub(crate) bytes: [Mean; 4],
    pub(crate) mutual_tls: f32,
    pub(crate) pinned: bool,
    /// Whether it was learnt long enough to test against.
    pub(crate) learnt: bool,
}

impl State {
    pub(crate) fn of(engine: &Engine) -> Self {
        let mut edges = BTreeMap::new();
        for (edge, watching) in engine.learnt() {
            edges.insert(edge.key(), EdgeState::of(edge, watching));
        }
        Self { edges, gauges: engine.gauges.clone() }
    }

    /// How many edges it knows.
    pub fn edges(&self) -> usize {
        self.edges.len()
    }

    /// The edges it knows.
    pub fn keys(&self) -> impl Iterator<Item = &EdgeKey> {
        self.edges.keys()
    }

    /// Adds what `other` learnt. Gauges are those of the one that has seen more.
    pub fn merge(&mut self, other: &Self) {
        for (key, theirs) in &other.edges {
            if let Some(ours) = self.edges.get_mut(key) {
                ours.merge(theirs);
            } else if self.edges.len() < STATE_EDGES_MAX {
                self.edges.insert(key.clone(), theirs.clone());
            }
        }
        for (ours, theirs) in self.gauges.iter_mut().zip(&other.gauges) {
            if theirs.seen > ours.seen {
                *ours = theirs.clone();
            }
        }
    }
}

impl EdgeState {
    fn of(edge: &Edge, learnt: bool) -> Self {
        Self {
            latency: edge.latency.reference.clone(),
            wander: edge.latency.wander,
            first_byte: edge.first_byte.bins.map(f32::from),
            first_byte_level: [edge.first_byte.level.mean, edge.first_byte.level.variance],
            errors: edge.errors.errors,
            records: edge.errors.records,
            rate: edge.rate.mean,
            dispersion: edge.rate.dispersion,
            hours: edge.rate.hours.map(|hour| Mean { value: f32::from(hour), weight: f32::from(u8::from(hour != 0)) }),
            bytes: [edge.bytes_in.mean, edge.bytes_in.variance, edge.bytes_out.mean, edge.bytes_out.variance],
            mutual_tls: f32::from(edge.mutual_tls),
            pinned: edge.pinned,
            learnt,
        }
    }

    /// All means, in the order in which they are written.
    pub(crate) fn means(&self) -> impl Iterator<Item = Mean> + '_ {
        [self.wander, self.rate, self.dispersion]
            .into_iter()
            .chain(self.hours)
            .chain(self.bytes)
            .chain(self.first_byte_level)
    }

    fn merge(&mut self, other: &Self) {
        self.latency.merge(&other.latency);
        for (ours, theirs) in self.first_byte.iter_mut().zip(other.first_byte) {
            *ours += theirs;
        }
        self.errors += other.errors;
        self.records += other.records;
        self.mutual_tls += other.mutual_tls;
        let means = [&mut self.wander, &mut self.rate, &mut self.dispersion].into_iter();
        let means = means.chain(&mut self.hours).chain(&mut self.bytes).chain(&mut self.first_byte_level);
        for (ours, theirs) in means.zip(other.means()) {
            ours.merge(theirs);
        }
        self.pinned |= other.pinned;
        self.learnt |= other.learnt;
    }

    /// Gives a new edge what was learnt.
    pub(crate) fn seed(&self, edge: &mut Edge) {
        let lighter = |mean: Mean, weight: f32| Mean { weight: mean.weight.min(weight), ..mean };
        let share = (SEED_RECORDS / self.latency.weight().max(1.0)).min(1.0);
        edge.latency.reference = self.latency.clone();
        edge.latency.reference.scale(share);
        edge.latency.wander = lighter(self.wander, SEED_BLOCKS);
        edge.latency.end_minute();
        let most = self.first_byte.iter().fold(1.0_f32, |most, count| most.max(*count));
        edge.first_byte.bins = self.first_byte.map(|count| (count * (200.0 / most).min(1.0)) as u8);
        let [mean, variance] = self.first_byte_level;
        edge.first_byte.level.mean = lighter(mean, SEED_RECORDS);
        edge.first_byte.level.variance = lighter(variance, 500.0);
        let share = (12.0 * SEED_RECORDS / self.records.max(1.0)).min(1.0);
        (edge.errors.errors, edge.errors.records) = (self.errors * share, self.records * share);
        edge.rate.mean = lighter(self.rate, SEED_BLOCKS);
        edge.rate.dispersion = lighter(self.dispersion, SEED_BLOCKS);
        edge.rate.hours = self.hours.map(|hour| hour.value.clamp(-32_000.0, 32_000.0) as i16);
        let [in_mean, in_variance, out_mean, out_variance] = self.bytes;
        (edge.bytes_in.mean, edge.bytes_in.variance) = (lighter(in_mean, SEED_RECORDS), lighter(in_variance, 500.0));
        (edge.bytes_out.mean, edge.bytes_out.variance) =
            (lighter(out_mean, SEED_RECORDS), lighter(out_variance, 500.0));
        edge.mutual_tls = self.mutual_tls.min(1000.0) as u16;
        edge.pinned = self.pinned;
        edge.inherited = self.learnt;
    }
}

/// A comparison that waits until enough was learnt.
#[derive(Debug)]
pub(crate) struct Rollout {
    pub(crate) previous: State,
}
