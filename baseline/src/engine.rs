//! The engine of one pod: observations in, events out, time as an argument.
//!
//! Tests run when a block of five seconds ends, in two passes: what each edge shows, then what it is charged with beyond what
//! all share. A deviation opens when a chart reaches its limit and closes when the chart has come back; while it is open
//! nothing is learnt for its channel. What lasts ([`Limits::adopt_ms`]) becomes normal, unless the edge is pinned.
//!
//! Promises: bounded memory, no panic, no flood, whatever comes and in whatever order. Clocks that step are not silence.

mod open;
mod peers;
mod plaintext;

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
};

use crate::{
    Deviation, EdgeKey, EdgeRef, Ending, Event, Gauge, Kind, Limits, Observation, State,
    common::Shifts,
    edge::{Common, Edge},
    engine::open::{Open, Wanted},
    engine::plaintext::Sources,
    gauge::Channel,
    limits::{BLOCK_MS, JUMP_MS, MINUTE_BLOCKS},
    state::Rollout,
};

/// New peers that come within so long of each other are one deviation.
const PEERS_MS: u64 = 10 * 60_000;
/// A new pod is cold: what it inherited is not held against it for so long.
const WARM_UP_MS: u64 = 120_000;

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Observations taken in.
    pub observations: u64,
    /// Of them, those that came after their block had ended; they count in the block at hand.
    pub late: u64,
    /// Edges that went at the bound.
    pub evicted: u64,
    /// Steps of the clock.
    pub jumps: u64,
    /// Deviations that did not open since too many were open.
    pub unopened: u64,
    /// Events that were dropped since nobody took them.
    pub dropped: u64,
}

/// For keys that are hashes already.
#[derive(Debug, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// What is normal for one pod, and what is not.
#[derive(Debug)]
pub struct Engine {
    limits: Limits,
    created: u64,
    inherited: bool,
    block: u64,
    blocks: u64,
    hasher: RandomState,
    slots: HashMap<u64, u32, BuildHasherDefault<Hashed>>,
    pub(crate) edges: Vec<Edge>,
    key: Vec<u8>,
    latencies: Shifts,
    rates: Shifts,
    pub(crate) gauges: [Channel; 2],
    open: Vec<Open>,
    wanted: Wanted,
    events: Vec<Event>,
    counters: Counters,
    next: u64,
    rollout: Option<Box<Rollout>>,
    sources: Sources,
}

/// Whether an edge is still being learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is held against it yet.
    Learning,
    /// It is held against its baseline.
    Watching,
}

/// An edge as people read it; values as in [`Kind::unit`].
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Which edge.
    pub edge: EdgeKey,
    /// Whether it is still being learnt.
    pub phase: Phase,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Last seen, in milliseconds since 1970 UTC.
    pub last: u64,
    /// Expected requests per second, at least and at most.
    pub rate: (f64, f64),
    /// Expected share of errors.
    pub errors: f64,
    /// Median, 90th and 99th percentile of the duration in seconds; none before anything was seen.
    pub duration: Option<[f64; 3]>,
    /// Geometric mean of the time to the first byte in seconds; none before anything was seen.
    pub first_byte: Option<f64>,
    /// Geometric mean of bytes in and out, per request.
    pub bytes: (f64, f64),
    /// Kinds that are open.
    pub open: Vec<Kind>,
}

impl Engine {
    /// An engine for a pod that was created at `created`, in milliseconds since 1970 UTC.
    pub fn new(limits: Limits, created: u64) -> Self {
        Self {
            limits,
            created,
            inherited: false,
            block: created - created % BLOCK_MS,
            blocks: 0,
            hasher: RandomState::new(),
            slots: HashMap::default(),
            edges: Vec::new(),
            key: Vec::new(),
            latencies: Shifts::default(),
            rates: Shifts::default(),
            gauges: [Channel::default(), Channel::default()],
            open: Vec::new(),
            wanted: Wanted::default(),
            events: Vec::new(),
            counters: Counters::default(),
            // Numbers go on growing over restarts.
            next: created.max(1),
            rollout: None,
            sources: Sources::default(),
        }
    }

    /// The same, for a pod whose workload is known: from its siblings' merged state, or its own of before a restart.
    pub fn from_state(limits: Limits, created: u64, state: &State) -> Self {
        let mut engine = Self::new(limits, created);
        engine.inherited = state.edges.values().any(|edge| edge.learnt);
        // Where there are more than have room: those that were learnt, and of them the busiest.
        let mut edges: Vec<_> = state.edges.iter().collect();
        edges.sort_by(|(_, a), (_, b)| b.learnt.cmp(&a.learnt).then(b.records.total_cmp(&a.records)));
        for (key, edge) in edges.into_iter().take(limits.edges) {
            let slot = engine.insert(key.as_ref(), created);
            edge.seed(&mut engine.edges[slot]);
        }
        for (channel, gauge) in engine.gauges.iter_mut().zip(&state.gauges) {
            *channel = gauge.clone();
        }
        engine
    }

    /// Compares what this pod learns with `previous`, the baseline of the template before, and says once what differs
    /// ([`Event::RolledOut`]).
    pub fn compare_with(&mut self, previous: State) {
        self.rollout = Some(Box::new(Rollout { previous }));
    }

    /// What was learnt, to be kept and merged with that of siblings.
    pub fn state(&self) -> State {
        State::of(self)
    }

    /// Takes in one request or connection.
    pub fn observe(&mut self, observation: &Observation<'_>) {
        if observation.at >= self.block + BLOCK_MS || self.block > observation.at + JUMP_MS {
            self.advance(observation.at);
        }
        self.counters.observations += 1;
        self.counters.late += u64::from(observation.at < self.block);
        let known = self.find(observation.edge).or_else(|| self.unreached(observation.edge));
        let slot = match known {
            Some(slot) => slot,
            // Nobody was reached, and nobody is known there.
            None if observation.edge.peer.is_empty() => return,
            None => self.meet(observation.edge, observation.at),
        };
        self.edges[slot].record(observation);
        self.trace(slot, observation);
    }

    /// Takes in one measurement of the pod.
    pub fn gauge(&mut self, gauge: Gauge, at: u64, value: f64) {
        let said = self.gauges[gauge as usize].observe(at, value);
        let kind = gauge.kind();
        if said.alert && self.open_at(None, kind).is_none() {
            // A new process is far below what was inherited: it has to warm up.
            let watched = if self.inherited { WARM_UP_MS } else { self.limits.learn_ms };
            if at.saturating_sub(self.created) >= watched {
                let evidence = (said.expected, value);
                self.open(None, kind, at, at, evidence, 1, f64::from(said.level));
            }
        } else if said.over
            && let Some(index) = self.open_at(None, kind)
        {
            self.close(index, at, Ending::Recovered);
        }
    }

    /// Ends the blocks that are over at `now`. To be called about every block, also when nothing is observed.
    pub fn advance(&mut self, now: u64) {
        if now.saturating_add(JUMP_MS) < self.block || now > self.block.saturating_add(JUMP_MS + BLOCK_MS) {
            self.counters.jumps += 1;
            let block = now - now % BLOCK_MS;
            self.step_clock(self.block, block);
            self.block = block;
            return;
        }
        while self.block.saturating_add(BLOCK_MS) <= now {
            self.block += BLOCK_MS;
            self.blocks += 1;
            self.end_block();
        }
    }

    /// A clock that steps makes nothing older: neither the pod, nor what is open, nor how long somebody has been silent.
    fn step_clock(&mut self, from: u64, to: u64) {
        let shift =
            |at: &mut u64| *at = if to >= from { at.saturating_add(to - from) } else { at.saturating_sub(from - to) };
        shift(&mut self.created);
        for edge in &mut self.edges {
            edge.reset_charts();
            shift(&mut edge.born);
            shift(&mut edge.last);
        }
        for open in &mut self.open {
            shift(&mut open.since);
            shift(&mut open.seen);
        }
    }

    /// What happened since the last call.
    pub fn drain_events(&mut self) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.events);
        self.name_company(&mut events);
        events
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Deviations that are open.
    pub fn open_deviations(&self) -> impl Iterator<Item = &Deviation> {
        self.open.iter().map(|open| &open.deviation)
    }

    /// How many edges are known.
    pub fn edge_count(&self) -> usize {
        self.edges.len()
    }

    /// The edges, in no order.
    pub fn summaries(&self) -> impl Iterator<Item = Summary> + '_ {
        (0..self.edges.len()).map(|slot| self.summary(slot))
    }

    /// The edges, each with whether it has learnt.
    pub(crate) fn learnt(&self) -> impl Iterator<Item = (&Edge, bool)> {
        self.edges.iter().map(|edge| (edge, edge.is_watching(&self.limits)))
    }

    fn summary(&self, slot: usize) -> Summary {
        let edge = &self.edges[slot];
        let reference = &edge.latency.reference;
        let quantiles = [0.5, 0.9, 0.99].map(|q| reference.quantile(q).unwrap_or(0.0) / 1e6);
        let (low, high) = edge.rate.expected();
        let watching = self.is_watching(slot);
        Summary {
            edge: edge.key(),
            phase: if watching { Phase::Watching } else { Phase::Learning },
            pinned: edge.pinned,
            last: edge.last,
            rate: (f64::from(low), f64::from(high)),
            errors: f64::from(edge.errors.expected()),
            duration: (reference.weight() > 0.0).then_some(quantiles),
            first_byte: edge.first_byte.expected(),
            bytes: (f64::from(edge.bytes_in.mean.value.exp()), f64::from(edge.bytes_out.mean.value.exp())),
            open: self.open.iter().filter_map(|open| open.kind_of(slot)).collect(),
        }
    }

    /// Keeps the baseline of an edge from adopting what lasts, or lets it again. False if there is no such edge.
    pub fn pin(&mut self, edge: EdgeRef<'_>, pinned: bool) -> bool {
        let Some(slot) = self.find(edge) else { return false };
        self.edges[slot].pinned = pinned;
        true
    }

    fn relearn_edge(&mut self, slot: usize, kind: Kind) {
        self.edges[slot].relearn(kind);
        if kind == Kind::Plaintext {
            self.sources.accept(slot);
        }
    }

    fn hash(&mut self, edge: EdgeRef<'_>) -> u64 {
        edge.write_into(&mut self.key);
        self.hasher.hash_one(&self.key[..])
    }

    /// The slot of an edge; the hash is keyed, so two edges do not share one on purpose.
    fn find(&mut self, edge: EdgeRef<'_>) -> Option<usize> {
        let hash = self.hash(edge);
        self.slots.get(&hash).map(|slot| *slot as usize)
    }

    /// The edge of a service that could not be reached: the one whose peer served it before.
    fn unreached(&self, edge: EdgeRef<'_>) -> Option<usize> {
        edge.peer.is_empty().then(|| self.edges.iter().position(|known| known.leads_to(edge))).flatten()
    }

    /// Room for an edge, at the bound that of another one.
    fn insert(&mut self, edge: EdgeRef<'_>, at: u64) -> usize {
        let hash = self.hash(edge);
        let new = Edge::new(&self.key, at);
        if self.edges.len() < self.limits.edges.max(1) {
            self.edges.push(new);
            self.slots.insert(hash, (self.edges.len() - 1) as u32);
            return self.edges.len() - 1;
        }
        let slot = (0..self.edges.len())
            .min_by_key(|slot| (self.edges[*slot].is_watching(&self.limits), self.edges[*slot].last))
            .unwrap_or(0);
        self.counters.evicted += 1;
        self.forget(slot);
        self.edges[slot] = new;
        self.slots.insert(hash, slot as u32);
        slot
    }

    /// Takes an edge out of the index, and closes what is open on it.
    fn forget(&mut self, slot: usize) {
        let key = self.edges[slot].key();
        let hash = self.hash(key.as_ref());
        self.slots.remove(&hash);
        if self.edges[slot].mutual_tls > 0 {
            self.sources.forget(slot);
        }
        self.forget_open(slot);
    }

    fn is_watching(&self, slot: usize) -> bool {
        let warm = !self.inherited || self.block >= self.created.saturating_add(WARM_UP_MS);
        warm && self.edges[slot].is_watching(&self.limits)
    }

    fn end_block(&mut self) {
        self.latencies.clear();
        self.rates.clear();
        for (slot, edge) in self.edges.iter_mut().enumerate() {
            edge.end_block();
            if let Some((shift, variance)) = edge.latency.recent_shift() {
                self.latencies.add(slot, shift, variance);
            }
            if let Some((shift, variance)) = edge.rate.recent_change() {
                self.rates.add(slot, shift, variance);
            }
        }
        self.latencies.sort();
        self.rates.sort();
        self.look_for_downgrades();
        for slot in 0..self.edges.len() {
            self.test(slot);
        }
        self.open_wanted();
        self.announce_company();
        if self.blocks.is_multiple_of(u64::from(MINUTE_BLOCKS)) {
            self.end_minute();
        }
    }

    fn test(&mut self, slot: usize) {
        let hour = ((self.block.saturating_sub(1) / 3_600_000) % 24) as u8;
        let test = self.is_watching(slot);
        let (shift, change) = (self.edges[slot].latency.recent_shift(), self.edges[slot].rate.recent_change());
        let common = Common {
            latency: self.latencies.slower(slot),
            latency_doubt: self.latencies.slower_doubt(shift.map(|(_, variance)| variance)),
            rate: self.rates.busier(slot, change.map_or(0.0, |(change, _)| change)),
        };
        let open = &self.open;
        let is_open = |kind: Kind| open.iter().any(|open| open.has(slot, kind));
        let verdicts = self.edges[slot].test(hour, test, &is_open, &common);
        self.judge(slot, test, &verdicts);
    }

    fn end_minute(&mut self) {
        for edge in &mut self.edges {
            edge.latency.end_minute();
        }
        let now = self.block;
        while let Some(index) = self
            .open
            .iter()
            .position(|open| open.deviation.kind == Kind::NewPeer && now.saturating_sub(open.seen) >= PEERS_MS)
        {
            self.close(index, now, Ending::Adopted);
        }
        self.look_for_vanished();
        while let Some(index) = self.open.iter().position(|open| self.is_gone_for_good(open)) {
            self.close(index, now, Ending::Adopted);
        }
        let learnt = now.saturating_sub(self.created) >= self.limits.learn_ms;
        if learnt && let Some(rollout) = self.rollout.take() {
            let differences = rollout.previous.diff(&self.state());
            self.say(Event::RolledOut { at: now, differences });
        }
    }

    /// A peer that has been away for so long that this is normal now.
    fn is_gone_for_good(&self, open: &Open) -> bool {
        let pinned = open.parts.iter().any(|part| self.edges[part.slot].pinned);
        let lasted = self.block.saturating_sub(open.since) >= self.limits.adopt_ms;
        open.deviation.kind == Kind::VanishedPeer && lasted && !pinned
    }

    /// Who was there for long and has not been for [`Limits::vanish_ms`].
    fn look_for_vanished(&mut self) {
        let now = self.block;
        for slot in 0..self.edges.len() {
            let edge = &mut self.edges[slot];
            let gone = now.saturating_sub(edge.last) >= self.limits.vanish_ms;
            // Who is only known from siblings, or from before a restart, was never here.
            let was_here = edge.last > edge.born;
            let known = was_here && (edge.inherited || edge.last - edge.born >= self.limits.learn_ms);
            if edge.vanished && !gone {
                edge.vanished = false;
                self.is_back(slot);
            } else if gone && known && !edge.vanished {
                let since = edge.last;
                // Those who vanish together are one deviation.
                let lately = |open: &Open| now.saturating_sub(open.since) <= PEERS_MS;
                let together = |open: &Open| open.deviation.kind == Kind::VanishedPeer && lately(open);
                match self.open.iter().position(together) {
                    Some(index) => self.join(index, (slot, Kind::VanishedPeer), 0),
                    None => self.open(Some(slot), Kind::VanishedPeer, since, now, ((1.0, 1.0), 0.0), 0, 1.0),
                }
                self.edges[slot].vanished = self.open_at(Some(slot), Kind::VanishedPeer).is_some();
            }
        }
    }

    fn say(&mut self, event: Event) {
        if self.events.len() < self.limits.events {
            self.events.push(event);
        } else {
            self.counters.dropped += 1;
        }
    }
}
