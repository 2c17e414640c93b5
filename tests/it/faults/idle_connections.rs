//! An idle upstream connection that closes, or receives an unsolicited response, between two requests.

use super::{
    clients::{ClientProtocol, ProtocolClient},
    run_concurrently,
    scripted_upstream::{CASE_PATH, ScriptedUpstream, Step, json_response},
};
use crate::harness::{OPEN_CONFIG, TestProxy};

/// A member of the JSON in unsolicited responses.
const STRAY_KEY: &str = "stray";

async fn start_proxy() -> (ScriptedUpstream, TestProxy) {
    let upstream = ScriptedUpstream::new().await;
    let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
    (upstream, proxy)
}

/// Sends a request whose response contains its path, which identifies it.
async fn assert_next_request_served(client: &mut ProtocolClient, method: &str, index: usize) {
    let path = format!("/cgi-bin/next/{index}?");
    let outcome = client.request(method, &path, if method == "GET" { "" } else { "{}" }).await;
    assert!(String::from_utf8_lossy(outcome.body()).contains(&path), "{index}: {outcome:?}");
}

#[tokio::test]
async fn unsolicited_response_reaches_no_client() {
    let (upstream, proxy) = start_proxy().await;
    let mut client = ProtocolClient::new(ClientProtocol::Http11, proxy.address());
    for index in 0..200 {
        assert_next_request_served(&mut client, if index % 2 == 0 { "POST" } else { "GET" }, index).await;
        // The next request follows at once, while the connection is hardly idle.
        upstream
            .send_unsolicited(&json_response(&format!("{{\"errcode\":0,\"{STRAY_KEY}\":{index}}}")))
            .await;
    }
    assert_eq!(upstream.take_request_lines().len(), 200, "each was sent once");
}

#[tokio::test]
async fn unsolicited_response_reaches_none_of_many_clients() {
    let (upstream, proxy) = start_proxy().await;
    let stray = json_response(&format!("{{\"errcode\":0,\"{STRAY_KEY}\":0}}"));
    for round in 0..20 {
        let mut clients: Vec<_> =
            (0..8).map(|_| ProtocolClient::new(ClientProtocol::Http11, proxy.address())).collect();
        for index in 0..2 {
            let calls = clients.iter_mut().enumerate();
            let calls = calls.map(|(client_index, client)| {
                assert_next_request_served(client, "POST", (round * 2 + index) * 8 + client_index)
            });
            run_concurrently(calls).await;
            upstream.send_unsolicited(&stray).await;
        }
    }
    assert_eq!(upstream.take_request_lines().len(), 20 * 2 * 8, "each was sent once");
}

#[tokio::test]
async fn upstream_close_between_requests_costs_no_request() {
    let (upstream, proxy) = start_proxy().await;
    let mut client = ProtocolClient::new(ClientProtocol::Http11, proxy.address());
    let response = json_response("{\"errcode\":0}");
    for close in [Step::Close, Step::Reset] {
        for index in 0..40 {
            upstream.set_steps(vec![Step::Send(response.clone()), close.clone()]);
            assert_eq!(client.request("GET", CASE_PATH, "").await.to_string(), "200");
            // The connection of the gettoken call is still open.
            upstream.wait_for_open_connections(1).await;
            assert_next_request_served(&mut client, if index % 2 == 0 { "POST" } else { "GET" }, index).await;
        }
        assert_eq!(upstream.take_request_lines().len(), 80, "each was sent once, {close:?}");
    }
}

#[tokio::test]
async fn request_on_a_closing_connection_is_retried_if_idempotent() {
    let (upstream, proxy) = start_proxy().await;
    let mut client = ProtocolClient::new(ClientProtocol::Http11, proxy.address());
    let success_steps = vec![Step::ReadBody, Step::Send(json_response("{\"errcode\":0}"))];
    for (method, expected, attempts) in [
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
                assert_next_request_served(&mut client, "GET", 0).await;
                upstream.take_request_lines();
                upstream.set_steps_once_then(vec![close.clone()], success_steps.clone());
                let name = format!("{method}, {close:?}, {body} bytes");
                assert_eq!(
                    client.request(method, CASE_PATH, vec![b'x'; body]).await.to_string(),
                    expected,
                    "{name}"
                );
                let mut request_lines = upstream.take_request_lines();
                assert_eq!(request_lines.len(), attempts, "{name}");
                request_lines.dedup();
                assert_eq!(request_lines.len(), 1, "{name}: the retry is another request");
            }
        }
    }
}

#[tokio::test]
async fn request_failed_on_a_new_connection_is_not_retried() {
    for close in [Step::Close, Step::Reset] {
        let (upstream, proxy) = start_proxy().await;
        upstream.set_steps(vec![close]);
        let mut client = ProtocolClient::new(ClientProtocol::Http11, proxy.address());
        for _ in 0..3 {
            assert_eq!(client.request("GET", CASE_PATH, "").await.to_string(), "502 upstream-broke");
            assert_eq!(upstream.take_request_lines().len(), 1);
        }
    }
}

#[tokio::test]
async fn idle_upstream_connection_is_closed() {
    let upstream = ScriptedUpstream::new().await;
    let toml = OPEN_CONFIG.replace("[admin]", "idle_timeout = \"2s\"\n[admin]");
    let proxy = TestProxy::start_with_upstream(upstream.address, &toml).await;
    let mut client = ProtocolClient::new(ClientProtocol::Http11, proxy.address());
    assert_next_request_served(&mut client, "GET", 0).await;
    upstream.wait_for_open_connections(0).await;
    assert_next_request_served(&mut client, "POST", 1).await;
}
