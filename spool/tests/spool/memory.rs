//! A disk in memory that forgets what was not synced, and fails when it is told to.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use spool::{File, Storage};

use crate::Random;

#[derive(Debug, Default, Clone)]
struct Content {
    data: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    files: BTreeMap<String, Content>,
    /// Names that survive a power cut, and what stood in them when they were removed.
    durable: BTreeMap<String, Content>,
    /// Bytes that all files may have.
    pub(crate) capacity: Option<usize>,
    pub(crate) fail_sync: bool,
    pub(crate) fail_write: bool,
    /// Bytes of a failing write that are written nevertheless.
    pub(crate) torn: usize,
    pub(crate) fail_truncate: bool,
    pub(crate) free: Option<u64>,
    pub(crate) syncs: usize,
    /// Bytes of the longest read.
    pub(crate) longest_read: usize,
}

/// The disk.
#[derive(Debug, Default)]
pub(crate) struct Memory(Arc<Mutex<Inner>>);

impl Memory {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// What stands in a file.
    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        self.lock().files[name].data.clone()
    }

    pub(crate) fn replace(&self, name: &str, data: Vec<u8>) {
        let synced = data.clone();
        self.lock().files.insert(name.to_owned(), Content { data, synced });
    }

    /// The segments, oldest first.
    pub(crate) fn segments(&self) -> Vec<String> {
        self.lock().files.keys().filter(|name| name.ends_with(".seg")).cloned().collect()
    }

    /// What a machine finds after its power was cut: what was synced, and of the rest what chance has left.
    pub(crate) fn after_power_cut(&self, random: &mut Random) -> Arc<Self> {
        let inner = self.lock();
        let survivor = Self::default();
        for (name, content) in &inner.durable {
            let now = inner.files.get(name).unwrap_or(content);
            let mut data = now.synced.clone();
            if now.data.len() > data.len() {
                // Some of what was written after the sync; a page of it may be missing.
                let end = data.len() + random.below((now.data.len() - data.len()) as u64 + 1) as usize;
                let from = data.len();
                data.extend_from_slice(&now.data[from..end]);
                if end > from && random.below(3) == 0 {
                    let hole = from + random.below((end - from) as u64) as usize;
                    data[hole..(hole + 4096).min(end)].fill(0);
                }
            } else if random.below(2) == 0 {
                data = now.data.clone();
            }
            survivor.replace(name, data);
        }
        let names: Vec<String> = survivor.lock().files.keys().cloned().collect();
        let mut files = survivor.lock();
        for name in names {
            let content = files.files[&name].clone();
            files.durable.insert(name, content);
        }
        drop(files);
        Arc::new(survivor)
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Inner {
    fn file(&mut self, name: &str) -> io::Result<&mut Content> {
        self.files.get_mut(name).ok_or_else(missing)
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let used: usize = self.files.values().map(|content| content.data.len()).sum();
        let room = self.capacity.map_or(usize::MAX, |capacity| capacity.saturating_sub(used));
        let (fail, torn) = (self.fail_write, self.torn);
        let data = &mut self.file(name)?.data;
        if fail {
            data.extend_from_slice(&bytes[..torn.min(bytes.len())]);
            return Err(io::Error::from_raw_os_error(5));
        }
        data.extend_from_slice(&bytes[..room.min(bytes.len())]);
        if room < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.syncs += 1;
        if self.fail_sync {
            return Err(io::Error::from_raw_os_error(5));
        }
        let content = self.file(name)?;
        content.synced.clone_from(&content.data);
        Ok(())
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        if self.fail_truncate {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.file(name)?.data.truncate(length as usize);
        Ok(())
    }
}

impl Storage for Memory {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().files.keys().cloned().collect())
    }

    fn length(&self, name: &str) -> io::Result<u64> {
        Ok(self.lock().file(name)?.data.len() as u64)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let mut inner = self.lock();
        if inner.capacity == Some(0) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        assert!(inner.files.insert(name.to_owned(), Content::default()).is_none(), "{name} was there");
        Ok(Box::new(MemoryFile(Arc::clone(&self.0), name.to_owned())))
    }

    fn read(&self, name: &str, offset: u64, max: usize) -> io::Result<Vec<u8>> {
        let mut inner = self.lock();
        let rest = inner.file(name)?.data.get(offset as usize..).unwrap_or_default();
        let read = rest[..rest.len().min(max)].to_vec();
        inner.longest_read = inner.longest_read.max(read.len());
        Ok(read)
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8], durable: bool) -> io::Result<()> {
        let mut inner = self.lock();
        let content = inner.files.entry(name.to_owned()).or_default();
        let end = offset as usize + bytes.len();
        content.data.resize(content.data.len().max(end), 0);
        content.data[offset as usize..end].copy_from_slice(bytes);
        if durable {
            inner.sync(name)?;
            drop(inner);
            self.sync_directory()?;
        }
        Ok(())
    }

    fn truncate(&self, name: &str, length: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.truncate(name, length)?;
        inner.sync(name)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.lock().files.remove(name).map(drop).ok_or_else(missing)
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.durable = inner.files.clone();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.lock().free.unwrap_or(u64::MAX))
    }

    fn reopen(&self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryFile(Arc<Mutex<Inner>>, String);

impl File for MemoryFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().append(&self.1, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.lock().unwrap().sync(&self.1)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.0.lock().unwrap().truncate(&self.1, length)
    }
}
