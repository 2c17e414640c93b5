//! Suites at run time: tickets, corps that authorise, are reset and cancel, and the stand-ins that clients get in place of
//! permanent codes. All of it is in the state; what this process knows follows the state's records.

mod authorize;
mod commands;
mod corp_entries;
mod install;
mod records;
mod stand_ins;

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use foldhash::fast::RandomState;
use tokio::runtime::Handle;

use self::{
    authorize::RecentCodes,
    records::{
        CancellationRecord, CorpRecord, StandInRecord, TicketRecord, corp_record_name, encode,
        newest_override, parse_corp_record_name,
    },
};
pub use self::{
    authorize::{AuthorizeError, RedeemVersion, Redeemed},
    commands::SuiteCommand,
    corp_entries::StoredCorp,
    install::{InstallLinkError, InstallStateError, OpenedInstallState},
    stand_ins::STAND_IN_PREFIX,
};
use crate::{
    blocking,
    config::RateLimit,
    directory::{Agent, CorpCredentials, Directory, Suite},
    limits::{RateLimiterFactory, address_limit::AddressLimit},
    secret::Masked,
    state::{Collection, ReadError, Record, State, Write, WriteError},
    time::clock::unix_now,
    tokens::TokenCache,
};

/// WeCom pushes a suite_ticket every 10 minutes, and it is valid for 30: beyond this age, pushes do not arrive.
pub const MAX_TICKET_AGE: Duration = Duration::from_secs(25 * 60);
/// Installations by redirect for each address, which need no key.
const REDIRECTS_PER_ADDRESS: RateLimit = RateLimit { requests: 30, per: Duration::from_secs(60) };

/// Suites at run time.
pub struct Suites {
    /// By suite_id.
    tickets: DashMap<String, (Masked, SystemTime), RandomState>,
    /// By the name of the record.
    corps: DashMap<String, CorpRecord, RandomState>,
    /// The version of the newest record of each corp that was applied; that of a deletion outlives the corp, so that
    /// what was read before it does not come back.
    corp_versions: DashMap<String, u64, RandomState>,
    /// The corps that a file names and that withdrew their authorisation, by the name of the record.
    cancellations: DashMap<String, CancellationRecord, RandomState>,
    /// By the hash of the stand-in.
    stand_ins: DashMap<String, StandInRecord, RandomState>,
    recent_codes: RecentCodes,
    redirects: AddressLimit,
    context: OnceLock<Context>,
}

/// What is there once the process has started.
struct Context {
    state: Arc<State>,
    directory: Arc<ArcSwap<Directory>>,
    tokens: Arc<TokenCache>,
    limits: RateLimiterFactory,
    runtime: Handle,
}

impl Default for Suites {
    fn default() -> Self {
        Self {
            tickets: DashMap::default(),
            corps: DashMap::default(),
            corp_versions: DashMap::default(),
            cancellations: DashMap::default(),
            stand_ins: DashMap::default(),
            recent_codes: RecentCodes::default(),
            redirects: AddressLimit::new(REDIRECTS_PER_ADDRESS),
            context: OnceLock::new(),
        }
    }
}

impl Suites {
    /// Takes records of the state: all of them at the start, then each change.
    pub fn apply_records(&self, records: &[Record]) {
        // Before the corps that go with them, whose codes in a file would be in force in between.
        let is_cancellation =
            |record: &&Record| record.collection == Collection::CancelledCorps && record.value.is_some();
        records.iter().filter(is_cancellation).for_each(|record| self.apply_cancellation(record));
        for record in records {
            match record.collection {
                Collection::CancelledCorps if record.value.is_none() => self.apply_cancellation(record),
                Collection::SuiteTickets => self.apply_ticket(record),
                Collection::Corps => self.apply_corp_if(record, |_| true),
                Collection::StandIns => self.apply_stand_in(record),
                _ => {}
            }
        }
    }

    /// Connects this with the running process, and applies what the state has. Must be called on the runtime that
    /// auth_codes are to be redeemed on.
    pub fn attach(
        self: &Arc<Self>,
        state: Arc<State>,
        directory: Arc<ArcSwap<Directory>>,
        tokens: Arc<TokenCache>,
        limits: RateLimiterFactory,
    ) {
        let _ = self.context.set(Context { state, directory, tokens, limits, runtime: Handle::current() });
        self.apply_all();
        self.resume_auth_codes();
    }

    /// Applies what the state has to the suites of the present directory; after a reload, there may be new ones.
    pub fn apply_all(&self) {
        for ticket in &self.tickets {
            self.set_ticket(ticket.key());
        }
        for corp in blocking::in_slices(&self.corps) {
            self.set_corp(corp.key(), Some(corp.value().clone()));
        }
        for cancellation in &self.cancellations {
            let name = cancellation.key();
            if !self.corps.contains_key(name) {
                self.set_cancelled(name, Some(cancellation.value()), None);
            }
        }
    }

    /// Applies what the state has of corps, by suite and corpid, that got or lost a name of their own.
    pub fn apply_names(&self, corps: &[(String, String)]) {
        for (suite, corpid) in corps {
            let Some(agent) = self.suite_agent(suite) else { continue };
            let Some(suite) = agent.suite() else { continue };
            let name = corp_record_name(&suite.config.suite_id, corpid);
            let corp = self.corps.get(&name).map(|corp| corp.clone());
            self.set_corp(&name, corp);
        }
    }

    /// The ticket of a record's value, and when it was received.
    pub fn parse_ticket(value: &[u8]) -> Option<(Masked, SystemTime)> {
        let TicketRecord { ticket, received_at } = serde_json::from_slice(value).ok()?;
        Some((ticket, UNIX_EPOCH + Duration::from_secs(received_at)))
    }

    /// Takes a suite_ticket that WeCom pushed. On success it is durable, and used from now on.
    pub async fn receive_ticket(&self, suite: &Suite, ticket: Masked) -> Result<(), WriteError> {
        let record = TicketRecord { ticket, received_at: unix_now() };
        let write = Write::put(Collection::SuiteTickets, suite.config.suite_id.clone(), encode(&record));
        self.write(vec![write]).await.map(drop)
    }

    /// The agent of the suite of this name, if it is configured.
    pub fn suite_agent(&self, name: &str) -> Option<Arc<Agent>> {
        self.context.get()?.directory.load().find_agent(name).filter(|agent| agent.suite().is_some())
    }

    async fn write(&self, writes: Vec<Write>) -> Result<u64, WriteError> {
        match self.context.get() {
            Some(context) => context.state.write(writes).await,
            None => Err(WriteError::Unavailable("not started".to_owned())),
        }
    }

    /// The newest record of this name, also if another process wrote it.
    async fn read(&self, collection: Collection, name: &str) -> Result<Option<Record>, ReadError> {
        match self.context.get() {
            Some(context) => context.state.read(collection, name).await,
            None => Err(ReadError::Unavailable("not started".to_owned())),
        }
    }

    fn apply_ticket(&self, record: &Record) {
        let parsed = record.value.as_ref().and_then(|value| Self::parse_ticket(value));
        let Some(ticket) = parsed else { return };
        self.tickets.insert(record.name.clone(), ticket);
        self.set_ticket(&record.name);
    }

    /// Sets the ticket of the suite with this id, if it is configured. A new one ends the wait for it.
    fn set_ticket(&self, suite_id: &str) {
        let Some((ticket, received_at)) = self.tickets.get(suite_id).map(|ticket| ticket.clone()) else {
            return;
        };
        let Some(context) = self.context.get() else { return };
        let directory = context.directory.load();
        if let Some(agent) = suite_agent(&directory, suite_id)
            && let Some(suite) = agent.suite()
            && suite.state.ticket.set(ticket, received_at)
        {
            suite.token().forget_ticket_failure();
        }
    }

    /// Applies the record of a corp if its condition holds for the version that was applied before, or 0.
    fn apply_corp_if(&self, record: &Record, condition: impl Fn(u64) -> bool) {
        // Its lock is held meanwhile: of two records of a corp, the last to be judged is the last to be applied.
        let mut version = self.corp_versions.entry(record.name.clone()).or_default();
        if condition(*version) {
            *version = record.version;
            self.apply_corp(record);
        }
    }

    fn apply_corp(&self, record: &Record) {
        let value = record.value.as_ref();
        let corp = value.and_then(|value| CorpRecord::parse(value, record.version));
        match &corp {
            Some(corp) => drop(self.corps.insert(record.name.clone(), corp.clone())),
            None => {
                self.corps.remove(&record.name);
                if let Some((suite_id, corpid)) = parse_corp_record_name(&record.name) {
                    self.forget_redeemed(suite_id, corpid);
                }
            }
        }
        self.set_corp(&record.name, corp);
    }

    /// Applies a record that was read from the state, unless a newer one is known.
    fn apply_newer_corp(&self, record: &Record) {
        self.apply_corp_if(record, |applied| applied < record.version);
    }

    fn apply_cancellation(&self, record: &Record) {
        let value = record.value.as_ref();
        let cancellation = value.and_then(|value| CancellationRecord::parse(value, record.version));
        match &cancellation {
            Some(known) => drop(self.cancellations.insert(record.name.clone(), known.clone())),
            None => drop(self.cancellations.remove(&record.name)),
        }
        let corp = self.corps.get(&record.name).map(|corp| corp.clone());
        self.set_cancelled(&record.name, cancellation.as_ref(), corp);
    }

    fn set_corp(&self, record_name: &str, corp: Option<CorpRecord>) {
        let cancellation = self.cancellations.get(record_name).map(|known| known.clone());
        self.set_cancelled(record_name, cancellation.as_ref(), corp);
    }

    fn set_cancelled(
        &self,
        record_name: &str,
        cancellation: Option<&CancellationRecord>,
        corp: Option<CorpRecord>,
    ) {
        let Some((suite_id, corpid)) = parse_corp_record_name(record_name) else { return };
        let Some(context) = self.context.get() else { return };
        let directory = context.directory.load();
        let Some(suite) = suite_agent(&directory, suite_id).and_then(|agent| agent.suite()) else { return };
        let overriding = newest_override(corp.as_ref(), cancellation, corpid);
        let corp = corp.map(|corp| CorpCredentials {
            settings: corp.agent_settings(suite.name(), corpid),
            ..corp.credentials(corpid)
        });
        suite.set_corp(corpid, corp, overriding, (&context.tokens, &context.limits));
    }

    fn apply_stand_in(&self, record: &Record) {
        let value = record.value.as_ref();
        match value.and_then(|value| serde_json::from_slice(value).ok()) {
            Some(stand_in) => drop(self.stand_ins.insert(record.name.clone(), stand_in)),
            None => drop(self.stand_ins.remove(&record.name)),
        }
    }
}

/// The suite with this id, if it is configured.
fn suite_agent<'a>(directory: &'a Directory, suite_id: &str) -> Option<&'a Arc<Agent>> {
    let is_suite = |agent: &&Arc<Agent>| agent.suite().is_some_and(|suite| suite.config.suite_id == suite_id);
    directory.suites_and_providers().iter().find(is_suite)
}
