//! Real processes on a real file system: they are killed, and a second one is refused.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use spool::{Disk, Error};

use crate::{Directory, Random, open};

/// The example `writer`, which cargo builds beside the tests.
fn writer(directory: &Directory, first: u64) -> Child {
    let own = std::env::current_exe().unwrap();
    let program = own.parent().and_then(|deps| deps.parent()).unwrap().join("examples/writer");
    let mut command = Command::new(program);
    command.arg(&directory.0).arg(first.to_string()).stdout(Stdio::piped());
    command.spawn().expect("cargo builds the examples with the tests")
}

/// Reads `lines` lines of the writer's output, kills it, and reads the rest; the last number it said.
fn kill_after(mut child: Child, lines: u64) -> u64 {
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut last = String::new();
    for _ in 0..lines {
        last = said.next().expect("the writer goes on until it is killed").unwrap();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    for line in said.map_while(Result::ok) {
        // The last line may be cut.
        if line.len() >= last.len() {
            last = line;
        }
    }
    last.parse().unwrap()
}

#[test]
fn two_hundred_kills_lose_no_written_record() {
    let directory = Directory::new("kill");
    let mut random = Random(11);
    let mut uids = BTreeMap::new();
    let (mut next, mut sequence) = (1, 0);
    for _ in 0..200 {
        let said = kill_after(writer(&directory, next), random.below(40) + 1);
        let (spool, mut reader, recovery) = open(&directory.disk());
        assert_eq!((recovery.lost, recovery.torn.len() <= 1), (None, true));
        let read = crate::read_all(&mut reader, 1 << 20);
        assert_eq!((read.gaps.len(), read.damage.len()), (0, 0));
        // All that it said, and at most the batch that it had no time to say.
        let numbers = read.numbers();
        assert!(numbers.len() as u64 >= said - next, "{} of {}", numbers.len(), said - next);
        assert_eq!(numbers, (next..next + numbers.len() as u64).collect::<Vec<_>>());
        assert_eq!(read.records.keys().next(), Some(&(sequence + 1)), "numbers go on without a hole");
        sequence += numbers.len() as u64;
        assert_eq!(spool.tip().next, sequence + 1);
        next += numbers.len() as u64;
        assert!(uids.insert(next, ()).is_none());
    }
    assert!(next > 2000);
}

#[test]
fn a_second_process_is_refused() {
    let directory = Directory::new("second");
    let mut child = writer(&directory, 1);
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    said.next().unwrap().unwrap();
    assert!(matches!(Disk::open(&directory.0), Err(Error::Locked(path)) if path == directory.0));
    child.kill().unwrap();
    child.wait().unwrap();
    let (_spool, mut reader, _) = open(&Arc::new(Disk::open(&directory.0).unwrap()));
    assert!(!crate::read_all(&mut reader, 1 << 20).records.is_empty());
}
