//! One request over HTTP/2: its account, its way to a server and back, and its answer when there is none.
//!
//! Data moves only as fast as its taker's window opens; resets go through in both directions; trailers are kept. A
//! request that the server says it did not look at is sent again once, if it has no body (RFC 9113 section 8.7).

use std::{future::poll_fn, pin::Pin, rc::Rc, task::Poll, time::Duration};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture, server::SendResponse};
use http::{HeaderMap, Request, Response, header};
use record::{Code, HttpVersion};

use super::{Ending, servers::Lease};
use crate::{
    account::{End, RequestAccount},
    capture::See,
    error::{ConnectionError, is_cut},
    forward::{
        Hop,
        head::{FIELDS_MAX, Refusal, trace_parent},
    },
};

/// How long a taker may keep its window shut while there is something for it.
const STALL_TIMEOUT: Duration = Duration::from_secs(300);

/// Why a stream did not come to its end.
struct Cut {
    code: Code,
    detail: String,
    reason: Reason,
    /// The server says that it did not look at the request.
    unseen: bool,
}

impl Cut {
    fn new(code: Code, detail: &str, reason: Reason) -> Self {
        Self { code, detail: detail.to_owned(), reason, unseen: false }
    }

    fn client(error: &h2::Error) -> Self {
        let code = match error.reason() {
            Some(Reason::CANCEL | Reason::NO_ERROR) => Code::RequestCanceled,
            Some(_) => Code::Http2ProtocolError,
            None if is_cut(error) => Code::ClientReset,
            None => Code::ClientClosed,
        };
        Self::new(code, &error.to_string(), error.reason().unwrap_or(Reason::CANCEL))
    }

    fn server(error: &h2::Error) -> Self {
        let code = if error.is_reset() || is_cut(error) { Code::ServerReset } else { Code::ServerClosed };
        let reason = error.reason().unwrap_or(Reason::INTERNAL_ERROR);
        let unseen = error.is_remote() && (error.is_go_away() || reason == Reason::REFUSED_STREAM);
        Self { unseen, ..Self::new(code, &error.to_string(), reason) }
    }
}

impl From<ConnectionError> for Cut {
    fn from(error: ConnectionError) -> Self {
        if let ConnectionError::ServerHttp2(error) = &error {
            return Self::server(error);
        }
        Self::new(error.code(), &telemetry::chain(&error).to_string(), Reason::INTERNAL_ERROR)
    }
}

impl From<Refusal> for Cut {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code, refusal.detail, Reason::PROTOCOL_ERROR)
    }
}

/// Opens the account of one request, forwards it, and finishes the account.
pub(super) async fn exchange(hop: Rc<Hop>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Ending {
    let hop = &*hop;
    let mut account = open(hop, &request);
    let result = match check(hop, &request) {
        Ok(()) => {
            note_head(hop, &request, &mut account);
            forward(hop, request, &mut respond, &mut account).await
        }
        Err(refusal) => Err(Cut::from(refusal)),
    };
    let Err(Cut { code, detail, reason, .. }) = result else {
        account.finish(Code::Ok, None);
        return Ending::Other;
    };
    let canceled = !account.is_answered() && code == Code::RequestCanceled;
    if account.is_answered() || canceled {
        respond.send_reset(reason);
    } else {
        answer(&mut respond, &mut account, code);
    }
    account.finish(code, Some(&detail));
    if canceled {
        Ending::Canceled
    } else if code == Code::ClientReset {
        Ending::Cut
    } else {
        Ending::Other
    }
}

fn open(hop: &Hop, request: &Request<RecvStream>) -> RequestAccount {
    let uri = request.uri();
    let authority = uri.authority().map(http::uri::Authority::as_str);
    let mut account =
        RequestAccount::open(&hop.account, request.method().as_str(), uri.path(), authority, HttpVersion::Http2);
    let text = |name: &str| request.headers().get(name).map(http::HeaderValue::as_bytes);
    account.is_grpc = text("content-type").is_some_and(|value| value.starts_with(b"application/grpc"));
    account.trace = text("traceparent").and_then(trace_parent);
    account
}

/// Notes what settings ask for of a head that is forwarded.
fn note_head(hop: &Hop, request: &Request<RecvStream>, account: &mut RequestAccount) {
    if let Some(capture) = hop.account.capture() {
        let mut captured = Box::default();
        capture.request(&shown(request.headers()), request.uri().query(), &mut captured);
        account.note_captured(Some(captured));
    }
}

fn shown(headers: &HeaderMap) -> impl Fn(&mut See<'_>) {
    |see| headers.iter().for_each(|(name, value)| see(name.as_str(), value.as_bytes()))
}

/// What h2 lets through and a server could misread, or could not hold (RFC 9113 sections 8.3.1 and 10.5.1).
fn check(hop: &Hop, request: &Request<RecvStream>) -> Result<(), Refusal> {
    let refuse = |code, detail| Err(Refusal { code, detail });
    let fields = request.headers();
    if fields.len() > FIELDS_MAX {
        return refuse(Code::RequestHeadTooLarge, "more than 128 fields");
    }
    let bytes: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if bytes + target > hop.head_bytes_max {
        return refuse(Code::RequestHeadTooLarge, "the head is over the limit");
    }
    if request.uri().authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return refuse(Code::RequestMalformed, ":authority with user information");
    }
    let mut hosts = fields.get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return refuse(Code::RequestAmbiguous, "more than one Host");
    }
    match (request.uri().authority(), host) {
        (Some(authority), Some(host)) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            refuse(Code::RequestAmbiguous, ":authority and Host name different authorities")
        }
        (Some(_) | None, _) => Ok(()),
    }
}

/// Answers for a server that could not, or a request that may not go there.
fn answer(respond: &mut SendResponse<Bytes>, account: &mut RequestAccount, code: Code) {
    let status = code.http_status().unwrap_or(502);
    let mut response = Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(if account.is_grpc { 200 } else { status }).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert("picket-error", http::HeaderValue::from_static(code.as_str()));
    let grpc_status = account.is_grpc.then(|| grpc_status_for(status));
    if let Some(grpc_status) = grpc_status {
        headers.insert("content-type", http::HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", http::HeaderValue::from(grpc_status));
        headers.insert("grpc-message", http::HeaderValue::from_static(code.as_str()));
    }
    let status = response.status().as_u16();
    // A client that has gone meanwhile needs no answer, and its record names none.
    if respond.send_response(response, true).is_ok() {
        account.status.set(Some(status));
        account.grpc_status.set(grpc_status);
    }
}

/// The gRPC status for an HTTP status, as in gRPC's "HTTP to gRPC Status Code Mapping"; 431 is a 400 to gRPC.
fn grpc_status_for(status: u16) -> u32 {
    match status {
        400 | 431 => 13,
        403 => 7,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

async fn forward(
    hop: &Hop,
    request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
    account: &mut RequestAccount,
) -> Result<(), Cut> {
    let (head, mut body) = request.into_parts();
    let ends = body.is_end_stream();
    let again = ends.then(|| head.clone());
    let sent = send(hop, Request::from_parts(head, ()), ends, &mut body, respond, account).await;
    match (sent, again) {
        (Err(cut), Some(head)) if cut.unseen && !account.is_answered() => {
            account.resends += 1;
            send(hop, Request::from_parts(head, ()), ends, &mut body, respond, account).await
        }
        (sent, _) => sent,
    }
}

/// Sends the request to a server, and its answer to the client.
async fn send(
    hop: &Hop,
    head: Request<()>,
    ends: bool,
    body: &mut RecvStream,
    respond: &mut SendResponse<Bytes>,
    account: &mut RequestAccount,
) -> Result<(), Cut> {
    let mut lease = tokio::select! {
        lease = hop.servers.lease(&hop.connector, &hop.target) => lease?,
        // Who gave up does not keep a place in the queue for a connection.
        reset = poll_fn(|cx| respond.poll_reset(cx)) => return Err(reset_by_client(reset)),
    };
    account.note_upstream(lease.upstream());
    let (response, mut to_server) = lease.send.send_request(head, ends).map_err(|error| lease.gone(error))?;
    let account = &*account;
    let upward = async { if ends { Ok(()) } else { pump(End::Client, body, &mut to_server, account).await.map(drop) } };
    both(upward, receive(response, respond, account, &lease)).await.map_err(|cut| match lease.denied() {
        // Of a body that breaks off, only the connection knows why.
        Some(denied) if matches!(cut.code, Code::ServerReset | Code::ServerClosed) => denied.into(),
        Some(_) | None => cut,
    })
}

/// Brings the answer to the client.
async fn receive(
    mut response: ResponseFuture,
    respond: &mut SendResponse<Bytes>,
    account: &RequestAccount,
    lease: &Lease,
) -> Result<(), Cut> {
    let response = poll_fn(|cx| {
        if let Poll::Ready(response) = Pin::new(&mut response).poll(cx) {
            return Poll::Ready(response.map_err(|error| lease.gone(error).into()));
        }
        respond.poll_reset(cx).map(|reset| Err(reset_by_client(reset)))
    })
    .await?;
    account.answered();
    account.status.set(Some(response.status().as_u16()));
    account.grpc_status.set(status_of_call(response.headers()));
    account.note_response_head(&shown(response.headers()));
    let (head, mut body) = response.into_parts();
    let ends = body.is_end_stream();
    let mut to_client =
        respond.send_response(Response::from_parts(head, ()), ends).map_err(|error| Cut::client(&error))?;
    if !ends && let Some(trailers) = pump(End::Server, &mut body, &mut to_client, account).await? {
        account.grpc_status.set(status_of_call(&trailers).or(account.grpc_status.get()));
    }
    Ok(())
}

fn reset_by_client(reset: Result<Reason, h2::Error>) -> Cut {
    match reset {
        Ok(reason) => Cut::new(Code::RequestCanceled, "reset by the client", reason),
        Err(error) => Cut::client(&error),
    }
}

/// Runs both directions; the answer's end is the end, whether or not the server took the whole request.
async fn both(
    up: impl Future<Output = Result<(), Cut>>,
    down: impl Future<Output = Result<(), Cut>>,
) -> Result<(), Cut> {
    let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
    tokio::select! {
        biased;
        done = &mut down => done,
        sent = &mut up => match sent {
            Ok(()) => down.await,
            // The server may have stopped reading because it answers, or says more of its end: hear it out.
            Err(cut) if matches!(cut.code, Code::ServerReset | Code::ServerClosed) => down.await,
            Err(cut) => Err(cut),
        },
    }
}

/// Moves one body and its trailers, at the pace of the taker.
async fn pump(
    from: End,
    body: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    account: &RequestAccount,
) -> Result<Option<HeaderMap>, Cut> {
    while let Some(data) = next(from, body, to).await? {
        let length = data.len();
        account.count(from, length as u64);
        let last = body.is_end_stream();
        give(from, data, last, to).await?;
        // An error means that the stream ended: its next read says so.
        let _released = body.flow_control().release_capacity(length);
        if last {
            return Ok(None);
        }
    }
    let trailers = body.trailers().await.map_err(|error| from.giver(&error))?;
    match &trailers {
        Some(trailers) => to.send_trailers(trailers.clone()),
        None => to.send_data(Bytes::new(), true),
    }
    .map_err(|error| from.taker(&error))?;
    Ok(trailers)
}

/// The next piece of the body; a taker that gives up meanwhile is noticed at once.
async fn next(from: End, body: &mut RecvStream, to: &mut SendStream<Bytes>) -> Result<Option<Bytes>, Cut> {
    let next = poll_fn(|cx| match body.poll_data(cx) {
        Poll::Ready(data) => Poll::Ready(data.transpose().map_err(|error| from.giver(&error))),
        Poll::Pending => to.poll_reset(cx).map(|reset| {
            Err(match (from, reset) {
                (End::Server, reset) => reset_by_client(reset),
                (End::Client, Ok(reason)) => Cut::new(Code::ServerReset, "reset by the server", reason),
                (End::Client, Err(error)) => Cut::server(&error),
            })
        }),
    })
    .await;
    if let Err(cut) = &next {
        to.send_reset(cut.reason);
    }
    next
}

/// Gives one piece to the taker as its window allows; `last` ends the stream.
async fn give(from: End, mut data: Bytes, last: bool, to: &mut SendStream<Bytes>) -> Result<(), Cut> {
    if data.is_empty() {
        return if last { to.send_data(data, true).map_err(|error| from.taker(&error)) } else { Ok(()) };
    }
    while !data.is_empty() {
        to.reserve_capacity(data.len());
        let capacity = match tokio::time::timeout(STALL_TIMEOUT, poll_fn(|cx| to.poll_capacity(cx))).await {
            Ok(Some(Ok(capacity))) => capacity,
            Ok(Some(Err(error))) => return Err(from.taker(&error)),
            Ok(None) => return Err(from.taker_gone("the stream was reset", Reason::CANCEL)),
            Err(_) => return Err(from.taker_gone("its window was shut for 300 s", Reason::ENHANCE_YOUR_CALM)),
        };
        let piece = data.split_to(capacity.min(data.len()));
        to.send_data(piece, last && data.is_empty()).map_err(|error| from.taker(&error))?;
    }
    Ok(())
}

/// What an error of a body means, which comes from one end and goes to the other.
impl End {
    fn giver(self, error: &h2::Error) -> Cut {
        match self {
            Self::Client => Cut::client(error),
            Self::Server => Cut::server(error),
        }
    }

    fn taker(self, error: &h2::Error) -> Cut {
        match self {
            Self::Client => Cut::server(error),
            Self::Server => Cut::client(error),
        }
    }

    fn taker_gone(self, detail: &str, reason: Reason) -> Cut {
        let code = match self {
            Self::Client => Code::ServerReset,
            Self::Server => Code::RequestCanceled,
        };
        Cut::new(code, detail, reason)
    }
}

fn status_of_call(fields: &HeaderMap) -> Option<u32> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{exchange, grpc_status_for};

    /// What a stream costs while it waits, and what is moved when it begins.
    #[test]
    fn the_future_of_a_request_stays_small() {
        fn size<A, B, C, F: Future>(_of: impl Fn(A, B, C) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size(exchange);
        assert!(bytes <= 4608, "{bytes} bytes");
    }

    #[test]
    fn grpc_statuses_are_those_of_the_mapping() {
        for (status, expected) in [(400, 13), (403, 7), (431, 13), (500, 2), (502, 14), (503, 14), (504, 14)] {
            assert_eq!(grpc_status_for(status), expected, "{status}");
        }
    }
}
