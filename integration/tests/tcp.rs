//! Opaque TCP through two proxies: Redis by its own client, and half-closed streams, on both address families. Each
//! connection is one record on each side, with every byte counted.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{net::TcpListener, process::Stdio};

use integration::{APP_UID, Stage, Wire, accept, judge, service};
use record::key;
use testkit::{Process, Record, Settings, run};

const REDIS: u16 = 6379;
const RAW: u16 = 7000;
const MIB: usize = 1 << 20;

/// One direction's closing record of the only connection, with these bytes.
fn check(records: &[Record], family: &str, from_client: usize, from_server: usize) {
    judge::went_well(records).unwrap();
    assert_eq!(records.len(), 2, "one connection, two sides");
    for direction in judge::DIRECTIONS {
        let record = judge::only(records, direction, family).unwrap();
        assert!(judge::is_connection(record));
        judge::texts(record, &[(key::NETWORK_PROTOCOL_NAME, "tcp"), (key::TLS_NEXT_PROTOCOL, "picket/tcp")]).unwrap();
        let bytes = [(key::BYTES_FROM_CLIENT, from_client as i64), (key::BYTES_FROM_SERVER, from_server as i64)];
        judge::integers(record, &bytes).unwrap();
    }
}

/// What a step of a test adds to the records of a service, once both sides have ended.
struct Ledger<'a> {
    stage: &'a Stage,
    service: &'static str,
    seen: usize,
}

impl<'a> Ledger<'a> {
    fn new(stage: &'a Stage, service: &'static str) -> Self {
        Self { stage, service, seen: 0 }
    }

    fn added(&mut self) -> Vec<Record> {
        let of_service = |record: &Record| record.is(key::SERVICE, self.service);
        self.stage.records(self.seen + 2, of_service).unwrap();
        let records = self.stage.settled(of_service).unwrap().split_off(self.seen);
        self.seen += records.len();
        records
    }
}

fn redis(stage: &Stage) -> Process {
    let mut command = stage.command("server", "redis-server").unwrap();
    command.args(["--bind", "*", "-::*", "--port", &REDIS.to_string(), "--protected-mode", "no", "--save", ""]);
    command.arg("--dir").arg(stage.mesh.directory.path());
    stage.serve("redis", command, REDIS).unwrap()
}

/// Bytes of a command as RESP, the protocol of Redis: an array of strings.
fn command_bytes(words: &[&str]) -> usize {
    let word = |word: &&str| format!("${}\r\n{word}\r\n", word.len()).len();
    format!("*{}\r\n", words.len()).len() + words.iter().map(word).sum::<usize>()
}

#[test]
fn redis_is_served_on_both_families_and_each_byte_is_counted() {
    let services = [service("redis", 13, REDIS, REDIS, None)];
    let stage = Stage::with_services(&Settings::default(), &services).unwrap();
    let _redis = redis(&stage);
    let value: String = "0123456789abcdef".repeat(MIB / 16);
    stage.mesh.directory.write("value", &value).unwrap();
    let mut ledger = Ledger::new(&stage, "redis.demo");
    for (family, address) in [("ipv4", "10.96.0.13"), ("ipv6", "fd00:96::d")] {
        let cli = |words: &[&str]| stage.run("client", "redis-cli", &[&["-h", address], words].concat()).unwrap();
        assert_eq!(cli(&["PING"]), "PONG\n");
        check(&ledger.added(), family, command_bytes(&["PING"]), "+PONG\r\n".len());

        // `-x` takes the last word from the standard input.
        let mut set = stage.mesh.pod("client").unwrap().pod.command(APP_UID, "redis-cli");
        let input = std::fs::File::open(stage.mesh.directory.path().join("value")).unwrap();
        set.args(["-h", address, "-x", "SET", family]).stdin(Stdio::from(input));
        assert_eq!(run(&mut set).unwrap(), "OK\n");
        check(&ledger.added(), family, command_bytes(&["SET", family, &value]), "+OK\r\n".len());

        assert!(cli(&["GET", family]) == format!("{value}\n"), "another value came back");
        check(&ledger.added(), family, command_bytes(&["GET", family]), format!("${MIB}\r\n{value}\r\n").len());
    }
}

/// A connection to a raw server, both ends of it.
fn pair(stage: &Stage, listener: &TcpListener, family: &str) -> (Wire, Wire) {
    let address = if family == "ipv4" { "10.96.0.14:7000" } else { "[fd00:96::e]:7000" };
    let client = stage.dial("client", address.parse::<std::net::SocketAddr>().unwrap()).unwrap();
    (client, accept(listener).unwrap())
}

#[test]
fn either_side_may_end_first_and_the_other_goes_on() {
    let services = [service("raw", 14, RAW, RAW, Some("tcp"))];
    let stage = Stage::with_services(&Settings::default(), &services).unwrap();
    let listener = stage.listen("server", RAW).unwrap();
    let mut ledger = Ledger::new(&stage, "raw.demo");
    for family in judge::FAMILIES {
        let (mut client, mut server) = pair(&stage, &listener, family);
        client.send("question").unwrap();
        client.end().unwrap();
        assert_eq!(server.rest().unwrap(), b"question");
        // Only now, when the client has long ended, does the answer come.
        server.send(vec![7; MIB]).unwrap();
        server.end().unwrap();
        assert!(client.rest().unwrap() == vec![7; MIB], "another answer came");
        let records = ledger.added();
        check(&records, family, "question".len(), MIB);
        assert!(records.iter().all(|record| record.is(key::CLOSED_BY, "client")));

        let (mut client, mut server) = pair(&stage, &listener, family);
        server.send("greeting").unwrap();
        server.end().unwrap();
        assert_eq!(client.rest().unwrap(), b"greeting");
        client.send(vec![9; MIB]).unwrap();
        client.end().unwrap();
        assert!(server.rest().unwrap() == vec![9; MIB], "another upload came");
        let records = ledger.added();
        check(&records, family, MIB, "greeting".len());
        assert!(records.iter().all(|record| record.is(key::CLOSED_BY, "server")));
    }
}
