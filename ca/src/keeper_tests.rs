//! The directory's life: made once, taken over from an earlier program, finished after a crash, shared by processes.

use crate::authority::Authority;
use crate::keeper::{Command, Found, Keeper, KeeperError};
use crate::lifecycle::{Refusal, Rules, Step, View};
use crate::pki::{self, NewIssuer, PkiError};
use crate::state::{Seconds, Stage, StateError, Subject};
use crate::store::Directory;
use crate::test_support::Scratch;
use crate::trust::{Trust, TrustError};

const NOW: Seconds = 1_800_000_000;
const NOBODY: View<'_> = View { proxies: &[], observing_since: 0 };

fn rules() -> Rules {
    Rules { leaf_lifetime: 60, absence_window: 0, ..Rules::default() }
}

fn keeper_for(scratch: &Scratch, domain: &str) -> Keeper {
    Keeper::new(Directory::open(&scratch.path().join("ca")).unwrap(), domain.parse().unwrap(), rules())
}

fn keeper(scratch: &Scratch) -> Keeper {
    keeper_for(scratch, "td")
}

/// A directory as the program before `state.json` left it.
fn earlier(scratch: &Scratch) -> Keeper {
    let keeper = keeper(scratch);
    let domain = "td".parse().unwrap();
    let (root, root_key) = pki::new_root(&domain, 1, 3650 * 86400, NOW).unwrap();
    let new =
        NewIssuer { domain: &domain, id: 2, root: &root, root_key: &root_key, lifetime: 365 * 86400, longest_leaf: 0 };
    let (issuer, issuer_key) = pki::new_issuer(&new, NOW).unwrap();
    let files = [
        ("root.pem", root.certificate),
        ("root-key.pem", root_key),
        ("issuer.pem", issuer.chain.concat()),
        ("issuer-key.pem", issuer_key),
    ];
    for (name, text) in files {
        keeper.directory().write(name, &text).unwrap();
    }
    keeper
}

fn read(keeper: &Keeper, name: &str) -> String {
    keeper.directory().read(name).unwrap().unwrap()
}

#[test]
fn a_directory_keeps_its_root() {
    let scratch = Scratch::new();
    let keeper = keeper(&scratch);
    let (made, found) = keeper.open(None, NOW).unwrap();
    assert_eq!((found, made.generation, made.signing().longest_leaf), (Found::Made, 1, 60));
    let (again, found) = keeper.open(None, NOW + 5).unwrap();
    assert_eq!((found, &again), (Found::Kept, &made));
    assert_eq!(
        (read(&keeper, "root.pem"), read(&keeper, "issuer.pem")),
        (made.bundle_pem(), made.signing().chain.concat())
    );
    let error = keeper_for(&scratch, "other").open(None, NOW).unwrap_err();
    assert!(matches!(error, KeeperError::TrustDomain { .. }));
}

#[test]
fn an_earlier_programs_directory_is_generation_one() {
    let scratch = Scratch::new();
    let keeper = earlier(&scratch);
    let (root, issuer) = (read(&keeper, "root.pem"), read(&keeper, "issuer.pem"));
    let (state, found) = keeper.open(None, NOW + 100).unwrap();
    assert_eq!(
        (found, state.generation, state.bundle_pem(), state.signing().chain.concat()),
        (Found::TakenOver, 1, root, issuer)
    );
    assert_eq!(state.signing().created, NOW, "not when it was backdated to");
    assert_eq!(state.signing().longest_leaf, 30 * 86400, "what that program could grant");
    Authority::load(keeper.directory(), &state, state.signing()).unwrap();
    // Its keys serve until they are not needed any more.
    keeper.command(&Command::RotateRoot, NOW + 200).unwrap();
    keeper.advance(&NOBODY, NOW + 201).unwrap().unwrap();
    assert!(keeper.directory().read("root-key.pem").unwrap().is_some(), "for a rollback");
    assert!(keeper.advance(&NOBODY, NOW + 29 * 86400).unwrap().is_none(), "its leaves are waited for");
    let (step, state) = keeper.advance(&NOBODY, NOW + 31 * 86400).unwrap().unwrap();
    assert_eq!((step, state.roots.len()), (Step::Drop, 1));
    let mut names = keeper.directory().names().unwrap();
    names.retain(|name| name.ends_with("key.pem"));
    names.sort();
    assert_eq!(names, ["issuer-4-key.pem", "root-3-key.pem"]);
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let check = |change: fn(&Keeper)| {
        let scratch = Scratch::new();
        let keeper = earlier(&scratch);
        change(&keeper);
        let error = keeper.open(None, NOW).unwrap_err();
        assert!(keeper.directory().read("state.json").unwrap().is_none(), "nothing was made in its place");
        error
    };
    let error = check(|keeper| keeper.directory().write("issuer-key.pem", &read(keeper, "root-key.pem")).unwrap());
    assert!(matches!(error, KeeperError::Pki(PkiError::KeyMismatch { .. })), "{error}");
    let error = check(|keeper| keeper.directory().write("root-key.pem", "nonsense").unwrap());
    assert!(matches!(error, KeeperError::Pki(PkiError::Damaged { .. })), "{error}");
    for name in ["issuer.pem", "root-key.pem", "issuer-key.pem"] {
        let scratch = Scratch::new();
        let keeper = earlier(&scratch);
        keeper.directory().remove(name).unwrap();
        assert!(matches!(keeper.open(None, NOW), Err(KeeperError::Missing(missing)) if missing == name));
    }
    let error = check(|keeper| {
        let other = Scratch::new();
        let other = earlier(&other);
        for name in ["issuer.pem", "issuer-key.pem"] {
            keeper.directory().write(name, &read(&other, name)).unwrap();
        }
    });
    assert!(matches!(error, KeeperError::Pki(PkiError::NotSignedBy { .. })), "{error}");
    let scratch = Scratch::new();
    earlier(&scratch);
    assert!(matches!(keeper_for(&scratch, "other").open(None, NOW), Err(KeeperError::TrustDomain { .. })));
}

#[test]
fn a_state_without_its_keys_signs_nothing() {
    let scratch = Scratch::new();
    let keeper = std::sync::Arc::new(keeper(&scratch));
    let (state, _) = keeper.open(None, NOW).unwrap();
    let load = || Trust::load(keeper.clone(), std::time::Duration::from_secs(1), NOW).err().unwrap();
    let key = &state.signing().key_file;
    let good = read(&keeper, key);
    keeper.directory().remove(key).unwrap();
    assert!(matches!(load(), TrustError::Issuer { id: 2, .. }));
    keeper.directory().write(key, &read(&keeper, "root-1-key.pem")).unwrap();
    assert!(telemetry::chain(&load()).to_string().contains("is not the key of issuer 2"));
    keeper.directory().write(key, &good).unwrap();
    keeper.directory().write("state.json", "{}").unwrap();
    assert!(matches!(load(), TrustError::Keeper(KeeperError::State(StateError::Syntax(_)))));
    // A state that is gone is not made again beside certificates that proxies trust.
    keeper.directory().remove("state.json").unwrap();
    assert!(matches!(keeper.open(None, NOW), Err(KeeperError::Missing(_))));
}

#[test]
fn what_a_crash_left_half_done_is_finished() {
    let scratch = Scratch::new();
    let keeper = keeper(&scratch);
    keeper.open(None, NOW).unwrap();
    let state = keeper.command(&Command::RotateRoot, NOW).unwrap();
    // The state was written, the rest was not.
    keeper.directory().write("root.pem", &state.roots[0].certificate).unwrap();
    keeper.directory().write("issuer-9-key.pem", "of a change that never came to be").unwrap();
    let (found, _) = keeper.open(None, NOW).unwrap();
    assert_eq!((found, read(&keeper, "root.pem")), (state.clone(), state.bundle_pem()));
    assert!(keeper.directory().read("issuer-9-key.pem").unwrap().is_none());
}

#[test]
fn a_longer_lifetime_is_on_the_disk_before_it_is_granted() {
    let scratch = Scratch::new();
    keeper(&scratch).open(None, NOW).unwrap();
    let directory = keeper(&scratch).directory().clone();
    let longer = Keeper::new(directory, "td".parse().unwrap(), Rules { leaf_lifetime: 5000, ..rules() });
    assert_eq!(longer.open(None, NOW).unwrap().0.signing().longest_leaf, 5000);
    assert_eq!(keeper(&scratch).open(None, NOW).unwrap().0.signing().longest_leaf, 5000, "and stays");
}

#[test]
fn processes_that_begin_at_once_make_one_authority() {
    let scratch = Scratch::new();
    keeper(&scratch);
    let open = || keeper(&scratch).open(None, NOW).unwrap();
    let found: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(found.iter().filter(|(_, found)| *found == Found::Made).count(), 1);
    assert!(found.iter().all(|(state, _)| *state == found[0].0));
}

#[test]
fn what_is_due_is_done_once_however_many_do_it() {
    let scratch = Scratch::new();
    let one = keeper(&scratch);
    one.open(None, NOW).unwrap();
    one.command(&Command::RotateRoot, NOW).unwrap();
    let advance = || keeper(&scratch).advance(&NOBODY, NOW + 1).unwrap();
    let done: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(advance)).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(done.len(), 1);
    let state = one.read().unwrap();
    assert_eq!((state.rotation.as_ref().unwrap().stage, state.generation), (Stage::Sign, 3));
}

#[test]
fn the_key_of_a_dropped_root_is_denied_and_never_one_under_which_everybody_is() {
    let scratch = Scratch::new();
    let keeper = keeper(&scratch);
    let (first, _) = keeper.open(None, NOW).unwrap();
    let key = |pem: &str| pki::key_of("certificate", pem).unwrap();
    let (root, issuer) = (key(&first.roots[0].certificate), key(&first.signing().chain[0]));
    let deny = |key| keeper.command(&Command::Deny(Subject::Key(key), String::new()), NOW);
    for (key, name) in [(root, "root 1"), (issuer, "issuer 2")] {
        assert!(matches!(deny(key), Err(KeeperError::Refused(Refusal::KeySigns(refused))) if refused == name));
    }
    keeper.command(&Command::RotateIssuer, NOW).unwrap();
    assert_eq!(deny(issuer).unwrap().denied.len(), 1, "the key of an issuer that signs no more");
    keeper.command(&Command::RotateRoot, NOW).unwrap();
    keeper.advance(&NOBODY, NOW + 1).unwrap().unwrap();
    let state = keeper.command(&Command::DropRoot(first.roots[0].sha256), NOW + 2).unwrap();
    assert!(state.denies(&Subject::Key(root)).is_some_and(|denied| denied.until.is_none()));
    keeper.command(&Command::Undeny(Subject::Key(root)), NOW + 3).unwrap();
}
