//! The protobuf encoding of OTLP log records, by hand and in one pass.
//!
//! Lengths of nested messages are written as padded varints (three bytes for a record, two for an attribute, which is
//! legal protobuf and read by every decoder) and patched afterwards. Field numbers are those of
//! `opentelemetry/proto/logs/v1/logs.proto` and `common/v1/common.proto`.

/// Bytes of a path at most; longer ones are cut and marked.
pub const PATH_BYTES_MAX: usize = 8 * 1024;
/// Bytes of certificates in an event at most, as text.
pub const CERTIFICATES_BYTES_MAX: usize = 12 * 1024;
/// Bytes of any other text at most.
pub const TEXT_BYTES_MAX: usize = 1024;

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

const fn tag(field: u8, wire: u8) -> u8 {
    field << 3 | wire
}

#[inline]
pub(crate) fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[inline]
const fn varint_length(value: u64) -> usize {
    (64 - (value | 1).leading_zeros()).div_ceil(7) as usize
}

/// The two bytes of an attribute's length.
#[inline]
const fn padded(length: usize) -> [u8; 2] {
    [length as u8 & 0x7f | 0x80, (length >> 7) as u8]
}

/// Cuts `text` to at most `limit` bytes at the border of a character.
pub(crate) fn cut(text: &str, limit: usize) -> (&str, bool) {
    if text.len() <= limit {
        return (text, false);
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    (&text[..end], true)
}

/// Appends attributes, each as a finished `LogRecord.attributes` field.
#[derive(Debug)]
pub struct Attributes<'a> {
    pub(crate) out: &'a mut Vec<u8>,
    truncated: bool,
}

impl<'a> Attributes<'a> {
    /// Appends to `out`.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, truncated: false }
    }

    /// A text of at most [`TEXT_BYTES_MAX`] bytes; longer ones are cut.
    #[inline]
    pub fn text(&mut self, key: &str, value: &str) {
        self.text_of(key, value, TEXT_BYTES_MAX);
    }

    #[inline]
    pub(crate) fn text_of(&mut self, key: &str, value: &str, limit: usize) {
        let (value, cut) = cut(value, limit);
        self.truncated |= cut;
        self.bytes(key, value.as_bytes());
    }

    pub(crate) fn text_if(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    /// The uid of a record.
    #[inline]
    pub(crate) fn uid(&mut self, key: &str, uid: crate::Uid) {
        self.bytes(key, &uid.text());
    }

    /// A whole number.
    #[inline]
    pub fn int(&mut self, key: &str, value: u64) {
        self.key(key, 1 + varint_length(value));
        self.out.push(tag(3, VARINT));
        varint(self.out, value);
    }

    /// A number.
    #[inline]
    pub fn double(&mut self, key: &str, value: f64) {
        self.key(key, 9);
        self.out.push(tag(4, FIXED64));
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    /// A time, in seconds.
    #[inline]
    pub fn seconds(&mut self, key: &str, value: std::time::Duration) {
        self.double(key, value.as_secs_f64());
    }

    /// A truth value.
    pub fn boolean(&mut self, key: &str, value: bool) {
        self.key(key, 2);
        self.out.extend_from_slice(&[tag(2, VARINT), u8::from(value)]);
    }

    pub(crate) fn address(&mut self, address: &str, port: &str, value: std::net::SocketAddr) {
        let mut text = AddressText { bytes: [0; 46], length: 0 };
        // An address has at most 45 characters, which the buffer takes.
        let _fits = std::fmt::Write::write_fmt(&mut text, format_args!("{}", value.ip()));
        self.text(address, text.as_str());
        self.int(port, u64::from(value.port()));
    }

    /// Attributes that were encoded before.
    pub(crate) fn captured(&mut self, captured: &crate::Captured) {
        self.out.extend_from_slice(captured.bytes());
        self.truncated |= captured.is_truncated();
    }

    /// Says whether a text was cut; to be called last.
    pub(crate) fn finish(mut self) {
        if self.truncated {
            self.boolean(crate::key::TRUNCATED, true);
        }
    }

    /// What is a text, and not too long.
    #[inline]
    fn bytes(&mut self, key: &str, value: &[u8]) {
        let length = value.len() as u64;
        self.key(key, 1 + varint_length(length) + value.len());
        self.out.push(tag(1, BYTES));
        varint(self.out, length);
        self.out.extend_from_slice(value);
    }

    /// All of an attribute up to its value, which has `length` bytes.
    #[inline]
    fn key(&mut self, key: &str, length: usize) {
        // LogRecord.attributes = 6; KeyValue.key = 1, value = 2. A name of more than 127 bytes has a longer length itself.
        let whole = 1 + varint_length(key.len() as u64) + key.len() + 3 + length;
        debug_assert!(whole < 1 << 14, "the limits of texts keep every attribute below its padded length");
        self.out.reserve(3 + whole);
        let [low, high] = padded(whole);
        self.out.extend_from_slice(&[tag(6, BYTES), low, high, tag(1, BYTES)]);
        varint(self.out, key.len() as u64);
        self.out.extend_from_slice(key.as_bytes());
        let [low, high] = padded(length);
        self.out.extend_from_slice(&[tag(2, BYTES), low, high]);
    }
}

/// Room for the text of one IP address.
struct AddressText {
    bytes: [u8; 46],
    length: usize,
}

impl AddressText {
    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

impl std::fmt::Write for AddressText {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.length + text.len();
        self.bytes.get_mut(self.length..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

/// Severities that records have (logs.proto `SeverityNumber`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Info,
    /// Somebody may want to look.
    Warn,
}

/// Fields of a log record besides its attributes.
pub(crate) struct Head {
    pub(crate) event_name: &'static str,
    pub(crate) time_unix_nano: u64,
    pub(crate) severity: Severity,
    pub(crate) trace: Option<([u8; 16], [u8; 8], u8)>,
}

/// Appends one finished `ScopeLogs.log_records` field with what `write` appends.
pub(crate) fn record_field(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    record_field_without(out, 0, write);
}

/// As [`record_field`]; its length counts so many bytes that `write` leaves out.
pub(crate) fn record_field_without(out: &mut Vec<u8>, left_out: usize, write: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&[tag(2, BYTES), 0, 0, 0]);
    let at = out.len();
    write(out);
    let length = out.len() - at + left_out;
    debug_assert!(length < 1 << 21, "the limits of texts keep every record below its padded length");
    out[at - 3..at].copy_from_slice(&[
        length as u8 & 0x7f | 0x80,
        (length >> 7) as u8 & 0x7f | 0x80,
        (length >> 14) as u8,
    ]);
}

/// Appends one finished `ScopeLogs.log_records` field.
pub(crate) fn log_record(out: &mut Vec<u8>, head: &Head, attributes: impl FnOnce(Attributes<'_>)) {
    record_field(out, |out| {
        let (number, text) = match head.severity {
            Severity::Info => (9, "INFO"),
            Severity::Warn => (13, "WARN"),
        };
        begin(out, head.time_unix_nano, number, text);
        attributes(Attributes::new(out));
        let trace = head.trace.map(|(trace, span, flags)| (trace, span, u32::from(flags)));
        end(out, trace, head.time_unix_nano, head.event_name);
    });
}

/// What stands before the attributes.
pub(crate) fn begin(out: &mut Vec<u8>, time: u64, severity: u32, severity_text: &str) {
    out.push(tag(1, FIXED64));
    out.extend_from_slice(&time.to_le_bytes());
    out.push(tag(2, VARINT));
    varint(out, u64::from(severity));
    text(out, 3, severity_text);
}

/// What stands behind them.
pub(crate) fn end(out: &mut Vec<u8>, trace: Option<([u8; 16], [u8; 8], u32)>, observed: u64, event_name: &str) {
    if let Some((trace_id, span_id, flags)) = trace {
        out.push(tag(8, FIXED32));
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(&[tag(9, BYTES), 16]);
        out.extend_from_slice(&trace_id);
        out.extend_from_slice(&[tag(10, BYTES), 8]);
        out.extend_from_slice(&span_id);
    }
    out.push(tag(11, FIXED64));
    out.extend_from_slice(&observed.to_le_bytes());
    text(out, 12, event_name);
}

fn text(out: &mut Vec<u8>, field: u8, text: &str) {
    out.push(tag(field, BYTES));
    varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}
