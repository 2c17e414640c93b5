//! Errors of the API for agents and clients.

use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::response::{AdminBody, json_response};
use crate::{
    config,
    state::{ReadError, WriteError},
    tokens::{FetchError, ceil_seconds},
    wecom::errcode,
};

/// Why a request was not carried out. Boxed, because results are passed through many functions.
#[derive(Debug)]
pub(super) struct ApiError(Box<ErrorParts>);

#[derive(Debug)]
struct ErrorParts {
    status: StatusCode,
    body: Value,
    header: Option<(HeaderName, HeaderValue)>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self::with_body(status, json!({ "error": message.into() }))
    }

    fn with_body(status: StatusCode, body: Value) -> Self {
        Self(Box::new(ErrorParts { status, body, header: None }))
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
        self.0.header = Some((name, value));
        self
    }

    pub(super) fn into_response(self) -> Response<AdminBody> {
        let ErrorParts { status, body, header } = *self.0;
        let mut response = json_response(status, &body);
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// 422 in the words of `check`.
impl From<config::Error> for ApiError {
    fn from(config::Error { key, message, .. }: config::Error) -> Self {
        Self::invalid(key.as_deref().unwrap_or_default(), message.english())
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
