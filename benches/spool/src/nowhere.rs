//! A disk that takes everything and keeps nothing: what is left is the writer's own work.

use std::io;

use spool::{File, Storage};

#[derive(Debug)]
pub(crate) struct Nowhere;

impl Storage for Nowhere {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn length(&self, _name: &str) -> io::Result<u64> {
        Ok(0)
    }

    fn create(&self, _name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(Self))
    }

    fn read(&self, _name: &str, _offset: u64, _max: usize) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn write_at(&self, _name: &str, _offset: u64, _bytes: &[u8], _durable: bool) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&self, _name: &str, _length: u64) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn reopen(&self) -> io::Result<()> {
        Ok(())
    }
}

impl File for Nowhere {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        // The compiler must not leave the work out.
        std::hint::black_box(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&mut self, _length: u64) -> io::Result<()> {
        Ok(())
    }
}
