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

/// The first attempt: the token was refused with this errcode.
pub(super) struct RefusedAttempt {
    pub(super) response: Box<ProbedResponse>,
    pub(super) token: Arc<Token>,
    pub(super) errcode: i64,
    /// Both attempts have one place among the requests in flight.
    pub(super) permit: Permit,
}

impl Proxy {
    /// Has the token renewed, and sends the request once more. Where that cannot be, the first response is the answer.
    pub(super) async fn retry(
        &self,
        forward: &ForwardedRequest<'_>,
        agent: &Arc<Agent>,
        upload: Option<&ReplayBody>,
        record: &mut RequestContext,
        refused: RefusedAttempt,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let RefusedAttempt { response: first, token, errcode, permit: place } = refused;
        let path = forward.path_key();
        if upload.is_some_and(|upload| !upload.is_replayable()) {
            // It costs this request its retry; those after it need the next token all the same.
            if let Some(Replacement::Throttled(wait)) =
                replace_in_background(agent.token.clone(), token, path).await
            {
                set_retry_after(&first, wait, record);
            }
            return Ok(first.with_permit(place));
        }
        let first_try = FirstAttempt { token_time: record.token_time, upstream_time: first.time_to_header };
        let asked = Instant::now();
        record.begin_span(Operation::Token, asked);
        let replacement = agent.token.replace_refused(&token, path).await;
        record.record_token_wait(asked, matches!(replacement, Replacement::Unavailable(_)));
        let next = match replacement {
            Replacement::Refreshed(next) | Replacement::Unchanged(next) => next,
            Replacement::Throttled(wait) => {
                set_retry_after(&first, wait, record);
                return Ok(first.with_permit(place));
            }
            Replacement::Unavailable(failure) => return Err(token_unavailable(&failure, agent)),
        };
        record.retried = Some(errcode);
        record.first_attempt = Some(first_try);
        let query = forward.target.query_without_token();
        let target = query::with_token(forward.target.path, &query, next.value.expose());
        let second = match self.attempt(forward, &target, Some(&next), upload, record).await {
            // The disk lost what was kept of the body: the refusal is all that there is to tell.
            Err(_) if upload.is_some_and(|upload| upload.error() == Some(RequestBodyError::ReplayLost)) => {
                (record.retried, record.first_attempt) = (None, None);
                return Ok(first.with_permit(place));
            }
            second => second?,
        };
        record.upstream_time += second.time_to_header;
        if let Some(upload) = upload {
            upload.commit();
        }
        if second.errcode.is_some_and(|errcode| self.settings.refresh_errcodes.contains(&errcode)) {
            agent.token.mark_refused_again(&next, path);
        } else {
            mark_token_accepted(&second, &next, path);
        }
        Ok(second.with_permit(place))
    }
}
