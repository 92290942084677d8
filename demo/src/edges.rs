//! The service graph, made from received records alone.
//!
//! Promises: pure; an edge is (client identity, server identity, service, protocol), seen from the client's proxy, which
//! is the side that measured what the client waited for.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use testkit::Record;

/// Attribute names that the demo reads: it knows the documented schema only, as any other consumer of OTLP does.
pub(crate) mod key {
    pub(crate) const DIRECTION: &str = "picket.direction";
    pub(crate) const SERVICE: &str = "picket.service.name";
    pub(crate) const CLIENT_IDENTITY: &str = "picket.client.identity";
    pub(crate) const SERVER_IDENTITY: &str = "picket.server.identity";
    pub(crate) const DECISION: &str = "picket.decision";
    pub(crate) const CODE: &str = "picket.code";
    pub(crate) const DURATION: &str = "picket.duration";
    pub(crate) const CONNECTION_STATE: &str = "picket.connection.state";
    pub(crate) const DESTINATION_ADDRESS: &str = "destination.address";
    pub(crate) const DESTINATION_PORT: &str = "destination.port";
    pub(crate) const NETWORK_PROTOCOL_NAME: &str = "network.protocol.name";
    pub(crate) const NETWORK_PROTOCOL_VERSION: &str = "network.protocol.version";
    pub(crate) const TLS_PROTOCOL_VERSION: &str = "tls.protocol.version";
    pub(crate) const TLS_CURVE: &str = "tls.curve";
    pub(crate) const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
    pub(crate) const RPC_GRPC_STATUS_CODE: &str = "rpc.grpc.status_code";
    pub(crate) const RPC_SYSTEM: &str = "rpc.system.name";
}

/// What was exchanged over one edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unit {
    /// Requests: one `picket.request` each.
    Request,
    /// Opaque connections: one `picket.connection` each.
    Connection,
}

impl Unit {
    /// The event that stands for one.
    pub(crate) fn event(self) -> &'static str {
        match self {
            Self::Request => "picket.request",
            Self::Connection => "picket.connection",
        }
    }
}

/// Whose proxy made a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The client's.
    Client,
    /// The server's.
    Server,
}

impl Side {
    /// The direction that such records name.
    pub(crate) fn direction(self) -> &'static str {
        match self {
            Self::Client => "outbound",
            Self::Server => "inbound",
        }
    }
}

/// Longer times than an hour are shown as an hour.
const LONGEST_MICROSECONDS: u64 = 3_600_000_000;

/// One edge of the graph.
#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) client: String,
    pub(crate) server: String,
    pub(crate) service: String,
    pub(crate) protocol: String,
    /// TLS version and group, of all its records.
    pub(crate) tls: BTreeSet<String>,
    /// How many requests, or connections where there are no requests.
    pub(crate) count: u64,
    /// Of these, failed.
    pub(crate) errors: u64,
    microseconds: Histogram<u64>,
}

impl Edge {
    /// Time below which this part of the requests (0 to 1) was answered, in milliseconds.
    pub(crate) fn quantile_ms(&self, part: f64) -> f64 {
        self.microseconds.value_at_quantile(part) as f64 / 1000.0
    }
}

/// Groups the outbound records. Connections count only where their protocol has no requests.
pub(crate) fn edges(records: &[Record]) -> Result<Vec<Edge>> {
    let mut edges = BTreeMap::new();
    for record in records.iter().filter(|record| record.is(key::DIRECTION, Side::Client.direction()) && is_unit(record))
    {
        let text = |key| record.text(key).unwrap_or("-").to_owned();
        let key = (text(key::CLIENT_IDENTITY), text(key::SERVER_IDENTITY), text(key::SERVICE), protocol(record));
        if !edges.contains_key(&key) {
            edges.insert(key.clone(), fresh(&key)?);
        }
        let edge = edges.get_mut(&key).context("the edge was inserted above")?;
        edge.tls.insert(format!("{} {}", text(key::TLS_PROTOCOL_VERSION), text(key::TLS_CURVE)));
        edge.count += 1;
        edge.errors += u64::from(is_error(record));
        let seconds = record.number(key::DURATION).context("a record has a duration")?;
        edge.microseconds.saturating_record((seconds * 1e6) as u64);
    }
    Ok(edges.into_values().collect())
}

fn fresh((client, server, service, protocol): &(String, String, String, String)) -> Result<Edge> {
    Ok(Edge {
        client: client.clone(),
        server: server.clone(),
        service: service.clone(),
        protocol: protocol.clone(),
        tls: BTreeSet::new(),
        count: 0,
        errors: 0,
        // Fixed bounds: saturating at the bounds of a histogram that grows would cut what it has not grown to yet.
        microseconds: Histogram::new_with_bounds(1, LONGEST_MICROSECONDS, 3).context("the bounds are valid")?,
    })
}

/// Whether the record stands for one exchange: a request, or a connection without requests.
fn is_unit(record: &Record) -> bool {
    match record.event() {
        event if event == Unit::Request.event() => true,
        event if event == Unit::Connection.event() => {
            is_closed(record) && !record.is(key::NETWORK_PROTOCOL_NAME, "http")
        }
        _ => false,
    }
}

/// Whether a connection's record is its last one: long connections also report while they are open.
pub(crate) fn is_closed(record: &Record) -> bool {
    record.is(key::CONNECTION_STATE, "closed")
}

fn protocol(record: &Record) -> String {
    let name = record.text(key::NETWORK_PROTOCOL_NAME).unwrap_or("tcp");
    if record.integer(key::RPC_GRPC_STATUS_CODE).is_some() || record.text(key::RPC_SYSTEM).is_some() {
        return "grpc".to_owned();
    }
    match record.text(key::NETWORK_PROTOCOL_VERSION) {
        Some(version) => format!("{name}/{version}"),
        None => name.to_owned(),
    }
}

fn is_error(record: &Record) -> bool {
    let refused = record.text(key::CODE) != Some("ok");
    let failed = record.integer(key::HTTP_RESPONSE_STATUS_CODE).is_some_and(|status| status >= 500);
    let grpc = record.integer(key::RPC_GRPC_STATUS_CODE).is_some_and(|status| status != 0);
    refused || failed || grpc
}

/// `demo/web` of `spiffe://TRUST-DOMAIN/ns/demo/sa/web`; other texts stay as they are.
pub(crate) fn short(identity: &str) -> String {
    let path = identity.strip_prefix("spiffe://").and_then(|rest| rest.split_once("/ns/"));
    path.map_or_else(|| identity.to_owned(), |(_, path)| path.replace("/sa/", "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_shortened_and_other_texts_are_not() {
        assert_eq!(short("spiffe://demo.picket.dev/ns/demo/sa/web"), "demo/web");
        assert_eq!(short("-"), "-");
    }
}
