//! The names of workloads: SPIFFE IDs of the one shape that Picket uses.
//!
//! Promises: what parses is a valid SPIFFE ID (SPIFFE-ID specification, sections 2.1 to 2.4) of the shape
//! `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`; nothing is normalised, so that two names are equal
//! only when their bytes are. This is the only parser of such names: certificates, configuration and tokens all pass
//! through it. Whether a name is to be believed is decided in `peer`.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";
/// SPIFFE-ID, section 2.4: an implementation must support, and must not issue more than, this many bytes.
const ID_BYTES_MAX: usize = 2048;
/// SPIFFE-ID, section 2.4.
const TRUST_DOMAIN_BYTES_MAX: usize = 255;

/// Why a text is not a SPIFFE ID of Picket's shape. The text itself is left to the caller, who knows how to escape it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Longer than the 2048 bytes of the specification.
    #[error("{length} bytes are more than the {ID_BYTES_MAX} that a SPIFFE ID may have")]
    TooLong {
        /// Bytes found.
        length: usize,
    },
    /// Does not start with `spiffe://` in lower case.
    #[error("it does not start with `spiffe://`")]
    Scheme,
    /// The trust domain is empty, longer than 255 bytes, or has a byte outside `a-z 0-9 . - _` (so no port, no user
    /// information, no upper case, no percent-encoding).
    #[error("the trust domain must be 1 to {TRUST_DOMAIN_BYTES_MAX} of the characters a-z, 0-9, '.', '-' and '_'")]
    TrustDomain,
    /// The path is not `/ns/<namespace>/sa/<service account>`.
    #[error("the path is not /ns/<namespace>/sa/<service account>")]
    Path,
    /// A path segment is empty, `.` or `..`, or has a byte outside `a-z A-Z 0-9 . - _`.
    #[error("a path segment must be some of the characters a-z, A-Z, 0-9, '.', '-' and '_', and not '.' or '..'")]
    Segment,
}

/// The name of a trust domain, such as `demo.picket.dev`. Compared by bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        check_trust_domain(text)?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The identity of a workload: its trust domain, namespace and service account. Cheap to clone, compared by bytes.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain_end: usize,
    namespace_end: usize,
}

impl SpiffeId {
    /// Puts an identity together from its parts.
    ///
    /// # Errors
    /// As for parsing: a part has a character that SPIFFE does not allow there, or the whole is too long.
    pub fn new(trust_domain: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, SpiffeIdError> {
        // Both parts are checked before they are joined: a slash in one must not move the borders.
        check_segment(namespace)?;
        check_segment(service_account)?;
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The whole identity, as it stands in certificates.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain that vouches for this identity.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_str().into())
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        self.part(self.trust_domain_end + "/ns/".len()..self.namespace_end)
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        self.part(self.namespace_end + "/sa/".len()..self.text.len())
    }

    /// True when `domain` is the one that vouches for this identity; compares bytes and allocates nothing.
    pub fn is_in(&self, domain: &TrustDomain) -> bool {
        self.trust_domain_str() == domain.as_str()
    }

    fn trust_domain_str(&self) -> &str {
        self.part(SCHEME.len()..self.trust_domain_end)
    }

    fn part(&self, range: Range<usize>) -> &str {
        // The borders were found by the parser at ASCII slashes of this same text.
        self.text.get(range).unwrap_or_default()
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > ID_BYTES_MAX {
            return Err(SpiffeIdError::TooLong { length: text.len() });
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (trust_domain, path) = rest.split_once('/').unwrap_or((rest, ""));
        check_trust_domain(trust_domain)?;
        let mut segments = path.split('/');
        let (Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) =
            (segments.next(), segments.next(), segments.next(), segments.next(), segments.next())
        else {
            return Err(SpiffeIdError::Path);
        };
        check_segment(namespace)?;
        check_segment(service_account)?;
        let trust_domain_end = SCHEME.len() + trust_domain.len();
        let namespace_end = trust_domain_end + "/ns/".len() + namespace.len();
        Ok(Self { text: text.into(), trust_domain_end, namespace_end })
    }
}

fn check_trust_domain(text: &str) -> Result<(), SpiffeIdError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_');
    if text.is_empty() || text.len() > TRUST_DOMAIN_BYTES_MAX || !text.bytes().all(allowed) {
        return Err(SpiffeIdError::TrustDomain);
    }
    Ok(())
}

fn check_segment(text: &str) -> Result<(), SpiffeIdError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if text.is_empty() || text == "." || text == ".." || !text.bytes().all(allowed) {
        return Err(SpiffeIdError::Segment);
    }
    Ok(())
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

// The borders follow from the text, so the text alone decides.
impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl std::hash::Hash for SpiffeId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "spiffe://demo.picket.dev/ns/demo/sa/web";

    #[test]
    fn parts_of_a_good_identity() {
        let id: SpiffeId = GOOD.parse().unwrap();
        assert_eq!(id.trust_domain().as_str(), "demo.picket.dev");
        assert_eq!((id.namespace(), id.service_account()), ("demo", "web"));
        assert_eq!(id.to_string(), GOOD);
        assert_eq!(SpiffeId::new(&id.trust_domain(), "demo", "web").unwrap(), id);
        assert!(id.is_in(&"demo.picket.dev".parse().unwrap()));
        assert!(!id.is_in(&"picket.dev".parse().unwrap()));
    }

    #[test]
    fn bad_identities_are_refused_with_their_reason() {
        use SpiffeIdError::{Path, Scheme, Segment, TrustDomain};
        let table = [
            ("", Scheme),
            ("SPIFFE://td/ns/a/sa/b", Scheme),
            ("https://td/ns/a/sa/b", Scheme),
            ("spiffe:/td/ns/a/sa/b", Scheme),
            (" spiffe://td/ns/a/sa/b", Scheme),
            ("spiffe:///ns/a/sa/b", TrustDomain),
            ("spiffe://TD/ns/a/sa/b", TrustDomain),
            ("spiffe://td:443/ns/a/sa/b", TrustDomain),
            ("spiffe://me@td/ns/a/sa/b", TrustDomain),
            ("spiffe://t%64/ns/a/sa/b", TrustDomain),
            ("spiffe://td?x/ns/a/sa/b", TrustDomain),
            ("spiffe://td#x/ns/a/sa/b", TrustDomain),
            ("spiffe://tä/ns/a/sa/b", TrustDomain),
            ("spiffe://td", Path),
            ("spiffe://td/", Path),
            ("spiffe://td/ns/a/sa", Path),
            ("spiffe://td/ns/a/sa/b/", Path),
            ("spiffe://td/ns/a/sa/b/c", Path),
            ("spiffe://td//ns/a/sa/b", Path),
            ("spiffe://td/NS/a/sa/b", Path),
            ("spiffe://td/sa/a/ns/b", Path),
            ("spiffe://td/ns//sa/b", Segment),
            ("spiffe://td/ns/a/sa/", Segment),
            ("spiffe://td/ns/../sa/b", Segment),
            ("spiffe://td/ns/./sa/b", Segment),
            ("spiffe://td/ns/a/sa/b?q", Segment),
            ("spiffe://td/ns/a/sa/b#f", Segment),
            ("spiffe://td/ns/a/sa/%62", Segment),
            ("spiffe://td/ns/a/sa/b\0", Segment),
            ("spiffe://td/ns/a/sa/b\n", Segment),
            ("spiffe://td/ns/a/sa/b ", Segment),
            ("spiffe://td/ns/a/sa/ü", Segment),
        ];
        for (text, reason) in table {
            assert_eq!(text.parse::<SpiffeId>().unwrap_err(), reason, "{text:?}");
        }
        let long = format!("{GOOD}{}", "x".repeat(ID_BYTES_MAX));
        assert_eq!(long.parse::<SpiffeId>().unwrap_err(), SpiffeIdError::TooLong { length: long.len() });
        let domain = "d".repeat(TRUST_DOMAIN_BYTES_MAX + 1);
        assert_eq!(domain.parse::<crate::TrustDomain>().unwrap_err(), TrustDomain);
    }

    #[test]
    fn a_slash_in_a_part_does_not_move_the_borders() {
        let domain = "td".parse().unwrap();
        assert_eq!(SpiffeId::new(&domain, "a/sa/b", "c").unwrap_err(), SpiffeIdError::Segment);
        assert_eq!(SpiffeId::new(&domain, "a", "b/c").unwrap_err(), SpiffeIdError::Segment);
    }

    proptest! {
        #[test]
        fn every_name_of_the_grammar_parses_into_its_parts(
            domain in "[a-z0-9._-]{1,64}", namespace in "[a-z0-9][A-Za-z0-9._-]{0,40}", account in "[a-z0-9][A-Za-z0-9._-]{0,40}",
        ) {
            let text = format!("spiffe://{domain}/ns/{namespace}/sa/{account}");
            let id: SpiffeId = text.parse().unwrap();
            prop_assert_eq!(id.trust_domain().to_string(), domain);
            prop_assert_eq!(id.namespace(), namespace);
            prop_assert_eq!(id.service_account(), account);
            prop_assert_eq!(id.to_string(), text);
        }

        #[test]
        fn whatever_parses_is_rebuilt_from_its_parts(text in "(spiffe://)?[a-zA-Z0-9._/:@%?#-]{0,20}(/ns/)?[a-z./%]{0,6}(/sa/)?\\PC{0,6}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                let rebuilt = SpiffeId::new(&id.trust_domain(), id.namespace(), id.service_account()).unwrap();
                prop_assert_eq!(rebuilt.as_str(), text);
            }
        }

        #[test]
        fn one_changed_byte_never_gives_an_equal_name(position in 0..GOOD.len(), byte in 0u8..128) {
            let mut bytes = GOOD.as_bytes().to_vec();
            bytes[position] = byte;
            let text = String::from_utf8(bytes).unwrap();
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id == GOOD.parse().unwrap(), text == GOOD);
            }
        }
    }
}
