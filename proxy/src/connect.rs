//! Steps 4 and 5 towards the server: dialling, TLS, and HTTP/1 connections kept for the next request.
//!
//! A connection to an endpoint that could not be made moves to another endpoint: nothing has been sent yet.
//! Pools are per worker, bounded per endpoint, and swept; idle connections hold no task.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use identity::{DenyList, Role, SpiffeId};
use record::{Decision, EstablishedBy};
use rustls_pki_types::UnixTime;
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::{
    account::{TlsFacts, Upstream},
    balance::{Balancer, InFlight},
    discover::{Destination, Discovery, Endpoint, FileDiscovery},
    error::ConnectionError,
    stream::{Prefixed, Stream},
};

/// Idle HTTP/1 connections kept per endpoint and worker.
const IDLE_MAX: usize = 64;
/// How long one is kept: well below the keep-alive time that the proxy at its other end allows.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a peer may take nothing of what waits for it (RFC 5482; the kernel ends the connection, also when the peer
/// still answers that it has no room).
const STALL_TIMEOUT: Duration = Duration::from_secs(300);
/// Endpoints that are tried for one connection.
pub const ATTEMPTS_MAX: usize = 3;
/// TLS settings kept per worker, one for each identity and protocol.
const TLS_CONFIGS_MAX: usize = 4096;

/// Where a connection goes.
#[derive(Debug, Clone)]
pub enum Target {
    /// To an endpoint that discovery names.
    Discovered(Discovered),
    /// To this address and no other, in clear: our own workload, or somewhere outside the mesh.
    Address(SocketAddr, Decision, &'static str),
}

/// A destination as discovery knew it when the client dialled, and the way to what it knows now.
#[derive(Debug, Clone)]
pub struct Discovered {
    /// Where the client wanted to go.
    pub original: SocketAddr,
    /// What was there.
    pub destination: Destination,
    /// Who knows what is there now.
    pub discovery: Arc<FileDiscovery>,
}

impl Discovered {
    /// What is there now: a client's connection may outlive the endpoints that it began with. What was known last, if
    /// discovery knows nothing of it any more.
    pub fn now(&self) -> Destination {
        self.discovery.snapshot().lookup(self.original).unwrap_or_else(|| self.destination.clone())
    }
}

/// A connection to a server, ready for use.
#[derive(Debug)]
pub struct Connected {
    /// The stream.
    pub stream: Stream,
    /// What we know of the other end.
    pub upstream: Rc<Upstream>,
    /// Bytes that came early.
    pub buffer: Vec<u8>,
    /// It has served a request before.
    pub reused: bool,
    /// Ends the endpoint's load when dropped.
    pub in_flight: Option<InFlight>,
}

#[derive(Debug)]
struct Idle {
    connected: Connected,
    since: Instant,
}

/// One worker's way to servers.
pub struct Connector {
    store: Arc<identity::Store>,
    connect_timeout: Duration,
    handshake_timeout: Duration,
    balancer: Rc<Balancer>,
    idle: RefCell<HashMap<SocketAddr, Vec<Idle>>>,
    tls: RefCell<HashMap<(SpiffeId, &'static [u8]), TlsConnector>>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("balancer", &self.balancer).finish_non_exhaustive()
    }
}

impl Connector {
    /// A connector that proves itself with what `store` holds.
    pub fn new(store: Arc<identity::Store>, connect_timeout: Duration, handshake_timeout: Duration) -> Self {
        let (balancer, idle, tls) = Default::default();
        Self { store, connect_timeout, handshake_timeout, balancer, idle, tls }
    }

    /// A kept connection to `target`, or a new one. `alpn` is the protocol between proxies.
    ///
    /// # Errors
    /// Those of the last endpoint tried, or that there is none.
    ///
    /// # Cancellation
    /// A connection half made is closed.
    pub async fn take_http1(&self, target: &Target, fresh: bool) -> Result<Connected, ConnectionError> {
        self.to(target, identity::ALPN_HTTP1, !fresh).await
    }

    /// A new connection to `target`. Errors and cancellation as for [`Self::take_http1`].
    ///
    /// # Errors
    /// As for [`Self::take_http1`].
    pub async fn open(&self, target: &Target, alpn: &'static [u8]) -> Result<Connected, ConnectionError> {
        self.to(target, alpn, false).await
    }

    /// Keeps a connection for the next request.
    pub fn keep(&self, mut connected: Connected) {
        connected.in_flight = None;
        connected.reused = true;
        if !connected.buffer.is_empty() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let kept = idle.entry(connected.upstream.address).or_default();
        if kept.len() < IDLE_MAX {
            kept.push(Idle { connected, since: Instant::now() });
        } else {
            connected.stream.end();
        }
    }

    /// Closes what was kept for too long or has ended meanwhile.
    pub fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain(|_, kept| {
            kept.retain_mut(|idle| {
                let keep = now.saturating_duration_since(idle.since) < IDLE_TIMEOUT && is_open(&mut idle.connected);
                if !keep {
                    idle.connected.stream.end();
                }
                keep
            });
            !kept.is_empty()
        });
    }

    /// Closes what is kept with a server that is denied.
    pub fn deny(&self, denied: &DenyList) {
        self.idle.borrow_mut().retain(|_, kept| {
            kept.retain(|idle| idle.connected.upstream.denial(denied).is_none());
            !kept.is_empty()
        });
    }

    /// Closes everything that is kept.
    pub fn close_idle(&self) {
        for mut idle in self.idle.borrow_mut().drain().flat_map(|(_, kept)| kept) {
            idle.connected.stream.end();
        }
    }

    async fn to(&self, target: &Target, alpn: &'static [u8], reuse: bool) -> Result<Connected, ConnectionError> {
        let destination = match target {
            Target::Address(address, decision, reason) => {
                return Box::pin(self.plain(*address, None, None, *decision, reason)).await;
            }
            Target::Discovered(discovered) => discovered.now(),
        };
        let mut tried = Vec::new();
        let mut last = None;
        while tried.len() < ATTEMPTS_MAX {
            let Some((endpoint, in_flight)) = self.pick(&destination, &tried) else { break };
            if reuse && let Some(mut connected) = self.kept(&endpoint) {
                connected.in_flight = Some(in_flight);
                return Ok(connected);
            }
            match self.reach(&endpoint, alpn).await {
                Ok(mut connected) => {
                    connected.in_flight = Some(in_flight);
                    return Ok(connected);
                }
                Err(error) => {
                    tried.push(endpoint.address);
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| ConnectionError::NoEndpoint(service_of(&destination))))
    }

    /// The endpoint that takes the next connection or request, and its use until dropped; `None` when all were tried.
    pub fn pick(&self, destination: &Destination, tried: &[SocketAddr]) -> Option<(Arc<Endpoint>, InFlight)> {
        self.balancer.pick(&destination.endpoints, tried, Instant::now())
    }

    /// A new connection to this endpoint; the balancer hears how it went.
    ///
    /// # Errors
    /// Why it could not be made.
    ///
    /// # Cancellation
    /// A connection half made is closed.
    pub async fn reach(&self, endpoint: &Endpoint, alpn: &'static [u8]) -> Result<Connected, ConnectionError> {
        // Apart, because most connections and requests go on without it: they would all be as large as a handshake.
        let result = Box::pin(self.dial(endpoint, alpn)).await;
        match &result {
            Ok(_) => self.balancer.reached(endpoint.address),
            Err(_) => self.balancer.failed(endpoint.address, Instant::now()),
        }
        result
    }

    fn kept(&self, endpoint: &Endpoint) -> Option<Connected> {
        let mut idle = self.idle.borrow_mut();
        let kept = idle.get_mut(&endpoint.address)?;
        while let Some(Idle { mut connected, .. }) = kept.pop() {
            let is_same = connected.upstream.identity.as_ref().map(|(id, _)| id) == endpoint.identity.as_ref();
            if is_same && is_open(&mut connected) {
                return Some(connected);
            }
        }
        None
    }

    async fn dial(&self, endpoint: &Endpoint, alpn: &'static [u8]) -> Result<Connected, ConnectionError> {
        let workload = endpoint.workload.clone();
        let Some(identity) = &endpoint.identity else {
            return self
                .plain(endpoint.address, workload, None, Decision::Passthrough, "the endpoint is not in the mesh")
                .await;
        };
        let started = Instant::now();
        let socket = self.tcp(endpoint.address).await?;
        let connect = started.elapsed();
        if is_own_pod(&socket) {
            let identity = Some((identity.clone(), EstablishedBy::Discovery));
            return Ok(plain(
                socket,
                endpoint.address,
                workload,
                identity,
                Decision::Local,
                "the endpoint is this pod",
                connect,
            ));
        }
        self.store.usable(UnixTime::now()).map_err(ConnectionError::CredentialsUnavailable)?;
        let before = self.store.bundle();
        let name = rustls_pki_types::ServerName::from(endpoint.address.ip());
        let handshake = self.tls(identity, alpn).connect(name, Prefixed::new(Vec::new(), socket));
        let tls = match timeout(self.handshake_timeout, handshake).await {
            Ok(done) => done.map_err(|error| ConnectionError::handshake(endpoint.address, error))?,
            Err(_) => return Err(ConnectionError::HandshakeTimeout(endpoint.address)),
        };
        if tls.get_ref().1.alpn_protocol() != Some(alpn) {
            return Err(ConnectionError::Alpn(endpoint.address, String::from_utf8_lossy(alpn).into_owned()));
        }
        let leaf = identity::peer_leaf(tls.get_ref().1, &self.store, before.as_ref(), Role::Server)
            .map_err(|reason| ConnectionError::Peer(endpoint.address, reason))?;
        let upstream = Upstream {
            address: endpoint.address,
            workload,
            identity: Some((identity.clone(), EstablishedBy::MutualTls)),
            tls: Some(tls_facts(tls.get_ref().1)),
            leaf: Some(leaf),
            decision: Decision::Meshed,
            reason: "the endpoint proved the identity that discovery names",
            connect,
            handshake: Some(started.elapsed() - connect),
        };
        // The list may have grown while the handshake went on; what is noted of a connection is cut by later ones.
        if let Some((id, denial)) = upstream.denial(&self.store.denied()) {
            return Err(ConnectionError::Denied(id, denial));
        }
        Ok(Connected {
            stream: Stream::TlsClient(Box::new(tls)),
            upstream: Rc::new(upstream),
            buffer: Vec::new(),
            reused: false,
            in_flight: None,
        })
    }

    async fn plain(
        &self,
        address: SocketAddr,
        workload: Option<Arc<str>>,
        identity: Option<(SpiffeId, EstablishedBy)>,
        decision: Decision,
        reason: &'static str,
    ) -> Result<Connected, ConnectionError> {
        let started = Instant::now();
        let socket = self.tcp(address).await?;
        Ok(plain(socket, address, workload, identity, decision, reason, started.elapsed()))
    }

    async fn tcp(&self, address: SocketAddr) -> Result<TcpStream, ConnectionError> {
        let socket = match timeout(self.connect_timeout, TcpStream::connect(address)).await {
            Ok(connected) => connected.map_err(|error| ConnectionError::Connect(address, error))?,
            Err(_) => return Err(ConnectionError::ConnectTimeout(address)),
        };
        tune(&socket);
        Ok(socket)
    }

    fn tls(&self, identity: &SpiffeId, alpn: &'static [u8]) -> TlsConnector {
        let mut configs = self.tls.borrow_mut();
        if configs.len() >= TLS_CONFIGS_MAX {
            configs.clear();
        }
        let config = || TlsConnector::from(Arc::new(identity::client_config(&self.store, identity, alpn)));
        configs.entry((identity.clone(), alpn)).or_insert_with(config).clone()
    }
}

/// How an error names the destination.
pub fn service_of(destination: &Destination) -> String {
    destination.service.as_deref().unwrap_or("the destination").to_owned()
}

fn plain(
    socket: TcpStream,
    address: SocketAddr,
    workload: Option<Arc<str>>,
    identity: Option<(SpiffeId, EstablishedBy)>,
    decision: Decision,
    reason: &'static str,
    connect: Duration,
) -> Connected {
    let upstream =
        Upstream { address, workload, identity, tls: None, leaf: None, decision, reason, connect, handshake: None };
    Connected {
        stream: Stream::Plain(Prefixed::new(Vec::new(), socket)),
        upstream: Rc::new(upstream),
        buffer: Vec::new(),
        reused: false,
        in_flight: None,
    }
}

/// A pod that calls itself through its Service: the packets never leave it and never pass a redirect.
fn is_own_pod(socket: &TcpStream) -> bool {
    matches!((socket.local_addr(), socket.peer_addr()), (Ok(local), Ok(peer)) if local.ip() == peer.ip())
}

/// True while the other end of an unused connection has neither ended nor said anything.
fn is_open(connected: &mut Connected) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    matches!(connected.stream.poll_read_with(&mut context, |_, _| ()), Poll::Pending)
}

/// No delay for small writes; a peer that vanished, or takes nothing, is noticed within five minutes. What a listener is told holds for the
/// connections that it accepts, too (tcp(7): options are inherited).
pub fn tune<'a>(socket: impl Into<SockRef<'a>>) {
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);
    let socket = socket.into();
    // A socket that refuses an option is about to fail by itself; its reader reports that.
    let _delay = socket.set_tcp_nodelay(true);
    let _keepalive = socket.set_tcp_keepalive(&keepalive);
    let _stall = socket.set_tcp_user_timeout(Some(STALL_TIMEOUT));
}

/// What a session agreed on, under the names of the IANA registries.
pub fn tls_facts(session: &rustls::CommonState) -> TlsFacts {
    TlsFacts {
        version: match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "1.3",
            Some(rustls::ProtocolVersion::TLSv1_2) => "1.2",
            Some(_) | None => "unknown",
        },
        cipher: session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).map_or("unknown", |name| {
            // rustls names the suites of TLS 1.3 after their version.
            match name {
                "TLS13_AES_128_GCM_SHA256" => "TLS_AES_128_GCM_SHA256",
                "TLS13_AES_256_GCM_SHA384" => "TLS_AES_256_GCM_SHA384",
                "TLS13_CHACHA20_POLY1305_SHA256" => "TLS_CHACHA20_POLY1305_SHA256",
                other => other,
            }
        }),
        group: session.negotiated_key_exchange_group().and_then(|group| group.name().as_str()).unwrap_or("unknown"),
        alpn: session.alpn_protocol().map(|alpn| String::from_utf8_lossy(alpn).into_owned()).unwrap_or_default(),
    }
}
