//! What the writer and the readers of one spool share: the list of segments, the cursors, and what was lost and not
//! reported yet. The lock is held for moments; no segment is read or written under it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use crate::{Gap, Reason, Sink, Storage, cursor::Cursor, segment};

/// One segment, as far as it is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) first: u64,
    pub(crate) epoch: u64,
    /// Bytes that are synced, the header included.
    pub(crate) bytes: u64,
    /// The greatest number in them; `first - 1` when there is none.
    pub(crate) last: u64,
    /// When it was made.
    pub(crate) since: u64,
    /// The time of its last batch.
    pub(crate) until: u64,
}

impl Segment {
    pub(crate) fn name(&self) -> String {
        segment::name(self.first, self.epoch)
    }
}

/// How far one sink is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Consumer {
    pub(crate) sink: Sink,
    pub(crate) cursor: Cursor,
    /// The cursor in memory is ahead of the one in the file.
    pub(crate) unwritten: bool,
    /// Numbers below this are acknowledged or with the reader.
    pub(crate) taken: u64,
}

#[derive(Debug)]
pub(crate) struct State {
    /// Oldest first; the one that is written to is the last one.
    pub(crate) segments: VecDeque<Segment>,
    /// One for each sink.
    pub(crate) consumers: Vec<Consumer>,
    /// Lost and not reported yet.
    pub(crate) unreported: Vec<Gap>,
    /// The lowest number of what reports say that are written and not synced yet.
    pub(crate) unsynced_report: Option<u64>,
    /// What gaps say of damage in segments that are still there, by numbers and by who lacks them; `None` as long as no reader
    /// has found any.
    pub(crate) damaged: Option<Vec<(u64, u64, Option<Sink>)>>,
    /// Where readers have seen damage in segments that are still there, by epoch and offset.
    pub(crate) seen: Vec<(u64, u64)>,
}

impl State {
    /// The lowest number that some sink has not acknowledged.
    pub(crate) fn acknowledged_by_all(&self) -> u64 {
        self.consumers.iter().map(|consumer| consumer.cursor.next).min().unwrap_or(u64::MAX)
    }

    /// The lowest number that some sink has not taken.
    pub(crate) fn taken_by_all(&self) -> u64 {
        self.consumers.iter().map(|consumer| consumer.taken).min().unwrap_or(u64::MAX)
    }

    /// How many of these numbers a gap about damage names already, to `sink`.
    pub(crate) fn said_damaged(&self, first: u64, last: u64, sink: Option<Sink>) -> u64 {
        let known = self.damaged.iter().flatten().filter(|known| known.2.is_none() || known.2 == sink);
        known.map(|known| (known.1.min(last) + 1).saturating_sub(known.0.max(first))).sum()
    }

    /// Notes damage that a reader has seen; false when it was seen before.
    pub(crate) fn sees(&mut self, epoch: u64, offset: u64) -> bool {
        let Self { seen, segments, .. } = self;
        if seen.contains(&(epoch, offset)) {
            return false;
        }
        seen.retain(|(epoch, _)| segments.iter().any(|segment| segment.epoch == *epoch));
        seen.push((epoch, offset));
        true
    }

    pub(crate) fn consumer(&mut self, sink: Sink) -> Option<&mut Consumer> {
        self.consumers.iter_mut().find(|consumer| consumer.sink == sink)
    }

    /// Where the file of a sink's cursor may stand: behind what was lost until that is said for good. After a crash it is found
    /// to be missing again.
    pub(crate) fn storable(&self, sink: Sink, cursor: Cursor) -> Cursor {
        let of_sink = self.unreported.iter().filter(|gap| gap.sink.is_none_or(|of| of == sink)).map(|gap| gap.first);
        let lowest = of_sink.chain(self.unsynced_report).min().unwrap_or(u64::MAX);
        Cursor { next: cursor.next.min(lowest), ..cursor }
    }

    /// Writes the cursors that moved, or all of them durably.
    pub(crate) fn store_cursors(&mut self, storage: &dyn Storage, durable: bool) -> std::io::Result<()> {
        for at in 0..self.consumers.len() {
            let Consumer { sink, cursor, unwritten, .. } = self.consumers[at];
            if !durable && !unwritten {
                continue;
            }
            let mut stored = self.storable(sink, cursor);
            stored.store(storage, sink, durable)?;
            self.consumers[at].cursor.generation = stored.generation;
            self.consumers[at].unwritten = stored.next < cursor.next;
        }
        Ok(())
    }

    /// What is missing when `first..=last` goes: whose sink has not taken it. First what some sinks have and others have
    /// not, by those others; then what none has.
    pub(crate) fn missing(&self, first: u64, last: u64) -> Vec<(u64, u64, Option<Sink>)> {
        let taken = |consumer: &Consumer| consumer.taken;
        stretches(self.consumers.iter().map(|consumer| (consumer.sink, taken(consumer))), first, last)
    }
}

/// The parts of `first..=last` that sinks, each having taken what is below a number, lack.
pub(crate) fn stretches(
    taken: impl Iterator<Item = (Sink, u64)> + Clone,
    first: u64,
    last: u64,
) -> Vec<(u64, u64, Option<Sink>)> {
    let furthest = taken.clone().map(|(_, taken)| taken).max().unwrap_or(u64::MAX);
    let behind = taken.map(|(sink, taken)| (first.max(taken), last.min(furthest.saturating_sub(1)), Some(sink)));
    behind.chain([(first.max(furthest), last, None)]).filter(|(first, last, _)| first <= last).collect()
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) storage: Arc<dyn Storage>,
    state: Mutex<State>,
    pub(crate) status: Arc<Status>,
}

impl Shared {
    pub(crate) fn new(storage: Arc<dyn Storage>, state: State, limit: u64) -> Self {
        let status = Arc::new(Status { limit_bytes: limit, ..Status::default() });
        Self { storage, state: Mutex::new(state), status }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and each change of it is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a loss, and keeps it until it is reported.
    pub(crate) fn lose(&self, gap: Gap) {
        self.status.lost[gap.reason as usize].fetch_add(gap.records, Relaxed);
        note(&mut self.lock().unreported, gap);
    }
}

/// Puts a gap to the others, as one with the last of them where it goes on.
pub(crate) fn note(gaps: &mut Vec<Gap>, gap: Gap) {
    if !gaps.last_mut().is_some_and(|last| last.extend(&gap)) {
        gaps.push(gap);
    }
}

/// How a spool fares; readable from any thread, without a lock.
#[derive(Debug, Default)]
pub struct Status {
    pub(crate) spooled: AtomicU64,
    pub(crate) acknowledged: [AtomicU64; Sink::ALL.len()],
    pub(crate) lost: [AtomicU64; Reason::ALL.len()],
    pub(crate) bytes: AtomicU64,
    pub(crate) oldest_unsent: [AtomicU64; Sink::ALL.len()],
    pub(crate) full: AtomicBool,
    pub(crate) disk_low: AtomicBool,
    limit_bytes: u64,
}

impl Status {
    /// Records that this process wrote and synced.
    pub fn spooled(&self) -> u64 {
        self.spooled.load(Relaxed)
    }

    /// Records that the collector has acknowledged, to this process.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged_by(Sink::Otlp)
    }

    /// Records that the sink has acknowledged, to this process.
    pub fn acknowledged_by(&self, sink: Sink) -> u64 {
        self.acknowledged[sink as usize].load(Relaxed)
    }

    /// Records lost for this reason, in the time of this process.
    pub fn lost(&self, reason: Reason) -> u64 {
        self.lost[reason as usize].load(Relaxed)
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Bytes that they may have.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// When the oldest record that some sink has not acknowledged was written, in nanoseconds since 1970 UTC; `None` when
    /// there is none.
    pub fn oldest_unsent(&self) -> Option<u64> {
        Sink::ALL.into_iter().filter_map(|sink| self.oldest_unsent_of(sink)).min()
    }

    /// As [`Self::oldest_unsent`], for one sink.
    pub fn oldest_unsent_of(&self, sink: Sink) -> Option<u64> {
        Some(self.oldest_unsent[sink as usize].load(Relaxed)).filter(|time| *time > 0)
    }

    /// True when there was less free disk than there should be, when it was looked at last.
    pub fn is_disk_low(&self) -> bool {
        self.disk_low.load(Relaxed)
    }

    /// True while the policy is to refuse and there is no room, or nothing can be written: no more traffic, please.
    pub fn is_full(&self) -> bool {
        self.full.load(Relaxed)
    }
}
