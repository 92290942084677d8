//! `picket.request`: one per HTTP request or gRPC call.

use std::time::Duration;

use crate::{
    Captured, Code, ContextAttributes, Uid, key,
    otlp::{self, Severity},
};

/// A version of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

impl HttpVersion {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "1.0",
            Self::Http11 => "1.1",
            Self::Http2 => "2",
        }
    }
}

/// One HTTP request or gRPC call.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its uid.
    pub uid: Uid,
    /// Who talked to whom, and on which connection.
    pub context: &'a ContextAttributes,
    /// When its head had come, in nanoseconds since 1970 UTC.
    pub started_unix_nanos: u64,
    /// When it ended.
    pub ended_unix_nanos: u64,
    /// The method, as sent.
    pub method: &'a str,
    /// The path, without the query.
    pub path: &'a str,
    /// Host or `:authority`.
    pub authority: Option<&'a str>,
    /// The version of HTTP.
    pub http_version: HttpVersion,
    /// The status that the client got.
    pub status: Option<u16>,
    /// The status of a gRPC call.
    pub grpc_status: Option<u32>,
    /// True for calls of gRPC.
    pub is_grpc: bool,
    /// Bytes of content from the client.
    pub request_body_bytes: u64,
    /// Bytes of content from the server.
    pub response_body_bytes: u64,
    /// Until the answer began.
    pub first_byte: Option<Duration>,
    /// In all.
    pub duration: Duration,
    /// How often it was sent again.
    pub resends: u32,
    /// Trace id, span id and flags of W3C Trace Context.
    pub trace: Option<([u8; 16], [u8; 8], u8)>,
    /// How it ended.
    pub code: Code,
    /// The chain of errors.
    pub detail: Option<&'a str>,
    /// The protocol that the connection switched to.
    pub upgraded: Option<&'a str>,
    /// What settings ask for besides all this.
    pub captured: Option<&'a Captured>,
}

impl Request<'_> {
    /// Appends the record to `out`, as one finished `log_records` field.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let severity = if self.code == Code::Ok { Severity::Info } else { Severity::Warn };
        let head = otlp::Head {
            event_name: "picket.request",
            time_unix_nano: self.ended_unix_nanos,
            severity,
            trace: self.trace,
        };
        otlp::log_record(out, &head, |mut attributes| {
            self.shared(&mut attributes);
            attributes.out.extend_from_slice(self.context.of_request());
            attributes.uid(key::LOG_RECORD_UID, self.uid);
            self.http(&mut attributes);
            if let Some(captured) = self.captured {
                attributes.captured(captured);
            }
            if let Some(first_byte) = self.first_byte {
                attributes.seconds(key::FIRST_BYTE_DURATION, first_byte);
            }
            attributes.seconds(key::DURATION, self.duration);
            attributes.text(key::CODE, self.code.as_str());
            if self.code != Code::Ok {
                attributes.text(key::ERROR_TYPE, self.code.as_str());
            }
            attributes.text_if(key::DETAIL, self.detail);
            attributes.text_if(key::UPGRADED, self.upgraded);
            attributes.finish();
        });
    }

    /// What requests of one connection seldom differ in: before the uid it belongs to the context, and tells contexts apart.
    fn shared(&self, attributes: &mut otlp::Attributes<'_>) {
        if let Some(authority) = self.authority {
            let (host, port) = split_authority(authority);
            attributes.text(key::SERVER_ADDRESS, host);
            if let Some(port) = port {
                attributes.int(key::SERVER_PORT, u64::from(port));
            }
        }
        attributes.text(key::NETWORK_PROTOCOL_VERSION, self.http_version.as_str());
    }

    fn http(&self, attributes: &mut otlp::Attributes<'_>) {
        attributes.text(key::HTTP_REQUEST_METHOD, self.method);
        attributes.text_of(key::URL_PATH, self.path, otlp::PATH_BYTES_MAX);
        if let Some(status) = self.status {
            attributes.int(key::HTTP_RESPONSE_STATUS_CODE, u64::from(status));
        }
        attributes.int(key::HTTP_REQUEST_BODY_SIZE, self.request_body_bytes);
        attributes.int(key::HTTP_RESPONSE_BODY_SIZE, self.response_body_bytes);
        if self.resends > 0 {
            attributes.int(key::HTTP_REQUEST_RESEND_COUNT, u64::from(self.resends));
        }
        if self.is_grpc {
            attributes.text(key::RPC_SYSTEM, "grpc");
            attributes.text(key::RPC_METHOD, self.path.trim_start_matches('/'));
        }
        if let Some(status) = self.grpc_status {
            attributes.int(key::RPC_GRPC_STATUS_CODE, u64::from(status));
        }
    }
}

/// Host and port of an authority; user information, which may hold a password, and the brackets of an IPv6 address are not
/// part of it.
fn split_authority(authority: &str) -> (&str, Option<u16>) {
    let authority = authority.rsplit_once('@').map_or(authority, |(_, authority)| authority);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        Some(_) | None => (authority, None),
    };
    (host.trim_start_matches('[').trim_end_matches(']'), port)
}
