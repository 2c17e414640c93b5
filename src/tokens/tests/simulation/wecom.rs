//! The simulated WeCom: issues and voids tokens, responds late, wrongly or not at all, and checks the proxy by
//! the calls it gets.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use tokio::time::{Instant, sleep};

use super::{SimCounts, rng::SimRng, serial, usable_token};
use crate::tokens::{CachedToken, Credentials, FetchError, FetchToken, Token};
use crate::{secret::Masked, wecom::response::GettokenResponse};

/// No gettoken takes longer: the proxy gives up by then.
pub(super) const MAX_GETTOKEN_TIMEOUT: Duration = Duration::from_secs(45);
const HOUR: Duration = Duration::from_secs(3_600);
/// For at most four agents: 24 refreshes each for refusals and manual ones, and the failures that the backoff
/// allows.
const MAX_CALLS_PER_HOUR: usize = 500;
const COOLDOWN_INTERVAL: Duration = Duration::from_secs(10);
const PAST_EXPIRY_TTL: Duration = Duration::from_secs(60);

/// How gettoken responds to an account for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum SimBehavior {
    /// The last token while it is valid, else a new one.
    Normal,
    /// The last token, valid or not.
    SameToken,
    /// A new one each time.
    NewToken,
    /// This errcode.
    Errcode(i64),
    /// No response in time, although a token may have been issued.
    TimesOut,
    /// The fetch panics.
    Panics,
    /// Any of these.
    Random,
}

impl SimBehavior {
    pub(super) const DEFAULT: Self = Self::Normal;
    pub(super) const FAULTS: [Self; 9] = [
        Self::SameToken,
        Self::SameToken,
        Self::NewToken,
        Self::NewToken,
        Self::Errcode(-1),
        Self::Errcode(40001),
        Self::TimesOut,
        Self::Panics,
        Self::Random,
    ];
}

#[derive(Clone)]
pub(super) struct SimWecom(Arc<Mutex<Inner>>);

struct Inner {
    rng: SimRng,
    /// Responses take 20 ms at most.
    is_fast: bool,
    accounts: HashMap<String, SimAccount>,
    last_serial: u64,
    calls: Vec<SimCall>,
    violation: Option<String>,
    counts: SimCounts,
}

/// The state of one pair of corpid and secret.
struct SimAccount {
    token: Weak<CachedToken>,
    behavior: SimBehavior,
    token_ttl: Duration,
    /// The last issued token, and its expiry.
    granted: Option<(u64, Instant)>,
    in_flight: bool,
    /// Until when the proxy may use each token that it got.
    usable_until: HashMap<u64, Instant>,
    /// The newest token that was current.
    newest_serial: u64,
    failures: u32,
    /// The earliest end of the backoff, and its errcode.
    backoff: Option<(Instant, i64)>,
    /// Until when no refusal of this token may cause a refresh, because the last one returned it; and whether a
    /// path that had accepted it may end that early.
    cooldown: Option<(Instant, u64, bool)>,
    /// The last cooldown was ended early.
    refresh_started_in_cooldown: bool,
}

struct SimCall {
    at: Instant,
    /// The account and its last token, if the proxy had no valid one: a first fetch, or an expiry.
    due: Option<(String, Option<u64>, bool)>,
}

fn account_name(credentials: &Credentials) -> String {
    format!("{} {}", credentials.corpid, credentials.secret.expose())
}

impl SimWecom {
    pub(super) fn new(rng: SimRng, is_fast: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            rng,
            is_fast,
            accounts: HashMap::new(),
            last_serial: 0,
            calls: Vec::new(),
            violation: None,
            counts: SimCounts::default(),
        })))
    }

    pub(super) fn open_account(&self, entry: &Arc<CachedToken>, token_ttl: Duration) {
        let account = SimAccount {
            token: Arc::downgrade(entry),
            behavior: SimBehavior::Normal,
            token_ttl,
            granted: None,
            in_flight: false,
            usable_until: HashMap::new(),
            newest_serial: 0,
            failures: 0,
            backoff: None,
            cooldown: None,
            refresh_started_in_cooldown: false,
        };
        self.inner().accounts.insert(account_name(entry.credentials()), account);
    }

    pub(super) fn set_behavior(&self, credentials: &Credentials, behavior: SimBehavior) {
        self.inner().account(&account_name(credentials)).behavior = behavior;
    }

    /// Voids the token.
    pub(super) fn void_token(&self, credentials: &Credentials) {
        if let Some((_, until)) = &mut self.inner().account(&account_name(credentials)).granted {
            *until = Instant::now().min(*until);
        }
    }

    /// Whether a call with this token is accepted now.
    pub(super) fn accepts(&self, credentials: &Credentials, token: &Token) -> bool {
        let granted = self.inner().account(&account_name(credentials)).granted;
        granted.is_some_and(|(last, until)| last == serial(token) && Instant::now() < until)
    }

    /// A manual refresh ignores the backoff.
    pub(super) fn reset_backoff(&self, entry: &CachedToken) {
        let mut inner = self.inner();
        let account = inner.account(&account_name(entry.credentials()));
        (account.failures, account.backoff, account.cooldown) = (0, None, None);
    }

    /// gettoken returned a refused token.
    pub(super) fn record_unchanged(&self, credentials: &Credentials, token: &Token) {
        let (until, serial) = (Instant::now() + COOLDOWN_INTERVAL, serial(token));
        let mut inner = self.inner();
        let account = inner.account(&account_name(credentials));
        // All callers that waited report the same gettoken.
        if account.cooldown.is_none_or(|(known, ..)| known != until) {
            account.cooldown =
                Some((until, serial, !std::mem::take(&mut account.refresh_started_in_cooldown)));
        }
    }

    /// The errcode of the last failure, while its backoff lasts.
    pub(super) fn backoff_errcode(&self, credentials: &Credentials) -> Option<i64> {
        let backoff = self.inner().account(&account_name(credentials)).backoff;
        backoff.filter(|(until, _)| Instant::now() < *until).map(|(_, errcode)| errcode)
    }

    /// Checks that a token is never older than a previous one, and never used beyond its expiry.
    pub(super) fn check_token(&self, credentials: &Credentials, token: &Token) {
        let mut inner = self.inner();
        let account = inner.account(&account_name(credentials));
        let (newer, older) = (serial(token), account.newest_serial);
        account.newest_serial = newer.max(older);
        let until = account.usable_until.get(&newer).copied();
        drop(inner);
        self.check(newer >= older, || format!("token {newer} replaced token {older}"));
        self.check(until.is_some_and(|until| token.usable_until <= until), || {
            format!("token {newer} is used too long")
        });
    }

    /// Checks that no hour has more calls than allowed, beyond one for each first fetch and each expiry.
    pub(super) fn check_hourly_calls(&self) {
        let inner = self.inner();
        let (mut worst, mut from) = (0, 0);
        let mut due: HashMap<_, usize> = HashMap::new();
        for (nth, call) in inner.calls.iter().enumerate() {
            call.due.iter().for_each(|it| *due.entry(it).or_default() += 1);
            while call.at - inner.calls[from].at >= HOUR {
                if let Some(it) = &inner.calls[from].due {
                    let due_calls = due.entry(it).or_default();
                    *due_calls -= 1;
                    if *due_calls == 0 {
                        due.remove(it);
                    }
                }
                from += 1;
            }
            worst = worst.max((nth + 1 - from).saturating_sub(due.len()));
        }
        drop(inner);
        self.check(worst <= MAX_CALLS_PER_HOUR, || format!("{worst} calls within an hour that were not due"));
    }

    /// Keeps the first violation, because a panic in a spawned task would not fail the test.
    pub(super) fn check(&self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.inner().violation.get_or_insert_with(otherwise);
        }
    }

    pub(super) fn violation(&self) -> Option<String> {
        self.inner().violation.clone()
    }

    pub(super) fn count(&self, what: impl FnOnce(&mut SimCounts)) {
        what(&mut self.inner().counts);
    }

    pub(super) fn counts(&self) -> SimCounts {
        self.inner().counts
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    /// Starts a call; returns how and when it is responded to.
    fn start_call(&self, account: &str) -> (SimBehavior, Duration, bool) {
        let now = Instant::now();
        let mut inner = self.inner();
        let SimAccount {
            token: entry,
            in_flight,
            backoff,
            cooldown,
            refresh_started_in_cooldown: ended_early,
            behavior,
            ..
        } = inner.account(account);
        let (concurrent, early) = (*in_flight, backoff.is_some_and(|(until, _)| now < until));
        *in_flight = true;
        let (entry, behavior, cooldown) = (entry.upgrade(), *behavior, *cooldown);
        // A proactive refresh is not caused by refusals.
        let refreshed =
            entry.as_ref().and_then(|entry| usable_token(entry)).filter(|token| now < token.refresh_at());
        let is_held = refreshed.is_some_and(|token| {
            cooldown.is_some_and(|(until, returned, _)| now < until && serial(&token) == returned)
        });
        let is_useless = is_held && (*ended_early || cooldown.is_some_and(|(.., may_end)| !may_end));
        *ended_early = is_held;
        // A first fetch, one proactive refresh per expiry, and one after it.
        let lacks =
            |entry: &Arc<CachedToken>| usable_token(entry).is_none_or(|token| now >= token.refresh_at());
        let due = entry.filter(lacks).map(|entry| {
            let current = entry.current.load_full().map(|token| serial(&token));
            (account.to_owned(), current, usable_token(&entry).is_some())
        });
        inner.calls.push(SimCall { at: now, due });
        let behavior = match behavior {
            SimBehavior::Random => inner.rng.choose(&SimBehavior::FAULTS),
            behavior => behavior,
        };
        let delay = match behavior {
            _ if inner.is_fast => Duration::from_millis(inner.rng.below(20)),
            SimBehavior::TimesOut => MAX_GETTOKEN_TIMEOUT,
            _ => Duration::from_millis(inner.rng.choose(&[0, 0, 5, 50, 500, 10_000])),
        };
        let decides_first = inner.rng.below(2) == 0;
        drop(inner);
        self.check(!concurrent, || "two gettokens at once for one agent".to_owned());
        self.check(!is_useless, || "a gettoken for a token that was just returned again".to_owned());
        self.check(!early, || "a gettoken during backoff".to_owned());
        (behavior, delay, decides_first)
    }

    fn decide_response(&self, account: &str, behavior: SimBehavior) -> Result<GettokenResponse, FetchError> {
        let now = Instant::now();
        let mut inner = self.inner();
        let next = inner.last_serial + 1;
        let moody = inner.rng.below(2) == 0;
        let account = inner.account(account);
        let token_ttl = account.token_ttl;
        let valid = match behavior {
            SimBehavior::Errcode(errcode) => {
                return Err(FetchError::Errcode { errcode, errmsg: "random".to_owned() });
            }
            SimBehavior::Panics => return Err(FetchError::Cancelled),
            SimBehavior::TimesOut if moody => return Err(FetchError::TimedOut(Duration::from_secs(30))),
            SimBehavior::NewToken => None,
            SimBehavior::SameToken => account.granted,
            _ => account.granted.filter(|(_, until)| now < *until),
        };
        let serial = match valid {
            Some((serial, _)) => serial,
            None => {
                account.granted = Some((next, now + token_ttl));
                inner.last_serial = next;
                next
            }
        };
        match behavior {
            SimBehavior::TimesOut => Err(FetchError::TimedOut(Duration::from_secs(30))),
            _ => Ok(GettokenResponse { token: Masked::new(format!("T{serial}")), expires_in: token_ttl }),
        }
    }

    /// Records the response that the proxy gets now.
    fn finish_call(
        &self,
        account: &str,
        requested_at: Instant,
        response: &Result<GettokenResponse, FetchError>,
    ) {
        let mut inner = self.inner();
        let account = inner.account(account);
        account.in_flight = false;
        match response {
            Ok(grant) => {
                (account.failures, account.backoff) = (0, None);
                let serial = grant.token.expose()[1..].parse().expect("a serial");
                let until = account.usable_until.entry(serial).or_insert(requested_at + grant.expires_in);
                if *until <= requested_at {
                    *until = requested_at + PAST_EXPIRY_TTL;
                }
            }
            Err(failure) => {
                let (first, longest) = if failure.risks_ban() { (60, 900) } else { (1, 60) };
                let doubled = (first << account.failures.min(10)).min(longest);
                let min_delay = Duration::from_secs(doubled).mul_f64(0.9).max(Duration::from_secs(first));
                account.refresh_started_in_cooldown = false;
                account.backoff = Some((Instant::now() + min_delay, failure.errcode()));
                account.failures += 1;
            }
        }
    }
}

impl Inner {
    fn account(&mut self, account: &str) -> &mut SimAccount {
        self.accounts.get_mut(account).expect("an account")
    }
}

impl FetchToken for SimWecom {
    fn fetch<'a>(
        &'a self,
        credentials: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<GettokenResponse, FetchError>> + Send + 'a>> {
        Box::pin(async move {
            let (account, requested_at) = (account_name(credentials), Instant::now());
            let (behavior, delay, decides_first) = self.start_call(&account);
            // A token that is chosen first can be voided before it arrives.
            let decided = decides_first.then(|| self.decide_response(&account, behavior));
            tokio::task::yield_now().await;
            if !delay.is_zero() {
                sleep(delay).await;
            }
            let response = decided.unwrap_or_else(|| self.decide_response(&account, behavior));
            self.finish_call(&account, requested_at, &response);
            match response {
                Err(FetchError::Cancelled) => panic!("scripted"),
                response => response,
            }
        })
    }
}
