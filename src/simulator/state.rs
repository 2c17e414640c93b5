//! All that the simulator knows, behind one lock that is never held over an await, and the moment of judgement: a
//! request is let in or refused in one step, so that a revocation among a thousand requests is exact.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::http::request::Parts;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Settings;
use super::agents::{Agents, Refused, UnknownAgent};
use super::body::Taken;
use super::company::Company;
use super::faults::{Effects, Fault, Faults};
use super::listen::Line;
use super::media::Shelf;
use super::query::Query;
use super::records::{Log, Record};
use super::routes::{self, Credential, Route};

/// What the state is reached through.
pub(super) struct Shared {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    disconnects: watch::Sender<u64>,
    pub(super) errcode_headers: bool,
}

impl Shared {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            errcode_headers: settings.errcode_headers,
            state: Mutex::new(State::new(settings)),
            changes: watch::Sender::new(0),
            disconnects: watch::Sender::new(0),
        }
    }

    /// Looks at the state.
    pub(super) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the state, and wakes who waits for a change.
    pub(super) fn change<T>(&self, alter: impl FnOnce(&mut State) -> T) -> T {
        let result = alter(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changes.send_modify(|count| *count += 1);
        result
    }

    /// Ticks at every change.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Ticks when all connections are to be closed.
    pub(super) fn disconnects(&self) -> watch::Receiver<u64> {
        self.disconnects.subscribe()
    }

    /// Closes all connections to the API.
    pub(super) fn disconnect(&self) {
        self.disconnects.send_modify(|count| *count += 1);
    }
}

/// All that is known.
pub(super) struct State {
    pub(super) agents: Agents,
    pub(super) faults: Faults,
    pub(super) log: Log,
    pub(super) shelf: Shelf,
    pub(super) company: Company,
    webhook_keys: Vec<String>,
}

/// A request that was judged.
pub(super) struct Call {
    pub(super) seq: u64,
    pub(super) route: Option<&'static Route>,
    /// The agent whose token or secret it carries.
    pub(super) agent: Option<usize>,
    pub(super) admission: Result<(), Refused>,
    pub(super) effects: Effects,
}

impl State {
    fn new(settings: Settings) -> Self {
        Self {
            agents: Agents::new(settings.agents, settings.token_lifetime, settings.gettoken_limit),
            faults: Faults::default(),
            log: Log::default(),
            shelf: Shelf::default(),
            company: Company::default(),
            webhook_keys: settings.webhook_keys,
        }
    }

    /// Judges a request by its head and writes it down.
    pub(super) fn arrive(&mut self, head: &Parts, line: &Line) -> Call {
        let path = head.uri.path();
        let query = Query(head.uri.query().unwrap_or(""));
        let route = routes::find(path);
        let seq = self.log.next();
        let mut record = Record::new(seq, line.serial, head, self.shown(query));
        let text = query.value("access_token");
        record.token = text.as_deref().and_then(|text| self.agents.serial(text));
        let mut agent = record.token.map(|serial| self.agents.owner(serial));
        let admission = match route.map(|route| &route.credential) {
            Some(Credential::Token) => self.agents.admit(text.as_deref()),
            Some(Credential::Secret) => self.recognise(query, &mut agent),
            Some(Credential::WebhookKey) => self.admit_webhook(query),
            Some(Credential::Nothing) | None => Ok(()),
        };
        record.agent = agent.map(|agent| self.agents.name(agent).to_owned());
        let effects = self.faults.meet(path, record.agent.as_deref(), admission.is_ok());
        self.log.push(record);
        self.log.begin(route.is_some_and(Route::is_gettoken));
        Call { seq, route, agent, admission, effects }
    }

    /// Notes the request's body.
    pub(super) fn took(&mut self, seq: u64, taken: &Taken) {
        if let Some(record) = self.log.record(seq) {
            record.body_bytes = taken.bytes;
            record.body_sha256 = Some(taken.sha256.clone());
        }
    }

    /// Notes that the call was carried out.
    pub(super) fn executed(&mut self, seq: u64, route: &Route) {
        *self.log.counts.executed.entry(route.path).or_default() += 1;
        if let Some(record) = self.log.record(seq) {
            record.executed = true;
        }
    }

    /// Notes the answer that goes out.
    pub(super) fn answered(&mut self, seq: u64, status: u16, errcode: Option<i64>) {
        if let Some(errcode) = errcode {
            *self.log.counts.answered.entry(errcode).or_default() += 1;
        }
        if let Some(record) = self.log.record(seq) {
            record.status = Some(status);
            record.errcode = errcode;
        }
    }

    /// The number of a new connection.
    pub(super) fn connected(&mut self) -> u64 {
        self.log.counts.connections_open += 1;
        self.log.connection()
    }

    pub(super) fn disconnected(&mut self) {
        self.log.counts.connections_open -= 1;
    }

    /// Alters what belongs to the agent of this name.
    pub(super) fn of_agent(
        &mut self,
        name: &str,
        alter: impl FnOnce(&mut Agents, usize),
    ) -> Result<(), UnknownAgent> {
        let agent = self.agents.find(name)?;
        alter(&mut self.agents, agent);
        Ok(())
    }

    /// Adds a fault, whose agent must be known.
    pub(super) fn inject(&mut self, fault: Fault) -> Result<(), UnknownAgent> {
        if let Some(agent) = fault.agent() {
            self.agents.find(agent)?;
        }
        self.faults.add(fault);
        Ok(())
    }

    /// Takes all faults away and forgets what was seen; agents, secrets, tokens and media stay.
    pub(super) fn reset(&mut self) {
        self.faults = Faults::default();
        self.log.reset();
        self.agents.reset();
    }

    /// All in one, without secrets and tokens.
    pub(super) fn describe(&self) -> Value {
        json!({
            "agents": self.agents.describe(),
            "faults": self.faults.describe(),
            "counts": self.log.counts,
            "media": self.shelf.count(),
        })
    }

    fn recognise(&mut self, query: Query<'_>, agent: &mut Option<usize>) -> Result<(), Refused> {
        let (corpid, secret) = (query.value("corpid"), query.value("corpsecret"));
        let known = self.agents.recognise(corpid.as_deref(), secret.as_deref())?;
        *agent = Some(known);
        self.agents.count_gettoken(known)
    }

    fn admit_webhook(&self, query: Query<'_>) -> Result<(), Refused> {
        let known = |key: String| self.webhook_keys.contains(&key);
        if query.value("key").is_some_and(known) { Ok(()) } else { Err(Refused(93000)) }
    }

    fn shown(&self, query: Query<'_>) -> String {
        query.replaced(|name, value| match name {
            "access_token" if value.is_empty() => None,
            "access_token" => Some(match self.agents.serial(value) {
                Some(serial) => format!("token#{serial}"),
                None => "token#?".to_owned(),
            }),
            "corpsecret" if !value.is_empty() => Some("***".to_owned()),
            _ => None,
        })
    }
}

/// Counts a request as under way until it is dropped: with the last of its answer.
pub(super) struct InFlight {
    pub(super) shared: Arc<Shared>,
    pub(super) gettoken: bool,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.shared.change(|state| state.log.end(self.gettoken));
    }
}
