//! The authority itself: root → issuer → leaves, all P-256.
//!
//! Promises: the root signs one issuer (path length 0) and nothing else; a directory is initialised once and gives the
//! same root for ever; keys, certificates and trust domain are checked to belong together before anything is signed.
//! Leaves to others: the files ([`Directory`]) and what a leaf says (`issue`).

use identity::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use x509_parser::pem::parse_x509_pem;

use crate::store::{Directory, StoreError};

const ROOT: &str = "root.pem";
const ROOT_KEY: &str = "root-key.pem";
const ISSUER: &str = "issuer.pem";
const ISSUER_KEY: &str = "issuer-key.pem";
const ROOT_LIFETIME: Duration = Duration::days(3650);
const ISSUER_LIFETIME: Duration = Duration::days(365);
/// Clocks that are a little behind must find the new root valid.
const BACKDATE: Duration = Duration::hours(1);

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The directory cannot be used.
    #[error("the authority's directory cannot be used")]
    Store(#[from] StoreError),
    /// A certificate or key could not be made.
    #[error("a certificate could not be made")]
    Make(#[from] rcgen::Error),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// A file is missing beside others that are there.
    #[error("{0} is missing, though the directory has a root")]
    Missing(&'static str),
    /// A file cannot be read as what it should be.
    #[error("{file} is damaged: {detail}")]
    Damaged {
        /// Which.
        file: &'static str,
        /// What the reader says.
        detail: String,
    },
    /// A key belongs to another certificate.
    #[error("{key} is not the key of {certificate}")]
    KeyMismatch {
        /// The key's file.
        key: &'static str,
        /// The certificate's file.
        certificate: &'static str,
    },
    /// The directory was made for another trust domain.
    #[error("the directory belongs to the trust domain {found}, the configuration says {expected}")]
    TrustDomain {
        /// From the configuration.
        expected: TrustDomain,
        /// From the root certificate.
        found: String,
    },
}

/// The issuer, ready to sign, with what goes below and above it.
pub struct Authority {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    /// The issuer's certificate, PEM.
    pub issuer_pem: String,
    /// The root certificate, PEM: the trust bundle.
    pub root_pem: String,
    /// When the issuer begins to be valid.
    pub not_before: OffsetDateTime,
    /// When the issuer ends; no leaf lives longer.
    pub not_after: OffsetDateTime,
}

impl Authority {
    /// Loads the authority of `directory`, or makes one when the directory has none. `true` when it was made.
    ///
    /// # Errors
    /// See [`RootError`]. A directory that holds only a part of an authority is refused, never completed, unless the
    /// root certificate (which is written last) is what is missing.
    pub fn open(directory: &Directory, domain: &TrustDomain, now: OffsetDateTime) -> Result<(Self, bool), RootError> {
        let made = directory.read(ROOT)?.is_none();
        if made {
            create(directory, domain, now)?;
        }
        Ok((load(directory, domain)?, made))
    }
}

fn create(directory: &Directory, domain: &TrustDomain, now: OffsetDateTime) -> Result<(), RootError> {
    let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let root_params = params("Picket root", domain, BasicConstraints::Constrained(1), now, ROOT_LIFETIME)?;
    let root = root_params.self_signed(&root_key)?;
    let signer = Issuer::from_params(&root_params, &root_key);
    let issuer_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut issuer_params = params("Picket issuer", domain, BasicConstraints::Constrained(0), now, ISSUER_LIFETIME)?;
    issuer_params.use_authority_key_identifier_extension = true;
    let issuer = issuer_params.signed_by(&issuer_key, &signer)?;
    directory.write(ROOT_KEY, &root_key.serialize_pem())?;
    directory.write(ISSUER_KEY, &issuer_key.serialize_pem())?;
    directory.write(ISSUER, &issuer.pem())?;
    // Last: a directory with a root is complete.
    directory.write(ROOT, &root.pem())?;
    Ok(())
}

fn params(
    name: &str,
    domain: &TrustDomain,
    path_length: BasicConstraints,
    now: OffsetDateTime,
    lifetime: Duration,
) -> Result<CertificateParams, RootError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, domain.as_str());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(path_length);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(random_serial().ok_or(RootError::Random)?);
    params.not_before = now - BACKDATE;
    params.not_after = now + lifetime;
    Ok(params)
}

/// 126 random bits, positive and always 16 bytes long (RFC 5280, section 4.1.2.2).
pub(crate) fn random_serial() -> Option<SerialNumber> {
    let mut bytes = [0; 16];
    identity::provider().secure_random.fill(&mut bytes).ok()?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Some(SerialNumber::from_slice(&bytes))
}

fn load(directory: &Directory, domain: &TrustDomain) -> Result<Authority, RootError> {
    let read = |name| directory.read(name)?.ok_or(RootError::Missing(name));
    let (root_pem, issuer_pem) = (read(ROOT)?, read(ISSUER)?);
    // The root's key is not used here, but a directory without it could not rotate its issuer.
    check_pair(ROOT, &root_pem, ROOT_KEY, &read_key(ROOT_KEY, &read(ROOT_KEY)?)?)?;
    let key = read_key(ISSUER_KEY, &read(ISSUER_KEY)?)?;
    check_pair(ISSUER, &issuer_pem, ISSUER_KEY, &key)?;
    check_domain(&root_pem, domain)?;
    let (_, pem) = parse_x509_pem(issuer_pem.as_bytes()).map_err(|error| damaged(ISSUER, error))?;
    let validity = pem.parse_x509().map_err(|error| damaged(ISSUER, error))?.validity().clone();
    let issuer = Issuer::from_ca_cert_pem(&issuer_pem, key)?;
    let (not_before, not_after) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    Ok(Authority { issuer, issuer_pem, root_pem, not_before, not_after })
}

fn damaged(file: &'static str, error: impl std::fmt::Display) -> RootError {
    RootError::Damaged { file, detail: error.to_string() }
}

fn read_key(file: &'static str, pem: &str) -> Result<KeyPair, RootError> {
    KeyPair::from_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256).map_err(|error| damaged(file, error))
}

fn check_pair(certificate: &'static str, pem: &str, key: &'static str, pair: &KeyPair) -> Result<(), RootError> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|error| damaged(certificate, error))?;
    let parsed = pem.parse_x509().map_err(|error| damaged(certificate, error))?;
    if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
        return Err(RootError::KeyMismatch { key, certificate });
    }
    Ok(())
}

fn check_domain(root_pem: &str, expected: &TrustDomain) -> Result<(), RootError> {
    let (_, pem) = parse_x509_pem(root_pem.as_bytes()).map_err(|error| damaged(ROOT, error))?;
    let parsed = pem.parse_x509().map_err(|error| damaged(ROOT, error))?;
    let organization = parsed.subject().iter_organization().next().and_then(|name| name.as_str().ok());
    if organization != Some(expected.as_str()) {
        let found = organization.unwrap_or("(none)").to_owned();
        return Err(RootError::TrustDomain { expected: expected.clone(), found });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::Scratch;

    #[test]
    fn a_directory_keeps_its_root() {
        let scratch = Scratch::new();
        let directory = Directory::open(&scratch.path().join("ca")).unwrap();
        let (domain, now) = ("td".parse().unwrap(), OffsetDateTime::now_utc());
        let (first, made) = Authority::open(&directory, &domain, now).unwrap();
        let (second, made_again) = Authority::open(&directory, &domain, now).unwrap();
        assert!(made && !made_again);
        assert_eq!((first.root_pem, first.issuer_pem), (second.root_pem, second.issuer_pem));
        let error = Authority::open(&directory, &"other".parse().unwrap(), now).err().unwrap();
        assert!(matches!(error, RootError::TrustDomain { .. }));
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let scratch = Scratch::new();
        let directory = Directory::open(&scratch.path().join("ca")).unwrap();
        let (domain, now) = ("td".parse().unwrap(), OffsetDateTime::now_utc());
        Authority::open(&directory, &domain, now).unwrap();
        let issuer_key = directory.read(ISSUER_KEY).unwrap().unwrap();
        let root_key = directory.read(ROOT_KEY).unwrap().unwrap();
        directory.write(ISSUER_KEY, &root_key).unwrap();
        assert!(matches!(Authority::open(&directory, &domain, now), Err(RootError::KeyMismatch { .. })));
        directory.write(ISSUER_KEY, "nonsense").unwrap();
        assert!(matches!(Authority::open(&directory, &domain, now), Err(RootError::Damaged { .. })));
        directory.write(ISSUER_KEY, &issuer_key).unwrap();
        std::fs::remove_file(directory.file(ISSUER)).unwrap();
        assert!(matches!(Authority::open(&directory, &domain, now), Err(RootError::Missing(ISSUER))));
    }
}
