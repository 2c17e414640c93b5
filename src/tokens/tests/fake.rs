//! A gettoken that does as it is told, and counts.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{runtime::Handle, sync::watch, time::Instant};

use super::super::{
    Credentials, FetchError, Issuer, Outcome, PathKey, RenewalSettings, Replacement, Source, Token, TokenSlot,
};
use crate::{secret::Masked, wecom::reply::Grant};

/// What gettoken answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Says {
    /// A token that was never seen.
    New,
    /// The last one, whether it serves or not.
    Same,
    /// This errcode.
    Refuses(i64),
    /// Nothing: the code that asks breaks.
    Panics,
    /// The last token while it serves, else a new one.
    Behaves,
}

/// The far side: what it will say, and what it was asked.
#[derive(Clone)]
pub(super) struct Fake {
    inner: Arc<Mutex<Inner>>,
    held: Arc<watch::Sender<bool>>,
}

struct Inner {
    script: VecDeque<Says>,
    otherwise: Says,
    life: Duration,
    /// By corpid: the last token's serial, and until when it serves.
    last: HashMap<String, (u64, Instant)>,
    serial: u64,
    /// When gettoken was called, and for whom.
    calls: Vec<(Instant, String)>,
    in_flight: HashMap<String, usize>,
    most_in_flight: usize,
}

impl Fake {
    pub(super) fn new(life: u64) -> Self {
        let inner = Inner {
            script: VecDeque::new(),
            otherwise: Says::Behaves,
            life: Duration::from_secs(life),
            last: HashMap::new(),
            serial: 0,
            calls: Vec::new(),
            in_flight: HashMap::new(),
            most_in_flight: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)), held: Arc::new(watch::Sender::new(false)) }
    }

    /// An issuer that renews 300 s ahead.
    pub(super) fn issuer(&self) -> Arc<Issuer> {
        self.issuer_with(None)
    }

    /// The same with so many renewals an hour.
    pub(super) fn issuer_with(&self, renewals_per_hour: Option<u32>) -> Arc<Issuer> {
        let bounds = RenewalSettings { refresh_ahead: Duration::from_secs(300), renewals_per_hour };
        Issuer::new(Box::new(self.clone()), Handle::current(), bounds)
    }

    /// The slot of a lone agent.
    pub(super) fn slot(&self) -> Arc<TokenSlot> {
        agent(&self.issuer(), "a")
    }

    /// The next answers.
    pub(super) fn next(&self, says: &[Says]) {
        self.inner().script.extend(says);
    }

    /// The answer when the next ones are used up.
    pub(super) fn then_always(&self, says: Says) {
        self.inner().otherwise = says;
    }

    /// Answers wait until they are let go.
    pub(super) fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Voids an agent's token.
    pub(super) fn revoke(&self, agent: &str) {
        if let Some((_, until)) = self.inner().last.get_mut(agent) {
            *until = Instant::now();
        }
    }

    /// Whether this token would be accepted.
    pub(super) fn accepts(&self, agent: &str, token: &Token) -> bool {
        let now = Instant::now();
        self.inner().last.get(agent).is_some_and(|(last, until)| *last == serial(token) && now < *until)
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
    pub(super) fn gaps(&self) -> Vec<f64> {
        self.call_times().windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect()
    }

    /// The most calls that were under way at once for one agent.
    pub(super) fn most_in_flight(&self) -> usize {
        self.inner().most_in_flight
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, agent: &str) {
        let mut inner = self.inner();
        inner.calls.push((Instant::now(), agent.to_owned()));
        let in_flight = inner.in_flight.entry(agent.to_owned()).or_default();
        *in_flight += 1;
        let in_flight = *in_flight;
        inner.most_in_flight = inner.most_in_flight.max(in_flight);
    }

    fn answer(&self, agent: &str) -> Result<Grant, FetchError> {
        let mut inner = self.inner();
        let now = Instant::now();
        let says = inner.script.pop_front().unwrap_or(inner.otherwise);
        let last = inner.last.get(agent).copied();
        let serial = match (says, last) {
            (Says::Panics, _) => {
                drop(inner);
                panic!("as ordered")
            }
            (Says::Refuses(errcode), _) => {
                return Err(FetchError::Refused { errcode, errmsg: "as ordered".to_owned() });
            }
            (Says::Same, Some((serial, _))) => serial,
            (Says::Behaves, Some((serial, until))) if now < until => serial,
            _ => {
                inner.serial += 1;
                let (serial, until) = (inner.serial, now + inner.life);
                inner.last.insert(agent.to_owned(), (serial, until));
                serial
            }
        };
        Ok(Grant { token: Masked::new(format!("T{serial}")), expires_in: inner.life })
    }
}

struct UnderWay<'a>(&'a Fake, &'a str);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *self.0.inner().in_flight.entry(self.1.to_owned()).or_default() -= 1;
    }
}

impl Source for Fake {
    fn fetch<'a>(
        &'a self,
        credentials: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<Grant, FetchError>> + Send + 'a>> {
        Box::pin(async move {
            let agent = credentials.corpid.as_str();
            self.begin(agent);
            let _under_way = UnderWay(self, agent);
            tokio::task::yield_now().await;
            let _ = self.held.subscribe().wait_for(|held| !held).await;
            self.answer(agent)
        })
    }
}

/// The path that most requests of the tests call.
pub(super) fn path() -> PathKey {
    PathKey::of("/cgi-bin/user/get")
}

/// Another agent of the same issuer.
pub(super) fn agent(issuer: &Arc<Issuer>, name: &str) -> Arc<TokenSlot> {
    agent_with(issuer, name, "not-a-secret")
}

/// The same with a secret of its own.
pub(super) fn agent_with(issuer: &Arc<Issuer>, name: &str, secret: &str) -> Arc<TokenSlot> {
    let credentials = Credentials { corpid: name.to_owned(), secret: Masked::new(secret) };
    TokenSlot::new(name, credentials, issuer.clone())
}

/// Which token it is.
pub(super) fn serial(token: &Token) -> u64 {
    token.value.expose().trim_start_matches('T').parse().expect("a token of the fake")
}

/// The token that serves now, without waiting.
#[track_caller]
pub(super) fn at_once(slot: &Arc<TokenSlot>) -> Outcome {
    match pin!(slot.current()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("it waits"),
    }
}

/// The serial of a replacement, and whether it is the refused one once more.
#[track_caller]
pub(super) fn replaced(replacement: &Replacement) -> (u64, bool) {
    match replacement {
        Replacement::Renewed(token) => (serial(token), false),
        Replacement::SameAgain(token) => (serial(token), true),
        other => panic!("{other:?}"),
    }
}

/// Lets time pass, and what is due in it happen.
pub(super) async fn pass(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

/// Lets everything happen that needs no time.
pub(super) async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// The most calls within any hour.
pub(super) fn busiest_hour(calls: &[Instant]) -> usize {
    let from = |first: usize| {
        calls[first..].iter().take_while(|at| **at - calls[first] < Duration::from_secs(3600)).count()
    };
    (0..calls.len()).map(from).max().unwrap_or(0)
}

/// The waiting time that a held renewal is told.
#[track_caller]
pub(super) fn held(replacement: Replacement) -> f64 {
    let Replacement::Held(wait) = replacement else { panic!("{replacement:?}") };
    wait.as_secs_f64().round()
}

/// In seconds.
pub(super) fn whole(wait: Duration) -> f64 {
    wait.as_secs_f64().round()
}
