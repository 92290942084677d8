//! The deny list: who is refused though certificate and roots say otherwise, until the certificates in question end.
//!
//! Promises: a list is bounded, and a leaf is compared by exact bytes. Leaves to others: where the list comes from, and
//! closing the connections of a peer that is put on it ([`Leaf`] is what they keep of a peer).

use std::collections::HashSet;
use std::fmt;

use rustls::{SupportedCipherSuite, crypto::aws_lc_rs};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{SpiffeId, TrustBundle, peer};

/// Entries that a list may have. It holds what was taken away within the life of a leaf, not a history.
pub const DENIALS_MAX: usize = 10_000;

/// What is denied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Denial {
    /// One certificate, by its serial number as [`Denial::serial`] writes it.
    Serial(String),
    /// All certificates of an identity.
    Identity(SpiffeId),
    /// All certificates of a key, and all under it when it is that of a root or an issuer: SHA-256 of its
    /// SubjectPublicKeyInfo (DER).
    Key([u8; 32]),
}

impl Denial {
    /// An entry for a serial number as people copy it: hexadecimal in either case, with or without the zero byte that DER
    /// puts before a number whose first bit is set. `None` when it is no such number.
    pub fn serial(text: &str) -> Option<Self> {
        let digits = text.trim_start_matches('0');
        let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let whole_bytes = if digits.len().is_multiple_of(2) { "" } else { "0" };
        is_number.then(|| Self::Serial(format!("{whole_bytes}{}", digits.to_ascii_lowercase())))
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial(serial) => write!(f, "serial number {serial}"),
            Self::Identity(id) => write!(f, "identity {id}"),
            Self::Key(digest) => {
                f.write_str("key, or one above it, with SHA-256 ")?;
                digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// A list with more than [`DENIALS_MAX`] entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deny list has {0} entries, more than {DENIALS_MAX}")]
pub struct TooManyDenials(usize);

/// The entries of the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenyList(HashSet<Denial>);

impl DenyList {
    /// A list of these.
    ///
    /// # Errors
    /// When they are too many.
    pub fn new(denials: impl IntoIterator<Item = Denial>) -> Result<Self, TooManyDenials> {
        let denials: HashSet<_> = denials.into_iter().collect();
        if denials.len() > DENIALS_MAX { Err(TooManyDenials(denials.len())) } else { Ok(Self(denials)) }
    }

    /// True when nobody is denied.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Denial> {
        self.0.iter()
    }

    /// The entry that this leaf meets, if any.
    pub fn find(&self, leaf: &Leaf) -> Option<Denial> {
        if self.is_empty() {
            return None;
        }
        let entries =
            [Denial::Serial(leaf.serial.clone()), Denial::Identity(leaf.id.clone()), Denial::Key(leaf.key_sha256)];
        let above = leaf.above_sha256.iter().copied().map(Denial::Key);
        entries.into_iter().chain(above).find(|entry| self.0.contains(entry))
    }
}

/// What is kept of a peer's verified certificate, to hold it against later lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Whom it names.
    pub id: SpiffeId,
    /// Its serial number in hexadecimal, as in the CA's issuance records.
    pub serial: String,
    /// SHA-256 of its SubjectPublicKeyInfo (DER).
    pub key_sha256: [u8; 32],
    /// The same of the keys above it: of the issuers that came with it, and of the roots that signed one of them or itself.
    pub above_sha256: Box<[[u8; 32]]>,
}

impl Leaf {
    /// Reads a leaf that was verified, the issuers that came with it, and the root that `bundle` has above them; `None` when
    /// it is none of ours.
    pub fn read(leaf: &CertificateDer<'_>, issuers: &[CertificateDer<'_>], bundle: &TrustBundle) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
        let mut above = bundle.signers(&parsed);
        for issuer in issuers {
            let (_, issuer) = X509Certificate::from_der(issuer).ok()?;
            above.push(sha256(issuer.public_key().raw));
            above.extend(bundle.signers(&issuer));
        }
        Some(Self {
            id: peer::read_identity(&parsed).ok()?,
            serial: serial_of(&parsed),
            key_sha256: sha256(parsed.public_key().raw),
            above_sha256: above.into(),
        })
    }
}

/// The serial number in hexadecimal, as it stands in issuance records and deny lists, and as openssl writes it but for
/// the case: whole bytes, without the zero byte that DER puts before a number whose first bit is set.
pub(crate) fn serial_of(certificate: &X509Certificate<'_>) -> String {
    let number = certificate.raw_serial();
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    number[start..].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 by the cryptography of the mesh.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let SupportedCipherSuite::Tls13(suite) = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256 else {
        unreachable!("a suite of TLS 1.3 by its name")
    };
    let mut digest = [0; 32];
    digest.copy_from_slice(suite.common.hash_provider.hash(bytes).as_ref());
    digest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_pki::{Authority, Leaf as TestLeaf};

    #[test]
    fn each_kind_of_entry_finds_its_leaf_and_no_other() {
        let root = Authority::root("root");
        let read = |name: &str| Leaf::read(&TestLeaf::new(name).issue(&root).der, &[], &root.bundle()).unwrap();
        let (one, other) = (read("spiffe://td/ns/a/sa/one"), read("spiffe://td/ns/a/sa/other"));
        let entries =
            [Denial::Serial(one.serial.clone()), Denial::Identity(one.id.clone()), Denial::Key(one.key_sha256)];
        for entry in entries {
            let list = DenyList::new([entry.clone()]).unwrap();
            assert_eq!((list.find(&one), list.find(&other)), (Some(entry), None));
        }
        assert_eq!(DenyList::default().find(&one), None);
    }

    #[test]
    fn a_key_that_signs_takes_all_under_it_along() {
        // All of one name: only signatures tell them apart.
        let [old, new] = [(); 2].map(|()| Authority::root("root"));
        let issuers = [&old, &old, &new].map(|root| root.issuer("issuer", |_| {}));
        let both = TrustBundle::from_der([&old, &new].map(|root| root.der().to_vec())).unwrap();
        let leaves = issuers.each_ref().map(|issuer| {
            let leaf = TestLeaf::new("spiffe://td/ns/a/sa/one").issue(issuer);
            Leaf::read(&leaf.der, &[issuer.der()], &both).unwrap()
        });
        let key = |authority: &Authority| {
            let der = authority.der();
            Denial::Key(sha256(X509Certificate::from_der(&der).unwrap().1.public_key().raw))
        };
        let denied = |authority: &Authority| {
            let list = DenyList::new([key(authority)]).unwrap();
            leaves.each_ref().map(|leaf| list.find(leaf) == Some(key(authority)))
        };
        assert_eq!(denied(&old), [true, true, false]);
        assert_eq!(denied(&new), [false, false, true]);
        assert_eq!(denied(&issuers[1]), [false, true, false]);
        let direct = TestLeaf::new("spiffe://td/ns/a/sa/one").issue(&old);
        let direct = Leaf::read(&direct.der, &[], &both).unwrap();
        assert_eq!([&old, &new].map(|root| DenyList::new([key(root)]).unwrap().find(&direct).is_some()), [true, false]);
    }

    #[test]
    fn a_serial_number_is_found_as_people_copy_it() {
        let root = Authority::root("root");
        let with = |serial: &[u8]| {
            let leaf = TestLeaf::new("spiffe://td/ns/a/sa/one")
                .with(|params| params.serial_number = Some(serial.to_vec().into()));
            Leaf::read(&leaf.issue(&root).der, &[], &root.bundle()).unwrap()
        };
        for (number, texts) in
            [(&[0x9f, 0x0a][..], &["9f0a", "9F0A", "009f0a"][..]), (&[0x0a, 0x01], &["0a01", "A01", "a01"])]
        {
            let leaf = with(number);
            for text in texts {
                let entry = Denial::serial(text).unwrap();
                assert_eq!(
                    DenyList::new([entry.clone()]).unwrap().find(&leaf),
                    Some(entry),
                    "{text} is not {}",
                    leaf.serial
                );
            }
        }
        for text in ["", "0", "00", "9f:0a", "0x9f", "9f0a ", "serial"] {
            assert_eq!(Denial::serial(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_list_is_bounded_and_the_digest_is_sha_256() {
        let many = (0..=DENIALS_MAX).map(|n| Denial::Serial(n.to_string()));
        assert_eq!(DenyList::new(many).unwrap_err(), TooManyDenials(DENIALS_MAX + 1));
        // FIPS 180-4, example "abc".
        assert_eq!(sha256(b"abc")[..4], [0xba, 0x78, 0x16, 0xbf]);
    }
}
