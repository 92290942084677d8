//! Tokens of a local key set: good ones, old ones, and those of other keys.

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
