//! The promises of docs/formats/segment.md, each kept by a test: on a disk in memory that can be filled, broken and cut
//! off, on real file systems, and with real processes that are killed.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]

mod memory;
mod recovery;
mod power;
mod faults;
mod retention;
mod kill;
mod checkpoint;
mod short;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use record::{UidSource, field, key, line, otlp::Attributes};
use spool::{Config, Disk, Gap, OnFull, Reader, Recovery, Spool, Storage, Sync};

const SECOND: u64 = 1_000_000_000;

fn config() -> Config {
    Config {
        max_bytes: 1 << 20,
        max_age: Duration::from_secs(3600),
        min_free_bytes: 0,
        sync: Sync::Interval(Duration::from_millis(100)),
        on_full: OnFull::DropOldest,
        uid_seed: 7,
    }
}

fn open(storage: &Arc<impl Storage>) -> (Spool, Reader, Recovery) {
    open_with(storage, config())
}

fn open_with(storage: &Arc<impl Storage>, config: Config) -> (Spool, Reader, Recovery) {
    Spool::open(Arc::clone(storage) as Arc<dyn Storage>, config, SECOND).unwrap()
}

/// What all records of connections share.
const SHARED: &str = "a context, as records of connections have one: who talks to whom, over what, by which decision, and so on and so on, \
                      in some hundred bytes, of which it is enough to have 256";

/// A batch with one record for each number, of different lengths: of three connections, and each fourth of none.
fn batch(numbers: std::ops::Range<u64>) -> Vec<u8> {
    let mut fields = Vec::new();
    for number in numbers {
        let text = "x".repeat((number * 37 % 150) as usize);
        let mut content = vec![0x09];
        content.extend_from_slice(&number.to_le_bytes());
        let mut attributes = Attributes::new(&mut content);
        if !number.is_multiple_of(4) {
            attributes.text(key::CONNECTION_UID, &(number % 3).to_string());
            // Long enough that nothing behind it tells contexts from each other.
            attributes.text(key::SERVICE, SHARED);
        }
        let uid = UidSource::new(u128::from(number)).next(number).text();
        attributes.text(key::LOG_RECORD_UID, std::str::from_utf8(&uid).unwrap());
        attributes.text(key::DETAIL, &text);
        attributes.int("n", number);
        field::append(&mut fields, &content).unwrap();
    }
    fields
}

fn append(spool: &mut Spool, now: u64, numbers: std::ops::Range<u64>) -> Result<(), spool::Error> {
    spool.append(now, (numbers.end - numbers.start) as u32, &batch(numbers))
}

/// What a reader gives out.
#[derive(Debug, Default)]
struct Read {
    /// The records by sequence number; what they are numbered in the test.
    records: BTreeMap<u64, u64>,
    gaps: Vec<Gap>,
    damage: Vec<spool::Damage>,
}

impl Read {
    /// The tests' own numbers, in the order of the sequence numbers.
    fn numbers(&self) -> Vec<u64> {
        self.records.values().copied().collect()
    }

    /// Sequence numbers up to `last` that are neither here nor in a gap.
    fn unexplained(&self, last: u64) -> Vec<u64> {
        let in_gap = |n: u64| self.gaps.iter().any(|gap| (gap.first..=gap.last).contains(&n));
        (1..=last).filter(|n| !self.records.contains_key(n) && !in_gap(*n)).collect()
    }

    /// Takes in a chunk, and holds that no record comes twice.
    fn take(&mut self, chunk: &spool::Chunk) {
        let mut count = 0;
        let mut rest = chunk.fields.as_slice();
        for content in field::contents(&chunk.fields) {
            let content = content.unwrap();
            let int = |name: &str| {
                line::attributes(content).find_map(|(key, value)| match value {
                    line::Attribute::Int(number) if key == name => Some(number as u64),
                    line::Attribute::Int(_) | line::Attribute::Text(_) | line::Attribute::Double(_) => None,
                    line::Attribute::Bool(_) => None,
                })
            };
            let sequence = int(key::SEQUENCE).unwrap();
            if line::attributes(content).any(|attribute| attribute == (key::SERVICE, line::Attribute::Text(SHARED))) {
                // Its own context, and no other.
                let connection = line::attributes(content).find(|(name, _)| *name == key::CONNECTION_UID);
                let expected = int("n").map(|number| (number % 3).to_string()).unwrap_or_default();
                assert_eq!(connection, Some((key::CONNECTION_UID, line::Attribute::Text(&expected))));
            }
            // Gap records are known by their number being no number of the test.
            self.gaps.extend(Gap::decode(rest));
            let before = self.records.insert(sequence, int("n").unwrap_or(0));
            assert_eq!(before, None, "{sequence} came twice");
            rest = &rest[4 + content.len()..];
            count += 1;
        }
        assert_eq!(count, chunk.records);
        self.damage.extend(chunk.damage.iter().cloned());
    }
}

/// Reads all there is, and acknowledges it.
fn read_all(reader: &mut Reader, max_bytes: usize) -> Read {
    let mut read = Read::default();
    while let Some(chunk) = reader.next(max_bytes).unwrap() {
        read.take(&chunk);
        reader.acknowledge(&chunk).unwrap();
    }
    read
}

/// A directory for one test, removed when dropped.
struct Directory(std::path::PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("picket-spool-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn disk(&self) -> Arc<Disk> {
        Arc::new(Disk::open(&self.0).unwrap())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

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

#[test]
fn what_was_written_is_read_in_order_on_a_real_disk() {
    let directory = Directory::new("order");
    let (mut spool, mut reader, recovery) = open(&directory.disk());
    assert_eq!(recovery, Recovery::default());
    append(&mut spool, SECOND, 0..10).unwrap();
    assert!(reader.next(1 << 20).unwrap().is_none(), "what is not synced is not shown");
    for at in 1..100 {
        append(&mut spool, SECOND + at, at * 10..at * 10 + 10).unwrap();
    }
    spool.sync().unwrap();
    let read = read_all(&mut reader, 10_000);
    assert_eq!(read.numbers(), (0..1000).collect::<Vec<_>>());
    assert_eq!((read.unexplained(1000), read.gaps.len(), read.damage.len()), (vec![], 0, 0));
    let status = spool.status();
    assert_eq!((status.spooled(), status.acknowledged(), status.oldest_unsent()), (1000, 1000, None));
}

#[test]
fn reading_goes_on_at_the_cursor_after_a_restart() {
    let directory = Directory::new("cursor");
    let (mut spool, mut reader, _) = open(&directory.disk());
    append(&mut spool, SECOND, 0..100).unwrap();
    spool.sync().unwrap();
    let first = reader.next(4000).unwrap().unwrap();
    reader.acknowledge(&first).unwrap();
    let unanswered = reader.next(4000).unwrap().unwrap();
    assert!(first.records > 0 && unanswered.records > 0);
    let tip = spool.tip();
    drop((spool, reader));
    let (mut spool, mut reader, _) = open(&directory.disk());
    assert_eq!(spool.tip(), tip, "the chain goes on where it was");
    append(&mut spool, 2 * SECOND, 100..110).unwrap();
    spool.sync().unwrap();
    let read = read_all(&mut reader, 1 << 20);
    assert_eq!(read.numbers(), (u64::from(first.records)..110).collect::<Vec<_>>());
}

#[test]
fn a_record_that_was_acknowledged_leaves_the_disk() {
    let directory = Directory::new("acknowledged");
    let (mut spool, mut reader, _) = open(&directory.disk());
    for at in 0..200 {
        append(&mut spool, SECOND + at, at * 10..at * 10 + 10).unwrap();
    }
    spool.sync().unwrap();
    let before = spool.status().bytes();
    assert_eq!(read_all(&mut reader, 50_000).records.len(), 2000);
    spool.tick(3 * SECOND).unwrap();
    assert!(before > 300_000 && spool.status().bytes() < 70_000, "{before}, then {}", spool.status().bytes());
    assert_eq!(reader.unreported(), []);
}

#[test]
fn the_stream_and_its_numbers_outlive_the_records() {
    let directory = Directory::new("stream");
    let (mut spool, mut reader, _) = open(&directory.disk());
    append(&mut spool, SECOND, 0..10).unwrap();
    spool.sync().unwrap();
    let (stream, tip) = (spool.stream(), spool.tip());
    read_all(&mut reader, 1 << 20);
    // Starts in which nothing happens; then some in which all is too old.
    for now in [2 * SECOND, 3 * SECOND, 4000 * SECOND, 4001 * SECOND, 9000 * SECOND] {
        drop((spool, reader));
        (spool, reader, _) = open(&directory.disk());
        spool.tick(now).unwrap();
        spool.tick(now + 4000 * SECOND).unwrap();
        assert_eq!((spool.stream(), spool.tip()), (stream, tip));
    }
    append(&mut spool, 20_000 * SECOND, 10..12).unwrap();
    spool.sync().unwrap();
    assert_eq!(read_all(&mut reader, 1 << 20).records.into_iter().collect::<Vec<_>>(), [(11, 10), (12, 11)]);
}

#[test]
fn a_number_that_was_acknowledged_is_not_given_again_when_segments_are_gone() {
    let disk = memory::Memory::new();
    let (mut spool, mut reader, _) = open(&disk);
    append(&mut spool, SECOND, 0..10).unwrap();
    spool.sync().unwrap();
    read_all(&mut reader, 1 << 20);
    disk.segments().iter().for_each(|name| disk.remove(name).unwrap());
    let (mut spool, mut reader, recovery) = open(&disk);
    assert_eq!((spool.tip().next, recovery.lost), (11, None));
    append(&mut spool, SECOND, 10..12).unwrap();
    spool.sync().unwrap();
    assert_eq!(read_all(&mut reader, 1 << 20).records.into_iter().collect::<Vec<_>>(), [(11, 10), (12, 11)]);
}

#[test]
fn a_line_that_was_torn_spoils_no_other_that_is_set_aside() {
    let directory = Directory::new("aside");
    let (_spool, reader, _) = open(&directory.disk());
    let file = directory.0.join(spool::SET_ASIDE);
    assert!(reader.set_aside(b"{\"a\":1}\n").unwrap());
    let torn = [std::fs::read(&file).unwrap(), b"{\"b\":".to_vec()].concat();
    std::fs::write(&file, torn).unwrap();
    assert!(reader.set_aside(b"{\"c\":3}\n").unwrap());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{\"a\":1}\n{\"b\":\n{\"c\":3}\n");
    // Whoever has seen it may take it away.
    std::fs::remove_file(&file).unwrap();
    assert!(reader.set_aside(b"{\"d\":4}\n").unwrap());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{\"d\":4}\n");
}

#[test]
fn a_segment_with_a_number_that_no_record_has_is_no_panic() {
    let directory = Directory::new("zero");
    std::fs::write(directory.0.join("0000000000000000-0000000000000001.seg"), b"no segment").unwrap();
    let (mut spool, mut reader, _) = open(&directory.disk());
    append(&mut spool, SECOND, 1..4).unwrap();
    spool.sync().unwrap();
    assert_eq!(read_all(&mut reader, 10_000).numbers(), [1, 2, 3]);
}
