//! The authority on the network: Istio's certificate service over gRPC and TLS 1.3.
//!
//! Promises: what a caller costs is bounded: connections, time for a handshake, streams, header and message size, time
//! for a call, age of a connection; the serving certificate comes from the authority itself and is renewed before it
//! ends; a call ends in one log line that says what was issued to whom or why nothing was. Leaves to others: who asks,
//! what they may have, and the certificate.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use api::istio_ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use api::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};
use arc_swap::ArcSwap;
use identity::SpiffeIdError;
use rcgen::KeyPair;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use telemetry::chain;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Code, Request, Response, Status};

use crate::attest::{Attestor, Caller, TokenError};
use crate::issue::{self, CsrError, IssueError, Issued};
use crate::policy::{Policy, PolicyError};
use crate::root::Authority;

/// A proxy holds a connection for one call; a restart of a whole node brings some hundreds at once.
const CONNECTIONS_MAX: usize = 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(300);
const STREAMS_MAX: u32 = 8;
const MESSAGE_BYTES_MAX: usize = 64 << 10;
const HEADER_BYTES_MAX: u32 = 32 << 10;
/// The serving certificate lives this long and is renewed at two thirds of it.
const SERVING_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How soon a failed renewal or a failed accept is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Why the authority does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The own identity does not fit.
    #[error("the authority's own identity is not a SPIFFE ID")]
    Identity(#[from] SpiffeIdError),
    /// The serving certificate could not be made.
    #[error("the serving certificate could not be issued")]
    Issue(#[from] IssueError),
    /// Its key could not be made.
    #[error("the serving key could not be made")]
    Key(#[from] rcgen::Error),
    /// TLS does not take the certificate.
    #[error("the serving certificate cannot be used")]
    Tls(#[from] rustls::Error),
    /// The PEM of the own chain cannot be read back.
    #[error("the serving chain cannot be read: {0}")]
    Chain(String),
    /// The gRPC server failed.
    #[error("the gRPC server failed")]
    Grpc(#[from] tonic::transport::Error),
}

/// Why a call was refused, with the status it is answered with.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("the caller is not who it says")]
    Token(#[from] TokenError),
    #[error("the caller may not have what it asks for")]
    Policy(#[from] PolicyError),
    #[error("the signing request cannot be used")]
    Csr(#[from] CsrError),
    #[error("nothing can be issued")]
    Issue(#[from] IssueError),
}

impl CallError {
    fn status(&self) -> Status {
        let code = match self {
            Self::Token(_) => Code::Unauthenticated,
            Self::Policy(PolicyError::Lifetime(_)) | Self::Csr(_) => Code::InvalidArgument,
            Self::Policy(PolicyError::Name(_) | PolicyError::Reserved) => Code::PermissionDenied,
            Self::Issue(_) => Code::FailedPrecondition,
        };
        Status::new(code, chain(self).to_string())
    }
}

/// Counts of the calls so far, for the metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Certificates issued to callers.
    pub issued: AtomicU64,
    /// Calls refused.
    pub refused: AtomicU64,
}

/// What the service decides with.
pub struct Service {
    authority: Authority,
    attestor: Attestor,
    policy: Policy,
    counters: Arc<Counters>,
}

impl Service {
    /// Puts the parts together.
    pub fn new(authority: Authority, attestor: Attestor, policy: Policy, counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self { authority, attestor, policy, counters })
    }

    fn create(&self, call: &Request<IstioCertificateRequest>) -> (Option<Caller>, Result<Issued, CallError>) {
        let now = OffsetDateTime::now_utc();
        let seconds = u64::try_from(now.unix_timestamp()).unwrap_or(0);
        match bearer(call).and_then(|token| self.attestor.attest(token, seconds)) {
            Ok(caller) => {
                let issued = self.issue(&caller, call.get_ref(), now);
                (Some(caller), issued)
            }
            Err(error) => (None, Err(error.into())),
        }
    }

    fn issue(
        &self,
        caller: &Caller,
        asked: &IstioCertificateRequest,
        now: OffsetDateTime,
    ) -> Result<Issued, CallError> {
        let grant = self.policy.decide(caller, asked.validity_duration)?;
        let key = issue::read_csr(&asked.csr)?;
        Ok(issue::issue(&self.authority, &key, &grant, now)?)
    }

    fn serving_key(&self, dns_names: &[String], now: OffsetDateTime) -> Result<CertifiedKey, ServeError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let id = self.policy.own_identity()?;
        let issued = issue::sign(&self.authority, &key, &id, dns_names, SERVING_LIFETIME, now)?;
        let issuer = CertificateDer::from_pem_slice(self.authority.issuer_pem.as_bytes());
        let issuer = issuer.map_err(|error| ServeError::Chain(error.to_string()))?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| ServeError::Chain(error.into()))?;
        tracing::info!(
            serial = issued.serial,
            identity = id.as_str(),
            not_after = issue::utc(issued.not_after),
            "serving with a new certificate of our own"
        );
        Ok(CertifiedKey::from_der(vec![issued.der, issuer], key, &identity::provider())?)
    }
}

fn bearer(call: &Request<IstioCertificateRequest>) -> Result<&str, TokenError> {
    let header = call.metadata().get("authorization").ok_or(TokenError::Missing)?;
    let (scheme, token) = header.to_str().ok().and_then(|header| header.split_once(' ')).ok_or(TokenError::Missing)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(TokenError::Missing) }
}

/// The gRPC face of a [`Service`].
struct Endpoint(Arc<Service>);

#[tonic::async_trait]
impl IstioCertificateService for Endpoint {
    async fn create_certificate(
        &self,
        call: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let source = call.extensions().get::<Source>().map(|source| source.0.to_string()).unwrap_or_default();
        let (caller, outcome) = self.0.create(&call);
        let (namespace, service_account, pod, pod_uid) = match &caller {
            Some(caller) => {
                (&*caller.namespace, &*caller.service_account, caller.pod.as_deref(), caller.pod_uid.as_deref())
            }
            None => ("", "", None, None),
        };
        match outcome {
            Ok(issued) => {
                self.0.counters.issued.fetch_add(1, Ordering::Relaxed);
                tracing::info!(
                    serial = issued.serial,
                    not_after = issue::utc(issued.not_after),
                    namespace,
                    service_account,
                    pod,
                    pod_uid,
                    source,
                    "certificate issued"
                );
                Ok(Response::new(IstioCertificateResponse { cert_chain: issued.chain.into() }))
            }
            Err(error) => {
                self.0.counters.refused.fetch_add(1, Ordering::Relaxed);
                let reason = chain(&error).to_string();
                tracing::warn!(reason, namespace, service_account, pod, pod_uid, source, "certificate refused");
                Err(error.status())
            }
        }
    }
}

/// Serves until `stop` is done, then lets calls in progress finish.
///
/// # Errors
/// When the first serving certificate cannot be made, or gRPC fails as a whole.
///
/// # Cancellation
/// Dropping the future closes the listener and, with it, waits for nobody.
pub async fn serve(
    service: Arc<Service>,
    listener: TcpListener,
    dns_names: Vec<String>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let serving = Arc::new(Serving(ArcSwap::from_pointee(service.serving_key(&dns_names, OffsetDateTime::now_utc())?)));
    let mut config = rustls::ServerConfig::builder_with_provider(identity::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(serving.clone());
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    let (sender, connections) = mpsc::channel(16);
    let accept = accept(listener, TlsAcceptor::from(Arc::new(config)), sender);
    let renew = renew(serving, service.clone(), dns_names);
    let grpc = IstioCertificateServiceServer::new(Endpoint(service)).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let server = tonic::transport::Server::builder()
        .timeout(CALL_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .max_connection_age(CONNECTION_AGE_MAX)
        .max_connection_age_grace(CALL_TIMEOUT)
        .add_service(grpc)
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop);
    tokio::select! {
        ended = server => Ok(ended?),
        () = accept => Ok(()),
        () = renew => Ok(()),
    }
}

/// Replaces the serving certificate at two thirds of its life, for ever.
async fn renew(serving: Arc<Serving>, service: Arc<Service>, dns_names: Vec<String>) {
    let mut wait = SERVING_LIFETIME * 2 / 3;
    loop {
        tokio::time::sleep(wait).await;
        wait = match service.serving_key(&dns_names, OffsetDateTime::now_utc()) {
            Ok(key) => {
                serving.0.store(Arc::new(key));
                SERVING_LIFETIME * 2 / 3
            }
            Err(error) => {
                tracing::error!(reason = %chain(&error), "serving certificate not renewed");
                RETRY * 60
            }
        };
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, connections: mpsc::Sender<io::Result<Connection>>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // The semaphore is never closed; if it were, there would be nothing left to accept.
    while let Ok(permit) = permits.clone().acquire_owned().await {
        let (socket, source) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(reason = %error, "cannot accept");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let (tls, connections) = (tls.clone(), connections.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE_TIMEOUT, tls.accept(socket)).await {
                Ok(Ok(stream)) => {
                    // The server is gone: nobody is left to serve this connection.
                    let _ = connections.send(Ok(Connection { stream, source, _permit: permit })).await;
                }
                Ok(Err(error)) => tracing::debug!(%source, reason = %error, "handshake failed"),
                Err(_) => tracing::debug!(%source, "handshake timed out"),
            }
        });
    }
}

/// The serving certificate of the moment.
#[derive(Debug)]
struct Serving(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// One of the bounded number of connections.
struct Connection {
    stream: TlsStream<TcpStream>,
    source: SocketAddr,
    _permit: OwnedSemaphorePermit,
}

/// Where a call came from.
#[derive(Clone, Copy, Debug)]
struct Source(SocketAddr);

impl Connected for Connection {
    type ConnectInfo = Source;

    fn connect_info(&self) -> Source {
        Source(self.source)
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
