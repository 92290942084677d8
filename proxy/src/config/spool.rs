//! The section `spool`: where records wait on disk for the collector, and what they may take.

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};
use settings::{Bytes, Noted, Section, Setting};
use spool::{OnFull, Sync};

/// The words of `onFull`.
const ON_FULL: [(&str, OnFull); 2] = [("dropOldest", OnFull::DropOldest), ("refuse", OnFull::Refuse)];

/// Where records wait for the collector.
#[derive(Debug, Clone)]
pub struct Spool {
    /// The directory; one proxy's own.
    pub dir: PathBuf,
    /// What the records may take.
    pub max_bytes: u64,
    /// How long they are kept at most.
    pub max_age: Duration,
    /// When they are made to survive the end of the machine.
    pub sync: Sync,
    /// What happens when there is no room.
    pub on_full: OnFull,
    /// What must stay free on the file system.
    pub min_free_bytes: u64,
    /// How long a record waits at most for the checkpoint that seals it.
    pub checkpoint_interval: Duration,
}

impl Spool {
    pub(super) fn read(section: &Section<'_>) -> Result<Self, Noted> {
        let dir = section.required("dir");
        let at_least = |scalar: settings::Scalar<'_>| Bytes::from_scalar(scalar).filter(|bytes| bytes.0 >= 1 << 20);
        let max_bytes = section.optional_with("maxBytes", "a size from 1MiB", at_least);
        let sync = section.optional_with("sync", "always, or a time from 10ms to 1s", |scalar| {
            if scalar.text() == Some("always") {
                return Some(Sync::Always);
            }
            let times = Duration::from_millis(10)..=Duration::from_secs(1);
            Duration::from_scalar(scalar).filter(|time| times.contains(time)).map(Sync::Interval)
        });
        let times = Duration::from_secs(1)..=Duration::from_secs(3600);
        // Half a minute: what a machine that dies leaves unsealed is little, and so is what checkpoints cost (2 KiB each, and
        // none without traffic).
        let checkpoint_interval = section
            .optional_with("checkpointInterval", "a time from 1s to 1h", |scalar| {
                Duration::from_scalar(scalar).filter(|time| times.contains(time))
            })
            .unwrap_or(Duration::from_secs(30));
        Ok(Self {
            checkpoint_interval,
            max_bytes: max_bytes.map_or(256 << 20, |bytes| bytes.0),
            max_age: section.default("maxAge", Duration::from_secs(72 * 3600)),
            sync: sync.unwrap_or(Sync::Interval(Duration::from_millis(100))),
            on_full: section.one_of("onFull", &ON_FULL, OnFull::DropOldest),
            min_free_bytes: section.default("minFreeBytes", Bytes(64 << 20)).0,
            dir: dir?,
        })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "dir": self.dir,
            "maxBytes": self.max_bytes,
            "maxAge": super::print::duration(self.max_age),
            "sync": match self.sync {
                Sync::Always => "always".to_owned(),
                Sync::Interval(time) => super::print::duration(time),
            },
            "onFull": super::print::word(&ON_FULL, self.on_full),
            "minFreeBytes": self.min_free_bytes,
            "checkpointInterval": super::print::duration(self.checkpoint_interval),
        })
    }

    /// What the crate `spool` takes; `seed` makes the uids of its records unlike others.
    pub fn limits(&self, seed: u128) -> spool::Config {
        spool::Config {
            max_bytes: self.max_bytes,
            max_age: self.max_age,
            min_free_bytes: self.min_free_bytes,
            sync: self.sync,
            on_full: self.on_full,
            uid_seed: seed,
        }
    }
}
