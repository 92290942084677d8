//! The bytes of a segment (docs/formats/segment.md): header, entries, and how to find the next whole entry after damage.
//!
//! Pure functions over slices. Damaged bytes give damage, never a panic and never a record.

use crate::{chain::Rule, checksum::crc32c, context::Contexts};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 96;
/// Bytes of an entry before its payload.
pub(crate) const ENTRY_BYTES: usize = 16;
/// Bytes of a payload at most.
pub(crate) const PAYLOAD_BYTES_MAX: usize = (2 << 20) + 16;
/// Numbers between two records at most: what a spool can lose in between. Bytes out of a request make greater ones, so that
/// the search for the next entry does not have to look at what they seem to be.
const SEQUENCE_DISTANCE_MAX: u64 = 1 << 40;
/// Bytes of the payload of a batch's end.
pub(crate) const BATCH_END_BYTES: usize = 44;

const MAGIC: &[u8; 8] = b"PICKETSG";
/// What is written. Version 2 has no records without a context.
const VERSION: u16 = 3;

/// What stands at the beginning of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// How the chain goes on in it: the version of the format, 1 to 3, says so.
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
        let version: u16 = match self.rule {
            Rule::Whole => 1,
            Rule::Context => VERSION,
        };
        out[8..10].copy_from_slice(&version.to_le_bytes());
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
        let rule = match u16::from_le_bytes([bytes[8], bytes[9]]) {
            1 => Rule::Whole,
            2 | VERSION => Rule::Context,
            _ => return None,
        };
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

fn header_checksum(bytes: &[u8; HEADER_BYTES]) -> u32 {
    crc32c([&bytes[..12], &bytes[16..]])
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
pub enum Kind {
    /// A record.
    Record,
    /// The end of a batch.
    BatchEnd,
    /// A record that reports a gap.
    Report,
}

/// How an entry says what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    Record = 1,
    BatchEnd = 2,
    Report = 3,
    /// A record whose context short ones leave out.
    Holder = 4,
    /// A record without its context.
    Short = 5,
}

impl Code {
    fn from_byte(byte: u8) -> Option<Self> {
        let all = [Self::Record, Self::BatchEnd, Self::Report, Self::Holder, Self::Short];
        all.into_iter().find(|code| *code as u8 == byte)
    }

    fn kind(self) -> Kind {
        match self {
            Self::Record | Self::Holder | Self::Short => Kind::Record,
            Self::BatchEnd => Kind::BatchEnd,
            Self::Report => Kind::Report,
        }
    }
}

/// One whole entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What it holds.
    pub kind: Kind,
    /// Its number.
    pub sequence: u64,
    /// Its content; of a short record, what it is with its context.
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
    code: Code,
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
    out[at + 3] = code as u8;
    out[at + 8..at + 16].copy_from_slice(&sequence.to_le_bytes());
    let checksum = checksum(epoch, &out[at..]).to_le_bytes();
    out[at + 4..at + 8].copy_from_slice(&checksum);
    Ok(payload)
}

/// The checksum of an entry, but for its own four bytes.
fn checksum(epoch: u64, entry: &[u8]) -> u32 {
    crc32c([&epoch.to_le_bytes(), &entry[..4], &entry[8..]])
}

/// An entry as it stands there.
#[derive(Clone, Copy)]
struct Raw<'a> {
    code: Code,
    sequence: u64,
    payload: &'a [u8],
}

/// What stands at a place of a segment.
enum Step<'a> {
    /// A whole entry, and where it ends.
    Whole(Raw<'a>, usize),
    /// Nothing more.
    End,
    /// Not all of it is in the slice.
    Cut,
    /// No entry.
    Damaged,
}

fn step(bytes: &[u8], at: usize, epoch: u64, last: u64) -> Step<'_> {
    let rest = &bytes[at..];
    if rest.is_empty() {
        return Step::End;
    }
    let Some(head) = rest.get(..ENTRY_BYTES) else { return Step::Cut };
    let length = usize::from(head[0]) | usize::from(head[1]) << 8 | usize::from(head[2]) << 16;
    let sequence = u64::from_le_bytes([head[8], head[9], head[10], head[11], head[12], head[13], head[14], head[15]]);
    let Some(code) = Code::from_byte(head[3]) else { return Step::Damaged };
    let in_order = match code {
        Code::Record | Code::Report | Code::Holder | Code::Short => {
            sequence > last && sequence - last <= SEQUENCE_DISTANCE_MAX
        }
        Code::BatchEnd => sequence >= last && length == BATCH_END_BYTES,
    };
    if length > PAYLOAD_BYTES_MAX || !in_order {
        return Step::Damaged;
    }
    let Some(entry) = rest.get(..ENTRY_BYTES + length) else { return Step::Cut };
    if u32::from_le_bytes([head[4], head[5], head[6], head[7]]) != checksum(epoch, entry) {
        return Step::Damaged;
    }
    Step::Whole(Raw { code, sequence, payload: &entry[ENTRY_BYTES..] }, at + entry.len())
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

/// Goes through the entries of a segment, from its first one on: later ones may leave out what earlier ones hold.
#[derive(Debug)]
pub struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    epoch: u64,
    last: u64,
    complete: bool,
    contexts: Contexts,
}

impl<'a> Scan<'a> {
    /// Over `bytes`, which go from the first entry to the end of the segment; numbers are greater than `last`.
    pub fn new(bytes: &'a [u8], epoch: u64, last: u64) -> Self {
        Self { bytes, at: 0, epoch, last, complete: true, contexts: Contexts::default() }
    }

    /// Goes on with more bytes of the segment, after the record `last`, with the contexts of the scan before. Unless they go
    /// to the end, it ends at the first place where there is no whole entry.
    pub(crate) fn resume(bytes: &'a [u8], epoch: u64, last: u64, contexts: Contexts, to_the_end: bool) -> Self {
        Self { bytes, at: 0, epoch, last, complete: to_the_end, contexts }
    }

    /// What is to be known of the bytes so far when it goes on behind them.
    pub(crate) fn into_contexts(self) -> Contexts {
        self.contexts
    }

    /// Where the last item ended; at the end of the scan: where the bytes begin that are no entry.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// The number of the last record so far.
    pub fn sequence(&self) -> u64 {
        self.last
    }

    /// Goes back to where [`Self::offset`] and [`Self::sequence`] were so.
    pub(crate) fn go_back(&mut self, offset: usize, sequence: u64) {
        (self.at, self.last) = (offset, sequence);
    }

    /// The next place with a whole entry.
    fn resync(&self) -> Option<usize> {
        (self.at + 1..self.bytes.len())
            .find(|&at| matches!(step(self.bytes, at, self.epoch, self.last), Step::Whole(..)))
    }

    /// The next entry, or what stands in the place of some; `None` at the end.
    pub fn advance(&mut self) -> Option<Scanned<'_>> {
        match step(self.bytes, self.at, self.epoch, self.last) {
            Step::Whole(raw, end) => {
                let offset = std::mem::replace(&mut self.at, end);
                self.last = raw.sequence;
                Some(self.whole(raw, offset))
            }
            Step::End => None,
            Step::Cut | Step::Damaged if !self.complete => None,
            Step::Cut | Step::Damaged => {
                let (offset, first) = (self.at, self.last + 1);
                self.at = self.resync()?;
                let Step::Whole(raw, _) = step(self.bytes, self.at, self.epoch, self.last) else { return None };
                // A batch's end carries the number of its last record.
                let last = match raw.code.kind() {
                    Kind::Record | Kind::Report => raw.sequence - 1,
                    Kind::BatchEnd => raw.sequence,
                };
                Some(Scanned::Damage { offset, bytes: self.at - offset, first, last })
            }
        }
    }

    fn whole(&mut self, Raw { code, sequence, payload }: Raw<'a>, offset: usize) -> Scanned<'_> {
        let payload = match code {
            Code::Record | Code::BatchEnd | Code::Report => payload,
            Code::Holder => {
                self.contexts.hold(sequence, payload);
                payload
            }
            Code::Short if self.contexts.find(payload).is_none() => return self.without_context(sequence, offset),
            Code::Short => self.contexts.rebuild(payload),
        };
        Scanned::Entry(Entry { kind: code.kind(), sequence, payload })
    }

    /// Short records, one after the other, of whose contexts both that hold them are damaged.
    fn without_context(&mut self, first: u64, offset: usize) -> Scanned<'_> {
        while let Step::Whole(raw, end) = step(self.bytes, self.at, self.epoch, self.last)
            && raw.code == Code::Short
            && raw.sequence == self.last + 1
            && self.contexts.find(raw.payload).is_none()
        {
            (self.at, self.last) = (end, raw.sequence);
        }
        Scanned::Damage { offset, bytes: self.at - offset, first, last: self.last }
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
        append::<()>(&mut bytes, 3, Code::Record, 8, |out| {
            out.extend_from_slice(b"payload");
            Ok(())
        })
        .unwrap();
        let whole = Entry { kind: Kind::Record, sequence: 8, payload: b"payload" };
        assert_eq!(Scan::new(&bytes, 3, 7).advance(), Some(Scanned::Entry(whole)));
        assert_eq!(Scan::new(&bytes, 4, 7).advance(), None);
        assert_eq!(Scan::new(&bytes, 3, 8).advance(), None, "numbers increase");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Scan::new(&damaged, 3, 7).advance(), None, "bit {bit}");
        }
    }
}
