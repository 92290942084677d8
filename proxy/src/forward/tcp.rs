//! Step 6 for opaque streams: copies bytes both ways, exactly, and keeps half-close.
//!
//! Waits in one task, with no buffer while nothing moves. A side that ends is shut down at the other side once all
//! its bytes are there; the copy ends when both have ended, or at the first error. What is dropped before that is cut, and
//! is seen as cut on both sides: as a reset, or as TLS without close_notify.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

use super::pending::Pending;
use crate::{account::End, stream::Stream};

/// Copies both ways until both ends have ended, and says who ended first. `opening` was read from the client already and
/// goes to the server first. `count` is told of all bytes when they have come, those of `opening` included.
///
/// # Errors
/// The first error, with the end whose stream failed.
///
/// # Cancellation
/// Bytes in flight are lost and both streams are in an undefined state; what was counted stays right.
pub async fn copy(
    client: &mut Stream,
    server: &mut Stream,
    opening: &[u8],
    count: impl Fn(End, u64),
) -> Result<End, (End, io::Error)> {
    let mut up = Half::default();
    let mut down = Half::default();
    up.pending.buffer().extend_from_slice(opening);
    count(End::Client, opening.len() as u64);
    let mut first_to_end = None;
    client.reset_unless_ended();
    server.reset_unless_ended();
    let first_to_end = poll_fn(|cx| {
        let upward = up.poll(cx, client, server, |bytes| count(End::Client, bytes));
        let downward = down.poll(cx, server, client, |bytes| count(End::Server, bytes));
        if first_to_end.is_none() {
            first_to_end = match (up.ended, down.ended) {
                (true, _) => Some(End::Client),
                (false, true) => Some(End::Server),
                (false, false) => None,
            };
        }
        match (upward, downward) {
            (Poll::Ready(Err((reading, error))), _) => {
                Poll::Ready(Err((if reading { End::Client } else { End::Server }, error)))
            }
            (_, Poll::Ready(Err((reading, error)))) => {
                Poll::Ready(Err((if reading { End::Server } else { End::Client }, error)))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(first_to_end.unwrap_or(End::Client))),
            (Poll::Pending, _) | (_, Poll::Pending) => Poll::Pending,
        }
    })
    .await?;
    client.ended();
    server.ended();
    Ok(first_to_end)
}

/// One direction of a copy.
#[derive(Debug, Default)]
struct Half {
    pending: Pending,
    ended: bool,
    shut: bool,
}

impl Half {
    /// Moves bytes as long as both streams allow. The flag of an error says whether reading failed.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        to: &mut Stream,
        count: impl Fn(u64),
    ) -> Poll<Result<(), (bool, io::Error)>> {
        loop {
            if self.shut {
                return Poll::Ready(Ok(()));
            }
            if !self.pending.is_empty() || self.ended {
                ready!(self.pending.poll_flush(cx, to)).map_err(|error| (false, error))?;
            }
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(|error| (false, error))?;
                // Its end is in order: what the system still holds for it is not thrown away, whatever the other way brings.
                to.ended();
                self.shut = true;
                continue;
            }
            let pending = &mut self.pending;
            let read = from.poll_read_with(cx, |cx, bytes| pending.write_or_keep(cx, to, bytes).map(|()| bytes.len()));
            match read {
                Poll::Ready(Ok(Ok(0))) => self.ended = true,
                Poll::Ready(Ok(Ok(n))) => count(n as u64),
                Poll::Ready(Ok(Err(error))) => return Poll::Ready(Err((false, error))),
                Poll::Ready(Err(error)) => return Poll::Ready(Err((true, error))),
                Poll::Pending => {
                    ready!(self.pending.poll_flush(cx, to)).map_err(|error| (false, error))?;
                    return Poll::Pending;
                }
            }
        }
    }
}
