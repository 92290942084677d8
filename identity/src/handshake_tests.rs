//! Handshakes in memory: both configurations against each other, and against peers that break the rules.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::server::ServerSessionMemoryCache;
use rustls::{
    ClientConfig, ClientConnection, Connection, HandshakeKind, NamedGroup, ProtocolVersion, ServerConfig,
    ServerConnection,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::test_pki::{Authority, Leaf, TRUST_DOMAIN, id, now};
use crate::{
    ALPN_H2, ALPN_HTTP1, ALPN_TCP, Credentials, Denial, DenyList, PeerError, Role, SpiffeId, Store, TrustBundle,
    client_config, peer_error, peer_failure, peer_leaf, refused_by_peer, server_config, version_unsupported,
};

fn store(root: &Authority, id: &SpiffeId) -> Arc<Store> {
    let store = Store::new(TRUST_DOMAIN.parse().unwrap());
    store.set_bundle(root.bundle());
    store.set(credentials(root, id));
    store
}

fn credentials(root: &Authority, id: &SpiffeId) -> Credentials {
    let leaf = Leaf::new(id.as_str()).issue(root);
    Credentials::new(vec![leaf.der.clone()], leaf.key()).unwrap()
}

/// Both ends after as many flights as it took, with the error of each, as tokio-rustls would give it.
struct Ends {
    client: Connection,
    server: Connection,
    client_error: Option<io::Error>,
    server_error: Option<io::Error>,
}

fn handshake(client: impl Into<Arc<ClientConfig>>, server: impl Into<Arc<ServerConfig>>) -> Ends {
    let name = ServerName::try_from("ignored.example").unwrap();
    let client = ClientConnection::new(client.into(), name).unwrap();
    let mut ends = Ends {
        client: Connection::Client(client),
        server: Connection::Server(ServerConnection::new(server.into()).unwrap()),
        client_error: None,
        server_error: None,
    };
    // Six flights are more than any handshake has; the last ones carry alerts.
    for _ in 0..6 {
        carry(&mut ends.client, &mut ends.server, &mut ends.server_error);
        carry(&mut ends.server, &mut ends.client, &mut ends.client_error);
    }
    ends
}

fn carry(from: &mut Connection, to: &mut Connection, error: &mut Option<io::Error>) {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() && error.is_none() {
        to.read_tls(&mut rest).unwrap();
        if let Err(failed) = to.process_new_packets() {
            *error = Some(io::Error::new(io::ErrorKind::InvalidData, failed));
        }
    }
}

#[test]
fn both_sides_prove_themselves_with_post_quantum_tls_1_3() {
    let root = Authority::root("root");
    let (web, db) = (id("demo", "web"), id("demo", "db"));
    let (web_store, db_store) = (store(&root, &web), store(&root, &db));
    let client = client_config(&web_store, &db, ALPN_HTTP1);
    let mut ends = handshake(client, server_config(&db_store, &[ALPN_H2, ALPN_HTTP1, ALPN_TCP]));
    assert!(ends.client_error.is_none() && ends.server_error.is_none());
    let bundles = [&web_store, &db_store].map(|store| store.bundle());
    let [of_web, of_db] = bundles.each_ref().map(Option::as_ref);
    assert_eq!(peer_leaf(&ends.client, &web_store, of_web, Role::Server).unwrap().id, db);
    assert_eq!(peer_leaf(&ends.server, &db_store, of_db, Role::Client).unwrap().id, web);
    for end in [&ends.client, &ends.server] {
        assert_eq!(end.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(end.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
        assert_eq!(end.alpn_protocol(), Some(ALPN_HTTP1));
    }
    let Connection::Server(server) = &ends.server else { panic!("made as a server") };
    assert_eq!(server.server_name(), None);
    ends.client.writer().write_all(b"hello").unwrap();
    carry(&mut ends.client, &mut ends.server, &mut ends.server_error);
    let mut read = [0; 5];
    ends.server.reader().read_exact(&mut read).unwrap();
    assert_eq!(&read, b"hello");
}

#[test]
fn another_identity_than_expected_is_refused_by_the_client_and_the_server_is_told() {
    let root = Authority::root("root");
    let (web, db, evil) = (id("demo", "web"), id("demo", "db"), id("demo", "evil"));
    let client = client_config(&store(&root, &web), &db, ALPN_TCP);
    let ends = handshake(client, server_config(&store(&root, &evil), &[ALPN_TCP]));
    let refused = PeerError::IdentityMismatch { expected: db, found: evil };
    assert_eq!(peer_failure(&ends.client_error.unwrap()), Some(&refused));
    let told = ends.server_error.unwrap();
    assert!(refused_by_peer(&told) && peer_failure(&told).is_none() && !version_unsupported(&told), "{told}");
}

#[test]
fn a_client_without_certificate_is_refused_and_told() {
    let root = Authority::root("root");
    let (web, db) = (id("demo", "web"), id("demo", "db"));
    let bare = Store::new(TRUST_DOMAIN.parse().unwrap());
    bare.set_bundle(root.bundle());
    let ends = handshake(client_config(&bare, &db, ALPN_TCP), server_config(&store(&root, &db), &[ALPN_TCP]));
    assert_eq!(peer_failure(&ends.server_error.unwrap()), Some(&PeerError::CertificateMissing));
    assert!(refused_by_peer(&ends.client_error.unwrap()));
    // The other way round: a server that has no certificate yet ends the handshake.
    let ends = handshake(client_config(&store(&root, &web), &db, ALPN_TCP), server_config(&bare, &[ALPN_TCP]));
    assert!(ends.server_error.is_some() && ends.client.is_handshaking());
}

#[test]
fn a_client_of_another_root_is_refused_by_the_server() {
    let (root, other) = (Authority::root("root"), Authority::root("root"));
    let (web, db) = (id("demo", "web"), id("demo", "db"));
    let stranger = store(&other, &web);
    stranger.set_bundle(root.bundle());
    let ends = handshake(client_config(&stranger, &db, ALPN_TCP), server_config(&store(&root, &db), &[ALPN_TCP]));
    assert!(matches!(peer_failure(&ends.server_error.unwrap()), Some(PeerError::Untrusted { .. })));
    assert!(refused_by_peer(&ends.client_error.unwrap()));
}

#[test]
fn without_roots_nobody_is_trusted_and_nobody_is_blamed() {
    let root = Authority::root("root");
    let db = id("demo", "db");
    let rootless = Store::new(TRUST_DOMAIN.parse().unwrap());
    rootless.set(credentials(&root, &id("demo", "web")));
    let ends = handshake(client_config(&rootless, &db, ALPN_TCP), server_config(&store(&root, &db), &[ALPN_TCP]));
    let error = ends.client_error.unwrap();
    assert!(peer_failure(&error).is_none() && !refused_by_peer(&error), "{error}");
}

/// A foreign TLS 1.2 peer that would accept anybody.
fn old_versions(root: &Authority) -> (ClientConfig, ServerConfig) {
    let leaf = Leaf::new(id("demo", "old").as_str()).issue(root);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.der()).unwrap();
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der.clone()], leaf.key())
        .unwrap();
    (client, server)
}

#[test]
fn tls_1_2_is_refused_by_name() {
    let root = Authority::root("root");
    let (web, db) = (id("demo", "web"), id("demo", "db"));
    let ends = handshake(old_versions(&root).0, server_config(&store(&root, &db), &[ALPN_TCP]));
    let error = ends.server_error.unwrap();
    assert!(version_unsupported(&error), "{error:?}");
    let ends = handshake(client_config(&store(&root, &web), &db, ALPN_TCP), old_versions(&root).1);
    let error = ends.client_error.unwrap();
    assert!(version_unsupported(&error) && !refused_by_peer(&error), "{error:?}");
}

#[test]
fn protocols_without_overlap_fail() {
    let root = Authority::root("root");
    let (web, db) = (id("demo", "web"), id("demo", "db"));
    let ends = handshake(
        client_config(&store(&root, &web), &db, ALPN_TCP),
        server_config(&store(&root, &db), &[ALPN_H2, ALPN_HTTP1]),
    );
    assert!(ends.server_error.is_some() && ends.client_error.is_some());
    assert!(!refused_by_peer(&ends.client_error.unwrap()));
}

#[test]
fn renewed_certificates_and_roots_reach_the_next_handshake_of_the_same_configuration() {
    let (old, new) = (Authority::root("old"), Authority::root("new"));
    let (web, db) = (id("demo", "web"), id("demo", "db"));
    let (web_store, db_store) = (store(&old, &web), store(&old, &db));
    let client = client_config(&web_store, &db, ALPN_TCP);
    let server = server_config(&db_store, &[ALPN_TCP]);
    assert!(handshake(client.clone(), server.clone()).server_error.is_none());
    let before = (web_store.generation(), db_store.generation());
    for (store, id) in [(&web_store, &web), (&db_store, &db)] {
        store.set(credentials(&new, id));
        store.set_bundle(new.bundle());
    }
    assert_eq!((web_store.generation(), db_store.generation()), (before.0 + 2, before.1 + 2));
    let ends = handshake(client.clone(), server.clone());
    assert!(ends.client_error.is_none() && ends.server_error.is_none());
    let shown = ends.client.peer_certificates().unwrap()[0].clone();
    assert_eq!(shown, db_store.current().unwrap().certified_key.cert[0]);
    // Nothing is resumed: with the old roots gone, an old certificate is refused at once.
    db_store.set(credentials(&old, &db));
    let ends = handshake(client, server);
    let error = ends.client_error.unwrap();
    assert!(matches!(peer_failure(&error), Some(PeerError::Untrusted { .. })));
}

#[test]
fn credentials_know_themselves() {
    let root = Authority::root("root");
    let issuer = root.issuer("issuer", |_| ());
    let web = id("demo", "web");
    let leaf = Leaf::new(web.as_str()).issue(&issuer);
    let pem = format!("{}{}{}", leaf.pem, issuer.pem(), root.pem());
    let credentials = Credentials::from_pem(pem.as_bytes(), leaf.key()).unwrap();
    assert_eq!(credentials.id, web);
    assert_eq!(credentials.certified_key.cert, [leaf.der.clone(), issuer.der()]);
    assert!(credentials.not_before < now() && now() < credentials.not_after);
    assert!(!credentials.serial.is_empty() && !format!("{credentials:?}").to_lowercase().contains("key"));
    let domain = TRUST_DOMAIN.parse().unwrap();
    credentials.verify(&root.bundle(), &domain, now()).unwrap();
    let other = Authority::root("other");
    assert!(credentials.verify(&other.bundle(), &domain, now()).is_err());
    let wrong_key = Leaf::new(web.as_str()).issue(&issuer).key();
    assert!(Credentials::new(vec![leaf.der.clone()], wrong_key).is_err());
    assert!(Credentials::new(Vec::new(), leaf.key()).is_err());
    let no_key = PrivateKeyDer::try_from(vec![0x30, 0]);
    assert!(no_key.is_err() || Credentials::new(vec![leaf.der.clone()], no_key.unwrap()).is_err());
    assert!(Credentials::new(vec![CertificateDer::from(vec![1, 2, 3])], leaf.key()).is_err());
}

#[test]
fn other_errors_name_no_peer() {
    let error = rustls::Error::General("something else".into());
    assert!(peer_error(&error).is_none());
    let error = io::Error::from(io::ErrorKind::ConnectionReset);
    assert!(peer_failure(&error).is_none() && !refused_by_peer(&error) && !version_unsupported(&error));
}

#[test]
fn who_is_denied_is_refused_from_the_next_handshake_on() {
    let root = Authority::root("root");
    let (web, db) = (id("demo", "web"), id("demo", "db"));
    let (web_store, db_store) = (store(&root, &web), store(&root, &db));
    let client = client_config(&web_store, &db, ALPN_TCP);
    let server = server_config(&db_store, &[ALPN_TCP]);
    let shake = || handshake(client.clone(), server.clone());
    let ends = shake();
    let leaf = peer_leaf(&ends.server, &db_store, db_store.bundle().as_ref(), Role::Client).unwrap();
    let &[root_key] = &*leaf.above_sha256 else { panic!("a leaf right under its root: {leaf:?}") };
    let keys = [leaf.key_sha256, root_key].map(Denial::Key);
    for denial in [Denial::Serial(leaf.serial), Denial::Identity(web.clone())].into_iter().chain(keys) {
        db_store.set_denied(Arc::new(DenyList::new([denial.clone()]).unwrap()));
        let refused = PeerError::Denied { id: web.clone(), denial };
        assert_eq!(peer_failure(&shake().server_error.unwrap()), Some(&refused));
    }
    db_store.set_denied(Arc::default());
    assert!(shake().server_error.is_none());
}

#[test]
fn who_was_verified_by_roots_that_are_replaced_before_the_end_of_the_handshake_is_verified_again() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let (web, db) = (id("demo", "web"), id("demo", "db"));
    let (web_store, db_store) = (store(&root, &web), store(&root, &db));
    // With a certificate that has nothing to do with it, and names a root that stays.
    let leaf = Leaf::new(web.as_str()).issue(&root);
    let unrelated = other.issuer("unrelated", |_| ());
    web_store.set(Credentials::new(vec![leaf.der.clone(), unrelated.der()], leaf.key()).unwrap());
    let before = db_store.bundle();
    let ends = handshake(client_config(&web_store, &db, ALPN_TCP), server_config(&db_store, &[ALPN_TCP]));
    assert!(ends.server_error.is_none());
    let leaf = || peer_leaf(&ends.server, &db_store, before.as_ref(), Role::Client);
    let first = leaf().unwrap();
    let both = || TrustBundle::from_pem(format!("{}{}", root.pem(), other.pem()).as_bytes()).unwrap();
    db_store.set_bundle(both());
    assert_eq!(leaf().unwrap().id, first.id, "a root that joins changes nothing");
    // However many generations pass.
    for _ in 0..2 {
        db_store.set_bundle(other.bundle());
        assert!(matches!(leaf(), Err(PeerError::Untrusted { .. })));
    }
}

/// Our configurations, and the same with a store for what can be resumed: what somebody else's side would do.
#[test]
fn no_ticket_is_sent_and_none_is_taken() {
    let root = Authority::root("root");
    let (web, shop) = (id("demo", "web"), id("demo", "shop"));
    let client = client_config(&store(&root, &shop), &web, ALPN_H2);
    let server = server_config(&store(&root, &web), &[ALPN_H2]);
    let mut willing_client = client.clone();
    willing_client.resumption = Resumption::in_memory_sessions(8);
    let mut willing_server = server.clone();
    willing_server.session_storage = ServerSessionMemoryCache::new(8);
    willing_server.send_tls13_tickets = 2;
    let [client, willing_client] = [client, willing_client].map(Arc::new);
    let [server, willing_server] = [server, willing_server].map(Arc::new);
    for (client, server, tickets, again) in [
        (&client, &server, 0, HandshakeKind::Full),
        (&willing_client, &server, 0, HandshakeKind::Full),
        // A ticket that comes is not kept.
        (&client, &willing_server, 2, HandshakeKind::Full),
        (&willing_client, &willing_server, 2, HandshakeKind::Resumed),
        // What the other server gave, ours does not take.
        (&willing_client, &server, 0, HandshakeKind::Full),
    ] {
        let [first, second] = [(), ()].map(|()| handshake(Arc::clone(client), Arc::clone(server)));
        assert!(first.client_error.is_none() && first.server_error.is_none());
        for ends in [&first, &second] {
            let Connection::Client(client) = &ends.client else { unreachable!() };
            assert_eq!(client.tls13_tickets_received(), tickets);
        }
        assert_eq!(second.client.handshake_kind(), Some(again));
        assert_eq!(second.server.handshake_kind(), Some(again));
    }
}
