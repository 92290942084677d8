//! When roots and issuers change: the rotation's stages as functions from a state, what proxies say, and the time.
//!
//! Promises, each held by `lifecycle_tests` over random histories: at any time one root signs; unless an operator takes
//! it out, a root stays in the bundle for as long as a leaf under it may be valid; unless an operator overrides, the root
//! that signs is one that every live proxy trusts. [`next`] says what is due, [`waits`] what a stage waits for, the others make the change.
//! Nothing here reads a clock, a file or a random number. Leaves to others: new keys and certificates (`pki`), and that
//! a change is on the disk before anybody sees it (`keeper`).

use crate::pki;
use crate::state::{
    Denied, Dropped, Ended, Issuer, Outcome, Root, RootUse, Rotation, Seconds, Sha256, Stage, State, Subject,
};

/// For how long a process may go on with a state that it has not looked at again.
pub const LEASE: Seconds = 2;
/// Between the last leaf's end and the drop of its root: our own serving certificate has moved by then.
pub const SETTLE: Seconds = 2;
/// More entries than this are no deny list but a broken one.
pub const DENIED_MAX: usize = 1000;

/// What an operator has set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The longest lifetime of a leaf.
    pub leaf_lifetime: Seconds,
    /// The lifetime of an issuer.
    pub issuer_lifetime: Seconds,
    /// The share of its life after which an issuer is replaced.
    pub issuer_rotate_percent: u8,
    /// The lifetime of a root.
    pub root_lifetime: Seconds,
    /// A root whose remaining life falls below this is replaced.
    pub root_rotate_below: Seconds,
    /// For how long a proxy that is away is waited for.
    pub absence_window: Seconds,
    /// After this long in one stage, somebody should look.
    pub stuck_after: Seconds,
    /// True when the issuer comes from outside: none is made here, and no root.
    pub brought: bool,
}

impl Default for Rules {
    /// A root for ten years, an issuer for one; no leaf was granted yet, so their lifetime is 0 until somebody says more.
    fn default() -> Self {
        let day = 86400;
        Self {
            leaf_lifetime: 0,
            issuer_lifetime: 365 * day,
            issuer_rotate_percent: 66,
            root_lifetime: 3650 * day,
            root_rotate_below: 730 * day,
            absence_window: 600,
            stuck_after: 3600,
            brought: false,
        }
    }
}

/// What is known of one proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Who it is, for people.
    pub name: String,
    /// True while it has a stream open.
    pub connected: bool,
    /// When its stream began, or when it was first heard of.
    pub first_seen: Seconds,
    /// When it was last heard of; without meaning while it is connected.
    pub last_seen: Seconds,
    /// The generation that its new handshakes accept.
    pub generation: u64,
    /// Why it does not take a newer one; empty otherwise.
    pub refused: String,
    /// The issuer of the certificate that it uses, if it has one.
    pub issuer: Option<Sha256>,
    /// The end of that certificate; 0 without one.
    pub not_after: Seconds,
}

/// All that is known of the proxies.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Each that was heard of and may count.
    pub proxies: &'a [Proxy],
    /// Since when somebody has been listening without a break: who has not come back since then may still come.
    pub observing_since: Seconds,
}

/// One thing that a stage waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait<'a> {
    /// For proxies to come back after a start of the authority.
    Return {
        /// Until when.
        until: Seconds,
    },
    /// For a proxy to use the bundle with the new root.
    Acknowledgement {
        /// Which.
        proxy: &'a Proxy,
        /// The generation that it must use.
        generation: u64,
        /// Since when it is behind.
        since: Seconds,
    },
    /// For a proxy to show a certificate under the new root.
    Renewal {
        /// Which.
        proxy: &'a Proxy,
        /// Since when it is behind.
        since: Seconds,
    },
    /// For the last leaf under the old root to end.
    Leaves {
        /// Until when.
        until: Seconds,
    },
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new root is due: [`begin`].
    BeginRoot,
    /// The new root may sign: [`sign`].
    Sign,
    /// The old root may go: [`drop_old`].
    Drop,
    /// A new issuer is due: [`replace_issuer`].
    ReplaceIssuer,
    /// An issuer, a dropped root or a denial has no meaning any more: [`forget`].
    Forget,
}

/// Why a change is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// One rotation at a time.
    #[error("a root rotation is under way (stage {})", .0.as_str())]
    UnderWay(Stage),
    /// There is no rotation.
    #[error("no root rotation is under way")]
    NotUnderWay,
    /// Its key is gone, or never was here.
    #[error("the key of root {0} is not here: it was brought from outside")]
    NoKey(u32),
    /// The root has ended.
    #[error("root {0} has ended, nobody would accept what it signs")]
    RootEnded(u32),
    /// The issuer comes from outside.
    #[error("the issuer is brought from outside: replace its files instead")]
    Brought,
    /// It is not in the bundle.
    #[error("no root of the trust bundle has this SHA-256")]
    UnknownRoot,
    /// Everything would end with it.
    #[error("root {0} signs: rotate the root first, and drop this one once the new one signs")]
    RootSigns(u32),
    /// The list is full.
    #[error("the deny list has {DENIED_MAX} entries, no more are taken")]
    DenyListFull,
    /// Everybody would be denied with it.
    #[error(
        "this is the key of {0}: rotate first, then drop the root or deny the key of the issuer that signs no more"
    )]
    KeySigns(String),
    /// It stands there already.
    #[error("this is denied already")]
    DeniedAlready,
    /// It does not stand there.
    #[error("this is not denied")]
    NotDenied,
}

/// What is due now, if anything; to be asked again after each change.
pub fn next(state: &State, view: &View<'_>, rules: &Rules, now: Seconds) -> Option<Step> {
    if let Some(rotation) = &state.rotation
        && waits(state, view, rules, now).is_empty()
    {
        return Some(match rotation.stage {
            Stage::Distribute => Step::Sign,
            Stage::Sign => Step::Drop,
        });
    }
    if root_is_due(state, rules, now) {
        return Some(Step::BeginRoot);
    }
    if issuer_is_due(state, rules, now) {
        return Some(Step::ReplaceIssuer);
    }
    (forget(state, now) != *state).then_some(Step::Forget)
}

/// A root that has ended is not replaced without a person: either it was a long time, or the clock is wrong.
fn root_is_due(state: &State, rules: &Rules, now: Seconds) -> bool {
    let root = state.signing_root();
    let ends_soon = (0..rules.root_rotate_below).contains(&root.not_after.saturating_sub(now));
    !rules.brought && state.rotation.is_none() && ends_soon
}

fn issuer_is_due(state: &State, rules: &Rules, now: Seconds) -> bool {
    let (issuer, root) = (state.signing(), state.signing_root());
    if rules.brought || root.key_file.is_none() || now >= root.not_after {
        return false;
    }
    let life = issuer.not_after.saturating_sub(issuer.created);
    let share = life.saturating_mul(i64::from(rules.issuer_rotate_percent)) / 100;
    let due = issuer.created.saturating_add(share);
    // Near the end of the root a new issuer would end no later than the old one, and another would be due at once.
    let gained = now.saturating_add(rules.issuer_lifetime).min(root.not_after).saturating_sub(issuer.not_after);
    (now >= due || now >= issuer.not_after) && gained > rules.issuer_lifetime / 10
}

/// What the rotation's stage waits for; empty when it may go on, or when there is no rotation.
pub fn waits<'a>(state: &State, view: &View<'a>, rules: &Rules, now: Seconds) -> Vec<Wait<'a>> {
    let Some(rotation) = &state.rotation else { return Vec::new() };
    let mut waits = Vec::new();
    if !rotation.overridden {
        let until = view.observing_since.saturating_add(rules.absence_window);
        if now <= until {
            waits.push(Wait::Return { until });
        }
        let live = view.proxies.iter().filter(|proxy| is_live(proxy, state, rotation, rules, now));
        waits.extend(live.filter_map(|proxy| wait_for(proxy, state, rotation)));
    }
    if rotation.stage == Stage::Sign
        && let Some(end) = last_leaf_under(state, rotation.from)
        && now < end.saturating_add(SETTLE)
    {
        waits.push(Wait::Leaves { until: end });
    }
    waits
}

/// A proxy counts while it is connected; and, for as long as its leaf under another root than the new one is valid,
/// for the absence window after that.
fn is_live(proxy: &Proxy, state: &State, rotation: &Rotation, rules: &Rules, now: Seconds) -> bool {
    let root = proxy.issuer.as_ref().and_then(|issuer| state.root_of(issuer));
    let away = now.saturating_sub(proxy.last_seen);
    proxy.connected || (now < proxy.not_after && root != Some(rotation.to) && away <= rules.absence_window)
}

fn wait_for<'a>(proxy: &'a Proxy, state: &State, rotation: &Rotation) -> Option<Wait<'a>> {
    let since = rotation.since.max(proxy.first_seen);
    match rotation.stage {
        Stage::Distribute => {
            // A generation that was never made is no acknowledgement of ours.
            let acknowledged = (rotation.generation..=state.generation).contains(&proxy.generation);
            let generation = rotation.generation;
            (!acknowledged).then_some(Wait::Acknowledgement { proxy, generation, since })
        }
        Stage::Sign => {
            let root = proxy.issuer.as_ref().and_then(|issuer| state.root_of(issuer));
            (root != Some(rotation.to)).then_some(Wait::Renewal { proxy, since })
        }
    }
}

/// The end of the last leaf under a root that signs no more.
fn last_leaf_under(state: &State, root: u32) -> Option<Seconds> {
    state.issuers.iter().filter(|issuer| issuer.root == root).filter_map(|issuer| issuer.leaves_end).max()
}

/// True when somebody should look at the rotation.
pub fn is_stuck(state: &State, rules: &Rules, now: Seconds) -> bool {
    state.rotation.as_ref().is_some_and(|rotation| {
        let leaves = match rotation.stage {
            Stage::Distribute => None,
            Stage::Sign => last_leaf_under(state, rotation.from),
        };
        let expected = leaves.unwrap_or(rotation.since).max(rotation.since);
        now > expected.saturating_add(rules.stuck_after)
    })
}

/// The issuer of our own serving certificate: under the oldest root under which leaves are valid still, because every
/// proxy, however far behind, trusts that one. Never one that is denied, which nobody trusts.
pub fn serving(state: &State, now: Seconds) -> &Issuer {
    let oldest = state.roots.iter().filter(|root| root.r#use != RootUse::Trusted).min_by_key(|root| root.id);
    let under = |root: &Root| {
        let good = |issuer: &&Issuer| {
            issuer.root == root.id && issuer.leaves_end.is_none_or(|end| now < end) && !is_denied(state, issuer)
        };
        state.issuers.iter().rfind(good)
    };
    oldest.and_then(under).unwrap_or_else(|| state.signing())
}

/// True when peers refuse whatever is under it. One that signs is never denied: the keeper sees to that.
fn is_denied(state: &State, issuer: &Issuer) -> bool {
    let keys_are_denied = state.denied.iter().any(|denied| matches!(denied.subject, Subject::Key(_)));
    // One that cannot be read cannot be loaded, either.
    let mut keys = issuer.chain.iter().filter_map(|pem| pki::key_of("an issuer", pem).ok());
    keys_are_denied && keys.any(|key| state.denies(&Subject::Key(key)).is_some())
}

/// Stage one: `root` joins the bundle. `pending` is its issuer, when an operator brought both.
///
/// # Errors
/// When a rotation is under way.
pub fn begin(state: &State, root: Root, pending: Option<Issuer>, now: Seconds) -> Result<State, Refusal> {
    if let Some(rotation) = &state.rotation {
        return Err(Refusal::UnderWay(rotation.stage));
    }
    let mut state = changed(state);
    let last_id = pending.as_ref().map_or(root.id, |issuer| issuer.id.max(root.id));
    state.next_id = state.next_id.max(last_id.saturating_add(1));
    state.rotation = Some(Rotation {
        stage: Stage::Distribute,
        from: state.signing_root().id,
        to: root.id,
        started: now,
        since: now,
        generation: state.generation,
        overridden: false,
        rolling_back: false,
        pending,
    });
    state.roots.push(Root { r#use: RootUse::Trusted, ..root });
    Ok(state)
}

/// Stage two: the new root signs, through `issuer`.
///
/// # Errors
/// When no rotation is in stage one.
pub fn sign(state: &State, issuer: Issuer, now: Seconds) -> Result<State, Refusal> {
    let rotation = state.rotation.as_ref().ok_or(Refusal::NotUnderWay)?;
    match rotation.stage {
        Stage::Distribute => Ok(turn(state, rotation, rotation.from, rotation.to, issuer, rotation.rolling_back, now)),
        Stage::Sign => Err(Refusal::UnderWay(rotation.stage)),
    }
}

/// From now on `to` signs and `from` goes.
fn turn(
    state: &State,
    rotation: &Rotation,
    from: u32,
    to: u32,
    issuer: Issuer,
    rolling_back: bool,
    now: Seconds,
) -> State {
    let mut state = with_issuer(state, issuer, now);
    for root in &mut state.roots {
        root.r#use = if root.id == to { RootUse::Signing } else { RootUse::Old };
    }
    let generation = state.generation;
    let (started, since, overridden) = (rotation.started, now, false);
    state.rotation = Some(Rotation {
        stage: Stage::Sign,
        from,
        to,
        started,
        since,
        generation,
        overridden,
        rolling_back,
        pending: None,
    });
    state
}

/// The last act: the old root and its issuers are gone.
///
/// # Errors
/// When no rotation is in stage two.
pub fn drop_old(state: &State, now: Seconds) -> Result<State, Refusal> {
    let rotation = state.rotation.as_ref().ok_or(Refusal::NotUnderWay)?;
    if rotation.stage != Stage::Sign {
        return Err(Refusal::UnderWay(rotation.stage));
    }
    let (from, rolled_back) = (rotation.from, rotation.rolling_back);
    let mut state = without_root(state, from);
    let outcome = if rolled_back { Outcome::RootRolledBack } else { Outcome::RootRotated };
    state.last_rotation = Some(Ended { outcome, at: now, dropped: None });
    Ok(state)
}

/// An operator takes a root out at once, though leaves under it may be valid: who has its key must prove nothing with it
/// any more. Never the one that signs. `key`, the digest of its public key, is denied, so that proxies cut what was proved
/// with it; `None` when a root that stays has the same.
///
/// # Errors
/// When it is not in the bundle, or signs.
pub fn drop_root(state: &State, sha256: &Sha256, key: Option<Sha256>, now: Seconds) -> Result<State, Refusal> {
    let root = state.roots.iter().find(|root| root.sha256 == *sha256).ok_or(Refusal::UnknownRoot)?;
    if root.r#use == RootUse::Signing {
        return Err(Refusal::RootSigns(root.id));
    }
    let dropped =
        Dropped { root: root.id, sha256: *sha256, leaves_end: last_leaf_under(state, root.id).unwrap_or(now) };
    let pending = state.rotation.as_ref().and_then(|rotation| rotation.pending.as_ref());
    let declined = pending.map(|issuer| issuer.sha256).or(state.declined);
    let mut state = without_root(state, root.id);
    state.declined = declined;
    state.last_rotation = Some(Ended { outcome: Outcome::RootDropped, at: now, dropped: None });
    state.dropped.push(dropped);
    let subject = key.map(Subject::Key).filter(|key| state.denies(key).is_none());
    // Also on a list that is full: it is little, and it is urgent.
    state.denied.extend(subject.map(|subject| {
        let reason = format!("root {} was dropped before its time", dropped.root);
        Denied { subject, reason, since: now, until: None }
    }));
    Ok(state)
}

/// What a rollback needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollback {
    /// Nothing: the new root has signed nothing. [`undo`] it.
    Undo,
    /// A new issuer under this root, which signs again. [`turn_back`].
    TurnBack(u32),
}

/// Whether and how the rotation can be rolled back.
///
/// # Errors
/// When there is none, or the old root cannot sign again.
pub fn rollback(state: &State, now: Seconds) -> Result<Rollback, Refusal> {
    let rotation = state.rotation.as_ref().ok_or(Refusal::NotUnderWay)?;
    if rotation.stage == Stage::Distribute {
        return Ok(Rollback::Undo);
    }
    let old = state.root(rotation.from).ok_or(Refusal::NoKey(rotation.from))?;
    if old.key_file.is_none() {
        return Err(Refusal::NoKey(old.id));
    }
    if now >= old.not_after { Err(Refusal::RootEnded(old.id)) } else { Ok(Rollback::TurnBack(old.id)) }
}

/// Takes a root out that has signed nothing yet.
///
/// # Errors
/// When no rotation is in stage one.
pub fn undo(state: &State, now: Seconds) -> Result<State, Refusal> {
    let rotation = state.rotation.as_ref().ok_or(Refusal::NotUnderWay)?;
    if rotation.stage != Stage::Distribute {
        return Err(Refusal::UnderWay(rotation.stage));
    }
    let declined = rotation.pending.as_ref().map(|issuer| issuer.sha256).or(state.declined);
    let mut state = without_root(state, rotation.to);
    state.declined = declined;
    state.last_rotation = Some(Ended { outcome: Outcome::RootRolledBack, at: now, dropped: None });
    Ok(state)
}

/// Turns a rotation round: the old root signs again, through `issuer`, and the new one goes the way of an old one.
///
/// # Errors
/// When no rotation is in stage two.
pub fn turn_back(state: &State, issuer: Issuer, now: Seconds) -> Result<State, Refusal> {
    let rotation = state.rotation.as_ref().ok_or(Refusal::NotUnderWay)?;
    if rotation.stage != Stage::Sign {
        return Err(Refusal::UnderWay(rotation.stage));
    }
    let brought = state.signing().brought.then_some(state.signing().sha256);
    let mut state = turn(state, rotation, rotation.to, rotation.from, issuer, !rotation.rolling_back, now);
    state.declined = brought.or(state.declined);
    Ok(state)
}

/// A new issuer under the root that signs.
pub fn replace_issuer(state: &State, issuer: Issuer, now: Seconds) -> State {
    let mut state = with_issuer(state, issuer, now);
    if state.rotation.is_none() {
        state.last_rotation = Some(Ended { outcome: Outcome::IssuerRotated, at: now, dropped: None });
    }
    state
}

/// An operator says that the stage need not wait for proxies; for leaves it still does.
///
/// # Errors
/// When there is no rotation.
pub fn override_stage(state: &State) -> Result<State, Refusal> {
    // Not a change that proxies learn of: the generation stays.
    let mut state = state.clone();
    state.rotation.as_mut().ok_or(Refusal::NotUnderWay)?.overridden = true;
    Ok(state)
}

/// Adds to the deny list. A serial number stands there for as long as its leaf may live.
///
/// # Errors
/// When it stands there, or the list is full.
pub fn deny(state: &State, subject: Subject, reason: String, now: Seconds) -> Result<State, Refusal> {
    if state.denies(&subject).is_some() {
        return Err(Refusal::DeniedAlready);
    }
    if state.denied.len() >= DENIED_MAX {
        return Err(Refusal::DenyListFull);
    }
    let longest = state.issuers.iter().map(|issuer| issuer.longest_leaf).max().unwrap_or(0);
    let until = match subject {
        Subject::Serial(_) => Some(now.saturating_add(longest).saturating_add(LEASE)),
        Subject::Identity(_) | Subject::Key(_) | Subject::PodUid(_) => None,
    };
    let mut state = changed(state);
    state.denied.push(Denied { subject, reason, since: now, until });
    Ok(state)
}

/// Takes from the deny list.
///
/// # Errors
/// When it does not stand there.
pub fn undeny(state: &State, subject: &Subject) -> Result<State, Refusal> {
    if state.denies(subject).is_none() {
        return Err(Refusal::NotDenied);
    }
    let mut state = changed(state);
    state.denied.retain(|denied| denied.subject != *subject);
    Ok(state)
}

/// Leaves under the issuer that signs may live this long from now on; must be on the disk before one does.
pub fn raise_longest_leaf(state: &State, lifetime: Seconds) -> State {
    let mut state = state.clone();
    let signing = state.issuers.iter_mut().find(|issuer| issuer.leaves_end.is_none());
    if let Some(signing) = signing {
        signing.longest_leaf = signing.longest_leaf.max(lifetime);
    }
    state
}

/// Without the issuers, dropped roots and denials that have no meaning any more.
pub fn forget(state: &State, now: Seconds) -> State {
    let mut kept = state.clone();
    kept.issuers.retain(|issuer| issuer.leaves_end.is_none_or(|end| now < end.saturating_add(SETTLE)));
    kept.dropped.retain(|dropped| now < dropped.leaves_end);
    kept.denied.retain(|denied| denied.until.is_none_or(|until| now < until));
    if kept.denied.len() < state.denied.len() {
        kept.generation = kept.generation.saturating_add(1);
    }
    kept
}

/// A change that proxies must learn of.
fn changed(state: &State) -> State {
    State { generation: state.generation.saturating_add(1), ..state.clone() }
}

/// `issuer` signs from now on; the one before it is closed.
fn with_issuer(state: &State, issuer: Issuer, now: Seconds) -> State {
    let mut state = changed(state);
    for old in state.issuers.iter_mut().filter(|old| old.leaves_end.is_none()) {
        let last = now.saturating_add(old.longest_leaf).saturating_add(LEASE);
        old.leaves_end = Some(last.min(old.not_after));
    }
    state.next_id = state.next_id.max(issuer.id.saturating_add(1));
    state.issuers.push(Issuer { leaves_end: None, ..issuer });
    state
}

/// The end of a rotation: one root fewer.
fn without_root(state: &State, id: u32) -> State {
    let mut state = changed(state);
    state.roots.retain(|root| root.id != id);
    state.issuers.retain(|issuer| issuer.root != id);
    state.rotation = None;
    state
}
