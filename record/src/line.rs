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
    #[inline]
    fn varint(&mut self) -> Option<u64> {
        // Nearly all tags and numbers of a record have one byte.
        if let [byte @ ..0x80, rest @ ..] = self.0 {
            self.0 = rest;
            return Some(u64::from(*byte));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Option<u64> {
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
    severity(record) > 9
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

/// Where the first attribute begins; `None` where there is none.
pub(crate) fn first_attribute(record: &[u8]) -> Option<usize> {
    let mut fields = Fields(record);
    loop {
        let at = record.len() - fields.0.len();
        if matches!(fields.next()?, (6, Field::Bytes(_))) {
            return Some(at);
        }
    }
}

/// How many bytes of attributes stand before the one of this name; `None` where something else comes first.
pub(crate) fn attributes_before(attributes: &[u8], name: &str) -> Option<usize> {
    let mut fields = Fields(attributes);
    loop {
        let at = attributes.len() - fields.0.len();
        let (6, Field::Bytes(attribute)) = fields.next()? else { return None };
        if is_named(attribute, name) {
            return Some(at);
        }
    }
}

/// Whether the first field is the attribute of this name.
pub(crate) fn first_is(attributes: &[u8], name: &str) -> bool {
    matches!(Fields(attributes).next(), Some((6, Field::Bytes(attribute))) if is_named(attribute, name))
}

fn is_named(attribute: &[u8], name: &str) -> bool {
    named(attribute).is_some_and(|(found, _)| found == name.as_bytes())
}

/// A part of a record, read no further than needed.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// When it happened, in nanoseconds since 1970 UTC.
    Time(u64),
    /// What kind of event it is.
    EventName(&'a [u8]),
    /// An attribute: its name, and its value for [`Undecoded::value`].
    Attribute(&'a [u8], Undecoded<'a>),
}

/// The value of an attribute, not yet looked at.
#[derive(Debug, Clone, Copy)]
pub struct Undecoded<'a>(&'a [u8]);

impl<'a> Undecoded<'a> {
    /// The value; none if it is damaged.
    pub fn value(self) -> Option<Attribute<'a>> {
        value_of(self.0)
    }
}

/// The parts of a record in one pass, for who wants few of its attributes.
pub fn parts(record: &[u8]) -> impl Iterator<Item = Part<'_>> {
    Fields(record).filter_map(|(number, field)| match (number, field) {
        (1, Field::Number(nanos)) => Some(Part::Time(nanos)),
        (12, Field::Bytes(name)) => Some(Part::EventName(name)),
        (6, Field::Bytes(bytes)) => named(bytes).map(|(name, value)| Part::Attribute(name, Undecoded(value))),
        _ => None,
    })
}

fn attribute(bytes: &[u8]) -> Option<(&str, Attribute<'_>)> {
    let (name, value) = named(bytes)?;
    Some((std::str::from_utf8(name).ok()?, value_of(value)?))
}

/// The name of an attribute and its value, both as they are encoded.
fn named(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    // As the encoder writes it: a length of one byte, a padded one of two.
    if let [0x0a, length @ ..0x80, rest @ ..] = bytes
        && let Some((name, [0x12, low @ 0x80..=0xff, high @ ..0x80, value @ ..])) =
            rest.split_at_checked(usize::from(*length))
        && value.len() == usize::from(low & 0x7f) | usize::from(*high) << 7
    {
        return Some((name, value));
    }
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

fn value_of(bytes: &[u8]) -> Option<Attribute<'_>> {
    Some(match Fields(bytes).next()? {
        (1, Field::Bytes(bytes)) => Attribute::Text(std::str::from_utf8(bytes).ok()?),
        (2, Field::Number(number)) => Attribute::Bool(number != 0),
        (3, Field::Number(number)) => Attribute::Int(number as i64),
        (4, Field::Number(number)) => Attribute::Double(f64::from_bits(number)),
        _ => return None,
    })
}

/// The severity number of a record (logs.proto `SeverityNumber`); 0 when it has none.
pub fn severity(record: &[u8]) -> u64 {
    let number = |(number, field)| match field {
        Field::Number(severity) if number == 2 => Some(severity),
        Field::Number(_) | Field::Bytes(_) => None,
    };
    Fields(record).find_map(number).unwrap_or(0)
}

/// The id of the trace that a record belongs to, if there is one.
pub fn trace_id(record: &[u8]) -> Option<[u8; 16]> {
    Fields(record).find_map(|(number, field)| match field {
        Field::Bytes(bytes) if number == 9 => bytes.try_into().ok(),
        Field::Bytes(_) | Field::Number(_) => None,
    })
}

/// When a record was made, in nanoseconds since 1970 UTC, and the name of its event.
pub fn time_and_name(record: &[u8]) -> (u64, &str) {
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
    out.extend_from_slice(b"{\"time\":\"");
    rfc3339(time, out);
    out.extend_from_slice(b"\",\"event\":");
    quote(name, out);
    for (name, value) in attributes(record) {
        out.push(b',');
        quote(name, out);
        out.push(b':');
        match value {
            Attribute::Text(text) => quote(text, out),
            Attribute::Double(number) if !number.is_finite() => out.extend_from_slice(b"null"),
            Attribute::Int(_) | Attribute::Double(_) | Attribute::Bool(_) => show(value, out),
        }
    }
    out.extend_from_slice(b"}\n");
}

/// What a line shows: before each attribute, what stands between it and the one before.
type Layout<const N: usize> = [(&'static str, &'static str); N];

const REQUEST: Layout<13> = [
    (" ", key::DIRECTION),
    (" ", key::HTTP_REQUEST_METHOD),
    (" ", key::SERVER_ADDRESS),
    ("", key::URL_PATH),
    (" ", key::HTTP_RESPONSE_STATUS_CODE),
    (" ", key::DURATION),
    (" ", key::HTTP_REQUEST_BODY_SIZE),
    ("B/", key::HTTP_RESPONSE_BODY_SIZE),
    ("B ", key::CLIENT_IDENTITY),
    (" -> ", key::SERVER_IDENTITY),
    (" (", key::DECISION),
    (" ", key::TLS_CURVE),
    (") ", key::CODE),
];

const CONNECTION: Layout<14> = [
    (" ", key::DIRECTION),
    (" ", key::SOURCE_ADDRESS),
    (":", key::SOURCE_PORT),
    (" -> ", key::DESTINATION_ADDRESS),
    (":", key::DESTINATION_PORT),
    (" ", key::NETWORK_PROTOCOL_NAME),
    (" ", key::DURATION),
    (" ", key::BYTES_FROM_CLIENT),
    ("B/", key::BYTES_FROM_SERVER),
    ("B ", key::CLIENT_IDENTITY),
    (" -> ", key::SERVER_IDENTITY),
    (" (", key::DECISION),
    (" ", key::TLS_CURVE),
    (") ", key::CODE),
];

/// Appends one record as one line for people.
pub fn text(record: &[u8], out: &mut Vec<u8>) {
    let (time, name) = time_and_name(record);
    rfc3339(time, out);
    out.push(b' ');
    padded(17, out, |out| printable(name, out));
    summary(record, out);
    out.push(b'\n');
}

/// Appends what [`text`] shows besides time and event, without the end of the line.
pub fn summary(record: &[u8], out: &mut Vec<u8>) {
    let (_, name) = time_and_name(record);
    match name {
        "picket.request" => lay_out(record, &REQUEST, out),
        "picket.connection" => lay_out(record, &CONNECTION, out),
        _ => {
            for (name, value) in attributes(record) {
                out.push(b' ');
                printable(name, out);
                out.push(b'=');
                show(value, out);
            }
        }
    }
}

/// Appends what the layout names; all of it is found in one pass over the record.
fn lay_out<const N: usize>(record: &[u8], layout: &Layout<N>, out: &mut Vec<u8>) {
    let (mut values, mut more) = ([None; N], false);
    let encoded = Fields(record).filter_map(|(number, field)| match field {
        Field::Bytes(bytes) if number == 6 => named(bytes),
        Field::Bytes(_) | Field::Number(_) => None,
    });
    for (name, value) in encoded {
        if let Some(at) = layout.iter().position(|(_, key)| key.as_bytes() == name)
            && values[at].is_none()
        {
            values[at] = value_of(value);
        } else {
            more |= is_captured(name);
        }
    }
    for ((before, key), value) in layout.iter().zip(values) {
        out.extend_from_slice(before.as_bytes());
        match (*key, value) {
            (_, None) => out.push(b'-'),
            (key::DURATION, Some(Attribute::Double(seconds))) => {
                // Writing to a Vec cannot fail.
                let _ = write!(out, "{:.3}ms", seconds * 1e3);
            }
            (key::DIRECTION, Some(value)) => padded(8, out, |out| show(value, out)),
            (_, Some(value)) => show(value, out),
        }
    }
    for (name, value) in attributes(record).filter(|(name, _)| more && is_captured(name.as_bytes())) {
        out.push(b' ');
        printable(name, out);
        out.push(b'=');
        if let Attribute::Text(text) = value {
            quote(text, out);
        }
    }
}

/// What settings ask for besides the schema.
fn is_captured(name: &[u8]) -> bool {
    let prefixes = [key::HTTP_REQUEST_HEADER, key::HTTP_RESPONSE_HEADER].map(str::as_bytes);
    name == key::URL_QUERY.as_bytes() || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// Appends what `write` appends, with spaces up to `width`.
fn padded(width: usize, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let end = out.len() + width;
    write(out);
    out.resize(out.len().max(end), b' ');
}

fn show(value: Attribute<'_>, out: &mut Vec<u8>) {
    // Writing to a Vec cannot fail.
    let _ = match value {
        Attribute::Text(text) => {
            printable(text, out);
            Ok(())
        }
        Attribute::Int(number) => write!(out, "{number}"),
        Attribute::Double(number) => write!(out, "{number}"),
        Attribute::Bool(truth) => write!(out, "{truth}"),
    };
}

/// Appends the text with control characters (line ends and terminal escapes among them) escaped.
fn printable(text: &str, out: &mut Vec<u8>) {
    if is_plain(text) {
        return out.extend_from_slice(text.as_bytes());
    }
    for c in text.chars() {
        // Writing to a Vec cannot fail.
        let _ = if c.is_control() { write!(out, "{}", c.escape_default()) } else { write!(out, "{c}") };
    }
}

/// Appends a JSON string (RFC 8259 section 7).
fn quote(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    if is_plain(text) {
        out.extend_from_slice(text.as_bytes());
    } else {
        for c in text.chars() {
            // Writing to a Vec cannot fail.
            let _ = match c {
                '"' => write!(out, "\\\""),
                '\\' => write!(out, "\\\\"),
                c if c.is_control() => write!(out, "\\u{:04x}", c as u32),
                c => write!(out, "{c}"),
            };
        }
    }
    out.push(b'"');
}

/// Nothing in it needs to be escaped, in either format; so it is with nearly all texts.
fn is_plain(text: &str) -> bool {
    // All bytes, not up to the first that is not plain: so the compiler can take many at once.
    text.bytes().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\'))
}

/// Appends nanoseconds since 1970 as RFC 3339 with milliseconds (days to civil date: Hinnant, chrono-compatible
/// algorithms).
pub fn rfc3339(nanos: u64, out: &mut Vec<u8>) {
    let (seconds, millis) = (nanos / 1_000_000_000, nanos / 1_000_000 % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    for (before, value, width) in [
        (None, year, 4),
        (Some(b'-'), month, 2),
        (Some(b'-'), day, 2),
        (Some(b'T'), second / 3600, 2),
        (Some(b':'), second / 60 % 60, 2),
        (Some(b':'), second % 60, 2),
        (Some(b'.'), millis, 3),
    ] {
        out.extend(before);
        out.extend((0..width).rev().map(|place: u32| b'0' + (value / 10u64.pow(place) % 10) as u8));
    }
    out.push(b'Z');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(nanos: u64) -> String {
        let mut out = Vec::new();
        rfc3339(nanos, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn times_are_written_as_rfc_3339() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        // The last second of a leap day, and the largest number.
        assert_eq!(time(951_868_799_999_999_999), "2000-02-29T23:59:59.999Z");
        assert_eq!(time(u64::MAX), "2554-07-21T23:34:33.709Z");
    }

    #[test]
    fn what_could_forge_a_line_is_escaped() {
        let shown = |text: &str| {
            let (mut plain, mut quoted) = (Vec::new(), Vec::new());
            printable(text, &mut plain);
            quote(text, &mut quoted);
            (String::from_utf8(plain).unwrap(), String::from_utf8(quoted).unwrap())
        };
        assert_eq!(shown("a b"), ("a b".to_owned(), "\"a b\"".to_owned()));
        assert_eq!(
            shown("a\n\u{1b}é\u{85}"),
            ("a\\n\\u{1b}é\\u{85}".to_owned(), "\"a\\u000a\\u001bé\\u0085\"".to_owned())
        );
        assert_eq!(shown("\"\\"), ("\"\\".to_owned(), "\"\\\"\\\\\"".to_owned()));
    }
}
