//! The steps towards our workload, in order.
//!
//! TLS with a mesh protocol proves the client; anything else follows the plaintext rule. The application is reached at
//! the address that was dialled, never at loopback.

use std::rc::Rc;

use identity::Role;
use record::{ClosedBy, Decision, DetectedBy, EstablishedBy, Protocol};
use rustls_pki_types::UnixTime;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    account::Account,
    config::Plaintext,
    connect::{Target, tls_facts},
    detect::{self, Opening},
    discover::{AppProtocol, Discovery},
    error::ConnectionError,
    forward::{self, http1, http2},
    policy,
    stream::{Prefixed, Stream},
    worker::Worker,
};

/// Takes one inbound connection from its first byte to the end of forwarding.
///
/// # Errors
/// What ended the connection other than its two sides.
///
/// # Cancellation
/// Both sides are closed; the account says so.
pub async fn serve(worker: &Worker, account: &Rc<Account>, stream: TcpStream) -> Result<ClosedBy, ConnectionError> {
    let hint = describe(worker, account);
    let server_first = worker.config.detect.server_first_ports.contains(&account.destination().port());
    let (stream, opening) = if server_first || hint == Some(AppProtocol::Tcp) {
        // A proxy speaks first on these ports, too: give its ClientHello the chance to come before the rule for clear text.
        hello_or_silence(worker, account, stream).await?
    } else {
        detect::opening(stream, worker.config.detect.timeout).await.map_err(ConnectionError::Client)?
    };
    if opening.hello.as_ref().is_some_and(detect::Hello::is_mesh) {
        mesh(worker, account, stream, opening).await
    } else {
        clear(worker, account, stream, opening).await
    }
}

/// Notes who we are and who dials, as far as discovery knows, and returns what it says of the protocol.
fn describe(worker: &Worker, account: &Account) -> Option<AppProtocol> {
    let snapshot = worker.discovery.snapshot();
    let destination = snapshot.lookup(account.destination());
    account.note(|facts| {
        facts.client_workload = snapshot.workload(facts.source.ip()).map(|workload| workload.name.clone());
        facts.server_workload = snapshot.workload(facts.destination.ip()).map(|workload| workload.name.clone());
        facts.service = destination.as_ref().and_then(|destination| destination.service.clone());
        facts.server_identity =
            worker.store.current().map(|credentials| (credentials.id.clone(), EstablishedBy::OwnCertificate));
    });
    destination.and_then(|destination| destination.protocol)
}

/// Waits a moment for a ClientHello on a port where the server speaks first.
async fn hello_or_silence(
    worker: &Worker,
    account: &Account,
    stream: TcpStream,
) -> Result<(TcpStream, Opening), ConnectionError> {
    let mut first = [0];
    match timeout(patience(worker, account), stream.peek(&mut first)).await {
        Ok(Ok(1)) if first[0] == 0x16 => {
            detect::opening(stream, worker.config.detect.timeout).await.map_err(ConnectionError::Client)
        }
        Ok(Err(error)) => Err(ConnectionError::Client(error)),
        Ok(Ok(_)) | Err(_) => Ok((stream, detect::unread(DetectedBy::PortList))),
    }
}

/// How long silence may last before it is taken for a client that waits for a greeting. Where the client should be of
/// the mesh, a ClientHello that is late must not be taken for clear text.
fn patience(worker: &Worker, account: &Account) -> std::time::Duration {
    let source =
        worker.discovery.snapshot().workload(account.source().ip()).is_some_and(|workload| workload.identity.is_some());
    if source || worker.config.inbound.plaintext == Plaintext::Strict {
        worker.config.detect.timeout
    } else {
        worker.config.detect.timeout.min(SERVER_FIRST_PATIENCE)
    }
}

/// A client outside the mesh waits for a greeting: it should not wait long.
const SERVER_FIRST_PATIENCE: std::time::Duration = std::time::Duration::from_millis(100);

/// A client that proves who it is.
async fn mesh(
    worker: &Worker,
    account: &Rc<Account>,
    stream: TcpStream,
    opening: Opening,
) -> Result<ClosedBy, ConnectionError> {
    worker.store.usable(UnixTime::now()).map_err(ConnectionError::CredentialsUnavailable)?;
    account.note(|facts| facts.reason = "the client did not prove an identity of this trust domain");
    let (started, before) = (std::time::Instant::now(), worker.store.bundle());
    let accept = Box::pin(worker.acceptor.accept(Prefixed::new(opening.bytes, stream)));
    let tls = match timeout(worker.config.limits.tls_handshake_timeout, accept).await {
        Ok(done) => done.map_err(|error| ConnectionError::handshake(account.source(), error))?,
        Err(_) => return Err(ConnectionError::HandshakeTimeout(account.source())),
    };
    account.client_handshake.set(Some(started.elapsed()));
    let session = tls.get_ref().1;
    let protocol = match session.alpn_protocol() {
        Some(identity::ALPN_H2) => Protocol::Http2,
        Some(identity::ALPN_HTTP1) => Protocol::Http1,
        Some(identity::ALPN_TCP) => Protocol::Tcp,
        Some(_) | None => {
            let ours = "picket/h2, picket/http1 or picket/tcp".to_owned();
            return Err(ConnectionError::Alpn(account.source(), ours));
        }
    };
    let leaf = identity::peer_leaf(session, &worker.store, before.as_ref(), Role::Client)
        .map_err(|reason| ConnectionError::Peer(account.source(), reason))?;
    account.note(|facts| {
        facts.client_identity = Some((leaf.id.clone(), EstablishedBy::MutualTls));
        facts.tls = Some(tls_facts(session));
        facts.protocol = protocol;
        facts.detected_by = DetectedBy::Alpn;
        facts.decision = Decision::Meshed;
        facts.reason = "the client proved an identity of this trust domain";
    });
    account.note_client(Some(leaf));
    // The list may have grown while the handshake went on; from here on, what it says cuts this connection, too.
    if let Some((id, denial)) = account.denial(&worker.store.denied()) {
        return Err(ConnectionError::Denied(id, denial));
    }
    forward_to_app(worker, account, Stream::TlsServer(Box::new(tls)), Vec::new(), protocol).await
}

/// A client that does not.
async fn clear(
    worker: &Worker,
    account: &Rc<Account>,
    stream: TcpStream,
    opening: Opening,
) -> Result<ClosedBy, ConnectionError> {
    account.note(|facts| {
        facts.protocol = opening.protocol;
        facts.detected_by = opening.detected_by;
        facts.server_name = opening.hello.as_ref().and_then(|hello| hello.server_name.clone());
        facts.reason = "inbound.plaintext is strict";
    });
    let reason = policy::plaintext(worker.config.inbound.plaintext)?;
    account.note(|facts| (facts.decision, facts.reason) = (Decision::Permitted, reason));
    let protocol = opening.protocol;
    match protocol {
        Protocol::Http2 => {
            let stream = Stream::Plain(Prefixed::new(opening.bytes, stream));
            forward_to_app(worker, account, stream, Vec::new(), protocol).await
        }
        Protocol::Http1 | Protocol::Tls | Protocol::Tcp => {
            let stream = Stream::Plain(Prefixed::new(Vec::new(), stream));
            forward_to_app(worker, account, stream, opening.bytes, protocol).await
        }
    }
}

async fn forward_to_app(
    worker: &Worker,
    account: &Rc<Account>,
    client: Stream,
    opening: Vec<u8>,
    protocol: Protocol,
) -> Result<ClosedBy, ConnectionError> {
    let target = Target::Address(account.destination(), Decision::Local, "our own workload");
    let hop = worker.hop(account, target, false);
    match protocol {
        Protocol::Http1 => http1::serve(&hop, client, opening).await,
        // Apart, so that connections of HTTP/1 are not as large as those of HTTP/2.
        Protocol::Http2 => Box::pin(http2::serve(&hop, client)).await,
        Protocol::Tls | Protocol::Tcp => forward::opaque(&hop, client, &opening).await,
    }
}
