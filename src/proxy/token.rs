//! What becomes of an agent's token in a request: it was accepted, it is renewed for those that follow, there is none.

use std::{
    fmt::Display,
    future::{Future, poll_fn},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use super::{
    inspect::Inspected,
    record::Record,
    refusal::{Kind, Refusal},
};
use crate::{
    directory::Agent,
    tokens::{FetchError, PathKey, Replacement, Token, TokenSlot, whole_seconds},
};

/// What a caller is told that cannot have a token.
pub(super) fn token_unavailable(failure: &FetchError, agent: &Agent) -> Refusal {
    let next_try_in = agent.slot.next_try_in();
    let next = match next_try_in.is_zero() {
        true => String::new(),
        false => format!("; the next try is in {} s", whole_seconds(next_try_in)),
    };
    let words = |why: &dyn Display| format!("there is no token for this agent: {why}{next}");
    let refusal = Refusal::new(Kind::TokenUnavailable, words(&failure.public()))
        .with_detail(words(failure))
        .with_errcode(failure.errcode());
    if next_try_in.is_zero() { refusal } else { refusal.retry_after(next_try_in) }
}

/// Notes that the upstream took the token. An error of a gateway says nothing of it.
pub(super) fn accepted(answer: &Inspected, token: &Token, path: PathKey) {
    if answer.status.is_success() {
        token.worked_on(path);
    }
}

/// Tells the caller when the renewal of its refused token may be tried, unless the upstream says itself when to come again.
pub(super) fn held_back(answer: &Inspected, wait: Duration, record: &mut Record) {
    let mut lines = answer.lines.as_bytes().split(|byte| *byte == b'\n');
    let name = b"retry-after:";
    if !lines.any(|line| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))) {
        record.retry_after = Some(wait);
    }
}

/// Has a refused token renewed for the requests that follow. What becomes of it, where that is known at once.
pub(super) async fn replace_apart(
    slot: Arc<TokenSlot>,
    token: Arc<Token>,
    path: PathKey,
) -> Option<Replacement> {
    let mut replacing = Box::pin(async move { slot.replace(&token, path).await });
    match poll_fn(|cx| Poll::Ready(replacing.as_mut().poll(cx))).await {
        Poll::Ready(replacement) => Some(replacement),
        Poll::Pending => {
            tokio::spawn(replacing);
            None
        }
    }
}
