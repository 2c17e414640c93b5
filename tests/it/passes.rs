//! §6: what a pass is worth in a call.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use http::Request;
use wecom_proxy::{config::KeyHash, passes::PassKey, secret::Masked};

use crate::{
    gettoken::{CORPID, HR, OPS, ask, gettoken, keyed_with, pass, pass_of},
    stage::{ECHO, KEYED, OPEN, Reply, Stage, USER_GET, key},
};

/// `user/get` with this in `access_token`.
fn with_token(prefix: &str, token: &str) -> String {
    format!("{prefix}{USER_GET}&access_token={token}")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A pass of `hr` for a client, made so many seconds ago.
fn made_ago(seconds: u64, client: &str) -> String {
    let hash = KeyHash::of(&key(client));
    let (client, hash) = if client.is_empty() { ("", None) } else { (client, Some(&hash)) };
    let pass_key = PassKey::derive(CORPID, &Masked::new(HR));
    pass_key.issue("hr", client, hash, now() - seconds).expose().to_owned()
}

#[track_caller]
fn expired(reply: &Reply) {
    reply.is_own("pass-expired", 200, 42001);
}

#[track_caller]
fn invalid(reply: &Reply) {
    reply.is_own("pass-invalid", 200, 40014);
}

#[tokio::test]
async fn a_pass_chooses_its_agent_with_or_without_a_prefix_and_never_leaves() {
    let stage = Stage::with(KEYED).await;
    let pass = pass(&stage, "ops", "crm").await;
    for (prefix, header) in [("", None), ("/ops", None), ("/", None), ("", Some("ops"))] {
        let request = Request::get(with_token(prefix, &pass));
        let request = header.into_iter().fold(request, |request, name| request.header("x-wecom-agent", name));
        let reply = stage.call(request, "").await;
        assert_eq!(reply.is_ok().header("x-wecom-agent"), "ops");
        let record = stage.last_seen("/cgi-bin/user/get");
        assert_eq!(record.query, "userid=zhangsan&access_token=token#1");
        assert!(record.headers.iter().all(|(_, value)| !value.contains(&pass)), "{record:?}");
    }
    assert_eq!(stage.wecom.gettoken_count("ops").expect("an agent"), 1);
}

#[tokio::test]
async fn the_query_around_a_pass_stays_as_it_came() {
    let stage = Stage::with(KEYED).await;
    let pass = pass(&stage, "hr", "billing").await;
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
        ask(&stage, format!("{ECHO}?{sent}")).await.is_ok();
        assert_eq!(stage.last_seen(ECHO).query, arrives, "{sent}");
    }
}

#[tokio::test]
async fn a_pass_is_accepted_for_twice_what_it_claims_and_then_expired() {
    let stage = Stage::with(KEYED).await;
    for seconds in [7_200, 14_300] {
        ask(&stage, with_token("", &made_ago(seconds, "billing"))).await.is_ok();
    }
    let before = stage.wecom.requests().len();
    for seconds in [14_400, 1_000_000_000] {
        for prefix in ["", "/hr", "/ops"] {
            expired(&ask(&stage, with_token(prefix, &made_ago(seconds, "billing"))).await);
        }
    }
    assert_eq!(stage.wecom.requests().len(), before);
}

#[tokio::test]
async fn forged_and_foreign_passes_are_invalid_and_reach_nobody() {
    let stage = Stage::with(KEYED).await;
    let pass = pass(&stage, "hr", "billing").await;
    let flipped = if pass.ends_with('A') { "E" } else { "A" };
    let foreign = |agent: &str, secret: &str, client: &str, hash: Option<&KeyHash>| {
        PassKey::derive(CORPID, &Masked::new(secret)).issue(agent, client, hash, now())
    };
    let billing = KeyHash::of(&key("billing"));
    for token in [
        format!("{}{flipped}", &pass[..pass.len() - 1]),
        pass[..pass.len() - 1].to_owned(),
        format!("{pass}A"),
        pass.to_uppercase(),
        "junk".to_owned(),
        "wp1-".to_owned(),
        key("billing"),
        HR.to_owned(),
        foreign("hr", OPS, "billing", Some(&billing)).expose().to_owned(),
        foreign("nil", HR, "billing", Some(&billing)).expose().to_owned(),
        foreign("hr", HR, "nobody", Some(&billing)).expose().to_owned(),
        foreign("hr", HR, "billing", None).expose().to_owned(),
        // Of a caller without a key, as an open proxy would give; and of an agent that this client may not use.
        made_ago(0, ""),
        foreign("ops", OPS, "billing", Some(&billing)).expose().to_owned(),
    ] {
        for prefix in ["", "/hr"] {
            let reply = ask(&stage, with_token(prefix, &token)).await;
            invalid(&reply);
            assert!(!reply.text().contains(&token), "{}", reply.text());
        }
    }
    assert_eq!(stage.wecom.requests().len(), 0);
}

#[tokio::test]
async fn what_is_no_pass_is_replaced_where_a_key_or_an_open_door_and_an_agent_are_there() {
    let stage = Stage::with(KEYED).await;
    let open = Stage::open().await;
    for token in ["junk", "wp1-junk", &made_ago(20_000, "billing")] {
        let by_key = |target: String| Request::get(target).header("x-api-key", key("billing"));
        stage.call(by_key(with_token("", token)), "").await.is_ok();
        ask(&open, with_token("/hr", token)).await.is_ok();
    }
    invalid(&ask(&open, with_token("", "junk")).await);
    let crm = Request::get(with_token("", "junk")).header("x-api-key", key("crm"));
    invalid(&stage.call(crm, "").await);
    expired(&ask(&open, with_token("", &made_ago(20_000, ""))).await);
}

#[tokio::test]
async fn a_pass_that_contradicts_the_rest_of_the_request_is_refused() {
    let stage = Stage::with(KEYED).await;
    let (hr, ops) = (pass(&stage, "hr", "crm").await, pass(&stage, "ops", "crm").await);
    for target in [
        with_token("/ops", &hr),
        with_token("/nil", &hr),
        format!("{}&access_token={ops}", with_token("", &hr)),
        format!("{}&access_token={}", with_token("", &hr), pass(&stage, "hr", "billing").await),
    ] {
        ask(&stage, target).await.is_own("bad-request", 400, 40035);
    }
    let other = Request::get(with_token("", &hr)).header("x-api-key", key("billing"));
    stage.call(other, "").await.is_own("bad-request", 400, 40035);
    let own = Request::get(with_token("", &hr)).header("x-api-key", key("crm"));
    assert_eq!(stage.call(own, "").await.is_ok().header("x-wecom-agent"), "hr");
    assert_eq!(stage.got_through(), 1);
}

#[tokio::test]
async fn a_pass_opens_no_more_than_its_clients_key() {
    let stage = Stage::with(KEYED).await;
    let narrow = pass(&stage, "hr", "narrow").await;
    ask(&stage, with_token("", &narrow)).await.is_ok();
    let other = format!("/cgi-bin/department/list?access_token={narrow}");
    ask(&stage, other).await.is_own("forbidden", 403, 48002);
}

#[tokio::test]
async fn always_200_covers_a_client_that_shows_only_its_pass() {
    let stage = Stage::with(KEYED).await;
    let alert = pass(&stage, "hr", "alert").await;
    for (kind, target) in [
        ("forbidden", "/cgi-bin/message/send"),
        ("bad-request", "/ops/cgi-bin/user/get"),
        ("bad-request", "/cgi-bin/%2e%2e/x"),
    ] {
        let reply = ask(&stage, format!("{target}?access_token={alert}")).await;
        assert_eq!((reply.header("x-wecom-proxy-error"), reply.status.as_u16()), (kind, 200), "{target}");
    }
    let unrouted = ask(&stage, format!("/favicon.ico?access_token={alert}")).await;
    assert_eq!(unrouted.status, 200, "{}", unrouted.text());
}

#[tokio::test]
async fn a_path_with_a_credential_of_its_own_takes_no_pass() {
    let plain = keyed_with("plain = [\"/cgi-bin/simulator/*\"]");
    let stage = Stage::with(&plain).await;
    let pass = pass(&stage, "hr", "billing").await;
    for path in ["/cgi-bin/webhook/send", "/cgi-bin/service/echo", "/cgi-bin/license/echo", ECHO] {
        for prefix in ["", "/hr"] {
            for name in ["access_token", "%61ccess_token", "suite_access_token"] {
                let plain_by_pass_alone = path == ECHO && name.starts_with('s');
                let request = Request::get(format!("{prefix}{path}?key=1&{name}={pass}"));
                let request = request.header("x-api-key", key("billing"));
                let reply = stage.call(request, "").await;
                assert!(reply.errcode() == 40014 || plain_by_pass_alone, "{path} {name}: {}", reply.text());
            }
        }
    }
    invalid(&ask(&stage, format!("{ECHO}?access_token={pass}")).await);
    assert_eq!(stage.wecom.requests().len(), 0);
}

#[tokio::test]
async fn a_pass_is_void_once_the_file_has_changed_what_it_rests_on() {
    let others = KEYED.replace("[clients.billing]", "[clients.other]");
    for changed in [
        KEYED.replace("key-of-billing", "new-of-billing"),
        KEYED.replace("agents = [\"hr\"]\n[clients.crm]", "agents = [\"ops\"]\n[clients.crm]"),
        others,
        "secret".to_owned(),
    ] {
        let stage = Stage::with(KEYED).await;
        let pass = pass(&stage, "hr", "billing").await;
        ask(&stage, with_token("", &pass)).await.is_ok();
        if changed == "secret" {
            let path = stage.rewrite(KEYED);
            let text = fs::read_to_string(&path).expect("the file");
            fs::write(&path, text.replace(HR, "not-a-secret-hr-1111")).expect("a file");
        } else {
            stage.rewrite(&changed);
        }
        stage.proxy.reload().expect("a reload");
        let before = stage.wecom.requests().len();
        invalid(&ask(&stage, with_token("", &pass)).await);
        invalid(&ask(&stage, with_token("/hr", &pass)).await);
        assert_eq!(stage.wecom.requests().len(), before);
    }
}

#[tokio::test]
async fn a_pass_outlives_a_reload_that_does_not_concern_it() {
    let stage = Stage::with(KEYED).await;
    let pass = pass(&stage, "hr", "billing").await;
    stage.rewrite(&KEYED.replace("key-of-crm", "new-of-crm"));
    stage.proxy.reload().expect("a reload");
    ask(&stage, with_token("", &pass)).await.is_ok();
}

#[tokio::test]
async fn a_pass_bought_with_the_real_secret_goes_when_secrets_are_no_longer_accepted() {
    let stage = Stage::with(&keyed_with("accept_secret = true")).await;
    let pass = pass_of(&ask(&stage, gettoken(HR)).await);
    ask(&stage, with_token("", &pass)).await.is_ok();
    stage.rewrite(KEYED);
    stage.proxy.reload().expect("a reload");
    invalid(&ask(&stage, with_token("", &pass)).await);
}

#[tokio::test]
async fn every_replica_with_the_same_file_accepts_a_pass() {
    let (one, other) = (Stage::with(KEYED).await, Stage::with(KEYED).await);
    ask(&other, with_token("", &pass(&one, "hr", "billing").await)).await.is_ok();
    let (one, other) = (Stage::open().await, Stage::with(OPEN).await);
    let pass = pass_of(&ask(&one, gettoken(OPS)).await);
    assert_eq!(ask(&other, with_token("", &pass)).await.is_ok().header("x-wecom-agent"), "ops");
}

#[tokio::test]
async fn a_voided_token_behind_a_pass_is_healed_unseen() {
    let stage = Stage::with(KEYED).await;
    let pass = pass(&stage, "hr", "billing").await;
    ask(&stage, with_token("", &pass)).await.is_ok();
    for (errcode, spoil) in [("40014", true), ("42001", false)] {
        if spoil { stage.wecom.revoke("hr") } else { stage.wecom.expire("hr") }.expect("an agent");
        let reply = ask(&stage, with_token("", &pass)).await;
        assert_eq!(reply.is_ok().header("x-wecom-retried"), errcode);
    }
    assert_eq!(stage.last_seen("/cgi-bin/user/get").query, "userid=zhangsan&access_token=token#3");
}
