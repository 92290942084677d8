//! The trust bundle stream of the real program: who is told what, who is waited for, and what a stream may cost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::trust::{Bundle, Status, denial};
use ca::state::Stage;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tonic::Code;

use crate::support::proxy::{Handshakes, Proxy, connect, connect_for, open, store, unix_nanos};
use crate::support::{DOMAIN, Place, Running, ask, command, free_address, status, until, until_async};

const CONFIG: &str = "leafLifetime: 10s\nrenewWithin: 1s\nrotation: {absenceWindow: 3s, stuckAfter: 2s}";

struct Stream {
    say: mpsc::Sender<Status>,
    bundles: Bundles,
}

/// The first of them is here already: it says that the stream has begun.
struct Bundles {
    first: Option<Bundle>,
    later: testkit::Bundles,
}

impl Bundles {
    async fn message(&mut self) -> Result<Option<Bundle>, tonic::Status> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => self.later.message().await,
        }
    }
}

async fn follow(running: &Running, place: &Place, token: &str) -> Result<Stream, tonic::Status> {
    let (say, mut later) = testkit::follow(open(running.address, &store(&place.root()), token, uses(0)).await?);
    let first = later.message().await?;
    Ok(Stream { say, bundles: Bundles { first, later } })
}

fn uses(generation: u64) -> Status {
    Status { generation, time_unix_nanos: unix_nanos(), ..Status::default() }
}

#[tokio::test]
async fn a_stream_gets_the_present_bundle_and_then_the_newest() {
    let place = Place::new("stream");
    let running = place.start();
    let mut stream = follow(&running, &place, &place.pod_token("web-0")).await.unwrap();
    let first = stream.bundles.message().await.unwrap().unwrap();
    assert_eq!((first.generation, first.roots.len(), first.denied.len()), (1, 1, 0));
    assert_eq!(first.issuer_sha256, place.state().signing().sha256.0);
    assert_eq!(first.renew_within_seconds, 360, "a tenth of an hour's leaf");
    assert!((unix_nanos() - first.time_unix_nanos).abs() < 5_000_000_000);

    // It says nothing about the first one: three changes are one message, once it does.
    let socket = place.socket("ca");
    let id = "spiffe://demo.picket.dev/ns/demo/sa/gone";
    command(&socket, "/certs/deny", &format!(r#"{{"subject":{{"identity":"{id}"}},"reason":"left"}}"#));
    command(&socket, "/certs/deny", r#"{"subject":{"serial":"AB:CD"}}"#);
    command(&socket, "/certs/deny", r#"{"subject":{"podUid":"7"}}"#);
    stream.say.send(uses(1)).await.unwrap();
    let second = stream.bundles.message().await.unwrap().unwrap();
    assert_eq!(second.generation, 4);
    let denied: Vec<_> = second.denied.iter().map(|denial| denial.subject.clone().unwrap()).collect();
    let serial = denial::Subject::Serial("abcd".into());
    assert_eq!(denied, [denial::Subject::Identity(id.into()), serial], "peers know no pods");
    assert_eq!(second.denied[0].reason, "left");
    stream.say.send(uses(4)).await.unwrap();
    until_async("the authority to know", || (status(&socket)?.proxies.behind == 0).then_some(())).await;
    drop(stream);
    until_async("the authority to notice", || (status(&socket)?.proxies.connected == 0).then_some(())).await;
}

#[tokio::test]
async fn a_stream_needs_a_token_and_ends_when_its_owner_is_denied() {
    let place = Place::new("denied");
    let running = place.start();
    let bad = follow(&running, &place, "x.y.z").await.err().unwrap();
    assert_eq!(bad.code(), Code::Unauthenticated);
    assert!(running.line("certificate refused").contains("malformed"));
    let mut stream = follow(&running, &place, &place.pod_token("web-0")).await.unwrap();
    stream.bundles.message().await.unwrap().unwrap();
    stream.say.send(uses(1)).await.unwrap();
    command(&place.socket("ca"), "/certs/deny", r#"{"subject":{"podUid":"uid-of-web-0"},"reason":"it was taken"}"#);
    let end = stream.bundles.message().await.unwrap_err();
    assert_eq!(end.code(), Code::PermissionDenied);
    assert!(end.message().contains("the pod is denied: it was taken"), "{end}");
    let again = follow(&running, &place, &place.pod_token("web-0")).await.err().unwrap();
    assert_eq!(again.code(), Code::PermissionDenied);
    command(&place.socket("ca"), "/certs/undeny", r#"{"subject":{"podUid":"uid-of-web-0"}}"#);
    follow(&running, &place, &place.pod_token("web-0")).await.unwrap();
}

#[tokio::test]
async fn streams_have_their_own_places() {
    let place = Place::new("places");
    let config = place.config("ca", "127.0.0.1:0", "leafLifetime: 1h\nfollow: {streams: 2}");
    let running = Running::start(&config, &[]);
    let mut streams = Vec::new();
    for pod in ["a", "b"] {
        let mut stream = follow(&running, &place, &place.pod_token(pod)).await.unwrap();
        stream.bundles.message().await.unwrap().unwrap();
        streams.push(stream);
    }
    let refused = follow(&running, &place, &place.pod_token("c")).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(running.line("certificate refused").contains("2 proxies follow the trust bundle here"));
    // Those who only want a certificate do not need such a place.
    let proxy = Proxy::spawn(&place, &[running.address], "d");
    drop(streams.pop());
    until_async("a place is free", || (proxy.generation() > 0).then_some(())).await;
}

#[tokio::test]
async fn silent_callers_hold_nobody_up_for_long() {
    let place = Place::new("silent");
    let running = place.start();
    let mut stream = follow(&running, &place, &place.pod_token("web-0")).await.unwrap();
    stream.bundles.message().await.unwrap().unwrap();
    stream.say.send(uses(1)).await.unwrap();
    // More than there are places: some are taken, the others wait in the kernel.
    let connect = || tokio::net::TcpStream::connect(running.address);
    let mut silent = Vec::new();
    for _ in 0..1100 {
        silent.push(connect().await.unwrap());
    }
    // Streams have places of their own: this one hears of the change while callers wait.
    let start = Instant::now();
    command(&place.socket("ca"), "/certs/deny", r#"{"subject":{"serial":"ab"}}"#);
    assert_eq!(stream.bundles.message().await.unwrap().unwrap().generation, 2);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    // And a caller gets its place once those who never began are cut.
    Proxy::start(&place, &[running.address], "late").await;
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

#[tokio::test]
async fn who_never_says_who_it_is_is_cut_and_who_follows_is_not() {
    let place = Place::new("nameless");
    let running = place.start();
    let proxy = Proxy::start(&place, &[running.address], "web-0").await;
    let call = |name: &'static str| {
        let store = store(&place.root());
        async move {
            let id = format!("spiffe://{DOMAIN}/ns/picket-system/sa/picket-ca").parse().unwrap();
            let connector = TlsConnector::from(Arc::new(identity::client_config(&store, &id, b"h2")));
            let socket = tokio::net::TcpStream::connect(running.address).await.unwrap();
            connector.connect(ServerName::try_from(name).unwrap(), socket).await.unwrap()
        }
    };
    let mut nameless = call("nameless").await;
    let start = Instant::now();
    let mut heard = Vec::new();
    // A good greeting, and then nothing: no call, no token.
    nameless.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let cut = tokio::time::timeout(Duration::from_secs(30), nameless.read_to_end(&mut heard)).await;
    assert!(cut.is_ok() && start.elapsed() > Duration::from_secs(5), "{:?}", start.elapsed());
    command(&place.socket("ca"), "/certs/deny", r#"{"subject":{"serial":"ab"}}"#);
    until_async("the one that follows to hear of it", || (proxy.generation() == 2).then_some(())).await;
    assert_eq!(status(&place.socket("ca")).unwrap().proxies.connected, 1);
}

pub(crate) async fn who_is_behind_is_waited_for_by_name_until_an_operator_overrides() {
    let place = Place::new("behind");
    let address = free_address();
    let running = Running::start(&place.config("ca", &address.to_string(), CONFIG), &[]);
    let socket = place.socket("ca");
    let good = Proxy::start(&place, &[address], "good").await;
    let slow = Proxy::start(&place, &[address], "slow").await;
    slow.set_deaf(true);
    command(&socket, "/certs/rotate", r#"{"what":"root"}"#);
    until_async("the good one is done", || (good.roots() == 2).then_some(())).await;
    let waits = || {
        let rotation = status(&socket)?.rotation?;
        let [wait] = rotation.waits.as_slice() else { return None };
        (wait.kind == "acknowledgement" && wait.detail.contains("refuses it: deaf")).then(|| wait.clone())
    };
    let wait = until_async("one wait", waits).await;
    assert_eq!(wait.proxy.unwrap(), "spiffe://demo.picket.dev/ns/demo/sa/web (pod slow)");
    assert!(running.line("rotation_stuck").contains("pod slow"));
    assert_eq!(place.state().rotation.unwrap().stage, Stage::Distribute);
    assert!(status(&socket).unwrap().rotation.unwrap().stuck);

    let (code, answer) = ask(&socket, "POST", "/certs/rotate", r#"{"what":"root"}"#).unwrap();
    assert_eq!(code, 409, "{answer}");
    assert!(answer.contains("under way"), "{answer}");
    assert_eq!(ask(&socket, "POST", "/certs/acknowledge", r#"{"override":false}"#).unwrap().0, 400);
    command(&socket, "/certs/acknowledge", r#"{"override":true}"#);
    until_async("the new root signs", || (place.state().rotation?.stage == Stage::Sign).then_some(())).await;
    slow.set_deaf(false);
    until_async("it comes to its end", || place.state().rotation.is_none().then_some(())).await;
    running.line("alert resolved");
}

pub(crate) async fn a_proxy_that_is_away_for_a_moment_is_not_forgotten() {
    let place = Place::new("away");
    let address = free_address();
    let mut running = Running::start(&place.config("ca", &address.to_string(), CONFIG), &[]);
    let socket = place.socket("ca");
    let proxies =
        Arc::new(vec![Proxy::start(&place, &[address], "a").await, Proxy::start(&place, &[address], "b").await]);
    let handshakes = Handshakes::start(&proxies, Duration::from_millis(100));
    proxies[1].set_deaf(true);
    command(&socket, "/certs/rotate", r#"{"what":"root"}"#);
    until_async("the other one is done", || (proxies[0].roots() == 2).then_some(())).await;
    // The authority dies and comes back: for longer than a tick, nobody has a stream.
    running.signal("KILL");
    until_async("the kill", || running.ended()).await;
    let running = Running::start(&place.config("ca", &address.to_string(), CONFIG), &[]);
    until_async("both are back", || (status(&socket)?.proxies.connected == 2).then_some(())).await;
    // Longer than the window after the start: what holds it up is the proxy, not the start.
    let waits = || {
        let waits = status(&socket)?.rotation?.waits;
        (waits.len() == 1 && waits[0].kind == "acknowledgement").then_some(())
    };
    until_async("only the proxy is waited for", waits).await;
    assert_eq!(place.state().rotation.unwrap().stage, Stage::Distribute);
    proxies[1].set_deaf(false);
    // It takes the bundle with its next stream.
    running.signal("HUP");
    drop(running);
    let _running = Running::start(&place.config("ca", &address.to_string(), CONFIG), &[]);
    until_async("it comes to its end", || place.state().rotation.is_none().then_some(())).await;
    handshakes.check(proxies.len()).await;
}

#[tokio::test]
async fn clocks_that_are_apart_are_told_once_each_way() {
    let place = Place::new("clock");
    let running = place.start();
    let proxy = Proxy::start(&place, &[running.address], "web-0").await;
    proxy.set_clock_ahead(3600);
    let line = until_async("the alert", || running.try_line("clock_skew")).await;
    assert!(line.contains("pod web-0") && line.contains("the authority's says"), "{line}");
    // It says so again; what it says is heard in order.
    let said = proxy.said();
    until_async("more of the same", || (proxy.said() >= said + 3).then_some(())).await;
    proxy.set_clock_ahead(1);
    let line = until_async("its end", || running.try_line("clock_skew")).await;
    assert!(line.contains("alert resolved"), "told more than once: {line}");
}

#[tokio::test]
async fn a_stop_is_quick_with_streams_open() {
    let place = Place::new("stop");
    let mut running = place.start();
    let _proxy = Proxy::start(&place, &[running.address], "web-0").await;
    // Three that never say who they are: one of them is nothing but a socket.
    let store = store(&place.root());
    let _silent = connect(running.address, &store).await.unwrap();
    let _caller = connect_for(running.address, &store, b"h2").await.unwrap();
    let _nothing = tokio::net::TcpStream::connect(running.address).await.unwrap();
    running.signal("TERM");
    let start = Instant::now();
    let ended = until("the end", || running.ended());
    assert!(ended.success() && start.elapsed() < Duration::from_secs(4), "{ended} after {:?}", start.elapsed());
}
