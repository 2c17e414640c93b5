//! §6: gettoken is answered here, to the letter as WeCom would, with a pass in place of a token.

use http::Request;
use wecom_proxy::simulator::Settings;

use crate::{
    stage::{Caller, KEYED, OPEN, Reply, Stage, USER_GET, agent_section, key, method},
    wire::Line,
};

/// The company of the simulator's agents.
pub const CORPID: &str = "ww1234567890abcdef";
/// The real secrets of its agents.
pub const HR: &str = "not-a-secret-hr-0000000000000000000000000000";
pub const OPS: &str = "not-a-secret-ops-000000000000000000000000000";

/// The target of a gettoken call.
pub fn gettoken(secret: &str) -> String {
    format!("/cgi-bin/gettoken?corpid={CORPID}&corpsecret={secret}")
}

/// One such call.
pub async fn ask(stage: &Stage, target: impl AsRef<str>) -> Reply {
    stage.call(Request::get(target.as_ref()), "").await
}

/// A pass, bought with a client's key through an agent.
pub async fn pass(stage: &Stage, agent: &str, client: &str) -> String {
    pass_of(&ask(stage, format!("/{agent}{}", gettoken(&key(client)))).await)
}

/// The pass in an answer, which must be WeCom's to the letter.
#[track_caller]
pub fn pass_of(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("content-type"), "application/json; charset=UTF-8");
    pass_in(reply.text())
}

/// The pass in such a body.
#[track_caller]
pub fn pass_in(text: &str) -> String {
    let rest = text.strip_prefix(r#"{"errcode":0,"errmsg":"ok","access_token":""#);
    let pass = rest.and_then(|rest| rest.strip_suffix(r#"","expires_in":7200}"#));
    let pass = pass.unwrap_or_else(|| panic!("no pass: {text}"));
    assert!(!pass.is_empty() && pass.len() <= 512, "{} bytes", pass.len());
    assert!(pass.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{pass}");
    pass.to_owned()
}

#[track_caller]
fn refused(reply: &Reply, errcode: i64) {
    reply.is_own("gettoken-refused", 200, errcode);
}

/// The configuration with clients, in which `hr` has `more` lines.
pub fn keyed_with(more: &str) -> String {
    let agents = Settings::default().agents;
    let sections = agent_section(&agents[0], more) + &agent_section(&agents[1], "");
    KEYED.replace("{agents}", &sections)
}

/// An agent of another company.
const FAR: &str = "[agents.far]\ncorpid = \"wwfedcba0987654321\"\nsecret = \"not-a-secret-far\"\n";

#[tokio::test]
async fn a_clients_key_buys_a_pass_by_get_and_post_with_and_without_a_prefix() {
    let stage = Stage::with(KEYED).await;
    for name in ["GET", "POST"] {
        for prefix in ["", "/hr", "/", "/hr/"] {
            let target = format!("{prefix}{}", gettoken(&key("billing")));
            let request = Request::builder().method(method(name)).uri(&target);
            let reply = stage.call(request, "").await;
            pass_of(&reply);
            assert_eq!(reply.header("x-wecom-agent"), "hr", "{target}");
        }
    }
    let mut caller = Caller::http2(stage.address()).await;
    pass_of(&caller.call(Request::get(gettoken(&key("billing"))), "").await);
    assert_eq!(stage.wecom.requests().len(), 0);
}

#[tokio::test]
async fn parameters_come_in_any_order_encoded_and_among_others() {
    let stage = Stage::with(KEYED).await;
    let key = key("billing");
    let encoded = key.replace('-', "%2D");
    for query in [
        format!("corpsecret={key}&corpid={CORPID}"),
        format!("&corpid={CORPID}&corpsecret={key}"),
        format!("access_token=&corpid={CORPID}&corpsecret={key}&debug=1"),
        format!("access_token=left-over&corpid={CORPID}&corpsecret={key}"),
        format!("corpid=%77w1234567890abcdef&corp%73ecret={encoded}"),
    ] {
        pass_of(&ask(&stage, format!("/cgi-bin/gettoken?{query}")).await);
    }
}

#[tokio::test]
async fn an_answer_says_nothing_of_the_real_token_and_needs_none() {
    let stage = Stage::open().await;
    stage.wecom.stop().await;
    pass_of(&ask(&stage, gettoken(HR)).await);
}

#[tokio::test]
async fn a_real_secret_serves_where_the_proxy_is_open() {
    let stage = Stage::open().await;
    for (prefix, secret, agent) in [("", HR, "hr"), ("/ops", OPS, "ops"), ("", OPS, "ops")] {
        let reply = ask(&stage, format!("{prefix}{}", gettoken(secret))).await;
        pass_of(&reply);
        assert_eq!(reply.header("x-wecom-agent"), agent);
    }
    refused(&ask(&stage, format!("/ops{}", gettoken(HR))).await, 40001);
    assert_eq!(stage.wecom.requests().len(), 0);
}

#[tokio::test]
async fn a_real_secret_serves_in_a_closed_proxy_only_where_its_agent_says_so() {
    let stage = Stage::with(&keyed_with("accept_secret = true")).await;
    pass_of(&ask(&stage, gettoken(HR)).await);
    pass_of(&ask(&stage, format!("/hr{}", gettoken(HR))).await);
    refused(&ask(&stage, gettoken(OPS)).await, 40001);
    refused(&ask(&stage, format!("/ops{}", gettoken(OPS))).await, 40001);
    refused(&ask(&stage, format!("/ops{}", gettoken(HR))).await, 40001);
    let closed = Stage::with(KEYED).await;
    refused(&ask(&closed, gettoken(HR)).await, 40001);
    assert_eq!(stage.wecom.requests().len() + closed.wecom.requests().len(), 0);
}

#[tokio::test]
async fn two_agents_with_the_same_secret_are_told_apart_by_the_prefix() {
    let again = format!("{{agents}}\n[agents.twin]\ncorpid = \"{CORPID}\"\nsecret = \"{HR}\"\n");
    let stage = Stage::with(&OPEN.replace("{agents}", &again)).await;
    for agent in ["hr", "twin"] {
        let reply = ask(&stage, format!("/{agent}{}", gettoken(HR))).await;
        pass_of(&reply);
        assert_eq!(reply.header("x-wecom-agent"), agent);
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_in_wecoms_own_errcodes() {
    for stage in [Stage::open().await, Stage::with(KEYED).await] {
        for (query, errcode) in [
            (format!("corpid={CORPID}&corpsecret=wrong"), 40001),
            (format!("corpid={CORPID}&corpsecret={HR}0"), 40001),
            (format!("corpid=wwnobody&corpsecret={HR}"), 40013),
            (format!("corpid=wwnobody&corpsecret={}", key("billing")), 40013),
            (format!("corpsecret={HR}"), 41002),
            (format!("corpid=&corpsecret={HR}"), 41002),
            (format!("corpid={CORPID}"), 41004),
            (format!("corpid={CORPID}&corpsecret="), 41004),
            (format!("corpid={CORPID}&corpsecret"), 41004),
            (String::new(), 41002),
        ] {
            for prefix in ["", "/hr"] {
                let reply = ask(&stage, format!("{prefix}/cgi-bin/gettoken?{query}")).await;
                refused(&reply, errcode);
                assert!(!reply.text().contains("not-a-secret") && !reply.text().contains("key-of"));
            }
        }
        refused(&ask(&stage, "/cgi-bin/gettoken").await, 41002);
        assert_eq!(stage.wecom.requests().len(), 0);
    }
}

#[tokio::test]
async fn who_has_several_agents_of_one_company_names_one() {
    let stage = Stage::with(KEYED).await;
    let target = gettoken(&key("crm"));
    let reply = ask(&stage, &target).await;
    refused(&reply, 40013);
    assert!(reply.text().contains("/NAME/cgi-bin/gettoken"), "{}", reply.text());
    assert_eq!(ask(&stage, format!("/ops{target}")).await.header("x-wecom-agent"), "ops");
    let by_header = stage.call(Request::get(&target).header("x-wecom-agent", "ops"), "").await;
    pass_of(&by_header);
    assert_eq!(by_header.header("x-wecom-agent"), "ops");
    let both = Request::get(format!("/hr{target}")).header("x-wecom-agent", "ops");
    stage.call(both, "").await.is_own("bad-request", 400, 40035);
}

#[tokio::test]
async fn the_company_tells_agents_apart() {
    let stage = Stage::with(&KEYED.replace("{agents}", &format!("{{agents}}\n{FAR}"))).await;
    let far = format!("/cgi-bin/gettoken?corpid=wwfedcba0987654321&corpsecret={}", key("crm"));
    let reply = ask(&stage, &far).await;
    pass_of(&reply);
    assert_eq!(reply.header("x-wecom-agent"), "far");
    refused(&ask(&stage, format!("/hr{far}")).await, 40013);
    refused(&ask(&stage, format!("/far{}", gettoken(&key("crm")))).await, 40013);
    // A company of which this client may use no agent looks like none.
    refused(&ask(&stage, far.replace("crm", "billing")).await, 40013);
}

#[tokio::test]
async fn an_agent_that_the_client_may_not_use_looks_as_if_there_were_none() {
    let stage = Stage::with(KEYED).await;
    let mut shapes = Vec::new();
    for name in ["ops", "nil"] {
        let reply = ask(&stage, format!("/{name}{}", gettoken(&key("billing")))).await;
        reply.is_own("unknown-agent", 404, 40035);
        shapes.push(reply.text().replace(name, "NAME"));
    }
    assert_eq!(shapes[0], shapes[1]);
}

#[tokio::test]
async fn a_key_in_a_header_beside_corpsecret_belongs_to_the_same_client() {
    let stage = Stage::with(&keyed_with("accept_secret = true")).await;
    let with = |client: &str, secret: &str| Request::get(gettoken(secret)).header("x-api-key", key(client));
    pass_of(&stage.call(with("billing", &key("billing")), "").await);
    stage.call(with("billing", &key("narrow")), "").await.is_own("bad-request", 400, 40035);
    // The real secret, shown by a client: its pass is that client's own.
    let reply = stage.call(with("narrow", HR), "").await;
    let target = format!("/cgi-bin/department/list?access_token={}", pass_of(&reply));
    ask(&stage, target).await.is_own("forbidden", 403, 48002);
    refused(&stage.call(with("billing", "wrong"), "").await, 40001);
    let nobody = Request::get(gettoken(HR)).header("x-api-key", "key-of-nobody");
    stage.call(nobody, "").await.is_own("unauthenticated", 401, 40001);
    assert_eq!(stage.wecom.requests().len(), 0);
}

#[tokio::test]
async fn the_longest_names_still_make_a_pass() {
    let name = "n".repeat(64);
    let config = OPEN.replace(
        "{agents}",
        &format!(
            "[agents.{name}]\ncorpid = \"{CORPID}\"\nsecret = \"{HR}\"\n\
             [clients.{name}]\nkey = \"key-of-long-0000000000\"\nagents = [\"*\"]\n"
        ),
    );
    let stage = Stage::with(&config).await;
    let pass = pass_of(&ask(&stage, gettoken("key-of-long-0000000000")).await);
    ask(&stage, format!("/cgi-bin/user/get?userid=zhangsan&access_token={pass}")).await.is_ok();
}

#[tokio::test]
async fn a_body_that_nobody_asked_for_does_not_cost_the_pass_nor_the_connection_unannounced() {
    let stage = Stage::with(KEYED).await;
    let mut line = Line::to(stage.address()).await;
    let target = gettoken(&key("billing"));
    for _ in 0..3 {
        let request = format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}");
        line.say(request).await.expect("it is taken");
        let (head, body) = line.answer().await;
        pass_in(&body);
        if head.to_ascii_lowercase().contains("connection: close") {
            line = Line::to(stage.address()).await;
        }
    }
}

#[tokio::test]
async fn head_and_http_1_0_are_answered_too() {
    let stage = Stage::with(KEYED).await;
    let target = gettoken(&key("billing"));
    let answer = stage.raw(format!("GET {target} HTTP/1.0\r\n\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.0 200 "), "{head}");
    pass_in(body);
    let answer = stage.raw(format!("HEAD {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains(&format!("content-length: {}", body.len())), "{answer}");
}

#[tokio::test]
async fn an_open_proxy_with_clients_takes_keys_and_real_secrets() {
    let stage = Stage::with(&KEYED.replace("[server]", "[server]\nopen = true")).await;
    let list = |pass: &str| format!("/cgi-bin/department/list?access_token={pass}");
    let by_secret = pass_of(&ask(&stage, gettoken(HR)).await);
    ask(&stage, list(&by_secret)).await.is_ok();
    let narrow = pass_of(&ask(&stage, gettoken(&key("narrow"))).await);
    ask(&stage, list(&narrow)).await.is_own("forbidden", 403, 48002);
    // A key that is withdrawn in an open proxy: its pass is none, and is replaced where the agent is named.
    stage.rewrite(&OPEN.replace("[server]", "[server]\nopen = true"));
    stage.proxy.reload().expect("a reload");
    ask(&stage, list(&narrow)).await.is_own("pass-invalid", 200, 40014);
    ask(&stage, format!("/ops{}", list(&narrow))).await.is_ok();
    ask(&stage, list(&by_secret)).await.is_ok();
}

#[tokio::test]
async fn a_proxy_whose_upstream_is_a_proxy_does_not_call_round_in_circles() {
    let inner = Stage::open().await;
    let outer = Stage::facing(inner.address(), OPEN).await;
    let reply = outer.get(USER_GET).await;
    reply.is_own("token-unavailable", 502, -1);
    assert!(reply.text().contains("upstream.url leads back to a proxy"), "{}", reply.text());
    assert_eq!(inner.got_through(), 0);
}
