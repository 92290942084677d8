//! The writing side: batches in, entries out, and what to do when a write or a sync fails.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use record::{UidSource, field};

use crate::{
    Config, Error, File, Gap, OnFull, Reason, Sync,
    chain::{Chain, Context, Rule},
    checkpoint::Sealed,
    context::{Candidate, Form, HOLDERS_MAX, SHORT_HEAD_BYTES, short_head},
    segment,
    segment::{Code, HEADER_BYTES, Header},
    shared::{Segment, Shared, Status, note},
    storage,
};

/// Reports in one batch at most, so that they never crowd records out.
pub(crate) const REPORTS_MAX: usize = 64;
/// What an entry and its number add to a record, and the end of a batch, at most.
const ENTRY_OVERHEAD: u64 = 64;
/// Room that is asked for at once, at most; a spool takes so much more of the disk than its bytes.
const RESERVED_BYTES: u64 = 1 << 20;
/// With less than this to spare on the file system nothing is reserved: the last room is for others, such as the cursor.
const SPARE_BYTES_MIN: u64 = 64 << 20;
/// Bytes between the two records that hold a context, in segments of half a MiB or more: no page and no block has both.
const HOLDERS_DISTANCE: u64 = 64 << 10;

/// The end of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    /// The number of the next record.
    pub next: u64,
    /// The chain digest of all records before it.
    pub digest: [u8; 32],
    /// The time of the last batch.
    pub time: u64,
}

/// The segment that is written to.
#[derive(Debug)]
pub(crate) struct Active {
    file: Box<dyn File>,
    pub(crate) segment: Segment,
    /// Bytes written.
    pub(crate) bytes: u64,
    /// Bytes that room was asked for.
    reserved: u64,
    /// Records that may still hold a context for others.
    holders_left: usize,
}

/// The writing side of a spool.
#[derive(Debug)]
pub struct Spool {
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: Config,
    pub(crate) stream: [u8; 16],
    pub(crate) active: Option<Active>,
    pub(crate) tip: Tip,
    pub(crate) chain: Chain,
    /// The tip as of the last sync.
    pub(crate) synced: Tip,
    /// Records written since then.
    pub(crate) unsynced: u64,
    /// Reports written since then: they are written again when the sync fails.
    pub(crate) unsynced_reports: Vec<Gap>,
    pub(crate) failed: bool,
    /// How far checkpoints seal it.
    pub(crate) sealed: Sealed,
    pub(crate) disk_low: bool,
    pub(crate) uids: UidSource,
    pub(crate) buffer: Vec<u8>,
}

impl Spool {
    /// How the spool fares.
    pub fn status(&self) -> &Arc<Status> {
        &self.shared.status
    }

    /// Whose numbers these are.
    pub fn stream(&self) -> [u8; 16] {
        self.stream
    }

    /// The end of the chain, synced or not.
    pub fn tip(&self) -> Tip {
        self.tip
    }

    /// True when nothing is written until [`Self::reopen`].
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    /// Gives numbers to records that were lost before they came here.
    pub fn lose(&mut self, now: u64, records: u64, reason: Reason) {
        if records > 0 {
            let first = self.tip.next;
            self.tip.next += records;
            let gap = Gap {
                first,
                last: first + records - 1,
                records,
                since: self.tip.time,
                until: now,
                reason,
                before: None,
                after: None,
                sink: None,
            };
            self.shared.lose(gap);
        }
    }

    /// Writes a batch of `records` finished `log_records` fields. With [`Sync::Always`] it is synced too.
    ///
    /// # Errors
    /// The batch is lost then, by name: its records have numbers, and a gap is reported as soon as something can be
    /// written.
    pub fn append(&mut self, now: u64, records: u32, fields: &[u8]) -> Result<(), Error> {
        if let Err((reason, error)) = self.insist(now, fields) {
            self.lose(now, u64::from(records), reason);
            self.mark_full();
            return Err(error);
        }
        match self.config.sync {
            Sync::Always => self.sync(),
            Sync::Interval(_) => Ok(()),
        }
    }

    /// Writes what has to be reported, if there is something.
    ///
    /// # Errors
    /// When it cannot be written; it is kept.
    pub fn report(&mut self, now: u64) -> Result<(), Error> {
        if self.failed || self.shared.lock().unreported.is_empty() {
            return Ok(());
        }
        self.insist(now, &[]).map_err(|(_, error)| error)
    }

    /// On a full disk the oldest segments go until there is room, if they may; each try removes one.
    pub(crate) fn insist(&mut self, now: u64, fields: &[u8]) -> Result<(), (Reason, Error)> {
        loop {
            match self.try_append(now, fields) {
                Err((Reason::DiskLow, error)) => {
                    let may = self.config.on_full == OnFull::DropOldest;
                    if !may || !self.drop_oldest(Reason::DiskLow).unwrap_or(false) {
                        return Err((Reason::DiskLow, error));
                    }
                }
                done => return done,
            }
        }
    }

    fn try_append(&mut self, now: u64, fields: &[u8]) -> Result<(), (Reason, Error)> {
        if self.failed {
            return Err((Reason::SyncFailed, Error::Failed));
        }
        let count = check(fields).ok_or((Reason::Malformed, Error::Malformed))?;
        let estimate = fields.len() as u64 + ENTRY_OVERHEAD * (count + 1);
        self.make_room(estimate)?;
        self.segment_for(now, estimate).map_err(|error| (reason(&error), error))?;
        let (tip, holders_left) = (self.tip, self.active.as_ref().map_or(0, |active| active.holders_left));
        let reports = self.frame(now, fields);
        if let Err(error) = self.write() {
            // The numbers of the records are the caller's to lose; the reports wait for the next try.
            self.tip = tip;
            self.chain.forget_holders();
            if let Some(active) = &mut self.active {
                active.holders_left = holders_left;
            }
            let mut state = self.shared.lock();
            reports.into_iter().for_each(|gap| note(&mut state.unreported, gap));
            state.unsynced_report = self.unsynced_reports.iter().map(|gap| gap.first).min();
            drop(state);
            if matches!(error, Error::Failed) {
                self.fail(now);
            }
            return Err((reason(&error), error));
        }
        self.unsynced += count + reports.len() as u64;
        self.unsynced_reports.extend(reports);
        Ok(())
    }

    /// Puts the reports that wait and the records into the buffer, as entries of the active segment.
    fn frame(&mut self, now: u64, fields: &[u8]) -> Vec<Gap> {
        let reports: Vec<Gap> = {
            let mut state = self.shared.lock();
            let count = state.unreported.len().min(REPORTS_MAX);
            let reports: Vec<Gap> = state.unreported.drain(..count).collect();
            let lowest = reports.iter().map(|gap| gap.first);
            state.unsynced_report = lowest.chain(state.unsynced_report).min();
            reports
        };
        self.buffer.clear();
        let mut count = 0;
        let mut plain = Vec::new();
        for gap in &reports {
            plain.clear();
            gap.encode(self.uids.next(now / 1_000_000), now, &mut plain);
            for content in field::contents(&plain).flatten() {
                count += u32::from(self.entry(Code::Report, content));
            }
        }
        for content in field::contents(fields).flatten() {
            count += u32::from(self.entry(Code::Record, content));
        }
        let end = segment::batch_end(count, now, &self.tip.digest);
        let (epoch, last) = (self.epoch(), self.tip.next - 1);
        let done = segment::append::<field::Malformed>(&mut self.buffer, epoch, Code::BatchEnd, last, |out| {
            out.extend_from_slice(&end);
            Ok(())
        });
        debug_assert!(done.is_ok(), "nothing in it can fail");
        self.tip.time = now;
        reports
    }

    fn epoch(&self) -> u64 {
        self.active.as_ref().map_or(0, |active| active.segment.epoch)
    }

    /// Puts one record into the buffer; true when it fits, which was checked.
    fn entry(&mut self, code: Code, content: &[u8]) -> bool {
        let Self { active: Some(active), chain, buffer, tip, config, .. } = self else { return false };
        let (epoch, sequence) = (active.segment.epoch, tip.next);
        let at = field::attributes_at(content);
        let Context { length, digest, holders } = chain.context(&content[at..]);
        let (front, context) = (field::HEAD_BYTES + at, at..at + length);
        let form = match holders {
            Some(holders) if code == Code::Record && length > SHORT_HEAD_BYTES && front <= u8::MAX.into() => {
                let begin = active.bytes + buffer.len() as u64;
                let end = begin + content.len() as u64 + ENTRY_OVERHEAD;
                let distance = HOLDERS_DISTANCE.min(config.segment_bytes() / 8);
                holders.next(Candidate { epoch, sequence, begin, end }, distance, &mut active.holders_left)
            }
            Some(_) | None => Form::Whole,
        };
        let (code, head, left_out) = match form {
            Form::Whole => (code, None, 0..0),
            Form::Holder => (Code::Holder, None, 0..0),
            // Shorter than 256 bytes: looked at above.
            Form::Short(holders) => (Code::Short, Some(short_head(holders, front as u8)), context.clone()),
        };
        // What follows the context in the field as it is written, behind the head.
        let after = front + context.len() - left_out.len();
        let written = segment::append(buffer, epoch, code, sequence, |out| {
            out.extend_from_slice(head.as_ref().map_or(&[], |head| head.as_slice()));
            field::append_numbered_without(out, content, left_out, sequence)
        });
        let Ok(payload) = written else { return false };
        let field = &buffer[payload][head.map_or(0, |head| head.len())..];
        tip.digest = chain.digest(&tip.digest, sequence, [&digest, &field[..front], &field[after..]]);
        tip.next += 1;
        true
    }

    /// Writes the buffer, or leaves the segment as it was; [`Error::Failed`] when that is not possible either.
    fn write(&mut self) -> Result<(), Error> {
        let Some(active) = &mut self.active else { return Err(Error::Failed) };
        let end = active.bytes + self.buffer.len() as u64;
        if end > active.reserved {
            active.reserved = end.next_multiple_of(RESERVED_BYTES);
            let free = self.shared.storage.free_bytes().unwrap_or(0);
            if free.saturating_sub(self.config.min_free_bytes) >= SPARE_BYTES_MIN {
                active.file.reserve(active.reserved);
            }
        }
        let Err(error) = active.file.append(&self.buffer) else {
            active.bytes = end;
            self.shared.status.bytes.fetch_add(self.buffer.len() as u64, Relaxed);
            return Ok(());
        };
        active.file.truncate(active.bytes).map_err(|_| Error::Failed)?;
        active.reserved = active.bytes;
        Err(storage("a record could not be written")(error))
    }

    /// Makes sure that there is a segment with room for `bytes`.
    fn segment_for(&mut self, now: u64, bytes: u64) -> Result<(), Error> {
        let limit = self.config.segment_bytes();
        let age = u64::try_from(self.config.max_age.as_nanos() / 16).unwrap_or(u64::MAX);
        let fits = |active: &Active| {
            let empty = active.bytes <= HEADER_BYTES as u64;
            empty || (active.bytes + bytes <= limit && now.saturating_sub(active.segment.since) <= age)
        };
        if self.active.as_ref().is_some_and(fits) { Ok(()) } else { self.begin_segment(now) }
    }

    /// Ends the active segment, if there is one, and begins another.
    pub(crate) fn begin_segment(&mut self, now: u64) -> Result<(), Error> {
        self.seal()?;
        let (stream, first) = (self.stream, self.tip.next);
        let epoch = random();
        let (rule, previous, digest) = (Rule::Context, self.tip.time, self.tip.digest);
        let header = Header { rule, stream, epoch, first, created: now, previous, digest }.encode();
        let segment = Segment { first, epoch, bytes: HEADER_BYTES as u64, last: first - 1, since: now, until: now };
        let store = &self.shared.storage;
        let made = store.create(&segment.name()).and_then(|mut file| {
            file.append(&header)?;
            file.sync()?;
            store.sync_directory()?;
            Ok(file)
        });
        let file = made.map_err(|source| {
            // What is left of it holds no record; the next start removes it.
            let _gone = store.remove(&segment.name());
            storage("a segment could not be made")(source)
        })?;
        self.shared.status.bytes.fetch_add(HEADER_BYTES as u64, Relaxed);
        self.shared.lock().segments.push_back(segment);
        self.active =
            Some(Active { file, segment, bytes: HEADER_BYTES as u64, reserved: 0, holders_left: HOLDERS_MAX });
        Ok(())
    }

    /// Syncs the active segment and writes to it no more.
    pub(crate) fn seal(&mut self) -> Result<(), Error> {
        self.sync()?;
        if let Some(mut active) = self.active.take() {
            // What stays reserved goes with the segment.
            let _kept = active.file.truncate(active.bytes);
        }
        Ok(())
    }

    /// Makes what was written survive the end of the machine, and shows it to the reader.
    ///
    /// # Errors
    /// What was written since the last sync is lost then, by name, and nothing is written until [`Self::reopen`].
    pub fn sync(&mut self) -> Result<(), Error> {
        if self.failed {
            return Err(Error::Failed);
        }
        let Some(active) = &mut self.active else { return Ok(()) };
        if active.bytes == active.segment.bytes {
            return Ok(());
        }
        if let Err(error) = active.file.sync() {
            let now = self.tip.time;
            self.fail(now);
            return Err(storage("records could not be synced")(error));
        }
        active.segment.bytes = active.bytes;
        active.segment.last = self.tip.next - 1;
        active.segment.until = self.tip.time;
        let mut state = self.shared.lock();
        if let Some(last) = state.segments.back_mut() {
            *last = active.segment;
        }
        for consumer in &state.consumers {
            let oldest = &self.shared.status.oldest_unsent[consumer.sink as usize];
            let _unset = oldest.compare_exchange(0, self.tip.time, Relaxed, Relaxed);
        }
        state.unsynced_report = None;
        drop(state);
        self.shared.status.spooled.fetch_add(self.unsynced, Relaxed);
        (self.synced, self.unsynced) = (self.tip, 0);
        self.unsynced_reports.clear();
        Ok(())
    }

    /// Trusts nothing any more that is not synced.
    pub(crate) fn fail(&mut self, now: u64) {
        self.failed = true;
        let reports = std::mem::take(&mut self.unsynced_reports);
        let lost = std::mem::take(&mut self.unsynced).saturating_sub(reports.len() as u64);
        let (first, last) = (self.synced.next, self.tip.next - 1);
        (self.tip.digest, self.tip.time) = (self.synced.digest, self.synced.time);
        let any = lost > 0 || !reports.is_empty();
        {
            let mut state = self.shared.lock();
            reports.into_iter().for_each(|gap| note(&mut state.unreported, gap));
            state.unsynced_report = None;
        }
        if any {
            let (since, reason) = (self.synced.time, Reason::SyncFailed);
            let (until, records) = (now, lost);
            let gap = Gap { first, last, records, since, until, reason, before: None, after: None, sink: None };
            self.shared.lose(gap);
        }
        self.mark_full();
    }

    /// Less than an eighth of the room is left.
    pub(crate) fn is_full(&self) -> bool {
        self.shared.status.bytes() + self.config.max_bytes / 8 > self.config.max_bytes
    }

    /// Asks for traffic or for none.
    pub(crate) fn mark_full(&self) {
        let full = self.failed || self.disk_low || self.is_full();
        self.shared.status.full.store(full && self.config.on_full == OnFull::Refuse, Relaxed);
    }
}

/// A full disk is told from other failures.
fn reason(error: &Error) -> Reason {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match error {
        Error::Storage { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded) => Reason::DiskLow,
        Error::Full => Reason::SpoolFull,
        Error::Malformed => Reason::Malformed,
        Error::Failed => Reason::SyncFailed,
        Error::Storage { .. } | Error::Locked(_) => Reason::WriteFailed,
    }
}

/// How many records a batch has, when each of them is a finished field that can take its number.
fn check(fields: &[u8]) -> Option<u64> {
    field::contents(fields).try_fold(0, |count, content| {
        let fits = content.is_ok_and(|content| content.len() + ENTRY_OVERHEAD as usize <= field::BYTES_MAX);
        fits.then_some(count + 1)
    })
}

/// Unlike any other number; nobody outside can know it.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    // Fails only where the system has no randomness at all; then it is merely unlike the others.
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        use std::hash::{BuildHasher, Hasher};
        return std::collections::hash_map::RandomState::new().build_hasher().finish();
    }
    u64::from_le_bytes(bytes)
}
