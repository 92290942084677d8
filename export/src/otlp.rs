//! OTLP/gRPC: sends encoded records to a collector by splicing them into requests.
//!
//! Retries follow the OTLP specification ("OTLP/gRPC Response", "Failures"): retryable codes are tried again with growing
//! pauses, RESOURCE_EXHAUSTED only with RetryInfo, everything else is refused for good and counted; `partial_success` is
//! never sent again. While the collector is away the queue in front fills up, and then drops and counts.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use bytes::{BufMut, Bytes};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use prost::Message;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{Batch, Receiver, Spooled, backoff::Backoff};

/// Bytes of one request at most; collectors take 4 MiB by default, but more than this saves nothing and costs memory.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// How long the first batch waits for others: a call costs its sender and the collector more than what it carries.
const GATHER_TIME: Duration = Duration::from_millis(20);
/// Bytes that wait already, from which on a call does not wait for more.
const GATHER_BYTES_MAX: u64 = REQUEST_BYTES_MAX as u64 / 2;
/// How long to wait before a spool that cannot be read is read again.
const READ_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of the scope and of the tags and lengths around resource, scope and records: at most.
const ENVELOPE_BYTES_MAX: usize = 64;
const PATH: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

/// A collector and what it is told about us.
#[derive(Clone)]
pub struct Config {
    /// `https://host:port`, or `http://host:port` for clear text.
    pub endpoint: String,
    /// Headers of every call.
    pub headers: Vec<(String, String)>,
    /// How long one call may take.
    pub timeout: Duration,
    /// Roots of the collector's certificate, PEM; `https` needs them.
    pub roots: Option<PathBuf>,
    /// Attributes of the resource.
    pub resource: Vec<(String, String)>,
}

impl std::fmt::Debug for Config {
    /// Header values are often credentials: only their names are shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Config").field("endpoint", &self.endpoint).field("headers", &headers).finish_non_exhaustive()
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint is no URL.
    #[error("endpoint {0:?} is not a URL")]
    Endpoint(String, #[source] tonic::transport::Error),
    /// The scheme is missing or unknown; clear text must be asked for.
    #[error("endpoint {0:?} must begin with https:// or, for clear text, with http://")]
    Scheme(String),
    /// `https` without roots.
    #[error("endpoint {0:?} needs `roots`, the certificates to trust")]
    NoRoots(String),
    /// The roots cannot be read.
    #[error("roots {0:?} cannot be read")]
    Roots(PathBuf, #[source] std::io::Error),
    /// The TLS settings are refused.
    #[error("the TLS settings are refused")]
    Tls(#[source] tonic::transport::Error),
    /// A header is none.
    #[error("{0:?} is not a header")]
    Header(String),
}

/// Sends what a queue holds.
#[derive(Debug)]
pub struct Shipper {
    endpoint: Endpoint,
    metadata: MetadataMap,
    timeout: Duration,
    resource: Vec<u8>,
}

impl Shipper {
    /// Checks the configuration; connects at the first record.
    ///
    /// # Errors
    /// Names what is wrong.
    pub fn new(config: Config) -> Result<Self, Error> {
        let url = &config.endpoint;
        let mut endpoint = Endpoint::from_shared(url.clone()).map_err(|error| Error::Endpoint(url.clone(), error))?;
        match endpoint.uri().scheme_str() {
            Some("http") => {}
            Some("https") => {
                let path = config.roots.ok_or_else(|| Error::NoRoots(url.clone()))?;
                let pem = std::fs::read(&path).map_err(|error| Error::Roots(path, error))?;
                let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
                endpoint = endpoint.tls_config(tls).map_err(Error::Tls)?;
            }
            Some(_) | None => return Err(Error::Scheme(url.clone())),
        }
        let mut metadata = MetadataMap::new();
        for (name, value) in &config.headers {
            let header = (name.parse::<AsciiMetadataKey>(), value.parse::<AsciiMetadataValue>());
            let (Ok(key), Ok(mut value)) = header else { return Err(Error::Header(name.clone())) };
            value.set_sensitive(true);
            metadata.insert(key, value);
        }
        // A connection that went dead without a word is noticed and made again.
        let endpoint = endpoint
            .connect_timeout(config.timeout)
            .http2_keep_alive_interval(config.timeout)
            .keep_alive_timeout(config.timeout);
        Ok(Self { endpoint, metadata, timeout: config.timeout, resource: resource(&config.resource) })
    }

    /// A way to the collector for other things than records.
    pub(crate) fn channel(&self) -> Channel {
        self.endpoint.connect_lazy()
    }

    pub(crate) fn metadata(&self) -> &MetadataMap {
        &self.metadata
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sends until all senders are gone and the queue is empty. After `drain` it goes on for at most `deadline`; what
    /// is left then is counted as dropped.
    ///
    /// # Cancellation
    /// The batch in flight is lost without being counted: drain instead.
    pub async fn run(self, mut receiver: Receiver, drain: impl Future<Output = ()>, deadline: Duration) {
        let counters = std::sync::Arc::clone(receiver.counters());
        let in_flight = AtomicU64::new(0);
        let late = async {
            drain.await;
            tokio::time::sleep(deadline).await;
        };
        tokio::select! {
            () = self.send_all(&mut receiver, &in_flight) => return,
            () = late => {}
        }
        let mut left = in_flight.load(Relaxed);
        while let Some(batch) = receiver.try_recv() {
            left += u64::from(batch.records);
        }
        counters.drop_records(left);
        tracing::warn!(records = left, "the collector did not take the last records in time; they are lost");
    }

    /// Sends what a spool holds, and moves its cursor on the collector's answer. Until all senders are gone and everything
    /// was taken; after `drain` it goes on for at most `deadline`, and what is left then stays for the next start.
    ///
    /// # Cancellation
    /// Nothing is lost: what was not acknowledged is sent again after the next start.
    pub async fn run_spooled(self, mut spooled: Spooled, drain: impl Future<Output = ()>, deadline: Duration) {
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

    async fn send_spooled(&self, spooled: &mut Spooled) {
        let channel = self.endpoint.connect_lazy();
        let bytes_max = REQUEST_BYTES_MAX.saturating_sub(self.resource.len() + ENVELOPE_BYTES_MAX);
        while let Some(mut taken) = spooled.reader.take() {
            // Asked before reading, so that what the writer wrote last is still found.
            let ended = spooled.signals.ended.load(Relaxed);
            // Files are read elsewhere: this thread also answers probes.
            let read = tokio::task::spawn_blocking(move || {
                let chunk = taken.next(bytes_max);
                (taken, chunk)
            });
            let Ok((mut taken, chunk)) = read.await else { return };
            match chunk {
                Ok(Some(chunk)) => self.send_chunk(&channel, &mut taken, chunk, spooled).await,
                Ok(None) if ended => return,
                Ok(None) => spooled.signals.synced.notified().await,
                Err(error) => {
                    tracing::error!(error = chain(&error), "the spool cannot be read");
                    tokio::time::sleep(READ_PAUSE).await;
                }
            }
            spooled.reader = Some(taken);
        }
    }

    async fn send_chunk(&self, channel: &Channel, reader: &mut spool::Reader, mut chunk: spool::Chunk, of: &Spooled) {
        for damage in &chunk.damage {
            let (segment, offset, bytes) = (&damage.segment, damage.offset, damage.bytes);
            tracing::error!(segment, offset, bytes, records = ?damage.records, "a segment of the spool is damaged");
        }
        if chunk.records > 0 {
            let fields = Bytes::from(std::mem::take(&mut chunk.fields));
            let batch = [Batch { records: chunk.records, fields }];
            self.send(channel, &batch, u64::from(chunk.records), &of.counters).await;
        }
        if let Err(error) = reader.acknowledge(&chunk) {
            tracing::warn!(
                error = chain(&error),
                "the spool's cursor cannot be written: records may be sent again after a restart"
            );
        }
    }

    async fn send_all(&self, receiver: &mut Receiver, in_flight: &AtomicU64) {
        let channel = self.endpoint.connect_lazy();
        let records_bytes_max = REQUEST_BYTES_MAX.saturating_sub(self.resource.len() + ENVELOPE_BYTES_MAX);
        while let Some(first) = receiver.recv().await {
            if receiver.counters().queued_bytes() < GATHER_BYTES_MAX {
                tokio::time::sleep(GATHER_TIME).await;
            }
            let mut batches = vec![first];
            let mut bytes = batches[0].fields.len();
            while let Some(batch) = receiver.try_recv_within(records_bytes_max.saturating_sub(bytes)) {
                bytes += batch.fields.len();
                batches.push(batch);
            }
            let records = batches.iter().map(|batch| u64::from(batch.records)).sum();
            in_flight.store(records, Relaxed);
            self.send(&channel, &batches, records, receiver.counters()).await;
            in_flight.store(0, Relaxed);
        }
    }

    /// Sends one request until it is taken or refused for good.
    async fn send(&self, channel: &Channel, batches: &[Batch], records: u64, counters: &crate::Counters) {
        let body = self.splice(batches);
        let mut backoff = Backoff::default();
        counters.send(records);
        loop {
            match self.call(channel, body.clone()).await {
                Ok(answer) => {
                    let refused =
                        answer.partial_success.as_ref().map_or(0, |partial| partial.rejected_log_records.max(0) as u64);
                    if let Some(partial) = answer.partial_success.filter(|_| refused > 0) {
                        tracing::warn!(
                            records = refused,
                            message = partial.error_message,
                            "the collector refused records"
                        );
                    }
                    counters.reject(refused.min(records));
                    counters.acknowledge(records.saturating_sub(refused));
                    return;
                }
                Err(status) => match retry_after(&status) {
                    Some(asked) => {
                        let pause = backoff.next().max(asked);
                        tracing::debug!(code = ?status.code(), message = status.message(), ?pause, "the collector is away");
                        tokio::time::sleep(pause).await;
                    }
                    None => {
                        tracing::warn!(records, code = ?status.code(), message = status.message(), "the collector refused a batch for good");
                        counters.reject(records);
                        return;
                    }
                },
            }
        }
    }

    async fn call(&self, channel: &Channel, body: Spliced) -> Result<ExportLogsServiceResponse, Status> {
        let call = async {
            let mut grpc = Grpc::new(channel.clone());
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let mut request = Request::new(body);
            *request.metadata_mut() = self.metadata.clone();
            let path = http::uri::PathAndQuery::from_static(PATH);
            grpc.unary(request, path, SplicedCodec).await.map(tonic::Response::into_inner)
        };
        tokio::time::timeout(self.timeout, call).await.unwrap_or_else(|_| Err(Status::unavailable("no answer in time")))
    }

    /// `ExportLogsServiceRequest { resource_logs: [{ resource, scope_logs: [{ scope, log_records }] }] }`.
    fn splice(&self, batches: &[Batch]) -> Spliced {
        const SCOPE: &[u8] = b"\x0a\x08\x0a\x06picket";
        let records: usize = batches.iter().map(|batch| batch.fields.len()).sum();
        let scope_logs = SCOPE.len() + records;
        let resource_logs = self.resource.len() + 1 + length_of(scope_logs) + scope_logs;
        let mut envelope = Vec::with_capacity(self.resource.len() + ENVELOPE_BYTES_MAX);
        envelope.push(0x0a);
        varint(&mut envelope, resource_logs);
        envelope.extend_from_slice(&self.resource);
        envelope.push(0x12);
        varint(&mut envelope, scope_logs);
        envelope.extend_from_slice(SCOPE);
        Spliced { envelope: envelope.into(), batches: batches.iter().map(|batch| batch.fields.clone()).collect() }
    }
}

/// A request in its parts, which are one message when they stand one after the other.
#[derive(Debug, Clone)]
struct Spliced {
    envelope: Bytes,
    batches: Vec<Bytes>,
}

/// An error of the spool as a value of a log line, with what is behind it.
fn chain(error: &spool::Error) -> &(dyn std::error::Error + 'static) {
    error
}

/// How long to wait before the next try, or `None` when there must be none.
fn retry_after(status: &Status) -> Option<Duration> {
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Some(retry_info(status).unwrap_or_default()),
        Code::ResourceExhausted => retry_info(status),
        // A connection that broke in the middle.
        Code::Unknown | Code::Internal if std::error::Error::source(status).is_some() => Some(Duration::ZERO),
        Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Internal
        | Code::Unauthenticated => None,
    }
}

/// `google.rpc.RetryInfo` in the details of a status, at most a minute.
fn retry_info(status: &Status) -> Option<Duration> {
    #[derive(Message)]
    struct RpcStatus {
        #[prost(message, repeated, tag = "3")]
        details: Vec<Any>,
    }
    #[derive(Message)]
    struct Any {
        #[prost(string, tag = "1")]
        type_url: String,
        #[prost(bytes = "vec", tag = "2")]
        value: Vec<u8>,
    }
    #[derive(Message)]
    struct RetryInfo {
        #[prost(message, optional, tag = "1")]
        retry_delay: Option<Delay>,
    }
    #[derive(Message)]
    struct Delay {
        #[prost(int64, tag = "1")]
        seconds: i64,
        #[prost(int32, tag = "2")]
        nanos: i32,
    }
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let info = details.into_iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(info.value.as_slice()).ok()?.retry_delay.unwrap_or_default();
    let delay = Duration::new(delay.seconds.max(0) as u64, delay.nanos.clamp(0, 999_999_999) as u32);
    Some(delay.min(Duration::from_secs(60)))
}

/// `ResourceLogs.resource`, with its attributes.
fn resource(attributes: &[(String, String)]) -> Vec<u8> {
    use opentelemetry_proto::tonic::{
        common::v1::{AnyValue, KeyValue, any_value::Value},
        logs::v1::ResourceLogs,
        resource::v1::Resource,
    };
    let attributes = attributes.iter().map(|(key, value)| KeyValue {
        key: key.clone(),
        value: Some(AnyValue { value: Some(Value::StringValue(value.clone())) }),
        ..Default::default()
    });
    let resource = Resource { attributes: attributes.collect(), ..Default::default() };
    ResourceLogs { resource: Some(resource), ..Default::default() }.encode_to_vec()
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn length_of(value: usize) -> usize {
    let mut out = Vec::with_capacity(10);
    varint(&mut out, value);
    out.len()
}

/// Writes requests that are encoded already, reads answers with prost.
struct SplicedCodec;

impl Codec for SplicedCodec {
    type Encode = Spliced;
    type Decode = ExportLogsServiceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for SplicedCodec {
    type Item = Spliced;
    type Error = Status;

    fn encode(&mut self, item: Spliced, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let parts = || [&item.envelope].into_iter().chain(&item.batches);
        out.reserve(parts().map(Bytes::len).sum());
        for part in parts() {
            out.put_slice(part);
        }
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for SplicedCodec {
    type Item = ExportLogsServiceResponse;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        ExportLogsServiceResponse::decode(from).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
