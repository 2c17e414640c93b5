//! Effects of a request on its agent's token: accepted, refreshed in the background, unavailable.

use std::{
    fmt::Display,
    future::{Future, poll_fn},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use super::{
    errcode_probe::ProbedResponse,
    error::{ErrorKind, ProxyError},
    request_context::RequestContext,
};
use crate::{
    directory::Agent,
    tokens::{AgentToken, FetchCause, FetchError, PathKey, ReplaceOutcome, Token, ceil_seconds},
};

/// Error for a request without a token.
pub(super) fn token_unavailable(failure: &FetchError, agent: &Agent) -> ProxyError {
    // A new authorisation ends the wait, no time does.
    let next_attempt_in =
        if failure.is_authorization_gone() { Duration::ZERO } else { agent.token.next_try_in() };
    let suffix = match next_attempt_in.is_zero() {
        true => String::new(),
        false => format!("; next attempt in {} s", ceil_seconds(next_attempt_in)),
    };
    let message = |reason: &dyn Display| format!("no token for this agent: {reason}{suffix}");
    let error = ErrorKind::TokenUnavailable
        .error(message(&failure.public_message()))
        .with_log_message(message(failure));
    // A corp's callers learn what WeCom said of the suite's token.
    let cause = match failure {
        FetchError::SuiteToken(cause) => cause,
        failure => failure,
    };
    let error = match cause {
        FetchError::Errcode { errcode, .. } => error.with_wecom_errcode(*errcode),
        _ => error,
    };
    if next_attempt_in.is_zero() { error } else { error.with_retry_after(next_attempt_in) }
}

/// Marks the token as accepted. A gateway error proves nothing.
pub(super) fn mark_token_accepted(response: &ProbedResponse, token: &Token, path: PathKey) {
    if response.status.is_success() {
        token.mark_accepted_on(path);
    }
}

/// Sets `Retry-After` to the wait of a throttled refresh, unless the upstream sent one.
pub(super) fn set_retry_after(response: &ProbedResponse, wait: Duration, context: &mut RequestContext) {
    let mut headers = response.headers.as_bytes().split(|byte| *byte == b'\n');
    let name = b"retry-after:";
    if !headers.any(|line| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))) {
        context.retry_after = Some(wait);
    }
}

/// Refreshes a refused token in the background. Returns the outcome if it is known at once.
pub(super) async fn replace_in_background(
    agent_token: AgentToken,
    token: Arc<Token>,
    path: PathKey,
    cause: FetchCause,
) -> Option<ReplaceOutcome> {
    let replacing = async move { agent_token.replace_refused(&token, path).await };
    let mut replacing = Box::pin(cause.scope(replacing));
    match poll_fn(|cx| Poll::Ready(replacing.as_mut().poll(cx))).await {
        Poll::Ready(replacement) => Some(replacement),
        Poll::Pending => {
            tokio::spawn(replacing);
            None
        }
    }
}
