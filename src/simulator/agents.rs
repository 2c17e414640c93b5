//! The agents with their secrets, tokens and tickets, and the checks of these.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::random;

/// Length of a token, as at WeCom.
const TOKEN_CHARS: usize = 214;

/// An agent (application) of the simulated WeCom.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulatedAgent {
    /// Its name in methods and at the control address.
    pub name: String,
    /// The corpid of its company.
    pub corpid: String,
    /// Its secret.
    pub secret: String,
    /// Its agentid.
    pub agentid: u64,
}

impl fmt::Debug for SimulatedAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Agent({}, {}, {})", self.name, self.corpid, self.agentid)
    }
}

impl SimulatedAgent {
    /// An agent of the company `ww1234567890abcdef`.
    pub fn new(name: &str, secret: &str, agentid: u64) -> Self {
        let corpid = "ww1234567890abcdef".to_owned();
        Self { name: name.to_owned(), corpid, secret: secret.to_owned(), agentid }
    }
}

/// What an agent stands for, which decides where its secret and its tokens serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AgentKind {
    /// An application, or a customized app in one corp: gettoken, and `access_token` on ordinary paths.
    Application,
    /// A third-party app in one corp: `access_token` on ordinary paths.
    ThirdPartyCorp,
    /// A service provider: `provider_access_token`.
    Provider,
    /// A suite: `suite_access_token`.
    Suite,
}

/// No agent has this name.
#[derive(Debug, thiserror::Error)]
#[error("unknown agent {name:?}; known agents: {}", known.join(", "))]
pub struct UnknownAgent {
    name: String,
    known: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenValidity {
    Good,
    Revoked,
    Expired,
}

struct IssuedToken {
    value: String,
    agent: usize,
    issued_at: Instant,
    validity: TokenValidity,
}

struct AgentState {
    agent: SimulatedAgent,
    kind: AgentKind,
    /// Serial number of its newest token.
    newest_token: Option<u64>,
    reissue_same_token: bool,
    gettoken_count: u64,
    /// The ticket of each kind, and its time of issue.
    tickets: HashMap<&'static str, (String, Instant)>,
}

/// All agents. Tokens have serial numbers from 1.
pub(super) struct AgentRegistry {
    agents: Vec<AgentState>,
    index_by_name: HashMap<String, usize>,
    tokens: Vec<IssuedToken>,
    serial_by_value: HashMap<String, u64>,
    token_lifetime: Duration,
    gettoken_limit: Option<u32>,
    issued: IssuedTokens,
}

/// The tokens issued by a simulator, in order. Clones share the list and do not keep the simulator running.
#[derive(Clone, Default)]
pub struct IssuedTokens(Arc<Mutex<Vec<String>>>);

impl IssuedTokens {
    /// The tokens from index `from` on.
    pub fn since(&self, from: usize) -> Vec<String> {
        self.0.lock().get(from..).map(<[String]>::to_vec).unwrap_or_default()
    }
}

impl AgentRegistry {
    pub(super) fn new(agents: Vec<SimulatedAgent>, lifetime: Duration, gettoken_limit: Option<u32>) -> Self {
        let mut registry = Self {
            agents: Vec::new(),
            index_by_name: HashMap::new(),
            tokens: Vec::new(),
            serial_by_value: HashMap::new(),
            token_lifetime: lifetime,
            gettoken_limit,
            issued: IssuedTokens::default(),
        };
        agents.into_iter().for_each(|agent| registry.add(agent));
        registry
    }

    /// Adds an agent. Replaces the agent of the same name, whose tokens are revoked.
    pub(super) fn add(&mut self, agent: SimulatedAgent) {
        self.add_of_kind(agent, AgentKind::Application);
    }

    /// The same for an agent of any kind; returns its index.
    pub(super) fn add_of_kind(&mut self, agent: SimulatedAgent, kind: AgentKind) -> usize {
        if let Some(at) = self.index_by_name.get(&agent.name).copied() {
            self.invalidate_tokens(at, TokenValidity::Revoked);
            (self.agents[at].agent, self.agents[at].kind) = (agent, kind);
            return at;
        }
        let state = AgentState {
            agent,
            kind,
            newest_token: None,
            reissue_same_token: false,
            gettoken_count: 0,
            tickets: HashMap::new(),
        };
        self.index_by_name.insert(state.agent.name.clone(), self.agents.len());
        self.agents.push(state);
        self.agents.len() - 1
    }

    /// Adds a text to the issued secrets.
    pub(super) fn record_issued(&self, secret: &str) {
        self.issued.0.lock().push(secret.to_owned());
    }

    /// The agent of this kind with this corpid (for a suite its id).
    pub(super) fn find_by_corpid(&self, corpid: &str, kind: AgentKind) -> Option<usize> {
        self.agents.iter().position(|state| state.kind == kind && state.agent.corpid == corpid)
    }

    /// Whether this is the agent's secret.
    pub(super) fn has_secret(&self, agent: usize, secret: &str) -> bool {
        self.agents[agent].agent.secret == secret
    }

    /// The corpid of an agent.
    pub(super) fn corpid(&self, agent: usize) -> &str {
        &self.agents[agent].agent.corpid
    }

    /// The agentid of an agent.
    pub(super) fn agentid(&self, agent: usize) -> u64 {
        self.agents[agent].agent.agentid
    }

    /// What an agent stands for.
    pub(super) fn kind(&self, agent: usize) -> AgentKind {
        self.agents[agent].kind
    }

    pub(super) fn issued(&self) -> IssuedTokens {
        self.issued.clone()
    }

    pub(super) fn find(&self, name: &str) -> Result<usize, UnknownAgent> {
        self.index_by_name.get(name).copied().ok_or_else(|| UnknownAgent {
            name: name.to_owned(),
            known: self.agents.iter().map(|state| state.agent.name.clone()).collect(),
        })
    }

    pub(super) fn name(&self, agent: usize) -> &str {
        &self.agents[agent].agent.name
    }

    /// Checks that this agentid is the agent's own: 301002 if it belongs to another agent, 40056 if it is unknown.
    pub(super) fn check_agentid(&self, agent: usize, agentid: &str) -> Result<u64, i64> {
        let wanted: u64 = agentid.parse().map_err(|_| 40056)?;
        match self.agents.iter().position(|state| state.agent.agentid == wanted) {
            None => Err(40056),
            Some(_) if self.agents[agent].agent.agentid == wanted => Ok(wanted),
            Some(_) => Err(301_002),
        }
    }

    pub(super) fn gettoken_count(&self, agent: usize) -> u64 {
        self.agents[agent].gettoken_count
    }

    pub(super) fn token_serial(&self, text: &str) -> Option<u64> {
        self.serial_by_value.get(text).copied()
    }

    pub(super) fn token_owner(&self, serial: u64) -> usize {
        self.tokens[serial as usize - 1].agent
    }

    /// Checks the access_token of a call.
    pub(super) fn check_token(&self, text: Option<&str>) -> Result<(), i64> {
        let serves = |kind| matches!(kind, AgentKind::Application | AgentKind::ThirdPartyCorp);
        self.check_token_of_kind(text, serves, [41001, 40014, 42001])
    }

    /// Checks the token of a call, which must be one of an agent whose kind `serves`. The errcodes: missing, wrong,
    /// expired.
    pub(super) fn check_token_of_kind(
        &self,
        text: Option<&str>,
        serves: impl Fn(AgentKind) -> bool,
        [missing, wrong, expired]: [i64; 3],
    ) -> Result<(), i64> {
        let Some(text) = text.filter(|text| !text.is_empty()) else {
            return Err(missing);
        };
        let serial =
            self.token_serial(text).filter(|serial| serves(self.agents[self.token_owner(*serial)].kind));
        match serial.map(|serial| self.token_validity(serial)) {
            Some(TokenValidity::Good) => Ok(()),
            Some(TokenValidity::Expired) => Err(expired),
            Some(TokenValidity::Revoked) | None => Err(wrong),
        }
    }

    /// The agent with this corpid and secret.
    pub(super) fn authenticate(&self, corpid: Option<&str>, secret: Option<&str>) -> Result<usize, i64> {
        let corpid = corpid.filter(|id| !id.is_empty()).ok_or(41002)?;
        let secret = secret.filter(|secret| !secret.is_empty()).ok_or(41004)?;
        if !self.agents.iter().any(|state| state.agent.corpid == corpid) {
            return Err(40013);
        }
        let matches = |state: &AgentState| {
            state.kind == AgentKind::Application
                && state.agent.corpid == corpid
                && state.agent.secret == secret
        };
        self.agents.iter().position(matches).ok_or(40001)
    }

    /// Counts a gettoken call of this agent; fails with 45009 beyond the limit.
    pub(super) fn count_gettoken(&mut self, agent: usize) -> Result<(), i64> {
        self.agents[agent].gettoken_count += 1;
        let over =
            self.gettoken_limit.is_some_and(|limit| self.agents[agent].gettoken_count > u64::from(limit));
        if over { Err(45009) } else { Ok(()) }
    }

    /// The agent's token, a new one if the last is invalid, and the full lifetime in seconds.
    pub(super) fn issue_token(&mut self, agent: usize) -> (String, u64) {
        let current = self.agents[agent].newest_token.filter(|serial| {
            self.agents[agent].reissue_same_token || self.token_validity(*serial) == TokenValidity::Good
        });
        let serial = current.unwrap_or_else(|| self.create_token(agent));
        let seconds = self.token_lifetime.as_secs() + u64::from(self.token_lifetime.subsec_nanos() > 0);
        (self.tokens[serial as usize - 1].value.clone(), seconds.max(1))
    }

    /// The agent's ticket of this kind; a new one two hours after the last.
    pub(super) fn ticket(&mut self, agent: usize, kind: &'static str) -> String {
        const LIFETIME: Duration = Duration::from_secs(7200);
        let tickets = &mut self.agents[agent].tickets;
        tickets.retain(|_, (_, issued_at)| issued_at.elapsed() < LIFETIME);
        tickets.entry(kind).or_insert_with(|| (random::url_safe_text(86), Instant::now())).0.clone()
    }

    pub(super) fn revoke_tokens(&mut self, agent: usize) {
        self.invalidate_tokens(agent, TokenValidity::Revoked);
    }

    pub(super) fn expire_tokens(&mut self, agent: usize) {
        self.invalidate_tokens(agent, TokenValidity::Expired);
    }

    /// Changes the secret; tokens and tickets issued for the old one are revoked.
    pub(super) fn change_secret(&mut self, agent: usize, secret: &str) {
        self.invalidate_tokens(agent, TokenValidity::Revoked);
        self.agents[agent].tickets.clear();
        self.agents[agent].agent.secret = secret.to_owned();
    }

    pub(super) fn set_reissue_same_token(&mut self, agent: usize, on: bool) {
        self.agents[agent].reissue_same_token = on;
    }

    /// Clears the settings and counts of the agents; agents, secrets and tokens stay.
    pub(super) fn reset(&mut self) {
        for state in &mut self.agents {
            state.reissue_same_token = false;
            state.gettoken_count = 0;
        }
    }

    /// The agents and their newest tokens, without secrets and token values.
    pub(super) fn describe(&self) -> Vec<Value> {
        let token = |serial: u64| {
            let token = &self.tokens[serial as usize - 1];
            let remaining = self.token_lifetime.saturating_sub(token.issued_at.elapsed());
            json!({
                "serial": serial,
                "condition": format!("{:?}", self.token_validity(serial)).to_lowercase(),
                "age_s": token.issued_at.elapsed().as_secs(),
                "left_s": remaining.as_secs(),
            })
        };
        let describe = |state: &AgentState| {
            json!({
                "name": state.agent.name,
                "corpid": state.agent.corpid,
                "agentid": state.agent.agentid,
                "gettokens": state.gettoken_count,
                "same_token": state.reissue_same_token,
                "token": state.newest_token.map(token),
            })
        };
        self.agents.iter().map(describe).collect()
    }

    fn token_validity(&self, serial: u64) -> TokenValidity {
        let token = &self.tokens[serial as usize - 1];
        match token.validity {
            TokenValidity::Good if token.issued_at.elapsed() >= self.token_lifetime => TokenValidity::Expired,
            validity => validity,
        }
    }

    fn invalidate_tokens(&mut self, agent: usize, validity: TokenValidity) {
        let is_good =
            |token: &&mut IssuedToken| token.agent == agent && token.validity == TokenValidity::Good;
        self.tokens.iter_mut().filter(is_good).for_each(|token| token.validity = validity);
    }

    fn create_token(&mut self, agent: usize) -> u64 {
        let value = random::url_safe_text(TOKEN_CHARS);
        self.issued.0.lock().push(value.clone());
        self.tokens.push(IssuedToken {
            value: value.clone(),
            agent,
            issued_at: Instant::now(),
            validity: TokenValidity::Good,
        });
        let serial = self.tokens.len() as u64;
        self.serial_by_value.insert(value, serial);
        self.agents[agent].newest_token = Some(serial);
        serial
    }
}
