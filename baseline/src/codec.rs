//! The bytes of a [`State`]: `docs/formats/baseline.md`.
//!
//! Promises: what was encoded decodes to the same; anything else is refused with a reason, without a panic and without more
//! memory than the bytes at hand can fill. Numbers that are not finite, or negative where they count, are damage too.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::{
    Channel, Direction, EdgeKey, Protocol, Sketch, State,
    first_byte::FIRST_BYTE_BINS,
    observation::NAME_BYTES_MAX,
    sketch::BINS,
    state::{EdgeState, STATE_EDGES_MAX},
    stats::Mean,
};

/// What the bytes begin with.
const MAGIC: [u8; 4] = *b"PKBL";
/// The version that is written and read.
pub const STATE_VERSION: u16 = 2;
/// Magic, version, checksum.
const HEAD: usize = 10;

/// Why bytes are not a baseline.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum StateError {
    /// The magic is missing.
    #[error("not a baseline: it does not begin with PKBL")]
    NotBaseline,
    /// A version that this program does not read.
    #[error("a baseline of version {0}; this program reads version {STATE_VERSION}")]
    Version(u16),
    /// The checksum is wrong.
    #[error("damaged: the checksum does not match")]
    Checksum,
    /// The checksum is right, the content is not.
    #[error("damaged: at byte {0} it is not what a baseline holds")]
    Content(usize),
}

impl State {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer { out: vec![0; HEAD] };
        out.count(self.edges.len());
        for (key, edge) in &self.edges {
            out.key(key);
            out.edge(edge);
        }
        for gauge in &self.gauges {
            out.floats(&gauge.numbers());
        }
        let checksum = crc32c::crc32c(&out.out[HEAD..]);
        out.out[..4].copy_from_slice(&MAGIC);
        out.out[4..6].copy_from_slice(&STATE_VERSION.to_le_bytes());
        out.out[6..HEAD].copy_from_slice(&checksum.to_le_bytes());
        out.out
    }

    /// From bytes.
    ///
    /// # Errors
    ///
    /// If they are not what [`State::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        if bytes.len() < HEAD || bytes[..4] != MAGIC {
            return Err(StateError::NotBaseline);
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != STATE_VERSION {
            return Err(StateError::Version(version));
        }
        let checksum = u32::from_le_bytes([bytes[6], bytes[7], bytes[8], bytes[9]]);
        if crc32c::crc32c(&bytes[HEAD..]) != checksum {
            return Err(StateError::Checksum);
        }
        let mut reader = Reader { bytes, at: HEAD };
        reader.state().ok_or(StateError::Content(reader.at))
    }
}

struct Writer {
    out: Vec<u8>,
}

impl Writer {
    fn count(&mut self, count: usize) {
        self.out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn key(&mut self, key: &EdgeKey) {
        self.out.extend_from_slice(&[key.direction as u8, key.protocol as u8]);
        self.out.extend_from_slice(&key.port.to_le_bytes());
        for name in [&key.peer, &key.service] {
            self.out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            self.out.extend_from_slice(name.as_bytes());
        }
    }

    fn floats(&mut self, values: &[f32]) {
        // What is no number would make all of the state unreadable.
        let numbers = values.iter().map(|value| if value.is_finite() { *value } else { 0.0 });
        numbers.for_each(|value| self.out.extend_from_slice(&value.to_le_bytes()));
    }

    /// Most bins are empty: the number of those that are not, then each with its place.
    fn sparse(&mut self, values: &[f32]) {
        let full = values.iter().enumerate().filter(|(_, value)| **value > 0.0);
        self.out.push(full.clone().count() as u8);
        for (bin, value) in full {
            self.out.push(bin as u8);
            self.floats(&[*value]);
        }
    }

    fn edge(&mut self, edge: &EdgeState) {
        self.out.push(u8::from(edge.pinned) | u8::from(edge.learnt) << 1);
        self.out.extend_from_slice(&edge.latency.origin.to_le_bytes());
        self.sparse(&edge.latency.counts);
        self.sparse(&edge.first_byte);
        self.floats(&[edge.errors, edge.records, edge.mutual_tls]);
        for mean in edge.means() {
            self.floats(&[mean.value, mean.weight]);
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(N)?)?.try_into().ok()?;
        self.at += N;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn float(&mut self) -> Option<f32> {
        let value = f32::from_le_bytes(self.take()?);
        (value.is_finite() && value.abs() < 1e30).then_some(value)
    }

    fn positive(&mut self) -> Option<f32> {
        self.float().filter(|value| *value >= 0.0)
    }

    fn state(&mut self) -> Option<State> {
        let count = u32::from_le_bytes(self.take()?) as usize;
        if count > STATE_EDGES_MAX {
            return None;
        }
        let mut edges = BTreeMap::new();
        for _ in 0..count {
            let key = self.key()?;
            if edges.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return None;
            }
            let edge = self.edge()?;
            edges.insert(key, edge);
        }
        let gauges = [self.gauge()?, self.gauge()?];
        (self.at == self.bytes.len()).then_some(State { edges, gauges })
    }

    fn key(&mut self) -> Option<EdgeKey> {
        let [direction, protocol] = self.take()?;
        let direction = [Direction::Inbound, Direction::Outbound].get(usize::from(direction)).copied()?;
        let protocols = [Protocol::Http, Protocol::Grpc, Protocol::Tcp, Protocol::Udp];
        let protocol = protocols.get(usize::from(protocol)).copied()?;
        let port = u16::from_le_bytes(self.take()?);
        let (peer, service) = (self.name()?, self.name()?);
        Some(EdgeKey { direction, peer, service, port, protocol })
    }

    fn name(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?).min(NAME_BYTES_MAX);
        let name = self.bytes.get(self.at..self.at + length)?;
        self.at += length;
        std::str::from_utf8(name).ok().map(str::to_owned)
    }

    fn sparse<const N: usize>(&mut self) -> Option<[f32; N]> {
        let mut values = [0.0; N];
        for _ in 0..self.byte()? {
            let bin = usize::from(self.byte()?);
            *values.get_mut(bin)? = self.positive()?;
        }
        Some(values)
    }

    fn mean(&mut self) -> Option<Mean> {
        Some(Mean { value: self.float()?, weight: self.positive()? })
    }

    fn edge(&mut self) -> Option<EdgeState> {
        let flags = self.byte().filter(|flags| *flags < 4)?;
        let origin = i16::from_le_bytes(self.take()?);
        if origin != i16::MIN && !(-200..=256).contains(&origin) {
            return None;
        }
        let latency = Sketch { origin, counts: self.sparse::<BINS>()? };
        let first_byte = self.sparse::<FIRST_BYTE_BINS>()?;
        let (errors, records, mutual_tls) = (self.positive()?, self.positive()?, self.positive()?);
        let (wander, rate, dispersion) = (self.mean()?, self.mean()?, self.mean()?);
        let mut hours = [Mean::default(); 24];
        for hour in &mut hours {
            *hour = self.mean()?;
        }
        let bytes = [self.mean()?, self.mean()?, self.mean()?, self.mean()?];
        let first_byte_level = [self.mean()?, self.mean()?];
        let (pinned, learnt) = (flags & 1 != 0, flags & 2 != 0);
        let edge = EdgeState {
            latency,
            wander,
            first_byte,
            first_byte_level,
            errors,
            records,
            rate,
            dispersion,
            hours,
            bytes,
            mutual_tls,
            pinned,
            learnt,
        };
        (errors <= records && rate.value >= 0.0).then_some(edge)
    }

    fn gauge(&mut self) -> Option<Channel> {
        let mut numbers = [0.0; Channel::NUMBERS];
        for number in &mut numbers {
            *number = self.float()?;
        }
        Channel::from_numbers(&numbers)
    }
}
