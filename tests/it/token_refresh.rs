//! A refused token is refreshed once, unnoticed by the client; any other response is forwarded unchanged.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::Request;
use wecom_proxy::simulator::Fault;

use crate::gettoken::{CORPID, HR_SECRET};
use crate::harness::{CONFIG_WITH_CLIENTS, OPEN_CONFIG, TestProxy, TestResponse, USER_GET, get_concurrently};

const USER_GET_PATH: &str = "/cgi-bin/user/get";
const GETTOKEN: &str = "/cgi-bin/gettoken";
const INVALID_TOKEN_BODY: &str = r#"{"errcode":40014,"errmsg":"invalid access_token"}"#;

/// The number of gettokens and `user/get` calls that reached WeCom.
fn upstream_counts(proxy: &TestProxy) -> (usize, usize) {
    proxy
        .wecom
        .observe(|observed| (observed.received_count(GETTOKEN), observed.received_count(USER_GET_PATH)))
}

#[tokio::test]
async fn revoked_and_expired_tokens_are_refreshed() {
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    let response = proxy.get(USER_GET).await;
    assert_eq!(response.assert_ok().header("x-wecom-retried"), "40014");
    proxy.wecom.expire_tokens("hr").expect("an agent");
    let response = proxy.get(USER_GET).await;
    assert_eq!(response.assert_ok().header("x-wecom-retried"), "42001");
    let response = proxy.get(USER_GET).await;
    assert_eq!(response.assert_ok().header("x-wecom-retried"), "");
    assert_eq!(upstream_counts(&proxy), (3, 6));
}

#[tokio::test]
async fn thousand_clients_at_a_cold_start_cause_one_gettoken() {
    let proxy = Arc::new(TestProxy::start_open().await);
    proxy.wecom.inject(Fault::delay(Duration::from_millis(200)).on_path(GETTOKEN)).expect("a fault");
    for response in get_concurrently(&proxy, 1000, USER_GET).await {
        response.assert_ok();
    }
    eprintln!("gettokens for 1,000 clients at a cold start: {}", upstream_counts(&proxy).0);
    assert_eq!(upstream_counts(&proxy), (1, 1000));
}

#[tokio::test]
async fn token_revoked_under_a_thousand_clients_is_refreshed_once() {
    let proxy = Arc::new(TestProxy::start_open().await);
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    // Half of the refusals arrive when the new token has long been in use.
    proxy.wecom.inject(Fault::hold().on_path(USER_GET_PATH).times(500)).expect("a fault");
    let calls = {
        let proxy = proxy.clone();
        tokio::spawn(async move { get_concurrently(&proxy, 1000, USER_GET).await })
    };
    proxy
        .wecom
        .wait_until(|observed| observed.executed_count(USER_GET_PATH) == 501)
        .await
        .expect("the first half");
    proxy.wecom.release_held();
    let responses = calls.await.expect("no panic");
    let retried = |response: &&TestResponse| response.assert_ok().header("x-wecom-retried") == "40014";
    let retried_count = responses.iter().filter(retried).count();
    eprintln!(
        "gettokens for a token revoked under 1,000 clients, {retried_count} refused: {}",
        upstream_counts(&proxy).0 - 1
    );
    assert!(retried_count >= 500, "{retried_count}");
    assert_eq!(upstream_counts(&proxy), (2, 1001 + retried_count));
    assert_eq!(proxy.wecom.executed_count(USER_GET_PATH), 1001, "each call is executed once");
}

#[tokio::test]
async fn response_that_is_no_token_refusal_is_forwarded_unchanged() {
    let proxy = TestProxy::start_open().await;
    let long = format!("{{\"list\":[{}0]}}", "{\"errcode\":40014},".repeat(5_000));
    for (content_type, body) in [
        ("application/json", r#"{"detail":{"errcode":40014},"list":[{"errcode":42001}]}"#),
        ("application/json", r#"{"errcode":0,"errmsg":"{\"errcode\":40014}"}"#),
        ("application/json", r#"{"errmsg":"\"errcode\":40014,"}"#),
        ("application/json", r#"[{"errcode":40014}]"#),
        ("application/json", r#"{"errcode":40013,"errmsg":"not for us"}"#),
        ("application/json", "\"errcode\":40014"),
        ("application/json", ""),
        ("application/json", &long),
        ("text/html", INVALID_TOKEN_BODY),
        ("image/png", INVALID_TOKEN_BODY),
    ] {
        proxy.wecom.reset();
        let fault = Fault::response(200, content_type, Bytes::from(body.to_owned()));
        proxy.wecom.inject(fault.on_path(USER_GET_PATH).times(1)).expect("a fault");
        let response = proxy.get(USER_GET).await;
        assert_eq!((response.text(), response.header("x-wecom-retried")), (body, ""), "{content_type}");
        assert_eq!(upstream_counts(&proxy).1, 1, "{content_type} {body}");
    }
}

#[tokio::test]
async fn downloaded_json_file_is_not_taken_for_a_refusal() {
    let proxy = TestProxy::start_open().await;
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=\"media\"; filename=\"a.json\"\r\nContent-Type: \
         application/json\r\n\r\n{INVALID_TOKEN_BODY}\r\n--b--\r\n"
    );
    let upload = Request::post("/hr/cgi-bin/media/upload?type=file");
    let upload = upload.header("content-type", "multipart/form-data; boundary=b");
    let uploaded = proxy.request(upload, form).await;
    let media_id = uploaded.assert_ok().json()["media_id"].as_str().expect("an id").to_owned();
    let file = proxy.get(&format!("/cgi-bin/media/get?media_id={media_id}")).await;
    assert_eq!((file.text(), file.header("x-wecom-retried")), (INVALID_TOKEN_BODY, ""));
    assert_eq!(file.header("content-type"), "application/json");
    assert_eq!(upstream_counts(&proxy).0, 1);
}

#[tokio::test]
async fn token_refusal_is_detected_in_any_encoding() {
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    let (last_field, with_bom) =
        (r#"{"a":{"errcode":0},"errmsg":"x","errcode" : 42001}"#, format!("\u{feff}{INVALID_TOKEN_BODY}"));
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    std::io::Write::write_all(&mut gzip, INVALID_TOKEN_BODY.as_bytes()).expect("into memory");
    let gzip = gzip.finish().expect("into memory");
    for (fault, errcode) in [
        (Fault::response(200, "application/json", last_field), "42001"),
        (Fault::response(200, "application/json", with_bom), "40014"),
        (Fault::response(200, "text/plain", INVALID_TOKEN_BODY), "40014"),
        (Fault::response(401, "application/json", INVALID_TOKEN_BODY), "40014"),
        (Fault::response(200, "application/json", gzip).with_header("content-encoding", "gzip"), "40014"),
    ] {
        let before = upstream_counts(&proxy).1;
        proxy.wecom.inject(fault.on_path(USER_GET_PATH).times(1)).expect("a fault");
        proxy.wecom.revoke_tokens("hr").expect("an agent");
        let response = proxy.get(USER_GET).await;
        assert_eq!(response.assert_ok().header("x-wecom-retried"), errcode);
        assert_eq!(upstream_counts(&proxy).1 - before, 2);
    }
    proxy.wecom.inject(Fault::chunked(1)).expect("a fault");
    for path in [USER_GET, "/cgi-bin/getcallbackip"] {
        proxy.get(path).await.assert_ok();
        proxy.wecom.revoke_tokens("hr").expect("an agent");
        assert_eq!(proxy.get(path).await.assert_ok().header("x-wecom-retried"), "40014", "{path}");
    }
}

#[tokio::test]
async fn second_refusal_is_forwarded_without_a_third_attempt() {
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.inject(Fault::errcode(40014).on_path(USER_GET_PATH)).expect("a fault");
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    let response = proxy.get(USER_GET).await;
    assert_eq!((response.errcode(), response.header("x-wecom-retried")), (40014, "40014"));
    assert_eq!(response.header("x-wecom-proxy-error"), "", "the response is WeCom's own");
    assert_eq!(upstream_counts(&proxy), (2, 3));
    for nth in 1..=20 {
        let response = proxy.get(USER_GET).await;
        assert_eq!((response.errcode(), response.header("x-wecom-retried")), (40014, ""));
        assert_eq!(upstream_counts(&proxy), (2, 3 + nth), "the token is not refreshed in vain");
    }
    let response = proxy.get("/cgi-bin/department/list").await;
    assert_eq!(response.assert_ok().header("x-wecom-retried"), "", "other calls succeed");
}

#[tokio::test]
async fn same_token_after_a_refresh_is_tried_once() {
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.reissue_same_token("hr", true).expect("an agent");
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    let response = proxy.get(USER_GET).await;
    assert_eq!((response.errcode(), response.header("x-wecom-retried")), (40014, "40014"));
    assert_eq!(upstream_counts(&proxy), (2, 3));
    let response = proxy.get(USER_GET).await;
    assert_eq!((response.errcode(), response.header("x-wecom-retried")), (40014, ""));
    assert_eq!(upstream_counts(&proxy), (2, 4));
}

#[tokio::test]
async fn agents_with_the_same_secret_share_a_token() {
    let twin = format!("[agents.twin]\ncorpid = \"{CORPID}\"\nsecret = \"{HR_SECRET}\"\n");
    let proxy = TestProxy::start_with_config(&format!("{OPEN_CONFIG}\n{twin}")).await;
    for agent in ["hr", "twin", "hr"] {
        proxy.request(Request::get(format!("/{agent}{USER_GET}")), "").await.assert_ok();
    }
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    for (agent, retried) in [("twin", "40014"), ("hr", "")] {
        let response = proxy.request(Request::get(format!("/{agent}{USER_GET}")), "").await;
        assert_eq!(response.assert_ok().header("x-wecom-retried"), retried);
    }
    assert_eq!(upstream_counts(&proxy).0, 2);
    proxy.app.reload().expect("a reload");
    proxy.request(Request::get(format!("/twin{USER_GET}")), "").await.assert_ok();
    assert_eq!(upstream_counts(&proxy).0, 2, "the token outlives a reload");
}

#[tokio::test]
async fn failed_refresh_returns_wecoms_errcode() {
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    proxy.wecom.inject(Fault::errcode(45009).on_path(GETTOKEN)).expect("a fault");
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    for _ in 0..5 {
        let response = proxy.get(USER_GET).await;
        response.assert_proxy_error("token-unavailable", 502, 45009);
        assert!(response.text().contains("gettoken failed with errcode 45009"), "{}", response.text());
    }
    assert_eq!(upstream_counts(&proxy).0, 2, "WeCom gets no gettoken per request");
}

#[tokio::test]
async fn errmsg_that_echoes_a_short_key_is_masked() {
    let toml = CONFIG_WITH_CLIENTS.replace("key-of-billing-0000000000", "q7z+4");
    let proxy = TestProxy::start_with_config(&toml).await;
    let body = r#"{"errcode":40001,"errmsg":"invalid credential q7z+4, corpsecret=q7z%2B4, hint: [1]"}"#;
    let echo = Fault::response(200, "application/json", body).on_path(GETTOKEN).times(9);
    proxy.wecom.inject(echo).expect("a fault");
    for (name, value) in [
        ("x-api-key", "q7z+4"),
        ("authorization", "Bearer q7z+4"),
        ("authorization", "Basic YmlsbGluZzpxN3orNA=="),
    ] {
        let request = Request::get(USER_GET).header(name, value);
        let response = proxy.request(request, "").await;
        response.assert_proxy_error("token-unavailable", 502, 40001);
        let masked = "invalid credential [masked], corpsecret=[masked], hint: [1]";
        assert!(response.text().contains(masked), "{}", response.text());
    }
}

#[tokio::test]
async fn wrong_secret_with_200_clients_is_sent_once() {
    let proxy = Arc::new(TestProxy::start_open().await);
    proxy.wecom.reset_secret("hr", "another-secret").expect("an agent");
    let check = |response: &TestResponse| {
        response.assert_proxy_error("token-unavailable", 502, 40001);
        assert!(!response.text().contains("not-a-secret"), "{}", response.text());
    };
    get_concurrently(&proxy, 200, USER_GET).await.iter().for_each(check);
    get_concurrently(&proxy, 200, USER_GET).await.iter().for_each(check);
    eprintln!("gettokens for a wrong secret and 400 clients: {}", upstream_counts(&proxy).0);
    assert_eq!(upstream_counts(&proxy), (1, 0));
    proxy.request(Request::get(format!("/ops{USER_GET}")), "").await.assert_ok();
}

#[tokio::test]
async fn refresh_errcodes_are_configurable() {
    let proxy =
        TestProxy::start_with_config(&format!("{OPEN_CONFIG}\n[tokens]\nrefresh_errcodes = [60020]\n")).await;
    proxy.wecom.inject(Fault::errcode(60020).on_path(USER_GET_PATH).times(1)).expect("a fault");
    assert_eq!(proxy.get(USER_GET).await.assert_ok().header("x-wecom-retried"), "60020");
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    assert_eq!(proxy.get(USER_GET).await.errcode(), 40014);
}
