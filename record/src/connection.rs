//! `picket.connection`: one closing record per connection and side; long connections also report on the way.

use std::time::Duration;

use crate::{
    Code, ContextAttributes, Uid, key,
    otlp::{self, Severity},
};

/// Whether the connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// A report on the way.
    Open,
    /// The closing record.
    Closed,
}

impl State {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

/// Who ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClosedBy {
    /// Who dialled.
    Client,
    /// Who was dialled.
    Server,
    /// The proxy.
    Us,
}

impl ClosedBy {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Us => "us",
        }
    }
}

/// One connection.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// Its uid; requests name it.
    pub uid: Uid,
    /// Who talked to whom.
    pub context: &'a ContextAttributes,
    /// When it was accepted, in nanoseconds since 1970 UTC.
    pub started_unix_nanos: u64,
    /// When it ended, or now.
    pub ended_unix_nanos: u64,
    /// Whether it goes on.
    pub state: State,
    /// Bytes of content towards the server: bodies of HTTP, else all bytes.
    pub bytes_from_client: u64,
    /// Bytes of content towards the client: bodies of HTTP, else all bytes.
    pub bytes_from_server: u64,
    /// Until TCP to the endpoint stood.
    pub connect: Option<Duration>,
    /// The TLS handshake.
    pub handshake: Option<Duration>,
    /// Until the first byte from the server.
    pub first_byte: Option<Duration>,
    /// In all.
    pub duration: Duration,
    /// Requests on it.
    pub requests: u64,
    /// Who ended it.
    pub closed_by: ClosedBy,
    /// How it ended.
    pub code: Code,
    /// The chain of errors.
    pub detail: Option<&'a str>,
}

impl Connection<'_> {
    /// Appends the record to `out`, as one finished `log_records` field.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let severity = if self.code == Code::Ok { Severity::Info } else { Severity::Warn };
        let head = otlp::Head {
            event_name: "picket.connection",
            time_unix_nano: self.ended_unix_nanos,
            severity,
            trace: None,
        };
        otlp::log_record(out, &head, |mut attributes| {
            attributes.out.extend_from_slice(self.context.of_connection());
            attributes.uid(key::LOG_RECORD_UID, self.uid);
            attributes.text(key::CONNECTION_STATE, self.state.as_str());
            attributes.int(key::BYTES_FROM_CLIENT, self.bytes_from_client);
            attributes.int(key::BYTES_FROM_SERVER, self.bytes_from_server);
            for (name, duration) in [
                (key::CONNECT_DURATION, self.connect),
                (key::HANDSHAKE_DURATION, self.handshake),
                (key::FIRST_BYTE_DURATION, self.first_byte),
                (key::DURATION, Some(self.duration)),
            ] {
                if let Some(duration) = duration {
                    attributes.seconds(name, duration);
                }
            }
            attributes.int(key::REQUESTS, self.requests);
            attributes.text(key::CLOSED_BY, self.closed_by.as_str());
            attributes.text(key::CODE, self.code.as_str());
            if self.code != Code::Ok {
                attributes.text(key::ERROR_TYPE, self.code.as_str());
            }
            attributes.text_if(key::DETAIL, self.detail);
            attributes.finish();
        });
    }
}
