//! Whole rotations of the real program, with proxies that shake hands all the while.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
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

pub(crate) async fn root_and_issuer_rotate_without_a_failed_handshake() {
    let place = Place::new("rotate");
    let address = free_address();
    let _running = Running::start(&fast(&place, "ca", address), &[]);
    let socket = place.socket("ca");
    let proxies = proxies(&place, address, &["a", "b", "c"]).await;
    let handshakes = Handshakes::start(&proxies, Duration::from_millis(100));
    let first = place.state().signing_root().id;

    command(&socket, "/certs/rotate", r#"{"what":"issuer"}"#);
    let issuer = place.state().signing().sha256;
    let renewed = || proxies.iter().all(|proxy| proxy.mine().issuer == issuer.0).then_some(());
    until_async("everybody has a certificate of the new issuer", renewed).await;

    let old_leaf = proxies[0].mine().chain;
    let begun = command(&socket, "/certs/rotate", r#"{"what":"root"}"#).rotation.unwrap();
    assert_eq!((begun.stage.as_str(), begun.from), ("distribute", first));
    until_async("the new root signs", || (place.state().rotation?.stage == Stage::Sign).then_some(())).await;
    let state = place.state();
    assert_eq!(state.roots.iter().map(|root| root.r#use).collect::<Vec<_>>(), [RootUse::Old, RootUse::Signing]);
    let waits = status(&socket).unwrap().rotation.unwrap().waits;
    assert!(waits.iter().any(|wait| wait.kind == "leaves"), "{waits:?}");
    let renewed = || proxies.iter().all(|proxy| proxy.mine().issuer == state.signing().sha256.0).then_some(());
    until_async("everybody has a certificate under the new root", renewed).await;
    // In the middle of it both are good, in the eyes of openssl as well.
    for chain in [&old_leaf, &proxies[0].mine().chain] {
        assert!(verify(&place, chain), "with both roots");
    }
    let gone = || {
        let state = place.state();
        (state.rotation.is_none() && place.root() == state.bundle_pem()).then_some(())
    };
    until_async("the old root is gone", gone).await;

    let state = place.state();
    assert_eq!((state.roots.len(), state.last_rotation.unwrap().outcome), (1, Outcome::RootRotated));
    assert_ne!(state.signing_root().id, first);
    until_async("everybody has the last bundle", || proxies.iter().all(|proxy| proxy.roots() == 1).then_some(())).await;
    handshakes.check(proxies.len()).await;
    for proxy in proxies.iter() {
        assert!(verify(&place, &proxy.mine().chain));
    }
    assert!(!verify(&place, &old_leaf), "nobody trusts the old root");
    look_at_the_text(&place, &proxies[0].mine().chain);
}

/// What openssl thinks of a chain, with the bundle's file of the moment.
fn verify(place: &Place, chain: &[String]) -> bool {
    let (leaf, issuer) = (place.write("leaf.pem", &chain[0]), place.write("above.pem", &chain[1]));
    // An old leaf may have ended while we looked: that is not what is asked here.
    let mut openssl = Command::new("openssl");
    openssl.args(["verify", "-x509_strict", "-no_check_time", "-CAfile"]).arg(place.dir().join("root.pem"));
    openssl.arg("-untrusted").arg(issuer).arg(leaf).output().unwrap().status.success()
}

fn look_at_the_text(place: &Place, chain: &[String]) {
    let text = |name: &str, pem: &str| {
        let file = place.write(name, pem);
        openssl(&["x509", "-noout", "-text", "-in", file.to_str().unwrap()])
    };
    let [leaf, issuer, root] = chain else { panic!("{} certificates", chain.len()) };
    let state = place.state();
    let (signing, above) = (state.signing(), state.signing_root());
    let expected = [
        (text("leaf", leaf), "CA:FALSE".into(), "URI:spiffe://demo.picket.dev/ns/demo/sa/web".into()),
        (text("issuer", issuer), "CA:TRUE, pathlen:0".to_owned(), format!("CN = Picket issuer {}", signing.id)),
        (text("root", root), "CA:TRUE, pathlen:1".to_owned(), format!("CN = Picket root {}", above.id)),
    ];
    for (text, constraints, name) in &expected {
        assert!(text.contains(constraints) && text.contains(name), "{constraints} {name}\n{text}");
    }
    for (text, ..) in &expected[1..] {
        assert!(text.contains("X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign"), "{text}");
    }
    let shown = |pem: &str| {
        openssl(&["x509", "-noout", "-fingerprint", "-sha256", "-in", place.write("x", pem).to_str().unwrap()])
    };
    let digest = |line: String| line.split_once('=').unwrap().1.trim().replace(':', "").to_lowercase();
    assert_eq!((digest(shown(issuer)), digest(shown(root))), (signing.sha256.to_string(), above.sha256.to_string()));
}

pub(crate) async fn three_rotations_of_each_kind_in_a_row() {
    let place = Place::new("in-a-row");
    let address = free_address();
    let _running = Running::start(&fast(&place, "ca", address), &[]);
    let socket = place.socket("ca");
    let proxies = proxies(&place, address, &["a", "b", "c"]).await;
    let handshakes = Handshakes::start(&proxies, Duration::from_millis(100));
    for round in 1..=3 {
        command(&socket, "/certs/rotate", r#"{"what":"issuer"}"#);
        command(&socket, "/certs/rotate", r#"{"what":"root"}"#);
        until_async(&format!("the end of round {round}"), || place.state().rotation.is_none().then_some(())).await;
    }
    let state = place.state();
    let settled = || {
        let shows = |proxy: &Proxy| proxy.mine().issuer == state.signing().sha256.0 && proxy.roots() == 1;
        proxies.iter().all(shows).then_some(())
    };
    until_async("everybody to show the newest", settled).await;
    handshakes.check(proxies.len()).await;
}

pub(crate) async fn issuers_rotate_by_themselves() {
    let place = Place::new("by-itself");
    let address = free_address();
    let config = format!("{FAST}\nissuer: {{lifetime: 20s, rotateAtPercent: 30}}");
    // The first issuer is made with these settings, too: by the program, in an empty directory with a token key.
    for name in ["state.json", "root.pem", "issuer.pem", "root-1-key.pem", "issuer-2-key.pem"] {
        std::fs::remove_file(place.dir().join(name)).unwrap();
    }
    let _running = Running::start(&place.config("ca", &address.to_string(), &config), &[]);
    let proxies = proxies(&place, address, &["a", "b"]).await;
    let handshakes = Handshakes::start(&proxies, Duration::from_millis(100));
    let first = place.state();
    for round in 1..=2 {
        let before = place.state().signing().id;
        let next = || (place.state().signing().id != before).then_some(());
        until_async(&format!("issuer {round} after the first"), next).await;
        let issuer = place.state().signing().sha256;
        let shown = || proxies.iter().all(|proxy| proxy.mine().issuer == issuer.0).then_some(());
        until_async("everybody to show it", shown).await;
    }
    assert_eq!(place.state().roots, first.roots);
    handshakes.check(proxies.len()).await;
}
