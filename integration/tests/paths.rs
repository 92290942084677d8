//! Where a connection may go, and where not: outside the mesh, the application's own TLS, the proxy itself, its own pod,
//! and what an application opened for itself alone.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use integration::{Stage, judge, service};
use record::key;
use testkit::{Process, Record, Settings};

const OWN_TLS: u16 = 8443;
const LOOPBACK_ONLY: u16 = 7700;
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;

/// The closing records of `pod`'s side that went to this port, once `stage` has settled.
fn connections(stage: &Stage, direction: &str, port: u16) -> Vec<Record> {
    let wanted = |record: &Record| {
        judge::is_connection(record)
            && record.is(key::DIRECTION, direction)
            && record.integer(key::DESTINATION_PORT) == Some(i64::from(port))
    };
    stage.records(1, wanted).unwrap();
    stage.settled(wanted).unwrap()
}

fn only(records: &[Record]) -> &Record {
    assert_eq!(records.len(), 1, "{records:?}");
    &records[0]
}

/// A stock web server that listens on `listen` alone.
fn web_server(stage: &Stage, pod: &str, listen: &str, port: u16) -> Process {
    let mut command = stage.command(pod, "python3").unwrap();
    command.args(["-u", "-m", "http.server", &port.to_string(), "--bind", listen, "--directory"]);
    command.arg(stage.mesh.directory.path());
    let mut process = Process::spawn(&format!("{pod}-{port}"), command, &stage.mesh.directory).unwrap();
    process.wait_for_line(testkit::Stream::Out, "Serving HTTP", integration::DEADLINE).unwrap();
    process
}

#[test]
fn what_discovery_does_not_know_is_passed_through_and_recorded_as_such() {
    let stage = Stage::start(&Settings::default()).unwrap();
    let _server = web_server(&stage, "stranger", "0.0.0.0", 8000);
    let stranger = stage.mesh.pod("stranger").unwrap().pod.ipv4;
    let url = format!("http://{stranger}:8000/hello.txt");
    assert_eq!(stage.run("client", "curl", &["--silent", "--fail", &url]).unwrap(), "hello from the server\n");
    let found = connections(&stage, "outbound", 8000);
    let texts = [
        (key::CODE, "ok"),
        (key::DECISION, "passthrough"),
        (key::CLIENT_IDENTITY, judge::CLIENT),
        (key::NETWORK_PROTOCOL_NAME, "http"),
    ];
    judge::texts(only(&found), &texts).unwrap();
    assert_eq!(only(&found).text(key::SERVER_IDENTITY), None, "nobody proved to be the server");
    assert_eq!(only(&found).text(key::TLS_PROTOCOL_VERSION), None);
}

#[test]
fn the_applications_own_tls_stays_opaque_and_its_server_name_is_recorded() {
    let services = [service("own-tls", 20, OWN_TLS, OWN_TLS, None)];
    let stage = Stage::with_services(&Settings::default(), &services).unwrap();
    let directory = stage.mesh.directory.path().display().to_string();
    let make = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=shop.example \
         -addext subjectAltName=DNS:shop.example -keyout {directory}/own.key -out {directory}/own.pem 2>/dev/null"
    );
    testkit::run(std::process::Command::new("sh").args(["-ec", &make])).unwrap();
    let mut command = stage.command("server", "openssl").unwrap();
    let (certificate, private) = (format!("{directory}/own.pem"), format!("{directory}/own.key"));
    command.args(["s_server", "-quiet", "-WWW", "-accept", &OWN_TLS.to_string(), "-cert", &certificate]);
    command.args(["-key", &private]).current_dir(&directory);
    let _server = stage.serve("s_server", command, OWN_TLS).unwrap();
    let resolve = format!("shop.example:{OWN_TLS}:10.96.0.20");
    let url = format!("https://shop.example:{OWN_TLS}/hello.txt");
    let arguments = ["--silent", "--fail", "--http1.0", "--cacert", &certificate, "--resolve", &resolve, &url];
    assert_eq!(stage.run("client", "curl", &arguments).unwrap(), "hello from the server\n");
    for direction in judge::DIRECTIONS {
        let found = connections(&stage, direction, OWN_TLS);
        judge::meshed(only(&found)).unwrap();
        judge::texts(only(&found), &[(key::CODE, "ok"), (key::TLS_NEXT_PROTOCOL, "picket/tcp")]).unwrap();
    }
    let found = connections(&stage, "outbound", OWN_TLS);
    let seen = [(key::NETWORK_PROTOCOL_NAME, "tls"), (key::TLS_SERVER_NAME, "shop.example")];
    judge::texts(only(&found), &seen).unwrap();
}

#[test]
fn the_proxys_own_ports_are_neither_a_relay_nor_a_loop() {
    let stage = Stage::start(&Settings::default()).unwrap();
    let client = stage.mesh.pod("client").unwrap().pod.ipv4;
    // By the application of the pod, and from outside of it.
    for (pod, direction, port) in
        [("client", "outbound", OUTBOUND), ("client", "inbound", INBOUND), ("stranger", "inbound", INBOUND)]
    {
        let before = stage.collector.select(|record| record.is(key::CODE, "loop_detected")).len();
        let url = format!("http://{client}:{port}/");
        stage.run(pod, "curl", &["--silent", "--max-time", "5", &url]).unwrap_err();
        let looped = |record: &Record| {
            judge::is_connection(record)
                && record.is(key::CODE, "loop_detected")
                && record.is(key::DIRECTION, direction)
        };
        stage.records(1, looped).unwrap();
        let after = stage.settled(|record| record.is(key::CODE, "loop_detected")).unwrap().len();
        assert_eq!(after, before + 1, "{pod} to {port}: one connection, one record, no loop");
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let stage = Stage::start(&Settings::default()).unwrap();
    for url in ["http://10.96.0.10/hello.txt", "http://[fd00:96::a]/hello.txt"] {
        assert_eq!(stage.run("server", "curl", &["--silent", "--fail", url]).unwrap(), "hello from the server\n");
    }
    let own = |record: &Record| judge::is_request(record) && record.is(key::DECISION, "local");
    let found = stage.settled(own).unwrap();
    for family in judge::FAMILIES {
        let record = judge::only(&found, "outbound", family).unwrap();
        judge::texts(record, &[(key::CODE, "ok"), (key::CLIENT_IDENTITY, judge::SERVER)]).unwrap();
    }
}

#[test]
fn what_an_application_opened_for_itself_stays_closed() {
    let services = [service("private", 21, LOOPBACK_ONLY, LOOPBACK_ONLY, Some("http"))];
    let stage = Stage::with_services(&Settings::default(), &services).unwrap();
    let _private = web_server(&stage, "server", "127.0.0.1", LOOPBACK_ONLY);
    let url = format!("http://10.96.0.21:{LOOPBACK_ONLY}/hello.txt");
    let status = ["--silent", "--output", "/dev/null", "--write-out", "%{http_code} %header{picket-error}", &url];
    assert_eq!(stage.run("client", "curl", &status).unwrap(), "502 connect_refused");
    let found = connections(&stage, "inbound", LOOPBACK_ONLY);
    judge::texts(only(&found), &[(key::CODE, "connect_refused"), (key::CLIENT_IDENTITY, judge::CLIENT)]).unwrap();
}
