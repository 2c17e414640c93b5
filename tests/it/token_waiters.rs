//! Requests that wait for a token: their limit, its fairness between agents, and the memory per waiter.

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
/// `REQUEST_COUNT` minus the permits that one agent gets: of 1024 permits half are open to every request, and of the other
/// half one agent leaves 3/19, about 80.
const EXPECTED_REFUSALS: std::ops::RangeInclusive<usize> = 50..=60;

/// Sends a flood over HTTP/2, which needs few connections; returns the waiting calls and the refusals. Each request repeats
/// a header of 3,000 bytes `repetitions` times.
async fn flood_until_settled(
    proxy: &TestProxy,
    path: &str,
    repetitions: usize,
) -> (Vec<JoinHandle<TestResponse>>, Vec<TestResponse>) {
    let value = HeaderValue::from_str(&"a".repeat(3000)).expect("a value");
    let mut calls = Vec::new();
    for _ in 0..REQUEST_COUNT / 200 {
        let TestClient::Http2(sender) = TestClient::connect_http2(proxy.address()).await else {
            unreachable!()
        };
        for _ in 0..200 {
            let mut sender = sender.clone();
            let request =
                Request::get(format!("http://proxy.test{path}")).header("x-api-key", client_key("crm"));
            let mut request = request.body(Default::default()).expect("a request");
            // HPACK indexes each repetition; the client would not index a header above 3 KiB.
            (0..repetitions).for_each(|_| _ = request.headers_mut().append("x-long", value.clone()));
            calls.push(tokio::spawn(async move {
                sender.ready().await.expect("a connection");
                TestResponse::read(sender.send_request(request).await.expect("a response")).await
            }));
        }
    }
    let mut admin = TestClient::connect_http1(proxy.admin_address()).await;
    // A request that fetches a ticket itself does not wait.
    let settled = async || waiter_count(&mut admin).await + count_finished(&calls) >= REQUEST_COUNT - 1;
    wait_for("the requests to wait or to be refused", settled).await;
    let (finished, waiting): (Vec<_>, Vec<_>) = calls.into_iter().partition(JoinHandle::is_finished);
    let mut responses = Vec::new();
    for call in finished {
        let response = with_timeout(call).await.expect("no panic");
        response.assert_proxy_error("overloaded", 503, -1);
        assert_eq!(response.header("retry-after"), "1");
        responses.push(response);
    }
    (waiting, responses)
}

/// 64 permits in flight, so that 1024 requests may wait.
fn config_with_64_in_flight() -> String {
    CONFIG_WITH_CLIENTS.replace("[admin]", "max_in_flight = 64\nqueue_timeout = \"10m\"\n[admin]")
}

#[tokio::test]
async fn token_waits_beyond_the_limit_fail_at_once() {
    let proxy = TestProxy::start_with_config(&config_with_64_in_flight()).await;
    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/gettoken").for_agent("hr")).expect("a fault");
    let (waiting, refused) = flood_until_settled(&proxy, &format!("/hr{USER_GET}"), 0).await;
    assert!(EXPECTED_REFUSALS.contains(&refused.len()), "{}", refused.len());
    // Another agent has no token either, and its requests may still wait for one.
    let request = Request::get(format!("/ops{USER_GET}")).header("x-api-key", client_key("crm"));
    proxy.request(request, "").await.assert_ok();
    waiting.iter().for_each(JoinHandle::abort);
    proxy.wecom.release_held();
}

#[tokio::test]
async fn waits_with_long_headers_count_by_their_bytes() {
    let proxy = TestProxy::start_with_config(&config_with_64_in_flight()).await;
    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/gettoken").for_agent("hr")).expect("a fault");
    let (waiting, _) = flood_until_settled(&proxy, &format!("/hr{USER_GET}"), 17).await;
    // 50 KiB of header text are 13 of the 1024 units.
    assert!((60..=1024 / 13).contains(&waiting.len()), "{}", waiting.len());
    waiting.iter().for_each(JoinHandle::abort);
    proxy.wecom.release_held();
}

#[tokio::test]
async fn ticket_waits_beyond_the_limit_fail_at_once() {
    let proxy = TestProxy::start_with_config(&config_with_64_in_flight()).await;
    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/get_jsapi_ticket")).expect("a fault");
    let (waiting, refused) = flood_until_settled(&proxy, "/hr/cgi-bin/get_jsapi_ticket", 0).await;
    assert!(EXPECTED_REFUSALS.contains(&refused.len()), "{}", refused.len());
    proxy.wecom.release_held();
    for call in waiting {
        with_timeout(call).await.expect("no panic").assert_ok();
    }
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn waiting_request_uses_less_than_four_kib() {
    // Futures of an unoptimized build are larger: 4,650 bytes beyond an idle connection, which takes 280 less than it did.
    const BOUND: u64 = if cfg!(debug_assertions) { 4608 + 280 } else { 4096 };
    assert_least_of_three(BOUND, bytes_per_waiting_request).await;
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn waiting_stream_uses_less_than_four_kib() {
    // Futures of an unoptimized build are larger: up to 4,680 bytes, where the program itself takes 3,850.
    const BOUND: u64 = if cfg!(debug_assertions) { 5120 } else { 4096 };
    assert_least_of_three(BOUND, bytes_per_waiting_stream).await;
}

/// What else the process allocates meanwhile only adds to a measurement, so the least of three is the nearest to the truth.
#[cfg(target_os = "linux")]
async fn assert_least_of_three(bound: u64, measure: impl AsyncFn() -> u64) {
    let mut measured = Vec::new();
    for _ in 0..3 {
        measured.push(measure().await);
        if measured.last() < Some(&bound) {
            return;
        }
    }
    panic!("{measured:?} bytes each, {bound} allowed");
}

/// A process whose upstream accepts no connection, so that gettoken hangs.
#[cfg(target_os = "linux")]
async fn process_with_hanging_gettoken(dir: &TempDir) -> (Process, tokio::net::TcpListener) {
    let upstream = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let api = upstream.local_addr().expect("an address");
    let config = write_config(dir, api, &Settings::default(), CONFIG_WITH_CLIENTS);
    (Process::serve(&config).await, upstream)
}

#[cfg(target_os = "linux")]
async fn bytes_per_waiting_request() -> u64 {
    const WAITING: usize = 1000;
    let dir = TempDir::new().expect("a directory");
    let (process, _upstream) = process_with_hanging_gettoken(&dir).await;
    let address = process.address().await;
    let mut admin = TestClient::connect_http1(process.admin_address().await).await;
    let mut connections = Vec::new();
    for _ in 0..WAITING {
        let mut connection = RawConnection::connect(address).await;
        connection.send("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
        assert!(connection.read_response().await.0.starts_with("HTTP/1.1 404 "));
        connections.push(connection);
    }
    let idle = process.resident_bytes();
    let headers = format!(
        "X-One: {}\r\nX-Two: {}\r\nX-Three: {}\r\n",
        "a".repeat(150),
        "b".repeat(150),
        "c".repeat(150)
    );
    for (nth, connection) in connections.iter_mut().enumerate() {
        let request = format!(
            "GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {nth}\r\nX-Api-Key: {}\r\n{headers}\r\n",
            client_key("crm")
        );
        connection.send(request).await.expect("sent");
    }
    wait_for("all of them to wait", async || waiter_count(&mut admin).await == WAITING).await;
    process.resident_bytes().saturating_sub(idle) / WAITING as u64
}

#[cfg(target_os = "linux")]
async fn bytes_per_waiting_stream() -> u64 {
    const STREAMS: usize = 240;
    const CONNECTIONS: usize = 4;
    let dir = TempDir::new().expect("a directory");
    let (process, _upstream) = process_with_hanging_gettoken(&dir).await;
    let mut admin = TestClient::connect_http1(process.admin_address().await).await;
    let mut senders = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = TestClient::connect_http2(process.address().await).await;
        assert_eq!(client.request(Request::get("/nowhere"), "").await.status, 404);
        let TestClient::Http2(sender) = client else { unreachable!() };
        senders.push(sender);
    }
    let idle = process.resident_bytes();
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
    let total = STREAMS * CONNECTIONS;
    wait_for("all of them to wait", async || waiter_count(&mut admin).await == total).await;
    process.resident_bytes().saturating_sub(idle) / total as u64
}

/// The number of requests that wait for a token, from the metrics.
pub async fn waiter_count(admin: &mut TestClient) -> usize {
    let metrics = admin.request(Request::get("/metrics"), "").await;
    let line = metrics.text().lines().find_map(|line| line.strip_prefix("wecom_proxy_token_waiters "));
    line.expect("the metric").parse().expect("a number")
}

fn count_finished(calls: &[JoinHandle<TestResponse>]) -> usize {
    calls.iter().filter(|call| call.is_finished()).count()
}
