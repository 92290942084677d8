//! Step 6 for HTTP/1: one request after the other on a client's connection, each with its own record and endpoint.
//!
//! What is ambiguous or malformed is answered with a status and a `picket-error` code, recorded, and never forwarded.
//! A request that met a kept connection at the moment it closed is sent again if that is safe (RFC 9110 section 9.2.2).

use std::{cell::RefCell, io, time::Duration};

use record::{Captured, ClosedBy, Code, HttpVersion};
use tokio::{io::AsyncWriteExt, time::timeout};

use super::{
    Hop,
    exchange::{Broken, Exchange, Exchanged},
    head::{self, Refusal, RequestHead},
    tcp,
};
use crate::{
    account::{End, RequestAccount},
    capture::Fields,
    connect::Connected,
    error::ConnectionError,
    stream::Stream,
};

/// How long a refused client may take to read the answer and close.
const LINGER: Duration = Duration::from_secs(1);
/// How long a kept connection may bring one more request when we stop. A client that is busy sends it while we close:
/// it is served, and its answer says that the connection ends.
const LAST_REQUEST: Duration = Duration::from_millis(250);

/// What is to be done with the client's connection after a request.
enum Next {
    Request,
    Close(ClosedBy),
}

/// Serves all requests of a client's connection; `opening` was read from it already.
///
/// # Errors
/// What ended the connection other than its two sides.
///
/// # Cancellation
/// The request in flight is cut and recorded as such.
pub async fn serve(hop: &Hop, client: Stream, opening: Vec<u8>) -> Result<ClosedBy, ConnectionError> {
    let mut session = Session { hop, client, buffer: opening, own: RefCell::new(None) };
    loop {
        let end = match session.next_head().await {
            Ok(Some(end)) => end,
            Ok(None) => {
                session.client.end();
                return Ok(if hop.drain.is_draining() { ClosedBy::Us } else { ClosedBy::Client });
            }
            Err(ConnectionError::Refused(refusal)) => return session.refuse(&refusal).await,
            Err(error @ ConnectionError::RequestHeadTimeout) => {
                let refusal = Refusal { code: error.code(), detail: "the head took too long" };
                return session.refuse(&refusal).await;
            }
            Err(error) => return Err(error),
        };
        match session.request(end).await? {
            Next::Request => {}
            Next::Close(by) => {
                session.client.close().await;
                return Ok(by);
            }
        }
    }
}

struct Session<'a> {
    hop: &'a Hop,
    client: Stream,
    buffer: Vec<u8>,
    /// The server connection of an inbound client, which no other client may use.
    own: RefCell<Option<Connected>>,
}

impl Session<'_> {
    /// Waits for a whole head: its length, or `None` when the client is done or we are stopping.
    async fn next_head(&mut self) -> Result<Option<usize>, ConnectionError> {
        if self.buffer.is_empty() {
            // Nothing is held while a connection is idle.
            self.buffer = Vec::new();
            let mut drain = self.hop.drain.clone();
            let read = tokio::select! {
                biased;
                read = timeout(self.hop.keep_alive_timeout, self.client.fill(&mut self.buffer)) => read,
                () = drain.wait() => timeout(LAST_REQUEST, self.client.fill(&mut self.buffer)).await,
            };
            match read {
                Ok(Ok(0)) | Err(_) => return Ok(None),
                Ok(Ok(_)) => {}
                // Between requests nothing is lost with it (RFC 9112 section 9.8).
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Ok(Err(error)) => return Err(ConnectionError::Client(error)),
            }
        }
        match timeout(self.hop.head_timeout, self.complete_head()).await {
            Ok(end) => end.map(Some),
            Err(_) => Err(ConnectionError::RequestHeadTimeout),
        }
    }

    async fn complete_head(&mut self) -> Result<usize, ConnectionError> {
        loop {
            if let Some(end) =
                head::find_end(&self.buffer, self.hop.head_bytes_max).map_err(ConnectionError::Refused)?
            {
                return Ok(end);
            }
            match self.client.fill(&mut self.buffer).await {
                Ok(0) => return Err(ConnectionError::ClientClosed),
                Ok(_) => {}
                Err(error) => return Err(ConnectionError::Client(error)),
            }
        }
    }

    /// Answers what cannot be forwarded, records it and closes.
    async fn refuse(&mut self, refusal: &Refusal) -> Result<ClosedBy, ConnectionError> {
        let (method, path) = best_effort(&self.buffer);
        let mut account = RequestAccount::open(&self.hop.account, &method, &path, None, HttpVersion::Http11);
        self.answer(&mut account, refusal.code, refusal.detail).await;
        Err(ConnectionError::Refused(refusal.clone()))
    }

    /// Sends an answer of our own and finishes the account.
    async fn answer(&mut self, account: &mut RequestAccount, code: Code, detail: &str) {
        let status = code.http_status().unwrap_or(502);
        account.status.set(Some(status));
        account.finish(code, Some(detail));
        let body = format!("picket: {}: {detail}\n", code.as_str());
        let answer = format!(
            "HTTP/1.1 {status} {}\r\npicket-error: {}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            reason(status),
            code.as_str(),
            body.len(),
        );
        let client = &mut self.client;
        // A client that does not take its answer has its record already.
        let lingering = Box::pin(async {
            client.write_all(answer.as_bytes()).await?;
            client.flush().await?;
            client.shutdown().await?;
            // Bytes left unread would turn our close into a reset that destroys the answer on its way.
            let (mut discarded, mut total) = (Vec::new(), 0);
            while total < 1024 * 1024 {
                discarded.clear();
                match client.fill(&mut discarded).await? {
                    0 => break,
                    n => total += n,
                }
            }
            io::Result::Ok(())
        });
        let _lingered = timeout(LINGER, lingering).await;
    }

    /// Forwards the request whose head is the first `end` bytes of the buffer.
    async fn request(&mut self, end: usize) -> Result<Next, ConnectionError> {
        let mut forwarded = Vec::with_capacity(end + 64);
        let (capture, mut captured) = (self.hop.account.capture(), None::<Box<Captured>>);
        let see = |fields: Fields<'_>, query: Option<&str>| {
            if let Some(capture) = capture {
                capture.request(fields, query, captured.get_or_insert_default());
            }
        };
        let request = match head::request(&self.buffer[..end], &mut forwarded, see) {
            Ok(request) => request,
            Err(refusal) => return self.refuse(&refusal).await.map(Next::Close),
        };
        self.buffer.drain(..end);
        let version = if request.minor_version == 0 { HttpVersion::Http10 } else { HttpVersion::Http11 };
        let (method, path, authority) = (&request.method, &request.path, request.authority.as_deref());
        let mut account = RequestAccount::open(&self.hop.account, method, path, authority, version);
        account.trace = request.trace;
        account.note_captured(captured);
        loop {
            let fresh = account.resends > 0;
            let mut server = match self.server(fresh).await {
                Ok(server) => server,
                Err(error) => {
                    self.answer(&mut account, error.code(), &telemetry::chain(&error).to_string()).await;
                    return Err(error);
                }
            };
            account.note_upstream(&server.upstream);
            let close = !request.keep_alive || self.hop.drain.is_draining();
            let limit = self.hop.head_bytes_max;
            let mut exchange = Exchange::new(&request, &account, forwarded.clone(), close, limit);
            let result = exchange.run(&mut self.client, &mut self.buffer, &mut server).await;
            let answered = exchange.answered;
            match result {
                Ok(exchanged) => return self.completed(account, &request, exchanged, server, close).await,
                Err(broken) => {
                    let untouched = match &broken {
                        Broken::ServerClosed { untouched } => *untouched,
                        Broken::Server(_) => !account.is_answered(),
                        Broken::Client(_) | Broken::ClientClosed | Broken::RequestBody(_) | Broken::Response(_) => {
                            false
                        }
                    };
                    let safe = request.is_idempotent() && request.framing == head::Framing::None;
                    if server.reused && untouched && safe && !fresh {
                        account.resends += 1;
                        continue;
                    }
                    if matches!(broken, Broken::ClientClosed) {
                        server.stream.end();
                    }
                    return self.broken(account, broken, answered).await.map(Next::Close);
                }
            }
        }
    }

    async fn server(&self, fresh: bool) -> Result<Connected, ConnectionError> {
        if !self.hop.shared
            && let Some(own) = self.own.borrow_mut().take()
            && !fresh
        {
            return Ok(own);
        }
        self.hop.connector.take_http1(&self.hop.target, fresh).await
    }

    async fn completed(
        &mut self,
        mut account: RequestAccount,
        request: &RequestHead,
        exchanged: Exchanged,
        mut server: Connected,
        close: bool,
    ) -> Result<Next, ConnectionError> {
        let status = exchanged.response.status;
        if status == 101 || (request.method == "CONNECT" && (200..300).contains(&status)) {
            account.upgraded = Some(request.upgrade.clone().unwrap_or_else(|| "connect".to_owned()));
            return Box::pin(self.tunnel(account, server)).await;
        }
        account.finish(Code::Ok, None);
        if exchanged.response.keep_alive && exchanged.request_complete && request.minor_version == 1 {
            if self.hop.shared {
                self.hop.connector.keep(server);
            } else {
                *self.own.borrow_mut() = Some(Connected { reused: true, ..server });
            }
        } else {
            server.stream.end();
        }
        let until_close = exchanged.response.framing == head::Framing::UntilClose;
        Ok(match (exchanged.request_complete && !close, until_close) {
            (true, false) => Next::Request,
            (true, true) => Next::Close(ClosedBy::Server),
            (false, _) if request.keep_alive => Next::Close(ClosedBy::Us),
            (false, _) => Next::Close(ClosedBy::Client),
        })
    }

    /// The connection has switched: from here on its bytes are opaque.
    async fn tunnel(&mut self, mut account: RequestAccount, mut server: Connected) -> Result<Next, ConnectionError> {
        let early = std::mem::take(&mut server.buffer);
        let opening = std::mem::take(&mut self.buffer);
        account.count(End::Server, early.len() as u64);
        self.client.write_all(&early).await.map_err(ConnectionError::Client)?;
        let count = |from, bytes| account.count(from, bytes);
        let error = match tcp::copy(&mut self.client, &mut server.stream, &opening, count).await {
            Ok(first_to_end) => {
                account.finish(Code::Ok, None);
                return Ok(Next::Close(match first_to_end {
                    End::Client => ClosedBy::Client,
                    End::Server => ClosedBy::Server,
                }));
            }
            Err((End::Client, error)) => ConnectionError::Client(error),
            Err((End::Server, error)) => ConnectionError::Server(error),
        };
        account.finish(error.code(), Some(&telemetry::chain(&error).to_string()));
        Err(error)
    }

    /// Ends a request that broke: with an answer, if none has begun. An end is passed on as one, anything else as a cut.
    async fn broken(
        &mut self,
        mut account: RequestAccount,
        broken: Broken,
        answered: bool,
    ) -> Result<ClosedBy, ConnectionError> {
        let error = match broken {
            Broken::Client(error) => ConnectionError::Client(error),
            Broken::ClientClosed => ConnectionError::ClientClosed,
            Broken::RequestBody(malformed) => {
                ConnectionError::Refused(Refusal { code: Code::RequestBodyMalformed, detail: malformed.0 })
            }
            Broken::Server(error) => ConnectionError::Server(error),
            Broken::ServerClosed { .. } => ConnectionError::ServerClosed,
            Broken::Response(refusal) => ConnectionError::Refused(refusal),
        };
        let detail = telemetry::chain(&error).to_string();
        let client_is_there = !matches!(error, ConnectionError::Client(_) | ConnectionError::ClientClosed);
        if answered || !client_is_there {
            account.finish(error.code(), Some(&detail));
            if matches!(error, ConnectionError::ServerClosed) {
                self.client.end();
            }
        } else {
            self.answer(&mut account, error.code(), &detail).await;
        }
        Err(error)
    }
}

/// Method and path of a head that was refused, as far as they can be told for sure: what is none may be a part of a body, a
/// field or a target with a password in it, and none of that belongs into a record.
fn best_effort(bytes: &[u8]) -> (String, String) {
    let line = bytes.split(|&byte| byte == b'\r' || byte == b'\n').find(|line| !line.is_empty()).unwrap_or_default();
    let text = String::from_utf8_lossy(&line[..line.len().min(1024)]);
    let mut words = text.split(' ');
    let Some(method) = words.next().filter(|method| METHODS.contains(method)) else {
        return ("_OTHER".to_owned(), String::new());
    };
    let path = words.next().filter(|path| path.starts_with('/')).unwrap_or_default();
    (method.to_owned(), path.split(['?', '#']).next().unwrap_or_default().to_owned())
}

/// What OpenTelemetry's `http.request.method` knows (RFC 9110, RFC 5789); anything else is `_OTHER`.
const METHODS: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        408 => "Request Timeout",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        _ => "Error",
    }
}
