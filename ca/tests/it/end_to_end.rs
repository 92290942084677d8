//! The real program over real TLS: a client gets its certificate, strangers get a reason, a restart keeps the root.

use std::io::Read;
use std::process::{Command, Stdio};

use crate::support::proxy::{channel, key_and_csr, store};
use crate::support::{DOMAIN, PROGRAM, Place};
use api::istio_ca::IstioCertificateRequest;
use api::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use identity::{Credentials, TrustBundle};
use rustls_pki_types::{PrivateKeyDer, UnixTime};
use tonic::{Code, Request};

fn request(csr: &str, authorization: Option<&str>) -> Request<IstioCertificateRequest> {
    let asked = IstioCertificateRequest { csr: csr.into(), validity_duration: 600, metadata: None };
    let mut request = Request::new(asked);
    if let Some(value) = authorization {
        request.metadata_mut().insert("authorization", value.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn a_workload_gets_its_own_certificate_and_strangers_a_reason() {
    let place = Place::new("issue");
    let running = place.start();
    let mut client = IstioCertificateServiceClient::new(channel(running.address, &store(&place.root())).await.unwrap());
    let (key, csr) = key_and_csr();
    let good = format!("Bearer {}", place.token(&["--audience", "picket-ca"]));

    let chain = client.create_certificate(request(&csr, Some(&good))).await.unwrap().into_inner().cert_chain;
    assert_eq!(chain.len(), 3);
    assert_eq!(chain[2], place.root());
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let credentials = Credentials::from_pem(chain.concat().as_bytes(), private).unwrap();
    assert_eq!(credentials.id.as_str(), "spiffe://demo.picket.dev/ns/demo/sa/web");
    let bundle = TrustBundle::from_pem(place.root().as_bytes()).unwrap();
    credentials.verify(&bundle, &DOMAIN.parse().unwrap(), UnixTime::now()).unwrap();
    let line = running.line("certificate issued");
    for fact in [&*credentials.serial, "demo", "web-0", "42"] {
        assert!(line.contains(fact), "{fact}: {line}");
    }

    let audience = format!("Bearer {}", place.token(&["--audience", "other"]));
    let issuer = format!("Bearer {}", place.token(&["--audience", "picket-ca", "--issuer", "https://other"]));
    let cases = [
        (&*csr, None, Code::Unauthenticated, "no bearer token"),
        (&*csr, Some("Basic Zm9v"), Code::Unauthenticated, "no bearer token"),
        (&*csr, Some("Bearer x.y.z"), Code::Unauthenticated, "malformed"),
        (&*csr, Some(&*audience), Code::Unauthenticated, "audience"),
        (&*csr, Some(&*issuer), Code::Unauthenticated, "issuer"),
        ("garbage", Some(&*good), Code::InvalidArgument, "not PEM"),
    ];
    for (csr, authorization, code, reason) in cases {
        let status = client.create_certificate(request(csr, authorization)).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(reason), "{status}");
        assert!(running.line("certificate refused").contains(reason));
    }
    let huge = "x".repeat(1 << 20);
    let status = client.create_certificate(request(&huge, Some(&good))).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert!(running.line("certificate refused").contains("the call cannot be read"));
    // None of it harmed the connection.
    client.create_certificate(request(&csr, Some(&good))).await.unwrap();
}

#[tokio::test]
async fn a_killed_authority_comes_back_with_its_root() {
    let place = Place::new("restart");
    let root = place.root();
    drop(place.start());
    assert!(place.init().status.success());
    let running = place.start();
    assert_eq!(place.root(), root);
    channel(running.address, &store(&root)).await.unwrap();
}

#[test]
fn wrong_usage_and_configuration_end_with_64_and_failures_with_2() {
    let place = Place::new("usage");
    let run = |arguments: &[&str]| {
        let mut child =
            Command::new(PROGRAM).args(arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (child.wait().unwrap().code(), text)
    };
    assert_eq!(run(&["serve"]).0, Some(64));
    assert_eq!(run(&["init", "--dir", "x", "--trust-domain", "UPPER"]).0, Some(64));
    let bad = place.write("bad.yaml", "{trustDomain: td, lissten: x}");
    let (code, text) = run(&["run", "--config", bad.to_str().unwrap()]);
    assert_eq!(code, Some(64));
    assert!(text.contains("lissten") && text.contains("listen") && text.contains("tokens.jwks"), "{text}");
    std::fs::set_permissions(place.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = place.init();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("0755"));
}
