//! The admin server over real sockets: what it answers, what it refuses, and that no client can hold it.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};
use telemetry::{
    admin::{Admin, Error, Limits, Server},
    log::{self, Format, LevelHandle},
    metrics::{Exposition, Kind, Metric},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
};

const UP: Metric = Metric { name: "picket_up", kind: Kind::Gauge, unit: "1", labels: &[], help: "Always 1." };

struct Rig {
    address: SocketAddr,
    socket: PathBuf,
    ready: Arc<AtomicBool>,
    level: LevelHandle,
    server: JoinHandle<()>,
}

impl Rig {
    async fn start(limits: Limits) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("picket-admin-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let socket = std::env::temp_dir().join(name);
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), Some(&socket)).await.unwrap();
        let address = server.address();
        let ready = Arc::new(AtomicBool::new(false));
        let is_ready = Arc::clone(&ready);
        let readiness =
            move || if is_ready.load(Ordering::Relaxed) { Ok(()) } else { Err("no certificate yet".into()) };
        let metrics = |out: &mut String| {
            Exposition::new(out).family(&UP).sample(&[], 1);
        };
        // The handle holds no subscriber, so the subscriber is leaked for the life of the test process.
        let (subscriber, level) = log::subscriber(Format::Text, "info", std::io::sink).unwrap();
        Box::leak(Box::new(subscriber));
        let shout = |body: String| async move {
            let status = if body.is_empty() { StatusCode::CONFLICT } else { StatusCode::OK };
            (status, body.to_uppercase())
        };
        let admin = Admin::new(readiness, metrics)
            .with_log_level(level.clone())
            .with_action(Method::POST, "/shout", shout)
            .with_limits(limits);
        Self { address, socket, ready, level, server: tokio::spawn(server.run(admin)) }
    }

    async fn tcp(&self, method: Method, path: &str) -> (StatusCode, String) {
        exchange(TcpStream::connect(self.address).await.unwrap(), method, path, "").await
    }

    async fn unix(&self, method: Method, path: &str, body: &str) -> (StatusCode, String) {
        exchange(UnixStream::connect(&self.socket).await.unwrap(), method, path, body).await
    }
}

async fn exchange<S>(stream: S, method: Method, path: &str, body: &str) -> (StatusCode, String)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let body = Full::new(Bytes::from(body.to_owned()));
    let request = Request::builder().method(method).uri(path).header("host", "admin").body(body).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

/// Waits until the server closes the stream and returns what it said; an answer later than this is a failure.
async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    // A reset instead of an orderly end is also the server's close.
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut heard));
    let _ = read.await.expect("the server closes");
    heard
}

#[tokio::test]
async fn health_and_metrics_are_answered_over_tcp() {
    let rig = Rig::start(Limits::default()).await;
    assert_eq!(rig.tcp(Method::GET, "/livez").await, (StatusCode::OK, "alive\n".into()));
    assert_eq!(rig.tcp(Method::GET, "/readyz").await, (StatusCode::SERVICE_UNAVAILABLE, "no certificate yet\n".into()));
    rig.ready.store(true, Ordering::Relaxed);
    assert_eq!(rig.tcp(Method::GET, "/readyz").await, (StatusCode::OK, "ready\n".into()));
    let metrics = "# HELP picket_up Always 1.\n# TYPE picket_up gauge\npicket_up 1\n";
    assert_eq!(rig.tcp(Method::GET, "/metrics").await, (StatusCode::OK, metrics.into()));
    assert_eq!(rig.tcp(Method::GET, "/").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn nothing_can_be_changed_over_tcp() {
    let rig = Rig::start(Limits::default()).await;
    assert_eq!(rig.tcp(Method::PUT, "/log-level").await.0, StatusCode::NOT_FOUND);
    assert_eq!(rig.tcp(Method::GET, "/log-level").await.0, StatusCode::NOT_FOUND);
    assert_eq!(rig.tcp(Method::POST, "/readyz").await.0, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn the_log_level_is_changed_over_the_socket() {
    let rig = Rig::start(Limits::default()).await;
    assert_eq!(rig.unix(Method::GET, "/log-level", "").await, (StatusCode::OK, "info\n".into()));
    assert_eq!(rig.unix(Method::PUT, "/log-level", "debug\n").await, (StatusCode::OK, "debug\n".into()));
    assert_eq!(rig.level.get(), "debug");
    assert_eq!(rig.unix(Method::PUT, "/log-level", "proxy=loud").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(rig.unix(Method::PUT, "/log-level", &"x".repeat(2000)).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(rig.unix(Method::DELETE, "/log-level", "").await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(rig.level.get(), "debug");
    assert_eq!(rig.unix(Method::GET, "/livez", "").await.0, StatusCode::OK);
}

#[tokio::test]
async fn an_action_is_done_over_the_socket_only() {
    let rig = Rig::start(Limits::default()).await;
    assert_eq!(rig.unix(Method::POST, "/shout", "ok").await, (StatusCode::OK, "OK".into()));
    assert_eq!(rig.unix(Method::POST, "/shout", "").await.0, StatusCode::CONFLICT);
    assert_eq!(rig.unix(Method::POST, "/shout", &"x".repeat(17 << 10)).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(rig.unix(Method::GET, "/shout", "").await.0, StatusCode::NOT_FOUND);
    assert_eq!(rig.tcp(Method::POST, "/shout").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_socket_serves_without_tcp() {
    let socket = std::env::temp_dir().join(format!("picket-admin-only-{}", std::process::id()));
    let server = Server::on_socket(&socket).unwrap();
    let served = tokio::spawn(server.run(Admin::new(|| Ok(()), |_: &mut String| {})));
    let stream = UnixStream::connect(&socket).await.unwrap();
    assert_eq!(exchange(stream, Method::GET, "/readyz", "").await, (StatusCode::OK, "ready\n".into()));
    served.abort();
    assert!(served.await.unwrap_err().is_cancelled());
    assert!(!socket.exists());
}

#[tokio::test]
async fn the_socket_is_its_owners_alone_and_goes_with_the_server() {
    let rig = Rig::start(Limits::default()).await;
    assert_eq!(std::fs::metadata(&rig.socket).unwrap().permissions().mode() & 0o777, 0o600);
    rig.server.abort();
    assert!(rig.server.await.unwrap_err().is_cancelled());
    assert!(!rig.socket.exists());
}

#[tokio::test]
async fn a_client_with_a_slow_head_is_cut() {
    let limits = Limits { head: Duration::from_millis(100), ..Limits::default() };
    let rig = Rig::start(limits).await;
    let mut slow = TcpStream::connect(rig.address).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n").await.unwrap();
    let heard = until_closed(&mut slow).await;
    assert!(!heard.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&heard));
}

#[tokio::test]
async fn a_client_that_says_nothing_is_cut() {
    let limits = Limits { head: Duration::from_secs(60), connection: Duration::from_millis(100), ..Limits::default() };
    let rig = Rig::start(limits).await;
    assert_eq!(until_closed(&mut TcpStream::connect(rig.address).await.unwrap()).await, b"");
}

#[tokio::test]
async fn clients_above_the_limit_are_turned_away_and_the_socket_is_not_held() {
    let wait = Duration::from_secs(60);
    let rig = Rig::start(Limits { connections: 2, head: wait, connection: wait }).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(TcpStream::connect(rig.address).await.unwrap());
    }
    assert_eq!(until_closed(&mut TcpStream::connect(rig.address).await.unwrap()).await, b"");
    assert_eq!(rig.unix(Method::GET, "/livez", "").await.0, StatusCode::OK);
    // The held ones are served still: they were accepted, not refused.
    for mut stream in held {
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert!(until_closed(&mut stream).await.starts_with(b"HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn addresses_that_cannot_be_had_are_named() {
    let rig = Rig::start(Limits::default()).await;
    let error = Server::bind(rig.address, None).await.unwrap_err();
    assert!(matches!(error, Error::Address { .. }) && error.to_string().contains(&rig.address.to_string()));
    let nowhere = std::env::temp_dir().join("picket-no-such-directory/admin.sock");
    let error = Server::bind("127.0.0.1:0".parse().unwrap(), Some(&nowhere)).await.unwrap_err();
    assert!(matches!(error, Error::Socket { .. }) && error.to_string().contains("picket-no-such-directory"));
}
