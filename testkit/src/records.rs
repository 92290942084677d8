//! Typed reading of received records.

use std::fmt;
use std::sync::Arc;

use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::LogRecord;

/// One received log record with the resource that sent it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Attributes of the sender.
    pub resource: Arc<[KeyValue]>,
    /// The record itself.
    pub log: LogRecord,
}

impl Record {
    /// `picket.connection`, `picket.request`, …
    pub fn event(&self) -> &str {
        &self.log.event_name
    }

    /// A string attribute; `None` if it is missing or of another type.
    pub fn text(&self, key: &str) -> Option<&str> {
        as_text(find(&self.log.attributes, key)?)
    }

    /// An integer attribute; `None` if it is missing or of another type.
    pub fn integer(&self, key: &str) -> Option<i64> {
        let Value::IntValue(number) = find(&self.log.attributes, key)? else { return None };
        Some(*number)
    }

    /// A floating point attribute (durations are seconds); `None` if it is missing or of another type.
    pub fn number(&self, key: &str) -> Option<f64> {
        let Value::DoubleValue(number) = find(&self.log.attributes, key)? else { return None };
        Some(*number)
    }

    /// A string attribute of the sender.
    pub fn resource_text(&self, key: &str) -> Option<&str> {
        as_text(find(&self.resource, key)?)
    }

    /// Whether `key` has this text.
    pub fn is(&self, key: &str, value: &str) -> bool {
        self.text(key) == Some(value)
    }
}

/// One line for error messages: the event and every attribute.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.event())?;
        for attribute in &self.log.attributes {
            match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
                Some(Value::StringValue(text)) => write!(f, " {}={text:?}", attribute.key)?,
                Some(Value::IntValue(number)) => write!(f, " {}={number}", attribute.key)?,
                Some(Value::DoubleValue(number)) => write!(f, " {}={number}", attribute.key)?,
                other => write!(f, " {}={other:?}", attribute.key)?,
            }
        }
        Ok(())
    }
}

fn as_text(value: &Value) -> Option<&str> {
    let Value::StringValue(text) = value else { return None };
    Some(text)
}

fn find<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
}
