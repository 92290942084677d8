//! Brought issuers: the good ones in all their forms, each refusal by its reason, and what becomes of them in the state.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};

use crate::brought::{Brought, BroughtError, Files, validate};
use crate::keeper::{Command, Found, Keeper, KeeperError};
use crate::lifecycle::{Refusal, Rules, View};
use crate::state::{Root, Seconds, Stage, State, Subject};
use crate::store::Directory;
use crate::test_support::{Scratch, openssl};

const NOW: Seconds = 1_800_000_000;
const DAY: Seconds = 86_400;

/// A certificate authority of somebody else.
struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

fn params(name: &str, path_length: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(path_length.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    params.not_before = crate::pki::at(NOW - DAY).unwrap();
    params.not_after = crate::pki::at(NOW + 90 * DAY).unwrap();
    params
}

impl Authority {
    fn root(name: &str) -> Self {
        let (params, key) = (params(name, None), KeyPair::generate().unwrap());
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    fn issue(&self, name: &str, key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = params(name, None);
        change(&mut params);
        let signer = Issuer::from_params(&self.params, &self.key);
        let pem = params.signed_by(&key, &signer).unwrap().pem();
        Self { params, key, pem }
    }

    /// The same root with the same key in another certificate.
    fn renewed(&self) -> Self {
        let (params, key) = (self.params.clone(), KeyPair::from_pem(&self.key.serialize_pem()).unwrap());
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    fn issuer(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        self.issue(name, KeyPair::generate().unwrap(), change)
    }
}

/// A directory as it is mounted.
struct Mounted(Scratch);

impl Mounted {
    fn new(certificates: &str, key: &str, roots: Option<&str>) -> Self {
        let mounted = Self(Scratch::new());
        mounted.write(certificates, key, roots);
        mounted
    }

    fn of(issuer: &Authority, root: &Authority) -> Self {
        Self::new(&issuer.pem, &issuer.key.serialize_pem(), Some(&root.pem))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, certificates: &str, key: &str, roots: Option<&str>) {
        std::fs::write(self.path().join("tls.crt"), certificates).unwrap();
        std::fs::write(self.path().join("tls.key"), key).unwrap();
        if let Some(roots) = roots {
            std::fs::write(self.path().join("ca.crt"), roots).unwrap();
        }
    }

    fn check(&self, trusted: &[Root]) -> Result<Brought, BroughtError> {
        validate(&Files::read(self.path())?, trusted, &"td".parse().unwrap(), NOW)
    }

    fn refused(&self) -> BroughtError {
        self.check(&[]).expect_err("it is refused")
    }
}

#[test]
fn what_people_bring_is_taken() {
    let root = Authority::root("root");
    let issuer = root.issuer("issuer", |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let brought = Mounted::of(&issuer, &root).check(&[]).unwrap();
    assert_eq!(brought.issuer(2, 1, 60, NOW).not_after, NOW + 90 * DAY);
    assert_eq!(brought.root(1).certificate, root.pem);

    // With the root at the end of tls.crt, and other roots in ca.crt.
    let chain = format!("{}{}", issuer.pem, root.pem);
    let roots = format!("{}{}", Authority::root("other").pem, root.pem);
    let same = Mounted::new(&chain, &issuer.key.serialize_pem(), Some(&roots)).check(&[]).unwrap();
    assert_eq!((same.sha256, same.root_sha256), (brought.sha256, brought.root_sha256));
    // Without ca.crt, when the root is trusted already.
    let trusted = [brought.root(1)];
    Mounted::new(&issuer.pem, &issuer.key.serialize_pem(), None).check(&trusted).unwrap();
    // With one authority in between, and with a root that signs leaves itself.
    let low = issuer_below(&root.issuer("between", |_| ()));
    Mounted::new(&low.0, &low.1, Some(&root.pem)).check(&[]).unwrap();
    let itself = Mounted::of(&root, &root).check(&[]).unwrap();
    assert_eq!(itself.sha256, itself.root_sha256);
    // RSA keys as cert-manager and openssl write them, and P-384.
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    for (key, form) in [(rsa, "rsa"), (p384, "ec")] {
        let issuer = root.issue("issuer", key, |_| ());
        let scratch = Scratch::new();
        let file = scratch.path().join("key");
        std::fs::write(&file, issuer.key.serialize_pem()).unwrap();
        let mut older = vec![form, "-in", file.to_str().unwrap()];
        older.extend(if form == "rsa" { ["-traditional"].as_slice() } else { &[] });
        for key in [issuer.key.serialize_pem(), openssl(&older)] {
            Mounted::new(&issuer.pem, &key, Some(&root.pem)).check(&[]).unwrap();
        }
    }
}

/// An issuer below another one: the chain and its key.
fn issuer_below(between: &Authority) -> (String, String) {
    let low = between.issuer("issuer", |_| ());
    (format!("{}{}", low.pem, between.pem), low.key.serialize_pem())
}

#[test]
fn each_refusal_has_its_reason() {
    use BroughtError::{
        ChainTooLong, Disorder, Ended, Io, KeyMismatch, NoCertSign, NoCertificate, NoRoot, NotAnAuthority, NotBegun,
        PathLength, Peers, Pki, TooLarge, WeakKey,
    };
    let root = Authority::root("root");
    let good = root.issuer("issuer", |_| ());
    let changed = |change: fn(&mut CertificateParams)| Mounted::of(&root.issuer("issuer", change), &root).refused();
    assert!(matches!(changed(|params| params.is_ca = IsCa::ExplicitNoCa), NotAnAuthority(_)));
    assert!(matches!(changed(|params| params.is_ca = IsCa::NoCa), NotAnAuthority(_)));
    assert!(matches!(changed(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]), NoCertSign(_)));
    assert!(matches!(changed(|params| params.key_usages.clear()), NoCertSign(_)));
    assert!(matches!(changed(|params| params.not_after = crate::pki::at(NOW).unwrap()), Ended { .. }));
    assert!(matches!(changed(|params| params.not_before = crate::pki::at(NOW + 1).unwrap()), NotBegun { .. }));
    // What only a leaf shows: peers would not take it for a client or a server.
    let for_mail = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
    };
    assert!(matches!(changed(for_mail), Peers(_)));
    let for_hosts = |params: &mut CertificateParams| {
        let permitted_subtrees = vec![GeneralSubtree::DnsName("example.org".into())];
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    };
    // A name constraint on hosts does not speak of URIs; whatever becomes of it, it must not panic.
    let hosts = Mounted::of(&root.issuer("issuer", for_hosts), &root).check(&[]);
    assert!(hosts.is_ok() || matches!(hosts, Err(Peers(_))));

    let key = good.key.serialize_pem();
    let refused = |certificates: &str, key: &str, roots: Option<&str>| Mounted::new(certificates, key, roots).refused();
    assert!(matches!(refused(&good.pem, &root.key.serialize_pem(), Some(&root.pem)), KeyMismatch));
    assert!(matches!(refused(&good.pem, "no key", Some(&root.pem)), Pki(_)));
    assert!(matches!(refused("", &key, Some(&root.pem)), NoCertificate("tls.crt")));
    assert!(matches!(refused(&good.pem, &key, Some("nothing")), NoCertificate("ca.crt")));
    assert!(matches!(refused(&good.pem, &key, Some(&Authority::root("other").pem)), NoRoot { .. }));
    // A root of the same name with another key has not signed it.
    assert!(matches!(refused(&good.pem, &key, Some(&Authority::root("root").pem)), NoRoot { .. }));
    assert!(matches!(refused(&good.pem, &key, None), NoRoot { .. }));
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(refused(garbage, &key, Some(&root.pem)), Pki(_)));
    assert!(matches!(refused(&"x".repeat(300 << 10), &key, None), TooLarge(_)));
    let between = root.issuer("between", |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let low = issuer_below(&between);
    let short = refused(&low.0, &low.1, Some(&root.pem));
    assert!(matches!(short, PathLength { allowed: 0, found: 1, .. }), "{short}");
    let upper = root.issuer("upper", |_| ());
    let lower = upper.issuer("lower", |_| ());
    let low = issuer_below(&lower);
    let long = format!("{}{}", low.0, upper.pem);
    assert!(matches!(refused(&long, &low.1, Some(&root.pem)), ChainTooLong(3)));
    let stranger = root.issuer("between", |_| ());
    let mixed = format!("{}{}", lower.pem, stranger.pem);
    assert!(matches!(refused(&mixed, &lower.key.serialize_pem(), Some(&root.pem)), Disorder(_)));
    let empty = Scratch::new();
    assert!(matches!(Files::read(empty.path()), Err(Io { .. })));
    let weak = Mounted::new("", "", None);
    let file = |name: &str| weak.path().join(name).to_str().unwrap().to_owned();
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:1024",
        "-nodes",
        "-keyout",
        &file("tls.key"),
        "-out",
        &file("tls.crt"),
        "-subj",
        "/CN=weak",
        "-days",
        "9000",
        "-addext",
        "keyUsage=critical,keyCertSign",
    ]);
    std::fs::copy(file("tls.crt"), file("ca.crt")).unwrap();
    let refused = validate(&Files::read(weak.path()).unwrap(), &[], &"td".parse().unwrap(), crate::tend::now());
    assert!(matches!(refused, Err(WeakKey(1024) | Pki(_))), "{refused:?}");
}

fn keeper(scratch: &Scratch, rules: Rules) -> Keeper {
    let directory = Directory::open(&scratch.path().join("ca")).unwrap();
    Keeper::new(directory, "td".parse().unwrap(), rules)
}

fn rules() -> Rules {
    Rules { leaf_lifetime: 60, brought: true, absence_window: 0, ..Rules::default() }
}

const NOBODY: View<'_> = View { proxies: &[], observing_since: 0 };

#[test]
fn an_empty_directory_begins_with_what_was_brought() {
    let (scratch, root) = (Scratch::new(), Authority::root("root"));
    let brought = Mounted::of(&root.issuer("one", |_| ()), &root).check(&[]).unwrap();
    let keeper = keeper(&scratch, rules());
    let (state, found) = keeper.open(Some(&brought), NOW).unwrap();
    assert_eq!((found, state.signing().sha256, state.generation), (Found::Made, brought.sha256, 1));
    assert_eq!(state.bundle_pem(), root.pem);
    assert!(keeper.bring(&brought, NOW).unwrap().is_none());
    let refused = keeper.command(&Command::RotateRoot, NOW);
    assert!(matches!(refused, Err(KeeperError::Refused(Refusal::Brought))));
    assert!(matches!(keeper.command(&Command::RotateIssuer, NOW), Err(KeeperError::Refused(Refusal::Brought))));
    // Nothing is due by itself, however late it is.
    assert!(keeper.advance(&NOBODY, NOW + 80 * DAY).unwrap().is_none());
    // Under the same root a new one signs at once.
    let next = Mounted::of(&root.issuer("two", |_| ()), &root).check(&state.roots).unwrap();
    let state = keeper.bring(&next, NOW + 5).unwrap().unwrap();
    assert_eq!((state.signing().sha256, state.issuers.len(), &state.rotation), (next.sha256, 2, &None));
    authority_loads(&keeper, &state);
}

/// What signs has its key in our own directory: all processes, and the next start, sign with it.
fn authority_loads(keeper: &Keeper, state: &State) {
    crate::authority::Authority::load(keeper.directory(), state, state.signing()).unwrap();
}

#[test]
fn another_root_comes_in_stages_and_can_be_rolled_back() {
    let scratch = Scratch::new();
    let own = keeper(&scratch, Rules { brought: false, ..rules() });
    let (first, _) = own.open(None, NOW).unwrap();
    let keeper = keeper(&scratch, rules());
    let root = Authority::root("root");
    let one = Mounted::of(&root.issuer("one", |_| ()), &root).check(&first.roots).unwrap();
    let state = keeper.bring(&one, NOW).unwrap().unwrap();
    assert_eq!(state.rotation.as_ref().unwrap().stage, Stage::Distribute);
    assert_eq!(state.signing().id, first.signing().id, "the old one signs until everybody knows the new root");
    // A newer one under the new root takes its place while it waits.
    let two = Mounted::of(&root.issuer("two", |_| ()), &root).check(&state.roots).unwrap();
    let state = keeper.bring(&two, NOW).unwrap().unwrap();
    assert_eq!(state.rotation.as_ref().unwrap().pending.as_ref().unwrap().sha256, two.sha256);
    // One of a third root has to wait.
    let third = Authority::root("third");
    let other = Mounted::of(&third.issuer("other", |_| ()), &third).check(&state.roots).unwrap();
    assert!(matches!(keeper.bring(&other, NOW), Err(KeeperError::BroughtLater)));
    let (_, state) = keeper.advance(&NOBODY, NOW + 1).unwrap().unwrap();
    assert_eq!(state.signing().sha256, two.sha256);
    authority_loads(&keeper, &state);

    let state = keeper.command(&Command::Rollback, NOW + 2).unwrap();
    assert_eq!((state.signing_root().id, state.declined), (first.signing_root().id, Some(two.sha256)));
    authority_loads(&keeper, &state);
    assert!(keeper.bring(&two, NOW + 3).unwrap().is_none(), "not again by itself");
    let (_, state) = keeper.advance(&NOBODY, NOW + 200).unwrap().unwrap();
    assert_eq!((state.roots.len(), state.signing_root().id), (1, first.signing_root().id));
    // Another one is another matter.
    let again = Mounted::of(&root.issuer("three", |_| ()), &root).check(&state.roots).unwrap();
    let state = keeper.bring(&again, NOW + 201).unwrap().unwrap();
    assert_eq!(state.rotation.unwrap().pending.unwrap().sha256, again.sha256);
    // The operator puts the old files back before it signed: that is the end of it.
    let undone = keeper.command(&Command::Rollback, NOW + 202).unwrap();
    assert!(undone.rotation.is_none() && undone.roots.len() == 1);
    // What peers would refuse is not taken: the root's key was denied meanwhile.
    let key = Subject::Key(crate::pki::key_of("root", &root.pem).unwrap());
    keeper.command(&Command::Deny(key.clone(), String::new()), NOW + 203).unwrap();
    let last = Mounted::of(&root.issuer("four", |_| ()), &root).check(&undone.roots).unwrap();
    assert!(matches!(keeper.bring(&last, NOW + 204), Err(KeeperError::BroughtDenied(name)) if name.contains("root")));
    keeper.command(&Command::Undeny(key), NOW + 205).unwrap();
    assert!(keeper.bring(&last, NOW + 206).unwrap().is_some());
}

#[test]
fn the_old_files_put_back_turn_a_rotation_round() {
    let (scratch, one, two) = (Scratch::new(), Authority::root("one"), Authority::root("two"));
    let keeper = keeper(&scratch, rules());
    let (of_one, of_two) = (one.issuer("of one", |_| ()), two.issuer("of two", |_| ()));
    let old = Mounted::of(&of_one, &one).check(&[]).unwrap();
    let (first, _) = keeper.open(Some(&old), NOW).unwrap();
    let new = Mounted::of(&of_two, &two).check(&first.roots).unwrap();
    keeper.bring(&new, NOW).unwrap().unwrap();
    // In stage one the rotation is undone; the issuer that signs is the one that is there already.
    let back = one.issuer("of one, again", |_| ());
    let state = keeper.bring(&Mounted::of(&back, &one).check(&[]).unwrap(), NOW + 1).unwrap().unwrap();
    assert!(state.rotation.is_none() && state.roots.len() == 1);
    let newer = two.issuer("of two, again", |_| ());
    keeper.bring(&Mounted::of(&newer, &two).check(&[]).unwrap(), NOW + 2).unwrap().unwrap();
    keeper.advance(&NOBODY, NOW + 3).unwrap().unwrap();
    let state = keeper.read().unwrap();
    assert_eq!(state.rotation.as_ref().unwrap().stage, Stage::Sign);
    // A rollback by command needs a root's key, which was never here.
    let refused = keeper.command(&Command::Rollback, NOW + 4);
    assert!(matches!(refused, Err(KeeperError::Refused(Refusal::NoKey(_)))));
    // In stage two the old files turn it round.
    let last = one.issuer("of one, at last", |_| ());
    let last = Mounted::of(&last, &one).check(&[]).unwrap();
    let state = keeper.bring(&last, NOW + 5).unwrap().unwrap();
    assert!(state.rotation.as_ref().unwrap().rolling_back);
    assert_eq!(state.signing().sha256, last.sha256);
    authority_loads(&keeper, &state);
}

#[test]
fn a_root_is_dropped_without_denying_its_key_while_another_has_the_same() {
    let (scratch, one) = (Scratch::new(), Authority::root("root"));
    let (two, keeper) = (one.renewed(), keeper(&scratch, rules()));
    let brought = |root: &Authority| Mounted::of(&root.issuer("issuer", |_| ()), root).check(&[]).unwrap();
    keeper.open(Some(&brought(&one)), NOW).unwrap();
    let next = brought(&two);
    let state = keeper.bring(&next, NOW).unwrap().unwrap();
    assert_eq!(state.roots.len(), 2);
    let state = keeper.command(&Command::DropRoot(next.root_sha256), NOW + 1).unwrap();
    assert_eq!((state.roots.len(), state.denied.len()), (1, 0));
}

#[test]
fn a_root_is_not_dropped_while_its_key_signs_under_another_one() {
    let (scratch, one, two) = (Scratch::new(), Authority::root("one"), Authority::root("two"));
    let keeper = keeper(&scratch, rules());
    let first = Mounted::of(&one.issuer("of one", |_| ()), &one).check(&[]).unwrap();
    let (state, _) = keeper.open(Some(&first), NOW).unwrap();
    // The second root has signed the key of the first one: an issuer by that key leads to the second root.
    let cross = two.issue("one", KeyPair::from_pem(&one.key.serialize_pem()).unwrap(), |_| ());
    let issuer = one.issuer("by the first key", |_| ());
    let chain = format!("{}{}", issuer.pem, cross.pem);
    let mounted = Mounted::new(&chain, &issuer.key.serialize_pem(), Some(&two.pem));
    let state = keeper.bring(&mounted.check(&state.roots).unwrap(), NOW).unwrap().unwrap();
    // While it waits, none of its keys can be denied; one that is denied all the same does not become the signer.
    let own = crate::pki::key_of("issuer", &issuer.pem).unwrap();
    let refused = keeper.command(&Command::Deny(Subject::Key(own), String::new()), NOW);
    assert!(matches!(refused, Err(KeeperError::Refused(Refusal::KeySigns(_)))), "{refused:?}");
    let mut denying = state.clone();
    let subject = Subject::Key(own);
    denying.denied.push(crate::state::Denied { subject, reason: String::new(), since: NOW, until: None });
    keeper.directory().write(crate::state::FILE, &denying.to_text().unwrap()).unwrap();
    assert!(matches!(keeper.advance(&NOBODY, NOW + 1), Err(KeeperError::BroughtDenied(_))));
    keeper.directory().write(crate::state::FILE, &state.to_text().unwrap()).unwrap();
    keeper.advance(&NOBODY, NOW + 1).unwrap().unwrap();
    let refused = keeper.command(&Command::DropRoot(first.root_sha256), NOW + 2);
    assert!(matches!(refused, Err(KeeperError::Refused(Refusal::KeySigns(_)))), "{refused:?}");
    assert_eq!(keeper.read().unwrap().denied, []);
}
