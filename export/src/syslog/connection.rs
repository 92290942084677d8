//! The way to a syslog server: TCP, and TLS 1.2 or 1.3 over it.
//!
//! Certificates, key and roots are read for each connection, so that files which are replaced need no restart.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::net::sockopt;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{Config, Error};

/// How long the server's kernel may leave bytes without an acknowledgement, or without room for them.
pub(super) const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// An idle connection is asked after this long whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What bytes go through.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One connection.
pub(super) struct Connection {
    pub(super) stream: Box<dyn Stream>,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    /// Bytes that our kernel has taken, those of TLS included.
    pub(super) written: Arc<AtomicU64>,
}

/// Where to connect to, and how.
#[derive(Debug)]
pub(super) struct Target {
    host: String,
    port: u16,
    tls: Option<Files>,
    timeout: Duration,
}

/// What TLS needs.
#[derive(Debug)]
struct Files {
    roots: PathBuf,
    certificate: Option<(PathBuf, PathBuf)>,
    name: ServerName<'static>,
}

impl Target {
    pub(super) fn new(config: &Config) -> Result<Self, Error> {
        let wrong = || Error::Endpoint(config.endpoint.clone());
        let (scheme, rest) = config.endpoint.split_once("://").ok_or_else(wrong)?;
        let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = port.parse().map_err(|_| wrong())?;
        let tls = match scheme {
            "tcp" => None,
            "tls" => {
                let roots = config.roots.clone().ok_or_else(|| Error::NoRoots(config.endpoint.clone()))?;
                let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
                let files = Files { roots, certificate: config.certificate.clone(), name };
                // What is wrong from the beginning is said at the beginning.
                files.read()?;
                Some(files)
            }
            _ => return Err(wrong()),
        };
        Ok(Self { host, port, tls, timeout: config.timeout })
    }

    pub(super) async fn connect(&self) -> Result<Connection, Error> {
        let late = |_| Error::Connection("the server did not answer in time", io::ErrorKind::TimedOut.into());
        tokio::time::timeout(self.timeout, self.dial()).await.map_err(late)?
    }

    async fn dial(&self) -> Result<Connection, Error> {
        let failed = |source| Error::Connection("the server cannot be reached", source);
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(failed)?;
        let options = || {
            tcp.set_nodelay(true)?;
            sockopt::set_tcp_user_timeout(&tcp, USER_TIMEOUT.as_millis() as u32)?;
            sockopt::set_socket_keepalive(&tcp, true)?;
            sockopt::set_tcp_keepidle(&tcp, KEEP_ALIVE)?;
            Ok((tcp.local_addr()?, tcp.peer_addr()?))
        };
        let (local, peer) = options().map_err(failed)?;
        let written = Arc::<AtomicU64>::default();
        let counted = Counted { tcp, written: Arc::clone(&written) };
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(counted),
            Some(files) => {
                let connector = tokio_rustls::TlsConnector::from(Arc::new(files.read()?));
                let shaken = connector.connect(files.name.clone(), counted).await;
                Box::new(shaken.map_err(|source| Error::Connection("the TLS handshake failed", source))?)
            }
        };
        Ok(Connection { stream, local, peer, written })
    }
}

impl Files {
    fn read(&self) -> Result<ClientConfig, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.roots)? {
            roots.add(certificate).map_err(Error::Tls)?;
        }
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&versions)
            .map_err(Error::Tls)?
            .with_root_certificates(roots);
        match &self.certificate {
            None => Ok(builder.with_no_client_auth()),
            Some((chain, key)) => {
                let pem = read(key)?;
                let private =
                    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| Error::File(key.clone(), error.to_string()))?;
                builder.with_client_auth_cert(certificates(chain)?, private).map_err(Error::Tls)
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| Error::File(path.to_owned(), error.to_string()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| Error::File(path.to_owned(), error.to_string()))?;
    if found.is_empty() { Err(Error::File(path.to_owned(), "it holds no certificate".to_owned())) } else { Ok(found) }
}

/// TCP that counts what it has written.
struct Counted {
    tcp: TcpStream,
    written: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(context, to)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.tcp).poll_write(context, bytes))?;
        self.written.fetch_add(count as u64, Relaxed);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
