//! The request body, wrapped for sending.

use http::Method;

use super::{Proxy, error::ProxyError, request::Request};
use crate::{
    directory::Client,
    http1::headers::HeaderKind,
    request_body::{Owner, ReplayBody, ReplayBudgetExceeded, RequestBody},
    upstream::BodyLength,
};

impl Proxy {
    /// Wraps the request body for sending, buffered if `retryable` is set or its length is unknown. Errors: the declared
    /// length exceeds `server.max_request_body`, or the replay budget is exhausted.
    pub(super) fn prepare_body(
        &self,
        request: &Request,
        body: RequestBody,
        retryable: bool,
        client: Option<&Client>,
    ) -> Result<(Option<ReplayBody>, BodyLength), ProxyError> {
        let content_length = body.content_length();
        if content_length.is_some_and(|content_length| content_length > self.settings.body_limits.max_bytes) {
            return Err(ProxyError::body_too_large(self.settings.body_limits.max_bytes));
        }
        let needs_replay_buffer =
            matches!(body, RequestBody::Streamed(_)) && (retryable || content_length.is_none());
        let owner = || Owner::of(client.map(|client| &*client.config.name));
        let budget = needs_replay_buffer.then(|| (&self.settings.replay_budget, owner()));
        let replay_body = ReplayBody::new(body, self.settings.body_limits, budget)
            .map_err(|ReplayBudgetExceeded| ProxyError::replay_budget_exhausted())?;
        let method_has_body = || matches!(request.method, Method::POST | Method::PUT | Method::PATCH);
        let body_length = match content_length {
            Some(0)
                if replay_body.is_none()
                    && !request.headers.contains(HeaderKind::ContentLength)
                    && !method_has_body() =>
            {
                BodyLength::Absent
            }
            Some(content_length) => BodyLength::Known(content_length),
            None => BodyLength::Unknown,
        };
        Ok((replay_body, body_length))
    }
}
