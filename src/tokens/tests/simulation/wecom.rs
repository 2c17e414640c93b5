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

use super::{
    super::super::{Credentials, FetchError, Source, Token, TokenSlot},
    Seen,
    chance::Chance,
    serial, usable,
};
use crate::{secret::Masked, wecom::reply::Grant};

/// No gettoken takes longer: the proxy gives up by then.
pub(super) const SLOWEST: Duration = Duration::from_secs(45);
const HOUR: Duration = Duration::from_secs(3_600);
/// Of at most four agents: for refusals and orders 24 each, and what the backoff lets fail.
const CALLS_AN_HOUR: usize = 500;
const HELD: Duration = Duration::from_secs(10);
const BELIEVED_PAST_EXPIRY: Duration = Duration::from_secs(60);

/// How gettoken answers an account for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mood {
    /// The last token while it serves, else a new one.
    Behaves,
    /// The last token, whether it serves or not.
    Stuck,
    /// A new one each time.
    Restless,
    /// This errcode.
    Refuses(i64),
    /// No answer in time, although a token may have been granted.
    Silent,
    /// The code that asks breaks.
    Breaks,
    /// Any of these.
    Moody,
}

impl Mood {
    pub(super) const WELL: Self = Self::Behaves;
    pub(super) const ALL: [Self; 9] = [
        Self::Stuck,
        Self::Stuck,
        Self::Restless,
        Self::Restless,
        Self::Refuses(-1),
        Self::Refuses(40001),
        Self::Silent,
        Self::Breaks,
        Self::Moody,
    ];
}

#[derive(Clone)]
pub(super) struct Wecom(Arc<Mutex<Inner>>);

struct Inner {
    chance: Chance,
    /// Answers take a moment at most.
    swift: bool,
    accounts: HashMap<String, Account>,
    serial: u64,
    calls: Vec<Call>,
    breach: Option<String>,
    seen: Seen,
}

/// What there is for one pair of corpid and secret.
struct Account {
    slot: Weak<TokenSlot>,
    mood: Mood,
    life: Duration,
    /// The last token granted, and until when it serves.
    granted: Option<(u64, Instant)>,
    in_flight: bool,
    /// Until when the proxy may believe each token that it got.
    believable: HashMap<u64, Instant>,
    /// The newest token that was current.
    newest: u64,
    failures: u32,
    /// Until when at least, and for what errcode.
    left_alone: Option<(Instant, i64)>,
    /// Until when no refusal of this token is worth a renewal, for the last one brought it back; and whether a path on which
    /// it had worked may end that early.
    held: Option<(Instant, u64, bool)>,
    /// It was ended early.
    early: bool,
}

struct Call {
    at: Instant,
    /// The account and its last token, where the proxy had none that serves: its first, or an expiry.
    due: Option<(String, Option<u64>, bool)>,
}

fn account_of(credentials: &Credentials) -> String {
    format!("{} {}", credentials.corpid, credentials.secret.expose())
}

impl Wecom {
    pub(super) fn new(chance: Chance, swift: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            chance,
            swift,
            accounts: HashMap::new(),
            serial: 0,
            calls: Vec::new(),
            breach: None,
            seen: Seen::default(),
        })))
    }

    pub(super) fn open_account(&self, slot: &Arc<TokenSlot>, life: Duration) {
        let account = Account {
            slot: Arc::downgrade(slot),
            mood: Mood::Behaves,
            life,
            granted: None,
            in_flight: false,
            believable: HashMap::new(),
            newest: 0,
            failures: 0,
            left_alone: None,
            held: None,
            early: false,
        };
        self.inner().accounts.insert(account_of(slot.credentials()), account);
    }

    pub(super) fn change_mood(&self, credentials: &Credentials, mood: Mood) {
        self.inner().account(&account_of(credentials)).mood = mood;
    }

    /// Voids the token.
    pub(super) fn void(&self, credentials: &Credentials) {
        if let Some((_, until)) = &mut self.inner().account(&account_of(credentials)).granted {
            *until = Instant::now().min(*until);
        }
    }

    /// Whether a call with this token is accepted now.
    pub(super) fn accepts(&self, credentials: &Credentials, token: &Token) -> bool {
        let granted = self.inner().account(&account_of(credentials)).granted;
        granted.is_some_and(|(last, until)| last == serial(token) && Instant::now() < until)
    }

    /// An operator's try is free.
    pub(super) fn operator_asks(&self, slot: &TokenSlot) {
        let mut inner = self.inner();
        let account = inner.account(&account_of(slot.credentials()));
        (account.failures, account.left_alone, account.held) = (0, None, None);
    }

    /// A refused token came back.
    pub(super) fn came_back(&self, credentials: &Credentials, token: &Token) {
        let (until, serial) = (Instant::now() + HELD, serial(token));
        let mut inner = self.inner();
        let account = inner.account(&account_of(credentials));
        // All who waited are told of the same gettoken.
        if account.held.is_none_or(|(known, ..)| known != until) {
            account.held = Some((until, serial, !std::mem::take(&mut account.early)));
        }
    }

    /// The errcode of the last failure, while it is too early for another try.
    pub(super) fn left_alone_for(&self, credentials: &Credentials) -> Option<i64> {
        let left_alone = self.inner().account(&account_of(credentials)).left_alone;
        left_alone.filter(|(until, _)| Instant::now() < *until).map(|(_, errcode)| errcode)
    }

    /// A token is never older than one before it, and never believed for longer than it was granted.
    pub(super) fn check_token(&self, credentials: &Credentials, token: &Token) {
        let mut inner = self.inner();
        let account = inner.account(&account_of(credentials));
        let (is, was) = (serial(token), account.newest);
        account.newest = is.max(was);
        let until = account.believable.get(&is).copied();
        drop(inner);
        self.expect(is >= was, || format!("token {is} took the place of token {was}"));
        self.expect(until.is_some_and(|until| token.usable_until <= until), || {
            format!("token {is} is believed too long")
        });
    }

    /// No hour has more than its calls, beyond one for each first and each expiry.
    pub(super) fn check_hours(&self) {
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
        self.expect(worst <= CALLS_AN_HOUR, || format!("{worst} calls within an hour that were not due"));
    }

    /// Keeps the first breach: what runs in a task of its own could not fail the test.
    pub(super) fn expect(&self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.inner().breach.get_or_insert_with(otherwise);
        }
    }

    pub(super) fn breach(&self) -> Option<String> {
        self.inner().breach.clone()
    }

    pub(super) fn note(&self, what: impl FnOnce(&mut Seen)) {
        what(&mut self.inner().seen);
    }

    pub(super) fn seen(&self) -> Seen {
        self.inner().seen
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a call; says how it will be answered, and when.
    fn begin(&self, account: &str) -> (Mood, Duration, bool) {
        let now = Instant::now();
        let mut inner = self.inner();
        let Account { slot, in_flight, left_alone, held, early: ended, mood, .. } = inner.account(account);
        let (two, early) = (*in_flight, left_alone.is_some_and(|(until, _)| now < until));
        *in_flight = true;
        let (slot, mood, held) = (slot.upgrade(), *mood, *held);
        // What is renewed ahead is not renewed for its refusals.
        let renewed = slot.as_ref().and_then(|slot| usable(slot)).filter(|token| now < token.renew_at);
        let is_held = renewed
            .is_some_and(|token| held.is_some_and(|(until, held, _)| now < until && serial(&token) == held));
        let in_vain = is_held && (*ended || held.is_some_and(|(.., may_end)| !may_end));
        *ended = is_held;
        // The first, one ahead of each expiry, and one after it.
        let lacks = |slot: &Arc<TokenSlot>| usable(slot).is_none_or(|token| now >= token.renew_at);
        let due = slot.filter(lacks).map(|slot| {
            let current = slot.current.load_full().map(|token| serial(&token));
            (account.to_owned(), current, usable(&slot).is_some())
        });
        inner.calls.push(Call { at: now, due });
        let mood = match mood {
            Mood::Moody => inner.chance.one_of(&Mood::ALL),
            mood => mood,
        };
        let delay = match mood {
            _ if inner.swift => Duration::from_millis(inner.chance.below(20)),
            Mood::Silent => SLOWEST,
            _ => Duration::from_millis(inner.chance.one_of(&[0, 0, 5, 50, 500, 10_000])),
        };
        let decided_first = inner.chance.below(2) == 0;
        drop(inner);
        self.expect(!two, || "two gettokens at once for one agent".to_owned());
        self.expect(!in_vain, || "a gettoken for a token that has just come back".to_owned());
        self.expect(!early, || "a gettoken while it is to be left alone".to_owned());
        (mood, delay, decided_first)
    }

    fn decide(&self, account: &str, mood: Mood) -> Result<Grant, FetchError> {
        let now = Instant::now();
        let mut inner = self.inner();
        let next = inner.serial + 1;
        let moody = inner.chance.below(2) == 0;
        let account = inner.account(account);
        let life = account.life;
        let known = match mood {
            Mood::Refuses(errcode) => {
                return Err(FetchError::Refused { errcode, errmsg: "as it likes".to_owned() });
            }
            Mood::Breaks => return Err(FetchError::Stopped),
            Mood::Silent if moody => return Err(FetchError::Late(Duration::from_secs(30))),
            Mood::Restless => None,
            Mood::Stuck => account.granted,
            _ => account.granted.filter(|(_, until)| now < *until),
        };
        let serial = match known {
            Some((serial, _)) => serial,
            None => {
                account.granted = Some((next, now + life));
                inner.serial = next;
                next
            }
        };
        match mood {
            Mood::Silent => Err(FetchError::Late(Duration::from_secs(30))),
            _ => Ok(Grant { token: Masked::new(format!("T{serial}")), expires_in: life }),
        }
    }

    /// Notes what the proxy is told now.
    fn end(&self, account: &str, asked: Instant, answer: &Result<Grant, FetchError>) {
        let mut inner = self.inner();
        let account = inner.account(account);
        account.in_flight = false;
        match answer {
            Ok(grant) => {
                (account.failures, account.left_alone) = (0, None);
                let serial = grant.token.expose()[1..].parse().expect("a serial");
                let until = account.believable.entry(serial).or_insert(asked + grant.expires_in);
                if *until <= asked {
                    *until = asked + BELIEVED_PAST_EXPIRY;
                }
            }
            Err(failure) => {
                let (first, longest) = if failure.is_dangerous() { (60, 900) } else { (1, 60) };
                let doubled = (first << account.failures.min(10)).min(longest);
                let least = Duration::from_secs(doubled).mul_f64(0.9).max(Duration::from_secs(first));
                account.early = false;
                account.left_alone = Some((Instant::now() + least, failure.errcode()));
                account.failures += 1;
            }
        }
    }
}

impl Inner {
    fn account(&mut self, account: &str) -> &mut Account {
        self.accounts.get_mut(account).expect("an account")
    }
}

impl Source for Wecom {
    fn fetch<'a>(
        &'a self,
        credentials: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<Grant, FetchError>> + Send + 'a>> {
        Box::pin(async move {
            let (account, asked) = (account_of(credentials), Instant::now());
            let (mood, delay, decided_first) = self.begin(&account);
            // What is decided first may be void when it arrives.
            let decided = decided_first.then(|| self.decide(&account, mood));
            tokio::task::yield_now().await;
            if !delay.is_zero() {
                sleep(delay).await;
            }
            let answer = decided.unwrap_or_else(|| self.decide(&account, mood));
            self.end(&account, asked, &answer);
            match answer {
                Err(FetchError::Stopped) => panic!("as ordered"),
                answer => answer,
            }
        })
    }
}
