//! A real rsyslog gets every record, over TLS with a client certificate and over plain TCP, though it is killed in between.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use export::{Batch, Sealing, Sender, Spooled, syslog};
use integration::{
    DEADLINE, Stage, judge,
    rsyslog::{Certificates, Rsyslog, values},
};
use record::{Event, EventName, Severity, UidSource, Value, key};
use serde_json::{Value as Json, json};
use testkit::{LINK_IPV4, RunDir, Settings, binaries, until};

const RECORDS: usize = 100_000;
const BATCH: usize = 100;

/// A port of loopback that is free now.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// Opens the spool of this run for syslog alone, and gives its stream, too.
fn sealed(directory: &RunDir, sealing: Option<Sealing>) -> (Sender, Spooled, String) {
    let config = spool::Config {
        max_bytes: 256 << 20,
        max_age: Duration::from_secs(3600),
        min_free_bytes: 0,
        sync: spool::Sync::Interval(Duration::from_millis(50)),
        on_full: spool::OnFull::DropOldest,
        uid_seed: 5,
    };
    let disk = Arc::new(spool::Disk::open(&directory.path().join("spool")).unwrap());
    let (spool, readers, _) = spool::Spool::open_for(&[spool::Sink::Syslog], disk, config, now()).unwrap();
    let stream = spool.stream().iter().map(|byte| format!("{byte:02x}")).collect();
    let (sender, receiver) = export::queue(8 << 20);
    (sender, Spooled::spawn_all(receiver, spool, readers, config.sync, sealing).unwrap().remove(0), stream)
}

fn spooled(directory: &RunDir) -> (Sender, Spooled) {
    let (sender, spooled, _) = sealed(directory, None);
    (sender, spooled)
}

/// What seals a stream as the workload `id`, and the roots that vouch for it.
fn sealing(directory: &RunDir, id: &str) -> (PathBuf, Sealing) {
    let (roots, credentials) = integration::pki::workload(id).unwrap();
    let sign = move |message: &[u8]| {
        let chain = credentials.certified_key.cert.iter().map(|der| der.to_vec()).collect();
        Some(spool::Signed { signature: credentials.sign(message)?, chain })
    };
    let sealing = Sealing { interval: Duration::from_secs(1), sign: Box::new(sign) };
    (directory.write("roots.pem", &roots).unwrap(), sealing)
}

/// Integrity, completeness, and the first number that each has something to say about.
type Verdict = (String, String, u64, u64);

/// What `picket verify` says: its exit code, and both verdicts about each stream with the numbers of the first findings.
fn verify(roots: &Path, arguments: &[&Path]) -> (i32, Vec<Verdict>, String) {
    let mut command = Command::new(binaries().unwrap().join("picket"));
    let output = command.args(["verify", "-o", "json", "--trust-bundle"]).arg(roots).args(arguments).output().unwrap();
    let json: Json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let verdict = |stream: &Json| {
        let word = |name: &str| stream[name].as_str().unwrap().to_owned();
        let first = |name: &str| stream[name][0]["first"].as_u64().unwrap_or(0);
        (word("integrity"), word("completeness"), first("integrityFindings"), first("completenessFindings"))
    };
    let verdicts = json["streams"].as_array().unwrap().iter().map(verdict).collect();
    (output.status.code().unwrap(), verdicts, format!("{json:#}"))
}

fn verdict(integrity: &str, completeness: &str, first: u64, missing: u64) -> Verdict {
    (integrity.to_owned(), completeness.to_owned(), first, missing)
}

/// Deletes, changes and cuts what was written of one whole stream, whose spool is in the directory, too.
fn tamper(directory: &RunDir, roots: &Path, text: &str) {
    let number = |line: &str| values(line, "sequence")[0].parse::<u64>().unwrap();
    let judge = |line: &dyn Fn(&str) -> Option<String>, more: &[&Path]| {
        let changed: String = text.lines().filter_map(|of| line(of).map(|line| line + "\n")).collect();
        assert_ne!(changed, text);
        let file = directory.write("tampered.log", &changed).unwrap();
        verify(roots, &[&[file.as_path()], more].concat())
    };
    const MIDDLE: u64 = RECORDS as u64 * 3 / 4;
    let of_middle = |line: &str, change: &dyn Fn(&str) -> String| {
        Some(if number(line) == MIDDLE { change(line) } else { line.to_owned() })
    };
    let (code, found, said) = judge(&|line| (number(line) != MIDDLE).then(|| line.to_owned()), &[]);
    assert_eq!(
        (code, found[0].0.as_str(), found[0].1.as_str(), found[0].3),
        (1, "unproven", "incomplete", MIDDLE),
        "{said}"
    );
    // One byte of what people read, then one of the record's bytes.
    let (code, found, said) = judge(&|line| of_middle(line, &|line| line.replacen("/with", "/wiph", 1)), &[]);
    assert_eq!((code, &found[0]), (1, &verdict("broken", "complete", MIDDLE, 0)), "{said}");
    let (code, found, said) = judge(&|line| of_middle(line, &of_base64), &[]);
    assert_eq!((code, found[0].0.as_str()), (1, "broken"), "{said}");
    assert!((1..=MIDDLE).contains(&found[0].2), "{said}");
    // Without its tail, which the checkpoint that was kept outside knows of.
    let last = text.lines().map(number).max().unwrap();
    let checkpoint = directory.path().join("spool/checkpoint");
    let cut = |line: &str| (number(line) < last - 3).then(|| line.to_owned());
    let (code, found, said) = judge(&cut, &[Path::new("--checkpoint"), &checkpoint]);
    assert_eq!((code, found[0].1.as_str(), found[0].3), (1, "incomplete", last - 3), "{said}");
}

/// The message with another letter in the middle of its record's bytes.
fn of_base64(line: &str) -> String {
    let begin = line.find(" otlp=\"").unwrap() + 7;
    let at = begin + (line[begin..].find('"').unwrap()) / 2;
    let other = if &line[at..=at] == "A" { "B" } else { "A" };
    format!("{}{other}{}", &line[..at], &line[at + 1..])
}

fn config(address: SocketAddr, tls: Option<&Certificates>, settle: Duration) -> syslog::Config {
    // Of the tests that do not verify.
    let stream = "00ff".to_owned();
    let scheme = if tls.is_some() { "tls" } else { "tcp" };
    syslog::Config {
        endpoint: format!("{scheme}://{address}"),
        roots: tls.map(|of| of.roots.clone()),
        certificate: tls.map(|of| of.client.clone()),
        timeout: Duration::from_secs(10),
        settle,
        away_after: Duration::from_secs(300),
        format: syslog::Format {
            facility: 16,
            host_name: "test".to_owned(),
            app_name: "picket-proxy".to_owned(),
            process_id: std::process::id(),
            enterprise_number: 32473,
            message_bytes_max: 8192,
            resource: vec![(key::STREAM.to_owned(), stream)],
            evidence: false,
        },
    }
}

/// Delivers until all senders are gone, on a thread of its own.
fn deliver(config: syslog::Config, spooled: Spooled) -> std::thread::JoinHandle<()> {
    let syslog = syslog::Syslog::new(config).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(syslog.run(spooled, std::future::pending(), Duration::ZERO));
    })
}

/// Sends records like those of requests, and gives their uids.
fn send(sender: &Sender, records: usize) -> Vec<String> {
    let (mut uids, mut source) = (Vec::new(), UidSource::new(u128::from(now())));
    for _ in 0..records / BATCH {
        let mut fields = Vec::new();
        for _ in 0..BATCH {
            let uid = source.next(now() / 1_000_000);
            let attributes = [
                (key::DIRECTION, Value::Text("outbound")),
                (key::URL_PATH, Value::Text("/with \"quotes\" and [brackets]")),
                (key::CLIENT_IDENTITY, Value::Text("spiffe://demo.picket.dev/ns/demo/sa/client")),
                (key::SERVER_IDENTITY, Value::Text("spiffe://demo.picket.dev/ns/demo/sa/server")),
                (key::DESTINATION_PORT, Value::Int(80)),
            ];
            let (name, severity) = (EventName::Alert, Severity::Info);
            Event { uid, name, time_unix_nanos: now(), severity, attributes: &attributes }.encode(&mut fields);
            uids.push(uid.to_string());
        }
        until("room in the queue", DEADLINE, || Ok((sender.counters().queued_bytes() < 4 << 20).then_some(())))
            .unwrap();
        sender.send(Batch { records: BATCH as u32, fields: fields.into() }).unwrap();
    }
    uids
}

/// How often each uid is in the file.
fn counts(text: &str) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    values(text, key::LOG_RECORD_UID).into_iter().for_each(|uid| *counts.entry(uid).or_default() += 1);
    counts
}

#[test]
fn a_hundred_thousand_records_arrive_over_tls_though_the_server_is_killed() {
    let directory = RunDir::new("syslog").unwrap();
    let address = free();
    let certificates = Certificates::new(&directory, address).unwrap();
    let start = || Rsyslog::start(&directory, Command::new("rsyslogd"), address, Some(&certificates)).unwrap();
    let first = start();
    let (roots, sealing) = sealing(&directory, judge::CLIENT);
    let (sender, spooled, stream) = sealed(&directory, Some(sealing));
    let counters = Arc::clone(spooled.counters());
    let mut proven = config(address, Some(&certificates), Duration::from_secs(2));
    (proven.format.evidence, proven.format.resource) = (true, vec![(key::STREAM.to_owned(), stream)]);
    let delivery = deliver(proven, spooled);
    let mut uids = send(&sender, RECORDS / 2);
    until("a part of the records at the server", DEADLINE, || Ok((first.written() > 4 << 20).then_some(()))).unwrap();
    // In the middle of what it gets, with what it has read and not written.
    first.kill().unwrap();
    uids.extend(send(&sender, RECORDS / 2));
    let second = start();
    drop(sender);
    until("the end of the delivery", 6 * DEADLINE, || Ok(delivery.is_finished().then_some(()))).unwrap();
    delivery.join().unwrap();
    until("the last record in the file", DEADLINE, || {
        Ok(second.text()?.contains(uids.last().unwrap().as_str()).then_some(()))
    })
    .unwrap();
    let formatted = until("the last checkpoint in the other file", DEADLINE, || {
        let text = String::from_utf8(std::fs::read(second.formatted())?)?;
        let last = text.lines().last().is_some_and(|line| line.contains(" picket.checkpoint [picket@32473 "));
        Ok((last && text.ends_with('\n')).then_some(text))
    })
    .unwrap();
    let text = second.text().unwrap();
    let counts = counts(&text);
    let missing = uids.iter().filter(|uid| !counts.contains_key(uid.as_str())).count();
    let repeated: usize = counts.values().map(|count| count - 1).sum();
    assert_eq!((missing, uids.len()), (0, RECORDS), "{repeated} came again");
    assert!(repeated < RECORDS, "{repeated} came again");
    assert!(counters.acknowledged() >= RECORDS as u64 && counters.dropped() == 0);
    assert!(text.contains(r#"url.path="/with \"quotes\" and [brackets\]""#));
    // Nothing is left for the next start.
    let (sender, spooled) = self::spooled(&directory);
    drop(sender);
    let before = second.written();
    deliver(config(address, Some(&certificates), Duration::from_secs(2)), spooled).join().unwrap();
    assert_eq!(second.written(), before);
    // And what it wrote is proven; a piece that it had written when it was killed does no harm.
    let (code, found, said) = verify(&roots, &[second.formatted()]);
    assert_eq!((code, found), (0, vec![verdict("intact", "complete", 0, 0)]), "{said}");
    tamper(&directory, &roots, &whole(&formatted));
}

/// Without the piece of a message that a server had written when it was killed.
fn whole(text: &str) -> String {
    let message =
        |line: &str| line.rfind("<134>1 ").or_else(|| line.rfind("<132>1 ")).map(|at| line[at..].to_owned() + "\n");
    text.lines().filter_map(message).collect()
}

#[test]
fn without_a_certificate_of_its_own_nobody_is_let_in_and_nothing_is_lost() {
    let directory = RunDir::new("syslog-refused").unwrap();
    let address = free();
    let certificates = Certificates::new(&directory, address).unwrap();
    let server = Rsyslog::start(&directory, Command::new("rsyslogd"), address, Some(&certificates)).unwrap();
    let (sender, spooled) = spooled(&directory);
    let uids = send(&sender, BATCH);
    let without = syslog::Config { certificate: None, ..config(address, Some(&certificates), Duration::from_secs(1)) };
    let syslog = syslog::Syslog::new(without).unwrap();
    let counters = Arc::clone(spooled.counters());
    drop(sender);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(syslog.run(spooled, std::future::ready(()), Duration::from_secs(3)));
    assert_eq!((counters.acknowledged(), server.written()), (0, 0));
    let (sender, spooled) = self::spooled(&directory);
    drop(sender);
    deliver(config(address, Some(&certificates), Duration::from_secs(1)), spooled).join().unwrap();
    until("every record", DEADLINE, || Ok((counts(&server.text()?).len() == uids.len()).then_some(()))).unwrap();
}

#[test]
fn a_mesh_tells_the_collector_and_the_syslog_server_the_same() {
    let address = SocketAddr::from((LINK_IPV4, 601));
    let syslog =
        json!({ "endpoint": format!("tcp://{address}"), "settle": "1s", "facility": "audit", "evidence": true });
    let settings = Settings {
        spool: Some(json!({ "minFreeBytes": "1MiB" })),
        proxy: vec![("syslog", syslog)],
        ..Settings::default()
    };
    let mut stage = Stage::start(&settings).unwrap();
    // The server comes late; what was recorded before waits for it.
    for _ in 0..10 {
        stage.run("client", "curl", &["--silent", "--fail", "http://10.96.0.10/hello.txt"]).unwrap();
    }
    let command = stage.mesh.net.link.command(0, "rsyslogd");
    let server = Rsyslog::start(&stage.mesh.directory, command, address, None).unwrap();
    stage.run("client", "curl", &["--silent", "--fail", "http://10.96.0.10/hello.txt"]).unwrap();
    stage.records(22, |record| record.event() == "picket.request").unwrap();
    until("the same records at both", DEADLINE, || {
        let received = stage.collector.records();
        let text = server.text().unwrap_or_default();
        let uids = counts(&text);
        let all = received.iter().all(|record| uids.contains_key(record.text(key::LOG_RECORD_UID).unwrap_or_default()));
        Ok((all && received.len() == uids.len()).then_some(()))
    })
    .unwrap();
    let text = server.text().unwrap();
    // Facility 13, severity 6; the stream of each proxy; numbers as at the collector.
    assert!(text.lines().any(|line| line.starts_with("<110>1 ") && line.contains(" picket.request [picket@32473 ")));
    let streams: std::collections::BTreeSet<_> = values(&text, "stream.id").into_iter().collect();
    assert_eq!(streams.len(), 2);
    for record in stage.collector.records() {
        let (uid, number) = (record.text(key::LOG_RECORD_UID).unwrap(), record.integer(key::SEQUENCE).unwrap());
        assert!(text.contains(&format!("log.record.uid=\"{uid}\" sequence=\"{number}\"")), "{record}");
    }
    until("the cursors of both proxies to move", DEADLINE, || {
        let delivered = |pod| stage.metric(pod, "picket_records_acknowledged_total{sink=\"syslog\"}");
        Ok((delivered("client")? >= 22 && delivered("server")? >= 11).then_some(()))
    })
    .unwrap();
    // At their end both proxies seal their streams. Both readers get the checkpoints, and what is in the spools is proven.
    for pod in ["client", "server"] {
        stage.mesh.terminate(pod).unwrap();
        assert!(stage.mesh.wait_for_end(pod, DEADLINE).unwrap().success());
    }
    let checkpoints = stage.records(2, |record| record.event() == "picket.checkpoint").unwrap();
    let uids: Vec<_> = checkpoints.iter().map(|record| record.text(key::LOG_RECORD_UID).unwrap()).collect();
    until("the checkpoints at the syslog server", DEADLINE, || {
        let text = server.text()?;
        Ok((uids.len() == 2 && uids.iter().all(|uid| text.contains(uid))).then_some(()))
    })
    .unwrap();
    // What rsyslog wrote of them is proven, too, until somebody gives each proxy the other's stream.
    let (roots, intact) = (stage.mesh.trust_bundle(), verdict("intact", "complete", 0, 0));
    let proven = || Ok((verify(&roots, &[server.formatted()]).0 == 0).then_some(()));
    until("all records in its other file", DEADLINE, proven).unwrap();
    let (_, found, said) = verify(&roots, &[server.formatted()]);
    assert_eq!(found, [intact.clone(), intact], "{said}");
    let formatted = std::fs::read_to_string(server.formatted()).unwrap();
    let ids: Vec<_> = streams.iter().collect();
    let swapped = formatted.replace(*ids[0], "SWAP").replace(*ids[1], ids[0]).replace("SWAP", ids[1]);
    let file = stage.mesh.directory.write("swapped.log", &swapped).unwrap();
    let (code, found, said) = verify(&roots, &[&file]);
    assert!(code == 1 && found.len() == 2 && found.iter().all(|found| found.0 == "broken"), "{said}");
    for pod in ["client", "server"] {
        let mut verify = Command::new(binaries().unwrap().join("picket"));
        verify.args(["verify", "-o", "json", "--trust-bundle"]).arg(stage.mesh.trust_bundle());
        let output = verify.arg(stage.mesh.directory.path().join(pod).join("spool")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}
