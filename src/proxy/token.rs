//! What becomes of an agent's token in a request: it was accepted, it is renewed for those that follow, there is none.

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
    tokens::{AgentToken, FetchError, PathKey, Replacement, Token, ceil_seconds},
};

/// What a caller is told that cannot have a token.
pub(super) fn token_unavailable(failure: &FetchError, agent: &Agent) -> ProxyError {
    let next_try_in = agent.token.next_try_in();
    let next = match next_try_in.is_zero() {
        true => String::new(),
        false => format!("; the next try is in {} s", ceil_seconds(next_try_in)),
    };
    let words = |why: &dyn Display| format!("there is no token for this agent: {why}{next}");
    let refusal = ProxyError::new(ErrorKind::TokenUnavailable, words(&failure.public_message()))
        .with_log_message(words(failure))
        .with_errcode(failure.errcode());
    if next_try_in.is_zero() { refusal } else { refusal.with_retry_after(next_try_in) }
}

/// Notes that the upstream took the token. An error of a gateway says nothing of it.
pub(super) fn mark_token_accepted(answer: &ProbedResponse, token: &Token, path: PathKey) {
    if answer.status.is_success() {
        token.mark_accepted_on(path);
    }
}

/// Tells the caller when the renewal of its refused token may be tried, unless the upstream says itself when to come again.
pub(super) fn set_retry_after(answer: &ProbedResponse, wait: Duration, record: &mut RequestContext) {
    let mut lines = answer.headers.as_bytes().split(|byte| *byte == b'\n');
    let name = b"retry-after:";
    if !lines.any(|line| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))) {
        record.retry_after = Some(wait);
    }
}

/// Has a refused token renewed for the requests that follow. What becomes of it, where that is known at once.
pub(super) async fn replace_in_background(
    slot: Arc<AgentToken>,
    token: Arc<Token>,
    path: PathKey,
) -> Option<Replacement> {
    let mut replacing = Box::pin(async move { slot.replace_refused(&token, path).await });
    match poll_fn(|cx| Poll::Ready(replacing.as_mut().poll(cx))).await {
        Poll::Ready(replacement) => Some(replacement),
        Poll::Pending => {
            tokio::spawn(replacing);
            None
        }
    }
}
