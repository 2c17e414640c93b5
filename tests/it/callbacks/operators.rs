//! `/api/callbacks`, redelivery, and metrics.

use http::{Request, StatusCode};
use serde_json::json;

use wecom_proxy::simulator::Settings;

use super::{ADMIN_KEY, admin_get, config, event, metric, push, target};
use crate::{
    harness::{
        OPEN_CONFIG, TestClient, TestProxy, TestResponse,
        callback_target::{CallbackTarget, TargetResponse},
        closed_port, wait_for, write_config,
    },
    process::run_wecom_proxy,
};

async fn redeliver(proxy: &TestProxy, id: &str, authorization: Option<String>) -> TestResponse {
    let request = Request::post(format!("/api/callbacks/hr/events/{id}/redeliver"));
    let request =
        authorization.into_iter().fold(request, |request, value| request.header("authorization", value));
    TestClient::connect_http1(proxy.admin_address()).await.request(request, "").await
}

/// What `/api/callbacks` says of a target of the only callback.
pub async fn listed_target(proxy: &TestProxy, nth: usize) -> serde_json::Value {
    admin_get(proxy, "/api/callbacks").await.json()["callbacks"][0]["targets"][nth].clone()
}

/// What the first target accepted in the last minute.
fn crm_lately(callback: &serde_json::Value) -> serde_json::Value {
    callback["targets"][0]["delivered_last_minute"].clone()
}

#[tokio::test]
async fn counters_are_shown_while_the_state_cannot_be_read() {
    let proxy = TestProxy::start_with_config(&config("")).await;
    assert_eq!(push(&proxy, &event("x", 1)).await.status, StatusCode::OK);
    // A table of another name: each read fails.
    let state = rusqlite::Connection::open(proxy.dir.path().join("state.db")).expect("the state");
    state.execute_batch("ALTER TABLE records RENAME TO hidden").expect("renamed");
    assert_eq!(admin_get(&proxy, "/api/callbacks").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(push(&proxy, &event("x", 2)).await.status, StatusCode::SERVICE_UNAVAILABLE);
    for (result, expected) in [("accepted", 1), ("not-durable", 1)] {
        let sample = format!("wecom_proxy_callbacks_total{{callback=\"hr\",result=\"{result}\"}}");
        assert_eq!(metric(&proxy, &sample).await, expected, "{result}");
    }
}

#[tokio::test]
async fn targets_are_listed_with_what_waits() {
    let receiver = CallbackTarget::start().await;
    let to = target("crm", format!("http://{}/", receiver.address), "")
        // Those of an ordered target keep their place in the list while they are tried again.
        + &target("gone", format!("http://{}/", closed_port()), "ordered = true")
        + "[[callbacks.hr.to]]\nname = \"desktop\"\npull = true\nclients = [\"desktop\"]\n";
    let proxy = TestProxy::start_with_config(&config(&to)).await;
    for number in 0..3 {
        push(&proxy, &event("x", number)).await;
    }
    receiver.wait_for(3).await;
    let listed = async || admin_get(&proxy, "/api/callbacks").await.json()["callbacks"][0].clone();
    wait_for("the deliveries", async || {
        let callback = listed().await;
        callback["targets"][0]["pending"] == 0 && !callback["targets"][1]["last_error"].is_null()
    })
    .await;
    let whole = admin_get(&proxy, "/api/callbacks").await.json();
    assert_eq!(whole["delivers"], true);
    let callback = listed().await;
    assert_eq!((&callback["accepted_last_minute"], &crm_lately(&callback)), (&json!(3), &json!(3)));
    assert_eq!((&callback["name"], &callback["received"]), (&json!("hr"), &json!({ "accepted": 3 })));
    let [crm, gone, desktop] = [0, 1, 2].map(|nth| callback["targets"][nth].clone());
    assert_eq!((&crm["name"], &crm["dead"], &crm["oldest"]), (&json!("crm"), &json!(0), &json!(null)));
    assert!(crm["last_success"].as_f64().is_some_and(|at| at > 1.7e9), "{crm}");
    assert_eq!((&gone["pending"], &gone["last_success"]), (&json!(3), &json!(null)));
    assert!(gone["last_error_at"].as_f64().is_some_and(|at| at > 1.7e9), "{gone}");
    assert!(gone["oldest"].as_f64().is_some_and(|at| at > 1.7e9), "{gone}");
    assert_eq!((&desktop["pending"], &desktop["name"]), (&json!(0), &json!("desktop")));
    let pending = admin_get(&proxy, "/api/callbacks/hr/events?state=pending&limit=2").await.json();
    assert_eq!(pending["events"].as_array().map(Vec::len), Some(2));
    let next = pending["next"].as_str().expect("more");
    let rest =
        admin_get(&proxy, &format!("/api/callbacks/hr/events?state=pending&after={next}")).await.json();
    assert_eq!((rest["events"].as_array().map(Vec::len), &rest["next"]), (Some(1), &json!(null)));
    assert!(!pending.to_string().contains("<xml>"), "no message is shown: {pending}");
    assert_eq!(metric(&proxy, "wecom_proxy_callback_pending{callback=\"hr\",target=\"gone\"}").await, 3);
    let sample = "wecom_proxy_callback_deliveries_total{callback=\"hr\",target=\"crm\",result=\"delivered\"}";
    assert_eq!(metric(&proxy, sample).await, 3);
}

#[tokio::test]
async fn redelivery_needs_the_key_as_bearer() {
    let proxy = TestProxy::start_with_config(&config("")).await;
    assert_eq!(redeliver(&proxy, "1", None).await.status, StatusCode::UNAUTHORIZED);
    let basic = {
        use base64::Engine;
        format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(format!("admin:{ADMIN_KEY}")))
    };
    assert_eq!(redeliver(&proxy, "1", Some(basic)).await.status, StatusCode::UNAUTHORIZED);
    let bearer = Some(format!("Bearer {ADMIN_KEY}"));
    assert_eq!(redeliver(&proxy, "1", bearer).await.status, StatusCode::NOT_FOUND);
    let cross_site = Request::post("/api/callbacks/hr/events/1/redeliver")
        .header("authorization", format!("Bearer {ADMIN_KEY}"))
        .header("origin", "https://elsewhere.example");
    let response = TestClient::connect_http1(proxy.admin_address()).await.request(cross_site, "").await;
    assert_eq!(response.status, StatusCode::FORBIDDEN);
    assert_eq!(admin_get(&proxy, "/api/callbacks/no/events").await.status, StatusCode::NOT_FOUND);
    assert_eq!(admin_get(&proxy, "/api/callbacks/hr/events?state=x").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn redelivery_without_state_or_admin_key_is_refused() {
    let proxy = TestProxy::start_open().await;
    let response = redeliver(&proxy, "1", Some("Bearer x".to_owned())).await;
    assert_eq!(response.status, StatusCode::CONFLICT, "{}", response.text());
    assert!(response.text().contains("[state]"), "{}", response.text());
    let toml = format!(
        "{OPEN_CONFIG}\n[state]\npath = \"{{dir}}/s.db\"\nkey = \"key-of-the-state-0123456789-0123456789\"\n"
    );
    let proxy = TestProxy::start_with_config(&toml).await;
    let response = redeliver(&proxy, "1", Some("Bearer x".to_owned())).await;
    assert_eq!(response.status, StatusCode::FORBIDDEN, "{}", response.text());
    assert!(response.text().contains("admin.key_sha256"), "{}", response.text());
}

#[tokio::test]
async fn secrets_and_messages_are_not_logged_or_listed() {
    let receiver = CallbackTarget::start().await;
    receiver.respond([TargetResponse::status(500)]);
    let to = target("crm", format!("http://{}/", receiver.address), "secret = \"secret-of-the-target\"");
    let proxy = TestProxy::start_with_config(&config(&to)).await;
    push(&proxy, "<xml><InfoType>create_auth</InfoType><AuthCode>code-that-nothing-shows</AuthCode></xml>")
        .await;
    receiver.wait_for(2).await;
    let listed = admin_get(&proxy, "/api/callbacks").await;
    let events = admin_get(&proxy, "/api/callbacks/hr/events?state=pending").await;
    for text in [listed.text(), events.text()] {
        assert!(!text.contains("code-that-nothing-shows") && !text.contains("secret-of"), "{text}");
    }
    let state = std::fs::read(proxy.dir.path().join("state.db")).expect("the state");
    let wal = std::fs::read(proxy.dir.path().join("state.db-wal")).unwrap_or_default();
    for bytes in [state, wal] {
        assert!(memchr::memmem::find(&bytes, b"code-that-nothing-shows").is_none(), "sealed on the disk");
    }
}

#[tokio::test]
async fn check_lists_the_callbacks() {
    let dir = tempfile::tempdir().expect("a directory");
    let toml = config(&target("crm", "http://127.0.0.1:9000/", ""));
    let path = write_config(&dir, closed_port(), &Settings::default(), &toml);
    let output = run_wecom_proxy(&["check", "--config", path.to_str().expect("UTF-8")]).await;
    assert_eq!(output.status, 0, "{}", output.err);
    let row = output.out.lines().find(|line| line.contains("/callbacks/hr")).unwrap_or_default();
    assert!(row.contains("ww1234567890abcdef") && row.contains("crm"), "{}", output.out);
}
