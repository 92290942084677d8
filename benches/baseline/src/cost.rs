//! What a record and an edge cost, in this process: the stream of the yardstick's `cost.py`, without its text.
//!
//! Time is the process's CPU time (CLOCK_PROCESS_CPUTIME_ID) of `observe` and `advance` over records that were made before,
//! median of rounds. Memory is the difference in resident bytes between few edges and many, over the difference in edges, each
//! edge having its records.

use std::{fs, net::Ipv4Addr};

use anyhow::{Context, Result};
use baseline::{Direction, EdgeKey, Engine, Limits, Observation, Protection, Protocol};
use record::UidSource;
use rustix::time::{ClockId, clock_gettime};

const RECORDS: u64 = 2_000_000;
const READINGS: u64 = 1_000_000;
const ROUNDS: usize = 5;
const FEW: usize = 100;
const MANY: usize = 20_000;
const RECORDS_PER_EDGE: u64 = 50;
const START: u64 = 1_700_006_400_000;

/// Measures and prints.
pub(crate) fn measure() -> Result<()> {
    // Memory first: later, freed memory would be used again.
    let before = resident()?;
    let few = wide(FEW);
    let middle = resident()?;
    let many = wide(MANY);
    let after = resident()?;
    let per_edge = (after - middle - (middle - before)) / (MANY - FEW) as f64;
    println!("\n== cost, in one process");
    println!("{per_edge:.0} bytes per edge ({FEW} and {MANY} edges, {RECORDS_PER_EDGE} records each)");
    drop((few, many));
    let mut nanos: Vec<f64> = (0..ROUNDS).map(|_| per_record()).collect();
    nanos.sort_by(f64::total_cmp);
    let (least, median, most) = (nanos[0], nanos[ROUNDS / 2], nanos[ROUNDS - 1]);
    println!("{median:.1} ns per record ({least:.1} to {most:.1}; {RECORDS} records, 20 edges, 2000 per second)");
    let mut nanos: Vec<f64> = (0..ROUNDS).map(|_| per_reading()).collect();
    nanos.sort_by(f64::total_cmp);
    let (least, median, most) = (nanos[0], nanos[ROUNDS / 2], nanos[ROUNDS - 1]);
    println!("{median:.1} ns to read what counts out of an encoded request ({least:.1} to {most:.1})");
    Ok(())
}

fn edge(number: usize) -> EdgeKey {
    EdgeKey {
        direction: if number.is_multiple_of(2) { Direction::Inbound } else { Direction::Outbound },
        peer: format!("spiffe://td/ns/shop/sa/peer-{number}"),
        service: format!("peer-{number}"),
        port: 8080,
        protocol: Protocol::Http,
    }
}

fn observation(edge: &EdgeKey, number: u64) -> Observation<'_> {
    // A multiplicative hash is noise enough: durations over five octaves, sizes over one.
    let noise = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    Observation {
        at: START + number / 2,
        edge: edge.as_ref(),
        source: Some(Ipv4Addr::from_bits(0x0a01_0000 + number as u32 % 20).into()),
        error: noise.is_multiple_of(1000),
        duration_us: Some((2000 << (noise % 5)) + noise % 1024),
        first_byte_us: Some(1000 << (noise % 5)),
        bytes_in: 500 + noise % 500,
        bytes_out: 300,
        protection: Protection::MutualTls,
    }
}

fn wide(count: usize) -> Engine {
    let mut engine = Engine::new(Limits { edges: count, ..Limits::default() }, START);
    for number in 0..count as u64 * RECORDS_PER_EDGE {
        engine.observe(&observation(&edge(number as usize % count), number));
    }
    engine
}

fn per_record() -> f64 {
    let edges: Vec<EdgeKey> = (0..20).map(edge).collect();
    let records: Vec<Observation<'_>> =
        (0..RECORDS).map(|number| observation(&edges[number as usize % 20], number)).collect();
    let mut engine = Engine::new(Limits { learn_ms: 60_000, ..Limits::default() }, START);
    let before = cpu_nanos();
    for record in &records {
        engine.observe(record);
    }
    (cpu_nanos() - before) / RECORDS as f64
}

/// The proxy gives the engine what it reads out of finished records.
fn per_reading() -> f64 {
    let mut fields = Vec::new();
    bench_sample::request(&bench_sample::context(), &mut UidSource::new(1), 1, &mut fields);
    let batch = fields.repeat(200);
    let before = cpu_nanos();
    let mut bytes = 0;
    for _ in 0..READINGS / 200 {
        bytes += record::line::records(&batch).filter_map(baseline::observation).map(|seen| seen.bytes_in).sum::<u64>();
    }
    assert_eq!(bytes, READINGS * 1234, "each record was read");
    (cpu_nanos() - before) / READINGS as f64
}

fn cpu_nanos() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

fn resident() -> Result<f64> {
    let text = fs::read_to_string("/proc/self/smaps_rollup").context("cannot read the memory map")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).context("no Rss in the memory map")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0)
}
