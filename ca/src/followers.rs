//! Who follows the trust bundle here, and what each one said last.
//!
//! Promises: a proxy that loses its stream is not forgotten before its certificate has ended; one that got a certificate
//! counts from then on, even before its stream; of two streams of one pod the newer one speaks. Memory is bounded, and
//! small for each proxy. Leaves to others: what other processes know (`roster`), and what follows from it (`lifecycle`).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::lifecycle::Proxy;
use crate::state::{Seconds, Sha256};

/// Bytes of the reason for a refusal that are kept.
const REFUSED_BYTES_MAX: usize = 200;
/// Bytes of a serial number that are kept; ours have 32.
const SERIAL_BYTES_MAX: usize = 64;
/// A clock that goes to and fro is told of this often at most, in seconds.
const CLOCK_PAUSE: u64 = 60;

/// One proxy, by what its token says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Who {
    /// Its identity.
    pub identity: Box<str>,
    /// Name of its pod.
    pub pod: Option<Box<str>>,
    /// The pod's uid.
    pub pod_uid: Option<Box<str>>,
    /// Where it dialled from, when its token names no pod: two such proxies are never taken for one.
    pub source: Option<Box<str>>,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.identity)?;
        match (&self.pod, &self.source) {
            (Some(pod), _) => write!(f, " (pod {pod})"),
            (None, Some(source)) => write!(f, " (from {source})"),
            (None, None) => Ok(()),
        }
    }
}

/// What a proxy says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The generation that its new handshakes accept.
    pub generation: u64,
    /// Why it does not take a newer one.
    pub refused: Box<str>,
    /// Serial number of its certificate.
    pub serial: Box<str>,
    /// The issuer that signed it.
    pub issuer: Option<Sha256>,
    /// Its end.
    pub not_after: Seconds,
}

impl Report {
    /// Keeps what has a bound.
    pub fn new(generation: u64, refused: &str, serial: &str, issuer: &[u8], not_after: Seconds) -> Self {
        let issuer = <[u8; 32]>::try_from(issuer).ok().map(Sha256);
        let (refused, serial) = (cut(refused, REFUSED_BYTES_MAX).into(), cut(serial, SERIAL_BYTES_MAX).into());
        Self { generation, refused, serial, issuer, not_after }
    }
}

fn cut(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

/// All that is known of one proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Known {
    /// Who it is.
    #[serde(flatten)]
    pub who: Arc<Who>,
    /// True while it has a stream.
    pub connected: bool,
    /// When its stream, or else our knowledge, began.
    pub first_seen: Seconds,
    /// When it was last heard of.
    pub last_seen: Seconds,
    /// What it said.
    #[serde(flatten)]
    pub report: Report,
}

impl Known {
    /// As the rules see it.
    pub fn proxy(&self) -> Proxy {
        Proxy {
            name: self.who.to_string(),
            connected: self.connected,
            first_seen: self.first_seen,
            last_seen: self.last_seen,
            generation: self.report.generation,
            refused: self.report.refused.to_string(),
            issuer: self.report.issuer,
            not_after: self.report.not_after,
        }
    }

    /// Of two accounts of one proxy, the one to believe.
    pub(crate) fn is_newer_than(&self, other: &Self) -> bool {
        let rank = |known: &Self| {
            let heard = if known.connected { known.first_seen } else { known.last_seen };
            (known.connected, heard)
        };
        rank(self) > rank(other)
    }
}

#[derive(Debug)]
struct Entry {
    streams: u32,
    newest: u64,
    first_seen: Seconds,
    last_seen: Seconds,
    clock_apart: bool,
    /// When it was found so last.
    clock_left: Seconds,
    report: Report,
}

#[derive(Debug, Default)]
struct Inner {
    /// Boxed: a table is up to half empty.
    entries: HashMap<Arc<Who>, Box<Entry>>,
    next_stream: u64,
    connected: usize,
    changed: bool,
}

/// The proxies that were heard of in this process.
#[derive(Debug)]
pub struct Followers {
    inner: Mutex<Inner>,
    entries_max: usize,
    clock: fn() -> Seconds,
}

/// One stream; dropping it is its end.
#[derive(Debug)]
pub struct Stream {
    followers: Arc<Followers>,
    who: Arc<Who>,
    id: u64,
}

impl Stream {
    /// Whose it is.
    pub fn who(&self) -> &Arc<Who> {
        &self.who
    }

    /// Takes what the proxy says.
    pub fn report(&self, report: Report) {
        let mut inner = self.followers.inner();
        if let Some(entry) = inner.entries.get_mut(&self.who).filter(|entry| entry.newest == self.id) {
            let changed = entry.report != report;
            entry.report = report;
            inner.changed |= changed;
        }
    }

    /// Notes whether the proxy's clock is far from ours; `true` when that is different now. For each pod it begins once a minute
    /// at most, and its end is never held back.
    pub fn clock_is_apart(&self, apart: bool) -> bool {
        let now = (self.followers.clock)();
        let mut inner = self.followers.inner();
        let entry = inner.entries.get_mut(&self.who).filter(|entry| entry.newest == self.id);
        entry.is_some_and(|entry| {
            let again = apart && now.abs_diff(entry.clock_left) < CLOCK_PAUSE;
            if entry.clock_apart == apart || again {
                return false;
            }
            if apart {
                entry.clock_left = now;
            }
            entry.clock_apart = apart;
            true
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let now = (self.followers.clock)();
        let mut inner = self.followers.inner();
        if let Some(entry) = inner.entries.get_mut(&self.who) {
            entry.streams = entry.streams.saturating_sub(1);
            entry.last_seen = now;
            let gone = entry.streams == 0;
            inner.connected = inner.connected.saturating_sub(usize::from(gone));
            inner.changed = true;
        }
    }
}

impl Followers {
    /// For at most so many proxies; the clock is for the moment at which a stream ends.
    pub fn new(entries_max: usize, clock: fn() -> Seconds) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), entries_max, clock })
    }

    /// A stream of `who` begins.
    pub fn open(self: &Arc<Self>, who: Who, now: Seconds) -> Stream {
        let mut inner = self.inner();
        let id = inner.next_stream;
        inner.next_stream += 1;
        inner.changed = true;
        let who = inner.entries.get_key_value(&who).map_or_else(|| Arc::new(who), |(who, _)| who.clone());
        let newly = inner.entries.get(&who).is_none_or(|entry| entry.streams == 0);
        let entry = inner.entries.entry(who.clone()).or_insert_with(|| Box::new(Entry::new(now)));
        entry.streams += 1;
        (entry.newest, entry.first_seen, entry.last_seen) = (id, now, now);
        // Not what an earlier stream said: the program may be another one by now.
        entry.report.generation = 0;
        inner.connected += usize::from(newly);
        self.make_room(&mut inner);
        Stream { followers: self.clone(), who, id }
    }

    /// A certificate was issued to `who`.
    pub fn granted(&self, who: Who, serial: &str, issuer: Sha256, not_after: Seconds, now: Seconds) {
        let mut inner = self.inner();
        let entry = inner.entries.entry(Arc::new(who)).or_insert_with(|| Box::new(Entry::new(now)));
        if entry.streams > 0 {
            // It says itself which one it uses.
            return;
        }
        entry.last_seen = now;
        entry.report.serial = serial.into();
        entry.report.issuer = Some(issuer);
        entry.report.not_after = entry.report.not_after.max(not_after);
        inner.changed = true;
        self.make_room(&mut inner);
    }

    /// Takes over what another process knew, as of now: its streams are gone.
    pub fn absorb(&self, known: Vec<Known>, now: Seconds) {
        let mut inner = self.inner();
        for known in known {
            let last_seen = if known.connected { now } else { known.last_seen };
            let older = |entry: &Entry| entry.streams > 0 || entry.last_seen >= last_seen;
            if inner.entries.get(&known.who).is_some_and(|entry| older(entry)) {
                continue;
            }
            let Known { who, first_seen, report, .. } = known;
            inner.entries.insert(who, Box::new(Entry { first_seen, last_seen, report, ..Entry::new(now) }));
        }
        inner.changed = true;
        self.make_room(&mut inner);
    }

    /// Forgets who is gone: without a stream, away for longer than `window`, and without a valid certificate.
    pub fn forget(&self, window: Seconds, now: Seconds) {
        let mut inner = self.inner();
        let before = inner.entries.len();
        inner.entries.retain(|_, entry| {
            let away = now.saturating_sub(entry.last_seen);
            entry.streams > 0 || away <= window || now < entry.report.not_after
        });
        inner.changed |= inner.entries.len() < before;
    }

    /// Everybody; connected ones were heard of just now.
    pub fn known(&self, now: Seconds) -> Vec<Known> {
        let inner = self.inner();
        inner.entries.iter().map(|(who, entry)| entry.known(who, now)).collect()
    }

    /// Everybody, one after another; who comes or goes meanwhile may be missing.
    pub fn each(&self, now: Seconds) -> impl Iterator<Item = Known> + '_ {
        let names: Vec<_> = self.inner().entries.keys().cloned().collect();
        names.into_iter().filter_map(move |who| self.inner().entries.get(&who).map(|entry| entry.known(&who, now)))
    }

    /// As [`Self::each`], if anything changed since the last call that returned something.
    pub fn changed(&self, now: Seconds) -> Option<impl Iterator<Item = Known> + '_> {
        let changed = std::mem::take(&mut self.inner().changed);
        changed.then(|| self.each(now))
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.inner().entries.len()
    }

    /// True when nobody is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many have a stream, and how many of these do not use `generation`.
    pub fn counts(&self, generation: u64) -> (usize, usize) {
        let inner = self.inner();
        let behind = inner.entries.values().filter(|entry| entry.streams > 0 && entry.report.generation < generation);
        (inner.connected, behind.count())
    }

    /// Nobody who is connected goes; of the others, who was heard of longest ago.
    fn make_room(&self, inner: &mut Inner) {
        if inner.entries.len() <= self.entries_max {
            return;
        }
        let away = inner.entries.iter().filter(|(_, entry)| entry.streams == 0);
        if let Some(oldest) = away.min_by_key(|(_, entry)| entry.last_seen).map(|(who, _)| who.clone()) {
            inner.entries.remove(&oldest);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Each change leaves the map whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn new(now: Seconds) -> Self {
        let (first_seen, last_seen, report) = (now, now, Report::default());
        let (clock_apart, clock_left) = (false, Seconds::MIN);
        Self { streams: 0, newest: 0, first_seen, last_seen, clock_apart, clock_left, report }
    }

    fn known(&self, who: &Arc<Who>, now: Seconds) -> Known {
        let connected = self.streams > 0;
        Known {
            who: who.clone(),
            connected,
            first_seen: self.first_seen,
            last_seen: if connected { now } else { self.last_seen },
            report: self.report.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

    use super::*;

    fn who(pod: &str) -> Who {
        let pod = Some(pod.into());
        Who { identity: "spiffe://td/ns/a/sa/b".into(), pod: pod.clone(), pod_uid: pod, source: None }
    }

    fn report(generation: u64) -> Report {
        Report::new(generation, "", "ab", &[7; 32], 100)
    }

    fn only(followers: &Followers, now: Seconds) -> Known {
        let mut known = followers.known(now);
        assert_eq!(known.len(), 1);
        known.remove(0)
    }

    #[test]
    fn a_proxy_is_known_from_its_certificate_to_its_end() {
        let followers = Followers::new(10, || 50);
        followers.granted(who("web-0"), "ab", Sha256([7; 32]), 100, 10);
        let known = only(&followers, 11);
        assert_eq!((known.connected, known.last_seen, known.report.not_after), (false, 10, 100));
        assert_eq!(known.proxy().name, "spiffe://td/ns/a/sa/b (pod web-0)");
        let stream = followers.open(who("web-0"), 12);
        stream.report(report(3));
        followers.granted(who("web-0"), "cd", Sha256([8; 32]), 200, 13);
        let known = only(&followers, 14);
        assert_eq!((known.connected, known.first_seen, known.last_seen), (true, 12, 14));
        assert_eq!((known.report.generation, &*known.report.serial), (3, "ab"), "what it uses, not what it got");
        assert_eq!(followers.counts(3), (1, 0));
        assert_eq!(followers.counts(4), (1, 1));
        drop(stream);
        assert_eq!(followers.counts(4), (0, 0));
        assert_eq!(only(&followers, 60).last_seen, 50);
        followers.forget(5, 99);
        assert_eq!(only(&followers, 99).report.generation, 3);
        followers.forget(5, 100);
        assert!(followers.known(100).is_empty());
    }

    #[test]
    fn the_newer_stream_of_a_pod_speaks() {
        let followers = Followers::new(10, || 50);
        let old = followers.open(who("web-0"), 1);
        old.report(report(3));
        let new = followers.open(who("web-0"), 2);
        assert_eq!(only(&followers, 3).report.generation, 0, "it has said nothing yet");
        old.report(report(4));
        assert_eq!(only(&followers, 3).report.generation, 0);
        new.report(report(2));
        drop(old);
        let known = only(&followers, 3);
        assert_eq!((known.connected, known.report.generation), (true, 2));
        assert_eq!(followers.counts(9), (1, 1));
    }

    #[test]
    fn what_a_dead_process_knew_counts_from_now() {
        let followers = Followers::new(10, || 50);
        let here = followers.open(who("here"), 1);
        here.report(report(9));
        let known = |pod: &str, connected| Known {
            who: Arc::new(who(pod)),
            connected,
            first_seen: 1,
            last_seen: 20,
            report: report(2),
        };
        followers.absorb(vec![known("here", true), known("there", true), known("away", false)], 60);
        let found = |pod: &str| followers.known(61).into_iter().find(|known| *known.who == who(pod)).unwrap();
        assert_eq!((found("here").connected, found("here").report.generation), (true, 9));
        assert_eq!((found("there").connected, found("there").last_seen), (false, 60));
        assert_eq!(found("away").last_seen, 20);
        assert!(known("x", true).is_newer_than(&known("x", false)));
    }

    #[test]
    fn a_change_is_told_once() {
        let followers = Followers::new(10, || 50);
        assert!(followers.changed(1).is_none());
        let stream = followers.open(who("web-0"), 1);
        assert_eq!(followers.changed(2).unwrap().count(), 1);
        assert!(followers.changed(2).is_none());
        stream.report(report(1));
        assert!(followers.changed(2).is_some());
        stream.report(report(1));
        assert!(followers.changed(2).is_none());
        drop(stream);
        assert!(followers.changed(2).is_some());
    }

    #[test]
    fn a_clock_that_goes_to_and_fro_is_told_of_once_in_a_while() {
        static NOW: AtomicI64 = AtomicI64::new(1000);
        let followers = Followers::new(10, || NOW.load(SeqCst));
        let stream = followers.open(who("web-0"), 1);
        let told = |apart| stream.clock_is_apart(apart);
        assert!(!told(false) && told(true) && !told(true));
        assert!(told(false), "the end at once");
        for _ in 0..100 {
            assert!(!told(true) && !told(false));
        }
        // Its next stream is no fresh start; nobody else waits for it.
        let next = followers.open(who("web-0"), 2);
        assert!(!next.clock_is_apart(true) && followers.open(who("web-1"), 2).clock_is_apart(true));
        NOW.store(1060, SeqCst);
        assert!(next.clock_is_apart(true) && next.clock_is_apart(false));
        NOW.store(10, SeqCst);
        assert!(next.clock_is_apart(true), "a clock of ours that was set back");
    }

    #[test]
    fn memory_is_bounded_and_the_connected_stay() {
        let followers = Followers::new(2, || 50);
        let _one = followers.open(who("one"), 1);
        followers.granted(who("two"), "", Sha256([0; 32]), 100, 2);
        followers.granted(who("three"), "", Sha256([0; 32]), 100, 3);
        let names: Vec<_> = followers.known(4).iter().filter_map(|known| known.who.pod.clone()).collect();
        assert!(names.len() == 2 && names.contains(&"one".into()) && names.contains(&"three".into()), "{names:?}");
        let long = Report::new(1, &"ü".repeat(1000), &"f".repeat(1000), &[1; 31], 0);
        assert!(long.refused.len() <= REFUSED_BYTES_MAX && long.serial.len() == SERIAL_BYTES_MAX);
        assert_eq!(long.issuer, None);
    }

    #[test]
    fn what_is_kept_of_a_proxy_is_little() {
        const PROXIES: usize = 20_000;
        let followers = Followers::new(40_000, || 50);
        let mut streams = Vec::with_capacity(PROXIES);
        let allocated = allocation_counter::measure(|| {
            streams.extend((0..PROXIES).map(|number| {
                let pod = format!("some-deployment-{number:010}-abcde");
                let stream = followers.open(Who { pod_uid: Some(format!("{number:036}").into()), ..who(&pod) }, 1);
                stream.report(Report::new(3, "", &"f".repeat(32), &[7; 32], 100));
                stream
            }));
        });
        let each = allocated.bytes_current / PROXIES as i64;
        assert_eq!(followers.counts(3), (20_000, 0));
        assert!(each < 400, "{each} bytes for each of {} proxies", streams.len());
    }
}
