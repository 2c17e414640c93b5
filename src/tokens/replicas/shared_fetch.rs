//! One fetch of a token where replicas share a store, as a state machine: [`SharedFetch`] is the state, and for each
//! reply to a claim one method returns the next [`Step`]. `call_and_publish` handles the outcome of gettoken.
//!
//! The store's rules: a claim returns a record that is newer than the caller's, or a failure whose backoff has not
//! ended, or the lease to call gettoken, or how long another replica has that lease. While the store is unavailable a
//! replica calls gettoken without a lease.

use std::{mem, ops::ControlFlow, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    super::{
        AgentToken, FetchError, RefreshReason, Token, backoff, fetched_token::FetchedToken,
        refresh_budget::BudgetClass, token::PAST_EXPIRY_TTL,
    },
    ReplicaSync,
};
use crate::{
    store::{Claim, Lease, Notification, NotificationKind, StoreRecord, Unavailable},
    wecom::response::GettokenResponse,
};

/// How long a fetch waits for other replicas before it calls gettoken without a lease.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(45);

type FetchResult = Result<FetchedToken, FetchError>;

/// What follows a reply of the store.
enum Step {
    /// Claim again, with the fence and force of the state.
    Claim,
    /// Another replica has the lease: wait for a notification, at most for the rest of that lease, then claim again.
    Wait(Duration),
    /// This replica has the lease: call gettoken. `failures` counts the failures in a row before this call.
    CallGettoken { lease: Lease, failures: u32 },
    /// The fetch has ended.
    Done(FetchResult),
}

/// A token fetched under a lease, and whether the store took it.
enum Published {
    /// The token is the newest: stored, or the store is unavailable.
    Current(FetchedToken),
    /// A faster replica stored a newer record.
    Superseded(FetchedToken),
}

/// The state of one fetch.
pub(super) struct SharedFetch<'a> {
    replicas: &'a ReplicaSync,
    name: &'a str,
    entry: &'a Arc<AgentToken>,
    reason: RefreshReason,
    class: BudgetClass,
    /// The token that this replica had when the fetch began.
    previous: Option<Arc<Token>>,
    /// Only a record with a greater fence ends the fetch.
    fence: u64,
    /// The next claim ignores the backoff of a published failure.
    force: bool,
    /// The fetch has waited for the lease of another replica.
    has_waited: bool,
    /// A failure of another replica to reach WeCom was ignored; done once, because this replica's route may work.
    ignored_failure: bool,
    /// A token of this fetch was superseded; the newer record is read once.
    was_superseded: bool,
}

impl<'a> SharedFetch<'a> {
    /// Fetches a token newer than the cached one.
    pub(super) async fn run(
        replicas: &'a ReplicaSync,
        name: &'a str,
        entry: &'a Arc<AgentToken>,
        reason: RefreshReason,
        class: BudgetClass,
    ) -> FetchResult {
        // Before the first claim, so that no notification is missed.
        let subscription = replicas.store.subscribe(name);
        let mut fetch = Self::new(replicas, name, entry, reason, class);
        let deadline = Instant::now() + REPLICA_TIMEOUT;
        while Instant::now() < deadline {
            let force = mem::take(&mut fetch.force);
            let claim = match replicas.store.claim(name, fetch.fence, force).await {
                Ok(claim) => claim,
                Err(Unavailable) => break,
            };
            match fetch.on_claim(claim) {
                Step::Claim => {}
                Step::Wait(remaining) => subscription.wait(remaining).await,
                Step::CallGettoken { lease, failures } => {
                    if let ControlFlow::Break(result) = fetch.call_and_publish(lease, failures).await {
                        return result;
                    }
                }
                Step::Done(result) => return result,
            }
        }
        entry.call_gettoken(class).await.map(FetchedToken::unshared)
    }

    fn new(
        replicas: &'a ReplicaSync,
        name: &'a str,
        entry: &'a Arc<AgentToken>,
        reason: RefreshReason,
        class: BudgetClass,
    ) -> Self {
        let previous = entry.current.load_full();
        let fence = previous.as_ref().map_or(0, |previous| previous.fence());
        Self {
            replicas,
            name,
            entry,
            reason,
            class,
            previous,
            fence,
            force: reason == RefreshReason::Manual,
            has_waited: false,
            ignored_failure: false,
            was_superseded: false,
        }
    }

    fn on_claim(&mut self, claim: Claim) -> Step {
        match claim {
            Claim::Newer(record) => self.on_newer(&record),
            Claim::Failed { failure, .. } => self.on_failed(SharedFailure::parse(&failure)),
            Claim::Held { remaining } => self.on_held(remaining),
            Claim::Acquired { lease, failure } => Step::CallGettoken {
                lease,
                failures: failure
                    .map_or(0, |failure| SharedFailure::parse(&failure).failures.saturating_add(1)),
            },
        }
    }

    /// The store has a newer record than the last claim named.
    fn on_newer(&mut self, record: &StoreRecord) -> Step {
        if let Some(stored) = FetchedToken::from_record(record)
            && !self.is_refused_token(&stored, record)
            && !self.is_not_newer(&stored)
        {
            return Step::Done(Ok(stored));
        }
        self.fence = record.fence;
        Step::Claim
    }

    /// Another replica's attempt failed. WeCom's errcode is final; a network failure is ignored once.
    fn on_failed(&mut self, failure: SharedFailure) -> Step {
        if failure.errcode.is_some() || mem::replace(&mut self.ignored_failure, true) {
            return Step::Done(Err(failure.into()));
        }
        self.force = true;
        Step::Claim
    }

    /// Another replica has the lease.
    fn on_held(&mut self, remaining: Duration) -> Step {
        self.has_waited = true;
        self.force = self.reason == RefreshReason::Manual;
        Step::Wait(remaining)
    }

    /// A token of this replica was published. If a newer record superseded it, the next claim returns that one.
    fn on_published(&mut self, published: Published, lease_fence: u64) -> ControlFlow<FetchResult> {
        match published {
            Published::Superseded(_) if !mem::replace(&mut self.was_superseded, true) => {
                self.fence = lease_fence;
                ControlFlow::Continue(())
            }
            Published::Current(fetched) | Published::Superseded(fetched) => ControlFlow::Break(Ok(fetched)),
        }
    }

    /// Whether the record is the refused token, and no replica is known to have called gettoken since the refusal.
    fn is_refused_token(&self, stored: &FetchedToken, record: &StoreRecord) -> bool {
        self.previous.as_ref().is_some_and(|previous| previous.value == stored.response.token)
            && self.reason.is_refusal()
            && !(self.has_waited && record.is_from_lease)
    }

    /// Whether the stored token is no newer than the previous one, which this replica may have fetched without the
    /// store.
    fn is_not_newer(&self, stored: &FetchedToken) -> bool {
        self.previous.as_ref().is_some_and(|previous| stored.is_not_newer_than(previous))
    }

    /// Calls gettoken under a lease and publishes the outcome.
    async fn call_and_publish(&mut self, lease: Lease, failures: u32) -> ControlFlow<FetchResult> {
        if self.reason.is_refusal() {
            self.publish_refusal();
        }
        let call = self.entry.call_gettoken(self.class);
        match self.replicas.store.extend_lease_while(self.name, &lease, call).await {
            Ok(response) => {
                let published = self.publish_token(&lease, response).await;
                self.on_published(published, lease.fence)
            }
            Err(failure) => {
                self.end_lease(&lease, &failure, failures).await;
                ControlFlow::Break(Err(failure))
            }
        }
    }

    /// Tells the other replicas that WeCom refused the previous token; runs in a task of its own.
    fn publish_refusal(&self) {
        let fence = self.previous.as_ref().map_or(0, |previous| previous.fence());
        let notification =
            Notification { kind: NotificationKind::Refused, fence, name: self.name.to_owned() };
        let store = self.replicas.store.clone();
        self.entry.service.runtime.spawn(async move { store.publish(&notification).await });
    }

    async fn publish_token(&self, lease: &Lease, response: GettokenResponse) -> Published {
        let unchanged = self.previous.as_ref().filter(|previous| previous.value == response.token);
        // A token that gettoken returns again expires no later than before.
        let remaining =
            unchanged.map(|previous| previous.usable_until.saturating_duration_since(Instant::now()));
        let ttl = remaining.map_or(response.expires_in, |remaining| {
            if remaining.is_zero() { PAST_EXPIRY_TTL } else { remaining }
        });
        let kind = match unchanged.is_some() && self.reason.is_refusal() {
            true => NotificationKind::Unchanged,
            false => NotificationKind::Updated,
        };
        let value = response.token.expose().as_bytes();
        match self.replicas.store.put(self.name, lease, value, ttl, kind).await {
            Ok(true) => Published::Current(FetchedToken::leased(lease.fence, response)),
            Ok(false) => Published::Superseded(FetchedToken::unshared(response)),
            Err(Unavailable) => Published::Current(FetchedToken::unshared(response)),
        }
    }

    /// Ends the lease, and publishes the failure if gettoken was called.
    async fn end_lease(&self, lease: &Lease, failure: &FetchError, failures: u32) {
        let shared = match failure {
            FetchError::Throttled { .. } | FetchError::Cancelled => None,
            failure => {
                let jitter = (self.entry.service.jitter)();
                let delay = backoff::backoff_delay(failures, failure.risks_ban(), jitter);
                let shared = serde_json::to_vec(&SharedFailure::from_error(failure, failures));
                shared.ok().map(|shared| (shared, delay))
            }
        };
        let shared = shared.as_ref().map(|(shared, delay)| (&shared[..], *delay));
        let _ = self.replicas.store.end_lease(self.name, lease, shared).await;
    }
}

/// A failed gettoken as replicas publish it. Replicas of two versions must agree on the JSON names.
#[derive(Serialize, Deserialize)]
struct SharedFailure {
    /// WeCom's errcode, if WeCom responded.
    errcode: Option<i64>,
    #[serde(rename = "words")]
    message: String,
    /// Failures in a row before this one.
    #[serde(rename = "times")]
    failures: u32,
}

impl SharedFailure {
    fn from_error(failure: &FetchError, failures: u32) -> Self {
        match failure {
            FetchError::Errcode { errcode, errmsg } => {
                Self { errcode: Some(*errcode), message: errmsg.clone(), failures }
            }
            failure => Self { errcode: None, message: failure.to_string(), failures },
        }
    }

    fn parse(text: &[u8]) -> Self {
        serde_json::from_slice(text).unwrap_or_else(|_| Self {
            errcode: None,
            message: "gettoken failed".to_owned(),
            failures: 0,
        })
    }
}

impl From<SharedFailure> for FetchError {
    fn from(shared: SharedFailure) -> Self {
        match shared.errcode {
            Some(errcode) => Self::Errcode { errcode, errmsg: shared.message },
            None => Self::OtherReplica(shared.message),
        }
    }
}
