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
mod tests {
    use super::*;
    use crate::test_support::Scratch;
    use crate::token::{Claim, TokenKey};
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::{Value, json};

    const NOW: u64 = 1_800_000_000;

    fn claims() -> Value {
        json!({
            "iss": "https://issuer", "sub": "system:serviceaccount:demo:web", "aud": ["picket-ca"],
            "exp": NOW + 600, "nbf": NOW - 10, "iat": NOW - 10,
            "kubernetes.io": {
                "namespace": "demo", "serviceaccount": { "name": "web", "uid": "1" }, "pod": { "name": "web-0", "uid": "2" },
            },
        })
    }

    fn expected() -> Expected {
        Expected {
            issuer: "https://issuer".into(),
            audience: "picket-ca".into(),
            lifetime_max: Duration::from_secs(3600),
            pod_required: true,
        }
    }

    struct Attestor {
        set: KeySet,
        scratch: Scratch,
    }

    impl Attestor {
        fn attest(&self, token: &str, now: u64) -> Result<Caller, TokenError> {
            self.set.check(token, now)
        }

        fn write(&self, text: &str) {
            std::fs::write(self.scratch.path().join("jwks.json"), text).unwrap();
        }
    }

    fn attestor(key: &TokenKey) -> Attestor {
        let scratch = Scratch::new();
        let path = scratch.path().join("jwks.json");
        std::fs::write(&path, key.key_set()).unwrap();
        Attestor { set: KeySet::open(path, expected()).unwrap(), scratch }
    }

    fn changed(name: &str, value: Value) -> TokenError {
        let key = TokenKey::generate().unwrap();
        let mut claims = claims();
        claims[name] = value;
        claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        attestor(&key).attest(&key.sign(&claims).unwrap(), NOW).unwrap_err()
    }

    #[test]
    fn a_good_token_names_its_caller_and_pod() {
        let key = TokenKey::generate().unwrap();
        let caller = attestor(&key).attest(&key.sign(&claims()).unwrap(), NOW).unwrap();
        let expected = Caller {
            namespace: "demo".into(),
            service_account: "web".into(),
            pod: Some("web-0".into()),
            pod_uid: Some("2".into()),
        };
        assert_eq!(caller, expected);
        let claim = Claim {
            issuer: "https://issuer",
            audience: "picket-ca",
            namespace: "demo",
            service_account: "web",
            pod: Some("web-0"),
            pod_uid: Some("2"),
            issued: NOW,
            lifetime: Duration::from_secs(60),
        };
        let token = key.issue(&claim).unwrap();
        assert_eq!(attestor(&key).attest(&token, NOW).unwrap(), expected);
        assert!(matches!(attestor(&key).attest(&token, NOW + 90), Err(TokenError::Expired { .. })));
    }

    #[test]
    fn each_wrong_claim_has_its_reason() {
        assert!(matches!(changed("iss", json!("https://other")), TokenError::Issuer { .. }));
        assert!(matches!(changed("aud", json!(["api"])), TokenError::Audience { .. }));
        assert!(matches!(changed("aud", json!("picket-ca2")), TokenError::Audience { .. }));
        assert!(matches!(changed("aud", json!([])), TokenError::Audience { .. }));
        assert!(matches!(changed("exp", json!(NOW - 60)), TokenError::Expired { .. }));
        assert!(matches!(changed("nbf", json!(NOW + 60)), TokenError::NotYetValid { .. }));
        for claim in ["iss", "aud", "exp", "nbf", "sub"] {
            assert!(matches!(changed(claim, Value::Null), TokenError::Malformed(_)), "{claim}");
        }
        assert!(matches!(changed("exp", json!("tomorrow")), TokenError::Malformed(_)));
        assert!(matches!(changed("exp", json!(-1)), TokenError::Malformed(_)));
        let other = json!({ "namespace": "prod", "serviceaccount": { "name": "web" } });
        assert!(matches!(changed("kubernetes.io", other), TokenError::Contradiction));
        assert!(matches!(changed("exp", json!(NOW + 3591)), TokenError::TooLongLived { lifetime: 3601, limit: 3600 }));
        assert!(matches!(changed("iat", json!(NOW - 3500)), TokenError::TooLongLived { .. }), "issued long before");
        assert!(matches!(changed("nbf", json!(0)), TokenError::TooLongLived { .. }));
    }

    #[test]
    fn a_token_that_no_pod_is_bound_to_is_refused_unless_asked_for() {
        let bound = |pod| json!({ "namespace": "demo", "serviceaccount": { "name": "web" }, "pod": pod });
        for kubernetes in [Value::Null, bound(Value::Null), bound(json!({ "name": "web-0" }))] {
            assert!(matches!(changed("kubernetes.io", kubernetes), TokenError::Unbound));
        }
        let key = TokenKey::generate().unwrap();
        let mut attestor = attestor(&key);
        attestor.set.expected.pod_required = false;
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove("kubernetes.io");
        let caller = attestor.attest(&key.sign(&claims).unwrap(), NOW).unwrap();
        assert_eq!((caller.service_account.as_str(), caller.pod), ("web", None));
    }

    #[test]
    fn the_file_is_followed_by_content_and_a_bad_one_changes_nothing() {
        let (one, two) = (TokenKey::generate().unwrap(), TokenKey::generate().unwrap());
        let attestor = attestor(&one);
        let works = |key: &TokenKey| attestor.attest(&key.sign(&claims()).unwrap(), NOW).is_ok();
        assert!(!attestor.set.reload().unwrap());
        for (key, other) in [(&two, &one), (&one, &two), (&two, &one)] {
            attestor.write(&key.key_set());
            assert!(attestor.set.reload().unwrap());
            assert!(works(key) && !works(other));
        }
        attestor.write("{}");
        assert!(attestor.set.reload().is_err());
        assert!(attestor.set.reload().is_err(), "said for as long as it is so");
        assert!(works(&two));
        std::fs::remove_file(attestor.scratch.path().join("jwks.json")).unwrap();
        assert!(matches!(attestor.set.reload(), Err(KeySetError::Io { .. })));
        assert!(works(&two));
    }

    #[test]
    fn a_token_that_was_verified_is_held_against_the_time_and_the_keys_of_the_moment() {
        let (one, two) = (TokenKey::generate().unwrap(), TokenKey::generate().unwrap());
        let attestor = attestor(&one);
        let token = one.sign(&claims()).unwrap();
        for _again in 0..2 {
            assert_eq!(attestor.attest(&token, NOW).unwrap().service_account, "web");
            assert!(matches!(attestor.attest(&token, NOW + 3600), Err(TokenError::Expired { .. })));
            assert!(matches!(attestor.attest(&token, NOW - 3600), Err(TokenError::NotYetValid { .. })));
        }
        attestor.write(&two.key_set());
        assert!(attestor.set.reload().unwrap());
        assert!(matches!(attestor.attest(&token, NOW), Err(TokenError::UnknownKey(_))));
    }

    #[test]
    fn the_subject_is_exactly_a_service_account() {
        let subjects = [
            "",
            "web",
            "system:serviceaccount:demo",
            "system:serviceaccount:demo:web:x",
            "system:serviceaccount::web",
            "system:serviceaccount:demo:",
            "system:node:demo:web",
            "System:serviceaccount:demo:web",
            " system:serviceaccount:demo:web",
            "system:serviceaccount:demo:web ",
            "system:serviceaccount:demo:we/b",
            "system:serviceaccount:demo:../web",
            "system:serviceaccount:demo:Web",
            "system:serviceaccount:de mo:web",
            "system:serviceaccount:demo:web\0",
            "system:serviceaccount:-demo:web",
        ];
        for subject in subjects {
            assert!(matches!(changed("sub", json!(subject)), TokenError::Subject(_)), "{subject:?}");
        }
    }

    #[test]
    fn the_key_decides_about_the_algorithm() {
        let key = TokenKey::generate().unwrap();
        let attestor = attestor(&key);
        let good = key.sign(&claims()).unwrap();
        let parts: Vec<&str> = good.split('.').collect();
        let kid = decode_header(&good).unwrap().kid;

        let stranger = TokenKey::generate().unwrap().sign(&claims()).unwrap();
        assert!(matches!(attestor.attest(&stranger, NOW), Err(TokenError::UnknownKey(Some(_)))));
        let mut header = Header::new(Algorithm::HS256);
        header.kid.clone_from(&kid);
        let public = key.key_set();
        let confused = jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(public.as_bytes())).unwrap();
        assert!(matches!(attestor.attest(&confused, NOW), Err(TokenError::Algorithm { .. })));
        // {"alg":"none"} in base64url.
        let none = format!("eyJhbGciOiJub25lIn0.{}.", parts[1]);
        assert!(matches!(attestor.attest(&none, NOW), Err(TokenError::Malformed(_))));
        let unsigned = format!("{}.{}.", parts[0], parts[1]);
        assert!(attestor.attest(&unsigned, NOW).is_err());
        header.kid = None;
        header.alg = Algorithm::HS256;
        let nameless = jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(b"x")).unwrap();
        assert!(matches!(attestor.attest(&nameless, NOW), Err(TokenError::UnknownKey(None))));
        for token in ["", ".", "..", "a.b.c", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
            assert!(attestor.attest(token, NOW).is_err());
        }
    }

    #[test]
    fn no_changed_byte_goes_unnoticed() {
        let key = TokenKey::generate().unwrap();
        let attestor = attestor(&key);
        let token = key.sign(&claims()).unwrap();
        // The last character also carries bits that base64 does not use.
        for position in 0..token.len() - 1 {
            let mut bytes = token.clone().into_bytes();
            bytes[position] = if bytes[position] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(attestor.attest(&changed, NOW).is_err(), "byte {position}");
        }
    }

    #[test]
    fn key_sets_that_cannot_be_used_are_refused() {
        let read = |text: &str| read_keys(text.as_bytes()).err().unwrap();
        assert!(matches!(read("{"), KeySetError::Syntax(_)));
        assert!(matches!(read(r#"{"keys":[]}"#), KeySetError::Empty));
        assert!(matches!(read(r#"{"keys":[{"kty":"oct","k":"AAAA","kid":"a"}]}"#), KeySetError::Algorithm(_)));
        assert!(matches!(read(r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#), KeySetError::NoKeyId(0)));
        let rsa = |alg: &str, characters: usize| {
            let n = "g".repeat(characters);
            format!(r#"{{"keys":[{{"kty":"RSA","n":"{n}","e":"AQAB","kid":"a","alg":"{alg}"}}]}}"#)
        };
        for alg in ["RS384", "RS512", "PS256", "PS512"] {
            assert!(matches!(read(&rsa(alg, 342)), KeySetError::Algorithm(_)), "{alg}");
        }
        assert!(matches!(read(&rsa("RS256", 171)), KeySetError::Weak(_)));
        assert!(matches!(read(&rsa("RS256", 86)), KeySetError::Weak(_)), "512 bits");
        assert_eq!(read_keys(rsa("RS256", 342).as_bytes()).unwrap().len(), 1);
        let key = TokenKey::generate().unwrap().key_set();
        let twice = key.replace("[{", "[{}, {").replace("{}", key.split_once('[').unwrap().1.trim_end_matches("]}"));
        assert!(matches!(read(&twice), KeySetError::Twice(_)), "{twice}");
        assert!(matches!(read(&key.replace("P-256", "P-384")), KeySetError::Algorithm(_)));
    }
}
