//! A kept connection to the upstream that closes, or brings what nobody asked for, between two requests.

use super::{
    clients::{ClientProtocol, ProtocolClient},
    run_concurrently,
    scripted_upstream::{CASE_PATH, ScriptedUpstream, Step, json_response},
};
use crate::harness::{OPEN_CONFIG, TestProxy};

/// What stands in an answer that nobody asked for.
const STRAY_KEY: &str = "stray";

async fn start_proxy() -> (ScriptedUpstream, TestProxy) {
    let peer = ScriptedUpstream::new().await;
    let stage = TestProxy::start_with_upstream(peer.address, OPEN_CONFIG).await;
    (peer, stage)
}

/// Asks for something that only this request can be the answer to.
async fn assert_next_request_served(asker: &mut ProtocolClient, method: &str, nth: usize) {
    let path = format!("/cgi-bin/next/{nth}?");
    let told = asker.request(method, &path, if method == "GET" { "" } else { "{}" }).await;
    assert!(String::from_utf8_lossy(told.body()).contains(&path), "{nth}: {told:?}");
}

#[tokio::test]
async fn unsolicited_response_reaches_no_client() {
    let (peer, stage) = start_proxy().await;
    let mut asker = ProtocolClient::new(ClientProtocol::Http11, stage.address());
    for nth in 0..200 {
        assert_next_request_served(&mut asker, if nth % 2 == 0 { "POST" } else { "GET" }, nth).await;
        // The next request comes at once: the connection has hardly been idle.
        peer.send_unsolicited(&json_response(&format!("{{\"errcode\":0,\"{STRAY_KEY}\":{nth}}}"))).await;
    }
    assert_eq!(peer.take_request_lines().len(), 200, "each went out once");
}

#[tokio::test]
async fn unsolicited_response_reaches_none_of_many_clients() {
    let (peer, stage) = start_proxy().await;
    let stray = json_response(&format!("{{\"errcode\":0,\"{STRAY_KEY}\":0}}"));
    for round in 0..20 {
        let mut askers: Vec<_> =
            (0..8).map(|_| ProtocolClient::new(ClientProtocol::Http11, stage.address())).collect();
        for nth in 0..2 {
            let calls = askers.iter_mut().enumerate();
            let calls = calls
                .map(|(of, asker)| assert_next_request_served(asker, "POST", (round * 2 + nth) * 8 + of));
            run_concurrently(calls).await;
            peer.send_unsolicited(&stray).await;
        }
    }
    assert_eq!(peer.take_request_lines().len(), 20 * 2 * 8, "each went out once");
}

#[tokio::test]
async fn upstream_close_between_requests_costs_no_request() {
    let (peer, stage) = start_proxy().await;
    let mut asker = ProtocolClient::new(ClientProtocol::Http11, stage.address());
    let answer = json_response("{\"errcode\":0}");
    for close in [Step::Close, Step::Reset] {
        for nth in 0..40 {
            peer.set_steps(vec![Step::Send(answer.clone()), close.clone()]);
            assert_eq!(asker.request("GET", CASE_PATH, "").await.to_string(), "200");
            // The one that gettoken took is open still.
            peer.wait_for_open_connections(1).await;
            assert_next_request_served(&mut asker, if nth % 2 == 0 { "POST" } else { "GET" }, nth).await;
        }
        assert_eq!(peer.take_request_lines().len(), 80, "each went out once, {close:?}");
    }
}

#[tokio::test]
async fn request_on_a_closing_connection_is_retried_if_idempotent() {
    let (peer, stage) = start_proxy().await;
    let mut asker = ProtocolClient::new(ClientProtocol::Http11, stage.address());
    let well = vec![Step::ReadBody, Step::Send(json_response("{\"errcode\":0}"))];
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
                assert_next_request_served(&mut asker, "GET", 0).await;
                peer.take_request_lines();
                peer.set_steps_once_then(vec![close.clone()], well.clone());
                let name = format!("{method}, {close:?}, {body} bytes");
                assert_eq!(
                    asker.request(method, CASE_PATH, vec![b'x'; body]).await.to_string(),
                    told,
                    "{name}"
                );
                let mut came = peer.take_request_lines();
                assert_eq!(came.len(), heard, "{name}");
                came.dedup();
                assert_eq!(came.len(), 1, "{name}: what went out again is another request");
            }
        }
    }
}

#[tokio::test]
async fn request_failed_on_a_new_connection_is_not_retried() {
    for close in [Step::Close, Step::Reset] {
        let (peer, stage) = start_proxy().await;
        peer.set_steps(vec![close]);
        let mut asker = ProtocolClient::new(ClientProtocol::Http11, stage.address());
        for _ in 0..3 {
            assert_eq!(asker.request("GET", CASE_PATH, "").await.to_string(), "502 upstream-broke");
            assert_eq!(peer.take_request_lines().len(), 1);
        }
    }
}

#[tokio::test]
async fn idle_upstream_connection_is_closed() {
    let peer = ScriptedUpstream::new().await;
    let toml = OPEN_CONFIG.replace("[admin]", "idle_timeout = \"2s\"\n[admin]");
    let stage = TestProxy::start_with_upstream(peer.address, &toml).await;
    let mut asker = ProtocolClient::new(ClientProtocol::Http11, stage.address());
    assert_next_request_served(&mut asker, "GET", 0).await;
    peer.wait_for_open_connections(0).await;
    assert_next_request_served(&mut asker, "POST", 1).await;
}
