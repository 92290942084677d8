//! Bytes that wait to be written to one stream, and the writing of them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

use crate::stream::Stream;

/// Bytes that wait to be written. Holds no memory while empty.
#[derive(Debug, Default)]
pub struct Pending {
    bytes: Vec<u8>,
    written: usize,
    unflushed: bool,
}

impl Pending {
    /// True when all was written (not: flushed).
    pub fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// The buffer to append to.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Writes `bytes` at once if nothing waits, and keeps what the stream does not take.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn write_or_keep(&mut self, cx: &mut Context<'_>, to: &mut Stream, mut bytes: &[u8]) -> io::Result<()> {
        while self.is_empty() && !bytes.is_empty() {
            self.unflushed = true;
            match Pin::new(&mut *to).poll_write(cx, bytes) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => bytes = &bytes[n..],
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes all that waits and flushes it.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            self.unflushed = true;
            let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.bytes[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        if !self.bytes.is_empty() {
            self.bytes = Vec::new();
            self.written = 0;
        }
        if self.unflushed {
            ready!(Pin::new(&mut *to).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}
