//! A kept connection to the upstream that closes, or brings what nobody asked for, between two requests.

use super::{
    callers::{Asker, Tongue},
    peer::{CASE, Peer, Step, json},
    side_by_side,
};
use crate::stage::{OPEN, Stage};

/// What stands in an answer that nobody asked for.
const STRAY: &str = "stray";

async fn scene() -> (Peer, Stage) {
    let peer = Peer::new().await;
    let stage = Stage::facing(peer.address, OPEN).await;
    (peer, stage)
}

/// Asks for something that only this request can be the answer to.
async fn next_one_is_served(asker: &mut Asker, method: &str, nth: usize) {
    let path = format!("/cgi-bin/next/{nth}?");
    let told = asker.ask(method, &path, if method == "GET" { "" } else { "{}" }).await;
    assert!(String::from_utf8_lossy(told.body()).contains(&path), "{nth}: {told:?}");
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_is_nobodys() {
    let (peer, stage) = scene().await;
    let mut asker = Asker::new(Tongue::Http11, stage.address());
    for nth in 0..200 {
        next_one_is_served(&mut asker, if nth % 2 == 0 { "POST" } else { "GET" }, nth).await;
        // The next request comes at once: the connection has hardly been idle.
        peer.say_unasked(&json(&format!("{{\"errcode\":0,\"{STRAY}\":{nth}}}"))).await;
    }
    assert_eq!(peer.heard().len(), 200, "each went out once");
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_is_nobodys_among_many_callers() {
    let (peer, stage) = scene().await;
    let stray = json(&format!("{{\"errcode\":0,\"{STRAY}\":0}}"));
    for round in 0..20 {
        let mut askers: Vec<_> = (0..8).map(|_| Asker::new(Tongue::Http11, stage.address())).collect();
        for nth in 0..2 {
            let calls = askers.iter_mut().enumerate();
            let calls =
                calls.map(|(of, asker)| next_one_is_served(asker, "POST", (round * 2 + nth) * 8 + of));
            side_by_side(calls).await;
            peer.say_unasked(&stray).await;
        }
    }
    assert_eq!(peer.heard().len(), 20 * 2 * 8, "each went out once");
}

#[tokio::test]
async fn a_connection_that_closes_between_two_requests_costs_neither() {
    let (peer, stage) = scene().await;
    let mut asker = Asker::new(Tongue::Http11, stage.address());
    let answer = json("{\"errcode\":0}");
    for close in [Step::Close, Step::Reset] {
        for nth in 0..40 {
            peer.plays(vec![Step::Say(answer.clone()), close.clone()]);
            assert_eq!(asker.ask("GET", CASE, "").await.to_string(), "200");
            // The one that gettoken took is open still.
            peer.has_open(1).await;
            next_one_is_served(&mut asker, if nth % 2 == 0 { "POST" } else { "GET" }, nth).await;
        }
        assert_eq!(peer.heard().len(), 80, "each went out once, {close:?}");
    }
}

#[tokio::test]
async fn what_is_closed_just_as_a_request_is_sent_is_sent_again_where_it_may_be() {
    let (peer, stage) = scene().await;
    let mut asker = Asker::new(Tongue::Http11, stage.address());
    let well = vec![Step::TakeBody, Step::Say(json("{\"errcode\":0}"))];
    for (method, told, heard) in [
        ("GET", "200", 2),
        ("HEAD", "200", 2),
        ("PUT", "200", 2),
        ("DELETE", "200", 2),
        ("OPTIONS", "200", 2),
        ("POST", "502 upstream-broke", 1),
        ("PATCH", "502 upstream-broke", 1),
    ] {
        for close in [Step::Close, Step::Reset] {
            for body in [0, 100, 300_000] {
                next_one_is_served(&mut asker, "GET", 0).await;
                peer.heard();
                peer.plays_two(vec![close.clone()], well.clone());
                let name = format!("{method}, {close:?}, {body} bytes");
                assert_eq!(asker.ask(method, CASE, vec![b'x'; body]).await.to_string(), told, "{name}");
                let mut came = peer.heard();
                assert_eq!(came.len(), heard, "{name}");
                came.dedup();
                assert_eq!(came.len(), 1, "{name}: what went out again is another request");
            }
        }
    }
}

#[tokio::test]
async fn what_fails_on_a_fresh_connection_is_not_sent_again() {
    for close in [Step::Close, Step::Reset] {
        let (peer, stage) = scene().await;
        peer.plays(vec![close]);
        let mut asker = Asker::new(Tongue::Http11, stage.address());
        for _ in 0..3 {
            assert_eq!(asker.ask("GET", CASE, "").await.to_string(), "502 upstream-broke");
            assert_eq!(peer.heard().len(), 1);
        }
    }
}

#[tokio::test]
async fn what_idles_too_long_is_closed_by_us() {
    let peer = Peer::new().await;
    let toml = OPEN.replace("[admin]", "idle_timeout = \"2s\"\n[admin]");
    let stage = Stage::facing(peer.address, &toml).await;
    let mut asker = Asker::new(Tongue::Http11, stage.address());
    next_one_is_served(&mut asker, "GET", 0).await;
    peer.has_open(0).await;
    next_one_is_served(&mut asker, "POST", 1).await;
}
