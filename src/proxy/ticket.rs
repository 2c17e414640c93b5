//! A ticket: the kept one, that of another replica, or a new one, fetched once however many ask.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    Forward, Proxy,
    inspect::Inspected,
    record::Record,
    refusal::{Kind, Refusal},
};
use crate::{
    directory::Agent,
    fields::Fields,
    tickets::{Elsewhere, Ended, TicketKind},
    upstream::BodyLength,
};

/// Most bytes of a ticket's answer.
const MAX_TICKET: usize = 64 * 1024;

impl Proxy {
    /// A ticket: the kept one, or a new one, fetched once however many ask.
    pub(super) async fn ticket(
        &self,
        forward: &Forward<'_>,
        agent: &Arc<Agent>,
        kind: TicketKind,
        record: &mut Record,
    ) -> Result<Inspected, Refusal> {
        let (slot, came) = (agent.tickets.of(kind), Instant::now());
        if let Some(kept) = slot.answer(came) {
            return Ok(Inspected::local(kept));
        }
        let mut turn = slot.turn().await;
        match (slot.answer(Instant::now()), turn.ended_since(came)) {
            (Some(kept), _) => return Ok(Inspected::local(kept)),
            (None, Some(Ended::Answered(body))) => return Ok(Inspected::local(body)),
            (None, Some(Ended::Failed)) => {
                let words = "another request has just failed to fetch this ticket; come again";
                return Err(Refusal::new(Kind::UpstreamBroke, words));
            }
            (None, None) => {}
        }
        let elsewhere = match agent.slot.store() {
            Some(store) => slot.elsewhere(kind, agent.slot.credentials(), store).await,
            None => Elsewhere::Unknown,
        };
        let shared = match elsewhere {
            Elsewhere::Kept(answer) => return Ok(Inspected::local(answer)),
            Elsewhere::Answered(body) => {
                turn.end(Ended::Answered(body.clone()));
                return Ok(Inspected::local(body));
            }
            Elsewhere::Ours(shared) => Some(shared),
            Elsewhere::Unknown => None,
        };
        let asked = Instant::now();
        record.now = asked;
        // A caller who leaves meanwhile ends nothing: the next in the row fetches instead.
        let fetching = self.fetch_ticket(forward, agent, record);
        let fetched = match &shared {
            Some(shared) => shared.hold(fetching).await,
            None => fetching.await,
        };
        match &fetched {
            Ok(answer) => match answer.whole().filter(|_| answer.status == http::StatusCode::OK) {
                Some(body) => {
                    slot.keep(asked, &body);
                    if let Some(shared) = shared {
                        shared.tell(slot, &body).await;
                    }
                    turn.end(Ended::Answered(body));
                }
                None => turn.end(Ended::Failed),
            },
            // Why there is no token, the agent's slot tells each of them, and at once.
            Err(refusal) if refusal.kind == Kind::TokenUnavailable => {}
            Err(_) => turn.end(Ended::Failed),
        }
        fetched
    }

    async fn fetch_ticket(
        &self,
        forward: &Forward<'_>,
        agent: &Arc<Agent>,
        record: &mut Record,
    ) -> Result<Inspected, Refusal> {
        // Nobody's own headers: the answer is everybody's.
        let neutral = Forward { fields: &Fields::default(), length: BodyLength::Absent, ..*forward };
        let answer = self.send_with_token(&neutral, agent, None, record).await?;
        answer.collect(MAX_TICKET).await.map_err(|failure| self.failed(failure))
    }
}
