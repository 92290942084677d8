//! Tokens of the shape that Kubernetes projects into pods, for places without Kubernetes: tests and the demo.
//!
//! Promises: what is made here passes `attest`, and nothing about it is special there. A real cluster's tokens come
//! from its API server.

use jsonwebtoken::jwk::{Jwk, JwkSet, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    /// No key could be made.
    #[error("a token key could not be made")]
    Make(#[from] rcgen::Error),
    /// The key cannot be read or used; it must be a P-256 key in PKCS #8 PEM.
    #[error("the token key cannot be used (P-256 in PKCS #8 PEM is needed)")]
    Use(#[from] jsonwebtoken::errors::Error),
}

/// A key that signs tokens (ES256).
pub struct TokenKey {
    pem: String,
    key: EncodingKey,
    public: Jwk,
}

/// What a token says.
pub struct Claim<'a> {
    /// `iss`.
    pub issuer: &'a str,
    /// `aud`.
    pub audience: &'a str,
    /// Half of the subject.
    pub namespace: &'a str,
    /// The other half.
    pub service_account: &'a str,
    /// The pod it is bound to.
    pub pod: Option<&'a str>,
    /// The pod's uid.
    pub pod_uid: Option<&'a str>,
    /// `iat` and `nbf`, seconds since 1970.
    pub issued: u64,
    /// Until `exp`; whole seconds count.
    pub lifetime: Duration,
}

impl TokenKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate() -> Result<Self, TokenKeyError> {
        Self::from_pem(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.serialize_pem())
    }

    /// Reads a key from PKCS #8 PEM.
    ///
    /// # Errors
    /// When it is not a P-256 key.
    pub fn from_pem(pem: String) -> Result<Self, TokenKeyError> {
        let key = EncodingKey::from_ec_pem(pem.as_bytes())?;
        let mut public = Jwk::from_encoding_key(&key, Algorithm::ES256)?;
        public.common.key_id = Some(public.thumbprint(ThumbprintHash::SHA256));
        Ok(Self { pem, key, public })
    }

    /// The private key, PKCS #8 PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The public key as a JSON Web Key Set of one (RFC 7517).
    pub fn key_set(&self) -> String {
        json!(JwkSet { keys: vec![self.public.clone()] }).to_string()
    }

    /// Signs a ServiceAccount-shaped token.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue(&self, claim: &Claim<'_>) -> Result<String, TokenKeyError> {
        let mut bound = json!({ "namespace": claim.namespace, "serviceaccount": { "name": claim.service_account } });
        if let Some(pod) = claim.pod {
            bound["pod"] = json!({ "name": pod, "uid": claim.pod_uid });
        }
        self.sign(&json!({
            "iss": claim.issuer,
            "sub": format!("system:serviceaccount:{}:{}", claim.namespace, claim.service_account),
            "aud": [claim.audience],
            "iat": claim.issued,
            "nbf": claim.issued,
            "exp": claim.issued.saturating_add(claim.lifetime.as_secs()),
            "kubernetes.io": bound,
        }))
    }

    pub(crate) fn sign(&self, claims: &impl Serialize) -> Result<String, TokenKeyError> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid.clone_from(&self.public.common.key_id);
        Ok(jsonwebtoken::encode(&header, claims, &self.key)?)
    }
}
