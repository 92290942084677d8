//! Collectors behind TLS that ask for a certificate, and change their own.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use export::otlp::{self, ClientCertificate};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion, crypto::aws_lc_rs, server::WebPkiClientVerifier, version,
};

use crate::{
    DRAIN, ROOMY, grpc, http,
    rig::{RECORDS, Rig},
    server::{Collector, Reply},
};

const ID: &str = "spiffe://example.org/ns/shop/sa/frontend";

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

struct Leaf {
    pem: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let (mut params, key) = (CertificateParams::default(), KeyPair::generate().unwrap());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    fn leaf(&self, names: Vec<SanType>) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        Leaf { pem: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    fn server(&self, clients: &Self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
        let leaf = self.leaf(vec![SanType::DnsName("localhost".try_into().unwrap())]);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(clients.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(leaf.pem.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

async fn collector(tls: Arc<ServerConfig>) -> Collector {
    Collector::listen(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(), Some(tls), |_| Reply::Take)
}

fn write(rig: &Rig, name: &str, content: &str) -> PathBuf {
    let path = rig.directory.0.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// The collector comes back with a certificate of another root; the new root is put into the file seconds later.
async fn the_new_root_is_read(
    name: &str,
    config: otlp::Config,
    collector: Collector,
    clients: Authority,
    old: Authority,
) {
    let mut rig = Rig::new(name, ROOMY, RECORDS / 2);
    let client = clients.leaf(vec![SanType::DnsName("proxy".try_into().unwrap())]);
    let roots = write(&rig, "roots.pem", &old.pem);
    let certificate = write(&rig, "client.pem", &client.pem);
    let key = write(&rig, "client-key.pem", &client.key);
    let client = Some(ClientCertificate::Files { certificate, key });
    rig.ship(otlp::Config { roots: Some(roots.clone()), client, ..config });
    rig.settled(DRAIN).await;
    let new = Authority::new();
    collector.show(new.server(&clients, &[&version::TLS13, &version::TLS12]));
    collector.cut_connections();
    let mut uids = crate::rig::uids(21);
    for _ in 0..RECORDS / 500 {
        rig.send(&mut uids, 250);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(rig.counters.acknowledged() <= RECORDS as u64 / 2 + 10, "an unknown root is not trusted");
    std::fs::write(&roots, &new.pem).unwrap();
    let changed = Instant::now();
    rig.settled(DRAIN).await;
    println!("{name}: all there {:?} after the new root", changed.elapsed());
    rig.end().await.check(&collector);
}

#[tokio::test]
async fn grpc_the_new_root_is_read() {
    let (old, clients) = (Authority::new(), Authority::new());
    let collector = collector(old.server(&clients, &[&version::TLS13])).await;
    the_new_root_is_read("grpc-root", grpc(collector.url()), collector, clients, old).await;
}

#[tokio::test]
async fn http_the_new_root_is_read_and_tls_1_2_is_spoken() {
    let (old, clients) = (Authority::new(), Authority::new());
    let collector = collector(old.server(&clients, &[&version::TLS12])).await;
    the_new_root_is_read("http-root", http(collector.url()), collector, clients, old).await;
}

#[tokio::test]
async fn the_workloads_own_certificate_is_shown_as_soon_as_there_is_one() {
    let (old, clients) = (Authority::new(), Authority::new());
    let collector = collector(old.server(&clients, &[&version::TLS13])).await;
    let store = identity::Store::new("example.org".parse().unwrap());
    let mut rig = Rig::new("workload", ROOMY, 1000);
    let roots = Some(write(&rig, "roots.pem", &old.pem));
    let client = Some(ClientCertificate::Workload(Arc::clone(&store)));
    rig.ship(otlp::Config { roots, client, ..grpc(collector.url()) });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(collector.calls(), 0, "nobody without a certificate gets in");
    let leaf = clients.leaf(vec![SanType::URI(ID.try_into().unwrap())]);
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    store.set(identity::Credentials::from_pem(leaf.pem.as_bytes(), key).unwrap());
    rig.settled(DRAIN).await;
    rig.end().await.check(&collector);
}

#[test]
fn files_that_are_no_certificates_are_a_mistake_at_the_start() {
    let config = |roots: &str| otlp::Config { roots: Some(roots.into()), ..grpc("https://localhost:1".to_owned()) };
    for file in ["/nowhere.pem", "/proc/self/status"] {
        assert!(matches!(otlp::Shipper::new(config(file)), Err(otlp::Error::Roots(_))), "{file}");
    }
}

#[test]
fn an_endpoint_that_could_hold_a_credential_is_a_mistake_and_is_not_repeated() {
    let refused = |config: otlp::Config| otlp::Shipper::new(config).unwrap_err();
    let secrets =
        [grpc("http://user:s3cret@localhost:1".to_owned()), http("http://localhost:1/v1/logs?key=s3cret".to_owned())];
    for config in secrets {
        let error = refused(config);
        assert!(matches!(error, otlp::Error::UserInfo | otlp::Error::Query), "{error:?}");
        assert!(!format!("{error} {error:?}").contains("s3cret"));
    }
}
