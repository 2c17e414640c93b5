//! Replicas that share a store, by chance: claims, leases, news, outages, replicas that sleep, a store that forgets, between
//! requests and voided tokens. All is drawn from a seed, in paused time: `SIMULATION_SEED=17 cargo test replicas`.

use std::{
    collections::HashMap,
    future::Future,
    ops::AddAssign,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    super::{Credentials, FetchError, Issuer, RenewalSettings, Replacement, Source, Token, TokenSlot},
    fake::{agent, pass, path, serial},
    simulation::chance::Chance,
};
use crate::{
    secret::Masked,
    store::pretended::{Line, Server},
    wecom::reply::Grant,
};

const SEEDS: u64 = 200;
const STEPS: usize = 400;
const LIFE: Duration = Duration::from_secs(7200);
/// Longest that gettoken takes.
const SLOWEST: Duration = Duration::from_secs(8);
/// So long after the last trouble what began in it may go on: a gettoken, and a lease.
const AFTERMATH: Duration = Duration::from_secs(15);

/// What happened, so that a simulation in which nothing does cannot pass.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    answered: usize,
    renewed: usize,
    failed: usize,
    gettokens: usize,
    /// Gettokens while all was well, of which no two may be under way for one agent.
    in_peace: usize,
    troubles: usize,
    asked: usize,
}

impl AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.answered += other.answered;
        self.renewed += other.renewed;
        self.failed += other.failed;
        self.gettokens += other.gettokens;
        self.in_peace += other.in_peace;
        self.troubles += other.troubles;
        self.asked += other.asked;
    }
}

/// The far side, one for all replicas.
#[derive(Clone)]
struct Wecom(Arc<Mutex<Inner>>);

struct Inner {
    chance: Chance,
    lines: Vec<Line>,
    accounts: HashMap<String, Account>,
    serial: u64,
    /// When something was last wrong with the store or the way to it.
    troubled: Instant,
    /// By token, when it was first asked for and last given.
    flights: HashMap<u64, (Instant, Instant)>,
    seen: Seen,
    breach: Option<String>,
}

#[derive(Default)]
struct Account {
    granted: Option<(u64, Instant)>,
    in_flight: usize,
}

impl Wecom {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.inner().breach.get_or_insert_with(otherwise);
        }
    }

    fn accepts(&self, account: &str, token: &Token) -> bool {
        let inner = self.inner();
        let granted = inner.accounts.get(account).and_then(|account| account.granted);
        granted.is_some_and(|(last, until)| last == serial(token) && Instant::now() < until)
    }

    fn void(&self, account: &str) {
        if let Some(account) = self.inner().accounts.get_mut(account) {
            account.granted = None;
        }
    }

    /// Takes a call; how long its answer takes, and whether it fails.
    fn begin(&self, account: &str) -> (Duration, bool) {
        let mut inner = self.inner();
        let in_peace = inner.troubled + AFTERMATH < Instant::now()
            && inner.lines.iter().all(|line| !line.state().is_cut && !line.state().is_frozen);
        inner.seen.gettokens += 1;
        inner.seen.in_peace += usize::from(in_peace);
        let flights = &mut inner.accounts.entry(account.to_owned()).or_default().in_flight;
        *flights += 1;
        let two = in_peace && *flights > 1;
        let delay = Duration::from_millis(inner.chance.one_of(&[0, 5, 50, 500, SLOWEST.as_millis() as u64]));
        let fails = inner.chance.below(20) == 0;
        drop(inner);
        self.expect(!two, || format!("two gettokens at once for {account}"));
        (delay, fails)
    }

    /// Nobody can know which of two is the older that were under way together.
    fn may_follow(&self, older: u64, newer: u64) -> bool {
        let inner = self.inner();
        let (older, newer) = (inner.flights.get(&older), inner.flights.get(&newer));
        older.zip(newer).is_some_and(|((_, given), (asked, _))| given >= asked)
    }

    fn end(&self, account: &str, asked: Instant, fails: bool) -> Result<Grant, FetchError> {
        let mut inner = self.inner();
        let now = Instant::now();
        let next = inner.serial + 1;
        let account = inner.accounts.entry(account.to_owned()).or_default();
        account.in_flight -= 1;
        if fails {
            return Err(FetchError::Refused { errcode: -1, errmsg: "as it likes".to_owned() });
        }
        let known = account.granted.filter(|(_, until)| now < *until);
        let (serial, until) = *account.granted.insert(known.unwrap_or((next, now + LIFE)));
        inner.serial = inner.serial.max(serial);
        inner.flights.entry(serial).or_insert((asked, now)).1 = now;
        Ok(Grant { token: Masked::new(format!("T{serial}")), expires_in: until - now })
    }
}

impl Source for Wecom {
    fn fetch<'a>(
        &'a self,
        credentials: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<Grant, FetchError>> + Send + 'a>> {
        Box::pin(async move {
            let asked = Instant::now();
            let (delay, fails) = self.begin(&credentials.corpid);
            sleep(delay).await;
            self.end(&credentials.corpid, asked, fails)
        })
    }
}

/// A request as the proxy makes it.
async fn request(wecom: Wecom, slot: Arc<TokenSlot>) {
    let account = slot.credentials().corpid.as_str();
    let Ok(token) = slot.current().await else { return wecom.inner().seen.failed += 1 };
    sleep(Duration::from_millis(20)).await;
    if wecom.accepts(account, &token) {
        token.worked_on(path());
        return wecom.inner().seen.answered += 1;
    }
    match slot.replace(&token, path()).await {
        Replacement::Renewed(next) => {
            wecom.inner().seen.renewed += 1;
            if !wecom.accepts(account, &next) {
                slot.refused_again(&next, path());
            }
        }
        Replacement::SameAgain(_) | Replacement::Held(_) | Replacement::Unavailable(_) => {
            wecom.inner().seen.failed += 1;
        }
    }
}

struct Replica {
    line: Line,
    slots: Vec<Arc<TokenSlot>>,
    /// The newest token that each had.
    newest: Vec<u64>,
}

struct Fleet {
    chance: Chance,
    server: Server,
    wecom: Wecom,
    replicas: Vec<Replica>,
    requests: Vec<JoinHandle<()>>,
    /// By name in the store, the fence of its record.
    fences: HashMap<String, u64>,
}

impl Fleet {
    fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let server = Server::default();
        server.loses(chance.one_of(&[0, 3, 10]));
        let wecom = Wecom(Arc::new(Mutex::new(Inner {
            chance: chance.fork(),
            lines: Vec::new(),
            accounts: HashMap::new(),
            serial: 0,
            troubled: Instant::now(),
            flights: HashMap::new(),
            seen: Seen::default(),
            breach: None,
        })));
        let (count, agents) = (2 + chance.below(4), 1 + chance.below(3));
        let replicas = (0..count).map(|_| replica(&mut chance, &server, &wecom, agents)).collect();
        Self { chance, server, wecom, replicas, requests: Vec::new(), fences: HashMap::new() }
    }

    async fn step(&mut self) {
        let nth = self.chance.below(self.replicas.len() as u64) as usize;
        let replica = &self.replicas[nth];
        let slot = replica.slots[self.chance.below(replica.slots.len() as u64) as usize].clone();
        let (line, account) = (replica.line.clone(), slot.credentials().corpid.clone());
        match self.chance.below(40) {
            0..=17 => self.requests.push(tokio::spawn(request(self.wecom.clone(), slot))),
            18..=21 => self.wecom.void(&account),
            22 => self.trouble(|| line.set(|state| state.is_cut = true)),
            23 => self.trouble(|| line.set(|state| state.is_frozen = true)),
            24 if self.chance.below(4) == 0 => {
                let lines: Vec<_> = self.replicas.iter().map(|replica| replica.line.clone()).collect();
                self.trouble(|| lines.iter().for_each(|line| line.set(|state| state.is_cut = true)));
            }
            25 if self.chance.below(8) == 0 => {
                let server = self.server.clone();
                self.trouble(|| server.wipe());
                self.fences.clear();
            }
            26..=28 => self.mend(),
            29 => {
                let delay = Duration::from_millis(self.chance.one_of(&[0, 1, 20, 80]));
                line.set(|state| state.delay = delay);
            }
            30 if self.chance.below(10) == 0 => pass(self.chance.below(8000) as f64).await,
            31..=33 => pass(self.chance.below(30) as f64).await,
            _ => pass(self.chance.below(1000) as f64 / 1000.0).await,
        }
        for _ in 0..self.chance.below(6) {
            tokio::task::yield_now().await;
        }
        self.check();
    }

    fn trouble(&self, make: impl FnOnce()) {
        make();
        let mut inner = self.wecom.inner();
        inner.troubled = Instant::now();
        inner.seen.troubles += 1;
    }

    fn mend(&self) {
        for replica in &self.replicas {
            replica.line.set(|state| (state.is_cut, state.is_frozen) = (false, false));
        }
        self.wecom.inner().troubled = Instant::now();
    }

    /// What holds at any moment.
    fn check(&mut self) {
        for replica in &mut self.replicas {
            for (slot, newest) in replica.slots.iter().zip(&mut replica.newest) {
                let Some(current) = slot.current.load_full() else { continue };
                let is = serial(&current);
                let is_right = is >= *newest || self.wecom.may_follow(is, *newest);
                self.wecom.expect(is_right, || format!("token {is} took the place of {newest}"));
                *newest = is;
                if Instant::now() < current.usable_until {
                    let polled = pin!(slot.current()).poll(&mut Context::from_waker(Waker::noop()));
                    let at_once = matches!(&polled, Poll::Ready(Ok(token)) if token.is_same_as(&current));
                    self.wecom.expect(at_once, || format!("a token that serves, and yet {polled:?}"));
                }
            }
        }
        for slot in &self.replicas[0].slots {
            let name = slot.credentials().name_in_store("");
            let Some((fence, _)) = self.server.record(&name) else { continue };
            let before = self.fences.insert(name, fence).unwrap_or_default();
            self.wecom.expect(fence >= before, || format!("record {fence} over record {before}"));
        }
        self.requests.retain(|request| !request.is_finished());
    }

    /// When all is well again, all come to an end, and to the same token.
    async fn end(mut self) -> Seen {
        self.mend();
        self.server.loses(0);
        for request in std::mem::take(&mut self.requests) {
            let ended = tokio::time::timeout(Duration::from_secs(120), request).await;
            self.wecom.expect(ended.is_ok(), || "a request hangs".to_owned());
        }
        // Failures are left alone for a while.
        pass(1000.0).await;
        self.wecom.inner().chance = Chance::new(1);
        for nth in 0..self.replicas[0].slots.len() {
            self.converges(nth).await;
        }
        let asked = self.server.asked();
        Seen { asked, ..self.wecom.inner().seen }
    }

    async fn converges(&self, nth: usize) {
        let first = self.replicas[0].slots[nth].clone();
        // Once voided, the first who asks finds out, and the news tell all.
        for _ in 0..5 {
            for replica in &self.replicas {
                request(self.wecom.clone(), replica.slots[nth].clone()).await;
            }
            pass(70.0).await;
        }
        self.wecom.void(&first.credentials().corpid);
        request(self.wecom.clone(), first.clone()).await;
        pass(70.0).await;
        request(self.wecom.clone(), first.clone()).await;
        pass(1.0).await;
        let current =
            |slot: &TokenSlot| slot.current.load().as_ref().map(|token| (serial(token), token.fence()));
        let all: Vec<_> = self.replicas.iter().map(|replica| current(&replica.slots[nth])).collect();
        let same = all.iter().all(|one| one.is_some() && *one == all[0]);
        self.wecom.expect(same, || format!("they do not come together: {all:?}"));
    }
}

fn replica(chance: &mut Chance, server: &Server, wecom: &Wecom, agents: u64) -> Replica {
    let (store, said, line) = server.store();
    wecom.inner().lines.push(line.clone());
    let jitter = chance.fork().shared();
    let bounds = RenewalSettings { refresh_ahead: Duration::from_secs(300), renewals_per_hour: None };
    let mut issuer = Issuer::with(
        Box::new(wecom.clone()),
        Handle::current(),
        bounds,
        Some(super::super::shared::Shared::new(store)),
    );
    issuer.jitter = Box::new(move || jitter.unit());
    let issuer = Arc::new(issuer);
    tokio::spawn(super::super::shared::listen(Arc::downgrade(&issuer), said));
    let slots: Vec<_> = (0..agents).map(|nth| agent(&issuer, &format!("agent-{nth}"))).collect();
    Replica { line, newest: vec![0; slots.len()], slots }
}

fn run(seed: u64) -> Seen {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let mut fleet = Fleet::new(seed);
        for step in 0..STEPS {
            fleet.step().await;
            if let Some(breach) = &fleet.wecom.inner().breach {
                panic!("seed {seed}, step {step}: {breach}");
            }
        }
        let wecom = fleet.wecom.clone();
        let seen = fleet.end().await;
        if let Some(breach) = &wecom.inner().breach {
            panic!("seed {seed}, at the end: {breach}");
        }
        seen
    })
}

#[test]
fn replicas_keep_every_promise_at_every_step() {
    if let Some(seed) = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok()) {
        println!("{:?}", run(seed));
        return;
    }
    let mut seen = Seen::default();
    (1..=SEEDS).for_each(|seed| seen += run(seed));
    println!("{seen:?}");
    let Seen { answered, renewed, failed, gettokens, in_peace, troubles, asked } = seen;
    let rarest = [answered, renewed, failed, gettokens, in_peace, troubles, asked];
    assert!(rarest.into_iter().all(|times| times > 500), "too little happened: {seen:?}");
}
