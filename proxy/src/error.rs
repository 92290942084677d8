//! Everything that can end a connection other than its two sides, and the single mapping to a stable code.

use std::{io, net::SocketAddr, sync::Arc};

use identity::{Denial, PeerError, SpiffeId, Unusable};
use record::{ClosedBy, Code, Direction, Side, Step};

use crate::forward::head::Refusal;

/// Why a connection or a request did not go its way.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The kernel did not tell where the client wanted to go.
    #[error("the original destination is unknown")]
    OriginalDestination(#[source] io::Error),
    /// The client dialled the proxy itself.
    #[error("{0} is a port of this proxy, which is no destination")]
    Loop(SocketAddr),
    /// The client's stream failed.
    #[error("the client's connection failed")]
    Client(#[source] io::Error),
    /// The client ended its stream where more was due.
    #[error("the client ended before it was done")]
    ClientClosed,
    /// The client took too long for its first bytes or for a head.
    #[error("the client did not complete a request head in time")]
    RequestHeadTimeout,
    /// A TLS handshake, with either side, took too long.
    #[error("the TLS handshake with {0} was not done in time")]
    HandshakeTimeout(SocketAddr),
    /// We refused the peer for what it showed, or did not show, in a TLS handshake.
    #[error("the TLS handshake with {0} was refused")]
    Peer(SocketAddr, #[source] PeerError),
    /// A TLS handshake failed.
    #[error("the TLS handshake with {0} failed")]
    Handshake(SocketAddr, #[source] io::Error),
    /// The peer speaks TLS but agreed to none of our protocols.
    #[error("{0} did not agree to {1}")]
    Alpn(SocketAddr, String),
    /// Strict mode, and the client is not in the mesh.
    #[error("plaintext is refused: inbound.plaintext is strict")]
    PlaintextRefused,
    /// The peer of a connection that stood was put on the deny list.
    #[error("the peer {0}, at the other end of this connection, was denied: its {1}")]
    Denied(SpiffeId, Denial),
    /// The server ended HTTP/2 because of our certificate.
    #[error("the peer did not accept our certificate")]
    RefusedByPeer,
    /// The same attempt, made for several requests, failed for all of them.
    #[error(transparent)]
    Shared(Arc<ConnectionError>),
    /// The service has no endpoint of this address family.
    #[error("{0} has no endpoint")]
    NoEndpoint(String),
    /// There is no certificate yet, or it ended.
    #[error("this proxy has no valid certificate")]
    CredentialsUnavailable(#[source] Unusable),
    /// Dialling failed.
    #[error("could not connect to {0}")]
    Connect(SocketAddr, #[source] io::Error),
    /// Dialling took too long.
    #[error("could not connect to {0} in time")]
    ConnectTimeout(SocketAddr),
    /// The server's stream failed.
    #[error("the server's connection failed")]
    Server(#[source] io::Error),
    /// The server ended its stream where more was due.
    #[error("the server ended before it was done")]
    ServerClosed,
    /// A request or a response that is not forwarded.
    #[error("{}", .0.detail)]
    Refused(Refusal),
    /// HTTP/2 ended on an error of the client.
    #[error("HTTP/2 with the client failed")]
    ClientHttp2(#[source] h2::Error),
    /// HTTP/2 ended on an error of the server.
    #[error("HTTP/2 with the server failed")]
    ServerHttp2(#[source] h2::Error),
    /// The proxy is stopping.
    #[error("the proxy is stopping")]
    Draining,
    /// Too many connections at once.
    #[error("limits.connections is reached")]
    ConnectionLimit,
    /// There is no room for records.
    #[error("the spool is full and spool.onFull is refuse")]
    SpoolFull,
}

impl ConnectionError {
    /// What a failed handshake with `peer` was: its refusal by us, or anything else.
    pub fn handshake(peer: SocketAddr, error: io::Error) -> Self {
        match identity::peer_failure(&error) {
            Some(reason) => Self::Peer(peer, reason.clone()),
            None => Self::Handshake(peer, error),
        }
    }

    /// Whose doing the end of a connection was. In TLS the peer is the client inbound, and the server outbound.
    pub fn closed_by(&self, direction: Direction) -> ClosedBy {
        let code = self.code();
        match (code.side(), code.step(), direction) {
            (Side::Client | Side::Server, Step::Tls, Direction::Inbound) => ClosedBy::Client,
            (Side::Client | Side::Server, Step::Tls, Direction::Outbound) => ClosedBy::Server,
            (Side::Client, ..) => ClosedBy::Client,
            (Side::Server, ..) => ClosedBy::Server,
            (Side::Us | Side::Policy | Side::None, ..) => ClosedBy::Us,
        }
    }

    /// The stable code of this ending.
    pub fn code(&self) -> Code {
        match self {
            Self::OriginalDestination(_) => Code::OriginalDestinationUnknown,
            Self::Loop(_) => Code::LoopDetected,
            Self::Client(error) if is_reset(error) => Code::ClientReset,
            Self::Client(_) | Self::ClientClosed => Code::ClientClosed,
            Self::RequestHeadTimeout => Code::RequestHeadTimeout,
            Self::HandshakeTimeout(_) => Code::TlsHandshakeTimeout,
            Self::Peer(_, reason) => peer_code(reason),
            Self::Handshake(_, error) if identity::version_unsupported(error) => Code::TlsVersionUnsupported,
            Self::Handshake(_, error) if identity::refused_by_peer(error) => Code::PeerRefusedUs,
            Self::Handshake(..) | Self::Alpn(..) => Code::TlsHandshakeFailed,
            Self::PlaintextRefused => Code::PlaintextRefused,
            Self::Denied(..) => Code::PeerDenied,
            Self::RefusedByPeer => Code::PeerRefusedUs,
            Self::Shared(error) => error.code(),
            Self::NoEndpoint(_) => Code::NoEndpoint,
            Self::CredentialsUnavailable(_) => Code::CredentialsUnavailable,
            Self::Connect(_, error) => connect_code(error),
            Self::ConnectTimeout(_) => Code::ConnectTimeout,
            Self::Server(error) if identity::refused_by_peer(error) => Code::PeerRefusedUs,
            Self::Server(error) if is_reset(error) => Code::ServerReset,
            Self::Server(_) | Self::ServerClosed => Code::ServerClosed,
            Self::Refused(refusal) => refusal.code,
            Self::ClientHttp2(error) => http2_code(error),
            Self::ServerHttp2(_) => Code::ServerReset,
            Self::Draining => Code::Draining,
            Self::ConnectionLimit => Code::ConnectionLimit,
            Self::SpoolFull => Code::SpoolFull,
        }
    }
}

/// Cut in the middle: by a reset, or TLS without close_notify.
fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof)
}

fn connect_code(error: &io::Error) -> Code {
    use io::ErrorKind;
    let kind = error.kind();
    if kind == ErrorKind::ConnectionRefused {
        Code::ConnectRefused
    } else if matches!(kind, ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) {
        Code::ConnectUnreachable
    } else if kind == ErrorKind::TimedOut {
        Code::ConnectTimeout
    } else {
        Code::ConnectFailed
    }
}

/// That the connection was cut below HTTP/2: by a reset, or TLS without close_notify. What ends otherwise, h2 calls a
/// broken pipe.
pub fn is_cut(error: &h2::Error) -> bool {
    use io::ErrorKind;
    error.get_io().is_some_and(|error| matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof))
}

fn http2_code(error: &h2::Error) -> Code {
    match error.reason() {
        Some(h2::Reason::ENHANCE_YOUR_CALM) => Code::Http2ResetFlood,
        Some(h2::Reason::CANCEL) => Code::RequestCanceled,
        Some(_) => Code::Http2ProtocolError,
        None => Code::ClientClosed,
    }
}

/// Which of the peer's faults it was.
fn peer_code(reason: &PeerError) -> Code {
    match reason {
        PeerError::CertificateMissing => Code::PeerCertificateMissing,
        PeerError::Untrusted { .. } => Code::PeerCertificateUntrusted,
        PeerError::Expired { .. } => Code::PeerCertificateExpired,
        PeerError::NotYetValid { .. } => Code::PeerCertificateNotYetValid,
        PeerError::Usage { .. } | PeerError::ChainTooLong { .. } => Code::PeerCertificateUsage,
        PeerError::Malformed { .. } => Code::PeerCertificateMalformed,
        PeerError::IdentityMissing => Code::PeerIdentityMissing,
        PeerError::IdentityAmbiguous { .. } => Code::PeerIdentityAmbiguous,
        PeerError::IdentityMalformed { .. } => Code::PeerIdentityMalformed,
        PeerError::TrustDomainMismatch { .. } => Code::PeerTrustDomainMismatch,
        PeerError::IdentityMismatch { .. } => Code::PeerIdentityMismatch,
        PeerError::Denied { .. } => Code::PeerDenied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], 443))
    }

    #[test]
    fn a_refused_peer_is_named_in_words() {
        let reason = PeerError::ChainTooLong { length: 9 };
        let refused = rustls::CertificateError::Other(rustls::OtherError(Arc::new(reason)));
        let error = io::Error::other(rustls::Error::InvalidCertificate(refused));
        let error = ConnectionError::handshake(peer(), error);
        assert_eq!(error.code(), Code::PeerCertificateUsage);
        assert_eq!(
            telemetry::chain(&error).to_string(),
            "the TLS handshake with 10.0.0.1:443 was refused: the peer sent 9 certificates, more than 4"
        );
    }

    #[test]
    fn in_tls_the_peer_is_the_client_inbound_and_the_server_outbound() {
        let ended = || io::Error::from(io::ErrorKind::UnexpectedEof);
        for error in [
            ConnectionError::handshake(peer(), ended()),
            ConnectionError::HandshakeTimeout(peer()),
            ConnectionError::Peer(peer(), PeerError::CertificateMissing),
        ] {
            assert_eq!(error.closed_by(Direction::Inbound), ClosedBy::Client, "{error}");
            assert_eq!(error.closed_by(Direction::Outbound), ClosedBy::Server, "{error}");
        }
        for direction in [Direction::Inbound, Direction::Outbound] {
            assert_eq!(ConnectionError::PlaintextRefused.closed_by(direction), ClosedBy::Us);
            assert_eq!(ConnectionError::CredentialsUnavailable(Unusable::Missing).closed_by(direction), ClosedBy::Us);
            assert_eq!(ConnectionError::ClientClosed.closed_by(direction), ClosedBy::Client);
            assert_eq!(ConnectionError::ServerClosed.closed_by(direction), ClosedBy::Server);
        }
    }
}
