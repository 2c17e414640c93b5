//! Waits before a request is sent: for the first chunk of a body, for a token, for a ticket fetched by another request,
//! for an in-flight permit. `WaitLimit` bounds the waits for a body, token or ticket, the queue of
//! `ConcurrencyLimit` those for a permit; beyond either a request fails at once.

use std::{future::poll_fn, mem, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    ForwardedRequest, Proxy,
    error::{ErrorKind, ProxyError},
    request_context::RequestContext,
    token::token_unavailable,
};
use crate::{
    directory::Agent,
    limits::concurrency_limit::{AcquireError, Permit},
    request_body::ReplayBody,
    telemetry::traces::Operation,
    tokens::Token,
    upstream::{Delivery, UpstreamError, UpstreamErrorKind},
};

impl Proxy {
    /// Acquires the permit to wait, stored in `context.wait_permit` until the wait ends, and sets `waiting`;
    /// [`end_wait`] clears both. Error: too many requests wait.
    pub(super) fn acquire_wait_permit(
        &self,
        forwarded: &ForwardedRequest<'_>,
        context: &mut RequestContext,
    ) -> Result<(), ProxyError> {
        if context.wait_permit.is_none() {
            let client = context.client.as_ref().map(|client| client.name.as_str());
            let agent = context.agent.as_ref().map(|agent| agent.name.as_str());
            let header_bytes = forwarded.headers.text_bytes() + forwarded.target.bytes();
            let Some(permit) = self.settings.wait_limit.try_acquire(client, agent, header_bytes) else {
                let message = "too many requests are waiting for a token, a ticket or a body; retry later";
                return Err(overloaded(message));
            };
            context.wait_permit = Some(permit);
        }
        forwarded.waiting.set(true);
        Ok(())
    }

    /// Waits until a body begins to arrive whose declared length is not reserved yet, and reserves it.
    pub(super) async fn admit_body(
        &self,
        forwarded: &ForwardedRequest<'_>,
        replay_body: &ReplayBody,
        context: &mut RequestContext,
    ) -> Result<(), ProxyError> {
        let mut has_waited = false;
        let admitted = poll_fn(|cx| {
            let admitted = replay_body.poll_admitted(cx);
            if admitted.is_pending() && !mem::replace(&mut has_waited, true) {
                // The cap on waiting requests bounds the memory of their heads.
                self.acquire_wait_permit(forwarded, context)?;
            }
            admitted.map_err(|error| {
                let kind = UpstreamErrorKind::RequestBody(error);
                let error = UpstreamError { kind, delivery: Delivery::NotSent };
                ProxyError::from_upstream(&error, self.settings.body_limits.max_bytes)
            })
        });
        let admitted = admitted.await;
        if has_waited {
            end_wait(forwarded, context);
            context.cached_now = Instant::now();
        }
        admitted
    }

    /// Waits for the agent's token when none is cached.
    pub(super) async fn wait_for_token(
        &self,
        forwarded: &ForwardedRequest<'_>,
        agent: &Arc<Agent>,
        replay_body: Option<&mut ReplayBody>,
        context: &mut RequestContext,
    ) -> Result<Arc<Token>, Box<ProxyError>> {
        self.acquire_wait_permit(forwarded, context)?;
        replay_body.into_iter().for_each(ReplayBody::detach);
        let wait_started = Instant::now();
        context.begin_span(Operation::Token, wait_started);
        let fetched = agent.token.current_or_fetch().await;
        end_wait(forwarded, context);
        context.record_token_wait(wait_started, fetched.is_err());
        fetched.map_err(|failure| Box::new(token_unavailable(&failure, agent)))
    }

    /// Acquires an in-flight permit when more than half are in use, and waits if none is free.
    pub(super) async fn wait_for_in_flight_permit(
        &self,
        forwarded: &ForwardedRequest<'_>,
        replay_body: Option<&mut ReplayBody>,
        context: &mut RequestContext,
    ) -> Result<Permit, ProxyError> {
        forwarded.waiting.set(true);
        replay_body.into_iter().for_each(ReplayBody::detach);
        let limit = &self.settings.in_flight;
        let client = context.client.as_ref().map(|client| client.name.as_str());
        let agent = context.agent.as_ref().map(|agent| agent.name.as_str());
        let flow = limit.flow_key(client, agent, &forwarded.target.normalized_path);
        context.begin_span_now(Operation::Queue);
        let acquired = limit.acquire(flow, self.settings.queue_timeout).await.map_err(map_acquire_error);
        forwarded.waiting.set(false);
        context.cached_now = Instant::now();
        context.end_span_now(acquired.as_ref().err().map(|error| error.kind));
        acquired
    }
}

/// Ends a wait that `acquire_wait_permit` began.
pub(super) fn end_wait(forwarded: &ForwardedRequest<'_>, context: &mut RequestContext) {
    forwarded.waiting.set(false);
    context.wait_permit = None;
}

fn map_acquire_error(error: AcquireError) -> ProxyError {
    match error {
        AcquireError::Closed => ProxyError::shutting_down(),
        AcquireError::TimedOut => overloaded("timed out waiting for a free in-flight slot; retry later"),
        AcquireError::QueueFull => overloaded("in-flight queue is full; retry later"),
    }
}

fn overloaded(message: &'static str) -> ProxyError {
    ProxyError::new(ErrorKind::Overloaded, message).with_retry_after(Duration::from_secs(1))
}
