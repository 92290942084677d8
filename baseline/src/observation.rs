//! What goes in: one finished request or connection on an edge.
//!
//! Promises: an [`EdgeKey`] that was made from text is never longer than [`NAME_BYTES_MAX`] a name. Leaves to others:
//! deciding what an error is, and which address class a peer without an identity belongs to.

use std::net::IpAddr;

pub use ::record::Direction;

/// Longest name of a peer or service that is kept; what is longer is cut.
pub const NAME_BYTES_MAX: usize = 255;

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1 or HTTP/2.
    Http,
    /// gRPC.
    Grpc,
    /// Opaque TCP.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// An edge, borrowed: direction, peer (identity or address class), service, port, protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EdgeRef<'a> {
    /// Which way.
    pub direction: Direction,
    /// The SPIFFE ID of the peer, or the class of its address. Empty where nobody was reached: it counts on the edge of
    /// whoever served that service before.
    pub peer: &'a str,
    /// The service that is meant, empty if unknown.
    pub service: &'a str,
    /// The port of the service.
    pub port: u16,
    /// What is spoken.
    pub protocol: Protocol,
}

impl EdgeRef<'_> {
    /// A copy that owns its names.
    pub fn to_key(&self) -> EdgeKey {
        let mut bytes = Vec::new();
        self.write_into(&mut bytes);
        read_key(&bytes)
    }

    /// The form under which an edge is found: unambiguous, since names are cut to a length that a byte holds.
    pub(crate) fn write_into(&self, out: &mut Vec<u8>) {
        let (peer, service) = (cut(self.peer), cut(self.service));
        out.clear();
        out.extend_from_slice(&[self.direction as u8, self.protocol as u8]);
        out.extend_from_slice(&self.port.to_le_bytes());
        out.push(u8::try_from(peer.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(peer.as_bytes());
        out.extend_from_slice(service.as_bytes());
    }
}

/// The service's name in bytes that [`EdgeRef::write_into`] wrote, if they have this direction and port.
pub(crate) fn service_of(bytes: &[u8], direction: Direction, port: u16) -> Option<&[u8]> {
    let same = bytes.first() == Some(&(direction as u8)) && bytes.get(2..4) == Some(&port.to_le_bytes()[..]);
    same.then(|| bytes.get(5 + usize::from(*bytes.get(4)?)..)).flatten()
}

/// The reverse of [`EdgeRef::write_into`], of bytes that it wrote.
pub(crate) fn read_key(bytes: &[u8]) -> EdgeKey {
    let direction = if bytes[0] == 0 { Direction::Inbound } else { Direction::Outbound };
    let protocols = [Protocol::Http, Protocol::Grpc, Protocol::Tcp, Protocol::Udp];
    let (peer, service) = bytes[5..].split_at(usize::from(bytes[4]));
    EdgeKey {
        direction,
        peer: String::from_utf8_lossy(peer).into_owned(),
        service: String::from_utf8_lossy(service).into_owned(),
        port: u16::from_le_bytes([bytes[2], bytes[3]]),
        protocol: protocols[usize::from(bytes[1]) % 4],
    }
}

/// The longest start of `name` that is kept and is whole characters.
fn cut(name: &str) -> &str {
    if name.len() <= NAME_BYTES_MAX {
        return name;
    }
    let end = (0..=NAME_BYTES_MAX).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    &name[..end]
}

/// An edge, owned.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeKey {
    /// Which way.
    pub direction: Direction,
    /// The SPIFFE ID of the peer, or the class of its address.
    pub peer: String,
    /// The service that is meant, empty if unknown.
    pub service: String,
    /// The port of the service.
    pub port: u16,
    /// What is spoken.
    pub protocol: Protocol,
}

impl EdgeKey {
    /// The same, borrowed.
    pub fn as_ref(&self) -> EdgeRef<'_> {
        EdgeRef {
            direction: self.direction,
            peer: &self.peer,
            service: &self.service,
            port: self.port,
            protocol: self.protocol,
        }
    }
}

/// How the connection was protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protection {
    /// Mutual TLS, the peer's identity verified.
    MutualTls,
    /// Neither encrypted nor verified by us.
    Plaintext,
    /// It does not apply, or is not known.
    Unknown,
}

/// One finished request or connection.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    /// When it ended, in milliseconds since 1970 UTC.
    pub at: u64,
    /// On which edge.
    pub edge: EdgeRef<'a>,
    /// The address that it came from, of what is inbound; none where that is not known.
    pub source: Option<IpAddr>,
    /// Whether it failed: HTTP 5xx, a gRPC status that blames the server, a connection refused or reset.
    pub error: bool,
    /// In all, in microseconds; none for connections whose length says nothing.
    pub duration_us: Option<u64>,
    /// Until the first byte of the answer, in microseconds.
    pub first_byte_us: Option<u64>,
    /// Bytes towards our workload.
    pub bytes_in: u64,
    /// Bytes from our workload.
    pub bytes_out: u64,
    /// How it was protected.
    pub protection: Protection,
}
