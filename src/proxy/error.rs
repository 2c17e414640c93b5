//! The proxy's own errors: which kind, which status and errcode, and words that say what to do.

use std::{fmt::Write as _, time::Duration};

use bytes::Bytes;
use http::StatusCode;

use super::response::Response;
use crate::wecom::errcode;

/// The kinds of error that the proxy itself answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorKind {
    BadRequest,
    NoAgent,
    Unauthenticated,
    Forbidden,
    UnknownAgent,
    NoRoute,
    BodyTooLarge,
    RateLimited,
    GettokenRefused,
    PassExpired,
    PassInvalid,
    TokenUnavailable,
    UpstreamUnreachable,
    UpstreamFailed,
    Overloaded,
    ShuttingDown,
    UpstreamTimeout,
}

impl ErrorKind {
    /// Its name in `X-Wecom-Proxy-Error`, its HTTP status and its errcode.
    pub(super) fn attributes(self) -> (&'static str, StatusCode, i64) {
        match self {
            Self::BadRequest => ("bad-request", StatusCode::BAD_REQUEST, errcode::INVALID_PARAMETER),
            Self::NoAgent => ("no-agent", StatusCode::BAD_REQUEST, errcode::INVALID_PARAMETER),
            Self::Unauthenticated => ("unauthenticated", StatusCode::UNAUTHORIZED, errcode::INVALID_SECRET),
            Self::Forbidden => ("forbidden", StatusCode::FORBIDDEN, errcode::API_FORBIDDEN),
            Self::UnknownAgent => ("unknown-agent", StatusCode::NOT_FOUND, errcode::INVALID_PARAMETER),
            Self::NoRoute => ("no-route", StatusCode::NOT_FOUND, errcode::INVALID_PARAMETER),
            Self::BodyTooLarge => ("body-too-large", StatusCode::PAYLOAD_TOO_LARGE, errcode::FILE_TOO_LARGE),
            Self::RateLimited => ("rate-limited", StatusCode::TOO_MANY_REQUESTS, errcode::RATE_LIMITED),
            // What WeCom itself says of tokens and secrets it says in HTTP 200, and programs act on the errcode.
            Self::GettokenRefused => ("gettoken-refused", StatusCode::OK, errcode::INVALID_SECRET),
            Self::PassExpired => ("pass-expired", StatusCode::OK, errcode::TOKEN_EXPIRED),
            Self::PassInvalid => ("pass-invalid", StatusCode::OK, errcode::INVALID_TOKEN),
            Self::TokenUnavailable => ("token-unavailable", StatusCode::BAD_GATEWAY, errcode::BUSY),
            Self::UpstreamUnreachable => ("upstream-unreachable", StatusCode::BAD_GATEWAY, errcode::BUSY),
            Self::UpstreamFailed => ("upstream-broke", StatusCode::BAD_GATEWAY, errcode::BUSY),
            Self::Overloaded => ("overloaded", StatusCode::SERVICE_UNAVAILABLE, errcode::BUSY),
            Self::ShuttingDown => ("shutting-down", StatusCode::SERVICE_UNAVAILABLE, errcode::BUSY),
            Self::UpstreamTimeout => ("upstream-timeout", StatusCode::GATEWAY_TIMEOUT, errcode::BUSY),
        }
    }
}

/// One such error.
#[derive(Debug)]
pub(super) struct ProxyError {
    pub(super) kind: ErrorKind,
    /// For the caller: no address, port, host or file of this machine or its network.
    message: String,
    /// For the log, where it may tell more.
    log_message: Option<String>,
    pub(super) errcode: i64,
    wrong_key: bool,
    status: Option<StatusCode>,
    retry_after: Option<Duration>,
}

impl ProxyError {
    /// A refusal with the errcode of its kind.
    pub(super) fn new(kind: ErrorKind, words: impl Into<String>) -> Self {
        Self {
            kind,
            message: words.into(),
            log_message: None,
            wrong_key: false,
            errcode: kind.attributes().2,
            status: None,
            retry_after: None,
        }
    }

    /// The refusal of a request that comes when the proxy is to stop, or when its connection is. Nothing of it was sent.
    pub(super) fn shutting_down() -> Self {
        Self::new(
            ErrorKind::ShuttingDown,
            "the proxy is shutting down, or closes this connection; send the request again, on a new connection",
        )
    }

    /// The same with other words for the log.
    pub(super) fn with_log_message(self, detail: String) -> Self {
        Self { log_message: Some(detail), ..self }
    }

    /// What the log says of it.
    pub(super) fn into_log_message(self) -> String {
        self.log_message.unwrap_or(self.message)
    }

    /// The same for a key or secret that was shown and is none: guessing is slowed down.
    pub(super) fn with_wrong_key(self) -> Self {
        Self { wrong_key: true, ..self }
    }

    /// The same with WeCom's own errcode.
    pub(super) fn with_errcode(self, errcode: i64) -> Self {
        Self { errcode, ..self }
    }

    /// The same with advice when to come again.
    pub(super) fn with_retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// The same with a status that says more than its kind's.
    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self { status: Some(status), ..self }
    }

    /// As an answer to this request; with HTTP 200 for a client that looks only at errcode. Under the id the log tells more.
    pub(super) fn to_response(&self, always_200: bool, request_id: &str) -> Response {
        let (name, status, _) = self.kind.attributes();
        let status = if always_200 { StatusCode::OK } else { self.status.unwrap_or(status) };
        let mut errmsg = format!("wecom-proxy: {}", self.message);
        // A caller's own mistake is explained to the caller; what else went wrong stands in the log.
        if self.kind.attributes().1.is_server_error() {
            let _ = write!(errmsg, " (request id {request_id})");
        }
        let body = serde_json::json!({ "errcode": self.errcode, "errmsg": errmsg });
        let mut reply = Response::local(status, Bytes::from(body.to_string()));
        reply.wrong_key = self.wrong_key;
        reply.headers.append(b"x-wecom-proxy-error", name.as_bytes());
        if self.kind == ErrorKind::Unauthenticated {
            let ways = "Bearer realm=\"wecom-proxy\", Basic realm=\"wecom-proxy\", charset=\"UTF-8\"";
            reply.headers.append(b"www-authenticate", ways.as_bytes());
        }
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
            reply.headers.append(b"retry-after", itoa::Buffer::new().format(seconds).as_bytes());
        }
        reply
    }
}
