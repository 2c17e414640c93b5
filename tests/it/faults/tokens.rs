//! Valid and invalid gettoken responses, and their effect on the waiting request and on the next one.

use std::time::Duration;

use super::{
    run_concurrently,
    scripted_upstream::{CASE_PATH, ScriptedUpstream, Step, json_response},
};
use crate::harness::{OPEN_CONFIG, TestProxy, TestResponse, wait_for};

/// A valid gettoken response.
const VALID_GETTOKEN: &str = r#"{"errcode":0,"errmsg":"ok","access_token":"GOOD-TOKEN","expires_in":7200}"#;
const NEXT: &str = "/cgi-bin/user/get?userid=x";

/// Starts a proxy whose gettoken runs these steps; the time-outs are short only if the upstream stalls.
async fn start_proxy(gettoken: Vec<Step>) -> (ScriptedUpstream, TestProxy) {
    let upstream = ScriptedUpstream::new().await;
    let upstream_timeout = if matches!(gettoken.last(), Some(Step::ReadOnly)) { "2s" } else { "10m" };
    upstream.set_gettoken_steps(gettoken);
    let settings =
        format!("response_timeout = \"{upstream_timeout}\"\nbody_timeout = \"{upstream_timeout}\"\n[admin]");
    let proxy =
        TestProxy::start_with_upstream(upstream.address, &OPEN_CONFIG.replace("[admin]", &settings)).await;
    (upstream, proxy)
}

fn send_steps(bytes: impl Into<Vec<u8>>) -> Vec<Step> {
    vec![Step::Send(bytes.into())]
}

#[tokio::test]
async fn token_with_any_expires_in_is_used() {
    for expires_in in [
        "7200",
        "\"7200\"",
        "7200.0",
        "0",
        "-1",
        "\"\"",
        "\"soon\"",
        "null",
        "[]",
        "0.5",
        "18446744073709551616",
        "-9223372036854775809",
    ] {
        let body = format!("{{\"errcode\":0,\"access_token\":\"GOOD-TOKEN\",\"expires_in\":{expires_in}}}");
        let (upstream, proxy) = start_proxy(send_steps(json_response(&body))).await;
        for _ in 0..5 {
            assert_eq!(proxy.get(NEXT).await.assert_ok().header("x-wecom-retried"), "", "{expires_in}");
        }
        assert_eq!(upstream.gettoken_count(), 1, "{expires_in}: refreshed before it was due");
    }
    let (upstream, proxy) = start_proxy(send_steps(json_response(r#"{"access_token":"GOOD-TOKEN"}"#))).await;
    proxy.get(NEXT).await.assert_ok();
    proxy.get(NEXT).await.assert_ok();
    assert_eq!(upstream.gettoken_count(), 1, "without expires_in");
}

/// Gettoken responses without a usable token, each with a part of the error that the client gets.
#[rustfmt::skip]
fn invalid_gettoken_responses() -> Vec<(Vec<Step>, &'static str)> {
    let body = |body: &str| send_steps(json_response(body));
    let html = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>";
    vec![
        (send_steps(&html[..]), "HTTP 500"),
        (send_steps(&b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"[..]), "HTTP 502"),
        (send_steps(&b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"[..]), "HTTP 302"),
        (send_steps(&b"HTTP/1.1 204 No Content\r\n\r\n"[..]), "HTTP 204"),
        (body("<html>portal</html>"), "not JSON"),
        (body(""), "not JSON"),
        (body("null"), "not JSON"),
        (body("[]"), "not JSON"),
        (body("\"TOKEN\""), "not JSON"),
        (body("{\"errcode\":0,\"access_token\":\"HALF-"), "not JSON"),
        (body("{\"errcode\":0,\"errmsg\":\"ok\"}"), "no access_token"),
        (body("{\"errcode\":0,\"access_token\":null}"), "no access_token"),
        (body("{\"errcode\":0,\"access_token\":\"\"}"), "allowed in a URL"),
        (body("{\"errcode\":0,\"access_token\":17}"), "allowed in a URL"),
        (body("{\"errcode\":0,\"access_token\":[\"a\"]}"), "allowed in a URL"),
        (body("{\"errcode\":0,\"access_token\":\"a b\"}"), "allowed in a URL"),
        (body("{\"errcode\":0,\"access_token\":\"a&b=c\"}"), "allowed in a URL"),
        (body("{\"errcode\":0,\"access_token\":\"a#b\"}"), "allowed in a URL"),
        (body("{\"errcode\":0,\"access_token\":\"a%0d%0a\"}"), "allowed in a URL"),
        (body("{\"errcode\":0,\"access_token\":\"a\\r\\nX: y\"}"), "allowed in a URL"),
        (body("{\"errcode\":0,\"access_token\":\"a\\u0000\"}"), "allowed in a URL"),
        (body("{\"errcode\":0,\"access_token\":\"\\u00e9\"}"), "allowed in a URL"),
        (body(&format!("{{\"errcode\":0,\"access_token\":\"{}\"}}", "a".repeat(513))), "allowed in a URL"),
        (body(&format!("{{\"errcode\":0,\"x\":\"{}\"}}", "a".repeat(70_000))), "exceeds 64 KiB"),
        (vec![Step::Close], "connection closed before"),
        (vec![Step::Reset], "connection closed before"),
        (vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{\"err".to_vec()), Step::Close], "response truncated"),
        (vec![Step::ReadOnly], "upstream.response_timeout"),
        (vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{\"err".to_vec()), Step::ReadOnly], "upstream.body_timeout"),
        (vec![Step::Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec()), Step::SendForever(b"1\r\n \r\n".to_vec())], "exceeds 64 KiB"),
    ]
}

async fn assert_costs_one_request(steps: Vec<Step>, expected_text: &str) {
    let (upstream, proxy) = start_proxy(steps.clone()).await;
    let refused = proxy.get(NEXT).await;
    refused.assert_proxy_error("token-unavailable", 502, -1);
    assert!(refused.text().contains(expected_text), "{steps:?}: {}", refused.text());
    for forbidden in ["HALF-", "a&b", "aaaaaaaa", "<html", "portal"] {
        assert!(!refused.text().contains(forbidden), "{steps:?}: {}", refused.text());
    }
    assert_eq!((upstream.gettoken_count(), upstream.take_request_lines().len()), (1, 0), "{steps:?}");
    upstream.set_gettoken_steps(send_steps(json_response(VALID_GETTOKEN)));
    wait_for("the next fetch", async || proxy.get(NEXT).await.status == 200).await;
    assert_eq!(upstream.gettoken_count(), 2, "{steps:?}");
}

#[tokio::test]
async fn invalid_gettoken_response_fails_only_the_waiting_request() {
    run_concurrently(
        invalid_gettoken_responses()
            .into_iter()
            .map(|(steps, expected_text)| assert_costs_one_request(steps, expected_text)),
    )
    .await;
}

#[tokio::test]
async fn frequency_limited_gettoken_is_not_repeated() {
    let (upstream, proxy) =
        start_proxy(send_steps(json_response(r#"{"errcode":45009,"errmsg":"api freq out of limit"}"#))).await;
    for _ in 0..20 {
        let refused = proxy.get(NEXT).await;
        refused.assert_proxy_error("token-unavailable", 502, 45009);
    }
    assert_eq!(upstream.gettoken_count(), 1);
}

#[tokio::test]
async fn slow_gettoken_is_sent_once_for_all_waiters() {
    let (upstream, proxy) =
        start_proxy(vec![Step::SendSlowly(json_response(VALID_GETTOKEN), Duration::from_millis(1))]).await;
    let proxy = std::sync::Arc::new(proxy);
    for response in crate::harness::get_concurrently(&proxy, 50, NEXT).await {
        response.assert_ok();
    }
    assert_eq!(upstream.gettoken_count(), 1);
}

#[tokio::test]
async fn token_refused_repeatedly_is_refreshed_once() {
    let (upstream, proxy) = start_proxy(send_steps(json_response(VALID_GETTOKEN))).await;
    upstream.set_steps(send_steps(json_response(r#"{"errcode":40014,"errmsg":"invalid access_token"}"#)));
    let mut total = 0;
    for index in 0..20 {
        let refused: TestResponse = proxy.post(CASE_PATH, "").await;
        assert_eq!((refused.status.as_u16(), refused.errcode()), (200, 40014), "{index}");
        let attempts = upstream.take_request_lines().len();
        assert!(attempts <= 2, "{index}: a third attempt");
        total += attempts;
    }
    assert!(total <= 22, "{total} requests");
    assert_eq!(upstream.gettoken_count(), 2);
    // Other paths are not affected.
    proxy.get(NEXT).await.assert_ok();
}
