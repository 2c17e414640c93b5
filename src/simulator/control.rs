//! The control address: what tests do by methods, other programs do here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::Seen;
use super::agents::{Agent, Agents, UnknownAgent};
use super::faults::{Fault, When};
use super::query::Query;
use super::state::Shared;

const HELP: &str = include_str!("control.txt");
const BODY: usize = 1 << 20;

/// A call of the control address and the parameters it takes.
struct Call {
    method: Method,
    name: &'static str,
    parameters: &'static [&'static str],
    run: fn(&Shared, &Order) -> Result<Value, Wrong>,
}

const CALLS: &[Call] = &[
    post("revoke", &["agent"], |shared, order| order.of_agent(shared, |agents, agent| agents.revoke(agent))),
    post("expire", &["agent"], |shared, order| order.of_agent(shared, |agents, agent| agents.expire(agent))),
    post("secret", &["agent", "secret"], |shared, order| {
        let secret = order.needed("secret")?;
        order.of_agent(shared, |agents, agent| agents.change_secret(agent, &secret))
    }),
    post("same-token", &["agent", "on"], |shared, order| {
        let on = order.number_or("on", true)?;
        order.of_agent(shared, |agents, agent| agents.set_same_token(agent, on))
    }),
    post("agents", &[], add_agent),
    post("delay", &["ms", "path", "agent", "count"], |shared, order| {
        let ms = order.number("ms")?.ok_or_else(|| Wrong::missing("ms"))?;
        order.inject(shared, Fault::delay(Duration::from_millis(ms)))
    }),
    post("hold", &["path", "agent", "count"], |shared, order| order.inject(shared, Fault::hold())),
    post("release", &[], |shared, _| {
        shared.change(|state| state.faults.release());
        done()
    }),
    post("fail", &["errcode", "status", "path", "agent", "count"], fail),
    post("answer", &["status", "type", "admitted", "path", "agent", "count"], |shared, order| {
        let content_type = order.value("type").unwrap_or_else(|| "application/json".to_owned());
        let fault = Fault::answer(order.status()?.unwrap_or(200), &content_type, order.body.clone());
        let fault = if order.number_or("admitted", false)? { fault.admitted() } else { fault };
        order.inject(shared, fault)
    }),
    post("drop", &["when", "path", "agent", "count"], |shared, order| {
        order.inject(shared, Fault::drop(order.when()?))
    }),
    post("stall", &["path", "agent", "count"], |shared, order| order.inject(shared, Fault::stall())),
    post("pieces", &["bytes", "path", "agent", "count"], |shared, order| {
        let bytes = order.number("bytes")?.ok_or_else(|| Wrong::missing("bytes"))?;
        order.inject(shared, Fault::pieces(bytes))
    }),
    post("disconnect", &[], |shared, _| {
        shared.disconnect();
        done()
    }),
    post("reset", &[], |shared, _| {
        shared.change(|state| state.reset());
        done()
    }),
    get("requests", &["limit"], |shared, order| {
        let limit = order.number_or("limit", usize::MAX)?;
        Ok(shared.read(|state| latest(Seen(state).requests(), limit)))
    }),
    get("messages", &["limit"], |shared, order| {
        let limit = order.number_or("limit", usize::MAX)?;
        Ok(shared.read(|state| latest(Seen(state).messages(), limit)))
    }),
    get("state", &[], |shared, _| Ok(shared.read(|state| state.describe()))),
];

const fn post(
    name: &'static str,
    parameters: &'static [&'static str],
    run: fn(&Shared, &Order) -> Result<Value, Wrong>,
) -> Call {
    Call { method: Method::POST, name, parameters, run }
}

const fn get(
    name: &'static str,
    parameters: &'static [&'static str],
    run: fn(&Shared, &Order) -> Result<Value, Wrong>,
) -> Call {
    Call { method: Method::GET, name, parameters, run }
}

/// Why a call is turned down.
struct Wrong {
    status: StatusCode,
    said: String,
    allow: Option<&'static str>,
}

impl Wrong {
    fn new(status: StatusCode, said: impl Into<String>) -> Self {
        Self { status, said: said.into(), allow: None }
    }

    fn bad(said: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, said)
    }

    fn missing(parameter: &str) -> Self {
        Self::bad(format!("the parameter {parameter} is missing"))
    }
}

impl From<UnknownAgent> for Wrong {
    fn from(unknown: UnknownAgent) -> Self {
        Self::new(StatusCode::NOT_FOUND, unknown.to_string())
    }
}

/// What a call was given.
struct Order {
    parameters: Vec<(String, String)>,
    body: Bytes,
}

impl Order {
    fn value(&self, name: &str) -> Option<String> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    fn needed(&self, name: &str) -> Result<String, Wrong> {
        self.value(name).filter(|value| !value.is_empty()).ok_or_else(|| Wrong::missing(name))
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Wrong> {
        let Some(text) = self.value(name) else { return Ok(None) };
        let number = text.parse().map_err(|_| Wrong::bad(format!("{name}={text} is not understood")))?;
        Ok(Some(number))
    }

    fn number_or<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, Wrong> {
        Ok(self.number(name)?.unwrap_or(default))
    }

    fn status(&self) -> Result<Option<u16>, Wrong> {
        match self.number("status")? {
            Some(status) if !(200..=599).contains(&status) => Err(Wrong::bad("status is 200 to 599")),
            status => Ok(status),
        }
    }

    fn when(&self) -> Result<When, Wrong> {
        match self.value("when").as_deref() {
            Some("arrival") => Ok(When::Arrival),
            Some("before") | None => Ok(When::Before),
            Some("head") => Ok(When::Head),
            Some("body") => Ok(When::Body),
            Some(_) => Err(Wrong::bad("when is arrival, before, head or body")),
        }
    }

    fn of_agent(&self, shared: &Shared, alter: impl FnOnce(&mut Agents, usize)) -> Result<Value, Wrong> {
        let name = self.needed("agent")?;
        shared.change(|state| state.of_agent(&name, alter))?;
        done()
    }

    fn inject(&self, shared: &Shared, mut fault: Fault) -> Result<Value, Wrong> {
        if let Some(path) = self.value("path") {
            fault = fault.on(&path);
        }
        if let Some(agent) = self.value("agent") {
            fault = fault.of(&agent);
        }
        if let Some(count) = self.number("count")? {
            fault = fault.times(count);
        }
        shared.change(|state| state.inject(fault))?;
        done()
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
    let result = match Limited::new(body, BODY).collect().await {
        Ok(body) => obey(&shared, &head.method, path, Query(head.uri.query().unwrap_or("")), body.to_bytes()),
        Err(_) => Err(Wrong::new(StatusCode::PAYLOAD_TOO_LARGE, "a body is at most 1 MiB long")),
    };
    Ok(match result {
        Ok(value) => response(StatusCode::OK, "application/json", format!("{value}\n")),
        Err(wrong) => {
            let mut response =
                response(wrong.status, "application/json", format!("{}\n", json!({ "error": wrong.said })));
            if let Some(allow) = wrong.allow {
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
            }
            response
        }
    })
}

fn obey(shared: &Shared, method: &Method, path: &str, query: Query<'_>, body: Bytes) -> Result<Value, Wrong> {
    let name = path.strip_prefix("/control/");
    let Some(call) = CALLS.iter().find(|call| Some(call.name) == name) else {
        let all: Vec<&str> = CALLS.iter().map(|call| call.name).collect();
        let said = format!("there is no {path}; GET /control explains /control/ with: {}", all.join(", "));
        return Err(Wrong::new(StatusCode::NOT_FOUND, said));
    };
    if *method != call.method {
        let allow = if call.method == Method::POST { "POST" } else { "GET" };
        let wrong = Wrong::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} is called with {allow}"));
        return Err(Wrong { allow: Some(allow), ..wrong });
    }
    let parameters: Vec<(String, String)> = query.pairs().collect();
    if let Some((unknown, _)) = parameters.iter().find(|(name, _)| !call.parameters.contains(&name.as_str()))
    {
        let allowed = if call.parameters.is_empty() { "none".to_owned() } else { call.parameters.join(", ") };
        return Err(Wrong::bad(format!("{path} has no parameter {unknown}; it takes: {allowed}")));
    }
    (call.run)(shared, &Order { parameters, body })
}

fn add_agent(shared: &Shared, order: &Order) -> Result<Value, Wrong> {
    const SHAPE: &str = r#"{"name":"…","corpid":"…","secret":"…","agentid":1000004}"#;
    let agent: Agent = serde_json::from_slice(&order.body)
        .map_err(|_| Wrong::bad(format!("the body must be a JSON object like {SHAPE}")))?;
    if agent.name.is_empty() || agent.secret.is_empty() || agent.corpid.is_empty() {
        return Err(Wrong::bad("name, corpid and secret must not be empty"));
    }
    shared.change(|state| state.agents.add(agent));
    done()
}

fn fail(shared: &Shared, order: &Order) -> Result<Value, Wrong> {
    let fault = match (order.number("errcode")?, order.status()?) {
        (Some(errcode), status) => Fault::errcode(errcode).with_status(status.unwrap_or(200)),
        (None, Some(status)) => Fault::status(status),
        (None, None) => return Err(Wrong::bad("errcode or status is missing")),
    };
    order.inject(shared, fault)
}

/// The last `limit`, in their order.
fn latest<'a, T: serde::Serialize + 'a>(all: impl ExactSizeIterator<Item = &'a T>, limit: usize) -> Value {
    let skipped = all.len().saturating_sub(limit);
    all.skip(skipped).map(|one| json!(one)).collect()
}

fn done() -> Result<Value, Wrong> {
    Ok(json!({ "ok": true }))
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
