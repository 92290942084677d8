//! Clocks that moved: what has ended is replaced where that is safe, and where a person must judge, what the guide says
//! works (docs/guide/certificates.md, "Everything has ended").

use std::process::Command;

use crate::support::proxy::{Proxy, channel, store};
use crate::support::{DOMAIN, PROGRAM, Place, Running, ask, command, free_address, status, until, until_async};

const CONFIG: &str = "leafLifetime: 1h\nrotation: {absenceWindow: 1s}";

/// The program with another clock; timers go on as ever. Not by the command of the same name, which stays between us and
/// the program and does not pass on that it was killed.
fn at_another_time(offset: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    // The loader knows what $LIB is on this system.
    command.env("LD_PRELOAD", "/usr/$LIB/faketime/libfaketime.so.1");
    command.env("FAKETIME", offset).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    command
}

/// An authority that was made so long ago.
fn made(name: &str, ago: &str) -> Place {
    let place = Place::empty(name);
    let mut init = at_another_time(ago);
    let output = init.arg("init").arg("--dir").arg(place.dir()).args(["--trust-domain", DOMAIN]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let age = ca::tend::now() - place.state().issuers[0].created;
    assert!(age > 86_400, "libfaketime is needed: the clock was not another one");
    place
}

#[tokio::test]
async fn an_issuer_that_ended_is_replaced_by_itself() {
    let place = made("issuer-ended", "-400d");
    let ended = place.state();
    let running = Running::start(&place.config("ca", "127.0.0.1:0", CONFIG), &[]);
    until("a new issuer", || (place.state().signing().id != ended.signing().id).then_some(()));
    let state = place.state();
    assert_eq!(state.roots, ended.roots, "nobody needs another bundle");
    let proxy = Proxy::start(&place, &[running.address], "web-0").await;
    assert_eq!(proxy.mine().issuer, state.signing().sha256.0);
}

#[tokio::test]
async fn a_root_that_ends_in_some_years_is_replaced_by_itself() {
    let place = made("root-ending", "-3000d");
    let first = place.state().signing_root().id;
    let _running = Running::start(&place.config("ca", "127.0.0.1:0", CONFIG), &[]);
    let replaced = || {
        let state = place.state();
        (state.signing_root().id != first && state.rotation.is_some()).then_some(state)
    };
    let state = until("a new root to sign", replaced);
    assert_eq!(state.roots.len(), 2, "the old one stays while a leaf under it may be valid");
}

#[tokio::test]
async fn everything_has_ended_and_the_guide_leads_out() {
    let place = made("all-ended", "-4000d");
    let (address, old_bundle) = (free_address(), place.root());
    let running = Running::start(&place.config("ca", &address.to_string(), CONFIG), &[]);
    let socket = place.socket("ca");
    // It says what ended when, and what the clock says; and does nothing by itself: the clock may be wrong.
    for alert in ["issuer_ending", "root_ending"] {
        let line = running.said(alert);
        assert!(line.contains("ended 20") && line.contains("this machine's clock says 20"), "{line}");
    }
    let (code, reason) = ask(&socket, "GET", "/readyz", "").unwrap();
    assert!(code == 503 && reason.contains("the issuer's certificate ended"), "{code} {reason}");
    assert!(channel(address, &store(&old_bundle)).await.is_err(), "nobody can connect");
    let proxy = Proxy::spawn(&place, &[address], "before");
    assert_eq!(place.state().generation, 1);
    let (code, reason) = ask(&socket, "POST", "/certs/rotate", r#"{"what":"issuer"}"#).unwrap();
    assert!(code == 409 && reason.contains("root 1 has ended"), "{code} {reason}");

    // The guide: look at the clock, rotate the root, give the new bundle's file to the proxies.
    command(&socket, "/certs/rotate", r#"{"what":"root"}"#);
    let done = || {
        let state = place.state();
        (state.rotation.is_none() && place.root() == state.bundle_pem()).then_some(())
    };
    until_async("the new root alone", done).await;
    assert_eq!((place.state().roots.len(), status(&socket).unwrap().roots[0].id), (1, 3));
    until_async("readiness", || (ask(&socket, "GET", "/readyz", "").unwrap().0 == 200).then_some(())).await;
    running.said("alert resolved");
    assert_eq!(proxy.generation(), 0, "it has the old bundle only");
    let proxy = Proxy::start(&place, &[address], "after").await;
    assert_eq!(proxy.mine().issuer, place.state().signing().sha256.0);
    proxy.shake(&proxy).await.unwrap();
}

#[tokio::test]
async fn a_clock_far_in_the_future_changes_nothing_by_itself() {
    let place = Place::new("future");
    let config = place.config("ca", "127.0.0.1:0", CONFIG);
    let running = Running::spawn(at_another_time("+4000d"), &config, &[]);
    let line = running.said("root_ending");
    assert!(line.contains("root 1 ended") && line.contains("this machine's clock says"), "{line}");
    running.said("listening");
    drop(running);
    assert_eq!(place.state().generation, 1);
    // With the right clock again, nothing was lost.
    let running = Running::start(&config, &[]);
    Proxy::start(&place, &[running.address], "web-0").await;
}
