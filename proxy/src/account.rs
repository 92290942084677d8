//! Step 7: what is known of a connection or a request so far, which becomes exactly one record.
//!
//! Every step notes here what it learned. `finish` writes the record; an account that is dropped without it was cut, and
//! says so. The record's fields and names are those of the crate `record`.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use identity::{Denial, DenyList, Leaf, SpiffeId};
use record::{
    Captured, ClosedBy, Code, Connection, Context, ContextAttributes, Decision, DetectedBy, Direction, EstablishedBy,
    HttpVersion, Protocol, Request, State, Tls, Uid,
};

use crate::{
    capture::{Capture, Fields},
    error::ConnectionError,
    forward::head::TraceParent,
    journal::{Journal, unix_nanos},
};

/// Which end of a hop something comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The side that dialled.
    Client,
    /// The side that was dialled.
    Server,
}

/// What a TLS session agreed on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFacts {
    /// As in `tls.protocol.version`.
    pub version: &'static str,
    /// The cipher suite's IANA name.
    pub cipher: &'static str,
    /// The key exchange group's IANA name.
    pub group: &'static str,
    /// The application protocol.
    pub alpn: String,
}

/// What we know of the server's side of a connection; shared by all requests that use it.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// The endpoint that was dialled.
    pub address: SocketAddr,
    /// The workload behind it.
    pub workload: Option<Arc<str>>,
    /// Its identity, and how we know.
    pub identity: Option<(SpiffeId, EstablishedBy)>,
    /// TLS towards it.
    pub tls: Option<TlsFacts>,
    /// The certificate that it proved itself with.
    pub leaf: Option<Leaf>,
    /// Why traffic may go there.
    pub decision: Decision,
    /// The rule that decided.
    pub reason: &'static str,
    /// How long TCP took.
    pub connect: Duration,
    /// How long TLS took.
    pub handshake: Option<Duration>,
}

impl Upstream {
    /// Whether the context of records is the same for both: so it is for connections to one endpoint, as long as neither
    /// side changes.
    fn shows_as(&self, other: &Self) -> bool {
        let all = |upstream: &Self| (upstream.address, upstream.decision, upstream.reason);
        all(self) == all(other)
            && self.workload == other.workload
            && self.identity == other.identity
            && self.tls == other.tls
    }

    /// The entry of the deny list that it meets, with whom it named.
    pub fn denial(&self, denied: &DenyList) -> Option<(SpiffeId, Denial)> {
        denial(self.leaf.as_ref(), denied)
    }
}

fn denial(leaf: Option<&Leaf>, denied: &DenyList) -> Option<(SpiffeId, Denial)> {
    let leaf = leaf?;
    Some((leaf.id.clone(), denied.find(leaf)?))
}

/// What is known of a connection, filled in step by step.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Towards our workload, or away from it.
    pub direction: Direction,
    /// Who dialled.
    pub source: SocketAddr,
    /// Where it wanted to go.
    pub destination: SocketAddr,
    /// The service there.
    pub service: Option<Arc<str>>,
    /// The workload that dialled.
    pub client_workload: Option<Arc<str>>,
    /// The client's identity, and how we know.
    pub client_identity: Option<(SpiffeId, EstablishedBy)>,
    /// The workload that is dialled.
    pub server_workload: Option<Arc<str>>,
    /// The server's identity, and how we know.
    pub server_identity: Option<(SpiffeId, EstablishedBy)>,
    /// TLS with the client (inbound) or with the server (outbound).
    pub tls: Option<TlsFacts>,
    /// The name that the client of an application's own TLS asked for.
    pub server_name: Option<String>,
    /// What is spoken.
    pub protocol: Protocol,
    /// How we know.
    pub detected_by: DetectedBy,
    /// What was decided.
    pub decision: Decision,
    /// By which rule.
    pub reason: &'static str,
}

impl Facts {
    fn encode(&self, connection: Uid, upstream: Option<&Upstream>) -> ContextAttributes {
        let server_identity =
            upstream.and_then(|upstream| upstream.identity.as_ref()).or(self.server_identity.as_ref());
        let server_workload =
            upstream.and_then(|upstream| upstream.workload.as_deref()).or(self.server_workload.as_deref());
        let tls = self.tls.as_ref().or(upstream.and_then(|upstream| upstream.tls.as_ref()));
        // Outbound, what was decided about the endpoint counts, once there is one.
        let decided_here = self.direction == Direction::Inbound;
        let (decision, decision_reason) = match upstream {
            Some(upstream) if !decided_here => (upstream.decision, upstream.reason),
            Some(_) | None => (self.decision, self.reason),
        };
        Context {
            direction: self.direction,
            source: self.source,
            destination: self.destination,
            upstream: upstream.map(|upstream| upstream.address),
            service: self.service.as_deref(),
            client_workload: self.client_workload.as_deref(),
            server_workload,
            client_identity: self.client_identity.as_ref().map(|(id, how)| (id.as_str(), *how)),
            server_identity: server_identity.map(|(id, how)| (id.as_str(), *how)),
            tls: tls.map(|tls| Tls { version: tls.version, cipher: tls.cipher, group: tls.group, alpn: &tls.alpn }),
            server_name: self.server_name.as_deref(),
            protocol: self.protocol,
            detected_by: self.detected_by,
            decision,
            decision_reason,
        }
        .encode(connection)
    }
}

/// The account of one accepted connection.
#[derive(Debug)]
pub struct Account {
    journal: Rc<Journal>,
    uid: Uid,
    direction: Direction,
    started: Instant,
    started_unix_nanos: u64,
    facts: RefCell<Facts>,
    upstream: RefCell<Option<Rc<Upstream>>>,
    client: RefCell<Option<Leaf>>,
    context: RefCell<Option<Rc<ContextAttributes>>>,
    /// How long TLS with the client took.
    pub client_handshake: Cell<Option<Duration>>,
    first_byte: Cell<Option<Instant>>,
    from_client: Cell<u64>,
    from_server: Cell<u64>,
    requests: Cell<u64>,
    finished: Cell<bool>,
    /// Why it is cut, with a detail for people.
    cut: RefCell<Option<(Code, String)>>,
}

impl Account {
    /// Opens the account of a connection that was accepted just now.
    pub fn open(journal: Rc<Journal>, direction: Direction, source: SocketAddr, destination: SocketAddr) -> Rc<Self> {
        let started_unix_nanos = unix_nanos();
        journal.metrics.connection_opened(direction);
        let facts = Facts {
            direction,
            source,
            destination,
            service: None,
            client_workload: None,
            client_identity: None,
            server_workload: None,
            server_identity: None,
            tls: None,
            server_name: None,
            protocol: Protocol::Tcp,
            detected_by: DetectedBy::Unread,
            decision: Decision::Refused,
            reason: "ended before a decision",
        };
        Rc::new(Self {
            uid: journal.uid(started_unix_nanos),
            journal,
            direction,
            started: Instant::now(),
            started_unix_nanos,
            facts: RefCell::new(facts),
            upstream: RefCell::default(),
            client: RefCell::default(),
            context: RefCell::default(),
            client_handshake: Cell::default(),
            first_byte: Cell::default(),
            from_client: Cell::default(),
            from_server: Cell::default(),
            requests: Cell::default(),
            finished: Cell::default(),
            cut: RefCell::default(),
        })
    }

    /// Notes what a step learned.
    pub fn note(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts.borrow_mut());
        *self.context.borrow_mut() = None;
    }

    /// Notes the server's side that this connection uses (last).
    pub fn note_upstream(&self, upstream: &Rc<Upstream>) {
        let mut current = self.upstream.borrow_mut();
        if current.as_ref().is_some_and(|current| Rc::ptr_eq(current, upstream)) {
            return;
        }
        if !current.as_ref().is_some_and(|current| current.shows_as(upstream)) {
            *self.context.borrow_mut() = None;
        }
        *current = Some(Rc::clone(upstream));
    }

    /// Notes the certificate that the client proved itself with.
    pub fn note_client(&self, leaf: Option<Leaf>) {
        *self.client.borrow_mut() = leaf;
    }

    /// The peer of this connection, at either end, that is denied.
    pub fn denial(&self, denied: &DenyList) -> Option<(SpiffeId, Denial)> {
        // A connection of HTTP/2 has many servers; those that are denied are cut by themselves.
        let one_server = self.facts.borrow().protocol != Protocol::Http2;
        denial(self.client.borrow().as_ref(), denied).or_else(|| {
            let upstream = self.upstream.borrow();
            upstream.as_ref().filter(|_| one_server).and_then(|upstream| upstream.denial(denied))
        })
    }

    /// Counts bytes of content that have come, and notes when the first came from the server.
    pub fn count(&self, from: End, bytes: u64) {
        match from {
            End::Client => self.from_client.set(self.from_client.get() + bytes),
            End::Server => {
                self.from_server.set(self.from_server.get() + bytes);
                self.answered();
            }
        }
    }

    /// Notes that the server has begun to answer.
    fn answered(&self) {
        if self.first_byte.get().is_none() {
            self.first_byte.set(Some(Instant::now()));
        }
    }

    /// What records hold besides the schema, if anything.
    pub fn capture(&self) -> Option<&Capture> {
        self.journal.capture.as_ref()
    }

    /// Who dialled.
    pub fn source(&self) -> SocketAddr {
        self.facts.borrow().source
    }

    /// Where the client wanted to go.
    pub fn destination(&self) -> SocketAddr {
        self.facts.borrow().destination
    }

    fn context(&self) -> Rc<ContextAttributes> {
        let mut context = self.context.borrow_mut();
        let upstream = self.upstream.borrow();
        Rc::clone(context.get_or_insert_with(|| Rc::new(self.facts.borrow().encode(self.uid, upstream.as_deref()))))
    }

    /// Notes why the connection is about to be dropped before its end.
    pub fn cut(&self, error: &ConnectionError) {
        *self.cut.borrow_mut() = Some((error.code(), telemetry::chain(error).to_string()));
    }

    /// Code and detail of what is dropped before its end: what was noted, the shutdown, or else `code`.
    fn ending(&self, code: Code) -> (Code, String) {
        let draining = self.journal.is_draining();
        let otherwise = || (if draining { Code::Draining } else { code }, "cut before it ended".to_owned());
        self.cut.borrow().clone().unwrap_or_else(otherwise)
    }

    /// Writes a record of a long connection that goes on.
    pub fn report(&self) {
        self.write(State::Open, ClosedBy::Us, Code::Ok, None);
    }

    /// Writes the closing record; later calls do nothing.
    pub fn finish(&self, closed_by: ClosedBy, code: Code, detail: Option<&str>) {
        if self.finished.replace(true) {
            return;
        }
        self.journal.metrics.connection_closed(self.direction, code);
        self.journal.metrics.bytes(self.direction, self.from_client.get(), self.from_server.get());
        self.write(State::Closed, closed_by, code, detail);
    }

    fn write(&self, state: State, closed_by: ClosedBy, code: Code, detail: Option<&str>) {
        let duration = self.started.elapsed();
        let context = self.context();
        let upstream = self.upstream.borrow();
        let record = Connection {
            uid: if state == State::Closed { self.uid } else { self.journal.uid(unix_nanos()) },
            context: &context,
            started_unix_nanos: self.started_unix_nanos,
            ended_unix_nanos: self.started_unix_nanos + duration.as_nanos() as u64,
            state,
            bytes_from_client: self.from_client.get(),
            bytes_from_server: self.from_server.get(),
            connect: upstream.as_ref().map(|upstream| upstream.connect),
            handshake: self.client_handshake.get().or(upstream.as_ref().and_then(|upstream| upstream.handshake)),
            first_byte: self.first_byte.get().map(|at| at.saturating_duration_since(self.started)),
            duration,
            requests: self.requests.get(),
            closed_by,
            code,
            detail,
        };
        self.journal.append(|out| record.encode(out));
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let (code, detail) = self.ending(Code::Internal);
        self.finish(ClosedBy::Us, code, Some(&detail));
    }
}

/// The account of one request; writes its record when it is finished or dropped.
#[derive(Debug)]
pub struct RequestAccount {
    connection: Rc<Account>,
    started: Instant,
    started_unix_nanos: u64,
    upstream: Option<Rc<Upstream>>,
    /// The method, as sent.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// Host or `:authority`.
    pub authority: Option<String>,
    /// The version of HTTP.
    pub http_version: HttpVersion,
    /// The answer's status.
    pub status: Cell<Option<u16>>,
    /// True for calls of gRPC.
    pub is_grpc: bool,
    /// The status of the call.
    pub grpc_status: Cell<Option<u32>>,
    request_body_bytes: Cell<u64>,
    response_body_bytes: Cell<u64>,
    first_byte: Cell<Option<Instant>>,
    /// How often it was sent again.
    pub resends: u32,
    /// The trace that it belongs to.
    pub trace: Option<TraceParent>,
    /// The protocol that the connection switched to.
    pub upgraded: Option<String>,
    captured: RefCell<Option<Box<Captured>>>,
    finished: bool,
}

impl RequestAccount {
    /// Opens the account of a request whose head has come.
    pub fn open(
        connection: &Rc<Account>,
        method: &str,
        path: &str,
        authority: Option<&str>,
        version: HttpVersion,
    ) -> Self {
        connection.requests.set(connection.requests.get() + 1);
        Self {
            connection: Rc::clone(connection),
            started: Instant::now(),
            started_unix_nanos: unix_nanos(),
            upstream: None,
            method: method.to_owned(),
            path: path.to_owned(),
            authority: authority.map(str::to_owned),
            http_version: version,
            status: Cell::default(),
            is_grpc: false,
            grpc_status: Cell::default(),
            request_body_bytes: Cell::default(),
            response_body_bytes: Cell::default(),
            first_byte: Cell::default(),
            resends: 0,
            trace: None,
            upgraded: None,
            captured: RefCell::default(),
            finished: false,
        }
    }

    /// Notes what settings ask for of the request's head.
    pub fn note_captured(&mut self, captured: Option<Box<Captured>>) {
        self.captured = RefCell::new(captured);
    }

    /// Notes what settings ask for of the head of the final answer.
    pub fn note_response_head(&self, fields: Fields<'_>) {
        if let Some(capture) = self.connection.capture() {
            capture.response(fields, self.captured.borrow_mut().get_or_insert_default());
        }
    }

    /// Notes the server's side that takes this request.
    pub fn note_upstream(&mut self, upstream: &Rc<Upstream>) {
        self.upstream = Some(Rc::clone(upstream));
        self.connection.note_upstream(upstream);
    }

    /// Counts bytes of content that have come, for the connection too: what is cut is counted up to the cut, and reports
    /// of a connection that goes on are right.
    pub fn count(&self, from: End, bytes: u64) {
        let counter = match from {
            End::Client => &self.request_body_bytes,
            End::Server => &self.response_body_bytes,
        };
        counter.set(counter.get() + bytes);
        self.connection.count(from, bytes);
    }

    /// Notes that the first byte of the answer has come.
    pub fn answered(&self) {
        if self.first_byte.get().is_none() {
            self.first_byte.set(Some(Instant::now()));
            self.connection.answered();
        }
    }

    /// True when a byte of the answer has come.
    pub fn is_answered(&self) -> bool {
        self.first_byte.get().is_some()
    }

    /// Writes the record; later calls do nothing.
    pub fn finish(&mut self, code: Code, detail: Option<&str>) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let cut = self.connection.cut.borrow().clone();
        let (code, detail) = cut.as_ref().map_or((code, detail), |(code, detail)| (*code, Some(detail.as_str())));
        let context = match &self.upstream {
            Some(upstream) => {
                self.connection.note_upstream(upstream);
                self.connection.context()
            }
            // What reached no server must not name that of the request before.
            None => Rc::new(self.connection.facts.borrow().encode(self.connection.uid, None)),
        };
        let (journal, captured) = (&self.connection.journal, self.captured.borrow());
        let duration = self.started.elapsed();
        journal.metrics.request(self.connection.direction, self.status.get(), code);
        let record = Request {
            uid: journal.uid(self.started_unix_nanos),
            context: &context,
            started_unix_nanos: self.started_unix_nanos,
            ended_unix_nanos: self.started_unix_nanos + duration.as_nanos() as u64,
            method: &self.method,
            path: &self.path,
            authority: self.authority.as_deref(),
            http_version: self.http_version,
            status: self.status.get(),
            grpc_status: self.grpc_status.get(),
            is_grpc: self.is_grpc,
            request_body_bytes: self.request_body_bytes.get(),
            response_body_bytes: self.response_body_bytes.get(),
            first_byte: self.first_byte.get().map(|at| at.saturating_duration_since(self.started)),
            duration,
            resends: self.resends,
            trace: self.trace,
            code,
            detail,
            upgraded: self.upgraded.as_deref(),
            captured: captured.as_deref(),
        };
        journal.append(|out| record.encode(out));
    }
}

impl Drop for RequestAccount {
    fn drop(&mut self) {
        let (code, detail) = self.connection.ending(Code::RequestCanceled);
        self.finish(code, Some(&detail));
    }
}
