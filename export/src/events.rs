//! Records that no connection makes: acts of the control plane and alerts, straight to the same queues.
//!
//! An alert says once that something began and once that it is over; [`Alerts`] remembers which of them are on.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use record::{Event, EventName, Severity, UidSource, Value, key};

use crate::{Batch, Sender};

/// The way of events to the sinks; from any thread.
#[derive(Debug)]
pub struct Events {
    sinks: Vec<Sender>,
    uids: Mutex<UidSource>,
}

impl Events {
    /// Events go to each of `sinks`.
    pub fn new(sinks: Vec<Sender>) -> Self {
        let half = || u128::from(RandomState::new().build_hasher().finish());
        Self { sinks, uids: Mutex::new(UidSource::new(half() << 64 | half())) }
    }

    /// Writes one event that happens now.
    pub fn emit(&self, name: EventName, severity: Severity, attributes: &[(&str, Value<'_>)]) {
        let time_unix_nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let mut fields = Vec::new();
        // Nothing panics while it holds the lock.
        let uid = self.uids.lock().unwrap_or_else(PoisonError::into_inner).next(time_unix_nanos / 1_000_000);
        Event { uid, name, time_unix_nanos, severity, attributes }.encode(&mut fields);
        let fields = bytes::Bytes::from(fields);
        for sink in &self.sinks {
            // The queue counts what it drops; there is nothing else to do about it here.
            let _full = sink.send(Batch { records: 1, fields: fields.clone() });
        }
    }
}

/// Alerts that are on, and the way to say so.
#[derive(Debug)]
pub struct Alerts {
    events: Events,
    firing: Mutex<BTreeSet<&'static str>>,
}

impl Alerts {
    /// Alerts go by these events.
    pub fn new(events: Events) -> Self {
        Self { events, firing: Mutex::default() }
    }

    /// The events themselves.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Says that `name` is on, if it was not, as a record and in the log. `detail` names the thing, the limit and the fix.
    pub fn fire(&self, name: &'static str, severity: Severity, detail: &str) {
        if self.lock().insert(name) {
            tracing::warn!(alert = name, "{detail}");
            self.write(name, "firing", severity, detail);
        }
    }

    /// Says that `name` is over, if it was on.
    pub fn resolve(&self, name: &'static str, detail: &str) {
        if self.lock().remove(name) {
            tracing::info!(alert = name, "over: {detail}");
            self.write(name, "resolved", Severity::Info, detail);
        }
    }

    /// True while `name` is on.
    pub fn is_firing(&self, name: &str) -> bool {
        self.lock().contains(name)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        // Nothing panics while it holds the lock.
        self.firing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, name: &str, state: &str, severity: Severity, detail: &str) {
        let attributes = [
            (key::ALERT_NAME, Value::Text(name)),
            (key::ALERT_STATE, Value::Text(state)),
            (key::DETAIL, Value::Text(detail)),
        ];
        self.events.emit(EventName::Alert, severity, &attributes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_is_said_once_and_once_that_it_is_over() {
        let (sender, mut receiver) = crate::queue(10_000);
        let alerts = Alerts::new(Events::new(vec![sender]));
        alerts.resolve("renewal_failing", "never was");
        for _ in 0..3 {
            alerts.fire("renewal_failing", Severity::Warn, "no certificate");
        }
        assert!(alerts.is_firing("renewal_failing"));
        for _ in 0..3 {
            alerts.resolve("renewal_failing", "a new one came");
        }
        drop(alerts);
        let mut lines = Vec::new();
        while let Some(batch) = receiver.recv_blocking() {
            record::line::records(&batch.fields).for_each(|record| record::line::json(record, &mut lines));
        }
        let lines = String::from_utf8(lines).unwrap();
        let states: Vec<_> = lines.lines().map(|line| line.contains("\"picket.alert.state\":\"firing\"")).collect();
        assert_eq!(states, [true, false], "{lines}");
    }
}
