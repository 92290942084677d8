//! A CA for tests in this process: roots and issuers, and a server that proves the CA's identity by TLS without asking for
//! a certificate, as picket-ca does. It signs what is asked for; what it says on the trust bundle stream, tests decide.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use api::{
    istio_ca::{
        IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
    },
    trust::{
        Bundle, Status as Said,
        trust_bundle_service_server::{TrustBundleService, TrustBundleServiceServer},
    },
};
use identity::{SpiffeId, sha256};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{ServerConfig, sign::CertifiedKey};
use rustls_pki_types::PrivateKeyDer;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use crate::{clock, discover::FileDiscovery};

/// How long anything may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// Whom the CA proves to be.
pub(crate) const CA: &str = "spiffe://td/ns/picket-system/sa/picket-ca";
/// Whom it signs for.
pub(crate) const WORKLOAD: &str = "spiffe://td/ns/demo/sa/web";

/// A root or an issuer with its key.
pub(crate) struct Authority {
    /// Its certificate, DER.
    pub(crate) der: Vec<u8>,
    /// The same, PEM.
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn root(name: &str) -> Self {
        let (params, key) = (authority(name), KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap();
        Self { der: certificate.der().to_vec(), pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    pub(crate) fn issuer(&self, name: &str) -> Self {
        let (params, key) = (authority(name), KeyPair::generate().unwrap());
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Self { der: certificate.der().to_vec(), pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    pub(crate) fn sha256(&self) -> [u8; 32] {
        sha256(&self.der)
    }

    /// A certificate for `id`, with its key.
    pub(crate) fn credentials(&self, id: &str) -> identity::Credentials {
        let key = KeyPair::generate().unwrap();
        let leaf = leaf(id).signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        identity::Credentials::from_pem(format!("{}{}", leaf.pem(), self.pem).as_bytes(), key).unwrap()
    }

    fn sign(&self, csr: &str) -> Vec<String> {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        request.params = leaf(WORKLOAD);
        vec![request.signed_by(&self.issuer).unwrap().pem(), self.pem.clone()]
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn leaf(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params
}

/// A running CA.
pub(crate) struct TestCa {
    pub(crate) address: SocketAddr,
    pub(crate) root: Authority,
    /// Who signs now.
    signing: Arc<Mutex<Arc<Authority>>>,
    streams: mpsc::UnboundedReceiver<Stream>,
}

/// A trust bundle stream, in the hands of a test; dropping it ends it.
pub(crate) struct Stream {
    said: Streaming<Said>,
    bundles: mpsc::Sender<Result<Bundle, Status>>,
}

impl Stream {
    pub(crate) async fn send(&self, bundle: Bundle) {
        self.bundles.send(Ok(bundle)).await.unwrap();
    }

    /// What the proxy says next.
    pub(crate) async fn said(&mut self) -> Said {
        timeout(DEADLINE, self.said.message()).await.expect("a status in time").unwrap().expect("not the end")
    }

    /// True when the proxy says nothing for a while.
    pub(crate) async fn is_silent(&mut self) -> bool {
        timeout(Duration::from_millis(200), self.said.message()).await.is_err()
    }
}

impl TestCa {
    pub(crate) async fn start() -> Self {
        let root = Authority::root("root");
        let issuer = Arc::new(root.issuer("issuer"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let key = Arc::clone(&issuer.credentials(CA).certified_key);
        let (connections, incoming) = mpsc::channel(1);
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(without_client_certificate(key)));
            while let Ok((socket, _)) = listener.accept().await {
                // A client that does not trust us ends the handshake.
                if let Ok(stream) = acceptor.accept(socket).await {
                    connections.send(stream).await.unwrap();
                }
            }
        });
        let signing = Arc::new(Mutex::new(issuer));
        let (opened, streams) = mpsc::unbounded_channel();
        let server = Server::builder()
            .add_service(IstioCertificateServiceServer::new(Certificates(Arc::clone(&signing))))
            .add_service(TrustBundleServiceServer::new(Bundles(opened)));
        tokio::spawn(server.serve_with_incoming(ReceiverStream::new(incoming).map(Ok::<_, std::io::Error>)));
        Self { address, root, signing, streams }
    }

    /// The issuer of the moment.
    pub(crate) fn issuer(&self) -> Arc<Authority> {
        Arc::clone(&self.signing.lock().unwrap())
    }

    /// Signs with a new issuer from now on.
    pub(crate) fn rotate_issuer(&self) {
        *self.signing.lock().unwrap() = Arc::new(self.root.issuer("next issuer"));
    }

    /// The next stream that the proxy opens.
    pub(crate) async fn stream(&mut self) -> Stream {
        timeout(DEADLINE, self.streams.recv()).await.expect("a stream in time").unwrap()
    }

    /// A stream that was opened already.
    pub(crate) fn try_stream(&mut self) -> Option<Stream> {
        self.streams.try_recv().ok()
    }

    /// A good bundle of our root, signed for by the issuer of the moment.
    pub(crate) fn bundle(&self, generation: u64) -> Bundle {
        Bundle {
            generation,
            roots: vec![self.root.der.clone()],
            issuer_sha256: self.issuer().sha256().to_vec(),
            renew_within_seconds: 1,
            denied: Vec::new(),
            time_unix_nanos: clock::wall().as_nanos() as i64,
        }
    }
}

/// TLS as picket-ca speaks it: workloads have no certificate yet when they come.
fn without_client_certificate(key: Arc<CertifiedKey>) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(identity::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(CertifiedKey::clone(&key))));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

struct Certificates(Arc<Mutex<Arc<Authority>>>);

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        call: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let signing = Arc::clone(&self.0.lock().unwrap());
        Ok(Response::new(IstioCertificateResponse { cert_chain: signing.sign(&call.get_ref().csr) }))
    }
}

struct Bundles(mpsc::UnboundedSender<Stream>);

#[tonic::async_trait]
impl TrustBundleService for Bundles {
    type FollowStream = ReceiverStream<Result<Bundle, Status>>;

    async fn follow(&self, call: Request<Streaming<Said>>) -> Result<Response<Self::FollowStream>, Status> {
        if call.metadata().get("authorization").is_none_or(|token| token.as_bytes() != b"Bearer token") {
            return Err(Status::unauthenticated("no token"));
        }
        let (bundles, outgoing) = mpsc::channel(1);
        let opened = self.0.send(Stream { said: call.into_inner(), bundles });
        opened.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// A discovery that knows nothing.
pub(crate) fn no_discovery() -> Arc<FileDiscovery> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("picket-no-discovery-{}-{number}.yaml", std::process::id()));
    std::fs::write(&file, "services: []\n").unwrap();
    let discovery = FileDiscovery::start(file.clone()).unwrap();
    std::fs::remove_file(file).unwrap();
    discovery
}

/// `text` as a SPIFFE ID.
pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}
