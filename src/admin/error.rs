//! Errors of the admin listener, and their responses.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::{sync::oneshot::error::RecvError, time::Instant};

use super::response::{AdminBody, json_response};
use crate::{
    config,
    state::{ReadError, WriteError},
    tokens::{FetchError, ceil_seconds},
    wecom::errcode,
};

/// The response to a request, or why it was not carried out.
pub(super) type AdminResult = Result<Response<AdminBody>, ApiError>;

/// Why a request was not carried out. Boxed, because results are passed through many functions.
#[derive(Debug)]
pub(super) struct ApiError(Box<ErrorParts>);

#[derive(Debug)]
struct ErrorParts {
    status: StatusCode,
    body: Value,
    headers: HeaderMap,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self::with_body(status, json!({ "error": message.into() }))
    }

    fn with_body(status: StatusCode, body: Value) -> Self {
        Self(Box::new(ErrorParts { status, body, headers: HeaderMap::new() }))
    }

    /// 400.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404.
    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 405: the method is not one of `methods`.
    pub(super) fn method_not_allowed(methods: &'static str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("method not allowed, use {methods}"))
            .with_header(header::ALLOW, HeaderValue::from_static(methods))
    }

    /// 422: the value of a key is not valid.
    pub(super) fn invalid(key: &str, reason: &str) -> Self {
        let body = json!({ "error": format!("{key}: {reason}"), "key": key, "reason": reason });
        Self::with_body(StatusCode::UNPROCESSABLE_ENTITY, body)
    }

    /// 422: WeCom gave no token for the credentials. 429: it was not asked.
    pub(super) fn not_verified(key: &str, error: &FetchError) -> Self {
        if let FetchError::Throttled { retry_at } = error {
            let wait = ceil_seconds(retry_at.saturating_duration_since(Instant::now())).max(1);
            let reason = format!(
                "was not verified: too many secrets were wrong lately, and WeCom bans addresses for that; try again in {wait} s"
            );
            let body = json!({ "error": format!("{key}: {reason}"), "key": key, "reason": reason });
            return Self::with_body(StatusCode::TOO_MANY_REQUESTS, body)
                .with_header(header::RETRY_AFTER, HeaderValue::from(wait));
        }
        let reason = error.public_message();
        let body = json!({
            "error": format!("{key}: {reason}"),
            "key": key,
            "reason": reason,
            "errcode": error.errcode(),
            "hint": errcode::hint(error.errcode()),
        });
        Self::with_body(StatusCode::UNPROCESSABLE_ENTITY, body)
    }

    /// 503: the state cannot be read or written now.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
            .with_header(header::RETRY_AFTER, HeaderValue::from_static("1"))
    }

    /// 503: other requests came first each time.
    pub(super) fn busy() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "other requests change it all the time; read it and try again",
        )
        .with_header(header::RETRY_AFTER, HeaderValue::from_static("1"))
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.append(name, value);
        self
    }

    pub(super) fn into_response(self) -> Response<AdminBody> {
        let ErrorParts { status, body, headers } = *self.0;
        let mut response = json_response(status, &body);
        response.headers_mut().extend(headers);
        response
    }
}

/// 422 in the words of `check`.
impl From<config::Error> for ApiError {
    fn from(config::Error { key, message, .. }: config::Error) -> Self {
        Self::invalid(key.as_deref().unwrap_or_default(), message.english())
    }
}

/// 500: the work panicked.
impl From<RecvError> for ApiError {
    fn from(_: RecvError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "lookup failed")
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        Self::unavailable(error.to_string())
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        let message = error.to_string();
        match error {
            WriteError::Full(_) => Self::new(StatusCode::INSUFFICIENT_STORAGE, message),
            WriteError::Conflict { .. } => Self::new(
                StatusCode::CONFLICT,
                "changed by other requests all the time; read it and try again",
            ),
            _ => Self::unavailable(message),
        }
    }
}
