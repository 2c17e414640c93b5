//! Headers (contract §5): which are forwarded in either direction, and which the proxy adds.

use std::time::{Duration, Instant};

use http::Request;
use wecom_proxy::simulator::Fault;

use crate::{
    harness::{ECHO, OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, wait_for},
    inspector::wait_for_exchanges,
    raw_http::{ManualUpstream, RawConnection},
};

#[tokio::test]
async fn client_and_hop_by_hop_headers_are_not_forwarded() {
    let proxy = TestProxy::start_open().await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    let removed = "Connection: close, X-Named, te , Host, Content-Length, \r\nX-Named: 1\r\nKeep-Alive: 1\r\n\
        Proxy-Connection: keep-alive\r\nTE: trailers\r\nTrailer: X-T\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\
        Proxy-Authorization: Basic eDp5\r\nAuthorization: Bearer k\r\nX-Api-Key: k\r\nCookie: a=b\r\nForwarded: for=1\r\n\
        X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Anything: 1\r\nVia: 1.0 x\r\n\
        X-Wecom-Debug: 1\r\nX-Wecom-Whatever: 1\r\n";
    let forwarded = "User-Agent: Zabbix/6.0 (odd)  agent\r\nAccept: */*\r\nAccept-Encoding: gzip\r\nX-Other: a\r\nX-Other: b\r\n\
        Content-Type: application/x-www-form-urlencoded\r\nIf-None-Match: \"x\"\r\nX-Request-Id: r-1\r\nRange: bytes=0-1\r\n";
    let request = format!(
        "POST /hr{ECHO} HTTP/1.1\r\nHost: evil.test\r\n{removed}{forwarded}Content-Length: 2\r\n\r\n{{}}"
    );
    connection.send(request).await.expect("sent");
    let (head, body) = connection.read_response().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}{body}");
    let mut received = proxy.last_request(ECHO).headers;
    received.sort();
    let api = proxy.wecom.api_addr().to_string();
    let expected = [
        ("accept", "*/*"),
        ("accept-encoding", "gzip"),
        ("content-length", "2"),
        ("content-type", "application/x-www-form-urlencoded"),
        ("host", api.as_str()),
        ("if-none-match", "\"x\""),
        ("range", "bytes=0-1"),
        ("user-agent", "Zabbix/6.0 (odd)  agent"),
        ("x-other", "a"),
        ("x-other", "b"),
        ("x-request-id", "r-1"),
    ];
    let expected: Vec<_> =
        expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    assert_eq!(received, expected);
}

#[tokio::test]
async fn missing_user_agent_is_not_added() {
    let proxy = TestProxy::start_open().await;
    proxy.get(ECHO).await.assert_ok();
    assert!(proxy.last_request(ECHO).header_values("user-agent").is_empty());
}

#[tokio::test]
async fn h2c_upgrade_offer_is_ignored() {
    let proxy = TestProxy::start_open().await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    for _ in 0..2 {
        connection
            .send(format!(
                "GET /hr{USER_GET} HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nHost: x\r\n\
             HTTP2-Settings: AAEAAEAAAAIAAAAB\r\nUpgrade: h2c\r\n\r\n"
            ))
            .await
            .expect("sent");
        assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200 "));
    }
    assert!(proxy.last_request("/cgi-bin/user/get").header_values("upgrade").is_empty());
}

#[tokio::test]
async fn response_status_headers_and_body_are_forwarded() {
    let proxy = TestProxy::start_open().await;
    for status in [200, 201, 302, 400, 404, 418, 429, 500, 503, 599] {
        proxy.wecom.reset();
        let fault = Fault::response(status, "text/html; charset=gbk", "<b>\u{1}as it is</b>")
            .with_header("x-anything", "kept")
            .with_header("set-cookie", "a=1")
            .with_header("set-cookie", "b=2")
            .with_header("location", "http://elsewhere.test/?x=1")
            .with_header("server", "nginx")
            .with_header("date", "Thu, 01 Jan 1970 00:00:00 GMT")
            .with_header("server-timing", "theirs;dur=1")
            .on_path(ECHO);
        proxy.wecom.inject(fault).expect("a fault");
        let response = proxy.get(ECHO).await;
        assert_eq!((response.status.as_u16(), response.text()), (status, "<b>\u{1}as it is</b>"));
        for (name, value) in [
            ("content-type", "text/html; charset=gbk"),
            ("x-anything", "kept"),
            ("location", "http://elsewhere.test/?x=1"),
            ("server", "nginx"),
            ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
            ("x-wecom-proxy-error", ""),
        ] {
            assert_eq!(response.header(name), value, "{name}");
        }
        assert_eq!(response.headers.get_all("set-cookie").iter().count(), 2);
        let timings: Vec<_> = response.headers.get_all("server-timing").iter().collect();
        assert_eq!((timings.len(), timings[0].to_str().expect("text")), (2, "theirs;dur=1"));
        assert_eq!(proxy.forwarded_count(), 1);
    }
}

#[tokio::test]
async fn upstream_hop_by_hop_headers_are_not_forwarded() {
    for framing in
        ["Content-Length: 2\r\n\r\nhi", "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-T: 1\r\n\r\n"]
    {
        let mut upstream = ManualUpstream::new().await;
        let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
        let respond = async {
            let mut call = upstream.next_call().await;
            call.connection
                .send(format!(
                    "HTTP/1.1 200 OK\r\nConnection: X-Named, keep-alive, content-length\r\nX-Named: 1\r\nKeep-Alive: timeout=9\r\n\
                     Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nTrailer: X-T\r\nContent-Type: image/png\r\nX-Kept: 1\r\n{framing}"
                ))
                .await
                .expect("sent");
            call
        };
        let mut client = TestClient::connect_http2(proxy.address()).await;
        let (response, _call) = tokio::join!(client.get(USER_GET), respond);
        assert_eq!((response.status.as_u16(), response.text(), response.header("x-kept")), (200, "hi", "1"));
        for name in [
            "connection",
            "x-named",
            "keep-alive",
            "proxy-authenticate",
            "upgrade",
            "trailer",
            "transfer-encoding",
            "x-t",
        ] {
            assert_eq!(response.header(name), "", "{name}");
        }
    }
}

#[tokio::test]
async fn head_response_has_length_and_no_body() {
    let proxy = TestProxy::start_open().await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    for _ in 0..2 {
        let media = "/cgi-bin/media/get?media_id=generated-1000";
        connection.send(format!("HEAD /hr{media} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("sent");
        let head = connection.read_head().await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 ") && head.contains("content-length: 1000\r\n"), "{head}");
    }
}

#[tokio::test]
async fn range_request_returns_206() {
    let proxy = TestProxy::start_open().await;
    let media = "/hr/cgi-bin/media/get?media_id=generated-1000";
    let response = proxy.request(Request::get(media).header("range", "bytes=10-19"), "").await;
    assert_eq!((response.status.as_u16(), response.header("content-range")), (206, "bytes 10-19/1000"));
    assert_eq!(response.body.len(), 10);
    let response = proxy.request(Request::get(media).header("range", "bytes=5000-"), "").await;
    assert_eq!((response.status.as_u16(), response.header("content-range")), (416, "bytes */1000"));
}

#[tokio::test]
async fn bodiless_responses_stay_bodiless() {
    for (status, length) in [("204 No Content", ""), ("304 Not Modified", "Content-Length: 77\r\n")] {
        let mut upstream = ManualUpstream::new().await;
        let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
        let respond = async {
            let mut call = upstream.next_call().await;
            call.connection
                .send(format!("HTTP/1.1 {status}\r\nETag: \"x\"\r\n{length}\r\n"))
                .await
                .expect("sent");
            call
        };
        let (response, _call) = tokio::join!(proxy.get(USER_GET), respond);
        assert_eq!(
            (response.status.as_str(), response.text(), response.header("etag")),
            (&status[..3], "", "\"x\"")
        );
        assert_eq!(response.header("transfer-encoding"), "");
    }
}

#[tokio::test]
async fn valid_request_id_is_kept_and_invalid_replaced() {
    let proxy = TestProxy::start_open().await;
    let longest = "x".repeat(128);
    for valid in ["a", "0d3c-1/2:3_4.5+6=", longest.as_str()] {
        let response =
            proxy.request(Request::get(format!("/hr{USER_GET}")).header("x-request-id", valid), "").await;
        assert_eq!(response.header("x-request-id"), valid);
    }
    let too_long = "x".repeat(129);
    let mut generated = std::collections::HashSet::new();
    let (generated_key, secret) = ("0f".repeat(32), "Kq3-5vXz_7bN1mPqRsTuVwXyZaBcDeFgHiJkLmNoPqR");
    for invalid in ["", "a b", "<script>", "a,b", "a\"b", "a\tb", &*too_long, &*generated_key, secret] {
        let response =
            proxy.request(Request::get(format!("/hr{USER_GET}")).header("x-request-id", invalid), "").await;
        assert!(generated.insert(response.header("x-request-id").to_owned()), "{response:?}");
        assert!(response.header("x-request-id").len() >= 16 && response.header("x-request-id") != invalid);
    }
    let refused = proxy.request(Request::get("/nowhere").header("x-request-id", "mine"), "").await;
    assert_eq!(refused.header("x-request-id"), "mine");
}

/// The token and upstream times of a response's Server-Timing header, in milliseconds.
fn server_timing_ms(response: &TestResponse) -> Vec<f64> {
    let text = response.header("server-timing").to_owned();
    let parts = text.strip_prefix("token;dur=").and_then(|rest| rest.split_once(", upstream;dur="));
    let (token, upstream) = parts.unwrap_or_else(|| panic!("{text}"));
    [token, upstream].iter().map(|part| part.parse().expect("a number")).collect()
}

#[tokio::test]
async fn server_timing_splits_token_and_upstream_time() {
    let proxy = TestProxy::start_open().await;
    let slow = Fault::delay(Duration::from_millis(30));
    proxy.wecom.inject(slow).expect("a fault");
    let cold = server_timing_ms(&proxy.get(USER_GET).await);
    assert!(cold[0] >= 29.0 && cold[1] >= 29.0, "{cold:?}");
    let warm = server_timing_ms(&proxy.get(USER_GET).await);
    assert!(warm[0] < 29.0 && warm[1] >= 29.0, "{warm:?}");
}

/// The upstream time excludes the wait for a token and the wait for an in-flight permit.
#[tokio::test]
async fn server_timing_excludes_token_and_queue_waits() {
    let proxy = TestProxy::start_with_config(
        &OPEN_CONFIG.replace("[admin]", "max_in_flight = 1\nqueue_timeout = \"10m\"\n[admin]"),
    )
    .await;
    let slow = Duration::from_secs(3);
    proxy.wecom.inject(Fault::delay(slow).on_path("/cgi-bin/gettoken").times(1)).expect("a fault");
    let started = Instant::now();
    let cold = server_timing_ms(proxy.get(USER_GET).await.assert_ok());
    let total = started.elapsed().as_secs_f64() * 1000.0;
    assert!(cold[0] >= 2999.0 && cold[0] + cold[1] <= total, "{cold:?} of {total}");
    proxy.wecom.inject(Fault::delay(slow).on_path(ECHO).times(1)).expect("a fault");
    let wait = async {
        wait_for("the slow call", async || {
            proxy.wecom.observe(|observed| observed.requests().any(|record| record.path == ECHO))
        })
        .await;
        let started = Instant::now();
        let queued = server_timing_ms(proxy.get(USER_GET).await.assert_ok());
        (queued, started.elapsed().as_secs_f64() * 1000.0)
    };
    let (response, (queued, total)) = tokio::join!(proxy.get(ECHO), wait);
    assert!(server_timing_ms(&response)[1] >= 2999.0, "{response:?}");
    assert!(queued[1] + 1000.0 < total, "{queued:?} of {total}");
}

#[tokio::test]
async fn hint_header_is_sent_on_debug_request() {
    let proxy = TestProxy::start_open().await;
    proxy.wecom.inject(Fault::errcode(60020).on_path(ECHO)).expect("a fault");
    proxy.wecom.inject(Fault::errcode(123_456).on_path("/cgi-bin/tag/list")).expect("a fault");
    let debug_request = |path: &str, debug: &str| {
        Request::get(format!("/hr{path}")).header("x-wecom-debug", debug.to_owned())
    };
    let response = proxy.request(debug_request(ECHO, "1"), "").await;
    assert_eq!(response.errcode(), 60020);
    assert!(response.header("x-wecom-hint").contains("trusted IPs"), "{response:?}");
    assert_eq!(proxy.request(debug_request(ECHO, "0"), "").await.header("x-wecom-hint"), "");
    assert_eq!(proxy.get(ECHO).await.header("x-wecom-hint"), "");
    assert_eq!(proxy.request(debug_request(USER_GET, "1"), "").await.assert_ok().header("x-wecom-hint"), "");
    let unknown = proxy.request(debug_request("/cgi-bin/tag/list", "1"), "").await;
    assert_eq!((unknown.errcode(), unknown.header("x-wecom-hint")), (123_456, ""));
    // The proxy's own errors say what to do; WeCom's explanation of their errcodes would mislead.
    let keyed = TestProxy::start_with_config(crate::harness::CONFIG_WITH_CLIENTS).await;
    let own = keyed.request(debug_request(USER_GET, "1"), "").await;
    assert_eq!(own.assert_proxy_error("unauthenticated", 401, 40001).header("x-wecom-hint"), "");
}

/// A gettoken without a response has no errcode of WeCom's: the hint says what happened.
#[tokio::test]
async fn hint_of_a_failed_gettoken_says_what_happened() {
    let debug_request = || Request::get(format!("/hr{USER_GET}")).header("x-wecom-debug", "1");
    let unreachable = TestProxy::start_with_config(&OPEN_CONFIG.replace("{api}", "wecom.invalid")).await;
    let busy = TestProxy::start_open().await;
    busy.wecom.inject(Fault::errcode(-1).on_path("/cgi-bin/gettoken")).expect("a fault");
    for (proxy, expected, has_table_hint) in [(&unreachable, "name not found", false), (&busy, "busy", true)]
    {
        let response = proxy.request(debug_request(), "").await;
        let hint = response.assert_proxy_error("token-unavailable", 502, -1).header("x-wecom-hint");
        assert!(hint.contains(expected) && hint.contains("busy") == has_table_hint, "{hint}");
        let id = response.header("x-request-id");
        assert_eq!(hint.contains(&format!("(request id {id})")), !has_table_hint, "{hint}");
        let exchange = &wait_for_exchanges(proxy, &format!("id={id}"), 1).await[0];
        assert_eq!(exchange["hint"].is_string(), has_table_hint, "{exchange}");
        assert!(exchange["reason"].as_str().is_some_and(|reason| reason.contains("gettoken")), "{exchange}");
    }
    let webhook = unreachable
        .request(Request::post("/cgi-bin/webhook/send?key=none").header("x-wecom-debug", "1"), "{}");
    let webhook = webhook.await;
    let hint = webhook.assert_proxy_error("upstream-unreachable", 502, -1).header("x-wecom-hint");
    assert!(hint.contains("name not found"), "{hint}");
}

#[tokio::test]
async fn retried_header_has_the_errcode() {
    let proxy = TestProxy::start_open().await;
    assert_eq!(proxy.get(USER_GET).await.assert_ok().header("x-wecom-retried"), "");
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    assert_eq!(proxy.get(USER_GET).await.assert_ok().header("x-wecom-retried"), "40014");
    proxy.wecom.expire_tokens("hr").expect("an agent");
    assert_eq!(proxy.get(USER_GET).await.assert_ok().header("x-wecom-retried"), "42001");
}

#[tokio::test]
async fn http2_client_headers_are_filtered_too() {
    let proxy = TestProxy::start_open().await;
    let request = Request::post(format!("/hr{ECHO}"))
        .header("te", "trailers")
        .header("cookie", "a=b")
        .header("cookie", "c=d")
        .header("authorization", "Bearer k")
        .header("x-forwarded-for", "192.0.2.1")
        .header("host", "evil.test")
        .header("x-kept", "1");
    TestClient::connect_http2(proxy.address()).await.request(request, "{}").await.assert_ok();
    let mut names: Vec<_> = proxy.last_request(ECHO).headers.into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(names, ["content-length", "host", "x-kept"]);
}
