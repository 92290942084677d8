//! Checkpoints: what they seal, that they wait for a key, and that the last one is known after a restart.

use spool::{CHECKPOINT_FILE, Checkpoint, Kept, Signed, Sink};

use super::*;
use crate::memory::Memory;

/// Signs with what it was asked to sign, so that tests see it.
fn sign(message: &[u8]) -> Option<Signed> {
    Some(Signed { signature: message[..64].to_vec(), chain: vec![vec![1; 500], vec![2; 400]] })
}

fn seal(spool: &mut Spool, now: u64) -> Option<u64> {
    spool.checkpoint(now, &sign).unwrap()
}

fn kept(memory: &Memory) -> Kept {
    Kept::decode(&memory.content(CHECKPOINT_FILE)).unwrap()
}

#[test]
fn checkpoints_seal_all_that_was_written_since_the_last_one() {
    let memory = Memory::new();
    let (mut spool, mut reader, _) = open(&memory);
    assert_eq!(seal(&mut spool, SECOND), None, "there is nothing to seal");
    append(&mut spool, SECOND, 0..5).unwrap();
    let digest = spool.tip().digest;
    assert_eq!(spool.checkpoint(SECOND, &|_| None).unwrap(), None, "there is no key yet");
    assert_eq!(seal(&mut spool, SECOND), Some(6));
    assert_eq!(seal(&mut spool, SECOND), None, "nothing was written since");
    let first = kept(&memory);
    let at = first.checkpoint.seal;
    assert_eq!((at.first, at.last, at.before, at.digest, at.stream), (1, 5, [0; 32], digest, spool.stream()));
    assert_eq!(first.checkpoint.signed, sign(&at.message()).unwrap());
    drop((spool, reader));
    // The next process goes on where this one ended.
    (spool, reader, _) = open(&memory);
    assert_eq!(seal(&mut spool, SECOND), None);
    append(&mut spool, 2 * SECOND, 5..7).unwrap();
    assert_eq!(seal(&mut spool, 2 * SECOND), Some(9));
    let at = kept(&memory).checkpoint.seal;
    assert_eq!((at.first, at.last, at.before), (6, 8, digest));
    let mut found = Vec::new();
    while let Some(chunk) = reader.next(1 << 20).unwrap() {
        found.extend(field::contents(&chunk.fields).filter_map(|content| Checkpoint::decode(content.unwrap())));
        reader.acknowledge(&chunk).unwrap();
    }
    assert_eq!(found, [first.checkpoint, kept(&memory).checkpoint]);
}

#[test]
fn no_sealed_number_is_given_again_though_the_tail_is_gone() {
    let memory = Memory::new();
    let (mut spool, reader, _) = open(&memory);
    append(&mut spool, SECOND, 0..5).unwrap();
    spool.sync().unwrap();
    let name = memory.segments().remove(0);
    let cut = memory.content(&name);
    append(&mut spool, SECOND, 5..9).unwrap();
    assert_eq!(seal(&mut spool, SECOND), Some(10));
    let tip = spool.tip();
    drop((spool, reader));
    memory.replace(&name, cut);
    let (mut spool, mut reader, recovery) = open(&memory);
    let gap = recovery.cut.unwrap();
    assert_eq!((gap.first, gap.last, gap.records, gap.after), (6, 10, 5, Some(tip.digest)));
    assert_eq!((spool.tip().next, spool.tip().digest), (11, tip.digest));
    append(&mut spool, 2 * SECOND, 9..10).unwrap();
    spool.sync().unwrap();
    let read = read_all(&mut reader, 1 << 20);
    assert_eq!((read.gaps, read.records.keys().copied().max()), (vec![gap], Some(12)));
}

/// The gaps that the segments report.
fn reported(memory: &Memory) -> Vec<Gap> {
    let mut gaps = Vec::new();
    for name in memory.segments() {
        let (bytes, (first, epoch)) = (memory.content(&name), spool::parse_name(&name).unwrap());
        let mut scan = spool::Scan::new(&bytes[spool::HEADER_BYTES..], epoch, first - 1);
        while let Some(found) = scan.advance() {
            let spool::Scanned::Entry(entry) = found else { panic!("nothing is damaged") };
            gaps.extend(Gap::decode(entry.payload).filter(|_| entry.kind == spool::Kind::Report));
        }
    }
    gaps
}

#[test]
fn a_gap_says_where_the_lost_records_stood_in_the_chain() {
    let memory = Memory::new();
    let (mut spool, mut reader, _) = open_with(&memory, Config { max_bytes: 256 << 10, ..config() });
    let (mut digest, mut digests) = ([0; 32], BTreeMap::new());
    for round in 0..120 {
        append(&mut spool, SECOND + round, round * 20..round * 20 + 20).unwrap();
        spool.sync().unwrap();
        digests.insert(spool.tip().next - 1, spool.tip().digest);
        // One chunk is taken, so that the first segment goes in part.
        if round == 1 {
            reader.next(2000).unwrap().unwrap();
        }
    }
    let gaps = reported(&memory);
    assert!(!gaps.is_empty());
    for gap in &gaps {
        if let Some(expected) = digests.get(&gap.last) {
            assert_eq!(gap.after.as_ref(), Some(expected));
        }
        if let Some(expected) = digests.get(&(gap.first - 1)) {
            assert_eq!(gap.before.as_ref(), Some(expected));
        }
        assert!(gap.before.is_some() && gap.after.is_some());
        digest = gap.after.unwrap_or(digest);
    }
    assert_ne!(digest, [0; 32]);
}

#[test]
fn a_gap_of_one_sink_says_where_its_records_stood_too() {
    let memory = Memory::new();
    let config = Config { max_bytes: 256 << 10, ..config() };
    let (mut spool, mut collector, mut syslog) = retention::open_both(&memory, config);
    let mut digests = BTreeMap::from([(0, [0; 32])]);
    for number in 0..2500 {
        append(&mut spool, SECOND + number, number..number + 1).unwrap();
        spool.sync().unwrap();
        digests.insert(spool.tip().next - 1, spool.tip().digest);
        // Of the first segment the collector takes a part, and the syslog server a smaller one.
        if number == 40 {
            collector.next(5000).unwrap().unwrap();
            let chunk = syslog.next(2000).unwrap().unwrap();
            syslog.acknowledge(&chunk).unwrap();
        }
    }
    let mut gaps = reported(&memory);
    gaps.sort_by_key(|gap| gap.first);
    let [behind, rest] = [Some(Sink::Syslog), None].map(|sink| gaps.iter().find(|gap| gap.sink == sink).unwrap());
    assert!(behind.first > 1 && behind.last + 1 == rest.first, "{behind:?}, {rest:?}");
    for (at, digest) in [(behind.first - 1, behind.before), (behind.last, behind.after), (rest.first - 1, rest.before)]
    {
        assert_eq!(digest, Some(digests[&at]), "behind {at}: {behind:?}, {rest:?}");
    }
    assert!(rest.after.is_some());
}
