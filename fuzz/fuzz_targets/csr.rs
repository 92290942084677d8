//! Signing requests of strangers: whatever comes, nothing panics, and a certificate says only what it may.

#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use ca::authority::Authority;
use ca::issue;
use ca::pki::{self, NewIssuer};
use ca::policy::Grant;
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

const OWN: &str = "spiffe://td/ns/demo/sa/web";

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    let (domain, now) = ("td".parse().expect("a trust domain"), ca::tend::now());
    let (root, root_key) = pki::new_root(&domain, 1, 3650 * 86400, now).expect("a root");
    let new = NewIssuer {
        domain: &domain,
        id: 2,
        root: &root,
        root_key: &root_key,
        lifetime: 365 * 86400,
        longest_leaf: 3600,
    };
    let (issuer, key) = pki::new_issuer(&new, now).expect("an issuer");
    Authority::assemble(&issuer, &root, &key).expect("an authority")
});

fuzz_target!(|bytes: &[u8]| {
    // As the bytes of a request, so that the fuzzer need not learn base64; and as the text itself.
    check(&pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", bytes)));
    if let Ok(text) = std::str::from_utf8(bytes) {
        check(text);
    }
});

fn check(text: &str) {
    let Ok(key) = issue::read_csr(text) else { return };
    let grant = Grant { id: OWN.parse().expect("an identity"), lifetime: Duration::from_secs(600) };
    let issued = issue::issue(&AUTHORITY, &key, &grant, time::OffsetDateTime::now_utc()).expect("a certificate");
    let (_, leaf) = x509_parser::parse_x509_certificate(&issued.der).expect("it can be read");
    let names = leaf.subject_alternative_name().expect("it can be read").expect("it has names");
    assert!(matches!(names.value.general_names.as_slice(), [GeneralName::URI(OWN)]));
    assert!(!leaf.is_ca() && leaf.subject().iter().count() == 0 && leaf.extensions().len() == 6);
    let der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).expect("it was read before");
    let (_, request) = X509CertificationRequest::from_der(&der).expect("it was read before");
    assert_eq!(leaf.public_key().raw, request.certification_request_info.subject_pki.raw);
}
