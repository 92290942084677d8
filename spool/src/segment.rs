//! The bytes of a segment (docs/formats/segment.md): header, entries, and how to find the next whole entry after damage.
//!
//! Pure functions over slices. Damaged bytes give damage, never a panic and never a record.

use crate::chain::Rule;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 96;
/// Bytes of an entry before its payload.
pub(crate) const ENTRY_BYTES: usize = 16;
/// Bytes of a payload at most.
pub(crate) const PAYLOAD_BYTES_MAX: usize = (2 << 20) + 16;
/// Bytes of the payload of a batch's end.
pub(crate) const BATCH_END_BYTES: usize = 44;

const MAGIC: &[u8; 8] = b"PICKETSG";

/// What stands at the beginning of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// How the chain goes on in it: the version of the format, 1 or 2, says so.
    pub rule: Rule,
    /// Whose numbers these are.
    pub stream: [u8; 16],
    /// In the checksum of each entry.
    pub epoch: u64,
    /// No record in the segment has a lower number.
    pub first: u64,
    /// When the segment was made, in nanoseconds since 1970 UTC.
    pub created: u64,
    /// The time of the last batch before it.
    pub previous: u64,
    /// The chain digest of all records before it.
    pub digest: [u8; 32],
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&version(self.rule).to_le_bytes());
        out[10..12].copy_from_slice(&(HEADER_BYTES as u16).to_le_bytes());
        out[16..32].copy_from_slice(&self.stream);
        for (at, number) in [(32, self.epoch), (40, self.first), (48, self.created), (56, self.previous)] {
            out[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        out[64..].copy_from_slice(&self.digest);
        let checksum = header_checksum(&out).to_le_bytes();
        out[12..16].copy_from_slice(&checksum);
        out
    }

    /// Reads a header; `None` when it is damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.get(..HEADER_BYTES)?.try_into().ok()?;
        let found = u16::from_le_bytes([bytes[8], bytes[9]]);
        let rule = [Rule::Whole, Rule::Context].into_iter().find(|rule| version(*rule) == found)?;
        let checksum = u32::from_le_bytes(array(bytes, 12)?);
        if &bytes[..8] != MAGIC || checksum != header_checksum(bytes) {
            return None;
        }
        let number = |at| Some(u64::from_le_bytes(array(bytes, at)?));
        Some(Self {
            rule,
            stream: array(bytes, 16)?,
            epoch: number(32)?,
            first: number(40)?,
            created: number(48)?,
            previous: number(56)?,
            digest: array(bytes, 64)?,
        })
    }
}

const fn version(rule: Rule) -> u16 {
    match rule {
        Rule::Whole => 1,
        Rule::Context => 2,
    }
}

fn header_checksum(bytes: &[u8; HEADER_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..])
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// The name of a segment's file.
pub(crate) fn name(first: u64, epoch: u64) -> String {
    format!("{first:016x}-{epoch:016x}.seg")
}

/// First number and epoch out of the name of a segment's file.
pub fn parse_name(name: &str) -> Option<(u64, u64)> {
    let (first, epoch) = name.strip_suffix(".seg")?.split_once('-')?;
    let number = |text: &str| (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten();
    Some((number(first)?, number(epoch)?))
}

/// What an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A record.
    Record = 1,
    /// The end of a batch.
    BatchEnd = 2,
    /// A record that reports a gap.
    Report = 3,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Record, Self::BatchEnd, Self::Report].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One whole entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What it holds.
    pub kind: Kind,
    /// Its number.
    pub sequence: u64,
    /// Its content.
    pub payload: &'a [u8],
}

impl Entry<'_> {
    /// When the batch was written, and the chain digest after it; for [`Kind::BatchEnd`].
    pub fn batch_end(&self) -> Option<(u64, [u8; 32])> {
        (self.payload.len() == BATCH_END_BYTES).then_some(())?;
        Some((u64::from_le_bytes(array(self.payload, 4)?), array(self.payload, 12)?))
    }
}

/// The payload of a batch's end.
pub(crate) fn batch_end(records: u32, time: u64, digest: &[u8; 32]) -> [u8; BATCH_END_BYTES] {
    let mut out = [0; BATCH_END_BYTES];
    out[..4].copy_from_slice(&records.to_le_bytes());
    out[4..12].copy_from_slice(&time.to_le_bytes());
    out[12..].copy_from_slice(digest);
    out
}

/// Appends an entry whose payload is what `write` appends; gives the payload's place.
pub(crate) fn append<E>(
    out: &mut Vec<u8>,
    epoch: u64,
    kind: Kind,
    sequence: u64,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<std::ops::Range<usize>, E> {
    let at = out.len();
    out.extend_from_slice(&[0; ENTRY_BYTES]);
    if let Err(error) = write(out) {
        out.truncate(at);
        return Err(error);
    }
    let payload = at + ENTRY_BYTES..out.len();
    debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX, "numbered fields are shorter");
    out[at..at + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    out[at + 3] = kind as u8;
    out[at + 8..at + 16].copy_from_slice(&sequence.to_le_bytes());
    let checksum = checksum(epoch, &out[at..]).to_le_bytes();
    out[at + 4..at + 8].copy_from_slice(&checksum);
    Ok(payload)
}

/// The checksum of an entry, but for its own four bytes.
fn checksum(epoch: u64, entry: &[u8]) -> u32 {
    let head = crc32c::crc32c_append(crc32c::crc32c(&epoch.to_le_bytes()), &entry[..4]);
    crc32c::crc32c_append(head, &entry[8..])
}

/// What stands at a place of a segment.
enum Step<'a> {
    /// A whole entry, and where it ends.
    Whole(Entry<'a>, usize),
    /// Nothing more.
    End,
    /// Not all of it is in the slice.
    Short,
    /// No entry.
    Damaged,
}

fn step(bytes: &[u8], at: usize, epoch: u64, last: u64) -> Step<'_> {
    let rest = &bytes[at..];
    if rest.is_empty() {
        return Step::End;
    }
    let Some(head) = rest.get(..ENTRY_BYTES) else { return Step::Short };
    let length = usize::from(head[0]) | usize::from(head[1]) << 8 | usize::from(head[2]) << 16;
    let sequence = u64::from_le_bytes([head[8], head[9], head[10], head[11], head[12], head[13], head[14], head[15]]);
    let Some(kind) = Kind::from_byte(head[3]) else { return Step::Damaged };
    let in_order = match kind {
        Kind::Record | Kind::Report => sequence > last,
        Kind::BatchEnd => sequence >= last && length == BATCH_END_BYTES,
    };
    if length > PAYLOAD_BYTES_MAX || !in_order {
        return Step::Damaged;
    }
    let Some(entry) = rest.get(..ENTRY_BYTES + length) else { return Step::Short };
    if u32::from_le_bytes([head[4], head[5], head[6], head[7]]) != checksum(epoch, entry) {
        return Step::Damaged;
    }
    Step::Whole(Entry { kind, sequence, payload: &entry[ENTRY_BYTES..] }, at + entry.len())
}

/// What a scan found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scanned<'a> {
    /// A whole entry.
    Entry(Entry<'a>),
    /// Bytes that are no entry, with whole entries behind them: their place, and the numbers that are missing
    /// (`first > last` when no record was among them).
    Damage {
        /// Where they begin, in the slice.
        offset: usize,
        /// How many they are.
        bytes: usize,
        /// The lowest number that may be missing.
        first: u64,
        /// The greatest one.
        last: u64,
    },
}

/// Goes through the entries of a segment.
#[derive(Debug, Clone)]
pub struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    epoch: u64,
    last: u64,
    complete: bool,
}

impl<'a> Scan<'a> {
    /// Over `bytes`, which go from an entry to the end of the segment, after the record `last`.
    pub fn new(bytes: &'a [u8], epoch: u64, last: u64) -> Self {
        Self { bytes, at: 0, epoch, last, complete: true }
    }

    /// Over the beginning of such bytes: ends at the first place where there is no whole entry.
    pub(crate) fn window(bytes: &'a [u8], epoch: u64, last: u64) -> Self {
        Self { complete: false, ..Self::new(bytes, epoch, last) }
    }

    /// Where the last item ended; at the end of the scan: where the bytes begin that are no entry.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// The number of the last record so far.
    pub fn sequence(&self) -> u64 {
        self.last
    }

    /// The next place with a whole entry.
    fn resync(&self) -> Option<usize> {
        (self.at + 1..self.bytes.len())
            .find(|&at| matches!(step(self.bytes, at, self.epoch, self.last), Step::Whole(..)))
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = Scanned<'a>;

    fn next(&mut self) -> Option<Scanned<'a>> {
        match step(self.bytes, self.at, self.epoch, self.last) {
            Step::Whole(entry, end) => {
                self.at = end;
                self.last = entry.sequence;
                Some(Scanned::Entry(entry))
            }
            Step::End => None,
            Step::Short | Step::Damaged if !self.complete => None,
            Step::Short | Step::Damaged => {
                let (offset, first) = (self.at, self.last + 1);
                self.at = self.resync()?;
                let Step::Whole(entry, _) = step(self.bytes, self.at, self.epoch, self.last) else { return None };
                // A batch's end carries the number of its last record.
                let last = match entry.kind {
                    Kind::Record | Kind::Report => entry.sequence - 1,
                    Kind::BatchEnd => entry.sequence,
                };
                Some(Scanned::Damage { offset, bytes: self.at - offset, first, last })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written_and_no_flipped_bit_passes() {
        let rule = Rule::Context;
        let header = Header { rule, stream: [7; 16], epoch: 1, first: 2, created: 3, previous: 4, digest: [9; 32] };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Some(header));
        for bit in 0..HEADER_BYTES * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&damaged), None, "bit {bit}");
        }
    }

    #[test]
    fn names_sort_in_the_order_of_the_records() {
        assert_eq!(parse_name(&name(5, u64::MAX)), Some((5, u64::MAX)));
        assert!(name(9, 7) < name(10, 1) && name(255, 0) < name(256, 0));
        for wrong in ["cursor", "5-6.seg", "000000000000000g-0000000000000001.seg"] {
            assert_eq!(parse_name(wrong), None);
        }
    }

    #[test]
    fn no_flipped_bit_of_an_entry_passes_and_another_epoch_does_not_either() {
        let mut bytes = Vec::new();
        append::<()>(&mut bytes, 3, Kind::Record, 8, |out| {
            out.extend_from_slice(b"payload");
            Ok(())
        })
        .unwrap();
        let whole = Entry { kind: Kind::Record, sequence: 8, payload: b"payload" };
        assert_eq!(Scan::new(&bytes, 3, 7).next(), Some(Scanned::Entry(whole)));
        assert_eq!(Scan::new(&bytes, 4, 7).next(), None);
        assert_eq!(Scan::new(&bytes, 3, 8).next(), None, "numbers increase");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Scan::new(&damaged, 3, 7).next(), None, "bit {bit}");
        }
    }
}
