//! `/api/requests` and `/api/requests/stream`: recent exchanges, and new ones as server-sent events.

use std::{fmt::Write, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, watch},
    time::{Instant, sleep},
};

use super::{
    Admin,
    error::{AdminResult, ApiError},
    exchange_filter::{next_cursor, parse_filter},
    exchange_json::{exchange_json, exchange_json_with_detail},
    response::{AdminBody, json_response, with_content_type},
};
use crate::{
    blocking,
    inspector::{ExchangeFilter, ExchangeTail},
};

/// The number of exchanges in a response without `limit`.
const DEFAULT_LIMIT: usize = 100;
/// How often new exchanges are read. Workers do not notify readers, which would make each request slower.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The interval of comments that keep an idle stream alive.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);

impl Admin {
    /// The recent exchanges, the newest first.
    pub(super) async fn requests(self: Arc<Self>, query: Option<&str>) -> AdminResult {
        let (filter, limit) = parse_filter(query).map_err(ApiError::bad_request)?;
        let limit = limit.unwrap_or(DEFAULT_LIMIT).min(self.recent.capacity());
        // Blocking, because the buffer may be very large.
        let response = blocking::run_in_background(move || {
            let to_json = if filter.request_id.is_some() { exchange_json_with_detail } else { exchange_json };
            let exchanges = self.recent.latest(&filter, limit);
            let next = exchanges.last().filter(|_| exchanges.len() == limit).map(next_cursor);
            let listed: Vec<_> = exchanges.iter().map(|exchange| to_json(&self, exchange)).collect();
            json_response(StatusCode::OK, &json!({ "requests": listed, "next": next }))
        });
        Ok(response.await?)
    }

    /// New exchanges as server-sent events.
    pub(super) fn stream<B>(self: Arc<Self>, request: &Request<B>) -> AdminResult {
        let (filter, limit) = parse_filter(request.uri().query()).map_err(ApiError::bad_request)?;
        if filter.before.is_some() || limit.is_some() {
            return Err(ApiError::bad_request("a stream has no limit and no before"));
        }
        let permit = self.stream_permits.clone().try_acquire_owned();
        let permit =
            permit.map_err(|_| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too many stream readers"))?;
        let (sender, chunks) = mpsc::channel(1);
        if *request.method() == Method::GET {
            let reader = StreamReader {
                filter,
                tail: self.recent.tail(),
                admin: self.clone(),
                sender,
                last_sent: Instant::now(),
                _permit: permit,
            };
            tokio::spawn(reader.run(self.stopping.clone()));
        }
        let mut response = with_content_type("text/event-stream", AdminBody::Stream(chunks));
        // nginx holds responses back unless they say otherwise.
        response
            .headers_mut()
            .insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        Ok(response)
    }
}

/// A reader of the stream.
struct StreamReader {
    filter: ExchangeFilter,
    tail: ExchangeTail,
    admin: Arc<Admin>,
    sender: mpsc::Sender<Bytes>,
    /// When the last event or comment was sent.
    last_sent: Instant,
    _permit: OwnedSemaphorePermit,
}

impl StreamReader {
    /// Sends new exchanges until the reader disconnects or the proxy stops.
    async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        let mut text = ": new exchanges follow\n\n".to_owned();
        loop {
            if !text.is_empty() {
                self.last_sent = Instant::now();
                if self.sender.send(Bytes::from(text)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = sleep(POLL_INTERVAL) => {}
                () = self.sender.closed() => return,
                _ = stopping.wait_for(|stop| *stop) => return,
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
            let _ = write!(text, "data: {}\n\n", exchange_json(&self.admin, exchange));
        }
        if text.is_empty() && self.last_sent.elapsed() >= HEARTBEAT_INTERVAL {
            text.push_str(":\n\n");
        }
        text
    }
}
