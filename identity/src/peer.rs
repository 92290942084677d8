//! Who is at the other end: the verification of a peer's certificate chain, with one named reason per refusal.
//!
//! Promises: a chain is accepted only when it leads to a root of the bundle, is valid at the given time, may be used
//! for the peer's role, keeps the X509-SVID profile (sections 2 to 5) in every certificate, and names exactly one
//! identity of our own trust domain. rustls-webpki builds the path and checks signatures, times and extended key
//! usage; it ignores key usage and knows nothing of identities, so both are checked here on every certificate sent.
//! Leaves to others: the proof that the peer holds the key (the TLS handshake), and the identity that was *expected*
//! (`tls`). No clock and no I/O: the time is an argument.

use std::fmt;

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::deny::Denial;
use crate::{SpiffeId, SpiffeIdError, TrustBundle, TrustDomain};

/// The longest chain a peer may send: leaf, two issuers and a root. Bounds the work of path building.
pub const CHAIN_MAX: usize = 4;
/// What of a peer's malformed name is kept for the report, in characters.
const SHOWN_NAME_MAX: usize = 200;

/// The part that the *peer* plays in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The peer opened the connection; its certificate must allow `clientAuth`.
    Client,
    /// The peer was called; its certificate must allow `serverAuth`.
    Server,
}

/// Why a peer was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The peer sent no certificate at all.
    #[error("the peer sent no certificate")]
    CertificateMissing,
    /// The chain does not lead to a root of the trust bundle.
    #[error("the peer's certificate does not lead to a root of the trust bundle")]
    Untrusted {
        /// What path building says.
        #[source]
        source: webpki::Error,
    },
    /// A certificate of the chain has ended.
    #[error("a certificate of the peer ended {}, this machine's clock says {}", Utc(*.ended), Utc(*.now))]
    Expired {
        /// Its notAfter.
        ended: UnixTime,
        /// The time it was compared with.
        now: UnixTime,
    },
    /// A certificate of the chain is not valid yet.
    #[error("a certificate of the peer begins {}, this machine's clock says {}", Utc(*.begins), Utc(*.now))]
    NotYetValid {
        /// Its notBefore.
        begins: UnixTime,
        /// The time it was compared with.
        now: UnixTime,
    },
    /// A certificate of the chain is used for what it was not made for.
    #[error("a certificate of the peer is used against its purpose")]
    Usage(#[source] UsageError),
    /// More than [`CHAIN_MAX`] certificates.
    #[error("the peer sent {length} certificates, more than {CHAIN_MAX}")]
    ChainTooLong {
        /// How many it sent.
        length: usize,
    },
    /// A certificate of the chain cannot be read, or its signature cannot.
    #[error("a certificate of the peer is malformed: {detail}")]
    Malformed {
        /// What the reader says.
        detail: String,
    },
    /// The certificate has no URI name: no SAN, a DNS name only, or a common name only.
    #[error("the peer's certificate has no SPIFFE ID (no URI in its subject alternative name)")]
    IdentityMissing,
    /// More than one URI name (X509-SVID, section 2: exactly one).
    #[error("the peer's certificate has {count} URIs in its subject alternative name, exactly one is allowed")]
    IdentityAmbiguous {
        /// How many there are.
        count: usize,
    },
    /// The one URI is not a SPIFFE ID of Picket's shape.
    #[error("the name {found:?} in the peer's certificate is not a SPIFFE ID")]
    IdentityMalformed {
        /// The name, cut after 200 characters.
        found: String,
        /// What is wrong with it.
        #[source]
        source: SpiffeIdError,
    },
    /// A good identity of a trust domain that is not ours.
    #[error("the peer is {found}, and only the trust domain {expected} is trusted")]
    TrustDomainMismatch {
        /// Our trust domain.
        expected: TrustDomain,
        /// Whom the certificate names.
        found: SpiffeId,
    },
    /// A good identity, and not the one that was called.
    #[error("the peer is {found}, expected was {expected}")]
    IdentityMismatch {
        /// Whom discovery named.
        expected: SpiffeId,
        /// Whom the certificate names.
        found: SpiffeId,
    },
    /// The peer stands on the deny list.
    #[error("the peer is {id}, and its {denial} is denied")]
    Denied {
        /// Whom the certificate names.
        id: SpiffeId,
        /// The entry.
        denial: Denial,
    },
}

/// Which rule about the use of a certificate was broken (X509-SVID, sections 4 and 5.2; RFC 5280, section 4.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// An extended key usage is present somewhere in the chain and does not allow the peer's role.
    #[error("the extended key usage does not allow {}", match .0 { Role::Client => "clientAuth", Role::Server => "serverAuth" })]
    ExtendedKeyUsage(Role),
    /// The leaf has CA:TRUE.
    #[error("the leaf is a certificate authority (CA:TRUE)")]
    LeafIsAuthority,
    /// The leaf may sign certificates or revocation lists.
    #[error("the leaf may sign certificates or revocation lists (keyCertSign, cRLSign)")]
    LeafSigns,
    /// The leaf has no key usage, or one without digitalSignature.
    #[error("the leaf may not sign handshakes (no digitalSignature)")]
    LeafWithoutDigitalSignature,
    /// A further certificate of the chain has no CA:TRUE, or stands below more others than its path length allows.
    #[error("an issuer of the chain is no certificate authority, or not for so long a chain")]
    IssuerNotAuthority,
    /// A further certificate of the chain has no key usage, or one without keyCertSign.
    #[error("an issuer of the chain may not sign certificates (no keyCertSign)")]
    IssuerWithoutCertSign,
}

/// Verifies the chain that a peer sent (leaf first) and returns whom it names.
///
/// # Errors
/// See [`PeerError`]; the first broken rule is reported.
pub fn verify_peer(
    chain: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    trust_domain: &TrustDomain,
    role: Role,
    now: UnixTime,
) -> Result<SpiffeId, PeerError> {
    let (leaf, issuers) = chain.split_first().ok_or(PeerError::CertificateMissing)?;
    verify(leaf, issuers, bundle, trust_domain, role, now)
}

pub(crate) fn verify(
    leaf: &CertificateDer<'_>,
    issuers: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    trust_domain: &TrustDomain,
    role: Role,
    now: UnixTime,
) -> Result<SpiffeId, PeerError> {
    let length = issuers.len() + 1;
    if length > CHAIN_MAX {
        return Err(PeerError::ChainTooLong { length });
    }
    verify_path(leaf, issuers, bundle, role, now)?;
    for issuer in issuers {
        check_issuer(&parse(issuer)?)?;
    }
    let parsed = parse(leaf)?;
    check_leaf(&parsed)?;
    let found = read_identity(&parsed)?;
    if !found.is_in(trust_domain) {
        return Err(PeerError::TrustDomainMismatch { expected: trust_domain.clone(), found });
    }
    Ok(found)
}

fn verify_path(
    leaf: &CertificateDer<'_>,
    issuers: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    role: Role,
    now: UnixTime,
) -> Result<(), PeerError> {
    let usage = match role {
        Role::Client => KeyUsage::client_auth(),
        Role::Server => KeyUsage::server_auth(),
    };
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
    EndEntityCert::try_from(leaf)
        .and_then(|leaf| {
            leaf.verify_for_usage(algorithms, bundle.anchors(), issuers, now, usage, None, None).map(|_| ())
        })
        .map_err(|error| name_path_error(error, role))
}

/// webpki's errors under our names; what is not listed is about the path as a whole.
#[expect(clippy::wildcard_enum_match_arm, reason = "webpki's enum is not ours and not exhaustive")]
fn name_path_error(error: webpki::Error, role: Role) -> PeerError {
    use webpki::Error;
    match error {
        Error::CertExpired { time, not_after } => PeerError::Expired { ended: not_after, now: time },
        Error::CertNotValidYet { time, not_before } => PeerError::NotYetValid { begins: not_before, now: time },
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
            PeerError::Usage(UsageError::ExtendedKeyUsage(role))
        }
        Error::CaUsedAsEndEntity => PeerError::Usage(UsageError::LeafIsAuthority),
        Error::EndEntityUsedAsCa | Error::PathLenConstraintViolated => PeerError::Usage(UsageError::IssuerNotAuthority),
        malformed @ (Error::BadDer
        | Error::BadDerTime
        | Error::TrailingData(_)
        | Error::ExtensionValueInvalid
        | Error::InvalidCertValidity
        | Error::InvalidSerialNumber
        | Error::MalformedExtensions
        | Error::UnsupportedCertVersion) => PeerError::Malformed { detail: malformed.to_string() },
        source => PeerError::Untrusted { source },
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PeerError> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) => Err(PeerError::Malformed { detail: "bytes after its end".into() }),
        Err(error) => Err(PeerError::Malformed { detail: error.to_string() }),
    }
}

fn malformed(error: x509_parser::error::X509Error) -> PeerError {
    PeerError::Malformed { detail: error.to_string() }
}

fn check_leaf(leaf: &X509Certificate<'_>) -> Result<(), PeerError> {
    let is_authority = leaf.basic_constraints().map_err(malformed)?.is_some_and(|constraints| constraints.value.ca);
    if is_authority {
        return Err(PeerError::Usage(UsageError::LeafIsAuthority));
    }
    let usage = leaf.key_usage().map_err(malformed)?;
    match usage.map(|usage| usage.value) {
        Some(usage) if usage.key_cert_sign() || usage.crl_sign() => Err(PeerError::Usage(UsageError::LeafSigns)),
        Some(usage) if usage.digital_signature() => Ok(()),
        Some(_) | None => Err(PeerError::Usage(UsageError::LeafWithoutDigitalSignature)),
    }
}

fn check_issuer(issuer: &X509Certificate<'_>) -> Result<(), PeerError> {
    if !issuer.basic_constraints().map_err(malformed)?.is_some_and(|constraints| constraints.value.ca) {
        return Err(PeerError::Usage(UsageError::IssuerNotAuthority));
    }
    if !issuer.key_usage().map_err(malformed)?.is_some_and(|usage| usage.value.key_cert_sign()) {
        return Err(PeerError::Usage(UsageError::IssuerWithoutCertSign));
    }
    Ok(())
}

/// As [`read_identity`], of a certificate in DER.
pub(crate) fn identity_of(leaf: &CertificateDer<'_>) -> Result<SpiffeId, PeerError> {
    read_identity(&parse(leaf)?)
}

/// The one SPIFFE ID of a certificate, whoever signed it.
pub(crate) fn read_identity(leaf: &X509Certificate<'_>) -> Result<SpiffeId, PeerError> {
    let names = leaf.subject_alternative_name().map_err(malformed)?;
    let mut uris = Vec::new();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        if let GeneralName::Invalid(..) = name {
            return Err(PeerError::Malformed { detail: "a subject alternative name that cannot be read".into() });
        }
        if let GeneralName::URI(uri) = name {
            uris.push(*uri);
        }
    }
    match uris.as_slice() {
        [] => Err(PeerError::IdentityMissing),
        [uri] => uri.parse().map_err(|source| PeerError::IdentityMalformed {
            found: uri.chars().take(SHOWN_NAME_MAX).collect(),
            source,
        }),
        more => Err(PeerError::IdentityAmbiguous { count: more.len() }),
    }
}

/// A time in RFC 3339 form, for messages.
#[derive(Clone, Copy, Debug)]
pub struct Utc(pub UnixTime);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match i64::try_from(seconds).ok().and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok()) {
            Some(at) => {
                let (year, month, day) = at.to_calendar_date();
                let (hour, minute, second) = at.to_hms();
                write!(f, "{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z", u8::from(month))
            }
            None => write!(f, "{seconds} s after 1970"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_pki::{Authority, Issued, Leaf, TRUST_DOMAIN, id, now, uri_name, valid};
    use rcgen::KeyUsagePurpose as Ku;
    use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Eku, IsCa, SanType};

    const GOOD: &str = "spiffe://demo.picket.dev/ns/demo/sa/web";

    fn check(root: &Authority, chain: &[CertificateDer<'static>], role: Role) -> Result<SpiffeId, PeerError> {
        verify_peer(chain, &root.bundle(), &TRUST_DOMAIN.parse().unwrap(), role, now())
    }

    /// The verdict about a good leaf after one change, in both roles, which must agree.
    fn changed(change: impl FnOnce(&mut CertificateParams)) -> PeerError {
        let root = Authority::root("root");
        let leaf = Leaf::new(GOOD).with(change).issue(&root);
        let client = check(&root, std::slice::from_ref(&leaf.der), Role::Client).unwrap_err();
        let server = check(&root, &[leaf.der], Role::Server).unwrap_err();
        assert_eq!(std::mem::discriminant(&client), std::mem::discriminant(&server));
        client
    }

    fn below(change: impl FnOnce(&mut CertificateParams)) -> (Authority, Authority, Issued) {
        let root = Authority::root("root");
        let issuer = root.issuer("issuer", change);
        let leaf = Leaf::new(GOOD).issue(&issuer);
        (root, issuer, leaf)
    }

    #[test]
    fn good_chains_give_their_identity() {
        let (root, issuer, leaf) = below(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
        for role in [Role::Client, Role::Server] {
            assert_eq!(check(&root, &[leaf.der.clone(), issuer.der()], role).unwrap(), id("demo", "web"));
            let with_root = [leaf.der.clone(), issuer.der(), root.der()];
            assert_eq!(check(&root, &with_root, role).unwrap(), id("demo", "web"));
        }
        let without_eku = Leaf::new(GOOD).with(|params| params.extended_key_usages.clear()).issue(&root);
        check(&root, &[without_eku.der], Role::Server).unwrap();
        let with_dns = Leaf::new(GOOD)
            .with(|params| params.subject_alt_names.push(SanType::DnsName("web".try_into().unwrap())))
            .issue(&root);
        check(&root, &[with_dns.der], Role::Server).unwrap();
    }

    #[test]
    fn each_role_needs_its_own_extended_key_usage() {
        let root = Authority::root("root");
        let client = Leaf::new(GOOD).with(|params| params.extended_key_usages = vec![Eku::ClientAuth]).issue(&root);
        check(&root, std::slice::from_ref(&client.der), Role::Client).unwrap();
        let refused = PeerError::Usage(UsageError::ExtendedKeyUsage(Role::Server));
        assert_eq!(check(&root, &[client.der], Role::Server).unwrap_err(), refused);
        for wrong in [vec![Eku::CodeSigning], vec![Eku::EmailProtection, Eku::OcspSigning], vec![Eku::Any]] {
            let refused = PeerError::Usage(UsageError::ExtendedKeyUsage(Role::Client));
            assert_eq!(changed(|params| params.extended_key_usages = wrong), refused);
        }
        let (root, issuer, leaf) = below(|params| params.extended_key_usages = vec![Eku::ServerAuth]);
        check(&root, &[leaf.der.clone(), issuer.der()], Role::Server).unwrap();
        let refused = PeerError::Usage(UsageError::ExtendedKeyUsage(Role::Client));
        assert_eq!(check(&root, &[leaf.der, issuer.der()], Role::Client).unwrap_err(), refused);
    }

    #[test]
    fn trust_and_time() {
        assert_eq!(check(&Authority::root("root"), &[], Role::Client).unwrap_err(), PeerError::CertificateMissing);
        let (ours, theirs) = (Authority::root("root"), Authority::root("root"));
        let stranger = Leaf::new(GOOD).issue(&theirs);
        assert!(matches!(
            check(&ours, std::slice::from_ref(&stranger.der), Role::Client),
            Err(PeerError::Untrusted { .. })
        ));
        assert!(matches!(check(&ours, &[stranger.der, theirs.der()], Role::Client), Err(PeerError::Untrusted { .. })));
        assert!(matches!(changed(|params| valid(params, -7200, -3600)), PeerError::Expired { .. }));
        assert!(matches!(changed(|params| valid(params, 3600, 7200)), PeerError::NotYetValid { .. }));
        let (root, issuer, leaf) = below(|params| valid(params, -7200, -3600));
        assert!(matches!(check(&root, &[leaf.der, issuer.der()], Role::Client), Err(PeerError::Expired { .. })));
    }

    #[test]
    fn key_usage_and_basic_constraints_of_the_leaf() {
        use UsageError::{LeafIsAuthority, LeafSigns, LeafWithoutDigitalSignature};
        let authority = IsCa::Ca(BasicConstraints::Unconstrained);
        assert_eq!(changed(|params| params.is_ca = authority), PeerError::Usage(LeafIsAuthority));
        let signs = vec![Ku::DigitalSignature, Ku::KeyCertSign];
        assert_eq!(changed(|params| params.key_usages = signs), PeerError::Usage(LeafSigns));
        let signs_lists = vec![Ku::DigitalSignature, Ku::CrlSign];
        assert_eq!(changed(|params| params.key_usages = signs_lists), PeerError::Usage(LeafSigns));
        let agrees = vec![Ku::KeyAgreement];
        assert_eq!(changed(|params| params.key_usages = agrees), PeerError::Usage(LeafWithoutDigitalSignature));
        assert_eq!(changed(|params| params.key_usages.clear()), PeerError::Usage(LeafWithoutDigitalSignature));
    }

    #[test]
    fn key_usage_and_basic_constraints_of_issuers() {
        use UsageError::{IssuerNotAuthority, IssuerWithoutCertSign};
        type Change = fn(&mut CertificateParams);
        let cases: [(Change, UsageError); 4] = [
            (|params| params.key_usages = vec![Ku::DigitalSignature], IssuerWithoutCertSign),
            (|params| params.key_usages.clear(), IssuerWithoutCertSign),
            (|params| params.is_ca = IsCa::ExplicitNoCa, IssuerNotAuthority),
            (|params| params.is_ca = IsCa::NoCa, IssuerNotAuthority),
        ];
        for (change, reason) in cases {
            let (root, issuer, leaf) = below(change);
            assert_eq!(check(&root, &[leaf.der, issuer.der()], Role::Client).unwrap_err(), PeerError::Usage(reason));
        }
        let root = Authority::root("root");
        let last = root.issuer("last", |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
        let beyond = last.issuer("beyond", |_| ());
        let leaf = Leaf::new(GOOD).issue(&beyond);
        let refused = check(&root, &[leaf.der, beyond.der(), last.der()], Role::Client).unwrap_err();
        assert_eq!(refused, PeerError::Usage(IssuerNotAuthority));
    }

    #[test]
    fn a_certificate_that_is_not_part_of_the_path_is_checked_too() {
        let root = Authority::root("root");
        let leaf = Leaf::new(GOOD).issue(&root);
        let stowaway = Leaf::new(GOOD).issue(&root);
        let refused = check(&root, &[leaf.der, stowaway.der], Role::Client).unwrap_err();
        assert_eq!(refused, PeerError::Usage(UsageError::IssuerNotAuthority));
    }

    #[test]
    fn too_long_a_chain_is_refused_before_any_work() {
        let root = Authority::root("root");
        let leaf = Leaf::new(GOOD).issue(&root);
        let chain = vec![leaf.der; CHAIN_MAX + 1];
        assert_eq!(check(&root, &chain, Role::Client).unwrap_err(), PeerError::ChainTooLong { length: CHAIN_MAX + 1 });
    }

    #[test]
    fn exactly_one_uri_names_the_peer() {
        let dns = || SanType::DnsName("web.demo".try_into().unwrap());
        assert_eq!(changed(|params| params.subject_alt_names.clear()), PeerError::IdentityMissing);
        assert_eq!(changed(|params| params.subject_alt_names = vec![dns()]), PeerError::IdentityMissing);
        let common_name = changed(|params| {
            params.subject_alt_names.clear();
            params.distinguished_name.push(DnType::CommonName, GOOD);
        });
        assert_eq!(common_name, PeerError::IdentityMissing);
        for second in [GOOD, "spiffe://demo.picket.dev/ns/demo/sa/other", "https://example.org"] {
            let two = changed(|params| params.subject_alt_names.push(uri_name(second)));
            assert_eq!(two, PeerError::IdentityAmbiguous { count: 2 });
        }
    }

    #[test]
    fn names_outside_the_grammar_are_malformed() {
        let names = [
            "spiffe://demo.picket.dev:443/ns/demo/sa/web",
            "spiffe://me@demo.picket.dev/ns/demo/sa/web",
            "spiffe://DEMO.picket.dev/ns/demo/sa/web",
            "Spiffe://demo.picket.dev/ns/demo/sa/web",
            "spiffe://demo.picket.dev/ns/demo/sa/%77eb",
            "spiffe://demo.picket.dev/ns/demo/sa/web?q=1",
            "spiffe://demo.picket.dev/ns/demo/sa/web#f",
            "spiffe://demo.picket.dev/ns//sa/web",
            "spiffe://demo.picket.dev/ns/demo/sa/",
            "spiffe://demo.picket.dev/ns/demo/sa/web/",
            "spiffe://demo.picket.dev/ns/demo/sa/web\0",
            "spiffe://demo.picket.dev/ns/demo/sa/web\0.evil",
            "spiffe://demo.picket.dev\0.evil/ns/demo/sa/web",
            "spiffe:///ns/demo/sa/web",
            "https://demo.picket.dev/ns/demo/sa/web",
            "",
        ];
        for name in names {
            let refused = changed(|params| params.subject_alt_names = vec![uri_name(name)]);
            assert!(matches!(refused, PeerError::IdentityMalformed { .. }), "{name:?}: {refused:?}");
        }
    }

    #[test]
    fn another_trust_domain_is_named_even_when_it_looks_alike() {
        for domain in
            ["demo.picket.dev.evil", "picket.dev", "evil.demo.picket.dev", "demo.picket.de", "demo-picket.dev"]
        {
            let name = format!("spiffe://{domain}/ns/demo/sa/web");
            let refused = changed(|params| params.subject_alt_names = vec![uri_name(&name)]);
            let found = name.parse().unwrap();
            assert_eq!(refused, PeerError::TrustDomainMismatch { expected: TRUST_DOMAIN.parse().unwrap(), found });
        }
    }

    #[test]
    fn no_changed_byte_of_a_leaf_goes_unnoticed() {
        let root = Authority::root("root");
        let leaf = Leaf::new(GOOD).issue(&root);
        let bundle = root.bundle();
        let domain = TRUST_DOMAIN.parse().unwrap();
        for position in 0..leaf.der.len() {
            let mut bytes = leaf.der.to_vec();
            bytes[position] ^= 1 << (position % 8);
            let verdict = verify_peer(&[CertificateDer::from(bytes)], &bundle, &domain, Role::Client, now());
            assert!(verdict.is_err(), "a flipped bit in byte {position} was accepted");
        }
        for length in 0..leaf.der.len() {
            let cut = CertificateDer::from(leaf.der[..length].to_vec());
            assert!(verify_peer(&[cut], &bundle, &domain, Role::Client, now()).is_err());
        }
    }

    #[test]
    fn times_are_told_in_rfc_3339() {
        let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let error = PeerError::Expired { ended: at(1_763_596_800), now: at(1_763_866_200) };
        assert_eq!(
            error.to_string(),
            "a certificate of the peer ended 2025-11-20T00:00:00Z, this machine's clock says 2025-11-23T02:50:00Z"
        );
    }
}
