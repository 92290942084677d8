//! What a collector got of the proxies' streams: each number with its uid, what the gap records say, and what is missing.
//!
//! Promises: a number that comes again must be the same record, or [`Streams::take`] fails; so must a record under two numbers.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, ensure};
use record::key;
use testkit::Record;

/// One gap record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The number of the first record that was lost.
    pub first: u64,
    /// The number of the last one.
    pub last: u64,
    /// How many were lost.
    pub records: u64,
    /// Why.
    pub reason: String,
}

/// What came of one stream.
#[derive(Debug, Default)]
pub struct Stream {
    /// The uid of each record, by its number.
    pub uids: BTreeMap<u64, String>,
    /// What the gap records say, without repetitions.
    pub gaps: Vec<Gap>,
    /// The numbers of outbound requests, by their paths.
    pub requests: HashMap<String, u64>,
    /// How many records came again.
    pub repeated: u64,
    numbers: HashMap<String, u64>,
}

/// What came of all streams, by their ids.
#[derive(Debug, Default)]
pub struct Streams(pub BTreeMap<String, Stream>);

impl Streams {
    /// Takes in what a collector has received.
    ///
    /// # Errors
    /// With a record that has no stream, number or uid, with one number that is two records, or one record that has two.
    pub fn take(&mut self, received: &[Record]) -> Result<()> {
        for record in received {
            let Some(stream) = record.resource_text(key::STREAM) else {
                // An alert that the spool could not take came past it.
                ensure!(record.event() == "picket.alert", "the resource names no stream: {record}");
                continue;
            };
            if !self.0.contains_key(stream) {
                self.0.insert(stream.to_owned(), Stream::default());
            }
            let stream = self.0.get_mut(stream).context("it was put there")?;
            stream.take(record).with_context(|| record.to_string())?;
        }
        Ok(())
    }
}

impl Stream {
    fn take(&mut self, record: &Record) -> Result<()> {
        let number = record.integer(key::SEQUENCE).context("no number")? as u64;
        let uid = record.text(key::LOG_RECORD_UID).context("no uid")?;
        if let Some(before) = self.uids.get(&number) {
            ensure!(before == uid, "number {number} was {before} before");
            self.repeated += 1;
            return Ok(());
        }
        self.uids.insert(number, uid.to_owned());
        let other = self.numbers.insert(uid.to_owned(), number);
        ensure!(other.is_none(), "{uid} was number {other:?} before");
        // What another sink alone lacks is no gap of a collector.
        if record.event() == "picket.gap" && record.text(key::GAP_SINK).is_none_or(|sink| sink == "otlp") {
            self.gaps.push(gap(record).context("a gap record that says too little")?);
        }
        if record.is(key::DIRECTION, "outbound")
            && let Some(path) = record.text(key::URL_PATH)
        {
            self.requests.insert(path.to_owned(), number);
        }
        Ok(())
    }

    /// Numbers up to `last` that neither came nor stand in a gap record.
    pub fn unexplained(&self, last: u64) -> Vec<u64> {
        let in_gap = |number: u64| self.gaps.iter().any(|gap| (gap.first..=gap.last).contains(&number));
        (1..=last).filter(|number| !self.uids.contains_key(number) && !in_gap(*number)).collect()
    }

    /// The greatest number that came.
    pub fn last(&self) -> u64 {
        self.uids.keys().next_back().copied().unwrap_or(0)
    }

    /// How many records the gap records tell of.
    pub fn lost(&self) -> u64 {
        self.gaps.iter().map(|gap| gap.records).sum()
    }

    /// The gap records are exact: no number is missing without one, none that came stands in one, and they count as many as
    /// their numbers say.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn exact(&self) -> Result<()> {
        let unexplained = self.unexplained(self.last());
        ensure!(unexplained.is_empty(), "missing, and in no gap record: {unexplained:?}; {:?}", self.gaps);
        let came = |gap: &&Gap| self.uids.range(gap.first..=gap.last).next().is_some();
        if let Some(gap) = self.gaps.iter().find(came) {
            let number = self.uids.range(gap.first..=gap.last).next();
            anyhow::bail!("{number:?} came and was reported as lost: {gap:?}");
        }
        let missing = (1..=self.last()).filter(|number| !self.uids.contains_key(number)).count() as u64;
        ensure!(missing == self.lost(), "{missing} are missing, {} were reported: {:?}", self.lost(), self.gaps);
        Ok(())
    }
}

fn gap(record: &Record) -> Option<Gap> {
    let number = |key| record.integer(key).map(|number| number as u64);
    Some(Gap {
        first: number(key::GAP_FIRST)?,
        last: number(key::GAP_LAST)?,
        records: number(key::GAP_RECORDS)?,
        reason: record.text(key::GAP_REASON)?.to_owned(),
    })
}
