//! What a start finds after any end: prefixes, torn tails, damage.

use proptest::prelude::*;
use spool::Storage;

use crate::{SECOND, append, memory::Memory, open, read_all};

/// A spool with these batches in one segment; the disk, and how many records there are.
fn written(batches: &[u64]) -> (std::sync::Arc<Memory>, u64) {
    let disk = Memory::new();
    let (mut spool, _reader, _) = open(&disk);
    let mut next = 0;
    for records in batches {
        append(&mut spool, SECOND + next, next..next + records).unwrap();
        next += records;
    }
    spool.sync().unwrap();
    (disk, next)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_prefix_recovers_to_a_prefix(batches in prop::collection::vec(1u64..20, 1..12), part in 0.0..1.0f64) {
        let (disk, count) = written(&batches);
        let name = disk.segments().remove(0);
        let mut bytes = disk.content(&name);
        let whole = bytes.len();
        bytes.truncate((whole as f64 * part) as usize);
        let cut = bytes.len();
        disk.replace(&name, bytes);
        let (mut spool, mut reader, recovery) = open(&disk);
        let read = read_all(&mut reader, 5000);
        let numbers = read.numbers();
        prop_assert!(numbers.len() as u64 <= count);
        prop_assert_eq!(&numbers, &(0..numbers.len() as u64).collect::<Vec<_>>());
        prop_assert!(read.gaps.is_empty() && read.damage.is_empty());
        // What was cut is named, byte for byte.
        let header = if cut < 96 { 0 } else { 96 };
        let kept = disk.segments().first().map_or(header, |name| disk.length(name).unwrap() as usize);
        prop_assert_eq!(recovery.torn.iter().map(|torn| torn.bytes as usize).sum::<usize>(), cut - kept);
        // And the spool goes on after the prefix.
        append(&mut spool, 2 * SECOND, 5000..5003).unwrap();
        spool.sync().unwrap();
        prop_assert_eq!(read_all(&mut reader, 5000).numbers(), [5000, 5001, 5002]);
        prop_assert_eq!(open(&disk).2.torn, []);
    }

    #[test]
    fn damage_costs_the_records_it_hits(at in 0.0..1.0f64, length in 1usize..40, to in any::<u8>()) {
        let (disk, count) = written(&[10; 10]);
        let name = disk.segments().remove(0);
        let clean = disk.content(&name);
        let mut bytes = clean.clone();
        let from = 96 + ((bytes.len() - 97) as f64 * at) as usize;
        let end = (from + length).min(bytes.len());
        bytes[from..end].fill(to);
        prop_assume!(bytes != clean);
        // Which records have changed bytes: known from where the entries of the clean segment lie.
        let epoch = u64::from_str_radix(&name[17..33], 16).unwrap();
        let (mut hit, mut offset) = (Vec::new(), 96);
        let mut scan = spool::Scan::new(&clean[96..], epoch, 0);
        while let Some(spool::Scanned::Entry(entry)) = scan.advance() {
            let (kind, sequence) = (entry.kind, entry.sequence);
            let range = offset..96 + scan.offset();
            if kind != spool::Kind::BatchEnd && clean[range.clone()] != bytes[range.clone()] {
                hit.push(sequence);
            }
            offset = range.end;
        }
        // A second segment follows, so that the damage is not at the end of all.
        let (mut spool, reader, _) = open(&disk);
        append(&mut spool, 2 * SECOND, 100..110).unwrap();
        spool.sync().unwrap();
        drop((spool, reader));
        disk.replace(&name, bytes);
        let (mut spool, mut reader, _) = open(&disk);
        let mut read = read_all(&mut reader, 3000);
        spool.report(3 * SECOND).unwrap();
        spool.sync().unwrap();
        let more = read_all(&mut reader, 3000);
        read.gaps.extend(&more.gaps);
        let expected: Vec<u64> = (0..count + 10).filter(|n| !hit.contains(&(n + 1))).collect();
        prop_assert_eq!(read.numbers(), expected, "hit {:?}, damage {:?}", hit, read.damage);
        prop_assert_eq!(read.gaps.iter().map(|gap| gap.records).sum::<u64>(), hit.len() as u64);
        prop_assert_eq!(read.unexplained(count + 10), Vec::<u64>::new());
        prop_assert!(!read.damage.is_empty() && read.damage.iter().all(|damage| damage.segment == name));
        let touched = |damage: &spool::Damage| damage.offset as usize <= from || (damage.offset as usize) < end;
        prop_assert!(read.damage.iter().any(touched), "{:?} is not at {from}", read.damage);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000), last in any::<u64>()) {
        let mut scan = spool::Scan::new(&bytes, 1, last);
        prop_assert_eq!(scan.advance(), None, "random bytes are no entry");
        let disk = Memory::new();
        disk.replace("0000000000000001-0000000000000001.seg", bytes.clone());
        disk.replace("cursor", bytes);
        let (mut spool, mut reader, _) = open(&disk);
        append(&mut spool, SECOND, 0..3).unwrap();
        spool.sync().unwrap();
        prop_assert_eq!(read_all(&mut reader, 1000).numbers(), [0, 1, 2]);
    }
}

#[test]
fn a_damaged_header_costs_no_record() {
    let (disk, count) = written(&[10, 10]);
    let name = disk.segments().remove(0);
    let mut bytes = disk.content(&name);
    bytes[3] ^= 1;
    disk.replace(&name, bytes);
    let (_spool, mut reader, _) = open(&disk);
    assert_eq!(read_all(&mut reader, 1000).numbers(), (0..count).collect::<Vec<_>>());
}

#[test]
fn a_damaged_cursor_sends_again_and_leaves_nothing_out() {
    let (disk, count) = written(&[10, 10]);
    let (_spool, mut reader, _) = open(&disk);
    assert_eq!(read_all(&mut reader, 1000).records.len() as u64, count);
    disk.replace("cursor", vec![0xff; 600]);
    let (_spool, mut reader, _) = open(&disk);
    assert_eq!(read_all(&mut reader, 1000).numbers(), (0..count).collect::<Vec<_>>());
}

#[test]
fn a_changed_record_breaks_the_chain_of_its_batch() {
    let (disk, _) = written(&[10]);
    let clean = disk.content(&disk.segments()[0]);
    let epoch = u64::from_str_radix(&disk.segments()[0][17..33], 16).unwrap();
    let header = spool::Header::decode(&clean).unwrap();
    let mut entries = spool::Scan::new(&clean[96..], epoch, 0);
    let (mut digest, mut sealed) = (header.digest, None);
    while let Some(found) = entries.advance() {
        let spool::Scanned::Entry(entry) = found else { panic!("{found:?}") };
        match entry.kind {
            spool::Kind::BatchEnd => sealed = entry.batch_end().map(|(_, digest)| digest),
            spool::Kind::Record | spool::Kind::Report => digest = spool::chain(&digest, entry.sequence, entry.payload),
        }
    }
    assert_eq!(sealed, Some(digest));
    let mut entries = spool::Scan::new(&clean[96..], epoch, 0);
    let spool::Scanned::Entry(first) = entries.advance().unwrap() else { panic!() };
    let mut changed = first.payload.to_vec();
    changed[20] ^= 1;
    assert_ne!(spool::chain(&header.digest, 1, &changed), spool::chain(&header.digest, 1, first.payload));
    assert_ne!(spool::chain(&header.digest, 2, first.payload), spool::chain(&header.digest, 1, first.payload));
}

#[test]
fn the_first_version_is_read_for_good() {
    let directory = crate::Directory::new("fixture");
    std::fs::copy("tests/fixtures/v1.cursor", directory.0.join("cursor")).unwrap();
    let name = "0000000000000001-437aa68dd9a4b1b7.seg";
    std::fs::copy("tests/fixtures/v1.seg", directory.0.join(name)).unwrap();
    let (spool, mut reader, recovery) = open(&directory.disk());
    assert_eq!((recovery.torn, recovery.lost), (vec![], None));
    let read = read_all(&mut reader, 1000);
    // Two batches of five; the first two were acknowledged.
    assert_eq!(read.records.into_iter().collect::<Vec<_>>(), (3..=10).map(|n| (n, n - 1)).collect::<Vec<_>>());
    let digest: String = spool.tip().digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        (digest.as_str(), spool.tip().next, spool.tip().time),
        ("2e6b11af6a9d86d6e9799ad870907a60bbd6ca98acb7beeb314c2ef93890e5d0", 11, 2 * SECOND)
    );
}

#[test]
fn the_second_version_is_read_for_good() {
    let directory = crate::Directory::new("fixture-2");
    std::fs::copy("tests/fixtures/v2.seg", directory.0.join("0000000000000001-62c721c3ed69c445.seg")).unwrap();
    let (spool, mut reader, recovery) = open(&directory.disk());
    assert_eq!((recovery.torn, recovery.lost), (vec![], None));
    // Ten requests of two connections in turn, two other records, ten requests.
    assert_eq!(read_all(&mut reader, 1000).records.into_keys().collect::<Vec<_>>(), (1..=22).collect::<Vec<_>>());
    let digest: String = spool.tip().digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        (digest.as_str(), spool.tip().next, spool.tip().time),
        ("1d1818b8359c885e9b802cf652fc8b65e8bb017f9a6dd825198881e17290272b", 23, 2 * SECOND)
    );
}

#[test]
fn the_third_version_is_read_for_good() {
    let directory = crate::Directory::new("fixture-3");
    std::fs::copy("tests/fixtures/v3.seg", directory.0.join("0000000000000001-880d6b3cc2021087.seg")).unwrap();
    let (spool, mut reader, recovery) = open(&directory.disk());
    assert_eq!((recovery.torn, recovery.lost), (vec![], None));
    // Two batches of twenty, of three connections, whose later records leave out what two earlier ones hold.
    assert_eq!(read_all(&mut reader, 1000).numbers(), (0..40).collect::<Vec<_>>());
    let digest: String = spool.tip().digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        (digest.as_str(), spool.tip().next, spool.tip().time),
        ("223bc77153f233c21af259111ef61f2794868e21b5d88298c78df64aea8c65bf", 41, 2 * SECOND)
    );
}
