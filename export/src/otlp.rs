//! OTLP over gRPC and over HTTP: sends encoded records to a collector by splicing them into requests.
//!
//! Retries follow the OTLP specification: what may be tried again is, with growing pauses, and as late as the collector asks;
//! what must not be is halved down to the records to blame, and these are set aside; `partial_success` is counted and never
//! sent again. While no endpoint takes records they wait: in the spool, or in the queue, which drops and counts. The policy at
//! each failure is in docs/guide/export.md.

mod answer;
mod deliver;
mod endpoint;
mod json;
mod message;
mod metrics;
mod tls;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use record::{key, line};
use spool::Reason;

pub(crate) use self::metrics::Metrics;
pub use self::tls::{ClientCertificate, Error as TlsError};
use self::{
    deliver::{Delivery, Refusal},
    message::{Envelope, Piece},
};
use crate::{Alerts, Receiver, Spooled, spooled::say_damage};

/// How long the first batch waits for others: a call costs its sender and the collector more than what it carries.
const GATHER_TIME: Duration = Duration::from_millis(20);
/// Bytes that wait already, from which on a call does not wait for more.
const GATHER_BYTES_MAX: u64 = 512 * 1024;
/// How long to wait before a spool that cannot be read is read again.
const READ_PAUSE: Duration = Duration::from_secs(1);

/// How requests look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP with binary protobuf.
    HttpProtobuf,
}

/// How requests are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// They are not.
    None,
    /// By gzip, which every collector knows.
    Gzip,
    /// By Zstandard: less CPU than gzip, and smaller.
    Zstd,
}

/// A collector and what it is told about us.
#[derive(Clone)]
pub struct Config {
    /// URLs, the preferred one first; `https`, or `http` for clear text. For gRPC without a path; for HTTP with the whole path
    /// (see [`logs_url`] and [`metrics_url`]).
    pub endpoints: Vec<String>,
    /// How requests look.
    pub protocol: Protocol,
    /// How they are compressed.
    pub compression: Compression,
    /// Headers of every call.
    pub headers: Vec<(String, String)>,
    /// How long one call may take.
    pub timeout: Duration,
    /// Roots of the collector's certificate, PEM; `https` needs them.
    pub roots: Option<PathBuf>,
    /// What we show to a collector that asks who we are.
    pub client: Option<ClientCertificate>,
    /// Attributes of the resource.
    pub resource: Vec<(String, String)>,
    /// How long no endpoint takes records before that is an alert.
    pub away_after: Duration,
}

impl Config {
    /// One endpoint, by gRPC, and nothing that is optional.
    pub fn to(endpoint: String) -> Self {
        Self {
            endpoints: vec![endpoint],
            protocol: Protocol::Grpc,
            compression: Compression::None,
            headers: Vec::new(),
            timeout: Duration::from_secs(10),
            roots: None,
            client: None,
            resource: Vec::new(),
            // Longer than a collector takes to be replaced, much shorter than a spool lasts.
            away_after: Duration::from_secs(300),
        }
    }
}

impl std::fmt::Debug for Config {
    /// Header values are often credentials: only their names are shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Config").field("endpoints", &self.endpoints).field("headers", &headers).finish_non_exhaustive()
    }
}

/// The URL for logs of a base URL for OTLP/HTTP (OpenTelemetry, "Endpoint URLs for OTLP/HTTP").
pub fn logs_url(base: &str) -> String {
    format!("{}/v1/logs", base.trim_end_matches('/'))
}

/// As [`logs_url`], for metrics.
pub fn metrics_url(base: &str) -> String {
    format!("{}/v1/metrics", base.trim_end_matches('/'))
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error("there is no endpoint")]
    NoEndpoint,
    /// The endpoint is no URL.
    #[error("endpoint {0:?} is not a URL")]
    Endpoint(String, #[source] http::uri::InvalidUri),
    /// The scheme is missing or unknown; clear text must be asked for.
    #[error("endpoint {0:?} must begin with https:// or, for clear text, with http://")]
    Scheme(String),
    /// A path where the protocol has its own.
    #[error("endpoint {0:?} must have no path: it is for gRPC (or `protocol` should be http/protobuf)")]
    Path(String),
    /// A name or a password in a URL would be logged.
    #[error("an endpoint must not hold a user or a password; use `headers`")]
    UserInfo,
    /// What stands behind a question mark would be logged, and is often a credential.
    #[error("an endpoint must not have a query; use `headers`")]
    Query,
    /// `https` without roots.
    #[error("endpoint {0:?} needs `roots`, the certificates to trust")]
    NoRoots(String),
    /// The roots are of no use.
    #[error("the roots are refused")]
    Roots(#[source] TlsError),
    /// The client's certificate is of no use.
    #[error("the client certificate is refused")]
    Tls(#[source] TlsError),
    /// A header is none.
    #[error("{0:?} is not a header")]
    Header(String),
}

/// Sends what a queue or a spool holds.
#[derive(Debug)]
pub struct Shipper {
    delivery: Delivery,
    unsettled: Arc<AtomicU64>,
}

impl Shipper {
    /// Checks the configuration; connects at the first record.
    ///
    /// # Errors
    /// Names what is wrong.
    pub fn new(config: Config) -> Result<Self, Error> {
        Ok(Self { delivery: Delivery::new(config)?, unsettled: Arc::default() })
    }

    /// Alerts go this way. They are not kept open: they end with whoever made them.
    pub fn alert_through(&mut self, alerts: &Arc<Alerts>) {
        self.delivery.alert_through(Arc::downgrade(alerts));
    }

    /// Sends until all senders are gone and the queue is empty. After `drain` it goes on for at most `deadline`; what
    /// is left then is counted as dropped.
    ///
    /// # Cancellation
    /// The batch in flight is lost without being counted: drain instead.
    pub async fn run(mut self, mut receiver: Receiver, drain: impl Future<Output = ()>, deadline: Duration) {
        let counters = Arc::clone(receiver.counters());
        let unsettled = Arc::clone(&self.unsettled);
        let late = async {
            drain.await;
            tokio::time::sleep(deadline).await;
        };
        tokio::select! {
            () = self.send_all(&mut receiver) => return,
            () = late => {}
        }
        let mut left = unsettled.load(Relaxed);
        while let Some(batch) = receiver.try_recv() {
            left += u64::from(batch.records);
        }
        counters.drop_records(left);
        tracing::warn!(records = left, "the collector did not take the last records in time; they are lost");
    }

    async fn send_all(&mut self, receiver: &mut Receiver) {
        while let Some(first) = receiver.recv().await {
            if receiver.counters().queued_bytes() < GATHER_BYTES_MAX {
                tokio::time::sleep(GATHER_TIME).await;
            }
            let bytes_max = self.delivery.bytes_max();
            let mut bytes = first.fields.len();
            let mut piece = Piece { records: u64::from(first.records), fields: vec![first.fields] };
            while let Some(batch) = receiver.try_recv_within(bytes_max.saturating_sub(bytes)) {
                bytes += batch.fields.len();
                piece.records += u64::from(batch.records);
                piece.fields.push(batch.fields);
            }
            self.unsettled.store(piece.records, Relaxed);
            receiver.counters().send(piece.records);
            // There is nowhere to keep them: they are counted, and the alert says so.
            let _refused = self.delivery.settle(piece, receiver.counters(), &self.unsettled).await;
        }
    }

    /// Sends what a spool holds, and moves its cursor on the collector's answer. Until all senders are gone and everything
    /// was taken; after `drain` it goes on for at most `deadline`, and what is left then stays for the next start.
    ///
    /// # Cancellation
    /// Nothing is lost: what was not acknowledged is sent again after the next start.
    pub async fn run_spooled(mut self, mut spooled: Spooled, drain: impl Future<Output = ()>, deadline: Duration) {
        let late = async {
            drain.await;
            tokio::time::sleep(deadline).await;
        };
        tokio::select! {
            () = self.send_spooled(&mut spooled) => {}
            () = late => tracing::info!("the collector did not take the last records in time; they stay in the spool"),
        }
        // The writer ends when the last sender is gone, which is after the drain.
        let _joined = tokio::task::spawn_blocking(move || spooled.join()).await;
    }

    async fn send_spooled(&mut self, spooled: &mut Spooled) {
        while let Some(mut taken) = spooled.reader.take() {
            self.send_past(spooled).await;
            // Asked before reading, so that what the writer wrote last is still found.
            let ended = spooled.signals.ended.load(Relaxed);
            let bytes_max = self.delivery.bytes_max();
            // Files are read elsewhere: this thread also answers probes.
            let read = tokio::task::spawn_blocking(move || {
                let chunk = taken.next(bytes_max);
                (taken, chunk)
            });
            let Ok((taken, chunk)) = read.await else { return };
            spooled.reader = match chunk {
                Ok(Some(chunk)) => self.send_chunk(taken, chunk, spooled).await,
                Ok(None) if ended => {
                    // What the writer said at its very end.
                    self.send_past(spooled).await;
                    return;
                }
                Ok(None) => {
                    spooled.signals.synced.notified().await;
                    self.delivery.calm();
                    Some(taken)
                }
                Err(error) => {
                    tracing::error!(error = chain(&error), "the spool cannot be read");
                    tokio::time::sleep(READ_PAUSE).await;
                    Some(taken)
                }
            };
        }
    }

    /// Alerts that cannot wait for the spool.
    async fn send_past(&mut self, spooled: &Spooled) {
        while let Some(fields) = spooled.signals.next_past() {
            self.delivery.send_past(fields).await;
        }
    }

    /// Gives the reader back, or nothing at the end of the runtime.
    async fn send_chunk(
        &mut self,
        mut reader: spool::Reader,
        mut chunk: spool::Chunk,
        of: &Spooled,
    ) -> Option<spool::Reader> {
        say_damage(&chunk);
        let mut refusals = Vec::new();
        if chunk.records > 0 {
            let records = u64::from(chunk.records);
            let piece = Piece { records, fields: vec![Bytes::from(std::mem::take(&mut chunk.fields))] };
            self.unsettled.store(records, Relaxed);
            of.counters.send(records);
            refusals = self.delivery.settle(piece, &of.counters, &self.unsettled).await;
        }
        if !refusals.is_empty() {
            let envelope = Arc::clone(self.delivery.envelope());
            let refused: u64 = refusals.iter().map(|refusal| refusal.records).sum();
            // What was refused is no acknowledged record.
            chunk.records -= u32::try_from(refused).unwrap_or(chunk.records).min(chunk.records);
            let put = tokio::task::spawn_blocking(move || {
                let kept = refusals.iter().map(|refusal| put_aside(&reader, &envelope, refusal)).sum();
                (reader, kept)
            });
            let kept;
            (reader, kept) = put.await.ok()?;
            of.counters.set_records_aside(kept);
        }
        if let Err(error) = reader.acknowledge(&chunk) {
            tracing::warn!(
                error = chain(&error),
                "the spool's cursor cannot be written: records may be sent again after a restart"
            );
        }
        Some(reader)
    }
}

/// Keeps refused records in the set-aside file and reports them as a gap; how many were kept.
fn put_aside(reader: &spool::Reader, envelope: &Envelope, refusal: &Refusal) -> u64 {
    let numbers = || refusal.piece.contents().filter_map(sequence);
    let is_whole = refusal.records == refusal.piece.records;
    let line = Some(&refusal.piece).filter(|_| is_whole).and_then(|piece| envelope.json_line(piece));
    let kept = line.map(|line| reader.set_aside(&line)).transpose().unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "a refused record cannot be set aside");
        None
    });
    let reason = match (is_whole, kept) {
        (false, _) => Reason::PartlyRefused,
        (true, Some(true)) => Reason::SetAside,
        (true, Some(false) | None) => Reason::Refused,
    };
    if let (Some(first), Some(last)) = (numbers().next(), numbers().last()) {
        let now = UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
        reader.refuse((first, last), refusal.records, now, reason);
    }
    if reason == Reason::SetAside { refusal.records } else { 0 }
}

/// The number that the spool gave to a record.
fn sequence(content: &[u8]) -> Option<u64> {
    // The spool puts it last; what was there before has no say.
    match line::attributes(content).filter(|(name, _)| *name == key::SEQUENCE).last() {
        Some((_, line::Attribute::Int(number))) => u64::try_from(number).ok(),
        Some(_) | None => None,
    }
}

/// An error of the spool as a value of a log line, with what is behind it.
fn chain(error: &spool::Error) -> &(dyn std::error::Error + 'static) {
    error
}
