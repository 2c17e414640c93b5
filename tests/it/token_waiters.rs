//! Requests that wait for a token: how many may, whom they keep from waiting, and what each of them costs.

use http::{HeaderValue, Request};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use wecom_proxy::simulator::{Fault, Settings};

use crate::{
    harness::{
        CONFIG_WITH_CLIENTS, TestClient, TestProxy, TestResponse, USER_GET, client_key, wait_for,
        with_timeout, write_config,
    },
    process::Process,
    raw_http::RawConnection,
};

const REQUEST_COUNT: usize = 1000;
/// Of 1024 permits half are given to any request; of the other half one agent leaves three nineteenths, about 80.
const EXPECTED_REFUSALS: std::ops::RangeInclusive<usize> = 50..=60;

/// A flood over HTTP/2, which needs few connections: what waits, and the refusals. Each request repeats a line of 3,000 bytes
/// so many times.
async fn flood_until_settled(
    stage: &TestProxy,
    path: &str,
    lines: usize,
) -> (Vec<JoinHandle<TestResponse>>, Vec<TestResponse>) {
    let long = HeaderValue::from_str(&"a".repeat(3000)).expect("a value");
    let mut calls = Vec::new();
    for _ in 0..REQUEST_COUNT / 200 {
        let TestClient::Http2(sender) = TestClient::connect_http2(stage.address()).await else {
            unreachable!()
        };
        for _ in 0..200 {
            let mut sender = sender.clone();
            let request =
                Request::get(format!("http://proxy.test{path}")).header("x-api-key", client_key("crm"));
            let mut request = request.body(Default::default()).expect("a request");
            // HPACK makes an index of each repetition: of a line above 3 KiB the client would not.
            (0..lines).for_each(|_| _ = request.headers_mut().append("x-long", long.clone()));
            calls.push(tokio::spawn(async move {
                sender.ready().await.expect("a connection");
                TestResponse::read(sender.send_request(request).await.expect("a response")).await
            }));
        }
    }
    let mut admin = TestClient::connect_http1(stage.admin_address()).await;
    // The one that fetches a ticket waits no longer.
    let settled = async || waiter_count(&mut admin).await + count_finished(&calls) >= REQUEST_COUNT - 1;
    wait_for("the requests to wait or to be refused", settled).await;
    let (done, waiting): (Vec<_>, Vec<_>) = calls.into_iter().partition(JoinHandle::is_finished);
    let mut replies = Vec::new();
    for call in done {
        let reply = with_timeout(call).await.expect("no panic");
        reply.assert_proxy_error("overloaded", 503, -1);
        assert_eq!(reply.header("retry-after"), "1");
        replies.push(reply);
    }
    (waiting, replies)
}

/// Few places in flight, so that 1024 may wait.
fn config_with_64_in_flight() -> String {
    CONFIG_WITH_CLIENTS.replace("[admin]", "max_in_flight = 64\nqueue_timeout = \"10m\"\n[admin]")
}

#[tokio::test]
async fn token_waits_beyond_the_limit_fail_at_once() {
    let stage = TestProxy::start_with_config(&config_with_64_in_flight()).await;
    stage.wecom.inject(Fault::hold().on_path("/cgi-bin/gettoken").for_agent("hr")).expect("a fault");
    let (waiting, refused) = flood_until_settled(&stage, &format!("/hr{USER_GET}"), 0).await;
    assert!(EXPECTED_REFUSALS.contains(&refused.len()), "{}", refused.len());
    // Another agent has no token either, and its requests may wait for one.
    let request = Request::get(format!("/ops{USER_GET}")).header("x-api-key", client_key("crm"));
    stage.request(request, "").await.assert_ok();
    waiting.iter().for_each(JoinHandle::abort);
    stage.wecom.release_held();
}

#[tokio::test]
async fn waits_with_long_headers_count_by_their_bytes() {
    let stage = TestProxy::start_with_config(&config_with_64_in_flight()).await;
    stage.wecom.inject(Fault::hold().on_path("/cgi-bin/gettoken").for_agent("hr")).expect("a fault");
    let (waiting, _) = flood_until_settled(&stage, &format!("/hr{USER_GET}"), 17).await;
    // 50 KiB of header text are 13 of the 1024 units.
    assert!((60..=1024 / 13).contains(&waiting.len()), "{}", waiting.len());
    waiting.iter().for_each(JoinHandle::abort);
    stage.wecom.release_held();
}

#[tokio::test]
async fn ticket_waits_beyond_the_limit_fail_at_once() {
    let stage = TestProxy::start_with_config(&config_with_64_in_flight()).await;
    stage.wecom.inject(Fault::hold().on_path("/cgi-bin/get_jsapi_ticket")).expect("a fault");
    let (waiting, refused) = flood_until_settled(&stage, "/hr/cgi-bin/get_jsapi_ticket", 0).await;
    assert!(EXPECTED_REFUSALS.contains(&refused.len()), "{}", refused.len());
    stage.wecom.release_held();
    for call in waiting {
        with_timeout(call).await.expect("no panic").assert_ok();
    }
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn waiting_request_uses_less_than_four_kib() {
    const WAITING: u64 = 1000;
    // Futures of a build without optimization are larger: 4,180 bytes, where the program itself takes 3,300.
    const BOUND: u64 = if cfg!(debug_assertions) { 4608 } else { 4096 };
    // It accepts no connection: gettoken hangs.
    let upstream = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let dir = TempDir::new().expect("a directory");
    let api = upstream.local_addr().expect("an address");
    let program = Process::serve(&write_config(&dir, api, &Settings::default(), CONFIG_WITH_CLIENTS)).await;
    let address = program.address().await;
    let mut admin = TestClient::connect_http1(program.admin_address().await).await;
    let mut lines = Vec::new();
    for _ in 0..WAITING {
        let mut line = RawConnection::connect(address).await;
        line.send("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("it is taken");
        assert!(line.read_response().await.0.starts_with("HTTP/1.1 404 "));
        lines.push(line);
    }
    let idle = resident_bytes(&program);
    let more = format!(
        "X-One: {}\r\nX-Two: {}\r\nX-Three: {}\r\n",
        "a".repeat(150),
        "b".repeat(150),
        "c".repeat(150)
    );
    for (nth, line) in lines.iter_mut().enumerate() {
        let request = format!(
            "GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {nth}\r\nX-Api-Key: {}\r\n{more}\r\n",
            client_key("crm")
        );
        line.send(request).await.expect("it is taken");
    }
    wait_for("all of them to wait", async || waiter_count(&mut admin).await as u64 == WAITING).await;
    let each = resident_bytes(&program).saturating_sub(idle) / WAITING;
    eprintln!("a request that waits: {each} bytes");
    assert!(each < BOUND, "{each} bytes");
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn a_stream_that_waits_costs_less_than_four_kib() {
    const STREAMS: usize = 240;
    const CONNECTIONS: usize = 4;
    // Futures of a build without optimization are larger: up to 4,680 bytes, where the program itself takes 3,850.
    const BOUND: u64 = if cfg!(debug_assertions) { 5120 } else { 4096 };
    // It accepts no connection: gettoken hangs.
    let upstream = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let dir = TempDir::new().expect("a directory");
    let api = upstream.local_addr().expect("an address");
    let program = Process::serve(&write_config(&dir, api, &Settings::default(), CONFIG_WITH_CLIENTS)).await;
    let mut admin = TestClient::connect_http1(program.admin_address().await).await;
    let mut senders = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut caller = TestClient::connect_http2(program.address().await).await;
        assert_eq!(caller.request(Request::get("/nowhere"), "").await.status, 404);
        let TestClient::Http2(sender) = caller else { unreachable!() };
        senders.push(sender);
    }
    let idle = resident_bytes(&program);
    for sender in &senders {
        for _ in 0..STREAMS {
            let request = Request::get(format!("http://proxy.test/hr{USER_GET}"))
                .header("x-api-key", client_key("crm"))
                .header("x-one", "a".repeat(450));
            let request = request.body(Default::default()).expect("a request");
            let mut sender = sender.clone();
            tokio::spawn(async move {
                sender.ready().await.expect("a connection");
                sender.send_request(request).await
            });
        }
    }
    let all = STREAMS * CONNECTIONS;
    wait_for("all of them to wait", async || waiter_count(&mut admin).await == all).await;
    let each = resident_bytes(&program).saturating_sub(idle) / all as u64;
    eprintln!("a stream that waits: {each} bytes");
    assert!(each < BOUND, "{each} bytes");
}

/// How many requests wait, as the metric says.
/// How many requests wait for a token, as the metrics say.
pub async fn waiter_count(admin: &mut TestClient) -> usize {
    let metrics = admin.request(Request::get("/metrics"), "").await;
    let line = metrics.text().lines().find_map(|line| line.strip_prefix("wecom_proxy_token_waiters "));
    line.expect("the metric").parse().expect("a number")
}

fn count_finished(calls: &[JoinHandle<TestResponse>]) -> usize {
    calls.iter().filter(|call| call.is_finished()).count()
}

/// The process's resident memory in bytes.
fn resident_bytes(program: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}
