//! Opening a spool: what is kept, what is cut, what was lost (docs/formats/segment.md, "Recovery").

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use record::UidSource;

use crate::{
    Config, Error, Gap, Reader, Reason, Sink, Spool, Storage, Tip,
    append::random,
    chain::{Chain, Rule},
    checkpoint::{Kept, Sealed},
    cursor::Cursor,
    retain::{content, header},
    segment::{self, HEADER_BYTES, Header, Kind, Scan, Scanned},
    shared::{Consumer, Segment, Shared, State, stretches},
    storage,
};

/// The end of the last segment was not whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// The segment's file.
    pub segment: String,
    /// Where the cut is.
    pub offset: u64,
    /// Bytes that were cut off.
    pub bytes: u64,
}

/// What opening found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Segments that are kept.
    pub segments: usize,
    /// Bytes in them.
    pub bytes: u64,
    /// Torn tails that were cut.
    pub torn: Vec<Torn>,
    /// Records that are known to be lost; a gap is reported.
    pub lost: Option<Gap>,
    /// Records that the last checkpoint knows and the last segment does not; a gap is reported.
    pub cut: Option<Gap>,
    /// Records that one sink lacks and another has; a gap is reported for each.
    pub missed: Vec<Gap>,
}

impl Recovery {
    /// Every gap that was found.
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.missed.iter().chain(&self.lost).chain(&self.cut)
    }
}

/// One file of the directory.
struct Found {
    segment: Segment,
    header: Option<Header>,
}

impl Spool {
    /// Opens the spool that `storage` holds for the collector alone, at the Unix time `now` in nanoseconds.
    ///
    /// # Errors
    /// When the storage cannot be read, or a torn tail cannot be cut.
    pub fn open(store: Arc<dyn Storage>, config: Config, now: u64) -> Result<(Self, Reader, Recovery), Error> {
        let (spool, mut readers, recovery) = Self::open_for(&[Sink::Otlp], store, config, now)?;
        Ok((spool, readers.remove(0), recovery))
    }

    /// As [`Self::open`], with a reader for each of `sinks`, in their order. A sink that is new begins at the oldest record
    /// that is there; the cursor of one that is not named any more is forgotten.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn open_for(
        sinks: &[Sink],
        store: Arc<dyn Storage>,
        config: Config,
        now: u64,
    ) -> Result<(Self, Vec<Reader>, Recovery), Error> {
        let config = Config { max_bytes: config.max_bytes.max(256 << 10), ..config };
        let mut found = list(&*store)?;
        let mut recovery = Recovery::default();
        let kept = Kept::load(&*store).map_err(storage("the last checkpoint cannot be read"))?;
        let header = found.iter().find_map(|found| found.header);
        let stream = header.map(|header| header.stream).or(kept.as_ref().map(|kept| kept.checkpoint.seal.stream));
        let stream = stream.unwrap_or_else(new_stream);
        let kept = kept.filter(|kept| kept.checkpoint.seal.stream == stream);
        let found_tip = recover_end(&*store, &mut found, &mut recovery)?;
        let segments: VecDeque<_> = found.into_iter().map(|found| found.segment).collect();
        let (consumers, whole) = consumers(&*store, sinks, &segments, found_tip)?;
        let (tip, cut) = kept.as_ref().map_or((whole, None), |kept| restore(&whole, &found_tip, kept, now));
        recovery.cut = cut.filter(|_| !segments.is_empty());
        recovery.segments = segments.len();
        recovery.bytes = segments.iter().map(|segment| segment.bytes).sum();
        let (missed, lost) = vanished(&*store, &segments, &consumers, &tip, now);
        (recovery.missed, recovery.lost) = (missed, lost);
        if !segments.is_empty() {
            recovery.missed.extend(behind_the_end(&consumers, &found_tip, whole.next, now));
        }
        let readers: Vec<_> = consumers.iter().map(|consumer| (consumer.sink, consumer.cursor.next)).collect();
        let (unreported, damaged, seen) = Default::default();
        let state = State { segments, consumers, unreported, unsynced_report: None, damaged, seen };
        let shared = Arc::new(Shared::new(store, state, config.max_bytes));
        shared.status.bytes.store(recovery.bytes, Relaxed);
        for (sink, next) in &readers {
            let state = shared.lock();
            let unsent = state.segments.iter().find(|segment| segment.last >= *next);
            shared.status.oldest_unsent[*sink as usize].store(unsent.map_or(0, |segment| segment.since), Relaxed);
        }
        recovery.gaps().for_each(|gap| shared.lose(*gap));
        let spool = Self {
            shared: Arc::clone(&shared),
            config,
            stream,
            active: None,
            tip,
            chain: Chain::default(),
            synced: tip,
            unsynced: 0,
            unsynced_reports: Vec::new(),
            failed: false,
            sealed: sealed(kept.as_ref(), header.as_ref(), &tip),
            disk_low: false,
            uids: UidSource::new(config.uid_seed),
            buffer: Vec::new(),
        };
        spool.mark_full();
        let reader = |(sink, next)| Reader::new(Arc::clone(&shared), sink, next);
        Ok((spool, readers.into_iter().map(reader).collect(), recovery))
    }

    /// Makes a spool that failed usable again: cuts what is not trusted, finds out what is gone, begins a new segment.
    ///
    /// # Errors
    /// When that is not possible yet; the spool stays as it is.
    pub fn reopen(&mut self, now: u64) -> Result<(), Error> {
        let store = Arc::clone(&self.shared.storage);
        store.reopen().map_err(storage("the spool's directory cannot be used"))?;
        if let Some(active) = &self.active {
            match store.truncate(&active.segment.name(), active.segment.bytes) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(storage("what was not synced cannot be cut off")(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        let names = store.list().map_err(storage("the spool's directory cannot be read"))?;
        let gone: Vec<Gap> = {
            let mut state = self.shared.lock();
            let all = std::mem::take(&mut state.segments);
            let (kept, gone): (VecDeque<_>, VecDeque<_>) =
                all.into_iter().partition(|segment| names.contains(&segment.name()));
            state.segments = kept;
            let gaps = gone.into_iter().flat_map(|segment| {
                let Segment { since, until, .. } = segment;
                let gap = move |(first, last, sink)| Gap {
                    first,
                    last,
                    records: last + 1 - first,
                    since,
                    until,
                    reason: Reason::Vanished,
                    before: None,
                    after: None,
                    sink,
                };
                state.missing(segment.first, segment.last).into_iter().map(gap)
            });
            gaps.collect()
        };
        gone.into_iter().for_each(|gap| self.shared.lose(gap));
        self.active = None;
        let bytes = self.shared.lock().segments.iter().map(|segment| segment.bytes).sum();
        self.shared.status.bytes.store(bytes, Relaxed);
        self.synced = self.tip;
        // Begun before anything is promised again: it shows that files can be made and synced.
        self.failed = false;
        if let Err(error) = self.begin_segment(now) {
            self.failed = true;
            return Err(error);
        }
        self.mark_full();
        Ok(())
    }

    /// Reports and syncs what there is; for the end.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn close(&mut self, now: u64) -> Result<(), Error> {
        self.tick(now)?;
        self.seal()?;
        // What was lost is said for good now, and the cursors may stand where they are.
        let stored = self.shared.lock().store_cursors(&*self.shared.storage, true);
        stored.map_err(storage("the cursor cannot be written"))
    }
}

fn new_stream() -> [u8; 16] {
    let mut stream = [0; 16];
    stream[..8].copy_from_slice(&random().to_le_bytes());
    stream[8..].copy_from_slice(&random().to_le_bytes());
    stream
}

/// All segments, oldest first, as their names, headers and lengths tell.
fn list(store: &dyn Storage) -> Result<Vec<Found>, Error> {
    let names = store.list().map_err(storage("the spool's directory cannot be read"))?;
    let mut found = Vec::new();
    for (name, (first, epoch)) in names.iter().filter_map(|name| Some((name, segment::parse_name(name)?))) {
        let unreadable = |source| storage(format!("{name} cannot be read"))(source);
        let bytes = store.length(name).map_err(unreadable)?;
        let header = Header::decode(&store.read(name, 0, HEADER_BYTES).map_err(unreadable)?);
        let header = header.filter(|header| (header.first, header.epoch) == (first, epoch));
        let since = header.map_or(0, |header| header.created);
        found.push(Found {
            segment: Segment { first, epoch, bytes, last: first.saturating_sub(1), since, until: since },
            header,
        });
    }
    found.sort_by_key(|found| (found.segment.first, found.segment.since));
    for at in 1..found.len() {
        let (first, previous) = (found[at].segment.first, found[at].header.map(|header| header.previous));
        let before = &mut found[at - 1].segment;
        before.last = first.saturating_sub(1).max(before.last);
        before.until = previous.unwrap_or(before.until).max(before.until);
    }
    Ok(found)
}

/// Reads the last segment, cuts its torn tail, and removes it if it has neither header nor record; the end of the chain.
fn recover_end(store: &dyn Storage, found: &mut Vec<Found>, recovery: &mut Recovery) -> Result<Tip, Error> {
    while let Some(Found { segment, header }) = found.last_mut() {
        let name = segment.name();
        let failed = |source| storage(format!("{name} cannot be recovered"))(source);
        let size = usize::try_from(segment.bytes).unwrap_or(usize::MAX);
        let bytes = store.read(&name, 0, size).map_err(failed)?;
        let end = scan_end(bytes.get(HEADER_BYTES..).unwrap_or_default(), segment, header.as_ref());
        let whole = HEADER_BYTES as u64 + end.offset;
        if whole < segment.bytes || segment.bytes < HEADER_BYTES as u64 {
            let offset = if segment.bytes < HEADER_BYTES as u64 { 0 } else { whole };
            recovery.torn.push(Torn { segment: name.clone(), offset, bytes: segment.bytes - offset });
        }
        // A header alone is kept, too: it knows the stream and the end of the chain.
        if end.records > 0 || header.is_some() {
            // Also when it is whole: room that was reserved behind it is given back, if that is possible.
            let cut = store.truncate(&name, whole);
            if whole < segment.bytes {
                cut.map_err(failed)?;
            }
            (segment.bytes, segment.last, segment.until) = (whole, end.tip.next - 1, end.tip.time.max(segment.until));
            return Ok(end.tip);
        }
        store.remove(&name).and_then(|()| store.sync_directory()).map_err(failed)?;
        found.pop();
    }
    Ok(Tip { next: 1, digest: [0; 32], time: 0 })
}

struct End {
    tip: Tip,
    records: u64,
    /// Where the whole entries end, after the header.
    offset: u64,
}

fn scan_end(bytes: &[u8], segment: &Segment, header: Option<&Header>) -> End {
    let (digest, time) = header.map_or(([0; 32], 0), |header| (header.digest, header.previous));
    let mut tip = Tip { next: segment.first, digest, time };
    let (rule, mut chain) = (header.map_or(Rule::Context, |header| header.rule), Chain::default());
    let (mut records, mut offset) = (0, 0);
    let mut scan = Scan::new(bytes, segment.epoch, segment.first.saturating_sub(1));
    while let Some(found) = scan.advance() {
        let Scanned::Entry(entry) = found else { continue };
        match entry.kind {
            Kind::Record | Kind::Report => {
                records += 1;
                tip.digest = chain.next(rule, &tip.digest, entry.sequence, entry.payload);
                tip.next = entry.sequence + 1;
            }
            // After damage the chain is taken up here again.
            Kind::BatchEnd => {
                if let Some((time, digest)) = entry.batch_end() {
                    (tip.time, tip.digest, tip.next) = (time, digest, entry.sequence + 1);
                }
            }
        }
        offset = scan.offset() as u64;
    }
    End { tip, records, offset }
}

/// How far each sink is, and the end of the chain: what a sink acknowledged was synced, and a number that left us is not
/// given again.
fn consumers(
    store: &dyn Storage,
    sinks: &[Sink],
    segments: &VecDeque<Segment>,
    mut tip: Tip,
) -> Result<(Vec<Consumer>, Tip), Error> {
    let mut cursors = Vec::new();
    for sink in Sink::ALL {
        let cursor = Cursor::load(store, sink).map_err(storage("the cursor cannot be read"))?;
        tip.next = cursor.map_or(tip.next, |cursor| tip.next.max(cursor.next));
        cursors.push((sink, cursor));
    }
    let oldest = segments.front().map_or(tip.next, |segment| segment.first);
    let begin = Cursor { next: oldest, ..Cursor::default() };
    let consumer = |sink: &Sink| {
        let found = cursors.iter().find(|(of, _)| of == sink).and_then(|(_, cursor)| *cursor);
        let cursor = found.unwrap_or(begin);
        Consumer { sink: *sink, cursor, unwritten: true, taken: cursor.next }
    };
    let mut consumers: Vec<_> = sinks.iter().map(consumer).collect();
    let forgotten = cursors.iter().filter(|(sink, cursor)| cursor.is_some() && !sinks.contains(sink));
    for (sink, _) in forgotten {
        // First the others, so that no number is forgotten with it.
        for consumer in &mut consumers {
            consumer.cursor.store(store, consumer.sink, true).map_err(storage("the cursor cannot be written"))?;
        }
        store.remove(sink.cursor_file()).map_err(storage("a cursor cannot be removed"))?;
    }
    Ok((consumers, tip))
}

/// The records between the cursors and the first segment, unless a report that is still here says so already: what one
/// sink lacks and another has, and what none has.
fn vanished(
    store: &dyn Storage,
    segments: &VecDeque<Segment>,
    consumers: &[Consumer],
    tip: &Tip,
    now: u64,
) -> (Vec<Gap>, Option<Gap>) {
    let end = segments.front().map_or(tip.next, |segment| segment.first);
    let cursors = consumers.iter().map(|consumer| (consumer.sink, consumer.cursor.next));
    let missing = stretches(cursors, 0, end.saturating_sub(1));
    let Some(lowest) = missing.iter().map(|(first, ..)| *first).min() else { return (Vec::new(), None) };
    let reports = |segment| content(store, segment, lowest, u64::MAX - 1).reports;
    let mut reports: Vec<Gap> = segments.iter().flat_map(reports).collect();
    reports.sort_by_key(|gap| gap.first);
    let until = segments.front().map_or(now, |segment| segment.since);
    let after = match segments.front() {
        Some(segment) => header(store, segment).map(|header| header.digest),
        None => Some(tip.digest),
    };
    let unsaid = |(mut first, last, sink): (u64, u64, Option<Sink>)| {
        for gap in reports.iter().filter(|gap| gap.sink.is_none() || gap.sink == sink) {
            if gap.first <= first && gap.last >= first {
                first = gap.last + 1;
            }
        }
        let since =
            consumers.iter().filter(|of| sink.is_none_or(|sink| sink == of.sink)).map(|of| of.cursor.time).max();
        let (since, reason) = (since.unwrap_or(0), Reason::Vanished);
        let (records, before, after) = ((last + 1).saturating_sub(first), None, after.filter(|_| last + 1 == end));
        (records > 0).then_some(Gap { first, last, records, since, until, reason, before, after, sink })
    };
    let (missed, lost): (Vec<_>, Vec<_>) = missing.into_iter().filter_map(unsaid).partition(|gap| gap.sink.is_some());
    (missed, lost.first().copied())
}

/// What sinks have acknowledged and others have not, behind the end of the last segment; what only a sink had that is no
/// longer there, too.
fn behind_the_end(consumers: &[Consumer], found: &Tip, end: u64, now: u64) -> Vec<Gap> {
    let cursors = consumers.iter().map(|consumer| (consumer.sink, consumer.cursor.next));
    let missing = stretches(cursors, found.next, end - 1).into_iter();
    let gap = |(first, last, sink): (u64, u64, Option<Sink>)| {
        let before = (first == found.next).then_some(found.digest);
        let (records, since, reason) = (last + 1 - first, found.time, Reason::Vanished);
        Gap { first, last, records, since, until: now, reason, before, after: None, sink }
    };
    missing.map(gap).collect()
}

/// No number that a checkpoint seals is given again: the chain goes on behind the checkpoint, and what is not here is a gap.
fn restore(whole: &Tip, found: &Tip, kept: &Kept, now: u64) -> (Tip, Option<Gap>) {
    if kept.number < found.next {
        return (*whole, None);
    }
    // Where reports stand between the sealed stretch and its checkpoint, the chain goes on where it is known.
    let digest = if kept.number == kept.checkpoint.seal.last + 1 { kept.digest() } else { found.digest };
    let next = whole.next.max(kept.number + 1);
    let (first, last, reason) = (whole.next, kept.number, Reason::Vanished);
    let before = (whole.next == found.next).then_some(found.digest);
    let since = found.time;
    let (records, after, sink) = (next - first, Some(digest), None);
    let gap = Gap { first, last, records, since, until: now, reason, before, after, sink };
    (Tip { next, digest, time: found.time }, (first <= last).then_some(gap))
}

/// Where the next checkpoint begins: after the last one; where none is known, at the oldest segment.
fn sealed(kept: Option<&Kept>, oldest: Option<&Header>, tip: &Tip) -> Sealed {
    let begin = |first, before| Sealed { first, before, number: 0, generation: 0 };
    match (kept, oldest) {
        (Some(kept), _) => Sealed {
            number: kept.number,
            generation: kept.generation(),
            ..begin(kept.checkpoint.seal.last + 1, kept.checkpoint.seal.digest)
        },
        (None, Some(header)) => begin(header.first, header.digest),
        (None, None) => begin(tip.next, tip.digest),
    }
}
