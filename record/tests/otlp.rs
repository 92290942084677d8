//! What other OTLP implementations read in our bytes: decoded with the messages of the crate `opentelemetry-proto`.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]

use std::time::Duration;

use opentelemetry_proto::tonic::{
    common::v1::any_value::Value,
    logs::v1::{LogRecord, ScopeLogs},
};
use proptest::prelude::*;
use prost::Message;
use record::*;

fn context() -> ContextAttributes {
    Context {
        direction: Direction::Outbound,
        source: "10.0.0.1:4000".parse().unwrap(),
        destination: "[fd00::7]:80".parse().unwrap(),
        upstream: Some("[fd00:244::3]:8080".parse().unwrap()),
        service: Some("web.demo"),
        client_workload: Some("frontend"),
        server_workload: Some("web-0"),
        client_identity: Some(("spiffe://t/ns/a/sa/b", EstablishedBy::OwnCertificate)),
        server_identity: Some(("spiffe://t/ns/a/sa/c", EstablishedBy::MutualTls)),
        tls: Some(Tls {
            version: "1.3",
            cipher: "TLS_AES_256_GCM_SHA384",
            group: "X25519MLKEM768",
            alpn: "picket/http1",
        }),
        server_name: None,
        protocol: Protocol::Http1,
        detected_by: DetectedBy::FirstBytes,
        decision: Decision::Meshed,
        decision_reason: "proved",
    }
    .encode(UidSource::new(9).next(1))
}

fn request<'a>(context: &'a ContextAttributes, path: &'a str, detail: Option<&'a str>) -> Request<'a> {
    let mut uids = UidSource::new(7);
    Request {
        uid: uids.next(1),
        context,
        started_unix_nanos: 5,
        ended_unix_nanos: 1_764_000_000_123_000_000,
        method: "GET",
        path,
        authority: Some("[::1]:8080"),
        http_version: HttpVersion::Http11,
        status: Some(200),
        grpc_status: None,
        is_grpc: false,
        request_body_bytes: 3,
        response_body_bytes: u64::MAX >> 1,
        first_byte: Some(Duration::from_millis(2)),
        duration: Duration::from_millis(3),
        resends: 1,
        trace: Some(([1; 16], [2; 8], 1)),
        code: Code::Ok,
        detail,
        upgraded: None,
        captured: None,
    }
}

fn decode(bytes: &[u8]) -> Vec<LogRecord> {
    ScopeLogs::decode(bytes).unwrap().log_records
}

fn value<'a>(record: &'a LogRecord, key: &str) -> Option<&'a Value> {
    let mut found = record.attributes.iter().filter(|attribute| attribute.key == key);
    let first = found.next()?;
    assert!(found.next().is_none(), "{key} stands twice");
    first.value.as_ref()?.value.as_ref()
}

fn text(record: &LogRecord, key: &str) -> String {
    match value(record, key) {
        Some(Value::StringValue(text)) => text.clone(),
        other => panic!("{key} is {other:?}"),
    }
}

#[test]
fn what_settings_ask_for_is_in_the_record_and_in_the_lines_for_people() {
    let (context, mut out, mut captured) = (context(), Vec::new(), Captured::default());
    captured.text(key::URL_QUERY, "page=2");
    captured.text("http.request.header.x-request-id", "a \"b\"\n");
    Request { captured: Some(&captured), ..request(&context, "/a", None) }.encode(&mut out);
    let record = decode(&out).remove(0);
    assert_eq!(text(&record, "url.query"), "page=2");
    assert_eq!(text(&record, "http.request.header.x-request-id"), "a \"b\"\n");
    assert!(value(&record, key::TRUNCATED).is_none());
    let mut line = Vec::new();
    line::records(&out).for_each(|record| line::text(record, &mut line));
    let line = String::from_utf8(line).unwrap();
    assert!(
        line.ends_with(" url.query=\"page=2\" http.request.header.x-request-id=\"a \\\"b\\\"\\u000a\"\n"),
        "{line}"
    );
    // What was cut is marked in the record.
    captured.text(key::URL_QUERY, &"x".repeat(otlp::TEXT_BYTES_MAX + 1));
    out.clear();
    Request { captured: Some(&captured), ..request(&context, "/a", None) }.encode(&mut out);
    assert_eq!(value(&decode(&out)[0], key::TRUNCATED), Some(&Value::BoolValue(true)));
}

#[test]
fn a_request_is_a_log_record() {
    let (context, mut out) = (context(), Vec::new());
    request(&context, "/a", None).encode(&mut out);
    let records = decode(&out);
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((record.event_name.as_str(), record.severity_text.as_str()), ("picket.request", "INFO"));
    assert_eq!((record.time_unix_nano, record.trace_id.len(), record.flags), (1_764_000_000_123_000_000, 16, 1));
    for (name, expected) in [
        (key::SOURCE_ADDRESS, "10.0.0.1"),
        (key::DESTINATION_ADDRESS, "fd00::7"),
        (key::UPSTREAM_ADDRESS, "fd00:244::3"),
        (key::CLIENT_IDENTITY, "spiffe://t/ns/a/sa/b"),
        (key::SERVER_IDENTITY_BY, "mutual_tls"),
        (key::TLS_CURVE, "X25519MLKEM768"),
        (key::HTTP_REQUEST_METHOD, "GET"),
        (key::URL_PATH, "/a"),
        (key::SERVER_ADDRESS, "::1"),
        (key::CODE, "ok"),
        (key::NETWORK_PROTOCOL_VERSION, "1.1"),
        (key::NETWORK_TYPE, "ipv6"),
    ] {
        assert_eq!(text(record, name), expected, "{name}");
    }
    assert_eq!(value(record, key::HTTP_RESPONSE_BODY_SIZE), Some(&Value::IntValue(i64::MAX)));
    assert_eq!(value(record, key::DURATION), Some(&Value::DoubleValue(0.003)));
    assert_eq!(value(record, key::SERVER_PORT), Some(&Value::IntValue(8080)));
    assert_eq!(value(record, key::TRUNCATED), None);
}

#[test]
fn a_connection_is_a_log_record() {
    let (context, mut out) = (context(), Vec::new());
    let connection = Connection {
        uid: UidSource::new(1).next(9),
        context: &context,
        started_unix_nanos: 1,
        ended_unix_nanos: 2,
        state: State::Closed,
        bytes_from_client: 10,
        bytes_from_server: 20,
        connect: None,
        handshake: Some(Duration::from_millis(1)),
        first_byte: None,
        duration: Duration::from_secs(1),
        requests: 2,
        closed_by: ClosedBy::Server,
        code: Code::ServerReset,
        detail: Some("reset"),
    };
    connection.encode(&mut out);
    connection.encode(&mut out);
    let records = decode(&out);
    assert_eq!(records.len(), 2);
    assert_eq!((records[1].event_name.as_str(), records[1].severity_number), ("picket.connection", 13));
    assert_eq!(text(&records[1], key::ERROR_TYPE), "server_reset");
    assert_eq!(text(&records[1], key::CLOSED_BY), "server");
    assert_eq!(value(&records[1], key::BYTES_FROM_SERVER), Some(&Value::IntValue(20)));
    assert_eq!(value(&records[1], key::CONNECT_DURATION), None);
}

#[test]
fn a_line_of_json_says_what_the_record_says() {
    let (context, mut out, mut line) = (context(), Vec::new(), Vec::new());
    request(&context, "/a\"\n{", None).encode(&mut out);
    line::json(line::records(&out).next().unwrap(), &mut line);
    assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
    let json: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!((json["url.path"].as_str(), json["time"].as_str()), (Some("/a\"\n{"), Some("2025-11-24T16:00:00.123Z")));
}

#[test]
fn encoding_into_a_buffer_with_room_allocates_nothing() {
    let (context, mut out) = (context(), Vec::with_capacity(4096));
    let before = out.as_ptr();
    request(&context, "/a", None).encode(&mut out);
    assert_eq!((before, out.capacity()), (out.as_ptr(), 4096));
}

#[test]
fn a_line_of_text_shows_what_people_look_for() {
    let (context, mut out, mut line) = (context(), Vec::new(), Vec::new());
    request(&context, "/a\nb", None).encode(&mut out);
    line::text(line::records(&out).next().unwrap(), &mut line);
    assert_eq!(
        String::from_utf8(line).unwrap(),
        "2025-11-24T16:00:00.123Z picket.request    outbound GET ::1/a\\nb 200 3.000ms 3B/9223372036854775807B \
         spiffe://t/ns/a/sa/b -> spiffe://t/ns/a/sa/c (meshed X25519MLKEM768) ok\n"
    );
}

#[test]
fn a_numbered_record_is_the_same_record_with_its_number() {
    let (context, mut out, mut numbered) = (context(), Vec::new(), Vec::new());
    request(&context, "/a", None).encode(&mut out);
    request(&context, "/b", None).encode(&mut out);
    for (content, sequence) in field::contents(&out).zip([1, u64::MAX >> 1]) {
        field::append_numbered(&mut numbered, content.unwrap(), sequence).unwrap();
    }
    let (plain, numbered) = (decode(&out), decode(&numbered));
    for (mut record, (plain, sequence)) in numbered.into_iter().zip(plain.into_iter().zip([1, i64::MAX])) {
        assert_eq!(value(&record, key::SEQUENCE), Some(&Value::IntValue(sequence)));
        record.attributes.pop();
        assert_eq!(record, plain);
    }
    let mut untouched = Vec::new();
    assert!(field::append_numbered(&mut untouched, &vec![0; field::BYTES_MAX], 1).is_err() && untouched.is_empty());
}

/// The numbered record, rebuilt from what another implementation reads in it.
fn rebuilt(numbered: &[u8]) -> Vec<u8> {
    let (record, mut out) = (decode(numbered).remove(0), Vec::new());
    let attributes: Vec<_> = record
        .attributes
        .iter()
        .map(|attribute| {
            let value = match attribute.value.as_ref().unwrap().value.as_ref().unwrap() {
                Value::StringValue(text) => line::Attribute::Text(text),
                Value::BoolValue(truth) => line::Attribute::Bool(*truth),
                Value::IntValue(number) => line::Attribute::Int(*number),
                Value::DoubleValue(number) => line::Attribute::Double(*number),
                other @ (Value::ArrayValue(_)
                | Value::KvlistValue(_)
                | Value::BytesValue(_)
                | Value::StringValueStrindex(_)) => {
                    panic!("{other:?} is in no record")
                }
            };
            (attribute.key.as_str(), value)
        })
        .collect();
    let trace = (!record.trace_id.is_empty()).then(|| {
        let (trace, span) = (record.trace_id.as_slice(), record.span_id.as_slice());
        (trace.try_into().unwrap(), span.try_into().unwrap(), record.flags)
    });
    let head = rebuild::Head {
        time_unix_nano: record.time_unix_nano,
        observed_time_unix_nano: record.observed_time_unix_nano,
        severity_number: record.severity_number as u32,
        severity_text: &record.severity_text,
        event_name: &record.event_name,
        trace,
    };
    rebuild::append(&mut out, &head, &attributes).unwrap();
    out
}

#[test]
fn what_no_record_of_ours_holds_is_not_rebuilt() {
    let head = rebuild::Head {
        time_unix_nano: 1,
        observed_time_unix_nano: 1,
        severity_number: 9,
        severity_text: "INFO",
        event_name: "picket.request",
        trace: None,
    };
    let number = (key::SEQUENCE, line::Attribute::Int(1));
    let long = "x".repeat(1 << 14);
    let many = vec![("a", line::Attribute::Text(&long[..1 << 13])); 300];
    for attributes in [
        vec![],
        vec![(key::SEQUENCE, line::Attribute::Text("1"))],
        vec![number, ("a", line::Attribute::Bool(true))],
        vec![("a", line::Attribute::Text(&long)), number],
        [many, vec![number]].concat(),
    ] {
        let mut out = Vec::new();
        assert!(rebuild::append(&mut out, &head, &attributes).is_err() && out.is_empty());
    }
}

proptest! {
    #[test]
    fn a_record_that_was_read_elsewhere_is_rebuilt_byte_by_byte(
        path in ".{0,300}", detail in proptest::option::of(".{0,1500}"), seconds in any::<u32>(), nanos in 0u32..1_000_000_000,
        sequence in any::<u64>(), bytes in any::<u64>(), trace in proptest::option::of(any::<([u8; 16], [u8; 8], u8)>()),
    ) {
        let (context, mut out, mut numbered) = (context(), Vec::new(), Vec::new());
        let duration = Duration::new(seconds.into(), nanos);
        let whole = request(&context, &path, detail.as_deref());
        Request { duration, trace, response_body_bytes: bytes, ..whole }.encode(&mut out);
        field::append_numbered(&mut numbered, field::contents(&out).next().unwrap().unwrap(), sequence).unwrap();
        prop_assert_eq!(rebuilt(&numbered), numbered);
    }

    #[test]
    fn any_text_survives_or_is_marked_as_cut(path in "\\PC{0,3000}", detail in ".{0,2000}") {
        let (context, mut out) = (context(), Vec::new());
        request(&context, &path, Some(&detail)).encode(&mut out);
        let record = decode(&out).remove(0);
        let (path_read, detail_read) = (text(&record, key::URL_PATH), text(&record, key::DETAIL));
        prop_assert!(path.starts_with(&path_read) && detail.starts_with(&detail_read));
        let cut = path_read != path || detail_read != detail;
        prop_assert_eq!(cut, value(&record, key::TRUNCATED).is_some());
        for render in [line::json, line::text] {
            let mut line = Vec::new();
            render(line::records(&out).next().unwrap(), &mut line);
            prop_assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        }
    }

    #[test]
    fn damaged_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut out = Vec::new();
        for record in line::records(&bytes).chain([bytes.as_slice()]) {
            line::json(record, &mut out);
            line::text(record, &mut out);
            line::is_error(record);
        }
    }
}
