//! The one way in which an error and its causes are written on a line, in logs and in records.

use std::{error::Error, fmt};

/// Writes `error` and each of its sources, separated by `: `.
///
/// Relies on the house rule that an error's Display does not repeat its source.
pub fn chain<'a>(error: &'a (dyn Error + 'a)) -> impl fmt::Display + 'a {
    Chain(error)
}

struct Chain<'a>(&'a (dyn Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read x.yaml")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn names_every_level_once() {
        let inner = std::io::Error::from_raw_os_error(2);
        assert_eq!(chain(&Outer(inner)).to_string(), "cannot read x.yaml: No such file or directory (os error 2)");
    }
}
