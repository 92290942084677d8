//! Record uids: ULIDs (github.com/ulid/spec), increasing within their source.

use std::fmt;

/// The identity of a record, the same in every copy of it. Prints as a ULID of 26 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(u128);

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

impl Uid {
    /// The text, without an allocation.
    pub fn text(self) -> [u8; 26] {
        let mut text = [0; 26];
        // In parts that one register takes: 10 bits, and twice 60.
        let (first, rest) = text.split_at_mut(2);
        let (middle, last) = rest.split_at_mut(12);
        for (part, bits) in [(first, self.0 >> 120), (middle, self.0 >> 60), (last, self.0)] {
            let mut bits = bits as u64;
            for character in part.iter_mut().rev() {
                *character = ALPHABET[(bits & 31) as usize];
                bits >>= 5;
            }
        }
        text
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Makes uids that no other source with another seed makes.
#[derive(Debug)]
pub struct UidSource {
    next: u128,
}

const RANDOM_BITS: u32 = 80;

impl UidSource {
    /// A source whose uids carry 80 bits of `seed`.
    pub fn new(seed: u128) -> Self {
        // The top bit stays free, so that counting up never overflows into the time.
        Self { next: seed & ((1 << (RANDOM_BITS - 1)) - 1) }
    }

    /// The next uid, with that Unix time in milliseconds.
    pub fn next(&mut self, unix_millis: u64) -> Uid {
        self.next = (self.next + 1) & ((1 << RANDOM_BITS) - 1);
        Uid((u128::from(unix_millis) << RANDOM_BITS) | self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_ulids_that_grow() {
        let mut source = UidSource::new(u128::MAX);
        let (first, second) = (source.next(1_469_918_176_385), source.next(1_469_918_176_385));
        assert!(first < second);
        // The time part of the example in the specification.
        assert!(first.to_string().starts_with("01ARYZ6S41"), "{first}");
        assert_eq!(first.to_string().len(), 26);
    }
}
