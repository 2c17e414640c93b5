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
    Admin,
    answer::{Body, json_response, of_type, problem},
    detail, milliseconds,
    overview::named,
};
use crate::{
    recent::{Captured, Exchange, Filter, Missing, Tail},
    wecom::errcode,
};

/// So many exchanges are shown where nobody says how many.
const DEFAULT_LIMIT: usize = 100;
/// How long a line may wait for others. The workers tell nobody that they have written: it would cost each request.
const PACE: Duration = Duration::from_millis(200);
/// After so long without a line the connection is shown to be alive.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A reader who takes nothing for so long is gone.
const STALL: Duration = Duration::from_secs(60);

impl Admin {
    /// The last exchanges, the newest first.
    pub(super) async fn requests(&self, query: Option<&str>) -> Response<Body> {
        let (filter, limit) = match read_query(query) {
            Ok(read) => read,
            Err(words) => return problem(StatusCode::BAD_REQUEST, &words),
        };
        let limit = limit.unwrap_or(DEFAULT_LIMIT).min(self.recent.most());
        let recent = self.recent.clone();
        // There may be very many.
        let told = tokio::task::spawn_blocking(move || {
            let tell = if filter.request_id.is_some() { tell_whole } else { tell };
            let exchanges: Vec<_> = recent.latest(&filter, limit).iter().map(tell).collect();
            json_response(StatusCode::OK, &json!({ "requests": exchanges }))
        });
        told.await.unwrap_or_else(|_| problem(StatusCode::INTERNAL_SERVER_ERROR, "the look-up broke off"))
    }

    /// The exchanges that come, as server-sent events.
    pub(super) fn stream<B>(&self, request: &Request<B>, cut: Arc<Notify>) -> Response<Body> {
        let filter = match read_query(request.uri().query()) {
            Ok((filter, None)) => filter,
            Ok((_, Some(_))) => return problem(StatusCode::BAD_REQUEST, "a stream has no limit"),
            Err(words) => return problem(StatusCode::BAD_REQUEST, &words),
        };
        let Ok(place) = self.readers.clone().try_acquire_owned() else {
            return problem(StatusCode::SERVICE_UNAVAILABLE, "as many read this stream already as may");
        };
        let (sender, pieces) = mpsc::channel(1);
        if *request.method() == Method::GET {
            let reader =
                Reader { filter, tail: self.recent.tail(), sender, said: Instant::now(), _place: place };
            let stopping = self.stopping.clone();
            tokio::spawn(async move {
                if reader.follow(stopping).await.is_err() {
                    cut.notify_one();
                }
            });
        }
        of_type("text/event-stream", Body::Stream(pieces))
    }
}

/// Whoever follows the stream.
struct Reader {
    filter: Filter,
    tail: Tail,
    sender: mpsc::Sender<Bytes>,
    /// When it was last told anything.
    said: Instant,
    _place: OwnedSemaphorePermit,
}

/// The reader takes nothing any more.
struct Stalled;

impl Reader {
    /// Tells what comes, until the reader leaves or the proxy stops.
    async fn follow(mut self, mut stopping: watch::Receiver<bool>) -> Result<(), Stalled> {
        let mut text = ": the exchanges from now on\n\n".to_owned();
        loop {
            if !text.is_empty() {
                self.said = Instant::now();
                match self.sender.send_timeout(Bytes::from(text), STALL).await {
                    Ok(()) => {}
                    Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Err(Stalled),
                    Err(mpsc::error::SendTimeoutError::Closed(_)) => return Ok(()),
                }
            }
            tokio::select! {
                () = sleep(PACE) => {}
                () = self.sender.closed() => return Ok(()),
                _ = stopping.wait_for(|stop| *stop) => return Ok(()),
            }
            text = self.news();
        }
    }

    /// What has come since the last time, as events; sometimes a sign of life.
    fn news(&mut self) -> String {
        let (exchanges, lost) = self.tail.read(&self.filter);
        let mut text = String::new();
        // A String takes whatever is written.
        if lost > 0 {
            let _ = write!(text, "event: lost\ndata: {}\n\n", json!({ "lost": lost }));
        }
        for exchange in &exchanges {
            let _ = write!(text, "data: {}\n\n", tell(exchange));
        }
        if text.is_empty() && self.said.elapsed() >= HEARTBEAT {
            text.push_str(":\n\n");
        }
        text
    }
}

/// One exchange; times in milliseconds, and seconds since 1970.
fn tell(exchange: &Exchange) -> Value {
    let at = exchange.at.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    // The proxy's own errors say themselves what to do.
    let is_wecoms = matches!(exchange.error(), "" | "token-unavailable");
    json!({
        "request_id": exchange.request_id(),
        "at": at.as_millis() as f64 / 1000.0,
        "peer": exchange.peer.map(|peer| peer.to_string()),
        "client": named(exchange.client()),
        "agent": named(exchange.agent()),
        "method": exchange.method(),
        "path": exchange.path(),
        "status": exchange.status,
        "errcode": exchange.errcode,
        "hint": exchange.errcode.filter(|errcode| is_wecoms && *errcode != errcode::OK).and_then(errcode::hint),
        "retried": exchange.retried,
        "first_try": exchange.first_try.map(|first| json!({
            "token_ms": milliseconds(first.token),
            "upstream_ms": milliseconds(first.upstream),
        })),
        "error": named(exchange.error()),
        "reason": named(exchange.reason()),
        "request_bytes": exchange.request_bytes,
        "bytes": exchange.bytes,
        "whole": exchange.whole,
        "token_ms": milliseconds(exchange.token),
        "upstream_ms": milliseconds(exchange.upstream),
        "total_ms": milliseconds(exchange.total),
        "has_detail": exchange.detail.as_ref().is_some_and(|detail| detail.missing().is_none()),
        "detail_missing": exchange.detail.as_ref().and_then(|detail| detail.missing()).map(Missing::as_str),
    })
}

/// The same, and what it looked like, where that was kept.
fn tell_whole(exchange: &Exchange) -> Value {
    // Whether there are details is known only once they were waited for.
    let shown = exchange.detail.as_deref().and_then(Captured::wait);
    let mut told = tell(exchange);
    told["detail"] = shown.map_or(Value::Null, detail::tell);
    told
}

/// The filter and the limit that a query names.
fn read_query(query: Option<&str>) -> Result<(Filter, Option<usize>), String> {
    let (mut filter, mut limit) = (Filter::default(), None);
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
            "status" => filter.status = Some(statuses(&value).ok_or_else(|| wrong("write 502 or 5xx"))?),
            "limit" => limit = Some(value.parse().map_err(|_| wrong("write a number like 100"))?),
            _ => return Err("there is agent, client, errcode, status, path, id and limit".to_owned()),
        }
    }
    Ok((filter, limit))
}

/// The first and the last status of `502` or `5xx`.
fn statuses(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
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
    fn a_query_says_what_is_wanted() {
        let (filter, limit) =
            read_query(Some("agent=hr&client=&errcode=-1&status=5xx&path=user%2Fget&limit=7"))
                .expect("a filter");
        let expected = Filter {
            agent: Some("hr".to_owned()),
            client: Some(String::new()),
            errcode: Some(-1),
            status: Some(500..=599),
            path: Some("user/get".to_owned()),
            request_id: None,
        };
        assert_eq!((filter, limit), (expected, Some(7)));
        assert_eq!(read_query(Some("status=0")).expect("a filter").0.status, Some(0..=0));
        for wrong in ["errcode=x", "status=5x", "status=99xx", "limit=-1", "agnet=hr", "=", "errcode="] {
            assert!(read_query(Some(wrong)).is_err(), "{wrong}");
        }
    }
}
