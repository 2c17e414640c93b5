//! An upstream that drops, stalls or crumbles, at each point of an exchange.

use wecom_proxy::simulator::{DropPoint, Fault};

use super::{
    UpstreamProtocol,
    clients::{ClientProtocol, ProtocolClient},
    run_concurrently,
};
use crate::harness::{ECHO, TestProxy, USER_GET};

/// An answer without errcode, whose head goes on at once.
const MEDIA: &str = "/cgi-bin/media/get?media_id=generated-200000";
/// What an upstream that falls silent costs; nobody else is so slow, even where the machine stands still for a while.
const SHORT_TIMEOUT: &str = "2s";
/// No time-out ends a case that is not about one.
const LONG_TIMEOUT: &str = "10m";

/// What goes wrong, with which request, what the caller is told, and how often WeCom got the request and carried it out.
struct DropCase {
    fault: Fault,
    method: &'static str,
    path: &'static str,
    expected: &'static str,
    received: usize,
    executed: u64,
    falls_silent: bool,
}

#[rustfmt::skip]
fn cases() -> Vec<DropCase> {
    let case = |fault: Fault, method, path, told, received, executed| DropCase { fault, method, path, expected: told, received, executed, falls_silent: false };
    let silent = |fault: Fault, method, path, told| DropCase { falls_silent: true, ..case(fault.times(1), method, path, told, 1, 1) };
    let drop = |when| Fault::drop(when);
    vec![
        // The connection was kept, and not a byte of an answer came: what does no harm twice goes out again.
        case(drop(DropPoint::OnArrival), "GET", ECHO, "200", 2, 1),
        case(drop(DropPoint::OnArrival), "POST", ECHO, "502 upstream-broke", 1, 0),
        case(drop(DropPoint::BeforeResponse), "GET", ECHO, "200", 2, 2),
        case(drop(DropPoint::BeforeResponse), "PUT", ECHO, "200", 2, 2),
        case(drop(DropPoint::BeforeResponse), "POST", ECHO, "502 upstream-broke", 1, 1),
        case(drop(DropPoint::BeforeResponse), "PATCH", ECHO, "502 upstream-broke", 1, 1),
        case(drop(DropPoint::AfterHead), "POST", ECHO, "502 upstream-broke", 1, 1),
        case(drop(DropPoint::AfterHead), "GET", MEDIA, "broken off", 1, 1),
        case(drop(DropPoint::MidBody), "POST", ECHO, "broken off", 1, 1),
        case(drop(DropPoint::MidBody), "GET", MEDIA, "broken off", 1, 1),
        silent(Fault::stall(), "POST", ECHO, "broken off"),
        silent(Fault::stall(), "GET", MEDIA, "broken off"),
        silent(Fault::hold(), "GET", ECHO, "504 upstream-timeout"),
        silent(Fault::hold(), "POST", ECHO, "504 upstream-timeout"),
        case(Fault::chunked(1).times(1), "POST", ECHO, "200", 1, 1),
        case(Fault::chunked(1000).times(1), "GET", MEDIA, "200", 1, 1),
    ]
}

/// Plays the cases one after the other; each that waits for a time-out beside them, by itself.
async fn run_cases(speech: UpstreamProtocol, tongue: ClientProtocol) {
    let (silent, others): (Vec<_>, Vec<_>) = cases().into_iter().partition(|case| case.falls_silent);
    let silent = silent.into_iter().map(|case| (vec![case], SHORT_TIMEOUT));
    run_concurrently(
        silent
            .chain([(others, LONG_TIMEOUT)])
            .map(|(cases, wait)| run_cases_with_timeout(speech, tongue, cases, wait)),
    )
    .await;
}

async fn run_cases_with_timeout(
    speech: UpstreamProtocol,
    tongue: ClientProtocol,
    cases: Vec<DropCase>,
    wait: &str,
) {
    let times = format!(
        "response_timeout = \"{wait}\"\nbody_timeout = \"{wait}\"\nmax_in_flight = 1\nqueue_timeout = \"10m\""
    );
    let (stage, _authority) = speech.start_proxy("", &times).await;
    let mut asker = ProtocolClient::new(tongue, stage.address());
    for case in cases {
        // A connection to WeCom is kept now, in the part of the proxy that serves this caller.
        assert_next_request_served(&mut asker).await;
        stage.wecom.reset();
        let path = case.path.split('?').next().expect("a path");
        let name = format!("{tongue:?}, {speech}: {:?}, {} {path}", case.fault, case.method);
        stage.wecom.inject(case.fault.on_path(path)).expect("a fault");
        let body = if case.method == "GET" { "" } else { "{\"a\":1}" };
        let told = asker.request(case.method, case.path, body).await;
        // Over HTTP/2 the stream may break before the connection is seen to: then WeCom may have acted, and nothing is sent
        // again.
        let (expected, received, executed) = match speech {
            UpstreamProtocol::Http2 if case.received == 2 && told.to_string() != case.expected => {
                ("502 upstream-broke", 1, case.executed - 1)
            }
            _ => (case.expected, case.received, case.executed),
        };
        // To a caller of HTTP/1.0 that is told no length only the reset shows.
        assert_eq!(told.to_string(), expected, "{name}: {told:?}");
        stage.wecom.release_held();
        assert_next_request_served(&mut asker).await;
        assert_eq!(counts(&stage, path), (received, executed), "{name}");
    }
}

fn counts(stage: &TestProxy, path: &str) -> (usize, u64) {
    stage.wecom.observe(|seen| (seen.received_count(path), seen.executed_count(path)))
}

/// The only place in flight is free, and what is answered is this request.
async fn assert_next_request_served(asker: &mut ProtocolClient) {
    let told = asker.request("GET", USER_GET, "").await;
    let shown = String::from_utf8_lossy(told.body());
    assert!(told.to_string() == "200" && shown.contains("\"userid\":\"zhangsan\""), "{told:?}");
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
