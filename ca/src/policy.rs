//! What a caller may have: its own identity, for a bounded time, unless it is denied.
//!
//! Promises: the identity is a function of the verified caller and the trust domain alone. Leaves to others: who the
//! caller is (`attest`) and the certificate itself (`issue`).

use std::time::Duration;

use identity::{SpiffeId, SpiffeIdError, TrustDomain};

use crate::attest::Caller;
use crate::state::{Denied, Sha256, State, Subject};

/// Namespace and service account of the authority itself.
pub const OWN_NAMESPACE: &str = "picket-system";
/// See [`OWN_NAMESPACE`].
pub const OWN_SERVICE_ACCOUNT: &str = "picket-ca";

/// Why a caller gets nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A verified name that does not fit into a SPIFFE ID.
    #[error("the caller's name does not fit into a SPIFFE ID")]
    Name(#[from] SpiffeIdError),
    /// The authority's identity is never given away: whoever had it could pose as the authority.
    #[error("the identity of the certificate authority itself is not issued to callers")]
    Reserved,
    /// A negative lifetime was asked for.
    #[error("a lifetime of {0} s was asked for")]
    Lifetime(i64),
    /// An operator denied it.
    #[error("{what} is denied{}", words(.reason))]
    Denied {
        /// The identity, the pod or the key.
        what: &'static str,
        /// The operator's words.
        reason: String,
    },
}

fn words(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(": {words}") }
}

/// What was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The only name in the certificate.
    pub id: SpiffeId,
    /// From now to notAfter; `issue` may shorten it.
    pub lifetime: Duration,
}

/// The rules.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// The default lifetime, and the longest.
    pub leaf_lifetime: Duration,
}

impl Policy {
    /// Decides; `asked_seconds` is what the caller would like, 0 for the default. More than the limit gives the limit.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn decide(&self, caller: &Caller, asked_seconds: i64, state: &State) -> Result<Grant, PolicyError> {
        let id = self.admit(caller, state)?;
        let asked = u64::try_from(asked_seconds).map_err(|_| PolicyError::Lifetime(asked_seconds))?;
        let lifetime = if asked == 0 { self.leaf_lifetime } else { self.leaf_lifetime.min(Duration::from_secs(asked)) };
        Ok(Grant { id, lifetime })
    }

    /// The identity of a caller who may talk to us at all.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn admit(&self, caller: &Caller, state: &State) -> Result<SpiffeId, PolicyError> {
        let id = SpiffeId::new(&self.trust_domain, &caller.namespace, &caller.service_account)?;
        if id == own_identity(&self.trust_domain)? {
            return Err(PolicyError::Reserved);
        }
        self.admit_still(id.as_str(), caller.pod_uid.as_deref(), state)?;
        Ok(id)
    }

    /// Whether who was admitted would be admitted again: only an operator changes that.
    ///
    /// # Errors
    /// When an operator denied it.
    pub fn admit_still(&self, identity: &str, pod_uid: Option<&str>, state: &State) -> Result<(), PolicyError> {
        refuse_denied("the identity", state.denies(&Subject::Identity(identity.into())))?;
        let pod = pod_uid.and_then(|uid| state.denies(&Subject::PodUid(uid.into())));
        refuse_denied("the pod", pod)
    }

    /// Whether a certificate may be issued for the key with this digest.
    ///
    /// # Errors
    /// When an operator denied it.
    pub fn admit_key(&self, key: Sha256, state: &State) -> Result<(), PolicyError> {
        refuse_denied("the key", state.denies(&Subject::Key(key)))
    }
}

/// The authority's own identity, for its serving certificate.
///
/// # Errors
/// When the trust domain is so long that the identity is.
pub fn own_identity(domain: &TrustDomain) -> Result<SpiffeId, SpiffeIdError> {
    SpiffeId::new(domain, OWN_NAMESPACE, OWN_SERVICE_ACCOUNT)
}

fn refuse_denied(what: &'static str, denied: Option<&Denied>) -> Result<(), PolicyError> {
    denied.map_or(Ok(()), |denied| Err(PolicyError::Denied { what, reason: denied.reason.clone() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::deny;
    use crate::test_support::state;

    fn caller(namespace: &str, service_account: &str) -> Caller {
        Caller { namespace: namespace.into(), service_account: service_account.into(), pod: None, pod_uid: None }
    }

    #[test]
    fn callers_get_themselves_for_at_most_the_limit() {
        let day = Duration::from_secs(86400);
        let policy = Policy { trust_domain: "td".parse().unwrap(), leaf_lifetime: day };
        let web = caller("demo", "web");
        for (asked, lifetime) in [(0, day), (60, Duration::from_secs(60)), (86401, day), (i64::MAX, day)] {
            let grant = policy.decide(&web, asked, &state()).unwrap();
            assert_eq!((grant.id.as_str(), grant.lifetime), ("spiffe://td/ns/demo/sa/web", lifetime));
        }
        assert_eq!(policy.decide(&web, -1, &state()).unwrap_err(), PolicyError::Lifetime(-1));
        let ourselves = caller("picket-system", "picket-ca");
        assert_eq!(policy.decide(&ourselves, 0, &state()).unwrap_err(), PolicyError::Reserved);
        assert!(matches!(policy.decide(&caller("a/b", "c"), 0, &state()), Err(PolicyError::Name(_))));
    }

    #[test]
    fn who_is_denied_gets_nothing_and_hears_why() {
        let policy = Policy { trust_domain: "td".parse().unwrap(), leaf_lifetime: Duration::from_secs(60) };
        let denied = |subject| deny(&state(), subject, "it was stolen".into(), 0).unwrap();
        let identity = denied(Subject::Identity("spiffe://td/ns/demo/sa/web".into()));
        let error = policy.decide(&caller("demo", "web"), 0, &identity).unwrap_err();
        assert_eq!(error.to_string(), "the identity is denied: it was stolen");
        assert!(policy.decide(&caller("demo", "web2"), 0, &identity).is_ok());
        let pod = denied(Subject::PodUid("7".into()));
        let in_pod = |uid: &str| Caller { pod_uid: Some(uid.into()), ..caller("demo", "web") };
        assert!(matches!(policy.decide(&in_pod("7"), 0, &pod), Err(PolicyError::Denied { what: "the pod", .. })));
        assert!(policy.decide(&in_pod("8"), 0, &pod).is_ok());
        let key = denied(Subject::Key(Sha256([1; 32])));
        assert!(matches!(policy.admit_key(Sha256([1; 32]), &key), Err(PolicyError::Denied { what: "the key", .. })));
        assert_eq!(policy.admit_key(Sha256([2; 32]), &key), Ok(()));
    }
}
