//! Everything that can end a connection other than its two sides, and the single mapping to a stable code.

use std::{io, net::SocketAddr};

use record::Code;

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
    #[error("the TLS handshake was not done in time")]
    HandshakeTimeout,
    /// A TLS handshake failed.
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// The peer speaks TLS but agreed to none of our protocols.
    #[error("the peer did not agree to {0}")]
    Alpn(String),
    /// Strict mode, and the client is not in the mesh.
    #[error("plaintext is refused: inbound.plaintext is strict")]
    PlaintextRefused,
    /// The service has no endpoint of this address family.
    #[error("{0} has no endpoint")]
    NoEndpoint(String),
    /// There is no certificate yet, or it ended.
    #[error("this proxy has no valid certificate")]
    CredentialsUnavailable,
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
}

impl ConnectionError {
    /// The stable code of this ending.
    pub fn code(&self) -> Code {
        match self {
            Self::OriginalDestination(_) => Code::OriginalDestinationUnknown,
            Self::Loop(_) => Code::LoopDetected,
            Self::Client(error) if is_reset(error) => Code::ClientReset,
            Self::Client(_) | Self::ClientClosed => Code::ClientClosed,
            Self::RequestHeadTimeout => Code::RequestHeadTimeout,
            Self::HandshakeTimeout => Code::TlsHandshakeTimeout,
            Self::Handshake(error) => handshake_code(error),
            Self::Alpn(_) => Code::TlsHandshakeFailed,
            Self::PlaintextRefused => Code::PlaintextRefused,
            Self::NoEndpoint(_) => Code::NoEndpoint,
            Self::CredentialsUnavailable => Code::CredentialsUnavailable,
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
        }
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
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

fn http2_code(error: &h2::Error) -> Code {
    match error.reason() {
        Some(h2::Reason::ENHANCE_YOUR_CALM) => Code::Http2ResetFlood,
        Some(h2::Reason::CANCEL) => Code::RequestCanceled,
        Some(_) => Code::Http2ProtocolError,
        None => Code::ClientClosed,
    }
}

/// Which of the peer's faults, or whose refusal, made a handshake fail.
fn handshake_code(error: &io::Error) -> Code {
    use identity::PeerError;
    match identity::peer_failure(error) {
        Some(PeerError::CertificateMissing) => Code::PeerCertificateMissing,
        Some(PeerError::Untrusted { .. }) => Code::PeerCertificateUntrusted,
        Some(PeerError::Expired { .. }) => Code::PeerCertificateExpired,
        Some(PeerError::NotYetValid { .. }) => Code::PeerCertificateNotYetValid,
        Some(PeerError::Usage { .. } | PeerError::ChainTooLong { .. }) => Code::PeerCertificateUsage,
        Some(PeerError::Malformed { .. }) => Code::PeerCertificateMalformed,
        Some(PeerError::IdentityMissing) => Code::PeerIdentityMissing,
        Some(PeerError::IdentityAmbiguous { .. }) => Code::PeerIdentityAmbiguous,
        Some(PeerError::IdentityMalformed { .. }) => Code::PeerIdentityMalformed,
        Some(PeerError::TrustDomainMismatch { .. }) => Code::PeerTrustDomainMismatch,
        Some(PeerError::IdentityMismatch { .. }) => Code::PeerIdentityMismatch,
        None if identity::version_unsupported(error) => Code::TlsVersionUnsupported,
        None if identity::refused_by_peer(error) => Code::PeerRefusedUs,
        None => Code::TlsHandshakeFailed,
    }
}
