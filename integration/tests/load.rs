//! 10 000 connections one after the other and 1 000 at once: exactly as many records, and nothing is left of them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use integration::{DEADLINE, Stage, judge, load::Held, service};
use record::key;
use testkit::{Record, Service, Settings, until};

const TARGET: u16 = 8082;
const SEQUENTIAL: usize = 10_000;
const CONCURRENT: usize = 1_000;
/// How much more a proxy may hold after the load than after the warm-up: 0.4 KiB for each of 11 000 connections, so that
/// a leak of 1 KiB for each (10.7 MiB) is found with room to spare. Without a leak it moves by less than 1 MiB.
const GROWTH_KIB_MAX: usize = 4 * 1024;
/// Descriptors come and go with the exporter's and the CA's connections.
const DESCRIPTORS_SLACK: usize = 8;

/// What both proxies hold once all is quiet. `kept` connections between them may stay for the next request; the
/// descriptors of these, one of the client's proxy and two of the server's, are left out.
fn quiet(stage: &Stage, kept: u64) -> [Held; 2] {
    let open = |pod: &str, direction: &str| {
        stage.metric(pod, &format!("picket_connections_open{{direction=\"{direction}\"}}"))
    };
    until("all connections to be closed", DEADLINE, || {
        let open = (open("client", "outbound")?, open("server", "inbound")?);
        let held = [("client", 1), ("server", 2)].map(|(pod, each)| {
            let held = stage.held(pod)?;
            Ok(Held { descriptors: held.descriptors.saturating_sub(each * open.1 as usize), ..held })
        });
        let held = held.into_iter().collect::<Result<Vec<_>>>()?;
        Ok((open.0 == 0 && open.1 <= kept).then_some([held[0], held[1]]))
    })
    .unwrap()
}

/// Sends the load to a service of that protocol, with a warm-up before it, and gives the records of all that.
///
/// The warm-up is as wide as the load, so that what grows with the number of connections at once has grown.
fn load(stage: &Stage, service: &Service, kept: u64) -> Vec<Record> {
    let to = SocketAddr::new(IpAddr::from(service.ipv4()), 80);
    stage.concurrent(CONCURRENT, to).unwrap();
    stage.sequential(CONCURRENT, to).unwrap();
    let before = quiet(stage, kept);
    stage.sequential(SEQUENTIAL, to).unwrap();
    stage.concurrent(CONCURRENT, to).unwrap();
    let after = quiet(stage, kept);
    for (before, after) in before.iter().zip(&after) {
        eprintln!("before the load {before:?}, after it {after:?}");
        assert!(after.descriptors <= before.descriptors + DESCRIPTORS_SLACK, "{before:?} became {after:?}");
        assert!(after.resident_kib <= before.resident_kib + GROWTH_KIB_MAX, "{before:?} became {after:?}");
    }
    let name = format!("{}.demo", service.name);
    let records = stage.settled(|record| record.is(key::SERVICE, &name)).unwrap();
    judge::went_well(&records).unwrap();
    records
}

fn count(records: &[Record], direction: &str, what: impl Fn(&Record) -> bool) -> usize {
    judge::of(records, direction, "ipv4").filter(|record| what(record)).count()
}

const TOTAL: usize = 2 * CONCURRENT + CONCURRENT + SEQUENTIAL;

#[test]
fn each_http_request_on_a_connection_of_its_own_is_recorded_and_nothing_is_left() {
    let service = service("load", 17, 80, TARGET, Some("http"));
    let stage = Stage::with_services(&Settings::default(), std::slice::from_ref(&service)).unwrap();
    let _nginx = stage.nginx(TARGET, "", "").unwrap();
    // 64 connections to an endpoint are kept (`IDLE_MAX` in proxy/src/connect.rs).
    let records = load(&stage, &service, 64);
    assert_eq!(count(&records, "outbound", judge::is_connection), TOTAL);
    assert_eq!(count(&records, "outbound", judge::is_request), TOTAL);
    assert_eq!(count(&records, "inbound", judge::is_request), TOTAL);
    let outbound: Vec<_> = judge::of(&records, "outbound", "ipv4").cloned().collect();
    judge::connections_hold_their_requests(&outbound).unwrap();
}

#[test]
fn each_opaque_connection_is_recorded_on_both_sides_and_nothing_is_left() {
    let service = service("opaque", 18, 80, TARGET, Some("tcp"));
    let stage = Stage::with_services(&Settings::default(), std::slice::from_ref(&service)).unwrap();
    let _nginx = stage.nginx(TARGET, "", "").unwrap();
    let records = load(&stage, &service, 0);
    for direction in judge::DIRECTIONS {
        assert_eq!(count(&records, direction, judge::is_connection), TOTAL, "{direction}");
    }
    assert_eq!(records.len(), 2 * TOTAL);
}
