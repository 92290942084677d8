//! What counts as delivered at the end of a connection: the server's end counts when it answers ours, and not before.

use std::{
    io::Read,
    net::{Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use record::{Event, EventName, Severity, UidSource, Value, key};
use spool::{Disk, OnFull, Sink, Spool, Sync};

use super::{
    super::{Format, Syslog},
    *,
};
use crate::{Alerts, Batch, Events, queue};

const RECORDS: u32 = 20;
/// How often a server ends its side too early. Whether that is seen while records are written is a matter of luck.
const ROUNDS: usize = 24;

struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

/// A spool with records for a syslog server, whose writer has ended.
fn spooled(directory: &Directory) -> Spooled {
    let (max_bytes, max_age, sync) = (1 << 20, Duration::from_secs(3600), Sync::Always);
    let config =
        spool::Config { max_bytes, max_age, min_free_bytes: 0, sync, on_full: OnFull::DropOldest, uid_seed: 1 };
    let now = UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let disk = Arc::new(Disk::open(&directory.0).unwrap());
    let (spool, readers, _) = Spool::open_for(&[Sink::Syslog], disk, config, now).unwrap();
    let (sender, receiver) = queue(1 << 20);
    let (mut fields, mut uids) = (Vec::new(), UidSource::new(3));
    for _ in 0..RECORDS {
        let (uid, attributes) = (uids.next(1), [(key::DETAIL, Value::Text("text"))]);
        let (name, severity) = (EventName::Alert, Severity::Info);
        Event { uid, name, time_unix_nanos: now, severity, attributes: &attributes }.encode(&mut fields);
    }
    sender.send(Batch { records: RECORDS, fields: fields.into() }).unwrap();
    drop(sender);
    let spooled = Spooled::spawn_all(receiver, spool, readers, sync, None).unwrap().remove(0);
    while !spooled.signals.ended.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(1));
    }
    spooled
}

fn config(address: SocketAddr) -> Config {
    let format = Format {
        facility: 16,
        host_name: "h".to_owned(),
        app_name: "a".to_owned(),
        process_id: 1,
        enterprise_number: 32473,
        message_bytes_max: 8192,
        resource: Vec::new(),
        evidence: false,
    };
    let (roots, certificate, timeout) = (None, None, Duration::from_secs(5));
    let (settle, away_after) = (Duration::from_secs(3600), Duration::from_millis(600));
    Config { endpoint: format!("tcp://{address}"), roots, certificate, timeout, settle, away_after, format }
}

/// A connection to a server that is given its own end of it.
async fn connection(listener: &TcpListener) -> (Connection, TcpStream) {
    let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (local, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
    let (server, _) = listener.accept().unwrap();
    // As `Counted` does it, of which only this is looked at: all is written before the end.
    let written = Arc::default();
    (Connection { stream: Box::new(stream), local, peer, written }, server)
}

#[tokio::test]
async fn an_end_of_the_server_that_came_before_ours_is_no_delivery() {
    let directory = Directory(std::env::temp_dir().join(format!("picket-syslog-end-{}", std::process::id())));
    let (mut spooled, listener) = (spooled(&directory), TcpListener::bind("127.0.0.1:0").unwrap());
    let mut delivery = Delivery::new(&config(listener.local_addr().unwrap()));
    for _ in 0..ROUNDS {
        let (connection, server) = connection(&listener).await;
        let (local, peer) = (connection.local, connection.peer);
        server.shutdown(Shutdown::Write).unwrap();
        while unacknowledged::ask(local, peer).unwrap().is_whole {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        delivery.feed(connection, &mut spooled).await.unwrap_err();
        assert_eq!((delivery.delivered(), spooled.counters.acknowledged()), (0, 0));
        spooled.reader.as_mut().unwrap().rewind();
    }
    // One that ends after us has them all.
    let (connection, mut server) = connection(&listener).await;
    let reading = std::thread::spawn(move || {
        let mut all = Vec::new();
        server.read_to_end(&mut all).map(|_| all)
    });
    delivery.feed(connection, &mut spooled).await.unwrap();
    let received = reading.join().unwrap().unwrap();
    assert_eq!(received.windows(13).filter(|bytes| bytes == b"picket.alert ").count() as u32, RECORDS);
    assert_eq!(delivery.delivered(), u64::from(RECORDS));
}

#[tokio::test]
async fn an_alert_says_once_that_the_server_is_away_and_once_that_it_is_back() {
    let directory = Directory(std::env::temp_dir().join(format!("picket-syslog-away-{}", std::process::id())));
    let (spooled, listener) = (spooled(&directory), TcpListener::bind("127.0.0.1:0").unwrap());
    let (sender, mut receiver) = queue(1 << 20);
    let alerts = Arc::new(Alerts::new(Events::new(vec![sender])));
    spooled.alert_through(&alerts);
    let config = config(listener.local_addr().unwrap());
    let endpoint = config.endpoint.clone();
    let syslog = Syslog::new(config).unwrap();
    let delivering = tokio::spawn(syslog.run(spooled, std::future::pending(), Duration::ZERO));
    // It takes connections and resets each: that is no delivery.
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let mut resets = 0;
    while !alerts.is_firing(SYSLOG_AWAY) || resets < 3 {
        tokio::select! {
            accepted = listener.accept() => {
                accepted.unwrap().0.set_zero_linger().unwrap();
                resets += 1;
            }
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
    }
    let (mut served, _) = listener.accept().await.unwrap();
    tokio::io::copy(&mut served, &mut tokio::io::sink()).await.unwrap();
    drop(served);
    delivering.await.unwrap();
    assert!(!alerts.is_firing(SYSLOG_AWAY));
    drop(alerts);
    let mut lines = Vec::new();
    while let Some(batch) = receiver.recv().await {
        record::line::records(&batch.fields).for_each(|record| record::line::json(record, &mut lines));
    }
    let lines = String::from_utf8(lines).unwrap();
    let states: Vec<_> = lines.lines().map(|line| line.contains("\"picket.alert.state\":\"firing\"")).collect();
    assert_eq!(states, [true, false], "{lines}");
    assert!(lines.lines().all(|line| line.contains(SYSLOG_AWAY) && line.contains(&endpoint)), "{lines}");
}

#[tokio::test]
async fn an_idle_connection_that_the_server_ends_is_no_outage() {
    let directory = Directory(std::env::temp_dir().join(format!("picket-syslog-idle-{}", std::process::id())));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (max_bytes, max_age, sync) = (1 << 20, Duration::from_secs(3600), Sync::Always);
    let of_spool =
        spool::Config { max_bytes, max_age, min_free_bytes: 0, sync, on_full: OnFull::DropOldest, uid_seed: 1 };
    let now = UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let disk = Arc::new(Disk::open(&directory.0).unwrap());
    let (spool, readers, _) = Spool::open_for(&[Sink::Syslog], disk, of_spool, now).unwrap();
    let (sender, receiver) = queue(1 << 20);
    let mut uids = UidSource::new(3);
    let mut batch = || {
        let (mut fields, uid) = (Vec::new(), uids.next(1));
        let (name, severity, attributes) = (EventName::Alert, Severity::Info, [(key::DETAIL, Value::Text("text"))]);
        Event { uid, name, time_unix_nanos: now, severity, attributes: &attributes }.encode(&mut fields);
        Batch { records: 1, fields: fields.into() }
    };
    let spooled = Spooled::spawn_all(receiver, spool, readers, sync, None).unwrap().remove(0);
    let alerts = Arc::new(Alerts::new(Events::new(vec![queue(1 << 20).0])));
    spooled.alert_through(&alerts);
    let counters = Arc::clone(spooled.counters());
    let away_after = Duration::from_secs(1);
    let config = Config { settle: Duration::from_millis(100), away_after, ..config(listener.local_addr().unwrap()) };
    let task = tokio::spawn(Syslog::new(config).unwrap().run(spooled, std::future::pending(), Duration::ZERO));
    sender.send(batch()).unwrap();
    let (mut served, _) = listener.accept().await.unwrap();
    assert!(AsyncReadExt::read(&mut served, &mut [0; 4096]).await.unwrap() > 0);
    while counters.acknowledged() < 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop((served, listener));
    // There is nothing to deliver for longer than the alert waits.
    tokio::time::sleep(2 * away_after).await;
    assert!(!alerts.is_firing(SYSLOG_AWAY));
    let begun = Instant::now();
    sender.send(batch()).unwrap();
    while !alerts.is_firing(SYSLOG_AWAY) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(begun.elapsed() >= away_after, "{:?}", begun.elapsed());
    task.abort();
}
