//! What a proxy that follows costs the authority, all in all: TLS and HTTP/2 have their buffers, ours is little beside
//! them (`followers` has a test of that), and nothing grows with the changes.

use api::trust::Status;
use api::trust::trust_bundle_service_client::TrustBundleServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::proxy::{channel, store, unix_nanos, with_token};
use crate::support::{Place, command, status, until_async};

/// Measured: 37 KiB, of which h2 keeps 24 for reading and writing and rustls 4.
const BYTES_MAX: u64 = 48 << 10;

fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn uses(generation: u64) -> Status {
    Status { generation, time_unix_nanos: unix_nanos(), ..Status::default() }
}

#[tokio::test]
async fn a_proxy_that_follows_costs_some_buffers_and_changes_cost_nothing_that_stays() {
    let place = Place::new("memory");
    let running = place.start();
    let (socket, store) = (place.socket("ca"), store(&place.root()));
    let (mut streams, mut sizes) = (Vec::new(), Vec::new());
    let token = place.pod_token("web-0");
    for count in [100, 600] {
        while streams.len() < count {
            let channel = channel(running.address, &store).await.unwrap();
            let (say, said) = mpsc::channel(4);
            say.send(uses(0)).await.unwrap();
            let call = with_token(ReceiverStream::new(said), &token);
            let mut bundles = TrustBundleServiceClient::new(channel).follow(call).await.unwrap().into_inner();
            let bundle = bundles.message().await.unwrap().unwrap();
            say.send(uses(bundle.generation)).await.unwrap();
            streams.push((say, bundles));
        }
        until_async("all to be heard", || (status(&socket)?.proxies.behind == 0).then_some(())).await;
        sizes.push(resident_bytes(running.pid()));
    }
    let each = sizes[1].saturating_sub(sizes[0]) / 500;
    println!("{each} bytes for each proxy");
    assert!(each < BYTES_MAX, "{each} bytes for each proxy: {sizes:?}");
    for round in 0..5 {
        command(&socket, "/certs/deny", &format!(r#"{{"subject":{{"serial":"{round}"}}}}"#));
        for (say, bundles) in &mut streams {
            let bundle = bundles.message().await.unwrap().unwrap();
            say.send(uses(bundle.generation)).await.unwrap();
        }
        until_async("all to be heard", || (status(&socket)?.proxies.behind == 0).then_some(())).await;
        sizes.push(resident_bytes(running.pid()));
    }
    // The first change fills buffers for the first time.
    assert!(sizes[6] < sizes[2] + sizes[2] / 20, "it grows with each change: {sizes:?}");
}
