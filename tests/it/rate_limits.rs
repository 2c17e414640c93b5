//! Rate limits of clients and agents, and the `allow` list of a client.

use std::time::Duration;

use http::Request;
use tokio::net::TcpStream;

use crate::{
    gettoken::{
        CORPID, HR_SECRET, config_with_hr_lines, fetch_pass, gettoken_target, pass_from_response, send_get,
    },
    harness::{CONFIG_WITH_CLIENTS, TestClient, TestProxy, TestResponse, USER_GET, client_key, with_timeout},
    raw_http::RawConnection,
};

/// The configuration with extra lines in a client's section.
fn config_with_client_lines(client: &str, lines: &str) -> String {
    let section = format!("[clients.{client}]");
    CONFIG_WITH_CLIENTS.replace(&section, &format!("{section}\n{lines}"))
}

async fn get_as_client(proxy: &TestProxy, client: &str, agent: &str) -> TestResponse {
    let request = Request::get(format!("/{agent}{USER_GET}")).header("x-api-key", client_key(client));
    proxy.request(request, "").await
}

#[track_caller]
fn assert_rate_limited(response: &TestResponse, status: u16, subject: &str) {
    response.assert_proxy_error("rate-limited", status, 45009);
    assert!(response.text().contains(subject), "{}", response.text());
    let wait: u64 = response.header("retry-after").parse().expect("seconds");
    assert!((1..=1200).contains(&wait), "{wait}");
}

#[tokio::test]
async fn client_beyond_its_limit_gets_retry_after() {
    let proxy = TestProxy::start_with_config(&config_with_client_lines("crm", "limit = \"3/h\"")).await;
    for agent in ["hr", "ops", "hr"] {
        get_as_client(&proxy, "crm", agent).await.assert_ok();
    }
    let before = proxy.wecom.requests().len();
    assert_rate_limited(&get_as_client(&proxy, "crm", "hr").await, 429, "this client");
    assert_rate_limited(&get_as_client(&proxy, "crm", "ops").await, 429, "this client");
    assert_eq!(proxy.wecom.requests().len(), before);
    get_as_client(&proxy, "billing", "hr").await.assert_ok();
}

#[tokio::test]
async fn agent_beyond_its_limit_is_limited_for_every_client() {
    let proxy = TestProxy::start_with_config(&config_with_hr_lines("limit = \"3/h\"")).await;
    for client in ["billing", "crm", "narrow"] {
        get_as_client(&proxy, client, "hr").await.assert_ok();
    }
    for client in ["billing", "crm"] {
        assert_rate_limited(&get_as_client(&proxy, client, "hr").await, 429, "this agent");
    }
    get_as_client(&proxy, "crm", "ops").await.assert_ok();
}

#[tokio::test]
async fn limit_does_not_make_a_connection_count_as_keyless() {
    let toml = config_with_hr_lines("accept_secret = true\nlimit = \"1/h\"");
    let toml = toml.replacen("[server]", "[server]\nmax_connections = 4", 1);
    let proxy = TestProxy::start_with_config(&toml).await;
    let pass = pass_from_response(&send_get(&proxy, gettoken_target(HR_SECRET)).await);
    let target = format!("{USER_GET}&access_token={pass}");
    send_get(&proxy, &target).await.assert_ok();
    let mut connection = RawConnection::connect(proxy.address()).await;
    let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
    connection.send(&request).await.expect("sent");
    assert!(connection.read_response().await.0.starts_with("HTTP/1.1 429"));
    // From this idle time on it is evicted, unless connections without a key hold half of the permits.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let mut keyless = Vec::new();
    for _ in 0..20 {
        keyless.push(with_timeout(TcpStream::connect(proxy.address())).await.expect("a connection"));
    }
    send_get(&proxy, &target).await;
    connection.send(&request).await.expect("sent");
    assert!(connection.read_response().await.0.starts_with("HTTP/1.1 429"), "evicted for keyless ones");
}

#[tokio::test]
async fn limit_counts_keys_passes_and_gettoken_together() {
    let proxy = TestProxy::start_with_config(&config_with_client_lines("billing", "limit = \"3/h\"")).await;
    let pass = fetch_pass(&proxy, "hr", "billing").await;
    let with_pass = format!("{USER_GET}&access_token={pass}");
    send_get(&proxy, &with_pass).await.assert_ok();
    get_as_client(&proxy, "billing", "hr").await.assert_ok();
    assert_rate_limited(&send_get(&proxy, &with_pass).await, 429, "this client");
    assert_rate_limited(&send_get(&proxy, gettoken_target(&client_key("billing"))).await, 429, "this client");
}

#[tokio::test]
async fn rate_limit_of_an_always_200_client_is_http_200() {
    let proxy = TestProxy::start_with_config(&config_with_client_lines("alert", "limit = \"3/h\"")).await;
    let pass = fetch_pass(&proxy, "hr", "alert").await;
    for _ in 0..2 {
        get_as_client(&proxy, "alert", "hr").await.assert_ok();
    }
    assert_rate_limited(&get_as_client(&proxy, "alert", "hr").await, 200, "this client");
    assert_rate_limited(
        &send_get(&proxy, format!("{USER_GET}&access_token={pass}")).await,
        200,
        "this client",
    );
    assert_rate_limited(&send_get(&proxy, gettoken_target(&client_key("alert"))).await, 200, "this client");
}

#[tokio::test]
async fn client_limit_survives_a_reload_unless_changed() {
    let config = config_with_client_lines("billing", "limit = \"3/h\"");
    let proxy = TestProxy::start_with_config(&config).await;
    for _ in 0..3 {
        get_as_client(&proxy, "billing", "hr").await.assert_ok();
    }
    proxy.rewrite_config(&config.replace("key-of-crm", "new-of-crm"));
    proxy.app.reload().expect("a reload");
    assert_rate_limited(&get_as_client(&proxy, "billing", "hr").await, 429, "this client");
    proxy.rewrite_config(&config.replace("3/h", "4/h"));
    proxy.app.reload().expect("a reload");
    get_as_client(&proxy, "billing", "hr").await.assert_ok();
    proxy.rewrite_config(CONFIG_WITH_CLIENTS);
    proxy.app.reload().expect("a reload");
    for _ in 0..9 {
        get_as_client(&proxy, "billing", "hr").await.assert_ok();
    }
}

#[tokio::test]
async fn agent_limit_survives_a_reload() {
    let config = config_with_hr_lines("limit = \"3/h\"");
    let proxy = TestProxy::start_with_config(&config).await;
    for _ in 0..3 {
        get_as_client(&proxy, "billing", "hr").await.assert_ok();
    }
    proxy.rewrite_config(&config);
    proxy.app.reload().expect("a reload");
    assert_rate_limited(&get_as_client(&proxy, "billing", "hr").await, 429, "this agent");
}

#[tokio::test]
async fn gettoken_with_a_removed_key_never_reaches_wecom() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = TestClient::connect_http1(proxy.address()).await;
    for _ in 0..100 {
        let response = client.request(Request::get(gettoken_target("a-key-that-was-withdrawn")), "").await;
        assert_eq!((response.status.as_u16(), response.errcode()), (200, 40001));
    }
    assert_eq!(
        proxy.wecom.observe(|observed| (observed.request_count(), observed.connection_count())),
        (0, 0)
    );
}

#[tokio::test]
async fn allow_patterns_match_method_path_and_segment() {
    let allow = r#"allow = ["GET /cgi-bin/user/get", "/cgi-bin/department/*", "POST /cgi-bin/*/send", "/cgi-bin/tag/l*t"]"#;
    let proxy = TestProxy::start_with_config(&config_with_client_lines("billing", allow)).await;
    for (method, path, allowed) in [
        ("GET", "/cgi-bin/user/get", true),
        ("POST", "/cgi-bin/user/get", false),
        ("HEAD", "/cgi-bin/user/get", false),
        ("GET", "/cgi-bin/user/get/", false),
        ("GET", "/cgi-bin/user/%67et", true),
        ("GET", "/cgi-bin//user//get", true),
        ("GET", "/cgi-bin/user/get;a=b", false),
        ("GET", "/cgi-bin/User/Get", false),
        ("GET", "/cgi-bin/user/%2567et", false),
        ("GET", "/cgi-bin/user/simplelist", false),
        ("GET", "/cgi-bin/user/%73implelist", false),
        ("PUT", "/cgi-bin/department/a/b/c", true),
        ("GET", "/cgi-bin/department", false),
        ("GET", "/cgi-bin/departments/list", false),
        ("POST", "/cgi-bin/message/send", true),
        ("POST", "/cgi-bin/webhook/send", true),
        ("POST", "/cgi-bin/a/b/send", false),
        ("GET", "/cgi-bin/message/send", false),
        ("GET", "/cgi-bin/tag/list", true),
        ("GET", "/cgi-bin/tag/lt", true),
        ("GET", "/cgi-bin/tag/lists", false),
        ("GET", "/cgi-bin/tag/l/t", false),
        ("GET", "/cgi-bin/media/get?x=/cgi-bin/department/list", false),
    ] {
        let request = Request::builder().method(method).uri(path).header("x-api-key", client_key("billing"));
        let response = proxy.request(request, "").await;
        assert_eq!(response.header("x-wecom-proxy-error") != "forbidden", allowed, "{method} {path}");
    }
    // A path that WeCom could read as another path is refused before any rule applies.
    for path in [
        "/cgi-bin/department/../user/list",
        "/cgi-bin/department/%2e%2e/user/list",
        "/cgi-bin/department%2f..%2fuser",
    ] {
        let request = Request::get(path).header("x-api-key", client_key("billing"));
        proxy.request(request, "").await.assert_proxy_error("bad-request", 400, 40035);
    }
}

#[tokio::test]
async fn gettoken_is_allowed_despite_the_allow_list() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    pass_from_response(&send_get(&proxy, gettoken_target(&client_key("narrow"))).await);
    let with_key =
        Request::post(gettoken_target(&client_key("narrow"))).header("x-api-key", client_key("narrow"));
    pass_from_response(&proxy.request(with_key, "").await);
    let target = format!("/cgi-bin//GetToken/?corpid={CORPID}&corpsecret={}", client_key("narrow"));
    pass_from_response(&send_get(&proxy, target).await);
}
