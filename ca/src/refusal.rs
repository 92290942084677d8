//! Why a call was refused: the error, the status that the caller gets, and the reason in records and counters.
//!
//! Promises: the list of reasons is closed, and each error has exactly one.

use tonic::{Code, Status};

use crate::attest::TokenError;
use crate::issue::{CsrError, IssueError};
use crate::policy::PolicyError;
use crate::trust::TrustError;

/// Why a call was refused.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The call itself cannot be read.
    #[error("the call cannot be read: {0}")]
    Call(String),
    /// It took too long.
    #[error("the call was not answered in time")]
    Timeout,
    /// The token.
    #[error("the caller is not who it says")]
    Token(#[from] TokenError),
    /// The rules.
    #[error("the caller may not have what it asks for")]
    Policy(#[from] PolicyError),
    /// The signing request.
    #[error("the signing request cannot be used")]
    Csr(#[from] CsrError),
    /// The issuer.
    #[error("nothing can be issued")]
    Issue(#[from] IssueError),
    /// The state.
    #[error("nothing can be issued at the moment")]
    Trust(#[from] TrustError),
    /// As many streams as there may be.
    #[error("{0} proxies follow the trust bundle here, no more are taken")]
    StreamLimit(usize),
}

macro_rules! reasons {
    ($($reason:ident = $name:literal;)*) => {
        /// The closed list of reasons.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $(#[doc = $name] $reason,)*
        }

        impl Reason {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$reason,)*];

            /// The stable name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$reason => $name,)* }
            }
        }
    };
}

reasons! {
    CallMalformed = "call_malformed";
    CallTimeout = "call_timeout";
    TokenMissing = "token_missing";
    TokenMalformed = "token_malformed";
    TokenUnknownKey = "token_unknown_key";
    TokenAlgorithm = "token_algorithm";
    TokenSignature = "token_signature";
    TokenIssuer = "token_issuer";
    TokenAudience = "token_audience";
    TokenExpired = "token_expired";
    TokenNotYetValid = "token_not_yet_valid";
    TokenLifetime = "token_lifetime";
    TokenSubject = "token_subject";
    TokenUnbound = "token_unbound";
    Name = "name";
    Reserved = "reserved";
    Lifetime = "lifetime";
    Denied = "denied";
    CsrMalformed = "csr_malformed";
    CsrKey = "csr_key";
    CsrSignature = "csr_signature";
    IssuerUnavailable = "issuer_unavailable";
    StreamLimit = "stream_limit";
}

impl CallError {
    /// Its one reason.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Call(_) => Reason::CallMalformed,
            Self::Timeout => Reason::CallTimeout,
            Self::Token(error) => token_reason(error),
            Self::Policy(PolicyError::Name(_)) => Reason::Name,
            Self::Policy(PolicyError::Reserved) => Reason::Reserved,
            Self::Policy(PolicyError::Lifetime(_)) => Reason::Lifetime,
            Self::Policy(PolicyError::Denied { .. }) => Reason::Denied,
            Self::Csr(CsrError::TooLong(_) | CsrError::Pem(_) | CsrError::Malformed) => Reason::CsrMalformed,
            Self::Csr(CsrError::Key) => Reason::CsrKey,
            Self::Csr(CsrError::Signature) => Reason::CsrSignature,
            Self::Issue(_) | Self::Trust(_) => Reason::IssuerUnavailable,
            Self::StreamLimit(_) => Reason::StreamLimit,
        }
    }

    /// What the caller is answered.
    pub fn status(&self) -> Status {
        let code = match self {
            Self::Token(_) => Code::Unauthenticated,
            Self::Call(_) | Self::Policy(PolicyError::Lifetime(_)) | Self::Csr(_) => Code::InvalidArgument,
            Self::Policy(PolicyError::Name(_) | PolicyError::Reserved | PolicyError::Denied { .. }) => {
                Code::PermissionDenied
            }
            Self::Issue(_) => Code::FailedPrecondition,
            Self::Timeout => Code::DeadlineExceeded,
            // Another process, or the next moment, may do better.
            Self::Trust(_) => Code::Unavailable,
            Self::StreamLimit(_) => Code::ResourceExhausted,
        };
        Status::new(code, telemetry::chain(self).to_string())
    }
}

const fn token_reason(error: &TokenError) -> Reason {
    match error {
        TokenError::Missing => Reason::TokenMissing,
        TokenError::TooLong(_) | TokenError::Malformed(_) => Reason::TokenMalformed,
        TokenError::UnknownKey(_) => Reason::TokenUnknownKey,
        TokenError::Algorithm { .. } => Reason::TokenAlgorithm,
        TokenError::Signature => Reason::TokenSignature,
        TokenError::Issuer { .. } => Reason::TokenIssuer,
        TokenError::Audience { .. } => Reason::TokenAudience,
        TokenError::Expired { .. } => Reason::TokenExpired,
        TokenError::NotYetValid { .. } => Reason::TokenNotYetValid,
        TokenError::TooLongLived { .. } => Reason::TokenLifetime,
        TokenError::Subject(_) | TokenError::Contradiction => Reason::TokenSubject,
        TokenError::Unbound => Reason::TokenUnbound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_unique_and_the_list_is_whole() {
        let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        assert!(Reason::ALL.iter().enumerate().all(|(at, reason)| *reason as usize == at));
    }
}
