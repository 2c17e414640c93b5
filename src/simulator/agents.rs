//! The agents, their secrets and tokens: who is let in with what.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::random;

/// A token is as long as those of WeCom.
const TOKEN_CHARS: usize = 214;

/// An application of the simulated WeCom.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulatedAgent {
    /// The name by which the control address knows it.
    pub name: String,
    /// The id of its company.
    pub corpid: String,
    /// Its secret.
    pub secret: String,
    /// Its number.
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

/// No agent has this name.
#[derive(Debug)]
pub struct UnknownAgent {
    name: String,
    known: Vec<String>,
}

impl fmt::Display for UnknownAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no agent is named {:?}; there are: {}", self.name, self.known.join(", "))
    }
}

impl std::error::Error for UnknownAgent {}

/// Why a call is not let in: WeCom's errcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ErrcodeError(pub(super) i64);

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
    /// The serial of its newest token.
    newest_token: Option<u64>,
    reissue_same_token: bool,
    gettoken_count: u64,
    /// A ticket of each kind, and when it was made.
    tickets: HashMap<&'static str, (String, Instant)>,
}

/// All agents. Tokens are numbered from 1 on.
pub(super) struct AgentRegistry {
    agents: Vec<AgentState>,
    tokens: Vec<IssuedToken>,
    serial_by_value: HashMap<String, u64>,
    token_lifetime: Duration,
    gettoken_limit: Option<u32>,
    issued: IssuedTokens,
}

/// The tokens that a simulator has issued, in order. Clones share them, and keep no simulator running.
#[derive(Clone, Default)]
pub struct IssuedTokens(Arc<Mutex<Vec<String>>>);

impl IssuedTokens {
    /// Their texts, from the `from`th on.
    pub fn since(&self, from: usize) -> Vec<String> {
        self.lock().get(from..).map(<[String]>::to_vec).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AgentRegistry {
    pub(super) fn new(agents: Vec<SimulatedAgent>, lifetime: Duration, gettoken_limit: Option<u32>) -> Self {
        let mut all = Self {
            agents: Vec::new(),
            tokens: Vec::new(),
            serial_by_value: HashMap::new(),
            token_lifetime: lifetime,
            gettoken_limit,
            issued: IssuedTokens::default(),
        };
        agents.into_iter().for_each(|agent| all.add(agent));
        all
    }

    /// Adds an agent, or takes the place of the one with its name, whose tokens are then void.
    pub(super) fn add(&mut self, agent: SimulatedAgent) {
        if let Ok(at) = self.find(&agent.name) {
            self.invalidate_tokens(at, TokenValidity::Revoked);
            self.agents[at].agent = agent;
            return;
        }
        let member = AgentState {
            agent,
            newest_token: None,
            reissue_same_token: false,
            gettoken_count: 0,
            tickets: HashMap::new(),
        };
        self.agents.push(member);
    }

    pub(super) fn issued(&self) -> IssuedTokens {
        self.issued.clone()
    }

    pub(super) fn find(&self, name: &str) -> Result<usize, UnknownAgent> {
        self.agents.iter().position(|member| member.agent.name == name).ok_or_else(|| UnknownAgent {
            name: name.to_owned(),
            known: self.agents.iter().map(|member| member.agent.name.clone()).collect(),
        })
    }

    pub(super) fn name(&self, agent: usize) -> &str {
        &self.agents[agent].agent.name
    }

    /// Whether this agentid is the agent's own: 301002 where it is another app's, 40056 where it is nobody's.
    pub(super) fn check_agentid(&self, agent: usize, agentid: &str) -> Result<u64, ErrcodeError> {
        let wanted: u64 = agentid.parse().map_err(|_| ErrcodeError(40056))?;
        match self.agents.iter().position(|member| member.agent.agentid == wanted) {
            None => Err(ErrcodeError(40056)),
            Some(_) if self.agents[agent].agent.agentid == wanted => Ok(wanted),
            Some(_) => Err(ErrcodeError(301_002)),
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

    /// Whether this token lets a call in.
    pub(super) fn check_token(&self, text: Option<&str>) -> Result<(), ErrcodeError> {
        let Some(text) = text.filter(|text| !text.is_empty()) else {
            return Err(ErrcodeError(41001));
        };
        match self.token_serial(text).map(|serial| self.token_validity(serial)) {
            Some(TokenValidity::Good) => Ok(()),
            Some(TokenValidity::Expired) => Err(ErrcodeError(42001)),
            Some(TokenValidity::Revoked) | None => Err(ErrcodeError(40014)),
        }
    }

    /// Who asks for a token with this corpid and secret.
    pub(super) fn authenticate(
        &self,
        corpid: Option<&str>,
        secret: Option<&str>,
    ) -> Result<usize, ErrcodeError> {
        let corpid = corpid.filter(|id| !id.is_empty()).ok_or(ErrcodeError(41002))?;
        let secret = secret.filter(|secret| !secret.is_empty()).ok_or(ErrcodeError(41004))?;
        if !self.agents.iter().any(|member| member.agent.corpid == corpid) {
            return Err(ErrcodeError(40013));
        }
        let fits = |member: &AgentState| member.agent.corpid == corpid && member.agent.secret == secret;
        self.agents.iter().position(fits).ok_or(ErrcodeError(40001))
    }

    /// Counts a gettoken of this agent, refused beyond the limit.
    pub(super) fn count_gettoken(&mut self, agent: usize) -> Result<(), ErrcodeError> {
        self.agents[agent].gettoken_count += 1;
        let over =
            self.gettoken_limit.is_some_and(|limit| self.agents[agent].gettoken_count > u64::from(limit));
        if over { Err(ErrcodeError(45009)) } else { Ok(()) }
    }

    /// The agent's token, a new one if the last no longer serves, and its whole lifetime in seconds.
    pub(super) fn issue_token(&mut self, agent: usize) -> (String, u64) {
        let kept = self.agents[agent].newest_token.filter(|serial| {
            self.agents[agent].reissue_same_token || self.token_validity(*serial) == TokenValidity::Good
        });
        let serial = kept.unwrap_or_else(|| self.create_token(agent));
        let seconds = self.token_lifetime.as_secs() + u64::from(self.token_lifetime.subsec_nanos() > 0);
        (self.tokens[serial as usize - 1].value.clone(), seconds.max(1))
    }

    /// The agent's ticket of this kind, a new one after its two hours.
    pub(super) fn ticket(&mut self, agent: usize, kind: &'static str) -> String {
        const LIFETIME: Duration = Duration::from_secs(7200);
        let tickets = &mut self.agents[agent].tickets;
        tickets.retain(|_, (_, made)| made.elapsed() < LIFETIME);
        tickets.entry(kind).or_insert_with(|| (random::url_safe_text(86), Instant::now())).0.clone()
    }

    pub(super) fn revoke_tokens(&mut self, agent: usize) {
        self.invalidate_tokens(agent, TokenValidity::Revoked);
    }

    pub(super) fn expire_tokens(&mut self, agent: usize) {
        self.invalidate_tokens(agent, TokenValidity::Expired);
    }

    /// Changes the secret; tokens and tickets got with the old one are void.
    pub(super) fn change_secret(&mut self, agent: usize, secret: &str) {
        self.invalidate_tokens(agent, TokenValidity::Revoked);
        self.agents[agent].tickets.clear();
        self.agents[agent].agent.secret = secret.to_owned();
    }

    pub(super) fn set_reissue_same_token(&mut self, agent: usize, on: bool) {
        self.agents[agent].reissue_same_token = on;
    }

    /// Back to how it began, except that agents, secrets and tokens stay as they are.
    pub(super) fn reset(&mut self) {
        for member in &mut self.agents {
            member.reissue_same_token = false;
            member.gettoken_count = 0;
        }
    }

    /// The agents and their newest tokens, without secrets and values.
    pub(super) fn describe(&self) -> Vec<Value> {
        let token = |serial: u64| {
            let token = &self.tokens[serial as usize - 1];
            let left = self.token_lifetime.saturating_sub(token.issued_at.elapsed());
            json!({
                "serial": serial,
                "condition": format!("{:?}", self.token_validity(serial)).to_lowercase(),
                "age_s": token.issued_at.elapsed().as_secs(),
                "left_s": left.as_secs(),
            })
        };
        let describe = |member: &AgentState| {
            json!({
                "name": member.agent.name,
                "corpid": member.agent.corpid,
                "agentid": member.agent.agentid,
                "gettokens": member.gettoken_count,
                "same_token": member.reissue_same_token,
                "token": member.newest_token.map(token),
            })
        };
        self.agents.iter().map(describe).collect()
    }

    fn token_validity(&self, serial: u64) -> TokenValidity {
        let token = &self.tokens[serial as usize - 1];
        match token.validity {
            TokenValidity::Good if token.issued_at.elapsed() >= self.token_lifetime => TokenValidity::Expired,
            condition => condition,
        }
    }

    fn invalidate_tokens(&mut self, agent: usize, condition: TokenValidity) {
        let good = |token: &&mut IssuedToken| token.agent == agent && token.validity == TokenValidity::Good;
        self.tokens.iter_mut().filter(good).for_each(|token| token.validity = condition);
    }

    fn create_token(&mut self, agent: usize) -> u64 {
        let text = random::url_safe_text(TOKEN_CHARS);
        self.issued.lock().push(text.clone());
        self.tokens.push(IssuedToken {
            value: text.clone(),
            agent,
            issued_at: Instant::now(),
            validity: TokenValidity::Good,
        });
        let serial = self.tokens.len() as u64;
        self.serial_by_value.insert(text, serial);
        self.agents[agent].newest_token = Some(serial);
        serial
    }
}
