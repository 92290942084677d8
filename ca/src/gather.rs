//! Below HTTP/2: what a connection writes within one turn of its task, gathered and sent together.
//!
//! HTTP/2 flushes each answer by itself, so that eight calls that came in one packet would be answered by eight TLS records
//! and eight system calls. Here a flush does nothing, and [`Gather::turn`] writes once the task has had its turn. Nothing waits
//! for a clock, and no more than [`OUT_BYTES_MAX`] and one frame is held.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are gathered at most: beyond, they are written at once, and HTTP/2 waits if the socket does not take them.
const OUT_BYTES_MAX: usize = 64 << 10;

/// A stream whose writes are gathered. Its clones are the same stream.
#[derive(Debug)]
pub(crate) struct Gather<S>(Arc<Mutex<Inner<S>>>);

#[derive(Debug)]
struct Inner<S> {
    stream: S,
    out: Vec<u8>,
    written: usize,
}

impl<S> Clone for Gather<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    /// Gathers what is written to `stream`.
    pub(crate) fn new(stream: S) -> Self {
        Self(Arc::new(Mutex::new(Inner { stream, out: Vec::new(), written: 0 })))
    }

    /// Polls the task that drives the connection, and writes what it left here; ready when either has come to its end.
    pub(crate) fn turn<F: Future>(&self, cx: &mut Context<'_>, task: Pin<&mut F>) -> Poll<()> {
        let done = task.poll(cx).map(drop);
        match self.inner().poll_out(cx) {
            // Nothing can be said to the peer any more.
            Poll::Ready(Err(_)) => Poll::Ready(()),
            Poll::Ready(Ok(())) | Poll::Pending => done,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner<S>> {
        // Nothing panics while it holds the lock; only the connection's own task takes it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.written < self.out.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out[self.written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        // Nothing is held while a connection is idle.
        (self.out, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gather<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.inner();
        if inner.out.len() >= OUT_BYTES_MAX {
            ready!(inner.poll_out(cx))?;
        }
        bufs.iter().for_each(|buf| inner.out.extend_from_slice(buf));
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Done by [`Gather::turn`].
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner();
        ready!(inner.poll_out(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_one_turn_writes_leaves_when_it_ends() {
        let (near, mut far) = duplex(100);
        let mut gather = Gather::new(near);
        let out = gather.clone();
        let mut cx = Context::from_waker(Waker::noop());
        let task = async {
            for part in ["one ", "two"] {
                gather.write_all(part.as_bytes()).await.unwrap();
                gather.flush().await.unwrap();
                assert!(!out.inner().out.is_empty(), "nothing leaves within the turn");
            }
            std::future::pending::<()>().await;
        };
        assert!(out.turn(&mut cx, pin!(task)).is_pending());
        let mut received = [0; 7];
        far.read_exact(&mut received).await.unwrap();
        assert_eq!((&received, out.inner().out.capacity()), (b"one two", 0));
    }

    #[tokio::test]
    async fn a_socket_that_takes_nothing_stops_the_writer_and_one_that_is_gone_ends_it() {
        let (near, far) = duplex(100);
        let mut gather = Gather::new(near);
        let mut cx = Context::from_waker(Waker::noop());
        let mut taken = 0;
        while let Poll::Ready(written) = Pin::new(&mut gather).poll_write(&mut cx, &[0; 16 << 10]) {
            taken += written.unwrap();
            assert!(taken <= OUT_BYTES_MAX + (32 << 10), "the writer was never stopped");
        }
        let forever = std::future::pending::<()>;
        assert!(gather.turn(&mut cx, pin!(forever())).is_pending());
        drop(far);
        assert!(gather.turn(&mut cx, pin!(forever())).is_ready());
    }

    #[tokio::test]
    async fn the_end_takes_everything_along() {
        let (near, mut far) = duplex(100);
        let mut gather = Gather::new(near);
        gather.write_all(b"last").await.unwrap();
        gather.shutdown().await.unwrap();
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"last");
    }
}
