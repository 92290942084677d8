//! A wall clock that a test moves, for programs that are started with it (libfaketime).
//!
//! Promises: timers are left alone: only what a program reads as the time of day is ahead of the machine's. Programs see
//! a move at their next look. What the library leaves behind of a program that is killed is removed. Leaves to others:
//! which programs run by it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};

use crate::RunDir;

/// Where distributions put the library; of two variants the one for programs with threads.
const LIBRARIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// The clock; copies are the same one.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    library: &'static str,
    directory: RunDir,
    began: SystemTime,
}

impl Clock {
    /// A clock that agrees with the machine's so far.
    ///
    /// # Errors
    /// When the library is missing.
    pub fn new() -> Result<Self> {
        let library = LIBRARIES.into_iter().find(|library| Path::new(library).is_file());
        let library = library.context("libfaketime is not installed (Debian: faketime)")?;
        let clock = Self(Arc::new(Shared { library, directory: RunDir::new("clock")?, began: SystemTime::now() }));
        clock.set_ahead(Duration::ZERO)?;
        Ok(clock)
    }

    /// Sets the clock this far ahead of the machine's.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn set_ahead(&self, ahead: Duration) -> Result<()> {
        let fresh = self.0.directory.write("offset.new", &format!("+{}\n", ahead.as_secs()))?;
        std::fs::rename(fresh, self.file()).context("cannot move the clock")
    }

    /// The words before a program that is linked dynamically, to run it by this clock. The library must not be in a program
    /// that becomes another user's: these words belong last.
    pub fn words(&self) -> Vec<String> {
        vec![
            "env".to_owned(),
            format!("LD_PRELOAD={}", self.0.library),
            format!("FAKETIME_TIMESTAMP_FILE={}", self.file().display()),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        ]
    }

    fn file(&self) -> PathBuf {
        self.0.directory.path().join("offset")
    }
}

impl Drop for Shared {
    /// Removes what the library keeps for a process and leaves behind when it is killed.
    fn drop(&mut self) {
        let Ok(entries) = std::fs::read_dir("/dev/shm") else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let pid = ["faketime_shm_", "sem.faketime_sem_"].iter().find_map(|kind| name.to_str()?.strip_prefix(kind));
            let ended = pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists());
            let is_new = entry.metadata().and_then(|entry| entry.modified()).is_ok_and(|made| made >= self.began);
            if ended && is_new {
                // Somebody else may have removed it.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::run;

    #[test]
    fn a_program_sees_each_move() {
        let clock = Clock::new().unwrap();
        let seconds = || {
            let words = clock.words();
            run(Command::new(&words[0]).args(&words[1..]).args(["date", "+%s"])).unwrap().trim().parse::<u64>().unwrap()
        };
        let machine = || SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        for hours in [0, 20, 3] {
            clock.set_ahead(Duration::from_secs(hours * 3600)).unwrap();
            let ahead = seconds() - machine();
            assert!(ahead.abs_diff(hours * 3600) < 60, "{ahead} s ahead, not {hours} h");
        }
    }
}
