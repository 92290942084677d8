//! What all records of one connection towards one upstream share, encoded once and copied into each.
//!
//! Requests leave out how the hop was spoken in detail: that stands in the connection's own record, which they name
//! (docs/decisions/0010-what-a-record-costs.md).

use std::net::SocketAddr;

use crate::{Uid, key, otlp::Attributes};

/// Seen from the workload that the proxy stands beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Towards it.
    Inbound,
    /// Away from it.
    Outbound,
}

impl Direction {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// How we know an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EstablishedBy {
    /// The peer proved it in a TLS handshake.
    MutualTls,
    /// It is our own.
    OwnCertificate,
    /// Discovery says so; nobody proved it.
    Discovery,
    /// Somebody claims it.
    Unverified,
}

impl EstablishedBy {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::OwnCertificate => "own_certificate",
            Self::Discovery => "discovery",
            Self::Unverified => "unverified",
        }
    }
}

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2, gRPC included.
    Http2,
    /// TLS of the application itself.
    Tls,
    /// Anything else.
    Tcp,
}

impl Protocol {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http",
            Self::Http2 => "http",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }
}

/// How we know the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DetectedBy {
    /// The TLS handshake named it.
    Alpn,
    /// Discovery names it.
    Hint,
    /// By the first bytes.
    FirstBytes,
    /// The server speaks first on this port.
    PortList,
    /// Nothing came in time.
    Timeout,
    /// Nothing was read.
    Unread,
}

impl DetectedBy {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alpn => "alpn",
            Self::Hint => "hint",
            Self::FirstBytes => "first_bytes",
            Self::PortList => "port_list",
            Self::Timeout => "timeout",
            Self::Unread => "unread",
        }
    }
}

/// What was decided about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Both ends proved who they are.
    Meshed,
    /// Clear text, which a rule permits.
    Permitted,
    /// The destination is outside the mesh.
    Passthrough,
    /// It stays within the pod.
    Local,
    /// It was not allowed, or not possible.
    Refused,
}

impl Decision {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Meshed => "meshed",
            Self::Permitted => "permitted",
            Self::Passthrough => "passthrough",
            Self::Local => "local",
            Self::Refused => "refused",
        }
    }
}

/// What a TLS session agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tls<'a> {
    /// `1.3`.
    pub version: &'a str,
    /// IANA name of the cipher suite.
    pub cipher: &'a str,
    /// IANA name of the key exchange group.
    pub group: &'a str,
    /// The application protocol.
    pub alpn: &'a str,
}

/// Who talks to whom, over what, and by which decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context<'a> {
    /// Seen from our workload.
    pub direction: Direction,
    /// Who dialled.
    pub source: SocketAddr,
    /// Where it wanted to go.
    pub destination: SocketAddr,
    /// The endpoint that was dialled for it.
    pub upstream: Option<SocketAddr>,
    /// `name.namespace` of the service.
    pub service: Option<&'a str>,
    /// The workload that dialled.
    pub client_workload: Option<&'a str>,
    /// The workload that was dialled.
    pub server_workload: Option<&'a str>,
    /// The client's SPIFFE ID, and how we know.
    pub client_identity: Option<(&'a str, EstablishedBy)>,
    /// The server's SPIFFE ID, and how we know.
    pub server_identity: Option<(&'a str, EstablishedBy)>,
    /// TLS of the hop between proxies.
    pub tls: Option<Tls<'a>>,
    /// The name that the client of an application's own TLS asked for.
    pub server_name: Option<&'a str>,
    /// What is spoken.
    pub protocol: Protocol,
    /// How we know.
    pub detected_by: DetectedBy,
    /// What was decided.
    pub decision: Decision,
    /// By which rule.
    pub decision_reason: &'a str,
}

/// A context, encoded: first what each record says, then what is left to the connection's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContextAttributes {
    all: Vec<u8>,
    of_request: usize,
}

impl ContextAttributes {
    pub(crate) fn of_request(&self) -> &[u8] {
        &self.all[..self.of_request]
    }

    pub(crate) fn of_connection(&self) -> &[u8] {
        &self.all
    }
}

impl Context<'_> {
    /// Encodes it, for all records of the connection whose closing record has the uid `connection`.
    pub fn encode(&self, connection: Uid) -> ContextAttributes {
        let mut all = Vec::with_capacity(1024);
        let mut attributes = Attributes::new(&mut all);
        // What tells contexts from each other comes first.
        attributes.uid(key::CONNECTION_UID, connection);
        if let Some(upstream) = self.upstream {
            attributes.address(key::UPSTREAM_ADDRESS, key::UPSTREAM_PORT, upstream);
        }
        self.who(&mut attributes);
        if let Some(tls) = self.tls {
            attributes.text(key::TLS_PROTOCOL_VERSION, tls.version);
            attributes.text(key::TLS_CURVE, tls.group);
            attributes.text(key::TLS_NEXT_PROTOCOL, tls.alpn);
        }
        attributes.text_if(key::TLS_SERVER_NAME, self.server_name);
        attributes.text(key::NETWORK_PROTOCOL_NAME, self.protocol.as_str());
        attributes.text(key::DECISION, self.decision.as_str());
        attributes.text(key::DECISION_REASON, self.decision_reason);
        let of_request = attributes.out.len();
        attributes.text(key::NETWORK_TRANSPORT, "tcp");
        if let Some(tls) = self.tls {
            attributes.text(key::TLS_PROTOCOL_NAME, "tls");
            attributes.text(key::TLS_CIPHER, tls.cipher);
        }
        attributes.text(key::DETECTED_BY, self.detected_by.as_str());
        ContextAttributes { all, of_request }
    }

    fn who(&self, attributes: &mut Attributes<'_>) {
        attributes.text(key::DIRECTION, self.direction.as_str());
        attributes.address(key::SOURCE_ADDRESS, key::SOURCE_PORT, self.source);
        attributes.address(key::DESTINATION_ADDRESS, key::DESTINATION_PORT, self.destination);
        attributes.text(key::NETWORK_TYPE, if self.destination.is_ipv4() { "ipv4" } else { "ipv6" });
        attributes.text_if(key::SERVICE, self.service);
        attributes.text_if(key::CLIENT_WORKLOAD, self.client_workload);
        attributes.text_if(key::SERVER_WORKLOAD, self.server_workload);
        for (name, by, identity) in [
            (key::CLIENT_IDENTITY, key::CLIENT_IDENTITY_BY, self.client_identity),
            (key::SERVER_IDENTITY, key::SERVER_IDENTITY_BY, self.server_identity),
        ] {
            if let Some((id, how)) = identity {
                attributes.text(name, id);
                attributes.text(by, how.as_str());
            }
        }
    }
}
