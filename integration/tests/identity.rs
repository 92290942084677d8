//! Who is not of the mesh, and who is of the mesh but somebody else: refused with the reason in the record. TLS peers that
//! are not ours are in `foreign_clients` and `foreign_servers`.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use integration::{DEADLINE, Stage, WEB_TARGET};
use record::key;
use testkit::{Settings, until};

/// Waits for the inbound connection record with this code.
fn refused_with(stage: &Stage, code: &str) {
    let found = stage.records(1, |record| {
        record.event() == "picket.connection" && record.is(key::DIRECTION, "inbound") && record.is(key::CODE, code)
    });
    let found = found.unwrap();
    assert!(found[0].text(key::DETAIL).is_some_and(|detail| !detail.is_empty()));
    assert!(found[0].is(key::DECISION, "refused"));
}

#[test]
fn plaintext_is_refused_in_strict_mode() {
    let stage = Stage::start(&Settings::default()).unwrap();
    let server = stage.mesh.pod("server").unwrap().pod.ipv4;
    let url = format!("http://{server}:{WEB_TARGET}/hello.txt");
    assert!(stage.run("stranger", "curl", &["--silent", "--fail", "--max-time", "5", &url]).is_err());
    refused_with(&stage, "plaintext_refused");
}

#[test]
fn a_server_that_is_somebody_else_is_not_used() {
    let stage = Stage::start(&Settings::default()).unwrap();
    let mut endpoint = testkit::Endpoint::of("server");
    endpoint.identity = Some("spiffe://demo.picket.dev/ns/demo/sa/somebody-else".to_owned());
    let port = testkit::ServicePort { port: 80, target: WEB_TARGET, app_protocol: Some("http".to_owned()) };
    let service = testkit::Service { name: "web".to_owned(), number: 10, ports: vec![port], endpoints: vec![endpoint] };
    stage.mesh.discover(&[service]).unwrap();
    let status = [
        "--silent",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code} %header{picket-error}",
        "http://10.96.0.10/hello.txt",
    ];
    until("the new discovery file to be in force", DEADLINE, || {
        let answer = stage.run("client", "curl", &status)?;
        Ok((answer.trim() == "502 peer_identity_mismatch").then_some(()))
    })
    .unwrap();
    let found =
        stage.records(1, |record| record.event() == "picket.request" && record.is(key::CODE, "peer_identity_mismatch"));
    assert!(found.is_ok());
}
