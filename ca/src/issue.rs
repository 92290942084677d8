//! The certificate: a function of a public key, a grant, the authority and the time.
//!
//! Promises: of a signing request only the public key is taken, after its signature proved that the sender holds the
//! private one; every field of the certificate is set here: random serial, backdated notBefore, notAfter never past
//! the issuer's, digitalSignature, both extended key usages, CA:FALSE, an empty subject and a critical subject
//! alternative name with exactly one URI (X509-SVID, sections 2 to 4). No clock: the time is an argument.

use std::time::Duration;

use identity::{SpiffeId, SpiffeIdError};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType, SignatureAlgorithm,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::authority::Authority;
use crate::pki::{PkiError, random_serial, sha256};
use crate::policy::Grant;
use crate::state::{Sha256, hex};

/// A P-256 request has under 1 KiB in PEM.
pub const CSR_BYTES_MAX: usize = 16 << 10;
/// Clocks of peers may be this far behind ours.
const BACKDATE: time::Duration = time::Duration::minutes(5);

/// Why a signing request was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Longer than [`CSR_BYTES_MAX`].
    #[error("the signing request has {0} bytes, more than {CSR_BYTES_MAX}")]
    TooLong(usize),
    /// Not PEM with a `CERTIFICATE REQUEST` (RFC 7468).
    #[error("the signing request is not PEM: {0}")]
    Pem(String),
    /// Not PKCS #10 (RFC 2986), or bytes follow it.
    #[error("the signing request is not PKCS #10")]
    Malformed,
    /// Not a P-256 key in uncompressed form.
    #[error("the key in the signing request is not a P-256 key")]
    Key,
    /// The sender did not prove that it holds the private key.
    #[error("the signature of the signing request is wrong")]
    Signature,
}

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The issuer's own certificate has ended.
    #[error("the issuer's certificate ended {}, this machine's clock says {}", utc(*.ended), utc(*.now))]
    IssuerEnded {
        /// Its notAfter.
        ended: OffsetDateTime,
        /// Our clock.
        now: OffsetDateTime,
    },
    /// The issuer's own certificate has not begun.
    #[error("the issuer's certificate begins {}, this machine's clock says {}", utc(*.begins), utc(*.now))]
    IssuerNotBegun {
        /// Its notBefore.
        begins: OffsetDateTime,
        /// Our clock.
        now: OffsetDateTime,
    },
    /// The system gives no random numbers.
    #[error("no serial number")]
    Random(#[from] PkiError),
    /// The certificate could not be made.
    #[error("the certificate could not be made")]
    Make(#[from] rcgen::Error),
    /// The trust domain leaves no room for an identity.
    #[error("the authority's own identity is not a SPIFFE ID")]
    Identity(#[source] SpiffeIdError),
}

/// A time in RFC 3339 form, in whole seconds, for messages.
pub fn utc(at: OffsetDateTime) -> String {
    let whole = at.to_offset(time::UtcOffset::UTC).replace_nanosecond(0).unwrap_or(at);
    // Only years beyond 9999 have no such form.
    whole.format(&Rfc3339).unwrap_or_else(|_| whole.to_string())
}

/// A new certificate.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The leaf.
    pub der: CertificateDer<'static>,
    /// The leaf, what is between, and the root; PEM each.
    pub chain: Vec<String>,
    /// Hexadecimal.
    pub serial: String,
    /// Digest of the public key (SubjectPublicKeyInfo).
    pub key_sha256: Sha256,
    /// Digest of the issuer's certificate.
    pub issuer_sha256: Sha256,
    /// First second of validity.
    pub not_before: OffsetDateTime,
    /// Last second of validity.
    pub not_after: OffsetDateTime,
}

/// A P-256 key out of a signing request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafKey {
    /// The point, uncompressed (SEC 1, section 2.3.3).
    point: [u8; 65],
    /// Digest of its SubjectPublicKeyInfo (DER).
    pub sha256: Sha256,
}

impl PublicKeyData for LeafKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// Takes the public key out of a signing request in PEM; names and extensions in it are not looked at.
///
/// # Errors
/// See [`CsrError`].
pub fn read_csr(pem: &str) -> Result<LeafKey, CsrError> {
    if pem.len() > CSR_BYTES_MAX {
        return Err(CsrError::TooLong(pem.len()));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes());
    let der = der.map_err(|error| CsrError::Pem(error.to_string()))?;
    let Ok(([], request)) = X509CertificationRequest::from_der(&der) else { return Err(CsrError::Malformed) };
    let key = &request.certification_request_info.subject_pki;
    let point = p256_point(key).ok_or(CsrError::Key)?;
    request.verify_signature().map_err(|_| CsrError::Signature)?;
    Ok(LeafKey { point, sha256: sha256(key.raw) })
}

fn p256_point(key: &SubjectPublicKeyInfo<'_>) -> Option<[u8; 65]> {
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let point = <[u8; 65]>::try_from(key.subject_public_key.data.as_ref()).ok()?;
    let is_p256 = key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256);
    (is_p256 && point[0] == 4).then_some(point)
}

/// Signs a certificate for a workload.
///
/// # Errors
/// See [`IssueError`].
pub fn issue(
    authority: &Authority,
    key: &impl PublicKeyData,
    grant: &Grant,
    now: OffsetDateTime,
) -> Result<Issued, IssueError> {
    sign(authority, key, &grant.id, &[], grant.lifetime, now)
}

/// As [`issue`], with DNS names beside the identity: for the authority's own serving certificate.
///
/// # Errors
/// See [`IssueError`]; also when a name is not ASCII.
pub(crate) fn sign(
    authority: &Authority,
    key: &impl PublicKeyData,
    id: &SpiffeId,
    dns_names: &[String],
    lifetime: Duration,
    now: OffsetDateTime,
) -> Result<Issued, IssueError> {
    if now >= authority.not_after {
        return Err(IssueError::IssuerEnded { ended: authority.not_after, now });
    }
    if now < authority.not_before {
        return Err(IssueError::IssuerNotBegun { begins: authority.not_before, now });
    }
    let serial = random_serial()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
    for name in dns_names {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = (now - BACKDATE).max(authority.not_before);
    // Never past what the state says of this issuer's leaves: the root above it is dropped by that.
    let lifetime = lifetime.min(authority.longest_leaf);
    // A lifetime that no calendar holds ends with the issuer, like every lifetime that is too long.
    let wanted = time::Duration::try_from(lifetime).ok().and_then(|lifetime| now.checked_add(lifetime));
    params.not_after = wanted.unwrap_or(authority.not_after).min(authority.not_after);
    params.serial_number = Some(serial.clone());
    let leaf = params.signed_by(key, &authority.signer)?;
    Ok(Issued {
        chain: std::iter::once(leaf.pem()).chain(authority.above.iter().cloned()).collect(),
        key_sha256: sha256(&key.subject_public_key_info()),
        issuer_sha256: authority.sha256,
        der: leaf.der().clone(),
        serial: hex(&serial.to_bytes()),
        not_before: params.not_before,
        not_after: params.not_after,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{Scratch, as_pem, authority, openssl};
    use rcgen::{BasicConstraints, DnType, KeyPair};

    fn grant(lifetime: Duration) -> Grant {
        Grant { id: "spiffe://td/ns/demo/sa/web".parse().unwrap(), lifetime }
    }

    /// A request that asks for everything it must not get.
    fn greedy_request() -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "spiffe://td/ns/prod/sa/admin");
        params.subject_alt_names = vec![
            SanType::URI("spiffe://td/ns/prod/sa/admin".try_into().unwrap()),
            SanType::DnsName("localhost".try_into().unwrap()),
        ];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    #[test]
    fn every_field_is_ours_in_the_eyes_of_openssl() {
        let scratch = Scratch::new();
        let authority = authority();
        let key = read_csr(&greedy_request()).unwrap();
        let issued = issue(&authority, &key, &grant(Duration::from_secs(3600)), OffsetDateTime::now_utc()).unwrap();
        let file = |name: &str, text: &str| {
            let path = scratch.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let [leaf, issuer, root] = issued.chain.as_slice() else { panic!("{} certificates", issued.chain.len()) };
        let (leaf, issuer, root) = (file("leaf", leaf), file("issuer", issuer), file("root", root));
        for purpose in ["sslclient", "sslserver"] {
            let verify =
                ["verify", "-x509_strict", "-purpose", purpose, "-CAfile", &root, "-untrusted", &issuer, &leaf];
            assert!(openssl(&verify).contains("OK"));
        }
        let text = openssl(&["x509", "-in", &leaf, "-noout", "-text"]);
        for expected in [
            "URI:spiffe://td/ns/demo/sa/web",
            "X509v3 Subject Alternative Name: critical",
            "X509v3 Key Usage: critical\n                Digital Signature\n",
            "CA:FALSE",
            "TLS Web Client Authentication, TLS Web Server Authentication",
            "NIST CURVE: P-256",
            "ecdsa-with-SHA256",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        for forbidden in ["admin", "localhost", "DNS:", "CN =", "Code Signing", "Certificate Sign"] {
            assert!(
                !text.lines().filter(|line| !line.contains("Issuer:")).any(|line| line.contains(forbidden)),
                "{text}"
            );
        }
        assert_eq!(
            openssl(&["x509", "-in", &leaf, "-noout", "-serial"]).trim().to_lowercase(),
            format!("serial={}", issued.serial)
        );
        assert_eq!(openssl(&["x509", "-in", &leaf, "-noout", "-subject"]).trim(), "subject=");
    }

    #[test]
    fn serials_differ_and_times_are_clamped() {
        let authority = authority();
        let key = read_csr(&greedy_request()).unwrap();
        let now = OffsetDateTime::now_utc();
        let hour = grant(Duration::from_secs(3600));
        let (one, two) = (issue(&authority, &key, &hour, now).unwrap(), issue(&authority, &key, &hour, now).unwrap());
        assert_ne!(one.serial, two.serial);
        assert_eq!(one.serial.len(), 32);
        assert_eq!((one.not_before, one.not_after), (now - BACKDATE, now + time::Duration::hours(1)));
        for long in [Duration::from_secs(400 * 86400), Duration::MAX] {
            let longest = now + authority.longest_leaf;
            assert_eq!(issue(&authority, &key, &grant(long), now).unwrap().not_after, longest);
        }
        let near_the_end = authority.not_after - time::Duration::minutes(1);
        let short = issue(&authority, &key, &hour, near_the_end).unwrap();
        assert_eq!(short.not_after, authority.not_after);
        let late = issue(&authority, &key, &hour, authority.not_after);
        let Err(error @ IssueError::IssuerEnded { .. }) = late else { panic!("issued after the issuer's end") };
        assert!(error.to_string().ends_with(&format!("clock says {}", utc(authority.not_after))), "{error}");
        assert_eq!(utc(OffsetDateTime::UNIX_EPOCH), "1970-01-01T00:00:00Z");
        let early = issue(&authority, &key, &hour, authority.not_before - time::Duration::seconds(1));
        assert!(matches!(early, Err(IssueError::IssuerNotBegun { .. })));
    }

    #[test]
    fn peers_accept_what_is_issued() {
        let authority = authority();
        let pair = KeyPair::generate().unwrap();
        let request = CertificateParams::default().serialize_request(&pair).unwrap().pem().unwrap();
        let key = read_csr(&request).unwrap();
        let issued = issue(&authority, &key, &grant(Duration::from_secs(60)), OffsetDateTime::now_utc()).unwrap();
        let private = rustls_pki_types::PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
        let credentials = identity::Credentials::from_pem(issued.chain.concat().as_bytes(), private).unwrap();
        let bundle = identity::TrustBundle::from_pem(issued.chain[2].as_bytes()).unwrap();
        credentials.verify(&bundle, &"td".parse().unwrap(), rustls_pki_types::UnixTime::now()).unwrap();
        assert_eq!(credentials.id, grant(Duration::ZERO).id);
        assert_eq!(credentials.serial, issued.serial);
    }

    #[test]
    fn hostile_requests_are_refused_by_name() {
        let good = greedy_request();
        assert_eq!(read_csr(&"x".repeat(1 << 20)).err(), Some(CsrError::TooLong(1 << 20)));
        assert!(matches!(read_csr(""), Err(CsrError::Pem(_))));
        assert!(matches!(read_csr("nonsense"), Err(CsrError::Pem(_))));
        assert!(matches!(read_csr(&good.replace("CERTIFICATE REQUEST", "PRIVATE KEY")), Err(CsrError::Pem(_))));
        let garbage = "-----BEGIN CERTIFICATE REQUEST-----\nAAAAAAAA\n-----END CERTIFICATE REQUEST-----\n";
        assert_eq!(read_csr(garbage).err(), Some(CsrError::Malformed));
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
        for key in [p384, ed25519, rsa] {
            let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
            assert_eq!(read_csr(&request).err(), Some(CsrError::Key));
        }
    }

    #[test]
    fn a_changed_byte_is_refused_or_changes_nothing_that_is_taken() {
        let key = KeyPair::generate().unwrap();
        let der = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let mut accepted = 0;
        for position in 0..der.len() {
            let mut bytes = der.clone();
            bytes[position] ^= 1 << (position % 8);
            if let Ok(taken) = read_csr(&as_pem(&bytes)) {
                assert_eq!(taken.der_bytes(), key.der_bytes(), "byte {position}");
                accepted += 1;
            }
        }
        // The reader does not mind the tag of the signature algorithm's name, which is not signed and not taken.
        assert!(accepted <= 1, "{accepted} changes were accepted");
        let trailing = [der.as_slice(), &[0]].concat();
        assert_eq!(read_csr(&as_pem(&trailing)).err(), Some(CsrError::Malformed));
    }
}
