//! §16: several keys of one client, all of them valid.

use http::Request;

use crate::{
    gettoken::{gettoken_target, pass_from_response, send_get},
    harness::{TestProxy, TestResponse, USER_GET, sha256},
};

const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
[upstream]
url = "http://{api}"
{agents}
[clients.billing]
key_sha256 = KEYS
agents = ["hr"]
"#;

const KEYS: [&str; 4] = [
    "the-first-key-of-billing",
    "the-second-key-of-billing",
    "the-third-key-of-billing",
    "the-fourth-key-of-billing",
];

fn config(keys: &[&str]) -> String {
    let hashes: Vec<_> = keys.iter().map(|key| format!("\"{}\"", sha256(key))).collect();
    CONFIG.replace("KEYS", &format!("[{}]", hashes.join(", ")))
}

async fn get_with_key(proxy: &TestProxy, key: &str) -> TestResponse {
    proxy.request(Request::get(USER_GET).header("x-api-key", key), "").await
}

async fn buy_pass(proxy: &TestProxy, key: &str) -> String {
    pass_from_response(&send_get(proxy, gettoken_target(key)).await)
}

async fn get_with_pass(proxy: &TestProxy, pass: &str) -> TestResponse {
    send_get(proxy, format!("{USER_GET}&access_token={pass}")).await
}

fn reload(proxy: &TestProxy, keys: &[&str]) {
    proxy.rewrite_config(&config(keys));
    proxy.app.reload().expect("a reload");
}

#[tokio::test]
async fn each_key_is_valid_everywhere() {
    let proxy = TestProxy::start_with_config(&config(&KEYS)).await;
    for key in KEYS {
        get_with_key(&proxy, key).await.assert_ok();
        let bearer = Request::get(USER_GET).header("authorization", format!("Bearer {key}"));
        proxy.request(bearer, "").await.assert_ok();
        let pass = buy_pass(&proxy, key).await;
        get_with_pass(&proxy, &pass).await.assert_ok();
        // A pass and another key of its client are no contradiction.
        for beside in KEYS {
            let both = Request::get(format!("{USER_GET}&access_token={pass}")).header("x-api-key", beside);
            proxy.request(both, "").await.assert_ok();
        }
    }
    get_with_key(&proxy, "no-key-of-billing-at-all").await.assert_proxy_error("unauthenticated", 401, 40001);
}

#[tokio::test]
async fn removed_key_takes_its_passes_with_it_and_leaves_those_beside_it() {
    let [first, second, third, _] = KEYS;
    let proxy = TestProxy::start_with_config(&config(&[first, second])).await;
    let (of_first, of_second) = (buy_pass(&proxy, first).await, buy_pass(&proxy, second).await);
    reload(&proxy, &[second, third]);
    get_with_key(&proxy, first).await.assert_proxy_error("unauthenticated", 401, 40001);
    get_with_pass(&proxy, &of_first).await.assert_proxy_error("pass-expired", 200, 42001);
    get_with_pass(&proxy, &of_second).await.assert_ok();
    get_with_pass(&proxy, &buy_pass(&proxy, third).await).await.assert_ok();
    // The order of the keys means nothing.
    reload(&proxy, &[third, second]);
    get_with_pass(&proxy, &of_second).await.assert_ok();
    reload(&proxy, &[first]);
    get_with_pass(&proxy, &of_second).await.assert_proxy_error("pass-expired", 200, 42001);
    get_with_pass(&proxy, &of_first).await.assert_ok();
}

/// A pass is under the key that bought it, also where another key of the client stands beside that.
#[tokio::test]
async fn pass_is_under_the_key_in_corpsecret() {
    let [first, second, ..] = KEYS;
    let proxy = TestProxy::start_with_config(&config(&[first, second])).await;
    let both = Request::get(gettoken_target(second)).header("x-api-key", first);
    let pass = pass_from_response(&proxy.request(both, "").await);
    reload(&proxy, &[first]);
    get_with_pass(&proxy, &pass).await.assert_proxy_error("pass-expired", 200, 42001);
}
