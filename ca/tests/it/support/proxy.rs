//! A proxy as the authority meets it: real keys, real TLS, follows the bundle, acknowledges, renews when the issuer
//! changed. It can shake hands with another one, which is what a rotation must never break.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::follow::Stream;
use api::istio_ca::IstioCertificateRequest;
use api::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use api::trust::{Bundle, Status};
use hyper_util::rt::TokioIo;
use identity::{Credentials, Store, TrustBundle, client_config, server_config};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::support::{DOMAIN, Place, until_async};

/// A channel that checks the authority as a proxy does: by its SPIFFE ID, without a certificate of its own.
pub(crate) async fn channel(address: SocketAddr, store: &Arc<Store>) -> Result<Channel, tonic::transport::Error> {
    let authority = format!("spiffe://{DOMAIN}/ns/picket-system/sa/picket-ca").parse().unwrap();
    let connector = TlsConnector::from(Arc::new(client_config(store, &authority, b"h2")));
    let connect = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let socket = tokio::net::TcpStream::connect(address).await?;
            let name = ServerName::try_from("picket-ca").expect("a host name");
            std::io::Result::Ok(TokioIo::new(connector.connect(name, socket).await?))
        }
    });
    Endpoint::from_static("http://picket-ca").connect_with_connector(connect).await
}

/// A trust bundle stream that has begun.
pub(crate) async fn open(
    address: SocketAddr,
    store: &Arc<Store>,
    token: &str,
    status: Status,
) -> Result<Stream<TlsStream<tokio::net::TcpStream>>, tonic::Status> {
    let connection = connect(address, store).await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    Stream::open(connection, token, status).await
}

/// A connection for a trust bundle stream on which nothing was said.
pub(crate) async fn connect(
    address: SocketAddr,
    store: &Arc<Store>,
) -> std::io::Result<TlsStream<tokio::net::TcpStream>> {
    connect_for(address, store, identity::ALPN_TRUST).await
}

/// As [`connect`], for this protocol.
pub(crate) async fn connect_for(
    address: SocketAddr,
    store: &Arc<Store>,
    alpn: &[u8],
) -> std::io::Result<TlsStream<tokio::net::TcpStream>> {
    let authority = format!("spiffe://{DOMAIN}/ns/picket-system/sa/picket-ca").parse().unwrap();
    let mut config = identity::trust_client_config(store, &authority);
    config.alpn_protocols = vec![alpn.to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let socket = tokio::net::TcpStream::connect(address).await?;
    connector.connect(ServerName::try_from("picket-ca").expect("a host name"), socket).await
}

/// A store that trusts the roots in a PEM text.
pub(crate) fn store(roots: &str) -> Arc<Store> {
    let store = Store::new(DOMAIN.parse().unwrap());
    store.set_bundle(TrustBundle::from_pem(roots.as_bytes()).unwrap());
    store
}

pub(crate) fn key_and_csr() -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    (key, csr)
}

pub(crate) fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

pub(crate) fn unix_nanos() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// What it shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mine {
    pub(crate) serial: String,
    pub(crate) issuer: Vec<u8>,
    pub(crate) not_after: i64,
    pub(crate) chain: Vec<String>,
}

struct Inner {
    store: Arc<Store>,
    addresses: Vec<SocketAddr>,
    token: String,
    mine: Mutex<Mine>,
    generation: AtomicU64,
    /// While it is set, bundles are not taken.
    deaf: AtomicBool,
    /// Seconds that its clock is ahead.
    ahead: AtomicU64,
    /// How often it has said so.
    said: AtomicU64,
}

/// A running proxy; ends with the test.
pub(crate) struct Proxy {
    pub(crate) pod: String,
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts with the bundle's file, and waits for its first certificate and generation.
    pub(crate) async fn start(place: &Place, addresses: &[SocketAddr], pod: &str) -> Self {
        let proxy = Self::spawn(place, addresses, pod);
        let ready = || (proxy.generation() > 0 && !proxy.mine().serial.is_empty()).then_some(());
        until_async(&format!("the first certificate of {pod}"), ready).await;
        proxy
    }

    pub(crate) fn spawn(place: &Place, addresses: &[SocketAddr], pod: &str) -> Self {
        let inner = Arc::new(Inner {
            store: store(&place.root()),
            addresses: addresses.to_vec(),
            token: place.pod_token(pod),
            mine: Mutex::default(),
            generation: AtomicU64::new(0),
            deaf: AtomicBool::new(false),
            ahead: AtomicU64::new(0),
            said: AtomicU64::new(0),
        });
        let running = inner.clone();
        let task = tokio::spawn(async move {
            for turn in 0_usize.. {
                let address = running.addresses[turn % running.addresses.len()];
                if let Err(error) = running.follow(address).await {
                    let _told = error;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        });
        Self { pod: pod.into(), inner, task }
    }

    /// How often it has said what time it is on a clock that is ahead.
    pub(crate) fn said(&self) -> u64 {
        self.inner.said.load(SeqCst)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.inner.generation.load(SeqCst)
    }

    pub(crate) fn mine(&self) -> Mine {
        self.inner.mine.lock().unwrap().clone()
    }

    /// Takes no bundle while it is deaf.
    pub(crate) fn set_deaf(&self, deaf: bool) {
        self.inner.deaf.store(deaf, SeqCst);
    }

    pub(crate) fn set_clock_ahead(&self, seconds: u64) {
        self.inner.ahead.store(seconds, SeqCst);
    }

    /// Roots that it trusts.
    pub(crate) fn roots(&self) -> usize {
        self.inner.store.bundle().map_or(0, |bundle| bundle.roots().len())
    }

    /// One mutual handshake with `self` as the client.
    pub(crate) async fn shake(&self, server: &Self) -> Result<(), String> {
        let name = format!("{} to {}", self.pod, server.pod);
        let id = server.inner.store.current().ok_or_else(|| format!("{name}: no certificate"))?.id.clone();
        let connector = TlsConnector::from(Arc::new(client_config(&self.inner.store, &id, identity::ALPN_TCP)));
        let acceptor = TlsAcceptor::from(Arc::new(server_config(&server.inner.store, &[identity::ALPN_TCP])));
        let (client, server) = tokio::io::duplex(64 << 10);
        let any = ServerName::try_from("any").expect("a host name");
        let (client, server) = tokio::join!(connector.connect(any, client), acceptor.accept(server));
        client.map_err(|error| format!("{name}: the client says {error}"))?;
        server.map_err(|error| format!("{name}: the server says {error}"))?;
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Every one shakes hands with every other, as long as the task lives; failures are collected.
pub(crate) struct Handshakes {
    task: JoinHandle<()>,
    pub(crate) failures: Arc<Mutex<Vec<String>>>,
    pub(crate) done: Arc<AtomicU64>,
}

impl Handshakes {
    pub(crate) fn start(proxies: &Arc<Vec<Proxy>>, pause: Duration) -> Self {
        let (failures, done) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
        let (proxies, into, count) = (proxies.clone(), failures.clone(), done.clone());
        let task = tokio::spawn(async move {
            loop {
                for pair in 0..proxies.len() * proxies.len() {
                    let (client, server) = (&proxies[pair / proxies.len()], &proxies[pair % proxies.len()]);
                    match client.shake(server).await {
                        Ok(()) => drop(count.fetch_add(1, SeqCst)),
                        Err(error) => into.lock().unwrap().push(error),
                    }
                }
                tokio::time::sleep(pause).await;
            }
        });
        Self { task, failures, done }
    }

    /// Waits until everybody has shaken hands once more; fails when any handshake failed so far.
    pub(crate) async fn check(&self, proxies: usize) {
        let enough = self.done.load(SeqCst) + 2 * u64::try_from(proxies * proxies).unwrap();
        let done = || (self.done.load(SeqCst) >= enough || !self.failures.lock().unwrap().is_empty()).then_some(());
        until_async("another round of handshakes", done).await;
        let failures = self.failures.lock().unwrap();
        assert!(failures.is_empty(), "{} handshakes failed: {:?}", failures.len(), failures.first());
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

impl Inner {
    fn status(&self, refused: &str) -> Status {
        let mine = self.mine.lock().unwrap().clone();
        let ahead = i64::try_from(self.ahead.load(SeqCst)).unwrap() * 1_000_000_000;
        Status {
            generation: self.generation.load(SeqCst),
            refused: refused.into(),
            certificate_serial: mine.serial,
            issuer_sha256: mine.issuer,
            certificate_not_after: mine.not_after,
            time_unix_nanos: unix_nanos() + ahead,
        }
    }

    /// One stream, to its end.
    async fn follow(&self, address: SocketAddr) -> Result<(), Error> {
        let (say, mut bundles) = testkit::follow(open(address, &self.store, &self.token, self.status("")).await?);
        let mut wanted = Vec::new();
        loop {
            let due = self.due(&wanted);
            tokio::select! {
                bundle = bundles.message() => {
                    let Some(bundle) = bundle? else { return Ok(()) };
                    if self.deaf.load(SeqCst) {
                        say.send(self.status("deaf")).await?;
                        continue;
                    }
                    self.take(&bundle)?;
                    wanted = bundle.issuer_sha256;
                    say.send(self.status("")).await?;
                }
                () = tokio::time::sleep(due) => {
                    self.renew(&channel(address, &self.store).await?).await?;
                    say.send(self.status("")).await?;
                }
                // What it says changes only with what it does, but a test may have changed its clock.
                () = tokio::time::sleep(Duration::from_millis(300)) => {
                    if self.ahead.load(SeqCst) > 0 {
                        say.send(self.status("")).await?;
                        self.said.fetch_add(1, SeqCst);
                    }
                }
            }
        }
    }

    /// When the next certificate is due.
    fn due(&self, wanted: &[u8]) -> Duration {
        let mine = self.mine.lock().unwrap();
        if mine.serial.is_empty() || (!wanted.is_empty() && *wanted != *mine.issuer) {
            return Duration::from_millis(10);
        }
        let left = mine.not_after - unix_nanos() / 1_000_000_000;
        Duration::from_secs(u64::try_from(left - 4).unwrap_or(0)).max(Duration::from_millis(50))
    }

    fn take(&self, bundle: &Bundle) -> Result<(), Error> {
        if bundle.generation < self.generation.load(SeqCst) {
            return Ok(());
        }
        let pem: String =
            bundle.roots.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.clone()))).collect();
        self.store.set_bundle(TrustBundle::from_pem(pem.as_bytes())?);
        self.generation.store(bundle.generation, SeqCst);
        Ok(())
    }

    async fn renew(&self, channel: &Channel) -> Result<(), Error> {
        let (key, csr) = key_and_csr();
        let asked = IstioCertificateRequest { csr, validity_duration: 0, metadata: None };
        let mut client = IstioCertificateServiceClient::new(channel.clone());
        let chain = client.create_certificate(with_token(asked, &self.token)).await?.into_inner().cert_chain;
        let private = PrivateKeyDer::try_from(key.serialize_der())?;
        let credentials = Credentials::from_pem(chain.concat().as_bytes(), private)?;
        let bundle = self.store.bundle().ok_or("no bundle")?;
        credentials.verify(&bundle, &DOMAIN.parse()?, UnixTime::now())?;
        let issuer = CertificateDer::from_pem_slice(chain[1].as_bytes())?;
        let not_after = i64::try_from(credentials.not_after.as_secs())?;
        let issuer = ca::pki::sha256(&issuer).0.to_vec();
        *self.mine.lock().unwrap() = Mine { serial: credentials.serial.clone(), issuer, not_after, chain };
        self.store.set(credentials);
        Ok(())
    }
}
