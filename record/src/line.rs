//! Access-log lines, made from encoded records: JSON, or text for people.
//!
//! Control characters are escaped, so that no value can forge a line. Damaged bytes give fewer attributes, never a panic.

use std::fmt::Write as _;

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
    Fields(record).filter_map(|(number, field)| match field {
        Field::Bytes(bytes) if number == 6 => attribute(bytes),
        Field::Bytes(_) | Field::Number(_) => None,
    })
}

fn attribute(bytes: &[u8]) -> Option<(&str, Attribute<'_>)> {
    let (mut name, mut value) = (None, None);
    for (number, field) in Fields(bytes) {
        match (number, field) {
            (1, Field::Bytes(bytes)) => name = std::str::from_utf8(bytes).ok(),
            (2, Field::Bytes(bytes)) => value = Fields(bytes).next(),
            _ => {}
        }
    }
    let value = match value? {
        (1, Field::Bytes(bytes)) => Attribute::Text(std::str::from_utf8(bytes).ok()?),
        (2, Field::Number(number)) => Attribute::Bool(number != 0),
        (3, Field::Number(number)) => Attribute::Int(number as i64),
        (4, Field::Number(number)) => Attribute::Double(f64::from_bits(number)),
        _ => return None,
    };
    Some((name?, value))
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
    let mut line = String::with_capacity(512);
    // Writing to a String cannot fail.
    let _ = write!(line, "{{\"time\":\"{}\",\"event\":", Rfc3339(time));
    quote(&mut line, name);
    for (name, value) in attributes(record) {
        line.push(',');
        quote(&mut line, name);
        line.push(':');
        let _ = match value {
            Attribute::Text(text) => {
                quote(&mut line, text);
                Ok(())
            }
            Attribute::Int(number) => write!(line, "{number}"),
            Attribute::Double(number) if number.is_finite() => write!(line, "{number}"),
            Attribute::Double(_) => write!(line, "null"),
            Attribute::Bool(truth) => write!(line, "{truth}"),
        };
    }
    line.push_str("}\n");
    out.extend_from_slice(line.as_bytes());
}

/// Appends one record as one line for people.
pub fn text(record: &[u8], out: &mut Vec<u8>) {
    let (time, name) = time_and_name(record);
    let mut line = format!("{} {:<17}", Rfc3339(time), printable(name));
    let find = |wanted: &str| attributes(record).find(|(name, _)| *name == wanted).map(|(_, value)| value);
    let text_of = |wanted: &str| match find(wanted) {
        Some(Attribute::Text(text)) => printable(text),
        Some(Attribute::Int(number)) => number.to_string(),
        Some(Attribute::Double(number)) => number.to_string(),
        Some(Attribute::Bool(truth)) => truth.to_string(),
        None => "-".to_owned(),
    };
    let millis = match find(key::DURATION) {
        Some(Attribute::Double(seconds)) => format!("{:.3}ms", seconds * 1e3),
        Some(_) | None => "-".to_owned(),
    };
    let who = format!(
        "{} -> {} ({} {})",
        text_of(key::CLIENT_IDENTITY),
        text_of(key::SERVER_IDENTITY),
        text_of(key::DECISION),
        text_of(key::TLS_CURVE)
    );
    // Writing to a String cannot fail.
    let _ = match name {
        "picket.request" => writeln!(
            line,
            " {:<8} {} {}{} {} {millis} {}B/{}B {who} {}",
            text_of(key::DIRECTION),
            text_of(key::HTTP_REQUEST_METHOD),
            text_of(key::SERVER_ADDRESS),
            text_of(key::URL_PATH),
            text_of(key::HTTP_RESPONSE_STATUS_CODE),
            text_of(key::HTTP_REQUEST_BODY_SIZE),
            text_of(key::HTTP_RESPONSE_BODY_SIZE),
            text_of(key::CODE),
        ),
        "picket.connection" => writeln!(
            line,
            " {:<8} {}:{} -> {}:{} {} {millis} {}B/{}B {who} {}",
            text_of(key::DIRECTION),
            text_of(key::SOURCE_ADDRESS),
            text_of(key::SOURCE_PORT),
            text_of(key::DESTINATION_ADDRESS),
            text_of(key::DESTINATION_PORT),
            text_of(key::NETWORK_PROTOCOL_NAME),
            text_of(key::BYTES_FROM_CLIENT),
            text_of(key::BYTES_FROM_SERVER),
            text_of(key::CODE),
        ),
        _ => {
            for (name, _) in attributes(record) {
                let _ = write!(line, " {}={}", printable(name), text_of(name));
            }
            writeln!(line)
        }
    };
    out.extend_from_slice(line.as_bytes());
}

/// The text with control characters (line ends and terminal escapes among them) escaped.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// Appends a JSON string (RFC 8259 section 7).
fn quote(line: &mut String, text: &str) {
    line.push('"');
    for c in text.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(line, "\\u{:04x}", c as u32);
            }
            c => line.push(c),
        }
    }
    line.push('"');
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
