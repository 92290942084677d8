//! Records to whichever endpoint takes them, until each is taken or refused for good.
//!
//! Promises:
//! * What is refused for good is halved until the records that are to blame stand alone; the others arrive.
//! * Who refuses everything sees one such search, and then at most two calls a second, as does who is away.
//! * The first endpoint that is not away is asked, in the order of the settings; the preferred one is tried again every
//!   half minute while another serves.
//! * `collector_away` and `records_refused` are said once when they begin and once when they are over.
//!
//! Leaves to others: where refused records are kept.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use record::{Severity, key};

use super::{
    Compression, Config, Error,
    answer::Answer,
    endpoint::{Called, Endpoint},
    message::{Envelope, Parts, Piece},
};
use crate::{Alerts, Counters, backoff::Backoff};

/// Bytes of one request at most; collectors take 4 MiB by default, but more than this saves nothing and costs memory.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// Below this no collector's limit is sought.
const REQUEST_BYTES_MIN: usize = 16 * 1024;
/// Requests that break their connection before they are taken for the cause, and halved.
const CUTS_MAX: u32 = 4;
/// The pause between refusals that nothing is taken between.
const REFUSAL_PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long nothing is refused before that is called over.
const REFUSAL_CALM: Duration = Duration::from_secs(600);

const COLLECTOR_AWAY: &str = "collector_away";
const RECORDS_REFUSED: &str = "records_refused";

/// Records that the collector will never take.
#[derive(Debug)]
pub(super) struct Refusal {
    /// They are, or they are among, these.
    pub(super) piece: Piece,
    /// How many they are.
    pub(super) records: u64,
}

/// What a piece came to.
enum Verdict {
    Taken { refused: u64, message: String },
    TooLarge(String),
    Refused(String),
}

/// The way to the collector.
#[derive(Debug)]
pub(super) struct Delivery {
    endpoints: Vec<Endpoint>,
    envelope: Arc<Envelope>,
    config: Config,
    /// Bytes of records in one request: less after the collector has said that it was too much.
    bytes_max: usize,
    outage: Option<Outage>,
    search: Search,
    refused_last: Option<Instant>,
    alerts: Weak<Alerts>,
}

/// Nobody answers.
#[derive(Debug)]
struct Outage {
    since: Instant,
    why: String,
}

/// How much a search for refused records may hurry.
#[derive(Debug, Default)]
struct Search {
    /// Calls without a pause; a search for one record among all those in a request, after something was taken.
    free: Option<u32>,
    backoff: Backoff,
}

impl Search {
    /// The pause after a refusal of `records`.
    fn pause(&mut self, records: u64) -> Duration {
        let free = self.free.get_or_insert(records.max(1).ilog2() + 2);
        match free.checked_sub(1) {
            Some(left) => {
                *free = left;
                Duration::ZERO
            }
            None => self.backoff.next(REFUSAL_PAUSE_MAX),
        }
    }
}

impl Delivery {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names what is wrong.
    pub(super) fn new(config: Config) -> Result<Self, Error> {
        let endpoints =
            config.endpoints.iter().map(|url| Endpoint::new(url, &config)).collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(Error::NoEndpoint);
        }
        let envelope = Arc::new(Envelope::new(&config.resource));
        let bytes_max = REQUEST_BYTES_MAX.saturating_sub(envelope.bytes_max());
        let (outage, search, refused_last, alerts) = Default::default();
        Ok(Self { endpoints, envelope, config, bytes_max, outage, search, refused_last, alerts })
    }

    /// Alerts go this way, as long as somebody else keeps it open.
    pub(super) fn alert_through(&mut self, alerts: Weak<Alerts>) {
        self.alerts = alerts;
    }

    /// Bytes of records in one request at most.
    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// The records as one line of OTLP/JSON.
    pub(super) fn envelope(&self) -> &Arc<Envelope> {
        &self.envelope
    }

    /// Sends until each record is taken or refused for good; gives the refused ones. `unsettled` falls as it goes on.
    ///
    /// # Cancellation
    /// Records that are not settled may have arrived.
    pub(super) async fn settle(&mut self, piece: Piece, counters: &Counters, unsettled: &AtomicU64) -> Vec<Refusal> {
        let (mut pieces, mut refusals) = (vec![piece], Vec::new());
        while let Some(piece) = pieces.pop() {
            let records = piece.records;
            let why = match self.attempt(&piece).await {
                Verdict::Taken { refused, message } => {
                    let refused = refused.min(records);
                    self.search = Search::default();
                    counters.acknowledge(records - refused);
                    counters.reject(refused);
                    unsettled.fetch_sub(records, Relaxed);
                    if refused > 0 {
                        self.refused(refused, &format!("partial success: {message}"));
                        refusals.push(Refusal { piece, records: refused });
                    } else if !message.is_empty() {
                        tracing::warn!(message, "the collector took all records, and has something to say");
                    }
                    continue;
                }
                Verdict::TooLarge(why) => {
                    self.bytes_max =
                        (piece.bytes() / 2).clamp(REQUEST_BYTES_MIN, self.bytes_max.max(REQUEST_BYTES_MIN));
                    why
                }
                Verdict::Refused(why) => why,
            };
            let pause = self.search.pause(records);
            if records > 1 {
                let (first, second) = piece.split();
                pieces.extend([second, first]);
            } else {
                counters.reject(records);
                unsettled.fetch_sub(records, Relaxed);
                self.refused(records, &why);
                refusals.push(Refusal { piece, records });
            }
            tokio::time::sleep(pause).await;
        }
        self.calm();
        refusals
    }

    /// Sends one record that has no number, of a resource that names no stream; who refuses it has seen it.
    ///
    /// # Cancellation
    /// The record may have arrived.
    pub(super) async fn send_past(&mut self, fields: Bytes) {
        let piece = Piece { records: 1, fields: vec![fields] };
        let resource = self.config.resource.iter().filter(|(name, _)| name != key::STREAM);
        let envelope = Envelope::new(&resource.cloned().collect::<Vec<_>>());
        let body = envelope.body(&piece, self.config.protocol, self.config.compression);
        if let Verdict::Refused(why) | Verdict::TooLarge(why) = self.send(&piece, body).await {
            tracing::warn!(why, "the collector refused an alert");
        }
    }

    /// Sends one piece, to whichever endpoint is there, until one of them decides.
    async fn attempt(&mut self, piece: &Piece) -> Verdict {
        let body = self.body(piece).await;
        self.send(piece, body).await
    }

    async fn send(&mut self, piece: &Piece, body: Parts) -> Verdict {
        let mut cuts = 0;
        loop {
            let at = self.choose().await;
            let Some(endpoint) = self.endpoints.get_mut(at) else { continue };
            let Called { answer, cut } = endpoint.call(body.clone()).await;
            let verdict = match answer {
                Answer::Away { why, pause } => {
                    endpoint.is_away(pause);
                    self.is_away(at, why);
                    cuts += u32::from(cut);
                    if cuts < CUTS_MAX || piece.records == 1 {
                        continue;
                    }
                    // A connection that breaks each time is perhaps how this collector refuses what is too large.
                    return Verdict::Refused("each request broke its connection".to_owned());
                }
                Answer::Taken { refused, message } => Verdict::Taken { refused, message },
                Answer::TooLarge(why) => Verdict::TooLarge(why),
                Answer::Refused(why) => Verdict::Refused(why),
            };
            endpoint.is_there();
            self.is_there(at);
            return verdict;
        }
    }

    async fn body(&self, piece: &Piece) -> Parts {
        let (protocol, compression) = (self.config.protocol, self.config.compression);
        if compression == Compression::None {
            return self.envelope.body(piece, protocol, compression);
        }
        // This thread also answers probes.
        let (envelope, owned) = (Arc::clone(&self.envelope), piece.clone());
        let done = tokio::task::spawn_blocking(move || envelope.body(&owned, protocol, compression)).await;
        // It ends only with the runtime, and then nobody waits for this.
        done.unwrap_or_else(|_| self.envelope.body(piece, protocol, compression))
    }

    /// The first endpoint that is not away; or else, in time, the one that may be tried first.
    async fn choose(&self) -> usize {
        let now = Instant::now();
        let is_due = |endpoint: &Endpoint| endpoint.due(false).is_none_or(|due| due <= now);
        if self.endpoints.len() > 1
            && let Some(at) = self.endpoints.iter().position(is_due)
        {
            return at;
        }
        let due = |endpoint: &Endpoint| endpoint.due(true).unwrap_or(now);
        let (at, due) = self.endpoints.iter().map(due).enumerate().min_by_key(|(_, due)| *due).unwrap_or((0, now));
        tokio::time::sleep_until(due.into()).await;
        at
    }

    fn is_away(&mut self, at: usize, why: String) {
        let url = &self.endpoints[at].url;
        let Some(outage) = &mut self.outage else {
            tracing::warn!(endpoint = url, why, "the collector does not take records; they wait");
            self.outage = Some(Outage { since: Instant::now(), why });
            return;
        };
        tracing::debug!(endpoint = url, why, "the collector is still away");
        outage.why = why;
        let (since, limit) = (outage.since.elapsed(), self.config.away_after);
        if since >= limit
            && let Some(alerts) = self.alerts.upgrade()
        {
            let (count, why) = (self.endpoints.len(), &outage.why);
            let detail = format!(
                "no collector has taken records for {} s (export.awayAfter: {} s); {count} endpoints, the last one tried \
                 is {url}: {why}. Records wait, and the oldest ones go when there is no room",
                since.as_secs(),
                limit.as_secs()
            );
            alerts.fire(COLLECTOR_AWAY, Severity::Warn, &detail);
        }
    }

    fn is_there(&mut self, at: usize) {
        let Some(outage) = self.outage.take() else { return };
        // It may be another one now, with other limits.
        self.bytes_max = REQUEST_BYTES_MAX.saturating_sub(self.envelope.bytes_max());
        let (url, seconds) = (&self.endpoints[at].url, outage.since.elapsed().as_secs());
        tracing::info!(endpoint = url, seconds, "the collector answers again");
        if let Some(alerts) = self.alerts.upgrade() {
            alerts.resolve(COLLECTOR_AWAY, &format!("{url} answers after {seconds} s"));
        }
    }

    fn refused(&mut self, records: u64, why: &str) {
        if self.refused_last.replace(Instant::now()).is_none() {
            tracing::warn!(
                records,
                why,
                "the collector refused records for good; it is said again after ten minutes of calm"
            );
        }
        if let Some(alerts) = self.alerts.upgrade() {
            let detail = format!("the collector refused records for good, at first {records}: {why}");
            alerts.fire(RECORDS_REFUSED, Severity::Warn, &detail);
        }
    }

    /// Says when nothing has been refused for long enough.
    pub(super) fn calm(&mut self) {
        if self.refused_last.is_some_and(|last| last.elapsed() >= REFUSAL_CALM) {
            self.refused_last = None;
            if let Some(alerts) = self.alerts.upgrade() {
                alerts.resolve(RECORDS_REFUSED, "nothing was refused for ten minutes");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_hurries_once_and_then_at_two_calls_a_second() {
        let mut search = Search::default();
        let hurried = (0..100).take_while(|_| search.pause(1000).is_zero()).count();
        assert_eq!(hurried, 11, "from a thousand to one, and its neighbour");
        assert!((0..20).all(|_| search.pause(1) >= Duration::from_millis(500)));
    }
}
