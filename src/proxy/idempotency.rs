//! Requests with `Idempotency-Key`: each is carried out once, and a repeat gets the response that is kept in the state.
//!
//! The claim is durable before anything is sent, and the response before the client gets it. What was sent without a
//! known outcome, also by a process that crashed, is in doubt and not sent again unless the client says so.

mod claim;
mod key;
mod record;

use std::{cell::RefCell, future::poll_fn, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use self::{
    claim::{Found, IdempotencyClaim, StateUnavailable, claim},
    record::{Outcome, RequestRecord},
};
use super::{
    Proxy, RequestTemplate,
    body_tap::tap,
    decision::TokenChoice,
    errcode_probe::ProbedResponse,
    error::{ErrorKind, ProxyError},
    query,
    request::Request,
    request_context::RequestContext,
    request_template::query_without_token,
    response::Response,
    wait::end_wait,
};
use crate::{
    directory::Agent,
    request_body::{ReceiveLimit, ReplayBody, RequestBody},
    secret::hex,
    upstream::BodyLength,
    wecom::errcode,
};

/// A larger response is not kept.
const MAX_STORED_RESPONSE_BYTES: usize = 256 * 1024;
/// How long a client is told to wait where the state is away.
const STATE_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Errcodes that say that WeCom did nothing, beside those that refuse a token.
const NOT_CARRIED_OUT: [i64; 6] = [
    errcode::RATE_LIMITED,
    errcode::CONCURRENCY_LIMITED,
    errcode::UNTRUSTED_IP,
    errcode::API_FORBIDDEN,
    errcode::APP_DISABLED,
    errcode::AGENT_MISMATCH,
];
/// The parameters in which requests carry a credential of their own.
const CREDENTIAL_PARAMS: [&str; 5] =
    ["key", "access_token", "suite_access_token", "provider_access_token", "response_code"];

impl Proxy {
    /// Carries an authorized POST out unless it was before.
    pub(super) async fn handle_once(
        &self,
        request: &Request,
        body: RequestBody,
        TokenChoice { token_agent, token_param }: TokenChoice,
        context: &mut RequestContext,
    ) -> Result<Response, ProxyError> {
        let key = key::idempotency_key(&request.headers)?;
        let sends_again = key::allows_send_again(&request.headers)?;
        let state = self.settings.state.as_ref().ok_or_else(no_state)?;
        let query = query_without_token(&request.target, token_param);
        let (body, hash) = hashed(body, &query);
        let client = context.client.clone();
        let (replay_body, body_length) = self.prepare_body(request, body, true, client.as_deref())?;
        let mut template = RequestTemplate::new(request, token_param, body_length, context.upstream_index());
        if let Some(replay_body) = &replay_body {
            template.body_length = self.receive_whole_body(&template, replay_body, context).await?;
        }
        let fingerprint = hex::encode(&hash.take().finalize());
        let name = record_name(request, token_agent.is_none(), &key, context);
        self.acquire_wait_permit(&template, context)?;
        let max_wait = self.upstream_settings(&template).response_timeout;
        let found = claim(state, &name, &fingerprint, sends_again, max_wait).await;
        end_wait(&template, context);
        context.cached_now = tokio::time::Instant::now();
        let response = match found.map_err(|error| state_unavailable(&error))? {
            Found::Claimed(claim) => {
                let response = self.carry_out(claim, &template, token_agent, replay_body, context).await?;
                if let Some(message) = context.message_body.take() {
                    self.count_recipients(message, request, &response, context);
                }
                response
            }
            Found::StillWorking => return Err(still_working()),
            Found::InDoubt => return Err(in_doubt()),
            Found::Record(record) => replayed(record, &fingerprint)?,
        };
        context.errcode = response.errcode;
        Ok(Response::from_upstream(*response, None))
    }

    /// Receives a body to its end, so that its hash is known before anything is sent.
    async fn receive_whole_body(
        &self,
        template: &RequestTemplate<'_>,
        replay_body: &ReplayBody,
        context: &mut RequestContext,
    ) -> Result<BodyLength, ProxyError> {
        // The cap on waiting requests bounds the memory of their heads.
        self.acquire_wait_permit(template, context)?;
        let received = async {
            poll_fn(|cx| replay_body.poll_admitted(cx)).await?;
            template.waiting.set(false);
            replay_body.receive(ReceiveLimit::Whole, &mut context.deadline).await
        };
        let received = received.await;
        end_wait(template, context);
        context.request_bytes = Some(replay_body.received_bytes());
        let length = received.map_err(|error| self.request_body_error(error))?;
        Ok(length.map_or(template.body_length, BodyLength::Known))
    }

    /// Sends the request, and keeps what became of it.
    async fn carry_out(
        &self,
        claim: IdempotencyClaim,
        template: &RequestTemplate<'_>,
        token_agent: Option<Arc<Agent>>,
        mut replay_body: Option<ReplayBody>,
        context: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let template = &RequestTemplate { maybe_sent: Some(claim.maybe_sent()), ..*template };
        let work = Box::pin(async {
            let response = match token_agent {
                None => self.send_passthrough(template, &mut replay_body, context).await?,
                Some(agent) => {
                    let token = match agent.token.cached(context.cached_now) {
                        Some(token) => token,
                        None => self
                            .wait_for_token(template, &agent, replay_body.as_mut(), context)
                            .await
                            .map_err(|error| *error)?,
                    };
                    self.send_with_token(template, &agent, token, &mut replay_body, context).await?
                }
            };
            let buffered = response.buffer_remaining(MAX_STORED_RESPONSE_BYTES + 1).await;
            buffered.map_err(|error| ProxyError::from_upstream(&error, self.settings.body_limits.max_bytes))
        });
        let result = claim.keep_while(work).await;
        let kept = match &result {
            Ok(response) => self.keep(claim, response).await,
            Err(error) if error.maybe_sent => claim.settle(Outcome::InDoubt, Vec::new()).await,
            Err(_) => claim.release().await,
        };
        if let Err(StateUnavailable(error)) = kept {
            tracing::warn!(
                error,
                "the outcome of a request with Idempotency-Key was not kept, repeats of it are in doubt"
            );
        }
        result
    }

    async fn keep(&self, claim: IdempotencyClaim, response: &ProbedResponse) -> Result<(), StateUnavailable> {
        match (response.errcode, response.status.as_u16()) {
            (Some(code), _)
                if NOT_CARRIED_OUT.contains(&code) || self.settings.refresh_errcodes.contains(&code) =>
            {
                claim.release().await
            }
            // A gateway that limits requests has passed nothing on.
            (_, 429) => claim.release().await,
            (Some(errcode::BUSY), _) | (_, 500..) => claim.settle(Outcome::InDoubt, Vec::new()).await,
            (errcode, status) => match response.complete_body() {
                Some(body) if body.len() <= MAX_STORED_RESPONSE_BYTES => {
                    let headers = response.headers.as_bytes();
                    let (has_date, header_bytes) = (response.has_date, headers.len());
                    let outcome = Outcome::Done { status, errcode, has_date, header_bytes };
                    claim.settle(outcome, [headers, &body].concat()).await
                }
                _ => claim.settle(Outcome::TooLarge, Vec::new()).await,
            },
        }
    }
}

/// The same body, and its hash, which includes `query` and is complete when the body has been read.
fn hashed(body: RequestBody, query: &str) -> (RequestBody, Rc<RefCell<Sha256>>) {
    let mut sha256 = Sha256::new();
    sha256.update((query.len() as u64).to_be_bytes());
    sha256.update(query);
    match body {
        RequestBody::None => (RequestBody::None, Rc::new(RefCell::new(sha256))),
        RequestBody::Complete(bytes) => {
            sha256.update(&bytes);
            (RequestBody::Complete(bytes), Rc::new(RefCell::new(sha256)))
        }
        RequestBody::Streamed(source) => {
            let hash = Rc::new(RefCell::new(sha256));
            let updated = hash.clone();
            (tap(source, move |chunk: &Bytes, _| updated.borrow_mut().update(chunk)), hash)
        }
    }
}

/// The name of a request's record: whose it is, where it goes, and its key, as a hash.
fn record_name(request: &Request, has_own_credential: bool, key: &str, context: &RequestContext) -> String {
    let mut sha256 = Sha256::new();
    let mut add = |part: &str| {
        sha256.update((part.len() as u64).to_be_bytes());
        sha256.update(part);
    };
    add(context.client.as_ref().map_or("", |client| &client.config.name));
    add(context.agent.as_ref().map_or("", |agent| &agent.name));
    // A client that was deleted and made anew under its name gets no response of the one before.
    let generation = context.client.as_ref().map_or(0, |client| client.config.origin.generation());
    add(&format!("{generation:016x}"));
    add(request.method.as_str());
    add(request.target.normalized_path());
    add(key);
    if has_own_credential {
        for name in CREDENTIAL_PARAMS {
            add(&query::param_value(request.target.query().unwrap_or_default(), name).unwrap_or_default());
        }
    }
    hex::encode(&sha256.finalize())
}

/// The response that is kept in a record.
fn replayed(record: RequestRecord, fingerprint: &str) -> Result<Box<ProbedResponse>, ProxyError> {
    if record.fingerprint != fingerprint {
        let message =
            "this Idempotency-Key was used with another body or query; use a new key for a new request";
        return Err(ErrorKind::IdempotencyMismatch.error(message));
    }
    let Outcome::Done { status, errcode, has_date, header_bytes } = record.outcome else {
        let message = "this request was carried out, but its response was too large to be kept (256 KiB)";
        return Err(ErrorKind::IdempotencyConflict.error(message));
    };
    let (headers, body) = record.response.split_at(header_bytes);
    let mut response = ProbedResponse::stored(status, headers, Bytes::copy_from_slice(body), errcode);
    response.has_date = has_date;
    response.headers.append(b"idempotency-replayed", b"true");
    Ok(response)
}

fn no_state() -> ProxyError {
    let message = "Idempotency-Key needs the table [state] in the proxy's configuration, which has none; ask the operator \
                   for it, or send the request without this header";
    ErrorKind::BadRequest.error(message)
}

fn state_unavailable(StateUnavailable(error): &StateUnavailable) -> ProxyError {
    let message = "Idempotency-Key cannot be kept now, so nothing was sent; retry later";
    ErrorKind::Overloaded
        .error(message)
        .with_retry_after(STATE_RETRY_AFTER)
        .with_log_message(format!("{message}: {error}"))
}

fn still_working() -> ProxyError {
    let message = "the first request with this Idempotency-Key is still at work; retry later";
    ErrorKind::IdempotencyConflict.error(message)
}

fn in_doubt() -> ProxyError {
    let message = "this request was sent before and its outcome is not known: look whether WeCom carried it out; the header \
                   Idempotency-Key-Retry: send-again sends it once more";
    ErrorKind::InDoubt.error(message)
}
