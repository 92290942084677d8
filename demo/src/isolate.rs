//! Fresh namespaces for the demo, as root or as an ordinary user.
//!
//! Promises: replaces the process by one inside new namespaces, so that there is no parent to forget; as an ordinary user
//! a missing prerequisite is named together with its remedy.
//! Leaves to others: the network inside (`testkit`).

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Error, anyhow};

/// Becomes root of fresh namespaces and starts again there. Returns only on failure.
///
/// With `keep` process ids stay those of the machine, so that what is printed can be used from outside.
pub(crate) fn enter(keep: bool, seconds: u64) -> Error {
    let root = rustix::process::geteuid().is_root();
    if !root && let Some(missing) = missing_prerequisite() {
        return missing;
    }
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return Error::new(error).context("cannot find my own program"),
    };
    let mut command = Command::new("unshare");
    if !root {
        command.args(["--user", "--map-auto", "--map-root-user"]);
    }
    command.args(["--mount", "--net", "--fork", "--kill-child"]);
    if !keep {
        command.args(["--pid", "--mount-proc"]);
    }
    command.arg("--").arg(program).args(["--inside", "--seconds", &seconds.to_string()]);
    if keep {
        command.arg("--keep");
    }
    Error::new(command.exec()).context("cannot run unshare (Debian package util-linux)")
}

/// What an ordinary user needs to have several user ids in a namespace of his own.
fn missing_prerequisite() -> Option<Error> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&search).any(|directory| directory.join("newuidmap").is_file()) {
        return Some(anyhow!("without root the demo needs newuidmap: sudo apt-get install uidmap"));
    }
    let user = user_name()?;
    let uid = rustix::process::geteuid().as_raw().to_string();
    let missing = ["/etc/subuid", "/etc/subgid"].iter().find(|file| !has_range(Path::new(file), &user, &uid))?;
    Some(anyhow!(
        "{missing} gives no ids to {user}, and without root the demo needs them: \
         sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
    ))
}

fn user_name() -> Option<String> {
    let output = Command::new("id").arg("--user").arg("--name").output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// Whether one line of subuid(5) gives enough ids to the user: those of pods go up to the proxy's 15002.
fn has_range(file: &Path, user: &str, uid: &str) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().any(|line| {
        let mut fields = line.split(':');
        let owner = fields.next();
        let count = fields.nth(1).and_then(|count| count.trim().parse::<u64>().ok());
        (owner == Some(user) || owner == Some(uid)) && count.is_some_and(|count| count > 15_002)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_must_be_the_users_own_and_large_enough() {
        let file = std::env::temp_dir().join(format!("picket-subuid-{}", std::process::id()));
        std::fs::write(&file, "alice:100000:65536\nbob:200000:1000\n1003:300000:65536\nbroken\n").unwrap();
        let has = |user, uid| has_range(&file, user, uid);
        assert!(has("alice", "1001"));
        assert!(!has("bob", "1002"), "too few");
        assert!(has("carol", "1003"), "by number");
        assert!(!has("dave", "1004"));
        std::fs::remove_file(&file).unwrap();
        assert!(!has("alice", "1001"), "no such file");
    }
}
