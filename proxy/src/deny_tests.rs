//! Servers that are denied: what is kept with them is closed, what is in flight ends, and they are not dialled again.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use identity::{Denial, DenyList, PeerError, Store, TrustBundle};
use record::Code;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, LocalSet},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    connect::{Connector, Discovered, Target},
    discover::{Destination, Endpoint},
    error::ConnectionError,
    forward::http2::Servers,
    test_ca::{Authority, DEADLINE, WORKLOAD, id, no_discovery},
};

const GONE: &str = "spiffe://td/ns/demo/sa/gone";
const STAYS: &str = "spiffe://td/ns/demo/sa/stays";

/// Runs a test as a worker runs connections.
fn as_worker(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(DEADLINE, test).await.expect("in time") });
}

/// The store of `who`, whom `root` vouches for.
fn store(root: &Authority, who: &str) -> Arc<Store> {
    let store = Store::new("td".parse().unwrap());
    store.set_bundle(TrustBundle::from_der([root.der.clone()]).unwrap());
    store.set(root.issuer("issuer").credentials(who));
    store
}

/// A server of one connection, at an address that is not where the client dials from, and the way there.
async fn server(root: &Authority, who: &str) -> (Target, JoinHandle<io::Result<TlsStream<TcpStream>>>) {
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let target = target(listener.local_addr().unwrap(), who);
    let tls = identity::server_config(&store(root, who), &[identity::ALPN_HTTP1, identity::ALPN_H2]);
    let accepted = tokio::task::spawn_local(async move {
        let (socket, _) = listener.accept().await.unwrap();
        TlsAcceptor::from(Arc::new(tls)).accept(socket).await
    });
    (target, accepted)
}

fn target(address: SocketAddr, who: &str) -> Target {
    let endpoint = Endpoint { address, workload: None, identity: Some(id(who)) };
    let destination = Destination { service: None, protocol: None, endpoints: Arc::from([Arc::new(endpoint)]) };
    Target::Discovered(Discovered { original: address, destination, discovery: no_discovery() })
}

fn connector(store: &Arc<Store>) -> Connector {
    Connector::new(Arc::clone(store), Duration::from_secs(5), Duration::from_secs(5))
}

fn gone() -> Arc<DenyList> {
    Arc::new(DenyList::new([Denial::Identity(id(GONE))]).unwrap())
}

#[test]
fn what_is_kept_with_a_server_that_is_denied_is_closed_and_it_is_not_dialled_again() {
    as_worker(async {
        let root = Authority::root("root");
        let ours = store(&root, WORKLOAD);
        let connector = connector(&ours);
        let mut servers = Vec::new();
        for who in [GONE, STAYS] {
            let (target, accepted) = server(&root, who).await;
            let connected = connector.take_http1(&target, true).await.unwrap();
            connector.keep(connected);
            servers.push((target, accepted.await.unwrap().unwrap()));
        }
        ours.set_denied(gone());
        connector.deny(&gone());
        let mut end = [0; 1];
        // However it is closed, nothing more comes.
        assert_eq!(servers[0].1.read(&mut end).await.unwrap_or(0), 0);
        let kept = connector.take_http1(&servers[1].0, false).await.unwrap();
        assert!(kept.reused, "the other one is still there");

        let (target, accepted) = server(&root, GONE).await;
        let error = connector.take_http1(&target, false).await.unwrap_err();
        assert!(matches!(&error, ConnectionError::Peer(_, PeerError::Denied { .. })), "{error:?}");
        assert_eq!(error.code(), Code::PeerDenied);
        assert!(accepted.await.unwrap().is_err(), "the handshake was refused");
    });
}

#[test]
fn requests_in_flight_with_a_server_that_is_denied_end_and_say_why() {
    as_worker(async {
        let root = Authority::root("root");
        let ours = store(&root, WORKLOAD);
        let (connector, servers) = (Rc::new(connector(&ours)), Servers::default());
        let mut in_flight = Vec::new();
        for who in [GONE, STAYS] {
            let (target, accepted) = server(&root, who).await;
            let mut lease = servers.lease(&connector, &target).await.unwrap();
            let mut server = h2::server::handshake(accepted.await.unwrap().unwrap()).await.unwrap();
            let request = http::Request::get("http://server/").body(()).unwrap();
            let (response, _body) = lease.send.send_request(request, true).unwrap();
            let (_request, respond) = server.accept().await.unwrap().unwrap();
            // The server goes on reading, and answers later or never.
            tokio::task::spawn_local(async move { while let Some(Ok(_)) = server.accept().await {} });
            in_flight.push((target, lease, response, respond));
        }
        ours.set_denied(gone());
        servers.deny(&gone());
        let (_, lease, response, _respond) = in_flight.remove(0);
        let error = lease.gone(response.await.unwrap_err());
        assert!(matches!(&error, ConnectionError::Denied(who, _) if *who == id(GONE)), "{error:?}");
        assert_eq!(error.code(), Code::PeerDenied);

        let (target, _lease, response, mut respond) = in_flight.remove(0);
        respond.send_response(http::Response::new(()), false).unwrap().send_data(Bytes::new(), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
        servers.lease(&connector, &target).await.unwrap();
    });
}
