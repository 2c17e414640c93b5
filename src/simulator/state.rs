//! The state of the simulator, behind one lock that is never held over an await. A request is authorized or refused
//! in one step under this lock, so a revocation during concurrent requests takes effect at an exact position.

use std::sync::Arc;

use parking_lot::Mutex;

use hyper::http::request::Parts;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Settings;
use super::agents::{AgentKind, AgentRegistry, UnknownAgent};
use super::body::HashedBody;
use super::callbacks::CallbackRegistry;
use super::company::Company;
use super::faults::{Fault, FaultEffects, FaultRules};
use super::listener::SimulatedConnection;
use super::media::MediaStore;
use super::query::Query;
use super::recorder::{RecordedRequest, TrafficRecorder};
use super::routes::{self, ApiRoute, RequiredCredential};
use super::suites::SuiteRegistry;

/// The locked state and the channels that signal changes.
pub(super) struct Shared {
    state: Mutex<State>,
    change_count: watch::Sender<u64>,
    disconnect_count: watch::Sender<u64>,
    pub(super) errcode_headers: bool,
    pub(super) path_prefix: String,
}

impl Shared {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            errcode_headers: settings.errcode_headers,
            path_prefix: settings.path_prefix.clone(),
            state: Mutex::new(State::new(settings)),
            change_count: watch::Sender::new(0),
            disconnect_count: watch::Sender::new(0),
        }
    }

    /// Reads the state under the lock.
    pub(super) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.lock())
    }

    /// Changes the state under the lock and wakes the tasks that wait for a change.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.lock());
        self.change_count.send_modify(|count| *count += 1);
        result
    }

    /// Changes with every change of the state.
    pub(super) fn subscribe_changes(&self) -> watch::Receiver<u64> {
        self.change_count.subscribe()
    }

    /// Changes when all connections must close.
    pub(super) fn subscribe_disconnects(&self) -> watch::Receiver<u64> {
        self.disconnect_count.subscribe()
    }

    /// Closes all connections to the API.
    pub(super) fn close_connections(&self) {
        self.disconnect_count.send_modify(|count| *count += 1);
    }
}

/// The whole state.
pub(super) struct State {
    pub(super) agents: AgentRegistry,
    pub(super) faults: FaultRules,
    pub(super) recorder: TrafficRecorder,
    pub(super) media: MediaStore,
    pub(super) company: Company,
    pub(super) callbacks: CallbackRegistry,
    pub(super) suites: SuiteRegistry,
    webhook_keys: Vec<String>,
}

/// A request after authorization.
pub(super) struct CheckedRequest {
    pub(super) seq: u64,
    pub(super) route: Option<&'static ApiRoute>,
    /// The agent that its token or secret belongs to.
    pub(super) agent: Option<usize>,
    /// The error is an errcode.
    pub(super) authorization: Result<(), i64>,
    pub(super) effects: FaultEffects,
}

impl State {
    fn new(settings: Settings) -> Self {
        let mut agents =
            AgentRegistry::new(settings.agents, settings.token_lifetime, settings.gettoken_limit);
        let suites = SuiteRegistry::new(&settings.providers, settings.suites, &mut agents);
        Self {
            agents,
            suites,
            faults: FaultRules::default(),
            recorder: TrafficRecorder::default(),
            media: MediaStore::default(),
            company: Company::default(),
            callbacks: CallbackRegistry::default(),
            webhook_keys: settings.webhook_keys,
        }
    }

    /// Authorizes a request by its head and records it.
    pub(super) fn check_request(&mut self, head: &Parts, connection: &SimulatedConnection) -> CheckedRequest {
        let path = head.uri.path();
        let query = Query(head.uri.query().unwrap_or(""));
        let route = routes::find(path);
        let seq = self.recorder.next_seq();
        let mut record = RecordedRequest::new(seq, connection.id, head, self.redacted_query(query));
        let text = query.value(route.map_or("access_token", ApiRoute::token_param));
        record.token = text.as_deref().and_then(|text| self.agents.token_serial(text));
        let mut agent = record.token.map(|serial| self.agents.token_owner(serial));
        let authorization = match route.map(|route| &route.credential) {
            Some(RequiredCredential::Token) => self.agents.check_token(text.as_deref()),
            Some(RequiredCredential::SuiteToken) => {
                let serves = |kind| kind == AgentKind::Suite;
                self.agents.check_token_of_kind(text.as_deref(), serves, [41022, 40082, 42009])
            }
            Some(RequiredCredential::ProviderToken) => {
                let serves = |kind| kind == AgentKind::Provider;
                self.agents.check_token_of_kind(text.as_deref(), serves, [41001, 40014, 42001])
            }
            Some(RequiredCredential::Secret) => self.authenticate(query, &mut agent),
            Some(RequiredCredential::WebhookKey) => self.check_webhook_key(query),
            Some(RequiredCredential::Unauthenticated) | None => Ok(()),
        };
        record.agent = agent.map(|agent| self.agents.name(agent).to_owned());
        let effects = self.faults.apply(path, record.agent.as_deref(), authorization.is_ok());
        self.recorder.push_request(record);
        self.recorder.request_started(route.is_some_and(ApiRoute::is_gettoken));
        CheckedRequest { seq, route, agent, authorization, effects }
    }

    /// Records length and hash of the request body.
    pub(super) fn record_body(&mut self, seq: u64, body: &HashedBody) {
        if let Some(record) = self.recorder.request_mut(seq) {
            record.body_bytes = body.length;
            record.body_sha256 = Some(body.sha256.clone());
        }
    }

    /// Records that the call was executed with errcode 0.
    pub(super) fn record_executed(&mut self, seq: u64, route: &ApiRoute) {
        *self.recorder.counts.executed.entry(route.path).or_default() += 1;
        if let Some(record) = self.recorder.request_mut(seq) {
            record.executed = true;
        }
    }

    /// Records status and errcode of the response.
    pub(super) fn record_response(&mut self, seq: u64, status: u16, errcode: Option<i64>) {
        if let Some(errcode) = errcode {
            *self.recorder.counts.answered.entry(errcode).or_default() += 1;
        }
        if let Some(record) = self.recorder.request_mut(seq) {
            record.status = Some(status);
            record.errcode = errcode;
        }
    }

    /// Counts a new connection and returns its serial number.
    pub(super) fn connection_opened(&mut self) -> u64 {
        self.recorder.counts.connections_open += 1;
        self.recorder.next_connection()
    }

    pub(super) fn connection_closed(&mut self) {
        self.recorder.counts.connections_open -= 1;
    }

    /// Changes the state of the agent of this name.
    pub(super) fn change_agent(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut AgentRegistry, usize),
    ) -> Result<(), UnknownAgent> {
        let agent = self.agents.find(name)?;
        change(&mut self.agents, agent);
        Ok(())
    }

    /// Adds a fault; fails if its agent is unknown.
    pub(super) fn inject(&mut self, fault: Fault) -> Result<(), UnknownAgent> {
        if let Some(agent) = fault.agent() {
            self.agents.find(agent)?;
        }
        self.faults.add(fault);
        Ok(())
    }

    /// Removes all faults and clears the recorded traffic; agents, secrets, tokens and media stay.
    pub(super) fn reset(&mut self) {
        self.faults = FaultRules::default();
        self.recorder.reset();
        self.agents.reset();
        self.callbacks.reset();
    }

    /// Agents, faults and counts, without secrets and tokens.
    pub(super) fn describe(&self) -> Value {
        json!({
            "agents": self.agents.describe(),
            "faults": self.faults.describe(),
            "counts": self.recorder.counts,
            "media": self.media.file_count(),
            "suites": self.suites.describe(),
        })
    }

    fn authenticate(&mut self, query: Query<'_>, agent: &mut Option<usize>) -> Result<(), i64> {
        let (corpid, secret) = (query.value("corpid"), query.value("corpsecret"));
        let known = self.agents.authenticate(corpid.as_deref(), secret.as_deref())?;
        *agent = Some(known);
        self.agents.count_gettoken(known)
    }

    fn check_webhook_key(&self, query: Query<'_>) -> Result<(), i64> {
        let key = query.value("key").filter(|key| self.webhook_keys.contains(key));
        key.map(drop).ok_or(93000)
    }

    fn redacted_query(&self, query: Query<'_>) -> String {
        query.with_values_replaced(|name, value| match name {
            "access_token" | "suite_access_token" | "provider_access_token" if value.is_empty() => None,
            "access_token" | "suite_access_token" | "provider_access_token" => {
                Some(match self.agents.token_serial(value) {
                    Some(serial) => format!("token#{serial}"),
                    None => "token#?".to_owned(),
                })
            }
            "corpsecret" if !value.is_empty() => Some("***".to_owned()),
            _ => None,
        })
    }
}

/// Counts a request as in flight until it is dropped, with the end of the response body.
pub(super) struct InFlightGuard {
    pub(super) shared: Arc<Shared>,
    pub(super) gettoken: bool,
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.shared.update(|state| state.recorder.request_ended(self.gettoken));
    }
}
