//! The trust bundle: the root certificates that vouch for the identities of one trust domain.
//!
//! Promises: a bundle holds at least one and at most [`ROOTS_MAX`] roots, each readable and each a certificate
//! authority. Leaves to others: where the file comes from, when it is replaced, and the verification of peers.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::deny::sha256;

/// A bundle with more roots than this is a mistake: rotation needs two, some operators keep a few more.
pub const ROOTS_MAX: usize = 32;

/// Why a text is not a trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The text is not well-formed PEM (RFC 7468).
    #[error("the trust bundle is not PEM: {0}")]
    Pem(String),
    /// There is no `CERTIFICATE` section in it.
    #[error("the trust bundle has no certificate")]
    Empty,
    /// More than [`ROOTS_MAX`] certificates.
    #[error("the trust bundle has more than {ROOTS_MAX} certificates")]
    TooMany,
    /// One of the certificates cannot be read.
    #[error("certificate {position} of the trust bundle cannot be read")]
    Certificate {
        /// Counted from 1.
        position: usize,
        /// What the reader says.
        #[source]
        source: webpki::Error,
    },
    /// One of the certificates may not sign others (no CA:TRUE).
    #[error("certificate {position} of the trust bundle is not a certificate authority")]
    NotAnAuthority {
        /// Counted from 1.
        position: usize,
    },
}

/// The roots of one trust domain.
#[derive(Clone, Debug)]
pub struct TrustBundle {
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    keys: Vec<RootKey>,
}

/// By what a root is found again above a certificate.
#[derive(Clone, Debug)]
struct RootKey {
    /// DER.
    subject: Box<[u8]>,
    /// Of its SubjectPublicKeyInfo (DER).
    sha256: [u8; 32],
}

impl TrustBundle {
    /// Reads the `CERTIFICATE` sections of a PEM text; other sections are passed over.
    ///
    /// # Errors
    /// See [`BundleError`]; one bad root refuses the whole bundle, so that a damaged file is noticed.
    pub fn from_pem(pem: &[u8]) -> Result<Self, BundleError> {
        let roots = CertificateDer::pem_slice_iter(pem);
        Self::collect(roots.map(|root| root.map_err(|error| BundleError::Pem(error.to_string()))))
    }

    /// A bundle of these certificates (DER).
    ///
    /// # Errors
    /// As for [`TrustBundle::from_pem`].
    pub fn from_der(roots: impl IntoIterator<Item = Vec<u8>>) -> Result<Self, BundleError> {
        Self::collect(roots.into_iter().map(|root| Ok(CertificateDer::from(root))))
    }

    fn collect(roots: impl Iterator<Item = Result<CertificateDer<'static>, BundleError>>) -> Result<Self, BundleError> {
        let mut bundle = Self { roots: Vec::new(), anchors: Vec::new(), keys: Vec::new() };
        for root in roots {
            let root = root?;
            let position = bundle.roots.len() + 1;
            if position > ROOTS_MAX {
                return Err(BundleError::TooMany);
            }
            let anchor = webpki::anchor_from_trusted_cert(&root)
                .map_err(|source| BundleError::Certificate { position, source })?;
            bundle.anchors.push(anchor.to_owned());
            let key = authority_key(&root).ok_or(BundleError::NotAnAuthority { position })?;
            bundle.keys.push(key);
            bundle.roots.push(root);
        }
        if bundle.roots.is_empty() {
            return Err(BundleError::Empty);
        }
        Ok(bundle)
    }

    /// The root certificates, in the order of the file.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// Digests of the keys of the roots that signed this certificate of a verified chain. The name tells which; where
    /// several roots have it, the signature does.
    pub(crate) fn signers(&self, certificate: &X509Certificate<'_>) -> Vec<[u8; 32]> {
        let issuer = certificate.issuer().as_raw();
        let named = || self.keys.iter().zip(&self.roots).filter(|(key, _)| *key.subject == *issuer);
        let is_alone = named().count() < 2;
        named().filter(|(_, root)| is_alone || is_signed_by(certificate, root)).map(|(key, _)| key.sha256).collect()
    }
}

fn authority_key(certificate: &CertificateDer<'_>) -> Option<RootKey> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok().filter(|(_, parsed)| parsed.is_ca())?;
    Some(RootKey { subject: parsed.subject().as_raw().into(), sha256: sha256(parsed.public_key().raw) })
}

fn is_signed_by(certificate: &X509Certificate<'_>, root: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(root).is_ok_and(|(_, root)| certificate.verify_signature(Some(root.public_key())).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_pki::{Authority, Leaf};

    #[test]
    fn reads_every_root_of_a_file() {
        let (one, two) = (Authority::root("one"), Authority::root("two"));
        let bundle = TrustBundle::from_pem(format!("comment\n{}{}", one.pem(), two.pem()).as_bytes()).unwrap();
        assert_eq!(bundle.roots(), [one.der(), two.der()]);
    }

    #[test]
    fn refuses_what_is_no_bundle() {
        let root = Authority::root("root");
        let error = |text: &str| TrustBundle::from_pem(text.as_bytes()).unwrap_err();
        assert!(matches!(error(""), BundleError::Empty));
        assert!(matches!(error("nothing here"), BundleError::Empty));
        assert!(matches!(error("-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n"), BundleError::Pem(_)));
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(error(&format!("{}{garbage}", root.pem())), BundleError::Certificate { position: 2, .. }));
        assert!(matches!(error(&root.pem().repeat(ROOTS_MAX + 1)), BundleError::TooMany));
        let leaf = Leaf::new("spiffe://td/ns/a/sa/b").issue(&root);
        assert!(matches!(error(&leaf.pem), BundleError::NotAnAuthority { position: 1 }));
    }
}
