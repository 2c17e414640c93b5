//! The fetch of a token where replicas share a store: which record or failure of another replica ends it, and what is
//! published of an own one.

use std::{mem, ops::ControlFlow, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{
    CachedToken, FetchError, RefreshReason, Token, backoff,
    fetched_token::FetchedToken,
    leased_fetch::{LeasedFetch, Publication, take_or_fetch},
    refresh_budget::BudgetClass,
    token::PAST_EXPIRY_TTL,
};
use crate::store::{Lease, Notification, NotificationKind, StoreRecord};

/// The state of one fetch.
struct TokenFetch<'a> {
    name: &'a str,
    entry: &'a Arc<CachedToken>,
    reason: RefreshReason,
    class: BudgetClass,
    /// The token that this replica had when the fetch began.
    previous: Option<Arc<Token>>,
    /// The fetch has waited for the lease of another replica.
    has_waited: bool,
    /// A failure of another replica to reach WeCom was ignored; done once, because this replica's route may work.
    ignored_failure: bool,
    /// A token of this fetch was superseded; the newer record is read once.
    was_superseded: bool,
}

/// Fetches a token newer than the cached one: from the store, from the replica that has the lease, or from WeCom.
pub(super) async fn fetch_token(
    entry: &Arc<CachedToken>,
    reason: RefreshReason,
    class: BudgetClass,
) -> Result<FetchedToken, FetchError> {
    let (name, previous) = (entry.id.store_name(), entry.current.load_full());
    let fence = previous.as_ref().map_or(0, |previous| previous.fence());
    let mut fetch = TokenFetch {
        name: &name,
        entry,
        reason,
        class,
        previous,
        has_waited: false,
        ignored_failure: false,
        was_superseded: false,
    };
    let fetched =
        take_or_fetch(entry.store(), &name, fence, reason == RefreshReason::Manual, &mut fetch).await;
    entry.forget_if_discarded();
    fetched
}

impl LeasedFetch for TokenFetch<'_> {
    type Output = Result<FetchedToken, FetchError>;

    fn on_record(&mut self, record: &StoreRecord) -> Option<Self::Output> {
        FetchedToken::from_record(record)
            .filter(|stored| !self.is_refused_token(stored, record) && !self.is_not_newer(stored))
            .map(Ok)
    }

    /// WeCom's errcode is final; a network failure is ignored once.
    fn on_failure(&mut self, failure: &[u8]) -> Option<Self::Output> {
        let failure = SharedFailure::parse(failure);
        let is_final = failure.errcode.is_some() || mem::replace(&mut self.ignored_failure, true);
        is_final.then(|| Err(failure.into()))
    }

    fn on_held(&mut self) -> bool {
        self.has_waited = true;
        self.reason == RefreshReason::Manual
    }

    async fn fetch(&mut self, is_leased: bool) -> Self::Output {
        if is_leased && self.reason.is_refusal() {
            self.publish_refusal();
        }
        self.entry.call_gettoken(self.class, self.reason).await.map(FetchedToken::unshared)
    }

    fn publication(&self, fetched: &Self::Output, _: &Lease, earlier_failure: Option<&[u8]>) -> Publication {
        let response = match fetched {
            Ok(fetched) => &fetched.response,
            // gettoken was not called.
            Err(FetchError::Throttled { .. } | FetchError::Cancelled) => return Publication::Failure(None),
            // The other replicas find out by themselves, and a push of a ticket ends it.
            Err(failure) if failure.is_prerequisite() || failure.is_ticket_error() => {
                return Publication::Failure(None);
            }
            Err(failure) => {
                let parsed = earlier_failure.map(SharedFailure::parse);
                let failures = parsed.map_or(0, |earlier| earlier.failures.saturating_add(1));
                let jitter = (self.entry.service.jitter)();
                let delay = backoff::delay_after(failure, failures, jitter);
                let shared = serde_json::to_vec(&SharedFailure::from_error(failure, failures));
                return Publication::Failure(shared.ok().map(|shared| (shared, delay)));
            }
        };
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
        Publication::Record(Zeroizing::new(response.token.expose().as_bytes().to_vec()), ttl, kind)
    }

    fn on_stored(&mut self, fetched: Self::Output, fence: u64, is_stored: bool) -> ControlFlow<Self::Output> {
        match fetched {
            Ok(fetched) if is_stored => ControlFlow::Break(Ok(fetched.with_fence(fence))),
            _ if !mem::replace(&mut self.was_superseded, true) => ControlFlow::Continue(()),
            fetched => ControlFlow::Break(fetched),
        }
    }
}

impl TokenFetch<'_> {
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

    /// Tells the other replicas that WeCom refused the previous token; runs in a task of its own.
    fn publish_refusal(&self) {
        let Some(store) = self.entry.store().cloned() else { return };
        let fence = self.previous.as_ref().map_or(0, |previous| previous.fence());
        let notification =
            Notification { kind: NotificationKind::Refused, fence, name: self.name.to_owned() };
        self.entry.service.runtime.spawn(async move { store.publish(&notification).await });
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
