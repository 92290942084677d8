//! A collector over real sockets that does what a test tells it to: OTLP over gRPC and HTTP, in clear text or TLS.
//!
//! Promises: knows of each record how often it came, and whether it came again after it was acknowledged.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use opentelemetry_proto::tonic::{
    collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse},
    common::v1::{KeyValue, any_value::Value},
    logs::v1::LogRecord,
};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tokio_stream::StreamExt as _;

/// A request, as a behaviour sees it.
pub(crate) struct Seen<'a> {
    pub(crate) records: &'a [LogRecord],
    /// Of the message, uncompressed.
    pub(crate) bytes: usize,
    /// From 0.
    pub(crate) number: usize,
}

/// What the collector does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Take,
    /// The last of them are refused.
    TakePartly(usize),
    Grpc(tonic::Code, String, Bytes),
    Http(u16, Option<u64>),
    Hang,
    /// Takes them, after a while.
    Slow(Duration),
    /// Nothing is stored, and the connection breaks.
    Cut,
    /// All is stored, and the connection breaks before the answer.
    StoreAndCut,
    /// All is stored, and the connection breaks within the answer.
    StoreAndCutWithin,
}

type Behaviour = Box<dyn FnMut(&Seen<'_>) -> Reply + Send>;

#[derive(Default)]
pub(crate) struct Stored {
    pub(crate) records: Vec<LogRecord>,
    times: HashMap<String, u32>,
    acknowledged: HashSet<String>,
    /// Records that came again after they were acknowledged.
    pub(crate) repeated: usize,
    pub(crate) calls: Vec<Instant>,
    /// Partly refused.
    pub(crate) refused: usize,
    /// The streams that resources named.
    pub(crate) streams: HashSet<Option<String>>,
}

impl Stored {
    pub(crate) fn uids(&self) -> HashSet<String> {
        self.times.keys().cloned().collect()
    }

    fn store(&mut self, records: &[LogRecord], acknowledged: bool) {
        for record in records {
            let uid = text(record, record::key::LOG_RECORD_UID).unwrap().to_owned();
            self.repeated += usize::from(self.acknowledged.contains(&uid));
            if acknowledged {
                self.acknowledged.insert(uid.clone());
            }
            let times = self.times.entry(uid).or_default();
            *times += 1;
            if *times == 1 {
                self.records.push(record.clone());
            }
        }
    }
}

pub(crate) fn text<'a>(record: &'a LogRecord, key: &str) -> Option<&'a str> {
    let Value::StringValue(text) =
        record.attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()?
    else {
        return None;
    };
    Some(text)
}

pub(crate) fn number(record: &LogRecord, key: &str) -> Option<u64> {
    let Value::IntValue(number) =
        record.attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()?
    else {
        return None;
    };
    Some(*number as u64)
}

struct Shared {
    stored: Mutex<Stored>,
    behaviour: Mutex<Behaviour>,
    tls: Mutex<Option<Arc<ServerConfig>>>,
    connections: Mutex<Vec<JoinHandle<()>>>,
}

pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
        self.cut_connections();
    }
}

impl Collector {
    pub(crate) async fn start(behaviour: impl FnMut(&Seen<'_>) -> Reply + Send + 'static) -> Self {
        Self::listen(TcpListener::bind("127.0.0.1:0").await.unwrap(), None, behaviour)
    }

    pub(crate) fn listen(
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        behaviour: impl FnMut(&Seen<'_>) -> Reply + Send + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let behaviour: Behaviour = Box::new(behaviour);
        let (stored, connections) = Default::default();
        let shared = Arc::new(Shared { stored, behaviour: behaviour.into(), tls: tls.into(), connections });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, task }
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.shared.tls.lock().unwrap().is_some() { "https" } else { "http" };
        format!("{scheme}://localhost:{}", self.address.port())
    }

    pub(crate) fn behave(&self, behaviour: impl FnMut(&Seen<'_>) -> Reply + Send + 'static) {
        *self.shared.behaviour.lock().unwrap() = Box::new(behaviour);
    }

    pub(crate) fn show(&self, tls: Arc<ServerConfig>) {
        *self.shared.tls.lock().unwrap() = Some(tls);
    }

    pub(crate) fn cut_connections(&self) {
        self.shared.connections.lock().unwrap().drain(..).for_each(|task| task.abort());
    }

    pub(crate) fn stored(&self) -> MutexGuard<'_, Stored> {
        self.shared.stored.lock().unwrap()
    }

    pub(crate) fn calls(&self) -> usize {
        self.stored().calls.len()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (of, tls) = (Arc::clone(&shared), shared.tls.lock().unwrap().clone());
        let task = tokio::spawn(async move {
            match tls {
                None => serve(stream, of).await,
                Some(tls) => {
                    if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                        serve(stream, of).await;
                    }
                }
            }
        });
        shared.connections.lock().unwrap().push(task);
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, shared: Arc<Shared>) {
    let broken = Arc::new(tokio::sync::Notify::new());
    let service = service_fn(|request| {
        let (shared, broken) = (Arc::clone(&shared), Arc::clone(&broken));
        async move { Ok::<_, Infallible>(answer(request, &shared, &broken).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ = connection => {}
        () = broken.notified() => {}
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(
    request: http::Request<Incoming>,
    shared: &Shared,
    broken: &Arc<tokio::sync::Notify>,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let is_grpc = head.headers[http::header::CONTENT_TYPE] == "application/grpc";
    let path = if is_grpc { "/opentelemetry.proto.collector.logs.v1.LogsService/Export" } else { "/v1/logs" };
    assert_eq!(head.uri.path(), path);
    let mut body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let encoding = head.headers.get(if is_grpc { "grpc-encoding" } else { "content-encoding" });
    if is_grpc && !body.is_empty() {
        let prefix = body.split_to(5);
        assert_eq!(
            (prefix[0] == 1, body.len()),
            (encoding.is_some(), u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize)
        );
    }
    let message = match encoding.map(|encoding| encoding.as_bytes()) {
        None => body.to_vec(),
        Some(b"gzip") => {
            let mut out = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*body), &mut out).unwrap();
            out
        }
        Some(b"zstd") => zstd::stream::decode_all(&*body).unwrap(),
        Some(other) => panic!("{other:?}"),
    };
    assert!(message.len() < 3 << 20, "a request of {} bytes", message.len());
    let request = ExportLogsServiceRequest::decode(&*message).unwrap();
    let stream = |attribute: KeyValue| {
        let Value::StringValue(text) = attribute.value?.value? else { return None };
        (attribute.key == record::key::STREAM).then_some(text)
    };
    let resources = request.resource_logs.iter().filter_map(|logs| logs.resource.clone());
    let streams: Vec<_> = resources.map(|resource| resource.attributes.into_iter().find_map(stream)).collect();
    let scopes = request.resource_logs.into_iter().flat_map(|resource| resource.scope_logs);
    let records: Vec<_> = scopes.flat_map(|scope| scope.log_records).collect();
    let seen = {
        let mut stored = shared.stored.lock().unwrap();
        stored.calls.push(Instant::now());
        stored.streams.extend(streams);
        Seen { records: &records, bytes: message.len(), number: stored.calls.len() - 1 }
    };
    let reply = shared.behaviour.lock().unwrap()(&seen);
    act(reply, &records, shared, broken, is_grpc).await
}

async fn act(
    reply: Reply,
    records: &[LogRecord],
    shared: &Shared,
    broken: &Arc<tokio::sync::Notify>,
    is_grpc: bool,
) -> Response<Body> {
    let store = |records: &[LogRecord], acknowledged| shared.stored.lock().unwrap().store(records, acknowledged);
    match reply {
        Reply::Take => {
            store(records, true);
            ok(0, is_grpc)
        }
        Reply::TakePartly(refused) => {
            shared.stored.lock().unwrap().refused += refused;
            store(&records[..records.len() - refused], true);
            ok(refused, is_grpc)
        }
        Reply::Slow(time) => {
            tokio::time::sleep(time).await;
            store(records, true);
            ok(0, is_grpc)
        }
        Reply::Grpc(code, message, details) => {
            let status = tonic::Status::with_details(code, message, details);
            let mut response = Response::new(whole(Vec::new()));
            *response.headers_mut() = HeaderMap::new();
            status.add_header(response.headers_mut()).unwrap();
            response
        }
        Reply::Http(status, retry_after) => {
            let mut response = Response::new(whole(Vec::new()));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            if let Some(seconds) = retry_after {
                response.headers_mut().insert("retry-after", seconds.into());
            }
            response
        }
        Reply::Hang => std::future::pending().await,
        Reply::Cut => {
            broken.notify_one();
            std::future::pending().await
        }
        Reply::StoreAndCut => {
            store(records, false);
            broken.notify_one();
            std::future::pending().await
        }
        Reply::StoreAndCutWithin => {
            store(records, false);
            let (broken, begun) = (Arc::clone(broken), Frame::data(Bytes::from_static(&[0; 3])));
            // What has begun is on its way first.
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                broken.notify_one();
            });
            let frames = tokio_stream::once(Ok(begun)).chain(tokio_stream::pending());
            Response::new(BodyExt::boxed(StreamBody::new(frames)))
        }
    }
}

fn whole(frames: Vec<Frame<Bytes>>) -> Body {
    let frames = tokio_stream::iter(frames.into_iter().map(Ok::<_, Infallible>));
    BodyExt::boxed(StreamBody::new(frames))
}

fn ok(refused: usize, is_grpc: bool) -> Response<Body> {
    let partial = ExportLogsPartialSuccess { rejected_log_records: refused as i64, error_message: "bad".to_owned() };
    let partial_success = (refused > 0).then_some(partial);
    let message = ExportLogsServiceResponse { partial_success }.encode_to_vec();
    let mut frames = Vec::new();
    if is_grpc {
        let mut framed = vec![0];
        framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
        framed.extend_from_slice(&message);
        let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), "0".parse().unwrap())]);
        frames.extend([Frame::data(framed.into()), Frame::trailers(trailers)]);
    } else if !message.is_empty() {
        frames.push(Frame::data(message.into()));
    }
    let mut response = Response::new(whole(frames));
    let kind = if is_grpc { "application/grpc" } else { "application/x-protobuf" };
    response.headers_mut().insert("content-type", kind.parse().unwrap());
    response
}
