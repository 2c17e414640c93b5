//! A body in DATA frames of one byte, each of which uses far more memory than its data.

use tokio::net::TcpListener;

use super::http2_frames::{
    DATA, END_HEADERS, END_STREAM, FrameClient, HEADERS, PREFACE, SETTINGS, StreamEnd, encode_frame,
    encode_header,
};
use crate::{
    harness::{CONFIG_WITH_CLIENTS, TestProxy, USER_GET},
    token_refresh_http2::{config_with_ca, http2_server_config},
};

const FRAMES: usize = 60_000;
/// The error code of the GOAWAY frame (RFC 9113, section 7).
const ENHANCE_YOUR_CALM: u32 = 11;

/// A POST on this stream with [`FRAMES`] frames of one byte, without END_STREAM.
fn small_frames(stream: u32) -> Vec<u8> {
    let path = format!("/hr{USER_GET}");
    let headers = [(":method", "POST"), (":scheme", "http"), (":path", &path), (":authority", "proxy.test")];
    let block: Vec<u8> = headers.iter().flat_map(|(name, value)| encode_header(name, value)).collect();
    [encode_frame(HEADERS, END_HEADERS, stream, block), encode_frame(DATA, 0, stream, "x").repeat(FRAMES)]
        .concat()
}

#[tokio::test]
async fn a_body_that_waits_for_the_upstream_has_a_bound() {
    // The upstream accepts the connection and sends nothing, so that the proxy reads nothing of the body.
    let (_server, dir) = http2_server_config();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let proxy =
        TestProxy::start_with_upstream(listener.local_addr().expect("an address"), &config_with_ca(&dir))
            .await;
    let mut client = FrameClient::connect(proxy.address()).await;
    client.send([PREFACE, &encode_frame(SETTINGS, 0, 0, ""), &small_frames(1)].concat()).await;
    assert_eq!(client.stream_end(1).await, StreamEnd::GoAway(ENHANCE_YOUR_CALM));
}

#[tokio::test]
async fn the_body_of_a_refused_request_is_not_kept() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = FrameClient::connect(proxy.address()).await;
    client.send([PREFACE, &encode_frame(SETTINGS, 0, 0, ""), &small_frames(1)].concat()).await;
    assert_eq!(client.stream_end(1).await, StreamEnd::Refused);
    client.send(encode_frame(DATA, END_STREAM, 1, "x")).await;
}
