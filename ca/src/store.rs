//! The directory that holds the authority's keys, certificates and token keys.
//!
//! Promises: nobody but the owner may enter it (0700) or read its files (0600), and a directory that is wider open is
//! refused, not repaired: somebody may have read it already. A file is replaced whole or not at all, and is on the disk
//! before the call returns. Leaves to others: what the files mean.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// No file of the authority comes near this many bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An operation on a file or the directory failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Group or others may read, write or enter.
    #[error("{} is open to others (mode {mode:04o}, at most {limit:04o} is allowed): its keys may be known", path.display())]
    TooOpen {
        /// The directory or file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What is allowed.
        limit: u32,
    },
    /// A file is larger than any of ours.
    #[error("{} has more than {bytes_max} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What is allowed.
        bytes_max: u64,
    },
}

/// A private directory.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Opens `path`, making it (0700) when it is not there.
    ///
    /// # Errors
    /// When it cannot be made, is no directory, or is open to others.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(StoreError::Io { action: "make", path: path.into(), source }),
        }
        check_mode(path, 0o700)?;
        Ok(Self { path: path.into() })
    }

    /// Where a file of this name is.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a directory inside, making it (0700) when it is not there.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn inside(&self, name: &str) -> Result<Self, StoreError> {
        Self::open(&self.file(name))
    }

    /// The names in it, in no order; what is not UTF-8 is not ours.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn names(&self) -> Result<Vec<String>, StoreError> {
        let failed = |source| StoreError::Io { action: "list", path: self.path.clone(), source };
        let entries = fs::read_dir(&self.path).map_err(failed)?;
        let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
        Ok(names.collect::<io::Result<Vec<_>>>().map_err(failed)?.into_iter().flatten().collect())
    }

    /// Removes a file; one that is not there is removed already.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        match fs::remove_file(self.file(name)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Io { action: "remove", path: self.file(name), source })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Reads a file; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, is open to others, or is larger than 1 MiB.
    pub fn read(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.read_up_to(name, FILE_BYTES_MAX)
    }

    /// As [`Self::read`], with another limit.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn read_up_to(&self, name: &str, bytes_max: u64) -> Result<Option<String>, StoreError> {
        let path = self.file(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { action: "open", path, source }),
        };
        check_mode(&path, 0o600)?;
        let mut text = String::new();
        let read = file.take(bytes_max.saturating_add(1)).read_to_string(&mut text);
        read.map_err(|source| StoreError::Io { action: "read", path: path.clone(), source })?;
        if text.len() as u64 > bytes_max {
            return Err(StoreError::TooLarge { path, bytes_max });
        }
        Ok(Some(text))
    }

    /// Replaces a file (0600): a crash at any instant leaves the old or the new one.
    ///
    /// # Errors
    /// When a step fails; the old file is then still there.
    pub fn write(&self, name: &str, content: &str) -> Result<(), StoreError> {
        self.write_with(name, |file| file.write_all(content.as_bytes()))
    }

    /// As [`Self::write`], with content that comes piece by piece.
    ///
    /// # Errors
    /// When it cannot be written or made; the old content is still there then, unless only the last step failed.
    pub fn write_with(
        &self,
        name: &str,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let target = self.file(name);
        let draft = self.file(&format!(".{name}.new"));
        let failed = |action| {
            let path = target.clone();
            move |source| StoreError::Io { action, path, source }
        };
        // A draft that a crash left is removed first: creating must not follow or reuse anything.
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(error)),
            Ok(()) | Err(_) => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).map_err(failed("write"))?;
        let mut buffered = io::BufWriter::new(&file);
        content(&mut buffered).and_then(|()| buffered.flush()).map_err(failed("write"))?;
        drop(buffered);
        file.sync_all().map_err(failed("sync"))?;
        fs::rename(&draft, &target).map_err(failed("replace"))?;
        File::open(&self.path).and_then(|directory| directory.sync_all()).map_err(failed("sync the directory of"))
    }
}

fn check_mode(path: &Path, limit: u32) -> Result<(), StoreError> {
    let metadata =
        fs::metadata(path).map_err(|source| StoreError::Io { action: "look at", path: path.into(), source })?;
    let mode = metadata.mode() & 0o777;
    if mode & !limit != 0 {
        return Err(StoreError::TooOpen { path: path.into(), mode, limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::Scratch;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_private_and_replaced_whole() {
        let scratch = Scratch::new();
        let path = scratch.path().join("ca");
        let directory = Directory::open(&path).unwrap();
        assert_eq!(directory.read("a").unwrap(), None);
        directory.write("a", "one").unwrap();
        fs::write(path.join(".a.new"), "left by a crash").unwrap();
        directory.write("a", "two").unwrap();
        assert_eq!(directory.read("a").unwrap().unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(path.join("a")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    }

    #[test]
    fn what_is_open_to_others_is_refused() {
        let scratch = Scratch::new();
        let path = scratch.path().join("ca");
        let directory = Directory::open(&path).unwrap();
        directory.write("key", "secret").unwrap();
        fs::set_permissions(path.join("key"), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(directory.read("key"), Err(StoreError::TooOpen { mode: 0o640, .. })));
        for mode in [0o750, 0o701, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = Directory::open(&path).unwrap_err();
            assert!(error.to_string().contains(&format!("{mode:04o}")), "{error}");
        }
    }
}
