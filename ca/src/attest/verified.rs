//! What tokens say that were found good, for a proxy shows the same one again and again.
//!
//! Promises: memory is bounded. Leaves to others: that a token is held against the time whenever it is shown, and that
//! what is remembered goes with the keys that vouched for it (`key_set`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Caller;
use crate::state::Sha256;

/// Tokens that are remembered at most: a proxy shows its token for its stream and, seconds later, for a certificate, and not again
/// for hours. More would be memory for each proxy, and save a second verification in a rush alone.
const VERIFIED_MAX: usize = 512;
/// What a longer one says is not remembered; a ServiceAccount token has about 1 KiB.
const TOKEN_BYTES_MAX: usize = 4 << 10;

/// What a token says whose signature is good, and in which nothing is wrong but, at another moment, the time.
#[derive(Clone, Debug)]
pub(super) struct Says {
    /// `nbf`.
    pub(super) begins: u64,
    /// `exp`.
    pub(super) ended: u64,
    /// Whose it is.
    pub(super) caller: Caller,
}

/// Tokens by their digest.
#[derive(Debug, Default)]
pub(super) struct Verified(Mutex<HashMap<Sha256, Arc<Says>>>);

impl Verified {
    /// What this token says, if it is remembered.
    pub(super) fn get(&self, token: &Sha256) -> Option<Arc<Says>> {
        // A map is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(token).cloned()
    }

    /// Remembers what a token of so many bytes says.
    pub(super) fn remember(&self, token: Sha256, bytes: usize, says: Says) {
        let mut verified = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > TOKEN_BYTES_MAX {
            return;
        }
        if verified.len() >= VERIFIED_MAX {
            verified.clear();
        }
        verified.insert(token, Arc::new(says));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::sha256;

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        let caller = Caller { namespace: "demo".into(), service_account: "web".into(), pod: None, pod_uid: None };
        let (verified, says) = (Verified::default(), Says { begins: 1, ended: 2, caller });
        let token = |number: usize| sha256(&number.to_le_bytes());
        verified.remember(token(0), TOKEN_BYTES_MAX + 1, says.clone());
        assert!(verified.get(&token(0)).is_none());
        for number in 0..=VERIFIED_MAX {
            verified.remember(token(number), TOKEN_BYTES_MAX, says.clone());
            assert!(verified.0.lock().unwrap().len() <= VERIFIED_MAX);
        }
        assert!(verified.get(&token(0)).is_none() && verified.get(&token(VERIFIED_MAX)).is_some());
    }
}
