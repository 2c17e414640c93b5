//! Suites of service providers, and the corps that authorised them. A suite, a provider and a corp are agents of their
//! own kinds; the corps that no file names come and go while the program runs.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use foldhash::fast::RandomState;

use super::{Agent, AgentRole};
use crate::{
    config::{self, Origin, UpstreamId},
    limits::RateLimiterFactory,
    secret::{Masked, random_u64},
    tokens::{
        AgentToken, CachedToken, Credentials, TokenCache, TokenSpec,
        kinds::{TokenKind, suite::SuiteTicket},
        passes::PassKey,
    },
    wecom::provider_api,
};

/// A suite: a third-party app, or a template of customized apps.
pub struct Suite {
    /// Its configuration.
    pub config: config::SuiteConfig,
    /// What outlives a reload.
    pub state: Arc<SuiteState>,
    /// The corps that the file names, by corpid.
    pub(super) file_corps: HashMap<String, Arc<Agent>, RandomState>,
}

/// What outlives a reload of a suite.
pub struct SuiteState {
    /// The newest suite_ticket.
    pub ticket: Arc<SuiteTicket>,
    /// The entry of its token.
    pub(super) token: Arc<ArcSwap<CachedToken>>,
    /// The authorised corps that the file does not name, by corpid.
    pub(super) corps: DashMap<Box<str>, Arc<Agent>, RandomState>,
}

/// What is known of an authorised corp.
#[derive(Clone)]
pub struct CorpCredentials {
    /// The corpid as the provider sees it.
    pub corpid: String,
    /// The permanent code.
    pub permanent_code: Masked,
    /// What its passes are made under; a reset of the permanent code does not change it.
    pub pass_secret: Masked,
    /// What does not concern its token; without a limit of its own, the suite's `limit_per_corp` holds.
    pub settings: config::AgentSettings,
    /// The version of the state that wrote it, and the random number of the corp's first one.
    pub origin: Origin,
}

impl Suite {
    /// Its configured name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Whether its corps have customized apps, whose tokens come from gettoken.
    pub fn is_customized_template(&self) -> bool {
        provider_api::is_customized_template(&self.config.suite_id)
    }

    /// The authorised corp with this corpid, which is case-sensitive.
    pub fn corp(&self, corpid: &str) -> Option<Arc<Agent>> {
        let named = self.file_corps.get(corpid).cloned();
        named.or_else(|| self.state.corps.get(corpid).map(|corp| corp.clone()))
    }

    /// Whether the file names this corp.
    pub fn is_file_corp(&self, corpid: &str) -> bool {
        self.file_corps.contains_key(corpid)
    }

    /// All authorised corps, in no order.
    pub fn corps(&self) -> Vec<Arc<Agent>> {
        let in_state = self.state.corps.iter().filter(|corp| !self.is_file_corp(&corp.corpid));
        self.file_corps.values().cloned().chain(in_state.map(|corp| corp.clone())).collect()
    }

    /// Adds an authorised corp, or gives one its new permanent code.
    pub fn insert_corp(&self, corp: CorpCredentials, tokens: &TokenCache, limits: &RateLimiterFactory) {
        let corpid = corp.corpid.clone();
        let previous = self.state.corps.get(&*corpid).map(|corp| corp.clone());
        let agent = self.build_corp(corp, tokens, limits, previous.as_deref());
        let replaced = self.state.corps.insert(corpid.into(), agent.clone());
        if let Some(replaced) = replaced.filter(|replaced| !replaced.token.is_same_as(&agent.token)) {
            remove_entries(&replaced, tokens);
        }
    }

    /// Removes a corp that withdrew its authorisation; its passes are void.
    pub fn remove_corp(&self, corpid: &str, tokens: &TokenCache) {
        if let Some((_, corp)) = self.state.corps.remove(corpid) {
            remove_entries(&corp, tokens);
        }
    }

    /// The entry of its token.
    pub fn token(&self) -> Arc<CachedToken> {
        self.state.token.load_full()
    }

    /// The entry of the token of a corp that the file does not name.
    pub fn corp_token(&self, name: &str, credentials: Credentials, tokens: &TokenCache) -> Arc<CachedToken> {
        let spec =
            TokenSpec { agent: name, counted_as: Some(self.name()), credentials, kind: self.corp_kind() };
        tokens.entry_of(spec, false)
    }

    fn build_corp(
        &self,
        corp: CorpCredentials,
        tokens: &TokenCache,
        limits: &RateLimiterFactory,
        previous: Option<&Agent>,
    ) -> Arc<Agent> {
        let CorpCredentials { corpid, permanent_code, pass_secret, settings, origin } = corp;
        let name = format!("{}:{corpid}", self.name());
        let credentials = corp_credentials(&corpid, permanent_code, &origin);
        let token = AgentToken::Fixed(self.corp_token(&name, credentials, tokens));
        let limiter = previous.and_then(|previous| previous.rate_limiter.as_ref());
        let limit = settings.limit.or(self.config.limit_per_corp);
        let rate_limiter = super::reuse_or_create_limiter(limits, limit, limiter, || format!("agent:{name}"));
        let corp_pass_key = Some(Box::new(PassKey::derive(&corpid, &pass_secret, 0)));
        Arc::new(Agent {
            name,
            corpid,
            upstream: UpstreamId::default(),
            origin,
            revision: random_u64(),
            settings,
            token,
            secret_hashes: Box::default(),
            rate_limiter,
            capture_switch: previous.map_or_else(Arc::default, |previous| previous.capture_switch.clone()),
            pass_keys: Arc::default(),
            corp_pass_key,
            role: AgentRole::Corp { suite: self.name().into() },
        })
    }

    /// How a corp's token is fetched.
    pub(super) fn corp_kind(&self) -> TokenKind {
        match self.is_customized_template() {
            true => TokenKind::AccessToken,
            false => TokenKind::Corp(self.state.token.clone()),
        }
    }
}

/// What the token of a corp of the state is fetched with.
pub fn corp_credentials(corpid: &str, permanent_code: Masked, origin: &Origin) -> Credentials {
    Credentials {
        corpid: corpid.to_owned(),
        secret: permanent_code,
        upstream: UpstreamId::default(),
        generation: origin.generation(),
    }
}

/// Forgets the token of a corp.
fn remove_entries(corp: &Agent, tokens: &TokenCache) {
    corp.token.entries().iter().for_each(|entry| tokens.remove(entry));
}
