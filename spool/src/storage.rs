//! What a spool needs of a file system, behind a small trait, so that tests can take the disk away, fill it, slow it down
//! or cut the power; and the real one.

use std::{
    fs, io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rustix::fs::{FallocateFlags, FlockOperation};

use crate::Error;

/// One directory with files. All calls block.
///
/// Each fails with the error of the system call behind it.
#[expect(clippy::missing_errors_doc, reason = "said once for all")]
pub trait Storage: std::fmt::Debug + Send + Sync + 'static {
    /// The names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// How long a file is.
    fn length(&self, name: &str) -> io::Result<u64>;
    /// Makes a new file to append to.
    fn create(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// At most `max` bytes from `offset` on; fewer at the end.
    fn read(&self, name: &str, offset: u64, max: usize) -> io::Result<Vec<u8>>;
    /// Writes bytes in place; the file is made if it is not there. With `durable` they are synced, and the directory too.
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8], durable: bool) -> io::Result<()>;
    /// Puts bytes at the end of a file, which is made if it is not there, and syncs them and the directory. After an error the
    /// file is as before, as far as the system lets it.
    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let is_new = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let length = self.length(name).or_else(|error| if is_new(&error) { Ok(0) } else { Err(error) })?;
        self.write_at(name, length, bytes, true)
    }
    /// Shortens a file, and syncs it.
    fn truncate(&self, name: &str, length: u64) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes what was created and removed durable.
    fn sync_directory(&self) -> io::Result<()>;
    /// What is free on the file system.
    fn free_bytes(&self) -> io::Result<u64>;
    /// Makes a directory that was lost usable again.
    fn reopen(&self) -> io::Result<()>;
}

/// A file that grows.
#[expect(clippy::missing_errors_doc, reason = "said once for all")]
pub trait File: std::fmt::Debug + Send {
    /// Asks for room up to `length` bytes, which costs less than finding it for each write. The file does not get longer by it,
    /// and whether there is room shows when something is written.
    fn reserve(&mut self, _length: u64) {}
    /// Appends all of `bytes`; after an error the file may hold some of them.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes all that was appended durable. Fails too when the file has no name any more.
    fn sync(&mut self) -> io::Result<()>;
    /// Shortens the file, and gives back what was reserved behind it.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
}

/// A directory of a real file system, held by a lock.
#[derive(Debug)]
pub struct Disk {
    directory: PathBuf,
    /// Held as long as the value lives; the kernel lets it go when the process ends.
    lock: Mutex<fs::File>,
}

impl Disk {
    /// Makes the directory (mode 0700) if it is not there, and locks it for this process.
    ///
    /// # Errors
    /// When another process holds it, or it cannot be used.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Storage { what: format!("{directory:?} cannot be used"), source };
        let lock = lock(directory).map_err(|error| {
            let locked = error.kind() == io::ErrorKind::WouldBlock;
            if locked { Error::Locked(directory.to_owned()) } else { failed(error) }
        })?;
        Ok(Self { directory: directory.to_owned(), lock: Mutex::new(lock) })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

fn lock(directory: &Path) -> io::Result<fs::File> {
    let mut builder = fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(directory)?;
    let file =
        fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(directory.join("lock"))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

impl Storage for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn length(&self, name: &str) -> io::Result<u64> {
        Ok(fs::metadata(self.path(name))?.len())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let file = fs::OpenOptions::new().append(true).create_new(true).mode(0o600).open(self.path(name))?;
        Ok(Box::new(DiskFile(file)))
    }

    fn read(&self, name: &str, offset: u64, max: usize) -> io::Result<Vec<u8>> {
        let file = fs::File::open(self.path(name))?;
        let left = file.metadata()?.len().saturating_sub(offset);
        let mut bytes = vec![0; max.min(usize::try_from(left).unwrap_or(max))];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8], durable: bool) -> io::Result<()> {
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.path(name))?;
        file.write_all_at(bytes, offset)?;
        if durable {
            file.sync_data()?;
            self.sync_directory()?;
        }
        Ok(())
    }

    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // One open file for all of it: whoever reads it may rename it at any time.
        let mut file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(self.path(name))?;
        let length = file.metadata()?.len();
        if let Err(error) = io::Write::write_all(&mut file, bytes).and_then(|()| file.sync_data()) {
            file.set_len(length)?;
            return Err(error);
        }
        self.sync_directory()
    }

    fn truncate(&self, name: &str, length: u64) -> io::Result<()> {
        let file = fs::OpenOptions::new().write(true).open(self.path(name))?;
        file.set_len(length)?;
        file.sync_data()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync_directory(&self) -> io::Result<()> {
        fs::File::open(&self.directory)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let found = rustix::fs::statvfs(&self.directory)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn reopen(&self) -> io::Result<()> {
        // Nothing panics while it holds the lock.
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if held.metadata()?.nlink() == 0 {
            *held = lock(&self.directory)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct DiskFile(fs::File);

impl File for DiskFile {
    fn reserve(&mut self, length: u64) {
        // Not each file system can do it, and then nothing is lost but time; but what it could do is given back.
        if rustix::fs::fallocate(&self.0, FallocateFlags::KEEP_SIZE, 0, length).is_err() {
            let _kept = self.0.metadata().and_then(|metadata| self.0.set_len(metadata.len()));
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        io::Write::write_all(&mut self.0, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()?;
        if self.0.metadata()?.nlink() == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the segment was removed by somebody else"));
        }
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }
}
