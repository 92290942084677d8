//! Lines of OTLP JSON, as a collector's file exporter writes them, back into the bytes of our records.
//!
//! Promises: other people's logs in the same lines are passed over; of ours, whatever no record of ours holds makes the
//! record unreadable instead of being passed over.

use std::borrow::Cow;

use record::{field, key, line::Attribute, rebuild};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Bytes of a line at most: collectors write one for each batch.
pub const LINE_BYTES_MAX: u64 = 64 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    #[serde(borrow, default)]
    resource_logs: Vec<ResourceLogs<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceLogs<'a> {
    #[serde(borrow, default)]
    resource: Resource<'a>,
    #[serde(borrow, default)]
    scope_logs: Vec<ScopeLogs<'a>>,
}

#[derive(Deserialize, Default)]
struct Resource<'a> {
    #[serde(borrow, default)]
    attributes: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScopeLogs<'a> {
    #[serde(borrow, default)]
    log_records: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Number<'a> {
    Plain(u64),
    Negative(i64),
    #[serde(borrow)]
    Quoted(Cow<'a, str>),
}

impl Number<'_> {
    fn unsigned(&self) -> Option<u64> {
        match self {
            Self::Plain(number) => Some(*number),
            Self::Negative(_) => None,
            Self::Quoted(text) => text.parse().ok(),
        }
    }

    fn signed(&self) -> Option<i64> {
        match self {
            Self::Plain(number) => i64::try_from(*number).ok(),
            Self::Negative(number) => Some(*number),
            Self::Quoted(text) => text.parse().ok(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Log<'a> {
    #[serde(borrow, default)]
    time_unix_nano: Option<Number<'a>>,
    #[serde(borrow, default)]
    observed_time_unix_nano: Option<Number<'a>>,
    #[serde(default)]
    severity_number: u32,
    #[serde(borrow, default)]
    severity_text: Cow<'a, str>,
    #[serde(borrow, default)]
    event_name: Cow<'a, str>,
    /// No record of ours has one; collectors write it empty.
    #[serde(default)]
    body: Option<Empty>,
    #[serde(borrow, default)]
    attributes: Vec<KeyValue<'a>>,
    #[serde(default)]
    dropped_attributes_count: Option<u32>,
    #[serde(default)]
    flags: u32,
    #[serde(borrow, default)]
    trace_id: Cow<'a, str>,
    #[serde(borrow, default)]
    span_id: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyValue<'a> {
    #[serde(borrow, default)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    value: Value<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Value<'a> {
    #[serde(borrow, default)]
    string_value: Option<Cow<'a, str>>,
    #[serde(default)]
    bool_value: Option<bool>,
    #[serde(borrow, default)]
    int_value: Option<Number<'a>>,
    #[serde(default)]
    double_value: Option<f64>,
}

impl Value<'_> {
    fn attribute(&self) -> Option<Attribute<'_>> {
        match (&self.string_value, self.bool_value, &self.int_value, self.double_value) {
            (Some(text), None, None, None) => Some(Attribute::Text(text)),
            (None, Some(truth), None, None) => Some(Attribute::Bool(truth)),
            (None, None, Some(number), None) => Some(Attribute::Int(number.signed()?)),
            (None, None, None, Some(number)) => Some(Attribute::Double(number)),
            _ => None,
        }
    }
}

/// Hands each record of ours to `take`: whose numbers, and the record's finished field, or why there is none.
///
/// # Errors
/// When the line is no OTLP JSON.
pub(crate) fn line(
    line: &[u8],
    mut take: impl FnMut([u8; 16], Result<&[u8], String>) -> Result<(), crate::Error>,
) -> Result<Result<(), crate::Error>, serde_json::Error> {
    let parsed: Line<'_> = serde_json::from_slice(line)?;
    let mut field = Vec::new();
    for logs in &parsed.resource_logs {
        let Some(stream) = logs.resource.attributes.iter().find_map(|attribute| stream(attribute)) else { continue };
        for raw in logs.scope_logs.iter().flat_map(|scope| &scope.log_records) {
            field.clear();
            let done = rebuilt(raw, &mut field);
            if let Err(error) = take(stream, done.map(|()| field.as_slice())) {
                return Ok(Err(error));
            }
        }
    }
    Ok(Ok(()))
}

/// The stream that an attribute of a resource names.
fn stream(attribute: &RawValue) -> Option<[u8; 16]> {
    let attribute: KeyValue<'_> = serde_json::from_str(attribute.get()).ok()?;
    let text = attribute.value.string_value.filter(|_| attribute.key == key::STREAM)?;
    unhex(&text)
}

pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(out)
}

fn rebuilt(raw: &RawValue, out: &mut Vec<u8>) -> Result<(), String> {
    let log: Log<'_> = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
    let foreign = || "it holds what no record of a proxy holds".to_owned();
    if log.body.is_some_and(|Empty {}| false) || log.dropped_attributes_count.unwrap_or(0) > 0 {
        return Err(foreign());
    }
    let time = |number: &Option<Number<'_>>| number.as_ref().map_or(Some(0), Number::unsigned).ok_or_else(foreign);
    let trace = if log.trace_id.is_empty() && log.span_id.is_empty() && log.flags == 0 {
        None
    } else {
        Some((unhex(&log.trace_id).ok_or_else(foreign)?, unhex(&log.span_id).ok_or_else(foreign)?, log.flags))
    };
    let head = rebuild::Head {
        time_unix_nano: time(&log.time_unix_nano)?,
        observed_time_unix_nano: time(&log.observed_time_unix_nano)?,
        severity_number: log.severity_number,
        severity_text: &log.severity_text,
        event_name: &log.event_name,
        trace,
    };
    let attributes: Option<Vec<_>> =
        log.attributes.iter().map(|KeyValue { key, value }| Some((&**key, value.attribute()?))).collect();
    rebuild::append(out, &head, &attributes.ok_or_else(foreign)?).map_err(|field::Malformed| foreign())
}
