//! The proxy of one side is killed in the middle of streams whose end an application could take for the whole: an opaque
//! one, an upgraded one, and an HTTP/1 answer that ends with its connection. All see a reset, and the records of the other
//! side say who was cut; so they do for an HTTP/2 connection and its requests.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::net::SocketAddr;

use integration::{DEADLINE, Stage, Wire, accept, judge, service};
use record::key;
use testkit::{Process, Record, Settings, until};

const HTTP2: u16 = 7087;
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

/// A download over HTTP/2 that has begun and takes minutes; its application and its client.
fn download(stage: &Stage) -> [Process; 2] {
    let directory = &stage.mesh.directory;
    std::fs::create_dir(directory.path().join("slow")).unwrap();
    directory.write("slow/file", &"0123456789abcdef".repeat(1 << 20)).unwrap();
    let slow = "location /slow/ { limit_rate 10k; }";
    let nginx = stage.nginx(HTTP2, "http2", slow).unwrap();
    let mut curl = stage.mesh.pod("client").unwrap().pod.command(0, "curl");
    let (file, url) = (directory.path().join("downloaded"), format!("http://{}/slow/file", at(24)));
    curl.args(["--silent", "--no-buffer", "--http2-prior-knowledge", "--output"]).arg(&file).arg(url);
    let mut curl = Process::spawn("curl-http2", curl, directory).unwrap();
    until("the download's first bytes", DEADLINE, || {
        curl.ensure_running()?;
        Ok(std::fs::metadata(&file).is_ok_and(|file| file.len() > 0).then_some(()))
    })
    .unwrap();
    [nginx, curl]
}

/// Kills the proxy of `pod`; the side of `direction` goes on and records `code`.
fn is_killed(pod: &str, direction: &str, code: &str) {
    let services = [
        service("raw", 22, 80, RAW, Some("http")),
        service("opaque", 23, 80, OPAQUE, Some("tcp")),
        service("http2", 24, 80, HTTP2, Some("http2")),
    ];
    let mut stage = Stage::with_services(&Settings::default(), &services).unwrap();
    let (raw, opaque) = (stage.listen("server", RAW).unwrap(), stage.listen("server", OPAQUE).unwrap());
    let mut opaque = half(&stage, "", "", &opaque);
    let upgrade = "GET /socket HTTP/1.1\r\nHost: raw\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n";
    let switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n";
    let mut socket = half(&stage, upgrade, switched, &raw);
    let mut until_close = half(&stage, "GET /answer HTTP/1.1\r\nHost: raw\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", &raw);

    let [_nginx, mut curl] = download(&stage);
    stage.mesh.kill_and_restart(pod).unwrap();
    assert!(!curl.wait(DEADLINE).unwrap().success(), "the download ended early");
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
    found.extend(stage.records(1, of(key::URL_PATH, "/slow/file")).unwrap());
    // The one whose server was cut, and the one whose client's connection was.
    found.extend(match direction {
        "outbound" => stage.records(1, of(key::URL_PATH, "/answer")).unwrap(),
        _ => stage.records(1, |record| judge::is_connection(record) && of(key::SERVICE, "http2.demo")(record)).unwrap(),
    });
    for record in &found {
        judge::texts(record, &[(key::CODE, code)]).unwrap();
    }
    assert_eq!(found.len(), 4);
}

#[test]
fn what_the_servers_proxy_leaves_half_done_looks_whole_to_nobody() {
    is_killed("server", "outbound", "server_reset");
}

#[test]
fn what_the_clients_proxy_leaves_half_done_looks_whole_to_nobody() {
    is_killed("client", "inbound", "client_reset");
}
