//! §6: gettoken is answered here, to the letter as WeCom would, with a pass in place of a token.

use http::Request;
use wecom_proxy::simulator::Settings;

use crate::{
    harness::{
        CONFIG_WITH_CLIENTS, OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, agent_section,
        client_key, parse_method,
    },
    raw_http::RawConnection,
};

/// The company of the simulator's agents.
pub const CORPID: &str = "ww1234567890abcdef";
/// The real secrets of its agents.
pub const HR_SECRET: &str = "not-a-secret-hr-0000000000000000000000000000";
pub const OPS_SECRET: &str = "not-a-secret-ops-000000000000000000000000000";

/// The target of a gettoken call.
pub fn gettoken_target(secret: &str) -> String {
    format!("/cgi-bin/gettoken?corpid={CORPID}&corpsecret={secret}")
}

/// One such call.
pub async fn send_get(stage: &TestProxy, target: impl AsRef<str>) -> TestResponse {
    stage.request(Request::get(target.as_ref()), "").await
}

/// A pass, bought with a client's key through an agent.
pub async fn fetch_pass(stage: &TestProxy, agent: &str, client: &str) -> String {
    pass_from_response(&send_get(stage, format!("/{agent}{}", gettoken_target(&client_key(client)))).await)
}

/// The pass in an answer, which must be WeCom's to the letter.
#[track_caller]
pub fn pass_from_response(reply: &TestResponse) -> String {
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("content-type"), "application/json; charset=UTF-8");
    pass_from_body(reply.text())
}

/// The pass in such a body.
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
fn assert_refused(reply: &TestResponse, errcode: i64) {
    reply.assert_proxy_error("gettoken-refused", 200, errcode);
}

/// The configuration with clients, in which `hr` has `more` lines.
pub fn config_with_hr_lines(more: &str) -> String {
    let agents = Settings::default().agents;
    let sections = agent_section(&agents[0], more) + &agent_section(&agents[1], "");
    CONFIG_WITH_CLIENTS.replace("{agents}", &sections)
}

/// An agent of another company.
const OTHER_CORP_AGENT: &str =
    "[agents.far]\ncorpid = \"wwfedcba0987654321\"\nsecret = \"not-a-secret-far\"\n";

#[tokio::test]
async fn client_key_gets_a_pass_by_get_and_post_with_any_prefix() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    for name in ["GET", "POST"] {
        for prefix in ["", "/hr", "/", "/hr/"] {
            let target = format!("{prefix}{}", gettoken_target(&client_key("billing")));
            let request = Request::builder().method(parse_method(name)).uri(&target);
            let reply = stage.request(request, "").await;
            pass_from_response(&reply);
            assert_eq!(reply.header("x-wecom-agent"), "hr", "{target}");
        }
    }
    let mut caller = TestClient::connect_http2(stage.address()).await;
    pass_from_response(&caller.request(Request::get(gettoken_target(&client_key("billing"))), "").await);
    assert_eq!(stage.wecom.requests().len(), 0);
}

#[tokio::test]
async fn gettoken_parameters_work_in_any_order_and_encoding() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let key = client_key("billing");
    let encoded = key.replace('-', "%2D");
    for query in [
        format!("corpsecret={key}&corpid={CORPID}"),
        format!("&corpid={CORPID}&corpsecret={key}"),
        format!("access_token=&corpid={CORPID}&corpsecret={key}&debug=1"),
        format!("access_token=left-over&corpid={CORPID}&corpsecret={key}"),
        format!("corpid=%77w1234567890abcdef&corp%73ecret={encoded}"),
    ] {
        pass_from_response(&send_get(&stage, format!("/cgi-bin/gettoken?{query}")).await);
    }
}

#[tokio::test]
async fn gettoken_works_without_the_upstream() {
    let stage = TestProxy::start_open().await;
    stage.wecom.stop().await;
    pass_from_response(&send_get(&stage, gettoken_target(HR_SECRET)).await);
}

#[tokio::test]
async fn real_secret_is_accepted_by_an_open_proxy() {
    let stage = TestProxy::start_open().await;
    for (prefix, secret, agent) in
        [("", HR_SECRET, "hr"), ("/ops", OPS_SECRET, "ops"), ("", OPS_SECRET, "ops")]
    {
        let reply = send_get(&stage, format!("{prefix}{}", gettoken_target(secret))).await;
        pass_from_response(&reply);
        assert_eq!(reply.header("x-wecom-agent"), agent);
    }
    assert_refused(&send_get(&stage, format!("/ops{}", gettoken_target(HR_SECRET))).await, 40001);
    assert_eq!(stage.wecom.requests().len(), 0);
}

#[tokio::test]
async fn real_secret_needs_accept_secret_in_a_closed_proxy() {
    let stage = TestProxy::start_with_config(&config_with_hr_lines("accept_secret = true")).await;
    pass_from_response(&send_get(&stage, gettoken_target(HR_SECRET)).await);
    pass_from_response(&send_get(&stage, format!("/hr{}", gettoken_target(HR_SECRET))).await);
    assert_refused(&send_get(&stage, gettoken_target(OPS_SECRET)).await, 40001);
    assert_refused(&send_get(&stage, format!("/ops{}", gettoken_target(OPS_SECRET))).await, 40001);
    assert_refused(&send_get(&stage, format!("/ops{}", gettoken_target(HR_SECRET))).await, 40001);
    let closed = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    assert_refused(&send_get(&closed, gettoken_target(HR_SECRET)).await, 40001);
    assert_eq!(stage.wecom.requests().len() + closed.wecom.requests().len(), 0);
}

#[tokio::test]
async fn agents_with_the_same_secret_are_told_apart_by_prefix() {
    let again = format!("{{agents}}\n[agents.twin]\ncorpid = \"{CORPID}\"\nsecret = \"{HR_SECRET}\"\n");
    let stage = TestProxy::start_with_config(&OPEN_CONFIG.replace("{agents}", &again)).await;
    for agent in ["hr", "twin"] {
        let reply = send_get(&stage, format!("/{agent}{}", gettoken_target(HR_SECRET))).await;
        pass_from_response(&reply);
        assert_eq!(reply.header("x-wecom-agent"), agent);
    }
}

#[tokio::test]
async fn invalid_gettoken_returns_wecoms_errcodes() {
    for stage in [TestProxy::start_open().await, TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await] {
        for (query, errcode) in [
            (format!("corpid={CORPID}&corpsecret=wrong"), 40001),
            (format!("corpid={CORPID}&corpsecret={HR_SECRET}0"), 40001),
            (format!("corpid=wwnobody&corpsecret={HR_SECRET}"), 40013),
            (format!("corpid=wwnobody&corpsecret={}", client_key("billing")), 40013),
            (format!("corpsecret={HR_SECRET}"), 41002),
            (format!("corpid=&corpsecret={HR_SECRET}"), 41002),
            (format!("corpid={CORPID}"), 41004),
            (format!("corpid={CORPID}&corpsecret="), 41004),
            (format!("corpid={CORPID}&corpsecret"), 41004),
            (String::new(), 41002),
        ] {
            for prefix in ["", "/hr"] {
                let reply = send_get(&stage, format!("{prefix}/cgi-bin/gettoken?{query}")).await;
                assert_refused(&reply, errcode);
                assert!(!reply.text().contains("not-a-secret") && !reply.text().contains("key-of"));
            }
        }
        assert_refused(&send_get(&stage, "/cgi-bin/gettoken").await, 41002);
        assert_eq!(stage.wecom.requests().len(), 0);
    }
}

#[tokio::test]
async fn client_with_several_agents_must_name_one() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let target = gettoken_target(&client_key("crm"));
    let reply = send_get(&stage, &target).await;
    assert_refused(&reply, 40013);
    assert!(reply.text().contains("/NAME/cgi-bin/gettoken"), "{}", reply.text());
    assert_eq!(send_get(&stage, format!("/ops{target}")).await.header("x-wecom-agent"), "ops");
    let by_header = stage.request(Request::get(&target).header("x-wecom-agent", "ops"), "").await;
    pass_from_response(&by_header);
    assert_eq!(by_header.header("x-wecom-agent"), "ops");
    let both = Request::get(format!("/hr{target}")).header("x-wecom-agent", "ops");
    stage.request(both, "").await.assert_proxy_error("bad-request", 400, 40035);
}

#[tokio::test]
async fn corpid_selects_the_agent() {
    let stage = TestProxy::start_with_config(
        &CONFIG_WITH_CLIENTS.replace("{agents}", &format!("{{agents}}\n{OTHER_CORP_AGENT}")),
    )
    .await;
    let far = format!("/cgi-bin/gettoken?corpid=wwfedcba0987654321&corpsecret={}", client_key("crm"));
    let reply = send_get(&stage, &far).await;
    pass_from_response(&reply);
    assert_eq!(reply.header("x-wecom-agent"), "far");
    assert_refused(&send_get(&stage, format!("/hr{far}")).await, 40013);
    assert_refused(&send_get(&stage, format!("/far{}", gettoken_target(&client_key("crm")))).await, 40013);
    // A company of which this client may use no agent looks like none.
    assert_refused(&send_get(&stage, far.replace("crm", "billing")).await, 40013);
}

#[tokio::test]
async fn forbidden_agent_looks_like_an_unknown_one() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut shapes = Vec::new();
    for name in ["ops", "nil"] {
        let reply = send_get(&stage, format!("/{name}{}", gettoken_target(&client_key("billing")))).await;
        reply.assert_proxy_error("unknown-agent", 404, 40035);
        shapes.push(reply.text().replace(name, "NAME"));
    }
    assert_eq!(shapes[0], shapes[1]);
}

#[tokio::test]
async fn key_header_and_corpsecret_must_be_of_one_client() {
    let stage = TestProxy::start_with_config(&config_with_hr_lines("accept_secret = true")).await;
    let with = |client: &str, secret: &str| {
        Request::get(gettoken_target(secret)).header("x-api-key", client_key(client))
    };
    pass_from_response(&stage.request(with("billing", &client_key("billing")), "").await);
    stage.request(with("billing", &client_key("narrow")), "").await.assert_proxy_error(
        "bad-request",
        400,
        40035,
    );
    // The real secret, shown by a client: its pass is that client's own.
    let reply = stage.request(with("narrow", HR_SECRET), "").await;
    let target = format!("/cgi-bin/department/list?access_token={}", pass_from_response(&reply));
    send_get(&stage, target).await.assert_proxy_error("forbidden", 403, 48002);
    assert_refused(&stage.request(with("billing", "wrong"), "").await, 40001);
    let nobody = Request::get(gettoken_target(HR_SECRET)).header("x-api-key", "key-of-nobody");
    stage.request(nobody, "").await.assert_proxy_error("unauthenticated", 401, 40001);
    assert_eq!(stage.wecom.requests().len(), 0);
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
    let stage = TestProxy::start_with_config(&config).await;
    let pass = pass_from_response(&send_get(&stage, gettoken_target("key-of-long-0000000000")).await);
    send_get(&stage, format!("/cgi-bin/user/get?userid=zhangsan&access_token={pass}")).await.assert_ok();
}

#[tokio::test]
async fn gettoken_with_a_body_returns_the_pass() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut line = RawConnection::connect(stage.address()).await;
    let target = gettoken_target(&client_key("billing"));
    for _ in 0..3 {
        let request = format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}");
        line.send(request).await.expect("it is taken");
        let (head, body) = line.read_response().await;
        pass_from_body(&body);
        if head.to_ascii_lowercase().contains("connection: close") {
            line = RawConnection::connect(stage.address()).await;
        }
    }
}

#[tokio::test]
async fn gettoken_by_head_and_http10_is_answered() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let target = gettoken_target(&client_key("billing"));
    let answer = stage.send_raw(format!("GET {target} HTTP/1.0\r\n\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.0 200 "), "{head}");
    pass_from_body(body);
    let answer =
        stage.send_raw(format!("HEAD {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains(&format!("content-length: {}", body.len())), "{answer}");
}

#[tokio::test]
async fn open_proxy_with_clients_accepts_keys_and_secrets() {
    let stage =
        TestProxy::start_with_config(&CONFIG_WITH_CLIENTS.replace("[server]", "[server]\nopen = true")).await;
    let list = |pass: &str| format!("/cgi-bin/department/list?access_token={pass}");
    let by_secret = pass_from_response(&send_get(&stage, gettoken_target(HR_SECRET)).await);
    send_get(&stage, list(&by_secret)).await.assert_ok();
    let narrow = pass_from_response(&send_get(&stage, gettoken_target(&client_key("narrow"))).await);
    send_get(&stage, list(&narrow)).await.assert_proxy_error("forbidden", 403, 48002);
    // A key that is withdrawn in an open proxy: its pass is none, and is replaced where the agent is named.
    stage.rewrite_config(&OPEN_CONFIG.replace("[server]", "[server]\nopen = true"));
    stage.app.reload().expect("a reload");
    send_get(&stage, list(&narrow)).await.assert_proxy_error("pass-invalid", 200, 40014);
    send_get(&stage, format!("/ops{}", list(&narrow))).await.assert_ok();
    send_get(&stage, list(&by_secret)).await.assert_ok();
}

#[tokio::test]
async fn chained_proxy_is_detected_and_refused() {
    let inner = TestProxy::start_open().await;
    let outer = TestProxy::start_with_upstream(inner.address(), OPEN_CONFIG).await;
    let reply = outer.get(USER_GET).await;
    reply.assert_proxy_error("token-unavailable", 502, -1);
    assert!(reply.text().contains("upstream.url leads back to a proxy"), "{}", reply.text());
    assert_eq!(inner.forwarded_count(), 0);
}
