//! Rate, errors and duration of each edge, made from the records: exponential histograms under the names of OpenTelemetry's
//! semantic conventions, at `/metrics` and by OTLP.
//!
//! Fed by a queue of its own, off the way of a request, which costs its thread nothing more than a record. Promises: a bounded
//! number of label sets of at most 4 KiB each; what comes on top goes to the set `otel.metric.overflow` of its metric (the
//! SDK specification's word) and is counted. The numbers are of the records: what is in no record is in no metric.

mod histogram;
mod prometheus;
mod otlp;
mod push;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use record::{key, line};

use crate::Receiver;
use histogram::Histogram;
pub use push::push;

/// Bytes of a label's value at most.
const VALUE_BYTES_MAX: usize = 256;
/// Class of a status that is none of HTTP's.
const NO_STATUS: &str = "none";
/// The class of an answer's status: `1xx` to `5xx`, or `none`.
pub const STATUS_CLASS: &str = "picket.http.status_class";
/// Marks the set of what was too much.
const OVERFLOW: &str = "otel.metric.overflow";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Instrument {
    HttpServer,
    HttpClient,
    RpcServer,
    RpcClient,
    Connection,
}

impl Instrument {
    const ALL: [Self; 5] = [Self::HttpServer, Self::HttpClient, Self::RpcServer, Self::RpcClient, Self::Connection];

    const fn name(self) -> &'static str {
        NAMES[self as usize]
    }

    const fn description(self) -> &'static str {
        match self {
            Self::HttpServer => "Duration of HTTP requests to the workload, gRPC calls excepted.",
            Self::HttpClient => "Duration of HTTP requests of the workload, gRPC calls excepted.",
            Self::RpcServer => "Duration of gRPC calls to the workload.",
            Self::RpcClient => "Duration of gRPC calls of the workload.",
            Self::Connection => "Duration of connections that ended.",
        }
    }
}

/// Every metric that there is.
pub const NAMES: [&str; 5] = [
    "http.server.request.duration",
    "http.client.request.duration",
    "rpc.server.call.duration",
    "rpc.client.call.duration",
    "picket.connection.duration",
];

/// Every attribute that a metric may have.
pub const ATTRIBUTES: [&str; 7] = [
    key::DIRECTION,
    key::CLIENT_IDENTITY,
    key::SERVER_IDENTITY,
    key::SERVICE,
    STATUS_CLASS,
    key::RPC_GRPC_STATUS_CODE,
    key::CODE,
];

/// What is measured, and how finely.
#[derive(Debug, Clone)]
pub struct Config {
    /// Label sets at most, of all metrics together, besides one for each metric that takes the rest.
    pub series_max: usize,
    /// Names out of [`NAMES`].
    pub include: Vec<String>,
    /// Names out of [`ATTRIBUTES`].
    pub attributes: Vec<String>,
}

#[derive(Debug)]
struct Series {
    instrument: Instrument,
    attributes: Vec<(&'static str, String)>,
    histogram: Histogram,
}

#[derive(Debug, Default)]
struct Table {
    series: HashMap<String, Series>,
    overflow: HashMap<Instrument, Series>,
    overflowed: u64,
    key: String,
}

/// The numbers of one process.
#[derive(Debug)]
pub struct Red {
    config: Config,
    table: Mutex<Table>,
    started_unix_nanos: u64,
}

/// What one record says.
#[derive(Default)]
struct Facts<'a> {
    direction: &'a str,
    client: Option<&'a str>,
    server: Option<&'a str>,
    service: Option<&'a str>,
    status: Option<i64>,
    is_grpc: bool,
    grpc_status: Option<i64>,
    code: &'a str,
    is_open: bool,
    seconds: f64,
}

impl Red {
    /// Numbers that begin now.
    pub fn new(config: Config) -> Arc<Self> {
        Arc::new(Self { config, table: Mutex::default(), started_unix_nanos: now() })
    }

    /// Takes in what comes out of the queue, until all senders are gone and it is empty.
    pub async fn run(self: Arc<Self>, mut receiver: Receiver) {
        while let Some(batch) = receiver.recv().await {
            self.take(&batch.fields);
            receiver.counters().acknowledge(u64::from(batch.records));
        }
    }

    /// Takes in finished `log_records` fields.
    fn take(&self, fields: &[u8]) {
        let mut table = self.lock();
        for record in line::records(fields) {
            let (_, event) = line::time_and_name(record);
            let is_request = event == "picket.request";
            if !is_request && event != "picket.connection" {
                continue;
            }
            let facts = Facts::read(record);
            let is_inbound = facts.direction == "inbound";
            let instrument = match (is_request, facts.is_grpc, is_inbound) {
                (false, ..) if facts.is_open => continue,
                (false, ..) => Instrument::Connection,
                (true, false, true) => Instrument::HttpServer,
                (true, false, false) => Instrument::HttpClient,
                (true, true, true) => Instrument::RpcServer,
                (true, true, false) => Instrument::RpcClient,
            };
            if self.config.include.iter().any(|name| name == instrument.name()) {
                self.observe(&mut table, instrument, &facts);
            }
        }
    }

    fn observe(&self, table: &mut Table, instrument: Instrument, facts: &Facts<'_>) {
        let grpc_status = facts.grpc_status.map(|status| status.to_string());
        let is_inbound = facts.direction == "inbound";
        let values: [(&'static str, Option<&str>); 4] = [
            (key::DIRECTION, (instrument == Instrument::Connection).then_some(facts.direction)),
            if is_inbound { (key::CLIENT_IDENTITY, facts.client) } else { (key::SERVER_IDENTITY, facts.server) },
            (key::SERVICE, facts.service),
            match instrument {
                Instrument::HttpServer | Instrument::HttpClient => (STATUS_CLASS, Some(class(facts.status))),
                Instrument::RpcServer | Instrument::RpcClient => (key::RPC_GRPC_STATUS_CODE, grpc_status.as_deref()),
                Instrument::Connection => (key::CODE, Some(facts.code)),
            },
        ];
        let wanted = |name: &str| self.config.attributes.iter().any(|attribute| attribute == name);
        let values =
            values.iter().filter_map(|(name, value)| Some((*name, cut((*value)?)))).filter(|(name, _)| wanted(name));
        let mut key = std::mem::take(&mut table.key);
        key.clear();
        key.push_str(instrument.name());
        for (name, value) in values.clone() {
            key.extend(["\0", name, "\0", value]);
        }
        let is_new = !table.series.contains_key(&key);
        if is_new && table.series.len() < self.config.series_max {
            let attributes = values.map(|(name, value)| (name, value.to_owned())).collect();
            table.series.insert(key.clone(), Series { instrument, attributes, histogram: Histogram::default() });
        }
        let series = match table.series.get_mut(&key) {
            Some(series) => series,
            None => {
                table.overflowed += 1;
                let attributes = vec![(OVERFLOW, "true".to_owned())];
                let empty = || Series { instrument, attributes, histogram: Histogram::default() };
                table.overflow.entry(instrument).or_insert_with(empty)
            }
        };
        series.histogram.record(facts.seconds);
        table.key = key;
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while it holds the lock, and each change of it is whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// The label sets of one metric, in the order of their values, the one of the rest last.
    fn of(&self, instrument: Instrument) -> Vec<&Series> {
        let mut found: Vec<_> = self.series.values().filter(|series| series.instrument == instrument).collect();
        found.sort_by(|one, other| one.attributes.cmp(&other.attributes));
        found.extend(self.overflow.get(&instrument));
        found
    }
}

impl<'a> Facts<'a> {
    fn read(record: &'a [u8]) -> Self {
        let mut facts = Self::default();
        for (name, value) in line::attributes(record) {
            match (name, value) {
                (key::DIRECTION, line::Attribute::Text(text)) => facts.direction = text,
                (key::CLIENT_IDENTITY, line::Attribute::Text(text)) => facts.client = Some(text),
                (key::SERVER_IDENTITY, line::Attribute::Text(text)) => facts.server = Some(text),
                (key::SERVICE, line::Attribute::Text(text)) => facts.service = Some(text),
                (key::HTTP_RESPONSE_STATUS_CODE, line::Attribute::Int(number)) => facts.status = Some(number),
                (key::RPC_SYSTEM, _) => facts.is_grpc = true,
                (key::RPC_GRPC_STATUS_CODE, line::Attribute::Int(number)) => {
                    facts.grpc_status = Some(number.clamp(0, 17))
                }
                (key::CODE, line::Attribute::Text(text)) => facts.code = text,
                (key::CONNECTION_STATE, line::Attribute::Text(text)) => facts.is_open = text == "open",
                (key::DURATION, line::Attribute::Double(seconds)) => facts.seconds = seconds,
                _ => {}
            }
        }
        facts
    }
}

fn class(status: Option<i64>) -> &'static str {
    match status.map(|status| status / 100) {
        Some(1) => "1xx",
        Some(2) => "2xx",
        Some(3) => "3xx",
        Some(4) => "4xx",
        Some(5) => "5xx",
        Some(_) | None => NO_STATUS,
    }
}

/// At most so many bytes, up to the border of a character.
fn cut(text: &str) -> &str {
    let end = (0..=VALUE_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests;
