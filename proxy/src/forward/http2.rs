//! Step 6 for HTTP/2 and gRPC: each stream is a request of its own, with its own record and endpoint.
//!
//! Data moves only as fast as its taker's window opens; resets go through in both directions; trailers are kept.
//! Limits on streams, header size and resets are those of the crate `h2`, set here.

use std::{cell::RefCell, collections::HashMap, future::poll_fn, net::SocketAddr, rc::Rc, time::Instant};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, Request, Response};
use record::{ClosedBy, Code, HttpVersion};

use super::Hop;
use crate::{
    account::{RequestAccount, Upstream},
    connect::Target,
    error::ConnectionError,
    stream::Stream,
};

/// Streams that one client may have open at once.
const STREAMS_MAX: u32 = 250;
/// Bytes of fields that one stream may bring.
const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
/// Window of a stream and of a connection, in bytes.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
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
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX));
    let mut connection = match tokio::time::timeout(hop.head_timeout, builder.handshake(client)).await {
        Ok(done) => done.map_err(ConnectionError::ClientHttp2)?,
        Err(_) => return Err(ConnectionError::RequestHeadTimeout),
    };
    let servers = Rc::new(Servers::default());
    let mut streams = tokio::task::JoinSet::new();
    let mut drain = hop.drain.clone();
    let mut stopping = false;
    let ended = loop {
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let (hop, servers) = (hop.clone(), Rc::clone(&servers));
                    streams.spawn_local(async move { stream(&hop, &servers, request, respond).await });
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(()),
            },
            () = drain.wait(), if !stopping => {
                stopping = true;
                connection.graceful_shutdown();
            }
            Some(_done) = streams.join_next(), if !streams.is_empty() => {}
        }
    };
    // Streams that are still here find their connection gone and finish their records.
    while streams.join_next().await.is_some() {}
    match ended {
        Ok(()) if stopping => Ok(ClosedBy::Us),
        Ok(()) => Ok(ClosedBy::Client),
        Err(error) if error.is_io() && error.get_io().is_some_and(is_end) => Ok(ClosedBy::Client),
        Err(error) => Err(ConnectionError::ClientHttp2(error)),
    }
}

fn is_end(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::BrokenPipe)
}

/// HTTP/2 connections to servers: of one client (inbound), or of one worker (outbound).
#[derive(Debug, Default)]
pub struct Servers {
    by_address: RefCell<HashMap<SocketAddr, Slot>>,
}

type Slot = Rc<tokio::sync::Mutex<Option<(SendRequest<Bytes>, Rc<Upstream>)>>>;

thread_local! {
    /// Connections that all clients of an outbound worker share.
    static SHARED: Rc<Servers> = Rc::default();
}

impl Servers {
    /// A connection to the target that takes one more stream.
    async fn get(self: &Rc<Self>, hop: &Hop) -> Result<(SendRequest<Bytes>, Rc<Upstream>), ConnectionError> {
        let key = match &hop.target {
            Target::Address(address, ..) => *address,
            // One connection for each service address and endpoint choice; the endpoint is chosen when it is made.
            Target::Discovered(destination) => match destination.endpoints.len() {
                0 => {
                    return Err(ConnectionError::NoEndpoint(
                        destination.service.as_deref().unwrap_or("the destination").to_owned(),
                    ));
                }
                n => destination.endpoints[self.next(n)].address,
            },
        };
        let slot = Rc::clone(self.by_address.borrow_mut().entry(key).or_default());
        let mut kept = slot.lock().await;
        if let Some((send, upstream)) = &*kept
            && let Ok(send) = send.clone().ready().await
        {
            return Ok((send, Rc::clone(upstream)));
        }
        let made = connect(&one_endpoint(hop, key)).await?;
        *kept = Some((made.0.clone(), Rc::clone(&made.1)));
        drop(kept);
        let send = made.0.ready().await.map_err(ConnectionError::ServerHttp2)?;
        Ok((send, made.1))
    }

    /// Requests take the endpoints in turn.
    fn next(&self, n: usize) -> usize {
        thread_local!(static TURN: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });
        TURN.with(|turn| turn.replace(turn.get().wrapping_add(1)) % n)
    }
}

/// The hop with that endpoint first: when it cannot be reached, `connect` moves on to the others.
fn one_endpoint(hop: &Hop, first: SocketAddr) -> Hop {
    let mut hop = hop.clone();
    if let Target::Discovered(destination) = &mut hop.target
        && let Some(endpoint) = destination.endpoints.iter().find(|endpoint| endpoint.address == first)
    {
        destination.endpoints = std::sync::Arc::new([std::sync::Arc::clone(endpoint)]);
    }
    hop
}

async fn connect(hop: &Hop) -> Result<(SendRequest<Bytes>, Rc<Upstream>), ConnectionError> {
    let connected = hop.connector.open(&hop.target, identity::ALPN_H2).await?;
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_send_buffer_size(SEND_BUFFER_MAX);
    let (send, connection) = builder.handshake(connected.stream).await.map_err(ConnectionError::ServerHttp2)?;
    tokio::task::spawn_local(async move {
        let _in_flight = connected.in_flight;
        // Every stream of the connection learns of its end by itself.
        let _ended = connection.await;
    });
    Ok((send, connected.upstream))
}

/// One request: opens its account, forwards it, and finishes the account.
async fn stream(hop: &Hop, own: &Rc<Servers>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let servers = if hop.shared { SHARED.with(Rc::clone) } else { Rc::clone(own) };
    let mut account = open(hop, &request);
    let result = forward(hop, &servers, request, &mut respond, &mut account).await;
    let connection = &hop.account;
    connection.from_client.set(connection.from_client.get() + account.request_body_bytes);
    connection.from_server.set(connection.from_server.get() + account.response_body_bytes);
    match result {
        Ok(()) => account.finish(Code::Ok, None),
        Err(Cut { code, detail, reason }) => {
            if account.first_byte.is_none() && code != Code::RequestCanceled {
                answer(&mut respond, &mut account, code);
            } else {
                respond.send_reset(reason);
            }
            account.finish(code, Some(&detail));
        }
    }
}

fn open(hop: &Hop, request: &Request<RecvStream>) -> RequestAccount {
    let uri = request.uri();
    let authority = uri.authority().map(http::uri::Authority::as_str);
    let mut account =
        RequestAccount::open(&hop.account, request.method().as_str(), uri.path(), authority, HttpVersion::Http2);
    let text = |name: &str| request.headers().get(name).map(http::HeaderValue::as_bytes);
    account.is_grpc = text("content-type").is_some_and(|value| value.starts_with(b"application/grpc"));
    account.trace = text("traceparent").and_then(super::head::trace_parent);
    account
}

/// Answers for a server that could not.
fn answer(respond: &mut SendResponse<Bytes>, account: &mut RequestAccount, code: Code) {
    let status = code.http_status().unwrap_or(502);
    let mut response = Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(if account.is_grpc { 200 } else { status }).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert("picket-error", http::HeaderValue::from_static(code.as_str()));
    if account.is_grpc {
        headers.insert("content-type", http::HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", http::HeaderValue::from_static("14"));
        headers.insert("grpc-message", http::HeaderValue::from_static(code.as_str()));
        account.grpc_status = Some(14);
    }
    account.status = Some(response.status().as_u16());
    // A client that has gone meanwhile needs no answer.
    let _sent = respond.send_response(response, true);
}

/// Why a stream did not come to its end.
struct Cut {
    code: Code,
    detail: String,
    reason: Reason,
}

impl Cut {
    fn client(error: &h2::Error) -> Self {
        let code = match error.reason() {
            Some(Reason::CANCEL | Reason::NO_ERROR) => Code::RequestCanceled,
            Some(_) => Code::Http2ProtocolError,
            None => Code::ClientClosed,
        };
        Self { code, detail: error.to_string(), reason: error.reason().unwrap_or(Reason::CANCEL) }
    }

    fn server(error: &h2::Error) -> Self {
        let code = if error.is_reset() { Code::ServerReset } else { Code::ServerClosed };
        Self { code, detail: error.to_string(), reason: error.reason().unwrap_or(Reason::INTERNAL_ERROR) }
    }
}

impl From<ConnectionError> for Cut {
    fn from(error: ConnectionError) -> Self {
        Self { code: error.code(), detail: telemetry::chain(&error).to_string(), reason: Reason::INTERNAL_ERROR }
    }
}

async fn forward(
    hop: &Hop,
    servers: &Rc<Servers>,
    request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
    account: &mut RequestAccount,
) -> Result<(), Cut> {
    let (mut send, upstream) = servers.get(hop).await?;
    account.note_upstream(&upstream);
    let (head, mut body) = request.into_parts();
    let ends = body.is_end_stream();
    let (response, mut to_server) =
        send.send_request(Request::from_parts(head, ()), ends).map_err(|error| Cut::server(&error))?;
    drop(send);
    let (mut up_bytes, mut down_bytes) = (0, 0);
    let mut first_byte = None;
    let (mut status, mut grpc_status) = (None, None);
    let result = {
        let upward =
            async { if ends { Ok(()) } else { pump(&mut body, &mut to_server, &mut up_bytes).await.map(|_| ()) } };
        let downward = async {
            let response = tokio::select! {
                response = response => response.map_err(|error| Cut::server(&error))?,
                reset = poll_fn(|cx| respond.poll_reset(cx)) => {
                    return Err(match reset {
                        Ok(reason) => Cut { code: Code::RequestCanceled, detail: "reset by the client".to_owned(), reason },
                        Err(error) => Cut::client(&error),
                    });
                }
            };
            first_byte = Some(Instant::now());
            status = Some(response.status().as_u16());
            grpc_status = status_of_call(response.headers());
            let (head, mut body) = response.into_parts();
            let ends = body.is_end_stream();
            let mut to_client =
                respond.send_response(Response::from_parts(head, ()), ends).map_err(|error| Cut::client(&error))?;
            if !ends
                && let Some(trailers) = pump(&mut body, &mut to_client, &mut down_bytes).await.map_err(Cut::swapped)?
            {
                grpc_status = status_of_call(&trailers).or(grpc_status);
            }
            Ok(())
        };
        both(upward, downward).await
    };
    (account.request_body_bytes, account.response_body_bytes) = (up_bytes, down_bytes);
    (account.first_byte, account.status, account.grpc_status) = (first_byte, status, grpc_status);
    result
}

impl Cut {
    /// `pump` names its sides as for a request; in an answer they are the other way round.
    fn swapped(self) -> Self {
        let code = if matches!(self.code, Code::RequestCanceled | Code::ClientClosed | Code::Http2ProtocolError) {
            Code::ServerReset
        } else {
            Code::RequestCanceled
        };
        Self { code, ..self }
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
            // The server may have stopped reading because it answers: hear it out.
            Err(cut) if cut.code == Code::ServerReset => down.await,
            Err(cut) => Err(cut),
        },
    }
}

/// Moves one body and its trailers, at the pace of the taker.
async fn pump(from: &mut RecvStream, to: &mut SendStream<Bytes>, bytes: &mut u64) -> Result<Option<HeaderMap>, Cut> {
    while let Some(data) = from.data().await {
        let mut data = data.map_err(|error| {
            to.send_reset(error.reason().unwrap_or(Reason::CANCEL));
            Cut::client(&error)
        })?;
        let length = data.len();
        *bytes += length as u64;
        while !data.is_empty() {
            to.reserve_capacity(data.len());
            let capacity = match poll_fn(|cx| to.poll_capacity(cx)).await {
                Some(Ok(capacity)) => capacity,
                Some(Err(error)) => return Err(Cut::server(&error)),
                None => {
                    return Err(Cut {
                        code: Code::ServerReset,
                        detail: "the stream was reset".to_owned(),
                        reason: Reason::CANCEL,
                    });
                }
            };
            to.send_data(data.split_to(capacity.min(data.len())), false).map_err(|error| Cut::server(&error))?;
        }
        // An error means that the stream ended: its next read says so.
        let _released = from.flow_control().release_capacity(length);
    }
    let trailers = from.trailers().await.map_err(|error| Cut::client(&error))?;
    match &trailers {
        Some(trailers) => to.send_trailers(trailers.clone()),
        None => to.send_data(Bytes::new(), true),
    }
    .map_err(|error| Cut::server(&error))?;
    Ok(trailers)
}

fn status_of_call(fields: &HeaderMap) -> Option<u32> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}
