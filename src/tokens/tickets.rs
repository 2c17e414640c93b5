//! Ticket cache of one credential. Tickets are kept until shortly before they expire, because WeCom limits how often
//! they may be fetched. The caller fetches; this module makes one caller fetch while the others wait, across
//! replicas too if a store is shared (`ticket_fetch`).

mod ticket_fetch;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;

use bytes::Bytes;
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    FetchError,
    kinds::ticket::TicketKind,
    single_flight::{Flight, Leader, SingleFlight},
};
use crate::secret::Masked;

/// A cached ticket is not returned in this time before its expiry, or in the second half of a lifetime shorter than
/// twice this: the next request fetches one.
const EXPIRY_MARGIN: Duration = Duration::from_secs(300);
/// How long callers without a key get the failure of a fetch at first.
const MIN_FAILURE_WAIT: Duration = Duration::from_secs(1);
/// The same after many failures.
const MAX_FAILURE_WAIT: Duration = Duration::from_secs(60);
/// Longest lifetime accepted from a response.
const MAX_TTL: Duration = Duration::from_secs(7200);
/// Fetches of a ticket that WeCom returns again are at least this far apart. One hour has at most 60 of them, the
/// first after the expiry included.
const MIN_REFETCH_INTERVAL: Duration = Duration::from_secs(10);
/// The same from the fetch after [`MAX_QUICK_REFETCHES`] on.
const LONG_REFETCH_INTERVAL: Duration = Duration::from_secs(75);
const MAX_QUICK_REFETCHES: u32 = 12;

/// The tickets of one agent; dropped when its secret changes. An entry is allocated on first use, because most agents
/// have none.
#[derive(Debug, Default)]
pub struct AgentTickets([OnceLock<Box<TicketEntry>>; TicketKind::COUNT]);

/// The cache entry of one ticket.
#[derive(Debug, Default)]
struct TicketEntry(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    cached: Option<CachedTicket>,
    flight: SingleFlight<FetchOutcome>,
    failed: Option<FailedTicketFetch>,
}

/// Fetches without a ticket since the last one with one.
#[derive(Debug, Clone)]
pub struct FailedTicketFetch {
    /// WeCom's last response; empty if there was none.
    pub body: Bytes,
    /// When callers without a key may cause the next fetch.
    pub retry_at: Instant,
    wait: Duration,
}

/// How a fetch ended, for callers that waited for it. A cached ticket comes first.
#[derive(Debug, Clone)]
pub enum FetchOutcome {
    /// WeCom's response, with or without a ticket.
    Response(Bytes),
    /// There was no usable response.
    NoResponse,
    /// There was no access_token to fetch with, which the token's entry tells each caller.
    NoToken,
}

/// What a caller gets; `R` is the response to its own fetch.
#[derive(Debug)]
pub enum TicketResult<R> {
    /// A ticket.
    Ticket(TicketResponse),
    /// The caller's own response.
    Fetched(R),
    /// WeCom's response without a ticket to the fetch of another request or replica.
    Response(Bytes),
    /// The fetch of another request brought no usable response.
    NoResponse,
    /// There is no access_token.
    NoToken(Arc<FetchError>),
}

/// What a caller finds.
enum Joined {
    Cached(TicketResponse),
    /// Another caller fetches.
    Waiter(Flight<FetchOutcome>),
    /// The caller is to fetch.
    Leader(Leader<FetchOutcome>),
}

/// A cached ticket as WeCom's response body.
#[derive(Debug, PartialEq)]
pub struct TicketResponse {
    /// The body.
    pub body: Bytes,
    /// WeCom has returned the ticket again, so it may end any time: no cache may store the response.
    pub is_repeated: bool,
}

#[derive(Debug, Clone)]
struct CachedTicket {
    ticket: Masked,
    /// When it expires, by the first response that had it.
    expires_at: Instant,
    /// From when on the next use fetches. Later than the expiry only if WeCom returned the ticket after it.
    fetch_at: Instant,
    /// The lifetime in the last response that had it.
    reported_ttl: Duration,
    /// Fetches begun since the first response that had it; at least 1 if another had it, too.
    refetches: u32,
    /// The fence of its record in the store; 0 if it has none.
    fence: u64,
}

impl CachedTicket {
    /// A ticket from a response to a fetch that began at `requested_at`; `previous` is what was cached before. A
    /// ticket that WeCom returns again keeps its expiry, because `expires_in` may be the same in each response.
    fn new(ticket: Masked, requested_at: Instant, reported_ttl: Duration, previous: Option<&Self>) -> Self {
        let expires_at = requested_at + reported_ttl;
        match previous.filter(|previous| previous.ticket == ticket) {
            None => {
                let fetch_at = expires_at - EXPIRY_MARGIN.min(reported_ttl / 2);
                Self { ticket, expires_at, fetch_at, reported_ttl, refetches: 0, fence: 0 }
            }
            Some(previous) => {
                let expires_at = expires_at.min(previous.expires_at);
                let remaining = expires_at.saturating_duration_since(requested_at);
                let fetch_at = match remaining.is_zero() {
                    true => requested_at + previous.refetch_interval(),
                    // The first use after the expiry fetches, however recent this fetch is.
                    false => (requested_at + MIN_REFETCH_INTERVAL.max(remaining / 2)).min(expires_at),
                };
                let refetches = previous.refetches.max(1);
                Self { expires_at, fetch_at, reported_ttl, refetches, ..previous.clone() }
            }
        }
    }

    /// The ticket with its remaining lifetime, or after its expiry as WeCom returned it last. `None`: it is to be
    /// fetched.
    fn response(&self, now: Instant) -> Option<TicketResponse> {
        if now >= self.fetch_at {
            return None;
        }
        let seconds = match now < self.expires_at {
            true => (self.expires_at - now).as_secs().max(1),
            false => self.reported_ttl.as_secs(),
        };
        let ticket = serde_json::json!(self.ticket.expose());
        let body = format!(r#"{{"errcode":0,"errmsg":"ok","ticket":{ticket},"expires_in":{seconds}}}"#);
        Some(TicketResponse { body: body.into(), is_repeated: self.refetches > 0 })
    }

    /// Records that a fetch begins. A ticket that WeCom returned after its expiry is used meanwhile, and if it fails.
    fn begin_fetch(&mut self, now: Instant) {
        self.refetches = self.refetches.saturating_add(1);
        if self.fetch_at > self.expires_at {
            self.fetch_at = now + self.refetch_interval();
        }
    }

    fn refetch_interval(&self) -> Duration {
        if self.refetches <= MAX_QUICK_REFETCHES { MIN_REFETCH_INTERVAL } else { LONG_REFETCH_INTERVAL }
    }
}

impl AgentTickets {
    /// The entry of a kind.
    fn entry(&self, kind: TicketKind) -> &TicketEntry {
        self.0[kind.index()].get_or_init(Box::default)
    }

    /// Calls `visit` with each cached ticket, for redaction.
    pub fn for_each_value(&self, visit: &mut dyn FnMut(&str)) {
        for entry in self.0.iter().filter_map(OnceLock::get) {
            let cached = entry.0.lock().cached.as_ref().map(|cached| cached.ticket.clone());
            if let Some(ticket) = cached {
                visit(ticket.expose());
            }
        }
    }
}

impl TicketEntry {
    /// Records how a fetch ended.
    fn record_outcome(&self, outcome: &FetchOutcome, now: Instant) {
        let mut state = self.0.lock();
        let has_ticket = state.cached.as_ref().is_some_and(|cached| now < cached.fetch_at);
        let body = match outcome {
            _ if has_ticket => return state.failed = None,
            // The token's own backoff bounds these.
            FetchOutcome::NoToken => return,
            FetchOutcome::Response(body) => body.clone(),
            FetchOutcome::NoResponse => Bytes::new(),
        };
        let wait =
            state.failed.as_ref().map_or(MIN_FAILURE_WAIT, |failed| MAX_FAILURE_WAIT.min(2 * failed.wait));
        state.failed = Some(FailedTicketFetch { body, retry_at: now + wait, wait });
    }

    /// The cached ticket; `None`: there is none, or it is to be fetched.
    fn response(&self, now: Instant) -> Option<TicketResponse> {
        self.0.lock().cached.as_ref()?.response(now)
    }

    /// The cached ticket, or the fetch of another caller, or the lead of a new one.
    fn join(&self, now: Instant) -> Joined {
        let mut state = self.0.lock();
        if let Some(ticket) = state.cached.as_ref().and_then(|cached| cached.response(now)) {
            return Joined::Cached(ticket);
        }
        if let Some(flight) = state.flight.running() {
            return Joined::Waiter(flight);
        }
        if let Some(cached) = &mut state.cached {
            cached.begin_fetch(now);
        }
        Joined::Leader(state.flight.start().0)
    }

    /// Caches the ticket of a response; a response without one is ignored. The lifetime counts from
    /// `requested_at`.
    fn insert_response(&self, requested_at: Instant, body: &[u8]) {
        #[derive(Deserialize)]
        struct TicketFields {
            errcode: i64,
            ticket: String,
            expires_in: u64,
        }
        let Ok(response) = serde_json::from_slice::<TicketFields>(body) else { return };
        if response.errcode != 0 || response.ticket.is_empty() || response.expires_in == 0 {
            return;
        }
        let ttl = Duration::from_secs(response.expires_in).min(MAX_TTL);
        let (mut state, ticket) = (self.0.lock(), Masked::new(response.ticket));
        state.cached = Some(CachedTicket::new(ticket, requested_at, ttl, state.cached.as_ref()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ticket_is_cached_until_its_expiry_margin() {
        let tickets = AgentTickets::default();
        let entry = tickets.entry(TicketKind::JSAPI);
        assert_eq!(entry.response(Instant::now()), None);
        entry.insert_response(
            Instant::now(),
            br#"{"errcode":0,"errmsg":"ok","ticket":"T\"1","expires_in":7200}"#,
        );
        tokio::time::advance(Duration::from_secs(6899)).await;
        let response = entry.response(Instant::now()).expect("a cached ticket");
        assert_eq!(&response.body[..], br#"{"errcode":0,"errmsg":"ok","ticket":"T\"1","expires_in":301}"#);
        assert!(!response.is_repeated);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(entry.response(Instant::now()), None);
    }

    /// Fetches the ticket if it is to be fetched, as a request does; returns whether it was.
    fn use_ticket(entry: &TicketEntry, ticket: &str, expires_in: u64) -> bool {
        let now = Instant::now();
        let Joined::Leader(_) = entry.join(now) else { return false };
        let body = format!(r#"{{"errcode":0,"errmsg":"ok","ticket":"{ticket}","expires_in":{expires_in}}}"#);
        entry.insert_response(now, body.as_bytes());
        true
    }

    #[tokio::test(start_paused = true)]
    async fn repeated_ticket_moves_no_expiry_and_is_bounded() {
        let (entry, start) = (TicketEntry::default(), Instant::now());
        let mut fetches = Vec::new();
        // WeCom returns the ticket for three hours, each time with the whole lifetime.
        while start.elapsed() < Duration::from_secs(3 * 3600) {
            if use_ticket(&entry, "T1", 7200) {
                fetches.push(start.elapsed().as_secs());
            }
            let response = entry.response(Instant::now()).expect("served what WeCom returned");
            let left = 7200_u64.checked_sub(start.elapsed().as_secs()).filter(|left| *left > 0);
            let expected = format!(
                r#"{{"errcode":0,"errmsg":"ok","ticket":"T1","expires_in":{}}}"#,
                left.unwrap_or(7200)
            );
            assert_eq!((response.is_repeated, &response.body[..]), (fetches.len() > 1, expected.as_bytes()));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(fetches.contains(&7200), "the first use after the expiry fetches: {fetches:?}");
        assert!(fetches.windows(2).all(|pair| pair[1] - pair[0] >= 10 || pair[1] == 7200), "{fetches:?}");
        let busiest = |from: &u64| fetches.iter().filter(|at| (*from..from + 3600).contains(*at)).count();
        let busiest = fetches.iter().map(busiest).max().expect("fetches");
        assert!((40..=60).contains(&busiest), "{busiest} fetches within an hour");
        tokio::time::advance(LONG_REFETCH_INTERVAL).await;
        assert!(use_ticket(&entry, "T2", 7200));
        assert!(!entry.response(Instant::now()).expect("the new ticket").is_repeated);
        tokio::time::advance(Duration::from_secs(6899)).await;
        assert!(!use_ticket(&entry, "T2", 7200));
    }

    #[tokio::test(start_paused = true)]
    async fn failed_refetch_leaves_a_repeated_ticket_in_use() {
        let entry = TicketEntry::default();
        use_ticket(&entry, "T1", 4);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(use_ticket(&entry, "T1", 4), "expired");
        tokio::time::advance(MIN_REFETCH_INTERVAL).await;
        assert!(matches!(entry.join(Instant::now()), Joined::Leader(_)));
        let response = entry.response(Instant::now()).expect("served during the fetch, and if it fails");
        assert!(response.is_repeated);
        tokio::time::advance(MIN_REFETCH_INTERVAL).await;
        assert_eq!(entry.response(Instant::now()), None);
    }

    #[test]
    fn response_without_ticket_is_not_cached() {
        let tickets = AgentTickets::default();
        for body in [
            r#"{"errcode":45009,"errmsg":"limit"}"#,
            r#"{"errcode":40014,"ticket":"T","expires_in":7200}"#,
            r#"{"errcode":0,"ticket":"","expires_in":7200}"#,
            r#"{"errcode":0,"ticket":"T","expires_in":0}"#,
            r#"{"errcode":0,"ticket":"T","expires_in":-1}"#,
            "<html>",
        ] {
            tickets.entry(TicketKind::JSAPI).insert_response(Instant::now(), body.as_bytes());
            assert_eq!(tickets.entry(TicketKind::JSAPI).response(Instant::now()), None, "{body}");
        }
    }
}
