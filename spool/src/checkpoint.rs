//! Checkpoints: a stretch of the chain, sealed by the workload's own key (docs/formats/evidence.md); and the last of them, kept
//! beside the segments, so that a cut tail shows.
//!
//! Keys are not known here: who signs is an argument.

use std::io;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use record::{Event, EventName, Severity, Uid, Value, field, key, line, otlp};

use crate::{Error, Spool, Storage, append::REPORTS_MAX, chain, checksum::crc32c, storage};

/// Where the last checkpoint is kept.
pub const CHECKPOINT_FILE: &str = "checkpoint";
/// A checkpoint's own number is that of the last record which it seals and at most so much more: only reports come between.
pub const DISTANCE_MAX: u64 = REPORTS_MAX as u64 + 1;

/// What a signature is good for, so that it is good for nothing else.
const DOMAIN: &[u8; 32] = b"picket.dev checkpoint version 2\0";
const MESSAGE_BYTES: usize = 136;

const MAGIC: &[u8; 8] = b"PICKETCP";
const SLOTS: [usize; 2] = [0, 32 << 10];
const SLOT_HEAD_BYTES: usize = 32;

/// A stretch of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// Whose numbers these are.
    pub stream: [u8; 16],
    /// The number of the first record.
    pub first: u64,
    /// The number of the last one.
    pub last: u64,
    /// When it was signed, in nanoseconds since 1970 UTC.
    pub time: u64,
    /// The chain digest before the first record.
    pub before: [u8; 32],
    /// The chain digest after the last one.
    pub digest: [u8; 32],
}

impl Seal {
    /// The bytes that are signed.
    pub fn message(&self) -> [u8; MESSAGE_BYTES] {
        let mut out = [0; MESSAGE_BYTES];
        out[..32].copy_from_slice(DOMAIN);
        out[32..48].copy_from_slice(&self.stream);
        for (at, number) in [(48, self.first), (56, self.last), (64, self.time)] {
            out[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        out[72..104].copy_from_slice(&self.before);
        out[104..].copy_from_slice(&self.digest);
        out
    }
}

/// What a signer adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// ECDSA over P-256 with SHA-256, in ASN.1 DER.
    pub signature: Vec<u8>,
    /// The leaf whose key signed, and the certificates between it and a root, each in DER.
    pub chain: Vec<Vec<u8>>,
}

/// A sealed stretch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// What is sealed.
    pub seal: Seal,
    /// By whom.
    pub signed: Signed,
}

impl Checkpoint {
    /// Appends the record as a finished field without a number; false when the certificates are too long for one.
    fn encode(&self, uid: Uid, out: &mut Vec<u8>) -> bool {
        let Signed { signature, chain } = &self.signed;
        let Some((leaf, issuers)) = chain.split_first() else { return false };
        let leaf = STANDARD.encode(leaf);
        let issuers = issuers.iter().map(|der| STANDARD.encode(der)).collect::<Vec<_>>().join(",");
        let signature = STANDARD.encode(signature);
        let (stream, before, digest) = (hex(&self.seal.stream), hex(&self.seal.before), hex(&self.seal.digest));
        let attributes = [
            (key::CHECKPOINT_STREAM, Value::Text(&stream)),
            (key::CHECKPOINT_FIRST, Value::Int(self.seal.first)),
            (key::CHECKPOINT_LAST, Value::Int(self.seal.last)),
            (key::CHECKPOINT_BEFORE, Value::Text(&before)),
            (key::CHECKPOINT_DIGEST, Value::Text(&digest)),
            (key::CHECKPOINT_SIGNATURE, Value::Text(&signature)),
            (key::CHECKPOINT_CERTIFICATE, Value::Certificates(&leaf)),
            (key::CHECKPOINT_ISSUERS, Value::Certificates(&issuers)),
        ];
        let (name, severity) = (EventName::Checkpoint, Severity::Info);
        Event { uid, name, time_unix_nanos: self.seal.time, severity, attributes: &attributes }.encode(out);
        leaf.len().max(issuers.len()) <= otlp::CERTIFICATES_BYTES_MAX
    }

    /// Reads the record (the content of its field) of a checkpoint; `None` when it is none, or not whole.
    pub fn decode(content: &[u8]) -> Option<Self> {
        let (time, name) = line::time_and_name(content);
        if name != EventName::Checkpoint.as_str() {
            return None;
        }
        let find = |name: &str| line::attributes(content).find(|(key, _)| *key == name).map(|(_, value)| value);
        let text = |name: &str| if let line::Attribute::Text(text) = find(name)? { Some(text) } else { None };
        let int = |name: &str| if let line::Attribute::Int(number) = find(name)? { Some(number as u64) } else { None };
        let der = |text: &str| STANDARD.decode(text).ok();
        let issuers = text(key::CHECKPOINT_ISSUERS)?.split(',').filter(|text| !text.is_empty());
        let chain = std::iter::once(text(key::CHECKPOINT_CERTIFICATE)?).chain(issuers).map(der);
        Some(Self {
            seal: Seal {
                stream: unhex(text(key::CHECKPOINT_STREAM)?)?,
                first: int(key::CHECKPOINT_FIRST)?,
                last: int(key::CHECKPOINT_LAST)?,
                time,
                before: unhex(text(key::CHECKPOINT_BEFORE)?)?,
                digest: unhex(text(key::CHECKPOINT_DIGEST)?)?,
            },
            signed: Signed { signature: der(text(key::CHECKPOINT_SIGNATURE)?)?, chain: chain.collect::<Option<_>>()? },
        })
    }
}

/// The last checkpoint, outside the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its own number.
    pub number: u64,
    /// Its record, as in the segment: one finished field.
    pub field: Vec<u8>,
    /// What it says.
    pub checkpoint: Checkpoint,
    generation: u64,
}

impl Kept {
    fn encode(&self) -> Option<Vec<u8>> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&u32::try_from(self.field.len()).ok()?.to_le_bytes());
        let checksum = crc32c([&out, &self.field]);
        out.extend_from_slice(&checksum.to_le_bytes());
        out.extend_from_slice(&self.field);
        (out.len() <= SLOTS[1]).then_some(out)
    }

    fn slot(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(SLOT_HEAD_BYTES)?;
        let number = |at: usize| head[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let four = |at: usize| head[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        let field = rest.get(..usize::try_from(four(24)?).ok()?)?;
        if &head[..8] != MAGIC || four(28)? != crc32c([&head[..28], field]) {
            return None;
        }
        let checkpoint = Checkpoint::decode(field::contents(field).next()?.ok()?)?;
        Some(Self { number: number(16)?, field: field.to_vec(), checkpoint, generation: number(8)? })
    }

    /// Reads the file `checkpoint` of a spool; `None` when neither of its slots is whole.
    pub fn decode(file: &[u8]) -> Option<Self> {
        SLOTS.iter().filter_map(|&at| Self::slot(file.get(at..)?)).max_by_key(|kept| kept.generation)
    }

    pub(crate) fn load(storage: &dyn Storage) -> io::Result<Option<Self>> {
        match storage.read(CHECKPOINT_FILE, 0, 2 * SLOTS[1]) {
            Ok(bytes) => Ok(Self::decode(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Counts the writes of the file.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The chain digest after it.
    pub(crate) fn digest(&self) -> [u8; 32] {
        // What the checkpoint seals ends before it; reports may stand between, and then this is not known.
        chain::next(&self.checkpoint.seal.digest, self.number, &self.field)
    }
}

/// How far the chain is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sealed {
    /// The next checkpoint begins with this number.
    pub(crate) first: u64,
    /// The chain digest before it.
    pub(crate) before: [u8; 32],
    /// The number of the last checkpoint itself; 0 if there was none.
    pub(crate) number: u64,
    /// Counts the writes of the file.
    pub(crate) generation: u64,
}

impl Spool {
    /// Seals what was written since the last checkpoint, if anything was and `sign` can: syncs it, writes the checkpoint,
    /// syncs that, and keeps it beside the segments. The number of the checkpoint.
    ///
    /// # Errors
    /// When something cannot be written or synced; what is not sealed now is sealed by the next one.
    pub fn checkpoint(&mut self, now: u64, sign: &dyn Fn(&[u8]) -> Option<Signed>) -> Result<Option<u64>, Error> {
        self.report(now)?;
        self.sync()?;
        let last = self.tip.next - 1;
        if last <= self.sealed.number {
            return Ok(None);
        }
        let Sealed { first, before, generation, .. } = self.sealed;
        let seal = Seal { stream: self.stream, first, last, time: now, before, digest: self.tip.digest };
        let Some(signed) = sign(&seal.message()) else { return Ok(None) };
        let (checkpoint, mut plain) = (Checkpoint { seal, signed }, Vec::new());
        if !checkpoint.encode(self.uids.next(now / 1_000_000), &mut plain) {
            return Ok(None);
        }
        self.insist(now, &plain).map_err(|(_, error)| error)?;
        let number = self.tip.next - 1;
        self.sync()?;
        let generation = generation + 1;
        self.sealed = Sealed { first: last + 1, before: seal.digest, number, generation };
        let mut field = Vec::new();
        for content in field::contents(&plain).flatten() {
            field::append_numbered(&mut field, content, number).map_err(|_| Error::Malformed)?;
        }
        let kept = Kept { number, field, checkpoint, generation };
        if let Some(bytes) = kept.encode() {
            let at = SLOTS[(generation % 2) as usize] as u64;
            let written = self.shared.storage.write_at(CHECKPOINT_FILE, at, &bytes, true);
            written.map_err(storage("the last checkpoint cannot be kept beside the segments"))?;
        }
        Ok(Some(number))
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Exactly `N` bytes out of hexadecimal.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    let digits = text.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(leaf: usize) -> Checkpoint {
        let seal = Seal { stream: [7; 16], first: 3, last: 9, time: 5, before: [1; 32], digest: [2; 32] };
        Checkpoint {
            seal,
            signed: Signed { signature: vec![3; 70], chain: vec![vec![4; leaf], vec![5; 400], vec![6]] },
        }
    }

    #[test]
    fn a_checkpoint_is_read_as_it_was_written() {
        let (whole, mut out) = (checkpoint(9000), Vec::new());
        assert!(whole.encode(record::UidSource::new(1).next(1), &mut out));
        let content = field::contents(&out).next().unwrap().unwrap();
        assert_eq!(Checkpoint::decode(content), Some(whole));
        assert!(!checkpoint(9300).encode(record::UidSource::new(1).next(1), &mut out), "it would be cut");
    }

    #[test]
    fn each_part_of_a_seal_is_signed() {
        let seal = checkpoint(1).seal;
        let others = [
            Seal { stream: [8; 16], ..seal },
            Seal { first: 4, ..seal },
            Seal { last: 8, ..seal },
            Seal { time: 6, ..seal },
            Seal { before: [0; 32], ..seal },
            Seal { digest: [0; 32], ..seal },
        ];
        assert!(others.iter().all(|other| other.message() != seal.message()));
    }

    #[test]
    fn no_flipped_bit_of_what_is_kept_passes() {
        let mut field = Vec::new();
        checkpoint(10).encode(record::UidSource::new(1).next(1), &mut field);
        let kept = Kept { number: 10, field, checkpoint: checkpoint(10), generation: 2 };
        let bytes = kept.encode().unwrap();
        assert_eq!(Kept::decode(&bytes), Some(kept));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Kept::decode(&damaged), None, "bit {bit}");
        }
    }
}
