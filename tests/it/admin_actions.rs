//! Admin actions (refresh, reload) and their protection against cross-site requests.

use std::net::SocketAddr;

use http::{Request, StatusCode};
use serde_json::json;
use wecom_proxy::simulator::{Settings, Simulator};

use crate::{
    harness::{OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, sha256, write_config},
    process::Process,
};

const REFRESH: &str = "/api/agents/hr/refresh";

async fn post_action(proxy: &TestProxy, path: &str, headers: &[(&str, &str)]) -> TestResponse {
    let request =
        headers.iter().fold(Request::post(path), |request, (name, value)| request.header(*name, *value));
    TestClient::connect_http1(proxy.admin_address()).await.request(request, "").await
}

async fn lists_added_agent(admin: SocketAddr) -> bool {
    let response = TestClient::connect_http1(admin).await.request(Request::get("/api/agents"), "").await;
    response.text().contains("\"it\"")
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn refresh_action_fetches_a_token_despite_backoff() {
    let proxy = TestProxy::start_open().await;
    let secret = Settings::default().agents[0].secret.clone();
    proxy.wecom.reset_secret("hr", "another").expect("an agent");
    proxy.get(USER_GET).await.assert_proxy_error("token-unavailable", 502, 40001);
    let response = post_action(&proxy, REFRESH, &[JSON]).await;
    assert_eq!((response.status, &response.json()["ok"]), (StatusCode::BAD_GATEWAY, &json!(false)));
    assert!(
        response.json()["failure"].as_str().is_some_and(|text| text.contains("40001")),
        "{}",
        response.text()
    );
    assert!(response.json()["next_try_in_seconds"].as_u64() >= Some(30), "{}", response.text());
    assert!(!response.text().contains(&secret));

    proxy.wecom.reset_secret("hr", &secret).expect("an agent");
    proxy.get(USER_GET).await.assert_proxy_error("token-unavailable", 502, 40001);
    let response = post_action(&proxy, REFRESH, &[JSON]).await;
    assert_eq!(
        (response.status, &response.json()["ok"]),
        (StatusCode::OK, &json!(true)),
        "{}",
        response.text()
    );
    assert_eq!(response.json()["same_token"], false);
    proxy.get(USER_GET).await.assert_ok();
    let again = post_action(&proxy, REFRESH, &[("x-requested-with", "curl")]).await.json();
    assert_eq!((&again["ok"], &again["same_token"]), (&json!(true), &json!(true)), "{again}");
    assert_eq!(
        post_action(&proxy, "/api/agents/unknown/refresh", &[JSON]).await.status,
        StatusCode::NOT_FOUND
    );
    let get = TestClient::connect_http1(proxy.admin_address()).await.request(Request::get(REFRESH), "").await;
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
    let response = reload().await;
    assert_eq!(response.status, StatusCode::OK, "{}", response.text());
    let body = response.json();
    assert_eq!(
        (&body["ok"], &body["agents"], &body["clients"]),
        (&json!(true), &json!(3), &json!(0)),
        "{body}"
    );
    assert_eq!(body["needs_restart"], json!(["replay"]));
    assert!(!response.text().contains("a-secret-of-it"), "{}", response.text());
    // The log level changes with the reload.
    assert!(lists_added_agent(admin).await);

    write(&format!("{OPEN_CONFIG}\n[agents.it]\nnonsense = 1\n"));
    let response = reload().await;
    assert_eq!((response.status, &response.json()["ok"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!(false)));
    assert!(
        response.json()["failure"].as_str().is_some_and(|text| text.contains("nonsense")),
        "{}",
        response.text()
    );
    proxy.err.wait_for_line("the old one stays active").await;
    assert!(lists_added_agent(admin).await);
    assert_eq!(proxy.stop().await.status, 0);
}

#[tokio::test]
async fn cross_site_requests_to_admin_are_refused() {
    let proxy = TestProxy::start_open().await;
    let host = proxy.admin_address().to_string();
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
            let response = post_action(&proxy, path, headers).await;
            assert_eq!(response.status, StatusCode::FORBIDDEN, "{path} {headers:?}");
        }
    }
    assert_eq!(proxy.wecom.observe(|observed| observed.request_count()), 0, "no token was fetched");
    let status = async |path: &str, name: &str| {
        TestClient::connect_http1(proxy.admin_address())
            .await
            .request(Request::get(path).header("host", name), "")
            .await
            .status
    };
    for path in ["/metrics", "/api/agents", "/api/requests", "/api/requests/stream", "/api/overview"] {
        assert_eq!(status(path, "rebind.example:9090").await, StatusCode::FORBIDDEN, "{path}");
    }
    assert_eq!(status("/readyz", "a-monitor-s-name.example").await, StatusCode::OK);
    assert_eq!(status("/api/agents", "[::1]:9090").await, StatusCode::OK);
    let own = post_action(
        &proxy,
        REFRESH,
        &[JSON, ("host", &host), ("origin", &own), ("sec-fetch-site", "same-origin")],
    )
    .await;
    assert_eq!(own.status, StatusCode::OK, "{}", own.text());
}

#[tokio::test]
async fn admin_actions_need_the_key_when_configured() {
    let key = "the-key-of-the-operator-0123456789";
    let hash = sha256(key);
    let proxy = TestProxy::start_with_config(
        &OPEN_CONFIG.replace("[admin]", &format!("[admin]\nkey_sha256 = \"{hash}\"")),
    )
    .await;
    let bearer = format!("Bearer {key}");
    for path in ["/metrics", "/api/requests", "/api/requests/stream", "/api/overview"] {
        let status = async |request: http::request::Builder| {
            TestClient::connect_http1(proxy.admin_address()).await.request(request, "").await.status
        };
        assert_eq!(status(Request::head(path)).await, StatusCode::UNAUTHORIZED, "{path}");
        let named = Request::head(path).header("host", "proxy.example").header("authorization", &bearer);
        assert_eq!(status(named).await, StatusCode::OK, "{path}");
    }
    for path in [REFRESH, "/api/reload"] {
        assert_eq!(post_action(&proxy, path, &[JSON]).await.status, StatusCode::UNAUTHORIZED, "{path}");
        let cross_site = [("authorization", &*bearer), JSON, ("sec-fetch-site", "cross-site")];
        assert_eq!(post_action(&proxy, path, &cross_site).await.status, StatusCode::FORBIDDEN, "{path}");
        assert_eq!(
            post_action(&proxy, path, &[("authorization", &*bearer), JSON]).await.status,
            StatusCode::OK,
            "{path}"
        );
    }
}

#[tokio::test]
async fn reader_reads_changes_nothing_and_actions_are_logged() {
    const READER_KEY: &str = "the-key-of-the-reader-0123456789";
    const OPERATOR_KEY: &str = "the-key-of-the-operator-0123456789";
    let keys = format!(
        "[admin]\nkey_sha256 = \"{}\"\nreader_key_sha256 = \"{}\"",
        sha256(OPERATOR_KEY),
        sha256(READER_KEY)
    );
    let (_wecom, _dir, proxy) = Process::serve_with_simulator(&OPEN_CONFIG.replace("[admin]", &keys)).await;
    let admin = proxy.admin_address().await;
    let send = async |method: &str, path: &str, key: &str| {
        let request = Request::builder().method(method).uri(path).header(JSON.0, JSON.1);
        let request = request.header("authorization", format!("Bearer {key}"));
        TestClient::connect_http1(admin).await.request(request, "").await
    };
    for path in ["/", "/metrics", "/api/agents", "/api/requests", "/api/agents/hr", "/api/overview"] {
        assert_eq!(send("GET", path, READER_KEY).await.status, StatusCode::OK, "{path}");
        assert_eq!(send("GET", path, "another-key").await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    for (method, path) in [
        ("POST", REFRESH),
        ("POST", "/api/reload"),
        ("POST", "/api/agents/hr/inspect?for=1m"),
        ("DELETE", "/api/agents/hr"),
        ("POST", "/api/clients/crm/keys"),
        ("POST", "/api/callbacks/hr/events/1/redeliver"),
    ] {
        let refused = send(method, path, READER_KEY).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{method} {path}");
        assert!(refused.text().contains("may only read"), "{}", refused.text());
    }
    proxy
        .err
        .wait_for_line("key=\"reader\" peer=\"127.0.0.1\" method=DELETE path=\"/api/agents/hr\" status=403")
        .await;
    assert_eq!(send("POST", REFRESH, OPERATOR_KEY).await.status, StatusCode::OK);
    proxy
        .err
        .wait_for_line(
            "key=\"operator\" peer=\"127.0.0.1\" method=POST path=\"/api/agents/hr/refresh\" status=200",
        )
        .await;
    assert_eq!(proxy.stop().await.status, 0);
}
