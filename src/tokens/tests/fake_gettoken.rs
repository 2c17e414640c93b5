//! A scripted gettoken that counts its calls.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use tokio::{runtime::Handle, sync::watch, time::Instant};

use crate::tokens::{
    CachedToken, Credentials, FetchError, FetchToken, Outcome, PathKey, RefreshSettings, ReplaceOutcome,
    Token, TokenCache,
};
use crate::{config, secret::Masked, wecom::response::GettokenResponse};

/// gettoken's response.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum FakeResponse {
    /// A new token.
    NewToken,
    /// The last token, valid or not.
    SameToken,
    /// This errcode.
    Errcode(i64),
    /// None: the fetch panics.
    Panic,
    /// None, ever.
    None,
    /// The last token while it is valid, else a new one.
    Normal,
}

/// The scripted responses and the recorded calls.
#[derive(Clone)]
pub(super) struct FakeGettoken {
    inner: Arc<Mutex<Inner>>,
    paused: Arc<watch::Sender<bool>>,
}

struct Inner {
    queued_responses: VecDeque<FakeResponse>,
    default_response: FakeResponse,
    /// By corpid, in place of the default.
    agent_responses: HashMap<String, FakeResponse>,
    /// By secret, in place of those.
    secret_responses: HashMap<String, FakeResponse>,
    token_ttl: Duration,
    /// How long each call takes.
    delay: Duration,
    /// By corpid: the last token's serial, and its expiry.
    last_tokens: HashMap<String, (u64, Instant)>,
    last_serial: u64,
    /// When gettoken was called, and for which agent.
    calls: Vec<(Instant, String)>,
    /// The secret of each call.
    secrets: Vec<String>,
    in_flight: HashMap<String, usize>,
    max_in_flight: usize,
}

impl FakeGettoken {
    pub(super) fn new(token_ttl: u64) -> Self {
        let inner = Inner {
            queued_responses: VecDeque::new(),
            default_response: FakeResponse::Normal,
            agent_responses: HashMap::new(),
            secret_responses: HashMap::new(),
            token_ttl: Duration::from_secs(token_ttl),
            delay: Duration::ZERO,
            last_tokens: HashMap::new(),
            last_serial: 0,
            calls: Vec::new(),
            secrets: Vec::new(),
            in_flight: HashMap::new(),
            max_in_flight: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)), paused: Arc::new(watch::Sender::new(false)) }
    }

    /// A service that refreshes 300 s ahead.
    pub(super) fn service(&self) -> Arc<TokenCache> {
        self.service_with_limit(None)
    }

    /// The same with an hourly limit.
    pub(super) fn service_with_limit(&self, renewals_per_hour: Option<u32>) -> Arc<TokenCache> {
        let settings = RefreshSettings { refresh_ahead: Duration::from_secs(300), renewals_per_hour };
        TokenCache::new(Box::new(self.clone()), Handle::current(), settings)
    }

    /// The cache entry of a single agent.
    pub(super) fn agent_token(&self) -> Arc<CachedToken> {
        agent_token(&self.service(), "a")
    }

    /// Queues responses.
    pub(super) fn queue_responses(&self, response: &[FakeResponse]) {
        self.inner().queued_responses.extend(response);
    }

    /// The response once the queue is empty.
    pub(super) fn set_default_response(&self, response: FakeResponse) {
        self.inner().default_response = response;
    }

    /// The same for one agent.
    pub(super) fn set_response_of(&self, agent: &str, response: FakeResponse) {
        self.inner().agent_responses.insert(agent.to_owned(), response);
    }

    /// The same for one secret.
    pub(super) fn set_response_of_secret(&self, secret: &str, response: FakeResponse) {
        self.inner().secret_responses.insert(secret.to_owned(), response);
    }

    /// The secrets of all calls, one after the other.
    pub(super) fn called_secrets(&self) -> Vec<String> {
        self.inner().secrets.clone()
    }

    /// How long each call takes.
    pub(super) fn set_delay(&self, seconds: f64) {
        self.inner().delay = Duration::from_secs_f64(seconds);
    }

    /// While paused, responses are held.
    pub(super) fn set_paused(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// Voids an agent's token.
    pub(super) fn revoke(&self, agent: &str) {
        if let Some((_, until)) = self.inner().last_tokens.get_mut(agent) {
            *until = Instant::now();
        }
    }

    /// Whether this token would be accepted.
    pub(super) fn accepts(&self, agent: &str, token: &Token) -> bool {
        let now = Instant::now();
        self.inner()
            .last_tokens
            .get(agent)
            .is_some_and(|(last, until)| *last == serial(token) && now < *until)
    }

    pub(super) fn calls(&self) -> usize {
        self.inner().calls.len()
    }

    pub(super) fn call_times(&self) -> Vec<Instant> {
        self.inner().calls.iter().map(|(at, _)| *at).collect()
    }

    /// When gettoken was called for each agent.
    pub(super) fn calls_by_agent(&self) -> HashMap<String, Vec<Instant>> {
        let mut calls: HashMap<_, Vec<_>> = HashMap::new();
        for (at, agent) in &self.inner().calls {
            calls.entry(agent.clone()).or_default().push(*at);
        }
        calls
    }

    /// Seconds between one call and the next.
    pub(super) fn call_intervals(&self) -> Vec<f64> {
        self.call_times().windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect()
    }

    /// The most concurrent calls for one agent.
    pub(super) fn max_in_flight(&self) -> usize {
        self.inner().max_in_flight
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    fn record_call(&self, Credentials { corpid, secret, .. }: &Credentials) {
        let agent = corpid.as_str();
        let mut inner = self.inner();
        inner.secrets.push(secret.expose().to_owned());
        inner.calls.push((Instant::now(), agent.to_owned()));
        let in_flight = inner.in_flight.entry(agent.to_owned()).or_default();
        *in_flight += 1;
        let in_flight = *in_flight;
        inner.max_in_flight = inner.max_in_flight.max(in_flight);
    }

    fn respond(&self, credentials: &Credentials) -> Result<GettokenResponse, FetchError> {
        let mut inner = self.inner();
        let now = Instant::now();
        let Credentials { corpid, secret, .. } = credentials;
        let agent = corpid.as_str();
        let of_secret = inner.secret_responses.get(secret.expose());
        let default = of_secret.or_else(|| inner.agent_responses.get(agent)).copied();
        let default = default.unwrap_or(inner.default_response);
        let response = inner.queued_responses.pop_front().unwrap_or(default);
        let last = inner.last_tokens.get(agent).copied();
        let serial = match (response, last) {
            (FakeResponse::Panic, _) => {
                drop(inner);
                panic!("scripted")
            }
            (FakeResponse::Errcode(errcode), _) => {
                return Err(FetchError::Errcode { errcode, errmsg: "scripted".to_owned() });
            }
            (FakeResponse::SameToken, Some((serial, _))) => serial,
            (FakeResponse::Normal, Some((serial, until))) if now < until => serial,
            _ => {
                inner.last_serial += 1;
                let (serial, until) = (inner.last_serial, now + inner.token_ttl);
                inner.last_tokens.insert(agent.to_owned(), (serial, until));
                serial
            }
        };
        Ok(GettokenResponse { token: Masked::new(format!("T{serial}")), expires_in: inner.token_ttl })
    }
}

struct CallGuard<'a>(&'a FakeGettoken, &'a str);

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        *self.0.inner().in_flight.entry(self.1.to_owned()).or_default() -= 1;
    }
}

impl FetchToken for FakeGettoken {
    fn fetch<'a>(
        &'a self,
        credentials: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<GettokenResponse, FetchError>> + Send + 'a>> {
        Box::pin(async move {
            let agent = credentials.corpid.as_str();
            self.record_call(credentials);
            let _under_way = CallGuard(self, agent);
            let delay = self.inner().delay;
            if self.inner().agent_responses.get(agent) == Some(&FakeResponse::None) {
                std::future::pending::<()>().await;
            }
            if delay.is_zero() {
                tokio::task::yield_now().await
            } else {
                tokio::time::sleep(delay).await
            }
            let _ = self.paused.subscribe().wait_for(|paused| !paused).await;
            self.respond(credentials)
        })
    }
}

/// The path that most requests of the tests call.
pub(super) fn path() -> PathKey {
    PathKey::from_path("/cgi-bin/user/get")
}

/// Another agent of the same service.
pub(super) fn agent_token(service: &Arc<TokenCache>, name: &str) -> Arc<CachedToken> {
    agent_token_with_secret(service, name, "not-a-secret")
}

/// The same with a secret of its own.
pub(super) fn agent_token_with_secret(
    service: &Arc<TokenCache>,
    name: &str,
    secret: &str,
) -> Arc<CachedToken> {
    let credentials = Credentials {
        corpid: name.into(),
        secret: Masked::new(secret),
        upstream: config::UpstreamId::default(),
        generation: 0,
    };
    service.entry(name, credentials, false)
}

/// The serial of a token.
pub(super) fn serial(token: &Token) -> u64 {
    token.value.expose().trim_start_matches('T').parse().expect("a token of the fake")
}

/// The valid token, without waiting.
#[track_caller]
pub(super) fn poll_current(entry: &Arc<CachedToken>) -> Outcome {
    match pin!(entry.current_or_fetch()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("it waits"),
    }
}

/// The serial of a replacement, and whether it is the refused token.
#[track_caller]
pub(super) fn replacement_serial(replacement: &ReplaceOutcome) -> (u64, bool) {
    match replacement {
        ReplaceOutcome::Refreshed(token) => (serial(token), false),
        ReplaceOutcome::Unchanged(token) => (serial(token), true),
        other => panic!("{other:?}"),
    }
}

/// Advances time and runs the tasks that are due.
pub(super) async fn advance(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

/// Runs all tasks that are ready.
pub(super) async fn run_ready_tasks() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// The most calls within any hour.
pub(super) fn max_calls_per_hour(calls: &[Instant]) -> usize {
    let from = |first: usize| {
        calls[first..].iter().take_while(|at| **at - calls[first] < Duration::from_secs(3600)).count()
    };
    (0..calls.len()).map(from).max().unwrap_or(0)
}

/// The wait of a throttled refresh.
#[track_caller]
pub(super) fn throttled_seconds(replacement: ReplaceOutcome) -> f64 {
    let ReplaceOutcome::Throttled(wait) = replacement else { panic!("{replacement:?}") };
    wait.as_secs_f64().round()
}

/// In seconds.
pub(super) fn rounded_seconds(wait: Duration) -> f64 {
    wait.as_secs_f64().round()
}
