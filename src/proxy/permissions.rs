//! What an authenticated client may do: its `allow` list and the rate limits.

use std::sync::Arc;

use http::Method;
use tokio::time::Instant;

use super::error::{ErrorKind, ProxyError};
use crate::{directory::Client, limits::RateLimiter, tokens::ceil_seconds};

/// Rejects a request that the client's `allow` does not list.
pub(super) fn check_allowed(client: Option<&Client>, method: &Method, path: &str) -> Result<(), ProxyError> {
    let Some(client) = client.filter(|client| !client.may_call(method, path)) else { return Ok(()) };
    let key = format!("clients.{}.allow", client.name);
    let message =
        format!("path not allowed for this client: it is not in {key}, where the operator can add it");
    Err(ProxyError::new(ErrorKind::Forbidden, message))
}

/// Charges a request received at `now` to a rate limiter, or rejects it.
pub(super) fn charge_rate_limit(
    limiter: Option<&Arc<RateLimiter>>,
    now: Instant,
    subject: &str,
) -> Result<(), ProxyError> {
    let Some(Err(wait)) = limiter.map(|limiter| limiter.try_acquire(now)) else { return Ok(()) };
    let message = format!("{subject} exceeds its rate limit; retry in {} s", ceil_seconds(wait).max(1));
    Err(ProxyError::new(ErrorKind::RateLimited, message).with_retry_after(wait))
}
