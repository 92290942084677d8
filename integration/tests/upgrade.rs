//! What goes beyond one request and one answer: WebSocket, CONNECT, `Expect: 100-continue`, trailers, and bodies that
//! stream in either direction, each with its record on both sides.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    process::{Command, Stdio},
};

use integration::{Stage, accept, judge, peer, python, service};
use record::key;
use testkit::{Record, Settings, run};

const TARGET: u16 = 7080;
const IPV4: &str = "http://10.96.0.15";

/// A server that the test plays itself, behind the service `raw`.
fn stage() -> (Stage, TcpListener) {
    let services = [service("raw", 15, 80, TARGET, Some("http"))];
    let stage = Stage::with_services(&Settings::default(), &services).unwrap();
    let listener = stage.listen("server", TARGET).unwrap();
    (stage, listener)
}

/// curl in the pod `client`, bounded in time.
fn curl(stage: &Stage, arguments: &[&str]) -> Command {
    let mut command = stage.command("client", "curl").unwrap();
    command.args(["--silent", "--show-error", "--no-buffer", "--max-time", "20"]).args(arguments);
    command
}

/// Both sides' records of the only request.
fn requests(stage: &Stage) -> Vec<Record> {
    let of_service = |record: &Record| judge::is_request(record) && record.is(key::SERVICE, "raw.demo");
    stage.records(2, of_service).unwrap();
    let records = stage.settled(of_service).unwrap();
    judge::went_well(&records).unwrap();
    assert_eq!(records.len(), 2, "one request, two sides");
    records
}

/// Both sides' records say this of the only request.
fn check(stage: &Stage, status: i64, sent: usize, received: usize) -> Vec<Record> {
    let records = requests(stage);
    for direction in judge::DIRECTIONS {
        let numbers = [
            (key::HTTP_RESPONSE_STATUS_CODE, status),
            (key::HTTP_REQUEST_BODY_SIZE, sent as i64),
            (key::HTTP_RESPONSE_BODY_SIZE, received as i64),
        ];
        judge::integers(judge::only(&records, direction, "ipv4").unwrap(), &numbers).unwrap();
    }
    records
}

#[test]
fn a_websocket_echoes_both_ways_and_closes_cleanly_on_both_families() {
    let services = [service("socket", 16, 80, TARGET, None)];
    let stage = Stage::with_services(&Settings::default(), &services).unwrap();
    let mut command = stage.command("server", python().unwrap()).unwrap();
    command.arg(peer("websocket_server.py")).arg(TARGET.to_string());
    let _server = stage.serve("websocket", command, TARGET).unwrap();
    for url in ["ws://10.96.0.16/echo", "ws://[fd00:96::10]/echo"] {
        let mut client = stage.command("client", python().unwrap()).unwrap();
        run(client.arg(peer("websocket_client.py")).arg(url)).unwrap();
    }
    // RFC 6455 section 5.2: two bytes of header, 8 of length above 65535, 4 of mask from the client; close says 1000.
    let messages = (2 + 4) + (2 + 8 + 100_000) + 2;
    let (sent, received) = (messages + (2 + 2) + 4 * 4, (2 + 8) + messages + (2 + 2));
    let of_service = |record: &Record| record.is(key::SERVICE, "socket.demo");
    // One request and one connection, on two sides and two families.
    stage.records(8, of_service).unwrap();
    let records = stage.settled(of_service).unwrap();
    judge::went_well(&records).unwrap();
    assert_eq!(records.len(), 8);
    for record in records.iter().filter(|record| judge::is_request(record)) {
        judge::texts(record, &[(key::UPGRADED, "websocket"), (key::URL_PATH, "/echo")]).unwrap();
        let numbers = [
            (key::HTTP_RESPONSE_STATUS_CODE, 101),
            (key::HTTP_REQUEST_BODY_SIZE, sent),
            (key::HTTP_RESPONSE_BODY_SIZE, received),
        ];
        judge::integers(record, &numbers).unwrap();
    }
    for family in judge::FAMILIES {
        for direction in judge::DIRECTIONS {
            let side: Vec<_> = judge::of(&records, direction, family).cloned().collect();
            assert_eq!(side.len(), 2, "{direction} {family}");
            judge::connections_hold_their_requests(&side).unwrap();
        }
    }
}

#[test]
fn connect_opens_a_tunnel() {
    let (stage, listener) = stage();
    let through = ["--proxy", &format!("{IPV4}:80"), "--proxytunnel", "http://inside.example/path"];
    let client = curl(&stage, &through).stdout(Stdio::piped()).spawn().unwrap();
    let mut server = accept(&listener).unwrap();
    let head = server.head().unwrap();
    assert!(head.starts_with("CONNECT inside.example:80 HTTP/1.1\r\n"), "{head}");
    server.send("HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
    // In the tunnel: a request that is nobody's business but curl's.
    let inner = server.head().unwrap();
    assert!(inner.starts_with("GET /path HTTP/1.1\r\n"), "{inner}");
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\ninside";
    server.send(answer).unwrap();
    server.end().unwrap();
    let output = client.wait_with_output().unwrap();
    assert_eq!((output.status.success(), output.stdout.as_slice()), (true, b"inside".as_slice()));
    drop(server);
    for record in check(&stage, 200, inner.len(), answer.len()) {
        judge::texts(&record, &[(key::HTTP_REQUEST_METHOD, "CONNECT"), (key::UPGRADED, "connect")]).unwrap();
    }
}

#[test]
fn a_client_that_expects_100_gets_it_before_it_sends() {
    let (stage, listener) = stage();
    let body = stage.mesh.directory.write("body", &"x".repeat(1 << 20)).unwrap();
    let data = format!("@{}", body.display());
    // Without the interim answer, curl would hold its body back for longer than it may take in all.
    let expect = ["--expect100-timeout", "60", "--header", "Expect: 100-continue", "--data-binary", &data, IPV4];
    let client = curl(&stage, &expect).stdout(Stdio::piped()).spawn().unwrap();
    let mut server = accept(&listener).unwrap();
    assert!(server.head().unwrap().to_ascii_lowercase().contains("expect: 100-continue\r\n"));
    server.send("HTTP/1.1 100 Continue\r\n\r\n").unwrap();
    assert!(server.exactly(1 << 20).unwrap().iter().all(|byte| *byte == b'x'));
    server.send("HTTP/1.1 201 Created\r\ncontent-length: 4\r\n\r\ndone").unwrap();
    assert_eq!(client.wait_with_output().unwrap().stdout, b"done");
    check(&stage, 201, 1 << 20, 4);
}

#[test]
fn trailers_arrive_in_both_directions() {
    let (stage, listener) = stage();
    let mut client = stage.dial("client", std::net::SocketAddr::from(([10, 96, 0, 15], 80))).unwrap();
    let body = "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n";
    let head =
        "POST /sum HTTP/1.1\r\nHost: raw\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
    client.send([head, body].concat()).unwrap();
    let mut server = accept(&listener).unwrap();
    let received = server.head().unwrap();
    assert!(received.contains("TE: trailers\r\n") && received.contains("Trailer: X-Sum\r\n"), "{received}");
    assert_eq!(server.exactly(body.len()).unwrap(), body.as_bytes());
    let answer = "3\r\nyes\r\n0\r\nX-Sum: 2\r\n\r\n";
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
    server.send([head, answer].concat()).unwrap();
    assert!(client.head().unwrap().contains("Trailer: X-Sum\r\n"));
    assert_eq!(client.exactly(answer.len()).unwrap(), answer.as_bytes());
    check(&stage, 200, 5, 3);
}

#[test]
fn an_answer_streams_piece_by_piece_before_it_ends() {
    let (stage, listener) = stage();
    let mut client = curl(&stage, &[IPV4]).stdout(Stdio::piped()).spawn().unwrap();
    let mut seen = BufReader::new(client.stdout.take().unwrap());
    let mut server = accept(&listener).unwrap();
    server.head().unwrap();
    server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    for piece in ["one\n", "two\n", "six\n"] {
        // The next piece is not sent before the client has shown this one.
        server.send(format!("4\r\n{piece}\r\n")).unwrap();
        let mut line = String::new();
        seen.read_line(&mut line).unwrap();
        assert_eq!(line, piece);
    }
    server.send("0\r\n\r\n").unwrap();
    assert!(client.wait().unwrap().success());
    check(&stage, 200, 0, 12);
}

#[test]
fn an_upload_streams_piece_by_piece_before_it_ends() {
    let (stage, listener) = stage();
    let mut command = curl(&stage, &["--upload-file", "-", IPV4]);
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = client.stdin.take().unwrap();
    input.write_all(b"one\n").unwrap();
    let mut server = accept(&listener).unwrap();
    assert!(server.head().unwrap().to_ascii_lowercase().contains("transfer-encoding: chunked\r\n"));
    for (piece, next) in [("one\n", Some("two\n")), ("two\n", Some("six\n")), ("six\n", None)] {
        // The next piece is not written before the server has this one.
        assert_eq!(server.exactly(9).unwrap(), format!("4\r\n{piece}\r\n").as_bytes());
        if let Some(next) = next {
            input.write_all(next.as_bytes()).unwrap();
        }
    }
    drop(input);
    assert_eq!(server.exactly(5).unwrap(), b"0\r\n\r\n");
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").unwrap();
    assert_eq!(client.wait_with_output().unwrap().stdout, b"done");
    check(&stage, 200, 12, 4);
}
