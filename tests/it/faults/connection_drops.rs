//! An upstream that drops, stalls or splits its responses, at each point of an exchange.

use wecom_proxy::simulator::{DropPoint, Fault};

use super::{
    UpstreamProtocol,
    clients::{ClientProtocol, ProtocolClient},
    run_concurrently,
};
use crate::harness::{ECHO, TestProxy, USER_GET};

/// A response without an errcode, whose head is forwarded at once.
const MEDIA: &str = "/cgi-bin/media/get?media_id=generated-200000";
/// Time-out for a stalled upstream; long enough that other cases do not reach it on a busy machine.
const SHORT_TIMEOUT: &str = "2s";
/// Time-out for cases that must not end by a time-out.
const LONG_TIMEOUT: &str = "10m";

/// A fault, the request, the client's outcome, and how often WeCom received and executed the request.
struct DropCase {
    fault: Fault,
    method: &'static str,
    path: &'static str,
    expected: &'static str,
    received: usize,
    executed: u64,
    times_out: bool,
}

#[rustfmt::skip]
fn cases() -> Vec<DropCase> {
    let case = |fault: Fault, method, path, outcome, received, executed| DropCase { fault, method, path, expected: outcome, received, executed, times_out: false };
    let stalled = |fault: Fault, method, path, outcome| DropCase { times_out: true, ..case(fault.times(1), method, path, outcome, 1, 1) };
    let drop = |when| Fault::drop(when);
    vec![
        // A reused connection closes before the first byte of the response: idempotent requests are retried.
        case(drop(DropPoint::OnArrival), "GET", ECHO, "200", 2, 1),
        case(drop(DropPoint::OnArrival), "POST", ECHO, "502 upstream-broke", 1, 0),
        case(drop(DropPoint::BeforeResponse), "GET", ECHO, "200", 2, 2),
        case(drop(DropPoint::BeforeResponse), "PUT", ECHO, "200", 2, 2),
        case(drop(DropPoint::BeforeResponse), "POST", ECHO, "502 upstream-broke", 1, 1),
        case(drop(DropPoint::BeforeResponse), "PATCH", ECHO, "502 upstream-broke", 1, 1),
        case(drop(DropPoint::AfterHead), "POST", ECHO, "502 upstream-broke", 1, 1),
        case(drop(DropPoint::AfterHead), "GET", MEDIA, "aborted", 1, 1),
        case(drop(DropPoint::MidBody), "POST", ECHO, "aborted", 1, 1),
        case(drop(DropPoint::MidBody), "GET", MEDIA, "aborted", 1, 1),
        stalled(Fault::stall(), "POST", ECHO, "aborted"),
        stalled(Fault::stall(), "GET", MEDIA, "aborted"),
        stalled(Fault::hold(), "GET", ECHO, "504 upstream-timeout"),
        stalled(Fault::hold(), "POST", ECHO, "504 upstream-timeout"),
        case(Fault::chunked(1).times(1), "POST", ECHO, "200", 1, 1),
        case(Fault::chunked(1000).times(1), "GET", MEDIA, "200", 1, 1),
    ]
}

/// Runs the cases sequentially; cases that wait for a time-out run concurrently, each with its own proxy.
async fn run_cases(upstream_protocol: UpstreamProtocol, client_protocol: ClientProtocol) {
    let (stalled, others): (Vec<_>, Vec<_>) = cases().into_iter().partition(|case| case.times_out);
    let stalled = stalled.into_iter().map(|case| (vec![case], SHORT_TIMEOUT));
    run_concurrently(stalled.chain([(others, LONG_TIMEOUT)]).map(|(cases, response_timeout)| {
        run_cases_with_timeout(upstream_protocol, client_protocol, cases, response_timeout)
    }))
    .await;
}

async fn run_cases_with_timeout(
    upstream_protocol: UpstreamProtocol,
    client_protocol: ClientProtocol,
    cases: Vec<DropCase>,
    response_timeout: &str,
) {
    let settings = format!(
        "response_timeout = \"{response_timeout}\"\nbody_timeout = \"{response_timeout}\"\nmax_in_flight = 1\nqueue_timeout = \"10m\""
    );
    let (proxy, _authority) = upstream_protocol.start_proxy("", &settings).await;
    let mut client = ProtocolClient::new(client_protocol, proxy.address());
    for case in cases {
        // Opens a persistent connection to WeCom in the worker that serves this client.
        assert_next_request_served(&mut client).await;
        proxy.wecom.reset();
        let path = case.path.split('?').next().expect("a path");
        let name =
            format!("{client_protocol:?}, {upstream_protocol}: {:?}, {} {path}", case.fault, case.method);
        proxy.wecom.inject(case.fault.on_path(path)).expect("a fault");
        let body = if case.method == "GET" { "" } else { "{\"a\":1}" };
        let outcome = client.request(case.method, case.path, body).await;
        // Over HTTP/2 the stream may fail before the connection does: then WeCom may have executed the call, and it is not
        // retried.
        let (expected, received, executed) = match upstream_protocol {
            UpstreamProtocol::Http2 if case.received == 2 && outcome.to_string() != case.expected => {
                ("502 upstream-broke", 1, case.executed - 1)
            }
            _ => (case.expected, case.received, case.executed),
        };
        // An HTTP/1.0 client without a Content-Length detects truncation only by the reset.
        assert_eq!(outcome.to_string(), expected, "{name}: {outcome:?}");
        proxy.wecom.release_held();
        assert_next_request_served(&mut client).await;
        assert_eq!(counts(&proxy, path), (received, executed), "{name}");
    }
}

fn counts(proxy: &TestProxy, path: &str) -> (usize, u64) {
    proxy.wecom.observe(|observed| (observed.received_count(path), observed.executed_count(path)))
}

/// The only permit is free, and the response belongs to this request.
async fn assert_next_request_served(client: &mut ProtocolClient) {
    let outcome = client.request("GET", USER_GET, "").await;
    let body = String::from_utf8_lossy(outcome.body());
    assert!(outcome.to_string() == "200" && body.contains("\"userid\":\"zhangsan\""), "{outcome:?}");
}

#[tokio::test]
async fn http10_client_sees_each_upstream_fault() {
    tokio::join!(
        run_cases(UpstreamProtocol::Http1, ClientProtocol::Http10),
        run_cases(UpstreamProtocol::Http2, ClientProtocol::Http10)
    );
}

#[tokio::test]
async fn http11_client_sees_each_upstream_fault() {
    tokio::join!(
        run_cases(UpstreamProtocol::Http1, ClientProtocol::Http11),
        run_cases(UpstreamProtocol::Http1Tls, ClientProtocol::Http11),
        run_cases(UpstreamProtocol::Http2, ClientProtocol::Http11)
    );
}

#[tokio::test]
async fn http2_client_sees_each_upstream_fault() {
    tokio::join!(
        run_cases(UpstreamProtocol::Http1, ClientProtocol::Http2),
        run_cases(UpstreamProtocol::Http2, ClientProtocol::Http2)
    );
}
