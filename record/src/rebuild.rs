//! The bytes of a record again, out of what another program says that it holds (docs/formats/evidence.md, "The bytes of a
//! record").
//!
//! Promises: of a record that the encoder made and a spool numbered, [`append`] makes the same bytes, as long as its
//! attributes come in their order. Anything else gives other bytes or none, and never a panic.

use crate::{
    field::{BYTES_MAX, Malformed},
    key,
    line::Attribute,
    otlp::{self, Attributes},
};

/// What the two bytes of an attribute's length can say.
const ATTRIBUTE_BYTES_MAX: usize = (1 << 14) - 1;
/// Tags and lengths in an attribute, at most, with the longest number.
const ATTRIBUTE_OVERHEAD: usize = 32;

/// What a record holds besides its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<'a> {
    /// When it happened, in nanoseconds since 1970 UTC.
    pub time_unix_nano: u64,
    /// When it was seen.
    pub observed_time_unix_nano: u64,
    /// `SeverityNumber`.
    pub severity_number: u32,
    /// The word for it.
    pub severity_text: &'a str,
    /// What kind of event it is.
    pub event_name: &'a str,
    /// Trace id, span id and flags.
    pub trace: Option<([u8; 16], [u8; 8], u32)>,
}

/// Appends the finished `log_records` field of a record; its last attribute is its number.
///
/// # Errors
/// When no record of ours looks like this; `out` is as before then.
pub fn append(out: &mut Vec<u8>, head: &Head<'_>, attributes: &[(&str, Attribute<'_>)]) -> Result<(), Malformed> {
    let Some((&(key::SEQUENCE, Attribute::Int(sequence)), rest)) = attributes.split_last() else {
        return Err(Malformed);
    };
    let length = |(name, value): &(&str, Attribute<'_>)| {
        let text = if let Attribute::Text(text) = value { text.len() } else { 0 };
        name.len() + text + ATTRIBUTE_OVERHEAD
    };
    let lengths = || attributes.iter().map(length);
    let whole = lengths().sum::<usize>() + head.severity_text.len() + head.event_name.len() + 128;
    if lengths().any(|length| length > ATTRIBUTE_BYTES_MAX) || whole > BYTES_MAX {
        return Err(Malformed);
    }
    otlp::record_field(out, |out| {
        otlp::begin(out, head.time_unix_nano, head.severity_number, head.severity_text);
        let mut attributes = Attributes::new(out);
        for (name, value) in rest {
            match value {
                Attribute::Text(text) => attributes.text_of(name, text, usize::MAX),
                Attribute::Int(number) => attributes.int(name, *number as u64),
                Attribute::Double(number) => attributes.double(name, *number),
                Attribute::Bool(truth) => attributes.boolean(name, *truth),
            }
        }
        otlp::end(out, head.trace, head.observed_time_unix_nano, head.event_name);
        Attributes::new(out).int(key::SEQUENCE, sequence as u64);
    });
    Ok(())
}
