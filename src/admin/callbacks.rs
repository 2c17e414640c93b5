//! `/api/callbacks`: the targets of callbacks, dead letters, redelivery; and their metrics. Shows no message.

use std::sync::Arc;

use http::{Method, Request, StatusCode, header};
use serde_json::json;

use super::{
    Admin,
    error::{AdminResult, ApiError},
    query::{parameters, parse_limit},
    response::json_response,
};
use crate::{
    callbacks::{CallbackCounts, CallbackOverview, CallbackStatus, Callbacks, EventQueue, TargetStatus},
    telemetry::metrics::TextEncoder,
};

const ROOT: &str = "/api/callbacks";
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// A path below `/api/callbacks`.
enum CallbackPath<'a> {
    List,
    Events(&'a str),
    Redeliver(&'a str, &'a str),
}

impl<'a> CallbackPath<'a> {
    fn parse(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix(ROOT)?;
        if rest.is_empty() {
            return Some(Self::List);
        }
        let (name, rest) = rest.strip_prefix('/')?.split_once('/')?;
        match rest.strip_prefix("events")? {
            "" => Some(Self::Events(name)),
            rest => {
                let id = rest.strip_prefix('/')?.strip_suffix("/redeliver")?;
                Some(Self::Redeliver(name, id)).filter(|_| !id.is_empty() && !id.contains('/'))
            }
        }
    }
}

impl Admin {
    /// The response to a request below `/api/callbacks`; `None` for any other path.
    pub(super) async fn handle_callbacks<B>(&self, request: &Request<B>) -> Option<AdminResult> {
        let path = CallbackPath::parse(request.uri().path())?;
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let callbacks = self.settings.callbacks.as_ref();
        Some(match path {
            CallbackPath::Redeliver(..) if request.method() != Method::POST => {
                Err(ApiError::method_not_allowed("POST"))
            }
            CallbackPath::Redeliver(name, id) => self.redeliver(callbacks, request, name, id).await,
            _ if !is_read => Err(ApiError::method_not_allowed("GET, HEAD")),
            CallbackPath::List => list(callbacks).await,
            CallbackPath::Events(name) => events(callbacks, name, request.uri().query()).await,
        })
    }

    async fn redeliver<B>(
        &self,
        callbacks: Option<&Arc<Callbacks>>,
        request: &Request<B>,
        name: &str,
        id: &str,
    ) -> AdminResult {
        let Some(callbacks) = callbacks else {
            let message = "there is no [state], which keeps the messages; configure it to have callbacks";
            return Err(ApiError::new(StatusCode::CONFLICT, message));
        };
        if self.keys.operator.is_none() {
            let message = "redelivery needs admin.key_sha256; \"wecom-proxy key NAME\" makes a key";
            return Err(ApiError::new(StatusCode::FORBIDDEN, message));
        }
        let authorization = request.headers().get(header::AUTHORIZATION);
        let is_bearer = authorization.and_then(|value| value.as_bytes().get(..7));
        if !is_bearer.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer ")) {
            let message = "send the admin key as \"Authorization: Bearer KEY\"";
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, message));
        }
        if callbacks.endpoint(name).is_none() {
            return Err(unknown_callback());
        }
        let targets = callbacks.redeliver(name, id).await?;
        if targets.is_empty() {
            return Err(ApiError::not_found("there is no dead letter of this id"));
        }
        Ok(json_response(StatusCode::OK, &json!({ "ok": true, "id": id, "targets": targets })))
    }

    /// The metrics of callbacks; empty without any.
    pub(super) async fn callback_metrics(&self) -> String {
        let Some(callbacks) = self.settings.callbacks.as_ref().filter(|callbacks| !callbacks.is_empty())
        else {
            return String::new();
        };
        let mut text = TextEncoder::default();
        write_counters(&callbacks.counts(), &mut text);
        // While the state cannot be read, nothing is known of the queues.
        if let Ok(status) = callbacks.status().await {
            write_gauges(&status.callbacks, &mut text);
        }
        text.into_string()
    }
}

fn unknown_callback() -> ApiError {
    ApiError::not_found("there is no callback of this name")
}

async fn list(callbacks: Option<&Arc<Callbacks>>) -> AdminResult {
    let status = match callbacks {
        None => CallbackOverview { delivers: false, callbacks: Vec::new() },
        Some(callbacks) => callbacks.status().await?,
    };
    Ok(json_response(StatusCode::OK, &json!(status)))
}

async fn events(callbacks: Option<&Arc<Callbacks>>, name: &str, query: Option<&str>) -> AdminResult {
    let callbacks = callbacks.filter(|callbacks| callbacks.endpoint(name).is_some());
    let callbacks = callbacks.ok_or_else(unknown_callback)?;
    let (queue, after, limit) = parse_query(query).map_err(ApiError::bad_request)?;
    let (events, next) = callbacks.events(name, queue, &after, limit).await?;
    Ok(json_response(StatusCode::OK, &json!({ "events": events, "next": next })))
}

/// The queue, `after` and the limit.
fn parse_query(query: Option<&str>) -> Result<(EventQueue, String, usize), String> {
    let (mut queue, mut after, mut limit) = (EventQueue::Dead, String::new(), DEFAULT_LIMIT);
    for (name, value) in parameters(query) {
        match (name, &*value) {
            ("state", "dead") => queue = EventQueue::Dead,
            ("state", "pending") => queue = EventQueue::Pending,
            ("state", _) => return Err("state: write dead or pending".to_owned()),
            ("after", _) => after = value,
            ("limit", number) => limit = parse_limit(number, MAX_LIMIT)?,
            _ => return Err("unknown parameter; use state, after and limit".to_owned()),
        }
    }
    Ok((queue, after, limit))
}

fn write_counters(counts: &[CallbackCounts], text: &mut TextEncoder) {
    let name = "wecom_proxy_callbacks_total";
    text.begin_family(name, "counter", "Requests to receiver URLs by result.");
    for callback in counts {
        for (result, count) in &callback.received {
            text.write_sample(name, &[("callback", &callback.name), ("result", result)], count);
        }
    }
    let name = "wecom_proxy_callback_deliveries_total";
    text.begin_family(name, "counter", "Attempts to deliver a callback by result.");
    for callback in counts {
        for (target, attempts) in &callback.attempts {
            for (result, count) in attempts {
                let labels = [("callback", &*callback.name), ("target", target), ("result", result)];
                text.write_sample(name, &labels, count);
            }
        }
    }
}

fn write_gauges(status: &[CallbackStatus], text: &mut TextEncoder) {
    let samples = |count: fn(&TargetStatus) -> u64| {
        status.iter().flat_map(move |callback| {
            let targets = callback.targets.iter();
            targets.map(move |target| {
                ([("callback", &*callback.name), ("target", &*target.name)], count(target))
            })
        })
    };
    let help = "Callbacks that wait for a target.";
    text.write_family("wecom_proxy_callback_pending", "gauge", help, samples(|target| target.pending));
    let help = "Callbacks that a target did not accept in time, kept for 7 days.";
    text.write_family("wecom_proxy_callback_dead", "gauge", help, samples(|target| target.dead));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_callbacks_are_parsed() {
        assert!(matches!(CallbackPath::parse("/api/callbacks"), Some(CallbackPath::List)));
        assert!(matches!(CallbackPath::parse("/api/callbacks/hr/events"), Some(CallbackPath::Events("hr"))));
        let redeliver = CallbackPath::parse("/api/callbacks/hr/events/1/redeliver");
        assert!(matches!(redeliver, Some(CallbackPath::Redeliver("hr", "1"))));
        for other in [
            "/api/callbacks/",
            "/api/callbacks/hr",
            "/api/callbacks/hr/events/",
            "/api/callbacks/hr/events//redeliver",
        ] {
            assert!(CallbackPath::parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn query_is_parsed_or_refused() {
        assert_eq!(parse_query(None), Ok((EventQueue::Dead, String::new(), 100)));
        let parsed = parse_query(Some("state=pending&after=hr%2Fcrm%2F1&limit=7"));
        assert_eq!(parsed, Ok((EventQueue::Pending, "hr/crm/1".to_owned(), 7)));
        for query in ["state=x", "limit=0", "limit=1001", "x=1"] {
            assert!(parse_query(Some(query)).is_err(), "{query}");
        }
    }
}
