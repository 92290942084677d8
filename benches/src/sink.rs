//! An OTLP/gRPC collector that only counts: request records and all records, as cheaply as they can be found.
//!
//! Promises: takes every batch that is well formed and acknowledges it; ends when dropped. It decodes no attribute, so
//! that it takes little of the machine from what is measured; that records are right is the integration tests' affair.

use std::{
    convert::Infallible,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use testkit::Namespace;
use tokio::sync::oneshot;

/// What has come.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    records: AtomicU64,
    malformed: AtomicBool,
}

/// The collector; a thread of its own serves it.
#[derive(Debug)]
pub(crate) struct Sink {
    address: SocketAddr,
    counts: Arc<Counts>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    /// Serves on `address` of `namespace`.
    pub(crate) fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener =
            namespace.inside(|| TcpListener::bind(address).with_context(|| format!("cannot listen on {address}")))?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let counts = Arc::new(Counts::default());
        let (stop, stopped) = oneshot::channel();
        let served = Arc::clone(&counts);
        let thread = std::thread::Builder::new().name("sink".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    ended = serve(listener, served) => if let Err(error) = ended { eprintln!("sink: {error:#}") },
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, counts, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Request records so far.
    ///
    /// # Errors
    /// When something came that is no OTLP.
    pub(crate) fn requests(&self) -> Result<u64> {
        anyhow::ensure!(!self.counts.malformed.load(Relaxed), "the collector received what is no OTLP");
        Ok(self.counts.requests.load(Relaxed))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It may have ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, counts: Arc<Counts>) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let counts = Arc::clone(&counts);
        tokio::spawn(async move {
            let service = service_fn(move |request| export(request, Arc::clone(&counts)));
            // A client that goes away ends its connection; what it has sent is counted.
            let _ended = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .max_frame_size(1 << 20)
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(8 << 20)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Answer = Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>;

/// One call of `LogsService/Export`: an empty answer means that everything was taken.
async fn export(request: Request<Incoming>, counts: Arc<Counts>) -> Result<Answer, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    // gRPC: a flag for compression and the length, then the message.
    match body.split_at_checked(5) {
        Some((prefix, message)) if prefix[0] == 0 => count(message, &counts),
        Some(_) | None => counts.malformed.store(true, Relaxed),
    }
    let trailers = async { Some(Ok(http::HeaderMap::from_iter([grpc_status_ok()]))) };
    let body = Full::new(Bytes::from_static(&[0; 5])).with_trailers(trailers).boxed();
    let mut answer = Response::new(body);
    answer.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    Ok(answer)
}

fn grpc_status_ok() -> (http::HeaderName, http::HeaderValue) {
    (http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static("0"))
}

/// Counts the records of an `ExportLogsServiceRequest`.
fn count(message: &[u8], counts: &Counts) {
    let (mut requests, mut records) = (0, 0);
    for resource_logs in submessages(message, 1) {
        for scope_logs in submessages(resource_logs, 2) {
            for record in submessages(scope_logs, 2) {
                records += 1;
                requests += u64::from(submessages(record, 12).next() == Some(b"picket.request"));
            }
        }
    }
    if records == 0 {
        counts.malformed.store(true, Relaxed);
    }
    counts.records.fetch_add(records, Relaxed);
    counts.requests.fetch_add(requests, Relaxed);
}

/// The length-delimited fields with this number; stops where the message is cut short.
fn submessages(mut message: &[u8], wanted: u64) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        loop {
            let tag = varint(&mut message)?;
            let length = match tag & 7 {
                0 => {
                    varint(&mut message)?;
                    continue;
                }
                1 => 8,
                2 => usize::try_from(varint(&mut message)?).ok()?,
                5 => 4,
                _ => return None,
            };
            let (field, rest) = message.split_at_checked(length)?;
            message = rest;
            if tag & 7 == 2 && tag >> 3 == wanted {
                return Some(field);
            }
        }
    })
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tag` and `content`, as a length-delimited field.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        assert!(length < 0x80);
        [&[number << 3 | 2, length], content].concat()
    }

    #[test]
    fn request_records_are_told_from_others() {
        let request = field(2, &[&[0x09, 1, 2, 3, 4, 5, 6, 7, 8][..], &field(12, b"picket.request")].concat());
        let connection = field(2, &field(12, b"picket.connection"));
        let scope_logs = field(2, &[field(1, b""), request.clone(), connection, request].concat());
        let counts = Counts::default();
        count(&field(1, &scope_logs), &counts);
        assert_eq!((counts.requests.load(Relaxed), counts.records.load(Relaxed)), (2, 3));
        assert!(!counts.malformed.load(Relaxed));
        count(b"nonsense", &counts);
        assert!(counts.malformed.load(Relaxed));
    }
}
