//! May this client reach this port, and by which rule.
//!
//! Who proved an identity of our own trust domain may; plaintext may in permissive mode. Rules per identity come with
//! the control plane.

use crate::{config::Plaintext, error::ConnectionError};

/// Decides about a client that is not in the mesh and returns the reason.
///
/// # Errors
/// In strict mode, always.
pub fn plaintext(mode: Plaintext) -> Result<&'static str, ConnectionError> {
    match mode {
        Plaintext::Permissive => Ok("inbound.plaintext is permissive"),
        Plaintext::Strict => Err(ConnectionError::PlaintextRefused),
    }
}
