//! Records as syslog messages: RFC 5424 with structured data, each with the octet count in front (RFC 6587 3.4.1).
//!
//! Promises: a message is never longer than the limit, and is a valid one whatever values hold; uid, number and stream
//! are whole in each. What does not fit is cut or left out, and `truncated` says so. Where the record's own bytes are in
//! it, parameters and text are each there as a whole or not at all, so that they can be held against them.

use std::io::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use record::{
    line,
    structured::{self, TRUNCATED, cut, parameter, severity},
};

/// What uid and number of a record take at most, as parameters.
const VITAL_BYTES_MAX: usize = 80;
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
    /// Whether each message holds the bytes of its record, too, by which it can be verified.
    pub evidence: bool,
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
    /// The beginning of the element with a record's own bytes, where they are wanted.
    evidence: Option<String>,
    /// That element, as a whole; empty without one.
    proof: String,
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
            evidence: format.evidence.then(|| format!("[record@{number}")),
            proof: String::new(),
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
        let is_proven = self.structured_data(record);
        self.text(record, is_proven);
        // As above.
        let _ = write!(out, "{} ", self.message.len());
        out.extend_from_slice(&self.message);
    }

    /// True when the record's own bytes are there.
    fn structured_data(&mut self, record: &[u8]) -> bool {
        self.message.extend_from_slice(&self.element);
        let is_proven = self.prove(record);
        let value_max = if is_proven { usize::MAX } else { self.limit / 4 };
        let end = self.limit.saturating_sub(self.resource.len() + self.proof.len() + TRUNCATED.len() + 1);
        let mut whole = true;
        for (name, value) in structured::attributes(record) {
            whole &= parameter(name, value, value_max, end, &mut self.message);
        }
        if !whole {
            self.message.extend_from_slice(TRUNCATED);
        }
        self.message.push(b']');
        self.message.extend_from_slice(&self.resource);
        self.message.extend_from_slice(self.proof.as_bytes());
        is_proven
    }

    /// Makes the element with the record's own bytes, if they are wanted; true when they are in it.
    fn prove(&mut self, record: &[u8]) -> bool {
        self.proof.clear();
        let Some(begin) = &self.evidence else { return false };
        self.proof.push_str(begin);
        let others = self.message.len() + VITAL_BYTES_MAX + TRUNCATED.len() + 1 + self.resource.len();
        let own = begin.len() + " otlp=\"\"]".len() + record.len().div_ceil(3) * 4;
        let fits = others + own <= self.limit;
        if fits {
            self.proof.push_str(" otlp=\"");
            STANDARD.encode_string(record, &mut self.proof);
            self.proof.push_str("\"]");
        } else {
            self.proof.push_str(" left_out=\"true\"]");
        }
        fits
    }

    /// The line for people, as far as it fits, or only as a whole: it says nothing that the structured data does not say.
    fn text(&mut self, record: &[u8], whole: bool) {
        self.text.clear();
        line::summary(record, &mut self.text);
        let text = std::str::from_utf8(&self.text).unwrap_or_default().trim_ascii_start();
        let room = self.limit.saturating_sub(self.message.len() + 1 + BOM.len());
        let text = if whole && text.len() > room { "" } else { cut(text, room) };
        if !text.is_empty() {
            self.message.push(b' ');
            self.message.extend_from_slice(BOM);
            self.message.extend_from_slice(text.as_bytes());
        }
    }
}

/// A field of the header: printable ASCII, or `-` when there is nothing.
fn header(text: &str, max: usize) -> String {
    let text: String = text.chars().take(max).map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect();
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
