//! Several processes on one directory: one rotates, all sign, and the death of any of them is no event for proxies.

use std::sync::Arc;
use std::time::Duration;

use ca::state::Stage;

use crate::support::proxy::{Handshakes, Proxy};
use crate::support::{Place, Running, command, free_address, status, until, until_async};

const FAST: &str = "leafLifetime: 10s\nrenewWithin: 1s\nrotation: {absenceWindow: 3s}";

pub(crate) async fn a_dead_leader_is_replaced_in_the_middle_of_a_rotation() {
    let place = Place::new("several");
    let addresses = [free_address(), free_address()];
    let start = |name: &str, at: usize| Running::start(&place.config(name, &addresses[at].to_string(), FAST), &[]);
    let mut one = start("one", 0);
    until("the first to lead", || status(&place.socket("one"))?.process.leader.then_some(()));
    let two = start("two", 1);
    assert!(!status(&place.socket("two")).unwrap().process.leader);
    // One proxy at each, and one at whichever answers.
    let proxies = Arc::new(vec![
        Proxy::start(&place, &addresses[..1], "at-one").await,
        Proxy::start(&place, &addresses[1..], "at-two").await,
        Proxy::start(&place, &addresses, "at-any").await,
    ]);
    for running in [&one, &two] {
        until_async("both sign", || running.try_line("certificate issued")).await;
    }
    let everybody = || {
        let told = ["one", "two"].map(|name| status(&place.socket(name)).map(|status| status.proxies.connected));
        (told == [Some(3), Some(3)]).then_some(())
    };
    until_async("each process knows the proxies of both", everybody).await;
    let handshakes = Handshakes::start(&proxies, Duration::from_millis(100));

    // Through the one that does not lead; the proxy that is behind is at the one that does.
    proxies[0].set_deaf(true);
    command(&place.socket("two"), "/certs/rotate", r#"{"what":"root"}"#);
    let ready = || (proxies[1].roots() == 2 && proxies[2].roots() == 2).then_some(());
    until_async("the others have both roots", ready).await;
    one.signal("KILL");
    until_async("the kill", || one.ended()).await;
    until_async("the second leads", || status(&place.socket("two"))?.process.leader.then_some(())).await;
    let held_up = || {
        let waits = status(&place.socket("two"))?.rotation?.waits;
        waits.iter().any(|wait| wait.proxy.as_deref().is_some_and(|proxy| proxy.contains("at-one"))).then_some(())
    };
    until_async("the proxy of the dead one is waited for", held_up).await;
    assert_eq!(place.state().rotation.unwrap().stage, Stage::Distribute);
    proxies[0].set_deaf(false);
    let one = start("one", 0);
    until_async("the new root signs", || (place.state().rotation?.stage == Stage::Sign).then_some(())).await;
    until_async("it comes to its end", || place.state().rotation.is_none().then_some(())).await;
    assert!(!status(&place.socket("one")).unwrap().process.leader);
    let newest = place.state().signing().sha256;
    let shown = || proxies.iter().all(|proxy| proxy.mine().issuer == newest.0 && proxy.roots() == 1).then_some(());
    until_async("all show the newest issuer, whoever signed", shown).await;
    handshakes.check(proxies.len()).await;
    drop(one);
}

#[test]
fn a_socket_that_answers_is_not_taken_away() {
    let place = Place::new("socket");
    let _running = place.start();
    let config = place.config("ca", "127.0.0.1:0", "");
    let output = std::process::Command::new(crate::support::PROGRAM).arg("run").arg("--config").arg(config).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("give each its own admin.socket"));
    assert!(status(&place.socket("ca")).is_some());
}
