//! The bounded queue between the workers and one sink: a sender never waits; what does not fit is dropped and counted.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Instant, UNIX_EPOCH},
};

use bytes::Bytes;
use tokio::sync::Notify;

/// Records on their way: concatenated `log_records` fields. A batch is never split: keep it well below the 1 MiB of one
/// request to a collector.
#[derive(Debug, Clone)]
pub struct Batch {
    /// How many records there are.
    pub records: u32,
    /// Their bytes.
    pub fields: Bytes,
}

/// What a queue and its sink have done; all numbers are of records, but for bytes.
#[derive(Debug, Default)]
pub struct Counters {
    written: AtomicU64,
    dropped: AtomicU64,
    sent: AtomicU64,
    acknowledged: AtomicU64,
    rejected: AtomicU64,
    skipped: AtomicU64,
    set_aside: AtomicU64,
    acknowledged_at: AtomicU64,
    queued_bytes: AtomicU64,
    limit_bytes: u64,
}

impl Counters {
    /// Records taken into the queue.
    pub fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Records lost: the queue was full, or time ran out at shutdown.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Records that were sent to the sink, each counted once.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Records that the sink has taken.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Relaxed)
    }

    /// Records that the sink refused for good.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Relaxed)
    }

    /// Records that the sink was told to leave out.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Relaxed)
    }

    /// Of these, records that are kept in the set-aside file of the spool.
    pub fn set_aside(&self) -> u64 {
        self.set_aside.load(Relaxed)
    }

    /// When the sink took records last, in seconds since 1970 UTC; 0 before the first.
    pub fn acknowledged_at(&self) -> u64 {
        self.acknowledged_at.load(Relaxed)
    }

    /// Bytes that wait.
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes.load(Relaxed)
    }

    /// Bytes that may wait.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    pub(crate) fn drop_records(&self, records: u64) {
        self.dropped.fetch_add(records, Relaxed);
    }

    pub(crate) fn send(&self, records: u64) {
        self.sent.fetch_add(records, Relaxed);
    }

    /// Counts records that a consumer has taken in.
    pub fn acknowledge(&self, records: u64) {
        self.acknowledged.fetch_add(records, Relaxed);
        if records > 0 {
            self.acknowledged_at.store(UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()), Relaxed);
        }
    }

    pub(crate) fn set_records_aside(&self, records: u64) {
        self.set_aside.fetch_add(records, Relaxed);
    }

    pub(crate) fn skip(&self, records: u64) {
        self.skipped.fetch_add(records, Relaxed);
    }

    pub(crate) fn reject(&self, records: u64) {
        self.rejected.fetch_add(records, Relaxed);
    }
}

/// The queue is full, or its sink has ended: the batch was dropped and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the record queue takes no more")]
pub struct Full;

#[derive(Debug)]
struct Shared {
    batches: Mutex<VecDeque<Batch>>,
    arrived: Condvar,
    notify: Notify,
    senders: AtomicUsize,
    closed: AtomicBool,
    counters: Arc<Counters>,
}

impl Shared {
    fn batches(&self) -> MutexGuard<'_, VecDeque<Batch>> {
        // Nothing panics while it holds the lock, and a queue is whole at any time.
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, batches: &mut VecDeque<Batch>) -> Option<Batch> {
        let batch = batches.pop_front()?;
        self.counters.queued_bytes.fetch_sub(batch.fields.len() as u64, Relaxed);
        Some(batch)
    }
}

/// The way into a queue; from any thread.
#[derive(Debug)]
pub struct Sender(Arc<Shared>);

/// The way out of a queue.
#[derive(Debug)]
pub struct Receiver(Arc<Shared>);

/// A queue that holds at most `max_bytes` bytes of records.
pub fn queue(max_bytes: usize) -> (Sender, Receiver) {
    let counters = Arc::new(Counters { limit_bytes: max_bytes as u64, ..Counters::default() });
    let (batches, arrived, notify, closed) = Default::default();
    let shared = Arc::new(Shared { batches, arrived, notify, senders: AtomicUsize::new(1), closed, counters });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl Sender {
    /// Hands a batch over.
    ///
    /// # Errors
    /// When it does not fit, or the receiver is gone; it is counted as dropped.
    pub fn send(&self, batch: Batch) -> Result<(), Full> {
        let counters = &self.0.counters;
        let bytes = batch.fields.len() as u64;
        let records = u64::from(batch.records);
        let mut batches = self.0.batches();
        if self.0.closed.load(Relaxed) || counters.queued_bytes() + bytes > counters.limit_bytes {
            counters.drop_records(records);
            return Err(Full);
        }
        counters.queued_bytes.fetch_add(bytes, Relaxed);
        counters.written.fetch_add(records, Relaxed);
        batches.push_back(batch);
        drop(batches);
        self.0.arrived.notify_one();
        self.0.notify.notify_one();
        Ok(())
    }

    /// What the queue and its sink have done.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.0.counters
    }
}

impl Clone for Sender {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // Under the lock, so that a receiver that is about to wait does not miss it.
        let guard = self.0.batches();
        self.0.senders.fetch_sub(1, Relaxed);
        drop(guard);
        self.0.arrived.notify_all();
        self.0.notify.notify_one();
    }
}

impl Receiver {
    /// The next batch; `None` once all senders are gone and the queue is empty.
    ///
    /// # Cancellation
    /// Safe: no batch is lost.
    pub async fn recv(&mut self) -> Option<Batch> {
        loop {
            if let Some(batch) = self.try_recv() {
                return Some(batch);
            }
            if self.0.senders.load(Relaxed) == 0 {
                return self.try_recv();
            }
            self.0.notify.notified().await;
        }
    }

    /// The next batch, if one is there.
    pub fn try_recv(&mut self) -> Option<Batch> {
        self.0.take(&mut self.0.batches())
    }

    /// The next batch, if one is there that has at most `max_bytes` bytes.
    pub(crate) fn try_recv_within(&mut self, max_bytes: usize) -> Option<Batch> {
        let mut batches = self.0.batches();
        if batches.front()?.fields.len() > max_bytes {
            return None;
        }
        self.0.take(&mut batches)
    }

    /// As [`Self::recv`], for a thread of its own.
    pub fn recv_blocking(&mut self) -> Option<Batch> {
        let mut batches = self.0.batches();
        loop {
            if let Some(batch) = self.0.take(&mut batches) {
                return Some(batch);
            }
            if self.0.senders.load(Relaxed) == 0 {
                return None;
            }
            batches = self.0.arrived.wait(batches).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`Self::recv_blocking`], until `deadline` at most.
    pub(crate) fn recv_until(&mut self, deadline: Instant) -> Waited {
        let mut batches = self.0.batches();
        loop {
            if let Some(batch) = self.0.take(&mut batches) {
                return Waited::Batch(batch);
            }
            if self.0.senders.load(Relaxed) == 0 {
                return Waited::Ended;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Waited::Nothing;
            }
            batches = self.0.arrived.wait_timeout(batches, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What the queue and its sink have done.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.0.counters
    }
}

/// What came of waiting for a batch.
#[derive(Debug)]
pub(crate) enum Waited {
    /// A batch.
    Batch(Batch),
    /// None in time.
    Nothing,
    /// All senders are gone and the queue is empty.
    Ended,
}

impl Drop for Receiver {
    /// What is left, and what comes after, is counted as dropped.
    fn drop(&mut self) {
        let mut batches = self.0.batches();
        // Under the lock: a sender sees it, or its batch is seen here.
        self.0.closed.store(true, Relaxed);
        while let Some(batch) = self.0.take(&mut batches) {
            self.0.counters.drop_records(u64::from(batch.records));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(records: u32, bytes: usize) -> Batch {
        Batch { records, fields: vec![0; bytes].into() }
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let (sender, mut receiver) = queue(100);
        assert_eq!(sender.send(batch(3, 60)), Ok(()));
        assert_eq!(sender.send(batch(5, 60)), Err(Full));
        assert_eq!(
            (sender.counters().written(), sender.counters().dropped(), sender.counters().queued_bytes()),
            (3, 5, 60)
        );
        assert_eq!(receiver.try_recv().unwrap().records, 3);
        assert_eq!(sender.send(batch(5, 60)), Ok(()));
    }

    #[test]
    fn without_a_receiver_everything_is_dropped_and_counted() {
        let (sender, receiver) = queue(100);
        sender.send(batch(2, 10)).unwrap();
        drop(receiver);
        assert_eq!(sender.send(batch(3, 10)), Err(Full));
        assert_eq!((sender.counters().dropped(), sender.counters().queued_bytes()), (5, 0));
    }

    #[test]
    fn the_end_comes_after_the_last_batch() {
        let (sender, mut receiver) = queue(100);
        let other = sender.clone();
        let thread = std::thread::spawn(move || std::iter::from_fn(|| receiver.recv_blocking()).count());
        sender.send(batch(1, 1)).unwrap();
        drop(sender);
        other.send(batch(1, 1)).unwrap();
        drop(other);
        assert_eq!(thread.join().unwrap(), 2);
    }
}
