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
    account::Account,
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
    let mut server = hop.connector.open(&hop.target, identity::ALPN_TCP).await?;
    hop.account.note_upstream(&server.upstream);
    let mut copied = tcp::Copied::default();
    let counted = Counted { account: &hop.account, copied: &mut copied };
    let result = tcp::copy(&mut client, &mut server.stream, opening, counted.copied).await;
    drop(counted);
    match result {
        Ok(()) if copied.first_to_end == Some(tcp::End::Server) => Ok(ClosedBy::Server),
        Ok(()) => Ok(ClosedBy::Client),
        Err((tcp::End::Client, error)) => Err(ConnectionError::Client(error)),
        Err((tcp::End::Server, error)) => Err(ConnectionError::Server(error)),
    }
}

/// Brings the counters of a copy into the account, also when the copy is cut.
struct Counted<'a> {
    account: &'a Account,
    copied: &'a mut tcp::Copied,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.account.from_client.set(self.copied.from_client);
        self.account.from_server.set(self.copied.from_server);
        self.account.first_byte.set(self.copied.first_byte);
    }
}
