//! Disks that are full, broken, slow to fail, or gone: what is lost is lost by name, and what was synced is not lost.

use std::{
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use spool::{Config, Disk, Error, OnFull, Reader, Reason, Spool, Sync};

use crate::{Directory, Read, SECOND, append, config, memory::Memory, open, open_with, read_all};

/// Whatever is missing up to the tip stands in gaps, and the gaps count it exactly.
fn check_exact(spool: &mut Spool, reader: &mut Reader, mut read: Read, lost: u64) -> Read {
    spool.report(90 * SECOND).unwrap();
    spool.sync().unwrap();
    let more = read_all(reader, 10_000);
    read.records.extend(more.records);
    read.gaps.extend(more.gaps);
    assert_eq!(read.unexplained(spool.tip().next - 1), Vec::<u64>::new());
    assert_eq!(read.gaps.iter().map(|gap| gap.records).sum::<u64>(), lost, "{:?}", read.gaps);
    let counted: u64 = Reason::ALL.iter().map(|reason| spool.status().lost(*reason)).sum();
    assert_eq!(counted, lost);
    let present = |gap: &spool::Gap| (gap.first..=gap.last).any(|n| read.records.contains_key(&n));
    assert!(!read.gaps.iter().any(present), "a record arrived that was reported as lost: {:?}", read.gaps);
    read
}

#[test]
fn after_a_failed_sync_nothing_is_written_until_reopened() {
    let disk = Memory::new();
    let (mut spool, mut reader, _) = open(&disk);
    append(&mut spool, SECOND, 0..10).unwrap();
    spool.sync().unwrap();
    append(&mut spool, SECOND, 10..20).unwrap();
    disk.lock().fail_sync = true;
    assert!(matches!(spool.sync(), Err(Error::Storage { .. })));
    // The next one would succeed, as it does after EIO on Linux; it is not asked.
    disk.lock().fail_sync = false;
    let before = disk.content(&disk.segments()[0]);
    assert!(matches!(append(&mut spool, SECOND, 20..25), Err(Error::Failed)));
    assert!(matches!(spool.sync(), Err(Error::Failed)));
    assert_eq!(disk.content(&disk.segments()[0]), before);
    spool.reopen(2 * SECOND).unwrap();
    append(&mut spool, 2 * SECOND, 25..30).unwrap();
    spool.sync().unwrap();
    let read = read_all(&mut reader, 10_000);
    let read = check_exact(&mut spool, &mut reader, read, 15);
    let arrived: Vec<u64> = read.numbers().into_iter().filter(|n| *n > 0).collect();
    assert_eq!(arrived, (1..10).chain(25..30).collect::<Vec<_>>());
    assert!(read.gaps.iter().all(|gap| gap.reason == Reason::SyncFailed));
}

#[test]
fn a_sync_that_fails_while_a_gap_is_reported_loses_no_gap() {
    let disk = Memory::new();
    let (mut spool, mut reader, _) = open(&disk);
    append(&mut spool, SECOND, 0..10).unwrap();
    spool.sync().unwrap();
    spool.lose(SECOND, 7, Reason::QueueFull);
    append(&mut spool, SECOND, 10..20).unwrap();
    disk.lock().fail_sync = true;
    spool.sync().unwrap_err();
    assert!(spool.reopen(SECOND).is_err(), "a new segment cannot be synced either");
    assert!(spool.is_failed());
    disk.lock().fail_sync = false;
    spool.reopen(SECOND).unwrap();
    let read = check_exact(&mut spool, &mut reader, Read::default(), 17);
    let reasons: Vec<_> = read.gaps.iter().map(|gap| (gap.reason, gap.records)).collect();
    assert_eq!(reasons, [(Reason::QueueFull, 7), (Reason::SyncFailed, 10)]);
}

#[test]
fn a_write_that_fails_costs_its_batch() {
    for torn in [0, 3, 200, 5000] {
        let disk = Memory::new();
        let (mut spool, mut reader, _) = open(&disk);
        append(&mut spool, SECOND, 0..10).unwrap();
        (disk.lock().fail_write, disk.lock().torn) = (true, torn);
        assert!(matches!(append(&mut spool, SECOND, 10..20), Err(Error::Storage { .. })));
        disk.lock().fail_write = false;
        append(&mut spool, SECOND, 20..30).unwrap();
        spool.sync().unwrap();
        let read = check_exact(&mut spool, &mut reader, Read::default(), 10);
        assert_eq!(read.gaps[0].reason, Reason::WriteFailed);
        assert!(!spool.is_failed());
        assert_eq!(open(&disk).0.tip().digest, spool.tip().digest, "the chain is whole without them");
    }
}

#[test]
fn a_write_that_cannot_be_undone_ends_the_segment() {
    let disk = Memory::new();
    let (mut spool, mut reader, _) = open(&disk);
    append(&mut spool, SECOND, 0..10).unwrap();
    spool.sync().unwrap();
    append(&mut spool, SECOND, 10..20).unwrap();
    {
        let mut disk = disk.lock();
        (disk.fail_write, disk.torn, disk.fail_truncate) = (true, 100, true);
    }
    append(&mut spool, SECOND, 20..30).unwrap_err();
    assert!(spool.is_failed());
    {
        let mut disk = disk.lock();
        (disk.fail_write, disk.fail_truncate) = (false, false);
    }
    spool.reopen(SECOND).unwrap();
    check_exact(&mut spool, &mut reader, Read::default(), 20);
    assert_eq!(open(&disk).2.torn, [], "what was not trusted was cut");
}

#[test]
fn a_disk_that_fills_up_costs_the_oldest() {
    let disk = Memory::new();
    let (mut spool, mut reader, _) = open(&disk);
    disk.lock().capacity = Some(300_000);
    for at in 0..400 {
        append(&mut spool, SECOND + at, at * 10..at * 10 + 10).unwrap();
        spool.sync().unwrap();
    }
    let lost = spool.status().lost(Reason::DiskLow);
    assert!(lost > 1000, "{lost} of 4000");
    let read = read_all(&mut reader, 10_000);
    check_exact(&mut spool, &mut reader, read, lost);
}

#[test]
fn with_refuse_a_full_spool_asks_for_no_traffic_and_keeps_what_it_has() {
    let disk = Memory::new();
    let (mut spool, mut reader, _) = open_with(&disk, Config { on_full: OnFull::Refuse, ..config() });
    let mut next = 0;
    while !spool.status().is_full() {
        append(&mut spool, SECOND, next..next + 10).unwrap();
        spool.tick(SECOND).unwrap();
        next += 10;
    }
    // There is room left for connections that are open.
    let room = (0..100_000).step_by(10).take_while(|at| append(&mut spool, SECOND, next + at..next + at + 10).is_ok());
    let room = 10 * room.count() as u64;
    assert!(room > 200 && room < next, "{room} after {next}");
    assert_eq!(spool.status().lost(Reason::SpoolFull), 10);
    spool.sync().unwrap();
    let read = read_all(&mut reader, 100_000);
    assert_eq!(read.numbers(), (0..next + room).collect::<Vec<_>>());
    spool.tick(2 * SECOND).unwrap();
    assert!(!spool.status().is_full(), "it was all acknowledged");
    check_exact(&mut spool, &mut reader, read, 10);
}

#[test]
fn little_free_disk_costs_the_oldest_or_asks_for_no_traffic() {
    for on_full in [OnFull::DropOldest, OnFull::Refuse] {
        let disk = Memory::new();
        let (mut spool, mut reader, _) = open_with(&disk, Config { on_full, min_free_bytes: 1000, ..config() });
        for at in 0..100 {
            append(&mut spool, SECOND, at * 10..at * 10 + 10).unwrap();
        }
        spool.sync().unwrap();
        disk.lock().free = Some(999);
        spool.tick(SECOND).unwrap();
        let lost = spool.status().lost(Reason::DiskLow);
        match on_full {
            OnFull::DropOldest => assert!(lost == 1000 && !spool.status().is_full()),
            OnFull::Refuse => assert!(lost == 0 && spool.status().is_full()),
        }
        disk.lock().free = None;
        spool.tick(SECOND).unwrap();
        check_exact(&mut spool, &mut reader, Read::default(), lost);
    }
}

#[test]
fn with_refuse_a_disk_has_room_again_once_all_is_acknowledged_in_one_segment() {
    [false, true].into_iter().for_each(room_again);
}

fn room_again(is_full: bool) {
    let disk = Memory::new();
    let (mut spool, mut reader, _) =
        open_with(&disk, Config { on_full: OnFull::Refuse, min_free_bytes: 1000, ..config() });
    append(&mut spool, SECOND, 0..10).unwrap();
    spool.sync().unwrap();
    disk.lock().free = Some(999);
    spool.tick(SECOND).unwrap();
    assert!(spool.status().is_full() && disk.segments().len() == 1);
    read_all(&mut reader, 10_000);
    let before = disk.segments();
    if is_full {
        // Not even the header of another segment fits.
        let used = disk.content(&before[0]).len() + disk.content("cursor").len();
        disk.lock().capacity = Some(used + 95);
    }
    spool.tick(2 * SECOND).unwrap();
    assert!(disk.segments().len() == 1 && disk.segments() != before, "the acknowledged segment went");
    disk.lock().free = None;
    disk.lock().capacity = None;
    spool.tick(3 * SECOND).unwrap();
    assert!(!spool.status().is_full());
    append(&mut spool, SECOND, 10..20).unwrap();
    spool.sync().unwrap();
    assert_eq!(read_all(&mut reader, 10_000).numbers(), (10..20).collect::<Vec<_>>());
}

#[test]
fn a_directory_that_vanished_is_noticed_and_made_again() {
    let directory = Directory::new("vanished");
    let (mut spool, mut reader, _) = open(&directory.disk());
    append(&mut spool, SECOND, 0..10).unwrap();
    spool.sync().unwrap();
    append(&mut spool, SECOND, 10..20).unwrap();
    std::fs::remove_dir_all(&directory.0).unwrap();
    assert!(matches!(spool.sync(), Err(Error::Storage { .. })));
    spool.reopen(2 * SECOND).unwrap();
    append(&mut spool, 2 * SECOND, 20..30).unwrap();
    spool.sync().unwrap();
    let read = check_exact(&mut spool, &mut reader, Read::default(), 20);
    let reasons: Vec<_> = read.gaps.iter().map(|gap| (gap.reason, gap.records)).collect();
    assert_eq!(reasons, [(Reason::SyncFailed, 10), (Reason::Vanished, 10)]);
}

/// A small file system of its own, unmounted when dropped.
struct Tmpfs(Directory);

impl Tmpfs {
    fn new(name: &str, size: &str) -> Self {
        let directory = Directory::new(name);
        let options = format!("size={size},mode=0700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&directory.0);
        assert!(mount.status().unwrap().success(), "a tmpfs needs root: {mount:?}");
        Self(directory)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("--lazy").arg(&self.0.0).status();
    }
}

/// A process that another test is just starting has our files open until it is executed, and what is removed is not free until
/// then: the report waits, as in life.
fn report_soon(spool: &mut Spool) {
    let begun = Instant::now();
    while let Err(error) = spool.report(80 * SECOND) {
        assert!(begun.elapsed() < Duration::from_secs(20), "{error}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_full_tmpfs_costs_what_the_gap_says() {
    let tmpfs = Tmpfs::new("tmpfs", "1m");
    let config = Config { max_bytes: 64 << 20, sync: Sync::Always, ..config() };
    let disk = Arc::new(Disk::open(&tmpfs.0.0).unwrap());
    let (mut spool, mut reader, _) = open_with(&disk, config);
    let mut failed = 0;
    for at in 0..1000 {
        failed += u64::from(append(&mut spool, SECOND + at, at * 10..at * 10 + 10).is_err());
    }
    let lost: u64 = Reason::ALL.iter().map(|reason| spool.status().lost(*reason)).sum();
    assert!(lost > 1000, "{lost} of 10000, {failed} batches");
    assert!(!spool.is_failed());
    let mut read = read_all(&mut reader, 10_000);
    report_soon(&mut spool);
    spool.sync().unwrap();
    let more = read_all(&mut reader, 10_000);
    read.records.extend(more.records);
    read.gaps.extend(more.gaps);
    let lost = Reason::ALL.iter().map(|reason| spool.status().lost(*reason)).sum();
    check_exact(&mut spool, &mut reader, read, lost);
}

#[test]
fn while_somebody_holds_removed_segments_open_a_full_tmpfs_costs_what_the_gap_says_later() {
    let tmpfs = Tmpfs::new("held", "1m");
    let config = Config { max_bytes: 64 << 20, sync: Sync::Always, ..config() };
    let disk = Arc::new(Disk::open(&tmpfs.0.0).unwrap());
    let (mut spool, mut reader, _) = open_with(&disk, config);
    let mut held = Vec::new();
    for at in 0..1000 {
        let failed = append(&mut spool, SECOND + at, at * 10..at * 10 + 10).is_err();
        if held.is_empty() && !failed {
            let files = std::fs::read_dir(&tmpfs.0.0).unwrap().map(|entry| entry.unwrap().path());
            held.extend(files.map(|path| std::fs::File::open(path).unwrap()));
        }
    }
    assert!(matches!(spool.report(80 * SECOND), Err(Error::Storage { .. })), "there is no room for a report");
    assert!(!spool.is_failed());
    drop(held);
    report_soon(&mut spool);
    let lost = Reason::ALL.iter().map(|reason| spool.status().lost(*reason)).sum();
    let read = check_exact(&mut spool, &mut reader, Read::default(), lost);
    assert!(lost == 10_000 && read.gaps.iter().all(|gap| gap.reason == Reason::DiskLow), "{lost}: {:?}", read.gaps);
}

#[test]
fn a_record_that_is_none_is_lost_by_name() {
    let disk = Memory::new();
    let (mut spool, mut reader, _) = open(&disk);
    assert!(matches!(spool.append(SECOND, 2, &[0x13, 1, 0]), Err(Error::Malformed)));
    append(&mut spool, SECOND, 0..5).unwrap();
    spool.sync().unwrap();
    let read = check_exact(&mut spool, &mut reader, Read::default(), 2);
    assert_eq!((read.gaps[0].reason, read.gaps[0].first, read.gaps[0].last), (Reason::Malformed, 1, 2));
}

#[test]
fn always_syncs_each_batch_before_the_next() {
    let disk = Memory::new();
    let (mut spool, mut reader, _) = open_with(&disk, Config { sync: Sync::Always, ..config() });
    for at in 0..5 {
        let before = disk.lock().syncs;
        append(&mut spool, SECOND, at..at + 1).unwrap();
        assert!(disk.lock().syncs > before);
        assert_eq!(reader.next(1000).unwrap().unwrap().records, 1);
    }
    assert_eq!(Sync::Interval(Duration::from_millis(100)), config().sync);
}
