//! What is captured of an exchange is redacted off the workers, within bounds.

use std::time::Instant;

use http::{Request, StatusCode};
use serde_json::Value;

use crate::harness::{CONFIG_WITH_CLIENTS, TestClient, TestProxy, USER_GET, client_key, wait_for};

async fn start_capturing() -> TestProxy {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let order = Request::post("/api/agents/hr/inspect?for=10m").header("content-type", "application/json");
    assert_eq!(
        TestClient::connect_http1(stage.admin_address()).await.request(order, "").await.status,
        StatusCode::OK
    );
    stage
}

/// The exchange with this id, once it is kept.
async fn captured_exchange(stage: &TestProxy, id: &str) -> Value {
    let mut found = Value::Null;
    wait_for(id, async || {
        let request = Request::get(format!("/api/requests?id={id}"));
        found = TestClient::connect_http1(stage.admin_address()).await.request(request, "").await.json()["requests"][0].clone();
        !found.is_null()
    })
    .await;
    found
}

fn capture_request(id: &str, query: &str) -> http::request::Builder {
    let request = Request::get(format!("/hr/cgi-bin/simulator/echo?{query}")).header("x-request-id", id);
    request.header("authorization", format!("Bearer {}", client_key("billing")))
}

/// Two thousand secrets of the caller's own, and two thousand words to look into.
fn hostile_query() -> String {
    let keys: String = (0..2000).map(|nth| format!("key={:09}&", nth % 1000)).collect();
    format!("{keys}w={}", "%2525252541,".repeat(2500))
}

#[tokio::test]
async fn costly_capture_is_dropped_without_delaying_clients() {
    let stage = start_capturing().await;
    let query = hostile_query();
    assert!(query.len() > 55_000, "{}", query.len());
    for nth in 0..4 {
        stage.request(capture_request(&format!("costly-{nth}"), &query), "").await.assert_ok();
        // Both workers have one to redact by then; neither is held.
        let begun = Instant::now();
        for _ in 0..20 {
            let other = Request::get(format!("/hr{USER_GET}"));
            let other = other.header("authorization", format!("Bearer {}", client_key("billing")));
            stage.request(other, "").await.assert_ok();
        }
        assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    }
    let dropped = captured_exchange(&stage, "costly-0").await;
    assert_eq!((&dropped["has_detail"], &dropped["detail"]), (&false.into(), &Value::Null), "{dropped}");
    assert_eq!(dropped["detail_missing"], "too_costly", "{dropped}");
    assert!(!dropped.to_string().contains("000000001"));
    let metrics =
        TestClient::connect_http1(stage.admin_address()).await.request(Request::get("/metrics"), "").await;
    let counted = "wecom_proxy_captures_dropped_total{reason=\"too_costly\"} ";
    assert!(metrics.text().lines().any(|line| line.starts_with(counted) && !line.ends_with(" 0")));

    // What is usual is captured after it as before.
    wait_for("the queue", async || {
        stage.request(capture_request("usual", "a=1"), "").await.assert_ok();
        captured_exchange(&stage, "usual").await["detail"]["query"] == "a=1"
    })
    .await;
}

#[tokio::test]
async fn repeated_secret_is_captured_redacted() {
    let stage = start_capturing().await;
    let query = format!("{}a=1", "key=000000000&".repeat(2000));
    stage.request(capture_request("same", &query), "").await.assert_ok();
    let seen = captured_exchange(&stage, "same").await;
    assert_eq!((&seen["has_detail"], &seen["detail_missing"]), (&true.into(), &Value::Null), "{seen}");
    let shown = seen["detail"]["query"].as_str().expect("a text");
    assert!(shown.starts_with("key=[masked]&key=[masked]&") && !shown.contains("000000000"), "{shown}");
}
