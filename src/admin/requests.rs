//! `/api/requests` and `/api/requests/stream`: recent exchanges, and new ones as server-sent events.

use std::{fmt::Write, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, mpsc, watch},
    time::{Instant, sleep},
};

use super::{
    Admin, detail, milliseconds,
    overview::non_empty,
    response::{AdminBody, error_response, json_response, with_content_type},
};
use crate::{
    inspector::{DetailCell, DropReason, Exchange, ExchangeFilter, ExchangeTail},
    wecom::errcode,
};

/// The number of exchanges in a response without `limit`.
const DEFAULT_LIMIT: usize = 100;
/// How often new exchanges are read. Workers do not notify readers, which would make each request slower.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The interval of comments that keep an idle stream alive.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
/// A reader that receives nothing for this time is disconnected.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);

impl Admin {
    /// The recent exchanges, the newest first.
    pub(super) async fn requests(&self, query: Option<&str>) -> Response<AdminBody> {
        let (filter, limit) = match parse_query(query) {
            Ok(query) => query,
            Err(message) => return error_response(StatusCode::BAD_REQUEST, &message),
        };
        let limit = limit.unwrap_or(DEFAULT_LIMIT).min(self.recent.capacity());
        let recent = self.recent.clone();
        // Blocking, because the buffer may be very large.
        let response = tokio::task::spawn_blocking(move || {
            let to_json = if filter.request_id.is_some() { exchange_json_with_detail } else { exchange_json };
            let exchanges: Vec<_> = recent.latest(&filter, limit).iter().map(to_json).collect();
            json_response(StatusCode::OK, &json!({ "requests": exchanges }))
        });
        response.await.unwrap_or_else(|_| error_response(StatusCode::INTERNAL_SERVER_ERROR, "lookup failed"))
    }

    /// New exchanges as server-sent events. `close` is notified when the reader is stalled.
    pub(super) fn stream<B>(&self, request: &Request<B>, close: Arc<Notify>) -> Response<AdminBody> {
        let filter = match parse_query(request.uri().query()) {
            Ok((filter, None)) => filter,
            Ok((_, Some(_))) => return error_response(StatusCode::BAD_REQUEST, "a stream has no limit"),
            Err(message) => return error_response(StatusCode::BAD_REQUEST, &message),
        };
        let Ok(permit) = self.stream_permits.clone().try_acquire_owned() else {
            return error_response(StatusCode::SERVICE_UNAVAILABLE, "too many stream readers");
        };
        let (sender, chunks) = mpsc::channel(1);
        if *request.method() == Method::GET {
            let reader = StreamReader {
                filter,
                tail: self.recent.tail(),
                sender,
                last_sent: Instant::now(),
                _permit: permit,
            };
            let stopping = self.stopping.clone();
            tokio::spawn(async move {
                if reader.run(stopping).await.is_err() {
                    close.notify_one();
                }
            });
        }
        with_content_type("text/event-stream", AdminBody::Stream(chunks))
    }
}

/// A reader of the stream.
struct StreamReader {
    filter: ExchangeFilter,
    tail: ExchangeTail,
    sender: mpsc::Sender<Bytes>,
    /// When the last event or comment was sent.
    last_sent: Instant,
    _permit: OwnedSemaphorePermit,
}

/// The reader received nothing for [`SEND_TIMEOUT`].
struct Stalled;

impl StreamReader {
    /// Sends new exchanges until the reader disconnects or the proxy stops.
    async fn run(mut self, mut stopping: watch::Receiver<bool>) -> Result<(), Stalled> {
        let mut text = ": new exchanges follow\n\n".to_owned();
        loop {
            if !text.is_empty() {
                self.last_sent = Instant::now();
                match self.sender.send_timeout(Bytes::from(text), SEND_TIMEOUT).await {
                    Ok(()) => {}
                    Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Err(Stalled),
                    Err(mpsc::error::SendTimeoutError::Closed(_)) => return Ok(()),
                }
            }
            tokio::select! {
                () = sleep(POLL_INTERVAL) => {}
                () = self.sender.closed() => return Ok(()),
                _ = stopping.wait_for(|stop| *stop) => return Ok(()),
            }
            text = self.next_events();
        }
    }

    /// The exchanges since the last call as events, or a heartbeat comment if it is due.
    fn next_events(&mut self) -> String {
        let (exchanges, skipped) = self.tail.read(&self.filter);
        let mut text = String::new();
        // Writing to a String cannot fail.
        if skipped > 0 {
            let _ = write!(text, "event: lost\ndata: {}\n\n", json!({ "lost": skipped }));
        }
        for exchange in &exchanges {
            let _ = write!(text, "data: {}\n\n", exchange_json(exchange));
        }
        if text.is_empty() && self.last_sent.elapsed() >= HEARTBEAT_INTERVAL {
            text.push_str(":\n\n");
        }
        text
    }
}

/// An exchange as JSON; durations in milliseconds, `at` in seconds since 1970.
fn exchange_json(exchange: &Exchange) -> Value {
    let at = exchange.ended_at.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    // The proxy's own errors need no hint: their reason says what to do.
    let is_wecom_error = matches!(exchange.error(), "" | "token-unavailable");
    json!({
        "request_id": exchange.request_id(),
        "at": at.as_millis() as f64 / 1000.0,
        "peer": exchange.peer.map(|peer| peer.to_string()),
        "client": non_empty(exchange.client()),
        "agent": non_empty(exchange.agent()),
        "method": exchange.method(),
        "path": exchange.path(),
        "status": exchange.status,
        "errcode": exchange.errcode,
        "hint": exchange.errcode.filter(|errcode| is_wecom_error && *errcode != errcode::OK).and_then(errcode::hint),
        "retried": exchange.retried,
        "first_try": exchange.first_attempt.map(|first| json!({
            "token_ms": milliseconds(first.token_time),
            "upstream_ms": milliseconds(first.upstream_time),
        })),
        "error": non_empty(exchange.error()),
        "reason": non_empty(exchange.reason()),
        "request_bytes": exchange.request_bytes,
        "bytes": exchange.response_bytes,
        "whole": exchange.complete,
        "token_ms": milliseconds(exchange.token_time),
        "upstream_ms": milliseconds(exchange.upstream_time),
        "total_ms": milliseconds(exchange.total_time),
        "has_detail": exchange.detail.as_ref().is_some_and(|detail| detail.drop_reason().is_none()),
        "detail_missing": exchange.detail.as_ref().and_then(|detail| detail.drop_reason()).map(DropReason::as_str),
    })
}

/// An exchange as JSON, with its captured detail if there is one.
fn exchange_json_with_detail(exchange: &Exchange) -> Value {
    // Waits first: `exchange_json` can tell whether the detail was dropped only when its redaction is done.
    let detail = exchange.detail.as_deref().and_then(DetailCell::wait);
    let mut json = exchange_json(exchange);
    json["detail"] = detail.map_or(Value::Null, detail::detail_json);
    json
}

/// Parses the filter and the limit of a query.
fn parse_query(query: Option<&str>) -> Result<(ExchangeFilter, Option<usize>), String> {
    let (mut filter, mut limit) = (ExchangeFilter::default(), None);
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    for pair in pairs {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = value.replace('+', " ");
        let value = percent_decode_str(&value).decode_utf8_lossy().into_owned();
        let error = |hint: &str| format!("{name}: {hint}");
        match name {
            "agent" => filter.agent = Some(value),
            "client" => filter.client = Some(value),
            "path" => filter.path = Some(value),
            "id" => filter.request_id = Some(value),
            "errcode" => {
                filter.errcode = Some(value.parse().map_err(|_| error("write a number like 60020"))?);
            }
            "status" => {
                filter.status = Some(parse_status_range(&value).ok_or_else(|| error("write 502 or 5xx"))?)
            }
            "limit" => limit = Some(value.parse().map_err(|_| error("write a number like 100"))?),
            _ => {
                return Err(
                    "unknown parameter; use agent, client, errcode, status, path, id or limit".to_owned()
                );
            }
        }
    }
    Ok((filter, limit))
}

/// Parses `502` or `5xx`.
fn parse_status_range(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    match text.strip_suffix("xx") {
        Some(class) => {
            class.parse().ok().filter(|class| *class < 10).map(|class: u16| class * 100..=class * 100 + 99)
        }
        None => text.parse().ok().map(|status: u16| status..=status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_query_reads_filter_and_limit() {
        let (filter, limit) =
            parse_query(Some("agent=hr&client=&errcode=-1&status=5xx&path=user%2Fget&limit=7"))
                .expect("a filter");
        let expected = ExchangeFilter {
            agent: Some("hr".to_owned()),
            client: Some(String::new()),
            errcode: Some(-1),
            status: Some(500..=599),
            path: Some("user/get".to_owned()),
            request_id: None,
        };
        assert_eq!((filter, limit), (expected, Some(7)));
        assert_eq!(parse_query(Some("status=0")).expect("a filter").0.status, Some(0..=0));
        for invalid in ["errcode=x", "status=5x", "status=99xx", "limit=-1", "agnet=hr", "=", "errcode="] {
            assert!(parse_query(Some(invalid)).is_err(), "{invalid}");
        }
    }
}
