//! A ticket: the kept one, that of another replica, or a new one, fetched once however many ask.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use super::{
    ForwardedRequest, Proxy,
    errcode_probe::ProbedResponse,
    error::{ErrorKind, ProxyError},
    request_context::RequestContext,
};
use crate::{
    directory::Agent,
    http1::headers::Headers,
    tokens::tickets::{FetchFailure, FetchGuard, SharedLookup, TicketKind},
    upstream::BodyLength,
};

/// Most bytes of a ticket's answer.
const MAX_TICKET_RESPONSE_BYTES: usize = 64 * 1024;
/// How many calls a fetch may take: one that is refused, gettoken, and one more.
const MAX_CALLS_PER_FETCH: u32 = 3;

impl Proxy {
    /// A ticket: the kept one, or a new one, fetched once however many ask.
    pub(super) async fn serve_ticket(
        &self,
        forward: &ForwardedRequest<'_>,
        agent: &Arc<Agent>,
        kind: TicketKind,
        record: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let (slot, came) = (agent.tickets.entry(kind), Instant::now());
        if let Some(kept) = slot.response(came) {
            return Ok(ProbedResponse::local(kept));
        }
        self.acquire_wait_permit(forward, record)?;
        let turn = slot.lock_fetch().await;
        let fetched = self.serve_ticket_in_turn(turn, came, forward, agent, kind, record).await;
        record.wait_permit = None;
        fetched
    }

    /// The same for the one request that may fetch it now.
    async fn serve_ticket_in_turn(
        &self,
        mut turn: FetchGuard<'_>,
        came: Instant,
        forward: &ForwardedRequest<'_>,
        agent: &Arc<Agent>,
        kind: TicketKind,
        record: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let slot = agent.tickets.entry(kind);
        match (slot.response(Instant::now()), turn.failure_since(came)) {
            (Some(kept), _) => return Ok(ProbedResponse::local(kept)),
            (None, Some(FetchFailure::Response(body))) => return Ok(ProbedResponse::local(body)),
            (None, Some(FetchFailure::NoResponse)) => {
                let words = "another request has just failed to fetch this ticket; come again";
                return Err(ProxyError::new(ErrorKind::UpstreamFailed, words));
            }
            (None, None) => {}
        }
        let elsewhere = match agent.token.store() {
            Some(store) => slot.lookup_shared(kind, agent.token.credentials(), store).await,
            None => SharedLookup::Unavailable,
        };
        let shared = match elsewhere {
            SharedLookup::Ticket(answer) => return Ok(ProbedResponse::local(answer)),
            SharedLookup::Response(body) => {
                turn.set_failure(FetchFailure::Response(body.clone()));
                return Ok(ProbedResponse::local(body));
            }
            SharedLookup::Lease(shared) => Some(shared),
            SharedLookup::Unavailable => None,
        };
        let asked = Instant::now();
        record.cached_now = asked;
        // A caller who leaves meanwhile ends nothing: the next in the row fetches instead.
        let most = MAX_CALLS_PER_FETCH * self.upstream.fetch_timeout();
        let fetching = async {
            // Others wait for it: an answer that drips must not hold them up for as long as it likes.
            let Ok(fetched) = timeout(most, self.fetch_ticket(forward, agent, record)).await else {
                record.end_span_now(Some(ErrorKind::UpstreamTimeout));
                return Err(ticket_timeout(most));
            };
            fetched
        };
        let fetched = match &shared {
            Some(shared) => shared.extend_while(fetching).await,
            None => fetching.await,
        };
        match &fetched {
            Ok(answer) => match answer.complete_body().filter(|_| answer.status == http::StatusCode::OK) {
                Some(body) => {
                    slot.insert_response(asked, &body);
                    if let Some(shared) = shared {
                        shared.publish(slot, &body).await;
                    }
                    turn.set_failure(FetchFailure::Response(body));
                }
                None => turn.set_failure(FetchFailure::NoResponse),
            },
            // Why there is no token, the agent's slot tells each of them, and at once.
            Err(refusal) if refusal.kind == ErrorKind::TokenUnavailable => {}
            Err(_) => turn.set_failure(FetchFailure::NoResponse),
        }
        fetched
    }

    async fn fetch_ticket(
        &self,
        forward: &ForwardedRequest<'_>,
        agent: &Arc<Agent>,
        record: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        // Nobody's own headers: the answer is everybody's.
        let neutral =
            ForwardedRequest { headers: &Headers::default(), body_length: BodyLength::Absent, ..*forward };
        // Nothing has taken time since the request began; one that has waited long enough for it to matter is helped by the
        // refusal.
        let token = match agent.token.cached(record.started) {
            Some(token) => token,
            None => self.wait_for_token(&neutral, agent, None, record).await.map_err(|refusal| *refusal)?,
        };
        let answer = self.send_with_token(&neutral, agent, token, &mut None, record).await?;
        answer
            .buffer_remaining(MAX_TICKET_RESPONSE_BYTES)
            .await
            .map_err(|failure| self.map_upstream_error(failure))
    }
}

fn ticket_timeout(most: Duration) -> ProxyError {
    let words =
        format!("WeCom did not answer as it should: no ticket came within {:.1} s", most.as_secs_f64());
    ProxyError::new(ErrorKind::UpstreamTimeout, words)
}
