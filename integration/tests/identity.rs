//! Peers that are not ours: refused with the reason in the record.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use integration::{DEADLINE, Stage, WEB_TARGET};
use record::key;
use testkit::{Settings, run, until};

/// Waits for the inbound connection record with this code.
fn refused_with(stage: &Stage, code: &str) {
    let found = stage.records(1, |record| {
        record.event() == "picket.connection" && record.is(key::DIRECTION, "inbound") && record.is(key::CODE, code)
    });
    let found = found.unwrap();
    assert!(found[0].text(key::DETAIL).is_some_and(|detail| !detail.is_empty()));
    assert!(found[0].is(key::DECISION, "refused"));
}

/// `openssl s_client` from outside the mesh to the server's own port; whether it succeeds is its own affair.
fn s_client(stage: &Stage, arguments: &[&str]) {
    let server = stage.mesh.pod("server").unwrap().pod.ipv4;
    let mut command = stage.mesh.pod("stranger").unwrap().pod.command(integration::APP_UID, "openssl");
    command.args(["s_client", "-alpn", "picket/http1", "-connect", &format!("{server}:{WEB_TARGET}")]).args(arguments);
    command.stdin(std::process::Stdio::null());
    let _refused = run(&mut command);
}

#[test]
fn strangers_are_refused_and_the_record_says_why() {
    let stage = Stage::start(&Settings::default()).unwrap();
    let directory = stage.mesh.directory.path();

    s_client(&stage, &[]);
    refused_with(&stage, "peer_certificate_missing");

    s_client(&stage, &["-tls1_2"]);
    refused_with(&stage, "tls_version_unsupported");

    let (key_file, certificate) = (directory.join("stranger.key"), directory.join("stranger.pem"));
    let san = "subjectAltName=URI:spiffe://demo.picket.dev/ns/demo/sa/client";
    let mut make = std::process::Command::new("openssl");
    make.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=client",
    ]);
    make.args([
        "-addext",
        san,
        "-addext",
        "keyUsage=critical,digitalSignature",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ]);
    make.arg("-keyout").arg(&key_file).arg("-out").arg(&certificate);
    run(&mut make).unwrap();
    run(std::process::Command::new("chmod").arg("0644").arg(&key_file)).unwrap();
    s_client(&stage, &["-cert", certificate.to_str().unwrap(), "-key", key_file.to_str().unwrap()]);
    refused_with(&stage, "peer_certificate_untrusted");
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
