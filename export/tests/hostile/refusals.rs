//! Collectors that refuse some records for good, or too many of them at once.

use std::{collections::HashSet, time::Instant};

use opentelemetry_proto::tonic::logs::v1::LogRecord;
use record::key;

use crate::{
    DRAIN, ROOMY, code, grpc, http,
    rig::{RECORDS, Rig, check_gaps},
    server::{Collector, Reply, Seen, number, text},
};

/// One record of a thousand.
fn is_bad(record: &LogRecord) -> bool {
    record.event_name == "picket.issuance" && number(record, key::SEQUENCE).unwrap() % 1000 == 7
}

/// The bad ones are set aside, reported and counted; the others arrive, and fast.
async fn only_the_bad_ones_are_set_aside(name: &str, refusal: Reply, is_grpc: bool) {
    let refuse = move |seen: &Seen<'_>| {
        if seen.records.iter().any(is_bad) { refusal.clone() } else { Reply::Take }
    };
    let collector = Collector::start(refuse).await;
    let mut rig = Rig::new(name, ROOMY, RECORDS);
    let begun = Instant::now();
    rig.ship(if is_grpc { grpc(collector.url()) } else { http(collector.url()) });
    // A search for each of them.
    rig.settled(2 * DRAIN).await;
    println!("{name}: {} calls, {:?}", collector.calls(), begun.elapsed());
    let ended = rig.end().await;
    ended.check(&collector);
    let bad = RECORDS / 1000;
    let aside = ended.set_aside();
    assert_eq!((aside.len(), ended.counters.rejected() as usize, ended.counters.set_aside() as usize), (bad, bad, bad));
    let stored = collector.stored();
    assert_eq!(stored.repeated, 0);
    assert_eq!(check_gaps(&stored.records, |reason| reason == "set_aside"), bad as u64);
    assert!(ended.sent.iter().filter(|uid| aside.contains(*uid)).count() == bad);
}

#[tokio::test]
async fn grpc_invalid_argument_for_one_record_of_a_thousand() {
    only_the_bad_ones_are_set_aside("grpc-invalid", code(tonic::Code::InvalidArgument), true).await;
}

#[tokio::test]
async fn http_400_for_one_record_of_a_thousand() {
    only_the_bad_ones_are_set_aside("http-invalid", Reply::Http(400, None), false).await;
}

/// Smaller requests, and not a record less.
async fn a_size_limit_is_found(name: &str, refusal: Reply, is_grpc: bool) {
    const LIMIT: usize = 100_000;
    let refuse = move |seen: &Seen<'_>| if seen.bytes > LIMIT { refusal.clone() } else { Reply::Take };
    let collector = Collector::start(refuse).await;
    let mut rig = Rig::new(name, ROOMY, RECORDS);
    rig.ship(if is_grpc { grpc(collector.url()) } else { http(collector.url()) });
    rig.settled(DRAIN).await;
    let ended = rig.end().await;
    ended.check(&collector);
    assert_eq!((ended.counters.rejected(), collector.stored().repeated), (0, 0));
    // 40 MB in requests of more than a quarter of the limit, and the search.
    assert!(collector.calls() < 1700, "{} calls", collector.calls());
}

#[tokio::test]
async fn grpc_a_size_limit_is_found() {
    let message = "grpc: received message larger than max (1 vs. 0)".to_owned();
    let refusal = Reply::Grpc(tonic::Code::ResourceExhausted, message, bytes::Bytes::new());
    a_size_limit_is_found("grpc-limit", refusal, true).await;
}

#[tokio::test]
async fn http_a_size_limit_is_found() {
    a_size_limit_is_found("http-limit", Reply::Http(413, None), false).await;
}

#[tokio::test]
async fn a_partial_success_is_counted_and_reported_and_not_sent_again() {
    for (name, is_grpc) in [("grpc-partial", true), ("http-partial", false)] {
        let collector =
            Collector::start(|seen| if seen.number == 0 { Reply::TakePartly(3) } else { Reply::Take }).await;
        let mut rig = Rig::new(name, ROOMY, 5000);
        rig.ship(if is_grpc { grpc(collector.url()) } else { http(collector.url()) });
        rig.settled(DRAIN).await;
        let ended = rig.end().await;
        let stored = collector.stored();
        assert_eq!((ended.counters.rejected(), ended.counters.set_aside(), stored.repeated), (3, 0, 0));
        assert_eq!(check_gaps(&stored.records, |reason| reason == "partly_refused"), 3);
        assert_eq!(ended.sent.difference(&stored.uids()).count(), 3);
    }
}

/// There is a bound to what is kept; what does not fit is lost by name.
#[tokio::test]
async fn the_set_aside_file_is_bounded() {
    let refuse = |seen: &Seen<'_>| {
        let bad = seen.records.iter().any(|record| record.event_name == "picket.issuance");
        if bad { Reply::Http(400, None) } else { Reply::Take }
    };
    let collector = Collector::start(refuse).await;
    let mut rig = Rig::new("bounded", 1 << 20, 0);
    let mut uids = crate::rig::uids(3);
    rig.send(&mut uids, 4);
    rig.ship(http(collector.url()));
    rig.settled(DRAIN).await;
    let file = rig.directory.0.join("spool").join(spool::SET_ASIDE);
    let kept = std::fs::metadata(&file).unwrap().len();
    assert!(kept > 0 && kept <= (1 << 20) / 16);
    // Full, from now on.
    std::fs::write(&file, vec![b'\n'; (1 << 20) / 16]).unwrap();
    rig.send(&mut uids, 1);
    rig.settled(DRAIN).await;
    let ended = rig.end().await;
    assert_eq!((ended.counters.rejected(), ended.counters.set_aside()), (5, 4));
    let reasons: HashSet<_> =
        collector.stored().records.iter().map(|gap| text(gap, key::GAP_REASON).unwrap().to_owned()).collect();
    assert_eq!(reasons, ["set_aside", "refused"].map(str::to_owned).into());
}
