//! The proxy's own errors: kind, HTTP status, errcode, and a message that says what to do.

use std::time::Duration;

use http::StatusCode;

use crate::{
    request_body::RequestBodyError,
    upstream::{Delivery, UpstreamError, UpstreamErrorKind},
    wecom::errcode,
};

/// Kinds of the proxy's own errors.
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
    IdempotencyConflict,
    IdempotencyMismatch,
    InDoubt,
}

impl ErrorKind {
    /// Name in `X-Wecom-Proxy-Error`.
    pub(super) fn name(self) -> &'static str {
        self.attributes().0
    }

    /// HTTP status of the response.
    pub(super) fn status(self) -> StatusCode {
        self.attributes().1
    }

    /// Errcode in the response body.
    fn errcode(self) -> i64 {
        self.attributes().2
    }

    /// An error of this kind.
    pub(super) fn error(self, message: impl Into<String>) -> ProxyError {
        ProxyError {
            kind: self,
            message: message.into(),
            log_message: None,
            wrong_key: false,
            maybe_sent: false,
            errcode: self.errcode(),
            has_wecom_errcode: false,
            status: None,
            retry_after: None,
        }
    }

    /// Name, status and errcode.
    fn attributes(self) -> (&'static str, StatusCode, i64) {
        match self {
            Self::BadRequest => ("bad-request", StatusCode::BAD_REQUEST, errcode::INVALID_PARAMETER),
            Self::NoAgent => ("no-agent", StatusCode::BAD_REQUEST, errcode::INVALID_PARAMETER),
            Self::Unauthenticated => ("unauthenticated", StatusCode::UNAUTHORIZED, errcode::INVALID_SECRET),
            Self::Forbidden => ("forbidden", StatusCode::FORBIDDEN, errcode::API_FORBIDDEN),
            Self::UnknownAgent => ("unknown-agent", StatusCode::NOT_FOUND, errcode::INVALID_PARAMETER),
            Self::NoRoute => ("no-route", StatusCode::NOT_FOUND, errcode::INVALID_PARAMETER),
            Self::BodyTooLarge => ("body-too-large", StatusCode::PAYLOAD_TOO_LARGE, errcode::FILE_TOO_LARGE),
            Self::RateLimited => ("rate-limited", StatusCode::TOO_MANY_REQUESTS, errcode::RATE_LIMITED),
            // WeCom reports token and secret errors in HTTP 200; programs act on the errcode.
            Self::GettokenRefused => ("gettoken-refused", StatusCode::OK, errcode::INVALID_SECRET),
            Self::PassExpired => ("pass-expired", StatusCode::OK, errcode::TOKEN_EXPIRED),
            Self::PassInvalid => ("pass-invalid", StatusCode::OK, errcode::INVALID_TOKEN),
            Self::TokenUnavailable => ("token-unavailable", StatusCode::BAD_GATEWAY, errcode::BUSY),
            Self::UpstreamUnreachable => ("upstream-unreachable", StatusCode::BAD_GATEWAY, errcode::BUSY),
            Self::UpstreamFailed => ("upstream-broke", StatusCode::BAD_GATEWAY, errcode::BUSY),
            Self::Overloaded => ("overloaded", StatusCode::SERVICE_UNAVAILABLE, errcode::BUSY),
            Self::ShuttingDown => ("shutting-down", StatusCode::SERVICE_UNAVAILABLE, errcode::BUSY),
            Self::UpstreamTimeout => ("upstream-timeout", StatusCode::GATEWAY_TIMEOUT, errcode::BUSY),
            Self::IdempotencyConflict => {
                ("idempotency-conflict", StatusCode::CONFLICT, errcode::INVALID_PARAMETER)
            }
            Self::IdempotencyMismatch => {
                ("idempotency-mismatch", StatusCode::UNPROCESSABLE_ENTITY, errcode::INVALID_PARAMETER)
            }
            Self::InDoubt => ("in-doubt", StatusCode::CONFLICT, errcode::INVALID_PARAMETER),
        }
    }
}

/// An error of the proxy itself.
#[derive(Debug)]
pub(super) struct ProxyError {
    pub(super) kind: ErrorKind,
    /// Message for the client; contains no address, port, host or file.
    pub(super) message: String,
    /// Message for the log, which may contain them.
    log_message: Option<String>,
    pub(super) errcode: i64,
    /// Whether WeCom sent the errcode; else it only stands for the kind.
    pub(super) has_wecom_errcode: bool,
    pub(super) wrong_key: bool,
    /// Whether something of the request may have reached the upstream, whose response is not known.
    pub(super) maybe_sent: bool,
    pub(super) status: Option<StatusCode>,
    pub(super) retry_after: Option<Duration>,
}

impl ProxyError {
    /// Error for a request that arrives while the proxy shuts down or its connection closes. Nothing of it was sent.
    pub(super) fn shutting_down() -> Self {
        ErrorKind::ShuttingDown
            .error("the proxy is shutting down or closing this connection; retry on a new connection")
    }

    /// Error for a name or key that may be one of the state, which is not known.
    pub(super) fn state_unknown() -> Self {
        let message =
            "agents and clients are not all known yet, because the state cannot be read; retry later";
        ErrorKind::Overloaded.error(message).with_retry_after(Duration::from_secs(1))
    }

    /// Error for a body larger than `server.max_request_body`.
    pub(super) fn body_too_large(max_bytes: u64) -> Self {
        ErrorKind::BodyTooLarge
            .error(format!("request body larger than server.max_request_body ({max_bytes} bytes)"))
    }

    /// Error for a body that cannot be buffered for a retry. Nothing of the request was sent.
    pub(super) fn replay_budget_exhausted() -> Self {
        let message =
            "no room to buffer a request body of this size now (replay.memory, replay.disk); retry later";
        ErrorKind::Overloaded
            .error(message)
            .with_retry_after(Duration::from_secs(1))
            .with_log_message(format!("{message}; raise replay.disk if this recurs"))
    }

    /// Maps an upstream error; `max_body_bytes` is `server.max_request_body`.
    pub(super) fn from_upstream(error: &UpstreamError, max_body_bytes: u64) -> Self {
        let maybe_sent = error.delivery == Delivery::MaybeSent;
        Self { maybe_sent, ..Self::from_upstream_kind(error, max_body_bytes) }
    }

    fn from_upstream_kind(error: &UpstreamError, max_body_bytes: u64) -> Self {
        let kind = match &error.kind {
            UpstreamErrorKind::Unreachable(_) => ErrorKind::UpstreamUnreachable,
            UpstreamErrorKind::ResponseTimeout | UpstreamErrorKind::BodyTimeout => ErrorKind::UpstreamTimeout,
            UpstreamErrorKind::RequestBody(RequestBodyError::TooLarge) => {
                return Self::body_too_large(max_body_bytes);
            }
            UpstreamErrorKind::RequestBody(RequestBodyError::ReplayBudgetExceeded) => {
                return Self::replay_budget_exhausted();
            }
            UpstreamErrorKind::RequestBody(RequestBodyError::Stalled) => {
                let message = "request body stalled longer than server.body_timeout";
                return ErrorKind::BadRequest.error(message);
            }
            UpstreamErrorKind::RequestBody(RequestBodyError::Aborted) => {
                return ErrorKind::BadRequest.error("request body incomplete or malformed");
            }
            UpstreamErrorKind::RequestBody(RequestBodyError::ChunkOverhead) => {
                let message = "the chunk framing of the request body is larger than 64 KiB plus 16 times its data; send \
                               larger chunks, without extensions";
                return ErrorKind::BadRequest.error(message);
            }
            _ => ErrorKind::UpstreamFailed,
        };
        let summary = match kind {
            ErrorKind::UpstreamUnreachable => "WeCom unreachable",
            _ => "request to WeCom failed",
        };
        kind.error(format!("{summary}: {}", error.kind.public_message()))
            .with_log_message(format!("{summary}: {}", error.kind))
    }

    /// Sets a separate log message.
    pub(super) fn with_log_message(self, log_message: String) -> Self {
        Self { log_message: Some(log_message), ..self }
    }

    /// Sets a log message unless there is one.
    pub(super) fn or_log_message(self, log_message: String) -> Self {
        Self { log_message: self.log_message.or(Some(log_message)), ..self }
    }

    /// Rewrites what WeCom's errmsg may be part of.
    pub(super) fn map_messages(self, map: impl Fn(&str) -> String) -> Self {
        Self { message: map(&self.message), log_message: self.log_message.as_deref().map(map), ..self }
    }

    /// The log message.
    pub(super) fn into_log_message(self) -> String {
        self.log_message.unwrap_or(self.message)
    }

    /// Marks a wrong key or secret, so that the server delays the response against guessing.
    pub(super) fn with_wrong_key(self) -> Self {
        Self { wrong_key: true, ..self }
    }

    /// Sets an errcode more specific than the kind's.
    pub(super) fn with_errcode(self, errcode: i64) -> Self {
        Self { errcode, ..self }
    }

    /// Sets the errcode that WeCom sent.
    pub(super) fn with_wecom_errcode(self, errcode: i64) -> Self {
        Self { errcode, has_wecom_errcode: true, ..self }
    }

    /// Sets `Retry-After`.
    pub(super) fn with_retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// Sets a status more specific than the kind's.
    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self { status: Some(status), ..self }
    }
}
