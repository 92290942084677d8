//! Below h2: what it writes within one turn of the event loop, gathered and sent together.
//!
//! h2 hands over each frame as soon as it has one. The streams of a connection that became ready together would so cost
//! one TLS record and one system call each. Here a flush is put off until the other tasks of this turn have run: they
//! add their frames, and all leave in one write. Nothing waits for a clock, and no more than [`OUT_BYTES_MAX`] is held.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{forward::pending::Pending, stream::Stream};

/// Bytes gathered at most: beyond, they are written at once, and h2 waits if the socket does not take them.
const OUT_BYTES_MAX: usize = 64 * 1024;

/// What a flush does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    /// It writes.
    Now,
    /// It waits for the next turn.
    PutOff,
    /// It was asked for, and its turn comes next.
    Due,
}

/// The stream below a connection, as its driver sees it: where turns begin, and what h2 does not say of its end.
#[derive(Debug, Clone)]
pub(super) struct Turn(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    flush: Cell<Flush>,
    refused_by_peer: Cell<bool>,
}

impl Turn {
    /// To be called once at the beginning of each poll of the task that drives the connection.
    pub(super) fn begin(&self) {
        let flush = &self.0.flush;
        flush.set(if flush.get() == Flush::Due { Flush::Now } else { Flush::PutOff });
    }

    /// The peer ended the connection because of our certificate. With TLS 1.3 that shows at the first read; of such an
    /// error h2 keeps no more than a text.
    pub(super) fn refused_by_peer(&self) -> bool {
        self.0.refused_by_peer.get()
    }
}

/// A stream whose writes are gathered. Until the first [`Turn::begin`], a flush writes at once.
#[derive(Debug)]
pub(super) struct Gather {
    stream: Stream,
    out: Pending,
    shared: Rc<Shared>,
}

impl Gather {
    /// Gathers what is written to `stream`.
    pub(super) fn new(stream: Stream) -> (Self, Turn) {
        let shared = Rc::new(Shared { flush: Cell::new(Flush::Now), refused_by_peer: Cell::new(false) });
        let turn = Turn(Rc::clone(&shared));
        (Self { stream, out: Pending::default(), shared }, turn)
    }

    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = self.out.poll_flush(cx, &mut self.stream);
        if written.is_pending() {
            // When the socket takes more, that turn's flush must not be put off again.
            self.shared.flush.set(Flush::Due);
        }
        written
    }

    /// Room for more, if need be after a write.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.len() < OUT_BYTES_MAX { Poll::Ready(Ok(())) } else { self.poll_out(cx) }
    }
}

impl AsyncRead for Gather {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if let Err(error) = &read {
            self.shared.refused_by_peer.set(identity::refused_by_peer(error));
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Gather {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_room(cx))?;
        self.out.buffer().extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_room(cx))?;
        for buf in bufs {
            self.out.buffer().extend_from_slice(buf);
        }
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shared.flush.get() == Flush::Now {
            return self.poll_out(cx);
        }
        if !self.out.is_empty() && self.shared.flush.get() == Flush::PutOff {
            self.shared.flush.set(Flush::Due);
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::stream::Prefixed;

    async fn pair() -> (Gather, Turn, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let (gather, turn) = Gather::new(Stream::Plain(Prefixed::new(Vec::new(), near)));
        (gather, turn, far)
    }

    #[tokio::test]
    async fn the_frames_of_one_turn_leave_in_the_next() {
        let (mut gather, turn, mut far) = pair().await;
        let mut cx = Context::from_waker(Waker::noop());
        turn.begin();
        for part in [b"one ".as_slice(), b"two"] {
            assert!(Pin::new(&mut gather).poll_write(&mut cx, part).is_ready());
            assert!(Pin::new(&mut gather).poll_flush(&mut cx).is_ready());
        }
        assert!(!gather.out.is_empty(), "nothing leaves within the turn");
        turn.begin();
        assert!(Pin::new(&mut gather).poll_flush(&mut cx).is_ready());
        assert!(gather.out.is_empty());
        let mut received = [0; 7];
        far.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"one two");
    }

    #[tokio::test]
    async fn a_socket_that_takes_nothing_stops_the_writer() {
        let (mut gather, turn, _far) = pair().await;
        let mut cx = Context::from_waker(Waker::noop());
        let part = [0; 16 * 1024];
        let mut taken = 0;
        while taken < 64 << 20 {
            turn.begin();
            match Pin::new(&mut gather).poll_write(&mut cx, &part) {
                Poll::Ready(Ok(n)) => taken += n,
                Poll::Ready(Err(error)) => panic!("{error}"),
                Poll::Pending => break,
            }
        }
        assert!(taken < 64 << 20, "the writer was never stopped");
        assert!(gather.out.len() <= OUT_BYTES_MAX + part.len());
    }

    #[tokio::test]
    async fn the_end_takes_everything_along() {
        let (mut gather, turn, mut far) = pair().await;
        turn.begin();
        gather.write_all(b"last").await.unwrap();
        gather.shutdown().await.unwrap();
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"last");
    }
}
