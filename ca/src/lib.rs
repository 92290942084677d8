//! Picket's certificate authority.
//!
//! The story, in the order of the modules: a private directory ([`store`]) holds one [`state`]: roots, issuers, the stage
//! of a rotation, who is denied. When it changes is a matter of rules ([`lifecycle`]); certificates and keys are made by
//! [`pki`] or brought from outside ([`brought`]); the [`keeper`] changes the state, whole or not at all, and [`trust`] is
//! what this process signs with. A call brings a token that says who asks ([`attest`]); the rules say what that caller may
//! have ([`policy`]); the certificate is made of the caller's public key and of nothing else that it sent ([`issue`]), or
//! there is a [`refusal`]. Proxies follow the trust bundle ([`follow`], over [`sealed`] records) and say what they use ([`followers`], [`roster`]);
//! one thread tends to all of that ([`tend`]). Each act goes into the [`journal`], trouble is an alert ([`alerts`]).
//! [`service`] and [`serve`] put it behind TLS, [`admin`] and [`metrics`] show it, [`app`] connects it, and
//! [`token`] makes tokens where no Kubernetes does.
//!
//! Promises: no identity comes from a request; every issuance and every refusal is one record, with its reason; at any
//! time one root signs, and no root goes while a certificate under it may be valid. Leaves to others: TokenReview and
//! the Lease come with Kubernetes.

pub mod store;
pub mod lock;
mod fault;
pub mod state;
pub mod lifecycle;
#[cfg(test)]
mod lifecycle_tests;
pub mod pki;
pub mod authority;
pub mod brought;
#[cfg(test)]
mod brought_tests;
pub mod keeper;
#[cfg(test)]
mod keeper_tests;
pub mod trust;
pub mod attest;
pub mod policy;
pub mod issue;
pub mod refusal;
pub mod journal;
pub mod alerts;
pub mod followers;
pub mod roster;
pub mod tend;
pub mod service;
#[cfg(test)]
mod hostile_tests;
pub mod sealed;
#[cfg(test)]
mod sealed_tests;
pub mod follow;
mod gather;
pub mod serve;
pub mod metrics;
pub mod admin;
pub mod config;
pub mod app;
pub mod token;
#[cfg(test)]
mod test_support;
