//! A root whose key is in wrong hands is dropped before its time: a stream that was proved with certificates under it is cut
//! within a second and its records say why, one under the new root goes on, and all is served as before.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::time::{Duration, Instant};

use integration::ring::{PODS, Ring, Spoken};
use integration::{DEADLINE, Wire};
use record::key;
use serde_json::{Value, json};
use testkit::{Record, until};

/// From the command's end until the stream is cut.
const CUT_WITHIN: Duration = Duration::from_secs(1);

fn echoes(stream: &mut Wire) {
    stream.send("still here?").unwrap();
    assert_eq!(stream.exactly(11).unwrap(), b"still here?");
}

fn stream(ring: &Ring) -> Wire {
    let mut stream = ring.dial(0, Spoken::Tcp).unwrap();
    echoes(&mut stream);
    stream
}

/// Waits until each pod has got a certificate of the issuer that signs, and uses it.
fn all_renewed(ring: &Ring) {
    let has = |records: &[Record], pod: &str, issuer: &str| {
        let of = |record: &Record| record.is(key::K8S_POD_NAME, pod) && record.is(key::CERTIFICATE_ISSUER, issuer);
        records.iter().any(of)
    };
    until("the new root to sign, and certificates under it", DEADLINE, || {
        let status = ring.certs_done(&["status"])?;
        let signing = |issuer: &&Value| issuer["signing"] == true;
        let issuer = status["issuers"].as_array().unwrap().iter().find(signing).unwrap();
        let records = ring.collector.records();
        let all = PODS.iter().all(|pod| has(&records, pod, issuer["sha256"].as_str().unwrap()));
        let signs = status["rotation"]["stage"] == "sign" && status["proxies"]["behind"] == 0;
        Ok((all && signs).then_some(()))
    })
    .unwrap();
}

/// The codes of the streams that are closed, by direction.
fn closed(ring: &Ring, direction: &str) -> Vec<String> {
    let is_it = |record: &Record| {
        record.event() == "picket.connection"
            && record.is(key::CONNECTION_STATE, "closed")
            && record.is(key::TLS_NEXT_PROTOCOL, "picket/tcp")
            && record.is(key::DIRECTION, direction)
    };
    ring.collector.select(is_it).iter().map(|record| record.text(key::CODE).unwrap().to_owned()).collect()
}

#[test]
fn what_stands_under_a_dropped_root_is_cut_and_nothing_else() {
    let authority = vec![("renewWithin", json!("1s")), ("rotation", json!({ "absenceWindow": "0s" }))];
    let ring = Ring::start(authority, None).unwrap();
    until("the mesh to serve", DEADLINE, || Ok(ring.exchange(0, 1).ok())).unwrap();
    let mut old = stream(&ring);
    let before = ring.certs_done(&["status"]).unwrap();
    ring.certs_done(&["rotate", "--root"]).unwrap();
    all_renewed(&ring);
    let mut new = stream(&ring);
    echoes(&mut old);
    let seen = ["outbound", "inbound"].map(|direction| closed(&ring, direction).len());

    let root = before["roots"][0]["sha256"].as_str().unwrap();
    let after = ring.certs_done(&["drop", "--root", root, "--override"]).unwrap();
    let began = Instant::now();
    assert!(old.reset().unwrap().is_empty());
    let took = began.elapsed();
    println!("cut after {took:?}");
    assert!(took < CUT_WITHIN, "cut after {took:?}");
    assert_eq!(after["denied"][0]["reason"], "root 1 was dropped before its time", "{after}");

    // Each side denies the other; whoever is first, the other one may see it go.
    let codes = until("the records of both sides", DEADLINE, || {
        let codes = [("outbound", seen[0]), ("inbound", seen[1])].map(|(way, seen)| closed(&ring, way).split_off(seen));
        Ok(codes.iter().all(|codes| !codes.is_empty()).then_some(codes))
    });
    let [outbound, inbound] = codes.unwrap().map(|codes| codes.join(" "));
    assert!(outbound == "peer_denied" || inbound == "peer_denied", "{outbound}, {inbound}");
    assert!(["peer_denied", "server_reset"].contains(&&*outbound), "{outbound}");
    assert!(["peer_denied", "client_reset"].contains(&&*inbound), "{inbound}");

    echoes(&mut new);
    for from in 0..PODS.len() {
        ring.exchange(from, 2).unwrap();
    }
    echoes(&mut new);
}
