//! What this process signs with and tells proxies: the state on the disk, loaded.
//!
//! Promises: nothing is signed with a state that this process has not seen on the disk within [`LEASE`]; a change is
//! noticed by content, whoever made it; what was good last stays in use while the disk cannot be read, but signs no more.
//! A generation is encoded once, however many proxies get it. Leaves to others: changing the state (`keeper`).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::trust::{Bundle, Denial, denial};
use arc_swap::ArcSwap;
use bytes::Bytes;
use prost::Message;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::authority::{Authority, AuthorityError};
use crate::keeper::{Keeper, KeeperError};
use crate::lifecycle::{self, LEASE};
use crate::pki::{self, PkiError};
use crate::state::{Issuer, Seconds, State, Subject};

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It cannot be read.
    #[error("the state cannot be read")]
    Keeper(#[from] KeeperError),
    /// An issuer of it cannot sign.
    #[error("issuer {id} cannot sign")]
    Issuer {
        /// Which.
        id: u32,
        /// Why.
        #[source]
        source: AuthorityError,
    },
    /// A certificate of it cannot be read.
    #[error("the trust bundle cannot be made")]
    Bundle(#[from] PkiError),
}

/// One state, ready for use.
pub struct Snapshot {
    /// The state.
    pub state: State,
    /// The issuer that signs for workloads.
    pub signing: Arc<Authority>,
    /// The issuer of our own serving certificate.
    pub serving: Arc<Authority>,
    /// The bundle's message but for its time, which is of the moment of sending.
    pub bundle: Bytes,
}

/// The state of the moment.
pub struct Trust {
    keeper: Arc<Keeper>,
    renew_within: u32,
    current: ArcSwap<Snapshot>,
    /// Not a `watch`: waiting for one takes each stream a hundred bytes more.
    woken: Notify,
    wakes: AtomicU32,
    stopping: AtomicBool,
    seen: Mutex<Seen>,
}

/// What was on the disk when it was looked at last.
struct Seen {
    text: String,
    at: Instant,
}

impl Trust {
    /// Loads the state.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn load(keeper: Arc<Keeper>, renew_within: Duration, now: Seconds) -> Result<Self, TrustError> {
        let at = Instant::now();
        let text = keeper.read_text()?;
        let state = keeper.parse(&text)?;
        let renew_within = u32::try_from(renew_within.as_secs().max(1)).unwrap_or(u32::MAX);
        let snapshot = snapshot(&keeper, renew_within, state, None, now)?;
        let (current, seen) = (ArcSwap::from_pointee(snapshot), Mutex::new(Seen { text, at }));
        let (woken, wakes, stopping) = (Notify::new(), AtomicU32::new(0), AtomicBool::new(false));
        Ok(Self { keeper, renew_within, current, woken, wakes, stopping, seen })
    }

    /// The directory behind it.
    pub fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// What is in use, however old.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// What may be signed with at `now`.
    ///
    /// # Errors
    /// When it was not seen on the disk lately and cannot be read now.
    pub fn signing(&self, now: Seconds) -> Result<Arc<Snapshot>, TrustError> {
        let lease = Duration::from_secs(LEASE.unsigned_abs());
        if self.seen().at.elapsed() >= lease {
            self.refresh(now)?;
        }
        Ok(self.current())
    }

    /// Looks at the disk; `true` when something is different now.
    ///
    /// # Errors
    /// When the state cannot be used; what was in use stays.
    pub fn refresh(&self, now: Seconds) -> Result<bool, TrustError> {
        let mut seen = self.seen();
        // Before the reading: a change during it is newer than this.
        let at = Instant::now();
        let text = self.keeper.read_text()?;
        let current = self.current();
        let serving = lifecycle::serving(&current.state, now).id;
        if text == seen.text && serving == current.serving.id {
            seen.at = at;
            return Ok(false);
        }
        let state = self.keeper.parse(&text)?;
        let snapshot = snapshot(&self.keeper, self.renew_within, state, Some(&current), now)?;
        let generation = snapshot.state.generation;
        self.current.store(Arc::new(snapshot));
        *seen = Seen { text, at };
        drop(seen);
        if generation != current.state.generation {
            self.wake();
        }
        Ok(true)
    }

    /// Ends with the next wake after this call, whenever it is polled first. Who asks [`Self::wakes`] after it misses none.
    pub fn woken(&self) -> Notified<'_> {
        self.woken.notified()
    }

    /// How often all were woken, counted round.
    pub fn wakes(&self) -> u32 {
        self.wakes.load(SeqCst)
    }

    /// Says that this process ends, to all who wait.
    pub fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.wake();
    }

    /// True when it ends.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }

    /// Waits until it ends.
    ///
    /// # Cancellation
    /// Nothing is lost.
    pub async fn stopped(&self) {
        loop {
            let woken = self.woken();
            if self.is_stopping() {
                return;
            }
            woken.await;
        }
    }

    /// Wakes all who wait: there is a generation, or they look at the time, or at the end.
    pub fn wake(&self) {
        self.wakes.fetch_add(1, SeqCst);
        self.woken.notify_waiters();
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // What was seen is whole at any time.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn snapshot(
    keeper: &Keeper,
    renew_within: u32,
    state: State,
    before: Option<&Snapshot>,
    now: Seconds,
) -> Result<Snapshot, TrustError> {
    let load = |issuer: &Issuer| {
        let known = before.into_iter().flat_map(|before| [&before.signing, &before.serving]);
        let same = |known: &&Arc<Authority>| known.id == issuer.id && same_limit(known, issuer);
        match known.into_iter().find(same) {
            Some(known) => Ok(known.clone()),
            None => Authority::load(keeper.directory(), &state, issuer)
                .map(Arc::new)
                .map_err(|source| TrustError::Issuer { id: issuer.id, source }),
        }
    };
    let (signing, serving) = (load(state.signing())?, load(lifecycle::serving(&state, now))?);
    let bundle = bundle(&state, renew_within)?.encode_to_vec().into();
    Ok(Snapshot { signing, serving, bundle, state })
}

fn same_limit(known: &Authority, issuer: &Issuer) -> bool {
    i64::try_from(known.longest_leaf.as_secs()) == Ok(issuer.longest_leaf)
}

/// The message for proxies, without a time.
fn bundle(state: &State, renew_within_seconds: u32) -> Result<Bundle, PkiError> {
    let der = |root: &crate::state::Root| {
        pki::read_certificate(&format!("root {}", root.id), &root.certificate).map(|der| der.to_vec())
    };
    Ok(Bundle {
        generation: state.generation,
        roots: state.roots.iter().map(der).collect::<Result<_, _>>()?,
        issuer_sha256: state.signing().sha256.0.to_vec(),
        renew_within_seconds,
        denied: state.denied.iter().filter_map(denial).collect(),
        time_unix_nanos: 0,
    })
}

/// What peers can see of a denial: they do not know pods.
fn denial(denied: &crate::state::Denied) -> Option<Denial> {
    let subject = match &denied.subject {
        Subject::Serial(serial) => denial::Subject::Serial(serial.clone()),
        Subject::Identity(identity) => denial::Subject::Identity(identity.clone()),
        Subject::Key(key) => denial::Subject::KeySha256(key.0.to_vec()),
        Subject::PodUid(_) => return None,
    };
    Some(Denial { subject: Some(subject), reason: denied.reason.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::Command;
    use crate::lifecycle::Rules;
    use crate::store::Directory;
    use crate::test_support::Scratch;

    const NOW: Seconds = 1_800_000_000;

    fn keeper(scratch: &Scratch) -> Arc<Keeper> {
        let directory = Directory::open(&scratch.path().join("ca")).unwrap();
        let rules = Rules { leaf_lifetime: 60, ..Rules::default() };
        Arc::new(Keeper::new(directory, "td".parse().unwrap(), rules))
    }

    fn look_was_long_ago(trust: &Trust) {
        trust.seen().at = Instant::now() - Duration::from_secs(LEASE.unsigned_abs());
    }

    #[test]
    fn nothing_is_signed_with_a_state_that_was_not_seen_lately() {
        let scratch = Scratch::new();
        let (here, elsewhere) = (keeper(&scratch), keeper(&scratch));
        here.open(None, NOW).unwrap();
        let trust = Trust::load(here, Duration::from_secs(60), NOW).unwrap();
        let wakes = trust.wakes();
        let state = elsewhere.command(&Command::RotateIssuer, NOW).unwrap();
        assert_eq!(trust.signing(NOW).unwrap().signing.id, 2, "within the lease");
        look_was_long_ago(&trust);
        assert_eq!(trust.signing(NOW).unwrap().signing.id, state.signing().id);
        assert_eq!(trust.wakes(), wakes + 1, "who follows is told");
        let text = elsewhere.read_text().unwrap();
        elsewhere.directory().remove("state.json").unwrap();
        assert!(trust.signing(NOW).is_ok(), "within the lease");
        look_was_long_ago(&trust);
        assert!(matches!(trust.signing(NOW), Err(TrustError::Keeper(KeeperError::Missing(_)))));
        assert_eq!(trust.current().signing.id, state.signing().id, "what was good last is still shown to proxies");
        elsewhere.directory().write("state.json", &text).unwrap();
        assert!(trust.signing(NOW).is_ok());
    }

    #[test]
    fn the_bundle_is_the_states_and_its_newest_root_comes_last() {
        let scratch = Scratch::new();
        let keeper = keeper(&scratch);
        keeper.open(None, NOW).unwrap();
        keeper.command(&Command::Deny(Subject::Key(crate::state::Sha256([7; 32])), "lost".into()), NOW).unwrap();
        let state = keeper.command(&Command::RotateRoot, NOW).unwrap();
        let trust = Trust::load(keeper, Duration::from_secs(60), NOW).unwrap();
        let bundle = Bundle::decode(trust.current().bundle.clone()).unwrap();
        assert_eq!((bundle.generation, bundle.renew_within_seconds), (3, 60));
        let digests: Vec<_> = bundle.roots.iter().map(|root| pki::sha256(root)).collect();
        assert_eq!(digests, [state.roots[0].sha256, state.roots[1].sha256]);
        assert_eq!(bundle.issuer_sha256, state.signing().sha256.0);
        assert_eq!(bundle.denied[0].subject, Some(denial::Subject::KeySha256(vec![7; 32])));
    }
}
