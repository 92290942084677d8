//! The reading side: synced records in their order, and the cursor that moves when the sink has answered. Each sink has
//! a reader of its own.
//!
//! At least once: after a restart, or [`Reader::rewind`], reading begins at the cursor.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use crate::{
    Error, Gap, Reason, Sink,
    context::Contexts,
    retain::know_damage,
    segment::{ENTRY_BYTES, HEADER_BYTES, Kind, PAYLOAD_BYTES_MAX, Scan, Scanned},
    shared::{Segment, Shared, Status},
    storage,
};

/// Records that the collector has refused for good: OTLP/JSON, one request a line.
pub const SET_ASIDE: &str = "set-aside.jsonl";
/// Bytes of a segment that are read at once, at least.
const WINDOW_BYTES: usize = 256 << 10;

/// Bytes of a segment that are no entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment's file.
    pub segment: String,
    /// Where they begin in it.
    pub offset: u64,
    /// How many they are.
    pub bytes: u64,
    /// The records that are lost with them, by their numbers; `None` when it was none that is still to be sent.
    pub records: Option<(u64, u64)>,
    /// It was said already: another reader found them, this one before it went back, or, of records, a process before this one.
    pub is_known: bool,
}

/// Records to be sent together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Finished `log_records` fields, one after the other.
    pub fields: Vec<u8>,
    /// How many.
    pub records: u32,
    /// The number after the last one.
    pub next: u64,
    /// When they were written; the last of them, where they are of several batches.
    pub time: u64,
    /// What was found damaged on the way.
    pub damage: Vec<Damage>,
}

/// A place in a segment.
#[derive(Debug, Clone, Copy)]
struct Place {
    epoch: u64,
    /// After the header.
    offset: usize,
    /// The number of the last record before.
    last: u64,
}

/// The reading side of a spool.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    sink: Sink,
    /// The number of the next record to be given out.
    next: u64,
    place: Option<Place>,
    /// Of the segment that `place` is in, up to there.
    contexts: Contexts,
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, sink: Sink, next: u64) -> Self {
        Self { shared, sink, next, place: None, contexts: Contexts::default() }
    }

    /// Who reads.
    pub fn sink(&self) -> Sink {
        self.sink
    }

    /// Goes back to the cursor: what was given out and not acknowledged is given out again.
    pub fn rewind(&mut self) {
        let cursor = self.shared.lock().consumer(self.sink).map(|consumer| consumer.cursor.next);
        self.next = cursor.unwrap_or(self.next);
        self.place = None;
    }

    /// How the spool fares.
    pub fn status(&self) -> &Arc<Status> {
        &self.shared.status
    }

    /// The next records, of at most `max_bytes` in all (a longer one comes alone); `None` when all synced ones were given
    /// out. A chunk may hold nothing but damage.
    ///
    /// # Errors
    /// When a segment cannot be read; the next call tries again.
    pub fn next(&mut self, max_bytes: usize) -> Result<Option<Chunk>, Error> {
        let mut chunk = Chunk { fields: Vec::new(), records: 0, next: self.next, time: 0, damage: Vec::new() };
        // Each turn goes forward in a segment, or to a later one.
        while let Some((segment, is_last)) = self.segment() {
            let mut place = self.place_in(&segment);
            let end = usize::try_from(segment.bytes).unwrap_or(usize::MAX).saturating_sub(HEADER_BYTES);
            let read = match place.offset < end {
                true => self.read(&segment, &mut place, end, max_bytes, &mut chunk),
                false => Ok(false),
            };
            if !self.still_there(&segment) {
                // It was dropped meanwhile; what of it was not given out is reported as a gap.
                (chunk.records, chunk.next) = (0, self.next);
                chunk.fields.clear();
                self.place = None;
                continue;
            }
            let more = read?;
            self.place = Some(place);
            if !more && !is_last {
                // What has not been seen of its numbers is in a gap.
                chunk.next = chunk.next.max(segment.last + 1);
                self.place = None;
            }
            if chunk.records > 0 || !chunk.damage.is_empty() {
                return Ok(Some(self.give(chunk)));
            }
            self.next = chunk.next;
            if !more && is_last {
                break;
            }
        }
        Ok(None)
    }

    /// The segment that holds the next record, and whether it is the last one.
    fn segment(&self) -> Option<(Segment, bool)> {
        let state = self.shared.lock();
        let at = state.segments.iter().position(|segment| segment.last >= self.next)?;
        Some((state.segments[at], at + 1 == state.segments.len()))
    }

    fn place_in(&mut self, segment: &Segment) -> Place {
        self.place.filter(|place| place.epoch == segment.epoch).unwrap_or_else(|| {
            self.contexts = Contexts::default();
            Place { epoch: segment.epoch, offset: 0, last: segment.first.saturating_sub(1) }
        })
    }

    fn still_there(&self, segment: &Segment) -> bool {
        self.shared.lock().segments.iter().any(|other| other.epoch == segment.epoch)
    }

    /// Takes entries from `place` on into the chunk; true when there are more in the segment.
    fn read(
        &mut self,
        segment: &Segment,
        place: &mut Place,
        end: usize,
        max_bytes: usize,
        chunk: &mut Chunk,
    ) -> Result<bool, Error> {
        let name = segment.name();
        let mut size = WINDOW_BYTES;
        loop {
            let size_now = size.min(end - place.offset);
            let from = (HEADER_BYTES + place.offset) as u64;
            let bytes = self.shared.storage.read(&name, from, size_now);
            let bytes = bytes.map_err(|error| storage(format!("{name} cannot be read"))(error))?;
            let whole = place.offset + bytes.len() >= end || bytes.len() < size_now;
            let mut scan = Scan::resume(&bytes, place.epoch, place.last, std::mem::take(&mut self.contexts), whole);
            let full = self.take(segment, place.offset, &mut scan, max_bytes, chunk);
            let (moved, last) = (scan.offset(), scan.sequence());
            self.contexts = scan.into_contexts();
            if whole && !full && moved < end - place.offset {
                self.tail(segment, place.offset + moved, end, last, chunk);
                (place.offset, place.last) = (end, segment.last);
                return Ok(false);
            }
            (place.offset, place.last) = (place.offset + moved, last);
            if full || whole {
                return Ok(place.offset < end);
            }
            if moved == 0 {
                // Longer than the window, or damaged: first a window that takes any entry, then all that is left.
                let longest = ENTRY_BYTES + PAYLOAD_BYTES_MAX;
                size = if size < longest { longest } else { usize::MAX };
            }
        }
    }

    /// Takes entries out of a scan; true when the chunk is full.
    fn take(&self, segment: &Segment, offset: usize, scan: &mut Scan<'_>, max_bytes: usize, chunk: &mut Chunk) -> bool {
        loop {
            let (before, last) = (scan.offset(), scan.sequence());
            match scan.advance() {
                None => return false,
                Some(Scanned::Entry(entry)) if entry.kind == Kind::BatchEnd => {
                    chunk.time = entry.batch_end().map_or(chunk.time, |(time, _)| time);
                }
                Some(Scanned::Entry(entry)) if entry.sequence < self.next => {}
                Some(Scanned::Entry(entry)) => {
                    if chunk.records > 0 && chunk.fields.len() + entry.payload.len() > max_bytes {
                        scan.go_back(before, last);
                        return true;
                    }
                    chunk.fields.extend_from_slice(entry.payload);
                    chunk.records += 1;
                    chunk.next = entry.sequence + 1;
                }
                Some(Scanned::Damage { offset: at, bytes, first, last }) => {
                    let at = (HEADER_BYTES + offset + at) as u64;
                    self.damaged(segment, (at, bytes as u64), (first, last), chunk);
                }
            }
        }
    }

    /// The end of a segment is damaged: there is no whole entry behind it.
    fn tail(&self, segment: &Segment, from: usize, end: usize, last: u64, chunk: &mut Chunk) {
        let place = ((HEADER_BYTES + from) as u64, (end - from) as u64);
        self.damaged(segment, place, (last + 1, segment.last), chunk);
        chunk.next = chunk.next.max(segment.last + 1);
    }

    fn damaged(&self, segment: &Segment, (offset, bytes): (u64, u64), (first, last): (u64, u64), chunk: &mut Chunk) {
        let first = first.max(self.next);
        let records = (first <= last).then_some((first, last));
        let unsaid = records.map_or_else(Vec::new, |(first, last)| self.unsaid(first, last));
        let is_new = self.shared.lock().sees(segment.epoch, offset);
        let is_known = if records.is_some() { unsaid.is_empty() } else { !is_new };
        for (first, last, sink) in unsaid {
            let (since, until, records, reason) = (segment.since, segment.until, last + 1 - first, Reason::Damaged);
            self.shared.lose(Gap { first, last, records, since, until, reason, before: None, after: None, sink });
        }
        chunk.damage.push(Damage { segment: segment.name(), offset, bytes, records, is_known });
    }

    /// What no gap says yet of damaged records that this sink lacks, and who else lacks them; it counts as said from now on.
    fn unsaid(&self, first: u64, last: u64) -> Vec<(u64, u64, Option<Sink>)> {
        know_damage(&self.shared, None);
        let mut state = self.shared.lock();
        let others = state.consumers.iter().filter(|consumer| consumer.sink != self.sink);
        let furthest = others.map(|consumer| consumer.taken).max().unwrap_or(0);
        let parts = [(first, last.min(furthest.saturating_sub(1)), Some(self.sink)), (first.max(furthest), last, None)];
        let mut parts: Vec<_> = parts.into_iter().filter(|(first, last, _)| first <= last).collect();
        let oldest = state.segments.front().map_or(0, |segment| segment.first);
        let damaged = state.damaged.get_or_insert_default();
        damaged.retain(|(_, last, _)| *last >= oldest);
        let concerns = |known: &&(u64, u64, Option<Sink>)| {
            known.0 <= last && first <= known.1 && known.2.is_none_or(|sink| sink == self.sink)
        };
        for known in damaged.iter().filter(concerns) {
            parts = parts.into_iter().flat_map(|part| without(part, (known.0, known.1))).collect();
        }
        damaged.extend(&parts);
        parts
    }

    /// The chunk leaves: what it holds is no loss any more when its segment goes.
    fn give(&mut self, mut chunk: Chunk) -> Chunk {
        let mut state = self.shared.lock();
        let again = self.sink.reads_again();
        if let Some(consumer) = state.consumer(self.sink).filter(|_| !again) {
            consumer.taken = consumer.taken.max(chunk.next);
        }
        if chunk.time == 0 {
            chunk.time = state.segments.iter().find(|segment| segment.last + 1 >= chunk.next).map_or(0, |s| s.since);
        }
        drop(state);
        self.next = chunk.next;
        if !again {
            self.shared.status.oldest_unsent[self.sink as usize].store(chunk.time, Relaxed);
        }
        chunk
    }

    /// The sink has all records of the chunk, and of those before it: the cursor moves.
    ///
    /// # Errors
    /// When the cursor cannot be written; it has moved in memory, and is written with the next one.
    pub fn acknowledge(&mut self, chunk: &Chunk) -> Result<(), Error> {
        let status = &self.shared.status;
        status.acknowledged[self.sink as usize].fetch_add(u64::from(chunk.records), Relaxed);
        let mut state = self.shared.lock();
        let everything = state.segments.back().is_none_or(|segment| segment.last < chunk.next);
        let oldest = &status.oldest_unsent[self.sink as usize];
        match (everything, self.sink.reads_again()) {
            (true, _) => oldest.store(0, Relaxed),
            (false, true) => oldest.store(chunk.time, Relaxed),
            (false, false) => {}
        }
        if let Some(consumer) = state.consumer(self.sink) {
            (consumer.cursor.next, consumer.cursor.time) = (chunk.next, chunk.time);
            consumer.taken = consumer.taken.max(chunk.next);
            consumer.unwritten = true;
        }
        let stored = state.store_cursors(&*self.shared.storage, false);
        stored.map_err(storage("the cursor cannot be written"))
    }

    /// The collector will not take `records` of those with the numbers from `first` to `last`: a gap says so.
    pub fn refuse(&self, (first, last): (u64, u64), records: u64, now: u64, reason: Reason) {
        let mut state = self.shared.lock();
        let since = state.consumer(self.sink).map_or(0, |consumer| consumer.cursor.time);
        // Another sink has them, or will.
        let sink = (state.consumers.len() > 1).then_some(self.sink);
        drop(state);
        self.shared.lose(Gap { first, last, records, since, until: now, reason, before: None, after: None, sink });
    }

    /// Keeps what the collector has refused, in a file of its own beside the segments ([`SET_ASIDE`]); false when there is no
    /// room: it may have a sixteenth of what the segments may have. Durable when this returns. Whoever reads it may take
    /// the file away; the next one begins anew.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_aside(&self, line: &[u8]) -> Result<bool, Error> {
        let failed = || storage("the set-aside file cannot be written");
        let store = &self.shared.storage;
        let length = match store.length(SET_ASIDE) {
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(failed()(error)),
        };
        let fits = length + line.len() as u64 <= self.status().limit_bytes() / 16;
        if fits {
            // A process that died here may have left half a line.
            let last = store.read(SET_ASIDE, length.saturating_sub(1), 1).unwrap_or_default();
            let torn = length > 0 && last != b"\n";
            let whole = if torn { [b"\n", line].concat() } else { line.to_vec() };
            store.append(SET_ASIDE, &whole).map_err(failed())?;
        }
        Ok(fits)
    }

    /// What was lost and is not reported yet.
    pub fn unreported(&self) -> Vec<Gap> {
        self.shared.lock().unreported.clone()
    }
}

/// What is left of a part without what is known.
fn without(
    (first, last, sink): (u64, u64, Option<Sink>),
    known: (u64, u64),
) -> impl Iterator<Item = (u64, u64, Option<Sink>)> {
    let before = (first, last.min(known.0.saturating_sub(1)), sink);
    let after = (first.max(known.1.saturating_add(1)), last, sink);
    [before, after].into_iter().filter(|(first, last, _)| first <= last)
}
