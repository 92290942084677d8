//! What settings ask for besides the schema: fields of heads by name, and the query. Encoded when it comes, copied into the
//! record at the end.

use crate::otlp::{self, Attributes};

/// Bytes of all these attributes in one record, at most; what does not fit is cut or left out, and marked.
pub const CAPTURED_BYTES_MAX: usize = 4 * 1024;
/// Tags and lengths of one attribute.
const OVERHEAD: usize = 12;

/// Attributes of one request, encoded. `Debug` shows nothing of them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Captured {
    pub(crate) bytes: Vec<u8>,
    pub(crate) truncated: bool,
}

impl std::fmt::Debug for Captured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Captured").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

impl Captured {
    /// Adds an attribute. Of the value at most [`otlp::TEXT_BYTES_MAX`] bytes are kept.
    pub fn text(&mut self, key: &str, value: &str) {
        let room = CAPTURED_BYTES_MAX.saturating_sub(self.bytes.len() + key.len() + OVERHEAD);
        if room == 0 {
            self.truncated = true;
            return;
        }
        let (value, cut) = otlp::cut(value, room.min(otlp::TEXT_BYTES_MAX));
        self.truncated |= cut;
        Attributes::new(&mut self.bytes).text(key, value);
    }

    /// Something was cut or left out.
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// Finished `LogRecord.attributes` fields.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// There is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && !self.truncated
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line;

    #[test]
    fn it_is_bounded_and_says_so() {
        let mut captured = Captured::default();
        captured.text("a", "x");
        assert!(!captured.truncated);
        captured.text("b", &"y".repeat(otlp::TEXT_BYTES_MAX + 1));
        assert!(captured.truncated);
        for _ in 0..10 {
            captured.text("http.request.header.c", &"z".repeat(otlp::TEXT_BYTES_MAX));
            captured.text("d", "short");
        }
        assert!(captured.bytes.len() <= CAPTURED_BYTES_MAX, "{} bytes", captured.bytes.len());
        let lengths = line::attributes(&captured.bytes).map(|(name, value)| {
            let line::Attribute::Text(text) = value else { panic!("{name} is {value:?}") };
            text.len()
        });
        let lengths: Vec<_> = lengths.collect();
        assert!(lengths.iter().all(|length| *length <= otlp::TEXT_BYTES_MAX) && lengths.len() > 4);
        assert!(!format!("{captured:?}").contains("short"));
    }
}
