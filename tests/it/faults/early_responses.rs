//! An upstream that responds before the upload is complete.

use super::{
    UpstreamProtocol,
    clients::{ClientProtocol, ProtocolClient},
    scripted_upstream::{CASE_PATH, ScriptedUpstream, Step, json_response},
};
use crate::{
    harness::{ECHO, OPEN_CONFIG, TestProxy, USER_GET},
    raw_http::RawConnection,
};
use wecom_proxy::simulator::Fault;

/// More than the socket buffers on the path hold.
const LARGE_BODY_BYTES: usize = 12 << 20;
/// Less than the socket buffers on the path hold.
const SMALL_BODY_BYTES: usize = 100_000;

struct EarlyCase {
    response: Vec<u8>,
    expected: &'static str,
    /// Number of attempts that reach the upstream.
    upstream_requests: usize,
}

fn cases() -> Vec<EarlyCase> {
    let case = |response: &[u8], expected, upstream_requests| EarlyCase {
        response: response.to_vec(),
        expected,
        upstream_requests,
    };
    let too_large = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nlarge";
    vec![
        case(&json_response("{\"errcode\":0}"), "200", 1),
        case(too_large, "413", 1),
        case(&json_response("{\"errcode\":45001,\"errmsg\":\"media size out of limit\"}"), "200", 1),
        // The response to the second attempt is final.
        case(&json_response("{\"errcode\":40014,\"errmsg\":\"invalid access_token\"}"), "200 retried", 2),
    ]
}

async fn run_cases(client_protocol: ClientProtocol) {
    let upstream = ScriptedUpstream::new().await;
    let settings = "max_in_flight = 1\nresponse_timeout = \"20s\"\n[replay]\nmemory = \"1MiB\"\n[admin]";
    let proxy =
        TestProxy::start_with_upstream(upstream.address, &OPEN_CONFIG.replace("[admin]", settings)).await;
    let success_steps = vec![Step::ReadBody, Step::Send(json_response("{\"errcode\":0}"))];
    // The connection of an upstream that stops reading after its response is closed; one that reads on may get the
    // next request, and must respond to it.
    for (length, next_step) in [
        (SMALL_BODY_BYTES, Step::ReadBody),
        (LARGE_BODY_BYTES, Step::ReadBody),
        (LARGE_BODY_BYTES, Step::Hang),
    ] {
        for EarlyCase { response, expected, upstream_requests } in cases() {
            let name = format!(
                "{client_protocol:?}, {length}, {:?}, then {next_step:?}",
                String::from_utf8_lossy(&response)
            );
            upstream.take_request_lines();
            upstream
                .set_steps_once_then(vec![Step::Send(response), next_step.clone()], success_steps.clone());
            // A connection whose request was not read to its end is closed.
            let mut client = ProtocolClient::new(client_protocol, proxy.address());
            assert_eq!(
                client.request("PUT", CASE_PATH, vec![b'x'; length]).await.to_string(),
                expected,
                "{name}"
            );
            assert_eq!(upstream.take_request_lines().len(), upstream_requests, "{name}");
            let next = ProtocolClient::new(client_protocol, proxy.address())
                .request("POST", "/cgi-bin/next/1?", "{}")
                .await;
            let body = String::from_utf8_lossy(next.body());
            assert!(body.contains("/cgi-bin/next/1?"), "{name}: {next:?}");
            let request_lines = upstream.take_request_lines();
            assert!(
                request_lines.len() == 1 && request_lines[0].starts_with("POST /cgi-bin/next/1?"),
                "{name}: {request_lines:?}"
            );
        }
    }
    let budget = proxy.app.replay_budget();
    crate::harness::wait_for("a released replay budget", async || {
        budget.memory_used() + budget.disk_used() == 0
    })
    .await;
}

#[tokio::test]
async fn early_response_reaches_an_http11_client() {
    run_cases(ClientProtocol::Http11).await;
}

#[tokio::test]
async fn early_response_reaches_an_http2_client() {
    run_cases(ClientProtocol::Http2).await;
}

#[tokio::test]
async fn early_response_of_an_http2_upstream_reaches_the_client() {
    for client_protocol in [ClientProtocol::Http11, ClientProtocol::Http2] {
        let (proxy, _authority) = UpstreamProtocol::Http2.start_proxy("", "max_in_flight = 1").await;
        let client = || ProtocolClient::new(client_protocol, proxy.address());
        assert_eq!(client().request("GET", USER_GET, "").await.to_string(), "200");
        proxy.wecom.inject(Fault::errcode(45009).on_path(ECHO).times(1)).expect("a fault");
        let outcome = client().request("POST", ECHO, vec![b'x'; LARGE_BODY_BYTES]).await;
        assert!(
            String::from_utf8_lossy(outcome.body()).contains("45009"),
            "{client_protocol:?}: {outcome:?}"
        );
        proxy.wecom.inject(Fault::status(413).on_path(ECHO).times(1)).expect("a fault");
        let outcome = client().request("POST", ECHO, vec![b'x'; LARGE_BODY_BYTES]).await;
        assert_eq!(outcome.to_string(), "413", "{client_protocol:?}");
        assert_eq!(client().request("POST", ECHO, "{}").await.to_string(), "200", "{client_protocol:?}");
    }
}

#[tokio::test]
async fn early_response_of_an_http2_upstream_closes_the_connection() {
    let (proxy, _authority) = UpstreamProtocol::Http2.start_proxy("", "max_in_flight = 1").await;
    assert_eq!(proxy.get(USER_GET).await.status, 200);
    proxy.wecom.inject(Fault::errcode(45009).on_path(ECHO).times(1)).expect("a fault");
    let mut connection = RawConnection::connect(proxy.address()).await;
    let half = "x".repeat(SMALL_BODY_BYTES / 2);
    connection
        .send(format!(
            "POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nContent-Length: {SMALL_BODY_BYTES}\r\n\r\n{half}"
        ))
        .await
        .expect("half of the body");
    let (head, body) = connection.read_response().await;
    assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    assert!(body.contains("45009"), "{body}");
    connection.send(half).await.expect("sent after the response");
    let (rest, end) = connection.read_to_end().await;
    assert!(rest.is_empty() && end.is_ok(), "{end:?}: {}", String::from_utf8_lossy(&rest));
}
