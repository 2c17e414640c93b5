//! The life of one request to the API: judged by its head, read, carried out, answered as the faults will have it.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::body::{Body as _, Incoming};
use hyper::header::{EXPECT, HeaderName};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};

use super::answer::{Answer, Body, Ending, Json, Manner, Severed};
use super::body;
use super::faults::{Canned, Effects, When};
use super::listen::Line;
use super::query::Query;
use super::routes::{Route, Sent};
use super::state::{Call, InFlight, Shared};
use super::words;

/// Serves one request.
pub(super) async fn serve(
    shared: Arc<Shared>,
    line: Arc<Line>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Severed> {
    let (head, body) = request.into_parts();
    let mut call = shared.change(|state| state.arrive(&head, &line));
    let gettoken = call.route.is_some_and(Route::is_gettoken);
    let in_flight = InFlight { shared: shared.clone(), gettoken };
    if call.effects.drop == Some(When::Arrival) {
        return Err(line.cut());
    }
    let answer = match at_the_door(&mut call, line.peer) {
        Some(answer) => {
            leave(&shared, call.seq, &head, body);
            answer
        }
        None => carry_out(&shared, &call, &head, body, line.peer).await?,
    };
    call.effects.wait().await;
    shared.change(|state| state.answered(call.seq, answer.status.as_u16(), answer.errcode));
    if call.effects.drop == Some(When::Before) {
        return Err(line.cut());
    }
    let manner =
        Manner { line, _in_flight: in_flight, ending: ending(&call.effects), pieces: call.effects.pieces };
    Ok(answer.into_response(head.method == Method::HEAD, shared.errcode_headers, manner))
}

/// The answer that needs no more than the head.
fn at_the_door(call: &mut Call, peer: IpAddr) -> Option<Answer> {
    if let Some(canned) = call.effects.answer.take() {
        return Some(instead(canned, call.route, peer));
    }
    let Some(route) = call.route else { return Some(Answer::empty(StatusCode::NOT_FOUND)) };
    call.admission.err().map(|refused| route.failure(refused.0, peer).into())
}

fn instead(canned: Canned, route: Option<&'static Route>, peer: IpAddr) -> Answer {
    let status = StatusCode::from_u16(canned.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let answer = match canned.errcode {
        Some(errcode) => {
            let json =
                route.map_or_else(|| words::failure(errcode, peer), |route| route.failure(errcode, peer));
            Answer::from(json).with_status(status)
        }
        None => Answer::bytes(status, canned.body),
    };
    canned.headers.iter().fold(answer, |answer, (name, value)| match HeaderName::try_from(name) {
        Ok(name) => answer.header(name, value),
        Err(_) => answer,
    })
}

/// Lets a body that nobody waits for run out, beside the answer.
fn leave(shared: &Arc<Shared>, seq: u64, head: &Parts, body: Incoming) {
    // Who was not told to continue sends no body: reading it would only hold the connection.
    if head.headers.contains_key(EXPECT) && !body.is_end_stream() {
        return;
    }
    let shared = shared.clone();
    tokio::spawn(async move {
        if let Ok(taken) = body::take(body, 0).await {
            shared.change(|state| state.took(seq, &taken));
        }
    });
}

async fn carry_out(
    shared: &Arc<Shared>,
    call: &Call,
    head: &Parts,
    body: Incoming,
    peer: IpAddr,
) -> Result<Answer, Severed> {
    let Some(route) = call.route else { return Ok(Answer::empty(StatusCode::NOT_FOUND)) };
    let Ok(taken) = body::take(body, route.keep).await else { return Err(Severed) };
    Ok(shared.change(|state| {
        state.took(call.seq, &taken);
        let query = Query(head.uri.query().unwrap_or(""));
        let too_long = route.keep > 0 && taken.kept.is_none();
        let sent = Sent { seq: call.seq, agent: call.agent, head, query, body: &taken };
        let answer = if too_long { Json::new(45001, "").into() } else { (route.run)(state, &sent) };
        match answer.errcode {
            Some(0) => state.executed(call.seq, route),
            // The calls themselves know the code only.
            Some(errcode) => return route.failure(errcode, peer).into(),
            None => {}
        }
        answer
    }))
}

fn ending(effects: &Effects) -> Ending {
    match effects.drop {
        Some(When::Head) => Ending::Cut { half: false },
        Some(When::Body) => Ending::Cut { half: true },
        _ if effects.stall => Ending::Stall,
        _ => Ending::Whole,
    }
}
