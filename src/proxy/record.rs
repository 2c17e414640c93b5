//! What becomes known of one request on its way, and the access log's line about it when its answer has ended.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::Method;
use tokio::time::Instant;

use super::{
    refusal::Kind,
    request::{Request, Target},
    sign::RequestId,
};
use crate::directory::{Agent, Client};

/// One request. Dropped when its answer has been handed over, or when its caller has left.
pub(super) struct Record {
    pub(super) began: Instant,
    pub(super) request_id: RequestId,
    /// Where the caller is.
    pub(super) peer: Option<IpAddr>,
    pub(super) client: Option<Arc<Client>>,
    pub(super) agent: Option<Arc<Agent>>,
    /// The answer's HTTP status; 0 where the caller left before there was one.
    pub(super) status: u16,
    pub(super) errcode: Option<i64>,
    /// The errcode for which the request was sent once more.
    pub(super) retried: Option<i64>,
    /// The proxy's own error: its kind, and its words.
    pub(super) error: Option<(Kind, String)>,
    /// Time spent waiting for a token.
    pub(super) token: Duration,
    /// Time spent waiting for the heads of the upstream's answers.
    pub(super) upstream: Duration,
    /// Bytes of the answer's body that went to the caller.
    pub(super) bytes: u64,
    /// Whether the whole answer was handed over.
    pub(super) whole: bool,
    method: Method,
    target: Target,
    logged: bool,
}

impl Record {
    /// A request that begins now; `logged` says whether its line is written where all goes well.
    pub(super) fn new(request: &Request, request_id: RequestId, logged: bool) -> Self {
        Self {
            began: Instant::now(),
            request_id,
            peer: request.peer,
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
            method: request.method.clone(),
            target: request.target.clone(),
            logged,
        }
    }
}

/// Writes the line at the given level.
macro_rules! line {
    ($level:ident, $record:ident) => {
        tracing::$level!(
            target: "access",
            request_id = $record.request_id.as_str(),
            peer = $record.peer.map(tracing::field::display),
            client = $record.client.as_ref().map(|client| client.name.as_str()),
            agent = $record.agent.as_ref().map(|agent| agent.name.as_str()),
            method = %$record.method,
            path = $record.path(),
            status = $record.status,
            errcode = $record.errcode,
            retried = $record.retried,
            error = $record.error.as_ref().map(|(kind, _)| kind.facts().0),
            reason = $record.error.as_ref().map(|(_, words)| words.as_str()),
            bytes = $record.bytes,
            whole = $record.whole,
            token_ms = milliseconds($record.token),
            upstream_ms = milliseconds($record.upstream),
            total_ms = milliseconds($record.began.elapsed()),
            "request"
        )
    };
}

impl Record {
    /// The path without its query, and without what a mistyped query left in it: both may hold secrets.
    fn path(&self) -> &str {
        let path = self.target.path();
        &path[..path.find(['&', '=']).unwrap_or(path.len())]
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let failed = self.error.as_ref().is_some_and(|(kind, _)| kind.facts().1.is_server_error());
        if failed {
            line!(warn, self);
        } else if self.logged {
            line!(info, self);
        }
    }
}

/// Milliseconds with three decimals.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
