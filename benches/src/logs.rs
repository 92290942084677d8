//! Counts the lines of an access log while it is written, and empties it, so that a long run fills no disk.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom},
    path::PathBuf,
};

use anyhow::{Context, Result};

/// Bytes after which a file that was read to its end is emptied.
const EMPTY_BYTES: u64 = 64 << 20;

/// The lines of one file that hold a marker.
#[derive(Debug)]
pub(crate) struct Lines {
    path: PathBuf,
    marker: &'static [u8],
    offset: u64,
    /// The beginning of a line whose end was not there yet.
    rest: Vec<u8>,
    count: u64,
}

impl Lines {
    /// The file need not be there yet.
    pub(crate) fn new(path: PathBuf, marker: &'static [u8]) -> Self {
        Self { path, marker, offset: 0, rest: Vec::new(), count: 0 }
    }

    /// Whole lines with the marker since the beginning.
    pub(crate) fn count(&mut self) -> Result<u64> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            opened => opened.with_context(|| format!("cannot read {}", self.path.display()))?,
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut block = vec![0; 1 << 20];
        loop {
            let n = file.read(&mut block)?;
            if n == 0 {
                return Ok(self.count);
            }
            self.offset += n as u64;
            self.take(&block[..n]);
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let whole = self.rest.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let marker = self.marker;
        let holds = |line: &&[u8]| line.windows(marker.len()).take(64).any(|window| window == marker);
        self.count += self.rest[..whole].split(|&byte| byte == b'\n').filter(holds).count() as u64;
        self.rest.drain(..whole);
    }

    /// Empties the file if it is large; its writer must append, and be silent now.
    pub(crate) fn empty(&mut self) -> Result<()> {
        self.count()?;
        if self.offset > EMPTY_BYTES {
            OpenOptions::new().write(true).open(&self.path)?.set_len(0)?;
            self.offset = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_also_in_pieces() {
        let mut lines = Lines::new(PathBuf::new(), b" request ");
        for piece in ["1 request a\n2 conn", "ection b\n3 re", "quest c\n", "4 request"] {
            lines.take(piece.as_bytes());
        }
        assert_eq!(lines.count, 2);
    }
}
