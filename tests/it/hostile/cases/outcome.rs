//! Comparison of the outcome of a case with its expectations.

use super::{CANARY_PATH, CLOSED_SILENTLY, Case, ClientOutput, ExpectedRequest, SMUGGLED_PATH, path};
use crate::hostile::{
    canonical_request::{CanonicalRequest, find},
    recorder::{ArrivalState, RecordedArrival},
};

/// Compares the outcome of a case with its expectations.
pub(super) fn check_outcome(
    case: &Case,
    output: &ClientOutput,
    arrivals: &[RecordedArrival],
) -> Result<(), String> {
    let complete = complete_requests(case, arrivals)?;
    if !output.ended {
        return Err("the connection hangs".to_owned());
    }
    let responses = parse_responses(&output.bytes, case.bytes.trim_ascii_start().starts_with(b"HEAD "))?;
    let mut responses = responses.into_iter();
    let mut complete = complete.into_iter().peekable();

    let first = responses.next();
    let is_main = |request: &CanonicalRequest| ![SMUGGLED_PATH, CANARY_PATH].contains(&path(request));
    let served = complete.next_if(|(_, request)| is_main(request));
    match (&served, &case.expected) {
        (Some((number, request)), Some(expected)) => {
            check_request(request, expected, case)?;
            match &first {
                Some((200, body)) if body.is_empty() || contains_nth(body, *number) => {}
                _ => {
                    return Err(format!(
                        "it was served, with response {:?}",
                        first.map(|(status, _)| status)
                    ));
                }
            }
        }
        (Some((_, request)), None) => return Err(format!("it was served as {}", request.method)),
        (None, _) => {
            let status = first.as_ref().map_or(CLOSED_SILENTLY, |(status, _)| *status);
            if !case.refusal_statuses.contains(&status) {
                return Err(format!("the response was {status}"));
            }
        }
    }
    let served_after =
        if served.is_some() || case.continues_after_refusal { &case.served_after[..] } else { &[] };
    for (index, (number, request)) in complete.enumerate() {
        let valid = request.method == "GET" && request.body.is_empty();
        if !valid || served_after.get(index) != Some(&path(request)) {
            return Err(format!("{} {} was served after it", request.method, path(request)));
        }
        match responses.next() {
            Some((200, body)) if contains_nth(&body, number) => {}
            other => {
                return Err(format!("the request after it got {:?}", other.map(|(status, _)| status)));
            }
        }
    }
    // The bytes after a request may be refused once, which ends the connection.
    match (responses.next(), responses.next()) {
        (Some((status, _)), None) if status < 400 => Err(format!("surplus response: {status}")),
        (_, Some((status, _))) => Err(format!("surplus response: {status}")),
        (Some((status, _)), None) if served_after.is_empty() => {
            Err(format!("surplus response after the end: {status}"))
        }
        _ => Ok(()),
    }
}

/// The number and content of the complete requests; an error if another arrival is not allowed.
fn complete_requests<'a>(
    case: &Case,
    arrivals: &'a [RecordedArrival],
) -> Result<Vec<(usize, &'a CanonicalRequest)>, String> {
    let mut complete = Vec::new();
    for arrival in arrivals {
        match &arrival.state {
            ArrivalState::Complete(request) => complete.push((arrival.nth, request)),
            ArrivalState::NotCanonical(why) => {
                return Err(format!("the upstream received a non-canonical request: {why}"));
            }
            ArrivalState::Partial { head: true } if case.may_be_partial && arrival.closed => {}
            ArrivalState::Partial { .. } => return Err("the upstream received a part of it".to_owned()),
        }
    }
    Ok(complete)
}

fn check_request(request: &CanonicalRequest, expected: &ExpectedRequest, case: &Case) -> Result<(), String> {
    if (&request.method, &request.target) != (&expected.method, &expected.target) {
        return Err(format!("it was served as {} {}", request.method, request.target));
    }
    if request.body != expected.body {
        return Err(format!("it was served with the body {:?}", request.body.escape_ascii().to_string()));
    }
    let forwarded = |name: &str| request.headers.iter().find(|(found, _)| found == name);
    if let Some((name, _)) = case.absent_headers.iter().find_map(|name| forwarded(name)) {
        return Err(format!("it was served with {name}"));
    }
    match case
        .present_headers
        .iter()
        .find(|(name, value)| forwarded(name).is_none_or(|(_, found)| found != value))
    {
        Some((name, _)) => {
            Err(format!("it was served with {name} {:?}", forwarded(name).map(|(_, value)| value)))
        }
        None => Ok(()),
    }
}

fn contains_nth(body: &[u8], number: usize) -> bool {
    find(body, format!("\"nth\":{number}}}").as_bytes()).is_some()
}

/// Status and body of the final responses; interim responses are skipped.
fn parse_responses(bytes: &[u8], mut to_head: bool) -> Result<Vec<(u16, Vec<u8>)>, String> {
    let (mut responses, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let end = find(rest, b"\r\n\r\n").ok_or("the last response has an incomplete head")?;
        let head = String::from_utf8_lossy(&rest[..end]).to_ascii_lowercase();
        rest = &rest[end + 4..];
        let status =
            head.strip_prefix("http/1.").and_then(|head| head.get(2..5)).and_then(|code| code.parse().ok());
        let status: u16 = status.ok_or("surplus bytes between two responses")?;
        if status < 200 {
            continue;
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length = length.map_or(Ok(rest.len()), |length| length.trim().parse::<usize>());
        let length = length.map_err(|_| "a response has an invalid length".to_owned())?;
        // Only the first request of a case may be a HEAD.
        let length = if std::mem::take(&mut to_head) { 0 } else { length };
        if length > rest.len() {
            return Err("the last response has an incomplete body".to_owned());
        }
        responses.push((status, rest[..length].to_vec()));
        rest = &rest[length..];
    }
    Ok(responses)
}
