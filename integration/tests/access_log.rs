//! The access log's mode changes under traffic by an annotation: no connection is dropped, and the collector gets everything.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use integration::{DEADLINE, Stage};
use record::key;
use serde_json::json;
use testkit::{RunDir, Settings, Stream, until};

/// One connection that is kept; each request has a path of its own, and a status of its own kind.
struct Kept {
    stream: BufReader<TcpStream>,
    requests: usize,
}

impl Kept {
    /// One request; the server has nothing at any of these paths but the first.
    fn ask(&mut self, path: &str) {
        write!(self.stream.get_mut(), "GET {path} HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
        let (mut line, mut length) = (String::new(), 0);
        self.stream.read_line(&mut line).unwrap();
        assert!(line.starts_with("HTTP/1.1 200"), "{line}");
        loop {
            line.clear();
            self.stream.read_line(&mut line).unwrap();
            let lower = line.to_ascii_lowercase();
            length = lower.strip_prefix("content-length:").map_or(length, |value| value.trim().parse().unwrap());
            if line.trim().is_empty() {
                break;
            }
        }
        self.stream.read_exact(&mut vec![0; length]).unwrap();
        self.requests += 1;
    }
}

#[test]
fn the_mode_follows_the_annotation_under_traffic_and_the_collector_gets_everything() {
    let directory = RunDir::new("podinfo").unwrap();
    let annotations = directory.write("annotations", "kubernetes.io/config.seen=\"now\"\n").unwrap();
    let access_log = json!({ "mode": "all", "format": "json", "annotations": annotations });
    let settings = Settings { proxy: vec![("accessLog", access_log)], ..Settings::default() };
    let stage = Stage::start(&settings).unwrap();
    let service = SocketAddr::from(([10, 96, 0, 10], integration::WEB_PORT));
    let connect = || TcpStream::connect_timeout(&service, DEADLINE);
    let stream = stage.mesh.pods["client"].pod.namespace.inside(|| Ok(connect()?)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut kept = Kept { stream: BufReader::new(stream), requests: 0 };
    let lines = || {
        let output = stage.mesh.pods["client"].proxy.as_ref().unwrap().output(Stream::Out).unwrap();
        output.lines().filter(|line| line.contains("\"picket.request\"")).map(str::to_owned).collect::<Vec<_>>()
    };
    let skipped = || stage.metric("client", "picket_records_skipped_total{sink=\"access_log\"}").unwrap();
    // As the kubelet does it: another file takes the place of the old one.
    let annotate = |value: &str| {
        let fresh = directory.write("fresh", &format!("picket.dev/access-log=\"{value}\"\n")).unwrap();
        fs::rename(fresh, &annotations).unwrap();
    };
    kept.ask("/hello.txt?all");
    until("a line", DEADLINE, || Ok((lines().len() == 1).then_some(()))).unwrap();

    annotate("off");
    let before = skipped();
    until("no line", DEADLINE, || {
        kept.ask("/hello.txt?off");
        std::thread::sleep(Duration::from_millis(50));
        Ok((skipped() > before).then_some(()))
    })
    .unwrap();
    let silent = lines().len();
    for _ in 0..50 {
        kept.ask("/hello.txt?silent");
    }
    until("them to be skipped", DEADLINE, || Ok((skipped() >= before + 50).then_some(()))).unwrap();
    assert_eq!(lines().len(), silent);

    annotate("sampled:0.2");
    until("a line with its rate", DEADLINE, || {
        kept.ask("/hello.txt?sampled");
        Ok(lines().last().is_some_and(|line| line.contains("\"sampling.rate\":0.2")).then_some(()))
    })
    .unwrap();
    let begun = (lines().len(), kept.requests);
    for _ in 0..400 {
        kept.ask("/hello.txt?share");
    }
    let written = |sink: &str| stage.metric("client", &format!("picket_records_{sink}_total{{sink=\"access_log\"}}"));
    until("every request to be seen by the log", DEADLINE, || {
        let seen = written("acknowledged")? + written("skipped")?;
        Ok((seen >= kept.requests as u64).then_some(()))
    })
    .unwrap();
    let share = lines().len() - begun.0;
    assert!((30..150).contains(&share), "{share} of {}", kept.requests - begun.1);
    assert!(lines()[begun.0..].iter().all(|line| line.contains("\"sampling.rate\":0.2")));

    annotate("loud");
    until("the mistake to be said", DEADLINE, || {
        let said = stage.mesh.pods["client"].proxy.as_ref().unwrap().output(Stream::Err)?;
        Ok(said.contains("`loud` is not off, errors, all").then_some(()))
    })
    .unwrap();
    kept.ask("/hello.txt?last");

    // One connection, never dropped, and each of its requests is at the collector.
    let is_ours =
        |record: &testkit::Record| record.event() == "picket.request" && record.is(key::DIRECTION, "outbound");
    let requests = kept.requests;
    let all = stage.records(requests, is_ours).unwrap();
    assert_eq!(all.len(), requests);
    let connection = all[0].text(key::CONNECTION_UID).unwrap().to_owned();
    assert!(all.iter().all(|record| record.is(key::CONNECTION_UID, &connection) && record.is(key::CODE, "ok")));
    assert!(all.iter().all(|record| !record.to_string().contains("share")), "queries are in no record");
}
