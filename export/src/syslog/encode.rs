//! Records as syslog messages: RFC 5424 with structured data, each with the octet count in front (RFC 6587 3.4.1).
//!
//! Promises: a message is never longer than the limit, and is a valid one whatever values hold; uid, number and stream
//! are whole in each. What does not fit is cut or left out, and `truncated` says so.

use std::io::Write as _;

use record::{key, line};

/// The most that names of parameters may have (RFC 5424 section 6, `SD-NAME`).
const NAME_BYTES_MAX: usize = 32;
/// What is written last when something was cut.
const TRUNCATED: &[u8] = b" truncated=\"true\"";
/// Says that the text is UTF-8 (RFC 5424 section 6.4).
const BOM: &[u8] = "\u{feff}".as_bytes();

/// What all messages share.
#[derive(Debug, Clone)]
pub struct Format {
    /// The facility's number, 0 to 23.
    pub facility: u8,
    /// Name of the machine or the pod.
    pub host_name: String,
    /// Name of the program.
    pub app_name: String,
    /// Its process id.
    pub process_id: u32,
    /// Private enterprise number of the structured data's names.
    pub enterprise_number: u32,
    /// Bytes of one message at most, without the octet count.
    pub message_bytes_max: usize,
    /// Attributes of the resource.
    pub resource: Vec<(String, String)>,
}

/// Makes messages.
#[derive(Debug, Clone)]
pub(super) struct Encoder {
    facility: u8,
    /// HOSTNAME, APP-NAME and PROCID, with the spaces around them.
    origin: Vec<u8>,
    /// The beginning of the first element.
    element: Vec<u8>,
    /// The element of the resource.
    resource: Vec<u8>,
    limit: usize,
    message: Vec<u8>,
    text: Vec<u8>,
}

impl Encoder {
    pub(super) fn new(format: &Format) -> Self {
        let (host, app) = (header(&format.host_name, 255), header(&format.app_name, 48));
        let limit = format.message_bytes_max;
        let number = format.enterprise_number;
        let mut resource = format!("[resource@{number}").into_bytes();
        let end = resource.len() + limit / 4;
        for (name, value) in &format.resource {
            let value = line::Attribute::Text(value);
            // What is too long for a quarter of a message is left out of all of them.
            let _fits = parameter(name, value, limit / 8, end, &mut resource);
        }
        resource.push(b']');
        Self {
            facility: format.facility,
            origin: format!(" {host} {app} {} ", format.process_id).into_bytes(),
            element: format!("[picket@{number}").into_bytes(),
            resource: if format.resource.is_empty() { Vec::new() } else { resource },
            limit,
            message: Vec::new(),
            text: Vec::new(),
        }
    }

    /// Appends one record, given as its field's content, as a message with its octet count.
    pub(super) fn frame(&mut self, record: &[u8], out: &mut Vec<u8>) {
        self.message.clear();
        let (time, event) = line::time_and_name(record);
        let priority = u32::from(self.facility) * 8 + severity(line::severity(record));
        // Writing to a Vec cannot fail.
        let _ = write!(self.message, "<{priority}>1 ");
        line::rfc3339(time, &mut self.message);
        self.message.extend_from_slice(&self.origin);
        self.message.extend_from_slice(header(event, 32).as_bytes());
        self.message.push(b' ');
        self.structured_data(record);
        self.text(record);
        // As above.
        let _ = write!(out, "{} ", self.message.len());
        out.extend_from_slice(&self.message);
    }

    fn structured_data(&mut self, record: &[u8]) {
        self.message.extend_from_slice(&self.element);
        let end = self.limit.saturating_sub(self.resource.len() + TRUNCATED.len() + 1);
        let is_vital = |name: &str| name == key::LOG_RECORD_UID || name == key::SEQUENCE;
        let vital = line::attributes(record).filter(|(name, _)| is_vital(name));
        let rest = line::attributes(record).filter(|(name, _)| !is_vital(name));
        let mut whole = true;
        for (name, value) in vital.chain(rest) {
            whole &= parameter(name, value, self.limit / 4, end, &mut self.message);
        }
        if !whole {
            self.message.extend_from_slice(TRUNCATED);
        }
        self.message.push(b']');
        self.message.extend_from_slice(&self.resource);
    }

    /// The line for people, as far as it fits: it says nothing that the structured data does not say.
    fn text(&mut self, record: &[u8]) {
        self.text.clear();
        line::summary(record, &mut self.text);
        let text = std::str::from_utf8(&self.text).unwrap_or_default().trim_ascii_start();
        let room = self.limit.saturating_sub(self.message.len() + 1 + BOM.len());
        let text = cut(text, room);
        if !text.is_empty() {
            self.message.push(b' ');
            self.message.extend_from_slice(BOM);
            self.message.extend_from_slice(text.as_bytes());
        }
    }
}

/// At most `max` bytes of the text, up to the border of a character.
fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// The severity of syslog for one of OpenTelemetry (Logs Data Model, appendix B), 0 to 7.
fn severity(number: u64) -> u32 {
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

/// A field of the header: printable ASCII, or `-` when there is nothing.
fn header(text: &str, max: usize) -> String {
    let text: String = text.chars().take(max).map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect();
    if text.is_empty() { "-".to_owned() } else { text }
}

/// The name of an attribute in structured data: without `picket.`, which the element says already, and at most 32
/// characters, none of them `=`, `]` or `"`. A request's header is `header.NAME`, an answer's `answer.NAME`.
fn name(of: &str) -> impl Iterator<Item = u8> {
    let of = if of.is_empty() { "_" } else { of.strip_prefix("picket.").unwrap_or(of) };
    let of = of.strip_prefix("http.request.").filter(|rest| rest.starts_with("header.")).unwrap_or(of);
    let (prefix, of) = match of.strip_prefix(key::HTTP_RESPONSE_HEADER) {
        Some(rest) => ("answer.", rest),
        None => ("", of),
    };
    let legal = |c: u8| if c.is_ascii_graphic() && !matches!(c, b'=' | b']' | b'"') { c } else { b'_' };
    prefix.bytes().chain(of.bytes()).take(NAME_BYTES_MAX).map(legal)
}

/// Appends one parameter, its value cut at `value_max` bytes, unless it would go past `end`; true when it is there as a whole.
fn parameter(of: &str, value: line::Attribute<'_>, value_max: usize, end: usize, out: &mut Vec<u8>) -> bool {
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

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
