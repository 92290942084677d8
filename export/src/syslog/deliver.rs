//! What is written to a syslog server, and when it counts as delivered.
//!
//! Says once that the server is away and once that it is back, which it is when something was delivered; so does the alert
//! `syslog_away`, when that takes too long.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use record::{Severity, field};
use spool::Chunk;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, WriteHalf};

use super::{
    Config, Error,
    connection::{Connection, Stream, USER_TIMEOUT},
    encode::Encoder,
    unacknowledged::{self, Known},
};
use crate::Spooled;

/// Bytes of records that are encoded and written at once.
const CHUNK_BYTES_MAX: usize = 128 << 10;
/// How often the kernel is asked what the server has acknowledged.
const LOOK: Duration = Duration::from_millis(100);
/// And how often at the end, when nothing else is to be done.
const SHORT_LOOK: Duration = Duration::from_millis(5);

const SYSLOG_AWAY: &str = "syslog_away";

/// A chunk that was written.
struct Written {
    /// Bytes of the connection up to its end.
    position: u64,
    at: Instant,
    /// When the server's kernel was seen to have it.
    acknowledged: Option<Instant>,
    /// Without its records.
    chunk: Chunk,
}

/// How sending over one connection ended without harm.
#[derive(Debug)]
pub(super) enum Fed {
    /// Everything is delivered, and nothing more will come.
    All,
    /// The server ended a connection on which everything so far is delivered: it is not away.
    Idle,
}

/// What goes on over several connections.
pub(super) struct Delivery {
    encoder: Encoder,
    endpoint: String,
    settle: Duration,
    away_after: Duration,
    /// Since when nothing is delivered of what waits.
    outage: Option<Instant>,
    waiting: VecDeque<Written>,
    /// Numbers below this were written once; what is sent again is not counted again.
    sent: u64,
    delivered: u64,
    /// The kernel does not say what is acknowledged, and this was said.
    blind: bool,
}

impl Delivery {
    pub(super) fn new(config: &Config) -> Self {
        let (waiting, outage, encoder) = (VecDeque::new(), None, Encoder::new(&config.format));
        let Config { endpoint, settle, away_after, .. } = config.clone();
        Self { encoder, endpoint, settle, away_after, outage, waiting, sent: 0, delivered: 0, blind: false }
    }

    /// The server cannot be reached, or its connection broke.
    pub(super) fn is_away(&mut self, error: &Error, spooled: &Spooled) {
        let (endpoint, why) = (&self.endpoint, error as &(dyn std::error::Error + 'static));
        let Some(since) = self.outage else {
            tracing::warn!(endpoint, error = why, "the syslog server is away; records wait in the spool");
            self.outage = Some(Instant::now());
            return;
        };
        let (away, limit) = (since.elapsed(), self.away_after);
        if away >= limit
            && let Some(alerts) = spooled.alerts()
        {
            let cause = why.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            let detail = format!(
                "nothing was delivered to {endpoint} for {} s (syslog.awayAfter: {} s): {error}{cause}. Records wait, and the \
                 oldest ones go when there is no room",
                away.as_secs(),
                limit.as_secs()
            );
            alerts.fire(SYSLOG_AWAY, Severity::Warn, &detail);
        }
    }

    fn is_there(&mut self, spooled: &Spooled) {
        let Some(since) = self.outage.take() else { return };
        let (endpoint, seconds) = (&self.endpoint, since.elapsed().as_secs());
        tracing::info!(endpoint, seconds, "the syslog server is back");
        if let Some(alerts) = spooled.alerts() {
            alerts.resolve(SYSLOG_AWAY, &format!("records are delivered to {endpoint} again after {seconds} s"));
        }
    }

    /// Until now there was nothing to deliver: that is no time in which the server was away.
    pub(super) fn had_nothing(&mut self) {
        self.outage = self.outage.map(|_| Instant::now());
    }

    /// Records that were delivered.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Sends what the spool holds until everything is delivered and the writer has ended.
    pub(super) async fn feed(&mut self, connection: Connection, spooled: &mut Spooled) -> Result<Fed, Error> {
        self.waiting.clear();
        let Connection { stream, local, peer, written } = connection;
        let (from, mut to) = tokio::io::split(stream);
        let mut end = Box::pin(ended(from));
        let mut looked = Instant::now();
        loop {
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                let waiting = unacknowledged::ask(local, peer).map(|known| known.waiting);
                self.look(waiting, written.load(Relaxed));
                self.settle(spooled);
            }
            let is_over = spooled.signals.ended.load(Relaxed);
            let Some(chunk) = spooled.next_chunk(CHUNK_BYTES_MAX).await else {
                if is_over && (self.waiting.is_empty() || is_all_there(local, peer, &mut end).await?) {
                    self.finish(to, end, spooled).await?;
                    return Ok(Fed::All);
                }
                let pause = if self.waiting.is_empty() { Duration::from_secs(3600) } else { LOOK };
                tokio::select! {
                    () = spooled.signals.synced.notified() => {}
                    () = tokio::time::sleep(pause) => {}
                    done = &mut end => {
                        return if self.waiting.is_empty() { Ok(Fed::Idle) } else { Err(broken(done)) };
                    }
                }
                continue;
            };
            let messages = self.encode(&chunk);
            tokio::select! {
                done = write(&mut to, &messages) => done.map_err(|error| broken(Err(error)))?,
                done = &mut end => return Err(broken(done)),
            }
            if chunk.next > self.sent {
                self.sent = chunk.next;
                spooled.counters.send(u64::from(chunk.records));
            }
            let (position, at) = (written.load(Relaxed), Instant::now());
            let chunk = Chunk { fields: Vec::new(), ..chunk };
            self.waiting.push_back(Written { position, at, acknowledged: None, chunk });
        }
    }

    fn encode(&mut self, chunk: &Chunk) -> Vec<u8> {
        let mut messages = Vec::with_capacity(chunk.fields.len() * 2);
        for content in field::contents(&chunk.fields).flatten() {
            self.encoder.frame(content, &mut messages);
        }
        messages
    }

    /// Notes what the server's kernel has by now.
    fn look(&mut self, waiting: io::Result<u64>, written: u64) {
        let now = Instant::now();
        let has = match waiting {
            Ok(waiting) => written.saturating_sub(waiting),
            Err(error) => {
                if !std::mem::replace(&mut self.blind, true) {
                    tracing::warn!(%error, after = ?USER_TIMEOUT, "the kernel does not say what the syslog server has acknowledged: what is written counts as acknowledged later");
                }
                // A connection is reset when nothing is acknowledged for so long.
                let old = |chunk: &&Written| now.saturating_duration_since(chunk.at) > USER_TIMEOUT;
                self.waiting.iter().take_while(old).last().map_or(0, |chunk| chunk.position)
            }
        };
        for chunk in self.waiting.iter_mut().take_while(|chunk| chunk.position <= has) {
            chunk.acknowledged.get_or_insert(now);
        }
    }

    /// Moves the cursor over what was acknowledged long enough ago.
    fn settle(&mut self, spooled: &mut Spooled) {
        let (now, settle) = (Instant::now(), self.settle);
        let done =
            |chunk: &&Written| chunk.acknowledged.is_some_and(|since| now.saturating_duration_since(since) >= settle);
        let count = self.waiting.iter().take_while(done).count();
        self.deliver(count, spooled);
    }

    fn deliver(&mut self, count: usize, spooled: &mut Spooled) {
        let records = self.waiting.iter().take(count).map(|written| written.chunk.records).sum();
        let Some(last) = self.waiting.drain(..count).next_back() else { return };
        spooled.counters.acknowledge(u64::from(records));
        self.delivered += u64::from(records);
        self.is_there(spooled);
        let chunk = Chunk { records, ..last.chunk };
        let Some(reader) = &mut spooled.reader else { return };
        if let Err(error) = reader.acknowledge(&chunk) {
            let error = &error as &(dyn std::error::Error + 'static);
            tracing::warn!(error, "the spool's cursor cannot be written: records may be sent again after a restart");
        }
    }

    /// Ends the connection in order: a server whose kernel has everything, and that ends it after us, in order, has read
    /// everything.
    async fn finish(
        &mut self,
        mut to: WriteHalf<Box<dyn Stream>>,
        end: impl Future<Output = io::Result<()>>,
        spooled: &mut Spooled,
    ) -> Result<(), Error> {
        to.shutdown().await.map_err(|error| broken(Err(error)))?;
        end.await.map_err(|error| broken(Err(error)))?;
        self.deliver(self.waiting.len(), spooled);
        Ok(())
    }
}

async fn write(to: &mut WriteHalf<Box<dyn Stream>>, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

/// Waits until the server's kernel has all that was written; false where our own kernel does not say. Fails when the server has
/// ended the connection by then, or its own side of it: such an end is no answer to ours, and says nothing of what was read.
async fn is_all_there(
    local: SocketAddr,
    peer: SocketAddr,
    mut end: impl Future<Output = io::Result<()>> + Unpin,
) -> Result<bool, Error> {
    loop {
        tokio::select! {
            biased;
            // An end that TLS knows of and TCP does not shows here alone.
            done = &mut end => return Err(broken(done)),
            () = tokio::task::yield_now() => {}
        }
        match unacknowledged::ask(local, peer) {
            Ok(Known { is_whole: false, .. }) => return Err(broken(Ok(()))),
            Ok(Known { waiting: 0, .. }) => return Ok(true),
            Ok(Known { .. }) => {}
            Err(_) => return Ok(false),
        }
        tokio::select! {
            done = &mut end => return Err(broken(done)),
            () = tokio::time::sleep(SHORT_LOOK) => {}
        }
    }
}

/// Waits until the server ends the connection; what it says is nothing to us.
async fn ended(mut from: impl AsyncRead + Unpin) -> io::Result<()> {
    let mut buffer = [0; 512];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // TCP ended in order, TLS without its last word, as many servers do it.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn broken(done: io::Result<()>) -> Error {
    Error::Connection("the connection broke", done.err().unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into()))
}

#[cfg(test)]
#[path = "deliver_tests.rs"]
mod tests;
