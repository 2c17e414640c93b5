//! One gettoken for all replicas: whoever holds the lease in the store asks, the others take what it puts there.
//!
//! The store is asked only when a token is due, never by a request that has one. While it is away each replica asks by
//! itself, as if it were alone.

use std::{
    collections::HashMap,
    str,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::{sync::Semaphore, time::Instant};

use super::{
    Credentials, FetchError, Issuer, Reason, Token, TokenSlot, backoff, renew::PAST_EXPIRY, shares::Share,
};
use crate::{
    store::{Away, Claim, Event, Lease, News, Record, Said, Store, Word},
    wecom::reply::Grant,
};

/// How long another replica's gettoken is waited for before this one asks by itself.
pub(super) const PATIENCE: Duration = Duration::from_secs(45);
/// How many records are read at once of those of which there was news.
const READING: usize = 16;

/// A token that came, and what the store knows it by: 0 where it does not know it.
#[derive(Clone)]
pub(super) struct Obtained {
    pub(super) grant: Grant,
    pub(super) fence: u64,
    /// How long the store has known it.
    age: Duration,
    /// Whether this replica asked for it.
    pub(super) own: bool,
}

impl Obtained {
    /// What this replica got by itself.
    pub(super) fn alone(grant: Grant) -> Self {
        Self::under(0, grant)
    }

    /// What this replica got under a lease.
    fn under(fence: u64, grant: Grant) -> Self {
        Self { grant, fence, age: Duration::ZERO, own: true }
    }

    fn from(record: &Record) -> Option<Self> {
        let grant = Grant::of(str::from_utf8(&record.value).ok()?, record.life)?;
        Some(Self { grant, fence: record.fence, age: record.age, own: false })
    }

    /// Whether a token that this replica has is newer, or this very one.
    pub(super) fn is_older_than(&self, held: &Token) -> bool {
        held.is_newer_than(self.fence, self.age)
    }
}

/// What is shared, and who wants to hear of it.
pub(super) struct Shared {
    store: Arc<Store>,
    /// By name in the store; only agents that were asked for. Several may have the same credentials.
    slots: Mutex<HashMap<String, Vec<Weak<TokenSlot>>>>,
    /// By name, the news of records that are to be read.
    unread: Mutex<HashMap<String, Event>>,
    reading: Semaphore,
}

/// A failure as the replicas tell it to each other.
#[derive(Serialize, Deserialize)]
struct Told {
    /// WeCom's, where it was WeCom that refused.
    errcode: Option<i64>,
    words: String,
    /// How many failed in a row before this one.
    times: u32,
}

/// Hears what the store says, as long as there is an issuer.
pub(super) async fn listen(issuer: Weak<Issuer>, mut said: Said) {
    while let Some(word) = said.recv().await {
        let Some(issuer) = issuer.upgrade() else { return };
        let Some(shared) = &issuer.shared else { return };
        match word {
            Word::News(news) => shared.hear(&issuer, news),
            Word::Lost => shared.store.doubt(),
            Word::Joined => {
                let joined = issuer.clone();
                issuer.runtime.spawn(async move {
                    if let Some(shared) = &joined.shared {
                        let _ = shared.catch_up().await;
                    }
                });
            }
        }
    }
}

impl Shared {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store, slots: Mutex::default(), unread: Mutex::default(), reading: Semaphore::new(READING) }
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Why the store is away.
    pub(super) fn trouble(&self) -> Option<String> {
        self.store.trouble()
    }

    /// Gets a token newer than the slot's own: from the store, from the replica that is asking, or from WeCom.
    pub(super) async fn obtain(
        &self,
        slot: &Arc<TokenSlot>,
        reason: Reason,
        share: Share,
    ) -> Result<Obtained, FetchError> {
        let name = slot.credentials.name_in_store("");
        self.enter(&name, slot);
        // Before asking, so that nothing said meanwhile is missed.
        let watch = self.store.watch(&name);
        let held = slot.current.load_full();
        let is_held = |grant: &Grant| held.as_ref().is_some_and(|held| held.value == grant.token);
        // What this replica got without the store may be newer than what the store has kept meanwhile.
        let is_older = |stored: &Obtained| held.as_ref().is_some_and(|held| stored.is_older_than(held));
        let mut fence = held.as_ref().map_or(0, |held| held.fence());
        let (mut waited, give_up) = (false, Instant::now() + PATIENCE);
        let mut force = reason == Reason::Asked;
        // What failed on another replica's way to WeCom is tried on this one's, once.
        let (mut tried, mut overtaken) = (false, false);
        while Instant::now() < give_up {
            match self.store.claim(&name, fence, std::mem::take(&mut force)).await {
                Err(Away) => break,
                Ok(Claim::Record(record)) => match Obtained::from(&record) {
                    // The refused token is in the store, but nobody is known to have asked WeCom since the refusal.
                    Some(obtained)
                        if is_held(&obtained.grant)
                            && reason.is_refusal()
                            && !(waited && record.is_fresh) =>
                    {
                        fence = obtained.fence;
                    }
                    Some(obtained) if !is_older(&obtained) => return Ok(obtained),
                    _ => fence = record.fence,
                },
                Ok(Claim::Failed { failure, .. }) => {
                    let told = Told::parse(&failure);
                    if told.errcode.is_some() || std::mem::replace(&mut tried, true) {
                        return Err(told.into());
                    }
                    force = true;
                }
                Ok(Claim::Taken { left }) => {
                    waited = true;
                    force = reason == Reason::Asked;
                    watch.news(left).await;
                }
                Ok(Claim::Ours { lease, failure }) => {
                    let times = failure.map_or(0, |failure| Told::parse(&failure).times.saturating_add(1));
                    let round = Round { shared: self, name: &name, slot, held: held.as_deref(), lease };
                    let (obtained, stands) = round.ask(reason, share, times).await?;
                    // Who was slower than another replica takes what that one got, once.
                    if stands || std::mem::replace(&mut overtaken, true) {
                        return Ok(obtained);
                    }
                    fence = round.lease.fence;
                }
            }
        }
        slot.ask(share).await.map(Obtained::alone)
    }

    /// Notes that a slot wants to hear of its name.
    fn enter(&self, name: &str, slot: &Arc<TokenSlot>) {
        let mut slots = self.slots();
        // Of agents that are gone nothing else would remind us.
        if slots.len() == slots.capacity() {
            slots.retain(|_, slots| slots.iter().any(|slot| slot.strong_count() > 0));
        }
        let slots = slots.entry(name.to_owned()).or_default();
        slots.retain(|other| other.strong_count() > 0);
        if !slots.iter().any(|other| std::ptr::eq(other.as_ptr(), Arc::as_ptr(slot))) {
            slots.push(Arc::downgrade(slot));
        }
    }

    /// Who wants to hear of a name.
    fn listeners(&self, name: &str) -> Vec<Arc<TokenSlot>> {
        self.slots().get(name).into_iter().flatten().filter_map(Weak::upgrade).collect()
    }

    /// Hears news of another replica, or of this one.
    fn hear(&self, issuer: &Arc<Issuer>, news: News) {
        self.store.wake(&news.name);
        let mut is_due = false;
        for slot in self.listeners(&news.name) {
            let current = slot.current.load_full();
            let fence = current.as_ref().map_or(0, |current| current.fence());
            match (news.event, current) {
                (Event::Refused, Some(current)) if fence == news.fence => current.refused(),
                (Event::Renewed | Event::SameAgain | Event::Known, _) => is_due |= fence < news.fence,
                _ => {}
            }
        }
        if is_due && self.unread().insert(news.name.clone(), news.event).is_none() {
            let reader = issuer.clone();
            issuer.runtime.spawn(async move {
                if let Some(shared) = &reader.shared {
                    shared.read(&news.name).await;
                }
            });
        }
    }

    /// Takes over the record of which there was news. However many there are, the store is asked for a few at a time, and
    /// for each once.
    async fn read(&self, name: &str) {
        let turn = self.reading.acquire().await;
        let event = self.unread().remove(name);
        if let Ok(Some(record)) = self.store.read(name).await
            && let Some(obtained) = Obtained::from(&record)
        {
            for slot in self.listeners(name) {
                slot.adopt(obtained.clone(), event == Some(Event::SameAgain));
            }
        }
        drop(turn);
    }

    /// The store is there again: what it does not know of is put there, and what others put there is taken over.
    async fn catch_up(&self) -> Result<(), Away> {
        let known: Vec<_> = {
            let slots = self.slots();
            let each = slots.iter().flat_map(|(name, slots)| slots.iter().map(move |slot| (name, slot)));
            each.map(|(name, slot)| (name.clone(), slot.clone())).collect()
        };
        for (name, slot) in known {
            let Some(slot) = slot.upgrade() else { continue };
            let Some(current) = slot.current.load_full() else { continue };
            let stored = self.store.read(&name).await?.and_then(|record| Obtained::from(&record));
            let left = current.usable_until.saturating_duration_since(Instant::now());
            match stored {
                Some(stored) if stored.grant.token == current.value => current.is_stored_as(stored.fence),
                Some(stored) if !stored.is_older_than(&current) => slot.adopt(stored, false),
                stored if !left.is_zero() && !current.is_refused() => {
                    let fence = stored.map_or(0, |stored| stored.fence);
                    if let Claim::Ours { lease, .. } = self.store.claim(&name, fence, false).await? {
                        // It is as old as it is, and not as new as the lease.
                        let lease = lease.made_before(current.age(), fence);
                        let value = current.value.expose().as_bytes();
                        if self.store.put(&name, &lease, value, left, Event::Known).await? {
                            current.is_stored_as(lease.fence);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn unread(&self) -> MutexGuard<'_, HashMap<String, Event>> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<String, Vec<Weak<TokenSlot>>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One gettoken under a lease.
struct Round<'a> {
    shared: &'a Shared,
    name: &'a str,
    slot: &'a Arc<TokenSlot>,
    held: Option<&'a Token>,
    lease: Lease,
}

impl Round<'_> {
    /// Asks WeCom and tells the others. False: another replica was faster, and what that one got is in the store.
    async fn ask(&self, reason: Reason, share: Share, times: u32) -> Result<(Obtained, bool), FetchError> {
        if reason.is_refusal() {
            self.tell_refusal();
        }
        let asking = self.slot.ask(share);
        match self.shared.store.while_extending(self.name, &self.lease, asking).await {
            Ok(grant) => Ok(self.put(reason, grant).await),
            Err(failure) => {
                self.end(&failure, times).await;
                Err(failure)
            }
        }
    }

    fn tell_refusal(&self) {
        let fence = self.held.map_or(0, Token::fence);
        let news = News { event: Event::Refused, fence, name: self.name.to_owned() };
        let store = self.shared.store.clone();
        self.slot.issuer.runtime.spawn(async move { store.tell(&news).await });
    }

    async fn put(&self, reason: Reason, grant: Grant) -> (Obtained, bool) {
        let same = self.held.filter(|held| held.value == grant.token);
        // The same token does not live longer for having been asked for.
        let left = same.map(|held| held.usable_until.saturating_duration_since(Instant::now()));
        let life = left.map_or(grant.expires_in, |left| if left.is_zero() { PAST_EXPIRY } else { left });
        let event = match same.is_some() && reason.is_refusal() {
            true => Event::SameAgain,
            false => Event::Renewed,
        };
        let value = grant.token.expose().as_bytes();
        match self.shared.store.put(self.name, &self.lease, value, life, event).await {
            Ok(true) => (Obtained::under(self.lease.fence, grant), true),
            Ok(false) => (Obtained::alone(grant), false),
            Err(Away) => (Obtained::alone(grant), true),
        }
    }

    async fn end(&self, failure: &FetchError, times: u32) {
        let told = match failure {
            FetchError::Held { .. } | FetchError::Stopped => None,
            failure => {
                let wait = backoff::wait(times, failure.is_dangerous(), (self.slot.issuer.jitter)());
                serde_json::to_vec(&Told::of(failure, times)).ok().map(|told| (told, wait))
            }
        };
        let told = told.as_ref().map(|(told, wait)| (&told[..], *wait));
        let _ = self.shared.store.end(self.name, &self.lease, told).await;
    }
}

impl Told {
    fn of(failure: &FetchError, times: u32) -> Self {
        match failure {
            FetchError::Refused { errcode, errmsg } => {
                Self { errcode: Some(*errcode), words: errmsg.clone(), times }
            }
            failure => Self { errcode: None, words: failure.to_string(), times },
        }
    }

    fn parse(text: &[u8]) -> Self {
        serde_json::from_slice(text).unwrap_or_else(|_| Self {
            errcode: None,
            words: "gettoken failed".to_owned(),
            times: 0,
        })
    }
}

impl From<Told> for FetchError {
    fn from(told: Told) -> Self {
        match told.errcode {
            Some(errcode) => Self::Refused { errcode, errmsg: told.words },
            None => Self::Elsewhere(told.words),
        }
    }
}

impl Credentials {
    /// Under which name the store keeps what these credentials buy, the token or `what` else: it says nothing of them, and
    /// a changed secret has another.
    pub fn name_in_store(&self, what: &str) -> String {
        let Ok(mut mac) = <Hmac<Sha256> as KeyInit>::new_from_slice(self.secret.expose().as_bytes()) else {
            return String::new();
        };
        mac.update(b"wecom-proxy store v1");
        mac.update(what.as_bytes());
        mac.update(b"\0");
        mac.update(self.corpid.as_bytes());
        mac.finalize().into_bytes()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
