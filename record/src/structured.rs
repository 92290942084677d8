//! Records as structured data of syslog (RFC 5424 section 6.3): the parameters that people read, and whether those that
//! somebody wrote down are a record's own.
//!
//! Whoever sends messages and whoever verifies them takes them from here, so that both mean the same.

use std::io::Write as _;

use crate::{key, line};

/// The most that names of parameters may have (RFC 5424 section 6, `SD-NAME`).
pub const NAME_BYTES_MAX: usize = 32;
/// What is written last when something was cut or left out.
pub const TRUNCATED: &[u8] = b" truncated=\"true\"";

/// The attributes of a record in the order of their parameters: what tells records apart comes first.
pub fn attributes(record: &[u8]) -> impl Iterator<Item = (&str, line::Attribute<'_>)> {
    let is_vital = |name: &str| name == key::LOG_RECORD_UID || name == key::SEQUENCE;
    let vital = line::attributes(record).filter(move |(name, _)| is_vital(name));
    vital.chain(line::attributes(record).filter(move |(name, _)| !is_vital(name)))
}

/// Whether `said` are the parameters of the record: each as a whole and in their order, some of them left out only if
/// [`TRUNCATED`] stands at the end. What was in `one` is lost.
pub fn agrees(record: &[u8], mut said: &[u8], one: &mut Vec<u8>) -> bool {
    let mut whole = true;
    for (name, value) in attributes(record) {
        one.clear();
        parameter(name, value, usize::MAX, usize::MAX, one);
        match said.strip_prefix(one.as_slice()) {
            Some(rest) => said = rest,
            None => whole = false,
        }
    }
    said == if whole { &b""[..] } else { TRUNCATED }
}

/// Appends one parameter, its value cut at `value_max` bytes, unless it would go past `end`; true when it is there as a whole.
pub fn parameter(of: &str, value: line::Attribute<'_>, value_max: usize, end: usize, out: &mut Vec<u8>) -> bool {
    let before = out.len();
    out.push(b' ');
    out.extend(name(of));
    out.extend_from_slice(b"=\"");
    let mut whole = true;
    // Writing to a Vec cannot fail.
    let _ = match value {
        line::Attribute::Text(text) => {
            let cut = cut(text, value_max);
            whole = cut.len() == text.len();
            escape(cut, out);
            Ok(())
        }
        line::Attribute::Int(number) => write!(out, "{number}"),
        line::Attribute::Double(number) => write!(out, "{number}"),
        line::Attribute::Bool(truth) => write!(out, "{truth}"),
    };
    out.push(b'"');
    let fits = out.len() <= end;
    if !fits {
        out.truncate(before);
    }
    whole && fits
}

/// The name of an attribute in structured data: without `picket.`, which the element says already, and at most 32
/// characters, none of them `=`, `]` or `"`. A request's header is `header.NAME`, an answer's `answer.NAME`.
pub fn name(of: &str) -> impl Iterator<Item = u8> {
    let of = if of.is_empty() { "_" } else { of.strip_prefix("picket.").unwrap_or(of) };
    let of = of.strip_prefix("http.request.").filter(|rest| rest.starts_with("header.")).unwrap_or(of);
    let (prefix, of) = match of.strip_prefix(key::HTTP_RESPONSE_HEADER) {
        Some(rest) => ("answer.", rest),
        None => ("", of),
    };
    let legal = |c: u8| if c.is_ascii_graphic() && !matches!(c, b'=' | b']' | b'"') { c } else { b'_' };
    prefix.bytes().chain(of.bytes()).take(NAME_BYTES_MAX).map(legal)
}

/// Appends a value with `"`, `\` and `]` escaped (RFC 5424 section 6.3.3). Control characters, which receivers treat each in
/// their own way, are written as `\\u000a`.
fn escape(text: &str, out: &mut Vec<u8>) {
    for c in text.chars() {
        // Writing to a Vec cannot fail.
        let _ = match c {
            '"' | '\\' | ']' => write!(out, "\\{c}"),
            c if c.is_control() => write!(out, "\\\\u{:04x}", c as u32),
            c => write!(out, "{c}"),
        };
    }
}

/// At most `max` bytes of the text, up to the border of a character.
pub fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// The severity of syslog for one of OpenTelemetry (Logs Data Model, appendix B), 0 to 7.
pub fn severity(number: u64) -> u32 {
    match number {
        0..=8 => 7,
        9 => 6,
        10..=12 => 5,
        13..=16 => 4,
        17 => 3,
        18 => 2,
        19..=20 => 1,
        21.. => 0,
    }
}
