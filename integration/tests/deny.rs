//! Somebody is denied, by serial number, by key and by identity: what connects others with it is closed on both sides and
//! says why, new connections are refused, everything else goes on, and once the denial is lifted all is as before.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use integration::ring::{PODS, Ring, Spoken};
use integration::{DEADLINE, Wire};
use record::key;
use testkit::{Process, Record, until};

/// From the command's end until everything that matches is closed, on a loaded machine.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);
const DENIED: usize = 1;
const KINDS: [&str; 3] = ["http1", "http2", "tcp"];

/// What goes on between a pod and the next one: two long downloads, and a stream.
struct Live {
    downloads: Vec<Process>,
    stream: Wire,
}

impl Live {
    fn start(ring: &Ring, from: usize, round: &str) -> Self {
        let directory = &ring.mesh.directory;
        let downloads = [(Spoken::Http1, "--http1.1"), (Spoken::Http2, "--http2-prior-knowledge")];
        let downloads = downloads.map(|(spoken, option)| {
            let name = format!("{}{option}-{round}", PODS[from]);
            let (file, url) =
                (directory.path().join(&name), format!("http://{}/slow/{round}", ring.next(from, spoken)));
            let mut curl = ring.mesh.pod(PODS[from]).unwrap().pod.command(0, "curl");
            curl.args(["--silent", "--no-buffer", option, "--output"]).arg(&file).arg(url);
            let mut process = Process::spawn(&format!("curl-{name}"), curl, directory).unwrap();
            until("the download's first bytes", DEADLINE, || {
                process.ensure_running()?;
                Ok(std::fs::metadata(&file).is_ok_and(|file| file.len() > 0).then_some(()))
            })
            .unwrap();
            process
        });
        let mut stream = ring.dial(from, Spoken::Tcp).unwrap();
        echoes(&mut stream);
        Self { downloads: downloads.into(), stream }
    }

    /// Waits until all of it has been closed.
    fn ends(mut self, what: &str) {
        for download in &mut self.downloads {
            let status = download.wait(CLOSED_WITHIN).unwrap();
            assert!(!status.success(), "{what}: the download did not end early: {status}");
        }
        // An opaque stream says nothing of its end: it must not look like one that is whole.
        assert!(self.stream.reset().unwrap().is_empty(), "{what}");
    }

    fn goes_on(&mut self) {
        echoes(&mut self.stream);
        for download in &mut self.downloads {
            download.ensure_running().unwrap();
        }
    }
}

fn echoes(stream: &mut Wire) {
    stream.send("still here?").unwrap();
    assert_eq!(stream.exactly(11).unwrap(), b"still here?");
}

fn identity(pod: usize) -> String {
    format!("spiffe://demo.picket.dev/ns/demo/sa/{}", PODS[pod])
}

/// What a record is about: one of [`KINDS`], if it is of this round.
fn kind(record: &Record, round: &str) -> Option<&'static str> {
    let is_stream = record.event() == "picket.connection"
        && record.is(key::CONNECTION_STATE, "closed")
        && record.is(key::NETWORK_PROTOCOL_NAME, "tcp");
    let is_download = record.event() == "picket.request" && record.is(key::URL_PATH, &format!("/slow/{round}"));
    match (is_stream, is_download, record.text(key::NETWORK_PROTOCOL_VERSION)) {
        (true, ..) => Some("tcp"),
        (_, true, Some("1.1")) => Some("http1"),
        (_, true, Some("2")) => Some("http2"),
        _ => None,
    }
}

/// The codes of all that was between a pod and the next one, by what it was and whose record.
fn codes(records: &[Record], from: usize, round: &str) -> BTreeMap<(&'static str, String), Vec<String>> {
    let mut codes: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let (client, server) = (identity(from), identity((from + 1) % PODS.len()));
    let text = |record: &Record, name| record.text(name).unwrap_or_default().to_owned();
    for record in records {
        let between = record.is(key::CLIENT_IDENTITY, &client) && record.is(key::SERVER_IDENTITY, &server);
        if let Some(kind) = kind(record, round).filter(|_| between) {
            codes.entry((kind, text(record, key::DIRECTION))).or_default().push(text(record, key::CODE));
        }
    }
    codes
}

/// Whether the records of both sides say of each kind, once, what they must: who denies says so, the other one sees its
/// peer go. What is cut is never an end that was meant, of an opaque stream neither.
fn are_right(codes: &BTreeMap<(&'static str, String), Vec<String>>, from: usize) -> bool {
    // The server's side denies a client, and the client's side a server.
    let (denies, other, gone) = match from == DENIED {
        true => ("inbound", "outbound", ["server_closed", "server_reset"]),
        false => ("outbound", "inbound", ["client_closed", "client_reset"]),
    };
    KINDS.into_iter().all(|kind| {
        let one = |direction: &str| match codes.get(&(kind, direction.to_owned())).map(Vec::as_slice) {
            Some([code]) => code.as_str(),
            Some(_) | None => "",
        };
        one(denies) == "peer_denied" && gone.contains(&one(other)) && (kind != "tcp" || one(other).ends_with("_reset"))
    })
}

/// One more request to the next pod: its status, and the code of a refusal.
fn fresh(ring: &Ring, from: usize, spoken: Spoken) -> String {
    let option = if spoken == Spoken::Http2 { "--http2-prior-knowledge" } else { "--http1.1" };
    let format = ["--output", "/dev/null", "--write-out", "%{http_code} %header{picket-error}"];
    let url = format!("http://{}/hello.txt", ring.next(from, spoken));
    let words = [&["--silent", option, "--max-time", "10"], &format[..], &[&url]].concat();
    ring.run(PODS[from], "curl", &words).unwrap().trim().to_owned()
}

fn all_are_served(ring: &Ring) {
    for (from, pod) in PODS.into_iter().enumerate() {
        let served = || {
            let http = [Spoken::Http1, Spoken::Http2].map(|spoken| fresh(ring, from, spoken) == "200");
            Ok((http == [true; 2] && ring.exchange(from, 1).is_ok()).then_some(()))
        };
        until(&format!("service for {pod}"), DEADLINE, served).unwrap();
    }
}

/// Denies the second of the three pods, looks, and lifts it again.
fn is_denied_and_let_in_again(ring: &Ring, option: &str, value: &str, untouched: &mut Live) {
    let (round, before) = (option.trim_start_matches('-'), (DENIED + PODS.len() - 1) % PODS.len());
    let path = ring.mesh.directory.path();
    std::fs::copy(path.join("slow/file"), path.join("slow").join(round)).unwrap();
    let lives = [before, DENIED].map(|from| (from, Live::start(ring, from, round)));
    let seen = ring.collector.records().len();

    ring.certs_done(&["deny", option, value, "--reason", "it was stolen"]).unwrap();
    let began = Instant::now();
    for (from, live) in lives {
        live.ends(&format!("{option}, from {}", PODS[from]));
    }
    let took = began.elapsed();
    assert!(took < CLOSED_WITHIN, "{option}: closed after {took:?}");
    untouched.goes_on();
    for from in [before, DENIED] {
        let mut found = BTreeMap::new();
        let complete = until("the records of both sides", DEADLINE, || {
            found = codes(&ring.collector.records()[seen..], from, round);
            Ok(are_right(&found, from).then_some(()))
        });
        assert!(complete.is_ok(), "{option}, from {}: {found:?}", PODS[from]);
    }
    println!("{option}: closed after {took:?}");

    // Nobody gets to it, it gets to nobody, and others are served.
    for spoken in [Spoken::Http1, Spoken::Http2] {
        assert_eq!(fresh(ring, before, spoken), "403 peer_denied", "{option} {spoken:?}");
        assert_eq!(fresh(ring, DENIED, spoken), "502 peer_refused_us", "{option} {spoken:?}");
        assert_eq!(fresh(ring, (DENIED + 1) % PODS.len(), spoken), "200", "{option} {spoken:?}");
    }
    for from in [before, DENIED] {
        assert!(ring.exchange(from, 1).is_err(), "{option}, from {}", PODS[from]);
    }
    untouched.goes_on();

    ring.certs_done(&["undeny", option, value]).unwrap();
    all_are_served(ring);
    untouched.goes_on();
}

#[test]
fn who_is_denied_is_cut_off_at_once_and_let_in_again() {
    let ring = Ring::start(Vec::new(), None).unwrap();
    all_are_served(&ring);
    let is_its_own = |record: &Record| {
        record.event() == "picket.issuance" && record.is(key::CERTIFICATE_IDENTITY, &identity(DENIED))
    };
    let issued = ring.collector.wait_until("its issuance", DEADLINE, |records| records.iter().any(is_its_own)).unwrap();
    let issued = issued.iter().rfind(|record| is_its_own(record)).unwrap();
    std::fs::copy(ring.mesh.directory.path().join("slow/file"), ring.mesh.directory.path().join("slow/untouched"))
        .unwrap();
    let mut untouched = Live::start(&ring, (DENIED + 1) % PODS.len(), "untouched");
    let subjects = [
        ("--serial", issued.text(key::CERTIFICATE_SERIAL).unwrap()),
        ("--key", issued.text(key::CERTIFICATE_KEY).unwrap()),
        ("--identity", &identity(DENIED)),
    ];
    for (option, value) in subjects {
        is_denied_and_let_in_again(&ring, option, value, &mut untouched);
    }
}
