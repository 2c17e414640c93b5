//! Invalid, truncated and surplus upstream responses: the client's outcome of each, and that the next request gets its own
//! response.

use std::time::Duration;

use super::{
    clients::{ClientOutcome, ClientProtocol, ProtocolClient},
    run_concurrently,
    scripted_upstream::{CASE_PATH, ScriptedUpstream, Step},
};
use crate::harness::{OPEN_CONFIG, TestProxy};

/// A response, the step after it, and the client's outcome.
struct ResponseCase {
    method: &'static str,
    response: Vec<u8>,
    then: Option<Step>,
    expected: &'static str,
    body: &'static [u8],
}

fn get_case(response: impl AsRef<[u8]>, then: Option<Step>, expected: &'static str) -> ResponseCase {
    ResponseCase { method: "GET", response: response.as_ref().to_vec(), then, expected, body: b"" }
}

/// A valid response, possibly followed by surplus bytes.
fn valid_case(
    method: &'static str,
    response: &str,
    expected: &'static str,
    body: &'static str,
) -> ResponseCase {
    ResponseCase {
        method,
        response: response.as_bytes().to_vec(),
        then: None,
        expected,
        body: body.as_bytes(),
    }
}

/// Runs each case, then sends another request on the same client connection.
async fn run_cases(client_protocol: ClientProtocol, cases: Vec<ResponseCase>) {
    let upstream = ScriptedUpstream::new().await;
    // Only cases of a stalled upstream may end by a time-out.
    let stalls = |case: &ResponseCase| {
        matches!(case.then, Some(Step::ReadOnly)) || case.expected == "504 upstream-timeout"
    };
    let upstream_timeout = if cases.iter().any(stalls) { "2s" } else { "10m" };
    let settings = format!(
        "response_timeout = \"{upstream_timeout}\"\nbody_timeout = \"{upstream_timeout}\"\nmax_in_flight = 1\n[admin]"
    );
    let proxy =
        TestProxy::start_with_upstream(upstream.address, &OPEN_CONFIG.replace("[admin]", &settings)).await;
    let mut client = ProtocolClient::new(client_protocol, proxy.address());
    for (index, case) in cases.into_iter().enumerate() {
        let response = String::from_utf8_lossy(&case.response[..case.response.len().min(120)]).into_owned();
        let name = format!("{client_protocol:?}, {} {response:?}, then {:?}", case.method, case.then);
        assert_next_request_served(&mut client, index * 2).await;
        upstream.set_steps([Step::Send(case.response)].into_iter().chain(case.then).collect());
        upstream.take_request_lines();
        let outcome = client.request(case.method, CASE_PATH, "").await;
        assert_eq!(outcome.to_string(), case.expected, "{name}: {outcome:?}");
        assert_eq!(upstream.take_request_lines().len(), 1, "{name}");
        let is_proxy_error = matches!(&outcome, ClientOutcome::Complete { kind, .. } if !kind.is_empty());
        if !is_proxy_error {
            assert_eq!(outcome.body(), case.body, "{name}");
        }
        assert!(!String::from_utf8_lossy(outcome.body()).contains("TOKEN-OF"), "{name}: {outcome:?}");
        assert_next_request_served(&mut client, index * 2 + 1).await;
    }
}

async fn assert_next_request_served(client: &mut ProtocolClient, index: usize) {
    let outcome = client.request("POST", &format!("/cgi-bin/next/{index}?"), "{}").await;
    let body = String::from_utf8_lossy(outcome.body());
    assert!(body.contains(&format!("/cgi-bin/next/{index}?")), "{outcome:?}");
}

/// Runs the cases with clients of every protocol.
async fn run_for_all_protocols(cases: impl Fn() -> Vec<ResponseCase>) {
    tokio::join!(
        run_cases(ClientProtocol::Http10, cases()),
        run_cases(ClientProtocol::Http11, cases()),
        run_cases(ClientProtocol::Http2, cases())
    );
}

/// Runs all cases concurrently, because each waits for a time-out.
async fn run_each_concurrently(cases: impl Fn() -> Vec<ResponseCase>) {
    let client_protocols = [ClientProtocol::Http10, ClientProtocol::Http11, ClientProtocol::Http2];
    run_concurrently(
        client_protocols.iter().flat_map(|client_protocol| {
            cases().into_iter().map(|case| run_cases(*client_protocol, vec![case]))
        }),
    )
    .await;
}

#[rustfmt::skip]
fn invalid_responses() -> Vec<ResponseCase> {
    let broke = |response: &[u8]| get_case(response, Some(Step::Close), "502 upstream-broke");
    let ok = |lines: &str| broke(format!("HTTP/1.1 200 OK\r\n{lines}").as_bytes());
    let many = "X: y\r\n".repeat(200);
    vec![
        broke(b"SSH-2.0-OpenSSH_9.6\r\n"),
        broke(b"\x16\x03\x01\x02\x00"),
        broke(b"<html>no head</html>"),
        broke(b"{\"errcode\":0}"),
        broke(b"HTTP/1.1 20 OK\r\n\r\n"),
        broke(b"HTTP/1.1 099 OK\r\n\r\n"),
        broke(b"HTTP/2 200 OK\r\n\r\n"),
        broke(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
        broke(&b"HTTP/1.1 102 Processing\r\n\r\n".repeat(40)),
        broke(b"HTTP/1.1 100 Continue\r\n\r\n"),
        broke(b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\n{}"),
        broke(b"\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
        broke(b"HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
        ok("Content-Length: 2\n\r\n{}"),
        ok("Content-Length: 2\r\n\n{}"),
        ok("X: y\nContent-Length: 2\r\n\r\n{}"),
        ok("Content-Length: 2\n\r\nX: y\r\n\r\n{}"),
        ok("Content-Le"),
        ok("no colon\r\n\r\n"),
        ok(&format!("{many}Content-Length: 2\r\n\r\nhi")),
        ok(&format!("Connection: {}\r\nContent-Length: 2\r\n\r\nhi", "x, ".repeat(200))),
        ok(&format!("X: {}\r\n", "y".repeat(70_000))),
        ok("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        ok("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        ok("Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        ok("Transfer-Encoding: identity\r\n\r\n{}"),
        ok("Transfer-Encoding: unheard-of\r\n\r\n{}"),
        ok("Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
        ok("Content-Length: 2, 2\r\n\r\n{}"),
        ok("Content-Length: -1\r\n\r\n{}"),
        ok("Content-Length: +2\r\n\r\n{}"),
        ok("Content-Length: 9223372036854775808\r\n\r\n{}"),
        ok("Content-Type: application/json\r\nContent-Length: 20\r\n\r\n{\"errcode\""),
        ok("Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
        ok("Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{\"\r\n"),
    ]
}

#[tokio::test]
async fn invalid_response_returns_upstream_broke() {
    run_for_all_protocols(invalid_responses).await;
}

#[rustfmt::skip]
fn silent_upstreams() -> Vec<ResponseCase> {
    let stalled = |response: &str| get_case(response, Some(Step::ReadOnly), "504 upstream-timeout");
    let slow = |response: &str| get_case("", Some(Step::SendSlowly(response.as_bytes().to_vec(), Duration::from_millis(10))), "504 upstream-timeout");
    vec![
        stalled(""),
        stalled("HTTP/1.1 200 OK\r\nContent-Le"),
        stalled("HTTP/1.1 100 Continue\r\n\r\n"),
        stalled("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{\"errcode\""),
        // A head that is received slowly times out too.
        slow(&format!("HTTP/1.1 200 OK\r\n{}", "X-More: y\r\n".repeat(60))),
    ]
}

#[tokio::test]
async fn incomplete_response_returns_upstream_timeout() {
    run_each_concurrently(silent_upstreams).await;
}

#[rustfmt::skip]
fn truncated_bodies() -> Vec<ResponseCase> {
    let png = |lines: &str, then| get_case(format!("HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n{lines}"), Some(then), "aborted");
    let chunked = |chunks: &str, then| png(&format!("Transfer-Encoding: chunked\r\n\r\n{chunks}"), then);
    let mut cases = Vec::new();
    for then in [Step::Close, Step::Reset] {
        cases.push(png("Content-Length: 10\r\n\r\n", then.clone()));
        cases.push(png("Content-Length: 10\r\n\r\nnine byte", then.clone()));
        cases.push(chunked("", then.clone()));
        cases.push(chunked("5\r\nfir", then.clone()));
        cases.push(chunked("5\r\nfirst", then.clone()));
        cases.push(chunked("5\r\nfirst\r\n", then.clone()));
        cases.push(chunked("5\r\nfirst\r\n0\r\n", then.clone()));
        cases.push(chunked("5\r\nfirst\r\n0\r\nX: y\r\n", then.clone()));
    }
    cases.push(chunked("5\r\nfirst and more\r\n0\r\n\r\n", Step::Close));
    cases.push(chunked("5\r\nfirst\r\nfffffffffffffffff\r\n", Step::Close));
    cases.push(png("\r\nuntil the end", Step::Reset));
    cases
}

#[rustfmt::skip]
fn stalled_bodies() -> Vec<ResponseCase> {
    let png = |lines: &str| get_case(format!("HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n{lines}"), Some(Step::ReadOnly), "aborted");
    vec![
        png("\r\nuntil the end"),
        png("Content-Length: 10\r\n\r\nnine byte"),
        png("Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"),
    ]
}

#[tokio::test]
async fn truncated_response_never_looks_complete() {
    run_for_all_protocols(truncated_bodies).await;
}

#[tokio::test]
async fn stalled_response_never_looks_complete() {
    run_each_concurrently(stalled_bodies).await;
}

#[rustfmt::skip]
fn surplus_responses() -> Vec<ResponseCase> {
    let two_responses = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond";
    vec![
        valid_case("GET", two_responses, "200", "first"),
        valid_case("POST", two_responses, "200", "first"),
        valid_case("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst and more", "200", "first"),
        valid_case("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "200", "first"),
        valid_case("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst", "200", ""),
        valid_case("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n", "200", ""),
        valid_case("GET", "HTTP/1.1 204 No Content\r\n\r\nfirst", "204", ""),
        valid_case("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nfirst", "204", ""),
        valid_case("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nfirst", "304", ""),
        valid_case("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nfirst", "200", ""),
        valid_case("GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "200", "hi"),
        valid_case("GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", "200", "hi"),
        valid_case("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi", "200", "hi"),
        valid_case("GET", "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>", "502", "<html></html>"),
        valid_case("GET", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n<html></html>", "200", "<html></html>"),
    ]
}

#[tokio::test]
async fn surplus_response_is_discarded_before_the_next_request() {
    run_for_all_protocols(surplus_responses).await;
}

#[tokio::test]
async fn close_delimited_and_slow_responses_are_complete() {
    let html = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html></html>";
    let chunked =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n1;x=y\r\n!\r\n0\r\nX: y\r\n\r\n";
    let interval = Duration::from_millis(1);
    run_for_all_protocols(|| {
        vec![
            ResponseCase { then: Some(Step::Close), ..valid_case("GET", html, "200", "<html></html>") },
            ResponseCase {
                then: Some(Step::SendSlowly(chunked.into(), interval)),
                ..valid_case("GET", "", "200", "first!")
            },
            ResponseCase {
                then: Some(Step::SendSlowly(chunked.into(), interval)),
                ..valid_case("POST", "", "200", "first!")
            },
        ]
    })
    .await;
}
