//! A brought issuer, replaced as Kubernetes replaces a mounted Secret, while proxies follow.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::support::proxy::{Handshakes, Proxy};
use crate::support::{Place, Running, free_address, status, until_async};

const FAST: &str = "leafLifetime: 10s\nrenewWithin: 1s\nrotation: {absenceWindow: 1s}";

struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

impl Authority {
    fn root(name: &str) -> Self {
        let (params, key) = (params(name), KeyPair::generate().unwrap());
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    /// tls.crt, tls.key and ca.crt of a new issuer.
    fn files(&self, name: &str) -> [String; 3] {
        let (params, key) = (params(name), KeyPair::generate().unwrap());
        let signed = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        [signed.pem(), key.serialize_pem(), self.pem.clone()]
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::hours(1);
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(30);
    params
}

/// A Secret as the kubelet mounts it: names that lead through `..data` to a directory, which is swapped whole.
struct Mounted {
    path: PathBuf,
    swaps: u32,
}

impl Mounted {
    fn new(path: PathBuf, files: &[String; 3]) -> Self {
        std::fs::create_dir(&path).unwrap();
        let mut mounted = Self { path, swaps: 0 };
        mounted.swap(files);
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            std::os::unix::fs::symlink(Path::new("..data").join(name), mounted.path.join(name)).unwrap();
        }
        mounted
    }

    fn swap(&mut self, files: &[String; 3]) {
        self.swaps += 1;
        let version = format!("..version_{}", self.swaps);
        let directory = self.path.join(&version);
        std::fs::create_dir(&directory).unwrap();
        for (name, text) in ["tls.crt", "tls.key", "ca.crt"].iter().zip(files) {
            std::fs::write(directory.join(name), text).unwrap();
        }
        let draft = self.path.join("..data_tmp");
        std::os::unix::fs::symlink(&version, &draft).unwrap();
        std::fs::rename(&draft, self.path.join("..data")).unwrap();
        if self.swaps > 1 {
            std::fs::remove_dir_all(self.path.join(format!("..version_{}", self.swaps - 1))).unwrap();
        }
    }
}

fn config(place: &Place, address: &str, mounted: &Path) -> PathBuf {
    place.config("ca", address, &format!("issuer: {{directory: {}}}\n{FAST}", mounted.display()))
}

pub(crate) async fn replacements_are_taken_one_after_another_and_a_bad_one_changes_nothing() {
    let place = Place::empty("brought");
    // The token key comes from an authority that is then thrown away: this one begins with what is brought.
    assert!(place.init().status.success());
    for name in ["state.json", "root.pem", "issuer.pem", "root-1-key.pem", "issuer-2-key.pem"] {
        std::fs::remove_file(place.dir().join(name)).unwrap();
    }
    let root = Authority::root("their root");
    let first = root.files("their issuer 0");
    let mut mounted = Mounted::new(place.0.join("mounted"), &first);
    let address = free_address();
    let config = config(&place, &address.to_string(), &mounted.path);
    let running = Running::start(&config, &[]);
    assert_eq!(place.root(), root.pem);
    let proxies =
        Arc::new(vec![Proxy::start(&place, &[address], "a").await, Proxy::start(&place, &[address], "b").await]);
    let handshakes = Handshakes::start(&proxies, Duration::from_millis(100));
    let shown = |pem: &str| {
        let all =
            proxies.iter().all(|proxy| proxy.mine().chain.get(1).is_some_and(|issuer| issuer.trim() == pem.trim()));
        all.then_some(())
    };
    until_async("certificates of the first", || shown(&first[0])).await;
    for number in 1..=4 {
        let next = root.files(&format!("their issuer {number}"));
        mounted.swap(&next);
        until_async(&format!("certificates of replacement {number}"), || shown(&next[0])).await;
        assert_eq!(status(&place.socket("ca")).unwrap().rotation, None);
    }
    let good = place.state();
    let mut bad = root.files("their issuer with another key");
    bad[1] = KeyPair::generate().unwrap().serialize_pem();
    mounted.swap(&bad);
    let line = until_async("the alert", || running.try_line("issuer_refused")).await;
    assert!(line.contains("tls.key is not the key"), "{line}");
    assert_eq!(place.state().signing(), good.signing(), "the last good one signs");

    // The bad one is still there when the program starts again: it goes on with the last good one.
    drop(running);
    let running = Running::start(&config, &[]);
    until_async("the alert again", || running.try_line("issuer_refused")).await;
    let serial = proxies[0].mine().serial;
    until_async("certificates all the same", || (proxies[0].mine().serial != serial).then_some(())).await;
    assert_eq!(place.state().signing(), good.signing());

    // Another root is another matter: it comes in stages.
    let second = Authority::root("their second root");
    let last = second.files("their last issuer");
    mounted.swap(&last);
    until_async("the alert's end", || running.try_line("alert resolved")).await;
    let both = || proxies.iter().all(|proxy| proxy.roots() == 2).then_some(());
    until_async("both roots", both).await;
    until_async("certificates under the second root", || shown(&last[0])).await;
    until_async("the end", || place.state().rotation.is_none().then_some(())).await;
    until_async("the bundle's file", || (place.root() == second.pem).then_some(())).await;
    handshakes.check(proxies.len()).await;
}

#[test]
fn nothing_is_signed_in_the_place_of_a_bad_one() {
    let place = Place::new("brought-bad");
    let root = Authority::root("their root");
    let mut files = root.files("their issuer");
    files[1] = "no key".into();
    let mounted = Mounted::new(place.0.join("mounted"), &files);
    let config = config(&place, "127.0.0.1:0", &mounted.path);
    let own = place.state();
    let mut command = std::process::Command::new(crate::support::PROGRAM);
    let output = command.arg("run").arg("--config").arg(config).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("nothing is signed in its place") && said.contains("tls.key"), "{said}");
    assert_eq!(place.state(), own);
}
