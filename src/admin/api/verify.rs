//! `?verify=1`: fetches a token for an agent before it is written.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::super::{Admin, error::ApiError};
use super::entry::{Checked, EntryKind};
use crate::{
    config::CorpConfig,
    directory::{self, Directory, Suite},
    tokens::{CachedToken, Credentials, TokenCache},
};

/// The cache entry with the token that was fetched; removed when it is dropped, if no agent has it by then.
pub(super) struct VerifiedToken {
    name: String,
    token: Arc<CachedToken>,
    directory: Arc<ArcSwap<Directory>>,
    cache: Arc<TokenCache>,
}

impl VerifiedToken {
    /// Whether it was fetched with these credentials.
    pub(super) fn is_for(&self, credentials: &Credentials) -> bool {
        self.token.credentials() == credentials
    }
}

impl Drop for VerifiedToken {
    fn drop(&mut self) {
        let directory = self.directory.load();
        let agent = directory.find_agent(&self.name);
        if !agent.is_some_and(|agent| agent.token.has_entry(&self.token)) {
            self.cache.remove(&self.token);
        }
    }
}

impl Admin {
    /// Fetches a token for an agent or corp, unless that was done before; during a backoff, that is the last failure.
    pub(super) async fn verify_once(
        &self,
        checked: &Checked,
        verified: &mut Option<VerifiedToken>,
    ) -> Result<(), ApiError> {
        let (name, credentials, key) = match checked {
            Checked::Agent(agent) => (agent.name.clone(), directory::first_credentials(agent), "secret"),
            Checked::Corp(CorpConfig { name, corpid, permanent_code, origin, .. }) => {
                let credentials =
                    directory::corp_credentials(corpid.as_str(), permanent_code.clone(), origin);
                (name.as_str().into(), credentials, "permanent_code")
            }
            Checked::Client(_) => return Ok(()),
        };
        if verified.as_ref().is_some_and(|verified| verified.is_for(&credentials)) {
            return Ok(());
        }
        let token = match checked {
            Checked::Corp(corp) => {
                let suite = self.directory.load().suite_by_name(&corp.suite).ok_or_else(ApiError::busy)?;
                suite.named_corp_token(&name, credentials, &self.token_cache)
            }
            _ => self.token_cache.entry(name.clone(), credentials, false),
        };
        *verified = Some(self.verify_token(&name, token, key).await?);
        Ok(())
    }

    /// Fetches a token of an authorised corp with its permanent code.
    pub(super) async fn verify_corp(
        &self,
        suite: &Suite,
        name: &str,
        credentials: Credentials,
    ) -> Result<VerifiedToken, ApiError> {
        let token = suite.corp_token(&name.into(), credentials, &self.token_cache);
        self.verify_token(name, token, "permanent_code").await
    }

    async fn verify_token(
        &self,
        name: &str,
        token: Arc<CachedToken>,
        key: &str,
    ) -> Result<VerifiedToken, ApiError> {
        let verified = VerifiedToken {
            name: name.to_owned(),
            token: token.clone(),
            directory: self.directory.clone(),
            cache: self.token_cache.clone(),
        };
        let key = || EntryKind::Agent.key(name, key);
        token.verify().await.map_err(|error| ApiError::not_verified(&key(), &error))?;
        Ok(verified)
    }
}
