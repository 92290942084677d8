//! A request as one line of OTLP/JSON, as collectors write it to files and read it again.
//!
//! Written here for the few kinds of value that records have (`record`); the whole mapping would bring a second crate
//! for hexadecimal text into every proxy.

use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value as Any},
    logs::v1::LogRecord,
};
use serde_json::{Map, Value, json};

/// The line, with its end.
pub(super) fn line(request: &ExportLogsServiceRequest) -> Vec<u8> {
    let resources = request.resource_logs.iter().map(|resource| {
        let scopes = resource.scope_logs.iter().map(|scope| {
            let name = scope.scope.as_ref().map_or("", |scope| scope.name.as_str());
            let records: Vec<_> = scope.log_records.iter().map(record).collect();
            json!({ "scope": { "name": name }, "logRecords": records })
        });
        let about = resource.resource.as_ref().map_or(&[][..], |resource| &resource.attributes);
        json!({ "resource": { "attributes": attributes(about) }, "scopeLogs": scopes.collect::<Vec<_>>() })
    });
    let mut line = json!({ "resourceLogs": resources.collect::<Vec<_>>() }).to_string().into_bytes();
    line.push(b'\n');
    line
}

fn record(record: &LogRecord) -> Value {
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| drop(out.insert(name.to_owned(), value));
    // 64-bit numbers are text (protobuf's mapping to JSON).
    put("timeUnixNano", json!(record.time_unix_nano.to_string()));
    put("observedTimeUnixNano", json!(record.observed_time_unix_nano.to_string()));
    put("severityNumber", json!(record.severity_number));
    put("severityText", json!(record.severity_text));
    put("eventName", json!(record.event_name));
    put("attributes", attributes(&record.attributes));
    put("droppedAttributesCount", json!(record.dropped_attributes_count));
    put("flags", json!(record.flags));
    put("traceId", json!(hexadecimal(&record.trace_id)));
    put("spanId", json!(hexadecimal(&record.span_id)));
    if let Some(body) = record.body.as_ref().and_then(value) {
        put("body", body);
    }
    Value::Object(out)
}

fn attributes(attributes: &[KeyValue]) -> Value {
    let one = |attribute: &KeyValue| Some(json!({ "key": attribute.key, "value": value(attribute.value.as_ref()?)? }));
    attributes.iter().filter_map(one).collect()
}

/// `None` for kinds that no record has.
fn value(value: &AnyValue) -> Option<Value> {
    Some(match value.value.as_ref()? {
        Any::StringValue(text) => json!({ "stringValue": text }),
        Any::BoolValue(truth) => json!({ "boolValue": truth }),
        Any::IntValue(number) => json!({ "intValue": number.to_string() }),
        Any::DoubleValue(number) => json!({ "doubleValue": number }),
        Any::ArrayValue(_) | Any::KvlistValue(_) | Any::BytesValue(_) | Any::StringValueStrindex(_) => return None,
    })
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
