//! A real OpenTelemetry Collector receives every record, under semantic-convention names, and loses none.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf};

use integration::{DEADLINE, Stage};
use serde_json::Value;
use testkit::{LINK_IPV4, Process, Settings, until};

const PORT: u16 = 4319;
const REQUESTS: usize = 50;

/// Starts the collector that `./x test` built, in the network of the mesh; it writes each batch as one line of JSON.
fn collector(stage: &Stage) -> (Process, PathBuf) {
    let program = std::env::var_os("PICKET_COLLECTOR").expect("PICKET_COLLECTOR names the collector: run `./x test`");
    let file = stage.mesh.directory.path().join("records.json");
    let config = format!(
        "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '{LINK_IPV4}:{PORT}'}}}}}}}}\n\
         exporters: {{file: {{path: '{}'}}}}\n\
         service:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines: {{logs: {{receivers: [otlp], exporters: [file]}}}}\n",
        file.display()
    );
    let config = stage.mesh.directory.write("collector.yaml", &config).unwrap();
    let mut command = stage.mesh.net.link.command(0, program);
    command.arg("--config").arg(config);
    let mut process = Process::spawn("collector", command, &stage.mesh.directory).unwrap();
    process.wait_for_line(testkit::Stream::Err, "Everything is ready", DEADLINE).unwrap();
    (process, file)
}

/// The attributes of a log record in OTLP JSON, as name and text.
fn attribute<'a>(record: &'a Value, name: &str) -> Option<&'a Value> {
    let attributes = record["attributes"].as_array()?;
    let found = attributes.iter().find(|attribute| attribute["key"] == name)?;
    found["value"].as_object()?.values().next()
}

/// All records in the collector's file.
fn records(file: &PathBuf) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let batches = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut records = Vec::new();
    for batch in batches {
        for resource in batch["resourceLogs"].as_array().unwrap() {
            for scope in resource["scopeLogs"].as_array().unwrap() {
                records.extend(scope["logRecords"].as_array().unwrap().iter().cloned());
            }
        }
    }
    records
}

#[test]
fn every_record_reaches_the_collectors_file() {
    let settings = Settings { collector: Some(SocketAddr::from((LINK_IPV4, PORT))), ..Settings::default() };
    let stage = Stage::start(&settings).unwrap();
    let (_collector, file) = collector(&stage);
    for _ in 0..REQUESTS {
        stage.run("client", "curl", &["--silent", "--fail", "http://10.96.0.10/hello.txt"]).unwrap();
    }
    let of = |records: &[Value], event: &str, direction: &str| -> Vec<Value> {
        let wanted = |record: &&Value| {
            record["eventName"] == event && attribute(record, "picket.direction") == Some(&direction.into())
        };
        records.iter().filter(wanted).cloned().collect()
    };
    let all = until("all records in the collector's file", DEADLINE, || {
        let all = records(&file);
        let complete =
            ["outbound", "inbound"].iter().all(|direction| of(&all, "picket.request", direction).len() >= REQUESTS)
                && of(&all, "picket.connection", "outbound").len() >= REQUESTS;
        Ok(complete.then_some(all))
    })
    .unwrap();
    assert_eq!(of(&all, "picket.request", "outbound").len(), REQUESTS);
    assert_eq!(of(&all, "picket.request", "inbound").len(), REQUESTS);
    assert_eq!(of(&all, "picket.connection", "outbound").len(), REQUESTS);
    let uids: BTreeSet<_> =
        all.iter().filter_map(|record| attribute(record, "log.record.uid")?.as_str().map(str::to_owned)).collect();
    assert_eq!(uids.len(), all.len(), "every record has a uid of its own");
    for record in of(&all, "picket.request", "inbound") {
        assert_eq!(attribute(&record, "http.request.method"), Some(&"GET".into()));
        assert_eq!(attribute(&record, "http.response.status_code"), Some(&"200".into()));
        assert_eq!(attribute(&record, "tls.protocol.version"), Some(&"1.3".into()));
    }
}
