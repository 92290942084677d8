//! Messages of a proxy in a syslog server's file, one a line, back into the bytes of our records (docs/formats/evidence.md).
//!
//! Promises: other people's messages are told apart; a record that is handed out was whole in its message, and whether what
//! people read in the same message says the same is told with it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use record::{field, key, line, structured};

use crate::gather::number_of;

/// Pieces of messages that may stand before a whole one in a line.
const PIECES_MAX: usize = 8;
/// Why there are no bytes of the record.
const NOT_ASKED: &str = "`syslog.evidence` is not true";
const TOO_LONG: &str = "they would be longer than `syslog.messageBytes`";

/// A message of a proxy.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) stream: [u8; 16],
    /// The number of its record, as people read it; 0 where they do not.
    pub(crate) number: u64,
    pub(crate) holds: Holds,
    /// What was cut off of another message stands before it: a server died while it wrote.
    pub(crate) is_behind_a_piece: bool,
}

/// What a message has for us.
#[derive(Debug)]
pub(crate) enum Holds {
    /// The record, its own number, and which part of the message does not agree with it.
    Record { number: u64, differs: Option<&'static str> },
    /// Nothing, and why.
    Nothing(&'static str),
}

/// A message of a proxy that cannot be read: whose and its number, if that much is known, and why.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) whose: Option<([u8; 16], u64)>,
    pub(crate) what: &'static str,
}

/// Reads one line; `field` is the record's finished field then, if the message holds it. None when nothing in the line is
/// of a proxy.
pub(crate) fn line(line: &[u8], field: &mut Vec<u8>) -> Option<Result<Message, Unreadable>> {
    let line = line.trim_ascii_end();
    let first = message(line, field);
    if matches!(first, Some(Ok(_))) {
        return first;
    }
    let begins = line.windows(4).enumerate().filter(|(_, four)| *four == b">1 2").take(PIECES_MAX);
    for (at, _) in begins {
        let digits = line[..at].iter().rev().take(3).take_while(|byte| byte.is_ascii_digit()).count();
        let begin = (at - digits).checked_sub(1).filter(|begin| *begin > 0 && line[*begin] == b'<');
        if let Some(Ok(found)) = begin.and_then(|begin| message(&line[begin..], field)) {
            return Some(Ok(Message { is_behind_a_piece: true, ..found }));
        }
    }
    first
}

fn message(line: &[u8], out: &mut Vec<u8>) -> Option<Result<Message, Unreadable>> {
    let (header, mut rest) = ours(line)?;
    let unreadable = |whose, what| Some(Err(Unreadable { whose, what }));
    if header.is_none() && line.starts_with(b"<") {
        return unreadable(None, "its header is none of RFC 5424");
    }
    let (Some((id, said)), Some((resource, stream))) = (element(&mut rest), element(&mut rest)) else {
        return unreadable(None, "it is not whole");
    };
    let of = |kind: &str, other: &[u8]| other.strip_prefix(kind.as_bytes()) == id.strip_prefix(b"picket");
    let stream = value(stream, key::STREAM).filter(|_| of("resource", resource)).and_then(crate::otlp_json::unhex);
    let Some(stream) = stream else { return unreadable(None, "it names no stream") };
    let number = value(said, key::SEQUENCE).and_then(|number| number.parse().ok()).unwrap_or(0);
    let whose = Some((stream, number));
    let holds = match rest.first() {
        Some(b'[') => match element(&mut rest) {
            Some((id, proof)) if of("record", id) => match content(proof) {
                Ok(None) => Holds::Nothing(TOO_LONG),
                Ok(Some(content)) => match record(&content, out) {
                    Some(own) => Holds::Record { number: own, differs: differs(header, said, rest, &content) },
                    None => return unreadable(whose, "the bytes in it are no record with a number"),
                },
                Err(what) => return unreadable(whose, what),
            },
            Some(_) => Holds::Nothing(NOT_ASKED),
            None => return unreadable(whose, "it is not whole"),
        },
        _ => Holds::Nothing(NOT_ASKED),
    };
    Some(Ok(Message { stream, number, holds, is_behind_a_piece: false }))
}

/// The header, where there is one that we know, and our element of the structured data with all that stands behind it.
fn ours(line: &[u8]) -> Option<(Option<Header<'_>>, &[u8])> {
    let is_ours = |rest: &[u8]| rest.starts_with(b"[picket@");
    if let Some((header, mut rest)) = Header::split(line) {
        while !is_ours(rest) {
            element(&mut rest)?;
        }
        return Some((Some(header), rest));
    }
    // Other formats have other headers.
    let at = (0..line.len()).find(|at| is_ours(&line[*at..]))?;
    Some((None, &line[at..]))
}

/// What says something about the record in the header of RFC 5424.
#[derive(Debug, Clone, Copy)]
struct Header<'a> {
    priority: u32,
    time: &'a [u8],
    event: &'a [u8],
}

impl<'a> Header<'a> {
    fn split(line: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (mut fields, mut at) = ([&line[..0]; 7], 0);
        for field in &mut fields[..6] {
            let length = line[at..].iter().position(|byte| *byte == b' ')?;
            *field = &line[at..at + length];
            at += length + 1;
        }
        let [priority, time, _, _, _, event, _] = fields;
        let priority = priority.strip_prefix(b"<")?.strip_suffix(b">1")?;
        let priority = std::str::from_utf8(priority).ok()?.parse().ok()?;
        Some((Self { priority, time, event }, &line[at..]))
    }

    fn agrees(&self, record: &[u8]) -> bool {
        let (time, event) = line::time_and_name(record);
        self.priority % 8 == structured::severity(line::severity(record))
            && self.event == event.as_bytes()
            && is_time(self.time, time)
    }
}

/// Whether a time of RFC 3339 is this one, as far as it has digits: servers may write it in their own zone.
fn is_time(said: &[u8], nanos: u64) -> bool {
    let minute = 60_000_000_000;
    let (local, shift) = match said.split_last_chunk::<6>() {
        _ if said.last() == Some(&b'Z') => (&said[..said.len() - 1], 0),
        Some((local, [sign @ (b'+' | b'-'), hours @ .., b':', tens, ones])) => {
            let digits = [hours[0], hours[1], *tens, *ones].map(|digit| i64::from(digit) - i64::from(b'0'));
            let [h, hh, m, mm] = digits;
            let minutes = (10 * h + hh) * 60 + 10 * m + mm;
            (local, if *sign == b'+' { minutes } else { -minutes })
        }
        _ => return false,
    };
    let mut expected = Vec::with_capacity(24);
    line::rfc3339(nanos.saturating_add_signed(shift.saturating_mul(minute)), &mut expected);
    expected.pop();
    let more = local.strip_prefix(expected.as_slice());
    (local.len() >= 19 && expected.starts_with(local))
        || more.is_some_and(|more| more.iter().all(|digit| *digit == b'0'))
}

/// Takes one element off: its name and its parameters.
fn element<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let inner = rest.strip_prefix(b"[")?;
    let (mut is_quoted, mut is_escaped, mut name) = (false, false, None);
    for (at, byte) in inner.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_quoted,
            b'"' => is_quoted = !is_quoted,
            b' ' if name.is_none() => name = Some(at),
            b']' if !is_quoted => {
                *rest = &inner[at + 1..];
                return Some(inner[..at].split_at(name.unwrap_or(at)));
            }
            _ => {}
        }
    }
    None
}

/// The value of the first parameter for an attribute, as it is written. Quotes are escaped in values, so that nothing else looks
/// like it.
fn value<'a>(parameters: &'a [u8], of: &str) -> Option<&'a str> {
    let begin: Vec<u8> = std::iter::once(b' ').chain(structured::name(of)).chain(*b"=\"").collect();
    let at = parameters.windows(begin.len()).position(|window| window == begin)? + begin.len();
    let length = parameters[at..].iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(&parameters[at..at + length]).ok()
}

/// The content of the record's field; none when the message says that it has no room for it.
fn content(proof: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    if proof == b" left_out=\"true\"" {
        return Ok(None);
    }
    let encoded = proof.strip_prefix(b" otlp=\"").and_then(|rest| rest.strip_suffix(b"\""));
    let content = encoded.and_then(|encoded| STANDARD.decode(encoded).ok());
    content.map(Some).ok_or("the bytes of its record are not in base64")
}

/// Makes the finished field; the record's number.
fn record(content: &[u8], out: &mut Vec<u8>) -> Option<u64> {
    out.clear();
    let number = number_of(content)?;
    field::append(out, content).ok()?;
    Some(number)
}

/// Which part of a message does not say what its record says.
fn differs(header: Option<Header<'_>>, said: &[u8], rest: &[u8], record: &[u8]) -> Option<&'static str> {
    let mut made = Vec::new();
    if header.is_some_and(|header| !header.agrees(record)) {
        return Some("the header");
    }
    if !structured::agrees(record, said, &mut made) {
        return Some("the structured data");
    }
    made.clear();
    line::summary(record, &mut made);
    let found = rest.trim_ascii();
    let found = found.strip_prefix("\u{feff}".as_bytes()).unwrap_or(found);
    (!found.is_empty() && found != made.trim_ascii()).then_some("the text")
}
