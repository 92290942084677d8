//! The real program over real TLS: a client gets its certificate, strangers get a reason, a restart keeps the root.

#![expect(clippy::unwrap_used, reason = "a test ends where its preparation fails")]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use api::istio_ca::IstioCertificateRequest;
use api::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use hyper_util::rt::TokioIo;
use identity::{Credentials, Store, TrustBundle, client_config};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

const PROGRAM: &str = env!("CARGO_BIN_EXE_picket-ca");
const DOMAIN: &str = "demo.picket.dev";
const WAIT: Duration = Duration::from_secs(20);

/// A private directory with an initialised authority; gone with the test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("picket-ca-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let place = Self(path);
        assert!(place.init().status.success());
        place
    }

    fn init(&self) -> Output {
        let mut command = Command::new(PROGRAM);
        command.arg("init").arg("--dir").arg(self.dir()).args(["--trust-domain", DOMAIN]).output().unwrap()
    }

    fn dir(&self) -> PathBuf {
        self.0.join("ca")
    }

    fn root(&self) -> String {
        std::fs::read_to_string(self.dir().join("root.pem")).unwrap()
    }

    fn token(&self, extra: &[&str]) -> String {
        let mut command = Command::new(PROGRAM);
        command.arg("token").arg("--key").arg(self.dir().join("token-key.pem"));
        command.args(["--namespace", "demo", "--service-account", "web", "--pod", "web-0", "--pod-uid", "42"]);
        let output = command.args(extra).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn start(&self) -> Running {
        let config = format!(
            "trustDomain: {DOMAIN}\ndir: {dir}\nlisten: '127.0.0.1:0'\nleafLifetime: 1h\ndnsNames: [picket-ca.test]\n\
             tokens: {{jwks: {dir}/jwks.json, issuer: 'https://kubernetes.default.svc.cluster.local', audience: picket-ca}}\n",
            dir = self.dir().display()
        );
        Running::start(&write(&self.0, "ca.yaml", &config))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What stays behind in the temporary place harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// `picket-ca run`, killed with the test.
struct Running {
    child: Child,
    lines: Receiver<String>,
    address: String,
}

impl Running {
    fn start(config: &Path) -> Self {
        let mut command = Command::new(PROGRAM);
        let mut child = command.arg("run").arg("--config").arg(config).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || log.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut running = Self { child, lines, address: String::new() };
        let line = running.line("listening");
        let port = line.split("127.0.0.1:").nth(1).unwrap();
        let port: String = port.chars().take_while(char::is_ascii_digit).collect();
        running.address = format!("127.0.0.1:{port}");
        running
    }

    /// The next log line that has `text`.
    fn line(&self, text: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(WAIT).unwrap_or_else(|error| panic!("no line with {text:?}: {error}"));
            if line.contains(text) {
                return line;
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A channel that checks the authority as a proxy does: by its SPIFFE ID, without a certificate of its own.
async fn channel_to(address: &str, root: &str) -> Channel {
    let store = Store::new(DOMAIN.parse().unwrap());
    store.set_bundle(TrustBundle::from_pem(root.as_bytes()).unwrap());
    let authority = format!("spiffe://{DOMAIN}/ns/picket-system/sa/picket-ca").parse().unwrap();
    let connector = TlsConnector::from(Arc::new(client_config(&store, &authority, b"h2")));
    let address = address.to_owned();
    let connect = tower::service_fn(move |_| {
        let (connector, address) = (connector.clone(), address.clone());
        async move {
            let socket = tokio::net::TcpStream::connect(address).await?;
            let name = ServerName::try_from("picket-ca").expect("a host name");
            std::io::Result::Ok(TokioIo::new(connector.connect(name, socket).await?))
        }
    });
    Endpoint::from_static("http://picket-ca").connect_with_connector(connect).await.unwrap()
}

fn request(csr: &str, authorization: Option<&str>) -> Request<IstioCertificateRequest> {
    let asked = IstioCertificateRequest { csr: csr.into(), validity_duration: 600, metadata: None };
    let mut request = Request::new(asked);
    if let Some(value) = authorization {
        request.metadata_mut().insert("authorization", value.parse().unwrap());
    }
    request
}

fn key_and_csr() -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    (key, csr)
}

#[tokio::test]
async fn a_workload_gets_its_own_certificate_and_strangers_a_reason() {
    let place = Place::new("issue");
    let running = place.start();
    let mut client = IstioCertificateServiceClient::new(channel_to(&running.address, &place.root()).await);
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
    channel_to(&running.address, &root).await;
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
    let bad = write(&place.0, "bad.yaml", "{trustDomain: td, lissten: x}");
    let (code, text) = run(&["run", "--config", bad.to_str().unwrap()]);
    assert_eq!(code, Some(64));
    assert!(text.contains("lissten") && text.contains("listen") && text.contains("tokens.jwks"), "{text}");
    std::fs::set_permissions(place.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = place.init();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("0755"));
}
