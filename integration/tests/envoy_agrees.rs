//! Envoy with our trust bundle accepts and refuses the same peers as we do, except where it is known to be wrong.
//!
//! The same certificates are shown by `openssl s_client` to Envoy's SPIFFE validator that `foreign_clients` shows to a
//! proxy: what the proxy must make of each stands in the table of `pki`.

use std::net::Ipv4Addr;

use integration::{
    Stage,
    envoy::{self, Envoy, Tls},
    foreign::s_client_to,
    pki::{Verdict, cases},
};
use testkit::Settings;

const PORT: u16 = 8600;
const BACKEND: u16 = 8601;
const FIRST_SOURCE: u16 = 30_000;

/// What Envoy 1.40's SPIFFE validator lets in and we do not, and the rule that it leaves out.
const ENVOY_IS_WRONG: [(&str, &str); 13] = [
    ("chain-too-long", "our bound on the work of path building"),
    ("server-auth-only", "X509-SVID 4.4: where an extended key usage is present, clientAuth must be in it"),
    ("code-signing", "as before"),
    ("email-protection", "as before"),
    ("any-purpose", "as before"),
    ("two-identities", "X509-SVID 2: exactly one URI"),
    ("two-uris", "as before"),
    ("trailing-slash", "SPIFFE-ID 2.2: the path does not end with a slash"),
    ("dot-segment", "SPIFFE-ID 2.2: no segment is . or .."),
    ("percent-encoded", "SPIFFE-ID 2.2: letters, digits, dot, dash and underscore only"),
    ("query", "SPIFFE-ID 2: no query"),
    ("null-byte", "as percent-encoded"),
    ("path-of-another-shape", "ours alone: /ns/<namespace>/sa/<service account>"),
];

#[test]
fn envoy_accepts_and_refuses_the_same_clients() {
    let stage = Stage::start(&Settings::default()).unwrap();
    let cases = cases(&stage.mesh).unwrap();
    let good = cases.iter().find(|case| case.name == "good").unwrap();
    let bundle = stage.mesh.trust_bundle();
    let tls = Tls {
        shown: Some(&good.shown),
        alpn: Some("picket/http1"),
        version: "TLSv1_3",
        bundle: &bundle,
        expected: None,
    };
    let stranger = stage.mesh.pod("stranger").unwrap();
    let (server, backend) = (envoy::of(stranger, PORT), (Ipv4Addr::LOCALHOST, BACKEND).into());
    let mut envoy = Envoy::default();
    envoy.server(server, backend, &tls);
    let mut application = stage.command("stranger", "python3").unwrap();
    application.args(["-u", "-m", "http.server", &BACKEND.to_string(), "--bind", "127.0.0.1", "--directory"]);
    application.arg(stage.mesh.directory.path());
    let mut application = testkit::Process::spawn("backend", application, &stage.mesh.directory).unwrap();
    application.wait_for_line(testkit::Stream::Out, "Serving HTTP", integration::DEADLINE).unwrap();
    let _envoy = envoy.start(stranger, &stage.mesh.directory).unwrap();
    let mut differ = Vec::new();
    for (source, case) in (FIRST_SOURCE..).zip(&cases) {
        let options = ["-alpn", "picket/http1"];
        let output = s_client_to(&stage, server, source, "hello.txt", Some(&case.shown), &options).unwrap();
        let accepted = String::from_utf8_lossy(&output.stdout).starts_with("HTTP/1.1 200 ");
        if accepted != matches!(case.as_client, Verdict::Served(_)) {
            differ.push((case.name, accepted));
        }
    }
    let known: Vec<_> = ENVOY_IS_WRONG.iter().map(|(name, _)| (*name, true)).collect();
    assert_eq!(differ, known, "cases (and whether Envoy accepted) where it differs from us");
}
