//! The steps away from our workload, in order.
//!
//! Discovery is asked first: it knows the service, who answers for it, and often the protocol. What it does not know is
//! outside the mesh, goes where the client wanted, and is recorded as such.

use std::{rc::Rc, sync::Arc};

use record::{ClosedBy, Decision, DetectedBy, EstablishedBy, Protocol};
use tokio::net::TcpStream;

use crate::{
    account::Account,
    connect::{Discovered, Target},
    detect::{self, Opening},
    discover::{AppProtocol, Discovery},
    error::ConnectionError,
    forward::{self, http1, http2},
    stream::{Prefixed, Stream},
    worker::Worker,
};

/// Takes one outbound connection from its first byte to the end of forwarding.
///
/// # Errors
/// What ended the connection other than its two sides.
///
/// # Cancellation
/// Both sides are closed; the account says so.
pub async fn serve(worker: &Worker, account: &Rc<Account>, stream: TcpStream) -> Result<ClosedBy, ConnectionError> {
    let (target, hint) = discover(worker, account);
    let (stream, opening) = open(worker, account, stream, hint).await?;
    account.note(|facts| {
        facts.protocol = opening.protocol;
        facts.detected_by = opening.detected_by;
        facts.server_name = opening.hello.as_ref().and_then(|hello| hello.server_name.clone());
    });
    let hop = worker.hop(account, target, true);
    match opening.protocol {
        Protocol::Http1 => http1::serve(&hop, Stream::Plain(Prefixed::new(Vec::new(), stream)), opening.bytes).await,
        // Apart, so that connections of HTTP/1 are not as large as those of HTTP/2.
        Protocol::Http2 => Box::pin(http2::serve(&hop, Stream::Plain(Prefixed::new(opening.bytes, stream)))).await,
        Protocol::Tls | Protocol::Tcp => {
            forward::opaque(&hop, Stream::Plain(Prefixed::new(Vec::new(), stream)), &opening.bytes).await
        }
    }
}

/// Asks discovery who is at the original destination, and notes what it says.
fn discover(worker: &Worker, account: &Account) -> (Target, Option<AppProtocol>) {
    let snapshot = worker.discovery.snapshot();
    let destination = snapshot.lookup(account.destination());
    account.note(|facts| {
        facts.client_workload = snapshot.workload(facts.source.ip()).map(|workload| workload.name.clone());
        facts.client_identity =
            worker.store.current().map(|credentials| (credentials.id.clone(), EstablishedBy::OwnCertificate));
        facts.service = destination.as_ref().and_then(|destination| destination.service.clone());
        (facts.decision, facts.reason) = match &destination {
            Some(_) => (Decision::Refused, "nothing was sent to an endpoint"),
            None => (Decision::Passthrough, "discovery does not know the destination"),
        };
    });
    match destination {
        Some(destination) => {
            let hint = destination.protocol;
            let (original, discovery) = (account.destination(), Arc::clone(&worker.discovery));
            (Target::Discovered(Discovered { original, destination, discovery }), hint)
        }
        None => {
            let reason = "discovery does not know the destination";
            (Target::Address(account.destination(), Decision::Passthrough, reason), None)
        }
    }
}

/// Finds out what the client speaks: by hint, by port, or by its first bytes.
async fn open(
    worker: &Worker,
    account: &Account,
    stream: TcpStream,
    hint: Option<AppProtocol>,
) -> Result<(TcpStream, Opening), ConnectionError> {
    match hint {
        Some(AppProtocol::Tcp) => return Ok((stream, detect::unread(DetectedBy::Hint))),
        Some(AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Tls) => {}
        None if worker.config.detect.server_first_ports.contains(&account.destination().port()) => {
            return Ok((stream, detect::unread(DetectedBy::PortList)));
        }
        None => {}
    }
    let (stream, mut opening) =
        detect::opening(stream, worker.config.detect.timeout).await.map_err(ConnectionError::Client)?;
    // What calls itself HTTP is held to it: garbage is answered with 400 and never forwarded.
    if hint == Some(AppProtocol::Http) && opening.protocol == Protocol::Tcp && !opening.bytes.is_empty() {
        (opening.protocol, opening.detected_by) = (Protocol::Http1, DetectedBy::Hint);
    }
    Ok((stream, opening))
}
