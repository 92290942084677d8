//! `picket-bench-export DIRECTORY`: what a record costs on its way out of the spool to a collector over TLS 1.3, beside raw
//! tonic with the same records in the same run.
//!
//! Promises: all records were acknowledged, or there is no figure; variants take turns, and a figure is the median of its
//! rounds. CPU is what this process used (CLOCK_PROCESS_CPUTIME_ID): reading the spool, requests, compression, TLS, and the
//! kernel's work for them. The collector is another process, and decodes nothing. tonic gets its requests as ready
//! structures, from memory: it encodes and sends, and that is all. Build with `--release`.

mod server;

use std::{
    future::ready,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use export::{
    Spooled,
    otlp::{self, Compression, Protocol, Shipper},
    queue,
};
use opentelemetry_proto::tonic::{
    collector::logs::v1::{ExportLogsServiceRequest, logs_service_client::LogsServiceClient},
    logs::v1::{ResourceLogs, ScopeLogs},
};
use prost::Message;
use rcgen::{CertificateParams, KeyPair};
use record::UidSource;
use spool::{Config, Disk, OnFull, Spool, Sync};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

const RECORDS: u64 = 300_000;
const ROUNDS: usize = 5;
/// What a worker hands over at once.
const BATCH_BYTES: usize = 256 << 10;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next().context("usage: picket-bench-export DIRECTORY")?;
    if first == "serve" {
        return server::run(Path::new(&arguments.next().context("a directory")?));
    }
    let directory = PathBuf::from(first).join(format!("picket-bench-export-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let result = measure(&directory);
    std::fs::remove_dir_all(&directory)?;
    result
}

/// The collector; it ends with this value.
struct Server(Child, u16);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn serve(directory: &Path) -> Result<Server> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])?.self_signed(&key)?;
    std::fs::write(directory.join("server.pem"), certificate.pem())?;
    std::fs::write(directory.join("server-key.pem"), key.serialize_pem())?;
    let mut command = Command::new(std::env::current_exe()?);
    let mut child = command.arg("serve").arg(directory).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let output = child.stdout.take().context("its output is piped")?;
    BufReader::new(output).read_line(&mut line)?;
    Ok(Server(child, line.trim().parse()?))
}

fn measure(directory: &Path) -> Result<()> {
    let server = serve(directory)?;
    let batches = batches();
    let bytes: usize = batches.iter().map(|(_, fields)| fields.len()).sum();
    println!("{RECORDS} records of {} bytes, {ROUNDS} rounds, TLS 1.3", bytes as u64 / RECORDS);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let variants = [
        ("picket, gRPC", Protocol::Grpc, Compression::None),
        ("picket, HTTP", Protocol::HttpProtobuf, Compression::None),
        ("picket, gRPC, zstd", Protocol::Grpc, Compression::Zstd),
        ("picket, gRPC, gzip", Protocol::Grpc, Compression::Gzip),
    ];
    let mut costs = vec![Vec::new(); variants.len() + 1];
    for round in 0..ROUNDS {
        for (at, (_, protocol, compression)) in variants.iter().enumerate() {
            let spool = directory.join(format!("spool-{round}-{at}"));
            let config = otlp::Config {
                protocol: *protocol,
                compression: *compression,
                roots: Some(directory.join("server.pem")),
                ..otlp::Config::to(url(*protocol, server.1))
            };
            costs[at].push(run_picket(&runtime, &spool, &batches, config)?);
            std::fs::remove_dir_all(spool)?;
        }
        costs[variants.len()].push(run_tonic(&runtime, directory, server.1, &batches)?);
    }
    let names = variants.iter().map(|(name, ..)| *name).chain(["raw tonic, from memory"]);
    for (name, costs) in names.zip(&costs) {
        show(name, costs);
    }
    Ok(())
}

fn url(protocol: Protocol, port: u16) -> String {
    let base = format!("https://localhost:{port}");
    match protocol {
        Protocol::Grpc => base,
        Protocol::HttpProtobuf => otlp::logs_url(&base),
    }
}

fn show(name: &str, costs: &[(f64, f64)]) {
    let median = |of: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = costs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (cpu, rate) = (median(|cost| cost.0), median(|cost| cost.1));
    println!("{name}: {cpu:.0} ns CPU/record, {:.0} records/s per core, {rate:.0} records/s wall", 1e9 / cpu);
}

/// CPU time of this process.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn now() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64)
}

/// Runs `work` and divides what it took by the records: CPU nanoseconds for each, records for each second.
fn cost(work: impl FnOnce() -> Result<()>) -> Result<(f64, f64)> {
    let (started, before) = (Instant::now(), cpu());
    work()?;
    let cpu_nanos = (cpu() - before).as_nanos() as f64 / RECORDS as f64;
    Ok((cpu_nanos, RECORDS as f64 / started.elapsed().as_secs_f64()))
}

type Batches = [(u32, Vec<u8>)];

fn run_picket(
    runtime: &tokio::runtime::Runtime,
    directory: &Path,
    batches: &Batches,
    config: otlp::Config,
) -> Result<(f64, f64)> {
    let limits = Config {
        max_bytes: 1 << 30,
        max_age: Duration::from_secs(3600),
        min_free_bytes: 0,
        sync: Sync::Interval(Duration::from_millis(100)),
        on_full: OnFull::DropOldest,
        uid_seed: 1,
    };
    let (mut spool, reader, _) = Spool::open(Arc::new(Disk::open(directory)?), limits, now())?;
    for (records, fields) in batches {
        spool.append(now(), *records, fields)?;
    }
    spool.sync()?;
    let (sender, receiver) = queue(1 << 20);
    let counters = Arc::clone(sender.counters());
    drop(sender);
    let spooled = Spooled::spawn(receiver, spool, reader, limits.sync)?;
    let shipper = Shipper::new(config)?;
    let cost = cost(|| {
        runtime.block_on(shipper.run_spooled(spooled, ready(()), Duration::from_secs(60)));
        Ok(())
    })?;
    ensure!(counters.acknowledged() == RECORDS, "not all records were acknowledged");
    Ok(cost)
}

fn run_tonic(runtime: &tokio::runtime::Runtime, directory: &Path, port: u16, batches: &Batches) -> Result<(f64, f64)> {
    // Requests of about 1 MiB, as ours.
    let requests = batches.chunks(4).map(|batches| {
        let fields: Vec<u8> = batches.iter().flat_map(|(_, fields)| fields.iter().copied()).collect();
        let scope_logs = vec![ScopeLogs::decode(&*fields)?];
        Ok(ExportLogsServiceRequest { resource_logs: vec![ResourceLogs { scope_logs, ..Default::default() }] })
    });
    let requests = requests.collect::<Result<Vec<_>>>()?;
    let roots = Certificate::from_pem(std::fs::read(directory.join("server.pem"))?);
    let endpoint = Endpoint::from_shared(url(Protocol::Grpc, port))?;
    let endpoint = endpoint.tls_config(ClientTlsConfig::new().ca_certificate(roots))?;
    cost(|| {
        runtime.block_on(async {
            let mut client = LogsServiceClient::new(endpoint.connect().await?);
            for request in requests {
                client.export(request).await?;
            }
            Ok(())
        })
    })
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
