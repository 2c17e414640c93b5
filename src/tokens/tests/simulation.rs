//! Long random runs, compared with a model at every step. Everything is drawn from a seed, and time and tasks
//! are those of one paused runtime, so that a failed run can be repeated: `SIMULATION_SEED=17 cargo test
//! simulation`.

pub(super) mod rng;
mod wecom; // the simulated WeCom, and what it can check by the calls it gets

use std::{
    future::{Future, poll_fn},
    ops::AddAssign,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{runtime::Handle, task::JoinHandle, time::Instant};

use self::{
    rng::SimRng,
    wecom::{MAX_GETTOKEN_TIMEOUT, SimBehavior, SimWecom},
};
use super::fake_gettoken::{advance, path, serial};
use crate::tokens::{
    CachedToken, Credentials, PathKey, RefreshSettings, ReplaceOutcome, Token, TokenCache,
    service::TokenService,
};
use crate::{config, secret::Masked};

const SEEDS: u64 = 200;
const STEPS: usize = 2_000;

/// Event counts, so that a simulation without events cannot pass.
#[derive(Debug, Default, Clone, Copy)]
struct SimCounts {
    succeeded: usize,
    refreshed: usize,
    unchanged: usize,
    throttled: usize,
    unavailable: usize,
    failed: usize,
    refused_again: usize,
    cancelled: usize,
    recreated: usize,
}

impl AddAssign for SimCounts {
    fn add_assign(&mut self, other: Self) {
        self.succeeded += other.succeeded;
        self.refreshed += other.refreshed;
        self.unchanged += other.unchanged;
        self.throttled += other.throttled;
        self.unavailable += other.unavailable;
        self.failed += other.failed;
        self.refused_again += other.refused_again;
        self.cancelled += other.cancelled;
        self.recreated += other.recreated;
    }
}

/// An agent as in the directory: its cache entry, and the number of its current secret.
struct SimAgent {
    name: String,
    secret: usize,
    token: Arc<CachedToken>,
    /// Earlier tokens, for refusals that come very late.
    old_tokens: Vec<Arc<Token>>,
}

/// A request as the proxy makes it.
struct SimRequest {
    wecom: SimWecom,
    token: Arc<CachedToken>,
    request_delay: Duration,
    response_delay: Duration,
    /// It calls a path that refuses every token.
    is_forbidden: bool,
}

impl SimRequest {
    async fn run(self) {
        let Self { wecom, token: entry, .. } = &self;
        let path = if self.is_forbidden { PathKey::from_path("/cgi-bin/forbidden") } else { path() };
        let token = match entry.cached(Instant::now()) {
            Some(token) => token,
            None => match await_bounded(wecom, false, entry.current_or_fetch()).await {
                Ok(token) => token,
                Err(_) => return wecom.count(|counts| counts.failed += 1),
            },
        };
        if self.is_accepted(&token).await {
            token.mark_accepted_on(path);
            return wecom.count(|counts| counts.succeeded += 1);
        }
        let newer = usable_token(entry).is_some_and(|current| !current.is_same_as(&token));
        let next = match await_bounded(wecom, newer, entry.replace_refused(&token, path)).await {
            ReplaceOutcome::Refreshed(next) => {
                wecom.check(serial(&next) > serial(&token), || "an older token for a newer one".to_owned());
                wecom.count(|counts| counts.refreshed += 1);
                next
            }
            ReplaceOutcome::Unchanged(next) => {
                wecom.check(next.is_same_as(&token), || "another token counts as unchanged".to_owned());
                wecom.record_unchanged(entry.credentials(), &next);
                wecom.count(|counts| counts.unchanged += 1);
                next
            }
            ReplaceOutcome::Throttled(_) => return wecom.count(|counts| counts.throttled += 1),
            ReplaceOutcome::Unavailable(_) => return wecom.count(|counts| counts.unavailable += 1),
        };
        if self.is_accepted(&next).await {
            next.mark_accepted_on(path);
            return wecom.count(|counts| counts.succeeded += 1);
        }
        entry.mark_refused_again(&next, path);
        wecom.count(|counts| counts.refused_again += 1);
    }

    async fn is_accepted(&self, token: &Token) -> bool {
        tokio::time::sleep(self.request_delay).await;
        let accepted = !self.is_forbidden && self.wecom.accepts(self.token.credentials(), token);
        tokio::time::sleep(self.response_delay).await;
        accepted
    }
}

/// Checks that a call waits at most for one gettoken, and not at all if it needs none.
async fn await_bounded<T>(wecom: &SimWecom, at_once: bool, call: impl Future<Output = T>) -> T {
    let (mut call, mut polls, started_at) = (pin!(call), 0, Instant::now());
    let output = poll_fn(|context| {
        polls += 1;
        call.as_mut().poll(context)
    })
    .await;
    wecom.check(!at_once || polls == 1, || "a request waits although it has a valid token".to_owned());
    let waited = started_at.elapsed();
    wecom.check(waited <= MAX_GETTOKEN_TIMEOUT, || format!("a request waited {waited:?}"));
    output
}

/// The current token, if it is valid; without marking it as used.
fn usable_token(entry: &CachedToken) -> Option<Arc<Token>> {
    entry.current.load_full().filter(|token| Instant::now() < token.usable_until)
}

struct Simulation {
    rng: SimRng,
    wecom: SimWecom,
    cache: Arc<TokenCache>,
    agents: Vec<SimAgent>,
    requests: Vec<JoinHandle<()>>,
    /// Longest time that most kinds of steps take, in milliseconds.
    max_step_ms: u64,
    /// Manual refreshes are very frequent.
    has_many_manual_refreshes: bool,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut rng = SimRng::new(seed);
        let max_step_ms = rng.choose(&[300, 3_000, 30_000]);
        let (agents, has_many_manual_refreshes) = (1 + rng.below(4), max_step_ms == 300 && rng.below(2) == 0);
        let (wecom, jitter) =
            (SimWecom::new(rng.fork(), has_many_manual_refreshes), rng.fork().into_shared());
        let settings = RefreshSettings { refresh_ahead: Duration::from_secs(300), renewals_per_hour: None };
        let service = TokenService::new(Box::new(wecom.clone()), Handle::current(), settings, None);
        let cache =
            TokenCache::of_service(TokenService { jitter: Box::new(move || jitter.fraction()), ..service });
        let mut simulation = Self {
            rng,
            wecom,
            cache,
            agents: Vec::new(),
            requests: Vec::new(),
            max_step_ms,
            has_many_manual_refreshes,
        };
        for nth in 0..agents {
            let name = format!("agent-{nth}");
            let entry = simulation.new_token(&name, 0);
            simulation.agents.push(SimAgent { name, secret: 0, token: entry, old_tokens: Vec::new() });
        }
        simulation
    }

    fn new_token(&mut self, name: &str, secret: usize) -> Arc<CachedToken> {
        let secret = Masked::new(format!("not-a-secret-{secret}"));
        let credentials = Credentials {
            corpid: name.into(),
            secret,
            upstream: config::UpstreamId::default(),
            generation: 0,
        };
        let entry = self.cache.entry(name, credentials, false);
        let ttl = self.rng.choose(&[2, 60, 7_200, 7_200, 24 * 3_600]);
        self.wecom.open_account(&entry, Duration::from_secs(ttl));
        entry
    }

    async fn step(&mut self) {
        let nth = self.rng.below(self.agents.len() as u64) as usize;
        let entry = self.agents[nth].token.clone();
        match self.rng.below(40) {
            0..=15 => self.send_request(entry),
            16..=18 => self.wecom.void_token(entry.credentials()),
            19..=20 => self.wecom.set_behavior(entry.credentials(), SimBehavior::DEFAULT),
            21 => {
                let behavior = self.rng.choose(&SimBehavior::FAULTS);
                self.wecom.set_behavior(entry.credentials(), behavior);
            }
            22..=23 if !self.requests.is_empty() => {
                let index = self.rng.below(self.requests.len() as u64) as usize;
                self.requests.swap_remove(index).abort();
                self.wecom.count(|counts| counts.cancelled += 1);
            }
            24 => self.refresh_manually(entry),
            27..=34 if self.has_many_manual_refreshes => self.refresh_manually(entry),
            37 if self.rng.below(8) == 0 => self.reload_agents(),
            38..=39 => self.refuse_old_token(nth),
            25 => advance(self.rng.below(self.max_step_ms * 30) as f64 / 1_000.0).await,
            26 if self.rng.below(20) == 0 => advance(self.rng.below(9_000) as f64).await,
            _ => advance(self.rng.below(self.max_step_ms) as f64 / 1_000.0).await,
        }
        for _ in 0..self.rng.below(4) {
            tokio::task::yield_now().await;
        }
        self.check_invariants();
    }

    fn send_request(&mut self, entry: Arc<CachedToken>) {
        let request = SimRequest {
            wecom: self.wecom.clone(),
            token: entry,
            request_delay: Duration::from_millis(self.rng.below(50)),
            // Some refusals arrive long after what followed them.
            response_delay: Duration::from_millis(self.rng.choose(&[0, 10, 1_000, 20_000])),
            is_forbidden: self.rng.below(20) == 0,
        };
        self.requests.push(tokio::spawn(request.run()));
    }

    fn refresh_manually(&mut self, entry: Arc<CachedToken>) {
        let wecom = self.wecom.clone();
        self.requests.push(tokio::spawn(async move {
            wecom.reset_backoff(&entry);
            let _ = await_bounded(&wecom, false, entry.force_refresh()).await;
        }));
    }

    /// Agents whose secret did not change keep their entries; running requests keep the entry they have.
    fn reload_agents(&mut self) {
        for nth in 0..self.agents.len() {
            if self.rng.below(2) == 0 {
                let (name, secret) = (self.agents[nth].name.clone(), self.agents[nth].secret + 1);
                let entry = self.new_token(&name, secret);
                self.agents[nth] = SimAgent { name, secret, token: entry, old_tokens: Vec::new() };
                self.wecom.count(|counts| counts.recreated += 1);
            }
        }
    }

    /// The refusal of a token that is no longer the current one.
    fn refuse_old_token(&mut self, nth: usize) {
        let SimAgent { token: entry, old_tokens, .. } = &self.agents[nth];
        let Some(current) = usable_token(entry) else { return };
        let Some(old_token) = old_tokens.iter().find(|old_token| !old_token.is_same_as(&current)) else {
            return;
        };
        let polled =
            pin!(entry.replace_refused(old_token, path())).poll(&mut Context::from_waker(Waker::noop()));
        let is_right =
            matches!(&polled, Poll::Ready(ReplaceOutcome::Refreshed(next)) if next.is_same_as(&current));
        self.wecom.check(is_right, || format!("the refusal of an old token returned {polled:?}"));
    }

    /// Checks the invariants.
    fn check_invariants(&mut self) {
        for SimAgent { token: entry, old_tokens, .. } in &mut self.agents {
            let current = entry.current.load_full();
            if let Some(current) = &current {
                self.wecom.check_token(entry.credentials(), current);
                if old_tokens.last().is_none_or(|last| !last.is_same_as(current)) {
                    old_tokens.push(current.clone());
                    old_tokens.truncate(8);
                }
            }
            let ask = || pin!(entry.current_or_fetch()).poll(&mut Context::from_waker(Waker::noop()));
            if let Some(current) = usable_token(entry) {
                let polled = ask();
                let is_right = matches!(&polled, Poll::Ready(Ok(token)) if token.is_same_as(&current));
                self.wecom.check(is_right, || format!("a valid token, but {polled:?}"));
            } else if entry.state.lock().refresh.running().is_none()
                && let Some(errcode) = self.wecom.backoff_errcode(entry.credentials())
            {
                let polled = ask();
                let is_right = matches!(&polled, Poll::Ready(Err(failure)) if failure.errcode() == errcode);
                self.wecom.check(is_right, || format!("backoff after {errcode}, but {polled:?}"));
            }
        }
        self.requests.retain(|request| !request.is_finished());
    }

    /// Once WeCom responds, all requests complete.
    async fn finish(self) -> SimCounts {
        for request in self.requests {
            let result = tokio::time::timeout(3 * MAX_GETTOKEN_TIMEOUT, request).await;
            self.wecom.check(result.is_ok(), || "a request hangs".to_owned());
        }
        self.wecom.check_hourly_calls();
        self.wecom.counts()
    }
}

fn run(seed: u64) -> SimCounts {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let mut simulation = Simulation::new(seed);
        for step in 0..STEPS {
            simulation.step().await;
            if let Some(violation) = simulation.wecom.violation() {
                panic!("seed {seed}, step {step}: {violation}");
            }
        }
        let wecom = simulation.wecom.clone();
        let counts = simulation.finish().await;
        if let Some(violation) = wecom.violation() {
            panic!("seed {seed}, at the end: {violation}");
        }
        counts
    })
}

#[test]
fn random_lifecycle_keeps_every_invariant_at_every_step() {
    if let Some(seed) = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok()) {
        println!("{:?}", run(seed));
        return;
    }
    let mut counts = SimCounts::default();
    (1..=SEEDS).for_each(|seed| counts += run(seed));
    println!("{counts:?}");
    let SimCounts { succeeded, refreshed, unchanged, throttled, unavailable, failed, .. } = counts;
    let SimCounts { refused_again, cancelled, recreated, .. } = counts;
    let rarest = [
        succeeded,
        refreshed,
        unchanged,
        throttled,
        unavailable,
        failed,
        refused_again,
        cancelled,
        recreated,
    ];
    assert!(rarest.into_iter().all(|count| count > 500), "too few events: {counts:?}");
}

#[test]
fn same_seed_repeats_the_same_run() {
    assert_eq!(format!("{:?}", run(7)), format!("{:?}", run(7)));
}
