//! Step 4: whom we trust now: the roots and the deny list in force, where they come from, and what a restart finds of them.
//!
//! Roots come from the operators' file (`identity.caRoots`) until the CA's trust bundle is followed (`follow`); while it
//! is, the file is not looked at. When the CA is away, what it gave last stays in force, over a restart too, unless the
//! file has changed since: this is how a mesh is recovered whose roots have all ended. Bad content changes nothing. The
//! deny list comes from the CA only, and no file takes it back.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use identity::{DenyList, Previous, Store, TrustBundle, sha256};
use rustls_pki_types::UnixTime;
use tokio::sync::watch;

use crate::{
    config::Identity,
    trust_state::{Certificate, StateDirectory, TrustState, hex, read_denials, read_roots, save_denials},
};

/// How often the operators' file is looked at.
const FILE_INTERVAL: Duration = Duration::from_secs(5);
/// Bytes of a token or a bundle file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("{0} cannot be read")]
    File(String, #[source] io::Error),
    /// It is no trust bundle.
    #[error("the roots in {0} cannot be used")]
    Bundle(String, #[source] identity::BundleError),
}

/// What is in force, and how it is kept.
#[derive(Debug)]
pub struct Trust {
    config: Identity,
    store: Arc<Store>,
    state: StateDirectory,
    denied: watch::Sender<Arc<DenyList>>,
    changed: watch::Sender<()>,
    generation: AtomicU64,
    followed: AtomicBool,
    file: Mutex<File>,
}

/// What is known of the operators' file.
#[derive(Debug, Default)]
struct File {
    /// SHA-256 of its content when what is in force was chosen, hexadecimal.
    at_choice: String,
    /// What was of no use when it was last looked at: the same of its content, or why it cannot be read.
    useless: Option<String>,
}

impl Trust {
    /// Puts the trust that was saved last in force, or that of the operators' file. Who is denied is told by `denied`.
    pub fn start(config: &Identity, store: Arc<Store>, denied: watch::Sender<Arc<DenyList>>) -> Arc<Self> {
        let state = StateDirectory::new(config.state_dir.clone());
        let (changed, _) = watch::channel(());
        let (generation, followed, file) = Default::default();
        let trust = Self { config: config.clone(), store, state, denied, changed, generation, followed, file };
        if let Some(saved) = trust.state.load(trust.store.trust_domain().as_str()) {
            trust.restore(saved);
        }
        trust.look();
        Arc::new(trust)
    }

    /// The store that holds what is in force.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Tells of new roots, and of each new certificate.
    pub fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The generation in force; 0 when it came from the operators' file.
    pub fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// True while the CA is followed.
    pub fn is_followed(&self) -> bool {
        self.followed.load(Relaxed)
    }

    /// Notes whether the CA is followed.
    pub fn set_followed(&self, followed: bool) {
        self.followed.store(followed, Relaxed);
    }

    /// How many are denied.
    pub fn denials(&self) -> u64 {
        self.denied.borrow().len() as u64
    }

    /// Puts a generation of the CA in force for the next handshake, and saves it.
    pub fn take(&self, roots: TrustBundle, denied: DenyList, generation: u64) {
        if let Ok(content) = read(&self.config.ca_roots) {
            self.file().at_choice = hex(&sha256(&content));
        }
        self.put_in_force(roots, denied, generation);
        self.save();
    }

    /// Takes a new certificate into use, and saves which it is.
    pub fn set_certificate(&self, credentials: identity::Credentials) {
        self.store.set(credentials);
        self.save();
        self.changed.send_replace(());
    }

    /// Looks at the operators' file for ever.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn watch_file(self: Arc<Self>) {
        loop {
            tokio::time::sleep(FILE_INTERVAL).await;
            self.look();
        }
    }

    fn look(&self) {
        if let Err(error) = self.look_at_file() {
            tracing::warn!(error = %telemetry::chain(&error), "{}", match self.store.bundle() {
                Some(_) => "keeping the roots that were good last",
                None => "there are no roots: nobody can be trusted",
            });
        }
    }

    /// Takes the roots of the operators' file if they are newer than what is in force and the CA is not followed. What is
    /// of no use is an error once, and again for as long as there are no roots at all.
    ///
    /// # Errors
    /// When the file is of no use.
    pub fn look_at_file(&self) -> Result<(), Error> {
        let in_force = self.store.bundle();
        if self.is_followed() && in_force.is_some() {
            return Ok(());
        }
        let found = read(&self.config.ca_roots);
        let seen = found.as_ref().map_or_else(|error| telemetry::chain(error).to_string(), |found| hex(&sha256(found)));
        let mut file = self.file();
        if in_force.is_some() && (seen == file.at_choice || file.useless.as_ref() == Some(&seen)) {
            return Ok(());
        }
        file.useless = Some(seen.clone());
        let name = self.config.ca_roots.display().to_string();
        let roots = TrustBundle::from_pem(&found?).map_err(|error| Error::Bundle(name.clone(), error))?;
        *file = File { at_choice: seen, useless: None };
        drop(file);
        if in_force.is_some_and(|in_force| is_same(&in_force, &roots)) {
            return Ok(());
        }
        self.put_in_force(roots, (*self.store.denied()).clone(), 0);
        self.save();
        tracing::info!(file = name, "the roots of the file are in force");
        Ok(())
    }

    fn restore(&self, saved: TrustState) {
        if let Some(previous) = saved.certificate.as_ref().and_then(previous) {
            self.store.set_previous(previous);
        }
        let roots = read_roots(&saved.roots).map(TrustBundle::from_der);
        let denied = read_denials(&saved.denied).map(DenyList::new);
        let (Some(Ok(roots)), Some(Ok(denied))) = (roots, denied) else {
            tracing::warn!("the saved trust is damaged, and is not used");
            return;
        };
        self.file().at_choice = saved.ca_roots_sha256;
        let denials = denied.len();
        self.put_in_force(roots, denied, saved.generation);
        tracing::info!(generation = saved.generation, denials, "the trust that was saved last is in force");
    }

    fn put_in_force(&self, roots: TrustBundle, denied: DenyList, generation: u64) {
        let denied = Arc::new(denied);
        // First who is refused: nobody who is denied gets in by the roots that come with the denial.
        self.store.set_denied(Arc::clone(&denied));
        self.store.set_bundle(roots);
        self.generation.store(generation, Relaxed);
        self.denied.send_if_modified(|current| {
            let changed = **current != *denied;
            *current = denied;
            changed
        });
        self.changed.send_replace(());
    }

    fn save(&self) {
        let Some(roots) = self.store.bundle() else { return };
        let current = self.store.current().map(|current| Certificate {
            serial: current.serial.clone(),
            identity: current.id.to_string(),
            not_after: current.not_after.as_secs(),
        });
        // Until there is a new certificate, the one that was lost is what there is to say.
        let lost = || self.store.previous().map(|previous| saved(&previous));
        self.state.save(&TrustState {
            trust_domain: self.store.trust_domain().as_str().to_owned(),
            generation: self.generation(),
            roots: roots.roots().iter().map(|root| hex(root)).collect(),
            denied: save_denials(&self.store.denied()),
            ca_roots_sha256: self.file().at_choice.clone(),
            certificate: current.or_else(lost),
        });
    }

    fn file(&self) -> std::sync::MutexGuard<'_, File> {
        // Nothing panics while it holds the lock.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn previous(saved: &Certificate) -> Option<Previous> {
    let not_after = UnixTime::since_unix_epoch(Duration::from_secs(saved.not_after));
    Some(Previous { id: saved.identity.parse().ok()?, serial: saved.serial.clone(), not_after })
}

fn saved(previous: &Previous) -> Certificate {
    let (identity, not_after) = (previous.id.to_string(), previous.not_after.as_secs());
    Certificate { serial: previous.serial.clone(), identity, not_after }
}

/// True when the two hold the same roots, in whatever order.
fn is_same(one: &TrustBundle, other: &TrustBundle) -> bool {
    let all_of = |some: &TrustBundle, more: &TrustBundle| some.roots().iter().all(|root| more.roots().contains(root));
    all_of(one, other) && all_of(other, one)
}

/// Reads a token or a bundle.
///
/// # Errors
/// When it cannot be read, or is over 1 MiB.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let read = || {
        if std::fs::metadata(path)?.len() > FILE_BYTES_MAX {
            return Err(io::Error::other("the file is over 1 MiB"));
        }
        std::fs::read(path)
    };
    read().map_err(|error| Error::File(path.display().to_string(), error))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use identity::{Denial, Unusable};

    use super::*;
    use crate::{
        clock,
        test_ca::{Authority, CA, WORKLOAD, id},
    };

    /// The files of one proxy, and its processes one after the other.
    struct Proxy(PathBuf);

    impl Drop for Proxy {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    impl Proxy {
        fn new(name: &str, roots: &[&Authority]) -> Self {
            let path = std::env::temp_dir().join(format!("picket-trust-of-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            let proxy = Self(path);
            proxy.write_roots(roots);
            proxy
        }

        fn write_roots(&self, roots: &[&Authority]) {
            let pem: String = roots.iter().map(|root| root.pem.as_str()).collect();
            std::fs::write(self.0.join("root.pem"), pem).unwrap();
        }

        fn start(&self) -> Arc<Trust> {
            let config = Identity {
                ca_address: "[::1]:1".to_owned(),
                ca_roots: self.0.join("root.pem"),
                ca_identity: id(CA),
                token_file: self.0.join("token"),
                state_dir: Some(self.0.clone()),
            };
            Trust::start(&config, Store::new("td".parse().unwrap()), watch::channel(Arc::default()).0)
        }
    }

    fn bundle(roots: &[&Authority]) -> TrustBundle {
        TrustBundle::from_der(roots.iter().map(|root| root.der.clone())).unwrap()
    }

    /// Generation and roots in force, and how many are denied.
    fn in_force(trust: &Trust) -> (u64, Vec<Vec<u8>>, u64) {
        let roots = trust.store.bundle().map(|bundle| bundle.roots().iter().map(|root| root.to_vec()).collect());
        (trust.generation(), roots.unwrap_or_default(), trust.denials())
    }

    fn with(generation: u64, roots: &[&Authority], denials: u64) -> (u64, Vec<Vec<u8>>, u64) {
        (generation, roots.iter().map(|root| root.der.clone()).collect(), denials)
    }

    /// A process that was given generation 4, with `roots` and one denial, and a certificate.
    fn served(proxy: &Proxy, roots: &[&Authority]) {
        let trust = proxy.start();
        let denied = DenyList::new([Denial::Identity(id("spiffe://td/ns/demo/sa/gone"))]).unwrap();
        trust.take(bundle(roots), denied, 4);
        trust.set_certificate(roots[0].credentials(WORKLOAD));
    }

    #[test]
    fn a_restart_finds_the_last_good_trust_and_names_the_certificate_that_was_lost() {
        let [one, two] = ["one", "two"].map(Authority::root);
        let proxy = Proxy::new("restart", &[&one]);
        let trust = proxy.start();
        assert_eq!(trust.store.usable(clock::unix_time()).unwrap_err(), Unusable::Missing);
        served(&proxy, &[&one, &two]);
        for _again in 0..2 {
            let trust = proxy.start();
            assert_eq!(in_force(&trust), with(4, &[&one, &two], 1));
            trust.look_at_file().unwrap();
            assert_eq!(in_force(&trust), with(4, &[&one, &two], 1), "the file has not changed");
            let Unusable::Lost { previous, now } = trust.store.usable(clock::unix_time()).unwrap_err() else {
                panic!("there is no certificate");
            };
            let text = trust.store.usable(now).unwrap_err().to_string();
            let end = identity::Utc(previous.not_after).to_string();
            for part in [WORKLOAD, &previous.serial, &end, &identity::Utc(now).to_string()] {
                assert!(!part.is_empty() && text.contains(part), "{text}");
            }
            // What is saved before there is a new certificate keeps the name of the lost one.
            trust.take(bundle(&[&one, &two]), (*trust.store.denied()).clone(), 4);
        }
        let trust = proxy.start();
        trust.set_certificate(one.credentials(WORKLOAD));
        assert!(trust.store.usable(clock::unix_time()).is_ok());
    }

    #[test]
    fn after_a_restart_a_file_that_has_changed_wins_but_takes_no_denial_back() {
        let [one, two] = ["one", "two"].map(Authority::root);
        let proxy = Proxy::new("changed", &[&one]);
        served(&proxy, &[&one]);
        proxy.write_roots(&[&two]);
        assert_eq!(in_force(&proxy.start()), with(0, &[&two], 1));
        assert_eq!(in_force(&proxy.start()), with(0, &[&two], 1), "and it is saved");
    }

    #[test]
    fn after_a_restart_a_file_that_is_of_no_use_changes_nothing() {
        let one = Authority::root("one");
        let proxy = Proxy::new("useless", &[&one]);
        served(&proxy, &[&one]);
        std::fs::write(proxy.0.join("root.pem"), "no roots").unwrap();
        assert_eq!(in_force(&proxy.start()), with(4, &[&one], 1));
        std::fs::remove_file(proxy.0.join("root.pem")).unwrap();
        assert_eq!(in_force(&proxy.start()), with(4, &[&one], 1));
    }

    #[test]
    fn what_was_saved_and_is_damaged_is_passed_over() {
        let [one, two] = ["one", "two"].map(Authority::root);
        let proxy = Proxy::new("damaged", &[&one]);
        let file = proxy.0.join("trust.json");
        served(&proxy, &[&one, &two]);
        let good = std::fs::read_to_string(&file).unwrap();
        let root = hex(&two.der);
        for bad in [
            String::new(),
            "{}".to_owned(),
            good[..good.len() / 2].to_owned(),
            good.replace(&root, "zz"),
            good.replace(&root, &root[..100]),
            good.replace("spiffe://td/ns/demo/sa/gone", "gone"),
            good.replace("\"trustDomain\":\"td\"", "\"trustDomain\":\"other\""),
        ] {
            assert_ne!(bad, good);
            std::fs::write(&file, &bad).unwrap();
            assert_eq!(in_force(&proxy.start()), with(0, &[&one], 0), "{bad}");
        }
    }

    #[test]
    fn while_the_ca_is_away_the_file_is_followed_and_a_bad_one_changes_nothing() {
        let [one, two, three] = ["one", "two", "three"].map(Authority::root);
        let proxy = Proxy::new("file", &[]);
        let trust = proxy.start();
        for _again in 0..2 {
            assert!(matches!(trust.look_at_file(), Err(Error::Bundle(..))), "as long as there are no roots");
        }
        proxy.write_roots(&[&one]);
        trust.look_at_file().unwrap();
        assert_eq!(in_force(&trust), with(0, &[&one], 0));

        trust.take(bundle(&[&one, &two]), DenyList::default(), 7);
        trust.set_followed(true);
        proxy.write_roots(&[&three]);
        trust.look_at_file().unwrap();
        assert_eq!(in_force(&trust), with(7, &[&one, &two], 0), "the CA is there");
        trust.set_followed(false);
        trust.look_at_file().unwrap();
        assert_eq!(in_force(&trust), with(0, &[&three], 0), "the file has changed since");

        trust.take(bundle(&[&one, &two]), DenyList::default(), 8);
        trust.look_at_file().unwrap();
        assert_eq!(in_force(&trust), with(8, &[&one, &two], 0), "the file has not changed since");
        std::fs::write(proxy.0.join("root.pem"), "no roots").unwrap();
        assert!(matches!(trust.look_at_file(), Err(Error::Bundle(..))));
        trust.look_at_file().unwrap();
        assert_eq!(in_force(&trust), with(8, &[&one, &two], 0), "it was said once");
        proxy.write_roots(&[&two, &one]);
        trust.look_at_file().unwrap();
        assert_eq!(in_force(&trust), with(8, &[&one, &two], 0), "the same roots are no change");
    }
}
