//! Contexts that records leave out, because two earlier records of their segment hold them (docs/formats/segment.md, "Short
//! records").
//!
//! Most of a request's record is its context, which each record of its connection repeats. So two records keep it, far enough
//! from each other that one damage does not hit both, and those after them name the two. Promises: what is read is, byte
//! for byte, what was written; memory on both sides is bounded.

/// Records of one segment that others may name, at most.
pub(crate) const HOLDERS_MAX: usize = 512;
/// Longer contexts are written in each record.
pub(crate) const CONTEXT_BYTES_MAX: usize = 2 << 10;
/// Bytes of a short record before what is left of the record: two numbers, and the length of the part before the context.
pub(crate) const SHORT_HEAD_BYTES: usize = 17;

/// How a record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it is.
    Whole,
    /// As it is, and later ones may name it.
    Holder,
    /// Without its context, which these two hold.
    Short([u64; 2]),
}

/// A record that is about to be written whole, and where in its segment it begins and ends at the latest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
    pub(crate) begin: u64,
    pub(crate) end: u64,
}

/// The records of a segment that hold one context.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Holders {
    /// The segment's.
    epoch: u64,
    /// A number, and where its record ends.
    first: Option<(u64, u64)>,
    second: Option<u64>,
}

impl Holders {
    /// The form of the next record with a context that came before. Between the two that hold it are `distance` bytes; `left`
    /// says how many holders the segment may still have.
    pub(crate) fn next(&mut self, at: Candidate, distance: u64, left: &mut usize) -> Form {
        if self.epoch != at.epoch {
            *self = Self { epoch: at.epoch, ..Self::default() };
        }
        match (self.first, self.second) {
            (Some((first, _)), Some(second)) => return Form::Short([first, second]),
            (None, _) if *left > 0 => self.first = Some((at.sequence, at.end)),
            (Some((_, end)), None) if *left > 0 && at.begin >= end + distance => self.second = Some(at.sequence),
            (Some(_) | None, _) => return Form::Whole,
        }
        *left -= 1;
        Form::Holder
    }
}

/// What stands before the rest of a short record.
pub(crate) fn short_head([first, second]: [u64; 2], before_context: u8) -> [u8; SHORT_HEAD_BYTES] {
    let mut out = [0; SHORT_HEAD_BYTES];
    out[..8].copy_from_slice(&first.to_le_bytes());
    out[8..16].copy_from_slice(&second.to_le_bytes());
    out[16] = before_context;
    out
}

/// The contexts that were read so far in one segment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contexts {
    /// By the number of the record that holds it, ascending.
    held: Vec<(u64, std::sync::Arc<[u8]>)>,
    rebuilt: Vec<u8>,
}

impl Contexts {
    /// Keeps the context of a holder, a finished field.
    pub(crate) fn hold(&mut self, sequence: u64, payload: &[u8]) {
        let Err(at) = self.held.binary_search_by_key(&sequence, |held| held.0) else { return };
        let attributes = &payload[record::field::first_attribute(payload).unwrap_or(payload.len())..];
        let context = &attributes[..record::field::context_length(attributes)];
        if self.held.len() < HOLDERS_MAX && context.len() <= CONTEXT_BYTES_MAX {
            // Two hold the same one.
            let known = self.held.iter().find(|held| *held.1 == *context).map(|held| held.1.clone());
            self.held.insert(at, (sequence, known.unwrap_or_else(|| context.into())));
        }
    }

    /// What a short record is made of: what stands before its context, the context, what stands behind it. `None` when neither
    /// of those that hold it was read.
    pub(crate) fn find<'a>(&'a self, short: &'a [u8]) -> Option<[&'a [u8]; 3]> {
        let (head, rest) = short.split_first_chunk::<SHORT_HEAD_BYTES>()?;
        let (holders, &[before_context]) = head.split_first_chunk::<16>()? else { return None };
        let (before, after) = rest.split_at_checked(before_context.into())?;
        let context = holders.as_chunks::<8>().0.iter().find_map(|number| {
            let at = self.held.binary_search_by_key(&u64::from_le_bytes(*number), |held| held.0).ok()?;
            Some(&*self.held[at].1)
        })?;
        Some([before, context, after])
    }

    /// The whole of a short record; empty when there is no context for it.
    pub(crate) fn rebuild(&mut self, short: &[u8]) -> &[u8] {
        let mut rebuilt = std::mem::take(&mut self.rebuilt);
        rebuilt.clear();
        self.find(short).into_iter().flatten().for_each(|part| rebuilt.extend_from_slice(part));
        self.rebuilt = rebuilt;
        &self.rebuilt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sequence: u64, begin: u64) -> Candidate {
        Candidate { epoch: 1, sequence, begin, end: begin + 10 }
    }

    #[test]
    fn two_records_far_apart_hold_a_context_before_one_leaves_it_out() {
        let (mut holders, mut left) = (Holders::default(), 3);
        assert_eq!(holders.next(at(1, 0), 100, &mut left), Form::Holder);
        assert_eq!(holders.next(at(2, 109), 100, &mut left), Form::Whole);
        assert_eq!(holders.next(at(3, 110), 100, &mut left), Form::Holder);
        assert_eq!(holders.next(at(4, 111), 100, &mut left), Form::Short([1, 3]));
        let other_segment = Candidate { epoch: 2, ..at(5, 0) };
        assert_eq!(holders.next(other_segment, 100, &mut left), Form::Holder);
        assert_eq!(left, 0);
        assert_eq!(holders.next(Candidate { begin: 900, ..other_segment }, 100, &mut left), Form::Whole);
    }
}
