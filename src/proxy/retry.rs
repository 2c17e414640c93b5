//! The second attempt of a request whose token was refused.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    ForwardedRequest, Proxy,
    errcode_probe::ProbedResponse,
    error::ProxyError,
    query,
    request_context::RequestContext,
    token::{mark_token_accepted, replace_in_background, set_retry_after, token_unavailable},
};
use crate::{
    directory::Agent,
    limits::concurrency_limit::Permit,
    request_body::{ReplayBody, RequestBodyError},
    telemetry::{access_log::FirstAttempt, traces::Operation},
    tokens::{Replacement, Token},
};

/// The first attempt, refused with this errcode.
pub(super) struct RefusedAttempt {
    pub(super) response: Box<ProbedResponse>,
    pub(super) token: Arc<Token>,
    pub(super) errcode: i64,
    /// Both attempts share one in-flight permit.
    pub(super) permit: Permit,
}

impl Proxy {
    /// Refreshes the token and sends the request again. Returns the first response if the body cannot be replayed or the
    /// refresh is throttled; fails if the refresh or the second attempt fails.
    pub(super) async fn retry(
        &self,
        forwarded: &ForwardedRequest<'_>,
        agent: &Arc<Agent>,
        replay_body: Option<&ReplayBody>,
        context: &mut RequestContext,
        refused: RefusedAttempt,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let RefusedAttempt { response: first, token, errcode, permit } = refused;
        let path = forwarded.path_key();
        if replay_body.is_some_and(|replay_body| !replay_body.is_replayable()) {
            // The body is gone, so this request is not retried; later requests still need a new token.
            if let Some(Replacement::Throttled(wait)) =
                replace_in_background(agent.token.clone(), token, path).await
            {
                set_retry_after(&first, wait, context);
            }
            return Ok(first.with_permit(permit));
        }
        let first_attempt =
            FirstAttempt { token_time: context.token_time, upstream_time: first.time_to_header };
        let wait_started = Instant::now();
        context.begin_span(Operation::Token, wait_started);
        let replacement = agent.token.replace_refused(&token, path).await;
        context.record_token_wait(wait_started, matches!(replacement, Replacement::Unavailable(_)));
        let next = match replacement {
            Replacement::Refreshed(next) | Replacement::Unchanged(next) => next,
            Replacement::Throttled(wait) => {
                set_retry_after(&first, wait, context);
                return Ok(first.with_permit(permit));
            }
            Replacement::Unavailable(failure) => return Err(token_unavailable(&failure, agent)),
        };
        context.retried_after_errcode = Some(errcode);
        context.first_attempt = Some(first_attempt);
        let query = forwarded.target.query_without_token();
        let target = query::with_token(forwarded.target.path, &query, next.value.expose());
        let second = match self.attempt(forwarded, &target, Some(&next), replay_body, context).await {
            // The replay buffer was lost on disk; only the refusal is left to return.
            Err(_)
                if replay_body
                    .is_some_and(|replay_body| replay_body.error() == Some(RequestBodyError::ReplayLost)) =>
            {
                (context.retried_after_errcode, context.first_attempt) = (None, None);
                if let Some(capture) = &mut context.capture {
                    capture.record_first_forwarded();
                }
                return Ok(first.with_permit(permit));
            }
            second => second?,
        };
        context.upstream_time += second.time_to_header;
        if let Some(replay_body) = replay_body {
            replay_body.commit();
        }
        if second.errcode.is_some_and(|errcode| self.settings.refresh_errcodes.contains(&errcode)) {
            agent.token.mark_refused_again(&next, path);
        } else {
            mark_token_accepted(&second, &next, path);
        }
        Ok(second.with_permit(permit))
    }
}
