//! Scratch directories and plain states for this crate's tests.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::state::{Issuer, Root, RootUse, Seconds, Sha256, State, VERSION};

/// A root that nobody could verify, for tests of what happens around it.
pub(crate) fn root(id: u32, not_after: Seconds) -> Root {
    Root {
        id,
        r#use: RootUse::Trusted,
        certificate: format!("root {id}\n"),
        sha256: digest(id),
        not_before: 0,
        not_after,
        key_file: Some(format!("root-{id}-key.pem")),
    }
}

/// The same for an issuer.
pub(crate) fn issuer(id: u32, root: u32, created: Seconds, not_after: Seconds, longest_leaf: Seconds) -> Issuer {
    Issuer {
        id,
        root,
        chain: vec![format!("issuer {id}\n")],
        sha256: digest(id),
        not_before: created,
        not_after,
        key_file: format!("issuer-{id}-key.pem"),
        created,
        brought: false,
        longest_leaf,
        leaves_end: None,
    }
}

pub(crate) fn digest(id: u32) -> Sha256 {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&id.to_be_bytes());
    Sha256(bytes)
}

/// A state as a new authority has it at time 0: root 1 until 100 000, issuer 2 until 10 000, leaves of 100 s.
pub(crate) fn state() -> State {
    State {
        version: VERSION,
        trust_domain: "td".into(),
        generation: 1,
        next_id: 3,
        roots: vec![Root { r#use: RootUse::Signing, ..root(1, 100_000) }],
        issuers: vec![issuer(2, 1, 0, 10_000, 100)],
        rotation: None,
        denied: Vec::new(),
        last_rotation: None,
        declined: None,
    }
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A directory that goes away with the test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("picket-ca-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A directory that stays behind in the temporary place harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
