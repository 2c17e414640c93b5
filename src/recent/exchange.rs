//! One exchange, and which of them somebody wants to see.

use std::{
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::Captured;
use crate::access::{FirstTry, Line};

/// Most bytes that are kept of a method, a path, and an error's words. The other texts are short by themselves.
const MOST_METHOD: usize = 32;
const MOST_PATH: usize = 1024;
const MOST_WORDS: usize = 512;

/// A summary of one exchange: what the access log tells of it.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// When the answer ended.
    pub at: SystemTime,
    /// Where the caller is.
    pub peer: Option<IpAddr>,
    /// The answer's HTTP status; 0 where there was no answer.
    pub status: u16,
    /// The answer's errcode.
    pub errcode: Option<i64>,
    /// The errcode for which the request was sent once more.
    pub retried: Option<i64>,
    /// How the first try went, where it was sent once more.
    pub first_try: Option<FirstTry>,
    /// Bytes of the request's body that had come when its answer began; `None` where it had none.
    pub request_bytes: Option<u64>,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// Whether the whole answer was handed over.
    pub whole: bool,
    /// Time spent waiting for a token.
    pub token: Duration,
    /// Time spent waiting for the upstream.
    pub upstream: Duration,
    /// Time from the request's head to its answer's end.
    pub total: Duration,
    /// What it looked like, where somebody wanted to see it.
    pub detail: Option<Arc<Captured>>,
    /// All texts, one behind the other, so that a slot that is used again has room for them.
    text: String,
    /// Where each of them ends.
    ends: [usize; 7],
}

impl Default for Exchange {
    fn default() -> Self {
        Self {
            at: SystemTime::UNIX_EPOCH,
            peer: None,
            status: 0,
            errcode: None,
            retried: None,
            first_try: None,
            request_bytes: None,
            bytes: 0,
            whole: false,
            token: Duration::ZERO,
            upstream: Duration::ZERO,
            total: Duration::ZERO,
            detail: None,
            text: String::new(),
            ends: [0; 7],
        }
    }
}

impl Exchange {
    /// The request's id.
    pub fn request_id(&self) -> &str {
        self.nth(0)
    }

    /// The HTTP method.
    pub fn method(&self) -> &str {
        self.nth(1)
    }

    /// The path, without anything secret; its beginning, where it is very long.
    pub fn path(&self) -> &str {
        self.nth(2)
    }

    /// The agent's name; empty where there was none.
    pub fn agent(&self) -> &str {
        self.nth(3)
    }

    /// The client's name; empty where there was none.
    pub fn client(&self) -> &str {
        self.nth(4)
    }

    /// The words of the proxy's own error; empty where there was none.
    pub fn reason(&self) -> &str {
        self.nth(5)
    }

    /// The kind of the proxy's own error; empty where there was none.
    pub fn error(&self) -> &str {
        self.nth(6)
    }

    fn nth(&self, nth: usize) -> &str {
        let begin = nth.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[begin..self.ends[nth]]
    }

    /// Becomes the summary of another exchange.
    pub(super) fn write(&mut self, line: &Line<'_>, detail: Option<Arc<Captured>>) {
        self.text.clear();
        let texts = [
            line.request_id,
            beginning(line.method, MOST_METHOD),
            beginning(line.path, MOST_PATH),
            line.agent.unwrap_or_default(),
            line.client.unwrap_or_default(),
            beginning(line.reason.unwrap_or_default(), MOST_WORDS),
            line.error.unwrap_or_default(),
        ];
        self.text.reserve(texts.iter().map(|text| text.len()).sum());
        for (text, end) in texts.into_iter().zip(&mut self.ends) {
            self.text.push_str(text);
            *end = self.text.len();
        }
        (self.at, self.peer, self.status) = (line.at, line.peer, line.status);
        (self.errcode, self.retried, self.first_try) = (line.errcode, line.retried, line.first_try);
        (self.request_bytes, self.bytes, self.whole) = (line.request_bytes, line.bytes, line.whole);
        (self.token, self.upstream, self.total) = (line.token, line.upstream, line.total);
        self.detail = detail;
    }
}

/// As much of a text as fits.
fn beginning(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Which exchanges are wanted; all of them, unless it says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
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

impl Filter {
    /// Whether an exchange is wanted.
    pub fn passes(&self, exchange: &Exchange) -> bool {
        let is = |wanted: &Option<String>, name: &str| wanted.as_ref().is_none_or(|wanted| wanted == name);
        is(&self.agent, exchange.agent())
            && is(&self.request_id, exchange.request_id())
            && is(&self.client, exchange.client())
            && self.errcode.is_none_or(|errcode| exchange.errcode == Some(errcode))
            && self.status.as_ref().is_none_or(|statuses| statuses.contains(&exchange.status))
            && self.path.as_ref().is_none_or(|part| exchange.path().contains(&**part))
    }
}
