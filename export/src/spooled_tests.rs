//! A spool's thread on disks whose syncs take seconds or fail: whoever sends does not wait, the queue stays within its
//! bounds, and the gap records say exactly what is missing.

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use record::{Event, EventName, Severity, UidSource, Value, field, key, line};
use spool::{Config, Disk, File, Gap, OnFull, Reason, Spool, Status, Storage, Sync};

use crate::{Batch, Counters, Sender, Spooled, queue};

const QUEUE_BYTES: usize = 512 << 10;
/// As long as a sync on a network disk that is away.
const SLOW: Duration = Duration::from_secs(2);
/// Whoever sends takes a lock for moments; this is much less than a sync, and much more than a busy machine needs.
const SEND_MAX: Duration = Duration::from_millis(500);
const RECORDS: u32 = 50;

#[derive(Debug, Default)]
struct Faults {
    fails: AtomicBool,
    slow: AtomicBool,
    /// All syncs of a file but its first one, which is that of its header, fail.
    data: AtomicBool,
    syncs: AtomicU64,
}

/// A real disk whose syncs can be made to fail, or to take their time.
#[derive(Debug)]
struct Faulty(Disk, Arc<Faults>);

/// With how many syncs it has seen.
#[derive(Debug)]
struct FaultyFile(Box<dyn File>, Arc<Faults>, u64);

impl File for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.1.slow.load(SeqCst) {
            std::thread::sleep(SLOW);
        }
        self.1.syncs.fetch_add(1, SeqCst);
        self.2 += 1;
        let fails = self.1.fails.load(SeqCst) || (self.1.data.load(SeqCst) && self.2 > 1);
        if fails { Err(io::Error::from_raw_os_error(5)) } else { self.0.sync() }
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.0.truncate(length)
    }
}

impl Storage for Faulty {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn length(&self, name: &str) -> io::Result<u64> {
        self.0.length(name)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(FaultyFile(self.0.create(name)?, Arc::clone(&self.1), 0)))
    }

    fn read(&self, name: &str, offset: u64, max: usize) -> io::Result<Vec<u8>> {
        self.0.read(name, offset, max)
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8], durable: bool) -> io::Result<()> {
        self.0.write_at(name, offset, bytes, durable)
    }

    fn truncate(&self, name: &str, length: u64) -> io::Result<()> {
        self.0.truncate(name, length)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.0.sync_directory()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }

    fn reopen(&self) -> io::Result<()> {
        self.0.reopen()
    }
}

/// A spool's thread, and the way into its queue.
struct Stage {
    directory: PathBuf,
    faults: Arc<Faults>,
    status: Arc<Status>,
    counters: Arc<Counters>,
    sender: Sender,
    spooled: Spooled,
    uids: UidSource,
    sent: u64,
}

impl Stage {
    fn new(name: &str, queue_bytes: usize) -> Self {
        let directory = std::env::temp_dir().join(format!("picket-spooled-{name}-{}", std::process::id()));
        let faults = Arc::<Faults>::default();
        let storage = Arc::new(Faulty(Disk::open(&directory).unwrap(), Arc::clone(&faults)));
        let sync = Sync::Interval(Duration::from_millis(10));
        let (max_bytes, max_age) = (64 << 20, Duration::from_secs(3600));
        let config = Config { max_bytes, max_age, min_free_bytes: 0, sync, on_full: OnFull::DropOldest, uid_seed: 1 };
        let (spool, reader, _) = Spool::open(storage, config, super::now()).unwrap();
        let (sender, receiver) = queue(queue_bytes);
        let (status, counters) = (Arc::clone(spool.status()), Arc::clone(sender.counters()));
        let spooled = Spooled::spawn(receiver, spool, reader, sync).unwrap();
        Self { directory, faults, status, counters, sender, spooled, uids: UidSource::new(2), sent: 0 }
    }

    /// Sends a batch; how long that took.
    fn send(&mut self) -> Duration {
        let mut fields = Vec::new();
        for _ in 0..RECORDS {
            let (uid, text) = (self.uids.next(1), "x".repeat(400));
            let (name, severity, attributes) = (EventName::Alert, Severity::Info, [(key::DETAIL, Value::Text(&text))]);
            Event { uid, name, time_unix_nanos: 1, severity, attributes: &attributes }.encode(&mut fields);
        }
        self.sent += u64::from(RECORDS);
        let begun = Instant::now();
        // What does not fit is counted, and that is looked at.
        let _full = self.sender.send(Batch { records: RECORDS, fields: fields.into() });
        assert!(self.counters.queued_bytes() <= self.counters.limit_bytes());
        begun.elapsed()
    }

    /// Sends until `done`; how long the slowest of all took.
    fn send_until(&mut self, done: impl Fn(&Self) -> bool) -> Duration {
        let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
        while !done(self) {
            assert!(begun.elapsed() < Duration::from_secs(20), "it does not come to an end");
            slowest = slowest.max(self.send());
            std::thread::sleep(Duration::from_millis(1));
        }
        slowest
    }

    fn lost(&self, reason: Reason) -> u64 {
        self.status.lost(reason)
    }

    /// Ends the thread; holds that each record is there or in a gap, and gives the gaps.
    fn end(self) -> Vec<Gap> {
        let Self { directory, mut spooled, sender, status, sent, .. } = self;
        drop(sender);
        let mut reader = spooled.reader.take().unwrap();
        spooled.join();
        let (mut numbers, mut gaps, mut records) = (BTreeSet::new(), Vec::new(), 0);
        while let Some(chunk) = reader.next(1 << 20).unwrap() {
            let mut rest = chunk.fields.as_slice();
            for content in field::contents(&chunk.fields).map(Result::unwrap) {
                let number = line::attributes(content).find(|(name, _)| *name == key::SEQUENCE);
                let Some((_, line::Attribute::Int(number))) = number else { panic!("a record without a number") };
                assert!(numbers.insert(number as u64), "{number} came twice");
                records += u64::from(Gap::decode(rest).is_none());
                gaps.extend(Gap::decode(rest));
                rest = &rest[4 + content.len()..];
            }
        }
        std::fs::remove_dir_all(directory).unwrap();
        let missing: Vec<u64> = (1..=*numbers.last().unwrap()).filter(|number| !numbers.contains(number)).collect();
        let reported: Vec<u64> = gaps.iter().flat_map(|gap| gap.first..=gap.last).collect();
        assert_eq!(missing, reported);
        let lost: u64 = Reason::ALL.iter().map(|reason| status.lost(*reason)).sum();
        assert_eq!((gaps.iter().map(|gap| gap.records).sum::<u64>(), records + lost), (lost, sent));
        gaps
    }
}

#[test]
fn while_a_sync_takes_seconds_nobody_waits_and_what_the_queue_drops_is_in_a_gap() {
    let mut stage = Stage::new("slow", QUEUE_BYTES);
    stage.send_until(|stage| stage.status.spooled() > 0);
    stage.faults.slow.store(true, SeqCst);
    let syncs = stage.faults.syncs.load(SeqCst);
    let slowest = stage.send_until(|stage| stage.faults.syncs.load(SeqCst) >= syncs + 2);
    assert!(slowest < SEND_MAX, "{slowest:?}");
    let dropped = stage.counters.dropped();
    assert!(dropped > 0, "the queue was never full");
    stage.faults.slow.store(false, SeqCst);
    let gaps = stage.end();
    assert!(gaps.iter().all(|gap| gap.reason == Reason::QueueFull), "{gaps:?}");
}

#[test]
fn while_syncs_fail_nobody_waits_and_what_was_in_doubt_is_in_a_gap() {
    // The queue takes all that comes meanwhile: what is lost here is lost by syncs alone.
    let mut stage = Stage::new("failing", 128 << 20);
    stage.send_until(|stage| stage.status.spooled() > 0);
    stage.faults.fails.store(true, SeqCst);
    // For more than one try to open it again.
    let syncs = stage.faults.syncs.load(SeqCst);
    let slowest = stage.send_until(|stage| stage.faults.syncs.load(SeqCst) >= syncs + 3);
    assert!(slowest < SEND_MAX, "{slowest:?}");
    assert!(stage.lost(Reason::SyncFailed) > 0);
    stage.faults.fails.store(false, SeqCst);
    let spooled = stage.status.spooled();
    stage.send_until(|stage| stage.status.spooled() > spooled);
    let gaps = stage.end();
    assert!(gaps.iter().all(|gap| gap.reason == Reason::SyncFailed), "{gaps:?}");
}

#[test]
fn the_alert_fires_while_data_cannot_be_synced_and_segments_can_be_made() {
    let mut stage = Stage::new("data", 128 << 20);
    let alerts = Arc::new(crate::Alerts::new(crate::Events::new(vec![stage.sender.clone()])));
    stage.spooled.alert_through(&alerts);
    stage.send_until(|stage| stage.status.spooled() > 0);
    stage.faults.data.store(true, SeqCst);
    stage.send_until(|_| alerts.is_firing("spool_failing"));
    // A new segment does not end it: nothing was written for good.
    let begun = Instant::now();
    stage.send_until(|_| {
        assert!(alerts.is_firing("spool_failing"));
        begun.elapsed() > Duration::from_secs(3)
    });
    stage.faults.data.store(false, SeqCst);
    stage.send_until(|_| !alerts.is_firing("spool_failing"));
    assert!(stage.lost(Reason::SyncFailed) > 0);
    let Stage { directory, spooled, sender, .. } = stage;
    drop((alerts, sender));
    spooled.join();
    std::fs::remove_dir_all(directory).unwrap();
}
