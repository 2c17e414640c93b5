//! The access log: one line a request, written when its answer has ended.

use std::time::Duration;

use http::{Method, Uri};
use tokio::time::Instant;

/// What the line will say. Paths are logged without their query, which may hold secrets.
pub(super) struct Entry {
    pub(super) began: Instant,
    pub(super) request_id: String,
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) client: String,
    pub(super) agent: String,
    pub(super) status: u16,
    pub(super) errcode: Option<i64>,
    pub(super) retried: Option<i64>,
    pub(super) error: Option<&'static str>,
    pub(super) token: Duration,
    pub(super) upstream: Duration,
    bytes: u64,
    broken: bool,
}

impl Entry {
    /// A line for a request that began at `began`.
    pub(super) fn new(began: Instant, method: Method, uri: Uri) -> Self {
        Self {
            began,
            request_id: String::new(),
            method,
            uri,
            client: String::new(),
            agent: String::new(),
            status: 0,
            errcode: None,
            retried: None,
            error: None,
            token: Duration::ZERO,
            upstream: Duration::ZERO,
            bytes: 0,
            broken: false,
        }
    }

    /// Counts what went to the caller.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// The answer ended before its end.
    pub(super) fn broke(&mut self) {
        self.broken = true;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        tracing::info!(
            target: "access",
            request_id = self.request_id,
            client = self.client,
            agent = self.agent,
            method = %self.method,
            path = self.uri.path(),
            status = self.status,
            errcode = self.errcode,
            retried = self.retried,
            error = self.error,
            bytes = self.bytes,
            broken = self.broken,
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
