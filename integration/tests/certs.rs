//! `picket certs` and `picket check certs` against a real authority: what they show, what they change, how they end.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::{Process, RunDir, Stream, binaries, run, until};

const DEADLINE: Duration = Duration::from_secs(60);

struct Rig {
    directory: RunDir,
    ca: Process,
    picket: PathBuf,
}

impl Rig {
    fn start(name: &str) -> Result<Self> {
        let (directory, programs) = (RunDir::new(name)?, binaries()?);
        let dir = directory.path().join("ca");
        let program = programs.join("picket-ca");
        let mut init = Command::new(&program);
        run(init.arg("init").arg("--dir").arg(&dir).args(["--trust-domain", "demo.picket.dev"]))?;
        let config = json!({
            "trustDomain": "demo.picket.dev",
            "dir": dir,
            "listen": "127.0.0.1:0",
            "leafLifetime": "10s",
            "rotation": { "absenceWindow": "0s" },
            "tokens": { "jwks": dir.join("jwks.json"), "issuer": "i", "audience": "a" },
        });
        let config = directory.write("ca.yaml", &config.to_string())?;
        let mut command = Command::new(program);
        command.arg("run").arg("--config").arg(config);
        let mut ca = Process::spawn("ca", command, &directory)?;
        ca.wait_for_line(Stream::Err, "listening", DEADLINE)?;
        Ok(Self { directory, ca, picket: programs.join("picket") })
    }

    fn dir(&self) -> PathBuf {
        self.directory.path().join("ca")
    }

    fn picket(&self, arguments: &[&str], source: &Path) -> Result<(Option<i32>, String, String)> {
        let mut command = Command::new(&self.picket);
        let output = command.args(arguments).arg("--dir").arg(source).output()?;
        let text = |bytes| String::from_utf8(bytes);
        Ok((output.status.code(), text(output.stdout)?, text(output.stderr)?))
    }

    /// Must end with 0; what it printed.
    fn done(&self, arguments: &[&str]) -> Result<String> {
        let (code, stdout, stderr) = self.picket(arguments, &self.dir())?;
        ensure!(code == Some(0), "{arguments:?}: {code:?} {stderr}");
        Ok(stdout)
    }

    /// Must end with 1; why.
    fn refused(&self, arguments: &[&str]) -> Result<String> {
        let (code, stdout, stderr) = self.picket(arguments, &self.dir())?;
        ensure!(code == Some(1) && stdout.is_empty(), "{arguments:?}: {code:?} {stdout} {stderr}");
        Ok(stderr)
    }

    fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.done(&["--output", "json", "certs", "status"])?)?)
    }
}

#[test]
fn a_rotation_is_seen_driven_and_rolled_back() -> Result<()> {
    let rig = Rig::start("certs-rotate")?;
    let table = rig.done(&["certs", "status"])?;
    for text in ["demo.picket.dev", "root 1", "issuer 2 of root 1", "signing", "0 connected"] {
        assert!(table.contains(text), "{text}:\n{table}");
    }
    assert!(rig.refused(&["certs", "rollback"])?.contains("no root rotation is under way"));
    assert!(rig.refused(&["certs", "acknowledge", "--override"])?.contains("no root rotation"));
    assert!(rig.done(&["certs", "rotate", "--issuer"])?.contains("issuer 3 of root 1"));
    let begun = rig.done(&["certs", "rotate", "--root"])?;
    assert!(begun.contains("root rotation from 1 to 4"), "{begun}");
    until("the new root to sign", DEADLINE, || Ok((rig.status()?["rotation"]["stage"] == "sign").then_some(())))?;
    assert!(rig.refused(&["certs", "rotate", "--root"])?.contains("under way"));
    let table = rig.done(&["certs", "status"])?;
    assert!(table.contains("waits: the last certificate under the old root ends"), "{table}");
    let back = rig.done(&["certs", "rollback"])?;
    assert!(back.contains("root rotation from 4 to 1") && back.contains("rolling back"), "{back}");
    let ended = until("the end", DEADLINE, || {
        let status = rig.status()?;
        Ok(status["rotation"].is_null().then_some(status))
    })?;
    assert_eq!(ended["lastRotation"]["outcome"], "rootRolledBack");
    assert_eq!((ended["roots"].as_array().unwrap().len(), &ended["roots"][0]["id"]), (1, &json!(1)));
    Ok(())
}

#[test]
fn a_root_in_wrong_hands_is_dropped_before_its_last_leaf_has_ended() -> Result<()> {
    let rig = Rig::start("certs-drop")?;
    let digest = |status: &Value, number: usize| status["roots"][number]["sha256"].as_str().unwrap().to_owned();
    let old = digest(&rig.status()?, 0);
    let drop = |root: &str| rig.refused(&["certs", "drop", "--root", root, "--override"]);
    assert!(drop(&old)?.contains("root 1 signs: rotate the root first"));
    assert!(drop(&"ab".repeat(32))?.contains("no root of the trust bundle"));
    assert!(drop("ab")?.contains("64 hexadecimal digits"));
    assert_eq!(rig.picket(&["certs", "drop", "--root", &old], &rig.dir())?.0, Some(64), "it must be said");
    rig.done(&["certs", "rotate", "--root"])?;
    let signs = until("the new root to sign", DEADLINE, || {
        let status = rig.status()?;
        Ok((status["rotation"]["stage"] == "sign").then_some(status))
    })?;
    assert!(drop(&digest(&signs, 1))?.contains("signs: rotate the root first"));
    rig.done(&["certs", "drop", "--root", &old, "--override"])?;
    let status = rig.status()?;
    assert_eq!((status["lastRotation"]["outcome"].as_str(), status["rotation"].is_null()), (Some("rootDropped"), true));
    assert_eq!((status["roots"].as_array().unwrap().len(), digest(&status, 0)), (1, digest(&signs, 1)));
    let bundle = std::fs::read_to_string(rig.dir().join("root.pem"))?;
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 1);
    assert!(drop(&old)?.contains("no root of the trust bundle"), "it is gone");
    Ok(())
}

#[test]
fn somebody_is_denied_and_let_in_again() -> Result<()> {
    let rig = Rig::start("certs-deny")?;
    let id = "spiffe://demo.picket.dev/ns/demo/sa/web";
    let denied = rig.done(&["certs", "deny", "--identity", id, "--reason", "it was stolen"])?;
    assert!(denied.contains(id) && denied.contains("it was stolen"), "{denied}");
    assert!(rig.refused(&["certs", "deny", "--identity", id])?.contains("already"));
    let key = "ab".repeat(32);
    for (option, value) in [("--serial", "4F:00"), ("--key", &key), ("--pod-uid", "7")] {
        rig.done(&["certs", "deny", option, value])?;
    }
    let status = rig.status()?;
    let subjects: Vec<_> =
        status["denied"].as_array().unwrap().iter().map(|denied| denied["subject"].clone()).collect();
    let expected = [json!({"identity": id}), json!({"serial": "4f00"}), json!({"key": key}), json!({"podUid": "7"})];
    assert_eq!(subjects, expected);
    for (option, value) in [("--serial", "xyz"), ("--key", "ab"), ("--identity", "web"), ("--pod-uid", "")] {
        rig.refused(&["certs", "deny", option, value])?;
    }
    assert!(!rig.done(&["certs", "undeny", "--identity", id])?.contains(id));
    assert!(rig.refused(&["certs", "undeny", "--identity", id])?.contains("not denied"));
    Ok(())
}

#[test]
fn a_check_says_by_its_exit_code_whether_an_end_is_near() -> Result<()> {
    let mut rig = Rig::start("certs-check")?;
    let socket = rig.dir().join("admin.sock");
    let check = |within: &str, source: [&str; 2]| {
        let output = Command::new(&rig.picket).args(["check", "certs", "--fail-within", within]).args(source).output();
        Ok::<_, anyhow::Error>(output?.status.code())
    };
    let (dir, socket) = (rig.dir(), socket.to_str().unwrap().to_owned());
    let dir = dir.to_str().unwrap();
    for source in [["--dir", dir], ["--socket", &socket]] {
        assert_eq!(check("30d", source)?, Some(0), "{source:?}");
        assert_eq!(check("366d", source)?, Some(1), "{source:?}: the issuer ends");
    }
    rig.ca.terminate()?;
    assert!(rig.ca.wait(DEADLINE)?.success());
    assert_eq!(check("30d", ["--dir", dir])?, Some(0), "it need not run");
    assert_eq!(check("30d", ["--socket", &socket])?, Some(2));
    assert_eq!(rig.picket(&["certs", "status"], &rig.dir())?.0, Some(2));
    Ok(())
}
