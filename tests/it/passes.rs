//! §6: calls with a pass in `access_token`.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use http::Request;
use wecom_proxy::{
    config::{ClientKey, KeyHash},
    secret::Masked,
    tokens::passes::PassKey,
};

use crate::{
    gettoken::{
        CORPID, HR_SECRET, OPS_SECRET, config_with_hr_lines, fetch_pass, gettoken_target, pass_from_response,
        send_get,
    },
    harness::{CONFIG_WITH_CLIENTS, ECHO, OPEN_CONFIG, TestProxy, TestResponse, USER_GET, client_key},
};

/// The target of `user/get` with `token` as `access_token`.
fn user_get_with_token(prefix: &str, token: &str) -> String {
    format!("{prefix}{USER_GET}&access_token={token}")
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A pass of agent `hr` for a client, issued this many seconds ago.
fn pass_issued_ago(seconds: u64, client: &str) -> String {
    let hash = ClientKey::new(KeyHash::of(&client_key(client)));
    let (client, hash) = if client.is_empty() { ("", None) } else { (client, Some(&hash)) };
    let pass_key = PassKey::derive(CORPID, &Masked::new(HR_SECRET), 0);
    pass_key.issue("hr", client, hash, now_secs() - seconds).expose().to_owned()
}

#[track_caller]
fn assert_expired(response: &TestResponse) {
    response.assert_proxy_error("pass-expired", 200, 42001);
}

#[track_caller]
fn assert_invalid(response: &TestResponse) {
    response.assert_proxy_error("pass-invalid", 200, 40014);
}

#[tokio::test]
async fn pass_selects_its_agent_and_is_never_forwarded() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let pass = fetch_pass(&proxy, "ops", "crm").await;
    for (prefix, header) in [("", None), ("/ops", None), ("/", None), ("", Some("ops"))] {
        let request = Request::get(user_get_with_token(prefix, &pass));
        let request = header.into_iter().fold(request, |request, name| request.header("x-wecom-agent", name));
        let response = proxy.request(request, "").await;
        assert_eq!(response.assert_ok().header("x-wecom-agent"), "ops");
        let record = proxy.last_request("/cgi-bin/user/get");
        assert_eq!(record.query, "userid=zhangsan&access_token=token#1");
        assert!(record.headers.iter().all(|(_, value)| !value.contains(&pass)), "{record:?}");
    }
    assert_eq!(proxy.wecom.gettoken_count("ops").expect("an agent"), 1);
}

#[tokio::test]
async fn query_around_a_pass_is_forwarded_unchanged() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let pass = fetch_pass(&proxy, "hr", "billing").await;
    let token = "access_token=token#1";
    for (sent, received) in [
        (format!("access_token={pass}&a=1"), format!("a=1&{token}")),
        (format!("a=1&access_token={pass}&b=%20+"), format!("a=1&b=%20+&{token}")),
        (format!("%61ccess_token={pass}"), token.to_owned()),
        (format!("access%5Ftoken={}", pass.replace("wp1-", "%77p1%2D")), token.to_owned()),
        (format!("access_token=&access_token={pass}"), token.to_owned()),
        (format!("access_token=junk&access_token={pass}"), token.to_owned()),
        (format!("access_token={pass}&a=1&access_token={pass}"), format!("a=1&{token}")),
    ] {
        send_get(&proxy, format!("{ECHO}?{sent}")).await.assert_ok();
        assert_eq!(proxy.last_request(ECHO).query, received, "{sent}");
    }
}

#[tokio::test]
async fn pass_is_accepted_for_twice_its_lifetime_then_expired() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    for seconds in [7_200, 14_300] {
        send_get(&proxy, user_get_with_token("", &pass_issued_ago(seconds, "billing"))).await.assert_ok();
    }
    let before = proxy.wecom.requests().len();
    for seconds in [14_400, 1_000_000_000] {
        for prefix in ["", "/hr", "/ops"] {
            assert_expired(
                &send_get(&proxy, user_get_with_token(prefix, &pass_issued_ago(seconds, "billing"))).await,
            );
        }
    }
    assert_eq!(proxy.wecom.requests().len(), before);
}

#[tokio::test]
async fn forged_and_foreign_passes_are_invalid() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let pass = fetch_pass(&proxy, "hr", "billing").await;
    let flipped = if pass.ends_with('A') { "E" } else { "A" };
    let forged = |agent: &str, secret: &str, client: &str, hash: Option<&ClientKey>| {
        PassKey::derive(CORPID, &Masked::new(secret), 0).issue(agent, client, hash, now_secs())
    };
    let billing = ClientKey::new(KeyHash::of(&client_key("billing")));
    for token in [
        pass[..pass.len() - 1].to_owned(),
        format!("{pass}A"),
        pass.to_uppercase(),
        "junk".to_owned(),
        "wp1-".to_owned(),
        client_key("billing"),
        HR_SECRET.to_owned(),
        forged("nil", HR_SECRET, "billing", Some(&billing)).expose().to_owned(),
        forged("hr", HR_SECRET, "unknown", Some(&billing)).expose().to_owned(),
        // For an agent that this client may not use.
        forged("ops", OPS_SECRET, "billing", Some(&billing)).expose().to_owned(),
    ] {
        for prefix in ["", "/hr"] {
            let response = send_get(&proxy, user_get_with_token(prefix, &token)).await;
            assert_invalid(&response);
            assert!(!response.text().contains(&token), "{}", response.text());
        }
    }
    // They have the form of a pass of this agent and client: a program that holds one must fetch another.
    for token in [
        format!("{}{flipped}", &pass[..pass.len() - 1]),
        forged("hr", OPS_SECRET, "billing", Some(&billing)).expose().to_owned(),
        forged("hr", HR_SECRET, "billing", None).expose().to_owned(),
        // Issued without a client, as by an open proxy.
        pass_issued_ago(0, ""),
    ] {
        for prefix in ["", "/hr"] {
            let response = send_get(&proxy, user_get_with_token(prefix, &token)).await;
            assert_expired(&response);
            assert!(!response.text().contains(&token), "{}", response.text());
        }
    }
    assert_eq!(proxy.wecom.requests().len(), 0);
}

#[tokio::test]
async fn invalid_pass_is_replaced_if_otherwise_authorized() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let open = TestProxy::start_open().await;
    for token in ["junk", "wp1-junk", &pass_issued_ago(20_000, "billing")] {
        let with_key = |target: String| Request::get(target).header("x-api-key", client_key("billing"));
        proxy.request(with_key(user_get_with_token("", token)), "").await.assert_ok();
        send_get(&open, user_get_with_token("/hr", token)).await.assert_ok();
    }
    assert_invalid(&send_get(&open, user_get_with_token("", "junk")).await);
    let crm = Request::get(user_get_with_token("", "junk")).header("x-api-key", client_key("crm"));
    assert_invalid(&proxy.request(crm, "").await);
    assert_expired(&send_get(&open, user_get_with_token("", &pass_issued_ago(20_000, ""))).await);
}

#[tokio::test]
async fn pass_conflicting_with_the_request_is_refused() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let (hr, ops) = (fetch_pass(&proxy, "hr", "crm").await, fetch_pass(&proxy, "ops", "crm").await);
    for target in [
        user_get_with_token("/ops", &hr),
        user_get_with_token("/nil", &hr),
        format!("{}&access_token={ops}", user_get_with_token("", &hr)),
        format!(
            "{}&access_token={}",
            user_get_with_token("", &hr),
            fetch_pass(&proxy, "hr", "billing").await
        ),
    ] {
        send_get(&proxy, target).await.assert_proxy_error("bad-request", 400, 40035);
    }
    let other_client = Request::get(user_get_with_token("", &hr)).header("x-api-key", client_key("billing"));
    proxy.request(other_client, "").await.assert_proxy_error("bad-request", 400, 40035);
    let same_client = Request::get(user_get_with_token("", &hr)).header("x-api-key", client_key("crm"));
    assert_eq!(proxy.request(same_client, "").await.assert_ok().header("x-wecom-agent"), "hr");
    assert_eq!(proxy.forwarded_count(), 1);
}

#[tokio::test]
async fn pass_has_only_the_rights_of_its_client() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let narrow = fetch_pass(&proxy, "hr", "narrow").await;
    send_get(&proxy, user_get_with_token("", &narrow)).await.assert_ok();
    let target = format!("/cgi-bin/department/list?access_token={narrow}");
    send_get(&proxy, target).await.assert_proxy_error("forbidden", 403, 48002);
}

#[tokio::test]
async fn always_200_applies_to_a_client_with_only_a_pass() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let alert = fetch_pass(&proxy, "hr", "alert").await;
    for (kind, target) in [
        ("forbidden", "/cgi-bin/message/send"),
        ("bad-request", "/ops/cgi-bin/user/get"),
        ("bad-request", "/cgi-bin/%2e%2e/x"),
    ] {
        let response = send_get(&proxy, format!("{target}?access_token={alert}")).await;
        assert_eq!(
            (response.header("x-wecom-proxy-error"), response.status.as_u16()),
            (kind, 200),
            "{target}"
        );
    }
    let unrouted = send_get(&proxy, format!("/favicon.ico?access_token={alert}")).await;
    assert_eq!(unrouted.status, 200, "{}", unrouted.text());
}

#[tokio::test]
async fn passthrough_path_with_a_pass_is_refused() {
    let toml = config_with_hr_lines("plain = [\"/cgi-bin/simulator/*\"]");
    let proxy = TestProxy::start_with_config(&toml).await;
    let pass = fetch_pass(&proxy, "hr", "billing").await;
    for path in ["/cgi-bin/webhook/send", "/cgi-bin/service/echo", "/cgi-bin/license/echo", ECHO] {
        for prefix in ["", "/hr"] {
            for name in ["access_token", "%61ccess_token", "suite_access_token"] {
                let is_passthrough = path == ECHO && name.starts_with('s');
                let request = Request::get(format!("{prefix}{path}?key=1&{name}={pass}"));
                let request = request.header("x-api-key", client_key("billing"));
                let response = proxy.request(request, "").await;
                assert!(response.errcode() == 40014 || is_passthrough, "{path} {name}: {}", response.text());
            }
        }
    }
    assert_invalid(&send_get(&proxy, format!("{ECHO}?access_token={pass}")).await);
    assert_eq!(proxy.wecom.requests().len(), 0);
}

const NEW_HR_SECRET: &str = "not-a-secret-hr-2222222222222222222222222222";

/// Changes the secret of `hr`, at WeCom and by a reload.
fn change_hr_secret(proxy: &TestProxy, toml: &str) {
    proxy.wecom.reset_secret("hr", NEW_HR_SECRET).expect("an agent");
    let path = proxy.rewrite_config(toml);
    let text = fs::read_to_string(&path).expect("the file");
    fs::write(&path, text.replace(HR_SECRET, NEW_HR_SECRET)).expect("a file");
    proxy.app.reload().expect("a reload");
}

#[tokio::test]
async fn pass_under_the_secret_before_serves_after_a_reload() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let before = fetch_pass(&proxy, "hr", "billing").await;
    change_hr_secret(&proxy, CONFIG_WITH_CLIENTS);
    let after = fetch_pass(&proxy, "hr", "billing").await;
    for pass in [&before, &after] {
        send_get(&proxy, user_get_with_token("", pass)).await.assert_ok();
    }
    assert_expired(&send_get(&proxy, user_get_with_token("", &pass_issued_ago(14_400, "billing"))).await);
    // A proxy that was started with the new secret does not know the one before: the program renews.
    let replica = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let unknown = PassKey::derive(CORPID, &Masked::new(NEW_HR_SECRET), 0);
    let billing = ClientKey::new(KeyHash::of(&client_key("billing")));
    let unknown = unknown.issue("hr", "billing", Some(&billing), now_secs());
    assert_expired(&send_get(&replica, user_get_with_token("", unknown.expose())).await);
}

#[tokio::test]
async fn pass_key_keeps_passes_of_clients_over_changed_secrets() {
    let toml = format!(
        "{}\n[tokens]\npass_key = \"the-pass-key-of-all-replicas-0123456789\"\n",
        config_with_hr_lines("accept_secret = true")
    );
    let proxy = TestProxy::start_with_config(&toml).await;
    let of_client = fetch_pass(&proxy, "hr", "billing").await;
    let of_secret = pass_from_response(&send_get(&proxy, gettoken_target(HR_SECRET)).await);
    // Under the agent's secret, but not under the pass key.
    assert_expired(&send_get(&proxy, user_get_with_token("", &pass_issued_ago(0, "billing"))).await);
    change_hr_secret(&proxy, &toml);
    let replica = TestProxy::start_with_upstream(proxy.wecom.api_addr(), &toml).await;
    for proxy in [&proxy, &replica] {
        send_get(proxy, user_get_with_token("", &of_client)).await;
    }
    send_get(&proxy, user_get_with_token("", &of_client)).await.assert_ok();
    send_get(&proxy, user_get_with_token("", &of_secret)).await.assert_ok();
    // Only the key of the client voids its passes, and only accept_secret those of the secret.
    let closed = toml.replace("accept_secret = true", "").replace("key-of-billing", "new-of-billing");
    change_hr_secret(&proxy, &closed);
    for pass in [&of_client, &of_secret] {
        assert_expired(&send_get(&proxy, user_get_with_token("", pass)).await);
    }
}

#[tokio::test]
async fn pass_is_refused_after_its_configuration_changes() {
    let renamed = CONFIG_WITH_CLIENTS.replace("[clients.billing]", "[clients.other]");
    let other_agent =
        CONFIG_WITH_CLIENTS.replace("agents = [\"hr\"]\n[clients.crm]", "agents = [\"ops\"]\n[clients.crm]");
    for (changed, was_issued) in [
        (CONFIG_WITH_CLIENTS.replace("key-of-billing", "new-of-billing"), true),
        (other_agent, false),
        (renamed, false),
    ] {
        let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
        let pass = fetch_pass(&proxy, "hr", "billing").await;
        send_get(&proxy, user_get_with_token("", &pass)).await.assert_ok();
        proxy.rewrite_config(&changed);
        proxy.app.reload().expect("a reload");
        let before = proxy.wecom.requests().len();
        for prefix in ["", "/hr"] {
            let response = send_get(&proxy, user_get_with_token(prefix, &pass)).await;
            if was_issued { assert_expired(&response) } else { assert_invalid(&response) }
        }
        assert_eq!(proxy.wecom.requests().len(), before);
    }
}

#[tokio::test]
async fn pass_survives_an_unrelated_reload() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let pass = fetch_pass(&proxy, "hr", "billing").await;
    proxy.rewrite_config(&CONFIG_WITH_CLIENTS.replace("key-of-crm", "new-of-crm"));
    proxy.app.reload().expect("a reload");
    send_get(&proxy, user_get_with_token("", &pass)).await.assert_ok();
}

#[tokio::test]
async fn pass_by_secret_has_ended_without_accept_secret() {
    let proxy = TestProxy::start_with_config(&config_with_hr_lines("accept_secret = true")).await;
    let pass = pass_from_response(&send_get(&proxy, gettoken_target(HR_SECRET)).await);
    send_get(&proxy, user_get_with_token("", &pass)).await.assert_ok();
    proxy.rewrite_config(CONFIG_WITH_CLIENTS);
    proxy.app.reload().expect("a reload");
    assert_expired(&send_get(&proxy, user_get_with_token("", &pass)).await);
}

#[tokio::test]
async fn pass_is_accepted_by_every_replica_with_the_same_file() {
    let (first, second) = (
        TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await,
        TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await,
    );
    send_get(&second, user_get_with_token("", &fetch_pass(&first, "hr", "billing").await)).await.assert_ok();
    let (first, second) = (TestProxy::start_open().await, TestProxy::start_with_config(OPEN_CONFIG).await);
    let pass = pass_from_response(&send_get(&first, gettoken_target(OPS_SECRET)).await);
    assert_eq!(
        send_get(&second, user_get_with_token("", &pass)).await.assert_ok().header("x-wecom-agent"),
        "ops"
    );
}

#[tokio::test]
async fn revoked_token_behind_a_pass_is_refreshed() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let pass = fetch_pass(&proxy, "hr", "billing").await;
    send_get(&proxy, user_get_with_token("", &pass)).await.assert_ok();
    for (errcode, revoke) in [("40014", true), ("42001", false)] {
        if revoke { proxy.wecom.revoke_tokens("hr") } else { proxy.wecom.expire_tokens("hr") }
            .expect("an agent");
        let response = send_get(&proxy, user_get_with_token("", &pass)).await;
        assert_eq!(response.assert_ok().header("x-wecom-retried"), errcode);
    }
    assert_eq!(proxy.last_request("/cgi-bin/user/get").query, "userid=zhangsan&access_token=token#3");
}
