//! HTTP/2 streams in unusual states: an interim response, a window of one byte, a large head.

use std::time::Duration;

use tokio::time::Instant;

use super::http2_frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, FrameClient, GOAWAY, HEADERS, PING, PREFACE,
    RST_STREAM, SETTINGS, encode_frame, encode_header, encode_setting,
};
use crate::harness::{CONFIG_WITH_CLIENTS, ECHO, TestProxy, USER_GET, client_key};

/// The status 100 as h2 encodes it: with Huffman coding, of length 2.
const CONTINUE_STATUS: [u8; 3] = [0x82, 0x08, 0x01];

/// The HEADERS frames of a request, with CONTINUATION where they are needed.
fn head_frames(method: &str, path: &str, flags: u8, extra: &[(&str, &str)]) -> Vec<u8> {
    let path = format!("/hr{path}");
    let headers = [(":method", method), (":scheme", "http"), (":path", &path), (":authority", "proxy.test")];
    let block: Vec<u8> =
        headers.iter().chain(extra).flat_map(|(name, value)| encode_header(name, value)).collect();
    let mut fragments = block.chunks(16_000).enumerate().peekable();
    let mut frames = Vec::new();
    while let Some((nth, fragment)) = fragments.next() {
        let end = if fragments.peek().is_none() { END_HEADERS } else { 0 };
        let (kind, flags) = if nth == 0 { (HEADERS, end | flags) } else { (CONTINUATION, end) };
        frames.extend(encode_frame(kind, flags, 1, fragment));
    }
    frames
}

async fn connect(proxy: &TestProxy, settings: &[u8]) -> FrameClient {
    let mut client = FrameClient::connect(proxy.address()).await;
    client.send([PREFACE, &encode_frame(SETTINGS, 0, 0, settings)].concat()).await;
    client
}

fn is_interim(frame: &Frame) -> bool {
    frame.kind == HEADERS && frame.payload.windows(3).any(|bytes| bytes == CONTINUE_STATUS)
}

fn is_end(frame: &Frame) -> bool {
    frame.stream == 1 && frame.flags & END_STREAM > 0 && matches!(frame.kind, HEADERS | DATA)
}

#[tokio::test]
async fn expected_continue_comes_before_the_body() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let key = client_key("billing");
    let mut client = connect(&proxy, &[]).await;
    let extra = [("x-api-key", &*key), ("content-length", "5"), ("expect", "100-continue")];
    client.send(head_frames("POST", ECHO, 0, &extra)).await;
    // The client sends its body only when it is asked for it.
    let frames = client.read_until(is_interim).await;
    let last = frames.last().expect("a frame");
    assert!(is_interim(last) && last.stream == 1 && last.flags == END_HEADERS, "{frames:?}");
    client.send(encode_frame(DATA, END_STREAM, 1, "hello")).await;
    let frames = client.read_until(is_end).await;
    let heads: Vec<_> = frames.iter().filter(|frame| frame.kind == HEADERS).collect();
    assert_eq!((heads.len(), heads[0].payload[0]), (1, 0x88), "{frames:?}");
    assert_eq!(proxy.wecom.executed_count(ECHO), 1);
}

#[tokio::test]
async fn continue_is_not_sent_for_nothing() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let key = client_key("billing");
    let expect = ("expect", "100-continue");
    // Refused before its body is read; a body that is there already; a client that does not ask.
    for (extra, body) in [
        (vec![("content-length", "5"), expect], ""),
        (vec![("x-api-key", &*key), ("content-length", "5"), expect], "hello"),
        (vec![("x-api-key", &*key), ("content-length", "5")], "hello"),
    ] {
        let mut client = connect(&proxy, &[]).await;
        let mut bytes = head_frames("POST", ECHO, 0, &extra);
        if !body.is_empty() {
            bytes.extend(encode_frame(DATA, END_STREAM, 1, body));
        }
        client.send(bytes).await;
        let frames = client.read_until(is_end).await;
        assert_eq!(frames.iter().filter(|frame| frame.kind == HEADERS).count(), 1, "{frames:?}");
        assert!(!frames.iter().any(is_interim), "{frames:?}");
    }
}

#[tokio::test]
async fn head_just_below_64_kib_is_served() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let (key, large) = (client_key("billing"), "y".repeat(64_700));
    let frames = head_frames("GET", USER_GET, END_STREAM, &[("x-api-key", &key), ("x-large", &large)]);
    // As the first frame after the SETTINGS, and behind a PING, after which h2 takes part.
    for before in [Vec::new(), encode_frame(PING, 0, 0, [1; 8])] {
        let mut client = connect(&proxy, &[]).await;
        client.send([before, frames.clone()].concat()).await;
        let frames = client.read_until(is_end).await;
        assert!(frames.iter().any(|frame| frame.kind == HEADERS && frame.payload[0] == 0x88), "{frames:?}");
    }
}

#[tokio::test]
async fn stream_with_a_window_of_one_byte_is_reset_quickly() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let start = Instant::now();
    let mut client = connect(&proxy, &encode_setting(4, 1)).await;
    client.send(head_frames("GET", USER_GET, END_STREAM, &[])).await;
    let frames = client.read_until(|frame| frame.kind == RST_STREAM).await;
    let received: usize =
        frames.iter().filter(|frame| frame.kind == DATA).map(|frame| frame.payload.len()).sum();
    assert!(received == 1 && frames.last().is_some_and(|frame| frame.stream == 1), "{frames:?}");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}, as long as body_timeout", start.elapsed());
}

#[tokio::test]
async fn control_frames_without_a_key_end_the_connection() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = connect(&proxy, &[]).await;
    client.send(encode_frame(PING, 0, 0, [1; 8]).repeat(400)).await;
    let frames = client.read_until(|_| false).await;
    let acknowledged = frames.iter().filter(|frame| frame.kind == PING).count();
    assert!(frames.iter().any(|frame| frame.kind == GOAWAY) && acknowledged < 300, "{acknowledged}");
}
