//! The thread that tends the directory: every half second it looks at what changed, and does what is due.
//!
//! All processes follow the state, write down who follows them, and read the token keys again. One of them leads: it
//! has a lock for as long as it lives, and it alone rotates unasked, takes brought issuers, takes over from processes
//! that died, and tells what is wrong with the state. Promises: nothing here stops for an error; what fails is an alert
//! and is tried again. Leaves to others: what is due (`lifecycle`), and that a change is whole (`keeper`).

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use telemetry::chain;
use time::OffsetDateTime;

use crate::alerts::{self, Alerts, Condition};
use crate::attest::key_set::KeySet;
use crate::brought::{self, Files};
use crate::followers::{Followers, Known};
use crate::journal::{Alert, Journal};
use crate::keeper::KeeperError;
use crate::lifecycle::{Proxy, Step, View};
use crate::lock::Lock;
use crate::roster::{Roster, RosterError};
use crate::state::Seconds;
use crate::trust::Trust;

const LEADER_LOCK: &str = "leader.lock";
const TICK: Duration = Duration::from_millis(500);
/// The list of proxies is written at most this often for each of them: of 20 000, every 20 s. What a crash loses of it is
/// made good by waiting for the proxies to come back.
const PUBLISH_EACH: Duration = Duration::from_millis(1);
/// Steps in a row; more are due only when something is wrong.
const STEPS_MAX: usize = 8;

/// Seconds since 1970, now.
pub fn now() -> Seconds {
    OffsetDateTime::now_utc().unix_timestamp()
}

/// What other threads may ask while the directory is tended.
#[derive(Debug)]
pub struct Tended {
    /// True while this process leads.
    pub leads: AtomicBool,
    /// Since when it leads without having taken over from a dead process.
    pub observing_since: AtomicI64,
    roster: Mutex<Roster>,
}

impl Tended {
    /// Nobody leads yet.
    pub fn new(roster: Roster) -> Arc<Self> {
        let (leads, observing_since) = (AtomicBool::new(false), AtomicI64::new(now()));
        Arc::new(Self { leads, observing_since, roster: Mutex::new(roster) })
    }

    /// The proxies of all processes.
    ///
    /// # Errors
    /// When the file of another process cannot be read.
    pub fn all<'a>(
        &self,
        followers: &'a Followers,
        now: Seconds,
    ) -> Result<Box<dyn Iterator<Item = Known> + 'a>, RosterError> {
        self.roster().all(followers.each(now))
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        // What it remembers of files is whole at any time, or is read again.
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread works with.
pub struct Tender {
    /// The state.
    pub trust: Arc<Trust>,
    /// Who follows here.
    pub followers: Arc<Followers>,
    /// What others may ask.
    pub tended: Arc<Tended>,
    /// The token keys.
    pub key_set: Arc<KeySet>,
    /// Where alerts go.
    pub journal: Arc<Journal>,
    /// The directory of a brought issuer.
    pub issuer_directory: Option<PathBuf>,
}

/// What the thread remembers.
#[derive(Default)]
struct Memory {
    leader: Option<Lock>,
    published: Option<Instant>,
    alerts: Alerts,
    /// The files of the brought issuer that were found good and dealt with.
    brought: Option<Files>,
}

impl Tender {
    /// Tends until the sender of `nudges` is gone; a nudge is a tick at once.
    pub fn run(self, nudges: &Receiver<()>) {
        let mut memory = Memory::default();
        loop {
            self.tick(&mut memory, now());
            match nudges.recv_timeout(TICK) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // The streams are closed by now: the next process learns when they were last seen.
        if let Err(error) = self.tended.roster().publish(self.followers.each(now())) {
            tracing::warn!(reason = %chain(&error), "the list of proxies is not up to date");
        }
    }

    fn tick(&self, memory: &mut Memory, now: Seconds) {
        let mut conditions = Vec::new();
        let mut note = |alert, result: Result<(), String>| {
            if let Err(detail) = result {
                conditions.push(Condition { alert, subject: String::new(), detail });
            }
        };
        note(Alert::StateUnusable, self.trust.refresh(now).map(drop).map_err(|error| chain(&error).to_string()));
        note(Alert::KeySetRefused, self.reload_keys());
        note(Alert::StateUnusable, self.lead(memory, now));
        if memory.leader.is_some() {
            note(Alert::IssuerRefused, self.bring(memory, now));
            note(Alert::StateUnusable, self.advance(now));
            conditions.extend(self.look(now));
        }
        memory.alerts.update(conditions, &self.journal);
    }

    fn reload_keys(&self) -> Result<(), String> {
        if self.key_set.reload().map_err(|error| chain(&error).to_string())? {
            tracing::info!("token keys read again");
        }
        Ok(())
    }

    /// Writes down who follows; becomes the leader when nobody is; takes over from the dead.
    fn lead(&self, memory: &mut Memory, now: Seconds) -> Result<(), String> {
        let told = |error: RosterError| chain(&error).to_string();
        self.followers.forget(self.trust.keeper().rules().absence_window, now);
        let pause = PUBLISH_EACH * u32::try_from(self.followers.len()).unwrap_or(u32::MAX);
        if memory.published.is_none_or(|at| at.elapsed() >= pause)
            && let Some(known) = self.followers.changed(now)
        {
            memory.published = Some(Instant::now());
            self.tended.roster().publish(known).map_err(told)?;
        }
        if memory.leader.is_none() {
            let path = self.trust.keeper().directory().file(LEADER_LOCK);
            memory.leader = Lock::try_take(&path).map_err(|error| chain(&error).to_string())?;
            if memory.leader.is_some() {
                self.tended.leads.store(true, Relaxed);
                self.tended.observing_since.store(now, Relaxed);
                tracing::info!("leading: this process rotates");
            }
        }
        if memory.leader.is_some() && self.tended.roster().take_over(&self.followers, now).map_err(told)? {
            self.tended.observing_since.store(now, Relaxed);
            tracing::info!("took over the proxies of a process that is gone");
        }
        Ok(())
    }

    /// Looks at the brought issuer, and takes it when it is another one and good.
    fn bring(&self, memory: &mut Memory, now: Seconds) -> Result<(), String> {
        let Some(directory) = &self.issuer_directory else { return Ok(()) };
        let told = |error: &dyn std::error::Error| chain(error).to_string();
        let files = Files::read(directory).map_err(|error| told(&error))?;
        if memory.brought.as_ref() == Some(&files) {
            return Ok(());
        }
        let (keeper, snapshot) = (self.trust.keeper(), self.trust.current());
        let found = brought::validate(&files, &snapshot.state.roots, keeper.domain(), now);
        let taken = keeper.bring(&found.map_err(|error| told(&error))?, now).map_err(|error| told(&error))?;
        if let Some(state) = taken {
            let generation = state.generation;
            tracing::info!(generation, directory = %directory.display(), "took the issuer that was brought");
        }
        memory.brought = Some(files);
        Ok(())
    }

    /// Does what is due.
    fn advance(&self, now: Seconds) -> Result<(), String> {
        for _step in 0..STEPS_MAX {
            let proxies = self.proxies(now).map_err(|error| chain(&error).to_string())?;
            let view = View { proxies: &proxies, observing_since: self.tended.observing_since.load(Relaxed) };
            let done =
                self.trust.keeper().advance(&view, now).map_err(|error: KeeperError| chain(&error).to_string())?;
            let Some((step, state)) = done else { return Ok(()) };
            let what = match step {
                Step::BeginRoot => "a new root is distributed",
                Step::Sign => "the new root signs",
                Step::Drop => "the old root is gone",
                Step::ReplaceIssuer => "a new issuer signs",
                Step::Forget => "what has ended is forgotten",
            };
            tracing::info!(generation = state.generation, issuer = state.signing().id, "{what}");
            self.trust.refresh(now).map_err(|error| chain(&error).to_string())?;
        }
        Ok(())
    }

    /// As the rules see them; only a rotation asks.
    fn proxies(&self, now: Seconds) -> Result<Vec<Proxy>, RosterError> {
        if self.trust.current().state.rotation.is_none() {
            return Ok(Vec::new());
        }
        Ok(self.tended.all(&self.followers, now)?.map(|known| known.proxy()).collect())
    }

    fn look(&self, now: Seconds) -> Vec<Condition> {
        let (snapshot, rules) = (self.trust.current(), self.trust.keeper().rules());
        let proxies = self.proxies(now).unwrap_or_default();
        let view = View { proxies: &proxies, observing_since: self.tended.observing_since.load(Relaxed) };
        let waits = crate::lifecycle::waits(&snapshot.state, &view, rules, now);
        alerts::of_state(&snapshot.state, &waits, rules, now)
    }
}
