//! Tickets: from the cache, from another replica, or fetched, with a single flight per kind and agent.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use super::{
    ForwardedRequest, Proxy,
    errcode_probe::ProbedResponse,
    error::{ErrorKind, ProxyError},
    request_context::RequestContext,
    wait::end_wait,
};
use crate::{
    directory::Agent,
    http1::headers::Headers,
    tokens::tickets::{FetchGuard, FetchLease, FetchOutcome, SharedLookup, TicketEntry, TicketKind},
    upstream::BodyLength,
};

/// Maximum bytes of a ticket response.
const MAX_TICKET_RESPONSE_BYTES: usize = 64 * 1024;
/// Calls that the timeout of a fetch allows for: a refused attempt, gettoken, and the second attempt.
const MAX_CALLS_PER_FETCH: u32 = 3;

impl Proxy {
    /// Responds with a cached ticket, or fetches one; concurrent requests share the fetch.
    pub(super) async fn serve_ticket(
        &self,
        forwarded: &ForwardedRequest<'_>,
        agent: &Arc<Agent>,
        kind: TicketKind,
        context: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let (entry, arrived_at) = (agent.tickets.entry(kind), Instant::now());
        if let Some(cached) = entry.response(arrived_at) {
            return Ok(ProbedResponse::local(cached));
        }
        self.acquire_wait_permit(forwarded, context)?;
        let guard = entry.lock_fetch().await;
        let result = match result_of_concurrent_fetch(entry, &guard, arrived_at) {
            Some(result) => result,
            None => self.serve_ticket_in_turn(guard, forwarded, agent, kind, context).await,
        };
        end_wait(forwarded, context);
        result
    }

    /// Takes the ticket from another replica, or fetches it. The request holds the fetch lock.
    async fn serve_ticket_in_turn(
        &self,
        mut guard: FetchGuard<'_>,
        forwarded: &ForwardedRequest<'_>,
        agent: &Arc<Agent>,
        kind: TicketKind,
        context: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let entry = agent.tickets.entry(kind);
        let shared = match agent.token.store() {
            Some(store) => entry.lookup_shared(kind, agent.token.credentials(), store).await,
            None => SharedLookup::Unavailable,
        };
        let lease = match shared {
            SharedLookup::Ticket(body) => return Ok(ProbedResponse::local(body)),
            SharedLookup::ErrorResponse(body) => {
                guard.set_outcome(FetchOutcome::Response(body.clone()));
                return Ok(ProbedResponse::local(body));
            }
            SharedLookup::Lease(lease) => Some(lease),
            SharedLookup::Unavailable => None,
        };
        let fetch_started = Instant::now();
        context.cached_now = fetch_started;
        forwarded.waiting.set(false);
        let fetch = self.fetch_ticket_within_timeout(forwarded, agent, context);
        let result = match &lease {
            Some(lease) => lease.extend_while(fetch).await,
            None => fetch.await,
        };
        publish_ticket(&result, entry, guard, lease, fetch_started).await;
        result
    }

    /// Fetches a ticket within the timeout of [`MAX_CALLS_PER_FETCH`] calls.
    ///
    /// Bounded as a whole, because other requests wait for it and a response could trickle in. If the client
    /// disconnects, the next request in the queue fetches instead.
    async fn fetch_ticket_within_timeout(
        &self,
        forwarded: &ForwardedRequest<'_>,
        agent: &Arc<Agent>,
        context: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let max_time = MAX_CALLS_PER_FETCH * self.upstream.fetch_timeout();
        let Ok(result) = timeout(max_time, self.fetch_ticket(forwarded, agent, context)).await else {
            context.end_span_now(Some(ErrorKind::UpstreamTimeout));
            return Err(ticket_timeout(max_time));
        };
        result
    }

    async fn fetch_ticket(
        &self,
        forwarded: &ForwardedRequest<'_>,
        agent: &Arc<Agent>,
        context: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        // Sent without the client's headers, because the response is shared.
        let shared_request =
            ForwardedRequest { headers: &Headers::default(), body_length: BodyLength::Absent, ..*forwarded };
        // The start time is recent enough: only a long wait could have expired the token, and the retry covers that.
        let token = match agent.token.cached(context.started) {
            Some(token) => token,
            None => {
                self.wait_for_token(&shared_request, agent, None, context).await.map_err(|error| *error)?
            }
        };
        let response = self.send_with_token(&shared_request, agent, token, &mut None, context).await?;
        response
            .buffer_remaining(MAX_TICKET_RESPONSE_BYTES)
            .await
            .map_err(|error| ProxyError::from_upstream(&error, self.settings.body_limits.max_bytes))
    }
}

/// What another request has fetched since this one arrived: the ticket, or its failure.
fn result_of_concurrent_fetch(
    entry: &TicketEntry,
    guard: &FetchGuard<'_>,
    arrived_at: Instant,
) -> Option<Result<Box<ProbedResponse>, ProxyError>> {
    if let Some(cached) = entry.response(Instant::now()) {
        return Some(Ok(ProbedResponse::local(cached)));
    }
    Some(match guard.outcome_since(arrived_at)? {
        FetchOutcome::Response(body) => Ok(ProbedResponse::local(body)),
        FetchOutcome::NoResponse => {
            let message = "ticket fetch failed in a concurrent request; retry";
            Err(ProxyError::new(ErrorKind::UpstreamFailed, message))
        }
    })
}

/// Caches a fetched ticket, and shares the outcome with the requests and replicas that wait for it.
async fn publish_ticket(
    result: &Result<Box<ProbedResponse>, ProxyError>,
    entry: &TicketEntry,
    mut guard: FetchGuard<'_>,
    lease: Option<FetchLease>,
    fetch_started: Instant,
) {
    match result {
        Ok(response) => match response.complete_body().filter(|_| response.status == http::StatusCode::OK) {
            Some(body) => {
                entry.insert_response(fetch_started, &body);
                if let Some(lease) = lease {
                    lease.publish(entry, &body).await;
                }
                guard.set_outcome(FetchOutcome::Response(body));
            }
            None => guard.set_outcome(FetchOutcome::NoResponse),
        },
        // Token failures are shared by the agent's token cache entry already.
        Err(error) if error.kind == ErrorKind::TokenUnavailable => {}
        Err(_) => guard.set_outcome(FetchOutcome::NoResponse),
    }
}

fn ticket_timeout(max_time: Duration) -> ProxyError {
    let message = format!("request to WeCom failed: no ticket within {:.1} s", max_time.as_secs_f64());
    ProxyError::new(ErrorKind::UpstreamTimeout, message)
}
