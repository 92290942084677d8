//! How far a sink has acknowledged, in two slots of a small file, so that a torn write costs nothing. Each sink has its own file.

use std::io;

use crate::{Sink, Storage, checksum::crc32c};

const MAGIC: &[u8; 8] = b"PICKETCU";
const SLOT_BYTES: usize = 36;
const SLOTS: [u64; 2] = [0, 512];

/// How far a sink has acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Counts the writes.
    pub(crate) generation: u64,
    /// The lowest number that is not acknowledged.
    pub(crate) next: u64,
    /// The time of the last acknowledged batch.
    pub(crate) time: u64,
}

impl Cursor {
    fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut out = [0; SLOT_BYTES];
        out[..8].copy_from_slice(MAGIC);
        for (at, number) in [(8, self.generation), (16, self.next), (24, self.time)] {
            out[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let checksum = crc32c([&out[..32]]).to_le_bytes();
        out[32..].copy_from_slice(&checksum);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; SLOT_BYTES] = bytes.get(..SLOT_BYTES)?.try_into().ok()?;
        let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let whole = &bytes[..8] == MAGIC && bytes[32..] == crc32c([&bytes[..32]]).to_le_bytes();
        whole.then_some(Self { generation: number(8)?, next: number(16)?, time: number(24)? })
    }

    /// The newest whole slot, if there is one.
    pub(crate) fn load(storage: &dyn Storage, sink: Sink) -> io::Result<Option<Self>> {
        let bytes = match storage.read(sink.cursor_file(), 0, SLOTS[1] as usize + SLOT_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let slots = SLOTS.iter().filter_map(|&at| Self::decode(bytes.get(at as usize..)?));
        Ok(slots.max_by_key(|slot| slot.generation))
    }

    /// Writes the cursor over the older slot.
    pub(crate) fn store(&mut self, storage: &dyn Storage, sink: Sink, durable: bool) -> io::Result<()> {
        self.generation += 1;
        storage.write_at(sink.cursor_file(), SLOTS[(self.generation % 2) as usize], &self.encode(), durable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_write_leaves_the_other_slot() {
        let directory = std::env::temp_dir().join(format!("picket-cursor-{}", std::process::id()));
        let disk = crate::Disk::open(&directory).unwrap();
        assert_eq!(Cursor::load(&disk, Sink::Otlp).unwrap(), None);
        let mut cursor = Cursor { generation: 0, next: 5, time: 6 };
        for next in 6..9 {
            let before = cursor;
            cursor.next = next;
            cursor.store(&disk, Sink::Otlp, true).unwrap();
            assert_eq!(Cursor::load(&disk, Sink::Otlp).unwrap(), Some(cursor));
            if before.generation > 0 {
                let slot = SLOTS[(cursor.generation % 2) as usize];
                disk.write_at("cursor", slot + 20, &[0xff; 8], false).unwrap();
                assert_eq!(Cursor::load(&disk, Sink::Otlp).unwrap(), Some(before));
                disk.write_at("cursor", slot, &cursor.encode(), false).unwrap();
            }
        }
        std::fs::remove_dir_all(directory).unwrap();
    }
}
