//! `picket-bench-spool DIRECTORY [spool|whole]`: what a record costs on its way into the spool, part by part, and beside redb
//! in the same run; with `spool`, without redb; with `whole`, nothing but the whole way, for a profiler.
//!
//! Promises: both write the same batches to the same disk and sync at the same times; they take turns, and a figure is the
//! median of its rounds. CPU is what the process used (CLOCK_PROCESS_CPUTIME_ID), the kernel's work for its writes and
//! syncs included. Run it on a quiet disk, in a build with `--release`.

mod nowhere;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use nowhere::Nowhere;
use record::UidSource;
use redb::{Database, Durability, ReadableDatabase, ReadableTableMetadata, TableDefinition};
use spool::{Config, Disk, OnFull, Spool, Sync};

const RECORDS: u64 = 300_000;
/// What a worker hands over at once.
const BATCH_BYTES: usize = 256 << 10;
/// As the proxy has it (`limits.recordQueueBytes`).
const QUEUE_BYTES: usize = 8 << 20;
/// Beyond this the load waits for the writer: a proxy makes fewer records than one writer takes.
const WAITING_BYTES_MAX: u64 = 1 << 20;
const INTERVAL: Duration = Duration::from_millis(100);
const ROUNDS: usize = 5;
/// Records of one connection share their context; of 1000 in turn the writer remembers none, as when each connection has one
/// request.
const CONNECTIONS: [usize; 4] = [1, 100, 200, 1000];
const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");

/// When the disk has to hold what was written.
#[derive(Clone, Copy)]
enum When {
    /// Every 100 ms.
    Interval,
    /// After each batch.
    Always,
}

#[derive(Clone, Copy)]
struct Cost {
    cpu_nanos: f64,
    per_second: f64,
}

fn main() -> Result<()> {
    let directory = std::env::args().nth(1).context("usage: picket-bench-spool DIRECTORY [spool|whole]")?;
    let only = std::env::args().nth(2);
    let directory = PathBuf::from(directory).join(format!("picket-bench-spool-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let result = measure(&directory, only.as_deref());
    std::fs::remove_dir_all(&directory)?;
    result
}

fn measure(directory: &Path, only: Option<&str>) -> Result<()> {
    let before = memory("VmRSS:")?;
    for connections in CONNECTIONS {
        let rounds = (0..ROUNDS).map(|round| run_whole(&directory.join(format!("{connections}-{round}")), connections));
        let name = format!("from the end of a request to the disk, {connections} connections in turn");
        show(&name, "sync each 100 ms", &rounds.collect::<Result<Vec<_>>>()?);
    }
    let more = memory("VmHWM:")?.saturating_sub(before);
    println!("memory for that: {more} KiB, of which at most {} KiB are records that wait", WAITING_BYTES_MAX >> 10);
    if only == Some("whole") {
        return Ok(());
    }
    let batches = batches();
    let bytes: usize = batches.iter().map(|(_, fields)| fields.len()).sum();
    println!("{RECORDS} records of {} bytes, {} batches, {ROUNDS} rounds", bytes as u64 / RECORDS, batches.len());
    println!("encode, on the request thread: {:.0} ns/record", encode_nanos());
    parts(&batches)?;
    for (when, name) in [(When::Interval, "sync each 100 ms"), (When::Always, "sync each batch")] {
        let (mut spool, mut redb) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            spool.push(run_spool(&directory.join(format!("spool-{round}")), &batches, when)?);
            if only.is_none() {
                redb.push(run_redb(&directory.join(format!("redb-{round}")), &batches, when)?);
            }
        }
        show("spool", name, &spool);
        if only.is_none() {
            show("redb", name, &redb);
        }
    }
    let (nanos, per_second) = run_reader(&directory.join("reader"), &batches)?;
    println!("reader: {nanos:.0} ns/record, {per_second:.0} records/s");
    Ok(())
}

fn show(what: &str, when: &str, costs: &[Cost]) {
    let median = |of: fn(&Cost) -> f64| {
        let mut values: Vec<f64> = costs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (cpu, rate) = (median(|cost| cost.cpu_nanos), median(|cost| cost.per_second));
    println!("{what}, {when}: {cpu:.0} ns CPU/record, {:.0} records/s per core, {rate:.0} records/s wall", 1e9 / cpu);
}

/// What this process holds, in KiB, by one line of `/proc/self/status`.
fn memory(line: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.trim().strip_suffix(" kB"));
    Ok(found.context("/proc/self/status has no such line")?.parse()?)
}

/// CPU time of this process.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn now() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64)
}

/// Runs `work` and divides what it took by the records.
fn cost(work: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let (started, before) = (Instant::now(), cpu());
    work()?;
    let cpu_nanos = (cpu() - before).as_nanos() as f64 / RECORDS as f64;
    Ok(Cost { cpu_nanos, per_second: RECORDS as f64 / started.elapsed().as_secs_f64() })
}

fn config(when: When) -> Config {
    Config {
        max_bytes: 1 << 30,
        max_age: Duration::from_secs(3600),
        min_free_bytes: 0,
        sync: match when {
            When::Interval => Sync::Interval(INTERVAL),
            When::Always => Sync::Always,
        },
        on_full: OnFull::DropOldest,
        uid_seed: 1,
    }
}

fn run_spool(directory: &Path, batches: &[(u32, Vec<u8>)], when: When) -> Result<Cost> {
    let (mut spool, _reader, _) = Spool::open(Arc::new(Disk::open(directory)?), config(when), now())?;
    let cost = cost(|| {
        let mut synced = Instant::now();
        for (records, fields) in batches {
            spool.append(now(), *records, fields)?;
            if synced.elapsed() >= INTERVAL {
                spool.sync()?;
                synced = Instant::now();
            }
        }
        Ok(spool.sync()?)
    })?;
    ensure!(spool.status().spooled() == RECORDS, "not all records are in the spool");
    std::fs::remove_dir_all(directory)?;
    Ok(cost)
}

fn run_redb(file: &Path, batches: &[(u32, Vec<u8>)], when: When) -> Result<Cost> {
    let database = Database::create(file)?;
    let cost = cost(|| {
        let (mut synced, mut next) = (Instant::now(), 0);
        for (at, (_, fields)) in batches.iter().enumerate() {
            let mut transaction = database.begin_write()?;
            let due = matches!(when, When::Always) || synced.elapsed() >= INTERVAL || at + 1 == batches.len();
            transaction.set_durability(if due { Durability::Immediate } else { Durability::None })?;
            let mut table = transaction.open_table(TABLE)?;
            for content in record::field::contents(fields).flatten() {
                table.insert(next, content)?;
                next += 1;
            }
            drop(table);
            transaction.commit()?;
            if due {
                synced = Instant::now();
            }
        }
        Ok(())
    })?;
    ensure!(database.begin_read()?.open_table(TABLE)?.len()? == RECORDS, "not all records are in redb");
    drop(database);
    std::fs::remove_file(file)?;
    Ok(cost)
}

/// What the parts of the writer's work cost by themselves.
fn parts(batches: &[(u32, Vec<u8>)]) -> Result<()> {
    let digests = cost(|| {
        let (mut digest, mut chain) = ([0; 32], spool::Chain::default());
        let mut number = 0;
        for (_, mut fields) in batches.iter().map(|(records, fields)| (records, fields.as_slice())) {
            while let Some(Ok(content)) = record::field::contents(fields).next() {
                // Tag and length of ours have four bytes.
                let (payload, rest) = fields.split_at(4 + content.len());
                digest = chain.next(spool::Rule::Context, &digest, number, payload);
                (fields, number) = (rest, number + 1);
            }
        }
        ensure!(digest != [0; 32], "there was no record");
        Ok(())
    })?;
    println!("chain digest (SHA-256): {:.0} ns/record", digests.cpu_nanos);
    let (mut spool, _reader, _) = Spool::open(Arc::new(Nowhere), config(When::Interval), now())?;
    let nowhere =
        cost(|| Ok(batches.iter().try_for_each(|(records, fields)| spool.append(now(), *records, fields))?))?;
    println!("the writer without a disk, digest included: {:.0} ns/record", nowhere.cpu_nanos);
    Ok(())
}

/// All of the way: a worker's journal, the queue, the spool's thread, the disk.
fn run_whole(directory: &Path, connections: usize) -> Result<Cost> {
    let (spool, reader, _) = Spool::open(Arc::new(Disk::open(directory)?), config(When::Interval), now())?;
    let (sender, receiver) = export::queue(QUEUE_BYTES);
    let (status, counters) = (Arc::clone(spool.status()), Arc::clone(sender.counters()));
    let spooled = export::Spooled::spawn(receiver, spool, reader, Sync::Interval(INTERVAL))?;
    let journal = proxy::journal::Journal::new(vec![sender], Arc::default(), 9);
    let contexts: Vec<_> = (0..connections as u64).map(bench_sample::connection).collect();
    let mut uids = UidSource::new(9);
    let cost = cost(|| {
        for number in 0..RECORDS {
            // What no test may do, a load does: it waits while the queue is nearly full, as the disk is its measure.
            while number % 100 == 0 && counters.queued_bytes() > WAITING_BYTES_MAX {
                std::thread::sleep(Duration::from_millis(1));
            }
            let context = &contexts[number as usize % connections];
            journal.append(|out| bench_sample::request(context, &mut uids, number, out));
        }
        journal.flush();
        while status.spooled() < RECORDS {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    })?;
    ensure!(counters.dropped() == 0, "the queue was full");
    drop((journal, spooled));
    std::fs::remove_dir_all(directory)?;
    Ok(cost)
}

/// What it costs to get records out again, as the shipper does.
fn run_reader(directory: &Path, batches: &[(u32, Vec<u8>)]) -> Result<(f64, f64)> {
    let (mut spool, mut reader, _) = Spool::open(Arc::new(Disk::open(directory)?), config(When::Interval), now())?;
    for (records, fields) in batches {
        spool.append(now(), *records, fields)?;
    }
    spool.sync()?;
    let cost = cost(|| {
        while let Some(chunk) = reader.next(3 << 20)? {
            reader.acknowledge(&chunk)?;
        }
        Ok(())
    })?;
    ensure!(spool.status().acknowledged() == RECORDS, "not all records came out again");
    Ok((cost.cpu_nanos, cost.per_second))
}

/// The records of a busy proxy, in batches as workers make them.
fn batches() -> Vec<(u32, Vec<u8>)> {
    let (context, mut uids, mut batches) = (bench_sample::context(), UidSource::new(9), Vec::new());
    let (mut records, mut fields) = (0, Vec::new());
    for number in 0..RECORDS {
        bench_sample::request(&context, &mut uids, number, &mut fields);
        records += 1;
        if fields.len() >= BATCH_BYTES || number + 1 == RECORDS {
            batches.push((std::mem::take(&mut records), std::mem::take(&mut fields)));
        }
    }
    batches
}

fn encode_nanos() -> f64 {
    let (context, mut uids, mut out) = (bench_sample::context(), UidSource::new(9), Vec::with_capacity(1 << 20));
    let before = cpu();
    for number in 0..RECORDS {
        if out.len() >= BATCH_BYTES {
            out.clear();
        }
        bench_sample::request(&context, &mut uids, number, &mut out);
    }
    (cpu() - before).as_nanos() as f64 / RECORDS as f64
}
