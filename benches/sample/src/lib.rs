//! The record that the benches measure with: a request of a meshed edge, with all attributes that such a record has.
//!
//! One for all of them, so that their figures are about the same bytes (about 1.4 KiB each).

use std::time::Duration;

use record::{
    Code, Context, ContextAttributes, Decision, DetectedBy, Direction, EstablishedBy, HttpVersion, Protocol, Request,
    Tls, UidSource,
};

/// Appends the record of one request, the `number`th.
pub fn request(context: &ContextAttributes, uids: &mut UidSource, number: u64, out: &mut Vec<u8>) {
    let started = 1_764_000_000_000_000_000 + number * 1000;
    let uid = uids.next(started / 1_000_000);
    Request {
        uid,
        context,
        started_unix_nanos: started,
        ended_unix_nanos: started + 1_000_000,
        method: "GET",
        path: "/api/v1/orders/4711",
        authority: Some("orders.shop:8080"),
        http_version: HttpVersion::Http11,
        status: Some(200),
        grpc_status: None,
        is_grpc: false,
        request_body_bytes: 0,
        response_body_bytes: 1234,
        first_byte: Some(Duration::from_micros(800)),
        duration: Duration::from_micros(1000),
        resends: 0,
        trace: Some(([1; 16], [2; 8], 1)),
        code: Code::Ok,
        detail: None,
        upgraded: None,
        captured: None,
    }
    .encode(out);
}

/// Who talks to whom in all of them: a meshed edge, as most are.
pub fn context() -> ContextAttributes {
    connection(1)
}

/// The same over another connection.
pub fn connection(number: u64) -> ContextAttributes {
    Context {
        direction: Direction::Outbound,
        source: ([10, 0, 0, 1], 40_000 + (number % 20_000) as u16).into(),
        destination: ([10, 96, 0, 7], 80).into(),
        upstream: Some(([10, 244, 0, 3], 8080).into()),
        service: Some("orders.shop"),
        client_workload: Some("frontend-6d4b75cb6d-hx8zn"),
        server_workload: Some("orders-5f7d8c9b4-abcde"),
        client_identity: Some(("spiffe://example.org/ns/shop/sa/frontend", EstablishedBy::OwnCertificate)),
        server_identity: Some(("spiffe://example.org/ns/shop/sa/orders", EstablishedBy::MutualTls)),
        tls: Some(Tls {
            version: "1.3",
            cipher: "TLS_AES_128_GCM_SHA256",
            group: "X25519MLKEM768",
            alpn: "picket/http1",
        }),
        server_name: None,
        protocol: Protocol::Http1,
        detected_by: DetectedBy::Hint,
        decision: Decision::Meshed,
        decision_reason: "proved",
    }
    .encode(UidSource::new(8).next(number))
}
