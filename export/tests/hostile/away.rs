//! Collectors that are away for long: what a small spool loses, who serves meanwhile, and what is said about it.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use export::{Alerts, Events, Spooled, otlp, queue};
use record::key;
use spool::{Disk, Spool};

use crate::{
    DRAIN, ROOMY, code, grpc,
    rig::{Directory, Rig, batch, check_gaps, limits},
    server::{Collector, Reply, number, text},
};

/// An hour of ten records a second into 1 MiB; the time is an argument. Then the collector comes.
#[tokio::test]
async fn an_hour_away_costs_exactly_what_the_gap_records_say() {
    let directory = Directory::new("hour");
    let limits = limits(1 << 20);
    let open = |now| Spool::open(Arc::new(Disk::open(&directory.0).unwrap()), limits, now).unwrap();
    let end = UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let begin = end - 3_600_000_000_000;
    let (mut uids, mut sent) = (crate::rig::uids(11), HashSet::new());
    {
        let (mut spool, _reader, _) = open(begin);
        for second in 0..3600 {
            let now = begin + second * 1_000_000_000;
            let (batch, names) = batch(&mut uids, now, 10);
            spool.append(now, batch.records, &batch.fields).unwrap();
            sent.extend(names);
            spool.sync().unwrap();
            spool.tick(now).unwrap();
        }
        spool.close(end).unwrap();
    }
    let collector = Collector::start(|_| Reply::Take).await;
    let (spool, reader, _) = open(end);
    let (sender, receiver) = queue(1 << 20);
    let spooled = Spooled::spawn(receiver, spool, reader, limits.sync).unwrap();
    drop(sender);
    let shipper = otlp::Shipper::new(grpc(collector.url())).unwrap();
    shipper.run_spooled(spooled, std::future::pending(), Duration::ZERO).await;
    let stored = collector.stored();
    let missing = sent.difference(&stored.uids()).count() as u64;
    let reports = stored.records.iter().filter(|record| record.event_name == "picket.gap").count();
    let said = check_gaps(&stored.records, |reason| reason == "spool_full");
    println!("{missing} of {} records are missing; {reports} gap records say {said}", sent.len());
    assert!(missing > 10_000, "the spool was too small for all");
    // Reports of gaps that went with their segments are missing, too, and are counted.
    assert!(said >= missing && stored.records.len() as u64 - reports as u64 == sent.len() as u64 - missing);
    assert_eq!(stored.repeated, 0);
}

/// As above, but with a shipper that tries all the time and holds a batch while the spool runs over.
#[tokio::test]
async fn what_goes_while_the_shipper_tries_is_what_the_gap_records_say() {
    let collector = Collector::start(|_| code(tonic::Code::Unavailable)).await;
    let mut rig = Rig::new("trying", 1 << 20, 1000);
    rig.ship(grpc(collector.url()));
    let mut uids = crate::rig::uids(12);
    for _ in 0..100 {
        rig.send(&mut uids, 250);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    collector.behave(|_| Reply::Take);
    let ended = rig.end().await;
    let stored = collector.stored();
    let missing = ended.sent.difference(&stored.uids()).count() as u64;
    let said = check_gaps(&stored.records, |reason| reason == "spool_full");
    assert!(missing > 10_000 && said >= missing, "{missing} {said}");
    assert_eq!(stored.repeated, 0);
}

#[tokio::test]
async fn another_endpoint_serves_until_the_preferred_one_is_back() {
    let (preferred, other) =
        (Collector::start(|_| code(tonic::Code::Unavailable)).await, Collector::start(|_| Reply::Take).await);
    let mut rig = Rig::new("failover", ROOMY, 10_000);
    rig.ship(otlp::Config { endpoints: vec![preferred.url(), other.url()], ..grpc(String::new()) });
    rig.settled(Duration::from_secs(5)).await;
    assert_eq!((preferred.calls(), other.stored().uids().len()), (1, 10_000), "at once");
    preferred.behave(|_| Reply::Take);
    let mut uids = crate::rig::uids(13);
    let end = std::time::Instant::now() + Duration::from_secs(40);
    while preferred.stored().uids().is_empty() {
        assert!(std::time::Instant::now() < end, "the preferred one is not asked again");
        rig.send(&mut uids, 10);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    rig.send(&mut uids, 10);
    let last = other.calls();
    rig.settled(DRAIN).await;
    assert_eq!(other.calls(), last, "the preferred one serves again");
    let ended = rig.end().await;
    let there: HashSet<_> = preferred.stored().uids().union(&other.stored().uids()).cloned().collect();
    assert!(ended.sent.is_subset(&there));
}

#[tokio::test]
async fn an_alert_says_once_that_the_collector_is_away_and_once_that_it_is_back() {
    let collector = Collector::start(|_| code(tonic::Code::Unavailable)).await;
    let mut rig = Rig::new("alert", ROOMY, 1000);
    let alerts = Arc::new(Alerts::new(Events::new(vec![rig.sender.clone()])));
    let config = otlp::Config { away_after: Duration::from_secs(1), ..grpc(collector.url()) };
    let mut shipper = otlp::Shipper::new(config).unwrap();
    shipper.alert_through(&alerts);
    rig.spooled().alert_through(&alerts);
    rig.ship_with(shipper);
    until(|| alerts.is_firing("collector_away")).await;
    // More failures say nothing more.
    let calls = collector.calls();
    until(|| collector.calls() >= calls + 2).await;
    collector.behave(|_| Reply::Take);
    rig.settled(DRAIN).await;
    until(|| !alerts.is_firing("collector_away")).await;
    drop(alerts);
    let ended = rig.end().await;
    ended.check(&collector);
    let stored = collector.stored();
    let of = |state: &str| {
        let is = |record: &&_| {
            text(record, key::ALERT_NAME) == Some("collector_away") && text(record, key::ALERT_STATE) == Some(state)
        };
        stored.records.iter().filter(is).count()
    };
    assert_eq!((of("firing"), of("resolved")), (1, 1));
}

#[tokio::test]
async fn a_full_spool_is_an_alert_until_it_has_room() {
    let collector = Collector::start(|_| code(tonic::Code::Unavailable)).await;
    let mut rig = Rig::new("full", 1 << 20, 5000);
    let alerts = Arc::new(Alerts::new(Events::new(vec![rig.sender.clone()])));
    rig.spooled().alert_through(&alerts);
    rig.ship(grpc(collector.url()));
    let mut uids = crate::rig::uids(14);
    let end = std::time::Instant::now() + DRAIN;
    while !alerts.is_firing("spool_full") {
        assert!(std::time::Instant::now() < end);
        rig.send(&mut uids, 1000);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    collector.behave(|_| Reply::Take);
    while alerts.is_firing("spool_full") {
        assert!(std::time::Instant::now() < end + DRAIN);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(alerts);
    rig.end().await;
    let names = |state: &str| {
        let is = |record: &&_| {
            text(record, key::ALERT_NAME) == Some("spool_full") && text(record, key::ALERT_STATE) == Some(state)
        };
        collector.stored().records.iter().filter(is).count()
    };
    assert_eq!((names("firing"), names("resolved")), (1, 1));
}

#[tokio::test]
async fn while_the_spool_takes_nothing_the_alert_reaches_the_collector_past_it() {
    let collector = Collector::start(|_| Reply::Take).await;
    let mut rig = Rig::new("failing", ROOMY, 1000);
    let alerts = Arc::new(Alerts::new(Events::new(vec![rig.sender.clone()])));
    let mut config = grpc(collector.url());
    config.resource =
        vec![("k8s.pod.name".to_owned(), "web-1".to_owned()), (key::STREAM.to_owned(), "00ff".to_owned())];
    let mut shipper = otlp::Shipper::new(config).unwrap();
    shipper.alert_through(&alerts);
    rig.spooled().alert_through(&alerts);
    rig.ship_with(shipper);
    rig.settled(DRAIN).await;
    // Where the directory was there is a file: nothing can be made in it.
    let directory = rig.directory.0.join("spool");
    std::fs::remove_dir_all(&directory).unwrap();
    std::fs::write(&directory, "").unwrap();
    let mut uids = crate::rig::uids(15);
    rig.send(&mut uids, 10);
    let found = |state: &str| {
        let stored = collector.stored();
        let is = |record: &&opentelemetry_proto::tonic::logs::v1::LogRecord| {
            text(record, key::ALERT_NAME) == Some("spool_failing") && text(record, key::ALERT_STATE) == Some(state)
        };
        stored.records.iter().filter(is).map(|record| number(record, key::SEQUENCE)).collect::<Vec<_>>()
    };
    until(|| !found("firing").is_empty()).await;
    assert!(alerts.is_firing("spool_failing"));
    std::fs::remove_file(&directory).unwrap();
    until(|| !found("resolved").is_empty()).await;
    drop(alerts);
    rig.end().await;
    // The first went past the spool, without a number; the second has one.
    assert_eq!(found("firing"), [None]);
    assert!(matches!(found("resolved")[..], [Some(_)]));
    assert_eq!(collector.stored().streams, HashSet::from([None, Some("00ff".to_owned())]));
}

/// Waits until it is so.
async fn until(is_so: impl Fn() -> bool) {
    let end = std::time::Instant::now() + DRAIN;
    while !is_so() {
        assert!(std::time::Instant::now() < end, "it never came to that");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
