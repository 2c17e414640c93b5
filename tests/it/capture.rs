//! Captured exchanges are redacted off the worker threads, within a time bound.

use std::time::Instant;

use http::{Request, StatusCode};
use serde_json::Value;

use crate::harness::{CONFIG_WITH_CLIENTS, TestClient, TestProxy, USER_GET, client_key, wait_for};

async fn start_capturing(config: &str) -> TestProxy {
    let proxy = TestProxy::start_with_config(config).await;
    let request = Request::post("/api/agents/hr/inspect?for=10m").header("content-type", "application/json");
    assert_eq!(
        TestClient::connect_http1(proxy.admin_address()).await.request(request, "").await.status,
        StatusCode::OK
    );
    proxy
}

/// The exchange with this request id, once it is recorded.
async fn captured_exchange(proxy: &TestProxy, id: &str) -> Value {
    let mut found = Value::Null;
    wait_for(id, async || {
        let request = Request::get(format!("/api/requests?id={id}"));
        found = TestClient::connect_http1(proxy.admin_address()).await.request(request, "").await.json()["requests"][0].clone();
        !found.is_null()
    })
    .await;
    found
}

fn capture_request(id: &str, query: &str) -> http::request::Builder {
    let request = Request::get(format!("/hr/cgi-bin/simulator/echo?{query}")).header("x-request-id", id);
    request.header("authorization", format!("Bearer {}", client_key("billing")))
}

/// A query with 2,000 secret parameters and 2,500 nested percent-encodings, which is costly to redact.
fn hostile_query() -> String {
    let keys: String = (0..2000).map(|nth| format!("key={:09}&", nth % 1000)).collect();
    format!("{keys}w={}", "%2525252541,".repeat(2500))
}

#[tokio::test]
async fn costly_capture_is_dropped_without_delaying_clients() {
    let proxy = start_capturing(CONFIG_WITH_CLIENTS).await;
    let query = hostile_query();
    assert!(query.len() > 55_000, "{}", query.len());
    for nth in 0..4 {
        proxy.request(capture_request(&format!("costly-{nth}"), &query), "").await.assert_ok();
        // Both workers have submitted a costly capture by then; neither is blocked.
        let started = Instant::now();
        for _ in 0..20 {
            let other = Request::get(format!("/hr{USER_GET}"));
            let other = other.header("authorization", format!("Bearer {}", client_key("billing")));
            proxy.request(other, "").await.assert_ok();
        }
        assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    }
    let dropped = captured_exchange(&proxy, "costly-0").await;
    assert_eq!((&dropped["has_detail"], &dropped["detail"]), (&false.into(), &Value::Null), "{dropped}");
    assert_eq!(dropped["detail_missing"], "too_costly", "{dropped}");
    assert!(!dropped.to_string().contains("000000001"));
    let metrics =
        TestClient::connect_http1(proxy.admin_address()).await.request(Request::get("/metrics"), "").await;
    let counter = "wecom_proxy_captures_dropped_total{reason=\"too_costly\"} ";
    assert!(metrics.text().lines().any(|line| line.starts_with(counter) && !line.ends_with(" 0")));

    // A usual exchange is still captured afterwards.
    wait_for("the queue", async || {
        proxy.request(capture_request("usual", "a=1"), "").await.assert_ok();
        captured_exchange(&proxy, "usual").await["detail"]["query"] == "a=1"
    })
    .await;
}

#[tokio::test]
async fn key_in_the_path_is_captured_redacted() {
    // Without a digit, so that it does not look like a credential.
    let key = "letters-of-billing-only";
    let config = CONFIG_WITH_CLIENTS
        .replace("key = \"key-of-billing-0000000000\"\n", &format!("key = \"{key}\"\nkey_in = \"path\"\n"));
    let proxy = start_capturing(&config).await;
    let request = Request::post(format!("/k/{key}/hr/cgi-bin/simulator/echo")).header("x-request-id", "path");
    proxy.request(request, format!("{{\"text\":\"x{key}x\"}}")).await.assert_ok();
    let captured = captured_exchange(&proxy, "path").await["detail"].to_string();
    assert!(captured.contains("[masked]") && !captured.contains(key), "{captured}");
}

#[tokio::test]
async fn repeated_secret_is_captured_redacted() {
    let proxy = start_capturing(CONFIG_WITH_CLIENTS).await;
    let query = format!("{}a=1", "key=000000000&".repeat(2000));
    proxy.request(capture_request("same", &query), "").await.assert_ok();
    let captured = captured_exchange(&proxy, "same").await;
    assert_eq!(
        (&captured["has_detail"], &captured["detail_missing"]),
        (&true.into(), &Value::Null),
        "{captured}"
    );
    let shown = captured["detail"]["query"].as_str().expect("a text");
    assert!(shown.starts_with("key=[masked]&key=[masked]&") && !shown.contains("000000000"), "{shown}");
}
