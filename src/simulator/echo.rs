//! Calls that WeCom does not have: they say what came, without the token.

use serde_json::Value;

use super::response::{ErrcodeJson, SimulatedResponse};
use super::routes::ApiRequest;
use super::state::State;

/// All that came; of the body its length and hash.
pub(super) fn echo(_: &mut State, sent: &ApiRequest<'_>) -> SimulatedResponse {
    let headers: Vec<[Value; 2]> = (sent.head.headers.iter())
        .map(|(name, value)| [name.as_str().into(), String::from_utf8_lossy(value.as_bytes()).into()])
        .collect();
    ErrcodeJson::ok()
        .with("method", sent.head.method.as_str())
        .with("path", sent.head.uri.path())
        .with("query", sent.query.without_tokens())
        .with("version", format!("{:?}", sent.head.version))
        .with("headers", headers)
        .with("body_bytes", sent.body.length)
        .with("body_sha256", &sent.body.sha256)
        .into()
}

/// The body's length and hash.
pub(super) fn sink(_: &mut State, sent: &ApiRequest<'_>) -> SimulatedResponse {
    ErrcodeJson::ok().with("body_bytes", sent.body.length).with("body_sha256", &sent.body.sha256).into()
}
