//! Who asks: the one interface behind which a caller's token is verified.
//!
//! Promises: whoever implements [`Attest`] says whose token it is, or why not; a name never comes from anywhere else.
//! Today a local key set does it ([`key_set`]); a TokenReview of the Kubernetes API fits behind the same interface.
//! Leaves to others: what the caller may have (`policy`).

pub mod key_set;
mod verified;

use jsonwebtoken::Algorithm;

/// Verifies tokens.
#[tonic::async_trait]
pub trait Attest: Send + Sync {
    /// Says whose token this is at `now` (seconds since 1970).
    ///
    /// # Errors
    /// See [`TokenError`].
    async fn attest(&self, token: &str, now: u64) -> Result<Caller, TokenError>;
}

/// Why a token was refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The call had no `authorization: Bearer <token>`.
    #[error("the call has no bearer token")]
    Missing,
    /// Longer than any token.
    #[error("the token has {0} bytes, more than are read")]
    TooLong(usize),
    /// Not a JSON Web Token, or its claims have wrong types.
    #[error("the token is malformed: {0}")]
    Malformed(String),
    /// Its `kid` is absent or not in the key set.
    #[error("the token is signed with the key {0:?}, which is not in the key set")]
    UnknownKey(Option<String>),
    /// It names another algorithm than its key has.
    #[error("the token says {found}, its key is for {expected:?}")]
    Algorithm {
        /// From the key set.
        expected: Algorithm,
        /// From the token.
        found: String,
    },
    /// The signature is wrong.
    #[error("the token's signature is wrong")]
    Signature,
    /// Of another issuer.
    #[error("the token's issuer is {found:?}, expected was {expected:?}")]
    Issuer {
        /// From the configuration.
        expected: String,
        /// From the token.
        found: String,
    },
    /// For another audience.
    #[error("the token's audience is {found:?}, expected was {expected:?}")]
    Audience {
        /// From the configuration.
        expected: String,
        /// From the token.
        found: Vec<String>,
    },
    /// Ended.
    #[error("the token ended at {ended}, this machine's clock says {now} (seconds since 1970)")]
    Expired {
        /// `exp`.
        ended: u64,
        /// Our clock.
        now: u64,
    },
    /// Not valid yet.
    #[error("the token begins at {begins}, this machine's clock says {now} (seconds since 1970)")]
    NotYetValid {
        /// `nbf`.
        begins: u64,
        /// Our clock.
        now: u64,
    },
    /// The subject is not a service account.
    #[error("the token's subject {0:?} is not system:serviceaccount:<namespace>:<name>")]
    Subject(String),
    /// Made to live for too long: a stolen one would be good for as long.
    #[error("the token lives {lifetime} s, more than {limit} s")]
    TooLongLived {
        /// From `nbf` or `iat` to `exp`.
        lifetime: u64,
        /// From the configuration.
        limit: u64,
    },
    /// Bound to no pod.
    #[error("the token is not bound to a pod by name and uid")]
    Unbound,
    /// The subject and the Kubernetes claim disagree.
    #[error("the token's subject and its kubernetes.io claim name different service accounts")]
    Contradiction,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The namespace of the service account.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// Name of the pod that the token is bound to.
    pub pod: Option<String>,
    /// Its uid.
    pub pod_uid: Option<String>,
}
