//! Serving a request to the API: authorize by its head, read the body, execute, respond as the faults require.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::body::{Body as _, Incoming};
use hyper::header::{EXPECT, HeaderName};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode, Uri};

use super::body;
use super::errors;
use super::faults::{CannedResponse, DropPoint, FaultEffects};
use super::listener::SimulatedConnection;
use super::query::Query;
use super::response::{BodyEnd, ConnectionDropped, SendOptions, SimulatedBody, SimulatedResponse};
use super::routes::{ApiRequest, ApiRoute};
use super::state::{CheckedRequest, InFlightGuard, Shared};

/// Serves one request.
pub(super) async fn serve(
    shared: Arc<Shared>,
    connection: Arc<SimulatedConnection>,
    request: Request<Incoming>,
) -> Result<Response<SimulatedBody>, ConnectionDropped> {
    let (mut head, body) = request.into_parts();
    if !shared.path_prefix.is_empty() {
        head.uri = without_prefix(&head.uri, &shared.path_prefix);
    }
    let mut call = shared.update(|state| state.check_request(&head, &connection));
    let gettoken = call.route.is_some_and(ApiRoute::is_gettoken);
    let in_flight_guard = InFlightGuard { shared: shared.clone(), gettoken };
    if call.effects.drop_point == Some(DropPoint::OnArrival) {
        return Err(connection.close());
    }
    let response = match response_without_body(&mut call, connection.peer) {
        Some(response) => {
            drain_in_background(&shared, call.seq, &head, body);
            response
        }
        None => execute(&shared, &call, &head, body, connection.peer).await?,
    };
    call.effects.wait_until_due().await;
    shared.update(|state| state.record_response(call.seq, response.status.as_u16(), response.errcode));
    if call.effects.drop_point == Some(DropPoint::BeforeResponse) {
        return Err(connection.close());
    }
    let options = SendOptions {
        connection,
        _in_flight_guard: in_flight_guard,
        body_end: body_end(&call.effects),
        chunk_bytes: call.effects.chunk_bytes,
    };
    Ok(response.into_response(head.method == Method::HEAD, shared.errcode_headers, options))
}

/// The target without the prefix; one that lacks it is under no API path.
fn without_prefix(uri: &Uri, prefix: &str) -> Uri {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let rest = target.strip_prefix(prefix).filter(|rest| rest.starts_with('/'));
    let target = rest.map_or_else(|| format!("/without-prefix{target}"), str::to_owned);
    target.parse().unwrap_or_default()
}

/// The response to a request that needs no more than its head.
fn response_without_body(call: &mut CheckedRequest, peer: IpAddr) -> Option<SimulatedResponse> {
    if let Some(canned) = call.effects.response.take() {
        return Some(canned_response(canned, call.route, peer));
    }
    let Some(route) = call.route else { return Some(SimulatedResponse::empty(StatusCode::NOT_FOUND)) };
    call.authorization.err().map(|errcode| route.error_json(errcode, peer).into())
}

fn canned_response(
    canned: CannedResponse,
    route: Option<&'static ApiRoute>,
    peer: IpAddr,
) -> SimulatedResponse {
    let status = StatusCode::from_u16(canned.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let response = match canned.errcode {
        Some(errcode) => {
            let json = route
                .map_or_else(|| errors::error_json(errcode, peer), |route| route.error_json(errcode, peer));
            SimulatedResponse::from(json).with_status(status)
        }
        None => SimulatedResponse::bytes(status, canned.body),
    };
    canned.headers.iter().fold(response, |response, (name, value)| match HeaderName::try_from(name) {
        Ok(name) => response.header(name, value),
        Err(_) => response,
    })
}

/// Reads an unused request body to its end while the response is sent.
fn drain_in_background(shared: &Arc<Shared>, seq: u64, head: &Parts, body: Incoming) {
    // Without a 100 (Continue) the client sends no body: reading it would only keep the connection open.
    if head.headers.contains_key(EXPECT) && !body.is_end_stream() {
        return;
    }
    let shared = shared.clone();
    tokio::spawn(async move {
        if let Ok(body) = body::read_hashed(body, 0).await {
            shared.update(|state| state.record_body(seq, &body));
        }
    });
}

async fn execute(
    shared: &Arc<Shared>,
    call: &CheckedRequest,
    head: &Parts,
    body: Incoming,
    peer: IpAddr,
) -> Result<SimulatedResponse, ConnectionDropped> {
    let Some(route) = call.route else { return Ok(SimulatedResponse::empty(StatusCode::NOT_FOUND)) };
    let Ok(hashed) = body::read_hashed(body, route.max_body_bytes).await else {
        return Err(ConnectionDropped);
    };
    Ok(shared.update(|state| {
        state.record_body(call.seq, &hashed);
        let query = Query(head.uri.query().unwrap_or(""));
        let too_long = route.max_body_bytes > 0 && hashed.content.is_none();
        let request = ApiRequest { seq: call.seq, agent: call.agent, head, query, body: &hashed };
        let result = if too_long { Err(45001) } else { (route.handler)(state, &request) };
        let response = result.unwrap_or_else(|errcode| route.error_json(errcode, peer).into());
        if response.errcode == Some(0) {
            state.record_executed(call.seq, route);
        }
        response
    }))
}

fn body_end(effects: &FaultEffects) -> BodyEnd {
    match effects.drop_point {
        Some(DropPoint::AfterHead) => BodyEnd::Truncated { half: false },
        Some(DropPoint::MidBody) => BodyEnd::Truncated { half: true },
        _ if effects.stall => BodyEnd::Stall,
        _ => BodyEnd::Complete,
    }
}
