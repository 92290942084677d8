//! Licences, bans and duplicates of the dependency tree, by the lists in `deny.toml`.
//!
//! Promises to need nothing but cargo and no network; the same file serves `cargo deny`. Advisories are left to that
//! tool: they need a database that is newer than the sources.

use crate::process::{Command, Failure};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    iter::Peekable,
    path::Path,
};

/// The lists of `deny.toml` that are checked here.
#[derive(Debug, Default)]
struct Policy {
    licences: BTreeSet<String>,
    banned: BTreeSet<String>,
    duplicated: BTreeSet<String>,
}

/// A package of the tree, as `cargo tree` prints it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    licence: String,
}

/// Checks the whole workspace's tree; every violation is named.
pub(crate) fn check(policy: &Path) -> Result<(), Failure> {
    let policy = Policy::parse(&fs::read_to_string(policy)?);
    let tree = ["tree", "--workspace", "--all-features", "--prefix", "none", "--format", "{p}|{l}"];
    let packages = packages(&Command::new("cargo").args(tree).output()?);
    if packages.is_empty() || policy.licences.is_empty() {
        return Err(Failure("the dependency tree or the list of licences is empty: nothing was checked".to_owned()));
    }
    let violations = policy.violations(&packages);
    for violation in &violations {
        eprintln!("x: {violation}");
    }
    if violations.is_empty() {
        eprintln!("x: licences, bans and duplicates of {} packages hold", packages.len());
        return Ok(());
    }
    Err(Failure(format!("the dependency tree breaks deny.toml in {} places", violations.len())))
}

impl Policy {
    /// Reads the three lists; one entry per line, as the file is written.
    fn parse(text: &str) -> Self {
        let mut policy = Self::default();
        let mut list = "";
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            if let Some(name) = line.strip_suffix(" = [") {
                list = name;
            } else if line == "]" {
                list = "";
            }
            let Some(entry) = line.split('"').nth(1).map(str::to_owned) else { continue };
            match list {
                "allow" => policy.licences.insert(entry),
                "deny" => policy.banned.insert(entry),
                "skip" => policy.duplicated.insert(entry),
                _ => false,
            };
        }
        policy
    }

    fn violations(&self, packages: &BTreeSet<Package>) -> Vec<String> {
        let mut violations = Vec::new();
        let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for package in packages {
            versions.entry(&package.name).or_default().push(&package.version);
            if self.banned.contains(&package.name) {
                violations.push(format!("{} is banned", package.name));
            }
            if !self.allows(&package.licence) {
                violations.push(format!("{} has the licence `{}`, not allowed", package.name, package.licence));
            }
        }
        for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
            if !self.duplicated.contains(*name) {
                violations.push(format!("{name} is there in several versions: {}", versions.join(", ")));
            }
        }
        violations
    }

    /// Whether an SPDX expression can be met with allowed licences alone.
    fn allows(&self, expression: &str) -> bool {
        let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
        let mut words = spaced.split_whitespace().peekable();
        self.any(&mut words) && words.next().is_none()
    }

    fn any<'a>(&self, words: &mut Peekable<impl Iterator<Item = &'a str>>) -> bool {
        let mut allowed = self.all(words);
        while words.next_if_eq(&"OR").is_some() {
            allowed |= self.all(words);
        }
        allowed
    }

    fn all<'a>(&self, words: &mut Peekable<impl Iterator<Item = &'a str>>) -> bool {
        let mut allowed = self.one(words);
        while words.next_if_eq(&"AND").is_some() {
            allowed &= self.one(words);
        }
        allowed
    }

    fn one<'a>(&self, words: &mut Peekable<impl Iterator<Item = &'a str>>) -> bool {
        match words.next() {
            Some("(") => self.any(words) & words.next_if_eq(&")").is_some(),
            Some(licence) => {
                // An exception only ever adds permissions.
                if words.next_if_eq(&"WITH").is_some() {
                    words.next();
                }
                self.licences.contains(licence)
            }
            None => false,
        }
    }
}

/// Reads lines such as `bytes v1.12.2|MIT (*)`.
fn packages(tree: &str) -> BTreeSet<Package> {
    let package = |line: &str| {
        let (package, licence) = line.trim_end_matches(" (*)").split_once('|')?;
        let mut words = package.split(' ');
        let (name, version) = (words.next()?, words.next()?);
        Some(Package { name: name.to_owned(), version: version.to_owned(), licence: licence.to_owned() })
    };
    tree.lines().filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "[licenses]\nallow = [\n \"MIT\",\n \"ISC\",\n]\n[bans]\ndeny = [\n\
        { crate = \"ring\", reason = \"no\" },\n]\nskip = [\n{ crate = \"syn\" },\n]\n";

    #[test]
    fn licences_are_judged_as_expressions() {
        let policy = Policy::parse(POLICY);
        for allowed in ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "MIT AND ISC", "(GPL-3.0 OR MIT) AND ISC"] {
            assert!(policy.allows(allowed), "{allowed}");
        }
        for refused in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT", "MIT)", "MIT ISC", "GPL-3.0 WITH MIT"] {
            assert!(!policy.allows(refused), "{refused}");
        }
    }

    #[test]
    fn bans_duplicates_and_licences_are_named() {
        let tree = "ring v0.17.0|MIT\nsyn v2.0.0|MIT\nsyn v3.0.0|MIT\na v1.0.0|MIT\na v2.0.0|MIT (*)\nb v1.0.0|GPL-3.0";
        let violations = Policy::parse(POLICY).violations(&packages(tree));
        let expected = [
            "b has the licence `GPL-3.0`, not allowed",
            "ring is banned",
            "a is there in several versions: v1.0.0, v2.0.0",
        ];
        assert_eq!(violations, expected);
    }
}
