//! What a caller may have: its own identity, for a bounded time.
//!
//! Promises: the identity is a function of the verified caller and the trust domain alone. Leaves to others: who the
//! caller is (`attest`) and the certificate itself (`issue`).

use std::time::Duration;

use identity::{SpiffeId, SpiffeIdError, TrustDomain};

use crate::attest::Caller;

/// Namespace and service account of the authority itself.
pub const OWN_NAMESPACE: &str = "picket-system";
/// See [`OWN_NAMESPACE`].
pub const OWN_SERVICE_ACCOUNT: &str = "picket-ca";

/// Why a caller gets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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
    pub fn decide(&self, caller: &Caller, asked_seconds: i64) -> Result<Grant, PolicyError> {
        let asked = u64::try_from(asked_seconds).map_err(|_| PolicyError::Lifetime(asked_seconds))?;
        let id = SpiffeId::new(&self.trust_domain, &caller.namespace, &caller.service_account)?;
        if id == self.own_identity()? {
            return Err(PolicyError::Reserved);
        }
        let lifetime = if asked == 0 { self.leaf_lifetime } else { self.leaf_lifetime.min(Duration::from_secs(asked)) };
        Ok(Grant { id, lifetime })
    }

    /// The authority's own identity, for its serving certificate.
    ///
    /// # Errors
    /// When the trust domain is so long that the identity is.
    pub fn own_identity(&self) -> Result<SpiffeId, SpiffeIdError> {
        SpiffeId::new(&self.trust_domain, OWN_NAMESPACE, OWN_SERVICE_ACCOUNT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(namespace: &str, service_account: &str) -> Caller {
        Caller { namespace: namespace.into(), service_account: service_account.into(), pod: None, pod_uid: None }
    }

    #[test]
    fn callers_get_themselves_for_at_most_the_limit() {
        let day = Duration::from_secs(86400);
        let policy = Policy { trust_domain: "td".parse().unwrap(), leaf_lifetime: day };
        let web = caller("demo", "web");
        for (asked, lifetime) in [(0, day), (60, Duration::from_secs(60)), (86401, day), (i64::MAX, day)] {
            let grant = policy.decide(&web, asked).unwrap();
            assert_eq!((grant.id.as_str(), grant.lifetime), ("spiffe://td/ns/demo/sa/web", lifetime));
        }
        assert_eq!(policy.decide(&web, -1).unwrap_err(), PolicyError::Lifetime(-1));
        assert_eq!(policy.decide(&caller("picket-system", "picket-ca"), 0).unwrap_err(), PolicyError::Reserved);
        assert!(matches!(policy.decide(&caller("a/b", "c"), 0), Err(PolicyError::Name(_))));
    }
}
