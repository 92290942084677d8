//! Steps 7 to 9 as a worker sees them: records are encoded once, into the worker's own buffer, and leave in batches.
//!
//! Nothing here waits: a full queue behind us drops the batch and counts it.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use export::{Batch, Sender};
use record::{Uid, UidSource};

use crate::{capture::Capture, metrics::WorkerMetrics};

/// Bytes after which a batch leaves at once: each wakes the sinks' threads.
const BATCH_BYTES: usize = 256 * 1024;
/// Room for the record that makes a batch full, unless it is a long one.
const SLACK_BYTES: usize = 4 * 1024;
/// How long a record waits for others at most.
pub const BATCH_INTERVAL: Duration = Duration::from_millis(20);

/// One worker's way to the record queues.
#[derive(Debug)]
pub struct Journal {
    buffer: RefCell<Vec<u8>>,
    records: Cell<u32>,
    uids: RefCell<UidSource>,
    sinks: Vec<Sender>,
    /// The worker's counters.
    pub metrics: Arc<WorkerMetrics>,
    /// What records hold besides the schema, if anything.
    pub capture: Option<Capture>,
    draining: Cell<bool>,
}

impl Journal {
    /// A journal whose batches go to each of `sinks`; `seed` makes its record uids unlike those of other workers.
    pub fn new(sinks: Vec<Sender>, metrics: Arc<WorkerMetrics>, seed: u128) -> Rc<Self> {
        Self::capturing(sinks, metrics, seed, Capture::default())
    }

    /// As [`Self::new`], with records that hold what `capture` names, too.
    pub fn capturing(sinks: Vec<Sender>, metrics: Arc<WorkerMetrics>, seed: u128, capture: Capture) -> Rc<Self> {
        let capture = Some(capture).filter(|capture| !capture.is_empty());
        let uids = RefCell::new(UidSource::new(seed));
        let (buffer, records, draining) = (RefCell::default(), Cell::new(0), Cell::new(false));
        Rc::new(Self { buffer, records, uids, sinks, metrics, capture, draining })
    }

    /// A uid for a record or a connection that begins at this Unix time.
    pub fn uid(&self, unix_nanos: u64) -> Uid {
        self.uids.borrow_mut().next(unix_nanos / 1_000_000)
    }

    /// Takes one record; `encode` appends it, encoded, to the buffer.
    pub fn append(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut buffer = self.buffer.borrow_mut();
        encode(&mut buffer);
        self.records.set(self.records.get() + 1);
        if buffer.len() >= BATCH_BYTES {
            drop(buffer);
            self.flush();
        }
    }

    /// Hands the records so far to the sinks.
    pub fn flush(&self) {
        let records = self.records.replace(0);
        if records == 0 {
            return;
        }
        let fields = leave(&mut self.buffer.borrow_mut());
        self.metrics.records_written(u64::from(records));
        for sink in &self.sinks {
            // The queue counts what it drops; there is nothing else to do about it here.
            let _full = sink.send(Batch { records, fields: fields.clone() });
        }
    }

    /// From now on, what is cut is cut by the shutdown.
    pub fn drain(&self) {
        self.draining.set(true);
    }

    /// True once the proxy is stopping.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }
}

/// Takes the batch out of the buffer. A full one leaves with its memory; a small one is copied, so that what waits in a queue
/// takes no more memory than its bytes.
fn leave(buffer: &mut Vec<u8>) -> bytes::Bytes {
    if buffer.len() < BATCH_BYTES {
        let batch = bytes::Bytes::copy_from_slice(buffer);
        buffer.clear();
        return batch;
    }
    let fresh = Vec::with_capacity(BATCH_BYTES + SLACK_BYTES);
    let full = std::mem::replace(buffer, fresh);
    // The first one has grown by doubling.
    if full.capacity() > full.len() + SLACK_BYTES { bytes::Bytes::copy_from_slice(&full) } else { full.into() }
}

/// Nanoseconds since 1970 UTC, as records have them.
pub fn unix_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
