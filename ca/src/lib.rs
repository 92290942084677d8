//! Picket's certificate authority.
//!
//! The story, in the order of the modules: a private directory ([`store`]) holds a root and an issuer ([`root`]). A
//! call brings a token that says who asks ([`attest`]); the rules say what that caller may have ([`policy`]); the
//! certificate is made of the caller's public key and of nothing else that it sent ([`issue`]). [`serve`] puts this
//! behind gRPC over TLS, [`config`] reads the settings, and [`token`] makes tokens where no Kubernetes does.
//!
//! Promises: no identity comes from a request; every issuance and every refusal is one line in the log, with its
//! reason. Leaves to others: TokenReview and issuer rotation come with Kubernetes.

pub mod store;
pub mod state;
pub mod lifecycle;
#[cfg(test)]
mod lifecycle_tests;
pub mod root;
pub mod attest;
pub mod policy;
pub mod issue;
pub mod serve;
pub mod config;
pub mod token;
#[cfg(test)]
mod test_support;
