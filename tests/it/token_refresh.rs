//! A token that no longer serves is renewed, once, and the caller never learns of it; what is no refusal is left alone.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::Request;
use wecom_proxy::simulator::Fault;

use crate::harness::{OPEN_CONFIG, TestProxy, TestResponse, USER_GET, get_concurrently};

const USER_GET_PATH: &str = "/cgi-bin/user/get";
const GETTOKEN: &str = "/cgi-bin/gettoken";
const INVALID_TOKEN_BODY: &str = r#"{"errcode":40014,"errmsg":"invalid access_token"}"#;

/// How often gettoken and `user/get` reached WeCom.
fn upstream_counts(stage: &TestProxy) -> (usize, usize) {
    stage.wecom.observe(|seen| (seen.received_count(GETTOKEN), seen.received_count(USER_GET_PATH)))
}

#[tokio::test]
async fn revoked_and_expired_tokens_are_refreshed() {
    let stage = TestProxy::start_open().await;
    stage.get(USER_GET).await.assert_ok();
    stage.wecom.revoke_tokens("hr").expect("an agent");
    let reply = stage.get(USER_GET).await;
    assert_eq!(reply.assert_ok().header("x-wecom-retried"), "40014");
    stage.wecom.expire_tokens("hr").expect("an agent");
    let reply = stage.get(USER_GET).await;
    assert_eq!(reply.assert_ok().header("x-wecom-retried"), "42001");
    let reply = stage.get(USER_GET).await;
    assert_eq!(reply.assert_ok().header("x-wecom-retried"), "");
    assert_eq!(upstream_counts(&stage), (3, 6));
}

#[tokio::test]
async fn thousand_clients_at_a_cold_start_cause_one_gettoken() {
    let stage = Arc::new(TestProxy::start_open().await);
    stage.wecom.inject(Fault::delay(Duration::from_millis(200)).on_path(GETTOKEN)).expect("a fault");
    for reply in get_concurrently(&stage, 1000, USER_GET).await {
        reply.assert_ok();
    }
    eprintln!("gettokens for 1,000 callers at a cold start: {}", upstream_counts(&stage).0);
    assert_eq!(upstream_counts(&stage), (1, 1000));
}

#[tokio::test]
async fn token_revoked_under_a_thousand_clients_is_refreshed_once() {
    let stage = Arc::new(TestProxy::start_open().await);
    stage.get(USER_GET).await.assert_ok();
    stage.wecom.revoke_tokens("hr").expect("an agent");
    // Half of the refusals come when the new token has long been in use.
    stage.wecom.inject(Fault::hold().on_path(USER_GET_PATH).times(500)).expect("a fault");
    let callers = {
        let stage = stage.clone();
        tokio::spawn(async move { get_concurrently(&stage, 1000, USER_GET).await })
    };
    stage
        .wecom
        .wait_until(|seen| seen.executed_count(USER_GET_PATH) == 501)
        .await
        .expect("the first half is through");
    stage.wecom.release_held();
    let replies = callers.await.expect("no panic");
    let retried = |reply: &&TestResponse| reply.assert_ok().header("x-wecom-retried") == "40014";
    let healed = replies.iter().filter(retried).count();
    eprintln!(
        "gettokens for a token voided under 1,000 callers, {healed} refused: {}",
        upstream_counts(&stage).0 - 1
    );
    assert!(healed >= 500, "{healed}");
    assert_eq!(upstream_counts(&stage), (2, 1001 + healed));
    assert_eq!(stage.wecom.executed_count(USER_GET_PATH), 1001, "each was carried out once");
}

#[tokio::test]
async fn response_that_is_no_token_refusal_is_forwarded_unchanged() {
    let stage = TestProxy::start_open().await;
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
        stage.wecom.reset();
        let fault = Fault::response(200, content_type, Bytes::from(body.to_owned()));
        stage.wecom.inject(fault.on_path(USER_GET_PATH).times(1)).expect("a fault");
        let reply = stage.get(USER_GET).await;
        assert_eq!((reply.text(), reply.header("x-wecom-retried")), (body, ""), "{content_type}");
        assert_eq!(upstream_counts(&stage).1, 1, "{content_type} {body}");
    }
}

#[tokio::test]
async fn downloaded_json_file_is_not_taken_for_a_refusal() {
    let stage = TestProxy::start_open().await;
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=\"media\"; filename=\"a.json\"\r\nContent-Type: \
         application/json\r\n\r\n{INVALID_TOKEN_BODY}\r\n--b--\r\n"
    );
    let upload = Request::post("/hr/cgi-bin/media/upload?type=file");
    let upload = upload.header("content-type", "multipart/form-data; boundary=b");
    let uploaded = stage.request(upload, form).await;
    let media_id = uploaded.assert_ok().json()["media_id"].as_str().expect("an id").to_owned();
    let file = stage.get(&format!("/cgi-bin/media/get?media_id={media_id}")).await;
    assert_eq!((file.text(), file.header("x-wecom-retried")), (INVALID_TOKEN_BODY, ""));
    assert_eq!(file.header("content-type"), "application/json");
    assert_eq!(upstream_counts(&stage).0, 1);
}

#[tokio::test]
async fn token_refusal_is_detected_in_any_encoding() {
    let stage = TestProxy::start_open().await;
    stage.get(USER_GET).await.assert_ok();
    let (late, marked) =
        (r#"{"a":{"errcode":0},"errmsg":"x","errcode" : 42001}"#, format!("\u{feff}{INVALID_TOKEN_BODY}"));
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    std::io::Write::write_all(&mut gzip, INVALID_TOKEN_BODY.as_bytes()).expect("into memory");
    let gzip = gzip.finish().expect("into memory");
    for (fault, errcode) in [
        (Fault::response(200, "application/json", late), "42001"),
        (Fault::response(200, "application/json", marked), "40014"),
        (Fault::response(200, "text/plain", INVALID_TOKEN_BODY), "40014"),
        (Fault::response(401, "application/json", INVALID_TOKEN_BODY), "40014"),
        (Fault::response(200, "application/json", gzip).with_header("content-encoding", "gzip"), "40014"),
    ] {
        let before = upstream_counts(&stage).1;
        stage.wecom.inject(fault.on_path(USER_GET_PATH).times(1)).expect("a fault");
        stage.wecom.revoke_tokens("hr").expect("an agent");
        let reply = stage.get(USER_GET).await;
        assert_eq!(reply.assert_ok().header("x-wecom-retried"), errcode);
        assert_eq!(upstream_counts(&stage).1 - before, 2);
    }
    stage.wecom.inject(Fault::chunked(1)).expect("a fault");
    for path in [USER_GET, "/cgi-bin/getcallbackip"] {
        stage.get(path).await.assert_ok();
        stage.wecom.revoke_tokens("hr").expect("an agent");
        assert_eq!(stage.get(path).await.assert_ok().header("x-wecom-retried"), "40014", "{path}");
    }
}

#[tokio::test]
async fn second_refusal_is_forwarded_without_a_third_attempt() {
    let stage = TestProxy::start_open().await;
    stage.get(USER_GET).await.assert_ok();
    stage.wecom.inject(Fault::errcode(40014).on_path(USER_GET_PATH)).expect("a fault");
    stage.wecom.revoke_tokens("hr").expect("an agent");
    let reply = stage.get(USER_GET).await;
    assert_eq!((reply.errcode(), reply.header("x-wecom-retried")), (40014, "40014"));
    assert_eq!(reply.header("x-wecom-proxy-error"), "", "it is WeCom's own answer");
    assert_eq!(upstream_counts(&stage), (2, 3));
    for nth in 1..=20 {
        let reply = stage.get(USER_GET).await;
        assert_eq!((reply.errcode(), reply.header("x-wecom-retried")), (40014, ""));
        assert_eq!(upstream_counts(&stage), (2, 3 + nth), "it is not renewed again and again for nothing");
    }
    let reply = stage.get("/cgi-bin/department/list").await;
    assert_eq!(reply.assert_ok().header("x-wecom-retried"), "", "other calls go on");
}

#[tokio::test]
async fn same_token_after_a_refresh_is_tried_once() {
    let stage = TestProxy::start_open().await;
    stage.get(USER_GET).await.assert_ok();
    stage.wecom.reissue_same_token("hr", true).expect("an agent");
    stage.wecom.revoke_tokens("hr").expect("an agent");
    let reply = stage.get(USER_GET).await;
    assert_eq!((reply.errcode(), reply.header("x-wecom-retried")), (40014, "40014"));
    assert_eq!(upstream_counts(&stage), (2, 3));
    let reply = stage.get(USER_GET).await;
    assert_eq!((reply.errcode(), reply.header("x-wecom-retried")), (40014, ""));
    assert_eq!(upstream_counts(&stage), (2, 4));
}

#[tokio::test]
async fn failed_refresh_returns_wecoms_errcode() {
    let stage = TestProxy::start_open().await;
    stage.get(USER_GET).await.assert_ok();
    stage.wecom.inject(Fault::errcode(45009).on_path(GETTOKEN)).expect("a fault");
    stage.wecom.revoke_tokens("hr").expect("an agent");
    for _ in 0..5 {
        let reply = stage.get(USER_GET).await;
        reply.assert_proxy_error("token-unavailable", 502, 45009);
        assert!(reply.text().contains("gettoken failed with errcode 45009"), "{}", reply.text());
    }
    assert_eq!(upstream_counts(&stage).0, 2, "and WeCom is not asked again for each");
}

#[tokio::test]
async fn wrong_secret_with_200_clients_is_sent_once() {
    let stage = Arc::new(TestProxy::start_open().await);
    stage.wecom.reset_secret("hr", "another-secret").expect("an agent");
    let check = |reply: &TestResponse| {
        reply.assert_proxy_error("token-unavailable", 502, 40001);
        assert!(!reply.text().contains("not-a-secret"), "{}", reply.text());
    };
    get_concurrently(&stage, 200, USER_GET).await.iter().for_each(check);
    get_concurrently(&stage, 200, USER_GET).await.iter().for_each(check);
    eprintln!("gettokens for a wrong secret and 400 callers: {}", upstream_counts(&stage).0);
    assert_eq!(upstream_counts(&stage), (1, 0));
    stage.request(Request::get(format!("/ops{USER_GET}")), "").await.assert_ok();
}

#[tokio::test]
async fn refresh_errcodes_are_configurable() {
    let stage =
        TestProxy::start_with_config(&format!("{OPEN_CONFIG}\n[tokens]\nrefresh_errcodes = [60020]\n")).await;
    stage.wecom.inject(Fault::errcode(60020).on_path(USER_GET_PATH).times(1)).expect("a fault");
    assert_eq!(stage.get(USER_GET).await.assert_ok().header("x-wecom-retried"), "60020");
    stage.wecom.revoke_tokens("hr").expect("an agent");
    assert_eq!(stage.get(USER_GET).await.errcode(), 40014);
}
