//! The state on the disk, and the only way to change it.
//!
//! A change happens under the lock of the directory, from the state that stands there: new keys are written first, then
//! `state.json` is replaced (from that instant the change is in force), then the files that others read, and at last the
//! keys that nobody needs are removed. A process that dies in between has changed everything or nothing, and the next
//! one finishes the rest in [`Keeper::open`]. Any process may change the state; only the leader does it unasked.
//!
//! Leaves to others: when a change is due (`lifecycle`), who leads (`leader`), what is signed with it (`trust`).

use std::time::Duration;

use identity::TrustDomain;

use crate::brought::Brought;
use crate::fault;
use crate::lifecycle::{self, Refusal, Rollback, Rules, Step, View};
use crate::lock::{Lock, LockError};
use crate::pki::{self, NewIssuer, PkiError};
use crate::state::{self, Issuer, Root, RootUse, Seconds, Sha256, Stage, State, StateError, Subject, VERSION};
use crate::store::{Directory, StoreError};

/// The trust bundle as a file, for those who read one.
pub const BUNDLE_FILE: &str = "root.pem";
/// The certificate of the issuer that signs, for people and `picket check certs`.
pub const ISSUER_FILE: &str = "issuer.pem";
const STATE_LOCK: &str = "state.lock";
/// A change takes milliseconds; a disk that is busy may take longer.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// What the program before `state.json` granted at most: a directory of its time may hold such leaves.
const EARLIER_LEAF_MAX: Seconds = 30 * 86400;

/// Why the state is not read or not changed.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The directory cannot be used.
    #[error("the authority's directory cannot be used")]
    Store(#[from] StoreError),
    /// Its lock cannot be had.
    #[error("the authority's directory cannot be changed")]
    Lock(#[from] LockError),
    /// The state is none, or would be none.
    #[error("the authority's state cannot be used")]
    State(#[from] StateError),
    /// A key or certificate cannot be made or read.
    #[error("the authority's keys cannot be used")]
    Pki(#[from] PkiError),
    /// A file is missing beside others that are there.
    #[error("{0} is missing, though the directory has an authority")]
    Missing(String),
    /// The directory was made for another trust domain.
    #[error("the directory belongs to the trust domain {found}, the configuration says {expected}")]
    TrustDomain {
        /// From the configuration.
        expected: TrustDomain,
        /// From the directory.
        found: String,
    },
    /// The rules say no.
    #[error("not now")]
    Refused(#[from] Refusal),
    /// A certificate was brought for a root that another rotation is about.
    #[error("the brought issuer leads to another root: it is taken when the rotation under way has ended")]
    BroughtLater,
    /// It was brought with a key that an operator has denied.
    #[error("{0} has a key that is denied, and peers would refuse whatever is under it; `undeny` it first")]
    BroughtDenied(String),
}

/// What an operator may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Begin a root rotation.
    RotateRoot,
    /// Make a new issuer now.
    RotateIssuer,
    /// Roll the root rotation back.
    Rollback,
    /// Let the stage not wait for proxies.
    Override,
    /// Take this root out, though leaves under it may be valid.
    DropRoot(Sha256),
    /// Deny somebody.
    Deny(Subject, String),
    /// Lift a denial.
    Undeny(Subject),
}

/// How [`Keeper::open`] found the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// With a state.
    Kept,
    /// As the program before `state.json` left it: taken over as generation 1.
    TakenOver,
    /// Empty: a new authority was made.
    Made,
}

/// Files with keys, and their content.
type Keys = Vec<(String, String)>;

/// A state to come, and the keys that it needs and that are not written yet.
struct Change {
    state: State,
    keys: Keys,
}

impl From<State> for Change {
    fn from(state: State) -> Self {
        Self { state, keys: Vec::new() }
    }
}

/// The directory of an authority.
#[derive(Debug)]
pub struct Keeper {
    directory: Directory,
    domain: TrustDomain,
    rules: Rules,
}

impl Keeper {
    /// Looks at nothing yet.
    pub fn new(directory: Directory, domain: TrustDomain, rules: Rules) -> Self {
        Self { directory, domain, rules }
    }

    /// The directory.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The trust domain.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// What the operator has set.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Makes the directory ready: an empty one gets a new authority, or the brought issuer; one of an earlier program is
    /// taken over; what a crash left half done is finished.
    ///
    /// # Errors
    /// See [`KeeperError`]. A directory that holds only a part of an authority is refused, never completed.
    pub fn open(&self, brought: Option<&Brought>, now: Seconds) -> Result<(State, Found), KeeperError> {
        let _lock = self.lock()?;
        let (change, found) = if self.directory.read(state::FILE)?.is_some() {
            (Change::from(self.read()?), Found::Kept)
        } else if self.directory.read(BUNDLE_FILE)?.is_some() {
            (Change::from(self.take_over()?), Found::TakenOver)
        } else {
            (self.create(brought, now)?, Found::Made)
        };
        let kept = change.state.clone();
        let raised = lifecycle::raise_longest_leaf(&change.state, self.rules.leaf_lifetime);
        let change = Change { state: raised, keys: change.keys };
        if found == Found::Kept && change.state == kept {
            self.write_public(&kept)?;
            self.remove_unused_keys(&kept)?;
            return Ok((kept, found));
        }
        Ok((self.write("open", change)?, found))
    }

    /// The state as it stands on the disk.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub fn read(&self) -> Result<State, KeeperError> {
        self.parse(&self.read_text()?)
    }

    /// The text of the state, to see whether it changed.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_text(&self) -> Result<String, KeeperError> {
        self.directory.read(state::FILE)?.ok_or_else(|| KeeperError::Missing(state::FILE.into()))
    }

    /// The state that a text holds.
    ///
    /// # Errors
    /// When it holds none, or one of another trust domain.
    pub fn parse(&self, text: &str) -> Result<State, KeeperError> {
        let state = State::parse(text)?;
        if state.trust_domain != self.domain.as_str() {
            return Err(KeeperError::TrustDomain { expected: self.domain.clone(), found: state.trust_domain });
        }
        Ok(state)
    }

    /// Does the one thing that is due, if there is one.
    ///
    /// # Errors
    /// See [`KeeperError`]; the state is then as it was.
    pub fn advance(&self, view: &View<'_>, now: Seconds) -> Result<Option<(Step, State)>, KeeperError> {
        // Asked without the lock first: nearly always nothing is due.
        let Some(step) = lifecycle::next(&self.read()?, view, &self.rules, now) else { return Ok(None) };
        let _lock = self.lock()?;
        let state = self.read()?;
        if lifecycle::next(&state, view, &self.rules, now) != Some(step) {
            return Ok(None);
        }
        let (name, change) = match step {
            Step::BeginRoot => ("begin", self.begin(&state, now)?),
            Step::Sign => ("sign", self.sign(&state, now)?),
            Step::Drop => ("drop", lifecycle::drop_old(&state, now)?.into()),
            Step::ReplaceIssuer => ("issuer", self.replace_issuer(&state, now)?),
            Step::Forget => ("forget", lifecycle::forget(&state, now).into()),
        };
        Ok(Some((step, self.write(name, change)?)))
    }

    /// Does what an operator asks for.
    ///
    /// # Errors
    /// See [`KeeperError`]; the state is then as it was.
    pub fn command(&self, command: &Command, now: Seconds) -> Result<State, KeeperError> {
        let _lock = self.lock()?;
        let state = self.read()?;
        let (name, change) = match command {
            Command::RotateRoot | Command::RotateIssuer if self.rules.brought => return Err(Refusal::Brought.into()),
            Command::RotateRoot => ("begin", self.begin(&state, now)?),
            Command::RotateIssuer => ("issuer", self.replace_issuer(&state, now)?),
            Command::Rollback => ("rollback", self.rollback(&state, now)?),
            Command::Override => ("override", lifecycle::override_stage(&state)?.into()),
            Command::DropRoot(sha256) => {
                ("drop-root", lifecycle::drop_root(&state, sha256, key_alone(&state, sha256)?, now)?.into())
            }
            Command::Deny(subject, reason) => {
                refuse_own_key(&state, subject, now)?;
                ("deny", lifecycle::deny(&state, subject.clone(), reason.clone(), now)?.into())
            }
            Command::Undeny(subject) => ("undeny", lifecycle::undeny(&state, subject)?.into()),
        };
        self.write(name, change)
    }

    /// Takes an issuer from outside, when it is not the one that signs already: at once under the root that signs,
    /// through a root rotation under another one. `None` when there is nothing to do.
    ///
    /// # Errors
    /// See [`KeeperError`]; the state is then as it was.
    pub fn bring(&self, brought: &Brought, now: Seconds) -> Result<Option<State>, KeeperError> {
        if is_known(&self.read()?, brought) {
            return Ok(None);
        }
        let _lock = self.lock()?;
        let state = self.read()?;
        if is_known(&state, brought) {
            return Ok(None);
        }
        for (name, key) in brought.keys()? {
            if state.denies(&Subject::Key(key)).is_some() {
                return Err(KeeperError::BroughtDenied(name));
            }
        }
        let (name, state) = self.place(state, brought, now)?;
        let issuer = state.issuers.iter().chain(state.rotation.iter().filter_map(|rotation| rotation.pending.as_ref()));
        let file =
            issuer.filter(|issuer| issuer.sha256 == brought.sha256).map(|issuer| issuer.key_file.clone()).next_back();
        let keys = file.map(|file| (file, brought.key_pem.clone())).into_iter().collect();
        self.write(name, Change { state, keys }).map(Some)
    }

    /// Where a brought issuer belongs in the state.
    fn place(&self, state: State, brought: &Brought, now: Seconds) -> Result<(&'static str, State), KeeperError> {
        let known = state.roots.iter().find(|root| root.sha256 == brought.root_sha256).cloned();
        let (longest, id) = (self.rules.leaf_lifetime, state.next_id);
        match (known, &state.rotation) {
            (Some(root), Some(rotation)) if rotation.stage == Stage::Distribute && root.id == rotation.to => {
                let mut state = state.clone();
                let pending = brought.issuer(id, root.id, longest, now);
                if let Some(rotation) = &mut state.rotation {
                    rotation.pending = Some(pending);
                }
                state.next_id = id.saturating_add(1);
                Ok(("bring", state))
            }
            (Some(root), Some(rotation)) if rotation.stage == Stage::Distribute && rotation.pending.is_some() => {
                let state = lifecycle::undo(&state, now)?;
                let issuer = brought.issuer(id, root.id, longest, now);
                Ok(("bring", lifecycle::replace_issuer(&state, issuer, now)))
            }
            (Some(root), Some(rotation)) if rotation.stage == Stage::Sign && root.id == rotation.from => {
                let issuer = brought.issuer(id, root.id, longest, now);
                Ok(("bring", lifecycle::turn_back(&state, issuer, now)?))
            }
            (Some(root), _) => {
                let issuer = brought.issuer(id, root.id, longest, now);
                Ok(("bring", lifecycle::replace_issuer(&state, issuer, now)))
            }
            (None, None) => {
                let root = brought.root(id);
                let pending = brought.issuer(id.saturating_add(1), id, longest, now);
                Ok(("begin", lifecycle::begin(&state, root, Some(pending), now)?))
            }
            (None, Some(_)) => Err(KeeperError::BroughtLater),
        }
    }

    fn lock(&self) -> Result<Lock, LockError> {
        Lock::take(&self.directory.file(STATE_LOCK), LOCK_PATIENCE)
    }

    /// The one place where anything changes. The caller has the lock.
    fn write(&self, name: &str, change: Change) -> Result<State, KeeperError> {
        let Change { state, keys } = change;
        let text = state.to_text()?;
        fault::point(name, "before");
        for (file, pem) in &keys {
            self.directory.write(file, pem)?;
        }
        fault::point(name, "keys");
        self.directory.write(state::FILE, &text)?;
        fault::point(name, "state");
        self.write_public(&state)?;
        fault::point(name, "files");
        self.remove_unused_keys(&state)?;
        Ok(state)
    }

    fn write_public(&self, state: &State) -> Result<(), KeeperError> {
        for (file, text) in [(BUNDLE_FILE, state.bundle_pem()), (ISSUER_FILE, state.signing().chain.concat())] {
            if self.directory.read(file)?.as_ref() != Some(&text) {
                self.directory.write(file, &text)?;
            }
        }
        Ok(())
    }

    fn remove_unused_keys(&self, state: &State) -> Result<(), KeeperError> {
        let is_ours = |name: &str| {
            let names = ["root-", "issuer-"].iter().any(|start| name.starts_with(start));
            names && name.ends_with("key.pem")
        };
        for name in self.directory.names()? {
            if is_ours(&name) && state.key_files().all(|needed| needed != name) {
                self.directory.remove(&name)?;
            }
        }
        Ok(())
    }

    fn begin(&self, state: &State, now: Seconds) -> Result<Change, KeeperError> {
        let (root, key) = pki::new_root(&self.domain, state.next_id, self.rules.root_lifetime, now)?;
        let file = format!("root-{}-key.pem", root.id);
        Ok(Change { state: lifecycle::begin(state, root, None, now)?, keys: vec![(file, key)] })
    }

    fn sign(&self, state: &State, now: Seconds) -> Result<Change, KeeperError> {
        let rotation = state.rotation.as_ref().ok_or(Refusal::NotUnderWay)?;
        let (issuer, keys) = match rotation.pending.clone() {
            Some(pending) => {
                // It may be denied since it was brought.
                for (name, pem) in chain_of(&pending) {
                    if state.denies(&Subject::Key(pki::key_of(&name, pem)?)).is_some() {
                        return Err(KeeperError::BroughtDenied(name));
                    }
                }
                (Issuer { longest_leaf: self.rules.leaf_lifetime, ..pending }, Vec::new())
            }
            None => self.new_issuer(state, rotation.to, now)?,
        };
        Ok(Change { state: lifecycle::sign(state, issuer, now)?, keys })
    }

    fn replace_issuer(&self, state: &State, now: Seconds) -> Result<Change, KeeperError> {
        let (issuer, keys) = self.new_issuer(state, state.signing_root().id, now)?;
        Ok(Change { state: lifecycle::replace_issuer(state, issuer, now), keys })
    }

    fn rollback(&self, state: &State, now: Seconds) -> Result<Change, KeeperError> {
        match lifecycle::rollback(state, now)? {
            Rollback::Undo => Ok(lifecycle::undo(state, now)?.into()),
            Rollback::TurnBack(root) => {
                let (issuer, keys) = self.new_issuer(state, root, now)?;
                Ok(Change { state: lifecycle::turn_back(state, issuer, now)?, keys })
            }
        }
    }

    fn new_issuer(&self, state: &State, root: u32, now: Seconds) -> Result<(Issuer, Keys), KeeperError> {
        let root = state.root(root).ok_or_else(|| KeeperError::Missing(format!("root {root}")))?;
        if now >= root.not_after {
            return Err(Refusal::RootEnded(root.id).into());
        }
        let file = root.key_file.as_ref().ok_or(Refusal::NoKey(root.id))?;
        let root_key = self.directory.read(file)?.ok_or_else(|| KeeperError::Missing(file.clone()))?;
        let new = NewIssuer {
            domain: &self.domain,
            id: state.next_id,
            root,
            root_key: &root_key,
            lifetime: self.rules.issuer_lifetime,
            longest_leaf: self.rules.leaf_lifetime,
        };
        let (issuer, key) = pki::new_issuer(&new, now)?;
        let keys = vec![(issuer.key_file.clone(), key)];
        Ok((issuer, keys))
    }

    fn create(&self, brought: Option<&Brought>, now: Seconds) -> Result<Change, KeeperError> {
        let (root, issuer, keys) = match brought {
            Some(brought) => {
                let issuer = brought.issuer(2, 1, self.rules.leaf_lifetime, now);
                let keys = vec![(issuer.key_file.clone(), brought.key_pem.clone())];
                (brought.root(1), issuer, keys)
            }
            None => self.create_own(now)?,
        };
        Ok(Change { state: self.first_state(root, issuer), keys })
    }

    fn create_own(&self, now: Seconds) -> Result<(Root, Issuer, Keys), KeeperError> {
        let (root, root_key) = pki::new_root(&self.domain, 1, self.rules.root_lifetime, now)?;
        let new = NewIssuer {
            domain: &self.domain,
            id: 2,
            root: &root,
            root_key: &root_key,
            lifetime: self.rules.issuer_lifetime,
            longest_leaf: self.rules.leaf_lifetime,
        };
        let (issuer, issuer_key) = pki::new_issuer(&new, now)?;
        let root_file = root.key_file.clone().unwrap_or_default();
        let keys = vec![(root_file, root_key), (issuer.key_file.clone(), issuer_key)];
        Ok((root, issuer, keys))
    }

    fn first_state(&self, root: Root, issuer: Issuer) -> State {
        State {
            version: VERSION,
            trust_domain: self.domain.as_str().into(),
            generation: 1,
            next_id: 3,
            roots: vec![Root { r#use: RootUse::Signing, ..root }],
            issuers: vec![issuer],
            rotation: None,
            denied: Vec::new(),
            last_rotation: None,
            dropped: Vec::new(),
            declined: None,
        }
    }

    /// The four files of the program before `state.json`: generation 1 of this one.
    fn take_over(&self) -> Result<State, KeeperError> {
        let read = |name: &str| self.directory.read(name)?.ok_or_else(|| KeeperError::Missing(name.into()));
        let (root_pem, issuer_pem) = (read(BUNDLE_FILE)?, read(ISSUER_FILE)?);
        let (root_der, issuer_der) =
            (pki::read_certificate(BUNDLE_FILE, &root_pem)?, pki::read_certificate(ISSUER_FILE, &issuer_pem)?);
        let (root, issuer) = (pki::parse(BUNDLE_FILE, &root_der)?, pki::parse(ISSUER_FILE, &issuer_der)?);
        for (key, certificate, name) in [("root-key.pem", &root, BUNDLE_FILE), ("issuer-key.pem", &issuer, ISSUER_FILE)]
        {
            if !pki::is_pair(certificate, &pki::read_key(key, &read(key)?)?) {
                return Err(PkiError::KeyMismatch { key: key.into(), certificate: name.into() }.into());
            }
        }
        if issuer.verify_signature(Some(root.public_key())).is_err() {
            return Err(PkiError::NotSignedBy { certificate: ISSUER_FILE.into(), above: BUNDLE_FILE.into() }.into());
        }
        let organization = root.subject().iter_organization().next().and_then(|name| name.as_str().ok());
        if organization != Some(self.domain.as_str()) {
            let found = organization.unwrap_or("(none)").to_owned();
            return Err(KeeperError::TrustDomain { expected: self.domain.clone(), found });
        }
        let validity = |certificate: &x509_parser::certificate::X509Certificate<'_>| {
            (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp())
        };
        let ((root_begins, root_ends), (issuer_begins, issuer_ends)) = (validity(&root), validity(&issuer));
        let root = Root {
            id: 1,
            r#use: RootUse::Signing,
            sha256: pki::sha256(&root_der),
            certificate: root_pem,
            not_before: root_begins,
            not_after: root_ends,
            key_file: Some("root-key.pem".into()),
        };
        let issuer = Issuer {
            id: 2,
            root: 1,
            sha256: pki::sha256(&issuer_der),
            chain: vec![issuer_pem],
            not_before: issuer_begins,
            not_after: issuer_ends,
            key_file: "issuer-key.pem".into(),
            created: issuer_begins.saturating_add(pki::BACKDATE.whole_seconds()),
            brought: false,
            longest_leaf: EARLIER_LEAF_MAX,
            leaves_end: None,
        };
        Ok(self.first_state(root, issuer))
    }
}

/// The key of a root, unless another root of the bundle has the same. Refused when it is in the chain of an issuer that
/// stays, as it is where one root has signed another: peers would deny whatever is under that issuer.
fn key_alone(state: &State, sha256: &Sha256) -> Result<Option<Sha256>, KeeperError> {
    // The root that signs is never dropped: `lifecycle::drop_root` says so.
    let may_go = |root: &&Root| root.sha256 == *sha256 && root.r#use != RootUse::Signing;
    let Some(root) = state.roots.iter().find(may_go) else { return Ok(None) };
    let key_of = |root: &Root| pki::key_of(&format!("root {}", root.id), &root.certificate);
    let key = key_of(root)?;
    for other in state.roots.iter().filter(|other| other.id != root.id) {
        if key_of(other)? == key {
            return Ok(None);
        }
    }
    let staying = state.issuers.iter().chain(pending(state)).filter(|issuer| issuer.root != root.id);
    refuse_key_of(&key, staying.flat_map(chain_of))?;
    Ok(Some(key))
}

/// The issuer that signs next.
fn pending(state: &State) -> Option<&Issuer> {
    state.rotation.as_ref()?.pending.as_ref()
}

/// The certificates of a chain, with the name of the issuer.
fn chain_of(issuer: &Issuer) -> impl Iterator<Item = (String, &String)> {
    issuer.chain.iter().map(|pem| (format!("issuer {}", issuer.id), pem))
}

fn refuse_key_of<'a>(
    key: &Sha256,
    certificates: impl Iterator<Item = (String, &'a String)>,
) -> Result<(), KeeperError> {
    for (name, pem) in certificates {
        if pki::key_of(&name, pem)? == *key {
            return Err(Refusal::KeySigns(name).into());
        }
    }
    Ok(())
}

/// Peers deny what a denied key has signed: so it is none of those under which everybody is.
fn refuse_own_key(state: &State, subject: &Subject, now: Seconds) -> Result<(), KeeperError> {
    let Subject::Key(key) = subject else { return Ok(()) };
    let roots = state.roots.iter().map(|root| (format!("root {}", root.id), &root.certificate));
    let issuers = [state.signing(), lifecycle::serving(state, now)].into_iter().chain(pending(state));
    refuse_key_of(key, roots.chain(issuers.flat_map(chain_of)))
}

/// True when the issuer signs, is about to, or was declined.
fn is_known(state: &State, brought: &Brought) -> bool {
    let pending = state.rotation.iter().filter_map(|rotation| rotation.pending.as_ref());
    let known = pending.chain([state.signing()]).map(|issuer| issuer.sha256).chain(state.declined);
    known.into_iter().any(|known| known == brought.sha256)
}
