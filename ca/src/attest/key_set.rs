//! Attestation by a local set of public keys: tokens as Kubernetes projects them, verified without asking anybody.
//!
//! Promises: ES256 and RS256 only, and the algorithm comes from the key set and never from the token; issuer, audience,
//! expiry and beginning are required; a token that lives too long is refused; the subject is exactly
//! `system:serviceaccount:<namespace>:<name>`; each refusal has its reason. The file is read again when its content
//! changes, and a bad one changes nothing. No clock: the time is an argument.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;

use super::verified::{Says, Verified};
use super::{Attest, Caller, TokenError};
use crate::pki::sha256;

/// A ServiceAccount token has about 1 KiB.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// A key set has some KiB.
const FILE_BYTES_MAX: usize = 256 << 10;
/// How far our clock and the token issuer's may be apart, in seconds.
const LEEWAY_SECONDS: u64 = 30;
/// An RSA key below this is broken with money.
const RSA_BITS_MIN: usize = 2048;

/// Why the key set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// The file cannot be read.
    #[error("cannot read the key set {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is too large.
    #[error("the key set has {0} bytes, more than {FILE_BYTES_MAX}")]
    TooLarge(usize),
    /// Not a JSON Web Key Set (RFC 7517).
    #[error("the key set is not a JSON Web Key Set")]
    Syntax(#[from] serde_json::Error),
    /// It has no key.
    #[error("the key set is empty")]
    Empty,
    /// A key has no `kid`.
    #[error("key {0} of the set has no `kid`")]
    NoKeyId(usize),
    /// Two keys have the same `kid`.
    #[error("two keys of the set have the `kid` `{0}`")]
    Twice(String),
    /// A key is for neither of the two algorithms.
    #[error("key `{0}` of the set is not for RS256 or ES256")]
    Algorithm(String),
    /// An RSA key is too short.
    #[error("key `{0}` of the set has fewer than {RSA_BITS_MIN} bits")]
    Weak(String),
    /// A key cannot be read.
    #[error("key `{key_id}` of the set cannot be read")]
    Key {
        /// Its `kid`.
        key_id: String,
        /// What the reader says.
        #[source]
        source: jsonwebtoken::errors::Error,
    },
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: OneOrMany,
    exp: u64,
    nbf: u64,
    iat: Option<u64>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Object,
    pod: Option<Object>,
}

#[derive(Deserialize)]
struct Object {
    name: String,
    uid: Option<String>,
}

struct Key {
    id: String,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// What tokens are checked against, besides the keys.
#[derive(Clone, Debug)]
pub struct Expected {
    /// `iss`.
    pub issuer: String,
    /// One of `aud`.
    pub audience: String,
    /// From `nbf` to `exp` at most.
    pub lifetime_max: Duration,
    /// Whether a token must be bound to a pod, by name and uid.
    pub pod_required: bool,
}

/// The keys of one reading of the file, and the tokens that one of them has signed: with the keys goes what they vouched for.
struct Keys {
    keys: Vec<Key>,
    verified: Verified,
}

impl Keys {
    fn read(text: &[u8]) -> Result<Self, KeySetError> {
        Ok(Self { keys: read_keys(text)?, verified: Verified::default() })
    }
}

/// A key set in a file.
pub struct KeySet {
    path: PathBuf,
    expected: Expected,
    keys: ArcSwap<Keys>,
    seen: Mutex<Vec<u8>>,
}

impl KeySet {
    /// Reads the file.
    ///
    /// # Errors
    /// See [`KeySetError`].
    pub fn open(path: PathBuf, expected: Expected) -> Result<Self, KeySetError> {
        let text = read_file(&path)?;
        let keys = ArcSwap::from_pointee(Keys::read(&text)?);
        Ok(Self { path, expected, keys, seen: Mutex::new(text) })
    }

    /// Reads the file again; `true` when it was another one than before and is in use now.
    ///
    /// # Errors
    /// See [`KeySetError`]; one bad key refuses the whole set, and the last good one stays in use.
    pub fn reload(&self) -> Result<bool, KeySetError> {
        let text = read_file(&self.path)?;
        // The text is whole at any time.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == text {
            return Ok(false);
        }
        self.keys.store(Arc::new(Keys::read(&text)?));
        *seen = text;
        Ok(true)
    }

    fn check(&self, token: &str, now: u64) -> Result<Caller, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong(token.len()));
        }
        let (keys, digest) = (self.keys.load(), sha256(token.as_bytes()));
        if let Some(says) = keys.verified.get(&digest) {
            return check_time(says.begins, says.ended, now).map(|()| says.caller.clone());
        }
        let claims = verify_signature(&keys.keys, token)?;
        let expected = &self.expected;
        if claims.iss != expected.issuer {
            return Err(TokenError::Issuer { expected: expected.issuer.clone(), found: claims.iss });
        }
        let audiences = match claims.aud {
            OneOrMany::One(audience) => vec![audience],
            OneOrMany::Many(audiences) => audiences,
        };
        if !audiences.contains(&expected.audience) {
            return Err(TokenError::Audience { expected: expected.audience.clone(), found: audiences });
        }
        check_time(claims.nbf, claims.exp, now)?;
        let lifetime = claims.exp.saturating_sub(claims.iat.unwrap_or(claims.nbf).min(claims.nbf));
        let limit = expected.lifetime_max.as_secs();
        if lifetime > limit {
            return Err(TokenError::TooLongLived { lifetime, limit });
        }
        let caller = caller(&claims.sub, claims.kubernetes)?;
        if expected.pod_required && (caller.pod.is_none() || caller.pod_uid.is_none()) {
            return Err(TokenError::Unbound);
        }
        let says = Says { begins: claims.nbf, ended: claims.exp, caller: caller.clone() };
        keys.verified.remember(digest, token.len(), says);
        Ok(caller)
    }
}

fn check_time(begins: u64, ended: u64, now: u64) -> Result<(), TokenError> {
    if now >= ended.saturating_add(LEEWAY_SECONDS) {
        return Err(TokenError::Expired { ended, now });
    }
    if begins > now.saturating_add(LEEWAY_SECONDS) {
        return Err(TokenError::NotYetValid { begins, now });
    }
    Ok(())
}

fn verify_signature(keys: &[Key], token: &str) -> Result<Claims, TokenError> {
    use jsonwebtoken::errors::ErrorKind;
    let malformed = |error: jsonwebtoken::errors::Error| TokenError::Malformed(error.to_string());
    let header = decode_header(token).map_err(malformed)?;
    if header.crit.is_some() {
        // RFC 7515, section 4.1.11: what must be understood and is not.
        return Err(TokenError::Malformed("its header has `crit`".into()));
    }
    let key = keys.iter().find(|key| Some(&key.id) == header.kid.as_ref());
    let key = key.ok_or(TokenError::UnknownKey(header.kid))?;
    if header.alg != key.algorithm {
        return Err(TokenError::Algorithm { expected: key.algorithm, found: format!("{:?}", header.alg) });
    }
    // The claims are checked above, with a time that is an argument and with reasons.
    let mut signature_only = Validation::new(key.algorithm);
    signature_only.required_spec_claims.clear();
    signature_only.validate_exp = false;
    signature_only.validate_nbf = false;
    signature_only.validate_aud = false;
    let decoded = decode::<Claims>(token, &key.key, &signature_only).map_err(|error| {
        if matches!(error.kind(), ErrorKind::InvalidSignature) { TokenError::Signature } else { malformed(error) }
    });
    Ok(decoded?.claims)
}

fn caller(subject: &str, kubernetes: Option<Kubernetes>) -> Result<Caller, TokenError> {
    let mut parts = subject.split(':');
    let (Some("system"), Some("serviceaccount"), Some(namespace), Some(service_account), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenError::Subject(subject.into()));
    };
    if !is_kubernetes_name(namespace) || !is_kubernetes_name(service_account) {
        return Err(TokenError::Subject(subject.into()));
    }
    if let Some(bound) = &kubernetes
        && (bound.namespace != namespace || bound.serviceaccount.name != service_account)
    {
        return Err(TokenError::Contradiction);
    }
    let pod = kubernetes.and_then(|bound| bound.pod);
    let (pod, pod_uid) = pod.map_or((None, None), |pod| (Some(pod.name), pod.uid));
    Ok(Caller { namespace: namespace.into(), service_account: service_account.into(), pod, pod_uid })
}

/// A DNS subdomain name (RFC 1123), as Kubernetes demands of both parts.
fn is_kubernetes_name(name: &str) -> bool {
    let is_edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = name.as_bytes();
    bytes.len() <= 253
        && is_edge(bytes.first())
        && is_edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
}

fn read_file(path: &std::path::Path) -> Result<Vec<u8>, KeySetError> {
    let text = std::fs::read(path).map_err(|source| KeySetError::Io { path: path.into(), source })?;
    if text.len() > FILE_BYTES_MAX { Err(KeySetError::TooLarge(text.len())) } else { Ok(text) }
}

fn read_keys(text: &[u8]) -> Result<Vec<Key>, KeySetError> {
    let set: JwkSet = serde_json::from_slice(text)?;
    let mut keys: Vec<Key> = Vec::new();
    for (index, key) in set.keys.iter().enumerate() {
        let key = read_key(index, key)?;
        if keys.iter().any(|other| other.id == key.id) {
            return Err(KeySetError::Twice(key.id));
        }
        keys.push(key);
    }
    if keys.is_empty() { Err(KeySetError::Empty) } else { Ok(keys) }
}

fn read_key(index: usize, key: &Jwk) -> Result<Key, KeySetError> {
    let id = key.common.key_id.clone().ok_or(KeySetError::NoKeyId(index))?;
    let algorithm = algorithm(key).ok_or_else(|| KeySetError::Algorithm(id.clone()))?;
    if let AlgorithmParameters::RSA(rsa) = &key.algorithm
        // Six bits for each character of base64url; leading zeros are no bits of a key.
        && rsa.n.trim_start_matches('A').len() * 6 < RSA_BITS_MIN
    {
        return Err(KeySetError::Weak(id));
    }
    let read = DecodingKey::from_jwk(key).map_err(|source| KeySetError::Key { key_id: id.clone(), source })?;
    Ok(Key { id, algorithm, key: read })
}

/// What the key itself is for; shared secrets are not for us.
fn algorithm(key: &Jwk) -> Option<Algorithm> {
    let named = key.common.key_algorithm;
    match &key.algorithm {
        AlgorithmParameters::RSA(_) => matches!(named, None | Some(KeyAlgorithm::RS256)).then_some(Algorithm::RS256),
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
            matches!(named, None | Some(KeyAlgorithm::ES256)).then_some(Algorithm::ES256)
        }
        AlgorithmParameters::EllipticCurve(_)
        | AlgorithmParameters::OctetKey(_)
        | AlgorithmParameters::OctetKeyPair(_) => None,
    }
}

#[tonic::async_trait]
impl Attest for KeySet {
    async fn attest(&self, token: &str, now: u64) -> Result<Caller, TokenError> {
        self.check(token, now)
    }
}

#[cfg(test)]
#[path = "key_set_tests.rs"]
mod tests;
