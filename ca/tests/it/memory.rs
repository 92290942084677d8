//! What a proxy that follows costs the authority, all in all, and that nothing grows with the changes.

use std::time::Duration;

use api::trust::Status;
use ca::token::{Claim, TokenKey};

use crate::support::proxy::{open, store, unix_nanos};
use crate::support::{Place, command, status, until_async};

/// The contract: of memory that is its own (RssAnon), all in all.
const BYTES_MAX: u64 = 2 << 10;
/// Measured over so many proxies, each with a name of its own as in a cluster; the tokens that are remembered are the same
/// number before and after.
const PROXIES: [usize; 2] = [600, 2600];
/// Changes that fill buffers of every size in every thread for the first time, and as many after which nothing more stays.
const CHANGES: usize = 10;

fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn uses(generation: u64) -> Status {
    Status {
        generation,
        time_unix_nanos: unix_nanos(),
        certificate_serial: "f".repeat(32),
        issuer_sha256: vec![7; 32],
        certificate_not_after: unix_nanos() / 1_000_000_000 + 3600,
        ..Status::default()
    }
}

/// Tokens as Kubernetes makes them: names and uids of pods in their usual length.
fn token(key: &TokenKey, pod: usize) -> String {
    let claim = Claim {
        issuer: "https://kubernetes.default.svc.cluster.local",
        audience: "picket-ca",
        namespace: "demo",
        service_account: "web",
        pod: Some(&format!("some-deployment-{pod:010}-abcde")),
        pod_uid: Some(&format!("00000000-0000-4000-8000-{pod:012}")),
        issued: u64::try_from(unix_nanos() / 1_000_000_000).unwrap(),
        lifetime: Duration::from_secs(3600),
    };
    key.issue(&claim).unwrap()
}

#[tokio::test]
async fn a_proxy_that_follows_costs_two_kib_and_changes_cost_nothing_that_stays() {
    let place = Place::new("memory");
    let running = place.start();
    let (socket, store) = (place.socket("ca"), store(&place.root()));
    let key = TokenKey::from_pem(std::fs::read_to_string(place.dir().join("token-key.pem")).unwrap()).unwrap();
    let (mut streams, mut sizes) = (Vec::new(), Vec::new());
    for count in PROXIES {
        while streams.len() < count {
            let stream = open(running.address, &store, &token(&key, streams.len()), uses(0)).await.unwrap();
            let (say, mut bundles) = testkit::follow(stream);
            let bundle = bundles.message().await.unwrap().unwrap();
            say.send(uses(bundle.generation)).await.unwrap();
            streams.push((say, bundles));
        }
        let all = || {
            let proxies = status(&socket)?.proxies;
            (proxies.connected == count && proxies.behind == 0).then_some(())
        };
        until_async("all to be heard", all).await;
        sizes.push(resident_bytes(running.pid()));
    }
    let each = sizes[1].saturating_sub(sizes[0]) / u64::try_from(PROXIES[1] - PROXIES[0]).unwrap();
    println!("{each} bytes for each proxy: {sizes:?}");
    assert!(each <= BYTES_MAX, "{each} bytes for each proxy: {sizes:?}");
    for round in 0..2 * CHANGES {
        command(&socket, "/certs/deny", &format!(r#"{{"subject":{{"serial":"{round}"}}}}"#));
        for (say, bundles) in &mut streams {
            let bundle = bundles.message().await.unwrap().unwrap();
            say.send(uses(bundle.generation)).await.unwrap();
        }
        until_async("all to be heard", || (status(&socket)?.proxies.behind == 0).then_some(())).await;
        sizes.push(resident_bytes(running.pid()));
    }
    println!("{sizes:?}");
    let (filled, last) = (sizes[1 + CHANGES], sizes[1 + 2 * CHANGES]);
    assert!(last < filled + filled / 20, "it grows with each change: {sizes:?}");
    let each = last.saturating_sub(sizes[0]) / u64::try_from(PROXIES[1] - PROXIES[0]).unwrap();
    assert!(each <= BYTES_MAX, "{each} bytes for each proxy after the changes: {sizes:?}");
}
