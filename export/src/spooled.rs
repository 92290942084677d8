//! The spool between the workers' queue and the shipper: a thread that writes and syncs, and the way back to the reader.
//!
//! Promises: the queue in front is bounded and its sender never waits; what it drops gets numbers too, and a gap record; a
//! spool that failed is opened again, at most once a second; each trouble is one log line when it begins and one when it
//! is over, and so is each time in which records are lost for want of room. Checkpoints are made here, at intervals and at the
//! end, as soon as there is a key to sign them.

use std::{
    collections::VecDeque,
    error::Error as _,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant, UNIX_EPOCH},
};

use bytes::Bytes;
use record::{EventName, Severity, line};
use spool::{Reader, Reason, Signed, Spool, Sync};
use tokio::sync::Notify;

use crate::{Alerts, Batch, Counters, Receiver, queue::Waited};

/// How often what is old or acknowledged is removed, the free disk looked at, and a failed spool opened again.
const TICK: Duration = Duration::from_secs(1);
/// How long there must be enough free disk before that is over.
const DISK_CALM: Duration = Duration::from_secs(60);

const SPOOL_FULL: &str = "spool_full";
const DISK_LOW: &str = "disk_low";
const SPOOL_FAILING: &str = "spool_failing";
/// Alerts that wait to go past the spool, at most; the oldest goes.
const PAST_MAX: usize = 16;
/// After this long without a loss, the next one is said again.
const LOSSES_OVER: Duration = Duration::from_secs(60);

/// The reading end of a spool that a thread writes.
#[derive(Debug)]
pub struct Spooled {
    /// Away only while it reads.
    pub(crate) reader: Option<Reader>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) signals: Arc<Signals>,
    /// Of several readers the first one has it.
    thread: Option<JoinHandle<()>>,
}

/// Signs for the workload; `None` while it has no certificate that counts.
pub type Sign = dyn Fn(&[u8]) -> Option<Signed> + Send;

/// How the spool's chain is sealed.
pub struct Sealing {
    /// How long a record waits for its seal at most, while there is a key.
    pub interval: Duration,
    /// Who signs.
    pub sign: Box<Sign>,
}

impl std::fmt::Debug for Sealing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealing").field("interval", &self.interval).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Signals {
    /// Something was synced, or the writer has ended.
    pub(crate) synced: Notify,
    pub(crate) ended: AtomicBool,
    /// Alerts that the spool could not take; for the collector, past it.
    past: Mutex<VecDeque<Bytes>>,
    alerts: OnceLock<Weak<Alerts>>,
}

impl Signals {
    /// An alert that has to go past the spool: a finished `log_records` field without a number.
    pub(crate) fn next_past(&self) -> Option<Bytes> {
        self.past().pop_front()
    }

    fn past(&self) -> MutexGuard<'_, VecDeque<Bytes>> {
        // Nothing panics while it holds the lock.
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spooled {
    /// Writes what comes out of `receiver` into `spool`, until all senders are gone and the queue is empty.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn spawn(receiver: Receiver, spool: Spool, reader: Reader, sync: Sync) -> std::io::Result<Self> {
        Ok(Self::spawn_all(receiver, spool, vec![reader], sync, None)?.remove(0))
    }

    /// As [`Self::spawn`], for several readers, and seals the chain where `sealing` says how. The first reader's counters
    /// are those of the queue.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn spawn_all(
        receiver: Receiver,
        spool: Spool,
        readers: Vec<Reader>,
        sync: Sync,
        sealing: Option<Sealing>,
    ) -> std::io::Result<Vec<Self>> {
        let mut counters = Some(Arc::clone(receiver.counters()));
        let signals: Vec<Arc<Signals>> = readers.iter().map(|_| Arc::default()).collect();
        let interval = match sync {
            Sync::Always => TICK,
            Sync::Interval(interval) => interval.min(TICK),
        };
        let (lost, trouble, failed_at, full_lost, disk_low, losses) = Default::default();
        let signals_of = signals.clone();
        let writer = Writer {
            receiver,
            spool,
            interval,
            sealing,
            signals: signals_of,
            lost,
            trouble,
            failed_at,
            full_lost,
            disk_low,
            losses,
        };
        let mut thread = Some(std::thread::Builder::new().name("spool".to_owned()).spawn(move || writer.run())?);
        let spooled = readers.into_iter().zip(signals).map(|(reader, signals)| {
            let counters = counters.take().unwrap_or_default();
            Self { reader: Some(reader), counters, signals, thread: thread.take() }
        });
        Ok(spooled.collect())
    }

    /// What the sink has done.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The next records, if there are any; what was found damaged is said.
    ///
    /// # Cancellation
    /// The reader is lost then: only for the end.
    pub(crate) async fn next_chunk(&mut self, bytes_max: usize) -> Option<spool::Chunk> {
        let mut reader = self.reader.take()?;
        // Files are read elsewhere: this thread also answers probes.
        let read = tokio::task::spawn_blocking(move || {
            let chunk = reader.next(bytes_max);
            (reader, chunk)
        });
        let (reader, chunk) = read.await.ok()?;
        self.reader = Some(reader);
        match chunk {
            Ok(chunk) => {
                chunk.iter().for_each(say_damage);
                chunk
            }
            Err(error) => {
                say_unreadable(&error);
                tokio::time::sleep(TICK).await;
                None
            }
        }
    }

    /// Waits until there is something to read, and says whether it had to; `None` when nothing will come any more. What was given
    /// out is given out again.
    pub(crate) async fn wait_for_records(&mut self) -> Option<bool> {
        let mut waited = false;
        loop {
            let ended = self.signals.ended.load(Relaxed);
            let found = self.next_chunk(1).await.is_some();
            if let Some(reader) = &mut self.reader {
                reader.rewind();
            }
            if found || ended || self.reader.is_none() {
                return found.then_some(waited);
            }
            self.signals.synced.notified().await;
            waited = true;
        }
    }

    /// Alerts go this way. They are not kept open: they end with whoever made them.
    pub fn alert_through(&self, alerts: &Arc<Alerts>) {
        // Once is enough, and a second one would be the same.
        let _set = self.signals.alerts.set(Arc::downgrade(alerts));
    }

    /// The way of alerts, while there is one.
    pub(crate) fn alerts(&self) -> Option<Arc<Alerts>> {
        self.signals.alerts.get()?.upgrade()
    }

    /// Waits until everything is written and the spool is closed; to be called when the senders are gone.
    pub(crate) fn join(self) {
        // A panic there was logged by the runtime.
        let _ended = self.thread.map(JoinHandle::join);
    }
}

/// Says what was found damaged, once for all readers; of many places in one chunk the first, and how many more there are.
pub(crate) fn say_damage(chunk: &spool::Chunk) {
    let mut new = chunk.damage.iter().filter(|damage| !damage.is_known);
    if let Some(damage) = new.next() {
        let (segment, offset, bytes, more) = (&damage.segment, damage.offset, damage.bytes, new.count());
        tracing::error!(segment, offset, bytes, records = ?damage.records, more, "a segment of the spool is damaged");
    }
}

fn say_unreadable(error: &(dyn std::error::Error + 'static)) {
    tracing::error!(error, "the spool cannot be read");
}

struct Writer {
    receiver: Receiver,
    spool: Spool,
    interval: Duration,
    sealing: Option<Sealing>,
    signals: Vec<Arc<Signals>>,
    /// Records that the queue has dropped, as far as they have numbers.
    lost: u64,
    /// Something fails, and was said.
    trouble: bool,
    /// Records that were synced when something failed last.
    failed_at: u64,
    /// Records that went because the spool was full, as of the last tick.
    full_lost: u64,
    /// When there was last too little free disk.
    disk_low: Option<Instant>,
    losses: Losses,
}

/// What was said about records that were lost.
#[derive(Debug, Default)]
struct Losses {
    /// Lost for each reason when the time began in which records are lost, and at the last look.
    before: [u64; Reason::ALL.len()],
    seen: [u64; Reason::ALL.len()],
    /// When the last one was seen to be lost.
    since: Option<Instant>,
}

impl Writer {
    fn run(mut self) {
        // At once, so that a process which never lives for long keeps to its limits, too.
        self.tick();
        let (mut synced, mut ticked, mut sealed) = (Instant::now(), Instant::now(), Instant::now());
        loop {
            let deadline = synced + self.interval;
            match self.receiver.recv_until(deadline) {
                Waited::Batch(batch) => {
                    self.count_dropped();
                    let done = self.spool.append(now(), batch.records, &batch.fields);
                    if done.is_err() {
                        self.pass_by(&batch);
                    }
                    self.note(done);
                }
                Waited::Nothing => {}
                Waited::Ended => break,
            }
            let at = Instant::now();
            if at >= deadline {
                self.sync();
                synced = at;
            }
            if at >= ticked + TICK {
                self.tick();
                ticked = at;
                // What could not be sealed now is tried again at the next tick.
                if self.sealing.as_ref().is_some_and(|sealing| at >= sealed + sealing.interval) && self.seal() {
                    sealed = at;
                }
            }
        }
        self.count_dropped();
        self.tick();
        self.seal();
        let done = self.spool.close(now());
        self.note(done);
        for signals in &self.signals {
            signals.ended.store(true, Relaxed);
        }
        self.wake();
    }

    fn count_dropped(&mut self) {
        let dropped = self.receiver.counters().dropped();
        self.spool.lose(now(), dropped.saturating_sub(self.lost), Reason::QueueFull);
        self.lost = dropped;
    }

    fn sync(&mut self) {
        if !self.spool.is_failed() {
            let done = self.spool.sync();
            self.note(done);
            self.wake();
        }
    }

    fn wake(&self) {
        self.signals.iter().for_each(|signals| signals.synced.notify_one());
    }

    fn tick(&mut self) {
        self.count_dropped();
        let done = if self.spool.is_failed() { self.spool.reopen(now()) } else { Ok(()) };
        let done = done.and_then(|()| self.spool.tick(now()));
        // Only what was synced since shows that it is over: a segment that can be made may still not be written.
        let fine = done.is_ok() && !(self.trouble && self.spool.status().spooled() <= self.failed_at);
        self.note(done);
        if fine {
            self.alert_failing(None);
        }
        self.alert();
        if self.trouble && fine {
            self.trouble = false;
            tracing::info!("the spool takes records again; what was lost meanwhile is in gap records");
        }
        self.note_losses();
    }

    /// Says when records begin to be lost, and how many were when none has been for a while.
    fn note_losses(&mut self) {
        let status = self.spool.status();
        // What is set aside is not at the collector, but it is not lost.
        let lost = Reason::ALL.map(|reason| if reason == Reason::SetAside { 0 } else { status.lost(reason) });
        let words = |before: &[u64], lost: &[u64]| {
            let counts = Reason::ALL.iter().zip(before.iter().zip(lost)).filter(|(_, (before, lost))| lost > before);
            let words = counts.map(|(reason, (before, lost))| format!("{} {}", lost - before, reason.as_str()));
            words.collect::<Vec<_>>().join(", ")
        };
        let at = Instant::now();
        if lost != self.losses.seen {
            if self.losses.since.is_none() && !self.trouble {
                let records = words(&self.losses.seen, &lost);
                tracing::warn!(records, "records are being lost; gap records say which");
            }
            self.losses.since = Some(at);
            self.losses.seen = lost;
        } else if self.losses.since.is_some_and(|since| at >= since + LOSSES_OVER) {
            let records = words(&self.losses.before, &lost);
            tracing::info!(records, "no record was lost for a minute");
            (self.losses.since, self.losses.before) = (None, lost);
        }
    }

    fn alerts(&self) -> Option<Arc<Alerts>> {
        self.signals.iter().find_map(|signals| signals.alerts.get()?.upgrade())
    }

    /// Says that the spool takes nothing, such as on a disk that turned read-only, and when it does again.
    fn alert_failing(&self, error: Option<&spool::Error>) {
        let Some(alerts) = self.alerts() else { return };
        match error {
            // No room has an alert of its own.
            Some(spool::Error::Full) => {}
            Some(error) => {
                let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                let detail = format!(
                    "the spool cannot be written, and records are lost: {error}{cause}. It is tried again each second; look at the disk"
                );
                alerts.fire(SPOOL_FAILING, Severity::Warn, &detail);
            }
            None => alerts.resolve(SPOOL_FAILING, "the spool is written again; gap records say what was lost"),
        }
    }

    /// An alert that the spool cannot take goes past it, as it is: somebody should look now. It has no number, and its place is in
    /// a gap.
    fn pass_by(&self, batch: &Batch) {
        let is_alert = |record| line::time_and_name(record).1 == EventName::Alert.as_str();
        if batch.records != 1 || !line::records(&batch.fields).any(is_alert) {
            return;
        }
        for signals in &self.signals {
            let mut past = signals.past();
            if past.len() >= PAST_MAX {
                past.pop_front();
            }
            past.push_back(batch.fields.clone());
        }
        self.wake();
    }

    /// Says what needs a person, and when it is over.
    fn alert(&mut self) {
        let status = self.spool.status();
        let lost = status.lost(Reason::SpoolFull);
        let (bytes, limit) = (status.bytes(), status.limit_bytes());
        let is_fuller = std::mem::replace(&mut self.full_lost, lost) < lost || status.is_full();
        self.disk_low = if status.is_disk_low() { Some(Instant::now()) } else { self.disk_low };
        let Some(alerts) = self.alerts() else { return };
        if is_fuller {
            let detail = format!(
                "the records that wait have {bytes} bytes of {limit} (spool.maxBytes); {lost} have gone so far. Is the collector away?"
            );
            alerts.fire(SPOOL_FULL, Severity::Warn, &detail);
        } else if bytes <= limit / 4 * 3 {
            alerts
                .resolve(SPOOL_FULL, &format!("the records that wait have {bytes} bytes of {limit}; {lost} have gone"));
        }
        match self.disk_low {
            Some(last) if last.elapsed() < DISK_CALM => {
                let lost = status.lost(Reason::DiskLow);
                let detail = format!(
                    "the spool's file system has less free than spool.minFreeBytes; {lost} records have gone so far. Make room, or give the spool a file system of its own"
                );
                alerts.fire(DISK_LOW, Severity::Warn, &detail);
            }
            Some(_) => {
                self.disk_low = None;
                alerts.resolve(DISK_LOW, "there is enough free disk");
            }
            None => {}
        }
    }

    /// Makes a checkpoint, if there is something to seal and a key; false when it is to be tried again soon.
    fn seal(&mut self) -> bool {
        let Some(sealing) = &self.sealing else { return true };
        if self.spool.is_failed() {
            return false;
        }
        let signed = std::cell::Cell::new(true);
        let sign = |message: &[u8]| {
            let done = (sealing.sign)(message);
            signed.set(done.is_some());
            done
        };
        match self.spool.checkpoint(now(), &sign) {
            Ok(number) => {
                if let Some(number) = number {
                    let digest: String = self.spool.tip().digest.iter().map(|byte| format!("{byte:02x}")).collect();
                    tracing::debug!(number, digest, "the chain of records is sealed");
                    self.wake();
                }
                signed.get()
            }
            // No room is no trouble of its own: gap records tell of what it costs.
            Err(spool::Error::Full) => false,
            Err(error) if self.spool.is_failed() => {
                self.note(Err(error));
                false
            }
            // Nothing is lost; the next try seals more.
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::debug!(error, "no checkpoint could be made; it is tried again");
                false
            }
        }
    }

    /// Says once that something fails.
    fn note(&mut self, done: Result<(), spool::Error>) {
        let Err(error) = done else { return };
        if !matches!(error, spool::Error::Full | spool::Error::Malformed) {
            self.alert_failing(Some(&error));
        }
        self.failed_at = self.spool.status().spooled();
        if !std::mem::replace(&mut self.trouble, true) {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "the spool loses records; each will be in a gap record");
        }
    }
}

fn now() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
#[path = "spooled_tests.rs"]
mod tests;
