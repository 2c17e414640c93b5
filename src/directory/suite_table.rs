//! The suites, providers and corps that the files name.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use foldhash::fast::RandomState;

use super::{
    Agent, AgentRole, Client, Directory, Shared, Suite, SuiteState, corp_credentials,
    named_corps::{CorpNames, NamedCorp},
    reuse_or_create_limiter,
};
use crate::{
    config::{self, Origin},
    text::SharedStr,
    tokens::{AgentToken, CachedToken, Credentials, TokenSpec, kinds::TokenKind},
};

/// The suites, providers and corps that the files name.
#[derive(Default)]
pub(super) struct SuiteTable {
    /// Those of suites and providers.
    agents: Vec<Arc<Agent>>,
    by_name: HashMap<String, Arc<Agent>, RandomState>,
    /// Those of corps that stand in the state with a name of their own.
    names_in_state: Arc<CorpNames>,
}

impl SuiteTable {
    /// Builds the table; what did not change is taken from the table before.
    pub(super) fn build(config: config::SuitesConfig, shared: &Shared<'_>, before: &Self) -> Self {
        let config::SuitesConfig { providers, suites, corps } = config;
        let mut table = Self { names_in_state: before.names_in_state.clone(), ..Self::default() };
        for (name, provider) in providers {
            let agent = shared.provider(provider, before.by_name.get(&name));
            table.agents.push(agent);
        }
        let mut corps_by_suite: HashMap<String, Vec<_>> = HashMap::new();
        for corp in corps.into_values() {
            corps_by_suite.entry(corp.suite.clone()).or_default().push(corp);
        }
        for (name, suite) in suites {
            let corps = corps_by_suite.remove(&name).unwrap_or_default();
            let (agent, corps) = shared.suite(suite, corps, before.by_name.get(&name));
            table.agents.push(agent);
            table.by_name.extend(corps.into_iter().map(|corp| (corp.name.to_string(), corp)));
        }
        table.by_name.extend(table.agents.iter().map(|agent| (agent.name.to_string(), agent.clone())));
        table.release_tokens_of(before, shared);
        table
    }

    /// Forgets the tokens that only the table before had.
    fn release_tokens_of(&self, before: &Self, shared: &Shared<'_>) {
        for (name, agent) in &before.by_name {
            let is_kept = self.by_name.get(name).is_some_and(|kept| kept.token.is_same_as(&agent.token));
            if !is_kept {
                agent.token.entries().iter().for_each(|entry| shared.tokens.remove(entry));
            }
        }
    }

    /// The agents of suites and providers.
    pub(super) fn agents(&self) -> &[Arc<Agent>] {
        &self.agents
    }

    /// The suites.
    pub(super) fn suites(&self) -> impl Iterator<Item = &Arc<Suite>> {
        self.agents.iter().filter_map(|agent| agent.suite())
    }

    /// The suite, provider or corp of this name; `SUITE:CORPID` names an authorised corp.
    pub(super) fn find(&self, name: &str) -> Option<Arc<Agent>> {
        if self.agents.is_empty() {
            return None;
        }
        match self.by_name.get(name) {
            Some(agent) => match &agent.role {
                // The state may know more of it than the file.
                AgentRole::Corp { suite } => self.suite(suite)?.corp(&agent.corpid),
                _ => Some(agent.clone()),
            },
            None => match name.split_once(':') {
                Some((suite, corpid)) => self.suite(suite)?.corp(corpid),
                None => {
                    let (suite, corpid) = self.names_in_state.get(name)?.clone();
                    self.suite(&suite)?.corp(&corpid).filter(|corp| corp.name == name)
                }
            },
        }
    }

    pub(super) fn names_in_state(&self) -> &CorpNames {
        &self.names_in_state
    }

    fn suite(&self, name: &str) -> Option<&Arc<Suite>> {
        self.by_name.get(name)?.suite()
    }

    /// The corp of this name, if the file names it and it withdrew its authorisation.
    fn find_cancelled(&self, name: &str) -> Option<&Arc<Agent>> {
        let (suite, corpid) = match self.by_name.get(name) {
            Some(agent) => match &agent.role {
                AgentRole::Corp { suite } => (&**suite, &*agent.corpid),
                _ => return None,
            },
            None => name.split_once(':')?,
        };
        self.suite(suite)?.cancelled_corp(corpid)
    }
}

/// Lookups of suites, providers and corps.
impl Directory {
    /// The agent, suite, provider or corp of this name; `SUITE:CORPID` names an authorised corp. Checks no permission.
    #[inline]
    pub fn find_agent(&self, name: &str) -> Option<Arc<Agent>> {
        self.agent_by_name(name).cloned().or_else(|| self.suites.find(name))
    }

    /// The authorised corp of this name, if the file names it and it withdrew its authorisation: it is no agent then.
    pub fn find_cancelled_corp(&self, name: &str) -> Option<&Arc<Agent>> {
        self.suites.find_cancelled(name)
    }

    /// The corp of this suite with this corpid; also one that the file names and that withdrew its authorisation.
    pub fn find_corp(&self, suite: &str, corpid: &str) -> Option<Arc<Agent>> {
        let suite = self.suite_by_name(suite)?;
        suite.corp(corpid).or_else(|| suite.cancelled_corp(corpid).cloned())
    }

    /// Whether an agent is such a corp.
    pub fn is_cancelled(&self, agent: &Agent) -> bool {
        matches!(agent.role, AgentRole::Corp { .. }) && self.find_cancelled_corp(&agent.name).is_some()
    }

    /// All corps, in no order; also those that the file names and that withdrew their authorisation.
    pub fn corps(&self) -> Vec<Arc<Agent>> {
        let corps = |suite: &Arc<Suite>| {
            let mut corps = suite.corps();
            corps.extend(suite.cancelled_corps().cloned());
            corps
        };
        self.suites.suites().flat_map(corps).collect()
    }

    /// Whether a client may list this name: an agent, a suite, a provider, a suite's corps (`crm:*`), or one of them, which
    /// need not be there yet.
    pub fn may_list(&self, name: &str) -> bool {
        let is_corp_name = |(suite, corpid): (&str, &str)| {
            self.suite_by_name(suite).is_some() && (corpid == "*" || config::is_corpid(corpid))
        };
        self.find_agent(name).is_some()
            || self.find_cancelled_corp(name).is_some()
            || name.split_once(':').is_some_and(is_corp_name)
    }

    /// The authorised corps with this corpid, one for each suite, that the client may use.
    pub fn allowed_corps(&self, corpid: &str, client: &Client) -> Vec<Arc<Agent>> {
        let corps = self.suites.suites().filter_map(|suite| suite.corp(corpid));
        corps.filter(|corp| client.may_use_agent(corp)).collect()
    }

    /// Whether an agent is a corp of a template of customized apps, whose token comes from gettoken.
    pub fn is_of_customized_template(&self, agent: &Agent) -> bool {
        match &agent.role {
            AgentRole::Corp { suite } => {
                self.suite_by_name(suite).is_some_and(|suite| suite.is_customized_template())
            }
            _ => false,
        }
    }

    /// Whether any suite has an authorised corp with this corpid.
    pub fn has_corp(&self, corpid: &str) -> bool {
        self.suites.suites().any(|suite| suite.corp(corpid).is_some())
    }

    /// Where the suite, provider or corp of this name stands in a file.
    pub(super) fn suite_origin(&self, name: &str) -> Option<Origin> {
        let found = self.suites.find(name);
        let agent = found.as_ref().or_else(|| self.find_cancelled_corp(name))?;
        Some(agent.origin.clone()).filter(Origin::is_file)
    }

    /// Whether there are suites or providers.
    pub fn has_suites(&self) -> bool {
        !self.suites.agents().is_empty()
    }

    /// The agents of suites and providers.
    pub fn suites_and_providers(&self) -> &[Arc<Agent>] {
        self.suites.agents()
    }

    /// The suite of this name.
    pub fn suite_by_name(&self, name: &str) -> Option<Arc<Suite>> {
        self.suites.find(name)?.suite().cloned()
    }
}

impl Shared<'_> {
    /// The agent of a provider.
    fn provider(&self, config: config::ProviderConfig, previous: Option<&Arc<Agent>>) -> Arc<Agent> {
        let config::ProviderConfig { name, corpid, secret, origin } = config;
        let (name, corpid) = (SharedStr::from(name), SharedStr::from(corpid));
        let credentials = Credentials::new(corpid.clone(), secret);
        let spec = TokenSpec { agent: &name, counted_as: None, credentials, kind: TokenKind::Provider };
        let token = self.tokens.entry_of(spec, previous.is_some());
        Arc::new(self.agent(name, corpid, token, (AgentRole::Provider, origin), previous))
    }

    /// The agent of a suite, and the agents of its corps that the file names.
    fn suite(
        &self,
        config: config::SuiteConfig,
        corps: Vec<config::CorpConfig>,
        previous: Option<&Arc<Agent>>,
    ) -> (Arc<Agent>, Vec<Arc<Agent>>) {
        let before = previous.and_then(|previous| previous.suite());
        let before = before.filter(|before| before.config.suite_id == config.suite_id);
        let ticket = before.map_or_else(Arc::default, |before| before.state.ticket.clone());
        let (name, suite_id) = (SharedStr::from(&*config.name), SharedStr::from(&*config.suite_id));
        let credentials = Credentials::new(suite_id.clone(), config.secret.clone());
        let kind = TokenKind::Suite(ticket.clone());
        let spec = TokenSpec { agent: &name, counted_as: None, credentials, kind };
        let token = self.tokens.entry_of(spec, previous.is_some());
        let state = match before {
            Some(before) => before.state.clone(),
            None => Arc::new(SuiteState {
                ticket,
                token: Arc::new(ArcSwap::new(token.clone())),
                corps: DashMap::default(),
                named: DashMap::default(),
                overridden: DashMap::default(),
            }),
        };
        state.token.store(token.clone());
        let origin = config.origin.clone();
        let mut suite = Suite { config, state, file_corps: HashMap::default() };
        for corp in corps {
            let (corpid, code) = (corp.corpid.clone(), corp.permanent_code.clone());
            // Passes from before a cancellation stay void: nothing is taken over.
            let previous = before.and_then(|before| {
                before.file_corps.get(&corpid).filter(|named| before.in_force(named).is_some())
            });
            let agent = self.named_corp(&suite, corp, previous.map(|previous| &previous.agent));
            suite.file_corps.insert(corpid, NamedCorp::new(agent, &code));
        }
        let corps = suite.file_corps.values().map(|corp| corp.agent.clone()).collect();
        let role = (AgentRole::Suite(Arc::new(suite)), origin);
        (Arc::new(self.agent(name, suite_id, token, role, previous)), corps)
    }

    /// A corp with a name of its own.
    pub(super) fn named_corp(
        &self,
        suite: &Suite,
        corp: config::CorpConfig,
        previous: Option<&Arc<Agent>>,
    ) -> Arc<Agent> {
        let config::CorpConfig { name, corpid, permanent_code, settings, origin, .. } = corp;
        let (name, corpid) = (SharedStr::from(name), SharedStr::from(corpid));
        let credentials = corp_credentials(corpid.clone(), permanent_code, &origin);
        let spec = TokenSpec { agent: &name, counted_as: None, credentials, kind: suite.corp_kind() };
        let token = self.tokens.entry_of(spec, previous.is_some());
        let role = (AgentRole::Corp { suite: suite.name().into() }, origin);
        let agent = self.agent(name, corpid, token, role, previous);
        let limiter = previous.and_then(|previous| previous.rate_limiter.as_ref());
        let limit = settings.limit.or(suite.config.limit_per_corp);
        let rate_limiter =
            reuse_or_create_limiter(self.limits, limit, limiter, || format!("agent:{}", agent.name));
        // Before the state is applied to the new directory.
        let since_cancellation = suite.state.overridden.get(&*agent.corpid).map(|known| known.generation);
        let generation = since_cancellation.filter(|_| agent.origin.generation() == 0);
        let pass_keys = match generation {
            Some(generation) => agent.pass_keys.of_generation(generation, &agent.token),
            None => agent.pass_keys.clone(),
        };
        Arc::new(Agent { settings: settings.shared(), rate_limiter, pass_keys, ..agent })
    }

    fn agent(
        &self,
        name: SharedStr,
        corpid: SharedStr,
        entry: Arc<CachedToken>,
        (role, origin): (AgentRole, Origin),
        previous: Option<&Arc<Agent>>,
    ) -> Agent {
        let token = AgentToken::Fixed(entry);
        let (pass_keys, capture_switch) = Agent::take_over(self, &origin, &token, previous);
        Agent { capture_switch, pass_keys, ..Agent::new(name, corpid, origin, token, role) }
    }
}
