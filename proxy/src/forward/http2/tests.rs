//! A client's connection against peers that do not play along: they ignore GOAWAY, stop reading, go away, read slowly.

use super::*;
use crate::{
    account::Account,
    connect::{Connector, Target},
    journal::Journal,
    stream::Prefixed,
};
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
async fn hop(
    app: std::net::SocketAddr,
    sinks: Vec<export::Sender>,
) -> (Hop, TcpStream, Stream, crate::drain::DrainSignal, Rc<Journal>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (socket, source) = listener.accept().await.unwrap();
    let journal = Journal::new(sinks, Arc::default(), 1);
    let account = Account::open(Rc::clone(&journal), record::Direction::Inbound, source, app);
    let (signal, drain) = crate::drain::channel();
    let store = identity::Store::new("t".parse().unwrap());
    let hop = Hop {
        account,
        connector: Rc::new(Connector::new(store, Duration::from_secs(5), Duration::from_secs(5))),
        target: Target::Address(app, record::Decision::Local, "x"),
        shared: false,
        servers: Rc::default(),
        drain,
        head_bytes_max: 65536,
        head_timeout: Duration::from_secs(5),
        keep_alive_timeout: Duration::from_millis(300),
    };
    (hop, client, Stream::Plain(Prefixed::new(vec![], socket)), signal, journal)
}
#[tokio::test]
async fn a_client_that_ignores_its_goaway_is_cut() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let (hop, mut client, stream, _signal, _j) = hop("127.0.0.1:9".parse().unwrap(), vec![]).await;
            client
                .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0")
                .await
                .unwrap();
            let served = tokio::time::timeout(Duration::from_secs(5), serve(&hop, stream)).await;
            let mut got = vec![0; 4096];
            assert!(client.read(&mut got).await.unwrap() > 0, "it was told");
            assert!(served.is_ok(), "16 keep-alive timeouts later it is still there");
        })
        .await;
}
#[tokio::test]
async fn a_client_that_went_away_has_no_status_in_its_record() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (sender, mut receiver) = export::queue(1 << 20);
            let (hop, client, stream, _signal, journal) = hop(app.local_addr().unwrap(), vec![sender]).await;
            let silent = tokio::task::spawn_local(async move {
                let (s, _) = app.accept().await.unwrap();
                let mut c = h2::server::handshake(s).await.unwrap();
                let _r = c.accept().await; // never answers
                std::future::pending::<()>().await
            });
            let serving = tokio::task::spawn_local(async move {
                let r = serve(&hop, stream).await;
                drop(hop);
                r.map_err(|e| e.to_string())
            });
            {
                let (mut send, conn) = h2::client::handshake(client).await.unwrap();
                let conn = tokio::task::spawn_local(async move {
                    let _ = conn.await;
                });
                let req = http::Request::get("http://a/").body(()).unwrap();
                let (_resp, _) = send.send_request(req, true).unwrap();
                sleep(Duration::from_millis(300)).await;
                conn.abort();
                let _ = conn.await;
            }
            tokio::time::timeout(Duration::from_secs(3), serving).await.expect("it ends").unwrap().unwrap();
            silent.abort();
            journal.flush();
            let mut lines = Vec::new();
            let batch = receiver.recv().await.unwrap();
            record::line::records(&batch.fields).for_each(|r| record::line::json(r, &mut lines));
            let text = String::from_utf8(lines).unwrap();
            assert!(!text.contains("\"http.response.status_code\":502"));
        })
        .await;
}

async fn h2_app(app: TcpListener, size: usize) {
    loop {
        let (s, _) = app.accept().await.unwrap();
        tokio::task::spawn_local(async move {
            let mut c = h2::server::Builder::new()
                .max_send_buffer_size(1 << 20)
                .max_concurrent_streams(1000)
                .handshake::<_, Bytes>(s)
                .await
                .unwrap();
            while let Some(Ok((req, mut respond))) = c.accept().await {
                let n = if req.uri().path() == "/small" { 10 } else { size };
                let mut out = respond.send_response(http::Response::new(()), false).unwrap();
                out.send_data(Bytes::from(vec![7; n]), true).unwrap();
            }
        });
    }
}
#[tokio::test]
async fn a_reader_that_stops_is_cut() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = app.local_addr().unwrap();
            tokio::task::spawn_local(h2_app(app, 60_000));
            let (sender, mut receiver) = export::queue(1 << 24);
            let (hop, client, stream, _signal, journal) = hop(address, vec![sender]).await;
            let serving = tokio::task::spawn_local(async move { serve(&hop, stream).await.is_ok() });
            let (mut send, mut conn) = h2::client::Builder::new()
                .initial_window_size(1 << 24)
                .initial_connection_window_size(1 << 30)
                .initial_max_send_streams(250)
                .handshake::<_, Bytes>(client)
                .await
                .unwrap();
            let held: Vec<_> = (0..250)
                .map(|_| send.send_request(http::Request::get("http://a/").body(()).unwrap(), true).unwrap())
                .collect();
            // Only its writes: one poll, then it never reads again.
            let _ = poll_fn(|cx| {
                let _ = Pin::new(&mut conn).poll(cx);
                Poll::Ready(())
            })
            .await;
            sleep(Duration::from_secs(5)).await;
            journal.flush();
            let mut lines = Vec::new();
            while let Ok(Some(batch)) = tokio::time::timeout(Duration::from_millis(50), receiver.recv()).await {
                record::line::records(&batch.fields).for_each(|r| record::line::json(r, &mut lines));
            }
            let text = String::from_utf8(lines).unwrap();
            assert!(text.lines().count() > 0, "its requests have records");
            drop(held);
            assert!(serving.is_finished());
        })
        .await;
}
#[tokio::test]
async fn slow_streams_leave_the_others_alone() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = app.local_addr().unwrap();
            tokio::task::spawn_local(h2_app(app, 4 << 20));
            let (mut hop, client, stream, _signal, _journal) = hop(address, vec![]).await;
            hop.keep_alive_timeout = Duration::from_secs(60);
            tokio::task::spawn_local(async move { serve(&hop, stream).await.is_ok() });
            let (mut send, conn) = h2::client::Builder::new()
                .initial_window_size(65_535)
                .initial_connection_window_size(1 << 30)
                .handshake::<_, Bytes>(client)
                .await
                .unwrap();
            tokio::task::spawn_local(async move {
                let _ = conn.await;
            });
            for slow in 0..6 {
                let small = send.send_request(http::Request::get("http://a/small").body(()).unwrap(), true).unwrap().0;
                let read = async {
                    let mut r = small.await.unwrap().into_body();
                    while let Some(d) = r.data().await {
                        d.unwrap();
                    }
                };
                let done = tokio::time::timeout(Duration::from_secs(3), read).await.is_ok();
                if !done {
                    panic!("stalled by {slow} slow streams");
                }
                let (r, _) = send.send_request(http::Request::get("http://a/big").body(()).unwrap(), true).unwrap();
                let held = r.await.unwrap();
                std::mem::forget(held);
                sleep(Duration::from_millis(200)).await;
            }
        })
        .await;
}
