//! Roots and issuers as certificates and keys: making them, reading them, and whether they belong together.
//!
//! Promises: a root that is made here signs issuers only (path length 1), an issuer signs leaves only (path length 0),
//! all are P-256, and no certificate ends after the one above it. Time is an argument. Leaves to others: when one is
//! made (`lifecycle`), the files (`store`), and what a leaf says (`issue`).

use std::fmt::Display;

use identity::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer as Signer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::state::{Issuer, Root, RootUse, Seconds, Sha256};

/// Clocks that are a little behind must find a new certificate valid.
pub const BACKDATE: Duration = Duration::hours(1);

/// Why there is no certificate or no key.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// It could not be made.
    #[error("a certificate could not be made")]
    Make(#[from] rcgen::Error),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// A time that no certificate can hold.
    #[error("{0} seconds since 1970 is no time that a certificate can hold")]
    Time(Seconds),
    /// A certificate or a key cannot be read as what it should be.
    #[error("{what} is damaged: {detail}")]
    Damaged {
        /// Which.
        what: String,
        /// What the reader says.
        detail: String,
    },
    /// There is no certificate.
    #[error("{0} has no certificate")]
    Empty(String),
    /// A key belongs to another certificate.
    #[error("{key} is not the key of {certificate}")]
    KeyMismatch {
        /// The key's file.
        key: String,
        /// Which certificate.
        certificate: String,
    },
    /// A certificate is not signed by the one above it.
    #[error("{certificate} is not signed by {above}")]
    NotSignedBy {
        /// Which.
        certificate: String,
        /// Which.
        above: String,
    },
}

/// The SHA-256 digest of some bytes.
pub fn sha256(bytes: &[u8]) -> Sha256 {
    Sha256(identity::sha256(bytes))
}

/// 126 random bits, positive and always 16 bytes long (RFC 5280, section 4.1.2.2).
pub(crate) fn random_serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0; 16];
    identity::provider().secure_random.fill(&mut bytes).map_err(|_| PkiError::Random)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Makes a root and its key (PKCS #8 PEM), to be kept in `root-<id>-key.pem`.
///
/// # Errors
/// See [`PkiError`].
pub fn new_root(domain: &TrustDomain, id: u32, lifetime: Seconds, now: Seconds) -> Result<(Root, String), PkiError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let end = now.saturating_add(lifetime);
    let params = params(&format!("Picket root {id}"), domain, BasicConstraints::Constrained(1), now, end)?;
    let certificate = params.self_signed(&key)?;
    let root = Root {
        id,
        r#use: RootUse::Trusted,
        sha256: sha256(certificate.der()),
        certificate: certificate.pem(),
        not_before: params.not_before.unix_timestamp(),
        not_after: end,
        key_file: Some(format!("root-{id}-key.pem")),
    };
    Ok((root, key.serialize_pem()))
}

/// What a new issuer is made of.
#[derive(Clone, Copy, Debug)]
pub struct NewIssuer<'a> {
    /// The trust domain, for its name.
    pub domain: &'a TrustDomain,
    /// Its id.
    pub id: u32,
    /// The root above it.
    pub root: &'a Root,
    /// The root's key, PEM.
    pub root_key: &'a str,
    /// Its lifetime; cut at the root's end.
    pub lifetime: Seconds,
    /// The longest lifetime of a leaf under it.
    pub longest_leaf: Seconds,
}

/// Makes an issuer and its key (PKCS #8 PEM), to be kept in `issuer-<id>-key.pem`.
///
/// # Errors
/// See [`PkiError`].
pub fn new_issuer(new: &NewIssuer<'_>, now: Seconds) -> Result<(Issuer, String), PkiError> {
    let NewIssuer { domain, id, root, .. } = *new;
    let name = format!("root {}", root.id);
    let root_key = read_key(&format!("the key of {name}"), new.root_key)?;
    let root_der = read_certificate(&name, &root.certificate)?;
    let signer = Signer::from_ca_cert_der(&root_der, root_key)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let end = now.saturating_add(new.lifetime).min(root.not_after);
    let mut params = params(&format!("Picket issuer {id}"), domain, BasicConstraints::Constrained(0), now, end)?;
    params.not_before = params.not_before.max(at(root.not_before)?);
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &signer)?;
    let issuer = Issuer {
        id,
        root: root.id,
        sha256: sha256(certificate.der()),
        chain: vec![certificate.pem()],
        not_before: params.not_before.unix_timestamp(),
        not_after: end,
        key_file: format!("issuer-{id}-key.pem"),
        created: now,
        brought: false,
        longest_leaf: new.longest_leaf,
        leaves_end: None,
    };
    Ok((issuer, key.serialize_pem()))
}

fn params(
    name: &str,
    domain: &TrustDomain,
    path_length: BasicConstraints,
    now: Seconds,
    end: Seconds,
) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, domain.as_str());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(path_length);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(random_serial()?);
    params.not_before = at(now)? - BACKDATE;
    params.not_after = at(end)?;
    Ok(params)
}

/// A time for a certificate.
///
/// # Errors
/// Beyond the year 9999.
pub fn at(seconds: Seconds) -> Result<OffsetDateTime, PkiError> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| PkiError::Time(seconds))
}

/// The bytes of one certificate in PEM.
///
/// # Errors
/// When it is none; `what` is it, for the message.
pub fn read_certificate(what: &str, pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(what, error))
}

/// A certificate's fields.
///
/// # Errors
/// When it cannot be read, or bytes follow it.
pub fn parse<'a>(what: &str, der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PkiError> {
    match X509Certificate::from_der(der) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) => Err(damaged(what, "bytes after its end")),
        Err(error) => Err(damaged(what, error)),
    }
}

/// The digest of the public key (SubjectPublicKeyInfo) in a certificate in PEM, as deny lists name it.
///
/// # Errors
/// When it is none; `what` is it, for the message.
pub fn key_of(what: &str, pem: &str) -> Result<Sha256, PkiError> {
    let der = read_certificate(what, pem)?;
    Ok(sha256(parse(what, &der)?.public_key().raw))
}

/// A private key in PEM: PKCS #8, or the older forms of RSA and EC keys.
///
/// # Errors
/// When it is none that can sign.
pub fn read_key(what: &str, pem: &str) -> Result<KeyPair, PkiError> {
    let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(what, error))?;
    KeyPair::try_from(&der).map_err(|error| damaged(what, error))
}

/// Whether `key` is the key of a certificate.
pub fn is_pair(certificate: &X509Certificate<'_>, key: &KeyPair) -> bool {
    certificate.public_key().subject_public_key.data.as_ref() == key.der_bytes()
}

fn damaged(what: &str, error: impl Display) -> PkiError {
    PkiError::Damaged { what: what.into(), detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_ends_with_its_root_at_the_latest() {
        let domain = "td".parse().unwrap();
        let now = 1_800_000_000;
        let (root, root_key) = new_root(&domain, 1, 1000, now).unwrap();
        let new = |lifetime| NewIssuer {
            domain: &domain,
            id: 2,
            root: &root,
            root_key: &root_key,
            lifetime,
            longest_leaf: 9,
        };
        for (lifetime, end) in [(500, now + 500), (5000, now + 1000)] {
            let (issuer, key) = new_issuer(&new(lifetime), now).unwrap();
            assert_eq!((issuer.not_after, issuer.root, issuer.longest_leaf), (end, 1, 9));
            let der = read_certificate("issuer", &issuer.chain[0]).unwrap();
            let parsed = parse("issuer", &der).unwrap();
            assert_eq!(parsed.validity().not_after.timestamp(), end);
            assert_eq!(issuer.sha256, sha256(&der));
            assert!(is_pair(&parsed, &read_key("key", &key).unwrap()));
            assert!(!is_pair(&parsed, &read_key("key", &root_key).unwrap()));
        }
        let end_of_time = new_root(&domain, 1, i64::MAX, now);
        assert!(matches!(end_of_time, Err(PkiError::Time(_))));
    }

    #[test]
    fn what_is_no_key_or_certificate_says_so() {
        assert!(
            read_key("issuer-2-key.pem", "nonsense").unwrap_err().to_string().contains("issuer-2-key.pem is damaged")
        );
        assert!(matches!(read_certificate("root 1", ""), Err(PkiError::Damaged { .. })));
        let garbage = CertificateDer::from(vec![0x30, 0]);
        assert!(matches!(parse("root 1", &garbage), Err(PkiError::Damaged { .. })));
        assert_eq!(sha256(b"abc").to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
