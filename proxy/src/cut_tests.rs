//! Opaque streams that are cut in the middle, by their peer, by its proxy or by us: no side takes what came for the whole.

use std::{io, sync::Arc};

use identity::{Store, TrustBundle};
use record::Code;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, LocalSet},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{
    account::End,
    error::ConnectionError,
    forward::tcp,
    stream::{Prefixed, Stream},
    test_ca::{Authority, DEADLINE, WORKLOAD, id},
};

const PIECE: &[u8] = b"the first half";
const MUCH: usize = 1 << 20;

/// Runs a test as a worker runs connections.
fn as_worker(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(DEADLINE, test).await.expect("in time") });
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (dialled, listener.accept().await.unwrap().0)
}

fn prefixed(socket: TcpStream) -> Prefixed {
    Prefixed::new(Vec::new(), socket)
}

/// The far end of a stream, in the hands of a test.
pub(crate) trait Far: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Far for T {}

/// A stream without TLS, and the application at its other end.
async fn plain() -> (Stream, TcpStream) {
    let (near, far) = sockets().await;
    (Stream::Plain(prefixed(near)), far)
}

/// A stream of the mesh that we dialled (`End::Server`) or accepted, and the peer at its other end.
pub(crate) async fn meshed(peer: End) -> (Stream, Box<dyn Far>) {
    let root = Authority::root("root");
    let store = Store::new("td".parse().unwrap());
    store.set_bundle(TrustBundle::from_der([root.der.clone()]).unwrap());
    store.set(root.issuer("issuer").credentials(WORKLOAD));
    let connector = TlsConnector::from(Arc::new(identity::client_config(&store, &id(WORKLOAD), identity::ALPN_TCP)));
    let acceptor = TlsAcceptor::from(Arc::new(identity::server_config(&store, &[identity::ALPN_TCP])));
    let name = ServerName::from(std::net::Ipv4Addr::LOCALHOST);
    let (dialled, accepted) = sockets().await;
    if peer == End::Server {
        let (near, far) =
            tokio::try_join!(connector.connect(name, prefixed(dialled)), acceptor.accept(accepted)).unwrap();
        (Stream::TlsClient(Box::new(near)), Box::new(far))
    } else {
        let (far, near) =
            tokio::try_join!(connector.connect(name, dialled), acceptor.accept(prefixed(accepted))).unwrap();
        (Stream::TlsServer(Box::new(near)), Box::new(far))
    }
}

/// A copy that runs between an application and a peer of the mesh, both in the hands of a test.
struct Copy {
    application: TcpStream,
    peer: Box<dyn Far>,
    task: JoinHandle<Result<End, (End, io::Error)>>,
}

impl Copy {
    /// `peer` is the end at which the mesh is. A first piece has gone from there to the application.
    async fn start(peer: End) -> Self {
        let (plain, application) = plain().await;
        let (mesh, far) = meshed(peer).await;
        let (mut client, mut server) = if peer == End::Server { (plain, mesh) } else { (mesh, plain) };
        let task = tokio::task::spawn_local(async move { tcp::copy(&mut client, &mut server, &[], |_, _| ()).await });
        let mut copy = Self { application, peer: far, task };
        send(&mut copy.peer, PIECE).await;
        let mut piece = [0; PIECE.len()];
        copy.application.read_exact(&mut piece).await.unwrap();
        assert_eq!(piece, PIECE);
        copy
    }
}

async fn send(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
    to.write_all(bytes).await.unwrap();
    to.flush().await.unwrap();
}

async fn rest(of: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    of.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

fn kind(result: io::Result<Vec<u8>>) -> io::ErrorKind {
    result.expect_err("what was cut looks whole").kind()
}

#[test]
fn tls_that_ends_without_close_notify_was_cut_and_the_application_is_reset() {
    as_worker(async {
        for end in [End::Server, End::Client] {
            let Copy { mut application, peer, task } = Copy::start(end).await;
            drop(peer);
            let (from, error) = task.await.unwrap().unwrap_err();
            assert_eq!((from, error.kind()), (end, io::ErrorKind::UnexpectedEof));
            let code = match end {
                End::Server => ConnectionError::Server(error).code(),
                End::Client => ConnectionError::Client(error).code(),
            };
            assert_eq!(code, if end == End::Server { Code::ServerReset } else { Code::ClientReset });
            assert_eq!(kind(rest(&mut application).await), io::ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn an_application_that_resets_is_no_end_for_the_peer() {
    as_worker(async {
        for end in [End::Server, End::Client] {
            let Copy { application, mut peer, task } = Copy::start(end).await;
            socket2::SockRef::from(&application).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            drop(application);
            assert!(task.await.unwrap().is_err());
            assert_eq!(kind(rest(&mut peer).await), io::ErrorKind::UnexpectedEof);
        }
    });
}

#[test]
fn what_we_cut_looks_whole_to_neither_side() {
    as_worker(async {
        for end in [End::Server, End::Client] {
            let Copy { mut application, mut peer, task } = Copy::start(end).await;
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
            assert_eq!(kind(rest(&mut application).await), io::ErrorKind::ConnectionReset);
            assert_eq!(kind(rest(&mut peer).await), io::ErrorKind::UnexpectedEof);
        }
    });
}

#[test]
fn either_side_may_end_first_and_the_other_goes_on() {
    as_worker(async {
        for end in [End::Server, End::Client] {
            let other = if end == End::Server { End::Client } else { End::Server };
            let Copy { mut application, mut peer, task } = Copy::start(end).await;
            peer.shutdown().await.unwrap();
            assert!(rest(&mut application).await.unwrap().is_empty());
            let much = async {
                send(&mut application, &vec![7; MUCH]).await;
                application.shutdown().await.unwrap();
            };
            assert!(tokio::join!(rest(&mut peer), much).0.unwrap() == vec![7; MUCH]);
            assert_eq!(task.await.unwrap().unwrap(), end);

            let Copy { mut application, mut peer, task } = Copy::start(end).await;
            application.shutdown().await.unwrap();
            assert!(rest(&mut peer).await.unwrap().is_empty());
            let much = async {
                send(&mut peer, &vec![9; MUCH]).await;
                peer.shutdown().await.unwrap();
            };
            assert!(tokio::join!(rest(&mut application), much).0.unwrap() == vec![9; MUCH]);
            assert_eq!(task.await.unwrap().unwrap(), other);
        }
    });
}
