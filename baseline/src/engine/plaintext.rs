//! Who spoke mutual TLS and comes in plaintext, among those who always came in plaintext.
//!
//! Peers without an identity share an edge by the class of their address, so a peer that changes to plaintext hides behind
//! probes. Two things give it away, and both charge the edge of the identity that it had:
//!
//! **Its address.** A table of fixed size remembers from which address an identity spoke mutual TLS to a port. Told is only
//! who did so [`ENOUGH`] times without a break of [`BREAK`] blocks, as one identity, and never in plaintext: addresses are
//! given to other pods, and behind a translated one there are many. Assumes that an address has one owner for so long.
//!
//! **What it leaves.** An identity is silent or low (`rate`), and plaintext of its service has grown by about as much, beyond
//! four standard errors of its own rate: who came back as another pod, at another address. Assumes nothing but the rates that
//! are learnt anyway, and takes as long as silence does. A minority of an identity's traffic is not told from chance.
//!
//! Promises: one place in the table for each record, whoever sends; who shares a place with another is forgotten, not accused.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
};

use super::Engine;
use crate::{Direction, EdgeRef, Kind, Observation, Protection};

/// Addresses that are remembered.
const PLACES: usize = 1024;
/// So many times mutual TLS came from there.
const ENOUGH: u16 = 20;
/// Blocks without mutual TLS after which an address may be somebody else's: ten minutes.
const BREAK: u32 = 120;
/// Standard errors that plaintext has grown by, and requests.
const GROWN: (f32, f32) = (4.0, 4.0);

/// What is known of an address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Spoken {
    #[default]
    MutualTls,
    /// It was told, and is part of a deviation.
    Downgraded,
    /// Plaintext, or both: that is normal there.
    Plaintext,
}

#[derive(Debug, Clone, Copy, Default)]
struct Source {
    /// Which address and port.
    tag: u32,
    /// The edge of who spoke mutual TLS from there, how often in a row, and the last block in which he did.
    slot: u32,
    times: u16,
    block: u32,
    spoken: Spoken,
}

/// From where mutual TLS came.
#[derive(Debug)]
pub(super) struct Sources {
    /// Whoever chooses an address cannot choose its place.
    keys: [u64; 2],
    places: Box<[Source]>,
}

impl Default for Sources {
    fn default() -> Self {
        let random = RandomState::new();
        Self {
            keys: [random.hash_one(0) | 1, random.hash_one(1) | 1],
            places: vec![Source::default(); PLACES].into_boxed_slice(),
        }
    }
}

impl Sources {
    /// The place of an address and port; what was known of another one there is forgotten.
    fn place(&mut self, address: IpAddr, port: u16, block: u32) -> &mut Source {
        let bits = match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()) | 0xffff << 32,
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let (high, low) = ((bits >> 64) as u64 ^ u64::from(port) << 48, bits as u64);
        let product = u128::from(low ^ self.keys[0]) * u128::from(self.keys[1]);
        let product =
            (u128::from(product as u64 ^ (product >> 64) as u64) ^ u128::from(high)) * u128::from(self.keys[0]);
        let hash = product as u64 ^ (product >> 64) as u64;
        let tag = (hash >> 32) as u32;
        let place = &mut self.places[hash as usize % PLACES];
        if place.tag != tag || place.block.saturating_add(BREAK) < block {
            *place = Source { tag, block, ..Source::default() };
        }
        place
    }

    /// Takes in what came from an address on the edge `slot`; the edge of who spoke mutual TLS there, if this is plaintext.
    fn note(&mut self, address: IpAddr, port: u16, slot: usize, protection: Protection, block: u32) -> Option<usize> {
        let place = self.place(address, port, block);
        match protection {
            Protection::Unknown => None,
            Protection::MutualTls => {
                if place.slot as usize != slot {
                    (place.slot, place.times) = (slot as u32, 0);
                }
                (place.times, place.block) = (place.times.saturating_add(1), block);
                None
            }
            Protection::Plaintext if place.spoken == Spoken::Plaintext || place.times < ENOUGH => {
                (place.spoken, place.block) = (Spoken::Plaintext, block);
                None
            }
            Protection::Plaintext => {
                // While it goes on it is the same deviation.
                (place.spoken, place.block) = (Spoken::Downgraded, block);
                Some(place.slot as usize)
            }
        }
    }

    /// From now on it is normal that what was told of an edge comes in plaintext.
    pub(super) fn accept(&mut self, slot: usize) {
        let told = |place: &&mut Source| place.slot as usize == slot && place.spoken == Spoken::Downgraded;
        self.places.iter_mut().filter(told).for_each(|place| place.spoken = Spoken::Plaintext);
    }

    /// The edge is another one now.
    pub(super) fn forget(&mut self, slot: usize) {
        let of_edge = |place: &&mut Source| place.slot as usize == slot;
        self.places.iter_mut().filter(of_edge).for_each(|place| *place = Source::default());
    }
}

impl Engine {
    /// Charges plaintext that was counted on the edge `slot` to who spoke mutual TLS from that address.
    #[inline]
    pub(super) fn trace(&mut self, slot: usize, observation: &Observation<'_>) {
        let Some(address) = observation.source else { return };
        if observation.edge.direction == Direction::Outbound {
            return;
        }
        let (port, protection) = (observation.edge.port, observation.protection);
        let told = self.sources.note(address, port, slot, protection, self.blocks as u32);
        if let Some(owner) = told.filter(|owner| *owner != slot) {
            if self.is_watching(owner) && self.edges[owner].expects_mutual_tls() {
                self.edges[slot].plaintext = self.edges[slot].plaintext.saturating_sub(1);
                self.edges[owner].plaintext = self.edges[owner].plaintext.saturating_add(1);
            } else {
                self.sources.accept(owner);
            }
        }
    }

    /// Charges plaintext that has come up to who fell silent meanwhile.
    pub(super) fn look_for_downgrades(&mut self) {
        let parts = self.open.iter().flat_map(|open| &open.parts);
        let lower = parts.filter(|part| matches!(part.kind, Kind::Silence | Kind::RateDown));
        let lower: Vec<usize> = lower.map(|part| part.slot).collect();
        for slot in &lower {
            let key = self.edges[*slot].key();
            // Of all who left this service, those who are missing as much as has come; or else all of them together.
            let left = lower.iter().map(|other| &self.edges[*other]);
            let left = left.filter(|edge| edge.expects_mutual_tls() && edge.leads_to(key.as_ref()));
            let missing: Vec<f32> = left.map(|edge| edge.rate.missing()).collect();
            let grown = self.grown(key.as_ref());
            let is_alone = missing.iter().any(|missing| matches(grown, *missing));
            let mine = if is_alone { self.edges[*slot].rate.missing() } else { missing.iter().sum() };
            if self.edges[*slot].expects_mutual_tls() && matches(grown, mine) {
                // Of the last half minute; a block's share of it.
                let of_block = (grown / 6.0).ceil() as u16;
                self.edges[*slot].plaintext = self.edges[*slot].plaintext.saturating_add(of_block);
            }
        }
    }

    /// By how many requests in the last half minute plaintext of a service has grown.
    fn grown(&self, service: EdgeRef<'_>) -> f32 {
        let edges = self.edges.iter().enumerate();
        let plaintext = edges.filter(|(_, edge)| edge.mutual_tls == 0 && edge.plaintext > 0 && edge.leads_to(service));
        let grown = plaintext.map(|(slot, edge)| {
            let (more, error) = edge.rate.surplus(self.rates.busier(slot, 0.0));
            if more > GROWN.0 * error + GROWN.1 { more } else { 0.0 }
        });
        grown.sum()
    }
}

/// Whether about as much has come as is missing.
fn matches(grown: f32, missing: f32) -> bool {
    missing > 0.0 && (0.5 * missing..=2.0 * missing).contains(&grown)
}
