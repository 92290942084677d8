//! Whole rotations of the real program, with proxies that shake hands all the while.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ca::state::{Outcome, RootUse, Stage};

use crate::support::proxy::{Handshakes, Proxy};
use crate::support::{Place, Running, command, free_address, openssl, status, until_async};

/// As fast as rotations can be: leaves of ten seconds.
const FAST: &str = "leafLifetime: 10s\nrenewWithin: 1s\nrotation: {absenceWindow: 1s}";

fn fast(place: &Place, instance: &str, address: SocketAddr) -> PathBuf {
    place.config(instance, &address.to_string(), FAST)
}

async fn proxies(place: &Place, address: SocketAddr, names: &[&str]) -> Arc<Vec<Proxy>> {
    let mut proxies = Vec::new();
    for name in names {
        proxies.push(Proxy::start(place, &[address], name).await);
    }
    Arc::new(proxies)
}

#[tokio::test]
async fn root_and_issuer_rotate_without_a_failed_handshake() {
    let place = Place::new("rotate");
    let address = free_address();
    let _running = Running::start(&fast(&place, "ca", address), &[]);
    let socket = place.socket("ca");
    let proxies = proxies(&place, address, &["a", "b", "c"]).await;
    let handshakes = Handshakes::start(&proxies, Duration::from_millis(20));
    let first = place.state().signing_root().id;

    command(&socket, "/certs/rotate", r#"{"what":"issuer"}"#);
    let issuer = place.state().signing().sha256;
    let renewed = || proxies.iter().all(|proxy| proxy.mine().issuer == issuer.0).then_some(());
    until_async("everybody has a certificate of the new issuer", renewed).await;

    let begun = command(&socket, "/certs/rotate", r#"{"what":"root"}"#).rotation.unwrap();
    assert_eq!((begun.stage.as_str(), begun.from), ("distribute", first));
    until_async("the new root signs", || (place.state().rotation?.stage == Stage::Sign).then_some(())).await;
    let state = place.state();
    assert_eq!(state.roots.iter().map(|root| root.r#use).collect::<Vec<_>>(), [RootUse::Old, RootUse::Signing]);
    let waits = status(&socket).unwrap().rotation.unwrap().waits;
    assert!(waits.iter().any(|wait| wait.kind == "leaves"), "{waits:?}");
    until_async("the old root is gone", || place.state().rotation.is_none().then_some(())).await;

    let state = place.state();
    assert_eq!((state.roots.len(), state.last_rotation.unwrap().outcome), (1, Outcome::RootRotated));
    assert_ne!(state.signing_root().id, first);
    until_async("everybody has the last bundle", || proxies.iter().all(|proxy| proxy.roots() == 1).then_some(())).await;
    handshakes.check(proxies.len()).await;
    for proxy in proxies.iter() {
        let leaf = place.write("leaf.pem", &proxy.mine().chain[0]);
        let issuer = place.write("above.pem", &proxy.mine().chain[1]);
        let root = place.dir().join("root.pem");
        let [leaf, issuer, root] = [&leaf, &issuer, &root].map(|path| path.to_str().unwrap());
        assert!(openssl(&["verify", "-x509_strict", "-CAfile", root, "-untrusted", issuer, leaf]).contains("OK"));
    }
}
