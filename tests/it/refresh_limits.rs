//! Limits on token refreshes, and how a held-back refresh is reported.

use http::Request;
use tempfile::TempDir;
use wecom_proxy::simulator::{Fault, Settings};

use crate::{
    browser::Browser,
    harness::{
        CONFIG_WITH_CLIENTS, OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, admin_get,
        client_key, wait_for, write_config,
    },
    process::Process,
    raw_http::{RawConnection, raw_get},
};

const USER_GET_PATH: &str = "/cgi-bin/user/get";
const DEPARTMENT_LIST_PATH: &str = "/cgi-bin/department/list";
const GETTOKEN: &str = "/cgi-bin/gettoken";

fn gettoken_count(proxy: &TestProxy) -> usize {
    proxy.wecom.observe(|observed| observed.received_count(GETTOKEN))
}

fn retry_after(response: &TestResponse) -> u64 {
    response.header("retry-after").parse().unwrap_or_else(|_| panic!("no Retry-After: {}", response.text()))
}

/// A proxy with `renewals_per_hour = 1` that has spent its refresh.
async fn proxy_with_spent_budget() -> TestProxy {
    let proxy =
        TestProxy::start_with_config(&format!("{OPEN_CONFIG}\n[tokens]\nrenewals_per_hour = 1\n")).await;
    for _ in 0..2 {
        proxy.get(USER_GET).await.assert_ok();
        proxy.wecom.revoke_tokens("hr").expect("an agent");
    }
    proxy
}

#[tokio::test]
async fn held_refresh_is_reported_to_client_and_operators() {
    let proxy = proxy_with_spent_budget().await;
    let response = proxy.get(USER_GET).await;
    assert_eq!(
        (response.errcode(), response.header("x-wecom-proxy-error")),
        (40014, ""),
        "the response is unchanged"
    );
    assert!((3500..=3600).contains(&retry_after(&response)));
    assert_eq!(gettoken_count(&proxy), 2);

    let ready = admin_get(&proxy, "/readyz").await;
    assert_eq!(
        (ready.status.as_u16(), &ready.json()["status"]),
        (200, &"ok, but some token refreshes are held back".into())
    );
    let wait = ready.json()["agents"]["held"]["hr"]["next_try_in_seconds"].as_u64();
    assert!(wait.is_some_and(|wait| (3500..=3600).contains(&wait)), "{}", ready.text());
    let agents = admin_get(&proxy, "/api/agents").await.json()["agents"].clone();
    assert_eq!((&agents[0]["held"], &agents[1]["held"]), (&true.into(), &false.into()));
    let metrics = admin_get(&proxy, "/metrics").await;
    assert!(
        metrics.text().contains("wecom_proxy_token_renewals_held{agent=\"hr\"} 1\n"),
        "{}",
        metrics.text()
    );
    // The first token of another agent is not limited.
    proxy.request(Request::get(format!("/ops{USER_GET}")), "").await.assert_ok();

    let request = Request::post("/api/agents/hr/refresh").header("x-requested-with", "test");
    let refreshed = TestClient::connect_http1(proxy.admin_address()).await.request(request, "").await;
    assert_eq!(refreshed.json()["ok"], true, "a manual refresh is not limited: {}", refreshed.text());
    proxy.get(USER_GET).await.assert_ok();
    assert!(!admin_get(&proxy, "/metrics").await.text().contains("held{"));
    assert_eq!(admin_get(&proxy, "/readyz").await.json()["agents"]["held"], serde_json::json!({}));
}

#[tokio::test]
async fn upstream_retry_after_is_not_duplicated() {
    let proxy = proxy_with_spent_budget().await;
    let refusal = Fault::response(200, "application/json", r#"{"errcode":40014,"errmsg":"x"}"#);
    let refusal = refusal.with_header("Retry-After", "7").on_path(USER_GET_PATH);
    proxy.wecom.inject(refusal).expect("a fault");
    let response = proxy.get(USER_GET).await;
    assert_eq!((response.errcode(), retry_after(&response)), (40014, 7));
    assert_eq!(response.headers.get_all("retry-after").iter().count(), 1);
}

#[tokio::test]
async fn token_unavailable_has_retry_after() {
    let proxy = TestProxy::start_open().await;
    proxy.wecom.inject(Fault::errcode(40001).on_path(GETTOKEN)).expect("a fault");
    let response = proxy.get(USER_GET).await;
    response.assert_proxy_error("token-unavailable", 502, 40001);
    assert!((50..=90).contains(&retry_after(&response)), "{}", response.header("retry-after"));
}

#[tokio::test]
async fn path_that_always_refuses_does_not_block_others() {
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.inject(Fault::errcode(40014).on_path(DEPARTMENT_LIST_PATH)).expect("a fault");
    for nth in 0..20 {
        let response = proxy.get(DEPARTMENT_LIST_PATH).await;
        assert_eq!(response.errcode(), 40014);
        assert_eq!(response.header("retry-after").is_empty(), nth == 0, "{nth}");
    }
    assert_eq!(gettoken_count(&proxy), 2, "one refresh for 20 refusals");
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    let response = proxy.get(USER_GET).await;
    assert_eq!(response.assert_ok().header("x-wecom-retried"), "40014", "the token had worked on this path");
    assert_eq!(gettoken_count(&proxy), 3);
}

#[tokio::test]
async fn client_abort_before_the_retry_starts_the_cooldown() {
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.inject(Fault::hold().on_path(GETTOKEN).times(1)).expect("a fault");
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection.send(raw_get(DEPARTMENT_LIST_PATH)).await.expect("sent");
    proxy.wecom.wait_until(|observed| observed.received_count(GETTOKEN) == 2).await.expect("a gettoken");
    connection.reset();
    let limit = proxy.app.concurrency_limit();
    wait_for("the aborted request to end", async || limit.in_use() == 0).await;
    proxy.wecom.release_held();
    let reason =
        async || admin_get(&proxy, "/api/agents").await.json()["agents"][0]["last_renewal"]["reason"].clone();
    wait_for("the refresh", async || reason().await == "refused").await;
    assert_eq!(gettoken_count(&proxy), 2);
    for _ in 0..10 {
        // The path refuses each new token too.
        proxy.wecom.inject(Fault::errcode(40014).on_path(DEPARTMENT_LIST_PATH).times(1)).expect("a fault");
        let response = proxy.get(DEPARTMENT_LIST_PATH).await;
        assert_eq!((response.errcode(), response.header("x-wecom-retried")), (40014, ""));
        assert!((1..=10).contains(&retry_after(&response)));
    }
    assert_eq!(gettoken_count(&proxy), 2);
}

#[tokio::test]
async fn exhausted_refresh_budget_is_logged_with_agents() {
    let settings = Settings::default();
    let wecom = crate::leak_detector::start_simulator(settings.clone()).await;
    let dir = TempDir::new().expect("a directory");
    let toml = format!("{CONFIG_WITH_CLIENTS}\n[tokens]\nrenewals_per_hour = 1\n");
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &settings, &toml)).await;
    let mut client = TestClient::connect_http1(proxy.address().await).await;
    for errcode in [0, 0, 40014] {
        let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", client_key("crm"));
        assert_eq!(client.request(request, "").await.errcode(), errcode);
        wecom.revoke_tokens("hr").expect("an agent");
    }
    let line = proxy.err.wait_for_line("token refreshes throttled").await;
    assert!(
        line.contains(" WARN ") && line.contains("hr (next try in 35") && line.contains("next_try_in_s=35"),
        "{line}"
    );
}

#[tokio::test]
async fn dashboard_shows_a_held_refresh_as_failing() {
    let proxy = proxy_with_spent_budget().await;
    assert_eq!(proxy.get(USER_GET).await.errcode(), 40014);
    let mut browser = Browser::start().await;
    browser.open_dashboard(proxy.admin_address()).await;
    browser.wait_for("document.querySelector('#agents').innerText.includes('refresh held back')").await;
    assert!(browser.text("#agents").await.contains("next attempt in"));
    assert!(browser.text("#health").await.contains("held back (1/2)"));
    browser.eval("document.querySelector('#agent-failing').click()").await;
    browser.wait_for("document.querySelectorAll('#agents tbody tr').length === 1").await;
}
