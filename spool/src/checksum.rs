//! CRC-32C (RFC 3385; "CRC-32/ISCSI") over pieces that lie apart.

use crc_fast::{CrcAlgorithm::Crc32Iscsi, Digest};

/// The checksum of all pieces, as if they were one.
pub(crate) fn crc32c<const N: usize>(pieces: [&[u8]; N]) -> u32 {
    let mut digest = Digest::new(Crc32Iscsi);
    pieces.into_iter().for_each(|piece| digest.update(piece));
    // The algorithm has 32 bits.
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::crc32c;

    #[test]
    fn it_is_the_castagnoli_polynomial() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c([&[0; 32]]), 0x8a91_36aa);
        assert_eq!(crc32c([&[0xff; 32]]), 0x62a8_ab43);
        // The check value of the catalogue of CRC algorithms.
        assert_eq!(crc32c([b"1234", b"", b"56789"]), 0xe306_9283);
    }
}
