//! Advisory locks on files of the directory: who leads, who changes the state, who is alive.
//!
//! Promises: a lock is gone with its process, however that ended; taking one never waits for ever. A lock says nothing
//! about processes on other machines unless the file system's locks do.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// Between two tries while somebody else has it.
const PAUSE: Duration = Duration::from_millis(5);

/// Why a lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The file cannot be used.
    #[error("cannot lock {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process keeps it.
    #[error("another process has held {} for {waited:?}", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
        /// For how long it was tried.
        waited: Duration,
    },
}

/// A lock that is held; dropping it gives it back.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock if nobody has it.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn try_take(path: &Path) -> Result<Option<Self>, LockError> {
        let failed = |source| LockError::Io { path: path.into(), source };
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Takes the lock, waiting for at most `patience`.
    ///
    /// # Errors
    /// When the file cannot be used, or another process keeps the lock.
    pub fn take(path: &Path, patience: Duration) -> Result<Self, LockError> {
        let start = Instant::now();
        loop {
            if let Some(lock) = Self::try_take(path)? {
                return Ok(lock);
            }
            if start.elapsed() >= patience {
                return Err(LockError::Busy { path: path.into(), waited: patience });
            }
            std::thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::Scratch;

    #[test]
    fn one_holds_it_and_the_next_gets_it_after() {
        let scratch = Scratch::new();
        let path = scratch.path().join("lock");
        let held = Lock::try_take(&path).unwrap().unwrap();
        assert!(Lock::try_take(&path).unwrap().is_none());
        let busy = Lock::take(&path, Duration::from_millis(20)).unwrap_err();
        assert!(matches!(busy, LockError::Busy { .. }));
        let other = path.clone();
        let waiting = std::thread::spawn(move || Lock::take(&other, Duration::from_secs(20)));
        drop(held);
        assert!(waiting.join().unwrap().is_ok());
        assert!(matches!(Lock::try_take(&scratch.path().join("no/lock")), Err(LockError::Io { .. })));
    }
}
