//! An issuer, ready to sign: its key, what stands above it, and for how long.
//!
//! Promises: key, certificates and root were checked to belong together before anything is signed. A value never
//! changes; a rotation makes another one.

use std::time::Duration;

use rcgen::{Issuer as Signer, KeyPair};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::pki::{self, PkiError};
use crate::state::{Issuer, Root, Sha256, State};
use crate::store::{Directory, StoreError};

/// Why an issuer cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Its key cannot be read.
    #[error("the key cannot be had")]
    Store(#[from] StoreError),
    /// The file with its key is not there.
    #[error("{0} is missing")]
    Missing(String),
    /// Key, certificate and root do not belong together.
    #[error("it cannot be used")]
    Pki(#[from] PkiError),
}

/// An issuer, ready to sign.
pub struct Authority {
    pub(crate) signer: Signer<'static, KeyPair>,
    /// Above the leaf: the issuer, those between, the root; PEM each.
    pub above: Vec<String>,
    /// Digest of the issuer's certificate.
    pub sha256: Sha256,
    /// The issuer's id.
    pub id: u32,
    /// When the issuer begins to be valid.
    pub not_before: OffsetDateTime,
    /// When the issuer ends; no leaf lives longer.
    pub not_after: OffsetDateTime,
    /// The longest lifetime of a leaf that may be granted.
    pub longest_leaf: Duration,
}

impl Authority {
    /// Loads an issuer of `state`.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub fn load(directory: &Directory, state: &State, issuer: &Issuer) -> Result<Self, AuthorityError> {
        let pem = directory.read(&issuer.key_file)?.ok_or_else(|| AuthorityError::Missing(issuer.key_file.clone()))?;
        let root = state.root(issuer.root).ok_or_else(|| AuthorityError::Missing(format!("root {}", issuer.root)))?;
        Ok(Self::assemble(issuer, root, &pem)?)
    }

    /// Puts an issuer, the root it leads to and its key (PEM) together.
    ///
    /// # Errors
    /// When they do not belong together.
    pub fn assemble(issuer: &Issuer, root: &Root, key_pem: &str) -> Result<Self, PkiError> {
        let key = pki::read_key(&issuer.key_file, key_pem)?;
        let name = format!("issuer {}", issuer.id);
        let mut above = issuer.chain.clone();
        // A root that an operator brought may sign leaves itself.
        if issuer.sha256 != root.sha256 {
            above.push(root.certificate.clone());
        }
        let chain = above.iter().map(|pem| pki::read_certificate(&name, pem)).collect::<Result<Vec<_>, _>>()?;
        check_signatures(&name, &format!("root {}", root.id), &chain)?;
        let [own, ..] = chain.as_slice() else { return Err(PkiError::Empty(name)) };
        if !pki::is_pair(&pki::parse(&name, own)?, &key) {
            return Err(PkiError::KeyMismatch { key: issuer.key_file.clone(), certificate: name });
        }
        Ok(Self {
            signer: Signer::from_ca_cert_der(own, key)?,
            above,
            sha256: issuer.sha256,
            id: issuer.id,
            not_before: pki::at(issuer.not_before)?,
            not_after: pki::at(issuer.not_after.min(root.not_after))?,
            longest_leaf: Duration::from_secs(u64::try_from(issuer.longest_leaf).unwrap_or(0)),
        })
    }
}

/// Each certificate is signed by the next one.
fn check_signatures(name: &str, root: &str, chain: &[CertificateDer<'_>]) -> Result<(), PkiError> {
    for (number, pair) in chain.windows(2).enumerate() {
        let [lower, upper] = pair else { continue };
        let above = if number + 2 == chain.len() { root } else { "the certificate above it" };
        let upper = pki::parse(above, upper)?;
        let signed = pki::parse(name, lower)?.verify_signature(Some(upper.public_key()));
        signed.map_err(|_| PkiError::NotSignedBy { certificate: name.into(), above: above.into() })?;
    }
    Ok(())
}
