//! Events that are neither connections nor requests: acts of the control plane, operational trouble, what a spool says
//! about the records themselves, and what left its baseline.

use crate::{
    Uid, key,
    otlp::{self, Severity},
};

/// The kinds of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventName {
    /// A certificate was issued or refused.
    Issuance,
    /// An operator should look.
    Alert,
    /// Records were lost: which, how many, why.
    Gap,
    /// A stretch of the chain of records is sealed by a signature.
    Checkpoint,
    /// Something left its baseline, or came back to it.
    Deviation,
    /// How a new version of a workload differs from the one before.
    Rollout,
}

impl EventName {
    /// The event name of the log record.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Issuance => "picket.issuance",
            Self::Alert => "picket.alert",
            Self::Gap => "picket.gap",
            Self::Checkpoint => "picket.checkpoint",
            Self::Deviation => "picket.deviation",
            Self::Rollout => "picket.rollout",
        }
    }
}

/// The value of an attribute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// A text of at most 1 KiB; longer ones are cut and marked.
    Text(&'a str),
    /// Certificates, encoded as text, of at most [`otlp::CERTIFICATES_BYTES_MAX`] bytes; cut and marked like any other.
    Certificates(&'a str),
    /// A whole number.
    Int(u64),
    /// A number.
    Double(f64),
    /// A truth value.
    Bool(bool),
}

/// One event.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// Its uid.
    pub uid: Uid,
    /// What kind it is.
    pub name: EventName,
    /// When it happened, in nanoseconds since 1970 UTC.
    pub time_unix_nanos: u64,
    /// How much it matters.
    pub severity: Severity,
    /// What happened, and to whom.
    pub attributes: &'a [(&'a str, Value<'a>)],
}

impl Event<'_> {
    /// Appends the record to `out`, as one finished `log_records` field. At most 64 attributes are taken.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let head = otlp::Head {
            event_name: self.name.as_str(),
            time_unix_nano: self.time_unix_nanos,
            severity: self.severity,
            trace: None,
        };
        otlp::log_record(out, &head, |mut attributes| {
            attributes.uid(key::LOG_RECORD_UID, self.uid);
            for (key, value) in self.attributes.iter().take(64) {
                match value {
                    Value::Text(text) => attributes.text(key, text),
                    Value::Certificates(text) => attributes.text_of(key, text, otlp::CERTIFICATES_BYTES_MAX),
                    Value::Int(number) => attributes.int(key, *number),
                    Value::Double(number) => attributes.double(key, *number),
                    Value::Bool(truth) => attributes.boolean(key, *truth),
                }
            }
            attributes.finish();
        });
    }
}
