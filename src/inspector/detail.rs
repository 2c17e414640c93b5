//! Redacted details of a captured exchange.

use std::time::Duration;

/// Headers and body excerpts of one exchange.
#[derive(Debug, Default)]
pub struct ExchangeDetail {
    /// The query.
    pub query: String,
    /// Whether the query is longer than what is kept of it.
    pub query_truncated: bool,
    /// Whether the request's body was received to its end; false if the request was refused before.
    pub request_ended: bool,
    /// The request as received.
    pub request: CapturedMessage,
    /// The response as sent to the client.
    pub response: CapturedMessage,
    /// Waits for a token: offset from the start of the request, and duration.
    pub token_waits: Vec<(Duration, Duration)>,
    /// Attempts at the upstream, in order.
    pub attempts: Vec<AttemptDetail>,
}

/// Headers and a body excerpt.
#[derive(Debug, Default, Clone)]
pub struct CapturedMessage {
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// Start of the body, up to the size limit or the first non-text byte.
    pub body: String,
    /// Whether the captured body is longer than the excerpt.
    pub truncated: bool,
    /// Whether binary data follows the excerpt.
    pub binary: bool,
}

/// One attempt at the upstream.
#[derive(Debug, Clone)]
pub struct AttemptDetail {
    /// Offset from the start of the request.
    pub started_after: Duration,
    /// Time to the response head; `None` without a response.
    pub time_to_header: Option<Duration>,
    /// HTTP status of the response; 0 without a response.
    pub status: u16,
    /// Errcode of the response.
    pub errcode: Option<i64>,
    /// The response, if it was not forwarded to the client.
    pub refused_response: Option<CapturedMessage>,
}
