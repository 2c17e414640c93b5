//! `/api/requests` and `/api/requests/stream`: the last exchanges, and those that come.

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

/// So many exchanges are shown where nobody says how many.
const DEFAULT_LIMIT: usize = 100;
/// How long a line may wait for others. The workers tell nobody that they have written: it would cost each request.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// After so long without a line the connection is shown to be alive.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
/// A reader who takes nothing for so long is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);

impl Admin {
    /// The last exchanges, the newest first.
    pub(super) async fn requests(&self, query: Option<&str>) -> Response<AdminBody> {
        let (filter, limit) = match parse_query(query) {
            Ok(read) => read,
            Err(words) => return error_response(StatusCode::BAD_REQUEST, &words),
        };
        let limit = limit.unwrap_or(DEFAULT_LIMIT).min(self.recent.capacity());
        let recent = self.recent.clone();
        // There may be very many.
        let told = tokio::task::spawn_blocking(move || {
            let tell = if filter.request_id.is_some() { exchange_json_with_detail } else { exchange_json };
            let exchanges: Vec<_> = recent.latest(&filter, limit).iter().map(tell).collect();
            json_response(StatusCode::OK, &json!({ "requests": exchanges }))
        });
        told.await
            .unwrap_or_else(|_| error_response(StatusCode::INTERNAL_SERVER_ERROR, "the look-up broke off"))
    }

    /// The exchanges that come, as server-sent events.
    pub(super) fn stream<B>(&self, request: &Request<B>, cut: Arc<Notify>) -> Response<AdminBody> {
        let filter = match parse_query(request.uri().query()) {
            Ok((filter, None)) => filter,
            Ok((_, Some(_))) => return error_response(StatusCode::BAD_REQUEST, "a stream has no limit"),
            Err(words) => return error_response(StatusCode::BAD_REQUEST, &words),
        };
        let Ok(place) = self.stream_permits.clone().try_acquire_owned() else {
            return error_response(
                StatusCode::SERVICE_UNAVAILABLE,
                "as many read this stream already as may",
            );
        };
        let (sender, pieces) = mpsc::channel(1);
        if *request.method() == Method::GET {
            let reader = StreamReader {
                filter,
                tail: self.recent.tail(),
                sender,
                last_sent: Instant::now(),
                _permit: place,
            };
            let stopping = self.stopping.clone();
            tokio::spawn(async move {
                if reader.run(stopping).await.is_err() {
                    cut.notify_one();
                }
            });
        }
        with_content_type("text/event-stream", AdminBody::Stream(pieces))
    }
}

/// Whoever follows the stream.
struct StreamReader {
    filter: ExchangeFilter,
    tail: ExchangeTail,
    sender: mpsc::Sender<Bytes>,
    /// When it was last told anything.
    last_sent: Instant,
    _permit: OwnedSemaphorePermit,
}

/// The reader takes nothing any more.
struct Stalled;

impl StreamReader {
    /// Tells what comes, until the reader leaves or the proxy stops.
    async fn run(mut self, mut stopping: watch::Receiver<bool>) -> Result<(), Stalled> {
        let mut text = ": the exchanges from now on\n\n".to_owned();
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

    /// What has come since the last time, as events; sometimes a sign of life.
    fn next_events(&mut self) -> String {
        let (exchanges, lost) = self.tail.read(&self.filter);
        let mut text = String::new();
        // A String takes whatever is written.
        if lost > 0 {
            let _ = write!(text, "event: lost\ndata: {}\n\n", json!({ "lost": lost }));
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

/// One exchange; times in milliseconds, and seconds since 1970.
fn exchange_json(exchange: &Exchange) -> Value {
    let at = exchange.ended_at.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    // The proxy's own errors say themselves what to do.
    let is_wecoms = matches!(exchange.error(), "" | "token-unavailable");
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
        "hint": exchange.errcode.filter(|errcode| is_wecoms && *errcode != errcode::OK).and_then(errcode::hint),
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

/// The same, and what it looked like, where that was kept.
fn exchange_json_with_detail(exchange: &Exchange) -> Value {
    // Whether there are details is known only once they were waited for.
    let shown = exchange.detail.as_deref().and_then(DetailCell::wait);
    let mut told = exchange_json(exchange);
    told["detail"] = shown.map_or(Value::Null, detail::detail_json);
    told
}

/// The filter and the limit that a query names.
fn parse_query(query: Option<&str>) -> Result<(ExchangeFilter, Option<usize>), String> {
    let (mut filter, mut limit) = (ExchangeFilter::default(), None);
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    for pair in pairs {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = value.replace('+', " ");
        let value = percent_decode_str(&value).decode_utf8_lossy().into_owned();
        let wrong = |what: &str| format!("{name}: {what}");
        match name {
            "agent" => filter.agent = Some(value),
            "client" => filter.client = Some(value),
            "path" => filter.path = Some(value),
            "id" => filter.request_id = Some(value),
            "errcode" => {
                filter.errcode = Some(value.parse().map_err(|_| wrong("write a number like 60020"))?);
            }
            "status" => {
                filter.status = Some(parse_status_range(&value).ok_or_else(|| wrong("write 502 or 5xx"))?)
            }
            "limit" => limit = Some(value.parse().map_err(|_| wrong("write a number like 100"))?),
            _ => return Err("there is agent, client, errcode, status, path, id and limit".to_owned()),
        }
    }
    Ok((filter, limit))
}

/// The first and the last status of `502` or `5xx`.
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
        for wrong in ["errcode=x", "status=5x", "status=99xx", "limit=-1", "agnet=hr", "=", "errcode="] {
            assert!(parse_query(Some(wrong)).is_err(), "{wrong}");
        }
    }
}
