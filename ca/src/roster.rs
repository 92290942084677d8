//! What all processes on one directory know of the proxies: each writes a file of its own, the leader reads them all.
//!
//! Promises: a process that is gone is noticed by its lock, however it ended, and what it knew is taken over before its
//! file is removed. What it learned in its last moments may be missing, so whoever takes over gives the proxies time to
//! come back. Leaves to others: what is known here (`followers`), and what follows from it (`lifecycle`).

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use serde::Deserialize;

use crate::followers::{Followers, Known, Who};
use crate::lock::{Lock, LockError};
use crate::state::Seconds;
use crate::store::{Directory, StoreError};

/// The directory of the files, inside the authority's.
const DIRECTORY: &str = "instances";
const VERSION: u32 = 1;
/// 40 000 proxies of 400 bytes, and as much again.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// Why the roster does not work.
#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    /// The files cannot be used.
    #[error("the list of proxies cannot be used")]
    Store(#[from] StoreError),
    /// A lock cannot be used.
    #[error("the list of proxies cannot be locked")]
    Lock(#[from] LockError),
    /// No name could be made.
    #[error("the system gives no random numbers")]
    Random(#[from] crate::pki::PkiError),
}

#[derive(Deserialize)]
struct Document {
    version: u32,
    proxies: Vec<Known>,
}

/// What tells two versions of a file apart: each is another inode.
type Stamp = (u64, i64, i64, u64);

/// This process among the others.
#[derive(Debug)]
pub struct Roster {
    directory: Directory,
    name: String,
    _alive: Lock,
    seen: HashMap<String, (Stamp, Vec<Known>)>,
}

impl Roster {
    /// Joins; the lock says from now on that this process lives.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn join(directory: &Directory) -> Result<Self, RosterError> {
        let directory = directory.inside(DIRECTORY)?;
        let random = crate::pki::random_serial()?.to_bytes();
        let name = random.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let path = directory.file(&format!("{name}.lock"));
        let alive = Lock::try_take(&path)?.ok_or(LockError::Busy { path, waited: std::time::Duration::ZERO })?;
        Ok(Self { directory, name, _alive: alive, seen: HashMap::new() })
    }

    /// Writes what this process knows.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn publish(&self, proxies: impl IntoIterator<Item = Known>) -> Result<(), RosterError> {
        // One by one: as one text, or list, it would be as large as all else that is kept of the proxies.
        let write = |file: &mut dyn std::io::Write| {
            write!(file, r#"{{"version":{VERSION},"proxies":["#)?;
            for (at, known) in proxies.into_iter().enumerate() {
                file.write_all(if at == 0 { b"" } else { b"," })?;
                serde_json::to_writer(&mut *file, &known)?;
            }
            file.write_all(b"]}")
        };
        Ok(self.directory.write_with(&format!("{}.json", self.name), write)?)
    }

    /// Takes over from processes that are gone; `true` when there was one.
    ///
    /// # Errors
    /// When a file cannot be read or removed; it is tried again the next time.
    pub fn take_over(&mut self, followers: &Followers, now: Seconds) -> Result<bool, RosterError> {
        let mut gone = Vec::new();
        for name in self.others()? {
            if let Some(lock) = Lock::try_take(&self.directory.file(&format!("{name}.lock")))? {
                followers.absorb(self.read(&name)?, now);
                gone.push((name, lock));
            }
        }
        if gone.is_empty() {
            return Ok(false);
        }
        // What they knew is in our own file before theirs go.
        self.publish(followers.each(now))?;
        for (name, _lock) in &gone {
            self.directory.remove(&format!("{name}.json"))?;
            self.directory.remove(&format!("{name}.lock"))?;
            self.seen.remove(name);
        }
        Ok(true)
    }

    /// What all processes know, each proxy once.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn all<'a>(
        &mut self,
        here: impl Iterator<Item = Known> + 'a,
    ) -> Result<Box<dyn Iterator<Item = Known> + 'a>, RosterError> {
        let others = self.others()?;
        if others.is_empty() {
            return Ok(Box::new(here));
        }
        let mut all: HashMap<Arc<Who>, Known> = here.map(|known| (known.who.clone(), known)).collect();
        for name in others {
            for known in self.read(&name)? {
                match all.get(&known.who) {
                    Some(found) if !known.is_newer_than(found) => {}
                    Some(_) | None => {
                        all.insert(known.who.clone(), known);
                    }
                }
            }
        }
        Ok(Box::new(all.into_values()))
    }

    /// Names of the other processes that left a file.
    fn others(&self) -> Result<Vec<String>, StoreError> {
        let names = self.directory.names()?.into_iter();
        let names = names.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned()));
        // A draft that a crash left is nobody's file.
        Ok(names.filter(|name| *name != self.name && !name.starts_with('.')).collect())
    }

    fn read(&mut self, name: &str) -> Result<Vec<Known>, RosterError> {
        let file = format!("{name}.json");
        let path = self.directory.file(&file);
        let metadata = fs::metadata(&path).map_err(|source| StoreError::Io { action: "look at", path, source })?;
        let stamp = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size());
        if let Some((seen, proxies)) = self.seen.get(name)
            && *seen == stamp
        {
            return Ok(proxies.clone());
        }
        let text = self.directory.read_up_to(&file, FILE_BYTES_MAX)?.unwrap_or_default();
        let proxies = match serde_json::from_str::<Document>(&text) {
            Ok(document) if document.version == VERSION => document.proxies,
            // Another version of the program wrote it. Its proxies come back by themselves.
            Ok(_) | Err(_) => {
                tracing::warn!(file, "the list of another process cannot be read; its proxies are not known");
                Vec::new()
            }
        };
        self.seen.insert(name.to_owned(), (stamp, proxies.clone()));
        Ok(proxies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::Scratch;

    fn who(pod: &str) -> Who {
        Who { identity: "spiffe://td/ns/a/sa/b".into(), pod: Some(pod.into()), pod_uid: None, source: None }
    }

    fn pods(known: &[Known]) -> Vec<(String, bool)> {
        let mut pods: Vec<_> =
            known.iter().map(|known| (known.who.pod.as_deref().unwrap().to_owned(), known.connected)).collect();
        pods.sort();
        pods
    }

    #[test]
    fn the_living_share_and_the_dead_are_taken_over() {
        let scratch = Scratch::new();
        let directory = Directory::open(&scratch.path().join("ca")).unwrap();
        let (mut one, two) = (Roster::join(&directory).unwrap(), Roster::join(&directory).unwrap());
        let (at_one, at_two) = (Followers::new(9, || 50), Followers::new(9, || 50));
        let _here = at_one.open(who("here"), 1);
        let _there = at_two.open(who("there"), 1);
        let _moved = at_two.open(who("moved"), 2);
        at_one.granted(who("moved"), "", crate::state::Sha256([0; 32]), 9, 1);
        two.publish(at_two.known(3)).unwrap();
        let expected = [("here".into(), true), ("moved".into(), true), ("there".into(), true)];
        assert_eq!(pods(&one.all(at_one.each(3)).unwrap().collect::<Vec<_>>()), expected);
        assert!(!one.take_over(&at_one, 4).unwrap(), "it lives");
        drop(two);
        assert!(one.take_over(&at_one, 5).unwrap());
        assert!(!one.take_over(&at_one, 5).unwrap());
        let expected = [("here".into(), true), ("moved".into(), false), ("there".into(), false)];
        assert_eq!(pods(&at_one.known(6)), expected);
        // The next process finds all of it, should this one die.
        drop(one);
        let (mut three, at_three) = (Roster::join(&directory).unwrap(), Followers::new(9, || 50));
        assert!(three.take_over(&at_three, 7).unwrap());
        assert_eq!(pods(&at_three.known(7)).len(), 3);
    }

    #[test]
    fn a_file_that_cannot_be_read_holds_nobody_up() {
        let scratch = Scratch::new();
        let directory = Directory::open(&scratch.path().join("ca")).unwrap();
        let mut roster = Roster::join(&directory).unwrap();
        let instances = directory.inside(DIRECTORY).unwrap();
        instances.write("x.json", "{\"version\": 2, \"proxies\": []}").unwrap();
        instances.write("y.json", "nonsense").unwrap();
        assert!(roster.all(std::iter::empty()).unwrap().next().is_none());
        assert!(roster.take_over(&Followers::new(9, || 50), 1).unwrap());
    }
}
