//! Random simulation of replicas that share a store: claims, leases, notifications, outages, suspended replicas
//! and a wiped store, between requests and voided tokens. All is drawn from a seed, in paused time:
//! `SIMULATION_SEED=17 cargo test replica_simulation`.

use std::{
    collections::HashMap,
    future::Future,
    ops::AddAssign,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use tokio::{
    runtime::Handle,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    fake_gettoken::{advance, agent_token, path, serial},
    simulation::rng::SimRng,
};
use crate::tokens::{
    CachedToken, Credentials, FetchError, FetchToken, RefreshSettings, ReplaceOutcome, Token, TokenCache,
    service::TokenService,
};
use crate::{
    secret::Masked,
    store::fake::{FakeConnection, FakeServer},
    wecom::response::GettokenResponse,
};

const SEEDS: u64 = 200;
const STEPS: usize = 400;
const TOKEN_TTL: Duration = Duration::from_secs(7200);
/// Longest duration of a gettoken.
const MAX_GETTOKEN_TIMEOUT: Duration = Duration::from_secs(8);
/// How long work that began during a fault may go on: a gettoken, and a lease.
const FAULT_RECOVERY_TIMEOUT: Duration = Duration::from_secs(15);

/// Event counts, so that a simulation without events cannot pass.
#[derive(Debug, Default, Clone, Copy)]
struct SimReplicaCounts {
    succeeded: usize,
    refreshed: usize,
    failed: usize,
    gettokens: usize,
    /// Gettokens without a fault, of which no two may run at once for one agent.
    gettokens_without_fault: usize,
    faults: usize,
    store_calls: usize,
}

impl AddAssign for SimReplicaCounts {
    fn add_assign(&mut self, other: Self) {
        self.succeeded += other.succeeded;
        self.refreshed += other.refreshed;
        self.failed += other.failed;
        self.gettokens += other.gettokens;
        self.gettokens_without_fault += other.gettokens_without_fault;
        self.faults += other.faults;
        self.store_calls += other.store_calls;
    }
}

/// The simulated WeCom of all replicas.
#[derive(Clone)]
struct SimSharedWecom(Arc<Mutex<Inner>>);

struct Inner {
    rng: SimRng,
    connections: Vec<FakeConnection>,
    accounts: HashMap<String, SimSharedAccount>,
    last_serial: u64,
    /// When the store or a connection to it last had a fault.
    last_fault_at: Instant,
    /// By token, when it was first requested and last returned.
    fetch_times: HashMap<u64, (Instant, Instant)>,
    counts: SimReplicaCounts,
    violation: Option<String>,
}

#[derive(Default)]
struct SimSharedAccount {
    granted: Option<(u64, Instant)>,
    in_flight: usize,
}

impl SimSharedWecom {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    fn check(&self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.inner().violation.get_or_insert_with(otherwise);
        }
    }

    fn accepts(&self, account: &str, token: &Token) -> bool {
        let inner = self.inner();
        let granted = inner.accounts.get(account).and_then(|account| account.granted);
        granted.is_some_and(|(last, until)| last == serial(token) && Instant::now() < until)
    }

    fn void_token(&self, account: &str) {
        if let Some(account) = self.inner().accounts.get_mut(account) {
            account.granted = None;
        }
    }

    /// Starts a call; returns the delay of its response, and whether it fails.
    fn start_call(&self, account: &str) -> (Duration, bool) {
        let mut inner = self.inner();
        let without_fault = inner.last_fault_at + FAULT_RECOVERY_TIMEOUT < Instant::now()
            && inner
                .connections
                .iter()
                .all(|connection| !connection.state().is_disconnected && !connection.state().is_stalled);
        inner.counts.gettokens += 1;
        inner.counts.gettokens_without_fault += usize::from(without_fault);
        let in_flight = &mut inner.accounts.entry(account.to_owned()).or_default().in_flight;
        *in_flight += 1;
        let concurrent = without_fault && *in_flight > 1;
        let delay = Duration::from_millis(inner.rng.choose(&[
            0,
            5,
            50,
            500,
            MAX_GETTOKEN_TIMEOUT.as_millis() as u64,
        ]));
        let fails = inner.rng.below(20) == 0;
        drop(inner);
        self.check(!concurrent, || format!("two gettokens at once for {account}"));
        (delay, fails)
    }

    /// The order of two tokens that were fetched concurrently is unknown.
    fn may_replace(&self, older: u64, newer: u64) -> bool {
        let inner = self.inner();
        let (older, newer) = (inner.fetch_times.get(&older), inner.fetch_times.get(&newer));
        older.zip(newer).is_some_and(|((_, returned_at), (requested_at, _))| returned_at >= requested_at)
    }

    fn finish_call(
        &self,
        account: &str,
        requested_at: Instant,
        fails: bool,
    ) -> Result<GettokenResponse, FetchError> {
        let mut inner = self.inner();
        let now = Instant::now();
        let next = inner.last_serial + 1;
        let account = inner.accounts.entry(account.to_owned()).or_default();
        account.in_flight -= 1;
        if fails {
            return Err(FetchError::Errcode { errcode: -1, errmsg: "random".to_owned() });
        }
        let valid = account.granted.filter(|(_, until)| now < *until);
        let (serial, until) = *account.granted.insert(valid.unwrap_or((next, now + TOKEN_TTL)));
        inner.last_serial = inner.last_serial.max(serial);
        inner.fetch_times.entry(serial).or_insert((requested_at, now)).1 = now;
        Ok(GettokenResponse { token: Masked::new(format!("T{serial}")), expires_in: until - now })
    }
}

impl FetchToken for SimSharedWecom {
    fn fetch<'a>(
        &'a self,
        credentials: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<GettokenResponse, FetchError>> + Send + 'a>> {
        Box::pin(async move {
            let requested_at = Instant::now();
            let (delay, fails) = self.start_call(&credentials.corpid);
            sleep(delay).await;
            self.finish_call(&credentials.corpid, requested_at, fails)
        })
    }
}

/// A request as the proxy makes it.
async fn request(wecom: SimSharedWecom, entry: Arc<CachedToken>) {
    let account = entry.credentials().corpid.as_str();
    let Ok(token) = entry.current_or_fetch().await else { return wecom.inner().counts.failed += 1 };
    sleep(Duration::from_millis(20)).await;
    if wecom.accepts(account, &token) {
        token.mark_accepted_on(path());
        return wecom.inner().counts.succeeded += 1;
    }
    match entry.replace_refused(&token, path()).await {
        ReplaceOutcome::Refreshed(next) => {
            wecom.inner().counts.refreshed += 1;
            if !wecom.accepts(account, &next) {
                entry.mark_refused_again(&next, path());
            }
        }
        ReplaceOutcome::Unchanged(_) | ReplaceOutcome::Throttled(_) | ReplaceOutcome::Unavailable(_) => {
            wecom.inner().counts.failed += 1;
        }
    }
}

struct SimReplica {
    connection: FakeConnection,
    /// Its event loop ends when it is dropped.
    _cache: Arc<TokenCache>,
    tokens: Vec<Arc<CachedToken>>,
    /// The newest token that each entry had.
    newest_serials: Vec<u64>,
}

struct SimFleet {
    rng: SimRng,
    server: FakeServer,
    wecom: SimSharedWecom,
    replicas: Vec<SimReplica>,
    requests: Vec<JoinHandle<()>>,
    /// By name in the store, the fence of its record.
    fences: HashMap<String, u64>,
}

impl SimFleet {
    fn new(seed: u64) -> Self {
        let mut rng = SimRng::new(seed);
        let server = FakeServer::default();
        server.set_drop_every(rng.choose(&[0, 3, 10]));
        let wecom = SimSharedWecom(Arc::new(Mutex::new(Inner {
            rng: rng.fork(),
            connections: Vec::new(),
            accounts: HashMap::new(),
            last_serial: 0,
            last_fault_at: Instant::now(),
            fetch_times: HashMap::new(),
            counts: SimReplicaCounts::default(),
            violation: None,
        })));
        let (count, agents) = (2 + rng.below(4), 1 + rng.below(3));
        let replicas = (0..count).map(|_| new_replica(&mut rng, &server, &wecom, agents)).collect();
        Self { rng, server, wecom, replicas, requests: Vec::new(), fences: HashMap::new() }
    }

    async fn step(&mut self) {
        let nth = self.rng.below(self.replicas.len() as u64) as usize;
        let replica = &self.replicas[nth];
        let entry = replica.tokens[self.rng.below(replica.tokens.len() as u64) as usize].clone();
        let (connection, account) = (replica.connection.clone(), entry.credentials().corpid.clone());
        match self.rng.below(40) {
            0..=17 => self.requests.push(tokio::spawn(request(self.wecom.clone(), entry))),
            18..=21 => self.wecom.void_token(&account),
            22 => self.inject_fault(|| connection.update_state(|state| state.is_disconnected = true)),
            23 => self.inject_fault(|| connection.update_state(|state| state.is_stalled = true)),
            24 if self.rng.below(4) == 0 => {
                let connections: Vec<_> =
                    self.replicas.iter().map(|replica| replica.connection.clone()).collect();
                self.inject_fault(|| {
                    connections
                        .iter()
                        .for_each(|connection| connection.update_state(|state| state.is_disconnected = true))
                });
            }
            25 if self.rng.below(8) == 0 => {
                let server = self.server.clone();
                self.inject_fault(|| server.clear());
                self.fences.clear();
            }
            26..=28 => self.heal(),
            29 => {
                let delay = Duration::from_millis(self.rng.choose(&[0, 1, 20, 80]));
                connection.update_state(|state| state.latency = delay);
            }
            30 if self.rng.below(10) == 0 => advance(self.rng.below(8000) as f64).await,
            31..=33 => advance(self.rng.below(30) as f64).await,
            _ => advance(self.rng.below(1000) as f64 / 1000.0).await,
        }
        for _ in 0..self.rng.below(6) {
            tokio::task::yield_now().await;
        }
        self.check_invariants();
    }

    fn inject_fault(&self, make: impl FnOnce()) {
        make();
        let mut inner = self.wecom.inner();
        inner.last_fault_at = Instant::now();
        inner.counts.faults += 1;
    }

    fn heal(&self) {
        for replica in &self.replicas {
            replica
                .connection
                .update_state(|state| (state.is_disconnected, state.is_stalled) = (false, false));
        }
        self.wecom.inner().last_fault_at = Instant::now();
    }

    /// Checks the invariants.
    fn check_invariants(&mut self) {
        for replica in &mut self.replicas {
            for (entry, newest) in replica.tokens.iter().zip(&mut replica.newest_serials) {
                let Some(current) = entry.current.load_full() else { continue };
                let newer = serial(&current);
                let is_right = newer >= *newest || self.wecom.may_replace(newer, *newest);
                self.wecom.check(is_right, || format!("token {newer} replaced {newest}"));
                *newest = newer;
                if Instant::now() < current.usable_until {
                    let polled = pin!(entry.current_or_fetch()).poll(&mut Context::from_waker(Waker::noop()));
                    let at_once = matches!(&polled, Poll::Ready(Ok(token)) if token.is_same_as(&current));
                    self.wecom.check(at_once, || format!("a valid token, but {polled:?}"));
                }
            }
        }
        for entry in &self.replicas[0].tokens {
            let name = entry.id.store_name();
            let Some((fence, _)) = self.server.record(&name) else { continue };
            let before = self.fences.insert(name, fence).unwrap_or_default();
            self.wecom.check(fence >= before, || format!("record {fence} over record {before}"));
        }
        self.requests.retain(|request| !request.is_finished());
    }

    /// Without faults, all requests complete and all replicas converge to one token.
    async fn finish(mut self) -> SimReplicaCounts {
        self.heal();
        self.server.set_drop_every(0);
        for request in std::mem::take(&mut self.requests) {
            let result = tokio::time::timeout(Duration::from_secs(120), request).await;
            self.wecom.check(result.is_ok(), || "a request hangs".to_owned());
        }
        // Waits until all backoffs have ended.
        advance(1000.0).await;
        self.wecom.inner().rng = SimRng::new(1);
        for nth in 0..self.replicas[0].tokens.len() {
            self.check_convergence(nth).await;
        }
        let store_calls = self.server.script_calls();
        SimReplicaCounts { store_calls, ..self.wecom.inner().counts }
    }

    async fn check_convergence(&self, nth: usize) {
        let first = self.replicas[0].tokens[nth].clone();
        // After a token is voided, the first request detects it, and the notification informs all replicas.
        for _ in 0..5 {
            for replica in &self.replicas {
                request(self.wecom.clone(), replica.tokens[nth].clone()).await;
            }
            advance(70.0).await;
        }
        self.wecom.void_token(&first.credentials().corpid);
        request(self.wecom.clone(), first.clone()).await;
        advance(70.0).await;
        request(self.wecom.clone(), first.clone()).await;
        advance(1.0).await;
        let current =
            |entry: &CachedToken| entry.current.load().as_ref().map(|token| (serial(token), token.fence()));
        let tokens: Vec<_> = self.replicas.iter().map(|replica| current(&replica.tokens[nth])).collect();
        let same = tokens.iter().all(|one| one.is_some() && *one == tokens[0]);
        self.wecom.check(same, || format!("replicas do not converge: {tokens:?}"));
    }
}

fn new_replica(rng: &mut SimRng, server: &FakeServer, wecom: &SimSharedWecom, agents: u64) -> SimReplica {
    let (store, events, connection) = server.connect_store();
    wecom.inner().connections.push(connection.clone());
    let jitter = rng.fork().into_shared();
    let settings = RefreshSettings { refresh_ahead: Duration::from_secs(300), renewals_per_hour: None };
    let mut service = TokenService::new(Box::new(wecom.clone()), Handle::current(), settings, Some(store));
    service.jitter = Box::new(move || jitter.fraction());
    let cache = TokenCache::of_service(service);
    tokio::spawn(super::super::replicas::run_event_loop(Arc::downgrade(&cache), events));
    let entries: Vec<_> = (0..agents).map(|nth| agent_token(&cache, &format!("agent-{nth}"))).collect();
    SimReplica { connection, _cache: cache, newest_serials: vec![0; entries.len()], tokens: entries }
}

fn run(seed: u64) -> SimReplicaCounts {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let mut fleet = SimFleet::new(seed);
        for step in 0..STEPS {
            fleet.step().await;
            if let Some(violation) = &fleet.wecom.inner().violation {
                panic!("seed {seed}, step {step}: {violation}");
            }
        }
        let wecom = fleet.wecom.clone();
        let counts = fleet.finish().await;
        if let Some(violation) = &wecom.inner().violation {
            panic!("seed {seed}, at the end: {violation}");
        }
        counts
    })
}

#[test]
fn replicas_keep_every_invariant_at_every_step() {
    if let Some(seed) = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok()) {
        println!("{:?}", run(seed));
        return;
    }
    let mut counts = SimReplicaCounts::default();
    (1..=SEEDS).for_each(|seed| counts += run(seed));
    println!("{counts:?}");
    let SimReplicaCounts {
        succeeded,
        refreshed,
        failed,
        gettokens,
        gettokens_without_fault,
        faults,
        store_calls,
    } = counts;
    let rarest = [succeeded, refreshed, failed, gettokens, gettokens_without_fault, faults, store_calls];
    assert!(rarest.into_iter().all(|count| count > 500), "too few events: {counts:?}");
}
