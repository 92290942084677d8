//! Deviations that are open: what opens them, what joins them, what closes them.
//!
//! **Explained as one.** When most edges leave their normal together there is one cause, so there is one deviation: edges whose
//! tests of the same family reach their limits within [`TOGETHER_MS`] of each other, while at least [`COMMON`] edges and half
//! of those that tell something, or [`CROWD`] of them, are beyond half of theirs. It opens on the edge that says it most
//! clearly and names the others; it is over when the last of them is. Assumes nothing about the cause.
//!
//! Promises: an edge is part of one open deviation of a kind at most, and each of them closes.

use super::{Engine, PEERS_MS};
use crate::{
    Deviation, Ending, Event, Gauge, Kind,
    edge::Verdicts,
    gauge::Channel,
    limits::{BLOCK_MS, MINUTE_BLOCKS},
};

/// Who reaches his limit within this time of the first is part of the same.
const TOGETHER_MS: u64 = 60_000;
/// Fewer edges are no crowd.
const COMMON: usize = 3;
/// So many are a crowd, whatever share of all they are.
const CROWD: usize = 8;
/// Share of its limit beyond which an edge counts as one of those that left their normal.
const LEAVING: f32 = 0.5;

/// An edge that an open deviation is about, and the kind that is true of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) slot: usize,
    pub(super) kind: Kind,
    /// For how long, in milliseconds: time in which nobody asks makes nothing normal.
    lasted: u64,
}

impl Part {
    fn is(&self, slot: usize, kind: Kind) -> bool {
        (self.slot, self.kind) == (slot, kind)
    }
}

#[derive(Debug)]
pub(super) struct Open {
    /// What is still so, in the order of slots and kinds; empty when it is about the pod, or its new peer was forgotten.
    pub(super) parts: Vec<Part>,
    pub(super) deviation: Deviation,
    /// When it opened, by a clock that does not step.
    pub(super) since: u64,
    /// When it last was seen.
    pub(super) seen: u64,
    /// An event of it waits to be taken; how many of the others it names were in the last one.
    pub(super) waits: bool,
    pub(super) named: usize,
}

impl Open {
    /// The kind that is true of an edge, or one of them.
    pub(super) fn kind_of(&self, slot: usize) -> Option<Kind> {
        let at = self.parts.partition_point(|part| part.slot < slot);
        self.parts.get(at).filter(|part| part.slot == slot).map(|part| part.kind)
    }

    pub(super) fn has(&self, slot: usize, kind: Kind) -> bool {
        self.place(slot, kind).is_ok()
    }

    /// Where it is among the parts, or would be.
    fn place(&self, slot: usize, kind: Kind) -> Result<usize, usize> {
        self.parts.binary_search_by_key(&(slot, kind), |part| (part.slot, part.kind))
    }
}

/// What one cause looks like on an edge: kinds that come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Slower,
    Errors,
    Less,
    More,
    BytesIn,
    BytesOut,
}

const FAMILIES: usize = 6;

/// The family of a kind that edges can share.
fn family(kind: Kind) -> Option<Family> {
    match kind {
        Kind::Latency | Kind::LatencyTail | Kind::FirstByte => Some(Family::Slower),
        Kind::Errors => Some(Family::Errors),
        Kind::RateDown | Kind::Silence => Some(Family::Less),
        Kind::RateUp => Some(Family::More),
        Kind::BytesIn => Some(Family::BytesIn),
        Kind::BytesOut => Some(Family::BytesOut),
        Kind::Plaintext | Kind::NewPeer | Kind::VanishedPeer | Kind::Cpu | Kind::Memory => None,
    }
}

/// What the tests of one block want to open.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Slot, kind, how far beyond the limit, and since how many blocks.
    verdicts: Vec<(usize, Kind, f32, u32)>,
    /// Edges that tell something, and of them those that leave their normal, by family.
    telling: usize,
    leaving: [usize; FAMILIES],
}

impl Wanted {
    fn is_common(&self, family: Family) -> bool {
        let leaving = self.leaving[family as usize];
        leaving >= CROWD || (leaving >= COMMON && 2 * leaving >= self.telling)
    }
}

impl Engine {
    /// Follows what is open on an edge, and notes what its tests want to open.
    pub(super) fn judge(&mut self, slot: usize, watched: bool, verdicts: &Verdicts) {
        // As it was before the first of them closed: what explained a verdict of this block still does.
        let explained = Kind::ALL.map(|kind| self.is_explained(slot, kind));
        let mut leaving = [false; FAMILIES];
        for (kind, near, blocks) in *verdicts {
            let open = self.open_at(Some(slot), kind);
            if let Some(family) = family(kind) {
                leaving[family as usize] |= open.is_some() || near >= LEAVING;
            }
            match open {
                Some(index) => self.follow(index, (slot, kind), near),
                None if near >= 1.0 && !explained[kind as usize] => {
                    self.wanted.verdicts.push((slot, kind, near, blocks));
                }
                None => {}
            }
        }
        let tells = watched && (leaving.contains(&true) || self.edges[slot].records_in(MINUTE_BLOCKS) > 0);
        self.wanted.telling += usize::from(tells);
        self.wanted.leaving.iter_mut().zip(leaving).for_each(|(count, leaves)| *count += usize::from(leaves));
    }

    /// Opens what the tests of this block want, the clearest first; what most edges share as one.
    pub(super) fn open_wanted(&mut self) {
        let mut wanted = std::mem::take(&mut self.wanted);
        wanted.verdicts.sort_by(|a, b| b.2.total_cmp(&a.2));
        for (slot, kind, near, blocks) in std::mem::take(&mut wanted.verdicts) {
            if self.is_explained(slot, kind) {
                continue;
            }
            let since = self.block.saturating_sub(u64::from(blocks) * BLOCK_MS);
            let (evidence, records) = self.edges[slot].facts(kind, near, blocks);
            let shared = family(kind).filter(|family| wanted.is_common(*family));
            match shared.and_then(|family| self.company(family)) {
                Some(index) => self.join(index, (slot, kind), records),
                None => self.open(Some(slot), kind, since, self.block, evidence, records, f64::from(near)),
            }
        }
    }

    /// What opened lately, of the same family.
    fn company(&self, of: Family) -> Option<usize> {
        self.open.iter().position(|open| {
            family(open.deviation.kind) == Some(of) && self.block.saturating_sub(open.since) <= TOGETHER_MS
        })
    }

    /// One more edge of which an open deviation is true.
    pub(super) fn join(&mut self, index: usize, (slot, kind): (usize, Kind), records: u64) {
        let edge = self.edges[slot].key();
        let open = &mut self.open[index];
        let known = open.deviation.edge.as_ref() == Some(&edge)
            || open.deviation.others.contains(&edge)
            || open.kind_of(slot).is_some();
        if let Err(at) = open.place(slot, kind) {
            open.parts.insert(at, Part { slot, kind, lasted: 0 });
        }
        open.deviation.peers = open.deviation.peers.saturating_add(u32::from(!known));
        open.deviation.records += records;
        open.deviation.name(edge.as_ref());
    }

    /// Whether another open deviation of the edge says it already.
    fn is_explained(&self, slot: usize, kind: Kind) -> bool {
        let explanations = [
            (Kind::LatencyTail, Kind::Latency),
            (Kind::Latency, Kind::LatencyTail),
            (Kind::FirstByte, Kind::Latency),
            (Kind::FirstByte, Kind::LatencyTail),
            (Kind::Latency, Kind::FirstByte),
            (Kind::RateDown, Kind::Silence),
            (Kind::Silence, Kind::RateDown),
        ];
        explanations.iter().any(|(what, by)| *what == kind && self.open_at(Some(slot), *by).is_some())
    }

    /// An open deviation at the end of a block, on one of its edges.
    fn follow(&mut self, index: usize, (slot, kind): (usize, Kind), near: f32) {
        let now = self.block;
        if near >= 1.0 {
            let ((_, observed), records) = self.edges[slot].facts(kind, near, 1);
            let leads = self.open[index].deviation.edge.as_ref().is_some_and(|edge| *edge == self.edges[slot].key());
            let open = &mut self.open[index];
            open.seen = now;
            open.deviation.records += records;
            open.deviation.score = open.deviation.score.max(f64::from(near));
            if leads && kind == open.deviation.kind {
                open.deviation.observed = observed;
            }
        }
        let quiet = now.saturating_sub(self.open[index].seen);
        if self.edges[slot].is_over(kind) || (kind == Kind::Plaintext && quiet >= PEERS_MS) {
            self.edges[slot].settle(kind);
            self.leave(index, Ending::Recovered, |part| part.is(slot, kind));
        } else if self.lasted(index, (slot, kind)) >= self.limits.adopt_ms && !self.edges[slot].pinned {
            self.relearn_edge(slot, kind);
            self.leave(index, Ending::Adopted, |part| part.is(slot, kind));
        }
    }

    /// How long a part of an open deviation has lasted with this block.
    fn lasted(&mut self, index: usize, (slot, kind): (usize, Kind)) -> u64 {
        let is_idle = self.block.saturating_sub(self.edges[slot].last) > PEERS_MS;
        let counts = !is_idle || family(kind) == Some(Family::Less);
        let open = &mut self.open[index];
        let Ok(at) = open.place(slot, kind) else { return 0 };
        open.parts[at].lasted += if counts { BLOCK_MS } else { 0 };
        open.parts[at].lasted
    }

    /// A deviation is no more about some of its parts; the last one closes it.
    fn leave(&mut self, index: usize, ending: Ending, gone: impl Fn(&Part) -> bool) {
        self.open[index].parts.retain(|part| !gone(part));
        if self.open[index].parts.is_empty() {
            self.close(index, self.block, ending);
        }
    }

    /// A peer that vanished is back.
    pub(super) fn is_back(&mut self, slot: usize) {
        if let Some(index) = self.open_at(Some(slot), Kind::VanishedPeer) {
            self.leave(index, Ending::Recovered, |part| part.is(slot, Kind::VanishedPeer));
        }
    }

    /// An edge is forgotten. New peers stay open: that they came is true.
    pub(super) fn forget_open(&mut self, slot: usize) {
        for index in (0..self.open.len()).rev() {
            match self.open.get(index).and_then(|open| open.kind_of(slot)) {
                Some(Kind::NewPeer) => self.open[index].parts.clear(),
                Some(_) => self.leave(index, Ending::Forgotten, |part| part.slot == slot),
                None => {}
            }
        }
    }

    /// Takes what a deviation is about as the new normal, on all of its edges. False if it is not open.
    pub fn accept(&mut self, id: u64) -> bool {
        let Some(index) = self.open.iter().position(|open| open.deviation.id == id) else { return false };
        for part in self.open[index].parts.clone() {
            self.relearn_edge(part.slot, part.kind);
        }
        let kind = self.open[index].deviation.kind;
        if let Some(gauge) = [Gauge::Cpu, Gauge::Memory].into_iter().find(|gauge| gauge.kind() == kind) {
            self.gauges[gauge as usize] = Channel::default();
        }
        self.close(index, self.block, Ending::Accepted);
        true
    }

    /// What is open on an edge, or on the pod, of a kind.
    pub(super) fn open_at(&self, slot: Option<usize>, kind: Kind) -> Option<usize> {
        self.open.iter().position(|open| match slot {
            Some(slot) => open.has(slot, kind),
            None => open.parts.is_empty() && open.deviation.kind == kind,
        })
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one deviation, named where they are known")]
    pub(super) fn open(
        &mut self,
        slot: Option<usize>,
        kind: Kind,
        since: u64,
        opened: u64,
        (expected, observed): ((f64, f64), f64),
        records: u64,
        score: f64,
    ) {
        if self.open.len() >= self.limits.open {
            self.counters.unopened += 1;
            return;
        }
        let edge = slot.map(|slot| self.edges[slot].key());
        let (id, peers, others) = (self.next, 1, Vec::new());
        self.next += 1;
        let deviation = Deviation { id, kind, edge, others, since, opened, expected, observed, records, peers, score };
        let parts = slot.map(|slot| Part { slot, kind, lasted: 0 }).into_iter().collect();
        let (waits, named) = (true, 0);
        self.open.push(Open { parts, deviation: deviation.clone(), since: opened, seen: opened, waits, named });
        self.say(Event::Opened(deviation));
    }

    pub(super) fn close(&mut self, index: usize, at: u64, ending: Ending) {
        let open = self.open.swap_remove(index);
        self.say(Event::Closed { deviation: open.deviation, at, ending });
    }
}
