//! A stretch of records that were lost, and the record that says so.

use record::{Event, EventName, Severity, Uid, Value, field, key, line};

use crate::{
    Sink,
    checkpoint::{hex, unhex},
};

/// Why records were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The spool held as much as it may.
    SpoolFull,
    /// They were kept as long as they may be.
    Age,
    /// The file system had too little room.
    DiskLow,
    /// The queue in front of the spool was full.
    QueueFull,
    /// A write failed.
    WriteFailed,
    /// A sync failed, or the spool was not opened again yet.
    SyncFailed,
    /// Their bytes are damaged.
    Damaged,
    /// Somebody else removed their segment, or it was removed when the process was killed.
    Vanished,
    /// They were no records.
    Malformed,
    /// The collector refused them for good; they are kept in the set-aside file.
    SetAside,
    /// The collector refused them for good, and they could not be kept.
    Refused,
    /// The collector took the others and refused this many, without saying which.
    PartlyRefused,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 12] = [
        Self::SpoolFull,
        Self::Age,
        Self::DiskLow,
        Self::QueueFull,
        Self::WriteFailed,
        Self::SyncFailed,
        Self::Damaged,
        Self::Vanished,
        Self::Malformed,
        Self::SetAside,
        Self::Refused,
        Self::PartlyRefused,
    ];

    /// True where the reading side finds the loss: it would find it again after a restart before the cursor has moved.
    pub(crate) const fn is_found_reading(self) -> bool {
        matches!(self, Self::Damaged | Self::SetAside | Self::Refused | Self::PartlyRefused)
    }

    /// The word in records and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SpoolFull => "spool_full",
            Self::Age => "age",
            Self::DiskLow => "disk_low",
            Self::QueueFull => "queue_full",
            Self::WriteFailed => "write_failed",
            Self::SyncFailed => "sync_failed",
            Self::Damaged => "damaged",
            Self::Vanished => "vanished",
            Self::Malformed => "malformed",
            Self::SetAside => "set_aside",
            Self::Refused => "refused",
            Self::PartlyRefused => "partly_refused",
        }
    }
}

/// Records that were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The number of the first one.
    pub first: u64,
    /// The number of the last one.
    pub last: u64,
    /// How many they are; less than the numbers say where some of them stand in another gap already.
    pub records: u64,
    /// They were written after this.
    pub since: u64,
    /// And not after this, both in nanoseconds since 1970 UTC.
    pub until: u64,
    /// Why.
    pub reason: Reason,
    /// The chain digest before the first one, where they stood in the chain and it is known.
    pub before: Option<[u8; 32]>,
    /// And after the last one.
    pub after: Option<[u8; 32]>,
    /// Which sink alone lacks them; `None` when none has them.
    pub sink: Option<Sink>,
}

impl Gap {
    /// Takes in a gap that goes on where this one ends; false if it does not.
    pub(crate) fn extend(&mut self, next: &Self) -> bool {
        // A stretch that stood in the chain and one that never did stay apart.
        let goes_on = (self.reason, self.sink) == (next.reason, next.sink)
            && self.last.checked_add(1) == Some(next.first)
            && self.after == next.before;
        if goes_on {
            self.last = next.last;
            self.records += next.records;
            self.until = self.until.max(next.until);
            self.after = next.after;
        }
        goes_on
    }

    /// Appends the record that reports this gap, as a finished field without a number.
    pub(crate) fn encode(&self, uid: Uid, time_unix_nanos: u64, out: &mut Vec<u8>) {
        let mut attributes = vec![
            (key::GAP_FIRST, Value::Int(self.first)),
            (key::GAP_LAST, Value::Int(self.last)),
            (key::GAP_RECORDS, Value::Int(self.records)),
            (key::GAP_SINCE, Value::Int(self.since)),
            (key::GAP_UNTIL, Value::Int(self.until)),
            (key::GAP_REASON, Value::Text(self.reason.as_str())),
        ];
        attributes.extend(self.sink.map(|sink| (key::GAP_SINK, Value::Text(sink.as_str()))));
        let (before, after) = (self.before.as_ref().map(|d| hex(d)), self.after.as_ref().map(|d| hex(d)));
        attributes.extend(before.as_deref().map(|text| (key::GAP_DIGEST_BEFORE, Value::Text(text))));
        attributes.extend(after.as_deref().map(|text| (key::GAP_DIGEST_AFTER, Value::Text(text))));
        Event { uid, name: EventName::Gap, time_unix_nanos, severity: Severity::Warn, attributes: &attributes }
            .encode(out);
    }

    /// Reads the record that reports a gap.
    pub fn decode(fields: &[u8]) -> Option<Self> {
        let content = field::contents(fields).next()?.ok()?;
        if line::time_and_name(content).1 != EventName::Gap.as_str() {
            return None;
        }
        let find = |name: &str| line::attributes(content).find(|(key, _)| *key == name).map(|(_, value)| value);
        let int = |name: &str| if let line::Attribute::Int(number) = find(name)? { Some(number as u64) } else { None };
        let line::Attribute::Text(word) = find(key::GAP_REASON)? else { return None };
        let reason = Reason::ALL.into_iter().find(|reason| reason.as_str() == word);
        let digest = |name: &str| if let line::Attribute::Text(text) = find(name)? { unhex(text) } else { None };
        let sink = match find(key::GAP_SINK) {
            None => None,
            // A gap of a sink that is not known here is none of ours.
            Some(word) => Some(Sink::ALL.into_iter().find(|sink| word == line::Attribute::Text(sink.as_str()))?),
        };
        Some(Self {
            first: int(key::GAP_FIRST)?,
            last: int(key::GAP_LAST)?,
            records: int(key::GAP_RECORDS)?,
            since: int(key::GAP_SINCE)?,
            until: int(key::GAP_UNTIL)?,
            reason: reason?,
            before: digest(key::GAP_DIGEST_BEFORE),
            after: digest(key::GAP_DIGEST_AFTER),
            sink,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_read_as_it_was_written() {
        let sinks = [None, Some(Sink::Otlp), Some(Sink::Syslog)];
        for (reason, sink) in Reason::ALL.into_iter().flat_map(|reason| sinks.map(|sink| (reason, sink))) {
            for (before, after) in [(None, None), (Some([1; 32]), Some([2; 32])), (None, Some([3; 32]))] {
                let (until, records) = (u64::MAX >> 1, 5);
                let gap = Gap { first: 3, last: 9, records, since: 1, until, reason, before, after, sink };
                let mut out = Vec::new();
                gap.encode(record::UidSource::new(1).next(1), 7, &mut out);
                assert_eq!(Gap::decode(&out), Some(gap));
                assert!(out.len() < crate::retain::REPORT_BYTES_MAX as usize - 64, "{} bytes", out.len());
            }
        }
    }
}
