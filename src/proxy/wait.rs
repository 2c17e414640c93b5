//! Where a request waits before it is sent: for a token, for a ticket that another request fetches, for a place in flight.
//! How many wait is bounded; beyond the bound a request fails at once.

use std::{sync::Arc, time::Duration};

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
};

impl Proxy {
    /// Lets a request wait until `record.wait_permit` is taken away again, if not too many do.
    pub(super) fn acquire_wait_permit(
        &self,
        forward: &ForwardedRequest<'_>,
        record: &mut RequestContext,
    ) -> Result<(), ProxyError> {
        forward.waiting.set(true);
        if record.wait_permit.is_some() {
            return Ok(());
        }
        let client = record.client.as_ref().map(|client| client.name.as_str());
        let agent = record.agent.as_ref().map(|agent| agent.name.as_str());
        let header_bytes = forward.headers.text_bytes() + forward.target.bytes();
        match self.settings.wait_limit.try_acquire(client, agent, header_bytes) {
            Some(permit) => record.wait_permit = Some(permit),
            None => {
                let words =
                    "too many requests are waiting for a token of their agents; come again in a moment";
                return Err(overloaded(words));
            }
        }
        Ok(())
    }

    /// The agent's token, where there is none that serves at once.
    pub(super) async fn wait_for_token(
        &self,
        forward: &ForwardedRequest<'_>,
        agent: &Arc<Agent>,
        upload: Option<&mut ReplayBody>,
        record: &mut RequestContext,
    ) -> Result<Arc<Token>, Box<ProxyError>> {
        self.acquire_wait_permit(forward, record)?;
        upload.into_iter().for_each(ReplayBody::detach);
        let asked = Instant::now();
        record.begin_span(Operation::Token, asked);
        let fetched = agent.token.current_or_fetch().await;
        record.wait_permit = None;
        record.record_token_wait(asked, fetched.is_err());
        fetched.map_err(|failure| Box::new(token_unavailable(&failure, agent)))
    }

    /// A place among the requests in flight, where there is none at once.
    pub(super) async fn wait_for_in_flight_permit(
        &self,
        forward: &ForwardedRequest<'_>,
        upload: Option<&mut ReplayBody>,
        record: &mut RequestContext,
    ) -> Result<Permit, ProxyError> {
        forward.waiting.set(true);
        upload.into_iter().for_each(ReplayBody::detach);
        let places = &self.settings.in_flight;
        let client = record.client.as_ref().map(|client| client.name.as_str());
        let agent = record.agent.as_ref().map(|agent| agent.name.as_str());
        let flow = places.flow_key(client, agent, &forward.target.normalized_path);
        record.begin_span_now(Operation::Queue);
        let waited = places.acquire(flow, self.settings.queue_timeout).await.map_err(map_acquire_error);
        record.cached_now = Instant::now();
        record.end_span_now(waited.as_ref().err().map(|refusal| refusal.kind));
        waited
    }
}

fn map_acquire_error(none: AcquireError) -> ProxyError {
    match none {
        AcquireError::Closed => ProxyError::shutting_down(),
        AcquireError::TimedOut => {
            overloaded("too many requests are with WeCom and none was done in time; come again in a moment")
        }
        AcquireError::QueueFull => {
            overloaded("too many requests are waiting for WeCom; come again in a moment")
        }
    }
}

fn overloaded(words: &'static str) -> ProxyError {
    ProxyError::new(ErrorKind::Overloaded, words).with_retry_after(Duration::from_secs(1))
}
