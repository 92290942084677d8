//! With a spool no record is lost when the collector is away and the proxy is killed: what was spooled arrives, each
//! number once or with the same uid, and no number is missing.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use integration::{DEADLINE, Stage, WEB_PORT};
use record::key;
use serde_json::json;
use testkit::{Collector, LINK_IPV4, Record, Settings, until};

/// Where nobody listens until the collector comes back.
const PORT: u16 = 4318;
const REQUESTS: usize = 30;

/// Requests paths of their own; the server has none of them, and the records say so.
fn traffic(stage: &Stage, life: &str) -> Vec<String> {
    let paths: Vec<String> = (0..REQUESTS).map(|n| format!("/{life}-{n}")).collect();
    let urls: Vec<String> = paths.iter().map(|path| format!("http://10.96.0.10:{WEB_PORT}{path}")).collect();
    let mut arguments = vec!["--silent", "--show-error", "--output", "/dev/null", "--write-out", "%{http_code} "];
    // One output for each URL.
    arguments.extend(urls.iter().flat_map(|url| ["--output", "/dev/null", url]));
    let codes = stage.run("client", "curl", &arguments).unwrap();
    assert_eq!(codes.split_whitespace().filter(|code| *code == "404").count(), REQUESTS, "{codes}");
    paths
}

/// Waits until so many records of a proxy's life are synced.
fn wait_for_spooled(stage: &Stage, pod: &str, records: u64) {
    until(&format!("{records} records in the spool of {pod}"), DEADLINE, || {
        let spooled = stage.metric(pod, "picket_spool_records_written_total")?;
        Ok((spooled >= records).then_some(()))
    })
    .unwrap();
}

/// Which side tells of a request for which path.
fn told(record: &Record) -> Option<(&str, &str)> {
    Some((record.text(key::DIRECTION)?, record.text(key::URL_PATH)?))
}

#[test]
fn a_killed_proxy_and_a_collector_that_was_away_lose_no_record() {
    let collector = SocketAddr::from((LINK_IPV4, PORT));
    let settings =
        Settings { collector: Some(collector), spool: Some(json!({ "minFreeBytes": "1MiB" })), ..Settings::default() };
    let mut stage = Stage::start(&settings).unwrap();
    let mut paths = BTreeSet::new();
    for life in ["first", "second", "third"] {
        paths.extend(traffic(&stage, life));
        // Requests, and the connection that carried them.
        wait_for_spooled(&stage, "client", REQUESTS as u64 + 1);
        wait_for_spooled(&stage, "server", REQUESTS as u64);
        for pod in ["client", "server"] {
            stage.mesh.kill_and_restart(pod).unwrap();
        }
    }
    let waiting = stage.metric("client", "picket_spool_bytes").unwrap();
    assert!(waiting > REQUESTS as u64 * 3 * 300, "{waiting} bytes of three lives wait");
    let back = Collector::start(&stage.mesh.net.link, collector).unwrap();
    let all = |received: &[Record]| {
        let arrived: BTreeSet<_> = received.iter().filter_map(told).collect();
        ["inbound", "outbound"].iter().all(|side| paths.iter().all(|path| arrived.contains(&(*side, path.as_str()))))
    };
    let received = back.wait_until("every request of three lives, from both sides", DEADLINE, all).unwrap();

    let mut streams: BTreeMap<String, BTreeMap<i64, String>> = BTreeMap::new();
    for record in &received {
        let stream = record.resource_text(key::STREAM).expect("the resource names the stream").to_owned();
        let sequence = record.integer(key::SEQUENCE).expect("every record has a number");
        let uid = record.text(key::LOG_RECORD_UID).unwrap().to_owned();
        let before = streams.entry(stream).or_default().insert(sequence, uid.clone());
        assert!(before.is_none_or(|before| before == uid), "number {sequence} is two records");
        assert_ne!(record.event(), "picket.gap", "{record}");
    }
    assert_eq!(streams.len(), 2, "the stream of a spool is the same in each life of its proxy");
    for numbers in streams.values() {
        let last = *numbers.keys().next_back().unwrap();
        assert_eq!(numbers.keys().copied().collect::<Vec<_>>(), (1..=last).collect::<Vec<_>>());
    }
    // And the disk is free again, as soon as there is another segment: one is always kept.
    stage.run("client", "curl", &["--silent", "http://10.96.0.10/hello.txt"]).unwrap();
    until("the spool to be empty", DEADLINE, || {
        let bytes = stage.metric("client", "picket_spool_bytes")?;
        Ok((bytes < 16 << 10).then_some(()))
    })
    .unwrap();
}

#[test]
fn with_refuse_there_is_no_traffic_without_room_for_its_records() {
    // No disk has so much free: it is as if the spool were full.
    let spool = json!({ "onFull": "refuse", "minFreeBytes": "100000000GiB" });
    let stage = Stage::start(&Settings { spool: Some(spool), ..Settings::default() }).unwrap();
    until("the spool to ask for no traffic", DEADLINE, || {
        Ok((stage.metric("client", "picket_spool_full")? == 1).then_some(()))
    })
    .unwrap();
    let refused = stage.run("client", "curl", &["--silent", "--show-error", "http://10.96.0.10/hello.txt"]);
    refused.expect_err("a full spool refuses connections");
    // There is room on this disk after all, so that the refusal is on record.
    let records = stage.records(1, |record| record.is(key::CODE, "spool_full")).unwrap();
    assert!(records[0].event() == "picket.connection" && records[0].is(key::CLOSED_BY, "us"), "{}", records[0]);
}
