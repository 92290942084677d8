//! Step 6: moves bytes, requests and calls between a client and a server.
//!
//! The hop speaks the version that the application spoke: HTTP/1 stays HTTP/1, HTTP/2 stays HTTP/2, everything else
//! is opaque. Nothing is buffered beyond what the other side is about to take.

pub mod pending;
pub mod tcp;
pub mod head;
pub mod body;
pub mod exchange;
pub mod http1;
pub mod http2;

use std::{rc::Rc, time::Duration};

use record::ClosedBy;

use crate::{
    account::{Account, End},
    connect::{Connector, Target},
    drain::Drain,
    error::ConnectionError,
    stream::Stream,
};

/// What forwarding needs to know about a connection and its surroundings.
#[derive(Debug, Clone)]
pub struct Hop {
    /// The connection's account.
    pub account: Rc<Account>,
    /// The way to servers.
    pub connector: Rc<Connector>,
    /// Where requests go.
    pub target: Target,
    /// Kept HTTP/1 connections may serve several clients (outbound) or only this one (inbound).
    pub shared: bool,
    /// HTTP/2 connections to servers: the worker's (outbound), or this client's own (inbound).
    pub servers: Rc<http2::Servers>,
    /// Tells when to stop.
    pub drain: Drain,
    /// Bytes of a head at most.
    pub head_bytes_max: usize,
    /// How long a head may take from its first byte.
    pub head_timeout: Duration,
    /// How long a connection may wait for the next request.
    pub keep_alive_timeout: Duration,
}

/// Copies an opaque stream to the target and back.
///
/// # Errors
/// What ended the connection other than its two sides.
///
/// # Cancellation
/// Both streams are closed; the account says so.
pub async fn opaque(hop: &Hop, mut client: Stream, opening: &[u8]) -> Result<ClosedBy, ConnectionError> {
    // A stream that reached nobody is not an empty one.
    client.reset_unless_ended();
    let mut server = hop.connector.open(&hop.target, identity::ALPN_TCP).await?;
    hop.account.note_upstream(&server.upstream);
    let count = |from, bytes| hop.account.count(from, bytes);
    match tcp::copy(&mut client, &mut server.stream, opening, count).await {
        Ok(End::Server) => Ok(ClosedBy::Server),
        Ok(End::Client) => Ok(ClosedBy::Client),
        Err((End::Client, error)) => Err(ConnectionError::Client(error)),
        Err((End::Server, error)) => Err(ConnectionError::Server(error)),
    }
}
