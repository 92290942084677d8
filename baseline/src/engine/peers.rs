//! New peers: those who come within some minutes of each other are one deviation, which names the first of them. And how a
//! deviation of several edges tells of those who join it.
//!
//! An event names whoever has come until it is taken; of who comes later, [`Event::Updated`] tells at the end of the block.
//! Promises: no more than [`crate::OTHERS_MAX`] of these for one deviation, however many come; its end has their number.

use super::Engine;
use crate::{EdgeRef, Event, Kind};

impl Engine {
    /// Somebody new: a deviation once the pod has learnt who is there, one for all that come together.
    pub(super) fn meet(&mut self, edge: EdgeRef<'_>, at: u64) -> usize {
        let slot = self.insert(edge, at);
        let learnt = self.inherited || at.saturating_sub(self.created) >= self.limits.learn_ms;
        if !learnt {
            return slot;
        }
        // Who speaks mutual TLS has another name than who does not: what the others do is what is expected of him.
        let is_protected = self.edges.iter().any(|known| known.leads_to(edge) && known.expects_mutual_tls());
        if is_protected {
            self.edges[slot].expect_mutual_tls();
        }
        let direction = edge.direction;
        let company = self.open.iter_mut().find(|open| {
            let deviation = &open.deviation;
            deviation.kind == Kind::NewPeer && deviation.edge.as_ref().is_some_and(|edge| edge.direction == direction)
        });
        if let Some(open) = company {
            open.seen = at.max(open.seen);
            open.deviation.peers = open.deviation.peers.saturating_add(1);
            open.deviation.observed += 1.0;
            open.deviation.records += 1;
            open.deviation.name(edge);
        } else {
            self.open(Some(slot), Kind::NewPeer, at, at, ((0.0, 0.0), 1.0), 1, 1.0);
        }
        slot
    }

    /// Puts who has come meanwhile into events that are taken now.
    pub(super) fn name_company(&mut self, events: &mut [Event]) {
        for open in self.open.iter_mut().filter(|open| open.waits) {
            open.waits = false;
            open.named = open.deviation.others.len();
            let told = events.iter_mut().find_map(|event| match event {
                Event::Opened(told) | Event::Updated(told) if told.id == open.deviation.id => Some(told),
                Event::Opened(_) | Event::Updated(_) | Event::Closed { .. } | Event::RolledOut { .. } => None,
            });
            if let Some(told) = told.filter(|told| told.peers < open.deviation.peers) {
                told.clone_from(&open.deviation);
            }
        }
    }

    /// Tells of who has come since the last event of his deviation was taken.
    pub(super) fn announce_company(&mut self) {
        for index in 0..self.open.len() {
            let open = &mut self.open[index];
            if !open.waits && open.deviation.others.len() > open.named {
                open.waits = true;
                let deviation = open.deviation.clone();
                self.say(Event::Updated(deviation));
            }
        }
    }
}
