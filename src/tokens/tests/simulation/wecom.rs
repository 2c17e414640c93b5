//! The far side: it grants and voids tokens, answers late, wrongly or not at all, and judges the proxy by the calls that
//! it gets.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{SimCounts, rng::SimRng, serial, usable_token};
use crate::tokens::{AgentToken, Credentials, FetchError, FetchToken, Token};
use crate::{secret::Masked, wecom::response::GettokenResponse};

/// No gettoken takes longer: the proxy gives up by then.
pub(super) const MAX_GETTOKEN_TIMEOUT: Duration = Duration::from_secs(45);
const HOUR: Duration = Duration::from_secs(3_600);
/// Of at most four agents: for refusals and orders 24 each, and what the backoff lets fail.
const MAX_CALLS_PER_HOUR: usize = 500;
const COOLDOWN_INTERVAL: Duration = Duration::from_secs(10);
const PAST_EXPIRY_TTL: Duration = Duration::from_secs(60);

/// How gettoken answers an account for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum SimBehavior {
    /// The last token while it serves, else a new one.
    Normal,
    /// The last token, whether it serves or not.
    SameToken,
    /// A new one each time.
    NewToken,
    /// This errcode.
    Errcode(i64),
    /// No answer in time, although a token may have been granted.
    TimesOut,
    /// The code that asks breaks.
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
    /// Answers take a moment at most.
    is_fast: bool,
    accounts: HashMap<String, SimAccount>,
    last_serial: u64,
    calls: Vec<SimCall>,
    violation: Option<String>,
    counts: SimCounts,
}

/// What there is for one pair of corpid and secret.
struct SimAccount {
    token: Weak<AgentToken>,
    behavior: SimBehavior,
    token_ttl: Duration,
    /// The last token granted, and until when it serves.
    granted: Option<(u64, Instant)>,
    in_flight: bool,
    /// Until when the proxy may believe each token that it got.
    usable_until: HashMap<u64, Instant>,
    /// The newest token that was current.
    newest_serial: u64,
    failures: u32,
    /// Until when at least, and for what errcode.
    backoff: Option<(Instant, i64)>,
    /// Until when no refusal of this token is worth a renewal, for the last one brought it back; and whether a path on which
    /// it had worked may end that early.
    cooldown: Option<(Instant, u64, bool)>,
    /// It was ended early.
    cooldown_ended_early: bool,
}

struct SimCall {
    at: Instant,
    /// The account and its last token, where the proxy had none that serves: its first, or an expiry.
    due: Option<(String, Option<u64>, bool)>,
}

fn account_name(credentials: &Credentials) -> String {
    format!("{} {}", credentials.corpid, credentials.secret.expose())
}

impl SimWecom {
    pub(super) fn new(chance: SimRng, swift: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            rng: chance,
            is_fast: swift,
            accounts: HashMap::new(),
            last_serial: 0,
            calls: Vec::new(),
            violation: None,
            counts: SimCounts::default(),
        })))
    }

    pub(super) fn open_account(&self, slot: &Arc<AgentToken>, life: Duration) {
        let account = SimAccount {
            token: Arc::downgrade(slot),
            behavior: SimBehavior::Normal,
            token_ttl: life,
            granted: None,
            in_flight: false,
            usable_until: HashMap::new(),
            newest_serial: 0,
            failures: 0,
            backoff: None,
            cooldown: None,
            cooldown_ended_early: false,
        };
        self.inner().accounts.insert(account_name(slot.credentials()), account);
    }

    pub(super) fn set_behavior(&self, credentials: &Credentials, mood: SimBehavior) {
        self.inner().account(&account_name(credentials)).behavior = mood;
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

    /// An operator's try is free.
    pub(super) fn reset_backoff(&self, slot: &AgentToken) {
        let mut inner = self.inner();
        let account = inner.account(&account_name(slot.credentials()));
        (account.failures, account.backoff, account.cooldown) = (0, None, None);
    }

    /// A refused token came back.
    pub(super) fn record_unchanged(&self, credentials: &Credentials, token: &Token) {
        let (until, serial) = (Instant::now() + COOLDOWN_INTERVAL, serial(token));
        let mut inner = self.inner();
        let account = inner.account(&account_name(credentials));
        // All who waited are told of the same gettoken.
        if account.cooldown.is_none_or(|(known, ..)| known != until) {
            account.cooldown = Some((until, serial, !std::mem::take(&mut account.cooldown_ended_early)));
        }
    }

    /// The errcode of the last failure, while it is too early for another try.
    pub(super) fn backoff_errcode(&self, credentials: &Credentials) -> Option<i64> {
        let left_alone = self.inner().account(&account_name(credentials)).backoff;
        left_alone.filter(|(until, _)| Instant::now() < *until).map(|(_, errcode)| errcode)
    }

    /// A token is never older than one before it, and never believed for longer than it was granted.
    pub(super) fn check_token(&self, credentials: &Credentials, token: &Token) {
        let mut inner = self.inner();
        let account = inner.account(&account_name(credentials));
        let (is, was) = (serial(token), account.newest_serial);
        account.newest_serial = is.max(was);
        let until = account.usable_until.get(&is).copied();
        drop(inner);
        self.check(is >= was, || format!("token {is} took the place of token {was}"));
        self.check(until.is_some_and(|until| token.usable_until <= until), || {
            format!("token {is} is believed too long")
        });
    }

    /// No hour has more than its calls, beyond one for each first and each expiry.
    pub(super) fn check_hourly_calls(&self) {
        let inner = self.inner();
        let (mut worst, mut from) = (0, 0);
        let mut due: HashMap<_, usize> = HashMap::new();
        for (nth, call) in inner.calls.iter().enumerate() {
            call.due.iter().for_each(|it| *due.entry(it).or_default() += 1);
            while call.at - inner.calls[from].at >= HOUR {
                if let Some(it) = &inner.calls[from].due {
                    let left = due.entry(it).or_default();
                    *left -= 1;
                    if *left == 0 {
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

    /// Keeps the first breach: what runs in a task of its own could not fail the test.
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a call; says how it will be answered, and when.
    fn start_call(&self, account: &str) -> (SimBehavior, Duration, bool) {
        let now = Instant::now();
        let mut inner = self.inner();
        let SimAccount {
            token: slot,
            in_flight,
            backoff: left_alone,
            cooldown: held,
            cooldown_ended_early: ended,
            behavior: mood,
            ..
        } = inner.account(account);
        let (two, early) = (*in_flight, left_alone.is_some_and(|(until, _)| now < until));
        *in_flight = true;
        let (slot, mood, held) = (slot.upgrade(), *mood, *held);
        // What is renewed ahead is not renewed for its refusals.
        let renewed =
            slot.as_ref().and_then(|slot| usable_token(slot)).filter(|token| now < token.refresh_at);
        let is_held = renewed
            .is_some_and(|token| held.is_some_and(|(until, held, _)| now < until && serial(&token) == held));
        let in_vain = is_held && (*ended || held.is_some_and(|(.., may_end)| !may_end));
        *ended = is_held;
        // The first, one ahead of each expiry, and one after it.
        let lacks = |slot: &Arc<AgentToken>| usable_token(slot).is_none_or(|token| now >= token.refresh_at);
        let due = slot.filter(lacks).map(|slot| {
            let current = slot.current.load_full().map(|token| serial(&token));
            (account.to_owned(), current, usable_token(&slot).is_some())
        });
        inner.calls.push(SimCall { at: now, due });
        let mood = match mood {
            SimBehavior::Random => inner.rng.choose(&SimBehavior::FAULTS),
            mood => mood,
        };
        let delay = match mood {
            _ if inner.is_fast => Duration::from_millis(inner.rng.below(20)),
            SimBehavior::TimesOut => MAX_GETTOKEN_TIMEOUT,
            _ => Duration::from_millis(inner.rng.choose(&[0, 0, 5, 50, 500, 10_000])),
        };
        let decided_first = inner.rng.below(2) == 0;
        drop(inner);
        self.check(!two, || "two gettokens at once for one agent".to_owned());
        self.check(!in_vain, || "a gettoken for a token that has just come back".to_owned());
        self.check(!early, || "a gettoken while it is to be left alone".to_owned());
        (mood, delay, decided_first)
    }

    fn decide_response(&self, account: &str, mood: SimBehavior) -> Result<GettokenResponse, FetchError> {
        let now = Instant::now();
        let mut inner = self.inner();
        let next = inner.last_serial + 1;
        let moody = inner.rng.below(2) == 0;
        let account = inner.account(account);
        let life = account.token_ttl;
        let known = match mood {
            SimBehavior::Errcode(errcode) => {
                return Err(FetchError::Refused { errcode, errmsg: "as it likes".to_owned() });
            }
            SimBehavior::Panics => return Err(FetchError::Cancelled),
            SimBehavior::TimesOut if moody => return Err(FetchError::TimedOut(Duration::from_secs(30))),
            SimBehavior::NewToken => None,
            SimBehavior::SameToken => account.granted,
            _ => account.granted.filter(|(_, until)| now < *until),
        };
        let serial = match known {
            Some((serial, _)) => serial,
            None => {
                account.granted = Some((next, now + life));
                inner.last_serial = next;
                next
            }
        };
        match mood {
            SimBehavior::TimesOut => Err(FetchError::TimedOut(Duration::from_secs(30))),
            _ => Ok(GettokenResponse { token: Masked::new(format!("T{serial}")), expires_in: life }),
        }
    }

    /// Notes what the proxy is told now.
    fn finish_call(&self, account: &str, asked: Instant, answer: &Result<GettokenResponse, FetchError>) {
        let mut inner = self.inner();
        let account = inner.account(account);
        account.in_flight = false;
        match answer {
            Ok(grant) => {
                (account.failures, account.backoff) = (0, None);
                let serial = grant.token.expose()[1..].parse().expect("a serial");
                let until = account.usable_until.entry(serial).or_insert(asked + grant.expires_in);
                if *until <= asked {
                    *until = asked + PAST_EXPIRY_TTL;
                }
            }
            Err(failure) => {
                let (first, longest) = if failure.risks_ban() { (60, 900) } else { (1, 60) };
                let doubled = (first << account.failures.min(10)).min(longest);
                let least = Duration::from_secs(doubled).mul_f64(0.9).max(Duration::from_secs(first));
                account.cooldown_ended_early = false;
                account.backoff = Some((Instant::now() + least, failure.errcode()));
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
            let (account, asked) = (account_name(credentials), Instant::now());
            let (mood, delay, decided_first) = self.start_call(&account);
            // What is decided first may be void when it arrives.
            let decided = decided_first.then(|| self.decide_response(&account, mood));
            tokio::task::yield_now().await;
            if !delay.is_zero() {
                sleep(delay).await;
            }
            let answer = decided.unwrap_or_else(|| self.decide_response(&account, mood));
            self.finish_call(&account, asked, &answer);
            match answer {
                Err(FetchError::Cancelled) => panic!("as ordered"),
                answer => answer,
            }
        })
    }
}
