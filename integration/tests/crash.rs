//! The proxy is killed 200 times under load. What the spool has taken is at the collector in the end: each number once or
//! with the same uid, none half, none missing.
//!
//! How it is known what the spool has taken: by its own counter at `/metrics`, by what reached the collector, and by the
//! segment files as the killed process left them. What a kill may cost is what had not come that far: on each connection
//! the newest requests, and none before them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use integration::{
    DEADLINE, Stage, service,
    steady::{Answered, LOCATION, Load},
    streams::Streams,
};
use record::{field, key, line};
use serde_json::json;
use spool::{Header, Kind, Scan, Scanned};
use testkit::{Collector, LINK_IPV4, Settings, until};

const KILLS: u64 = 200;
const TARGET: u16 = 8083;
const COLLECTOR: u16 = 4319;
const HEADER_BYTES: usize = 96;
/// In these lives the collector is away.
const AWAY: std::ops::Range<u64> = 60..90;
/// A record is in the spool 20 ms after its request, and what the queue and a sync before it take; here with much room for
/// a loaded machine.
const LOST_MAX: Duration = Duration::from_secs(1);
const SPOOLED: &str = "picket_spool_records_written_total";

/// Numbers that look random and are the same each time (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % end
    }
}

/// What stands in the segments of one spool, as its processes left them.
#[derive(Default)]
struct Disk {
    directory: PathBuf,
    /// Segments that are read: a process writes to its own ones alone.
    read: HashSet<String>,
    /// The uid of each record, by its number.
    uids: BTreeMap<u64, String>,
    /// Segments whose end was not whole.
    torn: usize,
}

impl Disk {
    /// Reads what the process that has just ended left.
    fn take(&mut self) {
        let names = std::fs::read_dir(&self.directory).unwrap().map(|entry| entry.unwrap().path());
        let mut fresh: Vec<PathBuf> = names.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
        fresh.retain(|path| !self.read.contains(&name(path)));
        fresh.sort();
        for (at, path) in fresh.iter().enumerate() {
            let whole = self.take_segment(path);
            assert!(whole || at + 1 == fresh.len(), "{path:?} is not whole, and is not the last one");
            self.read.insert(name(path));
        }
    }

    /// Reads one segment; false when its end is not whole.
    fn take_segment(&mut self, path: &Path) -> bool {
        let bytes = std::fs::read(path).unwrap();
        let Some(header) = Header::decode(&bytes) else {
            assert!(bytes.len() < HEADER_BYTES, "{path:?} has a damaged header");
            return false;
        };
        let mut scan = Scan::new(&bytes[HEADER_BYTES..], header.epoch, header.first - 1);
        while let Some(found) = scan.advance() {
            let Scanned::Entry(entry) = found else { panic!("{path:?} is damaged: {found:?}") };
            if entry.kind == Kind::BatchEnd {
                continue;
            }
            let contents: Vec<_> = field::contents(entry.payload).collect();
            let [Ok(content)] = contents.as_slice() else { panic!("{path:?}: {} is no record", entry.sequence) };
            let uid = line::attributes(content).find(|(name, _)| *name == key::LOG_RECORD_UID);
            let Some((_, line::Attribute::Text(uid))) = uid else { panic!("{path:?}: {uid:?} is no uid") };
            let before = self.uids.insert(entry.sequence, uid.to_owned());
            assert_eq!(before, None, "{path:?}: the number {} was given before", entry.sequence);
        }
        let torn = HEADER_BYTES + scan.offset() < bytes.len();
        self.torn += usize::from(torn);
        !torn
    }

    fn last(&self) -> u64 {
        self.uids.keys().next_back().copied().unwrap_or(0)
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// Lets a life go on until something has happened that chance picks.
fn live(stage: &Stage, load: &Load, random: &mut Random) -> u64 {
    let answered = load.shared.answered.load(SeqCst);
    let (what, wanted) = (random.below(4), random.below(100) + 1);
    match what {
        // Any moment, the start included.
        0 => std::thread::sleep(Duration::from_millis(random.below(200))),
        1 => until("answers", DEADLINE, || Ok((load.shared.answered.load(SeqCst) >= answered + wanted).then_some(())))
            .unwrap(),
        _ => until("records in the spool", DEADLINE, || {
            // It does not listen from the beginning.
            let spooled = stage.metric("client", SPOOLED).unwrap_or(0);
            Ok((spooled >= 4 * wanted).then_some(()))
        })
        .unwrap(),
    }
    stage.metric("client", SPOOLED).unwrap_or(0)
}

/// On each connection, in each life, what is missing is the newest; how old it was at most when its proxy was killed.
fn only_the_newest_are_missing(
    answered: &[Vec<Answered>],
    arrived: impl Fn(&str) -> bool,
    killed: &[Instant],
) -> (usize, Duration) {
    let (mut missing, mut oldest) = (0, Duration::ZERO);
    for client in answered {
        for pair in client.windows(2).filter(|pair| pair[0].life == pair[1].life) {
            let holes = !arrived(&pair[0].path) && arrived(&pair[1].path);
            assert!(!holes, "{:?} is missing, but {:?} came", pair[0], pair[1]);
        }
        for request in client.iter().filter(|request| !arrived(&request.path)) {
            let killed = killed.get(request.life as usize);
            let killed = killed.unwrap_or_else(|| panic!("{request:?} is missing, and nobody killed its proxy"));
            missing += 1;
            oldest = oldest.max(killed.saturating_duration_since(request.at));
        }
    }
    (missing, oldest)
}

#[test]
fn two_hundred_kills_under_load_lose_nothing_that_the_spool_has_taken() {
    let address = SocketAddr::from((LINK_IPV4, COLLECTOR));
    let spool = json!({ "minFreeBytes": "1MiB" });
    let web = service("steady", 19, 80, TARGET, Some("http"));
    let settings = Settings { collector: Some(address), spool: Some(spool), ..Settings::default() };
    let mut stage = Stage::with_services(&settings, std::slice::from_ref(&web)).unwrap();
    let _nginx = stage.nginx(TARGET, "", LOCATION).unwrap();
    let mut collector = Some(Collector::start(&stage.mesh.net.link, address).unwrap());
    let mut disk = Disk { directory: stage.mesh.directory.path().join("client/spool"), ..Disk::default() };
    let (mut random, mut streams, mut killed) = (Random(5), Streams::default(), Vec::new());
    let load = stage.steady_load(3, (IpAddr::from(web.ipv4()), 80).into(), Duration::from_millis(1)).unwrap();
    let started = Instant::now();
    for life in 0..KILLS {
        let spooled = live(&stage, &load, &mut random);
        let before = disk.last();
        killed.push(Instant::now());
        let shared = std::sync::Arc::clone(&load.shared);
        stage
            .mesh
            .restart_proxy("client", |_| {
                shared.life.fetch_add(1, SeqCst);
                disk.take();
                Ok(())
            })
            .unwrap();
        // What it said it had, it had.
        assert!(disk.last() >= before + spooled, "{spooled} after {before}, but the last one is {}", disk.last());
        if life == AWAY.start {
            let last = collector.take().map(Collector::stop).unwrap_or_default();
            streams.take(&last).unwrap();
        }
        if life == AWAY.end {
            collector = Some(Collector::start(&stage.mesh.net.link, address).unwrap());
        }
        let received = collector.as_ref().map(Collector::take).unwrap_or_default();
        streams.take(&received).unwrap();
    }
    let took = started.elapsed();
    until("answers after the last kill", DEADLINE, || {
        let ready = stage.metric("client", SPOOLED).unwrap_or(0) > 0;
        Ok(ready.then_some(()))
    })
    .unwrap();
    let answered = load.stop().unwrap();
    // It ends as it should: what is left is sent.
    stage.mesh.terminate("client").unwrap();
    stage.mesh.wait_for_end("client", DEADLINE).unwrap();
    disk.take();
    streams.take(&collector.map(Collector::stop).unwrap_or_default()).unwrap();

    let client = streams.0.values().find(|stream| !stream.requests.is_empty()).expect("the client's stream");
    // Every record that stood in a segment came, as it stood there.
    for (number, uid) in &disk.uids {
        assert_eq!(client.uids.get(number), Some(uid), "number {number}");
    }
    assert_eq!(client.last(), disk.last());
    assert_eq!(client.unexplained(client.last()), Vec::<u64>::new());
    assert_eq!(client.gaps, []);
    let arrived = |path: &str| client.requests.contains_key(path);
    let (missing, oldest) = only_the_newest_are_missing(&answered, arrived, &killed);
    let total: usize = answered.iter().map(Vec::len).sum();
    eprintln!(
        "{KILLS} kills in {took:?}: {} records, {} came again, {total} answers, {missing} of them lost, answered at most \
         {oldest:?} before the kill, {} torn tails",
        client.last(),
        client.repeated,
        disk.torn
    );
    assert!(total as u64 > KILLS * 10, "{total} answers are no load");
    assert!(oldest < LOST_MAX, "a request was answered {oldest:?} before the kill, and is not on record");
}
