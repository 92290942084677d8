//! A client's connection against peers that do not play along: they ignore GOAWAY, stop reading, go away, read slowly,
//! or give up what they asked for.

use std::{net::SocketAddr, sync::Arc};

use record::{Code, Decision, Direction};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
    time::timeout,
};

use super::*;
use crate::{
    account::{Account, End},
    connect::{Connector, Target},
    cut_tests::meshed,
    drain::{self, DrainSignal},
    journal::Journal,
    stream::Prefixed,
};

/// How long anything may take on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// A proxy's side of one connection, and what a test needs of its surroundings.
struct Stage {
    hop: Hop,
    journal: Rc<Journal>,
    records: export::Receiver,
    _drain: DrainSignal,
}

impl Stage {
    /// A client that has connected, on its way to `application`, and both ends of its connection.
    async fn new(application: SocketAddr, keep_alive_timeout: Duration) -> (Self, TcpStream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, source) = listener.accept().await.unwrap();
        let (sender, records) = export::queue(1 << 24);
        let journal = Journal::new(vec![sender], Arc::default(), 1);
        let (drain_signal, drain) = drain::channel();
        let store = identity::Store::new("t".parse().unwrap());
        let hop = Hop {
            account: Account::open(Rc::clone(&journal), Direction::Inbound, source, application),
            connector: Rc::new(Connector::new(store, DEADLINE, DEADLINE)),
            target: Target::Address(application, Decision::Local, "a test"),
            shared: false,
            servers: Rc::default(),
            drain,
            head_bytes_max: 64 * 1024,
            head_timeout: DEADLINE,
            keep_alive_timeout,
        };
        let stream = Stream::Plain(Prefixed::new(Vec::new(), socket));
        (Self { hop, journal, records, _drain: drain_signal }, client, stream)
    }

    /// The records of the requests, as lines of JSON, once the connection has ended.
    async fn lines(self) -> Vec<String> {
        let Self { hop, journal, mut records, .. } = self;
        drop(hop);
        journal.flush();
        drop(journal);
        let mut text = Vec::new();
        while let Some(batch) = records.recv().await {
            record::line::records(&batch.fields).for_each(|record| record::line::json(record, &mut text));
        }
        let lines = String::from_utf8(text).unwrap();
        lines.lines().filter(|line| line.contains("picket.request")).map(str::to_owned).collect()
    }
}

fn get(path: &str) -> http::Request<()> {
    http::Request::get(format!("http://web{path}")).body(()).unwrap()
}

/// An application that answers each request with this many bytes, or with a few at /small; never at /silent.
async fn application(listener: TcpListener, bytes: usize, asked: Rc<Notify>) {
    while let Ok((socket, _)) = listener.accept().await {
        let asked = Rc::clone(&asked);
        spawn_local(async move {
            let mut builder = h2::server::Builder::new();
            builder.max_send_buffer_size(1 << 20).max_concurrent_streams(1000);
            let mut connection = builder.handshake::<_, Bytes>(socket).await.unwrap();
            let mut silent = Vec::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                asked.notify_one();
                match request.uri().path() {
                    "/silent" => silent.push(respond),
                    path => {
                        let bytes = if path == "/small" { 10 } else { bytes };
                        let mut body = respond.send_response(http::Response::new(()), false).unwrap();
                        body.send_data(Bytes::from(vec![7; bytes]), true).unwrap();
                    }
                }
            }
        });
    }
}

/// Starts an application and a stage in front of it.
async fn staged(bytes: usize, keep_alive_timeout: Duration) -> (Stage, TcpStream, Stream, Rc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Rc::<Notify>::default();
    spawn_local(application(listener, bytes, Rc::clone(&asked)));
    let (stage, client, stream) = Stage::new(address, keep_alive_timeout).await;
    (stage, client, stream, asked)
}

#[tokio::test]
async fn a_client_that_ignores_its_goaway_is_cut() {
    let test = async {
        let nobody = ([127, 0, 0, 1], 9).into();
        let (stage, mut client, stream) = Stage::new(nobody, Duration::from_millis(100)).await;
        // The preface, SETTINGS and the acknowledgement of ours; then silence.
        let opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0";
        client.write_all(opening).await.unwrap();
        assert_eq!(timeout(DEADLINE, serve(&stage.hop, stream)).await.expect("it ends").unwrap(), ClosedBy::Us);
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn a_client_that_went_away_has_no_status_in_its_record() {
    let test = async {
        let (stage, client, stream, asked) = staged(0, DEADLINE).await;
        let (mut send, connection) = h2::client::handshake(client).await.unwrap();
        let connection = spawn_local(connection);
        let leaves = async {
            let _answer = send.send_request(get("/silent"), true).unwrap();
            asked.notified().await;
            connection.abort();
        };
        let (served, ()) = tokio::join!(timeout(DEADLINE, serve(&stage.hop, stream)), leaves);
        served.expect("it ends").unwrap();
        let lines = stage.lines().await;
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("\"picket.code\":\"client_closed\""), "{lines:?}");
        assert!(!lines[0].contains("http.response.status_code"), "{lines:?}");
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn a_reader_that_stops_is_cut() {
    let test = async {
        let (stage, client, stream, _) = staged(60_000, Duration::from_millis(300)).await;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 24).initial_connection_window_size(1 << 30);
        builder.initial_max_send_streams(STREAMS_MAX as usize);
        let (mut send, mut connection) = builder.handshake::<_, Bytes>(client).await.unwrap();
        let answers: Vec<_> = (0..STREAMS_MAX).map(|_| send.send_request(get("/"), true).unwrap()).collect();
        // Polled once, the client writes its requests; then it never reads.
        poll_fn(|cx| Poll::Ready(Pin::new(&mut connection).poll(cx).is_ready())).await;
        // What the application answered is in our buffers and the sockets', about 15 MB of it.
        timeout(DEADLINE, serve(&stage.hop, stream)).await.expect("it ends").unwrap();
        drop(answers);
        assert_eq!(stage.lines().await.len(), STREAMS_MAX as usize);
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn slow_streams_leave_the_others_alone() {
    const SLOW: usize = 60;
    let test = async {
        let (stage, client, stream, _) = staged(1 << 20, DEADLINE).await;
        let serving = spawn_local(async move { drop(serve(&stage.hop, stream).await) });
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1024).initial_connection_window_size(1 << 30);
        let (mut send, connection) = builder.handshake::<_, Bytes>(client).await.unwrap();
        let connection = spawn_local(connection);
        let mut unread = Vec::new();
        for _ in 0..SLOW {
            unread.push(send.send_request(get("/"), true).unwrap().0.await.unwrap());
        }
        // Together they would hold 60 windows of 64 KiB, far more than one client's.
        for _ in 0..SLOW {
            let (small, _) = send.send_request(get("/small"), true).unwrap();
            let read = async { small.await.unwrap().into_body().data().await.unwrap().unwrap().len() };
            assert_eq!(timeout(DEADLINE, read).await.expect("it is not held up"), 10);
        }
        drop(unread);
        connection.abort();
        serving.abort();
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn who_gives_up_too_many_requests_is_cut() {
    let test = async {
        let (stage, client, stream, asked) = staged(0, DEADLINE).await;
        let (mut send, connection) = h2::client::handshake(client).await.unwrap();
        let connection = spawn_local(connection);
        let floods = async {
            for _ in 0..=CANCELED_MAX {
                let Ok(ready) = send.clone().ready().await else { return };
                send = ready;
                let Ok((answer, _)) = send.send_request(get("/silent"), true) else { return };
                // The application has it, so it was not given up before we took it.
                asked.notified().await;
                drop(answer);
            }
        };
        let (served, ()) = tokio::join!(timeout(DEADLINE, serve(&stage.hop, stream)), floods);
        let error = served.expect("it ends").unwrap_err();
        assert_eq!(error.code(), Code::Http2ResetFlood, "{error}");
        connection.abort();
        let lines = stage.lines().await;
        assert_eq!(lines.len() as u64, CANCELED_MAX + 1);
        assert!(lines.iter().all(|line| line.contains("\"picket.code\":\"request_canceled\"")), "{lines:?}");
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn tls_without_close_notify_is_a_cut_when_requests_were_on_their_way() {
    let test = async |path: &'static str| {
        let (stage, _, _, asked) = staged(0, DEADLINE).await;
        let (near, far) = meshed(End::Client).await;
        let (mut send, connection) = h2::client::handshake(far).await.unwrap();
        let connection = spawn_local(connection);
        let leaves = async {
            let (answer, _) = send.send_request(get(path), true).unwrap();
            asked.notified().await;
            if path == "/small" {
                let mut body = answer.await.unwrap().into_body();
                while body.data().await.is_some() {}
            }
            connection.abort();
        };
        let (served, ()) = tokio::join!(timeout(DEADLINE, serve(&stage.hop, near)), leaves);
        (served.expect("it ends").map_err(|error| error.code()), stage.lines().await.concat())
    };
    LocalSet::new()
        .run_until(async {
            let (served, line) = test("/silent").await;
            assert_eq!(served, Err(Code::ClientReset));
            assert!(line.contains("\"picket.code\":\"client_reset\""), "{line}");
            let (served, line) = test("/small").await;
            assert_eq!(served, Ok(ClosedBy::Client), "between requests nothing is lost");
            assert!(line.contains("\"picket.code\":\"ok\""), "{line}");
        })
        .await;
}
