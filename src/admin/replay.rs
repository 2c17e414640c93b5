//! `POST /api/requests/replay?id=ID&at=AT`: sends a recorded request through the proxy once more, in the name of its client.
//!
//! It goes to the proxy's own listener with a pass of the client, so that all checks and limits apply, and shows up as an
//! exchange of its own.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use serde_json::json;
use tokio::{net::TcpStream, time::timeout};

use super::{
    Admin,
    error::{AdminResult, ApiError},
    query::parameter,
    response::json_response,
};
use crate::{
    blocking,
    config::Address,
    directory::{AgentRole, PassBuyer},
    http1::io::Stream,
    inspector::{CapturedMessage, DetailCell, Exchange, ExchangeFilter, redact::MASK},
    secret::Masked,
    time::clock::unix_now,
    upstream::send_http1,
};

/// Longer than the proxy's own time limits.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(120);
const NO_LISTENER: &str = "replay needs a listener of the proxy on TCP without TLS";
const PROXY_PROTOCOL: &str =
    "replay does not work with server.proxy_protocol: it sends no header of the PROXY protocol";
const CUT_PATH: &str = "the path is too long: it may have been cut when the request was recorded";
const NOT_UNIQUE: &str = "several requests of this id ended at this time, so it is not clear which is meant";
const NOT_CAPTURED: &str =
    "the query or the body was not captured: look inside the agent, then send the request again";
const MASKED: &str = "a part of the request is masked, so it cannot be sent as it was";
const NO_PASS: &str =
    "only requests with an agent's access_token are sent again, while their agent and client are configured";

/// A request as it is sent again.
struct Replay {
    method: String,
    /// Path and query without a token.
    target: String,
    content_type: Option<String>,
    body: String,
    pass: Masked,
}

impl Admin {
    /// Sends the request of this id and time again and says how that went.
    pub(super) async fn replay(self: Arc<Self>, query: Option<&str>) -> AdminResult {
        let Some(filter) = parse_identity(query) else {
            let message = "say which: ?id=REQUEST-ID&at=SECONDS, as in the exchange's request_id and at";
            return Err(ApiError::bad_request(message));
        };
        let conflict = |message: &str| ApiError::new(StatusCode::CONFLICT, message);
        let address = self.plain_listener().map_err(conflict)?;
        let admin = self.clone();
        // Blocking, because the redaction of the capture may not have ended yet.
        let replay = blocking::spawn(move || match &admin.recent.latest(&filter, 2)[..] {
            [] => Err(ApiError::not_found("there is no exchange of this id and time, or no longer")),
            [exchange] => admin.prepare_replay(exchange).map_err(conflict),
            _ => Err(conflict(NOT_UNIQUE)),
        });
        let sent = timeout(REPLAY_TIMEOUT, send(address, replay.await??)).await;
        let sent =
            sent.map_err(|_| ApiError::new(StatusCode::GATEWAY_TIMEOUT, "the request did not end in time"))?;
        let (status, request_id) = sent.map_err(|error| {
            tracing::warn!(%error, "replay failed");
            let message = "the proxy's listener did not take the request; the log says why";
            ApiError::new(StatusCode::BAD_GATEWAY, message)
        })?;
        let body = json!({ "ok": true, "status": status, "request_id": request_id });
        Ok(json_response(StatusCode::OK, &body))
    }

    /// Where a request is sent again; why there is no such place.
    fn plain_listener(&self) -> Result<SocketAddr, &'static str> {
        if self.server.reads_proxy_protocol() {
            return Err(PROXY_PROTOCOL);
        }
        let address = self.proxy_listeners.iter().find_map(Address::to_connect);
        address.filter(|_| !self.tls).ok_or(NO_LISTENER)
    }

    /// The request of an exchange; why it cannot be sent again.
    fn prepare_replay(&self, exchange: &Exchange) -> Result<Replay, &'static str> {
        let entry = exchange.entry();
        if exchange.may_have_cut_path() {
            return Err(CUT_PATH);
        }
        let is_read = matches!(entry.method, "GET" | "HEAD");
        let detail = exchange.detail.as_deref().and_then(DetailCell::wait);
        let has_content = !entry.query.0.is_empty() || entry.request_bytes.is_some_and(|bytes| bytes > 0);
        let none = CapturedMessage::default();
        let (query, request) = match detail {
            // A read that was refused before its body was looked at has none.
            Some(detail) if !(detail.request_ended || is_read && detail.request.body.is_empty()) => {
                return Err(NOT_CAPTURED);
            }
            Some(detail) if detail.query_truncated => return Err(NOT_CAPTURED),
            Some(detail) => (&*detail.query, &detail.request),
            None if has_content || !is_read => return Err(NOT_CAPTURED),
            None => ("", &none),
        };
        if request.truncated || request.binary {
            return Err(NOT_CAPTURED);
        }
        let is_token = |parameter: &&str| parameter.split_once('=') == Some(("access_token", MASK));
        let query: Vec<_> =
            query.split('&').filter(|parameter| !parameter.is_empty() && !is_token(parameter)).collect();
        let query = query.join("&");
        if [entry.path, &query, &request.body].iter().any(|text| text.contains(MASK) || text.contains("***"))
        {
            return Err(MASKED);
        }
        let content_type = request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        Ok(Replay {
            method: entry.method.to_owned(),
            target: format!("{}?{query}", entry.path),
            content_type: content_type.map(|(_, value)| value.clone()),
            body: request.body.clone(),
            pass: self.pass_for(entry.agent, entry.client).ok_or(NO_PASS)?,
        })
    }

    fn pass_for(&self, agent: Option<&str>, client: Option<&str>) -> Option<Masked> {
        let directory = self.directory.load();
        let agent = directory.find_agent(agent?)?;
        if !matches!(agent.role, AgentRole::Application | AgentRole::Corp { .. }) {
            return None;
        }
        let client = match client {
            Some(name) => Some(directory.client_by_name(name)?),
            None => None,
        };
        let buyer = match client {
            Some(client) => PassBuyer::Client(client, client.config.keys.first()?),
            None if directory.is_open() => PassBuyer::OpenProxy,
            None => return None,
        };
        Some(agent.issue_pass(buyer, unix_now()))
    }
}

/// The exchange that a query names by its id and its time, which is a number as in JSON.
fn parse_identity(query: Option<&str>) -> Option<ExchangeFilter> {
    let seconds = parameter(query, "at")?
        .parse::<f64>()
        .ok()
        .filter(|seconds| seconds.is_finite() && *seconds >= 0.0)?;
    // Rounded: a fraction of a second in binary may be a little less than its milliseconds.
    let ended_in_ms = Some((seconds * 1000.0).round() as u128);
    Some(ExchangeFilter {
        request_id: Some(parameter(query, "id")?),
        ended_in_ms,
        ..ExchangeFilter::default()
    })
}

/// Sends the request; returns the status and the request id of its response.
async fn send(
    address: SocketAddr,
    replay: Replay,
) -> Result<(u16, String), Box<dyn std::error::Error + Send + Sync>> {
    let Replay { method, target, content_type, body, pass } = replay;
    let separator = if target.ends_with('?') { "" } else { "&" };
    let mut request = Request::builder()
        .method(method.as_str())
        .uri(format!("{target}{separator}access_token={}", pass.expose()))
        .header(header::HOST, address.to_string());
    if let Some(content_type) = content_type {
        request = request.header(header::CONTENT_TYPE, content_type);
    }
    let request = request.body(Full::new(Bytes::from(body)))?;
    let stream = Stream::Tcp(TcpStream::connect(address).await?);
    let response = send_http1(stream, request).await?;
    let status = response.status().as_u16();
    let id =
        response.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    // The exchange is complete when its response is read to the end.
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok((status, id))
}
