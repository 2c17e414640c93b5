//! gettoken (contract §6): the proxy responds in WeCom's exact format, with a pass in place of the token.

use http::Request;
use wecom_proxy::simulator::Settings;

use crate::{
    harness::{
        CONFIG_WITH_CLIENTS, OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, agent_section,
        client_key, parse_method,
    },
    raw_http::RawConnection,
};

/// The corpid of the simulator's agents.
pub const CORPID: &str = "ww1234567890abcdef";
/// The real secrets of its agents.
pub const HR_SECRET: &str = "not-a-secret-hr-0000000000000000000000000000";
pub const OPS_SECRET: &str = "not-a-secret-ops-000000000000000000000000000";

/// The target of a gettoken call.
pub fn gettoken_target(secret: &str) -> String {
    format!("/cgi-bin/gettoken?corpid={CORPID}&corpsecret={secret}")
}

/// Sends a GET request.
pub async fn send_get(proxy: &TestProxy, target: impl AsRef<str>) -> TestResponse {
    proxy.request(Request::get(target.as_ref()), "").await
}

/// Fetches a pass with a client's key through an agent.
pub async fn fetch_pass(proxy: &TestProxy, agent: &str, client: &str) -> String {
    pass_from_response(&send_get(proxy, format!("/{agent}{}", gettoken_target(&client_key(client)))).await)
}

/// The pass in a response, which must have WeCom's exact format.
#[track_caller]
pub fn pass_from_response(response: &TestResponse) -> String {
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("content-type"), "application/json; charset=UTF-8");
    pass_from_body(response.text())
}

/// The pass in a gettoken response body.
#[track_caller]
pub fn pass_from_body(text: &str) -> String {
    let rest = text.strip_prefix(r#"{"errcode":0,"errmsg":"ok","access_token":""#);
    let pass = rest.and_then(|rest| rest.strip_suffix(r#"","expires_in":7200}"#));
    let pass = pass.unwrap_or_else(|| panic!("no pass: {text}"));
    assert!(!pass.is_empty() && pass.len() <= 512, "{} bytes", pass.len());
    assert!(pass.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{pass}");
    pass.to_owned()
}

#[track_caller]
fn assert_refused(response: &TestResponse, errcode: i64) {
    response.assert_proxy_error("gettoken-refused", 200, errcode);
}

/// The configuration with clients, with `more` lines in the section of `hr`.
pub fn config_with_hr_lines(more: &str) -> String {
    let agents = Settings::default().agents;
    let sections = agent_section(&agents[0], more) + &agent_section(&agents[1], "");
    CONFIG_WITH_CLIENTS.replace("{agents}", &sections)
}

/// An agent with another corpid.
const OTHER_CORP_AGENT: &str =
    "[agents.far]\ncorpid = \"wwfedcba0987654321\"\nsecret = \"not-a-secret-far\"\n";

#[tokio::test]
async fn client_key_gets_a_pass_by_get_and_post_with_any_prefix() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    for name in ["GET", "POST"] {
        for prefix in ["", "/hr", "/", "/hr/"] {
            let target = format!("{prefix}{}", gettoken_target(&client_key("billing")));
            let request = Request::builder().method(parse_method(name)).uri(&target);
            let response = proxy.request(request, "").await;
            pass_from_response(&response);
            assert_eq!(response.header("x-wecom-agent"), "hr", "{target}");
        }
    }
    let mut client = TestClient::connect_http2(proxy.address()).await;
    pass_from_response(&client.request(Request::get(gettoken_target(&client_key("billing"))), "").await);
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn gettoken_parameters_work_in_any_order_and_encoding() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let key = client_key("billing");
    let encoded = key.replace('-', "%2D");
    for query in [
        format!("corpsecret={key}&corpid={CORPID}"),
        format!("&corpid={CORPID}&corpsecret={key}"),
        format!("access_token=&corpid={CORPID}&corpsecret={key}&debug=1"),
        format!("access_token=stale&corpid={CORPID}&corpsecret={key}"),
        format!("corpid=%77w1234567890abcdef&corp%73ecret={encoded}"),
    ] {
        pass_from_response(&send_get(&proxy, format!("/cgi-bin/gettoken?{query}")).await);
    }
}

#[tokio::test]
async fn gettoken_works_without_the_upstream() {
    let proxy = TestProxy::start_open().await;
    proxy.wecom.stop().await;
    pass_from_response(&send_get(&proxy, gettoken_target(HR_SECRET)).await);
}

#[tokio::test]
async fn real_secret_is_accepted_by_an_open_proxy() {
    let proxy = TestProxy::start_open().await;
    for (prefix, secret, agent) in
        [("", HR_SECRET, "hr"), ("/ops", OPS_SECRET, "ops"), ("", OPS_SECRET, "ops")]
    {
        let response = send_get(&proxy, format!("{prefix}{}", gettoken_target(secret))).await;
        pass_from_response(&response);
        assert_eq!(response.header("x-wecom-agent"), agent);
    }
    assert_refused(&send_get(&proxy, format!("/ops{}", gettoken_target(HR_SECRET))).await, 40001);
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn real_secret_needs_accept_secret_in_a_closed_proxy() {
    let proxy = TestProxy::start_with_config(&config_with_hr_lines("accept_secret = true")).await;
    pass_from_response(&send_get(&proxy, gettoken_target(HR_SECRET)).await);
    pass_from_response(&send_get(&proxy, format!("/hr{}", gettoken_target(HR_SECRET))).await);
    assert_refused(&send_get(&proxy, gettoken_target(OPS_SECRET)).await, 40001);
    assert_refused(&send_get(&proxy, format!("/ops{}", gettoken_target(OPS_SECRET))).await, 40001);
    assert_refused(&send_get(&proxy, format!("/ops{}", gettoken_target(HR_SECRET))).await, 40001);
    let closed = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    assert_refused(&send_get(&closed, gettoken_target(HR_SECRET)).await, 40001);
    assert_eq!(proxy.wecom.requests().len() + closed.wecom.requests().len(), 0);
}

#[tokio::test]
async fn agents_with_the_same_secret_are_told_apart_by_prefix() {
    let agents = format!("{{agents}}\n[agents.twin]\ncorpid = \"{CORPID}\"\nsecret = \"{HR_SECRET}\"\n");
    let proxy = TestProxy::start_with_config(&OPEN_CONFIG.replace("{agents}", &agents)).await;
    for agent in ["hr", "twin"] {
        let response = send_get(&proxy, format!("/{agent}{}", gettoken_target(HR_SECRET))).await;
        pass_from_response(&response);
        assert_eq!(response.header("x-wecom-agent"), agent);
    }
}

#[tokio::test]
async fn invalid_gettoken_returns_wecoms_errcodes() {
    for proxy in [TestProxy::start_open().await, TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await] {
        for (query, errcode) in [
            (format!("corpid={CORPID}&corpsecret=wrong"), 40001),
            (format!("corpid={CORPID}&corpsecret={HR_SECRET}0"), 40001),
            (format!("corpid=wwunknown&corpsecret={HR_SECRET}"), 40013),
            (format!("corpid=wwunknown&corpsecret={}", client_key("billing")), 40013),
            (format!("corpsecret={HR_SECRET}"), 41002),
            (format!("corpid=&corpsecret={HR_SECRET}"), 41002),
            (format!("corpid={CORPID}"), 41004),
            (format!("corpid={CORPID}&corpsecret="), 41004),
            (format!("corpid={CORPID}&corpsecret"), 41004),
            (String::new(), 41004),
            ("grant_type=client_credential&appid=x&secret=y".to_owned(), 41004),
        ] {
            for prefix in ["", "/hr"] {
                let response = send_get(&proxy, format!("{prefix}/cgi-bin/gettoken?{query}")).await;
                assert_refused(&response, errcode);
                assert!(!response.text().contains("not-a-secret") && !response.text().contains("key-of"));
            }
        }
        assert_refused(&send_get(&proxy, "/cgi-bin/gettoken").await, 41004);
        assert_eq!(proxy.wecom.requests().len(), 0);
    }
}

#[tokio::test]
async fn client_with_several_agents_must_name_one() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let target = gettoken_target(&client_key("crm"));
    let response = send_get(&proxy, &target).await;
    assert_refused(&response, 40013);
    assert!(response.text().contains("/NAME/cgi-bin/gettoken"), "{}", response.text());
    assert_eq!(send_get(&proxy, format!("/ops{target}")).await.header("x-wecom-agent"), "ops");
    let by_header = proxy.request(Request::get(&target).header("x-wecom-agent", "ops"), "").await;
    pass_from_response(&by_header);
    assert_eq!(by_header.header("x-wecom-agent"), "ops");
    let both = Request::get(format!("/hr{target}")).header("x-wecom-agent", "ops");
    proxy.request(both, "").await.assert_proxy_error("bad-request", 400, 40035);
}

#[tokio::test]
async fn corpid_selects_the_agent() {
    let proxy = TestProxy::start_with_config(
        &CONFIG_WITH_CLIENTS.replace("{agents}", &format!("{{agents}}\n{OTHER_CORP_AGENT}")),
    )
    .await;
    let target = format!("/cgi-bin/gettoken?corpid=wwfedcba0987654321&corpsecret={}", client_key("crm"));
    let response = send_get(&proxy, &target).await;
    pass_from_response(&response);
    assert_eq!(response.header("x-wecom-agent"), "far");
    assert_refused(&send_get(&proxy, format!("/hr{target}")).await, 40013);
    assert_refused(&send_get(&proxy, format!("/far{}", gettoken_target(&client_key("crm")))).await, 40013);
    // A corpid of which the client may use no agent looks like an unknown one.
    assert_refused(&send_get(&proxy, target.replace("crm", "billing")).await, 40013);
}

#[tokio::test]
async fn forbidden_agent_looks_like_an_unknown_one() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut shapes = Vec::new();
    for name in ["ops", "nil"] {
        let response = send_get(&proxy, format!("/{name}{}", gettoken_target(&client_key("billing")))).await;
        response.assert_proxy_error("unknown-agent", 404, 40035);
        shapes.push(response.text().replace(name, "NAME"));
    }
    assert_eq!(shapes[0], shapes[1]);
}

#[tokio::test]
async fn key_header_and_corpsecret_must_be_of_one_client() {
    let proxy = TestProxy::start_with_config(&config_with_hr_lines("accept_secret = true")).await;
    let request_with = |client: &str, secret: &str| {
        Request::get(gettoken_target(secret)).header("x-api-key", client_key(client))
    };
    pass_from_response(&proxy.request(request_with("billing", &client_key("billing")), "").await);
    proxy.request(request_with("billing", &client_key("narrow")), "").await.assert_proxy_error(
        "bad-request",
        400,
        40035,
    );
    // A pass fetched with the real secret and a client's key has that client's permissions.
    let response = proxy.request(request_with("narrow", HR_SECRET), "").await;
    let target = format!("/cgi-bin/department/list?access_token={}", pass_from_response(&response));
    send_get(&proxy, target).await.assert_proxy_error("forbidden", 403, 48002);
    assert_refused(&proxy.request(request_with("billing", "wrong"), "").await, 40001);
    let unknown = Request::get(gettoken_target(HR_SECRET)).header("x-api-key", "key-of-unknown");
    proxy.request(unknown, "").await.assert_proxy_error("unauthenticated", 401, 40001);
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn longest_names_fit_into_a_pass() {
    let name = "n".repeat(64);
    let config = OPEN_CONFIG.replace(
        "{agents}",
        &format!(
            "[agents.{name}]\ncorpid = \"{CORPID}\"\nsecret = \"{HR_SECRET}\"\n\
             [clients.{name}]\nkey = \"key-of-long-0000000000\"\nagents = [\"*\"]\n"
        ),
    );
    let proxy = TestProxy::start_with_config(&config).await;
    let pass = pass_from_response(&send_get(&proxy, gettoken_target("key-of-long-0000000000")).await);
    send_get(&proxy, format!("/cgi-bin/user/get?userid=zhangsan&access_token={pass}")).await.assert_ok();
}

#[tokio::test]
async fn gettoken_with_a_body_returns_the_pass() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    let target = gettoken_target(&client_key("billing"));
    for _ in 0..3 {
        let request = format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}");
        connection.send(request).await.expect("sent");
        let (head, body) = connection.read_response().await;
        pass_from_body(&body);
        if head.to_ascii_lowercase().contains("connection: close") {
            connection = RawConnection::connect(proxy.address()).await;
        }
    }
}

#[tokio::test]
async fn gettoken_by_head_and_http10_is_answered() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let target = gettoken_target(&client_key("billing"));
    let response = proxy.send_raw(format!("GET {target} HTTP/1.0\r\n\r\n")).await;
    let (head, body) = response.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.0 200 "), "{head}");
    pass_from_body(body);
    let response =
        proxy.send_raw(format!("HEAD {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
    assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("\r\n\r\n"), "{response}");
    assert!(response.to_ascii_lowercase().contains(&format!("content-length: {}", body.len())), "{response}");
}

#[tokio::test]
async fn open_proxy_with_clients_accepts_keys_and_secrets() {
    let proxy =
        TestProxy::start_with_config(&CONFIG_WITH_CLIENTS.replace("[server]", "[server]\nopen = true")).await;
    let list = |pass: &str| format!("/cgi-bin/department/list?access_token={pass}");
    let by_secret = pass_from_response(&send_get(&proxy, gettoken_target(HR_SECRET)).await);
    send_get(&proxy, list(&by_secret)).await.assert_ok();
    let narrow = pass_from_response(&send_get(&proxy, gettoken_target(&client_key("narrow"))).await);
    send_get(&proxy, list(&narrow)).await.assert_proxy_error("forbidden", 403, 48002);
    // After the client is removed, its pass is invalid in the open proxy; where the prefix names the agent, it is replaced.
    proxy.rewrite_config(&OPEN_CONFIG.replace("[server]", "[server]\nopen = true"));
    proxy.app.reload().expect("a reload");
    send_get(&proxy, list(&narrow)).await.assert_proxy_error("pass-invalid", 200, 40014);
    send_get(&proxy, format!("/ops{}", list(&narrow))).await.assert_ok();
    send_get(&proxy, list(&by_secret)).await.assert_ok();
}

#[tokio::test]
async fn chained_proxy_is_detected_and_refused() {
    let inner = TestProxy::start_open().await;
    let outer = TestProxy::start_with_upstream(inner.address(), OPEN_CONFIG).await;
    let response = outer.get(USER_GET).await;
    response.assert_proxy_error("token-unavailable", 502, -1);
    assert!(response.text().contains("upstream.url leads back to a proxy"), "{}", response.text());
    assert_eq!(inner.forwarded_count(), 0);
}

#[tokio::test]
async fn unknown_prefix_before_gettoken_is_named_as_the_mistake() {
    for (proxy, secret) in [
        (TestProxy::start_open().await, HR_SECRET.to_owned()),
        (TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await, client_key("billing")),
    ] {
        let target = format!("/nil/cgi-bin/gettoken?corpid={CORPID}&corpsecret={secret}");
        let response = send_get(&proxy, target).await;
        response.assert_proxy_error("unknown-agent", 404, 40035);
        assert!(response.text().contains("before /cgi-bin/gettoken"), "{}", response.text());
    }
    // A caller without a valid secret does not learn which agents there are.
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let responses =
        ["nil", "hr"].map(|name| format!("/{name}/cgi-bin/gettoken?corpid={CORPID}&corpsecret=wrong"));
    let [one, other] = responses.each_ref().map(|target| send_get(&proxy, target.clone()));
    let (one, other) = (one.await, other.await);
    let text = |response: &TestResponse| response.text().split("request id").next().map(str::to_owned);
    assert_eq!(text(&one), text(&other));
    assert!(one.text().contains("must be an agent's name"), "{}", one.text());
}
