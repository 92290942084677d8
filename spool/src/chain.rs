//! The digest chain over the records of a spool: what was changed, swapped or taken out shows (docs/formats/segment.md,
//! "Chain").
//!
//! The context of a record, which all records of its connection share and which is most of its bytes, goes into the
//! chain as its own digest. So it is hashed once for many records; what is remembered is compared byte by byte.

use aws_lc_rs::digest::{SHA256, digest};
use record::field;

use crate::context::{CONTEXT_BYTES_MAX, Holders};

/// Contexts are remembered in so many sets of [`WAYS`] each.
const SETS: usize = 32;
const WAYS: usize = 8;
/// So much of a context tells which set it belongs to: it begins with the authority, the connection and the upstream.
const SET_BYTES: usize = 256;

/// How a digest is made of a record, by the version of its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rule {
    /// Version 1: `SHA-256(before ‖ sequence ‖ payload)`.
    Whole,
    /// Since version 2: `SHA-256(before ‖ sequence ‖ SHA-256(context) ‖ payload without it)`.
    #[default]
    Context,
}

#[derive(Debug, Default)]
struct Known {
    context: Vec<u8>,
    digest: [u8; 32],
    holders: Holders,
}

/// The context at the beginning of some attributes.
pub(crate) struct Context<'a> {
    pub(crate) length: usize,
    pub(crate) digest: [u8; 32],
    /// Which records hold it, for the writer; `None` when it was not remembered.
    pub(crate) holders: Option<&'a mut Holders>,
}

/// Follows the chain. What it remembers is bounded (512 KiB), and changes no digest; it also says which contexts the writer may
/// leave out.
#[derive(Debug, Default)]
pub struct Chain {
    known: Vec<[Known; WAYS]>,
    message: Vec<u8>,
}

impl Chain {
    /// The digest after a record; its payload is a finished field.
    pub fn next(&mut self, rule: Rule, before: &[u8; 32], sequence: u64, payload: &[u8]) -> [u8; 32] {
        match rule {
            Rule::Whole => self.digest(before, sequence, [&[], payload, &[]]),
            Rule::Context => {
                let (front, attributes) = payload.split_at(field::first_attribute(payload).unwrap_or(payload.len()));
                let Context { length, digest, .. } = self.context(attributes);
                self.digest(before, sequence, [&digest, front, &attributes[length..]])
            }
        }
    }

    /// The digest after a record, of these parts.
    pub(crate) fn digest(&mut self, before: &[u8; 32], sequence: u64, parts: [&[u8]; 3]) -> [u8; 32] {
        self.message.clear();
        self.message.extend_from_slice(before);
        self.message.extend_from_slice(&sequence.to_le_bytes());
        parts.into_iter().for_each(|part| self.message.extend_from_slice(part));
        sha256(&self.message)
    }

    /// The context that attributes begin with.
    pub(crate) fn context(&mut self, attributes: &[u8]) -> Context<'_> {
        if self.known.is_empty() {
            self.known.resize_with(SETS, Default::default);
        }
        let set = &mut self.known[set_of(attributes)];
        // What reading the attributes one by one would find, and nothing else.
        let is_it = |known: &Known| {
            let rest = attributes.strip_prefix(known.context.as_slice());
            !known.context.is_empty() && rest.is_some_and(field::is_context_end)
        };
        if let Some(at) = set.iter().position(is_it) {
            // What is used stays.
            set[..=at].rotate_right(1);
            let Known { context, digest, holders } = &mut set[0];
            return Context { length: context.len(), digest: *digest, holders: Some(holders) };
        }
        let context = &attributes[..field::context_length(attributes)];
        let digest = sha256(context);
        if (1..=CONTEXT_BYTES_MAX).contains(&context.len()) {
            set.rotate_right(1);
            set[0].context.clear();
            // Not up to twice as much, as a vector grows otherwise.
            set[0].context.reserve_exact(context.len());
            set[0].context.extend_from_slice(context);
            (set[0].digest, set[0].holders) = (digest, Holders::default());
        }
        Context { length: context.len(), digest, holders: None }
    }

    /// No record holds a context any more: what was written last is gone.
    pub(crate) fn forget_holders(&mut self) {
        self.known.iter_mut().flatten().for_each(|known| known.holders = Holders::default());
    }
}

/// Which set a context is in. Who makes contexts meet in one set makes them be hashed
/// and written again, no more.
fn set_of(attributes: &[u8]) -> usize {
    let words = attributes.as_chunks::<8>().0.iter().take(SET_BYTES / 8);
    let sum = words.zip(1u64..).fold(0u64, |sum, (word, nth)| {
        sum.wrapping_add(u64::from_le_bytes(*word).wrapping_mul(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(2 * nth + 1)))
    });
    // The upper bits: only they depend on all bytes of each word.
    (sum >> (u64::BITS - SETS.ilog2())) as usize
}

fn sha256(message: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, message).as_ref());
    out
}

/// [`Chain::next`] by the rule of today, for a few records.
pub fn next(before: &[u8; 32], sequence: u64, payload: &[u8]) -> [u8; 32] {
    Chain::default().next(Rule::Context, before, sequence, payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One finished field with these attributes, each a text.
    fn field(attributes: &[(&str, &str)]) -> Vec<u8> {
        let mut content = vec![0x09, 1, 2, 3, 4, 5, 6, 7, 8];
        let mut out = record::otlp::Attributes::new(&mut content);
        attributes.iter().for_each(|(key, value)| out.text(key, value));
        content.extend_from_slice(&[0x59, 1, 2, 3, 4, 5, 6, 7, 8]);
        let mut field = vec![0x12, content.len() as u8 | 0x80, (content.len() >> 7) as u8];
        field.append(&mut content);
        field
    }

    const UID: &str = record::key::LOG_RECORD_UID;

    #[test]
    fn what_is_remembered_changes_no_digest() {
        // Longer than what tells the set: what begins alike meets in one.
        let many: Vec<String> = (0..2000).map(|number| format!("{number:04}{:0180}", 0)).collect();
        let long = "x".repeat(1000);
        let mut fields: Vec<Vec<u8>> = many.iter().map(|text| field(&[("a", text), (UID, "1"), ("b", "2")])).collect();
        fields.extend([
            field(&[(UID, "1"), ("b", "2")]),
            field(&[("a", &many[0]), ("b", "2")]),
            field(&[("a", &many[0]), ("a", "2"), (UID, "1")]),
            field(&[("a", &many[0]), (UID, "1"), (UID, "1")]),
            field(&[("a", &many[0])]),
            field(&[("a", &long), ("b", &long), ("c", &long), (UID, "1")]),
            field(&[]),
            b"no field".to_vec(),
            Vec::new(),
        ]);
        let mut chain = Chain::default();
        for (number, field) in fields.iter().chain(&fields).chain(&fields[..5]).enumerate() {
            let (number, before) = (number as u64, [number as u8; 32]);
            assert_eq!(chain.next(Rule::Context, &before, number, field), next(&before, number, field));
        }
        let remembered = chain.known.iter().flatten().map(|known| known.context.len()).sum::<usize>();
        assert!(remembered > 0 && remembered <= SETS * WAYS * CONTEXT_BYTES_MAX);
    }

    #[test]
    fn contexts_of_one_connection_with_many_authorities_are_all_remembered() {
        let shared = "x".repeat(400);
        let fields: Vec<Vec<u8>> = (0..40)
            .map(|host| field(&[("server.address", &format!("host-{host}")), ("a", &shared), (UID, "1")]))
            .collect();
        let mut chain = Chain::default();
        for turn in 0..3 {
            let known = |field: &&Vec<u8>| chain.context(&field[12..]).holders.is_some();
            assert_eq!(fields.iter().filter(known).count(), if turn == 0 { 0 } else { 40 }, "in turn {turn}");
        }
    }

    #[test]
    fn a_digest_is_made_as_the_format_says() {
        let field = field(&[("a", "1"), ("b", "2"), (UID, "3"), ("c", "4")]);
        // Tag and length of the field, and its time.
        let begin = 3 + 9;
        let end = begin + 2 * (3 + 3 + 3 + 3);
        assert_eq!(&field[end + 5..end + 19], UID.as_bytes());
        let context = sha256(&field[begin..end]);
        let parts = [&[7; 32][..], &9u64.to_le_bytes(), &context, &field[..begin], &field[end..]];
        assert_eq!(next(&[7; 32], 9, &field), sha256(&parts.concat()));
        let whole = [&[7; 32][..], &9u64.to_le_bytes(), &field].concat();
        assert_eq!(Chain::default().next(Rule::Whole, &[7; 32], 9, &field), sha256(&whole));
    }
}
