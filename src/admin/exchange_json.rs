//! An exchange as JSON.

use serde_json::{Value, json};

use super::{Admin, detail, milliseconds};
use crate::{
    inspector::{DetailCell, DropReason, Exchange, redact::MASK},
    secret::credential_scan::may_be_credential,
    telemetry::metrics::FailureClass,
    time::clock,
    wecom::errcode,
};

/// In `admin.trace_url`, stands for the id.
const TRACE_ID_PLACEHOLDER: &str = "{trace_id}";
/// A longer name in a query is masked.
const MAX_NAME_BYTES: usize = 64;

/// An exchange as JSON; durations in milliseconds, `at` in seconds since 1970.
pub(super) fn exchange_json(admin: &Admin, exchange: &Exchange) -> Value {
    let (entry, detail) = (exchange.entry(), exchange.detail.as_ref());
    let at = clock::since_epoch(entry.ended_at);
    json!({
        "request_id": entry.request_id,
        "trace_id": entry.trace_id,
        "trace_url": entry.trace_id.and_then(|id| Some(trace_link(admin.trace_url.as_deref()?, id))),
        "at": at.as_millis() as f64 / 1000.0,
        "peer": entry.peer.map(|peer| peer.to_string()),
        "client": entry.client,
        "agent": entry.agent,
        "method": entry.method,
        "path": entry.path,
        "status": entry.status,
        "errcode": entry.errcode,
        "failure": FailureClass::of(&entry).map(FailureClass::as_str),
        // The proxy's own errors need no hint: their reason says what to do.
        "hint": entry.errcode.filter(|_| entry.is_wecom_errcode).and_then(errcode::hint),
        "untrusted_address": entry.known_untrusted_address().map(|address| address.to_string()),
        "retried": entry.retried,
        "first_try": entry.first_attempt.map(|first| json!({
            "token_ms": milliseconds(first.token_time),
            "upstream_ms": milliseconds(first.upstream_time),
        })),
        "error": entry.error,
        "reason": entry.reason,
        "request_bytes": entry.request_bytes,
        "bytes": entry.response_bytes,
        "whole": entry.complete,
        "token_ms": milliseconds(entry.token_time),
        "upstream_ms": milliseconds(entry.upstream_time),
        "total_ms": milliseconds(entry.total_time),
        "has_detail": detail.is_some_and(|detail| detail.drop_reason().is_none()),
        "detail_missing": detail.and_then(|detail| detail.drop_reason()).map(DropReason::as_str),
    })
}

/// An exchange as JSON, with the names in its query, and its captured detail if there is one.
pub(super) fn exchange_json_with_detail(admin: &Admin, exchange: &Exchange) -> Value {
    // Waits first: `exchange_json` can tell whether the detail was dropped only when its redaction is done.
    let detail = exchange.detail.as_deref().and_then(DetailCell::wait);
    let mut json = exchange_json(admin, exchange);
    json["query_names"] = query_names(admin, exchange.entry().query.0).into();
    json["detail"] = detail.map_or(Value::Null, detail::detail_json);
    json
}

fn trace_link(template: &str, trace_id: &str) -> String {
    match template.contains(TRACE_ID_PLACEHOLDER) {
        true => template.replace(TRACE_ID_PLACEHOLDER, trace_id),
        false => format!("{template}{trace_id}"),
    }
}

/// The names in a query; those that may be a secret, put in the wrong place, are masked.
fn query_names(admin: &Admin, names: &str) -> Vec<String> {
    let directory = admin.directory.load();
    let is_name_char =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'[' | b']');
    let is_harmless = |name: &str| {
        name.len() <= MAX_NAME_BYTES
            && name.bytes().all(is_name_char)
            && !may_be_credential(name.as_bytes())
            && directory.client_by_key(name).is_none()
    };
    let names = names.split('&').filter(|name| !name.is_empty());
    names.map(|name| if is_harmless(name) { name } else { MASK }.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_link_has_the_id_at_its_place_or_at_the_end() {
        assert_eq!(trace_link("https://t/trace/{trace_id}?x=1", "0af7"), "https://t/trace/0af7?x=1");
        assert_eq!(trace_link("https://t/trace/", "0af7"), "https://t/trace/0af7");
    }
}
