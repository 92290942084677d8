//! The access log: one line on stdout per record, written by a thread of its own, so that a stdout nobody reads stops
//! no traffic.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use record::line;

use crate::Receiver;

/// Which records get a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// None.
    Off,
    /// Those with a severity above INFO.
    Errors,
    /// Each.
    All,
    /// Those with a severity above INFO, and a share of the others; each line says the rate that it was chosen by.
    Sampled(Rate),
}

/// A share of all, in millionths: more than none, and at most all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(u32);

/// What [`Rate`] counts.
const WHOLE: u32 = 1_000_000;

/// What is no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not off, errors, all, or sampled:RATE with a rate from 0.000001 to 1")]
pub struct NoMode(String);

impl std::str::FromStr for Mode {
    type Err = NoMode;

    fn from_str(text: &str) -> Result<Self, NoMode> {
        match text {
            "off" => return Ok(Self::Off),
            "errors" => return Ok(Self::Errors),
            "all" => return Ok(Self::All),
            _ => {}
        }
        let rate = text.strip_prefix("sampled:").and_then(|rate| rate.parse::<f64>().ok());
        let parts =
            rate.map(|rate| (rate * f64::from(WHOLE)).round()).filter(|parts| (1.0..=f64::from(WHOLE)).contains(parts));
        parts.map(|parts| Self::Sampled(Rate(parts as u32))).ok_or_else(|| NoMode(text.to_owned()))
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Errors => f.write_str("errors"),
            Self::All => f.write_str("all"),
            Self::Sampled(rate) => write!(f, "sampled:{rate}"),
        }
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", f64::from(self.0) / f64::from(WHOLE))
    }
}

impl Mode {
    /// The rate by which the record gets its line, if it gets one.
    fn chooses(self, record: &[u8]) -> Option<Rate> {
        let all = Rate(WHOLE);
        let is_error = line::is_error(record);
        match self {
            Self::Off => None,
            Self::Errors => is_error.then_some(all),
            Self::All => Some(all),
            Self::Sampled(_) if is_error => Some(all),
            Self::Sampled(rate) => rate.chooses(randomness(record)).then_some(rate),
        }
    }
}

impl Rate {
    fn chooses(self, randomness: u64) -> bool {
        let rejected = (u128::from(WHOLE - self.0) << RANDOM_BITS) / u128::from(WHOLE);
        u128::from(randomness) >= rejected
    }
}

/// Bits of randomness, and the comparison with them: as OpenTelemetry's consistent probability sampling has them, so that all
/// who see a trace choose the same.
const RANDOM_BITS: u32 = 56;

/// The last 56 bits of the trace id; without a trace, the same for each copy of a record.
fn randomness(record: &[u8]) -> u64 {
    let bits = match line::trace_id(record) {
        Some(id) => u128::from_be_bytes(id) as u64,
        None => {
            let uid = line::attributes(record).find(|(name, _)| *name == record::key::LOG_RECORD_UID);
            let text = if let Some((_, line::Attribute::Text(uid))) = uid { uid } else { "" };
            // FNV-1a, then the finalizer of MurmurHash3: uids differ in their last characters only.
            let hash = text
                .bytes()
                .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
            let hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
            hash ^ hash >> 33
        }
    };
    bits & ((1 << RANDOM_BITS) - 1)
}

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// The mode, changeable while the log runs.
#[derive(Debug, Clone)]
pub struct ModeHandle(Arc<AtomicU64>);

impl ModeHandle {
    /// A handle that begins with `mode`.
    pub fn new(mode: Mode) -> Self {
        Self(Arc::new(AtomicU64::new(number(mode))))
    }

    /// Changes the mode, from the next batch on.
    pub fn set(&self, mode: Mode) {
        self.0.store(number(mode), Relaxed);
    }

    /// The mode in force.
    pub fn get(&self) -> Mode {
        match self.0.load(Relaxed) {
            OFF => Mode::Off,
            ERRORS => Mode::Errors,
            ALL => Mode::All,
            rate => Mode::Sampled(Rate(rate as u32)),
        }
    }
}

/// Numbers that are no rate.
const OFF: u64 = 1 << 32;
const ERRORS: u64 = 2 << 32;
const ALL: u64 = 3 << 32;

fn number(mode: Mode) -> u64 {
    match mode {
        Mode::Off => OFF,
        Mode::Errors => ERRORS,
        Mode::All => ALL,
        Mode::Sampled(rate) => u64::from(rate.0),
    }
}

/// Writes lines to stdout until all senders are gone and the queue is empty.
///
/// # Errors
/// When the system refuses a thread.
pub fn spawn(receiver: Receiver, mode: ModeHandle, format: Format) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || write(receiver, &mode, format, &mut std::io::stdout()))
}

fn write(mut receiver: Receiver, mode: &ModeHandle, format: Format, to: &mut impl Write) {
    let mut lines = Vec::new();
    while let Some(batch) = receiver.recv_blocking() {
        let mode = mode.get();
        lines.clear();
        let mut written = 0;
        if mode != Mode::Off {
            let chosen = line::records(&batch.fields).filter_map(|record| Some((record, mode.chooses(record)?)));
            for (record, rate) in chosen {
                let rate = matches!(mode, Mode::Sampled(_)).then_some(rate);
                append(record, rate, format, &mut lines);
                written += 1;
            }
        }
        receiver.counters().skip(u64::from(batch.records).saturating_sub(written));
        match to.write_all(&lines).and_then(|()| to.flush()) {
            Ok(()) => receiver.counters().acknowledge(written),
            Err(_) => receiver.counters().reject(written),
        }
    }
}

/// Appends one line, with the rate by which it was chosen.
fn append(record: &[u8], rate: Option<Rate>, format: Format, lines: &mut Vec<u8>) {
    match format {
        Format::Text => line::text(record, lines),
        Format::Json => line::json(record, lines),
    }
    let Some(rate) = rate else { return };
    // Writing to a Vec cannot fail.
    let _ = match format {
        Format::Text => {
            lines.truncate(lines.len() - 1);
            writeln!(lines, " sampling.rate={rate}")
        }
        Format::Json => {
            lines.truncate(lines.len() - 2);
            writeln!(lines, ",\"sampling.rate\":{rate}}}")
        }
    };
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::logs::v1::{LogRecord, ScopeLogs};
    use prost::Message;

    use super::*;
    use crate::{Batch, queue};

    fn lines(mode: Mode, format: Format) -> Vec<String> {
        let record = |event_name: &str, severity_number| LogRecord {
            event_name: event_name.to_owned(),
            severity_number,
            ..LogRecord::default()
        };
        let log_records = vec![record("good", 9), record("bad", 13)];
        let fields = ScopeLogs { log_records, ..ScopeLogs::default() }.encode_to_vec().into();
        let (sender, receiver) = queue(1000);
        sender.send(Batch { records: 2, fields }).unwrap();
        let counters = Arc::clone(sender.counters());
        drop(sender);
        let mut out = Vec::new();
        write(receiver, &ModeHandle::new(mode), format, &mut out);
        let lines: Vec<_> = String::from_utf8(out).unwrap().lines().map(str::to_owned).collect();
        let expected = lines.len() as u64;
        assert_eq!(
            (counters.acknowledged(), counters.skipped()),
            (expected, 2 - expected),
            "what has no line is skipped"
        );
        lines
    }

    #[test]
    fn the_mode_chooses_the_records() {
        assert!(lines(Mode::Off, Format::Json).is_empty());
        let errors = lines(Mode::Errors, Format::Json);
        assert!(errors.len() == 1 && errors[0].contains("\"event\":\"bad\""), "{errors:?}");
        let all = lines(Mode::All, Format::Text);
        assert!(all.len() == 2 && all[0].contains("good") && all[1].contains("bad"), "{all:?}");
    }

    #[test]
    fn modes_are_read_as_they_are_written_and_kept_in_one_number() {
        for text in ["off", "errors", "all", "sampled:0.05", "sampled:1", "sampled:0.000001"] {
            let mode: Mode = text.parse().unwrap();
            assert_eq!(mode.to_string(), text);
            assert_eq!(ModeHandle::new(mode).get(), mode);
        }
        for text in ["", "some", "sampled", "sampled:", "sampled:0", "sampled:1.1", "sampled:-1", "sampled:NaN", "All"]
        {
            assert_eq!(text.parse::<Mode>(), Err(NoMode(text.to_owned())));
        }
    }

    #[test]
    fn a_sample_has_its_share_says_it_and_leaves_no_error_out() {
        let mut source = record::UidSource::new(9);
        let mut fields = Vec::new();
        for n in 0..10_000 {
            let severity = if n % 100 == 0 { record::Severity::Warn } else { record::Severity::Info };
            let event = record::Event {
                uid: source.next(1),
                name: record::EventName::Alert,
                time_unix_nanos: 1,
                severity,
                attributes: &[],
            };
            event.encode(&mut fields);
        }
        for format in [Format::Text, Format::Json] {
            let (sender, receiver) = queue(10 << 20);
            sender.send(Batch { records: 10_000, fields: fields.clone().into() }).unwrap();
            let counters = Arc::clone(sender.counters());
            drop(sender);
            let mut out = Vec::new();
            write(receiver, &ModeHandle::new("sampled:0.1".parse().unwrap()), format, &mut out);
            let text = String::from_utf8(out).unwrap();
            let count = |end: &str| text.lines().filter(|line| line.ends_with(end)).count();
            let (errors, others) = match format {
                Format::Text => (count(" sampling.rate=1"), count(" sampling.rate=0.1")),
                Format::Json => (count(",\"sampling.rate\":1}"), count(",\"sampling.rate\":0.1}")),
            };
            assert_eq!((errors, errors + others), (100, text.lines().count()));
            assert!((850..1150).contains(&others), "{others} of 9900");
            assert_eq!(counters.acknowledged() + counters.skipped(), 10_000);
        }
    }

    #[test]
    fn all_records_of_a_trace_are_chosen_or_none() {
        let rate = Rate(WHOLE / 2);
        // The share is of the last 56 bits: the lower half of them is left out.
        for (last, chosen) in [(0x00, false), (0x7f, false), (0x80, true), (0xff, true)] {
            let mut trace_id = vec![7; 16];
            trace_id[9] = last;
            let record = LogRecord { trace_id, severity_number: 9, ..LogRecord::default() }.encode_to_vec();
            assert_eq!(Mode::Sampled(rate).chooses(&record), chosen.then_some(rate), "{last:x}");
        }
    }
}
