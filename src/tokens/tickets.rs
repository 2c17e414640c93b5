//! The tickets of one agent: kept until shortly before they expire, because WeCom limits how often they may be fetched.
//! Who fetches, and how, is the caller's business; here it is seen to that one does and the others wait, those at other
//! replicas too where a store is shared.

mod replicas;

use std::{
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde::Deserialize;
use tokio::{
    sync::{Mutex as AsyncMutex, MutexGuard as Turn},
    time::Instant,
};

pub use self::replicas::{FetchLease, SharedLookup};
use crate::secret::Masked;

/// A ticket is fetched anew so long before it expires, or halfway where its life is short beside that.
const REFRESH_MARGIN: Duration = Duration::from_secs(300);
/// Longest life that an answer is believed.
const MAX_TTL: Duration = Duration::from_secs(7200);

/// The two kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TicketKind {
    /// `get_jsapi_ticket`: the company's.
    Jsapi,
    /// `ticket/get?type=agent_config`: the application's.
    AgentConfig,
}

/// Both tickets of one agent; they go when its secret changes. Most agents never have one, so that there is room for
/// one only when it is asked for.
#[derive(Debug, Default)]
pub struct AgentTickets {
    jsapi: OnceLock<Box<TicketEntry>>,
    agent_config: OnceLock<Box<TicketEntry>>,
}

/// One ticket.
#[derive(Debug, Default)]
pub struct TicketEntry {
    cached: Mutex<Option<CachedTicket>>,
    last_failure: AsyncMutex<Option<(Instant, FetchFailure)>>,
}

/// How a fetch that brought no ticket ended.
#[derive(Debug, Clone)]
pub enum FetchFailure {
    /// WeCom said something else, this.
    Response(Bytes),
    /// There was no answer.
    NoResponse,
}

/// The right to fetch a ticket; the others wait for it to be dropped.
#[derive(Debug)]
pub struct FetchGuard<'a>(Turn<'a, Option<(Instant, FetchFailure)>>);

#[derive(Debug, Clone)]
struct CachedTicket {
    ticket: Masked,
    usable_until: Instant,
    expires_at: Instant,
    /// Which of two in the store is the newer; 0 for one that is not known there.
    fence: u64,
}

impl TicketKind {
    /// One word, for its name in the store.
    fn as_str(self) -> &'static str {
        match self {
            Self::Jsapi => "jsapi",
            Self::AgentConfig => "agent_config",
        }
    }
}

impl AgentTickets {
    /// The ticket of a kind.
    pub fn entry(&self, kind: TicketKind) -> &TicketEntry {
        let slot = match kind {
            TicketKind::Jsapi => &self.jsapi,
            TicketKind::AgentConfig => &self.agent_config,
        };
        slot.get_or_init(Box::default)
    }

    /// Tells those that are kept.
    pub fn for_each_value(&self, tell: &mut dyn FnMut(&str)) {
        for slot in [&self.jsapi, &self.agent_config].into_iter().filter_map(OnceLock::get) {
            let kept = slot.lock_cached().as_ref().map(|kept| kept.ticket.clone());
            if let Some(ticket) = kept {
                tell(ticket.expose());
            }
        }
    }
}

impl TicketEntry {
    /// The kept ticket as WeCom would answer it, with what is left of its life.
    pub fn response(&self, now: Instant) -> Option<Bytes> {
        let kept = self.lock_cached();
        let kept = kept.as_ref().filter(|kept| now < kept.usable_until)?;
        let (ticket, left) = (kept.ticket.expose(), kept.expires_at.saturating_duration_since(now).as_secs());
        let body = serde_json::json!(ticket);
        Some(format!(r#"{{"errcode":0,"errmsg":"ok","ticket":{body},"expires_in":{left}}}"#).into())
    }

    /// Waits until nobody else is fetching it.
    pub async fn lock_fetch(&self) -> FetchGuard<'_> {
        FetchGuard(self.last_failure.lock().await)
    }

    /// Keeps the ticket of an answer; an answer without one is not kept.
    pub fn insert_response(&self, asked: Instant, body: &[u8]) {
        #[derive(Deserialize)]
        struct TicketResponse {
            errcode: i64,
            ticket: String,
            expires_in: u64,
        }
        let Ok(answer) = serde_json::from_slice::<TicketResponse>(body) else { return };
        if answer.errcode != 0 || answer.ticket.is_empty() || answer.expires_in == 0 {
            return;
        }
        let life = Duration::from_secs(answer.expires_in).min(MAX_TTL);
        let expires = asked + life;
        let (ticket, usable_until) = (Masked::new(answer.ticket), expires - REFRESH_MARGIN.min(life / 2));
        *self.lock_cached() = Some(CachedTicket { ticket, usable_until, expires_at: expires, fence: 0 });
    }

    fn lock_cached(&self) -> MutexGuard<'_, Option<CachedTicket>> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FetchGuard<'_> {
    /// How the last fetch ended, if that was after `came` and it brought nothing: whoever waited for it is told the same.
    pub fn failure_since(&self, came: Instant) -> Option<FetchFailure> {
        self.0.as_ref().filter(|(at, _)| *at >= came).map(|(_, ended)| ended.clone())
    }

    /// Tells those who wait that this fetch brought no ticket.
    pub fn set_failure(&mut self, ended: FetchFailure) {
        *self.0 = Some((Instant::now(), ended));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ticket_is_cached_until_its_refresh_margin() {
        let tickets = AgentTickets::default();
        let slot = tickets.entry(TicketKind::Jsapi);
        assert_eq!(slot.response(Instant::now()), None);
        slot.insert_response(
            Instant::now(),
            br#"{"errcode":0,"errmsg":"ok","ticket":"T\"1","expires_in":7200}"#,
        );
        tokio::time::advance(Duration::from_secs(6899)).await;
        let answer = slot.response(Instant::now()).expect("a kept ticket");
        assert_eq!(&answer[..], br#"{"errcode":0,"errmsg":"ok","ticket":"T\"1","expires_in":301}"#);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(slot.response(Instant::now()), None);
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
