//! Timeouts towards the upstream, and towards slow or silent clients.
//!
//! A timeout that must not expire in a test is long enough for a machine that stalls for a while.

use std::time::Duration;

use wecom_proxy::simulator::Fault;

use crate::{
    harness::{ECHO, OPEN_CONFIG, TestClient, TestProxy, USER_GET, with_timeout},
    raw_http::{ManualUpstream, RawConnection, raw_get},
};

/// The open configuration with these lines in `[server]` and `[upstream]`.
pub fn config_with_timeouts(server: &str, upstream: &str) -> String {
    OPEN_CONFIG.replace("[upstream]", &format!("{server}\n[upstream]\n{upstream}"))
}

/// Reads until the proxy closes the connection.
pub async fn read_until_closed(connection: &mut RawConnection) -> Vec<u8> {
    connection.read_to_end().await.0
}

#[tokio::test]
async fn missing_response_returns_upstream_timeout() {
    let proxy = TestProxy::start_with_config(&config_with_timeouts("", "response_timeout = \"2s\"")).await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let (get, post) = tokio::join!(proxy.get(ECHO), proxy.post(ECHO, "{}"));
    get.assert_proxy_error("upstream-timeout", 504, -1);
    post.assert_proxy_error("upstream-timeout", 504, -1);
    assert_eq!(proxy.forwarded_count(), 3);
    proxy.get(USER_GET).await.assert_ok();
}

#[tokio::test]
async fn response_stalled_before_forwarding_is_upstream_timeout() {
    let mut upstream = ManualUpstream::new().await;
    let proxy = TestProxy::start_with_upstream(
        upstream.address,
        &config_with_timeouts("", "body_timeout = \"200ms\""),
    )
    .await;
    let respond = async {
        let mut call = upstream.next_call().await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{\"a\":";
        call.connection.send(head).await.expect("sent");
        call
    };
    let (response, _call) = tokio::join!(proxy.get(USER_GET), respond);
    response.assert_proxy_error("upstream-timeout", 504, -1);
}

/// A connection has one timer for all its waits, and the next connection reuses it: each wait has its own deadline.
#[tokio::test]
async fn reused_timer_ends_each_wait() {
    let mut upstream = ManualUpstream::new().await;
    let upstream_timeouts = "response_timeout = \"2s\"\nbody_timeout = \"2s\"";
    let proxy = TestProxy::start_with_upstream(
        upstream.address,
        &config_with_timeouts("idle_timeout = \"3s\"", upstream_timeouts),
    )
    .await;
    let get = raw_get(USER_GET);
    let chunk =
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let mut open_calls = Vec::new();
    for stalls in [true, false] {
        let mut client = RawConnection::connect(proxy.address()).await;
        if stalls {
            // The token is refused, and the retry gets no response.
            client.send(&get).await.expect("sent");
            let mut call = upstream.next_call().await;
            let refusal = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{\"errcode\":40014}";
            call.connection.send(refusal).await.expect("sent");
            assert!(call.connection.read_head().await.starts_with("GET "));
            assert!(client.read_response().await.0.starts_with("HTTP/1.1 504 "));
            open_calls.push(call);
        }
        // A chunked response on a keep-alive connection.
        client.send(&get).await.expect("sent");
        let mut call = upstream.next_call().await;
        call.connection.send(chunk).await.expect("sent");
        assert!(client.read_head().await.starts_with("HTTP/1.1 200 "));
        call.connection.send("0\r\n\r\n").await.expect("sent");
        assert_eq!(client.read_exact(15).await, b"5\r\nhello\r\n0\r\n\r\n");
        // The upstream closes during the next request, and the retry on a new connection gets no response.
        client.send(&get).await.expect("sent");
        assert!(call.connection.read_head().await.starts_with("GET "));
        drop(call);
        open_calls.push(upstream.next_call().await);
        assert!(client.read_response().await.0.starts_with("HTTP/1.1 504 "));
        if stalls {
            client.send(&get).await.expect("sent");
            let mut call = upstream.next_call().await;
            call.connection.send(chunk).await.expect("sent");
            assert!(client.read_head().await.starts_with("HTTP/1.1 200 "));
            open_calls.push(call);
            assert_eq!(client.read_to_end().await.0, b"5\r\nhello\r\n");
        } else {
            assert_eq!(read_until_closed(&mut client).await, b"");
        }
    }
}

#[tokio::test]
async fn response_stalled_in_its_body_aborts_the_client_connection() {
    let proxy = TestProxy::start_with_config(&config_with_timeouts("", "body_timeout = \"200ms\"")).await;
    proxy.wecom.inject(Fault::stall().on_path("/cgi-bin/media/get")).expect("a fault");
    for http2 in [false, true] {
        let mut client = match http2 {
            true => TestClient::connect_http2(proxy.address()).await,
            false => TestClient::connect_http1(proxy.address()).await,
        };
        let media = "/hr/cgi-bin/media/get?media_id=generated-100000";
        let request = http::Request::get(media).body(Default::default()).expect("a request");
        let response = with_timeout(client.send(request)).await.expect("a head");
        assert!(with_timeout(http_body_util::BodyExt::collect(response.into_body())).await.is_err());
    }
}

#[tokio::test]
async fn incomplete_request_head_is_closed() {
    let proxy = TestProxy::start_with_config(&config_with_timeouts("header_timeout = \"300ms\"", "")).await;
    for partial in [
        "G",
        "GET /hr/cgi-bin/user/get HTTP/1.1\r\nHost: x\r\n",
        "P",
        "PRI * HT",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n",
    ] {
        let mut connection = RawConnection::connect(proxy.address()).await;
        connection.send(partial).await.expect("sent");
        assert_eq!(read_until_closed(&mut connection).await, b"", "{partial:?}");
    }
}

#[tokio::test]
async fn slow_request_head_is_closed() {
    let proxy = TestProxy::start_with_config(&config_with_timeouts("header_timeout = \"300ms\"", "")).await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection.send("GET /hr/cgi-bin/user/get HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.expect("sent");
    let mut interval = tokio::time::interval(Duration::from_millis(20));
    let send_until_closed = async {
        while connection.send("x").await.is_ok() {
            interval.tick().await;
        }
    };
    with_timeout(send_until_closed).await;
    assert_eq!(proxy.forwarded_count(), 0);
}

#[tokio::test]
async fn second_request_head_is_timed_too() {
    let proxy = TestProxy::start_with_config(&config_with_timeouts("header_timeout = \"2s\"", "")).await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection.send(raw_get(USER_GET)).await.expect("sent");
    assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200 "));
    connection.send("GET /hr").await.expect("sent");
    assert_eq!(read_until_closed(&mut connection).await, b"");
}

/// The runtime wakes a task that has used up its cooperative budget, just as a timer does. After a burst of any length the
/// idle connection is closed.
#[tokio::test]
async fn idle_connection_after_a_burst_is_closed() {
    let proxy = TestProxy::start_with_config(&config_with_timeouts(
        "idle_timeout = \"1s\"\nheader_timeout = \"60s\"",
        "",
    ))
    .await;
    let mut connections = Vec::new();
    for requests in 110..140 {
        let mut connection = RawConnection::connect(proxy.address()).await;
        connection.send("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n".repeat(requests)).await.expect("sent");
        connections.push((requests, connection));
    }
    for (requests, connection) in &mut connections {
        let responses = String::from_utf8(read_until_closed(connection).await).expect("text");
        assert_eq!(responses.matches("HTTP/1.1 404 ").count(), *requests);
    }
}

#[tokio::test]
async fn idle_connection_is_closed() {
    let proxy = TestProxy::start_with_config(&config_with_timeouts(
        "idle_timeout = \"2s\"\nheader_timeout = \"60s\"",
        "",
    ))
    .await;
    let closed_after = async |requests| {
        let mut connection = RawConnection::connect(proxy.address()).await;
        for _ in 0..requests {
            connection.send(raw_get(USER_GET)).await.expect("sent");
            assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200 "));
        }
        assert_eq!(read_until_closed(&mut connection).await, b"");
    };
    tokio::join!(closed_after(0), closed_after(1), closed_after(2));
}

#[tokio::test]
async fn keep_alive_idle_time_is_not_header_timeout() {
    let proxy = TestProxy::start_with_config(&config_with_timeouts("header_timeout = \"2s\"", "")).await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    for last in [false, true] {
        connection.send(raw_get(USER_GET)).await.expect("sent");
        assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200 "));
        if !last {
            // Twice `header_timeout`: the absence of a close has no event.
            let silence = tokio::time::timeout(Duration::from_secs(4), connection.read_more()).await;
            assert!(silence.is_err(), "the connection was closed");
        }
    }
}

#[tokio::test]
async fn slow_request_is_not_idle() {
    let proxy = TestProxy::start_with_config(&config_with_timeouts(
        "idle_timeout = \"2s\"\nheader_timeout = \"2s\"",
        "",
    ))
    .await;
    proxy.wecom.inject(Fault::delay(Duration::from_secs(4)).on_path(ECHO)).expect("a fault");
    let http2 = async { TestClient::connect_http2(proxy.address()).await.get(ECHO).await };
    let (http1, http2_response) = tokio::join!(proxy.get(ECHO), http2);
    http1.assert_ok();
    http2_response.assert_ok();
}

#[tokio::test]
async fn stalled_body_is_refused_and_the_upstream_released() {
    let proxy = TestProxy::start_with_config(&config_with_timeouts("body_timeout = \"300ms\"", "")).await;
    proxy.get(USER_GET).await.assert_ok();
    for framing in ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        let mut connection = RawConnection::connect(proxy.address()).await;
        connection.send(format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\n{framing}")).await.expect("sent");
        let (head, body) = connection.read_response().await;
        assert!(head.starts_with("HTTP/1.1 400 ") && body.contains("server.body_timeout"), "{head}{body}");
    }
    proxy.wecom.wait_until(|observed| observed.in_flight() == 0).await.expect("a released upstream request");
    assert_eq!(proxy.wecom.executed_count(ECHO), 0);
}

#[tokio::test]
async fn slow_body_in_progress_is_accepted() {
    let toml = config_with_timeouts("body_timeout = \"20s\"", "response_timeout = \"2s\"");
    let proxy = TestProxy::start_with_config(&toml).await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection
        .send(format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n"))
        .await
        .expect("sent");
    // `response_timeout` does not run while the client is still sending.
    let mut interval = tokio::time::interval(Duration::from_millis(350));
    for _ in 0..12 {
        interval.tick().await;
        connection.send("x").await.expect("sent");
    }
    let (head, body) = connection.read_response().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}{body}");
}

#[tokio::test]
async fn upstream_that_never_reads_is_upstream_timeout() {
    let mut upstream = ManualUpstream::new().await;
    let proxy = TestProxy::start_with_upstream(
        upstream.address,
        &config_with_timeouts("", "response_timeout = \"2s\""),
    )
    .await;
    let (response, _call) = tokio::join!(proxy.post(ECHO, vec![1; 30_000_000]), upstream.next_call());
    response.assert_proxy_error("upstream-timeout", 504, -1);
}

#[tokio::test]
async fn gettoken_timeout_is_token_unavailable() {
    let proxy = TestProxy::start_with_config(&config_with_timeouts("", "response_timeout = \"200ms\"")).await;
    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/gettoken")).expect("a fault");
    proxy.get(USER_GET).await.assert_proxy_error("token-unavailable", 502, -1);
    assert_eq!(proxy.forwarded_count(), 0);
}

#[tokio::test]
async fn client_not_reading_is_disconnected() {
    let mut upstream = ManualUpstream::new().await;
    let proxy = TestProxy::start_with_upstream(
        upstream.address,
        &config_with_timeouts("body_timeout = \"300ms\"", ""),
    )
    .await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection.send(raw_get(USER_GET)).await.expect("sent");
    let mut call = upstream.next_download().await;
    let chunk = vec![b'x'; 64 * 1024];
    // The loop ends when the proxy closes the upstream connection.
    while call.connection.send(&chunk).await.is_ok() {}
    drop(connection);
}
