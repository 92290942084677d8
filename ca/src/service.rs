//! What the authority does for a caller, apart from the network: certificates, and admission to the trust bundle.
//!
//! Promises: a call ends in one certificate or one refusal, each in the journal; an identity comes from the token alone;
//! the deny list holds here, too. Leaves to others: connections (`serve`), the stream (`follow`).

use std::net::SocketAddr;
use std::sync::Arc;

use api::istio_ca::IstioCertificateRequest;
use identity::SpiffeId;
use time::OffsetDateTime;
use tonic::metadata::MetadataMap;

use crate::attest::{Attest, Caller, TokenError};
use crate::followers::{Followers, Who};
use crate::issue::{self, Issued};
use crate::journal::{Asked, Journal};
use crate::policy::Policy;
use crate::refusal::CallError;
use crate::trust::{Snapshot, Trust};

/// What decides.
pub struct Service {
    /// The state of the moment.
    pub trust: Arc<Trust>,
    /// Who asks.
    pub attestor: Arc<dyn Attest>,
    /// What they may have.
    pub policy: Policy,
    /// Who follows.
    pub followers: Arc<Followers>,
    /// What was done.
    pub journal: Arc<Journal>,
}

impl Service {
    /// A certificate for who is calling, or the reason for none.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn create(
        &self,
        metadata: &MetadataMap,
        asked: &IstioCertificateRequest,
        source: SocketAddr,
    ) -> Result<Issued, CallError> {
        let now = OffsetDateTime::now_utc();
        match self.attest(bearer(metadata), now).await {
            Ok(caller) => {
                let who = Asked { caller: Some(&caller), source };
                match self.issue(&caller, asked, source, now) {
                    Ok((id, issued)) => {
                        self.journal.issued(&who, id.as_str(), &issued);
                        Ok(issued)
                    }
                    Err(error) => {
                        self.journal.refused(&who, &error);
                        Err(error)
                    }
                }
            }
            Err(error) => {
                let error = CallError::from(error);
                self.journal.refused(&Asked { caller: None, source }, &error);
                Err(error)
            }
        }
    }

    /// Who may follow the trust bundle; a refusal is in the journal.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn admit(&self, token: &str, source: SocketAddr) -> Result<(Caller, Who), CallError> {
        let token = (!token.is_empty()).then_some(token).ok_or(TokenError::Missing);
        let attested = self.attest(token, OffsetDateTime::now_utc()).await;
        let caller = attested.map_err(|error| self.refuse(None, source, error.into()))?;
        match self.policy.admit(&caller, &self.trust.current().state) {
            Ok(id) => {
                let who = who(&caller, &id, source);
                Ok((caller, who))
            }
            Err(error) => Err(self.refuse(Some(&caller), source, error.into())),
        }
    }

    /// Puts a refusal into the journal.
    pub fn refuse(&self, caller: Option<&Caller>, source: SocketAddr, error: CallError) -> CallError {
        self.journal.refused(&Asked { caller, source }, &error);
        error
    }

    async fn attest(&self, token: Result<&str, TokenError>, now: OffsetDateTime) -> Result<Caller, TokenError> {
        let seconds = u64::try_from(now.unix_timestamp()).unwrap_or(0);
        self.attestor.attest(token?, seconds).await
    }

    fn issue(
        &self,
        caller: &Caller,
        asked: &IstioCertificateRequest,
        source: SocketAddr,
        now: OffsetDateTime,
    ) -> Result<(SpiffeId, Issued), CallError> {
        let Snapshot { state, signing, .. } = &*self.trust.signing(now.unix_timestamp())?;
        let grant = self.policy.decide(caller, asked.validity_duration, state)?;
        let key = issue::read_csr(&asked.csr)?;
        self.policy.admit_key(key.sha256, state)?;
        let issued = issue::issue(signing, &key, &grant, now)?;
        let (end, now) = (issued.not_after.unix_timestamp(), now.unix_timestamp());
        let who = who(caller, &grant.id, source);
        self.followers.granted(who, &issued.serial, issued.issuer_sha256, end, now);
        Ok((grant.id, issued))
    }
}

fn who(caller: &Caller, id: &SpiffeId, source: SocketAddr) -> Who {
    let boxed = |text: &Option<String>| text.as_deref().map(Box::from);
    Who {
        identity: id.as_str().into(),
        pod: boxed(&caller.pod),
        pod_uid: boxed(&caller.pod_uid),
        source: caller.pod_uid.is_none().then(|| source.to_string().into()),
    }
}

fn bearer(metadata: &MetadataMap) -> Result<&str, TokenError> {
    let mut headers = metadata.get_all("authorization").iter();
    // Of two tokens, which one counts would be a matter of taste.
    let (Some(header), None) = (headers.next(), headers.next()) else { return Err(TokenError::Missing) };
    let (scheme, token) = header.to_str().ok().and_then(|header| header.split_once(' ')).ok_or(TokenError::Missing)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(TokenError::Missing) }
}
