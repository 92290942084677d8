//! The service graph, made from received records alone.
//!
//! Promises: pure; an edge is (client identity, server identity, service, protocol), seen from the client's proxy, which
//! is the side that measured what the client waited for.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use testkit::Record;

/// Attribute names of the record schema that the demo reads.
pub(crate) mod names {
    pub(crate) const DIRECTION: &str = "picket.direction";
    pub(crate) const SERVICE: &str = "picket.service";
    pub(crate) const CLIENT: &str = "picket.client.identity";
    pub(crate) const SERVER: &str = "picket.server.identity";
    pub(crate) const CODE: &str = "picket.code";
    pub(crate) const DURATION: &str = "picket.duration";
    pub(crate) const PROTOCOL: &str = "network.protocol.name";
    pub(crate) const TLS_VERSION: &str = "tls.protocol.version";
    pub(crate) const TLS_GROUP: &str = "tls.curve";
    pub(crate) const HTTP_STATUS: &str = "http.response.status_code";
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
    for record in records.iter().filter(|record| record.is(names::DIRECTION, "outbound") && is_unit(record)) {
        let text = |key| record.text(key).unwrap_or("-").to_owned();
        let key = (text(names::CLIENT), text(names::SERVER), text(names::SERVICE), protocol(record));
        if !edges.contains_key(&key) {
            edges.insert(key.clone(), fresh(&key)?);
        }
        let edge = edges.get_mut(&key).context("the edge was inserted above")?;
        edge.tls.insert(format!("{} {}", text(names::TLS_VERSION), text(names::TLS_GROUP)));
        edge.count += 1;
        edge.errors += u64::from(is_error(record));
        let seconds = record.number(names::DURATION).context("a record has a duration")?;
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
        microseconds: Histogram::new(3).context("three digits are allowed")?,
    })
}

/// Whether the record stands for one exchange: a request, or a connection without requests.
fn is_unit(record: &Record) -> bool {
    let opaque = !matches!(record.text(names::PROTOCOL), Some("http"));
    record.event() == Unit::Request.event() || (record.event() == Unit::Connection.event() && opaque)
}

fn protocol(record: &Record) -> String {
    let name = record.text(names::PROTOCOL).unwrap_or("tcp");
    if record.integer("rpc.grpc.status_code").is_some() || record.text("rpc.system.name").is_some() {
        return "grpc".to_owned();
    }
    match record.text("network.protocol.version") {
        Some(version) => format!("{name}/{version}"),
        None => name.to_owned(),
    }
}

fn is_error(record: &Record) -> bool {
    let refused = record.text(names::CODE) != Some("ok");
    let failed = record.integer(names::HTTP_STATUS).is_some_and(|status| status >= 500);
    let grpc = record.integer("rpc.grpc.status_code").is_some_and(|status| status != 0);
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
