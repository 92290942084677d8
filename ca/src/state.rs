//! What the authority knows and must never forget: roots, issuers, the stage of a rotation, who is denied.
//!
//! One value, one file (`state.json`), replaced whole: a change is in force when, and only when, that file has it.
//! Certificates stand in it; keys stand in files of their own, written before the state that names them. Promises: what
//! was read keeps the invariants of [`State::check`]; every change makes a larger generation, so that a proxy can tell.
//! Leaves to others: when something changes (`lifecycle`), certificates and keys (`pki`), the disk (`store`).

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name of the file.
pub const FILE: &str = "state.json";
/// The version of the file's format that this program writes, and the only one it reads.
pub const VERSION: u32 = 1;
/// A state larger than this is refused at the change that would make it so; a directory's reader takes twice as much.
const BYTES_MAX: usize = 512 << 10;

/// Seconds since 1970 UTC.
pub type Seconds = i64;

/// Why a text is not a state, or a state cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not JSON of our shape.
    #[error("{FILE} cannot be read")]
    Syntax(#[from] serde_json::Error),
    /// Written by another version of the program.
    #[error("{FILE} has the format {found}, this program knows {VERSION}")]
    Version {
        /// What the file says.
        found: u32,
    },
    /// Contradicts itself.
    #[error("{FILE} contradicts itself: {0}")]
    Contradiction(&'static str),
    /// Larger than may be.
    #[error("the state would have {0} bytes, more than {BYTES_MAX}: lift denials that are not needed any more")]
    TooLarge(usize),
}

/// A SHA-256 digest, written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256(pub [u8; 32]);

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// Bytes in hexadecimal. Each issuance writes several, and `format!` takes microseconds for one.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Sha256 {
    type Err = ();

    /// 64 hexadecimal digits, upper case and colons (as openssl prints them) allowed.
    fn from_str(text: &str) -> Result<Self, ()> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
        if digits.len() != 64 || !digits.is_ascii() {
            return Err(());
        }
        let mut bytes = [0; 32];
        for (byte, two) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| two.get(at).and_then(|digit| char::from(*digit).to_digit(16)).ok_or(());
            *byte = u8::try_from(digit(0)? << 4 | digit(1)?).map_err(|_| ())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Sha256 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|()| serde::de::Error::custom("not a SHA-256 in hexadecimal"))
    }
}

/// What a root is for at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RootUse {
    /// In the bundle, and signs nothing yet.
    Trusted,
    /// Its issuer signs leaves.
    Signing,
    /// Signs no more; in the bundle until the last leaf under it has ended.
    Old,
}

/// A root of the trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Root {
    /// Grows with each root and issuer; never used twice.
    pub id: u32,
    /// What it is for.
    pub r#use: RootUse,
    /// The certificate, PEM.
    pub certificate: String,
    /// Digest of its DER.
    pub sha256: Sha256,
    /// First second of validity.
    pub not_before: Seconds,
    /// Last second of validity.
    pub not_after: Seconds,
    /// The file with its key; none when it was brought from outside.
    pub key_file: Option<String>,
}

/// An issuer: what signs leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Issuer {
    /// See [`Root::id`].
    pub id: u32,
    /// The root it leads to.
    pub root: u32,
    /// The issuer's certificate and those between it and its root, PEM; empty never.
    pub chain: Vec<String>,
    /// Digest of the DER of the issuer's own certificate.
    pub sha256: Sha256,
    /// First second of validity.
    pub not_before: Seconds,
    /// Last second of validity; no leaf lives longer.
    pub not_after: Seconds,
    /// The file with its key.
    pub key_file: String,
    /// When it came here; its certificate may be backdated.
    pub created: Seconds,
    /// True when an operator brought it.
    pub brought: bool,
    /// The longest lifetime of a leaf that any process may have granted under it, in seconds.
    pub longest_leaf: Seconds,
    /// Once it signs no more: no leaf under it is valid after this.
    pub leaves_end: Option<Seconds>,
}

/// How far a root rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Both roots are in the bundle, the old one signs: until every live proxy has the new one in use.
    Distribute,
    /// The new root signs: until every live proxy shows a certificate under it and the last old leaf has ended.
    Sign,
}

impl Stage {
    /// The name in documents and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Distribute => "distribute",
            Self::Sign => "sign",
        }
    }
}

/// A root rotation under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rotation {
    /// How far it is.
    pub stage: Stage,
    /// The root that goes.
    pub from: u32,
    /// The root that comes.
    pub to: u32,
    /// When the rotation began.
    pub started: Seconds,
    /// When this stage began.
    pub since: Seconds,
    /// The generation that this stage began with.
    pub generation: u64,
    /// True when an operator said that this stage need not wait for proxies.
    pub overridden: bool,
    /// True when an operator turned it round after the new root had signed.
    pub rolling_back: bool,
    /// The issuer that an operator brought together with the new root.
    pub pending: Option<Issuer>,
}

/// Who is denied.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Subject {
    /// A leaf, by its serial number.
    Serial(String),
    /// A SPIFFE ID.
    Identity(String),
    /// A public key, by the digest of its SubjectPublicKeyInfo (DER).
    Key(Sha256),
    /// A pod, by its uid: refused here, unknown to peers.
    PodUid(String),
}

/// One entry of the deny list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Denied {
    /// Who.
    pub subject: Subject,
    /// Why, for people.
    pub reason: String,
    /// Since when.
    pub since: Seconds,
    /// When it says nothing any more, because the leaf has ended.
    pub until: Option<Seconds>,
}

/// The end of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The new issuer signs.
    IssuerRotated,
    /// The old root is gone.
    RootRotated,
    /// The new root is gone.
    RootRolledBack,
    /// An operator took a root out before its time.
    RootDropped,
}

/// The last rotation that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// When.
    pub at: Seconds,
    /// Where an earlier program had what is in [`State::dropped`]; always `None` in a state that was read.
    #[serde(default, skip_serializing)]
    pub dropped: Option<Dropped>,
}

/// A root that was taken out before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dropped {
    /// Its number.
    pub root: u32,
    /// Digest of its certificate.
    pub sha256: Sha256,
    /// When the last leaf under it ends, which nobody accepts any more.
    pub leaves_end: Seconds,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct State {
    /// See [`VERSION`].
    pub version: u32,
    /// Whose roots these are.
    pub trust_domain: String,
    /// Grows with each change that proxies must learn of.
    pub generation: u64,
    /// The next free id.
    pub next_id: u32,
    /// The trust bundle, oldest first.
    pub roots: Vec<Root>,
    /// Oldest first; exactly one signs.
    pub issuers: Vec<Issuer>,
    /// The root rotation under way.
    pub rotation: Option<Rotation>,
    /// The deny list, in the order in which it came to be.
    pub denied: Vec<Denied>,
    /// The last rotation that ended.
    pub last_rotation: Option<Ended>,
    /// Roots that an operator took out before their time, until the last leaf under them has ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<Dropped>,
    /// An issuer from outside that an operator rolled back: it is not taken again by itself.
    pub declined: Option<Sha256>,
}

impl State {
    /// Reads the file's text.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn parse(text: &str) -> Result<Self, StateError> {
        /// What every version has.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_str(text)?;
        if version != VERSION {
            return Err(StateError::Version { found: version });
        }
        let mut state: Self = serde_json::from_str(text)?;
        if let Some(dropped) = state.last_rotation.as_mut().and_then(|ended| ended.dropped.take())
            && !state.dropped.contains(&dropped)
        {
            state.dropped.push(dropped);
        }
        state.check()?;
        Ok(state)
    }

    /// The file's text.
    ///
    /// # Errors
    /// When it would contradict itself or be too large: nothing must be written then.
    pub fn to_text(&self) -> Result<String, StateError> {
        self.check()?;
        let text = serde_json::to_string_pretty(self)? + "\n";
        if text.len() > BYTES_MAX { Err(StateError::TooLarge(text.len())) } else { Ok(text) }
    }

    /// What is always true of a state: one root signs and one issuer, which is under that root; a rotation names two
    /// roots that are there.
    ///
    /// # Errors
    /// Names what is not true.
    pub fn check(&self) -> Result<(), StateError> {
        let wrong = |what| Err(StateError::Contradiction(what));
        let mut signing_roots = self.roots.iter().filter(|root| root.r#use == RootUse::Signing);
        let (Some(root), None) = (signing_roots.next(), signing_roots.next()) else {
            return wrong("not exactly one root signs");
        };
        let mut signing = self.issuers.iter().filter(|issuer| issuer.leaves_end.is_none());
        let (Some(issuer), None) = (signing.next(), signing.next()) else {
            return wrong("not exactly one issuer signs");
        };
        if issuer.root != root.id {
            return wrong("the issuer that signs is not under the root that signs");
        }
        if self.issuers.iter().any(|issuer| self.root(issuer.root).is_none() || issuer.chain.is_empty()) {
            return wrong("an issuer has no root or no certificate");
        }
        let ids = || self.roots.iter().map(|root| root.id).chain(self.issuers.iter().map(|issuer| issuer.id));
        if ids().any(|id| id >= self.next_id) || ids().any(|id| ids().filter(|other| *other == id).count() > 1) {
            return wrong("an id stands twice, or is not below the next one");
        }
        let use_of = |id| self.root(id).map(|root| root.r#use);
        let fits = |rotation: &Rotation| match rotation.stage {
            Stage::Distribute => {
                use_of(rotation.from) == Some(RootUse::Signing) && use_of(rotation.to) == Some(RootUse::Trusted)
            }
            Stage::Sign => use_of(rotation.from) == Some(RootUse::Old) && use_of(rotation.to) == Some(RootUse::Signing),
        };
        match &self.rotation {
            Some(rotation) if !fits(rotation) => wrong("the rotation's stage does not fit its roots"),
            None if self.roots.len() != 1 => wrong("there is more than one root and no rotation"),
            Some(_) if self.roots.len() != 2 => wrong("a rotation is between exactly two roots"),
            Some(_) | None => Ok(()),
        }
    }

    /// The root with this id.
    pub fn root(&self, id: u32) -> Option<&Root> {
        self.roots.iter().find(|root| root.id == id)
    }

    /// The issuer that signs.
    pub fn signing(&self) -> &Issuer {
        self.issuers.iter().find(|issuer| issuer.leaves_end.is_none()).expect("a checked state has one")
    }

    /// The root that signs.
    pub fn signing_root(&self) -> &Root {
        self.roots.iter().find(|root| root.r#use == RootUse::Signing).expect("a checked state has one")
    }

    /// The root under which the issuer with this digest is, if the issuer is still known.
    pub fn root_of(&self, issuer: &Sha256) -> Option<u32> {
        self.issuers.iter().find(|known| known.sha256 == *issuer).map(|known| known.root)
    }

    /// The files of keys that this state needs.
    pub fn key_files(&self) -> impl Iterator<Item = &str> {
        let pending = self.rotation.iter().filter_map(|rotation| rotation.pending.as_ref());
        let issuers = self.issuers.iter().chain(pending).map(|issuer| issuer.key_file.as_str());
        self.roots.iter().filter_map(|root| root.key_file.as_deref()).chain(issuers)
    }

    /// The trust bundle as a file.
    pub fn bundle_pem(&self) -> String {
        self.roots.iter().map(|root| root.certificate.as_str()).collect()
    }

    /// True when one of these is denied.
    pub fn denies(&self, subject: &Subject) -> Option<&Denied> {
        self.denied.iter().find(|denied| denied.subject == *subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::state;

    #[test]
    fn a_state_survives_its_file() {
        let mut state = state();
        state.denied.push(Denied {
            subject: Subject::Identity("spiffe://td/ns/a/sa/b".into()),
            reason: "left".into(),
            since: 5,
            until: None,
        });
        assert_eq!(State::parse(&state.to_text().unwrap()).unwrap(), state);
        assert_eq!(state.key_files().collect::<Vec<_>>(), ["root-1-key.pem", "issuer-2-key.pem"]);
    }

    #[test]
    fn the_first_format_is_read_for_good() {
        let state = State::parse(include_str!("../tests/fixtures/state-v1.json")).unwrap();
        assert_eq!((state.generation, state.roots.len(), state.issuers.len(), state.denied.len()), (7, 2, 3, 4));
        let rotation = state.rotation.as_ref().unwrap();
        assert_eq!((rotation.stage, rotation.from, rotation.to), (Stage::Sign, 1, 4));
        assert_eq!(state.signing().id, 5);
    }

    #[test]
    fn a_root_that_an_earlier_program_dropped_is_still_known() {
        let mut state = state();
        let ended = Ended { outcome: Outcome::RootDropped, at: 5, dropped: None };
        state.last_rotation = Some(ended);
        let digest = Sha256([7; 32]);
        let now = state.to_text().unwrap();
        let earlier = now.replacen(
            "\"at\": 5",
            &format!("\"at\": 5, \"dropped\": {{\"root\": 1, \"sha256\": \"{digest}\", \"leavesEnd\": 9}}"),
            1,
        );
        assert_ne!(earlier, now);
        state.dropped.push(Dropped { root: 1, sha256: digest, leaves_end: 9 });
        assert_eq!(State::parse(&earlier).unwrap(), state);
        assert_eq!(State::parse(&state.to_text().unwrap()).unwrap(), state);
    }

    #[test]
    fn what_is_no_state_is_refused() {
        assert!(matches!(State::parse("{"), Err(StateError::Syntax(_))));
        let text = state().to_text().unwrap();
        let newer = text.replacen("\"version\": 1", "\"version\": 2", 1);
        assert!(matches!(State::parse(&newer), Err(StateError::Version { found: 2 })));
        let unknown = text.replacen("\"version\": 1", "\"version\": 1, \"extra\": 0", 1);
        assert!(matches!(State::parse(&unknown), Err(StateError::Syntax(_))));
        let changes: [fn(&mut State); 7] = [
            |state| state.roots[0].r#use = RootUse::Old,
            |state| state.issuers[0].leaves_end = Some(1),
            |state| state.issuers[0].root = 9,
            |state| state.issuers[0].chain.clear(),
            |state| state.next_id = 2,
            |state| {
                let more = Root { id: 0, r#use: RootUse::Signing, ..state.roots[0].clone() };
                state.roots.push(more);
            },
            |state| {
                let more = Root { id: 0, r#use: RootUse::Old, ..state.roots[0].clone() };
                state.roots.push(more);
            },
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut state = state();
            change(&mut state);
            assert!(matches!(state.to_text(), Err(StateError::Contradiction(_))), "change {number}");
        }
        let mut large = state();
        let denied = |number: u32| Denied {
            subject: Subject::Identity(format!("spiffe://td/ns/{}/sa/{number}", "n".repeat(1000))),
            reason: String::new(),
            since: 0,
            until: None,
        };
        large.denied = (0..1000).map(denied).collect();
        assert!(matches!(large.to_text(), Err(StateError::TooLarge(_))));
    }

    #[test]
    fn digests_are_read_as_openssl_prints_them() {
        let digest = Sha256([0xab; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!("AB:".repeat(32).trim_end_matches(':').parse(), Ok(digest));
        for bad in ["", "ab", &"zz".repeat(32), &"ab".repeat(33), &"é".repeat(32)] {
            assert_eq!(bad.parse::<Sha256>(), Err(()), "{bad}");
        }
    }
}
