//! One HTTP/1 request and its answer, both streams in one task: bodies flow both ways at once, each only as fast as it
//! is taken.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
};

use record::Code;

use super::{
    body::{Body, Malformed},
    head::{self, Framing, Refusal, RequestHead, ResponseHead},
    pending::Pending,
};
use crate::{
    account::{End, RequestAccount},
    capture::Fields,
    connect::Connected,
    stream::Stream,
};

/// How an exchange that came to its end went.
#[derive(Debug)]
pub struct Exchanged {
    /// The head of the final answer.
    pub response: ResponseHead,
    /// The whole request went to the server.
    pub request_complete: bool,
}

/// Why an exchange did not come to its end.
#[derive(Debug)]
pub enum Broken {
    /// The client's stream failed.
    Client(io::Error),
    /// The client ended in the middle of its request.
    ClientClosed,
    /// The request's body cannot be forwarded.
    RequestBody(Malformed),
    /// The server's stream failed.
    Server(io::Error),
    /// The server ended; `untouched` when nothing of an answer had come.
    ServerClosed {
        /// No byte of an answer had come.
        untouched: bool,
    },
    /// The answer cannot be forwarded.
    Response(Refusal),
}

/// A request on its way, and what is known of its answer.
#[derive(Debug)]
pub struct Exchange<'a> {
    request: &'a RequestHead,
    account: &'a RequestAccount,
    close: bool,
    head_bytes_max: usize,
    up: Body,
    up_pending: Pending,
    up_abandoned: bool,
    response: Option<ResponseHead>,
    down: Body,
    down_pending: Pending,
    /// Something of the answer, an interim one included, was handed to the client's stream.
    pub answered: bool,
}

impl<'a> Exchange<'a> {
    /// An exchange that begins by sending `head`; `close` announces that the client's connection ends with it. What comes
    /// is noted in `account` when it comes.
    pub fn new(
        request: &'a RequestHead,
        account: &'a RequestAccount,
        head: Vec<u8>,
        close: bool,
        head_bytes_max: usize,
    ) -> Self {
        let mut up_pending = Pending::default();
        *up_pending.buffer() = head;
        Self {
            request,
            account,
            close,
            head_bytes_max,
            up: Body::new(request.framing),
            up_pending,
            up_abandoned: false,
            response: None,
            down: Body::new(Framing::None),
            down_pending: Pending::default(),
            answered: false,
        }
    }

    /// Runs the exchange. `rest` holds what the client sent beyond what was taken of it.
    ///
    /// # Errors
    /// What broke it; then neither stream can be used for another request.
    ///
    /// # Cancellation
    /// As after an error.
    pub async fn run(
        &mut self,
        client: &mut Stream,
        rest: &mut Vec<u8>,
        server: &mut Connected,
    ) -> Result<Exchanged, Broken> {
        poll_fn(|cx| {
            let upward = if self.up_abandoned {
                Poll::Ready(Ok(()))
            } else {
                self.poll_up(cx, client, rest, &mut server.stream)
            };
            if let Poll::Ready(Err(broken)) = upward {
                match broken {
                    // A server may answer and close before it has read everything: the answer counts.
                    Broken::Server(_) => self.up_abandoned = true,
                    Broken::Client(_)
                    | Broken::ClientClosed
                    | Broken::RequestBody(_)
                    | Broken::ServerClosed { .. }
                    | Broken::Response(_) => return Poll::Ready(Err(broken)),
                }
            }
            ready!(self.poll_down(cx, client, server))?;
            let Some(response) = self.response.clone() else { return Poll::Pending };
            let request_complete = self.up.is_done() && self.up_pending.is_empty() && !self.up_abandoned;
            Poll::Ready(Ok(Exchanged { response, request_complete }))
        })
        .await
    }

    fn poll_up(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        rest: &mut Vec<u8>,
        server: &mut Stream,
    ) -> Poll<Result<(), Broken>> {
        loop {
            if !rest.is_empty() && !self.up.is_done() {
                let taken = counted(&mut self.up, rest, self.account, End::Client).map_err(Broken::RequestBody)?;
                self.up_pending.buffer().extend_from_slice(&rest[..taken]);
                rest.drain(..taken);
            }
            ready!(self.up_pending.poll_flush(cx, server)).map_err(Broken::Server)?;
            if self.up.is_done() {
                return Poll::Ready(Ok(()));
            }
            let (up, pending, account) = (&mut self.up, &mut self.up_pending, self.account);
            let read = client.poll_read_with(cx, |cx, bytes| -> Result<usize, Broken> {
                let taken = counted(up, bytes, account, End::Client).map_err(Broken::RequestBody)?;
                pending.write_or_keep(cx, server, &bytes[..taken]).map_err(Broken::Server)?;
                rest.extend_from_slice(&bytes[taken..]);
                Ok(bytes.len())
            });
            if ready!(read).map_err(Broken::Client)?? == 0 {
                return Poll::Ready(Err(Broken::ClientClosed));
            }
        }
    }

    fn poll_down(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        server: &mut Connected,
    ) -> Poll<Result<(), Broken>> {
        loop {
            while self.response.is_none() && self.take_head(&mut server.buffer)? {
                if self.down.ends_with_stream() {
                    client.reset_unless_ended();
                }
            }
            if self.response.is_some() && !server.buffer.is_empty() && !self.down.is_done() {
                let taken =
                    counted(&mut self.down, &server.buffer, self.account, End::Server).map_err(malformed_body)?;
                self.down_pending.buffer().extend_from_slice(&server.buffer[..taken]);
                server.buffer.drain(..taken);
            }
            self.answered |= !self.down_pending.is_empty();
            if self.is_last() && !self.down_pending.is_empty() {
                client.hold_for_end();
            }
            ready!(self.down_pending.poll_flush(cx, client)).map_err(Broken::Client)?;
            if self.response.is_some() && self.down.is_done() {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_read(cx, client, server))? == 0 {
                if self.response.is_some() && self.down.ends_with_stream() {
                    self.down = Body::new(Framing::None);
                    client.ended();
                    return Poll::Ready(Ok(()));
                }
                return Poll::Ready(Err(Broken::ServerClosed { untouched: !self.account.is_answered() }));
            }
        }
    }

    /// What waits for the client is the end of what it will ever get on this connection.
    fn is_last(&self) -> bool {
        let switches = |response: &ResponseHead| response.status == 101 || self.request.method == "CONNECT";
        self.close && self.down.is_done() && self.response.as_ref().is_some_and(|response| !switches(response))
    }

    /// Reads once from the server: into the head's buffer, or as body straight to the client.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        server: &mut Connected,
    ) -> Poll<Result<usize, Broken>> {
        let (down, pending, has_head) = (&mut self.down, &mut self.down_pending, self.response.is_some());
        let account = self.account;
        let buffer = &mut server.buffer;
        let read = server.stream.poll_read_with(cx, |cx, bytes| -> Result<usize, Broken> {
            if !bytes.is_empty() {
                account.answered();
            }
            if has_head {
                let taken = counted(down, bytes, account, End::Server).map_err(malformed_body)?;
                pending.write_or_keep(cx, client, &bytes[..taken]).map_err(Broken::Client)?;
                buffer.extend_from_slice(&bytes[taken..]);
            } else {
                buffer.extend_from_slice(bytes);
            }
            Ok(bytes.len())
        });
        Poll::Ready(Ok(ready!(read).map_err(Broken::Server)??))
    }

    /// Takes one head from `buffer`, if a whole one is there.
    fn take_head(&mut self, buffer: &mut Vec<u8>) -> Result<bool, Broken> {
        let as_response = |refusal: Refusal| {
            let code = if refusal.code == Code::RequestHeadTooLarge {
                Code::ResponseHeadTooLarge
            } else {
                Code::ResponseMalformed
            };
            Broken::Response(Refusal { code, detail: refusal.detail })
        };
        let Some(end) = head::find_end(buffer, self.head_bytes_max).map_err(as_response)? else { return Ok(false) };
        let out = self.down_pending.buffer();
        let see = |fields: Fields<'_>| self.account.note_response_head(fields);
        let response = head::response(&buffer[..end], self.request, self.close, out, see).map_err(|refusal| {
            // What was written of the refused head must not reach the client.
            self.down_pending.buffer().clear();
            Broken::Response(refusal)
        })?;
        buffer.drain(..end);
        if !response.is_interim() {
            self.account.status.set(Some(response.status));
            self.down = Body::new(response.framing);
            self.response = Some(response);
        }
        Ok(true)
    }
}

/// Takes what belongs to `body`, and counts its content.
fn counted(body: &mut Body, bytes: &[u8], account: &RequestAccount, from: End) -> Result<usize, Malformed> {
    let before = body.content_bytes();
    let taken = body.take(bytes)?;
    account.count(from, body.content_bytes() - before);
    Ok(taken)
}

fn malformed_body(malformed: Malformed) -> Broken {
    Broken::Response(Refusal { code: Code::ResponseMalformed, detail: malformed.0 })
}
