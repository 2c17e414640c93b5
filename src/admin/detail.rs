//! What an exchange looked like, as JSON, for those whose agent an operator looks into.

use std::time::Duration;

use serde_json::{Value, json};

use super::milliseconds;
use crate::inspector::{AttemptDetail, CapturedMessage, ExchangeDetail};

/// Times in milliseconds from the request's beginning.
pub(super) fn detail_json(detail: &ExchangeDetail) -> Value {
    json!({
        "query": detail.query,
        "request": message_json(&detail.request),
        "answer": message_json(&detail.response),
        "waits": detail.token_waits.iter().map(|wait| wait_json(*wait)).collect::<Vec<_>>(),
        "tries": detail.attempts.iter().map(attempt_json).collect::<Vec<_>>(),
    })
}

fn message_json(message: &CapturedMessage) -> Value {
    json!({
        "headers": message.headers,
        "body": message.body,
        "cut": message.truncated,
        "binary": message.binary,
    })
}

fn wait_json((began, took): (Duration, Duration)) -> Value {
    json!({ "began_ms": milliseconds(began), "took_ms": milliseconds(took) })
}

fn attempt_json(sent: &AttemptDetail) -> Value {
    json!({
        "began_ms": milliseconds(sent.started_after),
        "took_ms": sent.time_to_header.map(milliseconds),
        "status": sent.status,
        "errcode": sent.errcode,
        "refused": sent.refused_response.as_ref().map(message_json),
    })
}
