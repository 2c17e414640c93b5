//! The control address: the methods of [`Simulator`](super::Simulator) over HTTP, for programs in other languages.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::Observed;
use super::agents::{AgentRegistry, SimulatedAgent, UnknownAgent};
use super::callbacks::{SimulatedCallback, callback_of};
use super::faults::{DropPoint, Fault};
use super::query::Query;
use super::state::Shared;
use super::suites::{SuiteError, SuiteEvent};

const HELP: &str = include_str!("control.txt");
const MAX_BODY_BYTES: usize = 1 << 20;
/// Corps that one call adds.
const MAX_CORPS: usize = 100_000;
/// What the program under test can name as a target of its callbacks.
const DELIVERY_PATH: &str = "/control/deliveries";
const PUSH_PATH: &str = "/control/push";

/// A call of the control address and its allowed parameters.
struct ControlCall {
    method: Method,
    name: &'static str,
    parameters: &'static [&'static str],
    handler: ControlHandler,
}

type ControlResult = Result<Value, ControlError>;
type ControlHandler = fn(&Shared, &ControlRequest) -> ControlResult;

const CALLS: &[ControlCall] = &[
    post("revoke", &["agent"], |shared, request| {
        request.change_agent(shared, |agents, agent| agents.revoke_tokens(agent))
    }),
    post("expire", &["agent"], |shared, request| {
        request.change_agent(shared, |agents, agent| agents.expire_tokens(agent))
    }),
    post("secret", &["agent", "secret"], |shared, request| {
        let secret = request.required("secret")?;
        request.change_agent(shared, |agents, agent| agents.change_secret(agent, &secret))
    }),
    post("same-token", &["agent", "on"], |shared, request| {
        let on = request.number_or("on", true)?;
        request.change_agent(shared, |agents, agent| agents.set_reissue_same_token(agent, on))
    }),
    post("agents", &[], add_agent),
    post("ticket", &["suite"], |shared, request| {
        let suite = request.required("suite")?;
        Ok(json!({ "suite_ticket": shared.update(|state| state.issue_ticket(&suite))? }))
    }),
    post("authorize", &["suite", "corpid"], |shared, request| {
        let (suite, corpid) = (request.required("suite")?, request.required("corpid")?);
        Ok(json!({ "auth_code": shared.update(|state| state.suites.authorize(&suite, &corpid))? }))
    }),
    post("corps", &["suite", "count"], add_corps),
    post("cancel", &["suite", "corpid"], |shared, request| {
        let (suite, corpid) = (request.required("suite")?, request.required("corpid")?);
        shared.update(|state| state.cancel_corp(&suite, &corpid))?;
        ok_json()
    }),
    post("delay", &["ms", "path", "agent", "count"], |shared, request| {
        let ms = request.number("ms")?.ok_or_else(|| ControlError::missing("ms"))?;
        request.inject(shared, Fault::delay(Duration::from_millis(ms)))
    }),
    post("hold", &["path", "agent", "count"], |shared, request| request.inject(shared, Fault::hold())),
    post("release", &[], |shared, _| {
        shared.update(|state| state.faults.release_held());
        ok_json()
    }),
    post("fail", &["errcode", "status", "path", "agent", "count"], inject_errcode_or_status),
    post("answer", &["status", "type", "admitted", "path", "agent", "count"], |shared, request| {
        let content_type = request.value("type").unwrap_or_else(|| "application/json".to_owned());
        let fault = Fault::response(request.status()?.unwrap_or(200), &content_type, request.body.clone());
        let fault = if request.number_or("admitted", false)? { fault.authorized_only() } else { fault };
        request.inject(shared, fault)
    }),
    post("drop", &["when", "path", "agent", "count"], |shared, request| {
        request.inject(shared, Fault::drop(request.drop_point()?))
    }),
    post("stall", &["path", "agent", "count"], |shared, request| request.inject(shared, Fault::stall())),
    post("pieces", &["bytes", "path", "agent", "count"], |shared, request| {
        let bytes = request.number("bytes")?.ok_or_else(|| ControlError::missing("bytes"))?;
        request.inject(shared, Fault::chunked(bytes))
    }),
    post("disconnect", &[], |shared, _| {
        shared.close_connections();
        ok_json()
    }),
    post("reset", &[], |shared, _| {
        shared.update(|state| state.reset());
        ok_json()
    }),
    post("callbacks", &[], add_callback),
    get("deliveries", &["limit"], |shared, request| {
        let limit = request.number_or("limit", usize::MAX)?;
        Ok(shared.read(|state| latest(state.callbacks.deliveries(), limit)))
    }),
    get("requests", &["limit"], |shared, request| {
        let limit = request.number_or("limit", usize::MAX)?;
        Ok(shared.read(|state| latest(Observed(state).requests(), limit)))
    }),
    get("messages", &["limit"], |shared, request| {
        let limit = request.number_or("limit", usize::MAX)?;
        Ok(shared.read(|state| latest(Observed(state).messages(), limit)))
    }),
    get("state", &[], |shared, _| Ok(shared.read(|state| state.describe()))),
];

const fn post(
    name: &'static str,
    parameters: &'static [&'static str],
    handler: ControlHandler,
) -> ControlCall {
    ControlCall { method: Method::POST, name, parameters, handler }
}

const fn get(
    name: &'static str,
    parameters: &'static [&'static str],
    handler: ControlHandler,
) -> ControlCall {
    ControlCall { method: Method::GET, name, parameters, handler }
}

/// Why a control call fails.
struct ControlError {
    status: StatusCode,
    message: String,
    allow: Option<&'static str>,
}

impl ControlError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), allow: None }
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn missing(parameter: &str) -> Self {
        Self::bad_request(format!("parameter {parameter} is missing"))
    }
}

impl From<UnknownAgent> for ControlError {
    fn from(unknown: UnknownAgent) -> Self {
        Self::new(StatusCode::NOT_FOUND, unknown.to_string())
    }
}

impl From<SuiteError> for ControlError {
    fn from(unknown: SuiteError) -> Self {
        Self::new(StatusCode::NOT_FOUND, unknown.to_string())
    }
}

/// Parameters and body of a control call.
struct ControlRequest {
    parameters: Vec<(String, String)>,
    body: Bytes,
}

impl ControlRequest {
    fn value(&self, name: &str) -> Option<String> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    fn required(&self, name: &str) -> Result<String, ControlError> {
        self.value(name).filter(|value| !value.is_empty()).ok_or_else(|| ControlError::missing(name))
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, ControlError> {
        let Some(text) = self.value(name) else { return Ok(None) };
        let number =
            text.parse().map_err(|_| ControlError::bad_request(format!("invalid value {name}={text}")))?;
        Ok(Some(number))
    }

    fn number_or<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, ControlError> {
        Ok(self.number(name)?.unwrap_or(default))
    }

    fn status(&self) -> Result<Option<u16>, ControlError> {
        match self.number("status")? {
            Some(status) if !(200..=599).contains(&status) => {
                Err(ControlError::bad_request("status must be 200 to 599"))
            }
            status => Ok(status),
        }
    }

    fn drop_point(&self) -> Result<DropPoint, ControlError> {
        match self.value("when").as_deref() {
            Some("arrival") => Ok(DropPoint::OnArrival),
            Some("before") | None => Ok(DropPoint::BeforeResponse),
            Some("head") => Ok(DropPoint::AfterHead),
            Some("body") => Ok(DropPoint::MidBody),
            Some(_) => Err(ControlError::bad_request("when must be arrival, before, head or body")),
        }
    }

    fn change_agent(&self, shared: &Shared, change: impl FnOnce(&mut AgentRegistry, usize)) -> ControlResult {
        let name = self.required("agent")?;
        shared.update(|state| state.change_agent(&name, change))?;
        ok_json()
    }

    fn inject(&self, shared: &Shared, mut fault: Fault) -> ControlResult {
        if let Some(path) = self.value("path") {
            fault = fault.on_path(&path);
        }
        if let Some(agent) = self.value("agent") {
            fault = fault.for_agent(&agent);
        }
        if let Some(count) = self.number("count")? {
            fault = fault.times(count);
        }
        shared.update(|state| state.inject(fault))?;
        ok_json()
    }
}

/// Serves one call.
pub(super) async fn serve(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().trim_end_matches('/');
    if matches!(path, "" | "/control") && head.method == Method::GET {
        return Ok(response(StatusCode::OK, "text/plain; charset=UTF-8", HELP.into()));
    }
    let result = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) if path == DELIVERY_PATH && head.method == Method::POST => {
            let (query, body) = (head.uri.query().unwrap_or(""), body.to_bytes());
            shared.update(|state| state.callbacks.record_delivery(&head.headers, query, &body));
            ok_json()
        }
        Ok(body) if path == PUSH_PATH && head.method == Method::POST => {
            push(&shared, Query(head.uri.query().unwrap_or("")), body.to_bytes()).await
        }
        Ok(body) => {
            dispatch(&shared, &head.method, path, Query(head.uri.query().unwrap_or("")), body.to_bytes())
        }
        Err(_) => Err(ControlError::new(StatusCode::PAYLOAD_TOO_LARGE, "body exceeds 1 MiB")),
    };
    Ok(match result {
        Ok(value) => response(StatusCode::OK, "application/json", format!("{value}\n")),
        Err(error) => {
            let mut response = response(
                error.status,
                "application/json",
                format!("{}\n", json!({ "error": error.message })),
            );
            if let Some(allow) = error.allow {
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
            }
            response
        }
    })
}

fn dispatch(shared: &Shared, method: &Method, path: &str, query: Query<'_>, body: Bytes) -> ControlResult {
    let name = path.strip_prefix("/control/");
    let Some(call) = CALLS.iter().find(|call| Some(call.name) == name) else {
        let all: Vec<&str> = CALLS.iter().map(|call| call.name).collect();
        let message = format!("unknown control call {path}; GET /control lists: {}", all.join(", "));
        return Err(ControlError::new(StatusCode::NOT_FOUND, message));
    };
    if *method != call.method {
        let allow = if call.method == Method::POST { "POST" } else { "GET" };
        let error = ControlError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} requires {allow}"));
        return Err(ControlError { allow: Some(allow), ..error });
    }
    let parameters: Vec<(String, String)> = query.pairs().collect();
    if let Some((unknown, _)) = parameters.iter().find(|(name, _)| !call.parameters.contains(&name.as_str()))
    {
        let allowed = if call.parameters.is_empty() { "none".to_owned() } else { call.parameters.join(", ") };
        return Err(ControlError::bad_request(format!(
            "unknown parameter {unknown} of {path}; allowed: {allowed}"
        )));
    }
    (call.handler)(shared, &ControlRequest { parameters, body })
}

/// Pushes a message to a receiver URL: the body of the call, or a sample with the event.
async fn push(shared: &Arc<Shared>, query: Query<'_>, body: Bytes) -> ControlResult {
    const PARAMETERS: [&str; 8] =
        ["callback", "event", "corpid", "format", "url", "token", "aes_key", "receive_id"];
    if let Some((unknown, _)) = query.pairs().find(|(name, _)| !PARAMETERS.contains(&name.as_str())) {
        let allowed = PARAMETERS.join(", ");
        return Err(ControlError::bad_request(format!(
            "unknown parameter {unknown} of {PUSH_PATH}; allowed: {allowed}"
        )));
    }
    let callback = callback_of(shared, |name| query.value(name)).map_err(ControlError::bad_request)?;
    let event = query.value("event").unwrap_or_else(|| "change_contact".to_owned());
    let message = match (body.is_empty(), SuiteEvent::from_name(&event)) {
        (true, Some(event)) => {
            let corpid = query.value("corpid").filter(|corpid| !corpid.is_empty());
            shared.update(|state| state.suite_message(event, &callback, corpid.as_deref()))?
        }
        (true, None) => callback.sample_message(&event),
        (false, _) => String::from_utf8_lossy(&body).into_owned(),
    };
    let is_json = query.value("format").is_some_and(|format| format == "json");
    match callback.push(message.as_bytes(), is_json).await {
        Ok(response) => Ok(json!({ "ok": response.status == 200, "message": message, "response": response })),
        Err(error) => Err(ControlError::new(StatusCode::BAD_GATEWAY, error)),
    }
}

fn add_callback(shared: &Shared, request: &ControlRequest) -> ControlResult {
    const SHAPE: &str =
        r#"{"name":"…","url":"http://…/callbacks/hr","token":"…","aes_key":"…","receive_id":"…"}"#;
    let callback: SimulatedCallback = serde_json::from_slice(&request.body)
        .map_err(|_| ControlError::bad_request(format!("the body must be a JSON object like {SHAPE}")))?;
    if !callback.has_valid_key() {
        return Err(ControlError::bad_request("aes_key is no EncodingAESKey: 43 letters and digits"));
    }
    shared.update(|state| state.callbacks.add(callback));
    ok_json()
}

fn add_corps(shared: &Shared, request: &ControlRequest) -> ControlResult {
    let suite = request.required("suite")?;
    let count: usize = request.number_or("count", 1)?;
    if count > MAX_CORPS {
        return Err(ControlError::bad_request(format!("count must be at most {MAX_CORPS}")));
    }
    let add = |nth| -> Result<Value, ControlError> {
        let corpid = format!("wpCorp{nth}");
        let code = shared.update(|state| state.add_authorized_corp(&suite, &corpid))?;
        Ok(json!({ "corpid": corpid, "permanent_code": code }))
    };
    let corps = (1..=count).map(add).collect::<Result<Vec<_>, _>>()?;
    Ok(json!({ "corps": corps }))
}

fn add_agent(shared: &Shared, request: &ControlRequest) -> ControlResult {
    const SHAPE: &str = r#"{"name":"…","corpid":"…","secret":"…","agentid":1000004}"#;
    let agent: SimulatedAgent = serde_json::from_slice(&request.body)
        .map_err(|_| ControlError::bad_request(format!("the body must be a JSON object like {SHAPE}")))?;
    if agent.name.is_empty() || agent.secret.is_empty() || agent.corpid.is_empty() {
        return Err(ControlError::bad_request("name, corpid and secret must not be empty"));
    }
    shared.update(|state| state.agents.add(agent));
    ok_json()
}

fn inject_errcode_or_status(shared: &Shared, request: &ControlRequest) -> ControlResult {
    let fault = match (request.number("errcode")?, request.status()?) {
        (Some(errcode), status) => Fault::errcode(errcode).with_status(status.unwrap_or(200)),
        (None, Some(status)) => Fault::status(status),
        (None, None) => return Err(ControlError::bad_request("errcode or status is missing")),
    };
    request.inject(shared, fault)
}

/// The last `limit` items, in their order.
fn latest<'a, T: serde::Serialize + 'a>(all: impl ExactSizeIterator<Item = &'a T>, limit: usize) -> Value {
    let skipped = all.len().saturating_sub(limit);
    all.skip(skipped).map(|item| json!(item)).collect()
}

fn ok_json() -> ControlResult {
    Ok(json!({ "ok": true }))
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
