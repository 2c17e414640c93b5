//! Ticket cache of one agent. Tickets are kept until shortly before they expire, because WeCom limits how often
//! they may be fetched. The caller fetches; this module makes one caller fetch while the others wait, across
//! replicas too if a store is shared.

mod replicas;

use std::{
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde::Deserialize;
use tokio::{
    sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard},
    time::Instant,
};

pub use self::replicas::{FetchLease, SharedLookup};
use crate::secret::Masked;

/// A ticket is refreshed this long before it expires, or after half of a lifetime shorter than twice this.
const REFRESH_MARGIN: Duration = Duration::from_secs(300);
/// Longest lifetime accepted from a response.
const MAX_TTL: Duration = Duration::from_secs(7200);

/// The kinds of tickets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TicketKind {
    /// `get_jsapi_ticket`: the company's.
    Jsapi,
    /// `ticket/get?type=agent_config`: the application's.
    AgentConfig,
}

/// Both tickets of one agent; dropped when its secret changes. An entry is allocated on first use, because most
/// agents have none.
#[derive(Debug, Default)]
pub struct AgentTickets {
    jsapi: OnceLock<Box<TicketEntry>>,
    agent_config: OnceLock<Box<TicketEntry>>,
}

/// The cache entry of one ticket.
#[derive(Debug, Default)]
pub struct TicketEntry {
    cached: Mutex<Option<CachedTicket>>,
    last_outcome: AsyncMutex<Option<(Instant, FetchOutcome)>>,
}

/// How a fetch ended, for the callers that waited for it.
#[derive(Debug, Clone)]
pub enum FetchOutcome {
    /// WeCom sent a response with this body, with or without a ticket.
    Response(Bytes),
    /// There was no response.
    NoResponse,
}

/// The right to fetch a ticket; other callers wait until it is dropped.
#[derive(Debug)]
pub struct FetchGuard<'a>(AsyncMutexGuard<'a, Option<(Instant, FetchOutcome)>>);

#[derive(Debug, Clone)]
struct CachedTicket {
    ticket: Masked,
    usable_until: Instant,
    expires_at: Instant,
    /// The fence of its record in the store; 0 if it has none.
    fence: u64,
}

impl TicketKind {
    /// Part of its name in the store.
    fn as_str(self) -> &'static str {
        match self {
            Self::Jsapi => "jsapi",
            Self::AgentConfig => "agent_config",
        }
    }
}

impl AgentTickets {
    /// The entry of a kind.
    pub fn entry(&self, kind: TicketKind) -> &TicketEntry {
        let entry = match kind {
            TicketKind::Jsapi => &self.jsapi,
            TicketKind::AgentConfig => &self.agent_config,
        };
        entry.get_or_init(Box::default)
    }

    /// Calls `visit` with each cached ticket, for redaction.
    pub fn for_each_value(&self, visit: &mut dyn FnMut(&str)) {
        for entry in [&self.jsapi, &self.agent_config].into_iter().filter_map(OnceLock::get) {
            let cached = entry.lock_cached().as_ref().map(|cached| cached.ticket.clone());
            if let Some(ticket) = cached {
                visit(ticket.expose());
            }
        }
    }
}

impl TicketEntry {
    /// The cached ticket as WeCom's response body, with its remaining lifetime.
    pub fn response(&self, now: Instant) -> Option<Bytes> {
        let cached = self.lock_cached();
        let cached = cached.as_ref().filter(|cached| now < cached.usable_until)?;
        let (ticket, left) =
            (cached.ticket.expose(), cached.expires_at.saturating_duration_since(now).as_secs());
        let body = serde_json::json!(ticket);
        Some(format!(r#"{{"errcode":0,"errmsg":"ok","ticket":{body},"expires_in":{left}}}"#).into())
    }

    /// Waits until no other caller of this process is fetching it.
    pub async fn lock_fetch(&self) -> FetchGuard<'_> {
        FetchGuard(self.last_outcome.lock().await)
    }

    /// Caches the ticket of a response; a response without one is ignored. The lifetime counts from
    /// `requested_at`.
    pub fn insert_response(&self, requested_at: Instant, body: &[u8]) {
        #[derive(Deserialize)]
        struct TicketResponse {
            errcode: i64,
            ticket: String,
            expires_in: u64,
        }
        let Ok(response) = serde_json::from_slice::<TicketResponse>(body) else { return };
        if response.errcode != 0 || response.ticket.is_empty() || response.expires_in == 0 {
            return;
        }
        let ttl = Duration::from_secs(response.expires_in).min(MAX_TTL);
        let expires_at = requested_at + ttl;
        let (ticket, usable_until) = (Masked::new(response.ticket), expires_at - REFRESH_MARGIN.min(ttl / 2));
        *self.lock_cached() = Some(CachedTicket { ticket, usable_until, expires_at, fence: 0 });
    }

    fn lock_cached(&self) -> MutexGuard<'_, Option<CachedTicket>> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FetchGuard<'_> {
    /// The outcome of the last fetch, if it ended after `arrived_at`: callers that waited for it share its
    /// result.
    pub fn outcome_since(&self, arrived_at: Instant) -> Option<FetchOutcome> {
        self.0.as_ref().filter(|(at, _)| *at >= arrived_at).map(|(_, outcome)| outcome.clone())
    }

    /// Sets the outcome that waiting callers get.
    pub fn set_outcome(&mut self, outcome: FetchOutcome) {
        *self.0 = Some((Instant::now(), outcome));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ticket_is_cached_until_its_refresh_margin() {
        let tickets = AgentTickets::default();
        let entry = tickets.entry(TicketKind::Jsapi);
        assert_eq!(entry.response(Instant::now()), None);
        entry.insert_response(
            Instant::now(),
            br#"{"errcode":0,"errmsg":"ok","ticket":"T\"1","expires_in":7200}"#,
        );
        tokio::time::advance(Duration::from_secs(6899)).await;
        let response = entry.response(Instant::now()).expect("a cached ticket");
        assert_eq!(&response[..], br#"{"errcode":0,"errmsg":"ok","ticket":"T\"1","expires_in":301}"#);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(entry.response(Instant::now()), None);
        assert_eq!(tickets.entry(TicketKind::AgentConfig).response(Instant::now()), None);
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
            tickets.entry(TicketKind::Jsapi).insert_response(Instant::now(), body.as_bytes());
            assert_eq!(tickets.entry(TicketKind::Jsapi).response(Instant::now()), None, "{body}");
        }
    }
}
