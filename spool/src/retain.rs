//! What goes, and when: whole segments, the oldest first. What nobody has acknowledged goes by name.

use std::sync::atomic::Ordering::Relaxed;

use crate::{
    Error, Gap, OnFull, Reason, Spool, Storage,
    append::{Active, REPORTS_MAX},
    chain::{Chain, Rule},
    context::Contexts,
    segment::{ENTRY_BYTES, HEADER_BYTES, Header, Kind, PAYLOAD_BYTES_MAX, Scan, Scanned},
    shared::{Segment, Shared, note},
    storage,
};

/// Bytes of a segment that are read at once.
const WINDOW_BYTES: usize = 256 << 10;
/// Bytes of the entry of a gap record at most.
pub(crate) const REPORT_BYTES_MAX: u64 = 768;

impl Spool {
    /// What has to be done now and then: removes what was acknowledged or is too old, looks at the free disk, reports gaps.
    ///
    /// # Errors
    /// When something cannot be removed or written; the next call tries again.
    pub fn tick(&mut self, now: u64) -> Result<(), Error> {
        if self.failed {
            return Err(Error::Failed);
        }
        if self.shared.lock().unreported.iter().any(|gap| gap.reason.is_found_reading()) {
            // The reader would find it again, until the cursor is past it. Where there is no room for it, what follows makes some.
            let said = self.report_all(now).and_then(|()| self.sync());
            if self.failed {
                return said;
            }
        }
        self.remove_acknowledged()?;
        let age = u64::try_from(self.config.max_age.as_nanos()).unwrap_or(u64::MAX);
        let is_old = |oldest: Segment| now.saturating_sub(oldest.until) > age;
        while self.oldest().is_some_and(is_old) && self.drop_oldest(Reason::Age)? {}
        self.watch_disk()?;
        if self.disk_low || self.is_full() {
            self.renew(now)?;
            self.watch_disk()?;
        }
        self.mark_full();
        self.report_all(now)
    }

    /// Writes all gaps that wait, a handful at a time; what is lost meanwhile waits for the next call.
    fn report_all(&mut self, now: u64) -> Result<(), Error> {
        let waiting = self.shared.lock().unreported.len();
        for _ in 0..waiting.div_ceil(REPORTS_MAX) {
            self.report(now)?;
        }
        Ok(())
    }

    /// Lets go of the active segment when all of it is acknowledged: where no traffic is taken for want of room, nothing
    /// else would ever end it.
    fn renew(&mut self, now: u64) -> Result<(), Error> {
        let done = |active: &Active, next: u64| {
            let written = active.bytes > HEADER_BYTES as u64 && active.bytes == active.segment.bytes;
            written && active.segment.last < next
        };
        let next = self.shared.lock().acknowledged_by_all();
        if !self.active.as_ref().is_some_and(|active| done(active, next)) {
            return Ok(());
        }
        if let Err(error) = self.begin_segment(now) {
            if self.active.is_some() {
                return Err(error);
            }
            // There is not even room for a header: the stream and the end of the chain go on in memory for a moment.
            let gone = {
                let mut state = self.shared.lock();
                let stored = state.store_cursors(&*self.shared.storage, true);
                stored.map_err(storage("the cursor cannot be written"))?;
                state.segments.pop_back()
            };
            gone.map_or(Ok(()), |segment| self.remove(&segment))?;
            self.begin_segment(now)?;
        }
        self.remove_acknowledged()
    }

    fn watch_disk(&mut self) -> Result<(), Error> {
        let low = |spool: &Self| {
            let free = spool.shared.storage.free_bytes().map_err(storage("the free disk cannot be told"))?;
            Ok::<_, Error>(free < spool.config.min_free_bytes)
        };
        self.disk_low = low(self)?;
        self.shared.status.disk_low.store(self.disk_low, Relaxed);
        while self.disk_low && self.config.on_full == OnFull::DropOldest && self.drop_oldest(Reason::DiskLow)? {
            self.disk_low = low(self)?;
        }
        Ok(())
    }

    /// Makes room for `bytes` within the limit.
    pub(crate) fn make_room(&mut self, bytes: u64) -> Result<(), (Reason, Error)> {
        let fits = |spool: &Self| {
            // What goes makes reports, which need room themselves.
            let reports = REPORT_BYTES_MAX * spool.shared.lock().unreported.len().min(REPORTS_MAX) as u64;
            spool.shared.status.bytes() + bytes + reports + HEADER_BYTES as u64 <= spool.config.max_bytes
        };
        if fits(self) {
            return Ok(());
        }
        self.remove_acknowledged().map_err(|error| (Reason::WriteFailed, error))?;
        while !fits(self) {
            let dropped = match self.config.on_full {
                OnFull::Refuse => false,
                OnFull::DropOldest => {
                    self.drop_oldest(Reason::SpoolFull).map_err(|error| (Reason::WriteFailed, error))?
                }
            };
            if !dropped {
                return Err((Reason::SpoolFull, Error::Full));
            }
        }
        Ok(())
    }

    fn oldest(&self) -> Option<Segment> {
        self.shared.lock().segments.front().copied()
    }

    fn is_active(&self, segment: &Segment) -> bool {
        self.active.as_ref().is_some_and(|active| active.segment.epoch == segment.epoch)
    }

    /// Removes the segments of which every sink has acknowledged everything, once the cursors are durable.
    fn remove_acknowledged(&mut self) -> Result<(), Error> {
        let done = |segment: &Segment, next: u64| segment.last < next;
        let store = &*self.shared.storage;
        let mut removed = Vec::new();
        {
            let mut state = self.shared.lock();
            let next = state.acknowledged_by_all();
            let removable = |segment: &&Segment| done(segment, next) && !self.is_active(segment);
            let any = state.segments.len() > 1 && state.segments.front().filter(removable).is_some();
            state.store_cursors(store, any).map_err(storage("the cursor cannot be written"))?;
            // The last one stays: its header knows the stream and the end of the chain.
            while state.segments.len() > 1
                && let Some(segment) = state.segments.front().copied().filter(|segment| removable(&segment))
            {
                state.segments.pop_front();
                removed.push(segment);
            }
        }
        for segment in removed {
            self.remove(&segment)?;
        }
        Ok(())
    }

    /// Removes the oldest segment with all that is in it; what a sink has not taken is a gap. False when there is none.
    pub(crate) fn drop_oldest(&mut self, reason: Reason) -> Result<bool, Error> {
        let Some(oldest) = self.oldest() else { return Ok(false) };
        if self.is_active(&oldest) {
            if self.active.as_ref().is_some_and(|active| active.bytes <= HEADER_BYTES as u64) {
                return Ok(false);
            }
            self.seal()?;
        }
        if self.shared.lock().segments.len() == 1 {
            // The stream and the end of the chain go on in a new header; where the disk has no room for it, in memory
            // until it has.
            let _full = self.begin_segment(self.tip.time);
        }
        let (segment, next, missing, taken) = {
            let mut state = self.shared.lock();
            let Some(segment) = state.segments.pop_front() else { return Ok(false) };
            let missing = state.missing(segment.first, segment.last);
            (segment, state.segments.front().copied(), missing, state.taken_by_all())
        };
        if !missing.is_empty() {
            // What it reported itself is reported again: some sink has not heard of it.
            let reports = content(&*self.shared.storage, &segment, taken, segment.last).reports;
            let mut state = self.shared.lock();
            reports.into_iter().for_each(|gap| note(&mut state.unreported, gap));
        }
        // What the segment says of the end of the chain, the next one knows for sure.
        let end = match next {
            Some(next) => header(&*self.shared.storage, &next).map(|header| header.digest),
            None => Some(self.tip.digest),
        };
        for (first, last, sink) in missing {
            let Content { records, before, after, is_damaged, .. } =
                content(&*self.shared.storage, &segment, first, last);
            if is_damaged {
                know_damage(&self.shared, Some(&segment));
            }
            let after = if last == segment.last { end } else { after };
            let records = records.saturating_sub(self.shared.lock().said_damaged(first, last, sink));
            let (since, until) = (segment.since, segment.until);
            self.shared.lose(Gap { first, last, records, since, until, reason, before, after, sink });
        }
        self.remove(&segment)?;
        Ok(true)
    }

    fn remove(&self, segment: &Segment) -> Result<(), Error> {
        let store = &*self.shared.storage;
        let bytes = &self.shared.status.bytes;
        bytes.fetch_sub(segment.bytes.min(bytes.load(Relaxed)), Relaxed);
        match store.remove(&segment.name()).and_then(|()| store.sync_directory()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(storage("a segment could not be removed")(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Finds out what gaps in the spool, and in a segment that is about to go, say of damage: a process before this one may have
/// found it.
pub(crate) fn know_damage(shared: &Shared, going: Option<&Segment>) {
    let segments: Vec<Segment> = {
        let state = shared.lock();
        if state.damaged.is_some() {
            return;
        }
        state.segments.iter().chain(going).copied().collect()
    };
    // Read without the lock: whoever else looks meanwhile finds the same.
    let reports =
        segments.iter().flat_map(|segment| content(&*shared.storage, segment, segment.first, segment.last).reports);
    let damage = reports.filter(|gap| gap.reason == Reason::Damaged).map(|gap| (gap.first, gap.last, gap.sink));
    let damage = damage.collect();
    shared.lock().damaged.get_or_insert(damage);
}

/// What a segment holds of some numbers.
pub(crate) struct Content {
    /// How many records, with those that are damaged.
    pub(crate) records: u64,
    /// Whether some are.
    pub(crate) is_damaged: bool,
    /// The gaps that they report.
    pub(crate) reports: Vec<Gap>,
    /// The chain digest before them, where it is known.
    pub(crate) before: Option<[u8; 32]>,
    /// And after them, as far as the segment tells.
    pub(crate) after: Option<[u8; 32]>,
}

pub(crate) fn header(store: &dyn Storage, segment: &Segment) -> Option<Header> {
    Header::decode(&store.read(&segment.name(), 0, HEADER_BYTES).ok()?)
}

/// Follows the chain up to the number `end`, which is not taken in.
fn follow(chain: &mut Chain, rule: Rule, digest: &mut Option<[u8; 32]>, end: u64, found: &Scanned<'_>) {
    match found {
        // After damage the chain is taken up here again.
        Scanned::Entry(entry) if entry.kind == Kind::BatchEnd => {
            if entry.sequence < end && digest.is_none() {
                *digest = entry.batch_end().map(|(_, digest)| digest);
            }
        }
        Scanned::Entry(entry) if entry.sequence < end => {
            *digest = digest.map(|digest| chain.next(rule, &digest, entry.sequence, entry.payload));
        }
        Scanned::Damage { first, .. } if *first < end => *digest = None,
        Scanned::Entry(_) | Scanned::Damage { .. } => {}
    }
}

/// What a segment holds of the numbers `from..=to`.
pub(crate) fn content(store: &dyn Storage, segment: &Segment, from: u64, to: u64) -> Content {
    let overlap = |first: u64, last: u64| (last.min(to) + 1).saturating_sub(first.max(from));
    let header = header(store, segment);
    let digest = header.map(|header| header.digest);
    let (rule, mut chain) = (header.map_or(Rule::Context, |header| header.rule), Chain::default());
    let mut content = Content { records: 0, is_damaged: false, reports: Vec::new(), before: digest, after: digest };
    let done = walk(store, segment, |found| {
        follow(&mut chain, rule, &mut content.before, from, &found);
        follow(&mut chain, rule, &mut content.after, to.saturating_add(1), &found);
        match found {
            Scanned::Entry(entry) if entry.kind == Kind::BatchEnd || !(from..=to).contains(&entry.sequence) => {}
            Scanned::Entry(entry) => {
                content.records += 1;
                if entry.kind == Kind::Report {
                    content.reports.extend(Gap::decode(entry.payload));
                }
            }
            Scanned::Damage { first, last, .. } => {
                content.records += overlap(first, last);
                content.is_damaged = true;
            }
        }
    });
    if done.is_err() {
        let records = overlap(segment.first, segment.last);
        return Content { records, is_damaged: true, reports: Vec::new(), before: None, after: None };
    }
    content
}

/// Shows what a segment holds, a window at a time: memory is that of the window, or of the longest entry.
fn walk(store: &dyn Storage, segment: &Segment, mut see: impl FnMut(Scanned<'_>)) -> std::io::Result<()> {
    let end = usize::try_from(segment.bytes).unwrap_or(usize::MAX).saturating_sub(HEADER_BYTES);
    let (mut offset, mut last, mut size) = (0, segment.first.saturating_sub(1), WINDOW_BYTES);
    let mut contexts = Contexts::default();
    while offset < end {
        let size_now = size.min(end - offset);
        let bytes = store.read(&segment.name(), (HEADER_BYTES + offset) as u64, size_now)?;
        let whole = offset + bytes.len() >= end || bytes.len() < size_now;
        let mut scan = Scan::resume(&bytes, segment.epoch, last, std::mem::take(&mut contexts), whole);
        while let Some(found) = scan.advance() {
            see(found);
        }
        if whole {
            let (at, rest) = (scan.offset(), bytes.len() - scan.offset());
            if rest > 0 {
                see(Scanned::Damage { offset: at, bytes: rest, first: scan.sequence() + 1, last: segment.last });
            }
            break;
        }
        if scan.offset() == 0 {
            // Longer than the window, or damaged: as the reader does it.
            let longest = ENTRY_BYTES + PAYLOAD_BYTES_MAX;
            size = if size < longest { longest } else { usize::MAX };
        }
        (offset, last) = (offset + scan.offset(), scan.sequence());
        contexts = scan.into_contexts();
    }
    Ok(())
}
