//! Signatures that outlive the connection: a workload signs with the key of its certificate, and who has the roots can
//! verify it later.
//!
//! The chain is verified as a peer's would be, at the time that was signed.

use rustls::SignatureScheme;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::EndEntityCert;

use crate::{Credentials, PeerError, Role, SpiffeId, TrustBundle, peer, verify_peer};

/// Why a signature is not one of a workload.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SignatureError {
    /// The certificate is not one that peers would have taken at that time.
    #[error("the certificate was not good at the time of signing")]
    Certificate(#[from] PeerError),
    /// The signature is not by the key of the certificate, or not over these bytes.
    #[error("the signature does not fit the certificate and what was signed")]
    Signature,
}

impl Credentials {
    /// Signs with ECDSA over P-256 and SHA-256 (ASN.1 DER); `None` when the key is of another kind.
    pub fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.certified_key.key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256])?.sign(message).ok()
    }
}

/// Verifies a signature by the key of `chain`'s leaf, as of `now`; whom the leaf names.
///
/// # Errors
/// See [`SignatureError`]; the certificates are looked at first.
pub fn verify_signature(
    chain: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    message: &[u8],
    signature: &[u8],
    now: UnixTime,
) -> Result<SpiffeId, SignatureError> {
    let leaf = chain.first().ok_or(PeerError::CertificateMissing)?;
    let id = peer::identity_of(leaf)?;
    // The roots say whom they vouch for: each bundle is of one trust domain.
    verify_peer(chain, bundle, &id.trust_domain(), Role::Client, now)?;
    EndEntityCert::try_from(leaf)
        .and_then(|leaf| leaf.verify_signature(webpki::aws_lc_rs::ECDSA_P256_SHA256, message, signature))
        .map_err(|_| SignatureError::Signature)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::test_pki::{Authority, Leaf, now};

    #[test]
    fn a_signature_is_good_for_its_bytes_its_key_its_roots_and_its_time() {
        let (root, other) = (Authority::root("root"), Authority::root("other"));
        let leaf = Leaf::new("spiffe://td/ns/a/sa/b").issue(&root);
        let credentials = Credentials::new(vec![leaf.der.clone()], leaf.key()).unwrap();
        let signature = credentials.sign(b"message").unwrap();
        let verify = |leaf: &CertificateDer<'static>, root: &Authority, message: &[u8], at| {
            verify_signature(std::slice::from_ref(leaf), &root.bundle(), message, &signature, at)
        };
        assert_eq!(verify(&leaf.der, &root, b"message", now()).unwrap(), credentials.id);
        assert!(matches!(verify(&leaf.der, &root, b"another", now()), Err(SignatureError::Signature)));
        let stranger = Leaf::new("spiffe://td/ns/a/sa/b").issue(&root);
        assert!(matches!(verify(&stranger.der, &root, b"message", now()), Err(SignatureError::Signature)));
        let untrusted = verify(&leaf.der, &other, b"message", now());
        assert!(matches!(untrusted, Err(SignatureError::Certificate(PeerError::Untrusted { .. }))));
        let late = UnixTime::since_unix_epoch(Duration::from_secs(now().as_secs() + 7200));
        let expired = verify(&leaf.der, &root, b"message", late);
        assert!(matches!(expired, Err(SignatureError::Certificate(PeerError::Expired { .. }))));
    }
}
