//! Each act of the authority as a record, a line of the log, and a count.
//!
//! Promises: every issuance, every refusal and every root that an operator takes out before its time is one
//! `picket.issuance` record and one line; an alert is one
//! `picket.alert` record and one line when it begins and when it ends; nobody waits for a collector. No credential
//! enters: of a token there is only what it was verified to say. Leaves to others: sending (`export`).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use export::{Events, Sender};
use record::{EventName, Severity, Value, key};
use telemetry::chain;

use crate::attest::Caller;
use crate::issue::{Issued, utc};
use crate::refusal::{CallError, Reason};
use crate::state::Dropped;

/// Counts of the calls so far, for the metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Certificates issued to callers.
    pub issued: AtomicU64,
    refused: [AtomicU64; Reason::ALL.len()],
}

impl Counters {
    /// Calls refused for this reason.
    pub fn refused(&self, reason: Reason) -> u64 {
        self.refused.get(reason as usize).map_or(0, |count| count.load(Relaxed))
    }
}

/// Who asked, as far as that is known.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Verified by its token; `None` when there is nothing to believe.
    pub caller: Option<&'a Caller>,
    /// Where the call came from.
    pub source: SocketAddr,
}

/// What an alert is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Alert {
    /// The issuer that signs ends soon, or has.
    IssuerEnding,
    /// The root that signs ends soon, or has.
    RootEnding,
    /// A stage of a rotation takes too long.
    RotationStuck,
    /// A root was taken out while leaves under it may be valid.
    RootDropped,
    /// A proxy's clock and ours are apart.
    ClockSkew,
    /// An issuer that an operator brought is refused.
    IssuerRefused,
    /// The key set of tokens cannot be read.
    KeySetRefused,
    /// The state on the disk cannot be read or changed.
    StateUnusable,
}

impl Alert {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IssuerEnding => "issuer_ending",
            Self::RootEnding => "root_ending",
            Self::RotationStuck => "rotation_stuck",
            Self::RootDropped => "root_dropped",
            Self::ClockSkew => "clock_skew",
            Self::IssuerRefused => "issuer_refused",
            Self::KeySetRefused => "key_set_refused",
            Self::StateUnusable => "state_unusable",
        }
    }
}

/// The way to the records, the log and the counters.
#[derive(Debug)]
pub struct Journal {
    events: Option<Events>,
    /// The counts.
    pub counters: Counters,
}

impl Journal {
    /// Records go to `sink`, if there is one.
    pub fn new(sink: Option<Sender>) -> Self {
        Self { events: sink.map(|sink| Events::new(vec![sink])), counters: Counters::default() }
    }

    /// A certificate was issued.
    pub fn issued(&self, asked: &Asked<'_>, identity: &str, issued: &Issued) {
        self.counters.issued.fetch_add(1, Relaxed);
        let not_after = utc(issued.not_after);
        let who = Who::of(asked);
        tracing::info!(
            serial = issued.serial,
            identity,
            not_after,
            namespace = who.namespace,
            service_account = who.service_account,
            pod = who.pod,
            pod_uid = who.pod_uid,
            source = %asked.source,
            "certificate issued"
        );
        let Some(events) = &self.events else { return };
        let (issuer, public_key) = (issued.issuer_sha256.to_string(), issued.key_sha256.to_string());
        let mut attributes = vec![
            (key::ISSUANCE_RESULT, Value::Text("issued")),
            (key::CERTIFICATE_IDENTITY, Value::Text(identity)),
            (key::CERTIFICATE_SERIAL, Value::Text(&issued.serial)),
            (key::CERTIFICATE_NOT_AFTER, Value::Text(&not_after)),
            (key::CERTIFICATE_ISSUER, Value::Text(&issuer)),
            (key::CERTIFICATE_KEY, Value::Text(&public_key)),
        ];
        let address = asked.source.ip().to_string();
        who.describe(&mut attributes, &address, asked.source.port());
        events.emit(EventName::Issuance, Severity::Info, &attributes);
    }

    /// A call was refused.
    pub fn refused(&self, asked: &Asked<'_>, error: &CallError) {
        let reason = error.reason();
        if let Some(count) = self.counters.refused.get(reason as usize) {
            count.fetch_add(1, Relaxed);
        }
        let detail = chain(error).to_string();
        let who = Who::of(asked);
        tracing::warn!(
            reason = detail,
            namespace = who.namespace,
            service_account = who.service_account,
            pod = who.pod,
            pod_uid = who.pod_uid,
            source = %asked.source,
            "certificate refused"
        );
        let mut attributes = vec![
            (key::ISSUANCE_RESULT, Value::Text("refused")),
            (key::ERROR_TYPE, Value::Text(reason.as_str())),
            (key::DETAIL, Value::Text(&detail)),
        ];
        let address = asked.source.ip().to_string();
        who.describe(&mut attributes, &address, asked.source.port());
        self.record(EventName::Issuance, Severity::Warn, &attributes);
    }

    /// An operator took a root out; nobody accepts the leaves under it, which end at `leaves_end`.
    pub fn root_dropped(&self, dropped: &Dropped, leaves_end: &str) {
        let (root, sha256) = (dropped.root, dropped.sha256.to_string());
        tracing::warn!(root, sha256, leaves_end, "root dropped before its time");
        let detail = format!("root {root} was dropped by an operator; certificates under it end by {leaves_end}");
        let attributes = [
            (key::ISSUANCE_RESULT, Value::Text("root_dropped")),
            (key::CERTIFICATE_ISSUER, Value::Text(&sha256)),
            (key::DETAIL, Value::Text(&detail)),
        ];
        self.record(EventName::Issuance, Severity::Warn, &attributes);
    }

    /// An alert begins (`firing`) or ends. `more` are further attributes.
    pub fn alert(&self, alert: Alert, subject: &str, firing: bool, detail: &str, more: &[(&str, Value<'_>)]) {
        let (state, severity) = if firing { ("firing", Severity::Warn) } else { ("resolved", Severity::Info) };
        if firing {
            tracing::warn!(alert = alert.as_str(), subject, detail, "alert");
        } else {
            tracing::info!(alert = alert.as_str(), subject, detail, "alert resolved");
        }
        let mut attributes = vec![
            (key::ALERT_NAME, Value::Text(alert.as_str())),
            (key::ALERT_STATE, Value::Text(state)),
            (key::ALERT_SUBJECT, Value::Text(subject)),
            (key::DETAIL, Value::Text(detail)),
        ];
        attributes.extend_from_slice(more);
        self.record(EventName::Alert, severity, &attributes);
    }

    fn record(&self, name: EventName, severity: Severity, attributes: &[(&str, Value<'_>)]) {
        if let Some(events) = &self.events {
            events.emit(name, severity, attributes);
        }
    }
}

/// Nanoseconds since 1970 UTC, as records have them.
pub fn unix_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// The caller's names, empty where there are none.
struct Who<'a> {
    known: bool,
    namespace: &'a str,
    service_account: &'a str,
    pod: Option<&'a str>,
    pod_uid: Option<&'a str>,
}

impl<'a> Who<'a> {
    fn of(asked: &Asked<'a>) -> Self {
        let Some(caller) = asked.caller else {
            return Self { known: false, namespace: "", service_account: "", pod: None, pod_uid: None };
        };
        Self {
            known: true,
            namespace: &caller.namespace,
            service_account: &caller.service_account,
            pod: caller.pod.as_deref(),
            pod_uid: caller.pod_uid.as_deref(),
        }
    }

    fn describe<'v>(&self, attributes: &mut Vec<(&'v str, Value<'v>)>, address: &'v str, port: u16)
    where
        'a: 'v,
    {
        attributes.push((key::SOURCE_ADDRESS, Value::Text(address)));
        attributes.push((key::SOURCE_PORT, Value::Int(port.into())));
        if !self.known {
            return;
        }
        attributes.push((key::K8S_NAMESPACE, Value::Text(self.namespace)));
        attributes.push((key::SERVICE_ACCOUNT, Value::Text(self.service_account)));
        let bound = [(key::K8S_POD_NAME, self.pod), (key::K8S_POD_UID, self.pod_uid)];
        attributes.push((key::POD_BOUND, Value::Bool(bound.iter().all(|(_, value)| value.is_some()))));
        attributes.extend(bound.into_iter().filter_map(|(key, value)| Some((key, Value::Text(value?)))));
    }
}
