//! Scratch directories, states and authorities for this crate's tests.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::authority::Authority;
use crate::lifecycle::Rules;
use crate::pki::{self, NewIssuer};
use crate::state::{Issuer, Root, RootUse, Seconds, Sha256, State, VERSION};

/// An authority with real keys, whose leaves live a day at most.
pub(crate) fn authority() -> Authority {
    authority_under_root().1
}

/// The same, with its root.
fn authority_under_root() -> (Root, Authority) {
    let (domain, now) = ("td".parse().unwrap(), time::OffsetDateTime::now_utc().unix_timestamp());
    let (root, root_key) = pki::new_root(&domain, 1, 3650 * 86400, now).unwrap();
    let new = NewIssuer {
        domain: &domain,
        id: 2,
        root: &root,
        root_key: &root_key,
        lifetime: 365 * 86400,
        longest_leaf: 86400,
    };
    let (issuer, key) = pki::new_issuer(&new, now).unwrap();
    let authority = Authority::assemble(&issuer, &root, &key).unwrap();
    (root, authority)
}

/// A root as PEM, and what an authority under it shows, with its identity.
pub(crate) fn serving() -> (String, rustls::sign::CertifiedKey, identity::SpiffeId) {
    let (root, authority) = authority_under_root();
    let (domain, now) = ("td".parse().unwrap(), time::OffsetDateTime::now_utc());
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let id = crate::policy::own_identity(&domain).unwrap();
    let hour = std::time::Duration::from_secs(3600);
    let leaf = crate::issue::sign(&authority, &key, &id, &[], hour, now).unwrap().der;
    let chain = vec![leaf, pki::read_certificate("the issuer", &authority.above[0]).unwrap()];
    let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    (root.certificate, rustls::sign::CertifiedKey::from_der(chain, key, &identity::provider()).unwrap(), id)
}

/// Base64 with the alphabet of URLs and without padding, as tokens have it.
pub(crate) fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..=three.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * place) & 63) as usize]));
        }
    }
    text
}

/// A signing request in PEM.
pub(crate) fn as_pem(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der))
}

/// What openssl prints; it must succeed.
pub(crate) fn openssl(arguments: &[&str]) -> String {
    let output = std::process::Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

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

/// Rules that go with [`state`].
pub(crate) fn rules() -> Rules {
    Rules {
        leaf_lifetime: 100,
        issuer_lifetime: 10_000,
        issuer_rotate_percent: 60,
        root_lifetime: 100_000,
        root_rotate_below: 20_000,
        absence_window: 30,
        stuck_after: 1000,
        brought: false,
    }
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
        dropped: Vec::new(),
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
