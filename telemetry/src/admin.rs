//! The admin server: health and metrics over TCP, changes of state over a Unix socket.
//!
//! Promises: TCP answers only `GET` and changes nothing, so an application that can be made to call it gives nothing
//! away but numbers (linkerd CVE-2024-40632 had `/shutdown` there). The Unix socket has mode 0600. A client that is
//! slow is cut, clients above the limit are turned away at once, and neither listener can be held by the other's.
//!
//! | listener | request | answer |
//! |---|---|---|
//! | TCP, Unix | `GET /livez` | 200 while the process serves |
//! | TCP, Unix | `GET /readyz` | 200, or 503 with the reason |
//! | TCP, Unix | `GET /metrics` | Prometheus text |
//! | Unix | `GET`, `PUT` of a control such as `/log-level` | its value; 400 with the reason when it is refused |
//! | Unix | `GET` or `POST` of an action, JSON in | what it answers, JSON out |

use crate::log::LevelHandle;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    fmt, fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};

/// Longest body of a `PUT`, in bytes; a value is a word or a short list.
const BODY_LIMIT_BYTES: usize = 1024;
/// Longest body of a `POST`, in bytes.
const ACTION_LIMIT_BYTES: usize = 16 * 1024;
/// Pause after a failed accept (no descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a client of the admin server may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at one time, for each listener.
    pub connections: usize,
    /// From accept to the end of the request's head.
    pub head: Duration,
    /// From accept to the end of the answer.
    pub connection: Duration,
}

impl Default for Limits {
    /// 32 connections: a kubelet, a scraper and a few people. 2 s for a head, 10 s in all: no probe waits longer.
    fn default() -> Self {
        Self { connections: 32, head: Duration::from_secs(2), connection: Duration::from_secs(10) }
    }
}

type Ready = dyn Fn() -> Result<(), String> + Send + Sync;
type Metrics = dyn Fn(&mut String) + Send + Sync;
type Get = dyn Fn() -> String + Send + Sync;
type Put = dyn Fn(&str) -> Result<(), String> + Send + Sync;
type Act = dyn Fn(String) -> Pin<Box<dyn Future<Output = (StatusCode, String)> + Send>> + Send + Sync;

/// What the server answers from.
pub struct Admin {
    ready: Box<Ready>,
    metrics: Box<Metrics>,
    controls: Vec<Control>,
    actions: Vec<Action>,
    limits: Limits,
}

/// Something that is done, or told, over the Unix socket.
struct Action {
    method: Method,
    path: &'static str,
    act: Box<Act>,
}

/// A value that can be read and set over the Unix socket.
struct Control {
    path: &'static str,
    get: Box<Get>,
    put: Box<Put>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let controls: Vec<&str> = self.controls.iter().map(|control| control.path).collect();
        f.debug_struct("Admin").field("controls", &controls).field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Admin {
    /// `ready` says why not, if not; `metrics` appends text (see [`crate::metrics::Exposition`]). Both are called on
    /// the thread that serves and must not block.
    pub fn new(
        ready: impl Fn() -> Result<(), String> + Send + Sync + 'static,
        metrics: impl Fn(&mut String) + Send + Sync + 'static,
    ) -> Self {
        let (ready, metrics) = (Box::new(ready), Box::new(metrics));
        Self { ready, metrics, controls: Vec::new(), actions: Vec::new(), limits: Limits::default() }
    }

    /// Adds `/log-level` to the Unix socket.
    #[must_use]
    pub fn with_log_level(self, level: LevelHandle) -> Self {
        let getter = level.clone();
        self.with_control("/log-level", move || getter.get(), move |text| level.set(text).map_err(|e| e.to_string()))
    }

    /// Adds a value to the Unix socket; `put` gets the body without white space around it and says why it refuses.
    #[must_use]
    pub fn with_control(
        mut self,
        path: &'static str,
        get: impl Fn() -> String + Send + Sync + 'static,
        put: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.controls.push(Control { path, get: Box::new(get), put: Box::new(put) });
        self
    }

    /// Adds something that is done over the Unix socket: `act` gets the body and gives a status and JSON. It must not
    /// block the thread, and takes no longer than a connection may ([`Limits::connection`]).
    #[must_use]
    pub fn with_action<F>(
        mut self,
        method: Method,
        path: &'static str,
        act: impl Fn(String) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = (StatusCode, String)> + Send + 'static,
    {
        self.actions.push(Action { method, path, act: Box::new(move |body| Box::pin(act(body))) });
        self
    }

    /// Replaces the default limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
}

/// Why the admin server does not listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The TCP address cannot be had.
    #[error("the admin server cannot listen on {address}")]
    Address {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The Unix socket cannot be made.
    #[error("the admin server cannot make its socket {}", path.display())]
    Socket {
        /// What was asked for.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The bound listeners; [`Server::run`] serves them.
#[derive(Debug)]
pub struct Server {
    tcp: Option<TcpListener>,
    address: SocketAddr,
    unix: Option<Socket>,
}

/// A Unix socket that leaves no file behind.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Nothing is lost when the file stays: the next start replaces it.
        let _ = fs::remove_file(&self.path);
    }
}

impl Server {
    /// Binds `address` and, if given, the Unix socket `socket`, replacing one that an earlier process left.
    ///
    /// # Errors
    /// When either cannot be bound; nothing is left bound then.
    pub async fn bind(address: SocketAddr, socket: Option<&Path>) -> Result<Self, Error> {
        let refused = |source| Error::Address { address, source };
        let tcp = TcpListener::bind(address).await.map_err(refused)?;
        let address = tcp.local_addr().map_err(refused)?;
        let unix = socket.map(bind_unix).transpose()?;
        Ok(Self { tcp: Some(tcp), address, unix })
    }

    /// Binds the Unix socket only; its address over TCP is 0.0.0.0:0, nowhere.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn on_socket(socket: &Path) -> Result<Self, Error> {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Ok(Self { tcp: None, address: nowhere, unix: Some(bind_unix(socket)?) })
    }

    /// The TCP address, with the port that the system chose when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves for ever.
    ///
    /// # Cancellation
    /// Dropping the future closes the listeners and every connection and removes the socket's file.
    pub async fn run(self, admin: Admin) {
        let admin = Arc::new(admin);
        let over_tcp = async {
            match &self.tcp {
                Some(tcp) => serve(&admin, Reach::Read, || async { Ok(tcp.accept().await?.0) }).await,
                None => std::future::pending().await,
            }
        };
        let over_unix = async {
            match &self.unix {
                Some(unix) => serve(&admin, Reach::Change, || async { Ok(unix.listener.accept().await?.0) }).await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(over_tcp, over_unix);
    }
}

/// Makes the socket under another name, closes it to others, then moves it into place: nobody meets it open.
fn bind_unix(path: &Path) -> Result<Socket, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let unfinished = PathBuf::from(name);
    let bind = || {
        let listener = UnixListener::bind(&unfinished)?;
        fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o600))?;
        fs::rename(&unfinished, path)?;
        Ok(listener)
    };
    bind().map(|listener| Socket { listener, path: path.to_owned() }).map_err(|source| {
        let _ = fs::remove_file(&unfinished);
        Error::Socket { path: path.to_owned(), source }
    })
}

/// What a listener's clients may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Read,
    Change,
}

/// Accepts for ever; each connection is a task that ends with this future.
async fn serve<S, F>(admin: &Arc<Admin>, reach: Reach, accept: impl Fn() -> F)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = io::Result<S>>,
{
    let mut connections = JoinSet::new();
    loop {
        let stream = match accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "the admin server cannot accept; are descriptors running out?");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        // Above the limit the stream is dropped here: turned away at once instead of waiting unseen.
        if connections.len() < admin.limits.connections {
            connections.spawn(connection(Arc::clone(admin), reach, stream));
        }
    }
}

/// One connection, one request: nothing is kept open for a client to hold.
async fn connection<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(admin: Arc<Admin>, reach: Reach, stream: S) {
    let limits = admin.limits;
    let service = service_fn(move |request| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(answer(&admin, reach, request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head).keep_alive(false);
    let served = tokio::time::timeout(limits.connection, http.serve_connection(TokioIo::new(stream), service)).await;
    if let Ok(Err(error)) = served {
        tracing::debug!(error = %crate::chain(&error), "an admin connection ended badly");
    }
}

async fn answer(admin: &Admin, reach: Reach, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if let Some(control) = admin.controls.iter().find(|control| reach == Reach::Change && control.path == path) {
        return control.answer(request).await;
    }
    let action = |action: &&Action| reach == Reach::Change && action.path == path && action.method == *request.method();
    if let Some(action) = admin.actions.iter().find(action) {
        return action.answer(request).await;
    }
    if !matches!(path, "/livez" | "/readyz" | "/metrics") {
        return text(StatusCode::NOT_FOUND, "not found\n");
    }
    if request.method() != Method::GET {
        return method_not_allowed("GET");
    }
    match path {
        "/metrics" => {
            let mut body = String::new();
            (admin.metrics)(&mut body);
            text(StatusCode::OK, body)
        }
        "/readyz" => match (admin.ready)() {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        },
        _ => text(StatusCode::OK, "alive\n"),
    }
}

impl Control {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() == Method::GET {
            return text(StatusCode::OK, format!("{}\n", (self.get)()));
        }
        if request.method() != Method::PUT {
            return method_not_allowed("GET, PUT");
        }
        let Ok(body) = Limited::new(request.into_body(), BODY_LIMIT_BYTES).collect().await else {
            return text(StatusCode::PAYLOAD_TOO_LARGE, format!("a value has at most {BODY_LIMIT_BYTES} bytes\n"));
        };
        let body = body.to_bytes();
        let Ok(value) = std::str::from_utf8(&body) else {
            return text(StatusCode::BAD_REQUEST, "a value is UTF-8 text\n");
        };
        match (self.put)(value.trim()) {
            Ok(()) => text(StatusCode::OK, format!("{}\n", (self.get)())),
            Err(reason) => text(StatusCode::BAD_REQUEST, format!("{reason}\n")),
        }
    }
}

impl Action {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let Ok(body) = Limited::new(request.into_body(), ACTION_LIMIT_BYTES).collect().await else {
            return text(StatusCode::PAYLOAD_TOO_LARGE, format!("a request has at most {ACTION_LIMIT_BYTES} bytes\n"));
        };
        let Ok(body) = String::from_utf8(body.to_bytes().into()) else {
            return text(StatusCode::BAD_REQUEST, "a request is UTF-8 text\n");
        };
        let (status, json) = (self.act)(body).await;
        let mut response = text(status, json);
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        response
    }
}

fn method_not_allowed(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
    response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allowed));
    response
}

/// A plain answer; the content type is the one that Prometheus asks for and that suits every other text as well.
fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
