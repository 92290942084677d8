//! Identities of workloads, and the TLS that proves them.
//!
//! The story, in the order of the modules: a workload has a name ([`SpiffeId`]); a set of roots vouches for names
//! ([`TrustBundle`]); a peer's certificate chain is checked against the roots and read ([`verify_peer`]); our own
//! certificate and the roots live in a [`Store`] that can be changed at any time, with a [`DenyList`] beside the
//! roots; [`server_config`] and
//! [`client_config`] make handshakes out of that store.
//!
//! Promises: no clock, no I/O, no task; nothing that a peer sends makes this crate panic. Leaves to others: getting
//! certificates (`proxy`, `ca`), sockets, and the mapping of reasons to record codes.

mod spiffe_id;
mod bundle;
mod peer;
mod deny;
mod store;
mod seal;
mod tls;
#[cfg(test)]
mod test_pki;
#[cfg(test)]
mod handshake_tests;

pub use bundle::{BundleError, ROOTS_MAX, TrustBundle};
pub use deny::{DENIALS_MAX, Denial, DenyList, Leaf, TooManyDenials, sha256};
pub use peer::{CHAIN_MAX, PeerError, Role, UsageError, Utc, verify_peer};
pub use seal::{SignatureError, verify_signature};
pub use spiffe_id::{SpiffeId, SpiffeIdError, TrustDomain};
pub use store::{Credentials, CredentialsError, Previous, Store, Unusable};
pub use tls::{
    ALPN_H2, ALPN_HTTP1, ALPN_TCP, ALPN_TRUST, client_config, peer_error, peer_failure, peer_leaf, provider,
    refused_by_peer, server_config, trust_client_config, version_unsupported,
};
