//! The agents, their secrets and tokens: who is let in with what.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::chance;

/// A token is as long as those of WeCom.
const TOKEN_CHARS: usize = 214;

/// An application of the simulated WeCom.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// The name by which the control address knows it.
    pub name: String,
    /// The id of its company.
    pub corpid: String,
    /// Its secret.
    pub secret: String,
    /// Its number.
    pub agentid: u64,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Agent({}, {}, {})", self.name, self.corpid, self.agentid)
    }
}

impl Agent {
    /// An agent of the company `ww1234567890abcdef`.
    pub fn new(name: &str, secret: &str, agentid: u64) -> Self {
        let corpid = "ww1234567890abcdef".to_owned();
        Self { name: name.to_owned(), corpid, secret: secret.to_owned(), agentid }
    }
}

/// No agent has this name.
#[derive(Debug)]
pub struct UnknownAgent {
    wanted: String,
    known: Vec<String>,
}

impl fmt::Display for UnknownAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no agent is named {:?}; there are: {}", self.wanted, self.known.join(", "))
    }
}

impl std::error::Error for UnknownAgent {}

/// Why a call is not let in: WeCom's errcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) i64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Good,
    Revoked,
    Expired,
}

struct Token {
    text: String,
    agent: usize,
    issued: Instant,
    condition: Condition,
}

struct Member {
    agent: Agent,
    /// The serial of its newest token.
    token: Option<u64>,
    same_token: bool,
    gettokens: u64,
    /// A ticket of each kind, and when it was made.
    tickets: HashMap<&'static str, (String, Instant)>,
}

/// All agents. Tokens are numbered from 1 on.
pub(super) struct Agents {
    members: Vec<Member>,
    tokens: Vec<Token>,
    by_text: HashMap<String, u64>,
    lifetime: Duration,
    gettoken_limit: Option<u32>,
    issued: Issued,
}

/// The tokens that a simulator has issued, in order. Clones share them, and keep no simulator running.
#[derive(Clone, Default)]
pub struct Issued(Arc<Mutex<Vec<String>>>);

impl Issued {
    /// Their texts, from the `from`th on.
    pub fn since(&self, from: usize) -> Vec<String> {
        self.tokens().get(from..).map(<[String]>::to_vec).unwrap_or_default()
    }

    fn tokens(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Agents {
    pub(super) fn new(agents: Vec<Agent>, lifetime: Duration, gettoken_limit: Option<u32>) -> Self {
        let mut all = Self {
            members: Vec::new(),
            tokens: Vec::new(),
            by_text: HashMap::new(),
            lifetime,
            gettoken_limit,
            issued: Issued::default(),
        };
        agents.into_iter().for_each(|agent| all.add(agent));
        all
    }

    /// Adds an agent, or takes the place of the one with its name, whose tokens are then void.
    pub(super) fn add(&mut self, agent: Agent) {
        if let Ok(at) = self.find(&agent.name) {
            self.spoil(at, Condition::Revoked);
            self.members[at].agent = agent;
            return;
        }
        let member = Member { agent, token: None, same_token: false, gettokens: 0, tickets: HashMap::new() };
        self.members.push(member);
    }

    pub(super) fn issued(&self) -> Issued {
        self.issued.clone()
    }

    pub(super) fn find(&self, name: &str) -> Result<usize, UnknownAgent> {
        self.members.iter().position(|member| member.agent.name == name).ok_or_else(|| UnknownAgent {
            wanted: name.to_owned(),
            known: self.members.iter().map(|member| member.agent.name.clone()).collect(),
        })
    }

    pub(super) fn name(&self, agent: usize) -> &str {
        &self.members[agent].agent.name
    }

    /// Whether this agentid is the agent's own: 301002 where it is another app's, 40056 where it is nobody's.
    pub(super) fn judge_agentid(&self, agent: usize, agentid: &str) -> Result<u64, Refused> {
        let wanted: u64 = agentid.parse().map_err(|_| Refused(40056))?;
        match self.members.iter().position(|member| member.agent.agentid == wanted) {
            None => Err(Refused(40056)),
            Some(_) if self.members[agent].agent.agentid == wanted => Ok(wanted),
            Some(_) => Err(Refused(301_002)),
        }
    }

    pub(super) fn gettokens(&self, agent: usize) -> u64 {
        self.members[agent].gettokens
    }

    pub(super) fn serial(&self, text: &str) -> Option<u64> {
        self.by_text.get(text).copied()
    }

    pub(super) fn owner(&self, serial: u64) -> usize {
        self.tokens[serial as usize - 1].agent
    }

    /// Whether this token lets a call in.
    pub(super) fn admit(&self, text: Option<&str>) -> Result<(), Refused> {
        let Some(text) = text.filter(|text| !text.is_empty()) else {
            return Err(Refused(41001));
        };
        match self.serial(text).map(|serial| self.condition(serial)) {
            Some(Condition::Good) => Ok(()),
            Some(Condition::Expired) => Err(Refused(42001)),
            Some(Condition::Revoked) | None => Err(Refused(40014)),
        }
    }

    /// Who asks for a token with this corpid and secret.
    pub(super) fn recognise(&self, corpid: Option<&str>, secret: Option<&str>) -> Result<usize, Refused> {
        let corpid = corpid.filter(|id| !id.is_empty()).ok_or(Refused(41002))?;
        let secret = secret.filter(|secret| !secret.is_empty()).ok_or(Refused(41004))?;
        if !self.members.iter().any(|member| member.agent.corpid == corpid) {
            return Err(Refused(40013));
        }
        let fits = |member: &Member| member.agent.corpid == corpid && member.agent.secret == secret;
        self.members.iter().position(fits).ok_or(Refused(40001))
    }

    /// Counts a gettoken of this agent, refused beyond the limit.
    pub(super) fn count_gettoken(&mut self, agent: usize) -> Result<(), Refused> {
        self.members[agent].gettokens += 1;
        let over = self.gettoken_limit.is_some_and(|limit| self.members[agent].gettokens > u64::from(limit));
        if over { Err(Refused(45009)) } else { Ok(()) }
    }

    /// The agent's token, a new one if the last no longer serves, and its whole lifetime in seconds.
    pub(super) fn issue(&mut self, agent: usize) -> (String, u64) {
        let kept = self.members[agent]
            .token
            .filter(|serial| self.members[agent].same_token || self.condition(*serial) == Condition::Good);
        let serial = kept.unwrap_or_else(|| self.mint(agent));
        let seconds = self.lifetime.as_secs() + u64::from(self.lifetime.subsec_nanos() > 0);
        (self.tokens[serial as usize - 1].text.clone(), seconds.max(1))
    }

    /// The agent's ticket of this kind, a new one after its two hours.
    pub(super) fn ticket(&mut self, agent: usize, kind: &'static str) -> String {
        const LIFETIME: Duration = Duration::from_secs(7200);
        let tickets = &mut self.members[agent].tickets;
        tickets.retain(|_, (_, made)| made.elapsed() < LIFETIME);
        tickets.entry(kind).or_insert_with(|| (chance::text(86), Instant::now())).0.clone()
    }

    pub(super) fn revoke(&mut self, agent: usize) {
        self.spoil(agent, Condition::Revoked);
    }

    pub(super) fn expire(&mut self, agent: usize) {
        self.spoil(agent, Condition::Expired);
    }

    /// Changes the secret; tokens and tickets got with the old one are void.
    pub(super) fn change_secret(&mut self, agent: usize, secret: &str) {
        self.spoil(agent, Condition::Revoked);
        self.members[agent].tickets.clear();
        self.members[agent].agent.secret = secret.to_owned();
    }

    pub(super) fn set_same_token(&mut self, agent: usize, on: bool) {
        self.members[agent].same_token = on;
    }

    /// Back to how it began, except that agents, secrets and tokens stay as they are.
    pub(super) fn reset(&mut self) {
        for member in &mut self.members {
            member.same_token = false;
            member.gettokens = 0;
        }
    }

    /// The agents and their newest tokens, without secrets and values.
    pub(super) fn describe(&self) -> Vec<Value> {
        let token = |serial: u64| {
            let token = &self.tokens[serial as usize - 1];
            let left = self.lifetime.saturating_sub(token.issued.elapsed());
            json!({
                "serial": serial,
                "condition": format!("{:?}", self.condition(serial)).to_lowercase(),
                "age_s": token.issued.elapsed().as_secs(),
                "left_s": left.as_secs(),
            })
        };
        let describe = |member: &Member| {
            json!({
                "name": member.agent.name,
                "corpid": member.agent.corpid,
                "agentid": member.agent.agentid,
                "gettokens": member.gettokens,
                "same_token": member.same_token,
                "token": member.token.map(token),
            })
        };
        self.members.iter().map(describe).collect()
    }

    fn condition(&self, serial: u64) -> Condition {
        let token = &self.tokens[serial as usize - 1];
        match token.condition {
            Condition::Good if token.issued.elapsed() >= self.lifetime => Condition::Expired,
            condition => condition,
        }
    }

    fn spoil(&mut self, agent: usize, condition: Condition) {
        let good = |token: &&mut Token| token.agent == agent && token.condition == Condition::Good;
        self.tokens.iter_mut().filter(good).for_each(|token| token.condition = condition);
    }

    fn mint(&mut self, agent: usize) -> u64 {
        let text = chance::text(TOKEN_CHARS);
        self.issued.tokens().push(text.clone());
        self.tokens.push(Token {
            text: text.clone(),
            agent,
            issued: Instant::now(),
            condition: Condition::Good,
        });
        let serial = self.tokens.len() as u64;
        self.by_text.insert(text, serial);
        self.members[agent].token = Some(serial);
        serial
    }
}
