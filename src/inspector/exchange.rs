//! The summary of one exchange, and the filter over exchanges.

use std::{
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::redaction_queue::DetailCell;
use crate::telemetry::access_log::{AccessLogEntry, FirstAttempt};

/// Maximum bytes kept of a method, a path and an error message. The other texts are short.
const MAX_METHOD_BYTES: usize = 32;
const MAX_PATH_BYTES: usize = 1024;
const MAX_REASON_BYTES: usize = 512;

/// Summary of one exchange, with the data of its access log entry.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// When the response ended.
    pub ended_at: SystemTime,
    /// Address of the client.
    pub peer: Option<IpAddr>,
    /// HTTP status of the response; 0 without a response.
    pub status: u16,
    /// Errcode of the response.
    pub errcode: Option<i64>,
    /// The errcode that caused the retry.
    pub retried: Option<i64>,
    /// Times of the first attempt, if there was a retry.
    pub first_attempt: Option<FirstAttempt>,
    /// Bytes of the request body received when the response began; `None` without a body.
    pub request_bytes: Option<u64>,
    /// Bytes of the response body.
    pub response_bytes: u64,
    /// Whether the response was sent completely.
    pub complete: bool,
    /// Time spent waiting for a token.
    pub token_time: Duration,
    /// Time spent waiting for the upstream.
    pub upstream_time: Duration,
    /// Time from the request head to the end of the response.
    pub total_time: Duration,
    /// Captured details, if the capture was on.
    pub detail: Option<Arc<DetailCell>>,
    /// All texts concatenated, so that a reused slot reuses one allocation.
    text: String,
    /// End offset of each text.
    text_ends: [usize; 7],
}

impl Default for Exchange {
    fn default() -> Self {
        Self {
            ended_at: SystemTime::UNIX_EPOCH,
            peer: None,
            status: 0,
            errcode: None,
            retried: None,
            first_attempt: None,
            request_bytes: None,
            response_bytes: 0,
            complete: false,
            token_time: Duration::ZERO,
            upstream_time: Duration::ZERO,
            total_time: Duration::ZERO,
            detail: None,
            text: String::new(),
            text_ends: [0; 7],
        }
    }
}

impl Exchange {
    /// The request id.
    pub fn request_id(&self) -> &str {
        self.nth_text(0)
    }

    /// The HTTP method.
    pub fn method(&self) -> &str {
        self.nth_text(1)
    }

    /// The path with credentials masked, truncated to 1 KiB.
    pub fn path(&self) -> &str {
        self.nth_text(2)
    }

    /// Name of the agent; empty without one.
    pub fn agent(&self) -> &str {
        self.nth_text(3)
    }

    /// Name of the client; empty without one.
    pub fn client(&self) -> &str {
        self.nth_text(4)
    }

    /// Message of the proxy's own error; empty without one.
    pub fn reason(&self) -> &str {
        self.nth_text(5)
    }

    /// Kind of the proxy's own error; empty without one.
    pub fn error(&self) -> &str {
        self.nth_text(6)
    }

    fn nth_text(&self, nth: usize) -> &str {
        let begin = nth.checked_sub(1).map_or(0, |before| self.text_ends[before]);
        &self.text[begin..self.text_ends[nth]]
    }

    /// Overwrites this slot with another exchange.
    pub(super) fn overwrite(&mut self, entry: &AccessLogEntry<'_>, detail: Option<Arc<DetailCell>>) {
        self.text.clear();
        let texts = [
            entry.request_id,
            truncate(entry.method, MAX_METHOD_BYTES),
            truncate(entry.path, MAX_PATH_BYTES),
            entry.agent.unwrap_or_default(),
            entry.client.unwrap_or_default(),
            truncate(entry.reason.unwrap_or_default(), MAX_REASON_BYTES),
            entry.error.unwrap_or_default(),
        ];
        self.text.reserve(texts.iter().map(|text| text.len()).sum());
        for (text, end) in texts.into_iter().zip(&mut self.text_ends) {
            self.text.push_str(text);
            *end = self.text.len();
        }
        (self.ended_at, self.peer, self.status) = (entry.ended_at, entry.peer, entry.status);
        (self.errcode, self.retried, self.first_attempt) =
            (entry.errcode, entry.retried, entry.first_attempt);
        (self.request_bytes, self.response_bytes, self.complete) =
            (entry.request_bytes, entry.response_bytes, entry.complete);
        (self.token_time, self.upstream_time, self.total_time) =
            (entry.token_time, entry.upstream_time, entry.total_time);
        self.detail = detail;
    }
}

/// Truncates a text at a character boundary.
fn truncate(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

/// Filter over exchanges; the default matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExchangeFilter {
    /// Name of the agent; empty matches exchanges without one.
    pub agent: Option<String>,
    /// Name of the client; empty matches exchanges without one.
    pub client: Option<String>,
    /// The errcode.
    pub errcode: Option<i64>,
    /// Range of HTTP statuses, inclusive.
    pub status: Option<RangeInclusive<u16>>,
    /// Substring of the path.
    pub path: Option<String>,
    /// The request id.
    pub request_id: Option<String>,
}

impl ExchangeFilter {
    /// Whether an exchange matches.
    pub fn matches(&self, exchange: &Exchange) -> bool {
        let equals =
            |wanted: &Option<String>, name: &str| wanted.as_ref().is_none_or(|wanted| wanted == name);
        equals(&self.agent, exchange.agent())
            && equals(&self.request_id, exchange.request_id())
            && equals(&self.client, exchange.client())
            && self.errcode.is_none_or(|errcode| exchange.errcode == Some(errcode))
            && self.status.as_ref().is_none_or(|statuses| statuses.contains(&exchange.status))
            && self.path.as_ref().is_none_or(|part| exchange.path().contains(&**part))
    }
}
