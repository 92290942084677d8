//! The closed list of endings: what stands in the record, in the `picket-error` header and in the counter.
//!
//! Each code says whose side it was, at which step, and whether a retry is safe (nothing reached a server, or nothing
//! that counts).

/// Whose side an ending is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Nobody's: all went well.
    None,
    /// Who dialled.
    Client,
    /// Who was dialled.
    Server,
    /// The proxy.
    Us,
    /// A rule.
    Policy,
}

impl Side {
    /// The name in documents and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Client => "client",
            Self::Server => "server",
            Self::Us => "us",
            Self::Policy => "policy",
        }
    }
}

/// The step of a connection's path at which it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Accepting.
    Accept,
    /// Finding the original destination.
    OriginalDestination,
    /// Finding the protocol.
    Detect,
    /// TLS and identity.
    Tls,
    /// The rules.
    Policy,
    /// From destination to endpoint.
    Route,
    /// Dialling.
    Connect,
    /// Moving bytes.
    Forward,
    /// Stopping.
    Drain,
}

impl Step {
    /// The name in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::OriginalDestination => "original destination",
            Self::Detect => "detect",
            Self::Tls => "tls",
            Self::Policy => "policy",
            Self::Route => "route",
            Self::Connect => "connect",
            Self::Forward => "forward",
            Self::Drain => "drain",
        }
    }
}

/// How a connection or a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The exchange or the connection came to its end.
    Ok,
    /// The client ended before it was done.
    ClientClosed,
    /// The client reset its connection.
    ClientReset,
    /// The client was silent for too long.
    ClientIdleTimeout,
    /// The request does not follow the grammar of its protocol.
    RequestMalformed,
    /// Servers could read the request in more than one way.
    RequestAmbiguous,
    /// The request's head is over the limit.
    RequestHeadTooLarge,
    /// The request's head did not come in time.
    RequestHeadTimeout,
    /// The request's body breaks its framing.
    RequestBodyMalformed,
    /// The request's version of HTTP is not spoken.
    RequestVersionUnsupported,
    /// The client gave up the request.
    RequestCanceled,
    /// The client broke the rules of HTTP/2.
    Http2ProtocolError,
    /// The client reset too many streams.
    Http2ResetFlood,
    /// The kernel did not tell where the client wanted to go.
    OriginalDestinationUnknown,
    /// The client dialled a port of the proxy itself.
    LoopDetected,
    /// The peer did not finish the TLS handshake in time.
    TlsHandshakeTimeout,
    /// The TLS handshake failed; the detail says how.
    TlsHandshakeFailed,
    /// The peer does not offer TLS 1.3.
    TlsVersionUnsupported,
    /// The peer showed no certificate.
    PeerCertificateMissing,
    /// The peer's certificate leads to no root of the trust bundle.
    PeerCertificateUntrusted,
    /// A certificate of the peer has ended.
    PeerCertificateExpired,
    /// A certificate of the peer is not valid yet.
    PeerCertificateNotYetValid,
    /// A certificate of the peer may not be used for this.
    PeerCertificateUsage,
    /// A certificate of the peer cannot be read.
    PeerCertificateMalformed,
    /// The peer's certificate names no SPIFFE ID.
    PeerIdentityMissing,
    /// The peer's certificate names more than one URI.
    PeerIdentityAmbiguous,
    /// The URI of the peer's certificate is no SPIFFE ID of ours.
    PeerIdentityMalformed,
    /// The peer belongs to another trust domain.
    PeerTrustDomainMismatch,
    /// The server is not who discovery says.
    PeerIdentityMismatch,
    /// The peer did not accept our certificate.
    PeerRefusedUs,
    /// The client is not in the mesh and plaintext is refused.
    PlaintextRefused,
    /// The service has no endpoint.
    NoEndpoint,
    /// The server refused the connection.
    ConnectRefused,
    /// The server did not take the connection in time.
    ConnectTimeout,
    /// There is no way to the server.
    ConnectUnreachable,
    /// The connection to the server failed.
    ConnectFailed,
    /// The server ended before it was done.
    ServerClosed,
    /// The server reset its connection or stream.
    ServerReset,
    /// The server was silent for too long.
    ServerIdleTimeout,
    /// The answer cannot be forwarded safely.
    ResponseMalformed,
    /// The answer's head is over the limit.
    ResponseHeadTooLarge,
    /// The proxy serves as many connections as it may.
    ConnectionLimit,
    /// The proxy stopped before this was done.
    Draining,
    /// The proxy has no valid certificate.
    CredentialsUnavailable,
    /// A fault of the proxy.
    Internal,
}

struct Facts(&'static str, Side, Step, Option<u16>, bool, &'static str);

impl Code {
    /// Every code, in the order of the documented table.
    pub const ALL: &[Self] = &[
        Self::Ok,
        Self::ClientClosed,
        Self::ClientReset,
        Self::ClientIdleTimeout,
        Self::RequestMalformed,
        Self::RequestAmbiguous,
        Self::RequestHeadTooLarge,
        Self::RequestHeadTimeout,
        Self::RequestBodyMalformed,
        Self::RequestVersionUnsupported,
        Self::RequestCanceled,
        Self::Http2ProtocolError,
        Self::Http2ResetFlood,
        Self::OriginalDestinationUnknown,
        Self::LoopDetected,
        Self::TlsHandshakeTimeout,
        Self::TlsHandshakeFailed,
        Self::TlsVersionUnsupported,
        Self::PeerCertificateMissing,
        Self::PeerCertificateUntrusted,
        Self::PeerCertificateExpired,
        Self::PeerCertificateNotYetValid,
        Self::PeerCertificateUsage,
        Self::PeerCertificateMalformed,
        Self::PeerIdentityMissing,
        Self::PeerIdentityAmbiguous,
        Self::PeerIdentityMalformed,
        Self::PeerTrustDomainMismatch,
        Self::PeerIdentityMismatch,
        Self::PeerRefusedUs,
        Self::PlaintextRefused,
        Self::NoEndpoint,
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::ConnectUnreachable,
        Self::ConnectFailed,
        Self::ServerClosed,
        Self::ServerReset,
        Self::ServerIdleTimeout,
        Self::ResponseMalformed,
        Self::ResponseHeadTooLarge,
        Self::ConnectionLimit,
        Self::Draining,
        Self::CredentialsUnavailable,
        Self::Internal,
    ];

    const fn facts(self) -> Facts {
        match self {
            Self::Ok => {
                Facts("ok", Side::None, Step::Forward, None, false, "The exchange or the connection came to its end.")
            }
            Self::ClientClosed => {
                Facts("client_closed", Side::Client, Step::Forward, None, true, "The client ended before it was done.")
            }
            Self::ClientReset => {
                Facts("client_reset", Side::Client, Step::Forward, None, true, "The client reset its connection.")
            }
            Self::ClientIdleTimeout => Facts(
                "client_idle_timeout",
                Side::Client,
                Step::Forward,
                None,
                true,
                "The client was silent for too long.",
            ),
            Self::RequestMalformed => Facts(
                "request_malformed",
                Side::Client,
                Step::Forward,
                Some(400),
                false,
                "The request does not follow the grammar of its protocol.",
            ),
            Self::RequestAmbiguous => Facts(
                "request_ambiguous",
                Side::Client,
                Step::Forward,
                Some(400),
                false,
                "Servers could read the request in more than one way.",
            ),
            Self::RequestHeadTooLarge => Facts(
                "request_head_too_large",
                Side::Client,
                Step::Forward,
                Some(431),
                false,
                "The request's head is over the limit.",
            ),
            Self::RequestHeadTimeout => Facts(
                "request_head_timeout",
                Side::Client,
                Step::Forward,
                Some(408),
                true,
                "The request's head did not come in time.",
            ),
            Self::RequestBodyMalformed => Facts(
                "request_body_malformed",
                Side::Client,
                Step::Forward,
                Some(400),
                false,
                "The request's body breaks its framing.",
            ),
            Self::RequestVersionUnsupported => Facts(
                "request_version_unsupported",
                Side::Client,
                Step::Forward,
                Some(505),
                false,
                "The request's version of HTTP is not spoken.",
            ),
            Self::RequestCanceled => {
                Facts("request_canceled", Side::Client, Step::Forward, None, true, "The client gave up the request.")
            }
            Self::Http2ProtocolError => Facts(
                "http2_protocol_error",
                Side::Client,
                Step::Forward,
                None,
                false,
                "The client broke the rules of HTTP/2.",
            ),
            Self::Http2ResetFlood => Facts(
                "http2_reset_flood",
                Side::Client,
                Step::Forward,
                None,
                false,
                "The client reset too many streams.",
            ),
            Self::OriginalDestinationUnknown => Facts(
                "original_destination_unknown",
                Side::Us,
                Step::OriginalDestination,
                None,
                true,
                "The kernel did not tell where the client wanted to go.",
            ),
            Self::LoopDetected => Facts(
                "loop_detected",
                Side::Client,
                Step::OriginalDestination,
                Some(508),
                false,
                "The client dialled a port of the proxy itself.",
            ),
            Self::TlsHandshakeTimeout => Facts(
                "tls_handshake_timeout",
                Side::Server,
                Step::Tls,
                Some(502),
                true,
                "The peer did not finish the TLS handshake in time.",
            ),
            Self::TlsHandshakeFailed => Facts(
                "tls_handshake_failed",
                Side::Server,
                Step::Tls,
                Some(502),
                false,
                "The TLS handshake failed; the detail says how.",
            ),
            Self::TlsVersionUnsupported => Facts(
                "tls_version_unsupported",
                Side::Client,
                Step::Tls,
                Some(502),
                false,
                "The peer does not offer TLS 1.3.",
            ),
            Self::PeerCertificateMissing => Facts(
                "peer_certificate_missing",
                Side::Client,
                Step::Tls,
                Some(502),
                false,
                "The peer showed no certificate.",
            ),
            Self::PeerCertificateUntrusted => Facts(
                "peer_certificate_untrusted",
                Side::Client,
                Step::Tls,
                Some(502),
                false,
                "The peer's certificate leads to no root of the trust bundle.",
            ),
            Self::PeerCertificateExpired => Facts(
                "peer_certificate_expired",
                Side::Client,
                Step::Tls,
                Some(502),
                false,
                "A certificate of the peer has ended.",
            ),
            Self::PeerCertificateNotYetValid => Facts(
                "peer_certificate_not_yet_valid",
                Side::Client,
                Step::Tls,
                Some(502),
                false,
                "A certificate of the peer is not valid yet.",
            ),
            Self::PeerCertificateUsage => Facts(
                "peer_certificate_usage",
                Side::Client,
                Step::Tls,
                Some(502),
                false,
                "A certificate of the peer may not be used for this.",
            ),
            Self::PeerCertificateMalformed => Facts(
                "peer_certificate_malformed",
                Side::Client,
                Step::Tls,
                Some(502),
                false,
                "A certificate of the peer cannot be read.",
            ),
            Self::PeerIdentityMissing => Facts(
                "peer_identity_missing",
                Side::Client,
                Step::Tls,
                Some(502),
                false,
                "The peer's certificate names no SPIFFE ID.",
            ),
            Self::PeerIdentityAmbiguous => Facts(
                "peer_identity_ambiguous",
                Side::Client,
                Step::Tls,
                Some(502),
                false,
                "The peer's certificate names more than one URI.",
            ),
            Self::PeerIdentityMalformed => Facts(
                "peer_identity_malformed",
                Side::Client,
                Step::Tls,
                Some(502),
                false,
                "The URI of the peer's certificate is no SPIFFE ID of ours.",
            ),
            Self::PeerTrustDomainMismatch => Facts(
                "peer_trust_domain_mismatch",
                Side::Client,
                Step::Tls,
                Some(502),
                false,
                "The peer belongs to another trust domain.",
            ),
            Self::PeerIdentityMismatch => Facts(
                "peer_identity_mismatch",
                Side::Server,
                Step::Tls,
                Some(502),
                false,
                "The server is not who discovery says.",
            ),
            Self::PeerRefusedUs => Facts(
                "peer_refused_us",
                Side::Server,
                Step::Tls,
                Some(502),
                false,
                "The peer did not accept our certificate.",
            ),
            Self::PlaintextRefused => Facts(
                "plaintext_refused",
                Side::Policy,
                Step::Policy,
                Some(403),
                false,
                "The client is not in the mesh and plaintext is refused.",
            ),
            Self::NoEndpoint => {
                Facts("no_endpoint", Side::Server, Step::Route, Some(503), true, "The service has no endpoint.")
            }
            Self::ConnectRefused => Facts(
                "connect_refused",
                Side::Server,
                Step::Connect,
                Some(502),
                true,
                "The server refused the connection.",
            ),
            Self::ConnectTimeout => Facts(
                "connect_timeout",
                Side::Server,
                Step::Connect,
                Some(504),
                true,
                "The server did not take the connection in time.",
            ),
            Self::ConnectUnreachable => Facts(
                "connect_unreachable",
                Side::Server,
                Step::Connect,
                Some(502),
                true,
                "There is no way to the server.",
            ),
            Self::ConnectFailed => Facts(
                "connect_failed",
                Side::Server,
                Step::Connect,
                Some(502),
                true,
                "The connection to the server failed.",
            ),
            Self::ServerClosed => Facts(
                "server_closed",
                Side::Server,
                Step::Forward,
                Some(502),
                false,
                "The server ended before it was done.",
            ),
            Self::ServerReset => Facts(
                "server_reset",
                Side::Server,
                Step::Forward,
                Some(502),
                false,
                "The server reset its connection or stream.",
            ),
            Self::ServerIdleTimeout => Facts(
                "server_idle_timeout",
                Side::Server,
                Step::Forward,
                Some(504),
                false,
                "The server was silent for too long.",
            ),
            Self::ResponseMalformed => Facts(
                "response_malformed",
                Side::Server,
                Step::Forward,
                Some(502),
                false,
                "The answer cannot be forwarded safely.",
            ),
            Self::ResponseHeadTooLarge => Facts(
                "response_head_too_large",
                Side::Server,
                Step::Forward,
                Some(502),
                false,
                "The answer's head is over the limit.",
            ),
            Self::ConnectionLimit => Facts(
                "connection_limit",
                Side::Us,
                Step::Accept,
                Some(503),
                true,
                "The proxy serves as many connections as it may.",
            ),
            Self::Draining => {
                Facts("draining", Side::Us, Step::Drain, Some(503), true, "The proxy stopped before this was done.")
            }
            Self::CredentialsUnavailable => Facts(
                "credentials_unavailable",
                Side::Us,
                Step::Tls,
                Some(503),
                true,
                "The proxy has no valid certificate.",
            ),
            Self::Internal => Facts("internal", Side::Us, Step::Forward, Some(500), false, "A fault of the proxy."),
        }
    }

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        self.facts().0
    }

    /// Whose side it was. For TLS this is the inbound view; outbound, the peer is the server.
    pub const fn side(self) -> Side {
        self.facts().1
    }

    /// Where it ended.
    pub const fn step(self) -> Step {
        self.facts().2
    }

    /// The status with which a request that ends so is answered, where it still can be.
    pub const fn http_status(self) -> Option<u16> {
        self.facts().3
    }

    /// Nothing that counts has happened at a server: it may be tried again.
    pub const fn retry_is_safe(self) -> bool {
        self.facts().4
    }

    /// One sentence for a person.
    pub const fn description(self) -> &'static str {
        self.facts().5
    }

    /// The documented table (docs/reference/codes.md).
    pub fn table() -> String {
        let mut table = String::from(
            "| code | whose side | step | HTTP status | retry is safe | meaning |\n|---|---|---|---|---|---|\n",
        );
        for code in Self::ALL {
            let status = code.http_status().map_or("-".to_owned(), |status| status.to_string());
            let retry = if code.retry_is_safe() { "yes" } else { "no" };
            let (side, step) = (code.side().as_str(), code.step().as_str());
            table +=
                &format!("| `{}` | {side} | {step} | {status} | {retry} | {} |\n", code.as_str(), code.description());
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_the_list_is_whole() {
        let names: std::collections::BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        assert!(Code::ALL.iter().enumerate().all(|(at, code)| *code as usize == at));
    }

    #[test]
    fn the_documented_table_is_fresh() {
        let page = include_str!("../../docs/reference/codes.md");
        assert!(page.contains(&Code::table()), "run: cargo run -p record --example reference");
    }
}
