//! The authority is killed at every boundary of every change, and comes back: nothing is lost, nothing is half done, and
//! the proxies do not notice.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::Duration;

use ca::state::{Outcome, Stage};

use crate::support::proxy::{Handshakes, Proxy};
use crate::support::{Place, Running, ask, command, free_address, runtime, until, until_async};

const CONFIG: &str = "leafLifetime: 10s\nrenewWithin: 1s\nrotation: {absenceWindow: 1s}";

/// What brings the change about, once the proxies are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trigger {
    /// A root rotation, at whatever point of it the program dies.
    RotateRoot,
    RotateIssuer,
    /// A root rotation up to its second stage, then back.
    RollBack,
    /// A root rotation up to its second stage and until all proxies have renewed, then the old root is dropped.
    DropRoot,
    Deny,
}

const PLACES: [&str; 4] = ["before", "keys", "state", "files"];
const CHANGES: [(&str, Trigger); 7] = [
    ("begin", Trigger::RotateRoot),
    ("sign", Trigger::RotateRoot),
    ("drop", Trigger::RotateRoot),
    ("issuer", Trigger::RotateIssuer),
    ("rollback", Trigger::RollBack),
    ("drop-root", Trigger::DropRoot),
    ("deny", Trigger::Deny),
];

#[test]
fn a_kill_at_any_boundary_loses_nothing() {
    std::thread::scope(|scope| {
        for (change, trigger) in CHANGES {
            for at in PLACES {
                scope.spawn(move || runtime().block_on(killed(change, at, trigger)));
            }
        }
    });
}

async fn killed(change: &str, at: &str, trigger: Trigger) {
    let name = format!("{change}-{at}");
    let (place, address) = (Place::new(&format!("fault-{name}")), free_address());
    let config = place.config("ca", &address.to_string(), CONFIG);
    let socket = place.socket("ca");
    let mut running = Running::start(&config, &[("PICKET_FAULT_POINT", &format!("{change}:{at}"))]);
    let proxies =
        Arc::new(vec![Proxy::start(&place, &[address], "a").await, Proxy::start(&place, &[address], "b").await]);
    let handshakes = Handshakes::start(&proxies, Duration::from_millis(500));
    let before = place.state();
    let pull = |path: &str, body: &str| {
        // When it dies of it, nobody answers.
        let _answer = ask(&socket, "POST", path, body);
    };
    match trigger {
        Trigger::RotateRoot => pull("/certs/rotate", r#"{"what":"root"}"#),
        Trigger::RotateIssuer => pull("/certs/rotate", r#"{"what":"issuer"}"#),
        Trigger::RollBack => {
            command(&socket, "/certs/rotate", r#"{"what":"root"}"#);
            let signs = || (place.state().rotation?.stage == Stage::Sign).then_some(());
            until_async(&format!("{name}: the new root signs"), signs).await;
            pull("/certs/rollback", "");
        }
        Trigger::DropRoot => {
            command(&socket, "/certs/rotate", r#"{"what":"root"}"#);
            let renewed = || {
                let state = place.state();
                let shows = |proxy: &Proxy| proxy.mine().issuer == state.signing().sha256.0;
                (state.rotation.as_ref()?.stage == Stage::Sign && proxies.iter().all(shows)).then_some(())
            };
            until_async(&format!("{name}: the new root signs for all"), renewed).await;
            let old = before.signing_root().sha256;
            pull("/certs/drop", &format!(r#"{{"root":"{old}","override":true}}"#));
        }
        Trigger::Deny => pull("/certs/deny", r#"{"subject":{"podUid":"x"}}"#),
    }
    let ended = until_async(&format!("{name}: the kill"), || running.ended()).await;
    assert_eq!(ended.signal(), Some(9), "{name}");

    // Whole, as it was or as it will be: the reader checks that one root and one issuer sign.
    let at_death = place.state();
    let in_force = ["state", "files"].contains(&at);
    let _running = Running::start(&config, &[]);
    match trigger {
        Trigger::RotateRoot => {
            if change == "begin" && !in_force {
                assert_eq!(at_death, before, "{name}");
                command(&socket, "/certs/rotate", r#"{"what":"root"}"#);
            }
            finished(&place, &name, Outcome::RootRotated).await;
            assert_ne!(place.state().signing_root().id, before.signing_root().id, "{name}");
        }
        Trigger::RotateIssuer => {
            let changed = at_death.signing().id != before.signing().id;
            assert_eq!(changed, in_force, "{name}");
        }
        Trigger::RollBack => {
            finished(&place, &name, if in_force { Outcome::RootRolledBack } else { Outcome::RootRotated }).await;
            let back = place.state().signing_root().id == before.signing_root().id;
            assert_eq!(back, in_force, "{name}");
        }
        Trigger::DropRoot => {
            assert_eq!(at_death.roots.len(), if in_force { 1 } else { 2 }, "{name}");
            finished(&place, &name, if in_force { Outcome::RootDropped } else { Outcome::RootRotated }).await;
        }
        Trigger::Deny => assert_eq!(at_death.denied.len(), usize::from(in_force), "{name}"),
    }
    let state = place.state();
    let settled = || {
        let shows = |proxy: &Proxy| proxy.mine().issuer == state.signing().sha256.0;
        proxies.iter().all(|proxy| proxy.roots() == 1 && shows(proxy)).then_some(())
    };
    until_async(&format!("{name}: all proxies have the end of it"), settled).await;
    handshakes.check(proxies.len()).await;
    let only_what_is_needed = || {
        let names = std::fs::read_dir(place.dir()).unwrap().map(|entry| entry.unwrap().file_name());
        let keys = names
            .filter_map(|name| name.into_string().ok())
            .filter(|name| name.ends_with("-key.pem") && name != "token-key.pem");
        let state = place.state();
        let mut needed: Vec<_> = state.key_files().map(str::to_owned).collect();
        let mut found: Vec<_> = keys.collect();
        needed.sort();
        found.sort();
        (needed == found && place.root() == state.bundle_pem()).then_some(())
    };
    until(&format!("{name}: the directory holds what is needed and nothing else"), only_what_is_needed);
}

async fn finished(place: &Place, name: &str, outcome: Outcome) {
    let done = || {
        let state = place.state();
        (state.rotation.is_none() && state.last_rotation?.outcome == outcome).then_some(())
    };
    until_async(&format!("{name}: {outcome:?}"), done).await;
}
