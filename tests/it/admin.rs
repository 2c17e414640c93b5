//! The admin listener: health, readiness, the agent list and access control.

use http::{Request, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use wecom_proxy::simulator::{Fault, Settings};

use crate::{
    harness::{OPEN_CONFIG, TestClient, TestProxy, USER_GET, admin_get, parse_method, sha256, with_timeout},
    process::Process,
};

const KEY: &str = "the-key-of-the-operator-0123456789";

async fn readiness(proxy: &TestProxy) -> (u16, Value) {
    let response = admin_get(proxy, "/readyz").await;
    (response.status.as_u16(), response.json())
}

#[tokio::test]
async fn health_endpoints_return_the_documented_json() {
    let proxy = TestProxy::start_open().await;
    for path in ["/healthz", "/readyz"] {
        let response = admin_get(&proxy, path).await;
        assert_eq!((response.status, response.header("content-type")), (StatusCode::OK, "application/json"));
        let listeners = [proxy.address().to_string(), proxy.admin_address().to_string()];
        let body = response.json();
        assert!(body["config"]["loaded_at"].as_u64().is_some_and(|at| at > 1_700_000_000), "{body}");
        let expected = json!({
            "status": "ok",
            "agents": { "total": 2, "failing": {}, "held": {} },
            "corps": { "total": 0, "failing": 0 },
            "store": { "kind": "memory", "ok": true },
            "state": null,
            "degraded": [],
            "config": { "ok": true, "loaded_at": body["config"]["loaded_at"], "failure": null },
            "listeners": listeners,
        });
        assert_eq!(body, expected);
    }
}

#[tokio::test]
async fn agent_list_shows_no_secrets_or_tokens() {
    let proxy = TestProxy::start_open().await;
    let wecom = &proxy.wecom;
    let token = "a-token-that-the-test-knows-0123456789";
    let grant =
        json!({ "errcode": 0, "errmsg": "ok", "access_token": token, "expires_in": 7200 }).to_string();
    wecom
        .inject(Fault::response(200, "application/json", grant).on_path("/cgi-bin/gettoken").for_agent("hr"))
        .expect("a fault");
    let user_get = Fault::response(200, "application/json", r#"{"errcode":0,"errmsg":"ok"}"#);
    wecom.inject(user_get.on_path("/cgi-bin/user/get")).expect("a fault");
    proxy.get(USER_GET).await.assert_ok();
    wecom.reset_secret("ops", "another-secret-of-ops").expect("an agent");
    proxy.request(Request::get(format!("/ops{USER_GET}")), "").await.assert_proxy_error(
        "token-unavailable",
        502,
        40001,
    );

    let response = admin_get(&proxy, "/api/agents").await;
    assert_eq!(response.status, StatusCode::OK);
    let agents = response.json()["agents"].as_array().expect("a list").clone();
    let names: Vec<_> = agents.iter().map(|agent| agent["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["hr", "ops"]);
    let hr = &agents[0];
    assert_eq!(
        (&hr["corpid"], &hr["agentid"], &hr["token"]["state"]),
        (&json!("ww1234567890abcdef"), &json!(1_000_002), &json!("valid"))
    );
    assert_eq!((&hr["last_renewal"]["ok"], &hr["last_renewal"]["reason"]), (&json!(true), &json!("first")));
    assert_eq!(hr["failing"], Value::Null);
    let lifetime = hr["token"]["expires_at"].as_u64().zip(hr["token"]["first_seen"].as_u64());
    assert!(
        lifetime.is_some_and(|(expires, first_seen)| expires - first_seen <= 7200 && expires > first_seen),
        "{hr}"
    );
    let ops = &agents[1];
    assert_eq!((&ops["token"]["state"], &ops["last_renewal"]["ok"]), (&json!("none"), &json!(false)));
    assert!(ops["failing"].as_str().is_some_and(|text| text.contains("40001")), "{ops}");
    assert!(ops["next_try_in_seconds"].as_u64().is_some_and(|wait| (30..=900).contains(&wait)), "{ops}");
    for secret in [token, "not-a-secret", "another-secret"] {
        assert!(!response.text().contains(secret), "{}", response.text());
    }
}

#[tokio::test]
async fn readiness_needs_a_token_of_one_agent_in_use() {
    let proxy = TestProxy::start_open().await;
    assert_eq!(readiness(&proxy).await.0, 200, "no agent was used yet");
    proxy.wecom.reset_secret("hr", "another-secret").expect("an agent");
    proxy.get(USER_GET).await.assert_proxy_error("token-unavailable", 502, 40001);
    let (status, body) = readiness(&proxy).await;
    assert_eq!(status, 503, "the only agent in use fails");
    assert!(body["agents"]["failing"]["hr"].as_str().is_some_and(|text| text.contains("40001")), "{body}");
    assert_eq!(admin_get(&proxy, "/healthz").await.status, StatusCode::OK, "the process itself is healthy");
    proxy.request(Request::get(format!("/ops{USER_GET}")), "").await.assert_ok();
    let (status, body) = readiness(&proxy).await;
    assert_eq!(status, 200, "one bad secret does not make the others unready");
    assert!(body["agents"]["failing"].get("hr").is_some(), "{body}");
}

#[tokio::test]
async fn expired_token_of_an_unused_agent_is_ready() {
    let settings = Settings { token_lifetime: std::time::Duration::from_secs(1), ..Settings::default() };
    let proxy = TestProxy::start_with_settings(settings, OPEN_CONFIG).await;
    proxy.get(USER_GET).await.assert_ok();
    let state =
        || async { admin_get(&proxy, "/api/agents").await.json()["agents"][0]["token"]["state"].clone() };
    let expired = async {
        while state().await != "expired" {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    with_timeout(expired).await;
    // An unready replica gets no request that could fetch a token, so it would stay unready.
    assert_eq!(readiness(&proxy).await.0, 200);
    proxy.get(USER_GET).await.assert_ok();
}

#[tokio::test]
async fn first_token_in_flight_is_ready() {
    let proxy = TestProxy::start_open().await;
    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/gettoken")).expect("a fault");
    let during = async {
        proxy.wecom.wait_until(|observed| observed.in_flight() == 1).await.expect("a gettoken");
        assert_eq!(readiness(&proxy).await.0, 200);
        proxy.wecom.release_held();
    };
    tokio::join!(proxy.get(USER_GET), during).0.assert_ok();
}

#[tokio::test]
async fn health_checks_fail_during_shutdown() {
    let (wecom, _dir, proxy) = Process::serve_with_simulator(OPEN_CONFIG).await;
    let mut client = TestClient::connect_http1(proxy.address().await).await;
    wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    let admin = proxy.admin_address().await;
    let during = async {
        wecom.wait_until(|observed| observed.in_flight() == 1).await.expect("a request");
        proxy.signal("TERM");
        proxy.err.wait_for_line("stopping").await;
        for path in ["/readyz", "/healthz"] {
            let poll = async {
                loop {
                    let response =
                        TestClient::connect_http1(admin).await.request(Request::get(path), "").await;
                    if response.status == StatusCode::SERVICE_UNAVAILABLE {
                        return response;
                    }
                }
            };
            let response = with_timeout(poll).await;
            assert_eq!(response.json()["status"], "shutting down");
        }
        wecom.release_held();
    };
    tokio::join!(client.get(USER_GET), during).0.assert_ok();
    assert_eq!(proxy.wait().await.status, 0);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_refused_with_a_message() {
    let proxy = TestProxy::start_open().await;
    for path in ["/index.html", "/healthz/", "/api/agents/it", "/hr/cgi-bin/user/get"] {
        let response = admin_get(&proxy, path).await;
        assert_eq!(response.status, StatusCode::NOT_FOUND, "{path}");
        assert!(response.json()["error"].is_string());
    }
    for path in ["/healthz", "/readyz", "/api/agents"] {
        let mut client = TestClient::connect_http1(proxy.admin_address()).await;
        for name in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "trace", "get", "Post", "TRACK"] {
            let response = client.request(Request::builder().uri(path).method(parse_method(name)), "").await;
            assert_eq!(response.status, StatusCode::METHOD_NOT_ALLOWED, "{name} {path}");
            assert!(response.header("allow").contains("GET"));
        }
        let head = client.request(Request::head(path), "").await;
        assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
    }
    assert_eq!(proxy.wecom.observe(|observed| observed.request_count()), 0);
}

#[tokio::test]
async fn admin_key_leaves_only_health_checks_open() {
    let hash = sha256(KEY);
    let toml = OPEN_CONFIG.replace("[admin]", &format!("[admin]\nkey_sha256 = \"{hash}\""));
    let proxy = TestProxy::start_with_config(&toml).await;
    let get = async |path: &str, authorization: Option<String>| {
        let request = Request::get(path);
        let request = match authorization {
            Some(value) => request.header("authorization", value),
            None => request,
        };
        TestClient::connect_http1(proxy.admin_address()).await.request(request, "").await
    };
    let basic = |text: &str| {
        use base64::Engine;
        format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(text))
    };
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(path, None).await.status, StatusCode::OK);
    }
    for valid in [format!("Bearer {KEY}"), format!("bearer {KEY}"), basic(&format!("me:{KEY}"))] {
        assert_eq!(get("/api/agents", Some(valid)).await.status, StatusCode::OK);
    }
    let invalid_credentials = [
        None,
        Some("Bearer wrong".into()),
        Some(KEY.into()),
        Some(basic(KEY)),
        Some(format!("Bearer {hash}")),
    ];
    for invalid in invalid_credentials {
        for path in ["/api/agents", "/nothing-here"] {
            let response = get(path, invalid.clone()).await;
            assert_eq!(response.status, StatusCode::UNAUTHORIZED, "{invalid:?}");
            let challenges = response.headers.get_all("www-authenticate").iter();
            let challenges: Vec<_> =
                challenges.filter_map(|challenge| challenge.to_str().ok()?.split(' ').next()).collect();
            // One header per challenge: browsers read only the first challenge of a header.
            assert_eq!(challenges, ["Basic", "Bearer"]);
            assert!(!response.text().contains("corpid"));
            // The message distinguishes a wrong key from a missing one.
            assert_eq!(response.text().contains("wrong admin key"), invalid.is_some(), "{}", response.text());
        }
    }
}

#[tokio::test]
async fn silent_admin_connections_do_not_block_others() {
    let proxy = TestProxy::start_open().await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(proxy.admin_address()).await.expect("a connection"));
    }
    assert_eq!(admin_get(&proxy, "/healthz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn refused_token_without_a_refresh_is_not_reported_valid() {
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.reset_secret("hr", "another").expect("an agent");
    proxy.get(USER_GET).await.assert_proxy_error("token-unavailable", 502, 40001);
    let mut admin = TestClient::connect_http1(proxy.admin_address()).await;
    let ready = admin.request(http::Request::get("/readyz"), "").await;
    assert_eq!(ready.status, 503, "{}", ready.text());
    let agents = admin.request(http::Request::get("/api/agents"), "").await.json();
    assert_eq!(agents["agents"][0]["token"]["state"], "refused", "{agents}");
}

#[tokio::test]
async fn health_check_succeeds_with_admin_connections_exhausted() {
    let proxy = TestProxy::start_open().await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(proxy.admin_address()).await.expect("a connection"));
    }
    assert_eq!(crate::harness::with_timeout(readiness(&proxy)).await.0, 200);
    drop(silent);
}

#[tokio::test]
async fn cross_site_request_sees_only_health() {
    let proxy = TestProxy::start_open().await;
    for (path, status) in [
        ("/", 200),
        ("/healthz", 200),
        ("/metrics", 403),
        ("/api/overview", 403),
        ("/api/requests/stream", 403),
    ] {
        let request = Request::get(path).header("sec-fetch-site", "cross-site");
        let response = TestClient::connect_http1(proxy.admin_address()).await.request(request, "").await;
        assert_eq!(response.status.as_u16(), status, "{path}");
    }
}

#[tokio::test]
async fn responses_are_compressed_and_tagged() {
    let proxy = TestProxy::start_open().await;
    proxy.get("/cgi-bin/user/get?userid=zhangsan").await.assert_ok();
    let send = async |path: &str, headers: &[(&str, &str)]| {
        let request =
            headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
        TestClient::connect_http1(proxy.admin_address()).await.request(request, "").await
    };
    for path in ["/", "/metrics", "/api/errcodes", "/api/openapi.json"] {
        let (plain, compressed) = (send(path, &[]).await, send(path, &[("accept-encoding", "gzip")]).await);
        assert_eq!(compressed.header("content-encoding"), "gzip", "{path}");
        assert_eq!(compressed.header("vary"), "accept-encoding", "{path}");
        let mut text = String::new();
        let mut decoder = flate2::read::GzDecoder::new(&compressed.body[..]);
        std::io::Read::read_to_string(&mut decoder, &mut text).expect("gzip");
        if path != "/metrics" {
            assert_eq!(text, plain.text(), "{path}");
        }
        assert!(compressed.body.len() * 2 < plain.body.len(), "{path}");
    }
    let first = send("/api/errcodes", &[]).await;
    let tag = first.header("etag");
    let again = send("/api/errcodes", &[("if-none-match", tag), ("accept-encoding", "gzip")]).await;
    assert_eq!((again.status, again.body.len()), (StatusCode::NOT_MODIFIED, 0));
    let other = send("/api/errcodes", &[("if-none-match", "\"another\"")]).await;
    assert_eq!((other.status, other.text()), (StatusCode::OK, first.text()));
}
