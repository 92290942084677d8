//! Following the trust bundle, against a CA in this process: what is taken, what is refused, and what is said of it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use api::trust::{Bundle, Denial as WireDenial, denial::Subject};
use export::{Alerts, Events, Receiver};
use identity::{DENIALS_MAX, Denial, DenyList, Store};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    clock,
    config::Identity,
    credentials::Credentials,
    follow::Follower,
    test_ca::{CA, DEADLINE, TestCa, WORKLOAD, id},
    trust::Trust,
};

/// A proxy's control thread as far as trust goes, following a CA.
struct Proxy {
    store: Arc<Store>,
    trust: Arc<Trust>,
    alerts: Arc<Alerts>,
    denied: watch::Receiver<Arc<DenyList>>,
    records: Receiver,
    directory: PathBuf,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        // Nothing depends on what is left below the temporary directory.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Proxy {
    /// Starts following `ca`; what takes minutes takes as long as `change` says.
    fn start(name: &str, ca: &TestCa, change: impl FnOnce(Follower) -> Follower) -> Self {
        let directory = std::env::temp_dir().join(format!("picket-follow-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let config = Identity {
            ca_address: ca.address.to_string(),
            ca_roots: directory.join("root.pem"),
            ca_identity: id(CA),
            token_file: directory.join("token"),
            state_dir: Some(directory.clone()),
        };
        std::fs::write(&config.ca_roots, &ca.root.pem).unwrap();
        std::fs::write(&config.token_file, "token\n").unwrap();
        let store = Store::new("td".parse().unwrap());
        let (sender, records) = export::queue(1 << 20);
        let alerts = Arc::new(Alerts::new(Events::new(vec![sender])));
        let (denials, denied) = watch::channel(Arc::default());
        let trust = Trust::start(&config, Arc::clone(&store), denials);
        let credentials = Credentials::new(&config, Arc::clone(&trust), Arc::clone(&alerts));
        let follower = change(Follower::new(&config, Arc::clone(&credentials)));
        let tasks = [tokio::spawn(credentials.run()), tokio::spawn(follower.run())];
        Self { store, trust, alerts, denied, records, directory, tasks }
    }

    /// The records of alerts since the last call, as lines of JSON.
    fn said_in_records(&mut self) -> String {
        let mut lines = Vec::new();
        while let Some(batch) = self.records.try_recv() {
            record::line::records(&batch.fields).for_each(|record| record::line::json(record, &mut lines));
        }
        String::from_utf8(lines).unwrap()
    }

    async fn until(&self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        let begun = std::time::Instant::now();
        while !is(self) {
            assert!(begun.elapsed() < DEADLINE, "{what}: not in time");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn has_certificate(&self) {
        self.until("a certificate", |proxy| proxy.store.current().is_some()).await;
    }
}

fn as_it_is(follower: Follower) -> Follower {
    follower
}

fn denial(subject: Subject) -> WireDenial {
    WireDenial { subject: Some(subject), reason: "for the test".to_owned() }
}

#[tokio::test]
async fn a_generation_is_in_force_when_it_is_acknowledged() {
    let mut ca = TestCa::start().await;
    let mut proxy = Proxy::start("in-force", &ca, as_it_is);
    proxy.has_certificate().await;
    let mut stream = ca.stream().await;
    let first = stream.said().await;
    assert_eq!(first.generation, 0, "so far there is the file");
    assert!(first.time_unix_nanos >= stream.accepted.as_nanos() as i64, "the time of saying it, not of dialling");
    assert!(!proxy.trust.is_followed());

    let other = crate::test_ca::Authority::root("other");
    let mut bundle = ca.bundle(3);
    bundle.roots.push(other.der.clone());
    bundle.denied = vec![denial(Subject::Serial("0A0B".to_owned())), denial(Subject::KeySha256(vec![7; 32]))];
    stream.send(bundle).await;
    let mut said = stream.said().await;
    while said.generation == 0 {
        // The first certificate may have come after the first status.
        said = stream.said().await;
    }
    let roots: Vec<_> = proxy.store.bundle().unwrap().roots().iter().map(|root| root.to_vec()).collect();
    assert_eq!((said.generation, &*said.refused), (3, ""));
    assert_eq!(roots, [ca.root.der.clone(), other.der]);
    let expected = DenyList::new([Denial::Serial("0a0b".to_owned()), Denial::Key([7; 32])]).unwrap();
    assert_eq!(*proxy.store.denied(), expected);
    assert_eq!(**proxy.denied.borrow_and_update(), expected, "the workers have been told");
    let current = proxy.store.current().unwrap();
    assert_eq!(said.certificate_serial, current.serial);
    assert_eq!(said.issuer_sha256, ca.issuer().sha256());
    assert_eq!(said.certificate_not_after, current.not_after.as_secs() as i64);
    assert!(clock::wall().abs_diff(Duration::from_nanos(said.time_unix_nanos as u64)) < DEADLINE);
    assert!(proxy.trust.is_followed());
    // The file may say what it likes while the CA is followed.
    std::fs::write(proxy.directory.join("root.pem"), crate::test_ca::Authority::root("file").pem).unwrap();
    proxy.trust.look_at_file().unwrap();
    assert_eq!((proxy.trust.generation(), proxy.store.bundle().unwrap().roots().len()), (3, 2));
    assert!(stream.is_silent().await, "nothing new is to be said");
    assert_eq!(proxy.said_in_records(), "", "nor an alert");
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_with_a_reason_and_the_last_good_stays() {
    let mut ca = TestCa::start().await;
    let mut proxy = Proxy::start("refused", &ca, as_it_is);
    proxy.has_certificate().await;
    let mut stream = ca.stream().await;
    stream.said().await;
    let mut good = ca.bundle(5);
    good.denied = vec![denial(Subject::Identity("spiffe://td/ns/demo/sa/gone".to_owned()))];
    stream.send(good).await;
    while stream.said().await.generation != 5 {}
    let (roots, denied) = (proxy.store.bundle().unwrap(), proxy.store.denied());

    let leaf = ca.issuer().credentials(WORKLOAD).certified_key.cert[0].to_vec();
    let many = (0..=DENIALS_MAX).map(|n| denial(Subject::Serial(format!("{:x}", n + 1)))).collect();
    let empty = || WireDenial::default();
    let one = |subject| vec![denial(subject)];
    let with_roots = |roots: Vec<Vec<u8>>| Bundle { roots, ..ca.bundle(6) };
    let with_denied = |denied: Vec<WireDenial>| Bundle { denied, ..ca.bundle(6) };
    let root = || ca.root.der.clone();
    for (bad, reason) in [
        (with_roots(Vec::new()), "the trust bundle has no certificate"),
        (with_roots(vec![b"garbage".to_vec()]), "certificate 1 of the trust bundle cannot be read"),
        (with_roots(vec![root(), root()[..100].to_vec()]), "certificate 2 of the trust bundle cannot be read"),
        (with_roots(vec![root(), leaf]), "certificate 2 of the trust bundle is not a certificate authority"),
        (with_roots(vec![root(); 33]), "the trust bundle has more than 32 certificates"),
        (with_denied(many), "the deny list has 10001 entries, more than 10000"),
        (with_denied(vec![denial(Subject::Serial("1".to_owned())), empty()]), "entry 1 of the deny list names nothing"),
        (with_denied(one(Subject::Serial("no number".to_owned()))), "entry 0 of the deny list names nothing"),
        (with_denied(one(Subject::Identity("https://td/".to_owned()))), "entry 0 of the deny list names nothing"),
        (with_denied(one(Subject::KeySha256(vec![7; 31]))), "entry 0 of the deny list names nothing"),
        (with_denied(one(Subject::Identity(CA.to_owned()))), "the deny list names the CA itself"),
    ] {
        stream.send(bad).await;
        let said = stream.said().await;
        assert_eq!(said.generation, 5, "{reason}");
        assert!(said.refused.contains(reason), "{} is not {reason}", said.refused);
        assert!(Arc::ptr_eq(&roots, &proxy.store.bundle().unwrap()), "{reason}");
        assert!(Arc::ptr_eq(&denied, &proxy.store.denied()), "{reason}");
        assert!(proxy.alerts.is_firing("trust_bundle_refused"), "{reason}");
    }
    let said = proxy.said_in_records();
    let words = "generation 6 is refused, 5 stays in force: the trust bundle has no certificate";
    assert!(said.contains(words) && said.lines().count() == 1, "{said}");

    stream.send(ca.bundle(7)).await;
    let said = stream.said().await;
    assert_eq!((said.generation, &*said.refused), (7, ""));
    assert!(!proxy.alerts.is_firing("trust_bundle_refused"));
    assert!(proxy.said_in_records().contains("generation 7 is in force"));
}

#[tokio::test]
async fn a_certificate_of_another_issuer_is_replaced_within_the_time_given_and_no_other_is() {
    let mut ca = TestCa::start().await;
    let proxy = Proxy::start("issuer", &ca, as_it_is);
    proxy.has_certificate().await;
    let mut stream = ca.stream().await;
    stream.said().await;
    let before = proxy.store.current().unwrap();
    stream.send(ca.bundle(1)).await;
    while stream.said().await.generation != 1 {}
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(proxy.store.current().unwrap().serial, before.serial, "its issuer still signs");

    ca.rotate_issuer();
    let begun = std::time::Instant::now();
    stream.send(ca.bundle(2)).await;
    let mut said = stream.said().await;
    assert_eq!(said.generation, 2);
    while said.certificate_serial == before.serial {
        said = stream.said().await;
    }
    // The time that was given is a second; the rest is for a loaded machine.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(said.issuer_sha256, ca.issuer().sha256());
    assert_eq!(said.certificate_serial, proxy.store.current().unwrap().serial);
    assert!(stream.is_silent().await, "it was renewed once");

    // What is said of the issuer in a generation that is refused counts as little as the rest of it.
    ca.rotate_issuer();
    stream.send(Bundle { roots: Vec::new(), renew_within_seconds: 0, ..ca.bundle(3) }).await;
    assert!(!stream.said().await.refused.is_empty());
    assert!(stream.is_silent().await);
}

#[tokio::test]
async fn a_ca_that_signs_with_another_issuer_than_it_says_is_not_asked_without_end() {
    let mut ca = TestCa::start().await;
    let proxy = Proxy::start("stubborn", &ca, as_it_is);
    proxy.has_certificate().await;
    let mut stream = ca.stream().await;
    stream.said().await;
    let before = proxy.store.current().unwrap();
    stream.send(Bundle { issuer_sha256: vec![9; 32], renew_within_seconds: 0, ..ca.bundle(1) }).await;
    while stream.said().await.certificate_serial == before.serial {}
    assert!(stream.is_silent().await, "the next attempt is a minute away");
}

#[tokio::test]
async fn an_older_generation_is_refused_at_first_and_taken_when_the_ca_stays_with_it() {
    let mut ca = TestCa::start().await;
    let patience = Duration::from_millis(600);
    let mut proxy = Proxy::start("older", &ca, |follower| follower.with_older_patience(patience));
    proxy.has_certificate().await;
    let mut stream = ca.stream().await;
    stream.said().await;
    stream.send(ca.bundle(12)).await;
    while stream.said().await.generation != 12 {}

    // A process of the CA that is behind the others, and catches up.
    stream.send(ca.bundle(11)).await;
    let said = stream.said().await;
    assert!(said.generation == 12 && said.refused.contains("generation 11 is older than 12"), "{}", said.refused);
    stream.send(ca.bundle(12)).await;
    let said = stream.said().await;
    assert_eq!((said.generation, &*said.refused), (12, ""));

    // A CA that was restored, and stays with what it has, over a stream that breaks.
    let refused_at = std::time::Instant::now();
    stream.send(ca.bundle(7)).await;
    assert_eq!(stream.said().await.generation, 12);
    drop(stream);
    let mut stream = ca.stream().await;
    stream.said().await;
    stream.send(ca.bundle(7)).await;
    let mut said = stream.said().await;
    while said.generation == 12 {
        assert!(said.refused.contains("a CA restored from a backup?"), "{}", said.refused);
        said = stream.said().await;
    }
    assert_eq!((said.generation, &*said.refused), (7, ""));
    assert!(refused_at.elapsed() >= patience);
    let said = proxy.said_in_records();
    let states: Vec<_> = said.lines().map(|line| line.contains("\"picket.alert.state\":\"firing\"")).collect();
    assert_eq!(states, [true, false, true, false], "{said}");
}

#[tokio::test]
async fn a_stream_that_breaks_at_once_is_tried_again_with_growing_pauses() {
    let mut ca = TestCa::start().await;
    let proxy = Proxy::start("breaks", &ca, as_it_is);
    proxy.has_certificate().await;
    let (begun, mut streams) = (std::time::Instant::now(), 0);
    // The pauses are at least 0.25, 0.5, 1 and 2 s.
    while begun.elapsed() < Duration::from_millis(3500) {
        if let Some(stream) = ca.try_stream() {
            streams += 1;
            stream.send(ca.bundle(4)).await;
            drop(stream);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!((3..=4).contains(&streams), "{streams} streams");
    assert_eq!(proxy.trust.generation(), 4, "what came stays");
    assert!(!proxy.trust.is_followed());
}

#[tokio::test]
async fn clocks_that_are_apart_are_an_alert_that_names_both_until_they_agree() {
    let mut ca = TestCa::start().await;
    let interval = Duration::from_millis(200);
    let mut proxy = Proxy::start("clocks", &ca, |follower| follower.with_clock_interval(interval));
    proxy.has_certificate().await;
    let at = |seconds: u64| identity::Utc(rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(seconds)));
    for skew in [-10_i64, 10] {
        let mut stream = ca.stream().await;
        stream.said().await;
        let now = clock::wall().as_secs();
        let theirs = now.checked_add_signed(skew).unwrap();
        stream.send(Bundle { time_unix_nanos: theirs as i64 * 1_000_000_000, ..ca.bundle(1) }).await;
        proxy.until("the alert", |proxy| proxy.alerts.is_firing("clock_skew")).await;
        let said = proxy.said_in_records();
        let ours =
            [now, now + 1].map(|now| format!("this machine's clock says {}, the CA's says {}", at(now), at(theirs)));
        assert!(ours.iter().any(|ours| said.contains(ours)), "{said} does not say {ours:?}");

        // While it is on, the clocks are compared again without a change of the bundle; still 4 s apart is near enough.
        let mut stream = ca.stream().await;
        assert_eq!(stream.said().await.generation, 1);
        let near = (clock::wall() - Duration::from_secs(4)).as_nanos() as i64;
        stream.send(Bundle { time_unix_nanos: near, ..ca.bundle(1) }).await;
        proxy.until("the end of the alert", |proxy| !proxy.alerts.is_firing("clock_skew")).await;
        assert!(proxy.said_in_records().contains("\"picket.alert.state\":\"resolved\""));
        stream.said().await;
        tokio::time::sleep(interval * 2).await;
        assert!(ca.try_stream().is_none(), "clocks that agree are left alone");
        assert!(proxy.trust.is_followed());
    }
}
