//! Finished `log_records` fields as a whole: one by one out of a batch, and with the number that a spool gives them.
//!
//! Nothing is decoded: a record that is kept, numbered and sent on stays the bytes that were made when it ended.

use crate::{
    key, line,
    otlp::{self, Attributes},
};

/// Bytes of one numbered field at most: what the three bytes of its length can say, with its tag.
pub const BYTES_MAX: usize = HEAD_BYTES + (1 << 21) - 1;

/// Bytes of a finished field before its content: the tag, and the length, which is padded.
pub const HEAD_BYTES: usize = 4;

/// The tag of `ScopeLogs.log_records`.
const TAG: u8 = 0x12;

/// A batch does not consist of finished `log_records` fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Takes the first field off `fields`: all of it, and its content without tag and length.
fn split<'a>(fields: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let whole = *fields;
    let (&tag, mut rest) = whole.split_first()?;
    let (mut length, mut shift) = (0usize, 0);
    loop {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            break;
        }
        if shift > 28 {
            return None;
        }
    }
    let (content, after) = rest.split_at_checked(length)?;
    *fields = after;
    (tag == TAG).then(|| (&whole[..whole.len() - after.len()], content))
}

/// The contents of the fields in a batch, in their order; the first malformed one is the last item.
pub fn contents(mut fields: &[u8]) -> impl Iterator<Item = Result<&[u8], Malformed>> {
    std::iter::from_fn(move || {
        if fields.is_empty() {
            return None;
        }
        let field = split(&mut fields).map(|(_, content)| content).ok_or(Malformed);
        if field.is_err() {
            fields = &[];
        }
        Some(field)
    })
}

/// Appends a record, given as its field's content, as the finished field that it is the content of.
///
/// # Errors
/// When it would be longer than [`BYTES_MAX`]; `out` is as before then.
pub fn append(out: &mut Vec<u8>, content: &[u8]) -> Result<(), Malformed> {
    if content.len() + HEAD_BYTES > BYTES_MAX {
        return Err(Malformed);
    }
    otlp::record_field(out, |out| out.extend_from_slice(content));
    Ok(())
}

/// Appends a record, given as its field's content, as a finished field that carries `sequence`.
///
/// # Errors
/// When it would be longer than [`BYTES_MAX`]; `out` is as before then.
pub fn append_numbered(out: &mut Vec<u8>, content: &[u8], sequence: u64) -> Result<(), Malformed> {
    append_numbered_without(out, content, 0..0, sequence)
}

/// As [`append_numbered`], but for the bytes `left_out` of the content: whoever puts them back has the finished field.
///
/// # Errors
/// When the whole would be longer than [`BYTES_MAX`]; `out` is as before then.
pub fn append_numbered_without(
    out: &mut Vec<u8>,
    content: &[u8],
    left_out: std::ops::Range<usize>,
    sequence: u64,
) -> Result<(), Malformed> {
    // Key, tags, lengths and a number of ten bytes take less than 64 bytes.
    if content.len() + 64 > BYTES_MAX {
        return Err(Malformed);
    }
    otlp::record_field_without(out, left_out.len(), |out| {
        out.extend_from_slice(&content[..left_out.start]);
        out.extend_from_slice(&content[left_out.end..]);
        Attributes::new(out).int(key::SEQUENCE, sequence);
    });
    Ok(())
}

/// Where the attributes of a field's content begin; its end where it has none.
pub fn attributes_at(content: &[u8]) -> usize {
    line::first_attribute(content).unwrap_or(content.len())
}

/// Where the attributes of a finished field begin; `None` where it has none.
pub fn first_attribute(field: &[u8]) -> Option<usize> {
    let (_, content) = split(&mut &*field)?;
    line::first_attribute(content).map(|at| field.len() - content.len() + at)
}

/// How long the context is at the beginning of `attributes`, which go on to the end of a field: all attributes before
/// `log.record.uid`, which records of one kind, of one connection and towards one upstream share. 0 where that name does not come.
pub fn context_length(attributes: &[u8]) -> usize {
    line::attributes_before(attributes, key::LOG_RECORD_UID).unwrap_or(0)
}

/// Whether the first attribute is `log.record.uid`, which ends the context.
pub fn is_context_end(attributes: &[u8]) -> bool {
    line::first_is(attributes, key::LOG_RECORD_UID)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_told_apart_and_what_is_none_is_said() {
        let bytes = [TAG, 2, 7, 8, TAG, 0x81, 0, 9, 0x13, 0];
        let found: Vec<_> = contents(&bytes).collect();
        assert_eq!(found, [Ok(&[7u8, 8][..]), Ok(&[9][..]), Err(Malformed)]);
        for cut in [&bytes[..1], &bytes[..3], &[TAG, 0xff, 0xff, 0xff, 0xff, 0xff, 1]] {
            assert_eq!(contents(cut).collect::<Vec<_>>(), [Err(Malformed)]);
        }
    }
}
