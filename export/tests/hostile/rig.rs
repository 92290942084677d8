//! A spool filled through the real writer, a shipper behind it, and the questions that are asked at the end.

use std::{
    collections::HashSet,
    future::pending,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use export::{Batch, Counters, Sender, Spooled, otlp, queue};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use record::{Event, EventName, Severity, UidSource, Value, key};
use spool::{Disk, OnFull, Spool, Status, Sync};

use crate::server::{Collector, number, text};

/// Of each record, about what a request's record has.
const PADDING: &str = "GET /api/v1/orders/4711 spiffe://example.org/ns/shop/sa/frontend spiffe://example.org/ns/shop/sa/orders \
                       10.0.0.1 10.96.0.7 10.244.0.3 TLS_AES_128_GCM_SHA256 X25519MLKEM768 orders-5f7d8c9b4-abcde.shop";
pub(crate) const RECORDS: usize = 100_000;

/// A directory, removed when dropped.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("picket-hostile-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn limits(max_bytes: u64) -> spool::Config {
    spool::Config {
        max_bytes,
        max_age: Duration::from_secs(24 * 3600),
        min_free_bytes: 0,
        sync: Sync::Interval(Duration::from_millis(20)),
        on_full: OnFull::DropOldest,
        uid_seed: 5,
    }
}

/// Uids unlike those of another `seed`.
pub(crate) fn uids(seed: u128) -> UidSource {
    UidSource::new(seed << 64)
}

/// A batch of records, and their uids.
pub(crate) fn batch(uids: &mut UidSource, time: u64, records: usize) -> (Batch, Vec<String>) {
    let (mut fields, mut names) = (Vec::new(), Vec::new());
    for _ in 0..records {
        let uid = uids.next(time / 1_000_000);
        names.push(String::from_utf8(uid.text().to_vec()).unwrap());
        let attributes = [(key::DETAIL, Value::Text(PADDING))];
        Event {
            uid,
            name: EventName::Issuance,
            time_unix_nanos: time,
            severity: Severity::Info,
            attributes: &attributes,
        }
        .encode(&mut fields);
    }
    (Batch { records: records as u32, fields: fields.into() }, names)
}

pub(crate) struct Rig {
    pub(crate) directory: Directory,
    pub(crate) sender: Sender,
    pub(crate) counters: Arc<Counters>,
    pub(crate) sent: HashSet<String>,
    status: Arc<Status>,
    spooled: Option<Spooled>,
    shipping: Option<tokio::task::JoinHandle<()>>,
}

impl Rig {
    /// A spool with this many records that wait, all of them in it: what is reported later has later numbers.
    pub(crate) fn new(name: &str, max_bytes: u64, records: usize) -> Self {
        let directory = Directory::new(name);
        let disk = Arc::new(Disk::open(&directory.0.join("spool")).unwrap());
        let (spool, reader, _) = Spool::open(disk, limits(max_bytes), 1_000_000_000).unwrap();
        let (sender, receiver) = queue(256 << 20);
        let status = Arc::clone(spool.status());
        let spooled = Spooled::spawn(receiver, spool, reader, limits(max_bytes).sync).unwrap();
        let counters = Arc::clone(sender.counters());
        let mut rig =
            Self { directory, sender, counters, sent: HashSet::new(), status, spooled: Some(spooled), shipping: None };
        let mut uids = uids(7);
        for _ in 0..records / 250 {
            rig.send(&mut uids, 250);
        }
        let end = Instant::now() + Duration::from_secs(60);
        while rig.status.spooled() < records as u64 {
            assert!(Instant::now() < end, "{} of {records} records are in the spool", rig.status.spooled());
            std::thread::sleep(Duration::from_millis(5));
        }
        rig
    }

    pub(crate) fn send(&mut self, uids: &mut UidSource, records: usize) {
        let (batch, names) = batch(uids, 1_764_000_000_000_000_000, records);
        self.sender.send(batch).unwrap();
        self.sent.extend(names);
    }

    pub(crate) fn spooled(&self) -> &Spooled {
        self.spooled.as_ref().unwrap()
    }

    pub(crate) fn ship(&mut self, config: otlp::Config) {
        self.ship_with(otlp::Shipper::new(config).unwrap());
    }

    pub(crate) fn ship_with(&mut self, shipper: otlp::Shipper) {
        let spooled = self.spooled.take().unwrap();
        self.shipping = Some(tokio::spawn(shipper.run_spooled(spooled, pending(), Duration::ZERO)));
    }

    /// Waits until each record was taken or refused, and what follows from that is done.
    pub(crate) async fn settled(&self, within: Duration) {
        let (end, all) = (Instant::now() + within, self.sent.len() as u64);
        while self.status.spooled() < all || self.status.oldest_unsent().is_some() {
            let settled = self.counters.acknowledged() + self.counters.rejected();
            assert!(Instant::now() < end, "{settled} of {all} records after {within:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the shipping, after everything was taken.
    pub(crate) async fn end(self) -> Ended {
        let Self { directory, sender, counters, sent, shipping, .. } = self;
        drop(sender);
        shipping.unwrap().await.unwrap();
        Ended { directory, counters, sent }
    }
}

pub(crate) struct Ended {
    pub(crate) directory: Directory,
    pub(crate) counters: Arc<Counters>,
    pub(crate) sent: HashSet<String>,
}

impl Ended {
    /// The uids in the set-aside file.
    pub(crate) fn set_aside(&self) -> HashSet<String> {
        let path = self.directory.0.join("spool").join(spool::SET_ASIDE);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let uid = |record: &serde_json::Value| {
            let attributes = record["attributes"].as_array().unwrap().iter();
            let uid = attributes.clone().find(|attribute| attribute["key"] == key::LOG_RECORD_UID).unwrap();
            uid["value"]["stringValue"].as_str().unwrap().to_owned()
        };
        let records = |line: serde_json::Value| {
            line["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
                .as_array()
                .unwrap()
                .iter()
                .map(uid)
                .collect::<Vec<_>>()
        };
        lines.flat_map(records).collect()
    }

    /// Each record is at the collector or set aside, what is missing there stands in gap records, and next to nothing came
    /// twice.
    pub(crate) fn check(&self, collector: &Collector) {
        let stored = collector.stored();
        let (there, aside) = (stored.uids(), self.set_aside());
        let missing = self.sent.difference(&there).filter(|uid| !aside.contains(*uid)).count();
        assert_eq!(missing, 0, "of {}; set aside {}", self.sent.len(), aside.len());
        let limit = self.sent.len() / 200;
        assert!(stored.repeated <= limit, "{} records came again after they were acknowledged", stored.repeated);
        check_gaps(&stored.records, |reason| reason == "set_aside");
    }
}

/// The numbers that are missing at the collector are those in gap records, which have one of these reasons.
pub(crate) fn check_gaps(records: &[LogRecord], is_expected: impl Fn(&str) -> bool) -> u64 {
    let numbers: HashSet<u64> = records.iter().map(|record| number(record, key::SEQUENCE).unwrap()).collect();
    let last = numbers.iter().max().copied().unwrap_or(0);
    let missing: HashSet<u64> = (1..=last).filter(|number| !numbers.contains(number)).collect();
    let (mut said, mut lost) = (HashSet::new(), 0);
    for gap in records.iter().filter(|record| record.event_name == "picket.gap") {
        let reason = text(gap, key::GAP_REASON).unwrap();
        assert!(is_expected(reason), "a gap by {reason}");
        let range = number(gap, key::GAP_FIRST).unwrap()..=number(gap, key::GAP_LAST).unwrap();
        lost += number(gap, key::GAP_RECORDS).unwrap();
        said.extend(range.filter(|number| missing.contains(number)));
    }
    assert_eq!(missing, said, "what is missing is what the gap records say");
    assert_eq!(lost, missing.len() as u64, "and as many");
    lost
}
