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
    AgentToken, Credentials, FetchError, RefreshReason, Token, TokenService, backoff,
    refresh::PAST_EXPIRY_TTL, refresh_budget::BudgetClass,
};
use crate::{
    store::{
        Claim, Lease, Notification, NotificationKind, Store, StoreEvent, StoreEvents, StoreRecord,
        Unavailable,
    },
    wecom::response::GettokenResponse,
};

/// How long another replica's gettoken is waited for before this one asks by itself.
pub(super) const REPLICA_TIMEOUT: Duration = Duration::from_secs(45);
/// How many records are read at once of those of which there was news.
const MAX_CONCURRENT_READS: usize = 16;

/// A token that came, and what the store knows it by: 0 where it does not know it.
#[derive(Clone)]
pub(super) struct FetchedToken {
    pub(super) response: GettokenResponse,
    pub(super) fence: u64,
    /// How long the store has known it.
    age: Duration,
    /// Whether this replica asked for it.
    pub(super) is_own: bool,
}

impl FetchedToken {
    /// What this replica got by itself.
    pub(super) fn unshared(grant: GettokenResponse) -> Self {
        Self::leased(0, grant)
    }

    /// What this replica got under a lease.
    fn leased(fence: u64, response: GettokenResponse) -> Self {
        Self { response, fence, age: Duration::ZERO, is_own: true }
    }

    fn from_record(record: &StoreRecord) -> Option<Self> {
        let grant = GettokenResponse::from_parts(str::from_utf8(&record.value).ok()?, record.ttl)?;
        Some(Self { response: grant, fence: record.fence, age: record.age, is_own: false })
    }

    /// Whether a token that this replica has is newer, or this very one.
    pub(super) fn is_older_than(&self, held: &Token) -> bool {
        held.is_newer_than(self.fence, self.age)
    }
}

/// What is shared, and who wants to hear of it.
pub(super) struct ReplicaSync {
    store: Arc<Store>,
    /// By name in the store; only agents that were asked for. Several may have the same credentials.
    tokens: Mutex<HashMap<String, Vec<Weak<AgentToken>>>>,
    /// By name, the news of records that are to be read.
    pending_reads: Mutex<HashMap<String, NotificationKind>>,
    read_permits: Semaphore,
}

/// A failure as the replicas tell it to each other.
#[derive(Serialize, Deserialize)]
struct SharedFailure {
    /// WeCom's, where it was WeCom that refused.
    errcode: Option<i64>,
    words: String,
    /// How many failed in a row before this one.
    times: u32,
}

/// Hears what the store says, as long as there is an issuer.
pub(super) async fn run_event_loop(issuer: Weak<TokenService>, mut said: StoreEvents) {
    while let Some(word) = said.recv().await {
        let Some(issuer) = issuer.upgrade() else { return };
        let Some(shared) = &issuer.replicas else { return };
        match word {
            StoreEvent::Notification(news) => shared.on_notification(&issuer, news),
            StoreEvent::Disconnected => shared.store.request_probe(),
            StoreEvent::Connected => {
                let joined = issuer.clone();
                issuer.runtime.spawn(async move {
                    if let Some(shared) = &joined.replicas {
                        let _ = shared.resync().await;
                    }
                });
            }
        }
    }
}

impl ReplicaSync {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            tokens: Mutex::default(),
            pending_reads: Mutex::default(),
            read_permits: Semaphore::new(MAX_CONCURRENT_READS),
        }
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Why the store is away.
    pub(super) fn store_error(&self) -> Option<String> {
        self.store.last_error()
    }

    /// Gets a token newer than the slot's own: from the store, from the replica that is asking, or from WeCom.
    pub(super) async fn fetch_token(
        &self,
        slot: &Arc<AgentToken>,
        reason: RefreshReason,
        share: BudgetClass,
    ) -> Result<FetchedToken, FetchError> {
        let name = slot.credentials.store_name("");
        self.register(&name, slot);
        // Before asking, so that nothing said meanwhile is missed.
        let watch = self.store.subscribe(&name);
        let held = slot.current.load_full();
        let is_held = |grant: &GettokenResponse| held.as_ref().is_some_and(|held| held.value == grant.token);
        // What this replica got without the store may be newer than what the store has kept meanwhile.
        let is_older = |stored: &FetchedToken| held.as_ref().is_some_and(|held| stored.is_older_than(held));
        let mut fence = held.as_ref().map_or(0, |held| held.fence());
        let (mut waited, give_up) = (false, Instant::now() + REPLICA_TIMEOUT);
        let mut force = reason == RefreshReason::Manual;
        // What failed on another replica's way to WeCom is tried on this one's, once.
        let (mut tried, mut overtaken) = (false, false);
        while Instant::now() < give_up {
            match self.store.claim(&name, fence, std::mem::take(&mut force)).await {
                Err(Unavailable) => break,
                Ok(Claim::Newer(record)) => match FetchedToken::from_record(&record) {
                    // The refused token is in the store, but nobody is known to have asked WeCom since the refusal.
                    Some(obtained)
                        if is_held(&obtained.response)
                            && reason.is_refusal()
                            && !(waited && record.is_from_lease) =>
                    {
                        fence = obtained.fence;
                    }
                    Some(obtained) if !is_older(&obtained) => return Ok(obtained),
                    _ => fence = record.fence,
                },
                Ok(Claim::Failed { failure, .. }) => {
                    let told = SharedFailure::parse(&failure);
                    if told.errcode.is_some() || std::mem::replace(&mut tried, true) {
                        return Err(told.into());
                    }
                    force = true;
                }
                Ok(Claim::Held { remaining: left }) => {
                    waited = true;
                    force = reason == RefreshReason::Manual;
                    watch.wait(left).await;
                }
                Ok(Claim::Acquired { lease, failure }) => {
                    let times =
                        failure.map_or(0, |failure| SharedFailure::parse(&failure).times.saturating_add(1));
                    let round = LeasedAttempt {
                        replicas: self,
                        name: &name,
                        token: slot,
                        previous: held.as_deref(),
                        lease,
                    };
                    let (obtained, stands) = round.fetch(reason, share, times).await?;
                    // Who was slower than another replica takes what that one got, once.
                    if stands || std::mem::replace(&mut overtaken, true) {
                        return Ok(obtained);
                    }
                    fence = round.lease.fence;
                }
            }
        }
        slot.call_gettoken(share).await.map(FetchedToken::unshared)
    }

    /// Notes that a slot wants to hear of its name.
    fn register(&self, name: &str, slot: &Arc<AgentToken>) {
        let mut slots = self.lock_tokens();
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
    fn registered_tokens(&self, name: &str) -> Vec<Arc<AgentToken>> {
        self.lock_tokens().get(name).into_iter().flatten().filter_map(Weak::upgrade).collect()
    }

    /// Hears news of another replica, or of this one.
    fn on_notification(&self, issuer: &Arc<TokenService>, news: Notification) {
        self.store.wake_subscribers(&news.name);
        let mut is_due = false;
        for slot in self.registered_tokens(&news.name) {
            let current = slot.current.load_full();
            let fence = current.as_ref().map_or(0, |current| current.fence());
            match (news.kind, current) {
                (NotificationKind::Refused, Some(current)) if fence == news.fence => current.mark_refused(),
                (NotificationKind::Updated | NotificationKind::Unchanged | NotificationKind::Restored, _) => {
                    is_due |= fence < news.fence
                }
                _ => {}
            }
        }
        if is_due && self.lock_pending_reads().insert(news.name.clone(), news.kind).is_none() {
            let reader = issuer.clone();
            issuer.runtime.spawn(async move {
                if let Some(shared) = &reader.replicas {
                    shared.apply_record(&news.name).await;
                }
            });
        }
    }

    /// Takes over the record of which there was news. However many there are, the store is asked for a few at a time, and
    /// for each once.
    async fn apply_record(&self, name: &str) {
        let turn = self.read_permits.acquire().await;
        let event = self.lock_pending_reads().remove(name);
        if let Ok(Some(record)) = self.store.read(name).await
            && let Some(obtained) = FetchedToken::from_record(&record)
        {
            for slot in self.registered_tokens(name) {
                slot.apply_remote(obtained.clone(), event == Some(NotificationKind::Unchanged));
            }
        }
        drop(turn);
    }

    /// The store is there again: what it does not know of is put there, and what others put there is taken over.
    async fn resync(&self) -> Result<(), Unavailable> {
        let known: Vec<_> = {
            let slots = self.lock_tokens();
            let each = slots.iter().flat_map(|(name, slots)| slots.iter().map(move |slot| (name, slot)));
            each.map(|(name, slot)| (name.clone(), slot.clone())).collect()
        };
        for (name, slot) in known {
            let Some(slot) = slot.upgrade() else { continue };
            let Some(current) = slot.current.load_full() else { continue };
            let stored = self.store.read(&name).await?.and_then(|record| FetchedToken::from_record(&record));
            let left = current.usable_until.saturating_duration_since(Instant::now());
            match stored {
                Some(stored) if stored.response.token == current.value => current.set_fence(stored.fence),
                Some(stored) if !stored.is_older_than(&current) => slot.apply_remote(stored, false),
                stored if !left.is_zero() && !current.is_refused() => {
                    let fence = stored.map_or(0, |stored| stored.fence);
                    if let Claim::Acquired { lease, .. } = self.store.claim(&name, fence, false).await? {
                        // It is as old as it is, and not as new as the lease.
                        let lease = lease.backdated(current.age(), fence);
                        let value = current.value.expose().as_bytes();
                        if self.store.put(&name, &lease, value, left, NotificationKind::Restored).await? {
                            current.set_fence(lease.fence);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn lock_pending_reads(&self) -> MutexGuard<'_, HashMap<String, NotificationKind>> {
        self.pending_reads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_tokens(&self) -> MutexGuard<'_, HashMap<String, Vec<Weak<AgentToken>>>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One gettoken under a lease.
struct LeasedAttempt<'a> {
    replicas: &'a ReplicaSync,
    name: &'a str,
    token: &'a Arc<AgentToken>,
    previous: Option<&'a Token>,
    lease: Lease,
}

impl LeasedAttempt<'_> {
    /// Asks WeCom and tells the others. False: another replica was faster, and what that one got is in the store.
    async fn fetch(
        &self,
        reason: RefreshReason,
        share: BudgetClass,
        times: u32,
    ) -> Result<(FetchedToken, bool), FetchError> {
        if reason.is_refusal() {
            self.publish_refusal();
        }
        let asking = self.token.call_gettoken(share);
        match self.replicas.store.extend_lease_while(self.name, &self.lease, asking).await {
            Ok(grant) => Ok(self.publish_token(reason, grant).await),
            Err(failure) => {
                self.end_lease(&failure, times).await;
                Err(failure)
            }
        }
    }

    fn publish_refusal(&self) {
        let fence = self.previous.map_or(0, Token::fence);
        let news = Notification { kind: NotificationKind::Refused, fence, name: self.name.to_owned() };
        let store = self.replicas.store.clone();
        self.token.service.runtime.spawn(async move { store.publish(&news).await });
    }

    async fn publish_token(&self, reason: RefreshReason, grant: GettokenResponse) -> (FetchedToken, bool) {
        let same = self.previous.filter(|held| held.value == grant.token);
        // The same token does not live longer for having been asked for.
        let left = same.map(|held| held.usable_until.saturating_duration_since(Instant::now()));
        let life = left.map_or(grant.expires_in, |left| if left.is_zero() { PAST_EXPIRY_TTL } else { left });
        let event = match same.is_some() && reason.is_refusal() {
            true => NotificationKind::Unchanged,
            false => NotificationKind::Updated,
        };
        let value = grant.token.expose().as_bytes();
        match self.replicas.store.put(self.name, &self.lease, value, life, event).await {
            Ok(true) => (FetchedToken::leased(self.lease.fence, grant), true),
            Ok(false) => (FetchedToken::unshared(grant), false),
            Err(Unavailable) => (FetchedToken::unshared(grant), true),
        }
    }

    async fn end_lease(&self, failure: &FetchError, times: u32) {
        let told = match failure {
            FetchError::Throttled { .. } | FetchError::Cancelled => None,
            failure => {
                let wait = backoff::backoff_delay(times, failure.risks_ban(), (self.token.service.jitter)());
                serde_json::to_vec(&SharedFailure::from_error(failure, times)).ok().map(|told| (told, wait))
            }
        };
        let told = told.as_ref().map(|(told, wait)| (&told[..], *wait));
        let _ = self.replicas.store.end_lease(self.name, &self.lease, told).await;
    }
}

impl SharedFailure {
    fn from_error(failure: &FetchError, times: u32) -> Self {
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

impl From<SharedFailure> for FetchError {
    fn from(told: SharedFailure) -> Self {
        match told.errcode {
            Some(errcode) => Self::Refused { errcode, errmsg: told.words },
            None => Self::OtherReplica(told.words),
        }
    }
}

impl Credentials {
    /// Under which name the store keeps what these credentials buy, the token or `what` else: it says nothing of them, and
    /// a changed secret has another.
    pub fn store_name(&self, what: &str) -> String {
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
