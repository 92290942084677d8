//! Access-log lines, made from encoded records: JSON, or text for people.
//!
//! Control characters are escaped, so that no value can forge a line. Damaged bytes give fewer attributes, never a panic.

use std::io::Write as _;

use crate::key;

/// One field of a protobuf message.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Reads the fields of a protobuf message, as far as they are whole.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Field<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => Field::Number(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?)),
            2 => {
                let n = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.bytes(n)?)
            }
            5 => Field::Number(u64::from(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))),
            _ => return None,
        };
        Some((tag >> 3, field))
    }
}

/// The records in a concatenation of `log_records` fields, without their tags and lengths.
pub fn records(fields: &[u8]) -> impl Iterator<Item = &[u8]> {
    Fields(fields).filter_map(|(number, field)| match field {
        Field::Bytes(record) if number == 2 => Some(record),
        Field::Bytes(_) | Field::Number(_) => None,
    })
}

/// True when the record has a severity above INFO.
pub fn is_error(record: &[u8]) -> bool {
    Fields(record).any(|(number, field)| number == 2 && matches!(field, Field::Number(severity) if severity > 9))
}

/// The value of an attribute, as it stands in the record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Attribute<'a> {
    /// A text.
    Text(&'a str),
    /// A whole number.
    Int(i64),
    /// A number.
    Double(f64),
    /// A truth value.
    Bool(bool),
}

/// The attributes of a record, in their order.
pub fn attributes(record: &[u8]) -> impl Iterator<Item = (&str, Attribute<'_>)> {
    pairs(record).filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, attribute(value)?)))
}

/// Names and encoded values of the attributes; most of them a line of text does not need decoded.
fn pairs(record: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    Fields(record).filter_map(|(number, field)| match field {
        Field::Bytes(bytes) if number == 6 => pair(bytes),
        Field::Bytes(_) | Field::Number(_) => None,
    })
}

fn pair(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut name, mut value) = (None, None);
    for (number, field) in Fields(bytes) {
        match (number, field) {
            (1, Field::Bytes(bytes)) => name = Some(bytes),
            (2, Field::Bytes(bytes)) => value = Some(bytes),
            _ => {}
        }
    }
    Some((name?, value?))
}

fn attribute(value: &[u8]) -> Option<Attribute<'_>> {
    Some(match Fields(value).next()? {
        (1, Field::Bytes(bytes)) => Attribute::Text(std::str::from_utf8(bytes).ok()?),
        (2, Field::Number(number)) => Attribute::Bool(number != 0),
        (3, Field::Number(number)) => Attribute::Int(number as i64),
        (4, Field::Number(number)) => Attribute::Double(f64::from_bits(number)),
        _ => return None,
    })
}

fn time_and_name(record: &[u8]) -> (u64, &str) {
    let (mut time, mut name) = (0, "");
    for (number, field) in Fields(record) {
        match (number, field) {
            (1, Field::Number(nanos)) => time = nanos,
            (12, Field::Bytes(bytes)) => name = std::str::from_utf8(bytes).unwrap_or_default(),
            _ => {}
        }
    }
    (time, name)
}

/// Appends one record as one line of JSON: `time`, `event`, then its attributes under their own names.
pub fn json(record: &[u8], out: &mut Vec<u8>) {
    let (time, name) = time_and_name(record);
    put(out, format_args!("{{\"time\":\"{}\",\"event\":", Rfc3339(time)));
    quote(name, out);
    for (name, value) in attributes(record) {
        out.push(b',');
        quote(name, out);
        out.push(b':');
        match value {
            Attribute::Text(text) => quote(text, out),
            Attribute::Int(number) => put(out, format_args!("{number}")),
            Attribute::Double(number) if number.is_finite() => put(out, format_args!("{number}")),
            Attribute::Double(_) => out.extend_from_slice(b"null"),
            Attribute::Bool(truth) => put(out, format_args!("{truth}")),
        }
    }
    out.extend_from_slice(b"}\n");
}

/// One part of a line of text.
enum Part {
    Literal(&'static str),
    /// The value of an attribute.
    Value(&'static str),
    /// As `Value`, padded to eight characters.
    Padded(&'static str),
    /// Seconds, as milliseconds.
    Millis(&'static str),
}
use Part::{Literal, Millis, Padded, Value};

/// A request's line, after time and event.
const REQUEST: &[Part] = &[
    Literal(" "),
    Padded(key::DIRECTION),
    Literal(" "),
    Value(key::HTTP_REQUEST_METHOD),
    Literal(" "),
    Value(key::SERVER_ADDRESS),
    Value(key::URL_PATH),
    Literal(" "),
    Value(key::HTTP_RESPONSE_STATUS_CODE),
    Literal(" "),
    Millis(key::DURATION),
    Literal(" "),
    Value(key::HTTP_REQUEST_BODY_SIZE),
    Literal("B/"),
    Value(key::HTTP_RESPONSE_BODY_SIZE),
    Literal("B "),
];

/// A connection's line, after time and event.
const CONNECTION: &[Part] = &[
    Literal(" "),
    Padded(key::DIRECTION),
    Literal(" "),
    Value(key::SOURCE_ADDRESS),
    Literal(":"),
    Value(key::SOURCE_PORT),
    Literal(" -> "),
    Value(key::DESTINATION_ADDRESS),
    Literal(":"),
    Value(key::DESTINATION_PORT),
    Literal(" "),
    Value(key::NETWORK_PROTOCOL_NAME),
    Literal(" "),
    Millis(key::DURATION),
    Literal(" "),
    Value(key::BYTES_FROM_CLIENT),
    Literal("B/"),
    Value(key::BYTES_FROM_SERVER),
    Literal("B "),
];

/// The end of both.
const WHO: &[Part] = &[
    Value(key::CLIENT_IDENTITY),
    Literal(" -> "),
    Value(key::SERVER_IDENTITY),
    Literal(" ("),
    Value(key::DECISION),
    Literal(" "),
    Value(key::TLS_CURVE),
    Literal(") "),
    Value(key::CODE),
];

/// Attributes that one line of text looks at; records have fewer.
const PAIRS_MAX: usize = 64;

/// Appends one record as one line for people.
pub fn text(record: &[u8], out: &mut Vec<u8>) {
    let (time, name) = time_and_name(record);
    put(out, format_args!("{} ", Rfc3339(time)));
    padded(17, out, |out| printable(name, out));
    let parts = match name {
        "picket.request" => REQUEST,
        "picket.connection" => CONNECTION,
        _ => {
            for (name, value) in attributes(record) {
                out.push(b' ');
                printable(name, out);
                out.push(b'=');
                show(value, out);
            }
            out.push(b'\n');
            return;
        }
    };
    let mut found = [(&[][..], &[][..]); PAIRS_MAX];
    let mut count = 0;
    for pair in pairs(record).take(PAIRS_MAX) {
        found[count] = pair;
        count += 1;
    }
    let find =
        |wanted: &str| found[..count].iter().find(|(name, _)| *name == wanted.as_bytes()).map(|(_, value)| *value);
    let value = |wanted: &str| find(wanted).and_then(attribute);
    for part in parts.iter().chain(WHO) {
        match *part {
            Literal(text) => out.extend_from_slice(text.as_bytes()),
            Value(wanted) => show_or_dash(value(wanted), out),
            Padded(wanted) => padded(8, out, |out| show_or_dash(value(wanted), out)),
            Millis(wanted) => match value(wanted) {
                Some(Attribute::Double(seconds)) => {
                    let micros = (seconds * 1e6).round() as u64;
                    put(out, format_args!("{}.{:03}ms", micros / 1000, micros % 1000));
                }
                Some(_) | None => out.push(b'-'),
            },
        }
    }
    out.push(b'\n');
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory cannot fail.
    let _ = out.write_fmt(text);
}

/// What `write` appends, filled up to `width` bytes.
fn padded(width: usize, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let end = out.len() + width;
    write(out);
    if out.len() < end {
        out.resize(end, b' ');
    }
}

fn show_or_dash(value: Option<Attribute<'_>>, out: &mut Vec<u8>) {
    match value {
        Some(value) => show(value, out),
        None => out.push(b'-'),
    }
}

fn show(value: Attribute<'_>, out: &mut Vec<u8>) {
    match value {
        Attribute::Text(text) => printable(text, out),
        Attribute::Int(number) => put(out, format_args!("{number}")),
        Attribute::Double(number) => put(out, format_args!("{number}")),
        Attribute::Bool(truth) => put(out, format_args!("{truth}")),
    }
}

/// True when no character of the text is a control character; a quick look that may say no where a slow one says yes.
fn is_plain(text: &str) -> bool {
    // 0xc2 begins U+0080 to U+00BF, the second half of the control characters among them.
    !text.bytes().any(|byte| byte < b' ' || byte == 0x7f || byte == 0xc2)
}

/// Appends the text with control characters (line ends and terminal escapes among them) escaped.
fn printable(text: &str, out: &mut Vec<u8>) {
    if is_plain(text) {
        return out.extend_from_slice(text.as_bytes());
    }
    for c in text.chars() {
        if c.is_control() {
            put(out, format_args!("{}", c.escape_default()));
        } else {
            put(out, format_args!("{c}"));
        }
    }
}

/// Appends a JSON string (RFC 8259 section 7).
fn quote(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    if is_plain(text) && !text.bytes().any(|byte| matches!(byte, b'"' | b'\\')) {
        out.extend_from_slice(text.as_bytes());
    } else {
        for c in text.chars() {
            match c {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                c if c.is_control() => put(out, format_args!("\\u{:04x}", c as u32)),
                c => put(out, format_args!("{c}")),
            }
        }
    }
    out.push(b'"');
}

/// Nanoseconds since 1970 as RFC 3339 with milliseconds (days to civil date: Hinnant, chrono-compatible algorithms).
struct Rfc3339(u64);

impl std::fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seconds, millis) = (self.0 / 1_000_000_000, self.0 / 1_000_000 % 1000);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let shifted = days + 719_468;
        let (era, of_era) = (shifted / 146_097, shifted % 146_097);
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let shifted_month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}
