//! Calls that WeCom does not have: they return the request, without the token.

use serde_json::Value;

use super::response::ErrcodeJson;
use super::routes::{ApiRequest, HandlerResult};
use super::state::State;

/// Returns the request's head, and the length and hash of its body.
pub(super) fn echo(_: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let headers: Vec<[Value; 2]> = (request.head.headers.iter())
        .map(|(name, value)| [name.as_str().into(), String::from_utf8_lossy(value.as_bytes()).into()])
        .collect();
    ErrcodeJson::ok()
        .with("method", request.head.method.as_str())
        .with("path", request.head.uri.path())
        .with("query", request.query.without_tokens())
        .with("version", format!("{:?}", request.head.version))
        .with("headers", headers)
        .with("body_bytes", request.body.length)
        .with("body_sha256", &request.body.sha256)
        .into()
}

/// Returns the length and hash of the body.
pub(super) fn sink(_: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    ErrcodeJson::ok().with("body_bytes", request.body.length).with("body_sha256", &request.body.sha256).into()
}
