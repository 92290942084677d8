//! One map of a document and the typed questions that can be put to it.
//!
//! Promises that every question marks its key as known and that a wrong answer is noted, never thrown: a reader can
//! ask for everything and learn of all mistakes at once.

use crate::{
    document::{Document, join},
    mistake::{Mistake, Noted},
    value::{Scalar, Setting, describe},
};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A map of the document, or the empty place where one could be.
#[derive(Debug, Clone)]
pub struct Section<'d> {
    document: &'d Document,
    path: String,
    map: Option<&'d Map<String, Value>>,
}

/// A value that was found, and the variable that gave it if it was not the file.
struct Found<'d> {
    scalar: Scalar<'d>,
    variable: Option<&'d str>,
}

impl<'d> Section<'d> {
    pub(crate) fn new(document: &'d Document, path: String, map: Option<&'d Map<String, Value>>) -> Self {
        Self { document, path, map }
    }

    /// This section's path, such as `services[2]`; empty at the top.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The value of a key that must be there.
    ///
    /// # Errors
    /// [`Noted`] when it is missing or not a `T`; the mistake is in the document.
    pub fn required<T: Setting>(&self, name: &str) -> Result<T, Noted> {
        self.required_with(name, &T::expected(), T::from_scalar)
    }

    /// Like [`Section::required`] for types that are not a [`Setting`]: `parse` says what is one.
    ///
    /// # Errors
    /// [`Noted`] when it is missing or `parse` gives `None`.
    pub fn required_with<T>(
        &self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(Scalar<'_>) -> Option<T>,
    ) -> Result<T, Noted> {
        self.look_up(name, expected, parse)?.ok_or_else(|| {
            self.document.note(Mistake::Missing { path: join(&self.path, name), expected: expected.to_owned() })
        })
    }

    /// The value of a key that may be absent; `None` also when it is wrong, which is noted.
    pub fn optional<T: Setting>(&self, name: &str) -> Option<T> {
        self.optional_with(name, &T::expected(), T::from_scalar)
    }

    /// Like [`Section::optional`] for types that are not a [`Setting`].
    pub fn optional_with<T>(
        &self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(Scalar<'_>) -> Option<T>,
    ) -> Option<T> {
        self.look_up(name, expected, parse).ok().flatten()
    }

    /// The value of a key, or `default` when it is absent.
    pub fn default<T: Setting>(&self, name: &str, default: T) -> T {
        self.optional(name).unwrap_or(default)
    }

    /// One of a closed list of words, or `default` when the key is absent.
    pub fn one_of<T: Copy>(&self, name: &str, words: &[(&str, T)], default: T) -> T {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let find = |scalar: Scalar<'_>| {
            let text = scalar.text()?;
            words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
        };
        self.optional_with(name, &format!("one of {}", names.join(", ")), find).unwrap_or(default)
    }

    /// True when the file or a variable says anything for this key, an empty list included.
    pub fn is_set(&self, name: &str) -> bool {
        self.document.know(&self.path, name);
        self.value(name).is_some() || self.document.variable(&join(&self.path, name)).is_some()
    }

    /// A list of values, empty when the key is absent. From a variable: separated by commas.
    pub fn list<T: Setting>(&self, name: &str) -> Vec<T> {
        self.list_with(name, &T::expected(), T::from_scalar)
    }

    /// Like [`Section::list`] for types that are not a [`Setting`].
    pub fn list_with<T>(&self, name: &str, expected: &str, parse: impl Fn(Scalar<'_>) -> Option<T>) -> Vec<T> {
        self.document.know(&self.path, name);
        let path = join(&self.path, name);
        if let Some((variable, text)) = self.document.variable(&path) {
            let parts = text.split(',').map(|part| Scalar::Variable(part.trim()));
            return parts.filter_map(|part| self.accept(&path, expected, part, Some(variable), &parse).ok()).collect();
        }
        let mut values = Vec::new();
        for (index, item) in self.items(name).iter().enumerate() {
            let path = format!("{path}[{index}]");
            match Scalar::of(item) {
                Some(scalar) => values.extend(self.accept(&path, expected, scalar, None, &parse).ok()),
                None => drop(self.bad_value(path, describe(item), expected)),
            }
        }
        values
    }

    /// A map with free keys, such as headers; empty when the key is absent.
    pub fn map<T: Setting>(&self, name: &str) -> BTreeMap<String, T> {
        let path = join(&self.path, name);
        let mut values = BTreeMap::new();
        for (key, value) in self.entries(name) {
            let path = join(&path, key);
            match Scalar::of(value) {
                Some(scalar) => {
                    let value = self.accept(&path, &T::expected(), scalar, None, T::from_scalar);
                    values.extend(value.ok().map(|value| (key.clone(), value)));
                }
                None => drop(self.bad_value(path, describe(value), &T::expected())),
            }
        }
        values
    }

    /// A section below this one; an empty one when the key is absent.
    pub fn section(&self, name: &str) -> Section<'d> {
        self.document.know(&self.path, name);
        let path = join(&self.path, name);
        self.below(path, self.value(name))
    }

    /// A section below this one, if the file or a variable has anything in it.
    pub fn optional_section(&self, name: &str) -> Option<Section<'d>> {
        let section = self.section(name);
        let overridden = self.document.any_variable_below(&section.path);
        (overridden || self.value(name).is_some()).then_some(section)
    }

    /// A list of sections, empty when the key is absent.
    pub fn sections(&self, name: &str) -> Vec<Section<'d>> {
        self.document.know(&self.path, name);
        let path = join(&self.path, name);
        let items = self.items(name).iter().enumerate();
        items.map(|(index, item)| self.below(format!("{path}[{index}]"), Some(item))).collect()
    }

    /// A map of sections with free keys, empty when the key is absent.
    pub fn section_map(&self, name: &str) -> Vec<(String, Section<'d>)> {
        let path = join(&self.path, name);
        let entries = self.entries(name).into_iter();
        entries.map(|(key, value)| (key.clone(), self.below(join(&path, key), Some(value)))).collect()
    }

    /// Notes that the value of `name` is refused for a reason that only the caller can see, such as two keys that
    /// exclude each other. `expected` completes "expected …".
    pub fn refuse(&self, name: &str, expected: &str) -> Noted {
        self.document.know(&self.path, name);
        let path = join(&self.path, name);
        if let Some((variable, text)) = self.document.variable(&path) {
            return self.bad_value_from(path, Scalar::Variable(text).to_string(), expected, Some(variable));
        }
        match self.value(name) {
            Some(value) => self.bad_value(path, describe(value), expected),
            None => self.document.note(Mistake::Missing { path, expected: expected.to_owned() }),
        }
    }

    /// As [`Section::refuse`], for a value of `name` that came from a variable of somebody else's naming, such as
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`; `seen` must not be a secret.
    pub fn refuse_from(&self, name: &str, variable: &str, seen: &str, expected: &str) -> Noted {
        self.document.know(&self.path, name);
        let seen = Scalar::Variable(seen).to_string();
        self.bad_value_from(join(&self.path, name), seen, expected, Some(variable))
    }

    /// The value in the file; null counts as absent, as in Kubernetes.
    fn value(&self, name: &str) -> Option<&'d Value> {
        self.map.and_then(|map| map.get(name)).filter(|value| !value.is_null())
    }

    fn look_up<T>(
        &self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(Scalar<'_>) -> Option<T>,
    ) -> Result<Option<T>, Noted> {
        let found = self.scalar(name, expected)?;
        let path = join(&self.path, name);
        found.map(|found| self.accept(&path, expected, found.scalar, found.variable, parse)).transpose()
    }

    /// The scalar at `name`: from its variable, or else from the file.
    fn scalar(&self, name: &str, expected: &str) -> Result<Option<Found<'d>>, Noted> {
        self.document.know(&self.path, name);
        let path = join(&self.path, name);
        if let Some((variable, text)) = self.document.variable(&path) {
            return Ok(Some(Found { scalar: Scalar::Variable(text), variable: Some(variable) }));
        }
        let Some(value) = self.value(name) else { return Ok(None) };
        match Scalar::of(value) {
            Some(scalar) => Ok(Some(Found { scalar, variable: None })),
            None => Err(self.bad_value(path, describe(value), expected)),
        }
    }

    fn accept<T>(
        &self,
        path: &str,
        expected: &str,
        scalar: Scalar<'_>,
        variable: Option<&str>,
        parse: impl FnOnce(Scalar<'_>) -> Option<T>,
    ) -> Result<T, Noted> {
        parse(scalar).ok_or_else(|| self.bad_value_from(path.to_owned(), scalar.to_string(), expected, variable))
    }

    fn items(&self, name: &str) -> &'d [Value] {
        match self.value(name) {
            Some(Value::Array(items)) => items,
            Some(other) => {
                self.bad_value(join(&self.path, name), describe(other), "a list");
                &[]
            }
            None => &[],
        }
    }

    fn entries(&self, name: &str) -> Vec<(&'d String, &'d Value)> {
        self.document.know(&self.path, name);
        match self.value(name) {
            Some(Value::Object(map)) => map.iter().collect(),
            Some(other) => {
                self.bad_value(join(&self.path, name), describe(other), "a map");
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    fn below(&self, path: String, value: Option<&'d Value>) -> Section<'d> {
        let map = value.and_then(Value::as_object);
        if let (Some(value), None) = (value, map) {
            self.bad_value(path.clone(), describe(value), "a map");
        }
        Section::new(self.document, path, map)
    }

    fn bad_value(&self, path: String, seen: String, expected: &str) -> Noted {
        self.bad_value_from(path, seen, expected, None)
    }

    fn bad_value_from(&self, path: String, seen: String, expected: &str, variable: Option<&str>) -> Noted {
        let variable = variable.map(str::to_owned);
        self.document.note(Mistake::BadValue { path, seen, expected: expected.to_owned(), variable })
    }
}
