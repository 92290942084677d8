//! One endpoint of a collector: its connection, made when it is needed, and how long to leave it alone after a failure.
//!
//! Promises: a call ends within its timeout, connecting included; a connection that failed or hung is not used again;
//! header values are in no message. Leaves to others: which endpoint is asked, and what an answer leads to.

use std::{
    error::Error as StdError,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::AbortHandle,
};
use tokio_rustls::TlsConnector;

use super::{
    Compression, Config, Error, Protocol,
    answer::{Answer, Response},
    message::Parts,
    tls::Tls,
};
use crate::backoff::{Backoff, jitter};

/// The method of OTLP/gRPC.
const GRPC_PATH: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
/// How often a connection that goes well is compared with the files it was made from.
pub(super) const RELOAD_INTERVAL: Duration = Duration::from_secs(30);
/// How long an endpoint is left alone at most after a failure, when there is no other.
const PAUSE_ALONE: Duration = Duration::from_secs(5);
/// How long it is left alone when there are others: each try may cost a timeout.
const PAUSE_BESIDE_OTHERS: Duration = Duration::from_secs(30);
/// Bytes of an answer at most; a real one has a few hundred.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// One endpoint.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// As it was given; for people.
    pub(super) url: String,
    uri: Uri,
    host: String,
    port: u16,
    protocol: Protocol,
    headers: HeaderMap,
    timeout: Duration,
    tls: Option<Tls>,
    connection: Option<Connection>,
    backoff: Backoff,
    away: Option<Away>,
}

/// After a failure.
#[derive(Debug, Clone, Copy)]
struct Away {
    /// When it may be tried again if there is no other.
    alone: Instant,
    /// When it may be tried again although there are others.
    beside_others: Instant,
}

/// What came of a call.
#[derive(Debug)]
pub(super) struct Called {
    pub(super) answer: Answer,
    /// The connection broke while the request was under way.
    pub(super) cut: bool,
}

impl Endpoint {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names what is wrong.
    pub(super) fn new(url: &str, config: &Config) -> Result<Self, Error> {
        Self::of_service(url, config, GRPC_PATH)
    }

    /// As [`Self::new`], for the method of another service of OTLP.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub(super) fn of_service(url: &str, config: &Config, grpc_path: &str) -> Result<Self, Error> {
        let uri: Uri = url.parse().map_err(|error| Error::Endpoint(url.to_owned(), error))?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) | None => return Err(Error::Scheme(url.to_owned())),
        };
        let authority = uri.authority().ok_or_else(|| Error::Scheme(url.to_owned()))?;
        if authority.as_str().contains('@') {
            return Err(Error::UserInfo);
        }
        if uri.query().is_some() {
            return Err(Error::Query);
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let alpn: &[&[u8]] = match config.protocol {
            Protocol::Grpc => &[b"h2"],
            Protocol::HttpProtobuf => &[b"h2", b"http/1.1"],
        };
        let tls = match (secure, &config.roots) {
            (false, _) => None,
            (true, None) => return Err(Error::NoRoots(url.to_owned())),
            (true, Some(roots)) => Some(Tls { roots: roots.clone(), client: config.client.clone(), alpn }),
        };
        // What is wrong from the beginning is a mistake, and not a collector that is away.
        if let Some(tls) = &tls {
            tls.roots().map_err(Error::Roots)?;
            tls.config().map_err(Error::Tls)?;
        }
        let path = match config.protocol {
            Protocol::Grpc if uri.path().trim_end_matches('/').is_empty() => grpc_path,
            Protocol::Grpc => return Err(Error::Path(url.to_owned())),
            Protocol::HttpProtobuf => uri.path(),
        };
        let target = format!("{}://{authority}{path}", if secure { "https" } else { "http" });
        Ok(Self {
            uri: target.parse().map_err(|error| Error::Endpoint(url.to_owned(), error))?,
            url: url.to_owned(),
            host,
            port,
            protocol: config.protocol,
            headers: headers(config)?,
            timeout: config.timeout,
            tls,
            connection: None,
            backoff: Backoff::default(),
            away: None,
        })
    }

    /// From when on it may be tried; `None` when it has not failed.
    pub(super) fn due(&self, alone: bool) -> Option<Instant> {
        self.away.map(|away| if alone { away.alone } else { away.beside_others })
    }

    /// It answered.
    pub(super) fn is_there(&mut self) {
        self.backoff = Backoff::default();
        self.away = None;
    }

    /// It failed, and asked for a pause of `asked`.
    pub(super) fn is_away(&mut self, asked: Duration) {
        let now = Instant::now();
        let (alone, beside_others) = (self.backoff.next(PAUSE_ALONE), jitter(PAUSE_BESIDE_OTHERS));
        self.away = Some(Away { alone: now + alone.max(asked), beside_others: now + beside_others.max(asked) });
    }

    /// Sends one request.
    ///
    /// # Cancellation
    /// The request may have arrived; the connection is given up.
    pub(super) async fn call(&mut self, body: Parts) -> Called {
        let (timeout, mut began) = (self.timeout, false);
        // Given back only after a whole answer.
        let connection = self.connection.take();
        let exchanged = tokio::time::timeout(timeout, self.exchange(connection, body, &mut began)).await;
        let exchanged = exchanged.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")));
        match exchanged {
            Ok((response, connection)) => {
                self.connection = connection;
                let answer = match self.protocol {
                    Protocol::Grpc => response.of_grpc(),
                    Protocol::HttpProtobuf => response.of_http(),
                };
                Called { answer, cut: false }
            }
            Err(why) => Called { answer: Answer::Away { why, pause: Duration::ZERO }, cut: began },
        }
    }

    async fn exchange(
        &self,
        connection: Option<Connection>,
        body: Parts,
        began: &mut bool,
    ) -> Result<(Response, Option<Connection>), String> {
        let mut connection = match self.reusable(connection).await {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = match connection.client {
            Client::Http2(_) => self.uri.clone(),
            // The origin form (RFC 9112, section 3.2.1); the host has a header of its own.
            Client::Http1(_) => self.uri.path_and_query().map_or_else(Uri::default, |path| path.clone().into()),
        };
        *request.headers_mut() = self.headers.clone();
        if let (Client::Http1(_), Some(authority)) = (&connection.client, self.uri.authority()) {
            let host = HeaderValue::from_str(authority.as_str()).map_err(|error| error.to_string())?;
            request.headers_mut().insert(header::HOST, host);
        }
        *began = true;
        let sent = match &mut connection.client {
            Client::Http1(client) => client.send_request(request).await,
            Client::Http2(client) => client.send_request(request).await,
        };
        let (parts, mut body) = sent.map_err(|error| chain(&error))?.into_parts();
        let (bytes, trailers) = read(&mut body).await?;
        let (status, headers) = (parts.status, parts.headers);
        Ok((Response { status, headers, trailers, body: bytes }, Some(connection)))
    }

    /// The connection, if it still lives and its files say what they said.
    async fn reusable(&self, connection: Option<Connection>) -> Option<Connection> {
        let mut connection = connection?;
        if let Some(tls) = self.tls.as_ref().filter(|_| connection.compared.elapsed() >= RELOAD_INTERVAL) {
            if fingerprint(tls).await != connection.fingerprint {
                return None;
            }
            connection.compared = Instant::now();
        }
        let ready = match &mut connection.client {
            Client::Http1(client) => client.ready().await,
            Client::Http2(client) => client.ready().await,
        };
        ready.is_ok().then_some(connection)
    }

    async fn connect(&self) -> Result<Connection, String> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|error| chain(&error))?;
        // Without it small requests are late; that is all.
        let _late = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            let is_http2 = self.protocol == Protocol::Grpc;
            return handshake(stream, is_http2, 0).await;
        };
        let fingerprint = fingerprint(tls).await;
        let settings = tls.clone();
        let config = tokio::task::spawn_blocking(move || settings.config()).await.map_err(|error| chain(&error))?;
        let config = config.map_err(|error| chain(&error))?;
        let name = ServerName::try_from(self.host.clone()).map_err(|error| chain(&error))?;
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| chain(&error))?;
        let is_http2 = self.protocol == Protocol::Grpc || stream.get_ref().1.alpn_protocol() == Some(b"h2");
        handshake(stream, is_http2, fingerprint).await
    }
}

async fn fingerprint(tls: &Tls) -> u64 {
    let tls = tls.clone();
    tokio::task::spawn_blocking(move || tls.fingerprint()).await.unwrap_or_default()
}

/// An open connection; its task ends with it.
#[derive(Debug)]
struct Connection {
    client: Client,
    task: AbortHandle,
    fingerprint: u64,
    compared: Instant,
}

#[derive(Debug)]
enum Client {
    Http1(conn::http1::SendRequest<Parts>),
    Http2(conn::http2::SendRequest<Parts>),
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    is_http2: bool,
    fingerprint: u64,
) -> Result<Connection, String> {
    let io = TokioIo::new(stream);
    // What a connection ends with is what its last request ends with.
    let (client, task) = if is_http2 {
        let (client, connection) =
            conn::http2::handshake(TokioExecutor::new(), io).await.map_err(|error| chain(&error))?;
        (Client::Http2(client), tokio::spawn(async { drop(connection.await) }).abort_handle())
    } else {
        let (client, connection) = conn::http1::handshake(io).await.map_err(|error| chain(&error))?;
        (Client::Http1(client), tokio::spawn(async { drop(connection.await) }).abort_handle())
    };
    Ok(Connection { client, task, fingerprint, compared: Instant::now() })
}

/// The whole body, within bounds, and its trailers.
async fn read(body: &mut Incoming) -> Result<(Bytes, HeaderMap), String> {
    let (mut bytes, mut trailers) = (BytesMut::new(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        match frame.map_err(|error| chain(&error))?.into_data() {
            Ok(data) if bytes.len() + data.len() > ANSWER_BYTES_MAX => {
                return Err(format!("its answer is longer than {ANSWER_BYTES_MAX} bytes"));
            }
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    Ok((bytes.freeze(), trailers))
}

/// The headers of every request.
fn headers(config: &Config) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    for (name, value) in &config.headers {
        let header = (name.parse::<HeaderName>(), value.parse::<HeaderValue>());
        let (Ok(name), Ok(mut value)) = header else { return Err(Error::Header(name.clone())) };
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    let compression = match config.compression {
        Compression::None => None,
        Compression::Gzip => Some("gzip"),
        Compression::Zstd => Some("zstd"),
    };
    let (kind, encoding) = match config.protocol {
        Protocol::Grpc => ("application/grpc", HeaderName::from_static("grpc-encoding")),
        Protocol::HttpProtobuf => ("application/x-protobuf", header::CONTENT_ENCODING),
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("picket/", env!("CARGO_PKG_VERSION"))));
    if let Some(compression) = compression {
        headers.insert(encoding, HeaderValue::from_static(compression));
    }
    if config.protocol == Protocol::Grpc {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    Ok(headers)
}

/// An error and what is behind it, in one line.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}
