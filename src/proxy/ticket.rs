//! A ticket: the kept one, that of another replica, or a new one, fetched once however many ask.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use super::{
    Forward, Proxy,
    inspect::Inspected,
    record::Record,
    refusal::{Kind, Refusal},
};
use crate::{
    directory::Agent,
    fields::Fields,
    tickets::{Elsewhere, Ended, FetchTurn, TicketKind},
    upstream::BodyLength,
};

/// Most bytes of a ticket's answer.
const MAX_TICKET: usize = 64 * 1024;
/// How many calls a fetch may take: one that is refused, gettoken, and one more.
const CALLS: u32 = 3;

impl Proxy {
    /// A ticket: the kept one, or a new one, fetched once however many ask.
    pub(super) async fn ticket(
        &self,
        forward: &Forward<'_>,
        agent: &Arc<Agent>,
        kind: TicketKind,
        record: &mut Record,
    ) -> Result<Box<Inspected>, Refusal> {
        let (slot, came) = (agent.tickets.of(kind), Instant::now());
        if let Some(kept) = slot.answer(came) {
            return Ok(Inspected::local(kept));
        }
        self.begin_wait(forward, record)?;
        let turn = slot.turn().await;
        let fetched = self.ticket_in_turn(turn, came, forward, agent, kind, record).await;
        record.wait_permit = None;
        fetched
    }

    /// The same for the one request that may fetch it now.
    async fn ticket_in_turn(
        &self,
        mut turn: FetchTurn<'_>,
        came: Instant,
        forward: &Forward<'_>,
        agent: &Arc<Agent>,
        kind: TicketKind,
        record: &mut Record,
    ) -> Result<Box<Inspected>, Refusal> {
        let slot = agent.tickets.of(kind);
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
        let most = CALLS * self.upstream.patience();
        let fetching = async {
            // Others wait for it: an answer that drips must not hold them up for as long as it likes.
            let Ok(fetched) = timeout(most, self.fetch_ticket(forward, agent, record)).await else {
                record.end_now(Some(Kind::UpstreamTimeout));
                return Err(late(most));
            };
            fetched
        };
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
    ) -> Result<Box<Inspected>, Refusal> {
        // Nobody's own headers: the answer is everybody's.
        let neutral = Forward { fields: &Fields::default(), length: BodyLength::Absent, ..*forward };
        // Nothing has taken time since the request began; one that has waited long enough for it to matter is helped by the
        // refusal.
        let token = match agent.slot.ready(record.began) {
            Some(token) => token,
            None => self.wait_for_token(&neutral, agent, None, record).await.map_err(|refusal| *refusal)?,
        };
        let answer = self.send_with_token(&neutral, agent, token, &mut None, record).await?;
        answer.collect(MAX_TICKET).await.map_err(|failure| self.failed(failure))
    }
}

fn late(most: Duration) -> Refusal {
    let words =
        format!("WeCom did not answer as it should: no ticket came within {:.1} s", most.as_secs_f64());
    Refusal::new(Kind::UpstreamTimeout, words)
}
