//! §6: what a pass is worth in a call.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use http::Request;
use wecom_proxy::{config::KeyHash, secret::Masked, tokens::passes::PassKey};

use crate::{
    gettoken::{
        CORPID, HR_SECRET, OPS_SECRET, config_with_hr_lines, fetch_pass, gettoken_target, pass_from_response,
        send_get,
    },
    harness::{CONFIG_WITH_CLIENTS, ECHO, OPEN_CONFIG, TestProxy, TestResponse, USER_GET, client_key},
};

/// `user/get` with this in `access_token`.
fn user_get_with_token(prefix: &str, token: &str) -> String {
    format!("{prefix}{USER_GET}&access_token={token}")
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A pass of `hr` for a client, made so many seconds ago.
fn pass_issued_ago(seconds: u64, client: &str) -> String {
    let hash = KeyHash::of(&client_key(client));
    let (client, hash) = if client.is_empty() { ("", None) } else { (client, Some(&hash)) };
    let pass_key = PassKey::derive(CORPID, &Masked::new(HR_SECRET));
    pass_key.issue("hr", client, hash, now_secs() - seconds).expose().to_owned()
}

#[track_caller]
fn assert_expired(reply: &TestResponse) {
    reply.assert_proxy_error("pass-expired", 200, 42001);
}

#[track_caller]
fn assert_invalid(reply: &TestResponse) {
    reply.assert_proxy_error("pass-invalid", 200, 40014);
}

#[tokio::test]
async fn pass_selects_its_agent_and_is_never_forwarded() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let pass = fetch_pass(&stage, "ops", "crm").await;
    for (prefix, header) in [("", None), ("/ops", None), ("/", None), ("", Some("ops"))] {
        let request = Request::get(user_get_with_token(prefix, &pass));
        let request = header.into_iter().fold(request, |request, name| request.header("x-wecom-agent", name));
        let reply = stage.request(request, "").await;
        assert_eq!(reply.assert_ok().header("x-wecom-agent"), "ops");
        let record = stage.last_request("/cgi-bin/user/get");
        assert_eq!(record.query, "userid=zhangsan&access_token=token#1");
        assert!(record.headers.iter().all(|(_, value)| !value.contains(&pass)), "{record:?}");
    }
    assert_eq!(stage.wecom.gettoken_count("ops").expect("an agent"), 1);
}

#[tokio::test]
async fn query_around_a_pass_is_forwarded_unchanged() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let pass = fetch_pass(&stage, "hr", "billing").await;
    let token = "access_token=token#1";
    for (sent, arrives) in [
        (format!("access_token={pass}&a=1"), format!("a=1&{token}")),
        (format!("a=1&access_token={pass}&b=%20+"), format!("a=1&b=%20+&{token}")),
        (format!("%61ccess_token={pass}"), token.to_owned()),
        (format!("access%5Ftoken={}", pass.replace("wp1-", "%77p1%2D")), token.to_owned()),
        (format!("access_token=&access_token={pass}"), token.to_owned()),
        (format!("access_token=junk&access_token={pass}"), token.to_owned()),
        (format!("access_token={pass}&a=1&access_token={pass}"), format!("a=1&{token}")),
    ] {
        send_get(&stage, format!("{ECHO}?{sent}")).await.assert_ok();
        assert_eq!(stage.last_request(ECHO).query, arrives, "{sent}");
    }
}

#[tokio::test]
async fn pass_is_accepted_for_twice_its_lifetime_then_expired() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    for seconds in [7_200, 14_300] {
        send_get(&stage, user_get_with_token("", &pass_issued_ago(seconds, "billing"))).await.assert_ok();
    }
    let before = stage.wecom.requests().len();
    for seconds in [14_400, 1_000_000_000] {
        for prefix in ["", "/hr", "/ops"] {
            assert_expired(
                &send_get(&stage, user_get_with_token(prefix, &pass_issued_ago(seconds, "billing"))).await,
            );
        }
    }
    assert_eq!(stage.wecom.requests().len(), before);
}

#[tokio::test]
async fn forged_and_foreign_passes_are_invalid() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let pass = fetch_pass(&stage, "hr", "billing").await;
    let flipped = if pass.ends_with('A') { "E" } else { "A" };
    let foreign = |agent: &str, secret: &str, client: &str, hash: Option<&KeyHash>| {
        PassKey::derive(CORPID, &Masked::new(secret)).issue(agent, client, hash, now_secs())
    };
    let billing = KeyHash::of(&client_key("billing"));
    for token in [
        format!("{}{flipped}", &pass[..pass.len() - 1]),
        pass[..pass.len() - 1].to_owned(),
        format!("{pass}A"),
        pass.to_uppercase(),
        "junk".to_owned(),
        "wp1-".to_owned(),
        client_key("billing"),
        HR_SECRET.to_owned(),
        foreign("hr", OPS_SECRET, "billing", Some(&billing)).expose().to_owned(),
        foreign("nil", HR_SECRET, "billing", Some(&billing)).expose().to_owned(),
        foreign("hr", HR_SECRET, "nobody", Some(&billing)).expose().to_owned(),
        foreign("hr", HR_SECRET, "billing", None).expose().to_owned(),
        // Of a caller without a key, as an open proxy would give; and of an agent that this client may not use.
        pass_issued_ago(0, ""),
        foreign("ops", OPS_SECRET, "billing", Some(&billing)).expose().to_owned(),
    ] {
        for prefix in ["", "/hr"] {
            let reply = send_get(&stage, user_get_with_token(prefix, &token)).await;
            assert_invalid(&reply);
            assert!(!reply.text().contains(&token), "{}", reply.text());
        }
    }
    assert_eq!(stage.wecom.requests().len(), 0);
}

#[tokio::test]
async fn invalid_pass_is_replaced_if_otherwise_authorized() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let open = TestProxy::start_open().await;
    for token in ["junk", "wp1-junk", &pass_issued_ago(20_000, "billing")] {
        let by_key = |target: String| Request::get(target).header("x-api-key", client_key("billing"));
        stage.request(by_key(user_get_with_token("", token)), "").await.assert_ok();
        send_get(&open, user_get_with_token("/hr", token)).await.assert_ok();
    }
    assert_invalid(&send_get(&open, user_get_with_token("", "junk")).await);
    let crm = Request::get(user_get_with_token("", "junk")).header("x-api-key", client_key("crm"));
    assert_invalid(&stage.request(crm, "").await);
    assert_expired(&send_get(&open, user_get_with_token("", &pass_issued_ago(20_000, ""))).await);
}

#[tokio::test]
async fn pass_conflicting_with_the_request_is_refused() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let (hr, ops) = (fetch_pass(&stage, "hr", "crm").await, fetch_pass(&stage, "ops", "crm").await);
    for target in [
        user_get_with_token("/ops", &hr),
        user_get_with_token("/nil", &hr),
        format!("{}&access_token={ops}", user_get_with_token("", &hr)),
        format!(
            "{}&access_token={}",
            user_get_with_token("", &hr),
            fetch_pass(&stage, "hr", "billing").await
        ),
    ] {
        send_get(&stage, target).await.assert_proxy_error("bad-request", 400, 40035);
    }
    let other = Request::get(user_get_with_token("", &hr)).header("x-api-key", client_key("billing"));
    stage.request(other, "").await.assert_proxy_error("bad-request", 400, 40035);
    let own = Request::get(user_get_with_token("", &hr)).header("x-api-key", client_key("crm"));
    assert_eq!(stage.request(own, "").await.assert_ok().header("x-wecom-agent"), "hr");
    assert_eq!(stage.forwarded_count(), 1);
}

#[tokio::test]
async fn pass_has_only_the_rights_of_its_client() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let narrow = fetch_pass(&stage, "hr", "narrow").await;
    send_get(&stage, user_get_with_token("", &narrow)).await.assert_ok();
    let other = format!("/cgi-bin/department/list?access_token={narrow}");
    send_get(&stage, other).await.assert_proxy_error("forbidden", 403, 48002);
}

#[tokio::test]
async fn always_200_applies_to_a_client_with_only_a_pass() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let alert = fetch_pass(&stage, "hr", "alert").await;
    for (kind, target) in [
        ("forbidden", "/cgi-bin/message/send"),
        ("bad-request", "/ops/cgi-bin/user/get"),
        ("bad-request", "/cgi-bin/%2e%2e/x"),
    ] {
        let reply = send_get(&stage, format!("{target}?access_token={alert}")).await;
        assert_eq!((reply.header("x-wecom-proxy-error"), reply.status.as_u16()), (kind, 200), "{target}");
    }
    let unrouted = send_get(&stage, format!("/favicon.ico?access_token={alert}")).await;
    assert_eq!(unrouted.status, 200, "{}", unrouted.text());
}

#[tokio::test]
async fn passthrough_path_with_a_pass_is_refused() {
    let plain = config_with_hr_lines("plain = [\"/cgi-bin/simulator/*\"]");
    let stage = TestProxy::start_with_config(&plain).await;
    let pass = fetch_pass(&stage, "hr", "billing").await;
    for path in ["/cgi-bin/webhook/send", "/cgi-bin/service/echo", "/cgi-bin/license/echo", ECHO] {
        for prefix in ["", "/hr"] {
            for name in ["access_token", "%61ccess_token", "suite_access_token"] {
                let plain_by_pass_alone = path == ECHO && name.starts_with('s');
                let request = Request::get(format!("{prefix}{path}?key=1&{name}={pass}"));
                let request = request.header("x-api-key", client_key("billing"));
                let reply = stage.request(request, "").await;
                assert!(reply.errcode() == 40014 || plain_by_pass_alone, "{path} {name}: {}", reply.text());
            }
        }
    }
    assert_invalid(&send_get(&stage, format!("{ECHO}?access_token={pass}")).await);
    assert_eq!(stage.wecom.requests().len(), 0);
}

#[tokio::test]
async fn pass_is_invalid_after_its_configuration_changes() {
    let others = CONFIG_WITH_CLIENTS.replace("[clients.billing]", "[clients.other]");
    for changed in [
        CONFIG_WITH_CLIENTS.replace("key-of-billing", "new-of-billing"),
        CONFIG_WITH_CLIENTS.replace("agents = [\"hr\"]\n[clients.crm]", "agents = [\"ops\"]\n[clients.crm]"),
        others,
        "secret".to_owned(),
    ] {
        let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
        let pass = fetch_pass(&stage, "hr", "billing").await;
        send_get(&stage, user_get_with_token("", &pass)).await.assert_ok();
        if changed == "secret" {
            let path = stage.rewrite_config(CONFIG_WITH_CLIENTS);
            let text = fs::read_to_string(&path).expect("the file");
            fs::write(&path, text.replace(HR_SECRET, "not-a-secret-hr-1111")).expect("a file");
        } else {
            stage.rewrite_config(&changed);
        }
        stage.app.reload().expect("a reload");
        let before = stage.wecom.requests().len();
        assert_invalid(&send_get(&stage, user_get_with_token("", &pass)).await);
        assert_invalid(&send_get(&stage, user_get_with_token("/hr", &pass)).await);
        assert_eq!(stage.wecom.requests().len(), before);
    }
}

#[tokio::test]
async fn pass_survives_an_unrelated_reload() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let pass = fetch_pass(&stage, "hr", "billing").await;
    stage.rewrite_config(&CONFIG_WITH_CLIENTS.replace("key-of-crm", "new-of-crm"));
    stage.app.reload().expect("a reload");
    send_get(&stage, user_get_with_token("", &pass)).await.assert_ok();
}

#[tokio::test]
async fn pass_by_secret_is_invalid_without_accept_secret() {
    let stage = TestProxy::start_with_config(&config_with_hr_lines("accept_secret = true")).await;
    let pass = pass_from_response(&send_get(&stage, gettoken_target(HR_SECRET)).await);
    send_get(&stage, user_get_with_token("", &pass)).await.assert_ok();
    stage.rewrite_config(CONFIG_WITH_CLIENTS);
    stage.app.reload().expect("a reload");
    assert_invalid(&send_get(&stage, user_get_with_token("", &pass)).await);
}

#[tokio::test]
async fn pass_is_accepted_by_every_replica_with_the_same_file() {
    let (one, other) = (
        TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await,
        TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await,
    );
    send_get(&other, user_get_with_token("", &fetch_pass(&one, "hr", "billing").await)).await.assert_ok();
    let (one, other) = (TestProxy::start_open().await, TestProxy::start_with_config(OPEN_CONFIG).await);
    let pass = pass_from_response(&send_get(&one, gettoken_target(OPS_SECRET)).await);
    assert_eq!(
        send_get(&other, user_get_with_token("", &pass)).await.assert_ok().header("x-wecom-agent"),
        "ops"
    );
}

#[tokio::test]
async fn revoked_token_behind_a_pass_is_refreshed() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let pass = fetch_pass(&stage, "hr", "billing").await;
    send_get(&stage, user_get_with_token("", &pass)).await.assert_ok();
    for (errcode, spoil) in [("40014", true), ("42001", false)] {
        if spoil { stage.wecom.revoke_tokens("hr") } else { stage.wecom.expire_tokens("hr") }
            .expect("an agent");
        let reply = send_get(&stage, user_get_with_token("", &pass)).await;
        assert_eq!(reply.assert_ok().header("x-wecom-retried"), errcode);
    }
    assert_eq!(stage.last_request("/cgi-bin/user/get").query, "userid=zhangsan&access_token=token#3");
}
