//! Our outbound proxy dials foreign TLS servers (openssl and Envoy) that discovery names with an identity: the right one
//! is used, everybody else is refused with the reason in the record and in the answer, and gets nothing of the request.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;

use integration::envoy::{self, CANNOT_SHOW, Envoy, Tls};
use integration::foreign::{CLIENT, Ledger, Side, s_server, saw_request, web_server};
use integration::pki::{Case, FOREIGN, Verdict, cases, other_bundle};
use integration::{DEADLINE, Stage};
use testkit::{Endpoint, Service, ServicePort, Settings, Stream};

/// First port of the foreign servers, in the service and at the endpoint.
const FIRST: u16 = 9000;
/// More than there are cases.
const PORTS: u16 = 80;
/// What follows in the service: the same endpoints, taken for opaque.
const OPAQUE: u16 = 10_000;
const HELLO: &str = "hello from the server\n";
const NO_TLS_1_3: Verdict = Verdict::Refused { code: "tls_version_unsupported", detail: "ProtocolVersion" };
const NO_AGREEMENT: Verdict =
    Verdict::Refused { code: "tls_handshake_failed", detail: "did not agree to picket/http1" };
/// h2 keeps no detail of how its stream failed.
const HTTP2_REFUSED_US: Verdict =
    Verdict::Refused { code: "peer_refused_us", detail: "did not accept our certificate" };
const REFUSED_US: Verdict = Verdict::Refused { code: "peer_refused_us", detail: "fatal alert" };

/// The mesh, with a service on the pod `stranger` whose endpoints must prove to be [`FOREIGN`].
fn stage() -> Stage {
    let port = |first: u16, protocol: &'static str| {
        move |at: u16| ServicePort { port: first + at, target: FIRST + at, app_protocol: Some(protocol.to_owned()) }
    };
    let service = Service {
        name: "foreign".to_owned(),
        number: 20,
        ports: (0..PORTS).map(port(FIRST, "http")).chain((0..PORTS).map(port(OPAQUE, "tcp"))).collect(),
        endpoints: vec![Endpoint { pod: "stranger".to_owned(), identity: Some(FOREIGN.to_owned()) }],
    };
    Stage::with_services(&Settings::default(), &[service]).unwrap()
}

fn find<'a>(cases: &'a [Case], name: &str) -> &'a Case {
    cases.iter().find(|case| case.name == name).unwrap()
}

/// A whole answer, as `s_server` takes it from a file.
fn answer() -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{HELLO}", HELLO.len())
}

/// One request from the pod `client` to the foreign service; checks the answer.
fn request(stage: &Stage, ledger: &mut Ledger, name: &str, port: u16, verdict: Verdict, http2: bool) {
    let protocol = if http2 { "picket/h2" } else { "picket/http1" };
    let source = ledger.expect(name, verdict, protocol).to_string();
    let url = format!("http://10.96.0.20:{port}/{name}.txt");
    let version = if http2 { "--http2-prior-knowledge" } else { "--http1.1" };
    let show = "%{http_code} %header{picket-error}";
    let arguments = ["--silent", "--max-time", "15", version, "--local-port", &source, "--write-out", show, &url];
    let answer = stage.run("client", "curl", &arguments).unwrap();
    match verdict {
        Verdict::Served(_) => assert_eq!(answer, format!("{HELLO}200 "), "{name}"),
        Verdict::Refused { code, .. } => assert!(answer.ends_with(&format!("502 {code}")), "{name}: {answer}"),
    }
}

/// openssl with each certificate, then with other versions and protocols.
#[test]
fn openssl_is_used_as_who_discovery_names_or_refused_with_the_reason() {
    let stage = stage();
    let directory = &stage.mesh.directory;
    let cases = cases(&stage.mesh).unwrap();
    let bundle = stage.mesh.trust_bundle();
    let other = other_bundle(directory).unwrap();
    let (bundle, other) = (bundle.to_str().unwrap(), other.to_str().unwrap());
    let good = find(&cases, "good");
    let ours = ["-alpn", "picket/http1"];
    // Our side, in the eyes of openssl: without a certificate that leads to the mesh's root there is no answer.
    let verify = |bundle| [&ours[..], &["-Verify", "3", "-verify_return_error", "-CAfile", bundle]].concat();
    let mut peers: Vec<(&str, Verdict, &Case, Vec<&str>)> =
        cases.iter().map(|case| (case.name, case.as_server, case, ours.to_vec())).collect();
    let mismatch = Verdict::Refused { code: "tls_handshake_failed", detail: "NoApplicationProtocol" };
    peers.extend([
        ("our-chain", Verdict::Served(FOREIGN), good, [&verify(bundle)[..], &["-x509_strict"]].concat()),
        ("trusts-another-root", REFUSED_US, good, verify(other)),
        ("tls-1.2", NO_TLS_1_3, good, [&ours[..], &["-tls1_2"]].concat()),
        ("no-protocol", NO_AGREEMENT, good, Vec::new()),
        ("protocol-of-the-web", mismatch, good, vec!["-alpn", "h2,http/1.1"]),
        ("another-mesh-protocol", mismatch, good, vec!["-alpn", "picket/tcp"]),
    ]);
    let mut ledger = Ledger::new(Side::Outbound);
    for (port, (name, verdict, case, options)) in (FIRST..FIRST + PORTS).zip(&peers) {
        directory.write(&format!("{name}.txt"), &answer()).unwrap();
        let server = s_server(&stage, &format!("server-{name}"), port, &case.shown, options).unwrap();
        request(&stage, &mut ledger, name, port, *verdict, false);
        let seen = saw_request(server).unwrap();
        assert_eq!(seen, matches!(verdict, Verdict::Served(_)), "{name}: the request was seen");
    }
    ledger.check(&stage).unwrap();
}

/// Envoy with each certificate, for HTTP/1.1, HTTP/2 and opaque clients, and what else it may be configured to.
#[test]
fn envoy_is_used_as_who_discovery_names_or_refused_with_the_reason() {
    let stage = stage();
    let cases = cases(&stage.mesh).unwrap();
    let bundle = stage.mesh.trust_bundle();
    let other = other_bundle(&stage.mesh.directory).unwrap();
    let stranger = stage.mesh.pod("stranger").unwrap();
    let (good, expired) = (find(&cases, "good"), find(&cases, "expired"));
    let http1 = Tls {
        shown: Some(&good.shown),
        alpn: Some("picket/http1"),
        version: "TLSv1_3",
        bundle: &bundle,
        expected: Some(CLIENT),
    };
    let http2 = Tls { alpn: Some("picket/h2"), ..http1 };
    let mut peers: Vec<(&str, Verdict, Tls<'_>)> = cases
        .iter()
        .filter(|case| !CANNOT_SHOW.contains(&case.name) && case.name != "unreadable-name")
        .map(|case| (case.name, case.as_server, Tls { shown: Some(&case.shown), ..http1 }))
        .collect();
    peers.extend([
        ("http2", Verdict::Served(FOREIGN), http2),
        ("http2-expired", expired.as_server, Tls { shown: Some(&expired.shown), ..http2 }),
        ("http2-trusts-another-root", HTTP2_REFUSED_US, Tls { bundle: &other, ..http2 }),
        ("http2-tls-1.2", NO_TLS_1_3, Tls { version: "TLSv1_2", ..http2 }),
        ("tls-1.2", NO_TLS_1_3, Tls { version: "TLSv1_2", ..http1 }),
        ("no-protocol", NO_AGREEMENT, Tls { alpn: None, ..http1 }),
        ("another-mesh-protocol", NO_AGREEMENT, Tls { alpn: Some("picket/tcp"), ..http1 }),
        // Envoy agrees with us about our side only when it trusts our root and expects our name.
        ("trusts-another-root", REFUSED_US, Tls { bundle: &other, ..http1 }),
        ("expects-somebody-else", REFUSED_US, Tls { expected: Some(FOREIGN), ..http1 }),
    ]);
    let mut envoy = Envoy::default();
    for (port, (name, _, tls)) in (FIRST..FIRST + PORTS).zip(&peers) {
        stage.mesh.directory.write(&format!("{name}.txt"), HELLO).unwrap();
        envoy.server(envoy::of(stranger, port), (Ipv4Addr::LOCALHOST, 8000).into(), tls);
    }
    let backend = web_server(&stage, "stranger", "127.0.0.1", 8000).unwrap();
    let _envoy = envoy.start(stranger, &stage.mesh.directory).unwrap();
    let mut ledger = Ledger::new(Side::Outbound);
    for (port, (name, verdict, tls)) in (FIRST..).zip(&peers) {
        request(&stage, &mut ledger, name, port, *verdict, tls.alpn == Some("picket/h2"));
        let seen = backend.output(Stream::Err).unwrap().contains(&format!("GET /{name}.txt "));
        assert_eq!(seen, matches!(verdict, Verdict::Served(_)), "{name}: the request was seen");
    }
    ledger.check(&stage).unwrap();
}

/// What an odd server does with its connection.
type Deed = fn(&mut TcpStream);

/// A server that does something else than TLS, and all that it hears.
struct Odd {
    heard: JoinHandle<Vec<u8>>,
}

impl Odd {
    /// Takes one connection on the pod `stranger` and does `this` with it, then hears it out.
    fn start(stage: &Stage, port: u16, this: Deed) -> Self {
        let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let stranger = &stage.mesh.pod("stranger").unwrap().pod.namespace;
        let listener = stranger.inside(|| Ok(TcpListener::bind(at)?)).unwrap();
        let heard = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            this(&mut stream);
            let mut heard = Vec::new();
            // A reset ends it as well as an end.
            let _end = stream.read_to_end(&mut heard);
            heard
        });
        Self { heard }
    }

    /// Nothing but a handshake came: no byte of the request.
    fn heard_no_request(self, name: &str) {
        let heard = self.heard.join().unwrap();
        assert!(heard.is_empty() || heard[0] == 0x16, "{name}: {heard:?}");
        let has = |text: &[u8]| heard.windows(text.len()).any(|window| window == text);
        assert!(!has(b"GET") && !has(b"secret"), "{name}: {heard:?}");
    }
}

/// Servers that hang, close, answer in clear, or are no server at all.
#[test]
fn what_is_no_tls_server_gets_nothing_and_the_record_says_what_it_did() {
    let stage = stage();
    let failed = |detail| Verdict::Refused { code: "tls_handshake_failed", detail };
    let hangs = Verdict::Refused { code: "tls_handshake_timeout", detail: "was not done in time" };
    let odd: [(&str, Verdict, Deed); 5] = [
        ("hangs", hangs, |_| ()),
        // The head of a ServerHello whose rest never comes.
        ("hangs-in-the-middle", hangs, |stream| stream.write_all(&[0x16, 3, 3, 0, 122, 2, 0, 0, 118]).unwrap()),
        ("closes-at-once", failed("eof"), |stream| stream.shutdown(Shutdown::Write).unwrap()),
        ("answers-in-clear", failed("received corrupt message"), |stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        }),
        ("refuses-in-an-alert", failed("HandshakeFailure"), |stream| {
            stream.write_all(&[0x15, 3, 3, 0, 2, 2, 40]).unwrap();
        }),
    ];
    let mut ledger = Ledger::new(Side::Outbound);
    for (port, (name, verdict, this)) in (FIRST..).zip(odd) {
        let server = Odd::start(&stage, port, this);
        request(&stage, &mut ledger, name, port, verdict, false);
        server.heard_no_request(name);
    }
    // Nobody listens here.
    let refused = Verdict::Refused { code: "connect_refused", detail: "could not connect" };
    request(&stage, &mut ledger, "nobody-listens", FIRST + PORTS - 1, refused, false);
    ledger.check(&stage).unwrap();
}

/// Bytes of a client that is not understood have no status to be refused with: they go nowhere and the record says why.
#[test]
fn opaque_bytes_go_to_the_right_server_only() {
    let stage = stage();
    let cases = cases(&stage.mesh).unwrap();
    let other = other_bundle(&stage.mesh.directory).unwrap();
    let ours = ["-alpn", "picket/tcp"];
    let verify = ["-Verify", "3", "-verify_return_error", "-CAfile", other.to_str().unwrap()];
    let mut peers = ["good", "expired", "wrong-root", "another-workload"]
        .map(|name| find(&cases, name))
        .map(|case| (case.name, case.as_server, case, ours.to_vec()))
        .to_vec();
    peers.push(("trusts-another-root", REFUSED_US, find(&cases, "good"), [&ours[..], &verify].concat()));
    let mut ledger = Ledger::new(Side::Outbound);
    stage.mesh.directory.write("opaque.txt", &answer()).unwrap();
    for (at, (name, verdict, case, options)) in (0..).zip(&peers) {
        let server = s_server(&stage, name, FIRST + at, &case.shown, options).unwrap();
        let source = ledger.expect(name, *verdict, "picket/tcp").to_string();
        let url = format!("http://10.96.0.20:{}/opaque.txt", OPAQUE + at);
        let arguments = ["--silent", "--max-time", "15", "--local-port", &source, &url];
        let answer = stage.run("client", "curl", &arguments);
        let seen = saw_request(server).unwrap();
        match verdict {
            Verdict::Served(_) => assert!(answer.is_ok_and(|answer| answer == HELLO) && seen, "{name}"),
            Verdict::Refused { .. } => assert!(answer.is_err() && !seen, "{name}: {answer:?}"),
        }
    }
    ledger.check(&stage).unwrap();
}
