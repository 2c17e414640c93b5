//! The captured detail of an exchange as JSON.

use std::time::Duration;

use serde_json::{Value, json};

use super::milliseconds;
use crate::inspector::{AttemptDetail, CapturedMessage, ExchangeDetail};

/// The detail; times in milliseconds from the start of the request.
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

fn wait_json((start, duration): (Duration, Duration)) -> Value {
    json!({ "began_ms": milliseconds(start), "took_ms": milliseconds(duration) })
}

fn attempt_json(attempt: &AttemptDetail) -> Value {
    json!({
        "began_ms": milliseconds(attempt.started_after),
        "took_ms": attempt.time_to_header.map(milliseconds),
        "status": attempt.status,
        "errcode": attempt.errcode,
        "refused": attempt.refused_response.as_ref().map(message_json),
    })
}
