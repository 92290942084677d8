//! Where records wait until all are there: a file without a name, in the temporary directory.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// The file.
#[derive(Debug)]
pub(crate) struct Spill {
    file: BufWriter<File>,
    bytes: u64,
}

impl Spill {
    pub(crate) fn new() -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("picket-verify-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(Self { file: BufWriter::with_capacity(1 << 20, file), bytes: 0 })
    }

    /// Appends bytes; where they begin.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        self.file.write_all(bytes)?;
        let at = self.bytes;
        self.bytes += bytes.len() as u64;
        Ok(at)
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// Bytes that were flushed, into `out`.
    pub(crate) fn read(&self, at: u64, length: u32, out: &mut Vec<u8>) -> io::Result<()> {
        out.resize(length as usize, 0);
        self.file.get_ref().read_exact_at(out, at)
    }
}
