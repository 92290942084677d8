//! HTTP/2 connections to servers, each shared by many requests.
//!
//! The endpoint is chosen for each request (`balance`); a connection to it is shared up to the streams that the server
//! allows, then another is made. A connection that nobody uses is closed by [`Servers::sweep`]. What is kept belongs to
//! one worker (outbound) or to one client's connection (inbound).

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use identity::{Denial, DenyList, SpiffeId};
use tokio::sync::Notify;

use super::{
    HEADER_LIST_BYTES_MAX, SEND_BUFFER_MAX, STREAM_WINDOW, STREAMS_MAX,
    gather::{Gather, Turn},
};
use crate::{
    account::Upstream,
    balance::InFlight,
    connect::{ATTEMPTS_MAX, Connected, Connector, Target, service_of},
    error::ConnectionError,
};

/// Connections to one endpoint at most; beyond, requests wait for a stream.
const CONNECTIONS_MAX: usize = 8;
/// How long a connection without requests is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// The connections of one worker, or of one client.
#[derive(Debug, Default)]
pub struct Servers {
    by_address: RefCell<HashMap<SocketAddr, Rc<Endpoint>>>,
}

/// The connections to one endpoint; the lock is held while another one is made, so that a burst does not make many.
#[derive(Debug, Default)]
struct Endpoint {
    connections: RefCell<Vec<Rc<Server>>>,
    making: tokio::sync::Mutex<()>,
    /// How often making one failed, and why the last time.
    failures: Cell<u64>,
    failure: RefCell<Option<Arc<ConnectionError>>>,
}

#[derive(Debug)]
struct Server {
    send: SendRequest<Bytes>,
    upstream: Rc<Upstream>,
    streams: Cell<usize>,
    used: Cell<Instant>,
    ended: Cell<bool>,
    denied: RefCell<Option<(SpiffeId, Denial)>>,
    cut: Rc<Notify>,
    turn: Turn,
}

/// One stream's right to a connection; gives it back when dropped.
#[derive(Debug)]
pub struct Lease {
    server: Rc<Server>,
    /// Takes one request.
    pub send: SendRequest<Bytes>,
    in_flight: Option<InFlight>,
}

impl Lease {
    /// The server's side.
    pub fn upstream(&self) -> &Rc<Upstream> {
        &self.server.upstream
    }

    /// Why a request failed with `error`; unless that was about its stream alone, the connection takes no other.
    pub fn gone(&self, error: h2::Error) -> ConnectionError {
        if !error.is_reset() {
            self.server.ended.set(true);
        }
        if let Some(denied) = self.denied() {
            denied
        } else if self.server.turn.refused_by_peer() {
            ConnectionError::RefusedByPeer
        } else {
            ConnectionError::ServerHttp2(error)
        }
    }
}

impl Lease {
    /// That the server was denied while the request was on its way, if it was.
    pub fn denied(&self) -> Option<ConnectionError> {
        self.server.denied.borrow().clone().map(|(id, denial)| ConnectionError::Denied(id, denial))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.server.streams.set(self.server.streams.get() - 1);
        self.server.used.set(Instant::now());
    }
}

impl Servers {
    /// A connection to the target that takes one more request.
    ///
    /// # Errors
    /// Those of the last endpoint tried, or that there is none.
    ///
    /// # Cancellation
    /// A connection half made is closed.
    pub async fn lease(&self, connector: &Connector, target: &Target) -> Result<Lease, ConnectionError> {
        let destination = match target {
            Target::Address(address, ..) => {
                let make = || connector.open(target, identity::ALPN_H2);
                return self.endpoint(*address).lease(None, make).await;
            }
            Target::Discovered(discovered) => discovered.now(),
        };
        let mut tried = Vec::new();
        let mut last = ConnectionError::NoEndpoint(service_of(&destination));
        while tried.len() < ATTEMPTS_MAX {
            let Some((endpoint, in_flight)) = connector.pick(&destination, &tried) else { break };
            let make = || connector.reach(&endpoint, identity::ALPN_H2);
            let expected = endpoint.identity.as_ref();
            match self.endpoint(endpoint.address).lease(expected, make).await {
                Ok(mut lease) => {
                    lease.in_flight = Some(in_flight);
                    return Ok(lease);
                }
                Err(error) => {
                    tried.push(endpoint.address);
                    last = error;
                }
            }
        }
        Err(last)
    }

    fn endpoint(&self, address: SocketAddr) -> Rc<Endpoint> {
        Rc::clone(self.by_address.borrow_mut().entry(address).or_default())
    }

    /// Closes what ended or was not used for a while.
    pub fn sweep(&self, now: Instant) {
        self.by_address.borrow_mut().retain(|_, endpoint| {
            endpoint.connections.borrow_mut().retain(|server| {
                let idle = now.saturating_duration_since(server.used.get());
                server.streams.get() > 0 || !server.ended.get() && idle < IDLE_TIMEOUT
            });
            Rc::strong_count(endpoint) > 1 || !endpoint.connections.borrow().is_empty()
        });
    }

    /// Cuts connections to servers that are denied, with all that is in flight on them.
    pub fn deny(&self, denied: &DenyList) {
        for endpoint in self.by_address.borrow().values() {
            for server in endpoint.connections.borrow().iter() {
                if let Some(denial) = server.upstream.denial(denied) {
                    *server.denied.borrow_mut() = Some(denial);
                    server.ended.set(true);
                    server.cut.notify_one();
                }
            }
        }
    }

    /// Takes no further request on any of them; those in flight go on.
    pub fn close_idle(&self) {
        self.by_address.borrow_mut().clear();
    }
}

impl Endpoint {
    async fn lease(
        &self,
        expected: Option<&SpiffeId>,
        make: impl AsyncFnOnce() -> Result<Connected, ConnectionError>,
    ) -> Result<Lease, ConnectionError> {
        if let Some(lease) = self.kept(expected, false).await {
            return Ok(lease);
        }
        let failures = self.failures.get();
        let making = self.making.lock().await;
        // Who waited while an attempt failed shares its end: one after the other, the last would wait for all.
        if self.failures.get() != failures
            && let Some(failure) = &*self.failure.borrow()
        {
            return Err(ConnectionError::Shared(Arc::clone(failure)));
        }
        // Another request may have made one while we waited.
        if let Some(lease) = self.kept(expected, false).await {
            return Ok(lease);
        }
        if self.connections.borrow().len() >= CONNECTIONS_MAX {
            drop(making);
            if let Some(lease) = self.kept(expected, true).await {
                return Ok(lease);
            }
        }
        let made = async { start(make().await?).await }.await;
        let server = made.map_err(|error| self.failed(error))?;
        self.connections.borrow_mut().push(Rc::clone(&server));
        server.lease().await
    }

    fn failed(&self, error: ConnectionError) -> ConnectionError {
        let failure = Arc::new(error);
        self.failures.set(self.failures.get() + 1);
        *self.failure.borrow_mut() = Some(Arc::clone(&failure));
        ConnectionError::Shared(failure)
    }

    /// A stream of a connection that is there: one with room, or, when `full` ones may be taken, the least used.
    async fn kept(&self, expected: Option<&SpiffeId>, full: bool) -> Option<Lease> {
        loop {
            let server = self.least_used(expected)?;
            if !full && server.streams.get() >= server.send.current_max_send_streams() {
                return None;
            }
            // One that ended meanwhile is out of the list now.
            if let Ok(lease) = server.lease().await {
                return Some(lease);
            }
        }
    }

    fn least_used(&self, expected: Option<&SpiffeId>) -> Option<Rc<Server>> {
        let mut connections = self.connections.borrow_mut();
        // Who is behind an address may change; a connection proves only who was there.
        let proven = |server: &Server| server.upstream.identity.as_ref().map(|(id, _)| id) == expected;
        connections.retain(|server| !server.ended.get() && proven(server));
        connections.iter().min_by_key(|server| server.streams.get()).map(Rc::clone)
    }
}

impl Server {
    async fn lease(self: Rc<Self>) -> Result<Lease, ConnectionError> {
        self.streams.set(self.streams.get() + 1);
        let mut lease = Lease { send: self.send.clone(), server: self, in_flight: None };
        // An error says that the connection ended, or that the server takes no more on it.
        poll_fn(|cx| lease.send.poll_ready(cx)).await.map_err(|error| lease.gone(error))?;
        Ok(lease)
    }
}

/// Starts HTTP/2 on a fresh connection, and the task that drives it until the last handle is gone.
async fn start(connected: Connected) -> Result<Rc<Server>, ConnectionError> {
    let Connected { stream, upstream, .. } = connected;
    // Its connection window has room for the windows of all streams: who reads slowly holds up nobody else. At most 16 MB
    // wait here for all clients of the connection.
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAMS_MAX * STREAM_WINDOW)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_send_buffer_size(SEND_BUFFER_MAX);
    if upstream.tls.is_some() {
        // The proxy at the other end allows as many as we do; others say so with their first frame.
        builder.initial_max_send_streams(STREAMS_MAX as usize);
    }
    let (stream, turn) = Gather::new(stream);
    let (send, mut connection) = builder.handshake(stream).await.map_err(ConnectionError::ServerHttp2)?;
    let (streams, used, ended) = (Cell::new(0), Cell::new(Instant::now()), Cell::new(false));
    let (denied, cut) = (RefCell::default(), Rc::<Notify>::default());
    let server =
        Rc::new(Server { send, upstream, streams, used, ended, denied, cut: Rc::clone(&cut), turn: turn.clone() });
    let driven = Rc::downgrade(&server);
    tokio::task::spawn_local(async move {
        let driven_to_its_end = poll_fn(|cx| {
            turn.begin();
            Pin::new(&mut connection).poll(cx)
        });
        // Every stream of the connection learns of its end by itself.
        tokio::select! {
            _ended = driven_to_its_end => {}
            () = cut.notified() => {}
        }
        if let Some(server) = driven.upgrade() {
            server.ended.set(true);
        }
    });
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[tokio::test]
    async fn who_waits_for_an_attempt_shares_its_failure() {
        let endpoint = Rc::new(Endpoint::default());
        let began = Instant::now();
        let one = |endpoint: Rc<Endpoint>| async move {
            let make = async || {
                tokio::time::sleep(Duration::from_millis(200)).await;
                Err(ConnectionError::ConnectTimeout(([10, 0, 0, 1], 1).into()))
            };
            assert!(endpoint.lease(None, make).await.is_err());
            began.elapsed()
        };
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let tasks: Vec<_> = (0..10).map(|_| tokio::task::spawn_local(one(Rc::clone(&endpoint)))).collect();
                for task in tasks {
                    task.await.unwrap();
                }
            })
            .await;
        assert!(began.elapsed() < Duration::from_millis(600), "{:?}", began.elapsed());
    }
}
