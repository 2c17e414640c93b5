//! What an authenticated client may do: its `allow` list and the rate limits.

use std::sync::Arc;

use http::Method;
use tokio::time::Instant;

use super::{
    error::{ErrorKind, ProxyError},
    request::Request,
    request_context::RequestContext,
};
use crate::{directory::Client, limits::RateLimiter, tokens::ceil_seconds};

/// Checks the client's `allow`, then the rate limits of client and agent.
#[inline(always)]
pub(super) fn check_allow_and_rate(request: &Request, context: &RequestContext) -> Result<(), ProxyError> {
    check_allowed(context.client.as_deref(), &request.method, request.target.normalized_path())?;
    charge_client(context.client.as_deref(), context)?;
    let agent = context.agent.as_ref();
    charge_rate_limit(agent.and_then(|agent| agent.rate_limiter.as_ref()), context.started, "this agent")
}

/// Rejects a request that the client's `allow` does not list.
#[inline(always)]
fn check_allowed(client: Option<&Client>, method: &Method, path: &str) -> Result<(), ProxyError> {
    match client.filter(|client| !client.may_call(method, path)) {
        Some(client) => Err(not_allowed(client)),
        None => Ok(()),
    }
}

#[cold]
fn not_allowed(client: &Client) -> ProxyError {
    let key = format!("clients.{}.allow", client.config.name);
    let message =
        format!("path not allowed for this client: it is not in {key}, where the operator can add it");
    ErrorKind::Forbidden.error(message)
}

/// Charges a request to its client.
#[inline]
pub(super) fn charge_client(client: Option<&Client>, context: &RequestContext) -> Result<(), ProxyError> {
    let limiter = client.and_then(|client| client.rate_limiter.as_ref());
    charge_rate_limit(limiter, context.started, "this client")
}

/// Charges a request received at `now` to a rate limiter, or rejects it.
#[inline]
fn charge_rate_limit(
    limiter: Option<&Arc<RateLimiter>>,
    now: Instant,
    subject: &str,
) -> Result<(), ProxyError> {
    let Some(Err(wait)) = limiter.map(|limiter| limiter.try_acquire(now)) else { return Ok(()) };
    let message = format!("{subject} exceeds its rate limit; retry in {} s", ceil_seconds(wait).max(1));
    Err(ErrorKind::RateLimited.error(message).with_retry_after(wait))
}
