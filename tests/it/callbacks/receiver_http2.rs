//! Messages over HTTP/2, whose signature is verified only when their body is complete.

use super::{config, console, event, push};
use crate::harness::{
    TestProxy,
    http2_frames::{
        DATA, END_HEADERS, END_STREAM, FrameClient, HEADERS, PREFACE, RST_STREAM, SETTINGS, encode_frame,
        encode_header,
    },
};

/// Flag of frames with padding (RFC 9113 §6.1).
const PADDED: u8 = 8;
/// The status 200 as HPACK encodes it.
const STATUS_200: u8 = 0x88;

/// The head of a message.
fn head(stream: u32, query: &str) -> Vec<u8> {
    let path = format!("/callbacks/hr?{query}");
    let headers = [(":method", "POST"), (":scheme", "http"), (":path", &path), (":authority", "proxy.test")];
    let block: Vec<u8> = headers.iter().flat_map(|(name, value)| encode_header(name, value)).collect();
    encode_frame(HEADERS, END_HEADERS, stream, block)
}

async fn connect(proxy: &TestProxy) -> FrameClient {
    let mut client = FrameClient::connect(proxy.address()).await;
    client.send([PREFACE, &encode_frame(SETTINGS, 0, 0, "")].concat()).await;
    client
}

#[tokio::test]
async fn message_in_large_frames_is_received() {
    let proxy = TestProxy::start_with_config(&config("")).await;
    let message =
        event("change_contact", 1).replacen("<xml>", &format!("<xml><!--{}-->", "y".repeat(30_000)), 1);
    let (query, body) = console(&proxy).encrypted_push(message.as_bytes(), false);
    let padded =
        |part: &[u8], flags| encode_frame(DATA, PADDED | flags, 1, [&[200], part, &[0; 200]].concat());
    let (first, rest) = body.as_bytes().split_at(16_000);
    let (second, last) = rest.split_at(16_000);
    let frames = [
        head(1, &query),
        padded(first, 0),
        encode_frame(0x77, 0, 0, [b'u'; 9_000]),
        encode_frame(DATA, 0, 1, second),
        padded(last, END_STREAM),
    ];
    let mut client = connect(&proxy).await;
    // What is read at once ends anywhere.
    for part in frames.concat().chunks(1_237) {
        client.send(part.to_vec()).await;
        tokio::task::yield_now().await;
    }
    let received = client.read_until(|frame| [HEADERS, RST_STREAM].contains(&frame.kind)).await;
    assert!(received.last().is_some_and(|frame| frame.payload[0] == STATUS_200), "{received:?}");
}

/// Without a verified signature few messages of a connection are received at the same time.
#[tokio::test]
async fn incomplete_messages_of_a_connection_are_bounded() {
    let proxy = TestProxy::start_with_config(&config("")).await;
    let mut client = connect(&proxy).await;
    let incomplete = |stream| {
        let data = encode_frame(DATA, 0, stream, [b'x'; 3_000]);
        [head(stream, "timestamp=1"), data].concat()
    };
    let frames: Vec<u8> = (0..30).flat_map(|nth| incomplete(2 * nth + 1)).collect();
    client.send(frames).await;
    // On most of them h2 also reports that the stream is closed.
    let mut refused = 0;
    client
        .read_until(|frame| {
            refused += u32::from(frame.kind == RST_STREAM && frame.payload == [0, 0, 0, 7]);
            refused == 26
        })
        .await;
    // The first ones are still received.
    client.send(encode_frame(DATA, END_STREAM, 1, "x")).await;
    let received = client.read_until(|frame| frame.kind == HEADERS && frame.stream == 1).await;
    assert!(received.iter().all(|frame| frame.kind != HEADERS || frame.stream == 1), "{received:?}");
    assert_eq!(push(&proxy, &event("change_contact", 1)).await.status, 200);
}
