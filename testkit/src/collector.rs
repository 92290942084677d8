//! An OTLP/gRPC log receiver inside the test process.
//!
//! Promises: keeps all records in memory in the order of arrival, up to a limit; what exceeds the limit is refused as a
//! rejected record (`partial_success`), never dropped silently; ends when dropped.
//! Leaves to others: the real OpenTelemetry Collector is what counts for compatibility, this one is quick to ask.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::future::FutureExt;
use futures_util::stream;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

use crate::{Namespace, Record};

/// Records kept at most; at some KiB each this bounds the memory to about 1 GiB.
const LIMIT: usize = 500_000;

/// The receiver; a thread of its own serves it.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    received: Mutex<Vec<Record>>,
    changed: Condvar,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        // Nothing panics while it holds the lock, and a list of records is valid at any moment.
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector {
    /// Serves on `address` of `namespace` (port 0 picks one).
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener =
            namespace.inside(|| TcpListener::bind(address).with_context(|| format!("cannot listen on {address}")))?;
        Self::serve(listener)
    }

    /// Serves on a listener that exists already.
    ///
    /// # Errors
    /// When the operating system has no thread or runtime for it.
    pub fn serve(listener: TcpListener) -> Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let state = Arc::new(State::default());
        let (stop, stopped) = oneshot::channel();
        let service = Service(Arc::clone(&state));
        let thread = std::thread::Builder::new().name("collector".to_owned()).spawn(move || {
            // An error of the server ends it; whoever waits for records then hears of the deadline.
            if let Err(error) = runtime.block_on(serve(listener, service, stopped)) {
                eprintln!("collector: {error:#}");
            }
        })?;
        Ok(Self { address, state, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All records received so far.
    pub fn records(&self) -> Vec<Record> {
        self.state.lock().clone()
    }

    /// The records received so far that match, in the order of arrival.
    pub fn select(&self, matches: impl Fn(&Record) -> bool) -> Vec<Record> {
        self.state.lock().iter().filter(|record| matches(record)).cloned().collect()
    }

    /// Takes out what was received so far.
    pub fn take(&self) -> Vec<Record> {
        std::mem::take(&mut *self.state.lock())
    }

    /// Ends, and gives what was received and not taken: nothing that it has acknowledged is left out.
    pub fn stop(mut self) -> Vec<Record> {
        self.end();
        self.take()
    }

    fn end(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The server may have ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Blocks until `enough` holds for what was received, and gives it.
    ///
    /// # Errors
    /// After `deadline`, with how many records there were.
    pub fn wait_until(
        &self,
        what: &str,
        deadline: Duration,
        enough: impl Fn(&[Record]) -> bool,
    ) -> Result<Vec<Record>> {
        let end = Instant::now() + deadline;
        let mut received = self.state.lock();
        while !enough(&received) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{what}: not after {deadline:?} and {} records", received.len());
            }
            received = self.state.changed.wait_timeout(received, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(received.clone())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.end();
    }
}

/// Serves until it is told to stop. Open connections are cut, so that stopping does not wait for clients.
async fn serve(listener: TcpListener, service: Service, stopped: oneshot::Receiver<()>) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let incoming = stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let server = tonic::transport::Server::builder().add_service(LogsServiceServer::new(service));
    tokio::select! {
        served = server.serve_with_incoming(incoming) => served.context("the receiver failed"),
        _ = stopped.map(drop) => Ok(()),
    }
}

struct Service(Arc<State>);

#[tonic::async_trait]
impl LogsService for Service {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let mut rejected = 0;
        let mut received = self.0.lock();
        for resource_logs in request.into_inner().resource_logs {
            let resource: Arc<[_]> = resource_logs.resource.unwrap_or_default().attributes.into();
            for log in resource_logs.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                if received.len() < LIMIT {
                    received.push(Record { resource: Arc::clone(&resource), log });
                } else {
                    rejected += 1;
                }
            }
        }
        drop(received);
        self.0.changed.notify_all();
        let partial_success = (rejected > 0).then(|| ExportLogsPartialSuccess {
            rejected_log_records: rejected,
            error_message: format!("the receiver keeps {LIMIT} records"),
        });
        Ok(Response::new(ExportLogsServiceResponse { partial_success }))
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
    use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};

    use super::*;

    fn request() -> ExportLogsServiceRequest {
        let value = Some(AnyValue { value: Some(Value::StringValue("ok".to_owned())) });
        let attributes = vec![KeyValue { key: "picket.code".to_owned(), value, ..KeyValue::default() }];
        let log = LogRecord { event_name: "picket.request".to_owned(), attributes, ..LogRecord::default() };
        let scope_logs = vec![ScopeLogs { log_records: vec![log.clone(), log], ..ScopeLogs::default() }];
        ExportLogsServiceRequest { resource_logs: vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }] }
    }

    #[test]
    fn records_are_received_and_a_wait_for_more_ends() {
        let collector = Collector::serve(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut client = LogsServiceClient::connect(format!("http://{}", collector.address())).await.unwrap();
            client.export(request()).await.unwrap();
        });
        let two = collector.wait_until("two", Duration::from_secs(5), |received| received.len() == 2).unwrap();
        assert!(two.iter().all(|record| record.event() == "picket.request" && record.is("picket.code", "ok")));
        let error =
            collector.wait_until("three", Duration::from_millis(50), |received| received.len() == 3).unwrap_err();
        assert_eq!(error.to_string(), "three: not after 50ms and 2 records");
    }
}
