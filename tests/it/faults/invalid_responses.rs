//! Answers that are none, or not one: what the caller is told of each, and that the next answer is its own.

use std::time::Duration;

use super::{
    clients::{ClientOutcome, ClientProtocol, ProtocolClient},
    run_concurrently,
    scripted_upstream::{CASE_PATH, ScriptedUpstream, Step},
};
use crate::harness::{OPEN_CONFIG, TestProxy};

/// What is said, what becomes of the connection, and what a caller is told.
struct ResponseCase {
    method: &'static str,
    response: Vec<u8>,
    then: Option<Step>,
    expected: &'static str,
    body: &'static [u8],
}

fn get_case(said: impl AsRef<[u8]>, then: Option<Step>, told: &'static str) -> ResponseCase {
    ResponseCase { method: "GET", response: said.as_ref().to_vec(), then, expected: told, body: b"" }
}

/// A sound answer, with something behind it that nobody asked for.
fn valid_case(method: &'static str, said: &str, told: &'static str, body: &'static str) -> ResponseCase {
    ResponseCase {
        method,
        response: said.as_bytes().to_vec(),
        then: None,
        expected: told,
        body: body.as_bytes(),
    }
}

/// Plays each case, and asks for something else on the same connection after it.
async fn run_cases(tongue: ClientProtocol, cases: Vec<ResponseCase>) {
    let peer = ScriptedUpstream::new().await;
    // No time-out ends a case that is not about one.
    let falls_silent = |case: &ResponseCase| {
        matches!(case.then, Some(Step::ReadOnly)) || case.expected == "504 upstream-timeout"
    };
    let wait = if cases.iter().any(falls_silent) { "2s" } else { "10m" };
    let times =
        format!("response_timeout = \"{wait}\"\nbody_timeout = \"{wait}\"\nmax_in_flight = 1\n[admin]");
    let stage = TestProxy::start_with_upstream(peer.address, &OPEN_CONFIG.replace("[admin]", &times)).await;
    let mut asker = ProtocolClient::new(tongue, stage.address());
    for (nth, case) in cases.into_iter().enumerate() {
        let shown = String::from_utf8_lossy(&case.response[..case.response.len().min(120)]).into_owned();
        let name = format!("{tongue:?}, {} {shown:?}, then {:?}", case.method, case.then);
        assert_next_request_served(&mut asker, nth * 2).await;
        peer.set_steps([Step::Send(case.response)].into_iter().chain(case.then).collect());
        peer.take_request_lines();
        let told = asker.request(case.method, CASE_PATH, "").await;
        assert_eq!(told.to_string(), case.expected, "{name}: {told:?}");
        assert_eq!(peer.take_request_lines().len(), 1, "{name}");
        let own = matches!(&told, ClientOutcome::Complete { kind, .. } if !kind.is_empty());
        if !own {
            assert_eq!(told.body(), case.body, "{name}");
        }
        assert!(!String::from_utf8_lossy(told.body()).contains("TOKEN-OF"), "{name}: {told:?}");
        assert_next_request_served(&mut asker, nth * 2 + 1).await;
    }
}

async fn assert_next_request_served(asker: &mut ProtocolClient, nth: usize) {
    let told = asker.request("POST", &format!("/cgi-bin/next/{nth}?"), "{}").await;
    let shown = String::from_utf8_lossy(told.body());
    assert!(shown.contains(&format!("/cgi-bin/next/{nth}?")), "{told:?}");
}

/// Plays the cases to callers of every protocol.
async fn run_for_all_protocols(cases: impl Fn() -> Vec<ResponseCase>) {
    tokio::join!(
        run_cases(ClientProtocol::Http10, cases()),
        run_cases(ClientProtocol::Http11, cases()),
        run_cases(ClientProtocol::Http2, cases())
    );
}

/// The same with cases that each wait for a time-out: all of them at once.
async fn run_each_concurrently(cases: impl Fn() -> Vec<ResponseCase>) {
    let tongues = [ClientProtocol::Http10, ClientProtocol::Http11, ClientProtocol::Http2];
    run_concurrently(
        tongues.iter().flat_map(|tongue| cases().into_iter().map(|case| run_cases(*tongue, vec![case]))),
    )
    .await;
}

#[rustfmt::skip]
fn invalid_responses() -> Vec<ResponseCase> {
    let broke = |said: &[u8]| get_case(said, Some(Step::Close), "502 upstream-broke");
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
    let late = |said: &str| get_case(said, Some(Step::ReadOnly), "504 upstream-timeout");
    let drips = |said: &str| get_case("", Some(Step::SendSlowly(said.as_bytes().to_vec(), Duration::from_millis(10))), "504 upstream-timeout");
    vec![
        late(""),
        late("HTTP/1.1 200 OK\r\nContent-Le"),
        late("HTTP/1.1 100 Continue\r\n\r\n"),
        late("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{\"errcode\""),
        // A head that moves and never ends is no answer either.
        drips(&format!("HTTP/1.1 200 OK\r\n{}", "X-More: y\r\n".repeat(60))),
    ]
}

#[tokio::test]
async fn incomplete_response_returns_upstream_timeout() {
    run_each_concurrently(silent_upstreams).await;
}

#[rustfmt::skip]
fn truncated_bodies() -> Vec<ResponseCase> {
    let png = |lines: &str, then| get_case(format!("HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n{lines}"), Some(then), "broken off");
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
    let png = |lines: &str| get_case(format!("HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n{lines}"), Some(Step::ReadOnly), "broken off");
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
    let two = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond";
    vec![
        valid_case("GET", two, "200", "first"),
        valid_case("POST", two, "200", "first"),
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
    let every = Duration::from_millis(1);
    run_for_all_protocols(|| {
        vec![
            ResponseCase { then: Some(Step::Close), ..valid_case("GET", html, "200", "<html></html>") },
            ResponseCase {
                then: Some(Step::SendSlowly(chunked.into(), every)),
                ..valid_case("GET", "", "200", "first!")
            },
            ResponseCase {
                then: Some(Step::SendSlowly(chunked.into(), every)),
                ..valid_case("POST", "", "200", "first!")
            },
        ]
    })
    .await;
}
