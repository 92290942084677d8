//! What is wrong with a document: one [`Mistake`] per key, all of them together in [`Mistakes`].
//!
//! Promises that each message stands alone: the key's path, the value seen, what was expected, and where a name is
//! unknown the nearest name that is not.

use std::fmt;

/// Longest value shown in a message, in characters: enough to recognise it, short enough to read.
const SEEN_CHARS_MAX: usize = 80;

/// A mistake was noted in the document; [`Document::read`](crate::Document::read) reports it with all the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noted(pub(crate) ());

/// One thing wrong with one key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mistake {
    /// A key that must be there is not.
    Missing {
        /// The key's path, such as `identity.caAddress`.
        path: String,
        /// What should stand there, such as `host:port`.
        expected: String,
    },
    /// A value of the wrong type, or out of its range.
    BadValue {
        /// The key's path.
        path: String,
        /// The value as written, cut when long.
        seen: String,
        /// What should stand there.
        expected: String,
        /// The environment variable that gave the value; `None` when it stands in the file.
        variable: Option<String>,
    },
    /// A key that nothing reads.
    UnknownKey {
        /// The key's path.
        path: String,
        /// The known name beside it that is spelled most alike, if any is near enough.
        nearest: Option<String>,
        /// All names that are known at this place, sorted.
        known: Vec<String>,
    },
}

impl Mistake {
    /// The path of the key in question.
    pub fn path(&self) -> &str {
        match self {
            Self::Missing { path, .. } | Self::BadValue { path, .. } | Self::UnknownKey { path, .. } => path,
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { path, expected } => write!(f, "{path}: missing, expected {expected}"),
            Self::BadValue { path, seen, expected, variable: None } => {
                write!(f, "{path}: expected {expected}, found {seen}")
            }
            Self::BadValue { path, seen, expected, variable: Some(variable) } => {
                write!(f, "{path}: expected {expected}, found {seen} in {variable}")
            }
            Self::UnknownKey { path, nearest: Some(nearest), .. } => {
                write!(f, "{path}: unknown key, did you mean `{nearest}`?")
            }
            Self::UnknownKey { path, nearest: None, known } => {
                write!(f, "{path}: unknown key, known here: {}", known.join(", "))
            }
        }
    }
}

/// Every mistake in one document, in the order of their paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes {
    /// What was read: a file's path, or `environment`.
    pub document: String,
    /// At least one mistake.
    pub mistakes: Vec<Mistake>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.mistakes.as_slice() {
            return write!(f, "{}: {only}", self.document);
        }
        write!(f, "{}: {} mistakes", self.document, self.mistakes.len())?;
        self.mistakes.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for Mistakes {}

/// A value as shown in a message: at most [`SEEN_CHARS_MAX`] characters, control characters escaped.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SEEN_CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().count() > SEEN_CHARS_MAX {
        shown.push('…');
    }
    shown
}

/// The known name that is spelled most like `name`, or `None` when none is near: a third of its letters may differ.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (name.chars().count() / 3).max(2);
    known
        .into_iter()
        .map(|candidate| (distance(&name.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= allowed && *distance < candidate.chars().count())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Optimal string alignment distance: inserted, removed, changed and swapped letters each count one.
///
/// Names longer than 64 characters are cut first, so that a hostile key cannot cost quadratic time.
fn distance(a: &str, b: &str) -> usize {
    const NAME_CHARS_MAX: usize = 64;
    let a: Vec<char> = a.chars().take(NAME_CHARS_MAX).collect();
    let b: Vec<char> = b.chars().take(NAME_CHARS_MAX).collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = changed.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before_last[j - 2] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_each_kind_of_slip_once() {
        let cases =
            [("port", "port", 0), ("prot", "port", 1), ("por", "port", 1), ("porrt", "port", 1), ("", "port", 4)];
        for (a, b, expected) in cases {
            assert_eq!(distance(a, b), expected, "{a} → {b}");
        }
    }

    #[test]
    fn nearest_name_is_near_or_none() {
        let known = ["trustDomain", "outbound", "inbound", "log"];
        let cases = [
            ("trustdomain", Some("trustDomain")),
            ("trust_domain", Some("trustDomain")),
            ("outbond", Some("outbound")),
            ("inbuond", Some("inbound")),
            ("telemetry", None),
            ("xyz", None),
        ];
        for (name, expected) in cases {
            assert_eq!(nearest(name, known), expected, "{name}");
        }
    }

    #[test]
    fn long_values_are_cut_and_control_characters_escaped() {
        assert_eq!(shown("a\nb"), "a\\nb");
        assert_eq!(shown(&"x".repeat(500)).chars().count(), SEEN_CHARS_MAX + 1);
    }
}
