//! What an exchange looked like, as JSON, for those whose agent an operator looks into.

use std::time::Duration;

use serde_json::{Value, json};

use super::milliseconds;
use crate::recent::{Detail, Message, Try};

/// Times in milliseconds from the request's beginning.
pub(super) fn tell(detail: &Detail) -> Value {
    json!({
        "query": detail.query,
        "request": tell_message(&detail.request),
        "answer": tell_message(&detail.answer),
        "waits": detail.waits.iter().map(|wait| tell_wait(*wait)).collect::<Vec<_>>(),
        "tries": detail.tries.iter().map(tell_try).collect::<Vec<_>>(),
    })
}

fn tell_message(message: &Message) -> Value {
    json!({
        "headers": message.headers,
        "body": message.body,
        "cut": message.cut,
        "binary": message.binary,
    })
}

fn tell_wait((began, took): (Duration, Duration)) -> Value {
    json!({ "began_ms": milliseconds(began), "took_ms": milliseconds(took) })
}

fn tell_try(sent: &Try) -> Value {
    json!({
        "began_ms": milliseconds(sent.began),
        "took_ms": sent.took.map(milliseconds),
        "status": sent.status,
        "errcode": sent.errcode,
        "refused": sent.refused.as_ref().map(tell_message),
    })
}
