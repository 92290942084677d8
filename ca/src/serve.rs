//! The authority on the network: Istio's certificate service over HTTP/2, our own trust bundle stream, both over TLS 1.3 on
//! one port; the ALPN name says which.
//!
//! A connection begins as a caller's: one of a bounded number, cut when nobody proved on it in time who is calling, shut
//! down politely when it is old. Once it follows the trust bundle it is one of another bounded number, gives its first
//! place back, and stays for as long as it is alive. So neither kind can take the other's places.
//!
//! Promises: what a connection costs is bounded: handshake, streams, header and message size, time for a call; the
//! serving certificate comes from the authority itself and is renewed before it ends. Leaves to others: who asks, what
//! they may have, and what is sent (`service`, `follow`).

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use api::istio_ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use api::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};
use arc_swap::ArcSwapOption;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use identity::SpiffeIdError;
use rcgen::KeyPair;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use telemetry::chain;
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::Service as _;

use crate::follow;
use crate::gather::Gather;
use crate::issue::{self, IssueError};
use crate::pki::{self, PkiError};
use crate::policy;
use crate::refusal::CallError;
use crate::service::Service;
use crate::trust::Trust;

/// A proxy holds such a connection for one call; a restart of a whole node brings some hundreds at once.
const CALLERS_MAX: usize = 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// By then somebody has proved who is calling, or the place is given to another.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// What a stop leaves to a caller who has not proved who is calling.
const STRANGER_PATIENCE: Duration = Duration::from_secs(1);
const CALLER_AGE_MAX: Duration = Duration::from_secs(300);
/// A proxy that went away without a word is noticed within the sum of both.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
const STREAMS_MAX: u32 = 8;
const MESSAGE_BYTES_MAX: usize = 64 << 10;
const HEADER_BYTES_MAX: u32 = 32 << 10;
/// What a client may send ahead, and what waits for one that does not read.
const WINDOW_BYTES: u32 = 64 << 10;
/// The serving certificate lives this long at most and is renewed at two thirds of it.
const SERVING_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked at, and how soon a failed accept is tried again.
const TICK: Duration = Duration::from_millis(500);
const CREATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// Why the authority does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The own identity does not fit.
    #[error("the authority's own identity is not a SPIFFE ID")]
    Identity(#[from] SpiffeIdError),
    /// The serving certificate could not be made.
    #[error("the serving certificate could not be issued")]
    Issue(#[from] IssueError),
    /// Its key could not be made, or its chain not be read.
    #[error("the serving certificate cannot be used")]
    Pki(#[from] PkiError),
    /// TLS does not take the certificate.
    #[error("TLS does not take the serving certificate")]
    Tls(#[from] rustls::Error),
    /// The key is none.
    #[error("the serving key cannot be used: {0}")]
    Key(&'static str),
}

/// Where those who follow find their places.
#[derive(Debug)]
pub(crate) struct Places {
    streams: Arc<Semaphore>,
    streams_max: u32,
}

impl Places {
    fn new(streams_max: usize) -> Arc<Self> {
        let streams_max = u32::try_from(streams_max).unwrap_or(u32::MAX);
        Arc::new(Self { streams: Arc::new(Semaphore::new(streams_max as usize)), streams_max })
    }

    /// One of them, for as long as the connection lives.
    ///
    /// # Errors
    /// When as many follow as may.
    pub(crate) fn take(&self) -> Result<OwnedSemaphorePermit, CallError> {
        let place = self.streams.clone().try_acquire_owned();
        place.map_err(|_| CallError::StreamLimit(self.streams_max as usize))
    }

    /// Waits until nobody follows any more; nobody must begin meanwhile.
    async fn all_given_back(&self) {
        // It is never closed.
        let _all = self.streams.acquire_many(self.streams_max).await;
    }
}

/// One connection of a caller.
#[derive(Debug)]
struct Connection {
    source: SocketAddr,
    admitted: AtomicBool,
}

impl Connection {
    /// Somebody has proved who is calling.
    fn admit(&self) {
        self.admitted.store(true, SeqCst);
    }

    /// Waits until it is time for this connection to go; `true` when it may finish what it does.
    async fn end(&self) -> bool {
        sleep(ADMISSION_TIMEOUT).await;
        if !self.admitted.load(SeqCst) {
            return false;
        }
        sleep(CALLER_AGE_MAX.saturating_sub(ADMISSION_TIMEOUT)).await;
        true
    }
}

/// The gRPC face of the certificate service.
struct Certificates(Arc<Service>);

/// Set once a call was read, so that one that never was is not lost from the journal.
#[derive(Clone, Debug, Default)]
struct Reached(Arc<AtomicBool>);

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        call: tonic::Request<IstioCertificateRequest>,
    ) -> Result<tonic::Response<IstioCertificateResponse>, tonic::Status> {
        let (metadata, extensions, asked) = call.into_parts();
        let connection = extensions.get::<Arc<Connection>>();
        let connection = connection.ok_or_else(|| tonic::Status::internal("a call without a connection"))?;
        if let Some(reached) = extensions.get::<Reached>() {
            reached.0.store(true, SeqCst);
        }
        let issued = self.0.create(&metadata, &asked, connection.source).await.map_err(|error| error.status())?;
        connection.admit();
        Ok(tonic::Response::new(IstioCertificateResponse { cert_chain: issued.chain }))
    }
}

/// Serves until `stop` is done, then lets calls in progress finish. While no serving certificate can be made, because an
/// issuer has ended, nobody can connect; that is tried again, and an operator can do something about it meanwhile.
///
/// # Errors
/// When TLS cannot be set up.
///
/// # Cancellation
/// Dropping the future closes the listener and every connection of a caller, and stops who follows.
pub async fn serve(
    service: Arc<Service>,
    listener: TcpListener,
    dns_names: Vec<String>,
    streams_max: usize,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let serving = Arc::new(Serving(ArcSwapOption::empty()));
    let mut shown = Shown::default();
    shown.renew(&serving, &service, &dns_names);
    let mut config = rustls::ServerConfig::builder_with_provider(identity::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(serving.clone());
    config.alpn_protocols = vec![b"h2".to_vec(), identity::ALPN_TRUST.to_vec()];
    config.send_tls13_tickets = 0;
    // For the streams of those who follow: see `sealed`.
    config.enable_secret_extraction = true;
    let (tls, places) = (Arc::new(config).into(), Places::new(streams_max));
    let accepting = Accepting { service: service.clone(), tls, places };
    let stopping = Stopping(service.trust.clone());
    let mut connections = JoinSet::new();
    tokio::select! {
        () = accepting.run(&listener, &mut connections) => {}
        () = shown.keep(&serving, &service, &dns_names) => {}
        () = tick(&service) => {}
        () = stop => {}
    }
    drop((listener, stopping));
    while connections.join_next().await.is_some() {}
    accepting.places.all_given_back().await;
    Ok(())
}

/// Stops who follows, when dropped.
struct Stopping(Arc<Trust>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Lets those who follow look at the time, for ever.
async fn tick(service: &Service) {
    loop {
        sleep(follow::TICK).await;
        service.trust.wake();
    }
}

/// Makes the serving certificate; when the next one is due comes with it.
fn serving_key(
    service: &Service,
    dns_names: &[String],
    now: OffsetDateTime,
) -> Result<(CertifiedKey, OffsetDateTime), ServeError> {
    let snapshot = service.trust.current();
    let authority = &snapshot.serving;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(PkiError::from)?;
    let id = policy::own_identity(&service.policy.trust_domain)?;
    // Under an issuer that signs no more for workloads: not beyond their last leaf.
    let issuer = snapshot.state.issuers.iter().find(|issuer| issuer.id == authority.id);
    let left = issuer.and_then(|issuer| issuer.leaves_end).map(|end| end.saturating_sub(now.unix_timestamp()));
    let left = left.map_or(SERVING_LIFETIME, |left| Duration::from_secs(u64::try_from(left).unwrap_or(0)));
    let issued = issue::sign(authority, &key, &id, dns_names, SERVING_LIFETIME.min(left), now)?;
    let above = authority.above.iter().map(|pem| pki::read_certificate("the serving chain", pem));
    // Everybody who calls has the root.
    let issuers = above.take(authority.above.len().saturating_sub(1).max(1));
    let chain = std::iter::once(Ok(issued.der)).chain(issuers).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(ServeError::Key)?;
    tracing::info!(
        serial = issued.serial,
        identity = id.as_str(),
        issuer = authority.id,
        not_after = issue::utc(issued.not_after),
        "serving with a new certificate of our own"
    );
    let renew_at = now + (issued.not_after - now) * 2 / 3;
    Ok((CertifiedKey::from_der(chain, key, &identity::provider())?, renew_at))
}

/// The serving certificate that is shown.
#[derive(Debug, Default)]
struct Shown {
    issuer: Option<u32>,
    renew_at: Option<OffsetDateTime>,
    /// Why there is none, so that it is said once.
    failure: Option<String>,
}

impl Shown {
    /// Replaces it at two thirds of its life and when another issuer is to be shown, for ever.
    async fn keep(&mut self, serving: &Serving, service: &Service, dns_names: &[String]) {
        loop {
            sleep(TICK).await;
            self.renew(serving, service, dns_names);
        }
    }

    fn renew(&mut self, serving: &Serving, service: &Service, dns_names: &[String]) {
        let (now, issuer) = (OffsetDateTime::now_utc(), service.trust.current().serving.id);
        if self.issuer == Some(issuer) && self.renew_at.is_some_and(|at| now < at) {
            return;
        }
        match serving_key(service, dns_names, now) {
            Ok((key, renew_at)) => {
                serving.0.store(Some(Arc::new(key)));
                *self = Self { issuer: Some(issuer), renew_at: Some(renew_at), failure: None };
            }
            Err(error) => {
                let reason = chain(&error).to_string();
                if self.failure.is_none() {
                    tracing::error!(reason, "no new serving certificate; nobody new may be able to connect");
                }
                self.failure = Some(reason);
            }
        }
    }
}

/// What each new connection needs.
#[derive(Clone)]
struct Accepting {
    service: Arc<Service>,
    tls: TlsAcceptor,
    places: Arc<Places>,
}

impl Accepting {
    async fn run(&self, listener: &TcpListener, connections: &mut JoinSet<()>) {
        let callers = Arc::new(Semaphore::new(CALLERS_MAX));
        // The semaphore is never closed; if it were, there would be nothing left to accept.
        while let Ok(place) = callers.clone().acquire_owned().await {
            let accepted = loop {
                tokio::select! {
                    accepted = listener.accept() => break accepted,
                    // At once: until then its memory stays.
                    Some(_ended) = connections.join_next() => {}
                }
            };
            let (socket, source) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(reason = %error, "cannot accept");
                    sleep(TICK).await;
                    continue;
                }
            };
            // An answer is several frames: none of them waits until the one before was acknowledged.
            if let Err(error) = socket.set_nodelay(true) {
                tracing::debug!(%source, reason = %error, "the connection is gone already");
            }
            connections.spawn(self.clone().serve(socket, source, place));
        }
    }

    /// Serves a caller to its end, or makes a follower of it.
    async fn serve(self, socket: TcpStream, source: SocketAddr, _place: OwnedSemaphorePermit) {
        let Some(stream) = self.handshake(socket, source).await else { return };
        if stream.get_ref().1.alpn_protocol() == Some(identity::ALPN_TRUST) {
            if let Some(follower) = follow::begin(self.service, stream, &self.places, source).await {
                // A task of its own, no larger than what it keeps. Its place in `places` says when it is gone.
                tokio::spawn(follower.run());
            }
            return;
        }
        let connection = Arc::new(Connection { source, admitted: AtomicBool::new(false) });
        Box::pin(serve_connection(self.service, connection, *stream)).await;
    }

    /// Boxed is what comes of it: a thousand are at this at once, and each `await` would have its own place for it.
    async fn handshake(&self, socket: TcpStream, source: SocketAddr) -> Option<Box<TlsStream<TcpStream>>> {
        let handshake = tokio::select! {
            handshake = timeout(HANDSHAKE_TIMEOUT, self.tls.accept(socket)) => handshake,
            () = self.service.trust.stopped() => return None,
        };
        match handshake {
            Ok(Ok(stream)) => Some(Box::new(stream)),
            Ok(Err(error)) => {
                tracing::debug!(%source, reason = %error, "handshake failed");
                None
            }
            Err(_) => {
                tracing::debug!(%source, "handshake timed out");
                None
            }
        }
    }
}

async fn serve_connection(service: Arc<Service>, connection: Arc<Connection>, stream: TlsStream<TcpStream>) {
    let trust = service.trust.clone();
    let calls = Certificates(service.clone());
    let certificates = IstioCertificateServiceServer::new(calls).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let of_calls = connection.clone();
    let handler = hyper::service::service_fn(move |request| {
        let (service, connection, certificates) = (service.clone(), of_calls.clone(), certificates.clone());
        async move { Ok::<_, Infallible>(answer(service, connection, certificates, request).await) }
    });
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_send_buf_size(WINDOW_BYTES as usize);
    let stream = Gather::new(stream);
    let mut served = pin!(http.serve_connection(TokioIo::new(stream.clone()), handler));
    let politely = tokio::select! {
        () = poll_fn(|cx| stream.turn(cx, served.as_mut())) => return,
        politely = connection.end() => politely,
        () = trust.stopped() => true,
    };
    if politely {
        served.as_mut().graceful_shutdown();
        let is_known = connection.admitted.load(SeqCst);
        let patience = if is_known { CALL_TIMEOUT } else { STRANGER_PATIENCE };
        // Whether it ended or not, it is dropped now.
        let _ended = timeout(patience, poll_fn(|cx| stream.turn(cx, served.as_mut()))).await;
    }
}

async fn answer(
    service: Arc<Service>,
    connection: Arc<Connection>,
    mut certificates: IstioCertificateServiceServer<Certificates>,
    mut request: http::Request<Incoming>,
) -> http::Response<tonic::body::Body> {
    request.extensions_mut().insert(connection.clone());
    match request.uri().path() {
        CREATE => {
            let reached = Reached::default();
            request.extensions_mut().insert(reached.clone());
            let answered = timeout(CALL_TIMEOUT, certificates.call(request)).await;
            let unread = match answered {
                Ok(Ok(response)) if reached.0.load(SeqCst) => return response,
                Ok(Ok(response)) => match tonic::Status::from_header_map(response.headers()) {
                    Some(status) => {
                        service.refuse(None, connection.source, CallError::Call(status.message().to_owned()));
                        return response;
                    }
                    None => return response,
                },
                Ok(Err(never)) => match never {},
                Err(_) => CallError::Timeout,
            };
            service.refuse(None, connection.source, unread).status().into_http()
        }
        _ => tonic::Status::unimplemented("no such method").into_http(),
    }
}

/// The serving certificate of the moment.
#[derive(Debug)]
struct Serving(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use tokio::time::Instant as Clock;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_its_time_has_come_and_not_before() {
        let connection = || Connection { source: ([127, 0, 0, 1], 5).into(), admitted: AtomicBool::new(false) };
        let (start, nameless) = (Clock::now(), connection());
        assert!(!nameless.end().await, "cut");
        assert_eq!(start.elapsed(), ADMISSION_TIMEOUT);

        let (start, caller) = (Clock::now(), connection());
        caller.admit();
        assert!(caller.end().await, "politely");
        assert_eq!(start.elapsed(), CALLER_AGE_MAX);
    }

    #[test]
    fn as_many_follow_as_may() {
        let places = Places::new(1);
        let place = places.take().unwrap();
        assert!(matches!(places.take(), Err(CallError::StreamLimit(1))));
        drop(place);
        assert!(places.take().is_ok());
    }

    #[test]
    fn the_end_waits_for_those_who_follow() {
        let (places, mut context) = (Places::new(2), Context::from_waker(Waker::noop()));
        let place = places.take().unwrap();
        let mut gone = pin!(places.all_given_back());
        assert!(gone.as_mut().poll(&mut context).is_pending());
        drop(place);
        assert!(gone.as_mut().poll(&mut context).is_ready());
    }
}
