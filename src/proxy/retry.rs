//! The second attempt of a request whose token was refused.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    Forward, Proxy,
    inspect::Inspected,
    query,
    record::Record,
    refusal::Refusal,
    token::{accepted, held_back, replace_apart, token_unavailable},
};
use crate::{
    access::FirstTry,
    directory::Agent,
    limits::places::Place,
    tokens::{Replacement, Token},
    traces::Doing,
    upload::{Upload, UploadError},
};

/// The first attempt: the token was refused with this errcode.
pub(super) struct Refused {
    pub(super) answer: Box<Inspected>,
    pub(super) token: Arc<Token>,
    pub(super) errcode: i64,
    /// Both attempts have one place among the requests in flight.
    pub(super) place: Place,
}

impl Proxy {
    /// Has the token renewed, and sends the request once more. Where that cannot be, the first response is the answer.
    pub(super) async fn retry(
        &self,
        forward: &Forward<'_>,
        agent: &Arc<Agent>,
        upload: Option<&Upload>,
        record: &mut Record,
        refused: Refused,
    ) -> Result<Box<Inspected>, Refusal> {
        let Refused { answer: first, token, errcode, place } = refused;
        let path = forward.path_key();
        if upload.is_some_and(|upload| !upload.can_be_read_again()) {
            // It costs this request its retry; those after it need the next token all the same.
            if let Some(Replacement::Held(wait)) = replace_apart(agent.slot.clone(), token, path).await {
                held_back(&first, wait, record);
            }
            return Ok(first.at(place));
        }
        let first_try = FirstTry { token: record.token, upstream: first.took };
        let asked = Instant::now();
        record.begin(Doing::Token, asked);
        let replacement = agent.slot.replace(&token, path).await;
        record.waited_for_token(asked, matches!(replacement, Replacement::Unavailable(_)));
        let next = match replacement {
            Replacement::Renewed(next) | Replacement::SameAgain(next) => next,
            Replacement::Held(wait) => {
                held_back(&first, wait, record);
                return Ok(first.at(place));
            }
            Replacement::Unavailable(failure) => return Err(token_unavailable(&failure, agent)),
        };
        record.retried = Some(errcode);
        record.first_try = Some(first_try);
        let query = forward.target.query_without_token();
        let target = query::with_token(forward.target.path, &query, next.value.expose());
        let second = match self.exchange(forward, &target, Some(&next), upload, record).await {
            // The disk lost what was kept of the body: the refusal is all that there is to tell.
            Err(_) if upload.is_some_and(|upload| upload.failure() == Some(UploadError::Lost)) => {
                (record.retried, record.first_try) = (None, None);
                return Ok(first.at(place));
            }
            second => second?,
        };
        record.upstream += second.took;
        if let Some(upload) = upload {
            upload.settle();
        }
        if second.errcode.is_some_and(|errcode| self.rules.refresh_errcodes.contains(&errcode)) {
            agent.slot.refused_again(&next, path);
        } else {
            accepted(&second, &next, path);
        }
        Ok(second.at(place))
    }
}
