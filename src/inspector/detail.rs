//! What an exchange looked like, where an operator wanted to see it. All secrets have been taken out.

use std::time::Duration;

/// Header lines and the beginnings of the bodies of one exchange.
#[derive(Debug, Default)]
pub struct ExchangeDetail {
    /// The query.
    pub query: String,
    /// What the caller sent.
    pub request: CapturedMessage,
    /// What the caller got.
    pub response: CapturedMessage,
    /// When the request waited for a token: from its beginning, and how long.
    pub token_waits: Vec<(Duration, Duration)>,
    /// What was sent to the upstream, in order.
    pub attempts: Vec<AttemptDetail>,
}

/// Header lines, and the beginning of a body.
#[derive(Debug, Default, Clone)]
pub struct CapturedMessage {
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// As much of the body as was kept, up to the first byte that is no text.
    pub body: String,
    /// Whether it is longer, as far as it was seen.
    pub truncated: bool,
    /// Whether what follows is no text.
    pub binary: bool,
}

/// One sending to the upstream.
#[derive(Debug, Clone)]
pub struct AttemptDetail {
    /// When it was sent, from the request's beginning.
    pub started_after: Duration,
    /// How long its answer's head took; `None` where there was none.
    pub time_to_header: Option<Duration>,
    /// The answer's HTTP status; 0 where there was none.
    pub status: u16,
    /// The answer's errcode.
    pub errcode: Option<i64>,
    /// The answer, where it did not go on to the caller.
    pub refused_response: Option<CapturedMessage>,
}
