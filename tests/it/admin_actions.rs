//! What an operator orders, and who else may not.

use http::{Request, StatusCode};
use serde_json::json;
use wecom_proxy::simulator::{Settings, Simulator};

use crate::{
    harness::{OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, write_config},
    process::Process,
};

const REFRESH: &str = "/api/agents/hr/refresh";

async fn post_action(stage: &TestProxy, path: &str, headers: &[(&str, &str)]) -> TestResponse {
    let request =
        headers.iter().fold(Request::post(path), |request, (name, value)| request.header(*name, *value));
    TestClient::connect_http1(stage.admin_address()).await.request(request, "").await
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn refresh_action_fetches_a_token_despite_backoff() {
    let stage = TestProxy::start_open().await;
    let secret = Settings::default().agents[0].secret.clone();
    stage.wecom.reset_secret("hr", "another").expect("an agent");
    stage.get(USER_GET).await.assert_proxy_error("token-unavailable", 502, 40001);
    let reply = post_action(&stage, REFRESH, &[JSON]).await;
    assert_eq!((reply.status, &reply.json()["ok"]), (StatusCode::BAD_GATEWAY, &json!(false)));
    assert!(
        reply.json()["failure"].as_str().is_some_and(|words| words.contains("40001")),
        "{}",
        reply.text()
    );
    assert!(reply.json()["next_try_in_seconds"].as_u64() >= Some(30), "{}", reply.text());
    assert!(!reply.text().contains(&secret));

    stage.wecom.reset_secret("hr", &secret).expect("an agent");
    stage.get(USER_GET).await.assert_proxy_error("token-unavailable", 502, 40001);
    let reply = post_action(&stage, REFRESH, &[JSON]).await;
    assert_eq!((reply.status, &reply.json()["ok"]), (StatusCode::OK, &json!(true)), "{}", reply.text());
    assert_eq!(reply.json()["same_token"], false);
    stage.get(USER_GET).await.assert_ok();
    let again = post_action(&stage, REFRESH, &[("x-requested-with", "curl")]).await.json();
    assert_eq!((&again["ok"], &again["same_token"]), (&json!(true), &json!(true)), "{again}");
    assert_eq!(
        post_action(&stage, "/api/agents/nobody/refresh", &[JSON]).await.status,
        StatusCode::NOT_FOUND
    );
    let get = TestClient::connect_http1(stage.admin_address()).await.request(Request::get(REFRESH), "").await;
    assert_eq!((get.status, get.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "POST"));
}

#[tokio::test]
async fn reload_action_applies_the_configuration() {
    let wecom = Simulator::start_local(Settings::default()).await.expect("a simulator");
    let dir = tempfile::tempdir().expect("a directory");
    let write = |toml: &str| write_config(&dir, wecom.api_addr(), &Settings::default(), toml);
    let proxy = Process::serve(&write(OPEN_CONFIG)).await;
    let admin = proxy.admin_address().await;
    let reload = async || {
        TestClient::connect_http1(admin)
            .await
            .request(Request::post("/api/reload").header(JSON.0, JSON.1), "")
            .await
    };
    let more = "[log]\nlevel = \"debug\"\n[replay]\nmemory = \"1MiB\"\n[agents.it]\ncorpid = \"ww1\"\nsecret = \"a-secret-of-it\"\n";
    write(&format!("{OPEN_CONFIG}{more}"));
    let reply = reload().await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    let body = reply.json();
    assert_eq!(
        (&body["ok"], &body["agents"], &body["clients"]),
        (&json!(true), &json!(3), &json!(0)),
        "{body}"
    );
    assert_eq!(body["needs_restart"], json!(["replay"]));
    assert!(!reply.text().contains("a-secret-of-it"), "{}", reply.text());
    // The level is followed too: the end of a connection is told of only to who wants all.
    assert!(
        TestClient::connect_http1(admin)
            .await
            .request(Request::get("/api/agents"), "")
            .await
            .text()
            .contains("\"it\"")
    );

    write(&format!("{OPEN_CONFIG}\n[agents.it]\nnonsense = 1\n"));
    let reply = reload().await;
    assert_eq!((reply.status, &reply.json()["ok"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!(false)));
    assert!(
        reply.json()["failure"].as_str().is_some_and(|words| words.contains("nonsense")),
        "{}",
        reply.text()
    );
    proxy.err.wait_for_line("old configuration stays active").await;
    assert!(
        TestClient::connect_http1(admin)
            .await
            .request(Request::get("/api/agents"), "")
            .await
            .text()
            .contains("\"it\"")
    );
    assert_eq!(proxy.stop().await.status, 0);
}

#[tokio::test]
async fn cross_site_requests_to_admin_are_refused() {
    let stage = TestProxy::start_open().await;
    let host = stage.admin_address().to_string();
    let own = format!("http://{host}");
    for headers in [
        &[][..],
        &[("content-type", "text/plain")],
        &[JSON, ("origin", "https://elsewhere.example")],
        &[JSON, ("origin", "null")],
        &[JSON, ("sec-fetch-site", "cross-site")],
        &[JSON, ("host", "rebind.example"), ("origin", "http://rebind.example")],
    ] {
        for path in [REFRESH, "/api/reload"] {
            let reply = post_action(&stage, path, headers).await;
            assert_eq!(reply.status, StatusCode::FORBIDDEN, "{path} {headers:?}");
        }
    }
    assert_eq!(stage.wecom.observe(|seen| seen.request_count()), 0, "no token was fetched");
    let asked = async |path: &str, name: &str| {
        TestClient::connect_http1(stage.admin_address())
            .await
            .request(Request::get(path).header("host", name), "")
            .await
            .status
    };
    for path in ["/metrics", "/api/agents", "/api/requests", "/api/requests/stream", "/api/overview"] {
        assert_eq!(asked(path, "rebind.example:9090").await, StatusCode::FORBIDDEN, "{path}");
    }
    assert_eq!(asked("/readyz", "a-monitor-s-name.example").await, StatusCode::OK);
    assert_eq!(asked("/api/agents", "[::1]:9090").await, StatusCode::OK);
    let own = post_action(
        &stage,
        REFRESH,
        &[JSON, ("host", &host), ("origin", &own), ("sec-fetch-site", "same-origin")],
    )
    .await;
    assert_eq!(own.status, StatusCode::OK, "{}", own.text());
}

#[tokio::test]
async fn admin_actions_need_the_key_when_configured() {
    use sha2::Digest;
    let key = "the-key-of-the-operator-0123456789";
    let hash: String = sha2::Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
    let stage = TestProxy::start_with_config(
        &OPEN_CONFIG.replace("[admin]", &format!("[admin]\nkey_sha256 = \"{hash}\"")),
    )
    .await;
    let bearer = format!("Bearer {key}");
    for path in ["/metrics", "/api/requests", "/api/requests/stream", "/api/overview"] {
        let ask = async |request: http::request::Builder| {
            TestClient::connect_http1(stage.admin_address()).await.request(request, "").await.status
        };
        assert_eq!(ask(Request::head(path)).await, StatusCode::UNAUTHORIZED, "{path}");
        let named = Request::head(path).header("host", "proxy.example").header("authorization", &bearer);
        assert_eq!(ask(named).await, StatusCode::OK, "{path}");
    }
    for path in [REFRESH, "/api/reload"] {
        assert_eq!(post_action(&stage, path, &[JSON]).await.status, StatusCode::UNAUTHORIZED, "{path}");
        let foreign = [("authorization", &*bearer), JSON, ("sec-fetch-site", "cross-site")];
        assert_eq!(post_action(&stage, path, &foreign).await.status, StatusCode::FORBIDDEN, "{path}");
        assert_eq!(
            post_action(&stage, path, &[("authorization", &*bearer), JSON]).await.status,
            StatusCode::OK,
            "{path}"
        );
    }
}
