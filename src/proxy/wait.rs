//! Waits before a request is sent: for the first chunk of a body, or all of it if the upstream requires a length; for a
//! token, for a ticket fetched by another request, for an in-flight permit. `WaitLimit` bounds the waits for a body, token or ticket, the queue of
//! `ConcurrencyLimit` those for a permit; beyond either a request fails at once.

use std::{future::poll_fn, mem, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Proxy, UpstreamSettings,
    error::{ErrorKind, ProxyError},
    request_context::RequestContext,
    request_template::RequestTemplate,
    token::token_unavailable,
};
use crate::{
    directory::Agent,
    limits::concurrency_limit::{AcquireError, Permit},
    request_body::{ReceiveLimit, ReplayBody, RequestBodyError},
    telemetry::traces::Operation,
    tokens::Token,
    upstream::{BodyLength, Delivery, UpstreamError, UpstreamErrorKind},
};

/// Up to this size a body of unknown length is received before it is sent.
const MAX_SMALL_BODY_BYTES: u64 = 64 * 1024;
/// How long that may take: a body that streams on is hardly delayed.
const SMALL_BODY_TIMEOUT: Duration = Duration::from_millis(50);

impl Proxy {
    /// Acquires the permit to wait, stored in `context.wait_permit` until the wait ends, and sets `waiting`;
    /// [`end_wait`] clears both. Error: too many requests wait.
    pub(super) fn acquire_wait_permit(
        &self,
        template: &RequestTemplate<'_>,
        context: &mut RequestContext,
    ) -> Result<(), ProxyError> {
        if context.wait_permit.is_none() {
            let client = context.client.as_ref().map(|client| client.config.name.as_str());
            let agent = context.agent.as_ref().map(|agent| agent.name.as_str());
            let header_bytes = template.headers.held_bytes() + template.target.as_str().len();
            let Some(permit) =
                self.upstream_settings(template).wait_limit.try_acquire(client, agent, header_bytes)
            else {
                let message = "too many requests are waiting for a token, a ticket or a body; retry later";
                return Err(overloaded(message));
            };
            context.wait_permit = Some(permit);
        }
        template.waiting.set(true);
        Ok(())
    }

    /// Waits until a body begins to arrive whose declared length is not reserved yet, and reserves it.
    pub(super) async fn admit_body(
        &self,
        template: &RequestTemplate<'_>,
        replay_body: &ReplayBody,
        context: &mut RequestContext,
    ) -> Result<(), ProxyError> {
        let mut has_waited = false;
        let admitted = poll_fn(|cx| {
            let admitted = replay_body.poll_admitted(cx);
            if admitted.is_pending() && !mem::replace(&mut has_waited, true) {
                // The cap on waiting requests bounds the memory of their heads.
                self.acquire_wait_permit(template, context)?;
            }
            admitted.map_err(|error| self.request_body_error(error))
        });
        let admitted = admitted.await;
        if has_waited {
            end_wait(template, context);
            context.cached_now = Instant::now();
        }
        admitted
    }

    /// Receives a body of unknown length before it is sent, so that it goes out with `Content-Length` if it is small and
    /// arrives at once, or if the upstream requires it. A longer or slower one is sent while it arrives; without
    /// `retryable` it is then not buffered further.
    pub(super) async fn receive_body(
        &self,
        template: &RequestTemplate<'_>,
        replay_body: &ReplayBody,
        retryable: bool,
        context: &mut RequestContext,
    ) -> Result<BodyLength, ProxyError> {
        let limit = if self.upstream_settings(template).require_length {
            // The cap on waiting requests bounds the memory of their heads.
            self.acquire_wait_permit(template, context)?;
            ReceiveLimit::Whole
        } else {
            context.deadline.set_from(context.cached_now, SMALL_BODY_TIMEOUT);
            ReceiveLimit::InMemory(MAX_SMALL_BODY_BYTES)
        };
        let received = async {
            if limit == ReceiveLimit::Whole {
                poll_fn(|cx| replay_body.poll_admitted(cx)).await?;
                // A client that sends FIN after its body stays, however long the rest is being read.
                template.waiting.set(false);
            }
            replay_body.receive(limit, &mut context.deadline).await
        };
        let received = received.await;
        context.deadline.clear();
        end_wait(template, context);
        context.cached_now = Instant::now();
        match received.map_err(|error| self.request_body_error(error))? {
            Some(length) => Ok(BodyLength::Known(length)),
            None => {
                if !retryable {
                    replay_body.commit();
                }
                Ok(BodyLength::Unknown)
            }
        }
    }

    /// Error for a request body that failed before anything was sent.
    pub(super) fn request_body_error(&self, error: RequestBodyError) -> ProxyError {
        let kind = UpstreamErrorKind::RequestBody(error);
        let error = UpstreamError { kind, delivery: Delivery::NotSent };
        ProxyError::from_upstream(&error, self.settings.body_limits.max_bytes)
    }

    /// Waits for the agent's token when none is cached.
    pub(super) async fn wait_for_token(
        &self,
        template: &RequestTemplate<'_>,
        agent: &Arc<Agent>,
        replay_body: Option<&mut ReplayBody>,
        context: &mut RequestContext,
    ) -> Result<Arc<Token>, Box<ProxyError>> {
        self.acquire_wait_permit(template, context)?;
        replay_body.into_iter().for_each(ReplayBody::detach);
        let wait_started = Instant::now();
        context.begin(Operation::Token, wait_started);
        let fetching = context.fetch_cause().scope(agent.token.current_or_fetch());
        let fetched = fetching.await;
        end_wait(template, context);
        context.record_token_wait(wait_started, fetched.is_err());
        fetched.map_err(|failure| Box::new(token_unavailable(&failure, agent)))
    }

    /// Acquires an in-flight permit when more than half are in use, and waits if none is free.
    pub(super) async fn wait_for_in_flight_permit(
        &self,
        template: &RequestTemplate<'_>,
        replay_body: Option<&mut ReplayBody>,
        context: &mut RequestContext,
    ) -> Result<Permit, ProxyError> {
        template.waiting.set(true);
        replay_body.into_iter().for_each(ReplayBody::detach);
        let UpstreamSettings { in_flight: limit, queue_timeout, .. } = self.upstream_settings(template);
        let client = context.client.as_ref().map(|client| client.config.name.as_str());
        let agent = context.agent.as_ref().map(|agent| agent.name.as_str());
        let flow = limit.flow_key(client, agent, template.target.normalized_path());
        context.begin(Operation::Queue, Instant::now());
        let acquired = limit.acquire(flow, *queue_timeout).await.map_err(map_acquire_error);
        template.waiting.set(false);
        context.cached_now = Instant::now();
        context.end_now(acquired.as_ref().err().map(|error| error.kind));
        acquired
    }
}

/// Ends a wait that `acquire_wait_permit` began.
pub(super) fn end_wait(template: &RequestTemplate<'_>, context: &mut RequestContext) {
    template.waiting.set(false);
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
    ErrorKind::Overloaded.error(message).with_retry_after(Duration::from_secs(1))
}
