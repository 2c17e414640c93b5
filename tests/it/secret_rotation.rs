//! §16: two secrets of one agent, and secrets whose file changes.

use std::fs;

use http::Request;

use crate::{
    gettoken::{CORPID, HR_SECRET, gettoken_target, pass_from_response, send_get},
    harness::{TestProxy, TestResponse, USER_GET, admin_get},
};

const NEW_SECRET: &str = "not-a-secret-hr-1111111111111111111111111111";
const OTHER_SECRET: &str = "not-a-secret-hr-2222222222222222222222222222";
const KEY: &str = "key-of-billing-0000000000";

/// The agent `hr` with this value of `secret`, and a client.
fn config(secret: &str) -> String {
    format!(
        r#"
[server]
listen = "127.0.0.1:0"
[upstream]
url = "http://{{api}}"
[admin]
listen = "127.0.0.1:0"
[agents.hr]
corpid = "{CORPID}"
secret = {secret}
accept_secret = true
[clients.billing]
key = "{KEY}"
agents = ["*"]
"#
    )
}

fn list(secrets: &[&str]) -> String {
    format!("[{}]", secrets.iter().map(|secret| format!("\"{secret}\"")).collect::<Vec<_>>().join(", "))
}

const FILE: &str = r#"{ file = "{dir}/secret" }"#;

/// The configuration with the secret in a file, which is written first.
async fn start_with_file(secret: &str) -> TestProxy {
    let proxy = TestProxy::start_with_config(&config(&list(&[secret]))).await;
    write_secret(&proxy, secret);
    reload(&proxy, FILE);
    proxy
}

fn write_secret(proxy: &TestProxy, secret: &str) {
    fs::write(proxy.dir.path().join("secret"), format!("{secret}\n")).expect("a secret");
}

fn reload(proxy: &TestProxy, secret: &str) {
    proxy.rewrite_config(&config(secret));
    proxy.app.reload().expect("a reload");
}

async fn get(proxy: &TestProxy) -> TestResponse {
    proxy.request(Request::get(USER_GET).header("x-api-key", KEY), "").await
}

async fn get_with_pass(proxy: &TestProxy, pass: &str) -> TestResponse {
    send_get(proxy, format!("{USER_GET}&access_token={pass}")).await
}

async fn buy_pass(proxy: &TestProxy, secret: &str) -> String {
    pass_from_response(&send_get(proxy, gettoken_target(secret)).await)
}

/// The errcodes of all gettoken calls.
fn gettokens(proxy: &TestProxy) -> Vec<i64> {
    let requests = proxy.wecom.requests();
    let gettokens = requests.iter().filter(|request| request.path == "/cgi-bin/gettoken");
    gettokens.map(|request| request.errcode.expect("a response")).collect()
}

#[tokio::test]
async fn second_secret_is_used_where_wecom_refuses_the_first() {
    let proxy = TestProxy::start_with_config(&config(&list(&[OTHER_SECRET, HR_SECRET]))).await;
    for _ in 0..3 {
        get(&proxy).await.assert_ok();
    }
    assert_eq!(gettokens(&proxy), [40001, 0]);
    // The one that works is kept, over reloads too.
    for secrets in [[OTHER_SECRET, HR_SECRET], [HR_SECRET, OTHER_SECRET], [OTHER_SECRET, HR_SECRET]] {
        reload(&proxy, &list(&secrets));
        get(&proxy).await.assert_ok();
        assert_eq!(gettokens(&proxy), [40001, 0]);
    }
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    get(&proxy).await.assert_ok();
    assert_eq!(gettokens(&proxy), [40001, 0, 0]);
    let ready = admin_get(&proxy, "/readyz").await;
    assert_eq!(ready.status, 200, "{}", ready.text());
}

#[tokio::test]
async fn reset_secret_is_followed_by_the_second_one_without_an_error() {
    let proxy = TestProxy::start_with_config(&config(&list(&[HR_SECRET, NEW_SECRET]))).await;
    get(&proxy).await.assert_ok();
    proxy.wecom.reset_secret("hr", NEW_SECRET).expect("an agent");
    let response = get(&proxy).await;
    assert_eq!(response.assert_ok().header("x-wecom-retried"), "40014");
    assert_eq!(gettokens(&proxy), [0, 40001, 0]);
    // The first one is taken out: the token stays.
    reload(&proxy, &list(&[NEW_SECRET]));
    get(&proxy).await.assert_ok();
    assert_eq!(gettokens(&proxy), [0, 40001, 0]);
}

#[tokio::test]
async fn two_wrong_secrets_are_the_last_before_the_backoff() {
    let proxy = TestProxy::start_with_config(&config(&list(&[NEW_SECRET, OTHER_SECRET]))).await;
    for _ in 0..10 {
        get(&proxy).await.assert_proxy_error("token-unavailable", 502, 40001);
    }
    assert_eq!(gettokens(&proxy), [40001, 40001]);
    // A secret that was not tried yet is, at once and alone.
    reload(&proxy, &list(&[NEW_SECRET, HR_SECRET]));
    get(&proxy).await.assert_ok();
    assert_eq!(gettokens(&proxy), [40001, 40001, 0]);
}

#[tokio::test]
async fn changed_file_is_read_before_the_errcode_counts() {
    let proxy = start_with_file(HR_SECRET).await;
    get(&proxy).await.assert_ok();
    proxy.wecom.reset_secret("hr", NEW_SECRET).expect("an agent");
    write_secret(&proxy, NEW_SECRET);
    get(&proxy).await.assert_ok();
    assert_eq!(gettokens(&proxy), [0, 40001, 0]);
    let response = admin_get(&proxy, "/metrics").await;
    let metrics = response.text();
    let failed: Vec<_> = metrics
        .lines()
        .filter(|line| {
            line.starts_with("wecom_proxy_token_refreshes_total{") && line.contains("result=\"failed\"")
        })
        .filter(|line| !line.ends_with(" 0"))
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
    // A reload finds nothing new.
    reload(&proxy, FILE);
    get(&proxy).await.assert_ok();
    assert_eq!(gettokens(&proxy), [0, 40001, 0]);
}

#[tokio::test]
async fn unchanged_file_is_followed_by_the_backoff() {
    let proxy = start_with_file(OTHER_SECRET).await;
    for _ in 0..5 {
        get(&proxy).await.assert_proxy_error("token-unavailable", 502, 40001);
    }
    assert_eq!(gettokens(&proxy), [40001]);
}

#[tokio::test]
async fn passes_under_each_secret_serve() {
    let proxy = TestProxy::start_with_config(&config(&list(&[HR_SECRET]))).await;
    let of_client = buy_pass(&proxy, KEY).await;
    let of_first = buy_pass(&proxy, HR_SECRET).await;
    reload(&proxy, &list(&[HR_SECRET, NEW_SECRET]));
    let of_second = buy_pass(&proxy, NEW_SECRET).await;
    let of_client_now = buy_pass(&proxy, KEY).await;
    let passes = [of_client, of_first, of_second, of_client_now];
    for pass in &passes {
        get_with_pass(&proxy, pass).await.assert_ok();
    }
    // For four hours after the change, those under the secret before serve too.
    proxy.wecom.reset_secret("hr", NEW_SECRET).expect("an agent");
    reload(&proxy, &list(&[NEW_SECRET]));
    for pass in &passes {
        get_with_pass(&proxy, pass).await.assert_ok();
    }
    let refused = send_get(&proxy, gettoken_target(HR_SECRET)).await;
    refused.assert_proxy_error("gettoken-refused", 200, 40001);
}

#[tokio::test]
async fn passes_serve_after_a_file_has_changed() {
    let proxy = start_with_file(HR_SECRET).await;
    let before = [buy_pass(&proxy, KEY).await, buy_pass(&proxy, HR_SECRET).await];
    proxy.wecom.reset_secret("hr", NEW_SECRET).expect("an agent");
    write_secret(&proxy, NEW_SECRET);
    get(&proxy).await.assert_ok();
    let after = [buy_pass(&proxy, KEY).await, buy_pass(&proxy, NEW_SECRET).await];
    for reloads in 0..2 {
        for pass in before.iter().chain(&after) {
            get_with_pass(&proxy, pass).await.assert_ok();
        }
        if reloads == 0 {
            reload(&proxy, FILE);
        }
    }
}
