//! The fetch of a ticket, for all callers that wait for it and for all replicas. The store is called only if no ticket
//! is cached in memory.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{
    CachedTicket, FailedTicketFetch, FetchOutcome, Joined, MAX_TTL, TicketEntry, TicketResponse, TicketResult,
};
use crate::{
    secret::Masked,
    store::{Lease, NotificationKind, StoreRecord},
    tokens::{
        CachedToken, CredentialId,
        kinds::ticket::TicketKind,
        leased_fetch::{LeasedFetch, Publication, take_or_fetch},
    },
};

/// How long other replicas return WeCom's error response: long enough for requests that waited for it.
const ERROR_RESPONSE_TTL: Duration = Duration::from_secs(1);

/// A ticket in the store; its times count from the lease of the record. The record outlives them by [`MAX_TTL`], so
/// that a replica without the ticket in memory recognizes it when WeCom returns it again. Replicas of two versions
/// must agree on the JSON names.
#[derive(Serialize, Deserialize)]
struct StoredTicket<'a> {
    value: &'a str,
    #[serde(rename = "expires_ms")]
    expires_at_ms: i64,
    #[serde(rename = "fetch_ms")]
    fetch_at_ms: i64,
    #[serde(rename = "reported_s")]
    reported_ttl_secs: u64,
    refetches: u32,
}

/// The fetch by one caller.
struct TicketFetch<'a, F> {
    entry: &'a TicketEntry,
    fetch: F,
}

/// Counts a fetch whose caller leaves before WeCom's response as failed: WeCom has counted it.
struct UnfinishedFetch<'a>(Option<&'a TicketEntry>);

impl Drop for UnfinishedFetch<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.0 {
            entry.record_outcome(&FetchOutcome::NoResponse, Instant::now());
        }
    }
}

impl CachedToken {
    fn ticket_entry(&self, kind: TicketKind) -> &TicketEntry {
        self.tickets.get_or_init(Box::default).entry(kind)
    }

    /// The cached ticket, unless it is to be fetched.
    pub fn cached_ticket(&self, kind: TicketKind) -> Option<TicketResponse> {
        self.ticket_entry(kind).response(Instant::now())
    }

    /// The failure that callers without a key get instead of a fetch: WeCom limits how often a corp may fetch tickets.
    pub fn failed_ticket_fetch(&self, kind: TicketKind) -> Option<FailedTicketFetch> {
        let state = self.ticket_entry(kind).0.lock();
        state.failed.clone().filter(|failed| Instant::now() < failed.retry_at)
    }

    /// The ticket: cached, from another replica, or fetched with `fetch`, once for all concurrent callers. If the
    /// caller that fetches is cancelled, another one fetches.
    pub async fn ticket<R>(
        self: &Arc<Self>,
        kind: TicketKind,
        fetch: impl AsyncFnMut() -> (R, FetchOutcome),
    ) -> TicketResult<R> {
        let entry = self.ticket_entry(kind);
        let leader = loop {
            let outcome = match entry.join(Instant::now()) {
                Joined::Cached(ticket) => return TicketResult::Ticket(ticket),
                Joined::Leader(leader) => break leader,
                Joined::Waiter(flight) => flight.wait().await,
            };
            match outcome {
                Some(FetchOutcome::NoToken) => match self.current_or_fetch().await {
                    Ok(_) => {}
                    Err(failure) => return TicketResult::NoToken(failure),
                },
                Some(outcome) => return entry.result(outcome),
                None => {}
            }
        };
        let name = CredentialId::new(kind.id_kind(), &self.credentials).store_name();
        let fence = entry.0.lock().cached.as_ref().map_or(0, |cached| cached.fence);
        let mut fetch = TicketFetch { entry, fetch };
        let mut unfinished = UnfinishedFetch(Some(entry));
        let (fetched, outcome) = take_or_fetch(self.store(), &name, fence, false, &mut fetch).await;
        self.forget_if_discarded();
        unfinished.0 = None;
        entry.record_outcome(&outcome, Instant::now());
        entry.0.lock().flight.complete(&leader, outcome.clone());
        match (fetched, entry.response(Instant::now())) {
            // The expiry of a ticket that WeCom returned again did not move, although its response says so.
            (Some(_), Some(ticket)) if ticket.is_repeated => TicketResult::Ticket(ticket),
            (Some(fetched), _) => TicketResult::Fetched(fetched),
            (None, _) => entry.result(outcome),
        }
    }
}

impl<R, F: AsyncFnMut() -> (R, FetchOutcome)> LeasedFetch for TicketFetch<'_, F> {
    /// The own response, if there was one, and the outcome for others.
    type Output = (Option<R>, FetchOutcome);

    fn on_record(&mut self, record: &StoreRecord) -> Option<Self::Output> {
        self.entry.insert_record(record).map(|ticket| (None, FetchOutcome::Response(ticket.body)))
    }

    fn on_failure(&mut self, failure: &[u8]) -> Option<Self::Output> {
        Some((None, FetchOutcome::Response(Bytes::copy_from_slice(failure))))
    }

    fn on_held(&mut self) -> bool {
        false
    }

    async fn fetch(&mut self, _: bool) -> Self::Output {
        let requested_at = Instant::now();
        let (response, outcome) = (self.fetch)().await;
        if let FetchOutcome::Response(body) = &outcome {
            self.entry.insert_response(requested_at, body);
        }
        (Some(response), outcome)
    }

    fn publication(&self, (_, outcome): &Self::Output, lease: &Lease, _: Option<&[u8]>) -> Publication {
        let FetchOutcome::Response(body) = outcome else { return Publication::Failure(None) };
        match self.entry.encode_for_store(lease) {
            Some((value, ttl)) => Publication::Record(value, ttl, NotificationKind::Updated),
            None => Publication::Failure(Some((body.to_vec(), ERROR_RESPONSE_TTL))),
        }
    }

    fn on_stored(&mut self, fetched: Self::Output, fence: u64, _: bool) -> ControlFlow<Self::Output> {
        if let Some(cached) = &mut self.entry.0.lock().cached {
            cached.fence = fence;
        }
        ControlFlow::Break(fetched)
    }
}

impl TicketEntry {
    /// The result of a fetch by another request or replica. A ticket of it is in the cache.
    fn result<R>(&self, outcome: FetchOutcome) -> TicketResult<R> {
        match (self.response(Instant::now()), outcome) {
            (Some(ticket), _) => TicketResult::Ticket(ticket),
            (None, FetchOutcome::Response(body)) => TicketResult::Response(body),
            (None, FetchOutcome::NoResponse | FetchOutcome::NoToken) => TicketResult::NoResponse,
        }
    }

    /// Caches the ticket of a record; returns it if it can be used.
    fn insert_record(&self, record: &StoreRecord) -> Option<TicketResponse> {
        let stored: StoredTicket<'_> = serde_json::from_slice(&record.value).ok()?;
        let now = Instant::now();
        let leased_at = now.checked_sub(record.age).unwrap_or(now);
        let ticket = CachedTicket {
            ticket: Masked::new(stored.value),
            expires_at: add_milliseconds(leased_at, stored.expires_at_ms),
            fetch_at: add_milliseconds(leased_at, stored.fetch_at_ms),
            reported_ttl: Duration::from_secs(stored.reported_ttl_secs).min(MAX_TTL),
            refetches: stored.refetches,
            fence: record.fence,
        };
        let mut state = self.0.lock();
        state.cached = Some(match state.cached.take().filter(|cached| cached.ticket == ticket.ticket) {
            None => ticket,
            // The other replica may not have known that the ticket was one returned again.
            Some(mut known) => {
                known.refetches = known.refetches.max(ticket.refetches);
                let reported_ttl = ticket.reported_ttl;
                let repeated = CachedTicket::new(ticket.ticket, leased_at, reported_ttl, Some(&known));
                CachedTicket {
                    expires_at: repeated.expires_at.min(ticket.expires_at),
                    fetch_at: repeated.fetch_at.min(ticket.fetch_at),
                    fence: ticket.fence,
                    ..repeated
                }
            }
        });
        state.cached.as_ref()?.response(now)
    }

    /// The cached ticket, if it can be used, as a store value with its TTL.
    fn encode_for_store(&self, lease: &Lease) -> Option<(Zeroizing<Vec<u8>>, Duration)> {
        let (now, state) = (Instant::now(), self.0.lock());
        let cached = state.cached.as_ref().filter(|cached| now < cached.fetch_at)?;
        let since_lease = |at| milliseconds_between(lease.acquired_at(), at);
        let stored = StoredTicket {
            value: cached.ticket.expose(),
            expires_at_ms: since_lease(cached.expires_at),
            fetch_at_ms: since_lease(cached.fetch_at),
            reported_ttl_secs: cached.reported_ttl.as_secs(),
            refetches: cached.refetches,
        };
        let end = cached.expires_at.max(cached.fetch_at);
        Some((
            Zeroizing::new(serde_json::to_vec(&stored).ok()?),
            end.saturating_duration_since(now) + MAX_TTL,
        ))
    }
}

fn milliseconds_between(from: Instant, to: Instant) -> i64 {
    let as_i64 = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    as_i64(to.saturating_duration_since(from)) - as_i64(from.saturating_duration_since(to))
}

/// At most [`MAX_TTL`] later.
fn add_milliseconds(instant: Instant, milliseconds: i64) -> Instant {
    let distance = Duration::from_millis(milliseconds.unsigned_abs());
    match milliseconds < 0 {
        true => instant.checked_sub(distance).unwrap_or(instant),
        false => instant + distance.min(MAX_TTL),
    }
}
