//! Requests for tickets: answered from the cache, or with the fetch that one of them makes for all.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use super::{
    Proxy,
    errcode_probe::ProbedResponse,
    error::{ErrorKind, ProxyError},
    request_context::RequestContext,
    request_template::RequestTemplate,
    token::token_unavailable,
    wait::end_wait,
};
use crate::{
    directory::Agent,
    http1::headers::Headers,
    tokens::{
        kinds::ticket::TicketKind,
        tickets::{FetchOutcome, TicketResponse, TicketResult},
    },
    upstream::BodyLength,
};

/// Maximum bytes of a ticket response.
const MAX_TICKET_RESPONSE_BYTES: usize = 64 * 1024;
/// Calls that the timeout of a fetch allows for: a refused attempt, gettoken, and the second attempt.
const MAX_CALLS_PER_FETCH: u32 = 3;

impl Proxy {
    /// Responds with a cached ticket, or fetches one; concurrent requests and replicas share the fetch.
    pub(super) async fn serve_ticket(
        &self,
        template: &RequestTemplate<'_>,
        agent: &Arc<Agent>,
        kind: TicketKind,
        context: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        if let Some(cached) = agent.token.cached_ticket(kind) {
            return Ok(cached_response(cached));
        }
        self.acquire_wait_permit(template, context)?;
        let fetch = async || {
            context.cached_now = Instant::now();
            template.waiting.set(false);
            let result = self.fetch_ticket_within_timeout(template, agent, context).await;
            let outcome = fetch_outcome(&result);
            (result, outcome)
        };
        let ticket = agent.token.ticket(kind, fetch).await;
        end_wait(template, context);
        match ticket {
            TicketResult::Ticket(ticket) => Ok(cached_response(ticket)),
            TicketResult::Fetched(result) => result,
            TicketResult::Response(body) => Ok(ProbedResponse::local(body)),
            TicketResult::NoResponse => {
                let message = "ticket fetch failed in a concurrent request; retry";
                Err(ErrorKind::UpstreamFailed.error(message))
            }
            TicketResult::NoToken(failure) => Err(token_unavailable(&failure, agent)),
        }
    }

    /// Fetches a ticket within the timeout of [`MAX_CALLS_PER_FETCH`] calls.
    ///
    /// Bounded as a whole, because other requests wait for it and a response could trickle in. If the client
    /// disconnects, the next request in the queue fetches instead.
    async fn fetch_ticket_within_timeout(
        &self,
        template: &RequestTemplate<'_>,
        agent: &Arc<Agent>,
        context: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let max_time = MAX_CALLS_PER_FETCH * self.upstreams[template.upstream].fetch_timeout();
        let Ok(result) = timeout(max_time, self.fetch_ticket(template, agent, context)).await else {
            context.end_now(Some(ErrorKind::UpstreamTimeout));
            return Err(ticket_timeout(max_time));
        };
        result
    }

    async fn fetch_ticket(
        &self,
        template: &RequestTemplate<'_>,
        agent: &Arc<Agent>,
        context: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        // Sent without the client's headers, because the response is shared.
        let shared_request =
            RequestTemplate { headers: &Headers::default(), body_length: BodyLength::Absent, ..*template };
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

fn cached_response(TicketResponse { body, is_repeated }: TicketResponse) -> Box<ProbedResponse> {
    let mut response = ProbedResponse::local(body);
    if is_repeated {
        response.headers.append(b"cache-control", b"no-store");
    }
    response
}

/// What the requests and replicas that wait for a fetch get of it.
fn fetch_outcome(result: &Result<Box<ProbedResponse>, ProxyError>) -> FetchOutcome {
    let body = match result {
        Ok(response) if response.status == http::StatusCode::OK => response.complete_body(),
        Ok(_) => None,
        Err(error) if error.kind == ErrorKind::TokenUnavailable => return FetchOutcome::NoToken,
        Err(_) => None,
    };
    body.map_or(FetchOutcome::NoResponse, FetchOutcome::Response)
}

fn ticket_timeout(max_time: Duration) -> ProxyError {
    let message = format!("request to WeCom failed: no ticket within {:.1} s", max_time.as_secs_f64());
    ErrorKind::UpstreamTimeout.error(message)
}
