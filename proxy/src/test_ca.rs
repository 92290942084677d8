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
    frames::{Frames, frame, length},
    istio_ca::{
        IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
    },
    trust::{Answer, Bundle, End, Open, Status as Said, answer},
};
use identity::{SpiffeId, sha256};
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{ServerConfig, sign::CertifiedKey};
use rustls_pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, transport::Server};

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
    /// When its connection was accepted.
    pub(crate) accepted: Duration,
    said: mpsc::Receiver<Said>,
    bundles: mpsc::Sender<Bundle>,
}

impl Stream {
    pub(crate) async fn send(&self, bundle: Bundle) {
        self.bundles.send(bundle).await.unwrap();
    }

    /// What the proxy says next.
    pub(crate) async fn said(&mut self) -> Said {
        timeout(DEADLINE, self.said.recv()).await.expect("a status in time").expect("not the end")
    }

    /// True when the proxy says nothing for a while.
    pub(crate) async fn is_silent(&mut self) -> bool {
        timeout(Duration::from_millis(200), self.said.recv()).await.is_err()
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
        let (opened, streams) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(without_client_certificate(key)));
            while let Ok((socket, _)) = listener.accept().await {
                let accepted = clock::wall();
                // A client that does not trust us ends the handshake.
                let Ok(stream) = acceptor.accept(socket).await else { continue };
                if stream.get_ref().1.alpn_protocol() == Some(identity::ALPN_TRUST) {
                    tokio::spawn(followed(stream, accepted, opened.clone()));
                } else {
                    connections.send(stream).await.unwrap();
                }
            }
        });
        let signing = Arc::new(Mutex::new(issuer));
        let server =
            Server::builder().add_service(IstioCertificateServiceServer::new(Certificates(Arc::clone(&signing))));
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
    config.alpn_protocols = vec![b"h2".to_vec(), identity::ALPN_TRUST.to_vec()];
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

/// One trust bundle stream, to its end; rustls keeps the records.
async fn followed(mut connection: TlsStream<TcpStream>, accepted: Duration, opened: mpsc::UnboundedSender<Stream>) {
    let (mut frames, mut bytes, mut said) = (Frames::default(), Vec::new(), None);
    let (bundles, mut outgoing) = mpsc::channel(1);
    loop {
        while let Some(message) = frames.next(1 << 16).unwrap() {
            let Some(say) = &said else {
                let open = Open::decode(&*message).unwrap();
                if open.token != "token" {
                    let end = End { code: tonic::Code::Unauthenticated.into(), message: "no token".to_owned() };
                    let answer = frame(&Answer { what: Some(answer::What::End(end)) });
                    return connection.write_all(&answer).await.unwrap();
                }
                let (say, heard) = mpsc::channel(16);
                say.send(open.status.unwrap()).await.unwrap();
                said = Some(say);
                // When the test is over, so is this.
                let _over = opened.send(Stream { accepted, said: heard, bundles: bundles.clone() });
                continue;
            };
            let answered = match message.is_empty() {
                true => connection.write_all(&length(0)).await.is_ok(),
                false => say.send(Said::decode(&*message).unwrap()).await.is_ok(),
            };
            if !answered {
                return;
            }
        }
        let over = said.clone();
        tokio::select! {
            read = connection.read_buf(&mut bytes) => {
                if !read.is_ok_and(|count| count > 0) {
                    return;
                }
                frames.push(&std::mem::take(&mut bytes));
            }
            bundle = outgoing.recv() => {
                let Some(bundle) = bundle else { return };
                let answer = frame(&Answer { what: Some(answer::What::Bundle(bundle)) });
                let written = async {
                    connection.write_all(&answer).await?;
                    connection.flush().await
                };
                if written.await.is_err() {
                    return;
                }
            }
            () = async { over.as_ref().expect("it is some").closed().await }, if over.is_some() => {
                // What was sent before the test let go of the stream arrives.
                while let Ok(bundle) = outgoing.try_recv() {
                    let answer = frame(&Answer { what: Some(answer::What::Bundle(bundle)) });
                    if connection.write_all(&answer).await.is_err() {
                        return;
                    }
                }
                let _ended = connection.shutdown().await;
                return;
            }
        }
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
