//! Step 6 for HTTP/2 and gRPC: each stream is a request of its own, with its own record and endpoint.
//!
//! Limits on streams, fields and resets are those of the crate `h2`, set here. A client that has no request for too
//! long is asked to go; one that is served while we stop is told so and finishes what it has begun.

mod gather;
mod servers;
mod exchange;
#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{Reason, server::Connection};
use record::ClosedBy;
use tokio::{
    sync::Notify,
    time::{Sleep, sleep},
};

pub use self::servers::Servers;
use self::{
    exchange::exchange,
    gather::{Gather, Turn},
};
use super::Hop;
use crate::{error::ConnectionError, stream::Stream};

/// Streams that one client may have open at once.
const STREAMS_MAX: u32 = 250;
/// Bytes of fields, each counted with 32 more (RFC 9113 section 6.5.2), that h2 takes. Twice what a request may have, so
/// that one over its limit gets our own answer and record; beyond, h2 answers 431 by itself.
const HEADER_LIST_BYTES_MAX: u32 = 128 * 1024;
/// Window of a stream, in bytes.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Window of a client's connection, in bytes: what one client may have waiting here.
const CLIENT_WINDOW: u32 = 1024 * 1024;
/// Requests that a client may give up before their answer, beyond those that were answered (CVE-2023-44487): each has
/// cost a server something already.
const CANCELED_MAX: u64 = 200;
/// How long a client may take to go once it takes no more requests and has none open.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes that wait in one stream's send buffer.
const SEND_BUFFER_MAX: usize = 64 * 1024;
/// Streams that a client may reset before we took them.
const PENDING_RESETS_MAX: usize = 50;
/// Streams that we may have had to reset for a client's errors.
const LOCAL_RESETS_MAX: usize = 100;

/// Serves all streams of a client's connection.
///
/// # Errors
/// What ended the connection other than its two sides.
///
/// # Cancellation
/// Streams in flight are cut and recorded as such.
pub async fn serve(hop: &Hop, client: Stream) -> Result<ClosedBy, ConnectionError> {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CLIENT_WINDOW)
        .max_send_buffer_size(SEND_BUFFER_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX));
    let (client, turn) = Gather::new(client);
    let connection = match tokio::time::timeout(hop.head_timeout, builder.handshake(client)).await {
        Ok(done) => done.map_err(ConnectionError::ClientHttp2)?,
        Err(_) => return Err(ConnectionError::RequestHeadTimeout),
    };
    let streams = Rc::new(Streams::default());
    let idle = Box::pin(sleep(hop.keep_alive_timeout));
    let limit = hop.keep_alive_timeout;
    let mut session = Session {
        hop: Rc::new(hop.clone()),
        connection,
        turn,
        streams: Rc::clone(&streams),
        idle,
        limit,
        end: None,
        flooded: false,
    };
    let mut drain = hop.drain.clone();
    let mut stopping = std::pin::pin!(drain.wait());
    let ended = poll_fn(|cx| {
        if session.end.is_none() && stopping.as_mut().poll(cx).is_ready() {
            session.close(ClosedBy::Us);
        }
        session.poll(cx)
    })
    .await;
    // Streams that are still here find their connection gone and finish their records.
    streams.wait().await;
    match ended {
        _ if session.flooded => Err(ConnectionError::ClientHttp2(Reason::ENHANCE_YOUR_CALM.into())),
        // As for HTTP/1: between requests nothing is lost with it.
        _ if streams.cut.get() => {
            let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "cut with requests on their way");
            Err(ConnectionError::Client(cut))
        }
        Ok(()) => Ok(session.end.unwrap_or(ClosedBy::Client)),
        Err(error) if error.get_io().is_some_and(is_end) => Ok(ClosedBy::Client),
        Err(error) => Err(ConnectionError::ClientHttp2(error)),
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe)
}

/// The task of one client's connection.
struct Session {
    hop: Rc<Hop>,
    connection: Connection<Gather, Bytes>,
    turn: Turn,
    streams: Rc<Streams>,
    idle: Pin<Box<Sleep>>,
    limit: Duration,
    /// Who ended it, once it takes no more requests.
    end: Option<ClosedBy>,
    /// It gave up too many requests.
    flooded: bool,
}

impl Session {
    /// Takes no more requests; those in flight go on.
    fn close(&mut self, by: ClosedBy) {
        self.end = Some(by);
        self.connection.graceful_shutdown();
        self.idle.as_mut().reset(tokio::time::Instant::now() + LINGER);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        self.turn.begin();
        if !self.flooded && self.streams.is_flood() {
            self.flooded = true;
            self.end = Some(ClosedBy::Us);
            self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            self.idle.as_mut().reset(tokio::time::Instant::now() + LINGER);
        }
        if self.idle.as_mut().poll(cx).is_ready() {
            match (self.end, self.streams.idle_for()) {
                // It had its time to go; what it does not read, it does not get.
                (Some(_), idle) if idle.is_some() || self.flooded => return Poll::Ready(Ok(())),
                (Some(_), _) => self.wait_again(cx, LINGER),
                (None, Some(idle)) if idle >= self.limit => {
                    self.close(ClosedBy::Us);
                    self.wait_again(cx, LINGER);
                }
                (None, Some(idle)) => self.wait_again(cx, self.limit - idle),
                (None, None) => self.wait_again(cx, self.limit),
            }
        }
        while let Some(accepted) = ready!(self.connection.poll_accept(cx)) {
            let (request, respond) = accepted?;
            let (hop, open) = (Rc::clone(&self.hop), Open::new(&self.streams));
            tokio::task::spawn_local(async move {
                let ending = exchange(hop, request, respond).await;
                open.ended(ending);
            });
        }
        Poll::Ready(Ok(()))
    }

    fn wait_again(&mut self, cx: &mut Context<'_>, time: Duration) {
        self.idle.as_mut().reset(tokio::time::Instant::now() + time);
        // It has just been reset into the future; this only leaves our waker there.
        let _pending = self.idle.as_mut().poll(cx);
    }
}

/// The streams of one connection that are not done.
#[derive(Debug, Default)]
struct Streams {
    open: Cell<usize>,
    used: Cell<Option<Instant>>,
    /// Given up before their answer, less those that were answered.
    canceled: Cell<u64>,
    /// The connection was cut while there was one.
    cut: Cell<bool>,
    done: Notify,
}

/// How a request ended, as far as the connection minds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The client gave it up before its answer.
    Canceled,
    /// With the client's connection, which was cut.
    Cut,
    /// In any other way.
    Other,
}

impl Streams {
    /// How long there was none; `None` while there is one.
    fn idle_for(&self) -> Option<Duration> {
        (self.open.get() == 0).then(|| self.used.get().map_or(Duration::MAX, |used| used.elapsed()))
    }

    fn is_flood(&self) -> bool {
        self.canceled.get() > CANCELED_MAX
    }

    async fn wait(&self) {
        while self.open.get() > 0 {
            self.done.notified().await;
        }
    }
}

/// One of them, until dropped.
#[derive(Debug)]
struct Open(Rc<Streams>);

impl Open {
    fn new(streams: &Rc<Streams>) -> Self {
        streams.open.set(streams.open.get() + 1);
        Self(Rc::clone(streams))
    }

    fn ended(self, ending: Ending) {
        let canceled = self.0.canceled.get();
        self.0.canceled.set(match ending {
            Ending::Canceled => canceled + 1,
            Ending::Cut | Ending::Other => canceled.saturating_sub(1),
        });
        self.0.cut.set(self.0.cut.get() || ending == Ending::Cut);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.used.set(Some(Instant::now()));
        if self.0.open.get() == 0 {
            self.0.done.notify_one();
        }
    }
}
