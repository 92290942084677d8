//! Foreign TLS clients (openssl and Envoy) dial our inbound proxy: who is of the mesh is served, everybody else is
//! refused with the reason in the record, and nothing of a refused client reaches the application.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use integration::envoy::{self, CANNOT_SHOW, Envoy, Tls};
use integration::foreign::{Ledger, SERVER, Side, s_client, show};
use integration::pki::{Case, FOREIGN, Verdict, cases, other_bundle};
use integration::{APP_UID, DEADLINE, Stage, WEB_TARGET};
use socket2::{Domain, Socket, Type};
use testkit::{Plaintext, Process, Settings, Stream, until};

const HELLO: &str = "hello from the server\n";
/// Where an application listens that speaks HTTP/2.
const HTTP2_TARGET: u16 = 8081;
const MISSING: Verdict = Verdict::Refused { code: "peer_certificate_missing", detail: "the peer sent no certificate" };
const NO_TLS_1_3: Verdict = Verdict::Refused { code: "tls_version_unsupported", detail: "TLS" };
const PLAINTEXT: Verdict = Verdict::Refused { code: "plaintext_refused", detail: "inbound.plaintext is strict" };
const REFUSED_US: Verdict = Verdict::Refused { code: "peer_refused_us", detail: "alert" };

fn find<'a>(cases: &'a [Case], name: &str) -> &'a Case {
    cases.iter().find(|case| case.name == name).unwrap()
}

/// Makes a file that only the request of this name asks for, so that the web server's log tells who reached it.
fn publish(stage: &Stage, name: &str) {
    stage.mesh.directory.write(&format!("{name}.txt"), HELLO).unwrap();
}

/// The names in an application's log of requests.
fn seen(log: &str) -> Vec<String> {
    let names = log.lines().filter_map(|line| Some(line.split_once("\"GET /")?.1.split_once(".txt ")?.0.to_owned()));
    let mut names: Vec<String> = names.filter(|name| name != "hello").collect();
    names.sort();
    names
}

/// The web server has seen the requests of those that were served, and no others.
fn only_these_reached_the_application(stage: &Stage, mut served: Vec<String>) {
    served.sort();
    assert_eq!(seen(&stage.web.output(Stream::Err).unwrap()), served);
}

/// openssl with each certificate, then without one and with other versions and protocols.
#[test]
fn openssl_is_served_as_who_it_proves_to_be_or_refused_with_the_reason() {
    let stage = Stage::start(&Settings::default()).unwrap();
    let cases = cases(&stage.mesh).unwrap();
    let bundle = stage.mesh.trust_bundle();
    let other = other_bundle(&stage.mesh.directory).unwrap();
    let (bundle, other) = (bundle.to_str().unwrap(), other.to_str().unwrap());
    let mut ledger = Ledger::new(Side::Inbound);
    let mut served = Vec::new();
    let mut dial = |name: &str, verdict: Verdict, case: Option<&Case>, options: &[&str]| {
        publish(&stage, name);
        let protocol = if options.contains(&"picket/tcp") { "picket/tcp" } else { "picket/http1" };
        let port = ledger.expect(name, verdict, protocol);
        let output = s_client(&stage, port, &format!("{name}.txt"), case.map(|case| &case.shown), options).unwrap();
        let answer = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        if let Verdict::Served(_) = verdict {
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(HELLO), "{name}: {answer}{errors}");
            served.push(name.to_owned());
        } else {
            assert!(!answer.contains("HTTP/1.1 "), "{name}: {answer}");
        }
        errors.into_owned()
    };
    let ours = ["-alpn", "picket/http1"];
    for case in &cases {
        dial(case.name, case.as_client, Some(case), &ours);
    }
    let good = find(&cases, "good");
    let served_as_foreign = Verdict::Served(FOREIGN);
    let several = ["-alpn", "h2,picket/unknown,picket/http1,http/1.1"];
    dial("several-protocols", served_as_foreign, Some(good), &several);
    dial("opaque", served_as_foreign, Some(good), &["-alpn", "picket/tcp"]);
    let expired = find(&cases, "expired");
    dial("opaque-expired", expired.as_client, Some(expired), &["-alpn", "picket/tcp"]);

    // Our side, in the eyes of openssl: its chain leads to the mesh's root, may be a server's, and names us.
    let verify = ["-verify_return_error", "-verify", "3", "-purpose", "sslserver", "-x509_strict"];
    let said = dial("our-chain", served_as_foreign, Some(good), &[&ours[..], &verify, &["-CAfile", bundle]].concat());
    assert!(said.contains("Verification: OK") && said.contains("Protocol version: TLSv1.3"), "{said}");
    dial("trusts-another-root", REFUSED_US, Some(good), &[&ours[..], &verify, &["-CAfile", other]].concat());

    dial("no-certificate", MISSING, None, &ours);
    dial("tls-1.2", NO_TLS_1_3, Some(good), &[&ours[..], &["-tls1_2"]].concat());
    dial("tls-1.2-no-certificate", NO_TLS_1_3, None, &[&ours[..], &["-tls1_2"]].concat());
    let no_common = Verdict::Refused { code: "tls_handshake_failed", detail: "protocol" };
    dial("unknown-mesh-protocol", no_common, Some(good), &["-alpn", "picket/unknown"]);
    // Without one of our names it is no client of the mesh, whatever it could show.
    dial("protocol-of-the-web", PLAINTEXT, Some(good), &["-alpn", "h2,http/1.1"]);
    dial("no-protocol", PLAINTEXT, Some(good), &[]);

    ledger.check(&stage).unwrap();
    only_these_reached_the_application(&stage, served);
}

/// Envoy with each certificate, in HTTP/1.1 and HTTP/2, and what else it may be configured to.
#[test]
fn envoy_is_served_as_who_it_proves_to_be_or_refused_with_the_reason() {
    let stage = Stage::start(&Settings::default()).unwrap();
    let cases = cases(&stage.mesh).unwrap();
    let bundle = stage.mesh.trust_bundle();
    let other = other_bundle(&stage.mesh.directory).unwrap();
    let (stranger, server) = (stage.mesh.pod("stranger").unwrap(), stage.mesh.pod("server").unwrap());
    let good = find(&cases, "good");
    let http1 = Tls {
        shown: Some(&good.shown),
        alpn: Some("picket/http1"),
        version: "TLSv1_3",
        bundle: &bundle,
        expected: Some(SERVER),
    };
    let http2 = Tls { alpn: Some("picket/h2"), ..http1 };
    let mut peers: Vec<(&str, Verdict, Tls<'_>)> = cases
        .iter()
        .filter(|case| !CANNOT_SHOW.contains(&case.name))
        .map(|case| (case.name, case.as_client, Tls { shown: Some(&case.shown), ..http1 }))
        .collect();
    let expired = find(&cases, "expired");
    let served = Verdict::Served(FOREIGN);
    peers.extend([
        ("http2-expired", expired.as_client, Tls { shown: Some(&expired.shown), ..http2 }),
        ("no-certificate", MISSING, Tls { shown: None, ..http1 }),
        ("http2-no-certificate", MISSING, Tls { shown: None, ..http2 }),
        ("http2", served, http2),
        ("tls-1.2", NO_TLS_1_3, Tls { version: "TLSv1_2", ..http1 }),
        ("no-protocol", PLAINTEXT, Tls { alpn: None, ..http1 }),
        // Envoy agrees with us about our side only when it trusts our root and expects our name.
        ("trusts-another-root", REFUSED_US, Tls { bundle: &other, ..http1 }),
        ("expects-somebody-else", REFUSED_US, Tls { expected: Some(FOREIGN), ..http1 }),
    ]);

    let mut application = Envoy::default();
    application.application(envoy::of(server, HTTP2_TARGET), HELLO);
    let application = application.start(server, &stage.mesh.directory).unwrap();
    let mut ledger = Ledger::new(Side::Inbound);
    let mut envoy = Envoy::default();
    for (listen, (name, verdict, tls)) in (9000..).zip(&peers) {
        publish(&stage, name);
        let (protocol, target) = match tls.alpn {
            Some("picket/h2") => ("picket/h2", HTTP2_TARGET),
            Some(_) | None => ("picket/http1", WEB_TARGET),
        };
        let source = envoy::of(stranger, ledger.expect(name, *verdict, protocol));
        envoy.client(listen, source, envoy::of(server, target), tls);
    }
    let _envoy = envoy.start(stranger, &stage.mesh.directory).unwrap();
    let mut reached = Vec::new();
    for (listen, (name, verdict, _)) in (9000..).zip(&peers) {
        let url = format!("http://127.0.0.1:{listen}/{name}.txt");
        let answer = stage.run("stranger", "curl", &["--silent", "--write-out", "%{http_code}", &url]).unwrap();
        if let Verdict::Served(_) = verdict {
            assert_eq!(answer, format!("{HELLO}200"), "{name}");
            if *name != "http2" {
                reached.push((*name).to_owned());
            }
        } else {
            assert!(answer.ends_with("503") && !answer.contains("hello"), "{name}: {answer}");
        }
    }
    ledger.check(&stage).unwrap();
    only_these_reached_the_application(&stage, reached);
    let http2 = until("the request in the log of the HTTP/2 application", DEADLINE, || {
        Ok(Some(seen(&application.output(Stream::Out)?)).filter(|names| !names.is_empty()))
    });
    assert_eq!(http2.unwrap(), ["http2"]);
}

/// Permissive is for clients that do not claim to be of the mesh. Who claims it and cannot prove it is refused here, too.
#[test]
fn who_claims_to_be_of_the_mesh_must_prove_it_in_permissive_mode() {
    let stage = Stage::start(&Settings { plaintext: Plaintext::Permissive, ..Settings::default() }).unwrap();
    let server = stage.mesh.pod("server").unwrap().pod.ipv4;
    let in_clear = format!("http://{server}:{WEB_TARGET}/hello.txt");
    assert_eq!(stage.run("stranger", "curl", &["--silent", "--fail", &in_clear]).unwrap(), HELLO);
    let cases = cases(&stage.mesh).unwrap();
    let mut ledger = Ledger::new(Side::Inbound);
    let mut dial = |name: &str, verdict: Verdict, shown: Option<&Case>, options: &[&str]| {
        publish(&stage, name);
        let port = ledger.expect(name, verdict, "picket/http1");
        let options = [&["-alpn", "picket/http1"], options].concat();
        s_client(&stage, port, &format!("{name}.txt"), shown.map(|case| &case.shown), &options).unwrap();
    };
    for name in ["wrong-root", "wrong-trust-domain", "expired", "server-auth-only", "two-identities", "dns-name-only"] {
        let case = find(&cases, name);
        dial(name, case.as_client, Some(case), &[]);
    }
    dial("no-certificate", MISSING, None, &[]);
    dial("tls-1.2", NO_TLS_1_3, Some(find(&cases, "good")), &["-tls1_2"]);
    ledger.check(&stage).unwrap();
    only_these_reached_the_application(&stage, Vec::new());
}

/// The first flight of an openssl client that has a certificate of its own to show.
fn hello(stage: &Stage, case: &Case) -> Vec<u8> {
    let stranger = &stage.mesh.pod("stranger").unwrap().pod;
    let listener = stranger.namespace.inside(|| Ok(TcpListener::bind("127.0.0.1:0")?)).unwrap();
    let mut client = stranger.command(APP_UID, "openssl");
    client.args(["s_client", "-alpn", "picket/http1", "-connect", &listener.local_addr().unwrap().to_string()]);
    client.arg("-cert").arg(&case.shown.leaf).arg("-key").arg(&case.shown.key);
    let client = Process::spawn("hello", client, &stage.mesh.directory).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut hello = vec![0; 5];
    stream.read_exact(&mut hello).unwrap();
    hello.resize(5 + usize::from(hello[3]) * 256 + usize::from(hello[4]), 0);
    stream.read_exact(&mut hello[5..]).unwrap();
    drop(client);
    hello
}

/// Clients that begin like one of the mesh and then do not go on.
#[test]
fn a_handshake_that_is_not_finished_is_one_record() {
    let stage = Stage::start(&Settings::default()).unwrap();
    let cases = cases(&stage.mesh).unwrap();
    let hello = hello(&stage, find(&cases, "good"));
    let failed = |detail| Verdict::Refused { code: "tls_handshake_failed", detail };
    let hangs = Verdict::Refused { code: "tls_handshake_timeout", detail: "was not done in time" };
    let stranger = &stage.mesh.pod("stranger").unwrap().pod;
    let server = SocketAddr::from((stage.mesh.pod("server").unwrap().pod.ipv4, WEB_TARGET));
    let mut ledger = Ledger::new(Side::Inbound);
    let mut dial = |name: &str, verdict: Verdict, bytes: &[u8], ends: bool| {
        let source = SocketAddr::from((stranger.ipv4, ledger.expect(name, verdict, "picket/http1")));
        let connect = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&source.into())?;
            socket.connect(&server.into())?;
            Ok(TcpStream::from(socket))
        };
        let mut stream = stranger.namespace.inside(connect).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(bytes).unwrap();
        if ends {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        let mut answer = Vec::new();
        // The proxy closes, with or without a reset.
        if let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{name}");
        }
        assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1"), "{name}");
    };
    let request = b"GET /hello.txt HTTP/1.1\r\nHost: web\r\n\r\n";
    dial("hangs", hangs, &hello, false);
    dial("ends", failed("eof"), &hello, true);
    dial("goes-on-in-clear", failed("received corrupt message"), &[&hello, &request[..]].concat(), false);
    dial("ends-in-the-hello", PLAINTEXT, &hello[..hello.len() - 1], true);
    dial("hangs-in-the-hello", PLAINTEXT, &hello[..hello.len() - 1], false);
    ledger.check(&stage).unwrap();
    only_these_reached_the_application(&stage, Vec::new());
}

/// One connection of openssl from the pod `stranger`, with what it says of the handshake's messages; a session that it
/// was given is in `file` afterwards.
fn with_session(stage: &Stage, connect: &str, shown: &Case, file: &str, options: &[&str]) -> String {
    let directory = &stage.mesh.directory;
    let request =
        directory.write("request", "GET /hello.txt HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").unwrap();
    // As root: openssl writes the session.
    let mut client = stage.command("stranger", "timeout").unwrap();
    client.current_dir(directory.path());
    client.args(["10", "openssl", "s_client", "-ign_eof", "-msg", "-alpn", "picket/http1", "-connect", connect]);
    show(&mut client, Some(&shown.shown));
    let output =
        client.args(["-sess_out", file]).args(options).stdin(std::fs::File::open(request).unwrap()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Nothing of a connection can be used for another one: whoever comes again shows its certificate again.
#[test]
fn no_session_is_given_and_none_is_taken() {
    let stage = Stage::start(&Settings::default()).unwrap();
    let cases = cases(&stage.mesh).unwrap();
    let good = find(&cases, "good");
    let directory = stage.mesh.directory.path();
    let ours = format!("{}:{WEB_TARGET}", stage.mesh.pod("server").unwrap().pod.ipv4);
    let said = with_session(&stage, &ours, good, "ours.pem", &[]);
    assert!(said.contains("HTTP/1.1 200 ") && said.contains("New, TLSv1.3"), "{said}");
    assert!(!said.contains("NewSessionTicket") && !directory.join("ours.pem").exists(), "{said}");

    // The same client is given a session by a server that gives some, and can use it there.
    let mut server = stage.command("stranger", "openssl").unwrap();
    server.args(["s_server", "-WWW", "-naccept", "2", "-accept", "127.0.0.1:9000", "-alpn", "picket/http1"]);
    show(server.current_dir(directory), Some(&good.shown));
    let mut server = Process::spawn("gives-sessions", server, &stage.mesh.directory).unwrap();
    server.wait_for_line(Stream::Out, "ACCEPT", DEADLINE).unwrap();
    let said = with_session(&stage, "127.0.0.1:9000", good, "theirs.pem", &[]);
    assert!(said.contains("NewSessionTicket") && directory.join("theirs.pem").exists(), "{said}");
    let said = with_session(&stage, "127.0.0.1:9000", good, "again.pem", &["-sess_in", "theirs.pem"]);
    assert!(said.contains("Reused, TLSv1.3"), "{said}");

    let said = with_session(&stage, &ours, good, "ours.pem", &["-sess_in", "theirs.pem"]);
    assert!(said.contains("HTTP/1.1 200 ") && said.contains("New, TLSv1.3"), "{said}");
    assert!(!said.contains("NewSessionTicket") && !directory.join("ours.pem").exists(), "{said}");
}
