//! HTTP/1.1 through two proxies: served on both address families, recorded on both sides, and refused when in doubt.

use integration::Stage;
use record::key;
use testkit::{Record, Settings};

const CLIENT: &str = "spiffe://demo.picket.dev/ns/demo/sa/client";
const SERVER: &str = "spiffe://demo.picket.dev/ns/demo/sa/server";

fn request(record: &Record) -> bool {
    record.event() == "picket.request"
}

#[test]
fn curl_is_served_on_both_families_and_recorded_on_both_sides() {
    let stage = Stage::start(&Settings::default()).unwrap();
    for url in ["http://10.96.0.10/hello.txt?secret=1", "http://[fd00:96::a]/hello.txt?secret=1"] {
        let body = stage.run("client", "curl", &["--silent", "--show-error", "--fail", url]).unwrap();
        assert_eq!(body, "hello from the server\n");
    }
    let records = stage.records(4, request).unwrap();
    assert_eq!(records.len(), 4);
    for family in ["ipv4", "ipv6"] {
        for direction in ["outbound", "inbound"] {
            let found: Vec<_> = records
                .iter()
                .filter(|record| record.is(key::NETWORK_TYPE, family) && record.is(key::DIRECTION, direction))
                .collect();
            assert_eq!(found.len(), 1, "{family} {direction}");
            for (name, expected) in [
                (key::CLIENT_IDENTITY, CLIENT),
                (key::SERVER_IDENTITY, SERVER),
                (key::TLS_PROTOCOL_VERSION, "1.3"),
                (key::TLS_CURVE, "X25519MLKEM768"),
                (key::HTTP_REQUEST_METHOD, "GET"),
                (key::URL_PATH, "/hello.txt"),
                (key::SERVICE, "web.demo"),
                (key::DECISION, "meshed"),
                (key::CODE, "ok"),
            ] {
                assert_eq!(found[0].text(name), Some(expected), "{family} {direction} {name}");
            }
            assert_eq!(found[0].integer(key::HTTP_RESPONSE_STATUS_CODE), Some(200));
            assert_eq!(found[0].integer(key::HTTP_RESPONSE_BODY_SIZE), Some(22));
        }
    }
    let connections =
        stage.records(2, |record| record.event() == "picket.connection" && record.is(key::DIRECTION, "outbound"));
    assert_eq!(connections.unwrap().len(), 2);
}

#[test]
fn what_is_ambiguous_or_malformed_is_refused_with_its_code_and_never_forwarded() {
    let stage = Stage::start(&Settings::default()).unwrap();
    let cases = [
        (
            "POST / HTTP/1.1\\r\\nHost: a\\r\\nContent-Length: 3\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n",
            400,
            "request_ambiguous",
        ),
        ("GET / HTTP/1.1\\r\\nHost: a\\r\\nHost: b\\r\\n\\r\\n", 400, "request_ambiguous"),
        (
            "POST / HTTP/1.1\\r\\nHost: a\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n5\\nhello",
            400,
            "request_body_malformed",
        ),
        ("GET / HTTP/1.1\\r\\nHost: a\\r\\nX: a\\rb\\r\\n\\r\\n", 400, "request_malformed"),
        ("GET / HTTP/1.1\\r\\nHost: a\\r\\nX: a\\000b\\r\\n\\r\\n", 400, "request_malformed"),
        ("GET / HTTP/1.1\\r\\nHost: a\\r\\nX: a\\r\\n b\\r\\n\\r\\n", 400, "request_malformed"),
        ("GET / HTTP/1.1\\r\\nX: %070000d\\r\\n\\r\\n", 431, "request_head_too_large"),
    ];
    for (bytes, status, code) in cases {
        let script = format!("exec 3<>/dev/tcp/10.96.0.10/80; printf '{bytes}' >&3; cat <&3");
        let answer = stage.run("client", "bash", &["-c", &script]).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{bytes}: {answer}");
        assert!(answer.contains(&format!("picket-error: {code}\r\n")), "{bytes}: {answer}");
    }
    let refused =
        stage.records(cases.len(), |record| request(record) && record.is(key::DIRECTION, "outbound")).unwrap();
    assert_eq!(refused.len(), cases.len());
    for (_, _, code) in cases {
        assert!(refused.iter().any(|record| record.is(key::CODE, code)), "{code}");
    }
    let seen = stage.web.output(testkit::Stream::Err).unwrap();
    assert!(!seen.contains("Host: b") && !seen.contains("\"GET / HTTP/1.1\" 200"), "the server saw: {seen}");
}
