//! Step 4: what is kept on disk of the trust that was good last, so that a restart while the CA is away is judged
//! correctly.
//!
//! No secret is in it: roots, the deny list, and of our own certificate only what tells people which one it was. The file
//! is replaced whole; one that cannot be read is reported and passed over. Leaves to others: what of it is put in force.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use identity::{Denial, DenyList};
use serde::{Deserialize, Serialize};

const FILE: &str = "trust.json";
/// A generation comes in a message of at most 4 MiB; hexadecimal and JSON make less than four times as much of it.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The trust that was in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TrustState {
    /// The trust domain that it belongs to.
    pub trust_domain: String,
    /// Its generation; 0 when it came from the operators' file.
    pub generation: u64,
    /// The roots, DER in hexadecimal.
    pub roots: Vec<String>,
    /// The deny list.
    pub denied: Vec<Denied>,
    /// SHA-256 of `identity.caRoots` when this was saved, hexadecimal.
    pub ca_roots_sha256: String,
    /// Our certificate.
    pub certificate: Option<Certificate>,
}

/// One entry of the deny list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Denied {
    /// By serial number.
    Serial(String),
    /// By SPIFFE ID.
    Identity(String),
    /// By SHA-256 of the key, hexadecimal.
    Key(String),
}

/// What is kept of our certificate; its key is in memory only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Certificate {
    /// Its serial number.
    pub serial: String,
    /// Whom it names.
    pub identity: String,
    /// Its end, in seconds since 1970 UTC.
    pub not_after: u64,
}

/// The directory of the state, if there is one.
#[derive(Debug, Clone)]
pub struct StateDirectory(Option<PathBuf>);

impl StateDirectory {
    /// Nothing is kept without a path.
    pub fn new(path: Option<PathBuf>) -> Self {
        Self(path)
    }

    /// What was saved last; `None` when there is nothing, or nothing that can be read (which is logged).
    pub fn load(&self, trust_domain: &str) -> Option<TrustState> {
        let path = self.0.as_ref()?.join(FILE);
        match read(&path) {
            Ok(state) if state.trust_domain == trust_domain => Some(state),
            Ok(state) => {
                tracing::warn!(file = %path.display(), found = state.trust_domain, "the saved trust is of another trust domain");
                None
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the saved trust cannot be read, and is not used");
                None
            }
        }
    }

    /// Saves the state; a failure is logged, and the proxy goes on with what is in memory.
    pub fn save(&self, state: &TrustState) {
        let Some(directory) = &self.0 else { return };
        if let Err(error) = write(directory, state) {
            tracing::warn!(directory = %directory.display(), %error, "the trust cannot be saved: a restart will begin without it");
        }
    }
}

fn read(path: &Path) -> io::Result<TrustState> {
    let length = fs::metadata(path)?.len();
    if length > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("{length} bytes, more than {FILE_BYTES_MAX}")));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn write(directory: &Path, state: &TrustState) -> io::Result<()> {
    let (path, draft) = (directory.join(FILE), directory.join(".trust.json.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&draft)?;
    file.write_all(&serde_json::to_vec(state)?)?;
    file.sync_all()?;
    fs::rename(&draft, &path)?;
    File::open(directory)?.sync_all()
}

/// Roots as certificates, DER; `None` when one is damaged.
pub fn read_roots(saved: &[String]) -> Option<Vec<Vec<u8>>> {
    saved.iter().map(|root| unhex(root)).collect()
}

/// The entries of a deny list; `None` when one is damaged.
pub fn read_denials(saved: &[Denied]) -> Option<Vec<Denial>> {
    let read = |denied: &Denied| {
        Some(match denied {
            Denied::Serial(serial) => Denial::serial(serial)?,
            Denied::Identity(id) => Denial::Identity(id.parse().ok()?),
            Denied::Key(digest) => Denial::Key(unhex(digest)?.try_into().ok()?),
        })
    };
    saved.iter().map(read).collect()
}

/// A deny list as it is saved.
pub fn save_denials(denied: &DenyList) -> Vec<Denied> {
    let save = |denial: &Denial| match denial {
        Denial::Serial(serial) => Denied::Serial(serial.clone()),
        Denial::Identity(id) => Denied::Identity(id.to_string()),
        Denial::Key(digest) => Denied::Key(hex(digest)),
    };
    denied.iter().map(save).collect()
}

/// Bytes in hexadecimal, lower case.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of a hexadecimal text; `None` when it is none.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pair = |pair: &[u8]| Some((digit(pair[0])? << 4 | digit(*pair.get(1)?)?) as u8);
    digits.chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_anything_else_is_passed_over() {
        let path = std::env::temp_dir().join(format!("picket-trust-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let directory = StateDirectory::new(Some(path.clone()));
        assert_eq!(directory.load("td"), None);
        let state = TrustState {
            trust_domain: "td".to_owned(),
            generation: 7,
            roots: vec![hex(&[0, 0xff])],
            denied: vec![Denied::Serial("0a".to_owned())],
            ..TrustState::default()
        };
        directory.save(&state);
        assert_eq!(directory.load("td"), Some(state));
        assert_eq!(directory.load("other"), None);
        fs::write(path.join(FILE), "{\"trustDomain\": 7}").unwrap();
        assert_eq!(directory.load("td"), None);
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn the_largest_generation_fits() {
        let path = std::env::temp_dir().join(format!("picket-trust-large-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let directory = StateDirectory::new(Some(path.clone()));
        // As many keys as may be denied, and what is left of the message in roots.
        let digest = |n: usize| identity::sha256(&n.to_be_bytes());
        let denied = DenyList::new((0..identity::DENIALS_MAX).map(|n| Denial::Key(digest(n)))).unwrap();
        let roots = vec![hex(&vec![7; (4 << 20) / identity::ROOTS_MAX]); identity::ROOTS_MAX];
        let state = TrustState { roots, denied: save_denials(&denied), ..TrustState::default() };
        directory.save(&state);
        let loaded = directory.load("").unwrap();
        assert_eq!(DenyList::new(read_denials(&loaded.denied).unwrap()).unwrap(), denied);
        assert_eq!(loaded, state);
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn hexadecimal_there_and_back() {
        assert_eq!(unhex(&hex(&[0, 1, 0xfe])), Some(vec![0, 1, 0xfe]));
        assert_eq!((unhex("0"), unhex("zz")), (None, None));
    }
}
