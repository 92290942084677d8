//! Records that leave their context out: they come back whole, and what happens when those that hold it are damaged.

use spool::{Config, HEADER_BYTES, Kind, Reason, Scan, Scanned};

use crate::{Read, SECOND, append, batch, config, memory::Memory, open, open_with, read_all};

const ENTRY_BYTES: usize = 16;
const HOLDER: u8 = 4;
const SHORT: u8 = 5;

/// An entry as it stands in a file.
struct Stored {
    at: usize,
    end: usize,
    code: u8,
    sequence: u64,
    /// The holders, of a short one.
    holders: [u64; 2],
}

fn stored(bytes: &[u8]) -> Vec<Stored> {
    let (mut found, mut at) = (Vec::new(), HEADER_BYTES);
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    while at < bytes.len() {
        let length = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], 0]) as usize;
        let (code, end) = (bytes[at + 3], at + ENTRY_BYTES + length);
        let holders = if code == SHORT { [number(at + 16), number(at + 24)] } else { [0; 2] };
        found.push(Stored { at, end, code, sequence: number(at + 8), holders });
        at = end;
    }
    found
}

/// The only segment of a spool with `count` records.
fn written(count: u64) -> (std::sync::Arc<Memory>, String) {
    let disk = Memory::new();
    let (mut spool, _reader, _) = open(&disk);
    for first in (0..count).step_by(10) {
        append(&mut spool, SECOND + first, first..first + 10).unwrap();
    }
    spool.sync().unwrap();
    let name = disk.segments().remove(0);
    (disk, name)
}

/// The first records of all, as finished fields with their numbers.
fn numbered(count: u64) -> Vec<Vec<u8>> {
    let fields = batch(0..count);
    let numbered = record::field::contents(&fields).zip(1..).map(|(content, number)| {
        let mut out = Vec::new();
        record::field::append_numbered(&mut out, content.unwrap(), number).unwrap();
        out
    });
    numbered.collect()
}

/// Reads what is left after the entries that `hit` names were damaged.
fn read_damaged(disk: &std::sync::Arc<Memory>, name: &str, count: u64, hit: impl Fn(&Stored) -> bool) -> Read {
    let mut bytes = disk.content(name);
    for entry in stored(&bytes.clone()).iter().filter(|entry| hit(entry)) {
        bytes[entry.at + ENTRY_BYTES..entry.end].fill(0xa5);
    }
    let (mut spool, reader, _) = open(disk);
    append(&mut spool, 2 * SECOND, count..count + 10).unwrap();
    spool.sync().unwrap();
    drop((spool, reader));
    disk.replace(name, bytes);
    let (mut spool, mut reader, _) = open(disk);
    let mut read = read_all(&mut reader, 3000);
    spool.report(3 * SECOND).unwrap();
    spool.sync().unwrap();
    read.gaps.extend(read_all(&mut reader, 3000).gaps);
    assert_eq!(read.unexplained(count + 10), Vec::<u64>::new());
    read
}

#[test]
fn most_records_leave_their_context_out_and_all_come_back_as_they_were() {
    let disk = Memory::new();
    // More than a reader reads at once.
    let (mut spool, mut reader, _) = open_with(&disk, Config { max_bytes: 64 << 20, ..config() });
    let mut whole = 0;
    for first in (0..9000).step_by(30) {
        append(&mut spool, SECOND + first, first..first + 30).unwrap();
    }
    spool.sync().unwrap();
    let name = disk.segments().remove(0);
    let bytes = disk.content(&name);
    let entries = stored(&bytes);
    let count = |code| entries.iter().filter(|entry| entry.code == code).count();
    assert_eq!((count(HOLDER), disk.segments().len()), (2 * 3, 1));
    assert!(count(SHORT) > 6000, "{} of 9000", count(SHORT));
    let expected = numbered(9000).concat();
    let mut found = Vec::new();
    while let Some(chunk) = reader.next(100_000).unwrap() {
        assert!(chunk.fields.len() <= 100_000 && chunk.damage.is_empty());
        whole += chunk.fields.len();
        found.extend_from_slice(&chunk.fields);
        reader.acknowledge(&chunk).unwrap();
    }
    assert!(found == expected, "{whole} bytes of {}", expected.len());
    assert!(bytes.len() < whole * 9 / 10, "{} bytes for {whole}", bytes.len());
}

#[test]
fn the_chain_is_that_of_whole_records() {
    let (disk, name) = written(200);
    let bytes = disk.content(&name);
    let header = spool::Header::decode(&bytes).unwrap();
    assert!(stored(&bytes).iter().any(|entry| entry.code == SHORT));
    let mut scan = Scan::new(&bytes[HEADER_BYTES..], header.epoch, 0);
    let (mut digest, mut batches) = (header.digest, 0);
    while let Some(found) = scan.advance() {
        let Scanned::Entry(entry) = found else { panic!("{found:?}") };
        match entry.kind {
            Kind::BatchEnd => {
                batches += 1;
                assert_eq!(entry.batch_end().unwrap().1, digest, "of batch {batches}");
            }
            Kind::Record | Kind::Report => digest = spool::chain(&digest, entry.sequence, entry.payload),
        }
    }
    assert_eq!(batches, 20);
}

#[test]
fn a_gap_knows_the_digest_before_it_far_into_a_segment() {
    let disk = Memory::new();
    let (mut spool, mut reader, _) = open_with(&disk, Config { max_bytes: 16 << 20, ..config() });
    append(&mut spool, SECOND, 0..3000).unwrap();
    spool.sync().unwrap();
    // More than what is looked at once, and not up to the end of the batch.
    let chunk = reader.next(700_000).unwrap().unwrap();
    assert!((1000..2900).contains(&chunk.next), "{}", chunk.next);
    reader.acknowledge(&chunk).unwrap();
    let mut next = 3000;
    while spool.status().lost(Reason::SpoolFull) == 0 {
        append(&mut spool, SECOND, next..next + 500).unwrap();
        spool.sync().unwrap();
        next += 500;
    }
    spool.report(2 * SECOND).unwrap();
    spool.sync().unwrap();
    let read = read_all(&mut reader, 1 << 20);
    let [gap] = read.gaps[..] else { panic!("{:?}", read.gaps) };
    let before = numbered(chunk.next - 1)
        .iter()
        .zip(1..)
        .fold([0; 32], |digest, (field, number)| spool::chain(&digest, number, field));
    assert_eq!((gap.first, gap.before), (chunk.next, Some(before)));
}

#[test]
fn one_of_the_two_that_hold_a_context_is_enough() {
    for nth in [0, 1] {
        let (disk, name) = written(200);
        let pairs = stored(&disk.content(&name)).into_iter().filter(|entry| entry.code == SHORT);
        let lost: std::collections::BTreeSet<u64> = pairs.map(|entry| entry.holders[nth]).collect();
        assert_eq!(lost.len(), 3);
        let read = read_damaged(&disk, &name, 200, |entry| lost.contains(&entry.sequence) && entry.code == HOLDER);
        let expected: Vec<u64> = (1..=210).filter(|number| !lost.contains(number)).collect();
        assert_eq!(read.records.keys().copied().filter(|n| *n <= 210).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn without_both_those_that_leave_it_out_are_lost_by_name() {
    let (disk, name) = written(200);
    let entries = stored(&disk.content(&name));
    let both = entries.iter().find(|entry| entry.code == SHORT).unwrap().holders;
    let is_lost = |entry: &&Stored| both.contains(&entry.sequence) || entry.holders == both;
    let lost: Vec<u64> =
        entries.iter().filter(|entry| entry.code != 2).filter(is_lost).map(|entry| entry.sequence).collect();
    assert!(lost.len() > 20, "{lost:?}");
    let read = read_damaged(&disk, &name, 200, |entry| both.contains(&entry.sequence) && entry.code == HOLDER);
    let expected: Vec<u64> = (1..=210).filter(|number| !lost.contains(number)).collect();
    assert_eq!(read.records.keys().copied().filter(|n| *n <= 210).collect::<Vec<_>>(), expected);
    assert_eq!(read.gaps.iter().map(|gap| gap.records).sum::<u64>(), lost.len() as u64);
    assert!(read.gaps.iter().all(|gap| gap.reason == Reason::Damaged));
}

#[test]
fn what_is_lost_together_is_said_together() {
    let (disk, name) = written(200);
    let read = read_damaged(&disk, &name, 200, |entry| entry.code == HOLDER);
    let lost: u64 = read.gaps.iter().map(|gap| gap.records).sum();
    assert!(lost > 60 && read.damage.len() < lost as usize / 2, "{lost} records: {:?}", read.damage);
}

#[test]
fn after_a_failed_write_no_record_names_one_that_is_gone() {
    let disk = Memory::new();
    let (mut spool, mut reader, _) = open_with(&disk, Config { max_bytes: 16 << 20, ..config() });
    append(&mut spool, SECOND, 0..1).unwrap();
    // Both records that hold a context are in this batch, for each context.
    disk.lock().fail_write = true;
    append(&mut spool, SECOND, 1..500).unwrap_err();
    disk.lock().fail_write = false;
    append(&mut spool, SECOND, 500..1000).unwrap();
    spool.sync().unwrap();
    let entries = stored(&disk.content(&disk.segments()[0]));
    assert!(disk.segments().len() == 1 && entries.iter().any(|entry| entry.code == SHORT));
    let read = read_all(&mut reader, 3000);
    assert_eq!(read.damage, []);
    let numbers: Vec<u64> = read.numbers().into_iter().filter(|number| *number > 0).collect();
    assert_eq!(numbers, (500..1000).collect::<Vec<_>>());
}

#[test]
fn room_that_was_reserved_is_given_back_at_the_end_and_by_the_next_start() {
    use std::os::unix::fs::MetadataExt;
    let directory = crate::Directory::new("reserved");
    // Whether a segment takes much more of the disk than its bytes.
    let reserved = |nth: usize| {
        let files = std::fs::read_dir(&directory.0).unwrap().map(|entry| entry.unwrap().path());
        let mut segments: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
        segments.sort();
        let metadata = std::fs::metadata(&segments[nth]).unwrap();
        metadata.blocks() * 512 > metadata.len() + (64 << 10)
    };
    let (mut spool, reader, _) = open(&directory.disk());
    append(&mut spool, SECOND, 0..10).unwrap();
    spool.sync().unwrap();
    assert!(reserved(0));
    // As after a crash.
    drop((spool, reader));
    let (mut spool, _reader, _) = open(&directory.disk());
    assert!(!reserved(0));
    append(&mut spool, SECOND, 10..20).unwrap();
    assert!(reserved(1));
    spool.close(2 * SECOND).unwrap();
    assert!(!reserved(1));
}
