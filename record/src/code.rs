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

struct Facts(&'static str, Side, Step, Option<u16>, bool, &'static str);

macro_rules! codes {
    ($($code:ident = $name:literal, $side:ident, $step:ident, $status:expr, $retry:literal, $meaning:literal;)*) => {
        /// How a connection or a request ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $code,)*
        }

        impl Code {
            /// Every code, in the order of the documented table.
            pub const ALL: &[Self] = &[$(Self::$code,)*];

            const fn facts(self) -> Facts {
                match self {
                    $(Self::$code => Facts($name, Side::$side, Step::$step, $status, $retry, $meaning),)*
                }
            }
        }
    };
}

// Code = name, whose side, step, HTTP status, retry is safe, meaning.
codes! {
    Ok = "ok", None, Forward, None, false, "The exchange or the connection came to its end.";
    ClientClosed = "client_closed", Client, Forward, None, true, "The client ended before it was done.";
    ClientReset = "client_reset", Client, Forward, None, true, "The client reset its connection, or was cut off in the middle of it.";
    ClientIdleTimeout = "client_idle_timeout", Client, Forward, None, true, "The client was silent for too long.";
    RequestMalformed = "request_malformed", Client, Forward, Some(400), false, "The request does not follow the grammar of its protocol.";
    RequestAmbiguous = "request_ambiguous", Client, Forward, Some(400), false, "Servers could read the request in more than one way.";
    RequestHeadTooLarge = "request_head_too_large", Client, Forward, Some(431), false, "The request's head is over the limit.";
    RequestHeadTimeout = "request_head_timeout", Client, Forward, Some(408), true, "The request's head did not come in time.";
    RequestBodyMalformed = "request_body_malformed", Client, Forward, Some(400), false, "The request's body breaks its framing.";
    RequestVersionUnsupported = "request_version_unsupported", Client, Forward, Some(505), false, "The request's version of HTTP is not spoken.";
    RequestCanceled = "request_canceled", Client, Forward, None, true, "The client gave up the request.";
    Http2ProtocolError = "http2_protocol_error", Client, Forward, None, false, "The client broke the rules of HTTP/2.";
    Http2ResetFlood = "http2_reset_flood", Client, Forward, None, false, "The client reset too many streams.";
    OriginalDestinationUnknown = "original_destination_unknown", Us, OriginalDestination, None, true, "The kernel did not tell where the client wanted to go.";
    LoopDetected = "loop_detected", Client, OriginalDestination, Some(508), false, "The client dialled a port of the proxy itself.";
    TlsHandshakeTimeout = "tls_handshake_timeout", Server, Tls, Some(502), true, "The peer did not finish the TLS handshake in time.";
    TlsHandshakeFailed = "tls_handshake_failed", Server, Tls, Some(502), false, "The TLS handshake failed; the detail says how.";
    TlsVersionUnsupported = "tls_version_unsupported", Client, Tls, Some(502), false, "The peer does not offer TLS 1.3.";
    PeerCertificateMissing = "peer_certificate_missing", Client, Tls, Some(502), false, "The peer showed no certificate.";
    PeerCertificateUntrusted = "peer_certificate_untrusted", Client, Tls, Some(502), false, "The peer's certificate leads to no root of the trust bundle.";
    PeerCertificateExpired = "peer_certificate_expired", Client, Tls, Some(502), false, "A certificate of the peer has ended.";
    PeerCertificateNotYetValid = "peer_certificate_not_yet_valid", Client, Tls, Some(502), false, "A certificate of the peer is not valid yet.";
    PeerCertificateUsage = "peer_certificate_usage", Client, Tls, Some(502), false, "A certificate of the peer may not be used for this.";
    PeerCertificateMalformed = "peer_certificate_malformed", Client, Tls, Some(502), false, "A certificate of the peer cannot be read.";
    PeerIdentityMissing = "peer_identity_missing", Client, Tls, Some(502), false, "The peer's certificate names no SPIFFE ID.";
    PeerIdentityAmbiguous = "peer_identity_ambiguous", Client, Tls, Some(502), false, "The peer's certificate names more than one URI.";
    PeerIdentityMalformed = "peer_identity_malformed", Client, Tls, Some(502), false, "The URI of the peer's certificate is no SPIFFE ID of ours.";
    PeerTrustDomainMismatch = "peer_trust_domain_mismatch", Client, Tls, Some(502), false, "The peer belongs to another trust domain.";
    PeerIdentityMismatch = "peer_identity_mismatch", Server, Tls, Some(502), false, "The server is not who discovery says.";
    PeerDenied = "peer_denied", Policy, Tls, Some(403), false, "The peer stands on the deny list.";
    PeerRefusedUs = "peer_refused_us", Server, Tls, Some(502), false, "The peer did not accept our certificate.";
    PlaintextRefused = "plaintext_refused", Policy, Policy, Some(403), false, "The client is not in the mesh and plaintext is refused.";
    NoEndpoint = "no_endpoint", Server, Route, Some(503), true, "The service has no endpoint.";
    ConnectRefused = "connect_refused", Server, Connect, Some(502), true, "The server refused the connection.";
    ConnectTimeout = "connect_timeout", Server, Connect, Some(504), true, "The server did not take the connection in time.";
    ConnectUnreachable = "connect_unreachable", Server, Connect, Some(502), true, "There is no way to the server.";
    ConnectFailed = "connect_failed", Server, Connect, Some(502), true, "The connection to the server failed.";
    ServerClosed = "server_closed", Server, Forward, Some(502), false, "The server ended before it was done.";
    ServerReset = "server_reset", Server, Forward, Some(502), false, "The server reset its connection or stream, or was cut off in the middle of it.";
    ServerIdleTimeout = "server_idle_timeout", Server, Forward, Some(504), false, "The server was silent for too long.";
    ResponseMalformed = "response_malformed", Server, Forward, Some(502), false, "The answer cannot be forwarded safely.";
    ResponseHeadTooLarge = "response_head_too_large", Server, Forward, Some(502), false, "The answer's head is over the limit.";
    ConnectionLimit = "connection_limit", Us, Accept, Some(503), true, "The proxy serves as many connections as it may.";
    SpoolFull = "spool_full", Us, Accept, Some(503), true, "The spool is full, and without a record there is no traffic (`spool.onFull: refuse`).";
    Draining = "draining", Us, Drain, Some(503), true, "The proxy stopped before this was done.";
    CredentialsUnavailable = "credentials_unavailable", Us, Tls, Some(503), true, "The proxy has no valid certificate.";
    Internal = "internal", Us, Forward, Some(500), false, "A fault of the proxy.";
}

impl Code {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        self.facts().0
    }

    /// Whose side it was. At the step `Tls` it is the peer's, which is the client inbound and the server outbound.
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
