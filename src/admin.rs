//! The second port: what is well and what is not, for operators and their tools.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};

use crate::{
    config::{Address, KeyHash},
    directory::{Agent, Directory},
    io::Stream,
    server::{Bound, Listener},
    tokens::Issuer,
};

/// Connections to the admin listener that may be open at once.
const MAX_CONNECTIONS: usize = 256;
/// How long an operator's tool may take for a request's head, and between two.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the admin listener answers from.
pub struct Admin {
    key: Option<KeyHash>,
    directory: Arc<ArcSwap<Directory>>,
    issuer: Arc<Issuer>,
    listeners: Vec<Address>,
    stopping: watch::Receiver<bool>,
}

impl Admin {
    /// Answers about `directory` and where its tokens come from. With a key all but the health checks need it.
    pub fn new(
        key: Option<KeyHash>,
        directory: Arc<ArcSwap<Directory>>,
        issuer: Arc<Issuer>,
        listeners: Vec<Address>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self { key, directory, issuer, listeners, stopping }
    }

    /// Serves until `ended` turns true; `bound` stays open that long.
    pub async fn serve(self: Arc<Self>, listener: Listener, bound: Bound, mut ended: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                _ = ended.wait_for(|ended| *ended) => break,
                accepted = listener.accept() => accepted,
            };
            let (Ok((stream, ..)), Ok(place)) = (accepted, places.clone().try_acquire_owned()) else {
                // Out of descriptors or of places: whoever asks will ask again.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let admin = self.clone();
            tokio::spawn(async move {
                admin.converse(stream).await;
                drop(place);
            });
        }
        drop(bound);
    }

    async fn converse(self: Arc<Self>, stream: Stream) {
        let service = service_fn(|request| {
            let answer = self.answer(&request);
            async { Ok::<_, Infallible>(answer) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a connection to the admin listener ended");
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/healthz" => self.health(false),
            "/readyz" => self.health(true),
            _ if !self.admits(request.headers()) => {
                let words = "this listener has a key: send it as \"Authorization: Bearer KEY\" or by HTTP Basic as the password";
                let mut response = problem(StatusCode::UNAUTHORIZED, words);
                let ways = HeaderValue::from_static(
                    "Bearer realm=\"wecom-proxy admin\", Basic realm=\"wecom-proxy admin\"",
                );
                response.headers_mut().insert(header::WWW_AUTHENTICATE, ways);
                response
            }
            "/api/agents" => {
                let agents: Vec<_> = self.directory.load().agents().map(describe).collect();
                json_response(StatusCode::OK, &json!({ "agents": agents }))
            }
            _ => problem(StatusCode::NOT_FOUND, "there is /healthz, /readyz and /api/agents"),
        }
    }

    /// Well unless the proxy is stopping; ready unless, besides, every agent that was asked for fails and has no token
    /// that serves. One agent's bad secret must not take the others out of service, and a token that ran out while
    /// nobody asked is no failure: whoever asks next gets another.
    fn health(&self, ready: bool) -> Response<Full<Bytes>> {
        let stopping = *self.stopping.borrow();
        let reports: Vec<_> =
            self.directory.load().agents().map(|agent| (agent.name.clone(), agent.slot.report())).collect();
        let mut asked_for = reports.iter().filter(|(_, report)| report.asked_for).peekable();
        let tokenless = asked_for.peek().is_some()
            && asked_for.all(|(_, report)| {
                // Once it is time for another try only a request can make it, and none comes to who is not ready.
                !report.usable && report.failing.is_some() && !report.next_try_in.is_zero()
            });
        let failing: serde_json::Map<_, _> = reports
            .iter()
            .filter_map(|(name, report)| report.failing.clone().map(|failure| (name.clone(), failure.into())))
            .collect();
        let unready = ready && tokenless;
        let status = match (stopping, unready) {
            (true, _) => "shutting down",
            (_, true) => "no agent has a token that serves",
            _ if failing.is_empty() => "ok",
            _ => "ok, but some agents fail",
        };
        let body = json!({
            "status": status,
            "agents": { "total": reports.len(), "failing": failing },
            "store": self.store(),
            "listeners": self.listeners.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        let unwell = stopping || unready;
        json_response(if unwell { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }, &body)
    }

    fn store(&self) -> Value {
        match (self.issuer.store().is_some(), self.issuer.store_trouble()) {
            (false, _) => json!({ "kind": "memory", "ok": true }),
            (true, None) => json!({ "kind": "redis", "ok": true }),
            (true, Some(trouble)) => json!({ "kind": "redis", "ok": false, "trouble": trouble }),
        }
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.key else { return true };
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((scheme, rest)) = shown.and_then(|shown| shown.split_once(' ')) else { return false };
        if scheme.eq_ignore_ascii_case("bearer") {
            return KeyHash::of(rest.trim()) == *key;
        }
        let pair = BASE64_STANDARD.decode(rest.trim()).ok().and_then(|pair| String::from_utf8(pair).ok());
        let password = pair.as_deref().and_then(|pair| pair.split_once(':')).map(|(_, password)| password);
        scheme.eq_ignore_ascii_case("basic") && password.is_some_and(|password| KeyHash::of(password) == *key)
    }
}

/// One agent and its token's health; times in seconds since 1970, or from now where they say so.
fn describe(agent: &Arc<Agent>) -> Value {
    let report = agent.slot.report();
    let epoch =
        |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    json!({
        "name": agent.name,
        "corpid": agent.corpid,
        "agentid": agent.agentid,
        "token": {
            "state": match (report.usable, report.dates) {
                (true, _) => "valid",
                (false, Some(_)) if report.refused => "refused",
                (false, Some(_)) => "expired",
                (false, None) => "none",
            },
            "first_seen": report.dates.map(|(first_seen, _)| epoch(first_seen)),
            "age_seconds": report.dates.map(|(first_seen, _)| first_seen.elapsed().map_or(0, |age| age.as_secs())),
            "expires_at": report.dates.map(|(_, expires_at)| epoch(expires_at)),
        },
        "last_renewal": report.last.map(|last| json!({
            "at": epoch(last.at),
            "reason": last.reason,
            "ok": last.failure.is_none(),
            "failure": last.failure,
        })),
        "failing": report.failing,
        "next_try_in_seconds": report.next_try_in.as_secs(),
    })
}

fn problem(status: StatusCode, words: &str) -> Response<Full<Bytes>> {
    json_response(status, &json!({ "error": words }))
}

fn json_response(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
