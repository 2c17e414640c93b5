//! An upstream that answers before the upload has ended.

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

/// More than the sockets on the way hold.
const LARGE_BODY_BYTES: usize = 12 << 20;
/// They hold this.
const SMALL_BODY_BYTES: usize = 100_000;

struct EarlyCase {
    response: Vec<u8>,
    expected: &'static str,
    /// How often the request reaches the upstream.
    upstream_requests: usize,
}

fn cases() -> Vec<EarlyCase> {
    let case = |said: &[u8], told, heard| EarlyCase {
        response: said.to_vec(),
        expected: told,
        upstream_requests: heard,
    };
    let too_large = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nlarge";
    vec![
        case(&json_response("{\"errcode\":0}"), "200", 1),
        case(too_large, "413", 1),
        case(&json_response("{\"errcode\":45001,\"errmsg\":\"media size out of limit\"}"), "200", 1),
        // The second attempt is taken, and judged, to its end.
        case(&json_response("{\"errcode\":40014,\"errmsg\":\"invalid access_token\"}"), "200 retried", 2),
    ]
}

async fn run_cases(tongue: ClientProtocol) {
    let peer = ScriptedUpstream::new().await;
    let bounds = "max_in_flight = 1\nresponse_timeout = \"20s\"\n[replay]\nmemory = \"1MiB\"\n[admin]";
    let stage = TestProxy::start_with_upstream(peer.address, &OPEN_CONFIG.replace("[admin]", bounds)).await;
    let well = vec![Step::ReadBody, Step::Send(json_response("{\"errcode\":0}"))];
    // An upstream that reads no more after its answer is left; one that reads on may be asked again, and has
    // to answer then.
    for (length, then) in [
        (SMALL_BODY_BYTES, Step::ReadBody),
        (LARGE_BODY_BYTES, Step::ReadBody),
        (LARGE_BODY_BYTES, Step::Hang),
    ] {
        for EarlyCase { response: said, expected: told, upstream_requests: heard } in cases() {
            let name = format!("{tongue:?}, {length}, {:?}, then {then:?}", String::from_utf8_lossy(&said));
            peer.take_request_lines();
            peer.set_steps_once_then(vec![Step::Send(said), then.clone()], well.clone());
            // A connection on which a request was not taken to its end is closed.
            let mut asker = ProtocolClient::new(tongue, stage.address());
            assert_eq!(asker.request("PUT", CASE_PATH, vec![b'x'; length]).await.to_string(), told, "{name}");
            assert_eq!(peer.take_request_lines().len(), heard, "{name}");
            let next =
                ProtocolClient::new(tongue, stage.address()).request("POST", "/cgi-bin/next/1?", "{}").await;
            let shown = String::from_utf8_lossy(next.body());
            assert!(shown.contains("/cgi-bin/next/1?"), "{name}: {next:?}");
            let heard = peer.take_request_lines();
            assert!(heard.len() == 1 && heard[0].starts_with("POST /cgi-bin/next/1?"), "{name}: {heard:?}");
        }
    }
    let shelf = stage.app.replay_budget();
    crate::harness::wait_for("an empty shelf", async || shelf.memory_used() + shelf.disk_used() == 0).await;
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
    for tongue in [ClientProtocol::Http11, ClientProtocol::Http2] {
        let (stage, _authority) = UpstreamProtocol::Http2.start_proxy("", "max_in_flight = 1").await;
        let asker = || ProtocolClient::new(tongue, stage.address());
        assert_eq!(asker().request("GET", USER_GET, "").await.to_string(), "200");
        stage.wecom.inject(Fault::errcode(45009).on_path(ECHO).times(1)).expect("a fault");
        let told = asker().request("POST", ECHO, vec![b'x'; LARGE_BODY_BYTES]).await;
        assert!(String::from_utf8_lossy(told.body()).contains("45009"), "{tongue:?}: {told:?}");
        stage.wecom.inject(Fault::status(413).on_path(ECHO).times(1)).expect("a fault");
        let told = asker().request("POST", ECHO, vec![b'x'; LARGE_BODY_BYTES]).await;
        assert_eq!(told.to_string(), "413", "{tongue:?}");
        assert_eq!(asker().request("POST", ECHO, "{}").await.to_string(), "200", "{tongue:?}");
    }
}

#[tokio::test]
async fn early_response_of_an_http2_upstream_closes_the_connection() {
    let (stage, _authority) = UpstreamProtocol::Http2.start_proxy("", "max_in_flight = 1").await;
    assert_eq!(stage.get(USER_GET).await.status, 200);
    stage.wecom.inject(Fault::errcode(45009).on_path(ECHO).times(1)).expect("a fault");
    let mut line = RawConnection::connect(stage.address()).await;
    let half = "x".repeat(SMALL_BODY_BYTES / 2);
    line.send(format!(
        "POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nContent-Length: {SMALL_BODY_BYTES}\r\n\r\n{half}"
    ))
    .await
    .expect("half");
    let (head, body) = line.read_response().await;
    assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    assert!(body.contains("45009"), "{body}");
    line.send(half).await.expect("a client that takes no notice");
    let (more, end) = line.read_to_end().await;
    assert!(more.is_empty() && end.is_ok(), "{end:?}: {}", String::from_utf8_lossy(&more));
}
