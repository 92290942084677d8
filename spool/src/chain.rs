//! The digest chain over the records of a spool: what was changed, swapped or taken out shows.

use aws_lc_rs::digest::{Context, SHA256};

/// The digest after a record: `SHA-256(before ‖ sequence ‖ payload)`.
pub fn next(before: &[u8; 32], sequence: u64, payload: &[u8]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(before);
    context.update(&sequence.to_le_bytes());
    context.update(payload);
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}
