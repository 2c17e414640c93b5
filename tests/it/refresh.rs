//! A token that no longer serves is renewed, once, and the caller never learns of it; what is no refusal is left alone.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::Request;
use wecom_proxy::simulator::Fault;

use crate::stage::{OPEN, Reply, Stage, USER_GET, all_at_once};

const USER: &str = "/cgi-bin/user/get";
const GETTOKEN: &str = "/cgi-bin/gettoken";
const REFUSAL: &str = r#"{"errcode":40014,"errmsg":"invalid access_token"}"#;

/// How often gettoken and `user/get` reached WeCom.
fn seen(stage: &Stage) -> (usize, usize) {
    stage.wecom.look(|seen| (seen.received(GETTOKEN), seen.received(USER)))
}

#[tokio::test]
async fn a_voided_token_and_an_expired_one_are_healed() {
    let stage = Stage::open().await;
    stage.get(USER_GET).await.is_ok();
    stage.wecom.revoke("hr").expect("an agent");
    let reply = stage.get(USER_GET).await;
    assert_eq!(reply.is_ok().header("x-wecom-retried"), "40014");
    stage.wecom.expire("hr").expect("an agent");
    let reply = stage.get(USER_GET).await;
    assert_eq!(reply.is_ok().header("x-wecom-retried"), "42001");
    let reply = stage.get(USER_GET).await;
    assert_eq!(reply.is_ok().header("x-wecom-retried"), "");
    assert_eq!(seen(&stage), (3, 6));
}

#[tokio::test]
async fn a_thousand_callers_at_a_cold_start_cause_one_gettoken() {
    let stage = Arc::new(Stage::open().await);
    stage.wecom.inject(Fault::delay(Duration::from_millis(200)).on(GETTOKEN)).expect("a fault");
    for reply in all_at_once(&stage, 1000, USER_GET).await {
        reply.is_ok();
    }
    eprintln!("gettokens for 1,000 callers at a cold start: {}", seen(&stage).0);
    assert_eq!(seen(&stage), (1, 1000));
}

#[tokio::test]
async fn a_token_voided_under_a_thousand_callers_is_renewed_once() {
    let stage = Arc::new(Stage::open().await);
    stage.get(USER_GET).await.is_ok();
    stage.wecom.revoke("hr").expect("an agent");
    // Half of the refusals come when the new token has long been in use.
    stage.wecom.inject(Fault::hold().on(USER).times(500)).expect("a fault");
    let callers = {
        let stage = stage.clone();
        tokio::spawn(async move { all_at_once(&stage, 1000, USER_GET).await })
    };
    stage.wecom.wait_until(|seen| seen.executed(USER) == 501).await.expect("the first half is through");
    stage.wecom.release();
    let replies = callers.await.expect("no panic");
    let retried = |reply: &&Reply| reply.is_ok().header("x-wecom-retried") == "40014";
    let healed = replies.iter().filter(retried).count();
    eprintln!("gettokens for a token voided under 1,000 callers, {healed} refused: {}", seen(&stage).0 - 1);
    assert!(healed >= 500, "{healed}");
    assert_eq!(seen(&stage), (2, 1001 + healed));
    assert_eq!(stage.wecom.executed(USER), 1001, "each was carried out once");
}

#[tokio::test]
async fn what_is_no_refusal_goes_to_the_caller_as_it_is() {
    let stage = Stage::open().await;
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
        ("text/html", REFUSAL),
        ("image/png", REFUSAL),
    ] {
        stage.wecom.reset();
        let fault = Fault::answer(200, content_type, Bytes::from(body.to_owned()));
        stage.wecom.inject(fault.on(USER).times(1)).expect("a fault");
        let reply = stage.get(USER_GET).await;
        assert_eq!((reply.text(), reply.header("x-wecom-retried")), (body, ""), "{content_type}");
        assert_eq!(seen(&stage).1, 1, "{content_type} {body}");
    }
}

#[tokio::test]
async fn a_json_file_that_looks_like_a_refusal_is_a_file() {
    let stage = Stage::open().await;
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=\"media\"; filename=\"a.json\"\r\nContent-Type: \
         application/json\r\n\r\n{REFUSAL}\r\n--b--\r\n"
    );
    let upload = Request::post("/hr/cgi-bin/media/upload?type=file");
    let upload = upload.header("content-type", "multipart/form-data; boundary=b");
    let uploaded = stage.call(upload, form).await;
    let media_id = uploaded.is_ok().json()["media_id"].as_str().expect("an id").to_owned();
    let file = stage.get(&format!("/cgi-bin/media/get?media_id={media_id}")).await;
    assert_eq!((file.text(), file.header("x-wecom-retried")), (REFUSAL, ""));
    assert_eq!(file.header("content-type"), "application/json");
    assert_eq!(seen(&stage).0, 1);
}

#[tokio::test]
async fn a_refusal_is_seen_in_whatever_dress_it_comes() {
    let stage = Stage::open().await;
    stage.get(USER_GET).await.is_ok();
    let (late, marked) =
        (r#"{"a":{"errcode":0},"errmsg":"x","errcode" : 42001}"#, format!("\u{feff}{REFUSAL}"));
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    std::io::Write::write_all(&mut gzip, REFUSAL.as_bytes()).expect("into memory");
    let gzip = gzip.finish().expect("into memory");
    for (fault, errcode) in [
        (Fault::answer(200, "application/json", late), "42001"),
        (Fault::answer(200, "application/json", marked), "40014"),
        (Fault::answer(200, "text/plain", REFUSAL), "40014"),
        (Fault::answer(401, "application/json", REFUSAL), "40014"),
        (Fault::answer(200, "application/json", gzip).with_header("content-encoding", "gzip"), "40014"),
    ] {
        let before = seen(&stage).1;
        stage.wecom.inject(fault.on(USER).times(1)).expect("a fault");
        stage.wecom.revoke("hr").expect("an agent");
        let reply = stage.get(USER_GET).await;
        assert_eq!(reply.is_ok().header("x-wecom-retried"), errcode);
        assert_eq!(seen(&stage).1 - before, 2);
    }
    stage.wecom.inject(Fault::pieces(1)).expect("a fault");
    for path in [USER_GET, "/cgi-bin/getcallbackip"] {
        stage.get(path).await.is_ok();
        stage.wecom.revoke("hr").expect("an agent");
        assert_eq!(stage.get(path).await.is_ok().header("x-wecom-retried"), "40014", "{path}");
    }
}

#[tokio::test]
async fn a_second_refusal_goes_to_the_caller_and_there_is_never_a_third() {
    let stage = Stage::open().await;
    stage.get(USER_GET).await.is_ok();
    stage.wecom.inject(Fault::errcode(40014).on(USER)).expect("a fault");
    stage.wecom.revoke("hr").expect("an agent");
    let reply = stage.get(USER_GET).await;
    assert_eq!((reply.errcode(), reply.header("x-wecom-retried")), (40014, "40014"));
    assert_eq!(reply.header("x-wecom-proxy-error"), "", "it is WeCom's own answer");
    assert_eq!(seen(&stage), (2, 3));
    for nth in 1..=20 {
        let reply = stage.get(USER_GET).await;
        assert_eq!((reply.errcode(), reply.header("x-wecom-retried")), (40014, ""));
        assert_eq!(seen(&stage), (2, 3 + nth), "it is not renewed again and again for nothing");
    }
    let reply = stage.get("/cgi-bin/department/list").await;
    assert_eq!(reply.is_ok().header("x-wecom-retried"), "", "other calls go on");
}

#[tokio::test]
async fn the_same_token_again_is_tried_once_and_then_held() {
    let stage = Stage::open().await;
    stage.get(USER_GET).await.is_ok();
    stage.wecom.same_token("hr", true).expect("an agent");
    stage.wecom.revoke("hr").expect("an agent");
    let reply = stage.get(USER_GET).await;
    assert_eq!((reply.errcode(), reply.header("x-wecom-retried")), (40014, "40014"));
    assert_eq!(seen(&stage), (2, 3));
    let reply = stage.get(USER_GET).await;
    assert_eq!((reply.errcode(), reply.header("x-wecom-retried")), (40014, ""));
    assert_eq!(seen(&stage), (2, 4));
}

#[tokio::test]
async fn where_no_new_token_comes_the_caller_learns_what_wecom_said() {
    let stage = Stage::open().await;
    stage.get(USER_GET).await.is_ok();
    stage.wecom.inject(Fault::errcode(45009).on(GETTOKEN)).expect("a fault");
    stage.wecom.revoke("hr").expect("an agent");
    for _ in 0..5 {
        let reply = stage.get(USER_GET).await;
        reply.is_own("token-unavailable", 502, 45009);
        assert!(reply.text().contains("gettoken was refused with errcode 45009"), "{}", reply.text());
    }
    assert_eq!(seen(&stage).0, 2, "and WeCom is not asked again for each");
}

#[tokio::test]
async fn a_wrong_secret_asked_for_by_two_hundred_is_shown_to_wecom_once() {
    let stage = Arc::new(Stage::open().await);
    stage.wecom.reset_secret("hr", "another-secret").expect("an agent");
    let check = |reply: &Reply| {
        reply.is_own("token-unavailable", 502, 40001);
        assert!(!reply.text().contains("not-a-secret"), "{}", reply.text());
    };
    all_at_once(&stage, 200, USER_GET).await.iter().for_each(check);
    all_at_once(&stage, 200, USER_GET).await.iter().for_each(check);
    eprintln!("gettokens for a wrong secret and 400 callers: {}", seen(&stage).0);
    assert_eq!(seen(&stage), (1, 0));
    stage.call(Request::get(format!("/ops{USER_GET}")), "").await.is_ok();
}

#[tokio::test]
async fn errcodes_that_refresh_are_the_operators_to_choose() {
    let stage = Stage::with(&format!("{OPEN}\n[tokens]\nrefresh_errcodes = [60020]\n")).await;
    stage.wecom.inject(Fault::errcode(60020).on(USER).times(1)).expect("a fault");
    assert_eq!(stage.get(USER_GET).await.is_ok().header("x-wecom-retried"), "60020");
    stage.wecom.revoke("hr").expect("an agent");
    assert_eq!(stage.get(USER_GET).await.errcode(), 40014);
}
