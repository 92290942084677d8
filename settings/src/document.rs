//! A document as a whole: read within bounds, overridden by variables, and judged once everything has been asked for.
//!
//! Promises that [`Document::read`] gives a value only when the document has no mistake at all.

use crate::{
    mistake::{self, Mistake, Mistakes, Noted},
    section::Section,
    value::describe,
};
use serde_json::{Map, Value};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Largest document that is read, in bytes. A settings file is some kilobytes, a discovery file of a large mesh less
/// than this; anything bigger is a mistake in the path.
pub const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// Deepest nesting that is read; ours is 5.
const DEPTH_MAX: usize = 32;
/// Most values in one document, those that aliases repeat included: bounds what 1 MiB of text can grow to.
const NODES_MAX: usize = 200_000;
/// Most values that aliases may repeat in all.
const REPEATED_MAX: usize = 10_000;

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be opened or read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file that was asked for.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is larger than [`FILE_LIMIT_BYTES`].
    #[error("{} is larger than the limit of {FILE_LIMIT_BYTES} bytes", path.display())]
    TooLarge {
        /// The file that was asked for.
        path: PathBuf,
    },
    /// The text is not YAML, or goes past the bounds on depth, values or aliases.
    #[error("{document} is not a usable YAML document")]
    Syntax {
        /// The file, or the name given to [`Document::parse`].
        document: String,
        /// What the parser said, with line and column.
        #[source]
        source: Box<serde_saphyr::Error>,
    },
    /// The text is YAML, but keys or values are wrong.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
}

/// A parsed document with the variables that override it; notes every key that is asked for and every mistake.
#[derive(Debug)]
pub struct Document {
    name: String,
    root: Value,
    prefix: String,
    variables: BTreeMap<String, String>,
    notes: RefCell<Notes>,
}

/// What reading has brought to light so far.
#[derive(Debug, Default)]
struct Notes {
    mistakes: Vec<Mistake>,
    /// Names asked for, by the path of their section.
    known: BTreeMap<String, BTreeSet<String>>,
}

impl Document {
    /// Reads a file, or only the variables when `path` is `None`.
    ///
    /// `environment` is the process's variables (`std::env::vars()`); only those that start with `prefix`, such as
    /// `PICKET_`, are kept.
    ///
    /// # Errors
    /// When the file cannot be read, is too large or is not YAML.
    pub fn load(
        path: Option<&Path>,
        prefix: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        let Some(path) = path else {
            return Self::parse("environment", "", prefix, environment);
        };
        let text = read_bounded(path)?;
        Self::parse(&path.display().to_string(), &text, prefix, environment)
    }

    /// Reads a text; `name` is what messages call it.
    ///
    /// # Errors
    /// When the text is not YAML, or goes past the bounds.
    pub fn parse(
        name: &str,
        text: &str,
        prefix: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        let root = parse_bounded(text)
            .map_err(|source| Error::Syntax { document: name.to_owned(), source: Box::new(source) })?;
        let variables = environment.into_iter().filter(|(key, _)| key.starts_with(prefix)).collect();
        let document = Self {
            name: name.to_owned(),
            root,
            prefix: prefix.to_owned(),
            variables,
            notes: RefCell::new(Notes::default()),
        };
        if !matches!(document.root, Value::Object(_) | Value::Null) {
            document.note(Mistake::BadValue {
                path: "(document)".to_owned(),
                seen: describe(&document.root),
                expected: "a map of settings".to_owned(),
                variable: None,
            });
        }
        Ok(document)
    }

    /// Reads a whole configuration: the value that `read` makes, if there is no mistake anywhere.
    ///
    /// `read` should ask for every key before it gives up with [`Noted`], or the keys it did not reach are reported
    /// as unknown.
    ///
    /// # Errors
    /// All mistakes together.
    pub fn read<T>(&self, read: impl FnOnce(&Section<'_>) -> Result<T, Noted>) -> Result<T, Mistakes> {
        let value = read(&self.root());
        self.finish()?;
        value.map_err(|Noted(())| Mistakes { document: self.name.clone(), mistakes: Vec::new() })
    }

    /// The top of the document.
    pub fn root(&self) -> Section<'_> {
        Section::new(self, String::new(), self.root.as_object())
    }

    /// A section at the top, such as `outbound`; an empty one when the document has none.
    pub fn section(&self, name: &str) -> Section<'_> {
        self.root().section(name)
    }

    /// Judges the document, once everything has been asked for.
    ///
    /// # Errors
    /// All mistakes together, keys that nobody asked for included.
    pub fn finish(&self) -> Result<(), Mistakes> {
        let notes = self.notes.borrow();
        let mut mistakes = notes.mistakes.clone();
        unknown_keys(&notes.known, "", &self.root, &mut mistakes);
        mistakes.sort_by(|a, b| a.path().cmp(b.path()));
        mistakes.dedup();
        if mistakes.is_empty() { Ok(()) } else { Err(Mistakes { document: self.name.clone(), mistakes }) }
    }

    /// Variables with our prefix that nothing asked for: perhaps misspelled, perhaps another program's.
    ///
    /// Kubernetes sets variables such as `PICKET_CA_PORT` for a Service of that name, so these are for a remark in
    /// the log and are not mistakes.
    pub fn unused_variables(&self) -> Vec<String> {
        let notes = self.notes.borrow();
        let used: BTreeSet<String> = notes
            .known
            .iter()
            .flat_map(|(section, names)| names.iter().map(|name| self.variable_name(&join(section, name))))
            .collect();
        self.variables.keys().filter(|name| !used.contains(*name)).cloned().collect()
    }

    pub(crate) fn note(&self, mistake: Mistake) -> Noted {
        self.notes.borrow_mut().mistakes.push(mistake);
        Noted(())
    }

    pub(crate) fn know(&self, section: &str, name: &str) {
        self.notes.borrow_mut().known.entry(section.to_owned()).or_default().insert(name.to_owned());
    }

    /// The variable that overrides the key at `path` and its value, if it is set.
    pub(crate) fn variable(&self, path: &str) -> Option<(&str, &str)> {
        // Elements of lists have no variable of their own: `[0]` has no place in a name.
        if path.contains('[') {
            return None;
        }
        let (name, value) = self.variables.get_key_value(&self.variable_name(path))?;
        Some((name, value))
    }

    /// Whether any variable overrides a key below `path`.
    pub(crate) fn any_variable_below(&self, path: &str) -> bool {
        let prefix = format!("{}_", self.variable_name(path));
        self.variables.keys().any(|name| name.starts_with(&prefix))
    }

    /// `outbound.idleTimeout` → `PICKET_OUTBOUND_IDLE_TIMEOUT`.
    fn variable_name(&self, path: &str) -> String {
        let mut name = self.prefix.clone();
        let mut after_lower = false;
        for c in path.chars() {
            if c.is_ascii_uppercase() && after_lower {
                name.push('_');
            }
            after_lower = c.is_ascii_lowercase() || c.is_ascii_digit();
            name.push(if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
        }
        name
    }
}

/// The path of a key in a section.
pub(crate) fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// Notes the keys of every section that was read which nobody asked for.
fn unknown_keys(known: &BTreeMap<String, BTreeSet<String>>, path: &str, value: &Value, mistakes: &mut Vec<Mistake>) {
    match value {
        Value::Object(map) => unknown_keys_of_map(known, path, map, mistakes),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                unknown_keys(known, &format!("{path}[{index}]"), item, mistakes);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn unknown_keys_of_map(
    known: &BTreeMap<String, BTreeSet<String>>,
    path: &str,
    map: &Map<String, Value>,
    mistakes: &mut Vec<Mistake>,
) {
    let names = known.get(path);
    for (key, value) in map {
        let path = join(path, &mistake::shown(key));
        match names {
            Some(names) if !names.contains(key) => mistakes.push(Mistake::UnknownKey {
                path,
                nearest: mistake::nearest(key, names.iter().map(String::as_str)).map(str::to_owned),
                known: names.iter().cloned().collect(),
            }),
            // A map with free keys (headers, for example) is in nobody's list, but its values may be sections.
            Some(_) | None => unknown_keys(known, &path, value, mistakes),
        }
    }
}

/// Writes a document that [`Document`] reads as the same values.
pub fn to_yaml(root: &Value) -> String {
    serde_saphyr::to_string(root).expect("YAML has all values of JSON, and memory takes all that is written")
}

fn read_bounded(path: &Path) -> Result<String, Error> {
    let unreadable = |source| Error::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_LIMIT_BYTES {
        return Err(Error::TooLarge { path: path.to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| unreadable(io::Error::new(io::ErrorKind::InvalidData, error)))
}

fn parse_bounded(text: &str) -> Result<Value, serde_saphyr::Error> {
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_aliases: REPEATED_MAX,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: REPEATED_MAX },
        // YAML 1.2: `no` is a word and 0755 is not four hundred and ninety-three.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
    };
    serde_saphyr::from_str_with_options(text, options)
}
