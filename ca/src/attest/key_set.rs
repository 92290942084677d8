//! Who asks: a pod's ServiceAccount token, verified against a local set of public keys.
//!
//! Promises: the algorithm comes from the key set and never from the token; issuer, audience, expiry and beginning are
//! required; the subject is exactly `system:serviceaccount:<namespace>:<name>`; each refusal has its reason. No clock:
//! the time is an argument. Leaves to others: what the caller may have (`policy`).

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;

/// A ServiceAccount token has about 1 KiB.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// How far our clock and the token issuer's may be apart, in seconds.
const LEEWAY_SECONDS: u64 = 30;

/// Why the key set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// Not a JSON Web Key Set (RFC 7517).
    #[error("the key set is not a JSON Web Key Set")]
    Syntax(#[from] serde_json::Error),
    /// It has no key.
    #[error("the key set is empty")]
    Empty,
    /// A key has no `kid`.
    #[error("key {0} of the set has no `kid`")]
    NoKeyId(usize),
    /// A key is not RSA, P-256 or P-384, or its `alg` is not a signature algorithm for such keys.
    #[error("key `{0}` of the set is not for RS256, RS384, RS512, PS256, PS384, PS512, ES256 or ES384")]
    Algorithm(String),
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

/// Why a token was refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The call had no `authorization: Bearer <token>`.
    #[error("the call has no bearer token")]
    Missing,
    /// Longer than 16 KiB.
    #[error("the token has {0} bytes, more than {TOKEN_BYTES_MAX}")]
    TooLong(usize),
    /// Not a JSON Web Token, or its claims have wrong types.
    #[error("the token is malformed: {0}")]
    Malformed(String),
    /// Its `kid` is absent or not in the key set.
    #[error("the token is signed with the key {0:?}, which is not in the key set")]
    UnknownKey(Option<String>),
    /// It names another algorithm than its key has.
    #[error("the token says {found}, its key is for {expected:?}")]
    Algorithm {
        /// From the key set.
        expected: Algorithm,
        /// From the token.
        found: String,
    },
    /// The signature is wrong.
    #[error("the token's signature is wrong")]
    Signature,
    /// Of another issuer.
    #[error("the token's issuer is {found:?}, expected was {expected:?}")]
    Issuer {
        /// From the configuration.
        expected: String,
        /// From the token.
        found: String,
    },
    /// For another audience.
    #[error("the token's audience is {found:?}, expected was {expected:?}")]
    Audience {
        /// From the configuration.
        expected: String,
        /// From the token.
        found: Vec<String>,
    },
    /// Ended.
    #[error("the token ended at {ended}, this machine's clock says {now} (seconds since 1970)")]
    Expired {
        /// `exp`.
        ended: u64,
        /// Our clock.
        now: u64,
    },
    /// Not valid yet.
    #[error("the token begins at {begins}, this machine's clock says {now} (seconds since 1970)")]
    NotYetValid {
        /// `nbf`.
        begins: u64,
        /// Our clock.
        now: u64,
    },
    /// The subject is not a service account.
    #[error("the token's subject {0:?} is not system:serviceaccount:<namespace>:<name>")]
    Subject(String),
    /// The subject and the Kubernetes claim disagree.
    #[error("the token's subject and its kubernetes.io claim name different service accounts")]
    Contradiction,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The namespace of the service account.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// Name of the pod that the token is bound to.
    pub pod: Option<String>,
    /// Its uid.
    pub pod_uid: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: OneOrMany,
    exp: u64,
    nbf: u64,
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

/// The keys, issuer and audience that tokens are checked against.
pub struct Attestor {
    keys: Vec<Key>,
    issuer: String,
    audience: String,
}

impl Attestor {
    /// Reads a JSON Web Key Set (RFC 7517).
    ///
    /// # Errors
    /// See [`KeySetError`]; one bad key refuses the whole set.
    pub fn new(key_set: &str, issuer: String, audience: String) -> Result<Self, KeySetError> {
        let set: JwkSet = serde_json::from_str(key_set)?;
        let keys =
            set.keys.iter().enumerate().map(|(index, key)| read_key(index, key)).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err(KeySetError::Empty);
        }
        Ok(Self { keys, issuer, audience })
    }

    /// Verifies a token at `now` (seconds since 1970) and says whose it is.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn attest(&self, token: &str, now: u64) -> Result<Caller, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong(token.len()));
        }
        let claims = self.verify_signature(token)?;
        if claims.iss != self.issuer {
            return Err(TokenError::Issuer { expected: self.issuer.clone(), found: claims.iss });
        }
        let audiences = match claims.aud {
            OneOrMany::One(audience) => vec![audience],
            OneOrMany::Many(audiences) => audiences,
        };
        if !audiences.contains(&self.audience) {
            return Err(TokenError::Audience { expected: self.audience.clone(), found: audiences });
        }
        if now >= claims.exp.saturating_add(LEEWAY_SECONDS) {
            return Err(TokenError::Expired { ended: claims.exp, now });
        }
        if claims.nbf > now.saturating_add(LEEWAY_SECONDS) {
            return Err(TokenError::NotYetValid { begins: claims.nbf, now });
        }
        caller(&claims.sub, claims.kubernetes)
    }

    fn verify_signature(&self, token: &str) -> Result<Claims, TokenError> {
        use jsonwebtoken::errors::ErrorKind;
        let header = decode_header(token).map_err(|error| TokenError::Malformed(error.to_string()))?;
        let key = self.keys.iter().find(|key| Some(&key.id) == header.kid.as_ref());
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
        match decode::<Claims>(token, &key.key, &signature_only) {
            Ok(token) => Ok(token.claims),
            Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => Err(TokenError::Signature),
            Err(error) => Err(TokenError::Malformed(error.to_string())),
        }
    }
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

fn read_key(index: usize, key: &Jwk) -> Result<Key, KeySetError> {
    let id = key.common.key_id.clone().ok_or(KeySetError::NoKeyId(index))?;
    let algorithm = algorithm(key).ok_or_else(|| KeySetError::Algorithm(id.clone()))?;
    let read = DecodingKey::from_jwk(key).map_err(|source| KeySetError::Key { key_id: id.clone(), source })?;
    Ok(Key { id, algorithm, key: read })
}

/// What the key itself is for; shared secrets are not for us.
fn algorithm(key: &Jwk) -> Option<Algorithm> {
    let named = key.common.key_algorithm;
    match &key.algorithm {
        AlgorithmParameters::RSA(_) => rsa_algorithm(named.unwrap_or(KeyAlgorithm::RS256)),
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
            matches!(named, None | Some(KeyAlgorithm::ES256)).then_some(Algorithm::ES256)
        }
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P384 => {
            matches!(named, None | Some(KeyAlgorithm::ES384)).then_some(Algorithm::ES384)
        }
        AlgorithmParameters::EllipticCurve(_)
        | AlgorithmParameters::OctetKey(_)
        | AlgorithmParameters::OctetKeyPair(_) => None,
    }
}

fn rsa_algorithm(named: KeyAlgorithm) -> Option<Algorithm> {
    [
        (KeyAlgorithm::RS256, Algorithm::RS256),
        (KeyAlgorithm::RS384, Algorithm::RS384),
        (KeyAlgorithm::RS512, Algorithm::RS512),
        (KeyAlgorithm::PS256, Algorithm::PS256),
        (KeyAlgorithm::PS384, Algorithm::PS384),
        (KeyAlgorithm::PS512, Algorithm::PS512),
    ]
    .into_iter()
    .find_map(|(name, algorithm)| (name == named).then_some(algorithm))
}

#[cfg(test)]
mod tests {
    use super::*;
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

    fn attestor(key: &TokenKey) -> Attestor {
        Attestor::new(&key.key_set(), "https://issuer".into(), "picket-ca".into()).unwrap()
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
            lifetime: std::time::Duration::from_secs(60),
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
        let read = |text: &str| Attestor::new(text, String::new(), String::new()).err().unwrap();
        assert!(matches!(read("{"), KeySetError::Syntax(_)));
        assert!(matches!(read(r#"{"keys":[]}"#), KeySetError::Empty));
        assert!(matches!(read(r#"{"keys":[{"kty":"oct","k":"AAAA","kid":"a"}]}"#), KeySetError::Algorithm(_)));
        assert!(matches!(read(r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#), KeySetError::NoKeyId(0)));
    }
}
