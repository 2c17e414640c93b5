//! Limits of clients and agents, and what a client may call.

use http::Request;

use crate::{
    gettoken::{CORPID, ask, gettoken, keyed_with, pass, pass_of},
    stage::{Caller, KEYED, Reply, Stage, USER_GET, key},
};

/// The configuration in which a client has `more` lines.
fn client_with(client: &str, more: &str) -> String {
    let section = format!("[clients.{client}]");
    KEYED.replace(&section, &format!("{section}\n{more}"))
}

async fn call_as(stage: &Stage, client: &str, agent: &str) -> Reply {
    let request = Request::get(format!("/{agent}{USER_GET}")).header("x-api-key", key(client));
    stage.call(request, "").await
}

#[track_caller]
fn limited(reply: &Reply, status: u16, whose: &str) {
    reply.is_own("rate-limited", status, 45009);
    assert!(reply.text().contains(whose), "{}", reply.text());
    let wait: u64 = reply.header("retry-after").parse().expect("seconds");
    assert!((1..=1200).contains(&wait), "{wait}");
}

#[tokio::test]
async fn a_client_beyond_its_limit_is_told_when_to_come_again() {
    let stage = Stage::with(&client_with("crm", "limit = \"3/h\"")).await;
    for agent in ["hr", "ops", "hr"] {
        call_as(&stage, "crm", agent).await.is_ok();
    }
    let before = stage.wecom.requests().len();
    limited(&call_as(&stage, "crm", "hr").await, 429, "this client");
    limited(&call_as(&stage, "crm", "ops").await, 429, "this client");
    assert_eq!(stage.wecom.requests().len(), before);
    call_as(&stage, "billing", "hr").await.is_ok();
}

#[tokio::test]
async fn an_agent_beyond_its_limit_is_so_for_every_client() {
    let stage = Stage::with(&keyed_with("limit = \"3/h\"")).await;
    for client in ["billing", "crm", "narrow"] {
        call_as(&stage, client, "hr").await.is_ok();
    }
    for client in ["billing", "crm"] {
        limited(&call_as(&stage, client, "hr").await, 429, "this agent");
    }
    call_as(&stage, "crm", "ops").await.is_ok();
}

#[tokio::test]
async fn a_limit_holds_for_keys_passes_and_gettoken_together() {
    let stage = Stage::with(&client_with("billing", "limit = \"3/h\"")).await;
    let pass = pass(&stage, "hr", "billing").await;
    let by_pass = format!("{USER_GET}&access_token={pass}");
    ask(&stage, &by_pass).await.is_ok();
    call_as(&stage, "billing", "hr").await.is_ok();
    limited(&ask(&stage, &by_pass).await, 429, "this client");
    limited(&ask(&stage, gettoken(&key("billing"))).await, 429, "this client");
}

#[tokio::test]
async fn a_client_that_looks_only_at_errcode_is_limited_in_http_200() {
    let stage = Stage::with(&client_with("alert", "limit = \"3/h\"")).await;
    let pass = pass(&stage, "hr", "alert").await;
    for _ in 0..2 {
        call_as(&stage, "alert", "hr").await.is_ok();
    }
    limited(&call_as(&stage, "alert", "hr").await, 200, "this client");
    limited(&ask(&stage, format!("{USER_GET}&access_token={pass}")).await, 200, "this client");
    limited(&ask(&stage, gettoken(&key("alert"))).await, 200, "this client");
}

#[tokio::test]
async fn a_limit_survives_a_reload_unless_it_changes() {
    let config = client_with("billing", "limit = \"3/h\"");
    let stage = Stage::with(&config).await;
    for _ in 0..3 {
        call_as(&stage, "billing", "hr").await.is_ok();
    }
    stage.rewrite(&config.replace("key-of-crm", "new-of-crm"));
    stage.proxy.reload().expect("a reload");
    limited(&call_as(&stage, "billing", "hr").await, 429, "this client");
    stage.rewrite(&config.replace("3/h", "4/h"));
    stage.proxy.reload().expect("a reload");
    call_as(&stage, "billing", "hr").await.is_ok();
    stage.rewrite(KEYED);
    stage.proxy.reload().expect("a reload");
    for _ in 0..9 {
        call_as(&stage, "billing", "hr").await.is_ok();
    }
}

#[tokio::test]
async fn an_agents_limit_survives_a_reload_too() {
    let config = keyed_with("limit = \"3/h\"");
    let stage = Stage::with(&config).await;
    for _ in 0..3 {
        call_as(&stage, "billing", "hr").await.is_ok();
    }
    stage.rewrite(&config);
    stage.proxy.reload().expect("a reload");
    limited(&call_as(&stage, "billing", "hr").await, 429, "this agent");
}

#[tokio::test]
async fn a_withdrawn_key_that_hammers_gettoken_never_reaches_wecom() {
    let stage = Stage::with(KEYED).await;
    let mut caller = Caller::http1(stage.address()).await;
    for _ in 0..100 {
        let reply = caller.call(Request::get(gettoken("a-key-that-was-withdrawn")), "").await;
        assert_eq!((reply.status.as_u16(), reply.errcode()), (200, 40001));
    }
    assert_eq!(stage.wecom.look(|seen| (seen.total(), seen.connections())), (0, 0));
}

#[tokio::test]
async fn allow_patterns_mean_method_path_and_segment() {
    let allow = r#"allow = ["GET /cgi-bin/user/get", "/cgi-bin/department/*", "POST /cgi-bin/*/send", "/cgi-bin/tag/l*t"]"#;
    let stage = Stage::with(&client_with("billing", allow)).await;
    for (name, path, may) in [
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
        let request = Request::builder().method(name).uri(path).header("x-api-key", key("billing"));
        let reply = stage.call(request, "").await;
        assert_eq!(reply.header("x-wecom-proxy-error") != "forbidden", may, "{name} {path}");
    }
    // What could mean another path to WeCom is refused before any rule is asked.
    for path in [
        "/cgi-bin/department/../user/list",
        "/cgi-bin/department/%2e%2e/user/list",
        "/cgi-bin/department%2f..%2fuser",
    ] {
        let request = Request::get(path).header("x-api-key", key("billing"));
        stage.call(request, "").await.is_own("bad-request", 400, 40035);
    }
}

#[tokio::test]
async fn gettoken_is_allowed_whatever_allow_says() {
    let stage = Stage::with(KEYED).await;
    pass_of(&ask(&stage, gettoken(&key("narrow"))).await);
    let shown = Request::post(gettoken(&key("narrow"))).header("x-api-key", key("narrow"));
    pass_of(&stage.call(shown, "").await);
    let odd = format!("/cgi-bin//GetToken/?corpid={CORPID}&corpsecret={}", key("narrow"));
    pass_of(&ask(&stage, odd).await);
}
