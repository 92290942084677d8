//! What is removed unsent is what the gap records say, no matter how long the collector is away.

use spool::{Config, Reason, Sink};

use crate::{Random, Read, SECOND, append, config, memory::Memory, open, open_with, read_all};

/// A collector that is away most of the time: what arrives and what the gaps say are all there ever was, and the gaps say
/// nothing that arrived.
fn check(config: Config, step: u64, restarts: bool) {
    let mut random = Random(step);
    let disk = Memory::new();
    let (mut spool, mut reader, _) = open_with(&disk, config);
    let (mut read, mut next) = (Read::default(), 1);
    // One hour of simulated time.
    let mut now = SECOND;
    while now < 3600 * SECOND {
        append(&mut spool, now, next..next + 20).unwrap();
        spool.sync().unwrap();
        spool.tick(now).unwrap();
        next += 20;
        now += step;
        // Seldom, the collector takes a little.
        if random.below(20) == 0
            && let Some(chunk) = reader.next(20_000).unwrap()
        {
            read.take(&chunk);
            reader.acknowledge(&chunk).unwrap();
        }
        if restarts && random.below(50) == 0 {
            drop((spool, reader));
            (spool, reader, _) = open_with(&disk, config);
        }
        assert!(spool.status().bytes() <= spool.status().limit_bytes());
    }
    spool.report(now).unwrap();
    spool.sync().unwrap();
    let rest = read_all(&mut reader, 20_000);
    for (sequence, number) in &rest.records {
        assert_eq!(read.records.insert(*sequence, *number), None, "{sequence} came twice");
    }
    read.gaps.extend(rest.gaps);
    assert_eq!(read.unexplained(spool.tip().next - 1), Vec::<u64>::new());
    let present = |gap: &spool::Gap| (gap.first..=gap.last).find(|n| read.records.contains_key(n));
    assert_eq!(read.gaps.iter().find_map(present), None, "what a gap names did not arrive");
    let arrived = read.records.values().filter(|number| **number > 0).count() as u64;
    assert!(arrived > 500 && arrived + 1000 < next, "{arrived} of {next}: something was lost and something arrived");
}

#[test]
fn a_small_spool_and_a_collector_that_is_away_for_an_hour() {
    check(Config { max_bytes: 256 << 10, ..config() }, SECOND, false);
}

#[test]
fn what_goes_is_looked_at_in_small_pieces() {
    let disk = Memory::new();
    let (mut spool, mut reader, _) = open_with(&disk, Config { max_bytes: 16 << 20, ..config() });
    let mut next = 1;
    while spool.status().lost(Reason::SpoolFull) == 0 {
        append(&mut spool, SECOND, next..next + 500).unwrap();
        spool.sync().unwrap();
        next += 500;
    }
    let longest = disk.lock().longest_read;
    assert!((1..=256 << 10).contains(&longest), "{longest} bytes of a segment of 1 MiB");
    spool.report(2 * SECOND).unwrap();
    spool.sync().unwrap();
    let read = read_all(&mut reader, 1 << 20);
    assert_eq!(read.unexplained(spool.tip().next - 1), Vec::<u64>::new());
    let [gap] = read.gaps[..] else { panic!("{:?}", read.gaps) };
    assert_eq!((gap.records, gap.first), (gap.last, 1));
    assert!(gap.before.is_some() && gap.after.is_some(), "{gap:?}");
}

#[test]
fn restarts_in_between_change_nothing() {
    check(Config { max_bytes: 256 << 10, ..config() }, SECOND, true);
}

#[test]
fn what_is_refused_in_many_places_is_said_after_a_crash_or_found_again() {
    for ticks in 0..3 {
        let disk = Memory::new();
        let (mut spool, mut reader, _) = open(&disk);
        append(&mut spool, SECOND, 1..601).unwrap();
        spool.sync().unwrap();
        // Every second record is refused: no two of these gaps are one.
        let (mut read, mut first) = (Read::default(), 1);
        while let Some(chunk) = reader.next(20_000).unwrap() {
            read.take(&chunk);
            for number in (first..chunk.next).filter(|number| number % 2 == 0) {
                reader.refuse((number, number), 1, 2 * SECOND, Reason::Refused);
                read.records.remove(&number);
            }
            reader.acknowledge(&chunk).unwrap();
            first = chunk.next;
        }
        for at in 0..ticks {
            spool.tick((3 + at) * SECOND).unwrap();
        }
        drop((spool, reader));
        let (mut spool, mut reader, _) = open(&disk);
        spool.report(9 * SECOND).unwrap();
        spool.sync().unwrap();
        let again = read_all(&mut reader, 20_000);
        read.records.extend(again.records);
        read.gaps.extend(again.gaps);
        assert_eq!(read.unexplained(600), Vec::<u64>::new(), "after {ticks} ticks");
    }
}

#[test]
fn what_is_too_old_goes() {
    let max_age = std::time::Duration::from_secs(300);
    check(Config { max_bytes: 64 << 20, max_age, ..config() }, 3 * SECOND, false);
}

#[test]
fn what_is_with_the_reader_is_not_reported_as_lost() {
    let disk = Memory::new();
    let (mut spool, mut reader, _) = open_with(&disk, Config { max_bytes: 256 << 10, ..config() });
    append(&mut spool, SECOND, 1..51).unwrap();
    spool.sync().unwrap();
    let chunk = reader.next(5000).unwrap().unwrap();
    for at in 1..100 {
        append(&mut spool, SECOND + at, at * 100..at * 100 + 100).unwrap();
        spool.sync().unwrap();
    }
    assert!(spool.status().lost(Reason::SpoolFull) > 1000);
    let mut read = Read::default();
    read.take(&chunk);
    reader.acknowledge(&chunk).unwrap();
    spool.report(3 * SECOND).unwrap();
    spool.sync().unwrap();
    let rest = read_all(&mut reader, 20_000);
    read.records.extend(rest.records);
    read.gaps.extend(rest.gaps);
    let first = read.gaps.iter().map(|gap| gap.first).min();
    assert_eq!(first, Some(chunk.next));
    assert_eq!(read.unexplained(spool.tip().next - 1), Vec::<u64>::new());
}

#[test]
fn a_gap_that_nobody_was_told_of_is_found_by_the_cursor() {
    let disk = Memory::new();
    let (mut spool, reader, _) = open(&disk);
    for at in 0..200 {
        append(&mut spool, SECOND + at, at * 10..at * 10 + 10).unwrap();
    }
    spool.sync().unwrap();
    spool.tick(SECOND).unwrap();
    let last = spool.tip().next - 1;
    drop((spool, reader));
    // As if the process had been killed after it removed the oldest segment and before it wrote the report.
    let segments = disk.segments();
    assert!(segments.len() > 2);
    spool::Storage::remove(&*disk, &segments[0]).unwrap();
    let (mut spool, mut reader, recovery) = open(&disk);
    let gap = recovery.lost.unwrap();
    assert_eq!((gap.first, gap.reason), (1, Reason::Vanished));
    spool.report(SECOND).unwrap();
    spool.sync().unwrap();
    let read = read_all(&mut reader, 100_000);
    assert_eq!(read.gaps, [gap]);
    assert_eq!(read.unexplained(last), Vec::<u64>::new());
    assert_eq!(read.records.keys().next(), Some(&(gap.last + 1)));
}

/// Opens the spool for the collector and the syslog server.
pub(crate) fn open_both(disk: &std::sync::Arc<Memory>, config: Config) -> (spool::Spool, spool::Reader, spool::Reader) {
    let sinks = [Sink::Otlp, Sink::Syslog];
    let storage = std::sync::Arc::clone(disk) as std::sync::Arc<dyn spool::Storage>;
    let (spool, readers, _) = spool::Spool::open_for(&sinks, storage, config, SECOND).unwrap();
    let [collector, syslog] = <[spool::Reader; 2]>::try_from(readers).unwrap();
    (spool, collector, syslog)
}

#[test]
fn each_sink_gets_every_record_and_holds_its_segments() {
    let disk = Memory::new();
    let config = Config { max_bytes: 4 << 20, ..config() };
    let (mut spool, mut collector, mut syslog) = open_both(&disk, config);
    for at in 0..300 {
        append(&mut spool, SECOND + at, at * 10..at * 10 + 10).unwrap();
    }
    spool.sync().unwrap();
    let segments = disk.segments().len();
    let first = read_all(&mut collector, 50_000);
    assert_eq!(first.numbers(), (0..3000).collect::<Vec<_>>());
    spool.tick(SECOND).unwrap();
    assert_eq!(disk.segments().len(), segments, "the other sink has not got them");
    // Half is given out and some of it acknowledged; after a reset the rest of it comes again, and after a restart too.
    let chunks: Vec<_> = (0..4).map(|_| syslog.next(50_000).unwrap().unwrap()).collect();
    syslog.acknowledge(&chunks[0]).unwrap();
    syslog.rewind();
    assert_eq!(syslog.next(50_000).unwrap().unwrap().fields, chunks[1].fields);
    drop((spool, collector, syslog));
    let (mut spool, mut collector, mut syslog) = open_both(&disk, config);
    assert_eq!(collector.next(50_000).unwrap(), None);
    let rest = read_all(&mut syslog, 50_000);
    assert_eq!(rest.records.len() as u32 + chunks[0].records, 3000);
    assert_eq!(rest.records.keys().next(), Some(&chunks[0].next));
    spool.tick(SECOND).unwrap();
    assert_eq!(disk.segments().len(), 1);
    assert_eq!(spool.status().oldest_unsent(), None);
}

#[test]
fn what_one_sink_lacks_is_said_of_that_sink_alone() {
    for restart in [false, true] {
        let disk = Memory::new();
        let config = Config { max_bytes: 256 << 10, ..config() };
        let (mut spool, mut collector, mut syslog) = open_both(&disk, config);
        let mut arrived = Read::default();
        for at in 0..300 {
            append(&mut spool, SECOND + at, at * 10..at * 10 + 10).unwrap();
            spool.sync().unwrap();
            let read = read_all(&mut collector, 20_000);
            arrived.records.extend(read.records);
            arrived.gaps.extend(read.gaps);
            if restart && at % 60 == 59 {
                drop((spool, collector, syslog));
                (spool, collector, syslog) = open_both(&disk, config);
            }
        }
        spool.report(SECOND).unwrap();
        spool.sync().unwrap();
        let last = spool.tip().next - 1;
        arrived.records.extend(read_all(&mut collector, 20_000).records);
        assert_eq!(arrived.records.keys().copied().collect::<Vec<_>>(), (1..=last).collect::<Vec<_>>());
        assert!(arrived.gaps.iter().all(|gap| gap.sink == Some(Sink::Syslog)), "the collector lacks nothing");
        let late = read_all(&mut syslog, 20_000);
        assert!(late.records.len() > 100 && (late.records.len() as u64) < last - 500);
        assert_eq!(late.unexplained(last), Vec::<u64>::new());
        let present = |gap: &spool::Gap| (gap.first..=gap.last).find(|n| late.records.contains_key(n));
        assert_eq!(late.gaps.iter().find_map(present), None, "what a gap names did not arrive");
    }
}

#[test]
fn a_tail_that_one_sink_has_and_the_disk_lost_is_said_of_the_other() {
    let disk = Memory::new();
    let (mut spool, mut collector, mut syslog) = open_both(&disk, config());
    append(&mut spool, SECOND, 0..5).unwrap();
    spool.sync().unwrap();
    let digest = spool.tip().digest;
    assert_eq!(read_all(&mut syslog, 20_000).records.len(), 5);
    let name = disk.segments().remove(0);
    let cut = disk.content(&name);
    append(&mut spool, SECOND, 5..9).unwrap();
    spool.sync().unwrap();
    assert_eq!(read_all(&mut collector, 20_000).records.len(), 9);
    drop((spool, collector, syslog));
    disk.replace(&name, cut);
    let (mut spool, mut collector, mut syslog) = open_both(&disk, config());
    append(&mut spool, SECOND, 9..10).unwrap();
    spool.sync().unwrap();
    for reader in [&mut collector, &mut syslog] {
        let read = read_all(reader, 20_000);
        assert_eq!(read.records.keys().copied().collect::<Vec<_>>(), [10, 11]);
        let [gap] = read.gaps[..] else { panic!("{:?}", read.gaps) };
        let gap = (gap.first, gap.last, gap.records, gap.sink, gap.before);
        assert_eq!(gap, (6, 9, 4, Some(Sink::Syslog), Some(digest)));
    }
}

#[test]
fn a_sink_that_is_not_named_any_more_holds_nothing() {
    let disk = Memory::new();
    let (mut spool, mut collector, syslog) = open_both(&disk, config());
    append(&mut spool, SECOND, 0..100).unwrap();
    spool.sync().unwrap();
    let next = read_all(&mut collector, 20_000).records.len() as u64 + 1;
    drop((spool, collector, syslog));
    let (mut spool, mut collector, _) = open(&disk);
    assert_eq!(collector.next(20_000).unwrap(), None);
    append(&mut spool, SECOND, 100..110).unwrap();
    spool.sync().unwrap();
    let later = read_all(&mut collector, 20_000);
    assert_eq!(later.records.keys().next(), Some(&next), "no number is given again");
    drop((spool, collector));
    // One that comes back begins at what is there, and nothing is called lost.
    let (spool, _, mut syslog) = open_both(&disk, config());
    assert!(!read_all(&mut syslog, 20_000).records.is_empty());
    assert!(Reason::ALL.into_iter().all(|reason| spool.status().lost(reason) == 0));
}

/// Overwrites the records `first..=last` in the only segment.
fn damage(disk: &Memory, first: u64, last: u64) {
    let name = disk.segments().remove(0);
    let clean = disk.content(&name);
    let mut bytes = clean.clone();
    let epoch = u64::from_str_radix(&name[17..33], 16).unwrap();
    let (mut scan, mut offset) = (spool::Scan::new(&clean[96..], epoch, 0), 96);
    while let Some(spool::Scanned::Entry(entry)) = scan.advance() {
        let (kind, sequence) = (entry.kind, entry.sequence);
        let end = 96 + scan.offset();
        if kind != spool::Kind::BatchEnd && (first..=last).contains(&sequence) {
            bytes[offset..end].fill(0xa5);
        }
        offset = end;
    }
    disk.replace(&name, bytes);
}

#[test]
fn damage_that_two_sinks_see_is_said_once_also_after_a_restart() {
    // The collector acknowledged what is before `from` while it was whole.
    for (from, restart) in [1, 6, 20].into_iter().flat_map(|from| [(from, false), (from, true)]) {
        for collector_first in [true, false] {
            let disk = Memory::new();
            let (mut spool, mut collector, syslog) = open_both(&disk, config());
            append(&mut spool, SECOND, 1..31).unwrap();
            spool.sync().unwrap();
            let mut at_collector = Read::default();
            while collector.next(1).unwrap().is_some_and(|chunk| {
                at_collector.take(&chunk);
                collector.acknowledge(&chunk).unwrap();
                chunk.next < from
            }) {}
            let from = at_collector.records.len() as u64 + 1;
            spool.close(SECOND).unwrap();
            drop((spool, collector, syslog));
            damage(&disk, 3, 10);
            let (mut spool, collector, syslog) = open_both(&disk, config());
            let (mut order, mut read) = ([collector, syslog], [at_collector, Read::default()]);
            if !collector_first {
                order.reverse();
                read.reverse();
            }
            let first = &mut order[0];
            let add = |read: &mut Read, more: Read| {
                read.records.extend(more.records);
                read.gaps.extend(more.gaps);
                read.damage.extend(more.damage);
            };
            add(&mut read[0], read_all(first, 2000));
            spool.tick(2 * SECOND).unwrap();
            spool.sync().unwrap();
            add(&mut read[0], read_all(first, 2000));
            let (mut one, mut other);
            if restart {
                spool.close(3 * SECOND).unwrap();
                drop((spool, order));
                let opened = open_both(&disk, config());
                spool = opened.0;
                (one, other) = if collector_first { (opened.1, opened.2) } else { (opened.2, opened.1) };
            } else {
                [one, other] = order;
            }
            add(&mut read[1], read_all(&mut other, 2000));
            spool.tick(4 * SECOND).unwrap();
            spool.sync().unwrap();
            add(&mut read[1], read_all(&mut other, 2000));
            add(&mut read[0], read_all(&mut one, 2000));
            let last = spool.tip().next - 1;
            let sinks = if collector_first { [Sink::Otlp, Sink::Syslog] } else { [Sink::Syslog, Sink::Otlp] };
            for (sink, read) in sinks.into_iter().zip(&read) {
                let case = format!("from {from}, restart {restart}, {sink:?}: {:?}", read.gaps);
                // Both get the same gap records. Those about it name what it lacks, and nothing twice.
                let of_it = read.gaps.iter().filter(|gap| gap.sink.is_none_or(|of| of == sink));
                let named: Vec<u64> = of_it.flat_map(|gap| gap.first..=gap.last).collect();
                let missing: Vec<u64> = (1..=last).filter(|number| !read.records.contains_key(number)).collect();
                let mut sorted = named.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, missing, "{case}");
                assert!(read.gaps.iter().all(|gap| gap.records == gap.last + 1 - gap.first), "{case}");
            }
            assert_eq!(read[0].gaps, read[1].gaps);
            let stretches = if (4..=10).contains(&from) { 2 } else { 1 };
            assert_eq!(read[0].gaps.len(), stretches, "{:?}", read[0].gaps);
            let fresh = |damage: &&spool::Damage| damage.records.is_some() && !damage.is_known;
            let fresh = read.iter().flat_map(|read| &read.damage).filter(fresh).count();
            assert!((1..=stretches).contains(&fresh), "{fresh} for {stretches}: {read:?}");
        }
    }
}

#[test]
fn a_number_of_a_report_whose_sync_fails_is_not_missing() {
    let disk = Memory::new();
    let (mut spool, mut reader, _) = open_with(&disk, config());
    append(&mut spool, SECOND, 0..10).unwrap();
    spool.sync().unwrap();
    spool.lose(SECOND, 7, Reason::QueueFull);
    spool.report(SECOND).unwrap();
    disk.lock().fail_sync = true;
    spool.sync().unwrap_err();
    disk.lock().fail_sync = false;
    spool.reopen(2 * SECOND).unwrap();
    append(&mut spool, 2 * SECOND, 20..30).unwrap();
    spool.sync().unwrap();
    let read = read_all(&mut reader, 10_000);
    assert_eq!(read.unexplained(spool.tip().next - 1), Vec::<u64>::new());
    let said: Vec<_> = read.gaps.iter().map(|gap| (gap.reason, gap.records)).collect();
    assert_eq!(said, [(Reason::QueueFull, 7), (Reason::SyncFailed, 0)], "{:?}", read.gaps);
}

/// A spool for both sinks with the records 1 to 30, of which 3 to 10 are damaged.
fn damaged_for_both(disk: &std::sync::Arc<Memory>) -> (spool::Spool, spool::Reader, spool::Reader) {
    let (mut spool, collector, syslog) = open_both(disk, config());
    append(&mut spool, SECOND, 1..31).unwrap();
    spool.close(SECOND).unwrap();
    drop((spool, collector, syslog));
    damage(disk, 3, 10);
    open_both(disk, config())
}

#[test]
fn damage_that_one_sink_has_seen_is_not_counted_again_when_it_goes() {
    for restart in [false, true] {
        let disk = Memory::new();
        let (mut spool, mut collector, mut syslog) = damaged_for_both(&disk);
        read_all(&mut collector, 2000);
        spool.tick(2 * SECOND).unwrap();
        spool.sync().unwrap();
        if restart {
            drop((spool, collector, syslog));
            (spool, collector, syslog) = open_both(&disk, config());
        }
        append(&mut spool, 7200 * SECOND, 40..45).unwrap();
        spool.sync().unwrap();
        spool.tick(4000 * SECOND).unwrap();
        spool.sync().unwrap();
        let read = read_all(&mut syslog, 2000);
        assert_eq!(read.unexplained(spool.tip().next - 1), Vec::<u64>::new());
        let gaps = read.gaps.iter().filter(|gap| gap.first <= 30 && gap.sink.is_none_or(|sink| sink == Sink::Syslog));
        let said: Vec<_> = gaps.map(|gap| (gap.reason, gap.first, gap.last, gap.records)).collect();

        assert_eq!(said, [(Reason::Age, 1, 30, 22), (Reason::Damaged, 3, 10, 8)], "after a restart: {restart}");
        drop(collector);
    }
}

#[test]
fn a_damaged_end_of_a_segment_that_goes_is_counted() {
    let disk = Memory::new();
    let (mut spool, reader, _) = open_with(&disk, config());
    append(&mut spool, SECOND, 1..31).unwrap();
    spool.close(SECOND).unwrap();
    drop((spool, reader));
    let (mut spool, reader, _) = open_with(&disk, config());
    append(&mut spool, 3900 * SECOND, 40..45).unwrap();
    spool.close(3000 * SECOND).unwrap();
    drop((spool, reader));
    let name = disk.segments().remove(0);
    let mut bytes = disk.content(&name);
    let end = bytes.len();
    bytes[end - 1200..].fill(0xa5);
    disk.replace(&name, bytes);
    let (mut spool, mut reader, _) = open_with(&disk, config());
    spool.tick(4000 * SECOND).unwrap();
    spool.sync().unwrap();
    let read = read_all(&mut reader, 2000);
    let said: Vec<_> = read.gaps.iter().map(|gap| (gap.reason, gap.first, gap.last, gap.records)).collect();
    assert_eq!(said, [(Reason::Age, 1, 30, 30)]);
    assert_eq!(spool.status().lost(Reason::Age), 30);
}

#[test]
fn damage_behind_the_cursor_is_said_once() {
    let disk = Memory::new();
    let (_spool, _collector, mut syslog) = damaged_for_both(&disk);
    let mut fresh = 0;
    for _ in 0..6 {
        let chunk = syslog.next(1).unwrap().unwrap();
        fresh += chunk.damage.iter().filter(|damage| !damage.is_known).count();
        syslog.acknowledge(&chunk).unwrap();
    }
    assert_eq!(fresh, 1);
    for _ in 0..3 {
        syslog.rewind();
        let chunk = syslog.next(1).unwrap().unwrap();
        let said: Vec<_> = chunk.damage.iter().map(|damage| (damage.records, damage.is_known)).collect();
        assert_eq!(said, [(None, true)]);
    }
}
