//! A body in DATA frames of one byte, each of which takes far more memory than it has data.

use tokio::net::TcpListener;

use super::frames::{Client, DATA, END_HEADERS, END_STREAM, End, HEADERS, PREFACE, SETTINGS, field, frame};
use crate::{
    refresh_http2::{certified, trusting},
    stage::{KEYED, Stage, USER_GET},
};

const FRAMES: usize = 60_000;
/// The code of GOAWAY with which the connection ends: ENHANCE_YOUR_CALM.
const TOO_MUCH: u32 = 11;

/// A POST on this stream with so many frames of one byte, and no end.
fn crumbs(stream: u32) -> Vec<u8> {
    let path = format!("/hr{USER_GET}");
    let fields = [(":method", "POST"), (":scheme", "http"), (":path", &path), (":authority", "proxy.test")];
    let block: Vec<u8> = fields.iter().flat_map(|(name, value)| field(name, value)).collect();
    [frame(HEADERS, END_HEADERS, stream, block), frame(DATA, 0, stream, "x").repeat(FRAMES)].concat()
}

#[tokio::test]
async fn a_body_that_waits_for_the_upstream_has_a_bound() {
    // The upstream takes the connection and says nothing, so that nothing of the body is taken.
    let (_server, dir) = certified();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let stage = Stage::facing(listener.local_addr().expect("an address"), &trusting(&dir)).await;
    let mut client = Client::to(stage.address()).await;
    client.say([PREFACE, &frame(SETTINGS, 0, 0, ""), &crumbs(1)].concat()).await;
    assert_eq!(client.end(1).await, End::Away(TOO_MUCH));
}

#[tokio::test]
async fn the_body_of_a_refused_request_is_not_kept() {
    let stage = Stage::with(KEYED).await;
    let mut client = Client::to(stage.address()).await;
    client.say([PREFACE, &frame(SETTINGS, 0, 0, ""), &crumbs(1)].concat()).await;
    assert_eq!(client.end(1).await, End::Refused);
    client.say(frame(DATA, END_STREAM, 1, "x")).await;
}
