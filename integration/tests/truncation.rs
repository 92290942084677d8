//! The proxy of one side is killed in the middle of streams whose end an application could take for the whole: an opaque
//! one, an upgraded one, and an HTTP/1 answer that ends with its connection. All see a reset, and the records of the other
//! side say who was cut.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::net::SocketAddr;

use integration::{Stage, Wire, accept, judge, service};
use record::key;
use testkit::{Record, Settings};

const RAW: u16 = 7085;
const OPAQUE: u16 = 7086;
const HALF: &str = "the first half";

fn at(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 96, 0, number], 80))
}

/// A connection, its application at either end, that has brought half of what the server has.
struct Half {
    client: Wire,
    server: Wire,
}

/// Sends a request for `path`, and half of an answer that begins with `head`.
fn half(stage: &Stage, request: &str, head: &str, listener: &std::net::TcpListener) -> Half {
    let mut client = stage.dial("client", at(if request.is_empty() { 23 } else { 22 })).unwrap();
    client.send(if request.is_empty() { "hello" } else { request }).unwrap();
    let mut server = accept(listener).unwrap();
    if request.is_empty() {
        assert_eq!(server.exactly(5).unwrap(), b"hello");
    } else {
        server.head().unwrap();
    }
    server.send([head, HALF].concat()).unwrap();
    if !head.is_empty() {
        client.head().unwrap();
    }
    assert_eq!(client.exactly(HALF.len()).unwrap(), HALF.as_bytes());
    Half { client, server }
}

/// Kills the proxy of `pod`; the side of `direction` goes on and records `code`.
fn is_killed(pod: &str, direction: &str, code: &str) {
    let services = [service("raw", 22, 80, RAW, Some("http")), service("opaque", 23, 80, OPAQUE, Some("tcp"))];
    let mut stage = Stage::with_services(&Settings::default(), &services).unwrap();
    let (raw, opaque) = (stage.listen("server", RAW).unwrap(), stage.listen("server", OPAQUE).unwrap());
    let mut opaque = half(&stage, "", "", &opaque);
    let upgrade = "GET /socket HTTP/1.1\r\nHost: raw\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n";
    let switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n";
    let mut socket = half(&stage, upgrade, switched, &raw);
    let mut until_close = half(&stage, "GET /answer HTTP/1.1\r\nHost: raw\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", &raw);

    stage.mesh.kill_and_restart(pod).unwrap();
    for wire in
        [&mut opaque.client, &mut opaque.server, &mut socket.client, &mut socket.server, &mut until_close.client]
    {
        assert!(wire.reset().unwrap().is_empty());
    }
    let of = |name: &'static str, value: &'static str| {
        move |record: &Record| record.is(key::DIRECTION, direction) && record.is(name, value)
    };
    let opaque = |record: &Record| judge::is_connection(record) && of(key::SERVICE, "opaque.demo")(record);
    let mut found = stage.records(1, opaque).unwrap();
    found.extend(stage.records(1, of(key::URL_PATH, "/socket")).unwrap());
    if direction == "outbound" {
        found.extend(stage.records(1, of(key::URL_PATH, "/answer")).unwrap());
    }
    for record in &found {
        judge::texts(record, &[(key::CODE, code)]).unwrap();
    }
    assert_eq!(found.len(), if direction == "outbound" { 3 } else { 2 });
}

#[test]
fn what_the_servers_proxy_leaves_half_done_looks_whole_to_nobody() {
    is_killed("server", "outbound", "server_reset");
}

#[test]
fn what_the_clients_proxy_leaves_half_done_looks_whole_to_nobody() {
    is_killed("client", "inbound", "client_reset");
}
