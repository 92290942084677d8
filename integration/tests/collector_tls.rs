//! A real OpenTelemetry Collector behind TLS that asks for a client certificate: 100 000 records by gRPC and by HTTP, each as
//! it was sent, within the grace period of a shutdown.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::HashMap,
    future::ready,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use export::{
    Batch, Spooled,
    otlp::{self, ClientCertificate, Compression, Protocol, Shipper},
    queue,
};
use integration::DEADLINE;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use record::{Event, EventName, Severity, UidSource, Value, key};
use spool::{Disk, OnFull, Spool, Sync};
use testkit::{Process, RunDir};

const RECORDS: u64 = 100_000;
/// Where pods have 30 s until they are killed, less what connections take.
const GRACE: Duration = Duration::from_secs(25);

/// A root, and the files of what it signs.
struct Authority<'a> {
    directory: &'a RunDir,
    issuer: Issuer<'static, KeyPair>,
    roots: PathBuf,
}

impl<'a> Authority<'a> {
    fn new(directory: &'a RunDir) -> Self {
        let (mut params, key) = (CertificateParams::default(), KeyPair::generate().unwrap());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "root of the collector");
        let roots = directory.write("roots.pem", &params.self_signed(&key).unwrap().pem()).unwrap();
        Self { directory, issuer: Issuer::new(params, key), roots }
    }

    fn leaf(&self, name: &str) -> (PathBuf, PathBuf) {
        let (mut params, key) = (CertificateParams::default(), KeyPair::generate().unwrap());
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let file = |kind: &str, content: &str| self.directory.write(&format!("{name}-{kind}.pem"), content).unwrap();
        (file("certificate", &certificate), file("key", &key.serialize_pem()))
    }
}

/// The collector that `./x test` built, and its file of records.
fn collector(directory: &RunDir, authority: &Authority<'_>, protocol: &str, port: u16) -> (Process, PathBuf) {
    let program = std::env::var_os("PICKET_COLLECTOR").expect("PICKET_COLLECTOR names the collector: run `./x test`");
    let (certificate, key) = authority.leaf("localhost");
    let file = directory.path().join("records.json");
    let show = |path: &Path| path.display().to_string();
    let (certificate, key, clients) = (show(&certificate), show(&key), show(&authority.roots));
    let config = format!(
        "receivers:\n  otlp:\n    protocols:\n      {protocol}:\n        endpoint: 'localhost:{port}'\n        tls: \
         {{cert_file: '{certificate}', key_file: '{key}', client_ca_file: '{clients}'}}\n\
         exporters: {{file: {{path: '{}'}}}}\n\
         service:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines: {{logs: {{receivers: [otlp], exporters: [file]}}}}\n",
        file.display()
    );
    let mut command = Command::new(program);
    command.arg("--config").arg(directory.write("collector.yaml", &config).unwrap());
    let mut process = Process::spawn("collector", command, directory).unwrap();
    process.wait_for_line(testkit::Stream::Err, "Everything is ready", DEADLINE).unwrap();
    (process, file)
}

/// A spool with all records, written by the real writer; the number of each by its uid.
fn fill(directory: &RunDir) -> (Spooled, export::Sender, HashMap<String, u64>) {
    let limits = spool::Config {
        max_bytes: 256 << 20,
        max_age: Duration::from_secs(3600),
        min_free_bytes: 0,
        sync: Sync::Interval(Duration::from_millis(50)),
        on_full: OnFull::DropOldest,
        uid_seed: 1,
    };
    let disk = Arc::new(Disk::open(&directory.path().join("spool")).unwrap());
    let (spool, reader, _) = Spool::open(disk, limits, 1_764_000_000_000_000_000).unwrap();
    let (sender, receiver) = queue(256 << 20);
    let spooled = Spooled::spawn(receiver, spool, reader, limits.sync).unwrap();
    let (mut uids, mut sent) = (UidSource::new(1 << 90), HashMap::new());
    for batch in 0..RECORDS / 500 {
        let mut fields = Vec::new();
        for number in batch * 500..(batch + 1) * 500 {
            let uid = uids.next(1_764_000_000_000);
            sent.insert(String::from_utf8(uid.text().to_vec()).unwrap(), number);
            let detail = detail(number);
            let attributes = [(key::DETAIL, Value::Text(&detail)), (key::SOURCE_PORT, Value::Int(number))];
            let time_unix_nanos = 1_764_000_000_000_000_000 + number;
            Event {
                uid,
                name: EventName::Issuance,
                time_unix_nanos,
                severity: Severity::Info,
                attributes: &attributes,
            }
            .encode(&mut fields);
        }
        sender.send(Batch { records: 500, fields: fields.into() }).unwrap();
    }
    (spooled, sender, sent)
}

fn detail(number: u64) -> String {
    format!("GET /api/v1/orders/{number} \"ü\" spiffe://example.org/ns/shop/sa/frontend {}", "x".repeat(200))
}

/// Holds what the collector wrote against what was sent, record by record.
fn compare(file: &Path, mut sent: HashMap<String, u64>) {
    let lines = BufReader::new(std::fs::File::open(file).unwrap()).lines();
    for line in lines {
        let batch: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        for record in batch["resourceLogs"][0]["scopeLogs"][0]["logRecords"].as_array().unwrap() {
            let attribute = |name: &str| {
                let attributes = record["attributes"].as_array().unwrap();
                let found = attributes.iter().find(|attribute| attribute["key"] == name).unwrap();
                found["value"].as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned()
            };
            let uid = attribute(key::LOG_RECORD_UID);
            let number = sent.remove(&uid).unwrap_or_else(|| panic!("{uid} was not sent, or came twice"));
            assert_eq!(attribute(key::DETAIL), detail(number));
            assert_eq!(attribute(key::SOURCE_PORT), number.to_string());
            // From 1, in the order of writing.
            assert_eq!(attribute(key::SEQUENCE), (number + 1).to_string());
            assert_eq!(record["timeUnixNano"], (1_764_000_000_000_000_000 + number).to_string());
            assert_eq!(record["eventName"], "picket.issuance");
        }
    }
    assert!(sent.is_empty(), "{} records are missing", sent.len());
}

fn all_arrive(protocol: Protocol, compression: Compression) {
    let directory = RunDir::new("collector-tls").unwrap();
    let authority = Authority::new(&directory);
    // Free a moment ago; the collector cannot tell which one it was given.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let base = format!("https://localhost:{port}");
    let (name, url) = match protocol {
        Protocol::Grpc => ("grpc", base),
        Protocol::HttpProtobuf => ("http", otlp::logs_url(&base)),
    };
    let (mut process, file) = collector(&directory, &authority, name, port);
    let (certificate, key) = authority.leaf("proxy");
    let config = otlp::Config {
        protocol,
        compression,
        roots: Some(authority.roots.clone()),
        client: Some(ClientCertificate::Files { certificate, key }),
        ..otlp::Config::to(url)
    };
    let (spooled, sender, sent) = fill(&directory);
    let counters = Arc::clone(sender.counters());
    drop(sender);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let begun = Instant::now();
    runtime.block_on(Shipper::new(config).unwrap().run_spooled(spooled, ready(()), GRACE));
    println!("{name}: {RECORDS} records in {:?}", begun.elapsed());
    assert_eq!((counters.acknowledged(), counters.rejected()), (RECORDS, 0));
    // It writes its file to the end when it is told to stop.
    process.terminate().unwrap();
    process.wait(DEADLINE).unwrap();
    compare(&file, sent);
}

#[test]
fn by_grpc_each_record_arrives_as_it_was_sent() {
    all_arrive(Protocol::Grpc, Compression::None);
}

#[test]
fn by_http_each_record_arrives_as_it_was_sent() {
    all_arrive(Protocol::HttpProtobuf, Compression::None);
}

#[test]
fn gzip_and_zstd_are_understood() {
    all_arrive(Protocol::Grpc, Compression::Zstd);
    all_arrive(Protocol::HttpProtobuf, Compression::Gzip);
}
