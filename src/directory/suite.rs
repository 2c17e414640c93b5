//! Suites of service providers, and the corps that authorised them. A suite, a provider and a corp are agents of their
//! own kinds; the corps that no file names come and go while the program runs.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use foldhash::fast::RandomState;

use super::{Agent, AgentRole, named_corps::NamedCorp, pass_keys::AgentPassKeys};
use crate::{
    config::{self, KeyHash, Origin},
    limits::RateLimiterFactory,
    secret::Masked,
    text::SharedStr,
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
    pub(super) file_corps: HashMap<String, NamedCorp, RandomState>,
}

/// What the state says of a corp with a name of its own, as long as the permanent code with that name has this hash.
#[derive(Clone)]
pub struct CorpOverride {
    /// The hash of the code with its name.
    pub file_code: KeyHash,
    /// Its newer permanent code; `None`: it withdrew its authorisation.
    pub renewed: Option<CorpCredentials>,
    /// The generation of its passes, which holds for other codes too.
    pub generation: u64,
}

/// A [`CorpOverride`] in force.
pub(super) struct OverriddenCorp {
    file_code: KeyHash,
    /// `None`: the corp withdrew its authorisation.
    pub(super) agent: Option<Arc<Agent>>,
    pub(super) generation: u64,
}

impl OverriddenCorp {
    /// A corp whose file has another code since it cancelled: passes from before stay void. `None` if there is nothing to
    /// void.
    fn with_generation(named: &NamedCorp, generation: u64) -> Option<Self> {
        let file = &named.agent;
        // The state has a generation of its own for each of its agents.
        if file.origin.generation() != 0 || generation == 0 {
            return None;
        }
        let pass_keys = file.pass_keys.of_generation(generation, &file.token);
        let agent = agent_with(file, file.token.clone(), pass_keys);
        Some(Self { file_code: named.code, agent: Some(Arc::new(agent)), generation })
    }
}

/// The agent of the same corp with this token and these keys.
fn agent_with(file: &Agent, token: AgentToken, pass_keys: Arc<AgentPassKeys>) -> Agent {
    let (name, corpid) = (file.name.clone(), file.corpid.clone());
    Agent {
        settings: file.settings.clone(),
        rate_limiter: file.rate_limiter.clone(),
        capture_switch: file.capture_switch.clone(),
        pass_keys,
        ..Agent::new(name, corpid, file.origin.clone(), token, file.role.clone())
    }
}

/// What outlives a reload of a suite.
pub struct SuiteState {
    /// The newest suite_ticket.
    pub ticket: Arc<SuiteTicket>,
    /// The entry of its token.
    pub(super) token: Arc<ArcSwap<CachedToken>>,
    /// The authorised corps without a name of their own, by corpid.
    pub(super) corps: DashMap<Box<str>, Arc<Agent>, RandomState>,
    /// Those that stand in the state with a name of their own, by corpid.
    pub(super) named: DashMap<Box<str>, NamedCorp, RandomState>,
    /// What the state says of corps with a name of their own, by corpid.
    pub(super) overridden: DashMap<Box<str>, OverriddenCorp, RandomState>,
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
        if let Some(named) = self.file_corps.get(corpid) {
            return self.in_force(named);
        }
        // Most have no name of their own.
        match self.state.corps.get(corpid).map(|corp| corp.clone()) {
            Some(corp) => Some(corp),
            None => self.named(corpid).and_then(|named| self.in_force(&named)),
        }
    }

    /// The corp with its newest permanent code; `None` if it withdrew its authorisation.
    pub(super) fn in_force(&self, named: &NamedCorp) -> Option<Arc<Agent>> {
        let overridden = self.state.overridden.get(&*named.agent.corpid);
        match overridden.filter(|overridden| overridden.file_code == named.code) {
            Some(overridden) => overridden.agent.clone(),
            None => Some(named.agent.clone()),
        }
    }

    /// Whether the file names this corp.
    pub fn is_file_corp(&self, corpid: &str) -> bool {
        self.file_corps.contains_key(corpid)
    }

    /// The hash of the permanent code with the name of this corp, and the generation of the agent, if it has a name.
    pub fn named_code(&self, corpid: &str) -> Option<(KeyHash, u64)> {
        self.named(corpid).map(|named| {
            let agent = self.in_force(&named).unwrap_or(named.agent);
            (named.code, agent.pass_keys.generation())
        })
    }

    /// All authorised corps, in no order.
    pub fn corps(&self) -> Vec<Arc<Agent>> {
        let in_state = self.state.corps.iter().filter(|corp| !self.is_file_corp(&corp.corpid));
        let in_file = self.file_corps.values().filter_map(|named| self.in_force(named));
        let named = self.state.named.iter().filter(|named| !self.is_file_corp(&named.agent.corpid));
        let named = named.filter_map(|named| self.in_force(&named));
        in_file.chain(named).chain(in_state.map(|corp| corp.clone())).collect()
    }

    /// The corps that the file names and that withdrew their authorisation.
    pub fn cancelled_corps(&self) -> impl Iterator<Item = &Arc<Agent>> {
        self.file_corps.values().filter(|named| self.in_force(named).is_none()).map(|named| &named.agent)
    }

    /// The corp with this corpid, if the file names it and it withdrew its authorisation.
    pub fn cancelled_corp(&self, corpid: &str) -> Option<&Arc<Agent>> {
        let named = self.file_corps.get(corpid).filter(|named| self.in_force(named).is_none());
        named.map(|named| &named.agent)
    }

    /// Puts in force what the state says of a corp: of one with a name of its own `overriding`, of another one `corp`.
    pub fn set_corp(
        &self,
        corpid: &str,
        corp: Option<CorpCredentials>,
        overriding: Option<CorpOverride>,
        (tokens, limits): (&TokenCache, &RateLimiterFactory),
    ) {
        let named = self.named(corpid);
        let overriding = named.as_ref().zip(overriding);
        let agent = overriding.and_then(|(named, known)| match known.file_code == named.code {
            true => Some(self.override_corp(named, known, tokens)),
            false => OverriddenCorp::with_generation(named, known.generation),
        });
        let is_cancelled = agent.as_ref().is_some_and(|overridden| overridden.agent.is_none());
        let replaced = match agent {
            Some(overridden) => self.state.overridden.insert(corpid.into(), overridden),
            None => self.state.overridden.remove(corpid).map(|(_, overridden)| overridden),
        };
        let was_cancelled = replaced.as_ref().is_some_and(|overridden| overridden.agent.is_none());
        let replaced = replaced.and_then(|replaced| replaced.agent);
        if is_cancelled && !was_cancelled {
            let named = named.iter().map(|named| &named.agent);
            named.chain(&replaced).for_each(|gone| discard_entries(gone, tokens));
        }
        let of_state = match corp {
            Some(_) if named.is_some() => self.state.corps.remove(corpid).map(|(_, corp)| corp),
            Some(corp) => {
                self.insert_corp(corp, tokens, limits);
                None
            }
            None => {
                self.remove_corp(corpid, tokens);
                None
            }
        };
        let present = self.corp(corpid);
        let is_gone =
            |corp: &Arc<Agent>| !present.as_ref().is_some_and(|one| one.token.is_same_as(&corp.token));
        replaced.into_iter().chain(of_state).filter(is_gone).for_each(|gone| remove_entries(&gone, tokens));
    }

    fn override_corp(&self, named: &NamedCorp, known: CorpOverride, tokens: &TokenCache) -> OverriddenCorp {
        let file_code = known.file_code;
        let Some(renewed) = known.renewed else {
            return OverriddenCorp { file_code, agent: None, generation: known.generation };
        };
        let (file, generation) = (&named.agent, known.generation);
        let credentials = corp_credentials(file.corpid.clone(), renewed.permanent_code, &renewed.origin);
        let spec = TokenSpec { agent: &file.name, counted_as: None, credentials, kind: self.corp_kind() };
        let token = AgentToken::Fixed(tokens.entry_of(spec, true));
        let previous =
            self.state.overridden.get(&*file.corpid).filter(|previous| previous.generation == generation);
        let previous = previous.and_then(|previous| previous.agent.clone());
        // A reset of the code leaves passes as they are; those from before a cancellation stay void.
        let previous = previous.or_else(|| (generation == file.pass_keys.generation()).then(|| file.clone()));
        let pass_keys = match &previous {
            Some(previous) if previous.token.is_same_as(&token) => previous.pass_keys.clone(),
            _ => {
                let before = previous.as_ref().map(|previous| (&*previous.pass_keys, &previous.token));
                file.pass_keys.renewed(generation, &token, before).shared()
            }
        };
        let agent = agent_with(file, token, pass_keys);
        OverriddenCorp { file_code, agent: Some(Arc::new(agent)), generation }
    }

    /// Adds an authorised corp, or gives one its new permanent code.
    fn insert_corp(&self, corp: CorpCredentials, tokens: &TokenCache, limits: &RateLimiterFactory) {
        let corpid = corp.corpid.clone();
        let previous = self.state.corps.get(&*corpid).map(|corp| corp.clone());
        let agent = self.build_corp(corp, tokens, limits, previous.as_deref());
        let replaced = self.state.corps.insert(corpid.into(), agent.clone());
        if let Some(replaced) = replaced.filter(|replaced| !replaced.token.is_same_as(&agent.token)) {
            remove_entries(&replaced, tokens);
        }
    }

    /// Removes a corp that withdrew its authorisation; its passes are void.
    fn remove_corp(&self, corpid: &str, tokens: &TokenCache) {
        if let Some((_, corp)) = self.state.corps.remove(corpid) {
            discard_entries(&corp, tokens);
        }
    }

    /// The entry of its token.
    pub fn token(&self) -> Arc<CachedToken> {
        self.state.token.load_full()
    }

    /// The entry of the token of a corp with a name of its own.
    pub fn named_corp_token(
        &self,
        name: &SharedStr,
        credentials: Credentials,
        tokens: &TokenCache,
    ) -> Arc<CachedToken> {
        tokens
            .entry_of(TokenSpec { agent: name, counted_as: None, credentials, kind: self.corp_kind() }, false)
    }

    /// The entry of the token of a corp without a name of its own.
    pub fn corp_token(
        &self,
        name: &SharedStr,
        credentials: Credentials,
        tokens: &TokenCache,
    ) -> Arc<CachedToken> {
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
        let name = SharedStr::from(format!("{}:{corpid}", self.name()));
        let corpid = SharedStr::from(corpid);
        let credentials = corp_credentials(corpid.clone(), permanent_code, &origin);
        let token = AgentToken::Fixed(self.corp_token(&name, credentials, tokens));
        let limiter = previous.and_then(|previous| previous.rate_limiter.as_ref());
        let limit = settings.limit.or(self.config.limit_per_corp);
        let rate_limiter = super::reuse_or_create_limiter(limits, limit, limiter, || format!("agent:{name}"));
        let corp_pass_key = Some(Box::new(PassKey::derive(&corpid, &pass_secret, 0)));
        let capture_switch = previous.map(|previous| previous.capture_switch.clone()).unwrap_or_default();
        let agent = Agent::new(name, corpid, origin, token, AgentRole::Corp { suite: self.name().into() });
        Arc::new(Agent { settings: settings.shared(), rate_limiter, capture_switch, corp_pass_key, ..agent })
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
pub fn corp_credentials(
    corpid: impl Into<SharedStr>,
    permanent_code: Masked,
    origin: &Origin,
) -> Credentials {
    Credentials { generation: origin.generation(), ..Credentials::new(corpid, permanent_code) }
}

/// Forgets the token of a corp that is gone, in the store too.
fn discard_entries(corp: &Agent, tokens: &TokenCache) {
    corp.token.entries().iter().for_each(|entry| tokens.discard(entry));
}

/// Forgets the token of a corp.
fn remove_entries(corp: &Agent, tokens: &TokenCache) {
    corp.token.entries().iter().for_each(|entry| tokens.remove(entry));
}
