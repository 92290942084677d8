//! Leaves, issuers and roots are replaced again and again under traffic between three pods: no request fails, no handshake
//! fails, no stream breaks or changes a byte; and what is in use afterwards leads to the newest root alone.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::DEADLINE;
use integration::ring::{ECHO, HTTP1, HTTP2, PODS, Ring, address};
use record::key;
use serde_json::{Value, json};
use testkit::{LINK_IPV4, Record, binaries, run, until};

const ROTATIONS: usize = 3;
const RENEWALS: usize = 30;
/// Requests in a second, all in all: from each pod so many on one kept connection, over HTTP/2, and each with a handshake.
const RATES: [u32; 3] = [62, 90, 15];
const ASKED: u32 = 501;
const STREAMS: usize = 2;
const CHUNKS_PER_SECOND: u32 = 20;
/// A rotation waits for the last old certificate: a quarter of a minute, and as long again on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What all the traffic came to.
#[derive(Debug, Default)]
struct Done {
    requests: u64,
    handshakes: u64,
    streams: Vec<u64>,
    took: Duration,
}

struct Test {
    ring: Ring,
    stop: AtomicBool,
}

impl Test {
    fn dir(&self) -> PathBuf {
        self.ring.mesh.directory.path().join("ca")
    }

    fn picket(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = Command::new(binaries()?.join("picket"));
        let output = run(command.args(["--output", "json", "certs"]).args(arguments).arg("--dir").arg(self.dir()))?;
        Ok(serde_json::from_str(&output)?)
    }

    /// As [`until`], but not longer than the traffic goes well.
    fn until<T>(&self, what: &str, mut state: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        until(what, PATIENCE, || {
            ensure!(!self.stop.load(SeqCst), "the traffic has ended");
            state()
        })
    }

    /// Runs a load to its end; the first that fails ends all of them.
    fn load<T>(&self, what: String, load: impl FnOnce(&AtomicBool) -> Result<T>) -> Result<T> {
        let result = load(&self.stop);
        if result.is_err() {
            self.stop.store(true, SeqCst);
        }
        result.context(what)
    }

    /// All traffic while `meanwhile` happens.
    fn traffic(&self, meanwhile: impl FnOnce() -> Result<()>) -> Result<Done> {
        let began = Instant::now();
        std::thread::scope(|scope| {
            let (mut requests, mut handshakes, mut streams) = (Vec::new(), Vec::new(), Vec::new());
            for (from, pod) in PODS.into_iter().enumerate() {
                let what = move |what: &str| format!("{what} from {pod}");
                let [http1, http2, each] = RATES;
                requests
                    .push(scope.spawn(move || self.load(what("HTTP/1.1"), |stop| self.ring.http1(from, http1, stop))));
                requests
                    .push(scope.spawn(move || self.load(what("HTTP/2"), |stop| self.ring.http2(from, http2, stop))));
                handshakes.push(
                    scope.spawn(move || self.load(what("handshakes"), |stop| self.ring.handshakes(from, each, stop))),
                );
                for _ in 0..STREAMS {
                    let stream = move |stop: &AtomicBool| self.ring.stream(from, CHUNKS_PER_SECOND, stop);
                    streams.push(scope.spawn(move || self.load(what("a stream"), stream)));
                }
            }
            let result = meanwhile();
            // Also when it failed: the others must end.
            self.stop.store(true, SeqCst);
            let mut done = Done { took: began.elapsed(), ..Done::default() };
            for load in requests {
                done.requests += load.join().unwrap()?;
            }
            for load in handshakes {
                done.handshakes += load.join().unwrap()?;
            }
            for load in streams {
                done.streams.push(load.join().unwrap()?);
            }
            result.map(|()| done)
        })
    }

    /// Certificates that pods got so far: of each pod, the issuers of all of them.
    fn issued(&self) -> Vec<(String, String)> {
        let is_issued =
            |record: &Record| record.event() == "picket.issuance" && record.is(key::ISSUANCE_RESULT, "issued");
        let text = |record: &Record, name| record.text(name).unwrap_or_default().to_owned();
        let issued = self.ring.collector.select(is_issued);
        issued.iter().map(|record| (text(record, key::K8S_POD_NAME), text(record, key::CERTIFICATE_ISSUER))).collect()
    }

    /// Waits until each pod has got a certificate of the issuer that signs.
    fn all_renewed(&self, status: &Value) -> Result<()> {
        let issuers = status["issuers"].as_array().context("no issuers")?;
        let signing = issuers.iter().find(|issuer| issuer["signing"] == true).context("no issuer signs")?;
        let sha256 = signing["sha256"].as_str().context("no digest")?;
        self.until("certificates of the new issuer", || {
            let issued = self.issued();
            let has = |pod: &&str| issued.iter().any(|(who, issuer)| who == pod && issuer == sha256);
            Ok(PODS.iter().all(has).then_some(()))
        })
    }

    /// Issuer and root, again and again; gives the roots that were.
    fn rotate(&self) -> Result<Vec<PathBuf>> {
        let mut old = Vec::new();
        for rotation in 0..ROTATIONS {
            let before = self.picket(&["status"])?;
            let path = format!("old-root-{rotation}.pem");
            let pem = std::fs::read_to_string(self.dir().join("root.pem"))?;
            old.push(self.ring.mesh.directory.write(&path, &pem)?);
            self.all_renewed(&self.picket(&["rotate", "--issuer"])?)?;
            self.picket(&["rotate", "--root"])?;
            let after = self.until("the rotation's end", || {
                let status = self.picket(&["status"])?;
                Ok((status["rotation"].is_null() && status["proxies"]["behind"] == 0).then_some(status))
            })?;
            ensure!(after["lastRotation"]["outcome"] == "rootRotated", "{after}");
            ensure!(after["roots"].as_array().is_some_and(|roots| roots.len() == 1), "{after}");
            ensure!(after["roots"][0]["sha256"] != before["roots"][0]["sha256"], "{after}");
            ensure!(after["proxies"]["connected"] == PODS.len(), "{after}");
            self.all_renewed(&after)?;
        }
        self.until("renewals", || Ok((self.issued().len() >= PODS.len() + RENEWALS).then_some(())))?;
        Ok(old)
    }

    /// Nothing failed: the counters of each proxy, and all records of both sides.
    fn nothing_failed(&self, done: &Done) {
        let connections = done.handshakes + done.streams.len() as u64;
        let is_of = |record: &Record, event: &str| {
            let closed = record.text(key::CONNECTION_STATE).is_none_or(|state| state == "closed");
            record.event() == event && closed
        };
        let is_opaque =
            |record: &Record| is_of(record, "picket.connection") && record.is(key::TLS_NEXT_PROTOCOL, "picket/tcp");
        let count = |records: &[Record], what: &dyn Fn(&Record) -> bool| {
            records.iter().filter(|record| what(record)).count() as u64
        };
        let all = self.ring.collector.wait_until("all records of both sides", DEADLINE, |records| {
            count(records, &|record| is_of(record, "picket.request")) >= 2 * done.requests
                && count(records, &is_opaque) >= 2 * connections
        });
        let all = all.unwrap();
        assert_eq!(count(&all, &|record| is_of(record, "picket.request")), 2 * done.requests);
        assert_eq!(count(&all, &is_opaque), 2 * connections);
        let with_code = |record: &&Record| record.text(key::CODE).is_some_and(|code| code != "ok");
        let failed: Vec<_> = all.iter().filter(with_code).map(ToString::to_string).collect();
        assert!(failed.is_empty(), "{} records of failures: {:?}", failed.len(), failed.first());
        let refused = |record: &Record| record.is(key::ISSUANCE_RESULT, "refused");
        assert_eq!(count(&all, &refused), 0, "certificates were refused");
        for bytes in &done.streams {
            let bytes = i64::try_from(*bytes).unwrap();
            let is_it = |record: &Record| {
                is_opaque(record)
                    && [key::BYTES_FROM_CLIENT, key::BYTES_FROM_SERVER]
                        .iter()
                        .all(|key| record.integer(key) == Some(bytes))
            };
            assert!(count(&all, &is_it) >= 2, "no stream of {bytes} bytes in the records of both sides");
        }
        for pod in PODS {
            for family in ["picket_connections_closed_total", "picket_request_endings_total"] {
                let samples = self.ring.metrics(pod, family).unwrap();
                assert!(
                    samples.iter().any(|(labels, value)| labels.contains("code=\"ok\"") && *value > 0),
                    "{samples:?}"
                );
                let failed: Vec<_> =
                    samples.iter().filter(|(labels, value)| !labels.contains("code=\"ok\"") && *value > 0).collect();
                assert!(failed.is_empty(), "{pod}: {family} {failed:?}");
            }
            let renewals = self.ring.metrics(pod, "picket_certificate_renewals_total").unwrap();
            let failed = renewals.iter().filter(|(labels, _)| labels.contains("failed")).map(|(_, value)| value);
            assert_eq!(failed.sum::<u64>(), 0, "{pod}: renewals failed");
        }
    }

    /// What `who` shows on a port: a file with its leaf, and one with all that it sends.
    fn shown(&self, who: &str, address: &str, alpn: &str) -> [PathBuf; 2] {
        // A proxy ends the handshake for want of a certificate, after it has shown its own; the CA goes on in HTTP/2.
        let script = format!(
            "openssl s_client -showcerts -connect {address} -alpn {alpn} </dev/null 2>/dev/null \
             | sed -n '/-----BEGIN CERT/,/-----END CERT/p'"
        );
        let link = &self.ring.mesh.net.link;
        let chain = run(link.command(0, "sh").args(["-c", &script])).unwrap();
        let leaf = chain.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap_or_default();
        assert!(leaf.ends_with("-----END CERTIFICATE-----\n"), "{who} shows no certificate at {address}: {chain}");
        let write = |name: &str, pem: &str| {
            self.ring.mesh.directory.write(&format!("{who}-{alpn}-{name}.pem").replace('/', "-"), pem).unwrap()
        };
        [write("leaf", leaf), write("chain", &chain)]
    }

    fn leads_to(&self, root: &Path, [leaf, chain]: &[PathBuf; 2]) -> bool {
        let mut openssl = Command::new("openssl");
        openssl.args(["verify", "-x509_strict", "-CAfile"]).arg(root).arg("-untrusted").arg(chain).arg(leaf);
        openssl.output().unwrap().status.success()
    }

    /// Everything in use leads to the newest root and to none before.
    fn only_the_newest_root_is_left(&self, old: &[PathBuf]) {
        let newest = self.dir().join("root.pem");
        let pem = std::fs::read_to_string(&newest).unwrap();
        assert_eq!(pem.matches("-----BEGIN CERTIFICATE-----").count(), 1, "{pem}");
        let text = run(Command::new("openssl").args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(&newest));
        let fingerprint = text.unwrap().trim().rsplit_once('=').unwrap().1.replace(':', "").to_lowercase();
        assert_eq!(self.picket(&["status"]).unwrap()["roots"][0]["sha256"], *fingerprint);
        let der = run(Command::new("sh")
            .arg("-c")
            .arg(format!("openssl x509 -in {} -outform DER | od -An -v -tx1 | tr -d ' \\n'", newest.display())));
        let der = der.unwrap();

        let mut shown = vec![("the CA".to_owned(), self.shown("ca", &format!("{LINK_IPV4}:15012"), "h2"))];
        for pod in PODS {
            for (port, alpn) in [(HTTP1, "picket/http1"), (HTTP2, "picket/h2"), (ECHO, "picket/tcp")] {
                let (ip, port) = address(&self.ring.mesh, pod, port).unwrap();
                shown.push((format!("{pod} {alpn}"), self.shown(pod, &format!("{ip}:{port}"), alpn)));
            }
            let saved = std::fs::read_to_string(self.ring.mesh.directory.path().join(pod).join("trust.json")).unwrap();
            let saved: Value = serde_json::from_str(&saved).unwrap();
            assert_eq!(saved["roots"], json!([der]), "{pod} trusts the newest root alone");
        }
        for (who, files) in &shown {
            assert!(self.leads_to(&newest, files), "{who}: {}", std::fs::read_to_string(&files[1]).unwrap());
            for root in old {
                assert!(!self.leads_to(root, files), "{who} leads to {}", root.display());
            }
        }
    }
}

#[test]
fn nothing_fails_while_leaves_issuers_and_roots_are_replaced() {
    let authority = vec![
        ("leafLifetime", json!("10s")),
        ("renewWithin", json!("1s")),
        ("rotation", json!({ "absenceWindow": "2s" })),
    ];
    let test = Test { ring: Ring::start(authority, None).unwrap(), stop: AtomicBool::new(false) };
    let mut old = Vec::new();
    let done = test.traffic(|| {
        old = test.rotate()?;
        Ok(())
    });
    let done = done.unwrap();
    let rate = (done.requests + done.handshakes) as f64 / done.took.as_secs_f64();
    println!("{} renewals, {rate:.0} requests/s, {done:?}", test.issued().len() - PODS.len());
    assert!(rate >= 0.95 * f64::from(ASKED), "{rate:.0} requests/s are not {ASKED}");
    test.nothing_failed(&done);
    test.only_the_newest_root_is_left(&old);
}
