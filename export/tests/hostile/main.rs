//! The shipper against collectors that do not play along, over real sockets, from a real spool.
//!
//! What must hold each time: nothing is lost, next to nothing is sent again after it was acknowledged, who refuses sees at
//! most two calls a second, and what has waited is there within half a minute once it is taken again.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that does not hold")]

mod away;
mod certificates;
mod refusals;
mod rig;
mod server;

use std::time::{Duration, Instant};

use export::otlp::{self, Compression, Protocol};

use crate::{
    rig::{RECORDS, Rig},
    server::{Collector, Reply, Seen},
};

/// How long the trouble lasts.
const TROUBLE: Duration = Duration::from_secs(10);
/// How long 100 000 records may take after it.
const DRAIN: Duration = Duration::from_secs(30);
/// Larger than all records.
const ROOMY: u64 = 256 << 20;

fn grpc(url: String) -> otlp::Config {
    otlp::Config { timeout: Duration::from_secs(2), ..otlp::Config::to(url) }
}

fn http(url: String) -> otlp::Config {
    otlp::Config { protocol: Protocol::HttpProtobuf, ..grpc(otlp::logs_url(&url)) }
}

fn code(code: tonic::Code) -> Reply {
    Reply::Grpc(code, "no".to_owned(), bytes::Bytes::new())
}

/// Trouble for a while, from a collector that answers `trouble` to everything, and then takes everything.
async fn survives(
    name: &str,
    config: fn(String) -> otlp::Config,
    trouble: impl Fn(&Seen<'_>) -> Reply + Send + 'static,
) {
    let collector = Collector::start(trouble).await;
    let mut rig = Rig::new(name, ROOMY, RECORDS);
    rig.ship(config(collector.url()));
    tokio::time::sleep(TROUBLE).await;
    let calls = collector.calls();
    assert!(calls as u64 <= 2 * TROUBLE.as_secs(), "{calls} calls in {TROUBLE:?}");
    assert!(calls > 1, "it was tried again");
    collector.behave(|_| Reply::Take);
    let back = Instant::now();
    rig.settled(DRAIN).await;
    println!("{name}: {calls} calls in {TROUBLE:?}, drained in {:?}", back.elapsed());
    rig.end().await.check(&collector);
}

#[tokio::test]
async fn grpc_unavailable() {
    survives("grpc-unavailable", grpc, |_| code(tonic::Code::Unavailable)).await;
}

#[tokio::test]
async fn grpc_refuses_us() {
    survives("grpc-denied", grpc, |_| code(tonic::Code::PermissionDenied)).await;
}

#[tokio::test]
async fn grpc_exhausted_without_retry_info() {
    survives("grpc-exhausted", grpc, |_| code(tonic::Code::ResourceExhausted)).await;
}

#[tokio::test]
async fn grpc_hangs() {
    survives("grpc-hangs", grpc, |_| Reply::Hang).await;
}

#[tokio::test]
async fn grpc_resets() {
    survives("grpc-resets", grpc, |_| Reply::Cut).await;
}

#[tokio::test]
async fn grpc_stores_and_loses_the_answer() {
    survives("grpc-stores", grpc, |_| Reply::StoreAndCut).await;
}

#[tokio::test]
async fn grpc_breaks_within_the_answer() {
    survives("grpc-within", grpc, |_| Reply::StoreAndCutWithin).await;
}

#[tokio::test]
async fn http_breaks_within_the_answer() {
    survives("http-within", http, |_| Reply::StoreAndCutWithin).await;
}

#[tokio::test]
async fn http_unavailable() {
    survives("http-unavailable", http, |_| Reply::Http(503, None)).await;
}

#[tokio::test]
async fn http_refuses_us() {
    survives("http-denied", http, |_| Reply::Http(401, None)).await;
}

#[tokio::test]
async fn http_internal_error() {
    survives("http-500", http, |_| Reply::Http(500, None)).await;
}

#[tokio::test]
async fn http_hangs() {
    survives("http-hangs", http, |_| Reply::Hang).await;
}

#[tokio::test]
async fn http_resets() {
    survives("http-resets", http, |_| Reply::Cut).await;
}

#[tokio::test]
async fn http_stores_and_loses_the_answer() {
    survives("http-stores", http, |_| Reply::StoreAndCut).await;
}

/// The collector says when; until then nobody calls.
#[tokio::test]
async fn a_pause_that_was_asked_for_is_kept() {
    // google.rpc.Status { details: [Any { RetryInfo { retry_delay: 4 s } }] }
    let url = b"type.googleapis.com/google.rpc.RetryInfo";
    let any = [&[0x0a, url.len() as u8][..], url, &[0x12, 4, 0x0a, 2, 0x08, 4]].concat();
    let details = bytes::Bytes::from([&[0x1a, any.len() as u8][..], &any].concat());
    let exhausted = Reply::Grpc(tonic::Code::ResourceExhausted, "later".to_owned(), details);
    for (name, config, reply) in
        [("grpc-pause", grpc as fn(String) -> otlp::Config, exhausted), ("http-pause", http, Reply::Http(429, Some(4)))]
    {
        let first = move |seen: &Seen<'_>| if seen.number == 0 { reply.clone() } else { Reply::Take };
        let collector = Collector::start(first).await;
        let mut rig = Rig::new(name, ROOMY, 5000);
        rig.ship(config(collector.url()));
        rig.settled(DRAIN).await;
        let calls = collector.stored().calls.clone();
        assert!(calls[1] - calls[0] >= Duration::from_secs(4), "{name}: {:?}", calls[1] - calls[0]);
        rig.end().await.check(&collector);
    }
}

#[tokio::test]
async fn a_slow_collector_gets_everything() {
    for (name, config) in [("grpc-slow", grpc as fn(String) -> otlp::Config), ("http-slow", http)] {
        let collector = Collector::start(|_| Reply::Slow(Duration::from_millis(200))).await;
        let mut rig = Rig::new(name, ROOMY, RECORDS);
        rig.ship(config(collector.url()));
        rig.settled(DRAIN).await;
        rig.end().await.check(&collector);
    }
}

#[tokio::test]
async fn every_compression_arrives() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        for (name, config) in [("grpc-squeezed", grpc as fn(String) -> otlp::Config), ("http-squeezed", http)] {
            let collector = Collector::start(|_| Reply::Take).await;
            let mut rig = Rig::new(name, ROOMY, 5000);
            rig.ship(otlp::Config { compression, ..config(collector.url()) });
            rig.settled(DRAIN).await;
            rig.end().await.check(&collector);
        }
    }
}
