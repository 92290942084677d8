//! From an encoded record to what the engine takes: the same reading for the proxy, and for whoever replays a spool.
//!
//! Promises: a record makes at most one observation, damaged bytes make none, and an edge's peer is a SPIFFE ID or one of a
//! few classes of address, so that a crowd of addresses without an identity is one edge and not thousands.
//!
//! What counts: each request; each connection that is closed and had no requests of its own. What does not: reports of
//! connections that go on, and what the proxy itself cut when it stopped.

use std::net::IpAddr;

use ::record::line::{self, Attribute, Part, Undecoded};

use crate::{Direction, EdgeRef, Observation, Protection, Protocol};

/// How it can end without anybody's fault: all is well, or the client did not want more.
const NO_ERROR: [&str; 6] =
    ["ok", "client_closed", "client_reset", "client_idle_timeout", "request_canceled", "draining"];
/// gRPC statuses that blame the server: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS
/// (OpenTelemetry semantic conventions, "gRPC server").
const GRPC_SERVER_ERRORS: [i64; 6] = [2, 4, 12, 13, 14, 15];

/// The attributes that count, as a record holds their names.
mod names {
    use ::record::key;

    macro_rules! names {
        ($($name:ident)*) => { $(pub(super) const $name: &[u8] = key::$name.as_bytes();)* };
    }

    names! {
        BYTES_FROM_CLIENT
        BYTES_FROM_SERVER
        CLIENT_IDENTITY
        CODE
        CONNECTION_STATE
        DECISION
        DESTINATION_ADDRESS
        DESTINATION_PORT
        DIRECTION
        DURATION
        FIRST_BYTE_DURATION
        HTTP_REQUEST_BODY_SIZE
        HTTP_RESPONSE_BODY_SIZE
        HTTP_RESPONSE_STATUS_CODE
        NETWORK_PROTOCOL_NAME
        REQUESTS
        RPC_GRPC_STATUS_CODE
        RPC_SYSTEM
        SERVER_IDENTITY
        SERVICE
        SOURCE_ADDRESS
    }
}

/// What of a record's attributes counts.
#[derive(Default)]
struct Facts<'a> {
    outbound: bool,
    client: Option<&'a str>,
    server: Option<&'a str>,
    source: &'a str,
    destination: &'a str,
    service: &'a str,
    port: u16,
    protocol: &'a str,
    grpc: bool,
    grpc_status: Option<i64>,
    status: Option<i64>,
    decision: &'a str,
    code: &'a str,
    duration: Option<f64>,
    first_byte: Option<f64>,
    bytes_from_client: u64,
    bytes_from_server: u64,
    requests: i64,
    open: bool,
}

impl<'a> Facts<'a> {
    /// Looks at the value of an attribute only where it counts: a record has three times as many.
    fn take(&mut self, name: &[u8], value: Undecoded<'a>) {
        match name {
            names::DIRECTION => self.outbound = text(value) == "outbound",
            names::CLIENT_IDENTITY => self.client = Some(text(value)),
            names::SERVER_IDENTITY => self.server = Some(text(value)),
            names::SOURCE_ADDRESS => self.source = text(value),
            names::DESTINATION_ADDRESS => self.destination = text(value),
            names::DESTINATION_PORT => self.port = u16::try_from(int(value)).unwrap_or(0),
            names::SERVICE => self.service = text(value),
            names::NETWORK_PROTOCOL_NAME => self.protocol = text(value),
            names::RPC_SYSTEM => self.grpc = true,
            names::RPC_GRPC_STATUS_CODE => self.grpc_status = Some(int(value)),
            names::HTTP_RESPONSE_STATUS_CODE => self.status = Some(int(value)),
            names::HTTP_REQUEST_BODY_SIZE | names::BYTES_FROM_CLIENT => self.bytes_from_client = size(value),
            names::HTTP_RESPONSE_BODY_SIZE | names::BYTES_FROM_SERVER => self.bytes_from_server = size(value),
            names::DECISION => self.decision = text(value),
            names::CODE => self.code = text(value),
            names::DURATION => self.duration = seconds(value),
            names::FIRST_BYTE_DURATION => self.first_byte = seconds(value),
            names::REQUESTS => self.requests = int(value),
            names::CONNECTION_STATE => self.open = text(value) == "open",
            _ => {}
        }
    }

    fn edge(&self) -> EdgeRef<'a> {
        let (identity, address) =
            if self.outbound { (self.server, self.destination) } else { (self.client, self.source) };
        EdgeRef {
            direction: if self.outbound { Direction::Outbound } else { Direction::Inbound },
            peer: match identity {
                Some(identity) => identity,
                None if self.outbound && !self.service.is_empty() && self.error() => "",
                None => address_class(address),
            },
            service: self.service,
            port: self.port,
            protocol: match (self.grpc, self.protocol) {
                (true, _) => Protocol::Grpc,
                (false, "http") => Protocol::Http,
                _ => Protocol::Tcp,
            },
        }
    }

    fn error(&self) -> bool {
        !NO_ERROR.contains(&self.code)
            || self.status.is_some_and(|status| status >= 500)
            || self.grpc_status.is_some_and(|status| GRPC_SERVER_ERRORS.contains(&status))
    }

    fn protection(&self) -> Protection {
        match self.decision {
            "meshed" => Protection::MutualTls,
            "permitted" | "passthrough" => Protection::Plaintext,
            _ => Protection::Unknown,
        }
    }
}

/// What a record says, given as the content of its `log_records` field; none where it is no finished exchange.
pub fn observation(record: &[u8]) -> Option<Observation<'_>> {
    let (mut facts, mut nanos, mut event) = (Facts::default(), 0, &b""[..]);
    for part in line::parts(record) {
        match part {
            Part::Time(time) => nanos = time,
            Part::EventName(name) => event = name,
            Part::Attribute(name, value) => facts.take(name, value),
        }
    }
    let is_request = match event {
        b"picket.request" => true,
        b"picket.connection" => false,
        _ => return None,
    };
    if facts.code == "draining" || !is_request && (facts.open || facts.requests > 0) {
        return None;
    }
    let (from_client, from_server) = (facts.bytes_from_client, facts.bytes_from_server);
    let (bytes_in, bytes_out) = if facts.outbound { (from_server, from_client) } else { (from_client, from_server) };
    Some(Observation {
        at: nanos / 1_000_000,
        edge: facts.edge(),
        source: if facts.outbound { None } else { facts.source.parse().ok() },
        error: facts.error(),
        // How long an opaque connection lasts is up to those who talk.
        duration_us: facts.duration.filter(|_| is_request).map(micros),
        first_byte_us: facts.first_byte.map(micros),
        bytes_in,
        bytes_out,
        protection: facts.protection(),
    })
}

fn text(value: Undecoded<'_>) -> &str {
    if let Some(Attribute::Text(text)) = value.value() { text } else { "" }
}

fn int(value: Undecoded<'_>) -> i64 {
    if let Some(Attribute::Int(number)) = value.value() { number } else { 0 }
}

fn size(value: Undecoded<'_>) -> u64 {
    u64::try_from(int(value)).unwrap_or(0)
}

fn seconds(value: Undecoded<'_>) -> Option<f64> {
    if let Some(Attribute::Double(seconds)) = value.value() { Some(seconds) } else { None }
}

/// Whole microseconds; what is no time counts as none at all.
fn micros(seconds: f64) -> u64 {
    (seconds * 1e6).max(0.0) as u64
}

/// Where an address belongs (RFC 1918, 4193, 3927, 4291, 6598); peers without an identity are told apart by no more.
pub fn address_class(text: &str) -> &'static str {
    let Ok(address) = text.parse::<IpAddr>() else { return "unknown" };
    let (loopback, link_local, private) = match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            let shared = first == 100 && second & 0xc0 == 64;
            (v4.is_loopback(), v4.is_link_local(), v4.is_private() || shared)
        }
        IpAddr::V6(v6) => (v6.is_loopback(), v6.is_unicast_link_local(), v6.is_unique_local()),
    };
    match (loopback, link_local, private) {
        (true, ..) => "loopback",
        (_, true, _) => "link_local",
        (.., true) => "private",
        (false, false, false) => "public",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ::record::{
        ClosedBy, Code, Connection, Context, Decision, DetectedBy, EstablishedBy, HttpVersion, Protocol as Spoken,
        Request, State, UidSource,
    };

    use super::*;

    const CLIENT: &str = "spiffe://example.org/ns/demo/sa/frontend";
    const SERVER: &str = "spiffe://example.org/ns/demo/sa/backend";

    fn context(direction: Direction, client: Option<&str>) -> ::record::ContextAttributes {
        Context {
            direction,
            source: "10.1.2.3:41000".parse().unwrap(),
            destination: "10.96.0.7:80".parse().unwrap(),
            upstream: None,
            service: Some("web.demo"),
            client_workload: None,
            server_workload: None,
            client_identity: client.map(|client| (client, EstablishedBy::MutualTls)),
            server_identity: Some((SERVER, EstablishedBy::MutualTls)),
            tls: None,
            server_name: None,
            protocol: Spoken::Http1,
            detected_by: DetectedBy::FirstBytes,
            decision: if client.is_some() { Decision::Meshed } else { Decision::Permitted },
            decision_reason: "test",
        }
        .encode(UidSource::new(2).next(1))
    }

    fn request(context: &::record::ContextAttributes, status: u16, code: Code) -> Vec<u8> {
        let mut uids = UidSource::new(1);
        let mut out = Vec::new();
        Request {
            uid: uids.next(1),
            context,
            started_unix_nanos: 4_997_000_000,
            ended_unix_nanos: 5_000_000_000,
            method: "GET",
            path: "/",
            authority: Some("web"),
            http_version: HttpVersion::Http11,
            status: Some(status),
            grpc_status: None,
            is_grpc: false,
            request_body_bytes: 7,
            response_body_bytes: 900,
            first_byte: Some(Duration::from_millis(2)),
            duration: Duration::from_millis(3),
            resends: 0,
            trace: None,
            code,
            detail: None,
            upgraded: None,
            captured: None,
        }
        .encode(&mut out);
        out
    }

    fn connection(state: State, requests: u64) -> Vec<u8> {
        let mut out = Vec::new();
        Connection {
            uid: UidSource::new(1).next(1),
            context: &context(Direction::Inbound, None),
            started_unix_nanos: 0,
            ended_unix_nanos: 1,
            state,
            bytes_from_client: 1,
            bytes_from_server: 2,
            connect: None,
            handshake: None,
            first_byte: None,
            duration: Duration::from_secs(1),
            requests,
            closed_by: ClosedBy::Client,
            code: Code::ConnectRefused,
            detail: None,
        }
        .encode(&mut out);
        out
    }

    fn only(batch: &[u8]) -> Option<Observation<'_>> {
        line::records(batch).next().and_then(observation)
    }

    #[test]
    fn a_request_is_seen_from_its_workload() {
        let fields = request(&context(Direction::Outbound, Some(CLIENT)), 200, Code::Ok);
        let seen = only(&fields).unwrap();
        assert_eq!((seen.edge.direction, seen.edge.peer, seen.edge.service), (Direction::Outbound, SERVER, "web.demo"));
        assert_eq!((seen.at, seen.bytes_in, seen.bytes_out), (5000, 900, 7));
        assert_eq!((seen.duration_us, seen.first_byte_us, seen.error), (Some(3000), Some(2000), false));
        assert_eq!(seen.protection, Protection::MutualTls);

        let fields = request(&context(Direction::Inbound, Some(CLIENT)), 503, Code::Ok);
        let seen = only(&fields).unwrap();
        assert_eq!((seen.edge.peer, seen.bytes_in, seen.bytes_out, seen.error), (CLIENT, 7, 900, true));
    }

    #[test]
    fn who_has_no_identity_is_a_class_of_address_in_plaintext() {
        let fields = request(&context(Direction::Inbound, None), 200, Code::Ok);
        let seen = only(&fields).unwrap();
        assert_eq!((seen.edge.peer, seen.protection), ("private", Protection::Plaintext));
    }

    #[test]
    fn a_client_that_gives_up_and_a_proxy_that_stops_are_nobodys_fault() {
        let context = context(Direction::Inbound, Some(CLIENT));
        let given_up = request(&context, 200, Code::RequestCanceled);
        assert!(!only(&given_up).unwrap().error);
        assert!(only(&request(&context, 503, Code::Draining)).is_none());
        let refused = request(&context, 502, Code::ServerReset);
        assert!(only(&refused).unwrap().error);
    }

    #[test]
    fn of_connections_those_count_that_are_over_and_had_no_requests() {
        let fields = connection(State::Closed, 0);
        let seen = only(&fields).unwrap();
        assert_eq!((seen.duration_us, seen.error, seen.bytes_in), (None, true, 1));
        assert!(only(&connection(State::Open, 0)).is_none());
        assert!(only(&connection(State::Closed, 3)).is_none());
    }

    #[test]
    fn classes_of_addresses() {
        for (address, class) in [
            ("127.0.0.1", "loopback"),
            ("::1", "loopback"),
            ("::ffff:10.0.0.1", "private"),
            ("100.64.0.1", "private"),
            ("fd00::1", "private"),
            ("169.254.169.254", "link_local"),
            ("fe80::1", "link_local"),
            ("9.9.9.9", "public"),
            ("2620:fe::fe", "public"),
            ("", "unknown"),
        ] {
            assert_eq!(address_class(address), class, "{address}");
        }
    }

    #[test]
    fn damaged_bytes_make_no_panic() {
        let whole = request(&context(Direction::Inbound, Some(CLIENT)), 200, Code::Ok);
        let record = line::records(&whole).next().unwrap();
        for end in 0..record.len() {
            let _ = observation(&record[..end]);
        }
    }
}
