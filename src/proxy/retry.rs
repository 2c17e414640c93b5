//! The second attempt of a request whose token was refused.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use tokio::time::Instant;

use super::{
    Proxy,
    errcode_probe::ProbedResponse,
    error::ProxyError,
    request_context::RequestContext,
    request_template::RequestTemplate,
    token::{mark_token_accepted, replace_in_background, set_retry_after, token_unavailable},
};
use crate::{
    directory::Agent,
    limits::concurrency_limit::Permit,
    request_body::{ReceiveLimit, ReplayBody, RequestBodyError},
    telemetry::{access_log::FirstAttempt, traces::Operation},
    tokens::{ReplaceOutcome, Token},
    upstream::BodyLength,
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
        template: &RequestTemplate<'_>,
        agent: &Arc<Agent>,
        replay_body: Option<&ReplayBody>,
        context: &mut RequestContext,
        refused: RefusedAttempt,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let RefusedAttempt { response: first, token, errcode, permit } = refused;
        let path = template.target.path_key();
        if replay_body.is_some_and(|replay_body| !replay_body.is_replayable()) {
            // The body is gone, so this request is not retried; later requests still need a new token.
            if let Some(ReplaceOutcome::Throttled(wait)) =
                replace_in_background(agent.token.clone(), token, path, context.fetch_cause()).await
            {
                set_retry_after(&first, wait, context);
            }
            return Ok(first.with_permit(permit));
        }
        if let Some(maybe_sent) = template.maybe_sent {
            // WeCom has refused it: a client that leaves now leaves nothing in doubt.
            maybe_sent.store(false, Relaxed);
        }
        let first_attempt =
            FirstAttempt { token_time: context.token_time, upstream_time: context.upstream_time };
        let wait_started = Instant::now();
        context.begin(Operation::Token, wait_started);
        let replacing = context.fetch_cause().scope(agent.token.replace_refused(&token, path));
        let replacement = replacing.await;
        context.record_token_wait(wait_started, matches!(replacement, ReplaceOutcome::Unavailable(_)));
        let next = match replacement {
            ReplaceOutcome::Refreshed(next) | ReplaceOutcome::Unchanged(next) => next,
            ReplaceOutcome::Throttled(wait) => {
                set_retry_after(&first, wait, context);
                return Ok(first.with_permit(permit));
            }
            ReplaceOutcome::Unavailable(failure) => return Err(token_unavailable(&failure, agent)),
        };
        context.retried_after_errcode = Some(errcode);
        context.first_attempt = Some(first_attempt);
        let second = match self.second_attempt(template, &next, replay_body, context).await {
            // The replay buffer was lost on disk, or is full; only the refusal is left to return.
            Err(_) if replay_body.is_some_and(has_lost_replay) => {
                (context.retried_after_errcode, context.first_attempt) = (None, None);
                if let Some(capture) = &mut context.capture {
                    capture.record_first_forwarded();
                }
                return Ok(first.with_permit(permit));
            }
            second => second?,
        };
        if let Some(replay_body) = replay_body {
            replay_body.commit();
        }
        if second.errcode.is_some_and(|errcode| self.voids_token(errcode, template.token_param)) {
            agent.token.mark_refused_again(&next, path);
        } else {
            mark_token_accepted(&second, &next, path);
        }
        Ok(second.with_permit(permit))
    }

    /// Sends the request again. A body of unknown length is received to its end first: an upstream may require
    /// `Content-Length`.
    async fn second_attempt(
        &self,
        template: &RequestTemplate<'_>,
        token: &Token,
        replay_body: Option<&ReplayBody>,
        context: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let mut body_length = template.body_length;
        if body_length == BodyLength::Unknown
            && let Some(replay_body) = replay_body
        {
            let received = replay_body.receive(ReceiveLimit::Whole, &mut context.deadline).await;
            context.cached_now = Instant::now();
            let received = received.map_err(|error| self.request_body_error(error))?;
            body_length = received.map_or(BodyLength::Unknown, BodyLength::Known);
        }
        self.count_second_attempt(template.target, context);
        let template = &RequestTemplate { body_length, ..*template };
        let query = template.query_without_token();
        let target = template.target_with_token(&query, token.value.expose());
        self.attempt(template, &target, Some(token), replay_body, context).await
    }
}

fn has_lost_replay(replay_body: &ReplayBody) -> bool {
    matches!(replay_body.error(), Some(RequestBodyError::ReplayLost | RequestBodyError::ReplayBudgetExceeded))
}
