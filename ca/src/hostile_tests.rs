//! What an attacker would send: tokens and signing requests, none of which yields a certificate with any identity but
//! the caller's own.
//!
//! Each case goes through the service as a call does. Where it may succeed, the certificate is looked at: one URI, that
//! of the token's own service account, no other name, no authority, and the key of the request.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::istio_ca::IstioCertificateRequest;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tonic::metadata::MetadataMap;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::attest::key_set::{Expected, KeySet};
use crate::followers::Followers;
use crate::issue::Issued;
use crate::journal::Journal;
use crate::keeper::{Command, Keeper};
use crate::lifecycle::Rules;
use crate::policy::Policy;
use crate::refusal::CallError;
use crate::service::Service;
use crate::state::Subject;
use crate::store::Directory;
use crate::tend::now;
use crate::test_support::{Scratch, as_pem, base64url, openssl};
use crate::token::TokenKey;
use crate::trust::Trust;

const OWN: &str = "spiffe://td/ns/demo/sa/web";

struct Rig {
    service: Service,
    key: TokenKey,
    scratch: Scratch,
    runtime: tokio::runtime::Runtime,
}

impl Rig {
    fn new() -> Self {
        let (scratch, key) = (Scratch::new(), TokenKey::generate().unwrap());
        let directory = Directory::open(&scratch.path().join("ca")).unwrap();
        let rules = Rules { leaf_lifetime: 3600, ..Rules::default() };
        let keeper = Arc::new(Keeper::new(directory, "td".parse().unwrap(), rules));
        keeper.open(None, now()).unwrap();
        keeper.command(&Command::Deny(Subject::PodUid("denied".into()), String::new()), now()).unwrap();
        std::fs::write(scratch.path().join("jwks.json"), key.key_set()).unwrap();
        let expected = Expected {
            issuer: "https://issuer".into(),
            audience: "picket-ca".into(),
            lifetime_max: Duration::from_secs(86_400),
            pod_required: true,
        };
        let service = Service {
            trust: Arc::new(Trust::load(keeper, Duration::from_secs(60), now()).unwrap()),
            attestor: Arc::new(KeySet::open(scratch.path().join("jwks.json"), expected).unwrap()),
            policy: Policy { trust_domain: "td".parse().unwrap(), leaf_lifetime: Duration::from_secs(3600) },
            followers: Followers::new(100, now),
            journal: Arc::new(Journal::new(None)),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { service, key, scratch, runtime }
    }

    fn call(&self, authorization: &[&str], csr: &str, validity_duration: i64) -> Result<Issued, CallError> {
        let mut metadata = MetadataMap::new();
        for value in authorization {
            // What no header can hold never arrives.
            let Ok(value) = value.parse() else { return Err(CallError::Call("no header".into())) };
            metadata.append("authorization", value);
        }
        let asked = IstioCertificateRequest { csr: csr.into(), validity_duration, metadata: None };
        self.runtime.block_on(self.service.create(&metadata, &asked, ([127, 0, 0, 1], 5).into()))
    }

    fn token(&self) -> String {
        self.key.sign(&claims()).unwrap()
    }

    /// A token with this header and these claims, byte by byte, and a good signature.
    fn signed(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", base64url(header.as_bytes()), base64url(claims.as_bytes()));
        let der = PrivatePkcs8KeyDer::from_pem_slice(self.key.pem().as_bytes()).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der()).unwrap();
        let signature = pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", base64url(signature.as_ref()))
    }

    fn header(&self) -> Value {
        json!({ "alg": "ES256", "typ": "JWT", "kid": self.kid() })
    }

    fn kid(&self) -> String {
        let set: Value = serde_json::from_str(&self.key.key_set()).unwrap();
        set["keys"][0]["kid"].as_str().unwrap().to_owned()
    }

    fn openssl_request(&self, arguments: &[&str]) -> String {
        let file = |name: &str| self.scratch.path().join(name).to_str().unwrap().to_owned();
        let (key, request) = (file("key"), file("request"));
        let made =
            [&["req", "-new", "-nodes", "-subj", "/CN=x", "-keyout", &key, "-out", &request][..], arguments].concat();
        openssl(&made);
        std::fs::read_to_string(PathBuf::from(request)).unwrap()
    }
}

fn claims() -> Value {
    let now = now();
    json!({
        "iss": "https://issuer", "sub": "system:serviceaccount:demo:web", "aud": ["picket-ca"],
        "exp": now + 600, "nbf": now - 10, "iat": now - 10,
        "kubernetes.io": {
            "namespace": "demo", "serviceaccount": { "name": "web", "uid": "1" },
            "pod": { "name": "web-0", "uid": "2" },
        },
    })
}

/// The certificate says who the caller is, has the key of the request, and nothing more.
fn check(name: &str, issued: &Issued, identity: &str, csr: &str) {
    let (_, leaf) = x509_parser::parse_x509_certificate(&issued.der).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    assert!(matches!(names.as_slice(), [GeneralName::URI(uri)] if *uri == identity), "{name}: {names:?}");
    assert_eq!(leaf.subject().iter().count(), 0, "{name}");
    assert!(!leaf.is_ca(), "{name}");
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign(), "{name}");
    let mut extensions: Vec<_> = leaf.extensions().iter().map(|extension| extension.oid.to_id_string()).collect();
    extensions.sort();
    // Key identifiers, key usage, names, basic constraints, purposes.
    let expected = ["2.5.29.14", "2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.35", "2.5.29.37"];
    assert_eq!(extensions, expected, "{name}");
    let life = leaf.validity().not_after.timestamp() - now();
    assert!((0..=3600).contains(&life), "{name}: {life} s");
    let der = CertificateSigningRequestDer::from_pem_slice(csr.as_bytes()).unwrap();
    let (_, request) = x509_parser::certification_request::X509CertificationRequest::from_der(&der).unwrap();
    assert_eq!(leaf.public_key().raw, request.certification_request_info.subject_pki.raw, "{name}");
}

fn request(change: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    change(&mut params);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// Requests of somebody with a good token, who wants more: each is refused, or gives them what is theirs.
fn greedy() -> Vec<(&'static str, String)> {
    let other = "spiffe://td/ns/prod/sa/admin";
    let named = |names: Vec<SanType>| request(move |params| params.subject_alt_names = names);
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let subject =
        |kind: DnType, value: &'static str| request(move |params| params.distinguished_name.push(kind, value));
    let extension = |oid: &'static [u64], content: Vec<u8>, critical: bool| {
        request(move |params| {
            let mut extension = CustomExtension::from_oid_content(oid, content);
            extension.set_criticality(critical);
            params.custom_extensions.push(extension);
        })
    };
    vec![
        ("another's URI", named(vec![uri(other)])),
        ("own and another's URI", named(vec![uri(OWN), uri(other)])),
        ("another's URI, then own", named(vec![uri(other), uri(OWN)])),
        ("the authority's URI", named(vec![uri("spiffe://td/ns/picket-system/sa/picket-ca")])),
        ("another trust domain", named(vec![uri("spiffe://other/ns/demo/sa/web")])),
        ("a URI with a NUL", named(vec![uri("spiffe://td/ns/demo/sa/web\0admin")])),
        ("localhost", named(vec![dns("localhost")])),
        ("the authority's host name", named(vec![dns("picket-ca.picket-system.svc")])),
        ("a wildcard", named(vec![dns("*")])),
        ("an address", named(vec![SanType::IpAddress([127, 0, 0, 1].into())])),
        ("a mailbox", named(vec![SanType::Rfc822Name("root@td".try_into().unwrap())])),
        ("a hundred names", named((0..100).map(|number| dns(&format!("h{number}"))).collect())),
        ("a common name", subject(DnType::CommonName, other)),
        ("a common name that is the authority's", subject(DnType::CommonName, "picket-ca")),
        ("an organization", subject(DnType::OrganizationName, "system:masters")),
        ("CA:TRUE", request(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("CA:TRUE with a path length", request(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(9)))),
        ("keyCertSign", request(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign])),
        ("any purpose", request(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any])),
        ("code signing", request(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning])),
        ("a critical extension nobody knows", extension(&[1, 2, 3, 4], vec![5, 0], true)),
        ("a second alternative name", extension(&[2, 5, 29, 17], vec![0x30, 3, 0x86, 1, b'x'], false)),
        ("basic constraints by hand", extension(&[2, 5, 29, 19], vec![0x30, 3, 1, 1, 0xff], true)),
        ("an extension of ten KiB", extension(&[1, 2, 3, 4], vec![0; 10 << 10], false)),
        ("an extension of twenty KiB", extension(&[1, 2, 3, 4], vec![0; 20 << 10], false)),
    ]
}

/// Requests that are no P-256 request with a good proof: refused.
fn broken(rig: &Rig) -> Vec<(&'static str, String)> {
    let key = KeyPair::generate().unwrap();
    let der = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    let good = as_pem(&der);
    let of = |key: &KeyPair| CertificateParams::default().serialize_request(key).unwrap().pem().unwrap();
    let rsa = |size| of(&KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size).unwrap());
    // Another's key in our request: it was never ours to prove.
    let point = key.der_bytes();
    let at = der.windows(point.len()).position(|window| window == point).unwrap();
    let with_point = |point: &[u8]| {
        let mut der = der.clone();
        der[at..at + point.len()].copy_from_slice(point);
        as_pem(&der)
    };
    let last = der.len() - 1;
    let mut wrong_proof = der.clone();
    wrong_proof[last] ^= 1;
    let mut huge_length = der.clone();
    huge_length.splice(1..4, [0x84, 0xff, 0xff, 0xff, 0xff]);
    let mut indefinite = der.clone();
    indefinite.splice(1..4, [0x80]);
    let ec = |options: &[&str]| rig.openssl_request(&[&["-newkey", "ec"][..], options].concat());
    vec![
        ("nothing", String::new()),
        ("one MiB", "x".repeat(1 << 20)),
        ("one MiB of zeros in PEM", as_pem(&vec![0; 700 << 10])),
        ("no PEM", "nonsense".into()),
        ("a key instead", good.replace("CERTIFICATE REQUEST", "PRIVATE KEY")),
        ("a certificate instead", good.replace("CERTIFICATE REQUEST", "CERTIFICATE")),
        ("no end", good.lines().take(3).collect::<Vec<_>>().join("\n")),
        ("bad base64", good.replacen('M', "*", 1)),
        ("garbage", as_pem(&[0xde, 0xad, 0xbe, 0xef])),
        ("an empty sequence", as_pem(&[0x30, 0])),
        ("nested for ever", as_pem(&[0x30, 0x80].repeat(4000))),
        ("cut in the middle", as_pem(&der[..der.len() / 2])),
        ("cut at the end", as_pem(&der[..last])),
        ("bytes after its end", as_pem(&[&der[..], &[0]].concat())),
        ("two in one", as_pem(&[&der[..], &der].concat())),
        ("a length of four GiB", as_pem(&huge_length)),
        ("an indefinite length", as_pem(&indefinite)),
        ("a wrong proof", as_pem(&wrong_proof)),
        ("another's key", with_point(KeyPair::generate().unwrap().der_bytes())),
        ("a point that is not on the curve", with_point(&[&[4][..], &[1; 64]].concat())),
        ("the point zero", with_point(&[&[4][..], &[0; 64]].concat())),
        ("a hybrid point", with_point(&[&[6][..], &point[1..]].concat())),
        ("P-384", of(&KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap())),
        ("P-521", ec(&["-pkeyopt", "ec_paramgen_curve:P-521"])),
        ("secp256k1", ec(&["-pkeyopt", "ec_paramgen_curve:secp256k1"])),
        ("explicit parameters", ec(&["-pkeyopt", "ec_paramgen_curve:P-256", "-pkeyopt", "ec_param_enc:explicit"])),
        ("Ed25519", of(&KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap())),
        ("RSA 2048", rsa(rcgen::RsaKeySize::_2048)),
        ("RSA 512", rig.openssl_request(&["-newkey", "rsa:512"])),
        ("RSA with SHA-512", rig.openssl_request(&["-newkey", "rsa:2048", "-sha512"])),
        ("SHA-1", ec(&["-pkeyopt", "ec_paramgen_curve:P-256", "-sha1"])),
    ]
}

/// `authorization` headers of somebody who is not who they say; each is refused.
fn forged(rig: &Rig) -> Vec<(&'static str, Vec<String>)> {
    let bearer = |token: String| vec![format!("Bearer {token}")];
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut claims = claims();
        change(&mut claims);
        bearer(rig.key.sign(&claims).unwrap())
    };
    let subject = |subject: &str| changed(&|claims| claims["sub"] = json!(subject));
    let header = |change: &dyn Fn(&mut Value)| {
        let mut header = rig.header();
        change(&mut header);
        bearer(rig.signed(&header.to_string(), &claims().to_string()))
    };
    let good = rig.token();
    let parts: Vec<&str> = good.split('.').collect();
    let [head, body, signature] = parts.as_slice() else { panic!("a token has three parts") };
    let stranger = TokenKey::generate().unwrap();
    let confused = |secret: &[u8], algorithm| {
        let mut header = Header::new(algorithm);
        header.kid = Some(rig.kid());
        bearer(jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(secret)).unwrap())
    };
    let embedded: Value = serde_json::from_str(&stranger.key_set()).unwrap();
    let of_stranger = |header: &Value| {
        let token = stranger.sign(&claims()).unwrap();
        let signature = token.rsplit('.').next().unwrap().to_owned();
        bearer(format!("{}.{body}.{signature}", base64url(header.to_string().as_bytes())))
    };
    let twice = claims().to_string().replacen('{', r#"{"sub":"system:serviceaccount:prod:admin","#, 1);
    let der = PrivatePkcs8KeyDer::from_pem_slice(rig.key.pem().as_bytes()).unwrap();
    let asn1 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_pkcs8_der()).unwrap();
    let asn1 = asn1.sign(&SystemRandom::new(), format!("{head}.{body}").as_bytes()).unwrap();
    let other_body = base64url(claims().to_string().replace("demo", "prod").as_bytes());
    let now = now();
    vec![
        ("no token", Vec::new()),
        ("two tokens", [bearer(good.clone()), bearer(good.clone())].concat()),
        ("another scheme", vec![format!("Basic {good}")]),
        ("no scheme", vec![good.clone()]),
        ("an empty token", bearer(String::new())),
        ("no parts", bearer("x".into())),
        ("empty parts", bearer("..".into())),
        ("four parts", bearer(format!("{good}.x"))),
        ("seventeen KiB", bearer("x".repeat(17 << 10))),
        ("another audience", changed(&|claims| claims["aud"] = json!(["https://kubernetes.default.svc"]))),
        ("an audience that begins like ours", changed(&|claims| claims["aud"] = json!("picket-ca2"))),
        ("no audience", changed(&|claims| claims["aud"] = json!([]))),
        ("an audience that is no text", changed(&|claims| claims["aud"] = json!({ "picket-ca": true }))),
        ("another issuer", changed(&|claims| claims["iss"] = json!("https://issuer.evil"))),
        ("two issuers", changed(&|claims| claims["iss"] = json!(["https://issuer"]))),
        ("expired", changed(&|claims| claims["exp"] = json!(now - 3600))),
        ("not yet valid", changed(&|claims| claims["nbf"] = json!(now + 3600))),
        ("no expiry", changed(&|claims| claims["exp"] = Value::Null)),
        ("an expiry that is text", changed(&|claims| claims["exp"] = json!("9999999999"))),
        ("an expiry that is negative", changed(&|claims| claims["exp"] = json!(-1))),
        ("an expiry beyond numbers", changed(&|claims| claims["exp"] = json!(1e300))),
        ("good for a year", changed(&|claims| claims["exp"] = json!(now + 365 * 86_400))),
        ("issued a year ago", changed(&|claims| claims["iat"] = json!(now - 365 * 86_400))),
        ("bound to no pod", changed(&|claims| claims["kubernetes.io"]["pod"] = Value::Null)),
        ("bound to a pod without a uid", changed(&|claims| claims["kubernetes.io"]["pod"]["uid"] = Value::Null)),
        ("a denied pod", changed(&|claims| claims["kubernetes.io"]["pod"]["uid"] = json!("denied"))),
        ("another namespace inside", changed(&|claims| claims["kubernetes.io"]["namespace"] = json!("prod"))),
        (
            "another account inside",
            changed(&|claims| claims["kubernetes.io"]["serviceaccount"]["name"] = json!("admin")),
        ),
        ("two subjects", bearer(rig.signed(&rig.header().to_string(), &twice))),
        ("a node", subject("system:node:web")),
        ("too many parts", subject("system:serviceaccount:demo:web:admin")),
        ("too few parts", subject("system:serviceaccount:demo")),
        ("an empty account", subject("system:serviceaccount:demo:")),
        ("a path", subject("system:serviceaccount:demo:../../prod/sa/admin")),
        ("a NUL", subject("system:serviceaccount:demo:web\0")),
        ("upper case", subject("system:serviceaccount:Demo:web")),
        ("the authority itself", {
            changed(&|claims| {
                claims["sub"] = json!("system:serviceaccount:picket-system:picket-ca");
                claims["kubernetes.io"]["namespace"] = json!("picket-system");
                claims["kubernetes.io"]["serviceaccount"]["name"] = json!("picket-ca");
            })
        }),
        ("alg none", bearer(format!("{}.{body}.", base64url(br#"{"alg":"none"}"#)))),
        ("alg None with our key", header(&|header| header["alg"] = json!("None"))),
        ("no signature", bearer(format!("{head}.{body}."))),
        ("a signature of zeros", bearer(format!("{head}.{body}.{}", base64url(&[0; 64])))),
        ("a signature in DER", bearer(format!("{head}.{body}.{}", base64url(asn1.as_ref())))),
        ("another's signature", bearer(format!("{head}.{other_body}.{signature}"))),
        ("HS256 with the public key", confused(rig.key.key_set().as_bytes(), Algorithm::HS256)),
        ("HS512 with nothing", confused(b"", Algorithm::HS512)),
        ("RS256 for an EC key", header(&|header| header["alg"] = json!("RS256"))),
        ("RS512 for an EC key", header(&|header| header["alg"] = json!("RS512"))),
        ("ES384 for a P-256 key", header(&|header| header["alg"] = json!("ES384"))),
        ("no key id", header(&|header| header["kid"] = Value::Null)),
        ("an unknown key id", bearer(stranger.sign(&claims()).unwrap())),
        ("a key id that is a path", header(&|header| header["kid"] = json!("../../dev/null"))),
        ("a key id that is a list", header(&|header| header["kid"] = json!([rig.kid()]))),
        ("our key id, another's key", of_stranger(&rig.header())),
        ("another's key in the header", {
            let mut header = rig.header();
            header["jwk"] = embedded["keys"][0].clone();
            of_stranger(&header)
        }),
        ("another's key by address", {
            let mut header = rig.header();
            header["jku"] = json!("https://evil/jwks.json");
            of_stranger(&header)
        }),
        ("something critical", header(&|header| header["crit"] = json!(["b64"]))),
    ]
}

#[test]
fn none_of_it_yields_a_name_that_is_not_the_callers() {
    let rig = Rig::new();
    let good = request(|_| ());
    let token = format!("Bearer {}", rig.token());
    // The rig works: this is what is refused below only for what is changed.
    check("nothing hostile", &rig.call(&[&token], &good, 0).unwrap(), OWN, &good);
    let mut cases = 1;
    for (name, csr) in greedy() {
        if let Ok(issued) = rig.call(&[&token], &csr, 0) {
            check(name, &issued, OWN, &csr);
        }
        cases += 1;
    }
    for (name, csr) in broken(&rig) {
        let refused = rig.call(&[&token], &csr, 0);
        assert!(matches!(refused, Err(CallError::Csr(_))), "{name}: {refused:?}");
        cases += 1;
    }
    for (name, authorization) in forged(&rig) {
        let authorization: Vec<&str> = authorization.iter().map(String::as_str).collect();
        let refused = rig.call(&authorization, &good, 0);
        let expected = matches!(refused, Err(CallError::Token(_) | CallError::Policy(_) | CallError::Call(_)));
        assert!(expected, "{name}: {refused:?}");
        cases += 1;
    }
    for lifetime in [-1, i64::MIN] {
        assert!(matches!(rig.call(&[&token], &good, lifetime), Err(CallError::Policy(_))));
        cases += 1;
    }
    check("the longest life", &rig.call(&[&token], &good, i64::MAX).unwrap(), OWN, &good);
    // A token of another pod gives what it says, and nothing of ours.
    let mut other = claims();
    other["sub"] = json!("system:serviceaccount:shop:cart");
    other["kubernetes.io"] = json!({
        "namespace": "shop", "serviceaccount": { "name": "cart" }, "pod": { "name": "cart-0", "uid": "9" },
    });
    let other = format!("Bearer {}", rig.key.sign(&other).unwrap());
    let greedy = request(|params| params.subject_alt_names = vec![uri(OWN)]);
    check("another's token", &rig.call(&[&other], &greedy, 0).unwrap(), "spiffe://td/ns/shop/sa/cart", &greedy);
    assert!(cases >= 110, "{cases} cases");
    // Each is in the books.
    let refused: u64 =
        crate::refusal::Reason::ALL.iter().map(|reason| rig.service.journal.counters.refused(*reason)).sum();
    assert!(refused > 80, "{refused} refusals counted");
}

#[test]
fn no_changed_byte_of_a_request_gets_another_key_or_name() {
    let rig = Rig::new();
    let token = format!("Bearer {}", rig.token());
    let key = KeyPair::generate().unwrap();
    let der = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    let (_, parsed) = x509_parser::certification_request::X509CertificationRequest::from_der(&der).unwrap();
    let signature = parsed.signature_value.data.len();
    // The reader does not mind the tags around what is signed, nor that of the signature algorithm's name: nothing is
    // taken from there, and what is signed is the same.
    let around = der.len() - signature - 15..der.len() - signature;
    for at in 0..der.len() {
        for bit in 0..8 {
            let mut changed = der.clone();
            changed[at] ^= 1 << bit;
            let csr = as_pem(&changed);
            if let Ok(certificate) = rig.call(&[&token], &csr, 0) {
                check(&format!("bit {bit} of byte {at}"), &certificate, OWN, &csr);
                assert!(at == 0 || around.contains(&at), "bit {bit} of byte {at} made no difference");
            }
        }
    }
}
