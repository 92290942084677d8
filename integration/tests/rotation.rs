//! Issuers and roots rotate under traffic between real proxies: no request fails, and a connection that stands stays.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::Stage;
use serde_json::{Value, json};
use testkit::{Settings, binaries, run, until};

const ROTATIONS: usize = 2;
/// A rotation waits for the last old certificate: a quarter of a minute, and as long again on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// One connection, used again and again until the file `stop` is there; prints how often.
const KEPT: &str = "
import http.client, os, sys, time
connection, count = http.client.HTTPConnection('10.96.0.10', 80, timeout=10), 0
connection.connect()
socket = connection.sock
while not os.path.exists(sys.argv[1]):
    connection.request('GET', '/hello.txt')
    assert connection.getresponse().read() == b'hello from the server\\n'
    assert connection.sock is socket, 'the connection was closed'
    count += 1
    time.sleep(0.05)
print(count)
";

fn picket(dir: &Path, arguments: &[&str]) -> Result<Value> {
    let mut command = Command::new(binaries()?.join("picket"));
    let output = run(command.args(["--output", "json", "certs"]).args(arguments).arg("--dir").arg(dir))?;
    Ok(serde_json::from_str(&output)?)
}

#[test]
fn nothing_fails_while_issuers_and_roots_rotate() -> Result<()> {
    let fast = vec![
        ("leafLifetime", json!("10s")),
        ("renewWithin", json!("1s")),
        ("rotation", json!({ "absenceWindow": "2s" })),
    ];
    let stage = Stage::start(&Settings { authority: fast, ..Settings::default() })?;
    let dir = stage.mesh.directory.path().join("ca");
    let stop_file = stage.mesh.directory.path().join("stop");
    let (stop, stage) = (AtomicBool::new(false), &stage);
    std::thread::scope(|scope| {
        let fresh = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let got = stage.run("client", "curl", &["-sS", "--fail", "http://10.96.0.10/hello.txt"])?;
                ensure!(got == "hello from the server\n", "{got:?}");
                count += 1;
            }
            Ok(count)
        });
        let stop_path = stop_file.to_string_lossy().into_owned();
        // As root: where Python comes from a version manager, other users may not execute it.
        let kept = scope
            .spawn(move || run(stage.mesh.pod("client")?.pod.command(0, "python3").args(["-c", KEPT, &stop_path])));
        let rotated = rotate(&dir);
        // Also when it failed: the others must end.
        stop.store(true, Ordering::Relaxed);
        std::fs::write(&stop_file, "")?;
        let joined = |_| anyhow::anyhow!("a thread panicked");
        let fresh: u32 = fresh.join().map_err(joined)??;
        let kept: u32 = kept.join().map_err(joined)??.trim().parse()?;
        ensure!(fresh > 100 && kept > 100, "too little traffic to say anything: {fresh} and {kept} requests");
        rotated
    })
}

fn rotate(dir: &Path) -> Result<()> {
    for _rotation in 0..ROTATIONS {
        let before = picket(dir, &["status"])?["roots"][0]["sha256"].clone();
        picket(dir, &["rotate", "--issuer"])?;
        picket(dir, &["rotate", "--root"])?;
        let after = until("the rotation's end", DEADLINE, || {
            let status = picket(dir, &["status"])?;
            Ok((status["rotation"].is_null() && status["proxies"]["behind"] == 0).then_some(status))
        })?;
        ensure!(after["roots"].as_array().is_some_and(|roots| roots.len() == 1), "{after}");
        ensure!(after["roots"][0]["sha256"] != before && after["proxies"]["connected"] == 2, "{after}");
    }
    Ok(())
}
