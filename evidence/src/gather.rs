//! What was read, by streams: where each record waits, what checkpoints and gap records say, what was damaged.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
    time::Duration,
};

use identity::{SpiffeId, TrustBundle};
use record::{EventName, field, key, line};
use rustls_pki_types::{CertificateDer, UnixTime};
use spool::{CHECKPOINT_FILE, Checkpoint, Gap, HEADER_BYTES, Header, Kept, Kind, Rule, Scan, Scanned, Seal, Sink};

use crate::{Error, Finding, StreamReport, otlp_json, spill::Spill, syslog, walk};

/// Records in all at most; each takes 24 bytes of memory.
pub const RECORDS_MAX: u64 = 50_000_000;
/// Streams at most.
pub const STREAMS_MAX: usize = 10_000;
/// Bytes of a segment at most.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Bytes of the records that one segment stands for: they may leave out what others hold, and a proxy's are three times as long.
const WHOLE_BYTES_MAX: u64 = 4 * SEGMENT_BYTES_MAX;
/// Remarks that are kept.
const REMARKS_MAX: usize = 100;
/// Findings of one kind about one stream that are kept.
const FINDINGS_MAX: usize = 100;

/// Where a record waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting {
    pub(crate) sequence: u64,
    pub(crate) at: u64,
    pub(crate) length: u32,
    /// How the chain goes over it.
    pub(crate) rule: Rule,
}

/// A checkpoint, and whose it is, or why it is none.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) seal: Option<Seal>,
    pub(crate) identity: Result<SpiffeId, String>,
}

#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) records: Vec<Waiting>,
    /// By their own numbers.
    pub(crate) gaps: BTreeMap<u64, Gap>,
    pub(crate) checkpoints: BTreeMap<u64, Seen>,
    /// Kept outside the chain.
    pub(crate) kept: BTreeMap<u64, Seen>,
    /// Chain digests that nobody signed, by the number that they stand behind.
    pub(crate) hints: BTreeMap<u64, [u8; 32]>,
    /// What is damaged or unreadable.
    pub(crate) damage: Vec<Finding>,
    /// Whom records name as the workload itself, and the first that does.
    pub(crate) own: BTreeMap<String, u64>,
    /// The lowest number that a spool still has to have; `None` where all have to be there.
    pub(crate) begins: Option<u64>,
    /// Which sinks got what was read, besides spools.
    pub(crate) sinks: Vec<Sink>,
    /// Messages without the bytes of their records, by the reason.
    pub(crate) bare: BTreeMap<&'static str, Bare>,
}

/// Messages without the bytes of their records: how many, and between which numbers.
#[derive(Debug)]
pub(crate) struct Bare {
    pub(crate) messages: u64,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Stream {
    fn got(&mut self, sink: Sink) {
        if !self.sinks.contains(&sink) {
            self.sinks.push(sink);
        }
    }

    fn bare(&mut self, why: &'static str, number: u64) {
        let bare = self.bare.entry(why).or_insert(Bare { messages: 0, first: number, last: number });
        (bare.first, bare.last) = (bare.first.min(number), bare.last.max(number));
        bare.messages += 1;
    }

    fn damaged(&mut self, first: u64, last: u64, what: String) {
        if self.damage.len() < FINDINGS_MAX {
            self.damage.push(Finding { first, last, what });
        }
    }
}

/// All that was read.
#[derive(Debug)]
pub struct Evidence {
    /// None where nothing is to be proven.
    bundle: Option<TrustBundle>,
    streams: BTreeMap<[u8; 16], Stream>,
    spill: Spill,
    records: u64,
    remarks: Vec<String>,
    unreadable: u64,
}

impl Evidence {
    /// Nothing yet; `bundle` holds the roots that vouch for workloads.
    ///
    /// # Errors
    /// When the temporary directory cannot be used.
    pub fn new(bundle: TrustBundle) -> Result<Self, Error> {
        Self::empty(Some(bundle))
    }

    /// For who only wants the records ([`Self::replay`]): no signature counts.
    ///
    /// # Errors
    /// When the temporary directory cannot be used.
    pub fn unproven() -> Result<Self, Error> {
        Self::empty(None)
    }

    fn empty(bundle: Option<TrustBundle>) -> Result<Self, Error> {
        let spill = Spill::new().map_err(Error::Spill)?;
        Ok(Self { bundle, streams: BTreeMap::new(), spill, records: 0, remarks: Vec::new(), unreadable: 0 })
    }

    /// What was remarkable about the files themselves.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Lines that are no OTLP JSON, and messages of a proxy that cannot be read, but for a last one that is cut.
    pub fn unreadable_lines(&self) -> u64 {
        self.unreadable
    }

    /// Reads a spool's directory, or a file of OTLP JSON lines or of syslog messages.
    ///
    /// # Errors
    /// When it cannot be read, or is too much.
    pub fn read(&mut self, path: &Path) -> Result<(), Error> {
        if path.is_dir() { self.read_spool(path) } else { self.read_file(path) }
    }

    /// Reads a checkpoint that was kept outside: the file `checkpoint` of a spool, or a copy.
    ///
    /// # Errors
    /// When it cannot be read, or holds none.
    pub fn read_checkpoint(&mut self, path: &Path) -> Result<(), Error> {
        let name = path.display().to_string();
        let bytes = read(path, 1 << 20)?;
        let kept = Kept::decode(&bytes).ok_or(Error::NoCheckpoint(name))?;
        self.keep(&kept)
    }

    fn keep(&mut self, kept: &Kept) -> Result<(), Error> {
        let seen = self.seen(&kept.checkpoint);
        self.stream(kept.checkpoint.seal.stream)?.kept.insert(kept.number, seen);
        Ok(())
    }

    /// Reads lines of OTLP JSON, or messages as a syslog server writes them, one a line: which, the first line says. `name`
    /// is for remarks.
    ///
    /// # Errors
    /// When they cannot be read, or are too much.
    pub fn read_lines(&mut self, name: &str, mut lines: impl BufRead) -> Result<(), Error> {
        let failed = |error| Error::Read(name.to_owned(), error);
        let (mut line, mut field) = (Vec::new(), Vec::new());
        let (mut is_syslog, mut foreign) = (None, 0u64);
        for number in 1u64.. {
            line.clear();
            let read = (&mut lines).take(otlp_json::LINE_BYTES_MAX + 1).read_until(b'\n', &mut line).map_err(failed)?;
            if read == 0 {
                break;
            }
            if line.len() as u64 > otlp_json::LINE_BYTES_MAX {
                let limit = otlp_json::LINE_BYTES_MAX;
                return Err(Error::TooMuch(format!("{name}: line {number} is longer than {limit} bytes")));
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let is_json = line.trim_ascii_start().starts_with(b"{");
            if *is_syslog.get_or_insert(!is_json) && !is_json {
                foreign += u64::from(!self.message(&line, &mut field, &format!("{name}: line {number}"))?);
                continue;
            }
            match otlp_json::line(&line, |stream, field| self.exported(stream, field)) {
                Ok(done) => done?,
                Err(error) if !line.ends_with(b"\n") && error.is_eof() => {
                    self.remark(format!("{name}: line {number} is not whole; it is passed over"));
                }
                Err(error) => {
                    self.unreadable += 1;
                    self.remark(format!("{name}: line {number} is no OTLP JSON: {error}"));
                }
            }
        }
        if foreign > 0 {
            self.remark(format!("{name}: {foreign} lines are no messages of a proxy; they are passed over"));
        }
        Ok(())
    }

    /// The verdicts about each stream; `expected` is whose they have to be.
    ///
    /// # Errors
    /// When what waits in the temporary directory cannot be read again.
    pub fn judge(mut self, expected: Option<&SpiffeId>) -> Result<Vec<StreamReport>, Error> {
        self.spill.flush().map_err(Error::Spill)?;
        let Self { streams, spill, .. } = self;
        streams.into_iter().map(|(id, stream)| walk::judge(id, stream, &spill, expected)).collect()
    }

    /// Hands out the records of each stream in the order of their numbers, each once, as the content of its field.
    ///
    /// # Errors
    /// When what waits in the temporary directory cannot be read again.
    pub fn replay(mut self, mut take: impl FnMut(&[u8; 16], &[u8])) -> Result<(), Error> {
        self.spill.flush().map_err(Error::Spill)?;
        let mut bytes = Vec::new();
        for (id, stream) in &mut self.streams {
            stream.records.sort_by_key(|record| record.sequence);
            stream.records.dedup_by_key(|record| record.sequence);
            for record in &stream.records {
                self.spill.read(record.at, record.length, &mut bytes).map_err(Error::Spill)?;
                field::contents(&bytes).flatten().for_each(|content| take(id, content));
            }
        }
        Ok(())
    }

    fn remark(&mut self, remark: String) {
        if self.remarks.len() < REMARKS_MAX {
            self.remarks.push(remark);
        }
    }

    fn stream(&mut self, id: [u8; 16]) -> Result<&mut Stream, Error> {
        if self.streams.len() >= STREAMS_MAX && !self.streams.contains_key(&id) {
            return Err(Error::TooMuch(format!("there are more than {STREAMS_MAX} streams")));
        }
        Ok(self.streams.entry(id).or_default())
    }

    fn seen(&self, checkpoint: &Checkpoint) -> Seen {
        let Checkpoint { seal, signed } = checkpoint;
        let chain: Vec<_> = signed.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let now = UnixTime::since_unix_epoch(Duration::from_nanos(seal.time));
        let verify = |bundle| identity::verify_signature(&chain, bundle, &seal.message(), &signed.signature, now);
        let identity = match &self.bundle {
            Some(bundle) => verify(bundle).map_err(|error| chain_of(&error)),
            None => Err("there is no trust bundle".to_owned()),
        };
        Seen { seal: Some(*seal), identity }
    }

    fn read_file(&mut self, path: &Path) -> Result<(), Error> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| Error::Read(name.clone(), error))?;
        self.read_lines(&name, BufReader::with_capacity(1 << 20, file))
    }

    fn exported(&mut self, id: [u8; 16], field: Result<&[u8], String>) -> Result<(), Error> {
        self.stream(id)?.got(Sink::Otlp);
        let read = field.and_then(|field| {
            let content = field::contents(field).next().and_then(Result::ok);
            let sequence = content.and_then(number_of).ok_or_else(|| "it has no number".to_owned())?;
            Ok((sequence, field))
        });
        match read {
            Ok((sequence, field)) => self.record(id, Rule::Context, sequence, field),
            Err(what) => {
                self.stream(id)?.damaged(0, 0, format!("a record without a number to go by: {what}"));
                Ok(())
            }
        }
    }

    /// Takes a line of a syslog server's file; false when it is no message of a proxy.
    fn message(&mut self, line: &[u8], field: &mut Vec<u8>, told: &str) -> Result<bool, Error> {
        let Some(read) = syslog::line(line, field) else { return Ok(false) };
        let message = match read {
            Ok(message) => message,
            Err(_) if !line.ends_with(b"\n") => {
                self.remark(format!("{told} is not whole; it is passed over"));
                return Ok(true);
            }
            Err(syslog::Unreadable { whose, what }) => {
                self.unreadable += 1;
                self.remark(format!("{told} cannot be read: {what}"));
                if let Some((id, number)) = whose {
                    let stream = self.stream(id)?;
                    stream.got(Sink::Syslog);
                    stream.damaged(number, number, format!("its message cannot be read: {what}"));
                }
                return Ok(true);
            }
        };
        if message.is_behind_a_piece {
            self.remark(format!("{told} begins with a piece of another message, which is passed over"));
        }
        let stream = self.stream(message.stream)?;
        stream.got(Sink::Syslog);
        match message.holds {
            syslog::Holds::Nothing(why) => stream.bare(why, message.number),
            syslog::Holds::Record { number, differs } => {
                if let Some(part) = differs {
                    let what = format!("{part} of its message says something else than the record in it");
                    stream.damaged(number, number, what);
                }
                self.record(message.stream, Rule::Context, number, field)?;
            }
        }
        Ok(true)
    }

    fn record(&mut self, id: [u8; 16], rule: Rule, sequence: u64, bytes: &[u8]) -> Result<(), Error> {
        if sequence == 0 || i64::try_from(sequence).is_err() {
            self.stream(id)?.damaged(sequence, sequence, "no spool gives this number".to_owned());
            return Ok(());
        }
        self.records += 1;
        if self.records > RECORDS_MAX {
            return Err(Error::TooMuch(format!("there are more than {RECORDS_MAX} records")));
        }
        let at = self.spill.append(bytes).map_err(Error::Spill)?;
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let content = field::contents(bytes).next().and_then(Result::ok).unwrap_or_default();
        let event = line::time_and_name(content).1;
        let seen = (event == EventName::Checkpoint.as_str()).then(|| match Checkpoint::decode(content) {
            Some(checkpoint) => self.seen(&checkpoint),
            None => Seen { seal: None, identity: Err("it cannot be read".to_owned()) },
        });
        let stream = self.stream(id)?;
        stream.records.push(Waiting { sequence, at, length, rule });
        stream.gaps.extend(Gap::decode(bytes).map(|gap| (sequence, gap)));
        stream.checkpoints.extend(seen.map(|seen| (sequence, seen)));
        if let Some(own) = own_identity(content)
            && (stream.own.len() < 16 || stream.own.contains_key(own))
        {
            let first = stream.own.entry(own.to_owned()).or_insert(sequence);
            *first = sequence.min(*first);
        }
        Ok(())
    }

    fn read_spool(&mut self, directory: &Path) -> Result<(), Error> {
        let name = directory.display().to_string();
        let failed = |error| Error::Read(name.clone(), error);
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let file = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            segments.extend(spool::parse_name(&file).map(|(first, epoch)| (first, epoch, file)));
        }
        segments.sort();
        if segments.is_empty() {
            return Err(Error::TooMuch(format!("{name} holds no segment of a spool")));
        }
        let mut id = None;
        for (first, epoch, file) in &segments {
            let bytes = read(&directory.join(file), SEGMENT_BYTES_MAX)?;
            let header = Header::decode(&bytes);
            id = header.map(|header| header.stream).or(id);
            let Some(id) = id else { return Err(Error::TooMuch(format!("{name}/{file}: the header is damaged"))) };
            let stream = self.stream(id)?;
            stream.begins = Some(stream.begins.unwrap_or(*first).min(*first));
            match header {
                Some(header) => drop(stream.hints.insert(first.saturating_sub(1), header.digest)),
                None => stream.damaged(*first, *first, format!("{file}: the header is damaged")),
            }
            let rule = header.map_or(Rule::Context, |header| header.rule);
            self.segment(id, file, rule, (*first, *epoch), bytes.get(HEADER_BYTES..).unwrap_or_default())?;
        }
        if let Ok(bytes) = read(&directory.join(CHECKPOINT_FILE), 1 << 20)
            && let Some(kept) = Kept::decode(&bytes)
        {
            self.keep(&kept)?;
        }
        Ok(())
    }

    fn segment(
        &mut self,
        id: [u8; 16],
        file: &str,
        rule: Rule,
        (first, epoch): (u64, u64),
        bytes: &[u8],
    ) -> Result<(), Error> {
        let mut scan = Scan::new(bytes, epoch, first.saturating_sub(1));
        let mut whole = 0;
        while let Some(found) = scan.advance() {
            match found {
                Scanned::Entry(entry) if entry.kind == Kind::BatchEnd => {
                    if let Some((_, digest)) = entry.batch_end() {
                        self.stream(id)?.hints.insert(entry.sequence, digest);
                    }
                }
                Scanned::Entry(entry) => {
                    whole += entry.payload.len() as u64;
                    if whole > WHOLE_BYTES_MAX {
                        let limit = WHOLE_BYTES_MAX >> 20;
                        return Err(Error::TooMuch(format!("{file}: its records are longer than {limit} MiB")));
                    }
                    self.record(id, rule, entry.sequence, entry.payload)?;
                }
                Scanned::Damage { offset, bytes, first, last } => {
                    let offset = HEADER_BYTES + offset;
                    let what =
                        format!("{file}: {bytes} bytes at {offset} are damaged, or the context is that they leave out");
                    self.stream(id)?.damaged(first, last.max(first), what);
                }
            }
        }
        let rest = bytes.len() - scan.offset();
        if rest > 0 {
            let offset = HEADER_BYTES + scan.offset();
            self.remark(format!("{file}: {rest} bytes at {offset} are no whole entry; they are passed over"));
        }
        Ok(())
    }
}

/// The number that a record ends with.
pub(crate) fn number_of(content: &[u8]) -> Option<u64> {
    match line::attributes(content).last() {
        Some((key::SEQUENCE, line::Attribute::Int(number))) if number > 0 => Some(number as u64),
        _ => None,
    }
}

/// Whom a record names as the workload that its proxy stands beside.
fn own_identity(content: &[u8]) -> Option<&str> {
    let (mut client, mut server, mut own) = (None, None, None);
    for (name, value) in line::attributes(content) {
        match (name, value) {
            (key::CLIENT_IDENTITY, line::Attribute::Text(id)) => client = Some(id),
            (key::SERVER_IDENTITY, line::Attribute::Text(id)) => server = Some(id),
            (key::CLIENT_IDENTITY_BY, line::Attribute::Text("own_certificate")) => own = client,
            (key::SERVER_IDENTITY_BY, line::Attribute::Text("own_certificate")) => own = server,
            _ => {}
        }
    }
    own
}

fn read(path: &Path, max: u64) -> Result<Vec<u8>, Error> {
    let name = || path.display().to_string();
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| Error::Read(name(), error))?;
    file.take(max + 1).read_to_end(&mut bytes).map_err(|error| Error::Read(name(), error))?;
    if bytes.len() as u64 > max {
        return Err(Error::TooMuch(format!("{} is longer than {max} bytes", name())));
    }
    Ok(bytes)
}

/// An error with what is behind it.
fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text += &format!(": {source}");
        next = source.source();
    }
    text
}
