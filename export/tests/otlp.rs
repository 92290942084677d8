//! The shipper against a collector in this process: what arrives, what is tried again, what is counted.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that does not hold")]

use std::{
    collections::VecDeque,
    future::{pending, ready},
    sync::Mutex,
    time::Duration,
};

use export::{Batch, Receiver, Sender, Spooled, otlp, queue};
use opentelemetry_proto::tonic::{
    collector::logs::v1::{
        ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
        logs_service_server::{LogsService, LogsServiceServer},
    },
    logs::v1::{LogRecord, ScopeLogs},
};
use prost::Message;
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

type Answer = Result<ExportLogsServiceResponse, Status>;

/// Gives the prepared answers, then takes everything; passes on each request it saw.
struct Collector {
    answers: Mutex<VecDeque<Answer>>,
    seen: UnboundedSender<ExportLogsServiceRequest>,
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        assert_eq!(request.metadata().get("x-tenant").unwrap(), "blue");
        self.seen.send(request.into_inner()).unwrap();
        self.answers.lock().unwrap().pop_front().unwrap_or_else(|| Ok(Default::default())).map(Response::new)
    }
}

fn serve(listener: TcpListener, answers: Vec<Answer>) -> UnboundedReceiver<ExportLogsServiceRequest> {
    let (seen, requests) = unbounded_channel();
    let collector = Collector { answers: Mutex::new(answers.into()), seen };
    let server = tonic::transport::Server::builder().add_service(LogsServiceServer::new(collector));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    requests
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    (listener, endpoint)
}

fn config(endpoint: String) -> otlp::Config {
    otlp::Config {
        headers: vec![("x-tenant".to_owned(), "blue".to_owned())],
        resource: vec![("service.name".to_owned(), "picket".to_owned())],
        ..otlp::Config::to(endpoint)
    }
}

fn ship(endpoint: String, receiver: Receiver) -> tokio::task::JoinHandle<()> {
    let shipper = otlp::Shipper::new(config(endpoint)).unwrap();
    tokio::spawn(shipper.run(receiver, pending(), Duration::ZERO))
}

/// A batch with one record per name.
fn batch<S: AsRef<str>>(names: &[S]) -> Batch {
    let record = |name: &S| LogRecord { event_name: name.as_ref().to_owned(), ..LogRecord::default() };
    let log_records = names.iter().map(record).collect();
    let fields = ScopeLogs { log_records, ..ScopeLogs::default() }.encode_to_vec().into();
    Batch { records: names.len() as u32, fields }
}

/// The names in all requests seen by a collector whose shipper has ended.
fn names(requests: &mut UnboundedReceiver<ExportLogsServiceRequest>) -> Vec<String> {
    let requests = std::iter::from_fn(|| requests.try_recv().ok());
    let scopes = requests.flat_map(|request| request.resource_logs).flat_map(|logs| logs.scope_logs);
    scopes.flat_map(|scope| scope.log_records).map(|record| record.event_name).collect()
}

/// Acknowledged, rejected, dropped.
fn counts(counters: &export::Counters) -> (u64, u64, u64) {
    (counters.acknowledged(), counters.rejected(), counters.dropped())
}

/// Sends `batches`, one request each, to a collector with these answers; what it saw and what was counted.
async fn exchange(answers: Vec<Answer>, batches: &[&[&str]]) -> (Vec<String>, (u64, u64, u64)) {
    let (listener, endpoint) = listen().await;
    let mut requests = serve(listener, answers);
    let (sender, receiver) = queue(1 << 20);
    let counters = sender.counters().clone();
    let shipping = ship(endpoint, receiver);
    let settled = || counters.acknowledged() + counters.rejected();
    let mut sent = 0;
    for names in batches {
        sender.send(batch(names)).unwrap();
        sent += names.len() as u64;
        while settled() < sent {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    drop(sender);
    shipping.await.unwrap();
    (names(&mut requests), counts(&counters))
}

#[tokio::test]
async fn all_records_arrive_once_with_resource_and_scope() {
    let (listener, endpoint) = listen().await;
    let mut requests = serve(listener, vec![]);
    let (sender, receiver) = queue(1 << 20);
    let counters = sender.counters().clone();
    let shipping = ship(endpoint, receiver);
    let worker = |n: usize, sender: Sender| {
        std::thread::spawn(move || {
            for i in 0..250 {
                sender.send(batch(&[format!("{n}-{i}")])).unwrap();
            }
        })
    };
    let workers: Vec<_> = (0..4).map(|n| worker(n, sender.clone())).collect();
    drop(sender);
    let first = requests.recv().await.unwrap();
    shipping.await.unwrap();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    let resource = first.resource_logs[0].resource.as_ref().unwrap();
    assert_eq!(resource.attributes[0].key, "service.name");
    assert_eq!(first.resource_logs[0].scope_logs[0].scope.as_ref().unwrap().name, "picket");
    let records = &first.resource_logs[0].scope_logs[0].log_records;
    let mut arrived: Vec<_> = records.iter().map(|record| record.event_name.clone()).collect();
    arrived.extend(names(&mut requests));
    let mut expected: Vec<_> = (0..4).flat_map(|n| (0..250).map(move |i| format!("{n}-{i}"))).collect();
    arrived.sort();
    expected.sort();
    assert_eq!(arrived, expected);
    assert_eq!(counts(&counters), (1000, 0, 0));
}

#[tokio::test]
async fn a_collector_that_comes_late_gets_everything() {
    let (listener, endpoint) = listen().await;
    let (sender, receiver) = queue(1 << 20);
    let counters = sender.counters().clone();
    let shipping = ship(endpoint, receiver);
    sender.send(batch(&["a", "b"])).unwrap();
    // The first attempt has come and is cut off; for a moment nobody listens.
    let address = listener.local_addr().unwrap();
    drop(listener.accept().await.unwrap());
    drop(listener);
    let mut requests = serve(TcpListener::bind(address).await.unwrap(), vec![]);
    drop(sender);
    shipping.await.unwrap();
    assert_eq!(names(&mut requests), ["a", "b"]);
    assert_eq!(counts(&counters), (2, 0, 0));
}

#[tokio::test]
async fn a_refused_batch_is_counted_and_blocks_nothing() {
    for refusal in [Status::invalid_argument("no"), Status::resource_exhausted("without RetryInfo")] {
        // The whole, and each half.
        let answers = vec![Err(refusal.clone()), Err(refusal.clone()), Err(refusal)];
        let (seen, counts) = exchange(answers, &[&["bad", "worse"], &["good"]]).await;
        assert_eq!(seen, ["bad", "worse", "bad", "worse", "good"]);
        assert_eq!(counts, (1, 2, 0));
    }
}

#[tokio::test]
async fn a_retryable_answer_is_tried_again() {
    let (seen, counts) = exchange(vec![Err(Status::unavailable("later"))], &[&["a"]]).await;
    assert_eq!(seen, ["a", "a"]);
    assert_eq!(counts, (1, 0, 0));
}

#[tokio::test]
async fn a_partial_success_is_counted_and_not_sent_again() {
    let partial = ExportLogsPartialSuccess { rejected_log_records: 2, error_message: "two are bad".to_owned() };
    let answer = ExportLogsServiceResponse { partial_success: Some(partial) };
    let (seen, counts) = exchange(vec![Ok(answer)], &[&["a", "b", "c"]]).await;
    assert_eq!(seen, ["a", "b", "c"]);
    assert_eq!(counts, (1, 2, 0));
}

#[tokio::test]
async fn no_request_is_over_one_mebibyte() {
    let (listener, endpoint) = listen().await;
    let (sender, receiver) = queue(16 << 20);
    let third = (1 << 20) / 3;
    for size in [third, third * 5 / 2, third, third, third] {
        sender.send(batch(&["x".repeat(size)])).unwrap();
    }
    drop(sender);
    let mut requests = serve(listener, vec![]);
    ship(endpoint, receiver).await.unwrap();
    let sizes: Vec<_> = std::iter::from_fn(|| requests.try_recv().ok()).map(|request| request.encoded_len()).collect();
    assert!(sizes.iter().all(|&size| size <= 1 << 20), "{sizes:?}");
    assert_eq!(sizes.len(), 4, "one alone, the big one alone, two together, the last: {sizes:?}");
}

#[tokio::test]
async fn the_drain_ends_at_its_deadline_and_counts_what_is_left() {
    // Takes connections (in the backlog) and never answers.
    let (_silent, endpoint) = listen().await;
    let (sender, receiver) = queue(1 << 20);
    for names in [["a", "b"], ["c", "d"]] {
        sender.send(batch(&names)).unwrap();
    }
    let shipper = otlp::Shipper::new(config(endpoint)).unwrap();
    shipper.run(receiver, ready(()), Duration::from_millis(50)).await;
    assert!(sender.send(batch(&["e"])).is_err());
    assert_eq!(counts(sender.counters()), (0, 0, 5));
}

/// A directory with a spool, removed when dropped.
struct Directory(std::path::PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("picket-export-{name}-{}", std::process::id())))
    }

    /// Opens the spool behind a queue.
    fn spooled(&self, queue_bytes: usize) -> (Sender, Spooled) {
        let config = spool::Config {
            max_bytes: 16 << 20,
            max_age: Duration::from_secs(3600),
            min_free_bytes: 0,
            sync: spool::Sync::Interval(Duration::from_millis(10)),
            on_full: spool::OnFull::DropOldest,
            uid_seed: 5,
        };
        let disk = std::sync::Arc::new(spool::Disk::open(&self.0).unwrap());
        let (spool, reader, _) = spool::Spool::open(disk, config, 1_000_000_000).unwrap();
        let (sender, receiver) = queue(queue_bytes);
        (sender, Spooled::spawn(receiver, spool, reader, config.sync).unwrap())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

async fn ship_spooled(endpoint: String, spooled: Spooled, deadline: Option<Duration>) {
    let shipper = otlp::Shipper::new(config(endpoint)).unwrap();
    match deadline {
        Some(deadline) => shipper.run_spooled(spooled, ready(()), deadline).await,
        None => shipper.run_spooled(spooled, pending(), Duration::ZERO).await,
    }
}

#[tokio::test]
async fn the_cursor_of_a_spool_moves_on_the_answer_and_a_lost_answer_repeats_the_same_records() {
    let directory = Directory::new("answer");
    let (listener, endpoint) = listen().await;
    // The collector stores the records, and its answer is lost.
    let mut requests = serve(listener, vec![Err(Status::unavailable("lost on its way"))]);
    let (sender, spooled) = directory.spooled(1 << 20);
    let counters = sender.counters().clone();
    sender.send(batch(&["a", "b"])).unwrap();
    drop(sender);
    ship_spooled(endpoint.clone(), spooled, None).await;
    let (first, second) = (requests.recv().await.unwrap(), requests.recv().await.unwrap());
    assert_eq!(first, second, "each copy has the same uids and numbers");
    let records = &first.resource_logs[0].scope_logs[0].log_records;
    assert_eq!(records.iter().map(|record| record.event_name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(records[1].attributes.last().unwrap().key, record::key::SEQUENCE);
    assert_eq!((counts(&counters), counters.sent()), ((2, 0, 0), 2));
    // Nothing is left for the next start.
    let (sender, spooled) = directory.spooled(1 << 20);
    drop(sender);
    ship_spooled(endpoint, spooled, None).await;
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn what_a_collector_did_not_take_in_time_is_sent_after_the_next_start() {
    let directory = Directory::new("restart");
    let (silent, endpoint) = listen().await;
    let (sender, spooled) = directory.spooled(1 << 20);
    for name in ["a", "b", "c"] {
        sender.send(batch(&[name])).unwrap();
    }
    drop(sender);
    ship_spooled(endpoint, spooled, Some(Duration::from_millis(50))).await;
    drop(silent);
    let (listener, endpoint) = listen().await;
    let mut requests = serve(listener, vec![]);
    let (sender, spooled) = directory.spooled(1 << 20);
    drop(sender);
    ship_spooled(endpoint, spooled, None).await;
    assert_eq!(names(&mut requests), ["a", "b", "c"]);
}

#[tokio::test]
async fn what_the_queue_before_a_spool_drops_is_a_gap_at_the_collector() {
    let directory = Directory::new("gap");
    let (listener, endpoint) = listen().await;
    let mut requests = serve(listener, vec![]);
    let (sender, spooled) = directory.spooled(200);
    // Never fits, so it is dropped, whenever the writer runs.
    assert!(sender.send(batch(&["x".repeat(300), "y".to_owned(), "z".to_owned()])).is_err());
    sender.send(batch(&["a"])).unwrap();
    drop(sender);
    ship_spooled(endpoint, spooled, None).await;
    let mut records = Vec::new();
    while let Ok(request) = requests.try_recv() {
        records.extend(request.resource_logs[0].scope_logs[0].log_records.clone());
    }
    let gap = records.iter().find(|record| record.event_name == "picket.gap").unwrap();
    let int = |name: &str| {
        let value = gap.attributes.iter().find(|attribute| attribute.key == name).unwrap().value.clone();
        match value.unwrap().value {
            Some(opentelemetry_proto::tonic::common::v1::any_value::Value::IntValue(number)) => number,
            other => panic!("{name} is {other:?}"),
        }
    };
    let (first, last) = (int(record::key::GAP_FIRST), int(record::key::GAP_LAST));
    assert_eq!((int(record::key::GAP_RECORDS), last - first), (3, 2));
    assert!(records.iter().any(|record| record.event_name == "a"));
}

#[test]
fn clear_text_must_be_asked_for() {
    let refused = |endpoint: &str| otlp::Shipper::new(config(endpoint.to_owned())).unwrap_err();
    assert!(matches!(refused("collector:4317"), otlp::Error::Scheme(_)));
    assert!(matches!(refused("https://collector:4317"), otlp::Error::NoRoots(_)));
}
