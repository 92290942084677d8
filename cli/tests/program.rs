//! The program as scripts call it: exit codes, stdout and stderr. Its talk with a real authority is tested in
//! `integration`.

#![expect(clippy::unwrap_used, reason = "a test ends where its preparation fails")]

use std::path::PathBuf;
use std::process::{Command, Output};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

fn picket(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_picket")).args(arguments).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("picket-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind in the temporary place harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An authority's certificate that ends in so many days.
fn authority(name: &str, days: i64) -> (CertificateParams, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::days(1000);
    params.not_after = now + time::Duration::days(days) + time::Duration::hours(1);
    (params, key)
}

#[test]
fn wrong_usage_is_64() {
    let wrong: [&[&str]; 9] = [
        &[],
        &["certs"],
        &["certs", "status"],
        &["certs", "rotate", "--dir", "x"],
        &["certs", "rotate", "--dir", "x", "--issuer", "--root"],
        &["certs", "acknowledge", "--dir", "x"],
        &["certs", "deny", "--dir", "x", "--serial", "1", "--identity", "2"],
        &["check", "certs", "--dir", "x"],
        &["check", "certs", "--fail-within", "30", "--dir", "x"],
    ];
    for arguments in wrong {
        let (code, stdout, stderr) = picket(arguments);
        assert!(code == 64 && stdout.is_empty() && !stderr.is_empty(), "{arguments:?}: {code} {stdout} {stderr}");
    }
    assert_eq!(picket(&["--help"]).0, 0);
}

#[test]
fn what_cannot_be_asked_or_read_is_2() {
    let scratch = Scratch::new("unread");
    let empty = scratch.write("empty.pem", "nothing");
    let (code, _, stderr) = picket(&["certs", "status", "--dir", scratch.0.to_str().unwrap()]);
    assert!(code == 2 && stderr.contains("nobody answers"), "{code} {stderr}");
    for source in [["--file", &*empty], ["--file", "/no/such/file"], ["--dir", scratch.0.to_str().unwrap()]] {
        let (code, _, stderr) = picket(&[&["check", "certs", "--fail-within", "1d"][..], &source].concat());
        assert_eq!(code, 2, "{source:?}: {stderr}");
    }
}

#[test]
fn the_answer_is_the_exit_code() {
    let scratch = Scratch::new("ends");
    let (old, _) = authority("old root", 5);
    let (root, root_key) = authority("root", 100);
    let (issuer, issuer_key) = authority("issuer", 20);
    let pem = |params: &CertificateParams, key: &KeyPair| params.self_signed(key).unwrap().pem();
    let old = pem(&old, &KeyPair::generate().unwrap());
    let roots = old.clone() + &pem(&root, &root_key);
    let file = scratch.write("root.pem", &roots);
    let signed = issuer.signed_by(&issuer_key, &Issuer::new(root, root_key)).unwrap();
    scratch.write("issuer.pem", &signed.pem());
    let dir = scratch.0.to_str().unwrap();
    let check =
        |within: &str, source: [&str; 2]| picket(&[&["check", "certs", "--fail-within", within][..], &source].concat());
    // The old root is in the bundle still, and signs nothing.
    let (code, stdout, _) = check("19d", ["--dir", dir]);
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.contains("not in use") && stdout.contains("CN=issuer"), "{stdout}");
    let (code, stdout, _) = check("21d", ["--dir", dir]);
    assert!(code == 1 && stdout.contains("ends soon"), "{code} {stdout}");
    // Of files, each certificate counts.
    assert_eq!(check("6d", ["--file", &file]).0, 1);
    assert_eq!(check("4d", ["--file", &file]).0, 0);
    let (code, stdout, _) = picket(&["--output", "json", "check", "certs", "--fail-within", "6d", "--file", &file]);
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &json["ok"], &json["failWithinSeconds"]), (1, &false.into(), &518_400.into()));
    assert_eq!(json["certificates"][0]["verdict"], "ends soon");
    assert_eq!(json["certificates"][1]["name"], "CN=root");
    // A directory whose parts do not belong together is no yes.
    scratch.write("root.pem", &old);
    let (code, _, stderr) = check("1d", ["--dir", dir]);
    assert!(code == 2 && stderr.contains("no root"), "{code} {stderr}");
}
