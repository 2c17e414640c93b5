//! What gettoken may answer, or not, and what it means for the request that waits and for the next one.

use std::time::Duration;

use super::{
    peer::{CASE, Peer, Step, json},
    side_by_side,
};
use crate::stage::{OPEN, Reply, Stage, wait_for};

/// A good token's answer.
const GOOD: &str = r#"{"errcode":0,"errmsg":"ok","access_token":"GOOD-TOKEN","expires_in":7200}"#;
const NEXT: &str = "/cgi-bin/user/get?userid=x";

/// A proxy whose gettoken is answered with this, and which waits for it no longer than it must.
async fn scene(gettoken: Vec<Step>) -> (Peer, Stage) {
    let peer = Peer::new().await;
    let wait = if matches!(gettoken.last(), Some(Step::Silence)) { "2s" } else { "10m" };
    peer.grants(gettoken);
    let times = format!("response_timeout = \"{wait}\"\nbody_timeout = \"{wait}\"\n[admin]");
    let stage = Stage::facing(peer.address, &OPEN.replace("[admin]", &times)).await;
    (peer, stage)
}

fn says(bytes: impl Into<Vec<u8>>) -> Vec<Step> {
    vec![Step::Say(bytes.into())]
}

#[tokio::test]
async fn whatever_gettoken_says_of_its_life_the_token_serves() {
    for life in [
        "7200",
        "\"7200\"",
        "7200.0",
        "0",
        "-1",
        "\"\"",
        "\"soon\"",
        "null",
        "[]",
        "0.5",
        "18446744073709551616",
        "-9223372036854775809",
    ] {
        let body = format!("{{\"errcode\":0,\"access_token\":\"GOOD-TOKEN\",\"expires_in\":{life}}}");
        let (peer, stage) = scene(says(json(&body))).await;
        for _ in 0..5 {
            assert_eq!(stage.get(NEXT).await.is_ok().header("x-wecom-retried"), "", "{life}");
        }
        assert_eq!(peer.granted(), 1, "{life}: no renewal that is not due");
    }
    let (peer, stage) = scene(says(json(r#"{"access_token":"GOOD-TOKEN"}"#))).await;
    stage.get(NEXT).await.is_ok();
    stage.get(NEXT).await.is_ok();
    assert_eq!(peer.granted(), 1, "no expires_in at all");
}

/// Gettoken's answers that hold no token, with a word of what the caller is told.
#[rustfmt::skip]
fn senseless() -> Vec<(Vec<Step>, &'static str)> {
    let body = |body: &str| says(json(body));
    let html = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>";
    vec![
        (says(&html[..]), "HTTP 500"),
        (says(&b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"[..]), "HTTP 502"),
        (says(&b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"[..]), "HTTP 302"),
        (says(&b"HTTP/1.1 204 No Content\r\n\r\n"[..]), "HTTP 204"),
        (body("<html>portal</html>"), "not JSON"),
        (body(""), "not JSON"),
        (body("null"), "not JSON"),
        (body("[]"), "not JSON"),
        (body("\"TOKEN\""), "not JSON"),
        (body("{\"errcode\":0,\"access_token\":\"HALF-"), "not JSON"),
        (body("{\"errcode\":0,\"errmsg\":\"ok\"}"), "no access_token"),
        (body("{\"errcode\":0,\"access_token\":null}"), "no access_token"),
        (body("{\"errcode\":0,\"access_token\":\"\"}"), "cannot stand in a URL"),
        (body("{\"errcode\":0,\"access_token\":17}"), "cannot stand in a URL"),
        (body("{\"errcode\":0,\"access_token\":[\"a\"]}"), "cannot stand in a URL"),
        (body("{\"errcode\":0,\"access_token\":\"a b\"}"), "cannot stand in a URL"),
        (body("{\"errcode\":0,\"access_token\":\"a&b=c\"}"), "cannot stand in a URL"),
        (body("{\"errcode\":0,\"access_token\":\"a#b\"}"), "cannot stand in a URL"),
        (body("{\"errcode\":0,\"access_token\":\"a%0d%0a\"}"), "cannot stand in a URL"),
        (body("{\"errcode\":0,\"access_token\":\"a\\r\\nX: y\"}"), "cannot stand in a URL"),
        (body("{\"errcode\":0,\"access_token\":\"a\\u0000\"}"), "cannot stand in a URL"),
        (body("{\"errcode\":0,\"access_token\":\"\\u00e9\"}"), "cannot stand in a URL"),
        (body(&format!("{{\"errcode\":0,\"access_token\":\"{}\"}}", "a".repeat(513))), "cannot stand in a URL"),
        (body(&format!("{{\"errcode\":0,\"x\":\"{}\"}}", "a".repeat(70_000))), "longer than 64 KiB"),
        (vec![Step::Close], "closed the connection"),
        (vec![Step::Reset], "closed the connection"),
        (vec![Step::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{\"err".to_vec()), Step::Close], "broke off"),
        (vec![Step::Silence], "upstream.response_timeout"),
        (vec![Step::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{\"err".to_vec()), Step::Silence], "upstream.body_timeout"),
        (vec![Step::Say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec()), Step::SayForEver(b"1\r\n \r\n".to_vec())], "longer than 64 KiB"),
    ]
}

async fn costs_one_request(steps: Vec<Step>, words: &str) {
    let (peer, stage) = scene(steps.clone()).await;
    let refused = stage.get(NEXT).await;
    refused.is_own("token-unavailable", 502, -1);
    assert!(refused.text().contains(words), "{steps:?}: {}", refused.text());
    for shown in ["HALF-", "a&b", "aaaaaaaa", "<html", "portal"] {
        assert!(!refused.text().contains(shown), "{steps:?}: {}", refused.text());
    }
    assert_eq!((peer.granted(), peer.heard().len()), (1, 0), "{steps:?}");
    peer.grants(says(json(GOOD)));
    wait_for("the next try", async || stage.get(NEXT).await.status == 200).await;
    assert_eq!(peer.granted(), 2, "{steps:?}");
}

#[tokio::test]
async fn a_gettoken_without_sense_costs_the_request_that_waits_and_no_other() {
    side_by_side(senseless().into_iter().map(|(steps, words)| costs_one_request(steps, words))).await;
}

#[tokio::test]
async fn a_frequency_limit_is_not_pressed_against() {
    let (peer, stage) = scene(says(json(r#"{"errcode":45009,"errmsg":"api freq out of limit"}"#))).await;
    for _ in 0..20 {
        let refused = stage.get(NEXT).await;
        refused.is_own("token-unavailable", 502, 45009);
    }
    assert_eq!(peer.granted(), 1);
}

#[tokio::test]
async fn a_slow_gettoken_is_waited_for_by_all_and_asked_once() {
    let (peer, stage) = scene(vec![Step::Drip(json(GOOD), Duration::from_millis(1))]).await;
    let stage = std::sync::Arc::new(stage);
    for reply in crate::stage::all_at_once(&stage, 50, NEXT).await {
        reply.is_ok();
    }
    assert_eq!(peer.granted(), 1);
}

#[tokio::test]
async fn the_refused_token_again_and_again_is_not_asked_for_again_and_again() {
    let (peer, stage) = scene(says(json(GOOD))).await;
    peer.plays(says(json(r#"{"errcode":40014,"errmsg":"invalid access_token"}"#)));
    let mut asked = 0;
    for nth in 0..20 {
        let refused: Reply = stage.post(CASE, "").await;
        assert_eq!((refused.status.as_u16(), refused.errcode()), (200, 40014), "{nth}");
        let heard = peer.heard().len();
        assert!(heard <= 2, "{nth}: never a third");
        asked += heard;
    }
    assert!(asked <= 22, "{asked} requests");
    assert_eq!(peer.granted(), 2);
    // Other paths go on meanwhile.
    stage.get(NEXT).await.is_ok();
}
