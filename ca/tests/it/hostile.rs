//! The trust bundle stream against those who do not speak it: each is cut in time, and nobody else notices.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::frames::{frame, length};
use api::trust::{Open, Status, denial};
use identity::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::client::TlsStream;
use tonic::Code;

use crate::support::proxy::{Proxy, connect, open, store, unix_nanos};
use crate::support::{Place, Running, command, status, until_async};

type Connection = TlsStream<tokio::net::TcpStream>;

fn uses(generation: u64) -> Status {
    Status { generation, time_unix_nanos: unix_nanos(), ..Status::default() }
}

/// Reads to the end; how long that took.
async fn until_cut(connection: &mut Connection) -> Duration {
    let (start, mut heard) = (Instant::now(), Vec::new());
    let cut = tokio::time::timeout(Duration::from_secs(90), connection.read_to_end(&mut heard)).await;
    assert!(cut.is_ok(), "it was not cut");
    start.elapsed()
}

/// A connection that follows, past its first bundle, in the hands of a test that knows no manners.
async fn follower(running: &Running, store: &Arc<Store>, token: &str) -> Connection {
    let mut connection = connect(running.address, store).await.unwrap();
    let opening = Open { token: token.to_owned(), status: Some(uses(0)) };
    connection.write_all(&frame(&opening)).await.unwrap();
    let mut bytes = [0; 4];
    connection.read_exact(&mut bytes).await.unwrap();
    let mut bundle = vec![0; usize::try_from(u32::from_be_bytes(bytes)).unwrap()];
    connection.read_exact(&mut bundle).await.unwrap();
    connection
}

#[tokio::test]
async fn who_does_not_begin_properly_is_told_or_cut() {
    let place = Place::new("hostile-begin");
    let running = place.start();
    let (store, token) = (store(&place.root()), place.pod_token("web-0"));
    let open = |token: &str| frame(&Open { token: token.to_owned(), status: Some(uses(0)) });
    for (bytes, word) in [
        (length((32 << 10) + 1).to_vec(), "longer than any that is taken"),
        (length(usize::MAX).to_vec(), "longer than any that is taken"),
        (vec![0, 0, 0, 3, 255, 255, 255], "cannot be read"),
        ([open(&token), vec![0]].concat(), "something follows the first message"),
        (length(0).to_vec(), "no bearer token"),
        (open(""), "no bearer token"),
        (open("x.y.z"), "malformed"),
    ] {
        let mut connection = connect(running.address, &store).await.unwrap();
        connection.write_all(&bytes).await.unwrap();
        let mut heard = Vec::new();
        // It may be reset behind the last word.
        let _cut = tokio::time::timeout(Duration::from_secs(20), connection.read_to_end(&mut heard)).await.unwrap();
        let heard = String::from_utf8_lossy(&heard);
        assert!(heard.contains(word), "{word:?} is not in {heard:?}");
    }
    assert_eq!(status(&place.socket("ca")).unwrap().proxies.connected, 0);
}

#[tokio::test]
async fn who_breaks_off_in_the_middle_is_cut_and_the_others_are_served() {
    let place = Place::new("hostile-half");
    let running = place.start();
    let (store, socket) = (store(&place.root()), place.socket("ca"));
    let good = Proxy::start(&place, &[running.address], "good").await;
    // Half a first message, and one byte each half second.
    let mut half = connect(running.address, &store).await.unwrap();
    half.write_all(&length(100)[..2]).await.unwrap();
    let mut slow = connect(running.address, &store).await.unwrap();
    let start = Instant::now();
    slow.write_all(&length(100)).await.unwrap();
    while start.elapsed() < Duration::from_secs(30) && slow.write_all(&[0]).await.is_ok() {
        let quiet = tokio::time::timeout(Duration::from_millis(500), slow.read_u8()).await;
        if quiet.is_ok() {
            break;
        }
    }
    assert!((5..30).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    until_cut(&mut half).await;
    // The same later: half a message in a whole record, and half a record.
    let mut message = follower(&running, &store, &place.pod_token("message")).await;
    message.write_all(&length(100)).await.unwrap();
    let mut record = follower(&running, &store, &place.pod_token("record")).await;
    record.get_mut().0.write_all(&[23, 3, 3, 1, 0, 7]).await.unwrap();
    command(&socket, "/certs/deny", r#"{"subject":{"serial":"ab"}}"#);
    until_async("the good one to hear of it", || (good.generation() == 2).then_some(())).await;
    for connection in [&mut message, &mut record] {
        assert!(until_cut(connection).await < Duration::from_secs(20));
    }
    until_async("only the good one is left", || (status(&socket)?.proxies.connected == 1).then_some(())).await;
}

#[tokio::test]
async fn what_is_no_message_ends_a_stream_at_once() {
    let place = Place::new("hostile-later");
    let running = place.start();
    let (store, socket) = (store(&place.root()), place.socket("ca"));
    let token = place.pod_token("web-0");
    for bytes in [length(4097).to_vec(), length(usize::MAX).to_vec(), vec![0, 0, 0, 2, 255, 255], vec![1; 9000]] {
        let mut connection = follower(&running, &store, &token).await;
        connection.write_all(&bytes).await.unwrap();
        assert!(until_cut(&mut connection).await < Duration::from_secs(5), "{} bytes", bytes.len());
    }
    // Beside TLS: no records, records of others, one that does not open, one that is too long.
    let records: [&[u8]; 5] =
        [b"GET / HTTP/1.1\r\n\r\n", &[22, 3, 3, 0, 1, 0], &[23, 3, 3, 0, 0], &[23, 3, 3, 0, 20], &[23, 3, 3, 255, 255]];
    for bytes in records {
        let mut connection = follower(&running, &store, &token).await;
        let bytes = [bytes, &[0; 20]].concat();
        connection.get_mut().0.write_all(&bytes).await.unwrap();
        assert!(until_cut(&mut connection).await < Duration::from_secs(5), "{bytes:?}");
    }
    // A key update is allowed by TLS, not here.
    let mut connection = follower(&running, &store, &token).await;
    connection.get_mut().1.refresh_traffic_keys().unwrap();
    connection.write_all(&length(0)).await.unwrap();
    assert!(until_cut(&mut connection).await < Duration::from_secs(5));
    until_async("nobody is left", || (status(&socket)?.proxies.connected == 0).then_some(())).await;
}

#[tokio::test]
async fn a_flood_keeps_nobody_from_being_served() {
    let place = Place::new("hostile-flood");
    let running = place.start();
    let (store, socket) = (store(&place.root()), place.socket("ca"));
    let good = Proxy::start(&place, &[running.address], "good").await;
    let mut floods = Vec::new();
    for pod in ["a", "b", "c"] {
        let mut connection = follower(&running, &store, &place.pod_token(pod)).await;
        floods.push(tokio::spawn(async move {
            let flood = length(0).repeat(100);
            // It never reads what is answered.
            while connection.write_all(&flood).await.is_ok() {}
        }));
    }
    for generation in 2..6 {
        let start = Instant::now();
        command(&socket, "/certs/deny", &format!(r#"{{"subject":{{"serial":"{generation}"}}}}"#));
        until_async("the good one to hear of it", || (good.generation() == generation).then_some(())).await;
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
    // Those who never read are cut in the end.
    for flood in floods {
        tokio::time::timeout(Duration::from_secs(60), flood).await.expect("the flood ends").unwrap();
    }
    until_async("only the good one is left", || (status(&socket)?.proxies.connected == 1).then_some(())).await;
}

#[tokio::test]
async fn who_says_little_in_many_records_is_cut() {
    let place = Place::new("hostile-records");
    let running = place.start();
    let store = store(&place.root());
    let mut connection = follower(&running, &store, &place.pod_token("many")).await;
    // A message of one field that nobody knows, a byte in each record: fewer messages than are too many.
    let message = [length(4003).to_vec(), vec![0xfa, 0x01, 0x9f, 0x1f], vec![0; 3999]].concat();
    let (start, mut records) = (Instant::now(), 0);
    'cut: while start.elapsed() < Duration::from_secs(60) {
        for byte in &message {
            records += 1;
            if connection.write_all(std::slice::from_ref(byte)).await.is_err() || connection.flush().await.is_err() {
                break 'cut;
            }
        }
    }
    assert!(start.elapsed() < Duration::from_secs(60), "{records} records");
}

#[tokio::test]
async fn who_is_denied_while_it_owes_an_answer_is_cut_at_once() {
    let place = Place::new("hostile-owing");
    let running = place.start();
    let mut connection = follower(&running, &store(&place.root()), &place.pod_token("web-0")).await;
    command(&place.socket("ca"), "/certs/deny", r#"{"subject":{"podUid":"uid-of-web-0"}}"#);
    let took = until_cut(&mut connection).await;
    assert!(took < Duration::from_secs(4), "{took:?}");
}

pub(crate) async fn who_falls_silent_is_given_up_and_who_asks_is_answered() {
    let place = Place::new("hostile-silent");
    let running = place.start();
    let (store, socket) = (store(&place.root()), place.socket("ca"));
    let mut silent = follower(&running, &store, &place.pod_token("silent")).await;
    let mut asking = follower(&running, &store, &place.pod_token("asking")).await;
    let questions = tokio::spawn(async move {
        let mut answer = [1; 4];
        for _ in 0..7 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            asking.write_all(&length(0)).await.unwrap();
            asking.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, [0; 4]);
        }
        asking
    });
    let cut = until_cut(&mut silent).await;
    assert!((45..70).contains(&cut.as_secs()), "{cut:?}");
    let asking = questions.await.unwrap();
    assert_eq!(status(&socket).unwrap().proxies.connected, 1);
    drop(asking);
}

#[tokio::test]
async fn a_large_bundle_comes_whole() {
    let place = Place::new("hostile-large");
    let running = place.start();
    let (store, socket) = (store(&place.root()), place.socket("ca"));
    let stream = open(running.address, &store, &place.pod_token("web-0"), uses(0)).await.unwrap();
    let (say, mut bundles) = testkit::follow(stream);
    let mut generation = bundles.message().await.unwrap().unwrap().generation;
    // More than some records.
    let reason = "x".repeat(200);
    let ids = (0..300).map(|number| format!("spiffe://demo.picket.dev/ns/demo/sa/{number:0>60}"));
    for id in ids.clone() {
        command(&socket, "/certs/deny", &format!(r#"{{"subject":{{"identity":"{id}"}},"reason":"{reason}"}}"#));
    }
    say.send(uses(generation)).await.unwrap();
    let mut denied = Vec::new();
    while generation < 301 {
        let bundle = bundles.message().await.unwrap().unwrap();
        (generation, denied) = (bundle.generation, bundle.denied);
        say.send(uses(generation)).await.unwrap();
    }
    let found: Vec<_> = denied.into_iter().map(|denial| denial.subject.unwrap()).collect();
    assert_eq!(found, ids.map(denial::Subject::Identity).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_suite_with_short_keys_does_not_follow() {
    let place = Place::new("hostile-suite");
    let running = place.start();
    let store = store(&place.root());
    let id = "spiffe://demo.picket.dev/ns/picket-system/sa/picket-ca".parse().unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(identity::client_config(&store, &id, identity::ALPN_TRUST)));
    let socket = tokio::net::TcpStream::connect(running.address).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("picket-ca").unwrap();
    let connection = tls.connect(name, socket).await.unwrap();
    let mut stream = api::follow::Stream::open(connection, &place.pod_token("a"), uses(0)).await.unwrap();
    let end = stream.bundle().await;
    assert!(end.as_ref().is_ok_and(Option::is_none) || end.is_err_and(|end| end.code() == Code::Unavailable));
}
