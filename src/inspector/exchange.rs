//! One exchange, and which of them somebody wants to see.

use std::{
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::DetailCell;
use crate::telemetry::access_log::{AccessLogEntry, FirstAttempt};

/// Most bytes that are kept of a method, a path, and an error's words. The other texts are short by themselves.
const MAX_METHOD_BYTES: usize = 32;
const MAX_PATH_BYTES: usize = 1024;
const MAX_REASON_BYTES: usize = 512;

/// A summary of one exchange: what the access log tells of it.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// When the answer ended.
    pub ended_at: SystemTime,
    /// Where the caller is.
    pub peer: Option<IpAddr>,
    /// The answer's HTTP status; 0 where there was no answer.
    pub status: u16,
    /// The answer's errcode.
    pub errcode: Option<i64>,
    /// The errcode for which the request was sent once more.
    pub retried: Option<i64>,
    /// How the first try went, where it was sent once more.
    pub first_attempt: Option<FirstAttempt>,
    /// Bytes of the request's body that had come when its answer began; `None` where it had none.
    pub request_bytes: Option<u64>,
    /// Bytes of the answer's body.
    pub response_bytes: u64,
    /// Whether the whole answer was handed over.
    pub complete: bool,
    /// Time spent waiting for a token.
    pub token_time: Duration,
    /// Time spent waiting for the upstream.
    pub upstream_time: Duration,
    /// Time from the request's head to its answer's end.
    pub total_time: Duration,
    /// What it looked like, where somebody wanted to see it.
    pub detail: Option<Arc<DetailCell>>,
    /// All texts, one behind the other, so that a slot that is used again has room for them.
    text: String,
    /// Where each of them ends.
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
    /// The request's id.
    pub fn request_id(&self) -> &str {
        self.nth_text(0)
    }

    /// The HTTP method.
    pub fn method(&self) -> &str {
        self.nth_text(1)
    }

    /// The path, without anything secret; its beginning, where it is very long.
    pub fn path(&self) -> &str {
        self.nth_text(2)
    }

    /// The agent's name; empty where there was none.
    pub fn agent(&self) -> &str {
        self.nth_text(3)
    }

    /// The client's name; empty where there was none.
    pub fn client(&self) -> &str {
        self.nth_text(4)
    }

    /// The words of the proxy's own error; empty where there was none.
    pub fn reason(&self) -> &str {
        self.nth_text(5)
    }

    /// The kind of the proxy's own error; empty where there was none.
    pub fn error(&self) -> &str {
        self.nth_text(6)
    }

    fn nth_text(&self, nth: usize) -> &str {
        let begin = nth.checked_sub(1).map_or(0, |before| self.text_ends[before]);
        &self.text[begin..self.text_ends[nth]]
    }

    /// Becomes the summary of another exchange.
    pub(super) fn overwrite(&mut self, line: &AccessLogEntry<'_>, detail: Option<Arc<DetailCell>>) {
        self.text.clear();
        let texts = [
            line.request_id,
            truncate(line.method, MAX_METHOD_BYTES),
            truncate(line.path, MAX_PATH_BYTES),
            line.agent.unwrap_or_default(),
            line.client.unwrap_or_default(),
            truncate(line.reason.unwrap_or_default(), MAX_REASON_BYTES),
            line.error.unwrap_or_default(),
        ];
        self.text.reserve(texts.iter().map(|text| text.len()).sum());
        for (text, end) in texts.into_iter().zip(&mut self.text_ends) {
            self.text.push_str(text);
            *end = self.text.len();
        }
        (self.ended_at, self.peer, self.status) = (line.ended_at, line.peer, line.status);
        (self.errcode, self.retried, self.first_attempt) = (line.errcode, line.retried, line.first_attempt);
        (self.request_bytes, self.response_bytes, self.complete) =
            (line.request_bytes, line.response_bytes, line.complete);
        (self.token_time, self.upstream_time, self.total_time) =
            (line.token_time, line.upstream_time, line.total_time);
        self.detail = detail;
    }
}

/// As much of a text as fits.
fn truncate(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Which exchanges are wanted; all of them, unless it says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExchangeFilter {
    /// The agent's name; the empty one for those without an agent.
    pub agent: Option<String>,
    /// The client's name; the empty one for those without a client.
    pub client: Option<String>,
    /// The errcode.
    pub errcode: Option<i64>,
    /// The first and the last of the statuses.
    pub status: Option<RangeInclusive<u16>>,
    /// What the path holds.
    pub path: Option<String>,
    /// The request's id.
    pub request_id: Option<String>,
}

impl ExchangeFilter {
    /// Whether an exchange is wanted.
    pub fn matches(&self, exchange: &Exchange) -> bool {
        let is = |wanted: &Option<String>, name: &str| wanted.as_ref().is_none_or(|wanted| wanted == name);
        is(&self.agent, exchange.agent())
            && is(&self.request_id, exchange.request_id())
            && is(&self.client, exchange.client())
            && self.errcode.is_none_or(|errcode| exchange.errcode == Some(errcode))
            && self.status.as_ref().is_none_or(|statuses| statuses.contains(&exchange.status))
            && self.path.as_ref().is_none_or(|part| exchange.path().contains(&**part))
    }
}
