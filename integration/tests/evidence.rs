//! `picket verify` on what real proxies spooled and a real OpenTelemetry Collector wrote: intact and complete, and the right
//! verdict after each kind of tampering.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use integration::{DEADLINE, Stage, judge};
use record::{Event, EventName, Severity, UidSource, Value as Text, key};
use serde_json::{Value, json};
use testkit::{LINK_IPV4, Process, RunDir, Settings, Stream, binaries, until};

const PORT: u16 = 4319;
const REQUESTS: usize = 2000;
const MANY: u64 = 100_000;

fn configuration(address: &str, file: &Path) -> String {
    format!(
        "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '{address}'}}}}}}}}\n\
         exporters: {{file: {{path: '{}'}}}}\n\
         service:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines: {{logs: {{receivers: [otlp], exporters: [file]}}}}\n",
        file.display()
    )
}

fn program() -> std::ffi::OsString {
    std::env::var_os("PICKET_COLLECTOR").expect("PICKET_COLLECTOR names the collector: run `./x test`")
}

fn run_collector(mut command: Command, config: &Path, directory: &RunDir) -> Process {
    command.arg("--config").arg(config);
    let mut process = Process::spawn("collector", command, directory).unwrap();
    process.wait_for_line(Stream::Err, "Everything is ready", DEADLINE).unwrap();
    process
}

/// What `picket verify` says, and its exit code.
fn verify(roots: &Path, arguments: &[&Path]) -> (i32, Value) {
    let mut command = Command::new(binaries().unwrap().join("picket"));
    command.args(["verify", "-o", "json", "--trust-bundle"]).arg(roots).args(arguments);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?} {said}"));
    (output.status.code().unwrap(), json)
}

/// Both verdicts about each identity, with the numbers of the first findings.
fn verdicts(json: &Value) -> BTreeMap<String, (String, String, u64, u64)> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let first = |findings: &Value| findings[0]["first"].as_u64().unwrap_or(0);
    let verdict = |stream: &Value| {
        let (integrity, completeness) = (word(&stream["integrity"]), word(&stream["completeness"]));
        let firsts = (first(&stream["integrityFindings"]), first(&stream["completenessFindings"]));
        (word(&stream["identity"]), (integrity, completeness, firsts.0, firsts.1))
    };
    json["streams"].as_array().unwrap().iter().map(verdict).collect()
}

fn good() -> (String, String, u64, u64) {
    ("intact".to_owned(), "complete".to_owned(), 0, 0)
}

/// A collector's file, to be tampered with.
#[derive(Clone)]
struct Exported(Vec<Value>);

impl Exported {
    fn read(file: &Path) -> Self {
        let text = std::fs::read_to_string(file).unwrap();
        Self(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    fn write(&self, directory: &RunDir) -> PathBuf {
        let lines: String = self.0.iter().map(|line| line.to_string() + "\n").collect();
        directory.write("tampered.json", &lines).unwrap()
    }

    fn stream(logs: &Value) -> String {
        let attributes = logs["resource"]["attributes"].as_array().unwrap();
        let stream = attributes.iter().find(|attribute| attribute["key"] == key::STREAM).unwrap();
        stream["value"]["stringValue"].as_str().unwrap().to_owned()
    }

    fn number(record: &Value) -> u64 {
        let last = record["attributes"].as_array().unwrap().last().unwrap();
        assert_eq!(last["key"], key::SEQUENCE);
        last["value"]["intValue"].as_str().unwrap().parse().unwrap()
    }

    /// Keeps of a stream's records what `keep` keeps, which may change them.
    fn each(&self, stream: &str, mut keep: impl FnMut(u64, &mut Value) -> bool) -> Self {
        let mut all = self.clone();
        for logs in all.0.iter_mut().flat_map(|line| line["resourceLogs"].as_array_mut().unwrap()) {
            if Self::stream(logs) == stream {
                for scope in logs["scopeLogs"].as_array_mut().unwrap() {
                    scope["logRecords"].as_array_mut().unwrap().retain_mut(|record| keep(Self::number(record), record));
                }
            }
        }
        all
    }
}

#[test]
fn what_a_collector_wrote_of_real_traffic_is_intact_and_complete_until_somebody_changes_it() {
    let settings = Settings {
        collector: Some(SocketAddr::from((LINK_IPV4, PORT))),
        spool: Some(json!({ "minFreeBytes": "1MiB", "checkpointInterval": "1s" })),
        ..Settings::default()
    };
    let mut stage = Stage::start(&settings).unwrap();
    let file = stage.mesh.directory.path().join("records.json");
    let config = configuration(&format!("{LINK_IPV4}:{PORT}"), &file);
    let config = stage.mesh.directory.write("collector.yaml", &config).unwrap();
    let mut collector = run_collector(stage.mesh.net.link.command(0, program()), &config, &stage.mesh.directory);
    let urls = format!("http://10.96.0.10/hello.txt?[1-{REQUESTS}]");
    let arguments = [
        "--parallel",
        "--parallel-max",
        "16",
        "--silent",
        "--show-error",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}\n",
        &urls,
    ];
    let codes = stage.run("client", "curl", &arguments).unwrap();
    assert_eq!(codes.lines().filter(|code| *code == "200").count(), REQUESTS);
    for pod in ["client", "server"] {
        stage.mesh.terminate(pod).unwrap();
        assert!(stage.mesh.wait_for_end(pod, DEADLINE).unwrap().success());
    }
    collector.terminate().unwrap();
    collector.wait(DEADLINE).unwrap();

    let (directory, roots) = (&stage.mesh.directory, stage.mesh.trust_bundle());
    let (code, json) = verify(&roots, &[&file]);
    let both = BTreeMap::from([(judge::CLIENT.to_owned(), good()), (judge::SERVER.to_owned(), good())]);
    assert_eq!((code, verdicts(&json)), (0, both), "{json:#}");
    let of = |identity: &str| {
        let streams = json["streams"].as_array().unwrap();
        streams.iter().find(|stream| stream["identity"] == identity).unwrap()
    };
    let (client, server) = (of(judge::CLIENT), of(judge::SERVER));
    for stream in [client, server] {
        assert!(stream["records"].as_u64().unwrap() > REQUESTS as u64 && stream["unsealed"] == 0, "{stream:#}");
        assert!(stream["checkpoints"].as_u64().unwrap() >= 2, "{stream:#}");
    }
    for pod in ["client", "server"] {
        let (code, json) = verify(&roots, &[&directory.path().join(pod).join("spool")]);
        assert_eq!((code, json["ok"].as_bool()), (0, Some(true)), "{json:#}");
    }

    let exported = Exported::read(&file);
    let id = client["stream"].as_str().unwrap();
    let tampered = |exported: &Exported, more: &[&Path]| {
        let file = exported.write(directory);
        let (code, json) = verify(&roots, &[&[file.as_path()], more].concat());
        (code, verdicts(&json))
    };
    let middle = REQUESTS as u64 / 2;
    let (code, found) = tampered(&exported.each(id, |number, _| number != middle), &[]);
    let (integrity, completeness, _, first) = &found[judge::CLIENT];
    assert_eq!((code, integrity.as_str(), completeness.as_str(), *first), (1, "unproven", "incomplete", middle));
    assert_eq!(found[judge::SERVER], good());
    // One letter of one attribute.
    let changed = exported.each(id, |number, record| {
        if number == middle {
            let attributes = record["attributes"].as_array_mut().unwrap();
            let path = attributes.iter_mut().find(|attribute| attribute["key"] == key::URL_PATH).unwrap();
            path["value"]["stringValue"] = json!("/hallo.txt");
        }
        true
    });
    let (code, found) = tampered(&changed, &[]);
    let (integrity, completeness, first, _) = &found[judge::CLIENT];
    assert_eq!((code, integrity.as_str(), completeness.as_str()), (1, "broken", "complete"));
    assert!((1..=middle).contains(first), "{found:?}");
    // Without its tail, which the checkpoint that was kept outside knows of.
    let last = client["last"].as_u64().unwrap();
    let checkpoint = directory.path().join("client/spool/checkpoint");
    let option = Path::new("--checkpoint");
    let (code, found) = tampered(&exported.each(id, |number, _| number < last - 3), &[option, &checkpoint]);
    assert_eq!((code, found[judge::CLIENT].1.as_str(), found[judge::CLIENT].3), (1, "incomplete", last - 3));
    // As if each proxy's records were the other's.
    let other = server["stream"].as_str().unwrap();
    let swap = |text: String| text.replace(id, "SWAP").replace(other, id).replace("SWAP", other);
    let resources = |mut line: Value| {
        for logs in line["resourceLogs"].as_array_mut().unwrap() {
            logs["resource"] = serde_json::from_str(&swap(logs["resource"].to_string())).unwrap();
        }
        line
    };
    let (code, json) =
        verify(&roots, &[&Exported(exported.0.iter().cloned().map(resources).collect()).write(directory)]);
    assert_eq!(code, 1);
    assert!(json["streams"].as_array().unwrap().iter().all(|stream| stream["integrity"] == "broken"), "{json:#}");
    // Twice and backwards is as good.
    let again = Exported(exported.0.iter().rev().chain(exported.0.iter().take(3)).cloned().collect());
    let (code, found) = tampered(&again, &[]);
    assert_eq!((code, &found[judge::CLIENT], &found[judge::SERVER]), (0, &good(), &good()));
    // Usage.
    let status = Command::new(binaries().unwrap().join("picket")).arg("verify").output().unwrap().status;
    assert_eq!(status.code(), Some(64));
}

/// A text of all kinds of characters, another one for each number.
fn nasty(number: u64) -> String {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::new();
    for _ in 0..number % 40 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let limit = [0x80, 0x800, 0x10000, 0x0011_0000][(state >> 60) as usize % 4];
        text.extend(char::from_u32((state % limit) as u32));
    }
    text
}

#[test]
fn a_hundred_thousand_records_come_back_byte_by_byte_from_what_a_collector_wrote() {
    let directory = RunDir::new("evidence").unwrap();
    let file = directory.path().join("records.json");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = directory.write("collector.yaml", &configuration(&format!("127.0.0.1:{port}"), &file)).unwrap();
    let mut collector = run_collector(Command::new(program()), &config, &directory);
    let (roots, credentials) = integration::pki::workload(judge::CLIENT).unwrap();
    let roots = directory.write("roots.pem", &roots).unwrap();

    let disk = Arc::new(spool::Disk::open(&directory.path().join("spool")).unwrap());
    let sync = spool::Sync::Interval(Duration::from_millis(100));
    let limits = spool::Config {
        max_bytes: 1 << 30,
        max_age: Duration::from_secs(3600),
        min_free_bytes: 0,
        sync,
        on_full: spool::OnFull::DropOldest,
        uid_seed: 1,
    };
    let (spool, reader, _) = spool::Spool::open(disk, limits, 1).unwrap();
    let stream: String = spool.stream().iter().map(|byte| format!("{byte:02x}")).collect();
    let status = Arc::clone(spool.status());
    let (sender, receiver) = export::queue(512 << 20);
    let sign = move |message: &[u8]| {
        let chain = credentials.certified_key.cert.iter().map(|der| der.to_vec()).collect();
        Some(spool::Signed { signature: credentials.sign(message)?, chain })
    };
    let sealing = export::Sealing { interval: Duration::from_secs(1), sign: Box::new(sign) };
    let spooled = export::Spooled::spawn_all(receiver, spool, vec![reader], sync, Some(sealing)).unwrap().remove(0);
    let mut uids = UidSource::new(5);
    for batch in 0..MANY / 100 {
        let mut fields = Vec::new();
        for number in batch * 100..batch * 100 + 100 {
            let text = nasty(number);
            let attributes = [
                (key::DETAIL, Text::Text(&text)),
                (key::BYTES_FROM_CLIENT, Text::Int(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (number % 64))),
                (key::TRUNCATED, Text::Bool(number % 2 == 0)),
            ];
            let (uid, name, severity) = (uids.next(number), EventName::Alert, Severity::Warn);
            let time_unix_nanos = number * 1_000_003;
            Event { uid, name, time_unix_nanos, severity, attributes: &attributes }.encode(&mut fields);
            with_durations(number, &mut fields, &mut uids);
        }
        sender.send(export::Batch { records: 200, fields: fields.into() }).unwrap();
    }
    drop(sender);
    let shipper = export::otlp::Shipper::new(export::otlp::Config {
        resource: vec![(key::STREAM.to_owned(), stream)],
        ..export::otlp::Config::to(format!("http://127.0.0.1:{port}"))
    })
    .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(shipper.run_spooled(spooled, std::future::pending(), Duration::ZERO));
    until("all records at the collector", DEADLINE, || Ok((status.acknowledged() > 2 * MANY).then_some(()))).unwrap();
    collector.terminate().unwrap();
    collector.wait(DEADLINE).unwrap();
    let (code, json) = verify(&roots, &[&file]);
    assert_eq!((code, &verdicts(&json)[judge::CLIENT]), (0, &good()), "{json:#}");
    assert!(json["streams"][0]["records"].as_u64().unwrap() > 2 * MANY);
}

/// A connection whose durations are hard to print, beside each of the records above.
fn with_durations(number: u64, fields: &mut Vec<u8>, uids: &mut UidSource) {
    let context = record::Context {
        direction: record::Direction::Outbound,
        source: SocketAddr::from(([10, 0, 0, 1], 4000)),
        destination: SocketAddr::from(([10, 0, 0, 2], 80)),
        upstream: None,
        service: Some("web.demo"),
        client_workload: None,
        server_workload: None,
        client_identity: Some((judge::CLIENT, record::EstablishedBy::OwnCertificate)),
        server_identity: None,
        tls: None,
        server_name: None,
        protocol: record::Protocol::Tcp,
        detected_by: record::DetectedBy::Timeout,
        decision: record::Decision::Passthrough,
        decision_reason: "not in the mesh",
    }
    .encode(uids.next(number));
    let duration = |factor: u64| Duration::from_nanos(number.wrapping_mul(factor) >> (number % 60));
    record::Request {
        uid: uids.next(number),
        context: &context,
        started_unix_nanos: number,
        ended_unix_nanos: number + 1,
        method: "GET",
        path: "/",
        authority: None,
        http_version: record::HttpVersion::Http11,
        status: None,
        grpc_status: None,
        is_grpc: false,
        request_body_bytes: 0,
        response_body_bytes: number,
        first_byte: Some(duration(0x9e37_79b9_7f4a_7c15)),
        duration: duration(0xc2b2_ae3d_27d4_eb4f),
        resends: 0,
        trace: (!number.is_multiple_of(3)).then_some(([(number as u8) | 1; 16], [7; 8], (number % 2) as u8)),
        code: record::Code::Ok,
        detail: None,
        upgraded: None,
        captured: None,
    }
    .encode(fields);
}
