//! What becomes known of one request on its way, and the access log's line about it when its answer has ended.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Method, Uri};
use tokio::time::Instant;

use crate::directory::{Agent, Client};

/// One request. Dropped when its answer has been handed over, or when its caller has left.
pub(super) struct Record {
    pub(super) began: Instant,
    pub(super) request_id: HeaderValue,
    pub(super) client: Option<Arc<Client>>,
    pub(super) agent: Option<Arc<Agent>>,
    /// The answer's HTTP status; 0 where the caller left before there was one.
    pub(super) status: u16,
    pub(super) errcode: Option<i64>,
    /// The errcode for which the request was sent once more.
    pub(super) retried: Option<i64>,
    /// The kind of the proxy's own error.
    pub(super) error: Option<&'static str>,
    /// Time spent waiting for a token.
    pub(super) token: Duration,
    /// Time spent waiting for the heads of the upstream's answers.
    pub(super) upstream: Duration,
    /// Bytes of the answer's body that went to the caller.
    pub(super) bytes: u64,
    /// Whether the whole answer was handed over.
    pub(super) whole: bool,
    method: Method,
    uri: Uri,
    logged: bool,
}

impl Record {
    /// A request that began at `began`; `logged` says whether its line is written.
    pub(super) fn new(
        began: Instant,
        method: Method,
        uri: Uri,
        request_id: HeaderValue,
        logged: bool,
    ) -> Self {
        Self {
            began,
            request_id,
            client: None,
            agent: None,
            status: 0,
            errcode: None,
            retried: None,
            error: None,
            token: Duration::ZERO,
            upstream: Duration::ZERO,
            bytes: 0,
            whole: false,
            method,
            uri,
            logged,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.logged {
            return;
        }
        // The path without its query, which may hold secrets.
        tracing::info!(
            target: "access",
            request_id = self.request_id.to_str().unwrap_or_default(),
            client = self.client.as_ref().map(|client| client.name.as_str()),
            agent = self.agent.as_ref().map(|agent| agent.name.as_str()),
            method = %self.method,
            path = self.uri.path(),
            status = self.status,
            errcode = self.errcode,
            retried = self.retried,
            error = self.error,
            bytes = self.bytes,
            whole = self.whole,
            token_ms = milliseconds(self.token),
            upstream_ms = milliseconds(self.upstream),
            total_ms = milliseconds(self.began.elapsed()),
            "request"
        );
    }
}

/// Milliseconds with three decimals.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
