//! Service providers, their suites (third-party apps and templates of customized apps), and the corps that authorise
//! these. The tokens of all of them are those of agents: a suite's name is an agent's name, and an authorised corp is the
//! agent `SUITE:CORPID`.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::agents::{AgentKind, AgentRegistry, SimulatedAgent};
use super::callbacks::{SimulatedCallback, unix_now};
use super::random;
use super::response::ErrcodeJson;
use super::routes::{ApiRequest, HandlerResult};
use super::state::State;

/// Lifetime of a suite_ticket.
const TICKET_LIFETIME: Duration = Duration::from_secs(30 * 60);
/// Lifetime of an auth_code.
const AUTH_CODE_LIFETIME: Duration = Duration::from_secs(10 * 60);

/// A service provider of the simulated WeCom.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulatedProvider {
    /// Its name in methods and at the control address.
    pub name: String,
    /// Its corpid.
    pub corpid: String,
    /// Its provider_secret.
    pub secret: String,
}

/// A suite of the simulated WeCom. One whose id begins with `dk` is a template of customized apps.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulatedSuite {
    /// Its name in methods and at the control address.
    pub name: String,
    /// Its suite_id.
    pub suite_id: String,
    /// Its suite_secret.
    pub secret: String,
}

impl fmt::Debug for SimulatedProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Provider({}, {})", self.name, self.corpid)
    }
}

impl fmt::Debug for SimulatedSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Suite({}, {})", self.name, self.suite_id)
    }
}

/// What WeCom pushes to the command URL of a suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuiteEvent {
    /// A new suite_ticket.
    Ticket,
    /// A corp authorises the suite.
    CreateAuth,
    /// The permanent code of a corp was reset.
    ResetPermanentCode,
    /// A corp withdraws its authorisation.
    CancelAuth,
}

impl SuiteEvent {
    /// The event with this `InfoType`.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let all = [Self::Ticket, Self::CreateAuth, Self::ResetPermanentCode, Self::CancelAuth];
        all.into_iter().find(|event| event.info_type() == name)
    }

    fn info_type(self) -> &'static str {
        match self {
            Self::Ticket => "suite_ticket",
            Self::CreateAuth => "create_auth",
            Self::ResetPermanentCode => "reset_permanent_code",
            Self::CancelAuth => "cancel_auth",
        }
    }
}

/// A call for a suite or a corp that is not known.
#[derive(Debug, thiserror::Error)]
#[error("unknown suite or corp {0:?}")]
pub struct SuiteError(String);

struct RunningSuite {
    name: String,
    /// Its agent.
    agent: usize,
    is_customized: bool,
    tickets: Vec<(String, Instant)>,
    /// By code, which serves once: the corpid and when it was issued.
    auth_codes: HashMap<String, (String, Instant)>,
    corps: HashMap<String, AuthorizedCorp>,
}

struct AuthorizedCorp {
    /// Its agent.
    agent: usize,
    permanent_code: String,
}

/// All suites.
#[derive(Default)]
pub(super) struct SuiteRegistry {
    suites: Vec<RunningSuite>,
}

impl SuiteRegistry {
    pub(super) fn new(
        providers: &[SimulatedProvider],
        suites: Vec<SimulatedSuite>,
        agents: &mut AgentRegistry,
    ) -> Self {
        for SimulatedProvider { name, corpid, secret } in providers.iter().cloned() {
            agents.add_of_kind(SimulatedAgent { name, corpid, secret, agentid: 0 }, AgentKind::Provider);
        }
        let suites = suites.into_iter().map(|SimulatedSuite { name, suite_id, secret }| {
            let is_customized = suite_id.starts_with("dk");
            let agent = SimulatedAgent { name: name.clone(), corpid: suite_id, secret, agentid: 0 };
            let agent = agents.add_of_kind(agent, AgentKind::Suite);
            let (tickets, auth_codes, corps) = Default::default();
            RunningSuite { name, agent, is_customized, tickets, auth_codes, corps }
        });
        Self { suites: suites.collect() }
    }

    fn find(&mut self, name: &str) -> Result<&mut RunningSuite, SuiteError> {
        let found = self.suites.iter_mut().find(|suite| suite.name == name);
        found.ok_or_else(|| SuiteError(name.to_owned()))
    }

    fn of_agent(&mut self, agent: Option<usize>) -> Result<&mut RunningSuite, i64> {
        self.suites.iter_mut().find(|suite| Some(suite.agent) == agent).ok_or(40082)
    }

    pub(super) fn expire_tickets(&mut self, suite: &str) -> Result<(), SuiteError> {
        self.find(suite)?.tickets.clear();
        Ok(())
    }

    pub(super) fn authorize(&mut self, suite: &str, corpid: &str) -> Result<String, SuiteError> {
        let code = random::url_safe_text(128);
        self.find(suite)?.auth_codes.insert(code.clone(), (corpid.to_owned(), Instant::now()));
        Ok(code)
    }

    pub(super) fn permanent_code(&self, suite: &str, corpid: &str) -> Option<String> {
        let suite = self.suites.iter().find(|known| known.name == suite)?;
        suite.corps.get(corpid).map(|corp| corp.permanent_code.clone())
    }

    pub(super) fn describe(&self) -> Vec<Value> {
        let describe = |suite: &RunningSuite| {
            let corps: Vec<_> = suite.corps.keys().take(100).collect();
            json!({ "name": suite.name, "tickets": suite.tickets.len(), "corps": corps })
        };
        self.suites.iter().map(describe).collect()
    }
}

impl State {
    pub(super) fn issue_ticket(&mut self, suite: &str) -> Result<String, SuiteError> {
        let ticket = random::url_safe_text(64);
        self.agents.record_issued(&ticket);
        self.suites.find(suite)?.tickets.push((ticket.clone(), Instant::now()));
        Ok(ticket)
    }

    /// Carries out what an event says, and returns the message that tells of it. The callback has the suite's name.
    pub(super) fn suite_message(
        &mut self,
        event: SuiteEvent,
        callback: &SimulatedCallback,
        corpid: Option<&str>,
    ) -> Result<String, SuiteError> {
        let suite = &callback.name;
        let corpid = corpid.ok_or_else(|| SuiteError("(corpid is missing)".to_owned()));
        let detail = match event {
            SuiteEvent::Ticket => {
                format!("<SuiteTicket><![CDATA[{}]]></SuiteTicket>", self.issue_ticket(suite)?)
            }
            SuiteEvent::CreateAuth | SuiteEvent::ResetPermanentCode => {
                format!("<AuthCode><![CDATA[{}]]></AuthCode>", self.suites.authorize(suite, corpid?)?)
            }
            SuiteEvent::CancelAuth => {
                let corpid = corpid?;
                self.cancel_corp(suite, corpid)?;
                format!("<AuthCorpId><![CDATA[{corpid}]]></AuthCorpId>")
            }
        };
        let (id, info_type, now) = (&callback.receive_id, event.info_type(), unix_now());
        Ok(format!(
            "<xml><SuiteId><![CDATA[{id}]]></SuiteId><InfoType><![CDATA[{info_type}]]></InfoType><TimeStamp>{now}</TimeStamp>{detail}</xml>"
        ))
    }

    pub(super) fn cancel_corp(&mut self, suite: &str, corpid: &str) -> Result<(), SuiteError> {
        let corp = self.suites.find(suite)?.corps.remove(corpid);
        let corp = corp.ok_or_else(|| SuiteError(corpid.to_owned()))?;
        self.agents.revoke_tokens(corp.agent);
        Ok(())
    }

    pub(super) fn add_authorized_corp(&mut self, suite: &str, corpid: &str) -> Result<String, SuiteError> {
        let agent = self.suites.find(suite)?.agent;
        Ok(self.create_permanent_code(agent, corpid).map_err(|_| SuiteError(suite.to_owned()))?.0)
    }

    /// A new permanent code of a corp; the one before is void. Returns the code and the corp's agent.
    fn create_permanent_code(&mut self, suite_agent: usize, corpid: &str) -> Result<(String, usize), i64> {
        let suite = self.suites.of_agent(Some(suite_agent))?;
        let permanent_code = random::url_safe_text(86);
        self.agents.record_issued(&permanent_code);
        let kind = if suite.is_customized { AgentKind::Application } else { AgentKind::ThirdPartyCorp };
        let agent = SimulatedAgent {
            name: format!("{}:{corpid}", suite.name),
            corpid: corpid.to_owned(),
            secret: permanent_code.clone(),
            agentid: 1_000_001,
        };
        let agent = self.agents.add_of_kind(agent, kind);
        let corp = AuthorizedCorp { agent, permanent_code: permanent_code.clone() };
        suite.corps.insert(corpid.to_owned(), corp);
        Ok((permanent_code, agent))
    }
}

/// The members of a JSON body that are strings and not empty.
struct Body(Value);

impl Body {
    fn of(request: &ApiRequest<'_>) -> Self {
        Self(serde_json::from_slice(&request.body()).unwrap_or_default())
    }

    fn string(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str().filter(|text| !text.is_empty())
    }
}

/// A JSON object without errcode, as some of these calls return on success.
fn plain_json(value: &Value) -> HandlerResult {
    let json = super::response::SimulatedResponse::bytes(hyper::StatusCode::OK, value.to_string());
    Ok(json.header(hyper::header::CONTENT_TYPE, "application/json; charset=UTF-8").with_errcode_zero())
}

pub(super) fn provider_token(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let body = Body::of(request);
    let corpid = body.string("corpid").ok_or(41002)?;
    let secret = body.string("provider_secret").ok_or(41004)?;
    let provider = state.agents.find_by_corpid(corpid, AgentKind::Provider).ok_or(40013)?;
    if !state.agents.has_secret(provider, secret) {
        return Err(40001);
    }
    state.agents.count_gettoken(provider)?;
    let (token, expires_in) = state.agents.issue_token(provider);
    plain_json(&json!({ "provider_access_token": token, "expires_in": expires_in }))
}

pub(super) fn suite_token(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let body = Body::of(request);
    let suite_id = body.string("suite_id").ok_or(41021)?;
    let secret = body.string("suite_secret").ok_or(41024)?;
    let ticket = body.string("suite_ticket").ok_or(41023)?;
    let agent = state.agents.find_by_corpid(suite_id, AgentKind::Suite).ok_or(40083)?;
    if !state.agents.has_secret(agent, secret) {
        return Err(40080);
    }
    state.agents.count_gettoken(agent)?;
    let suite = state.suites.of_agent(Some(agent))?;
    let is_valid = |(known, at): &(String, Instant)| known == ticket && at.elapsed() < TICKET_LIFETIME;
    if !suite.tickets.iter().any(is_valid) {
        return Err(40085);
    }
    let (token, expires_in) = state.agents.issue_token(agent);
    ErrcodeJson::ok().with("suite_access_token", token).with("expires_in", expires_in).into()
}

pub(super) fn pre_auth_code(_: &mut State, _: &ApiRequest<'_>) -> HandlerResult {
    let code = random::url_safe_text(64);
    ErrcodeJson::ok().with("pre_auth_code", code).with("expires_in", 1200).into()
}

pub(super) fn permanent_code(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let (agent, json) = redeem(state, request)?;
    let is_customized = state.suites.of_agent(request.agent)?.is_customized;
    let agentid = state.agents.agentid(agent);
    let app = json!({ "agentid": agentid, "name": "app", "is_customized_app": is_customized });
    let json = json.with("auth_info", json!({ "agent": [app] }));
    if is_customized {
        return json.into();
    }
    let (token, expires_in) = state.agents.issue_token(agent);
    json.with("access_token", token).with("expires_in", expires_in).into()
}

pub(super) fn permanent_code_v2(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    redeem(state, request).and_then(|(_, json)| json.with("state", "").into())
}

/// Exchanges an auth_code; returns the corp's agent and the response.
fn redeem(state: &mut State, request: &ApiRequest<'_>) -> Result<(usize, ErrcodeJson), i64> {
    let suite = state.suites.of_agent(request.agent)?;
    let suite_agent = suite.agent;
    let code = Body::of(request).string("auth_code").map(str::to_owned).unwrap_or_default();
    let (corpid, issued_at) = suite.auth_codes.remove(&code).ok_or(40078)?;
    if issued_at.elapsed() >= AUTH_CODE_LIFETIME {
        return Err(40078);
    }
    let (permanent_code, agent) = state.create_permanent_code(suite_agent, &corpid)?;
    let corp = json!({ "corpid": corpid, "corp_name": "corp of the simulator" });
    let json = ErrcodeJson::ok().with("permanent_code", permanent_code).with("auth_corp_info", corp);
    Ok((agent, json.with("auth_user_info", json!({ "userid": "admin" }))))
}

/// The corp's agent, if the body has its corpid and permanent code.
fn check_permanent_code(state: &mut State, request: &ApiRequest<'_>) -> Result<usize, i64> {
    let body = Body::of(request);
    let corpid = body.string("auth_corpid").ok_or(41002)?;
    let code = body.string("permanent_code").ok_or(41025)?;
    let corp = state.suites.of_agent(request.agent)?.corps.get(corpid).ok_or(40084)?;
    if corp.permanent_code == code { Ok(corp.agent) } else { Err(40084) }
}

pub(super) fn corp_token(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let agent = check_permanent_code(state, request)?;
    if state.agents.kind(agent) != AgentKind::ThirdPartyCorp {
        return Err(48002);
    }
    state.agents.count_gettoken(agent)?;
    let (token, expires_in) = state.agents.issue_token(agent);
    ErrcodeJson::ok().with("access_token", token).with("expires_in", expires_in).into()
}

pub(super) fn auth_info(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let agent = check_permanent_code(state, request)?;
    let corp = json!({ "corpid": state.agents.corpid(agent), "corp_name": "corp of the simulator" });
    let app = json!({ "agentid": state.agents.agentid(agent), "name": "app" });
    ErrcodeJson::ok().with("auth_corp_info", corp).with("auth_info", json!({ "agent": [app] })).into()
}

/// A call that only checks its token.
pub(super) fn succeed(_: &mut State, _: &ApiRequest<'_>) -> HandlerResult {
    ErrcodeJson::ok().into()
}
