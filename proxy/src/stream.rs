//! One byte stream, whatever carries it: plain TCP, TLS that we accepted, or TLS that we opened.
//!
//! Reads go through one scratch buffer per thread, so a connection that waits holds no buffer of its own. TLS that ends
//! without close_notify was cut (RFC 8446 section 6.1) and is an error; a plain stream that is cut can be made to show it.
//! The choice what to do with the bytes belongs to `detect` and `forward`.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use socket2::SockRef;

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{client, server};

/// Bytes that one read may bring at most: four TLS records.
pub const READ_BYTES_MAX: usize = 64 * 1024;

/// A reader with less room than this is read ahead for: TLS asks for 4 KiB at a time.
const READ_AHEAD_BELOW: usize = 16 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES_MAX].into_boxed_slice());
    /// As `SCRATCH`, below TLS.
    static AHEAD: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES_MAX].into_boxed_slice());
}

/// A TCP stream with the bytes that were read from it already (to find out what it speaks, or ahead of a reader that
/// takes little at a time) in front.
#[derive(Debug)]
pub struct Prefixed {
    prefix: Vec<u8>,
    taken: usize,
    inner: TcpStream,
}

impl Prefixed {
    /// Puts `prefix` in front of what `inner` will still bring.
    pub fn new(prefix: Vec<u8>, inner: TcpStream) -> Self {
        Self { prefix, taken: 0, inner }
    }

    /// The socket itself.
    pub fn socket(&self) -> &TcpStream {
        &self.inner
    }

    /// The socket, when nothing waits in front of it.
    pub fn into_socket(self) -> TcpStream {
        self.inner
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.taken < this.prefix.len() {
            let rest = &this.prefix[this.taken..];
            let n = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..n]);
            this.taken += n;
            if this.taken == this.prefix.len() {
                this.prefix = Vec::new();
                this.taken = 0;
            }
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() >= READ_AHEAD_BELOW {
            return Pin::new(&mut this.inner).poll_read(cx, buf);
        }
        AHEAD.with_borrow_mut(|ahead| {
            let mut read = ReadBuf::new(ahead);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            let (now, later) = read.filled().split_at(buf.remaining().min(read.filled().len()));
            buf.put_slice(now);
            this.prefix.extend_from_slice(later);
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // One record of TLS is one slice: the simpler call is the quicker one.
        match bufs {
            [one] => Pin::new(&mut self.inner).poll_write(cx, one),
            _ => Pin::new(&mut self.inner).poll_write_vectored(cx, bufs),
        }
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A byte stream to a client or to a server.
#[derive(Debug)]
pub enum Stream {
    /// No TLS of ours.
    Plain(Prefixed),
    /// TLS that a peer opened to us.
    TlsServer(Box<server::TlsStream<Prefixed>>),
    /// TLS that we opened to a peer.
    TlsClient(Box<client::TlsStream<Prefixed>>),
}

impl Stream {
    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(plain) => plain.socket(),
            Self::TlsServer(tls) => tls.get_ref().0.socket(),
            Self::TlsClient(tls) => tls.get_ref().0.socket(),
        }
    }

    /// Reads once into the thread's scratch buffer and lets `take` use the bytes; an empty slice is the end.
    ///
    /// `take` must not read from a stream itself: the scratch buffer is lent to it.
    ///
    /// # Errors
    /// Those of the socket and of TLS. `UnexpectedEof` says that TLS ended without close_notify: its peer was cut.
    pub fn poll_read_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&mut Context<'_>, &[u8]) -> T,
    ) -> Poll<io::Result<T>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            match ready!(Pin::new(self).poll_read(cx, &mut buf)) {
                Ok(()) => Poll::Ready(Ok(take(cx, buf.filled()))),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    Poll::Ready(Err(io::Error::new(error.kind(), "TLS ended without close_notify")))
                }
                Err(error) => Poll::Ready(Err(error)),
            }
        })
    }

    /// Holds what is written from now on until the stream is dropped, so that it leaves in one segment with its end; the
    /// kernel holds it for 200 ms at most (tcp(7), `TCP_CORK`).
    pub fn hold_for_end(&self) {
        // Without it there are two segments.
        let _held = SockRef::from(self.socket()).set_tcp_cork(true);
    }

    /// From now on the peer of a plain stream sees a reset when the stream is dropped, not an end, be it with this process.
    /// TLS needs nothing for it: there, what comes without close_notify is no end.
    pub fn reset_unless_ended(&self) {
        self.linger(Some(Duration::ZERO));
    }

    /// The stream has come to its end: takes [`Self::reset_unless_ended`] back.
    pub fn ended(&self) {
        self.linger(None);
    }

    fn linger(&self, time: Option<Duration>) {
        if let Self::Plain(plain) = self {
            // A socket that refuses it has no peer any more.
            let _set = SockRef::from(plain.socket()).set_linger(time);
        }
    }

    /// Tells TLS's peer, as far as that can be done at once, that this end is meant.
    pub fn end(&mut self) {
        if !matches!(self, Self::Plain(_)) {
            // Who has no room for it takes this end for a cut.
            let _ended = Pin::new(self).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// Ends it for good: TLS says so to its peer, TCP when the stream is dropped.
    pub async fn close(mut self) {
        match &mut self {
            Self::Plain(_) => {}
            // The peer may be gone already, and nothing more is said to it.
            Self::TlsServer(tls) => drop(tokio::io::AsyncWriteExt::shutdown(tls).await),
            Self::TlsClient(tls) => drop(tokio::io::AsyncWriteExt::shutdown(tls).await),
        }
    }

    /// Appends what one read brings to `buf`; 0 is the end.
    ///
    /// # Cancellation
    /// Nothing is lost: bytes are either in `buf` or still in the stream.
    ///
    /// # Errors
    /// Those of the socket and of TLS.
    pub async fn fill(&mut self, buf: &mut Vec<u8>) -> io::Result<usize> {
        std::future::poll_fn(|cx| {
            self.poll_read_with(cx, |_, bytes| {
                buf.extend_from_slice(bytes);
                bytes.len()
            })
        })
        .await
    }
}

macro_rules! each {
    ($self:ident, $stream:ident => $body:expr) => {
        match $self.get_mut() {
            Stream::Plain($stream) => $body,
            Stream::TlsServer($stream) => $body,
            Stream::TlsClient($stream) => $body,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
