//! The bytes of clients without a key.

use crate::{
    harness::USER_GET,
    hostile::http2_frames::{
        CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, SETTINGS, encode_frame, encode_header,
        encode_setting, encode_string,
    },
    raw_http::raw_get,
};

/// The preface and SETTINGS with an initial window of 0, so that the proxy cannot send a body.
pub(super) fn preface_with_closed_windows() -> Vec<u8> {
    [PREFACE, &encode_frame(SETTINGS, 0, 0, encode_setting(4, 0))].concat()
}

/// A header block with these headers, without a key unless it is among them.
pub(super) fn encode_head(method: &str, extra: &[(&str, &str)]) -> Vec<u8> {
    let path = format!("/hr{USER_GET}");
    let headers = [(":method", method), (":scheme", "http"), (":path", &path), (":authority", "proxy.test")];
    headers.iter().chain(extra).flat_map(|(name, value)| encode_header(name, value)).collect()
}

/// `count` GETs with these headers, on consecutive streams from `first` on.
pub(super) fn get_frames(first: u32, count: u32, extra: &[(&str, &str)]) -> Vec<u8> {
    let block = encode_head("GET", extra);
    (0..count)
        .flat_map(|index| encode_frame(HEADERS, END_HEADERS | END_STREAM, first + 2 * index, &block))
        .collect()
}

/// 250 GETs with a request id, and a header of 3,600 bytes that HPACK repeats by its index.
pub(super) fn large_header_get_frames() -> Vec<u8> {
    let block = encode_head("GET", &[("x-request-id", "abc")]);
    let inserted = [vec![0x40], encode_string(b"x-a"), encode_string(&[b'a'; 3600])].concat();
    let frames = (0..250).flat_map(|index| {
        let large = if index == 0 { inserted.clone() } else { vec![0xbe] };
        encode_frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            2 * index + 1,
            [&block[..], &large, &[0xbe; 15]].concat(),
        )
    });
    frames.collect()
}

/// The frames of a GET with a head of more than 16,000 bytes.
pub(super) fn frames_of(stream: u32, block: &[u8]) -> Vec<u8> {
    let (first, rest) = block.split_at(16_000);
    let mut bytes = encode_frame(HEADERS, END_STREAM, stream, first);
    for fragment in rest.chunks(16_000) {
        bytes.extend(encode_frame(
            CONTINUATION,
            if fragment.len() < 16_000 { END_HEADERS } else { 0 },
            stream,
            fragment,
        ));
    }
    bytes
}

/// The frames of the first `bytes` bytes of a GET's head, without END_HEADERS.
pub(super) fn half_head(stream: u32, bytes: usize) -> Vec<u8> {
    let mut block = encode_head("GET", &[("x-large", &"y".repeat(bytes))]);
    block.truncate(bytes);
    let (first, rest) = block.split_at(16_000.min(bytes));
    let rest = rest.chunks(16_000).flat_map(|fragment| encode_frame(CONTINUATION, 0, stream, fragment));
    encode_frame(HEADERS, END_STREAM, stream, first).into_iter().chain(rest).collect()
}

/// A head with a target of this length.
pub(super) fn long_target(length: usize) -> Vec<u8> {
    let path = format!("/hr/cgi-bin/{}", "x".repeat(length));
    let headers = [(":method", "GET"), (":scheme", "http"), (":path", &path), (":authority", "proxy.test")];
    headers.iter().flat_map(|(name, value)| encode_header(name, value)).collect()
}

/// The bytes that clients without a key send before they leave a connection open.
pub(super) fn attacks() -> Vec<(&'static str, Vec<u8>)> {
    let get = raw_get(USER_GET);
    let post = format!("POST /hr{USER_GET} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n");
    vec![
        ("nothing", Vec::new()),
        ("an incomplete request", get.as_bytes()[..20].to_vec()),
        ("an incomplete preface", PREFACE[..10].to_vec()),
        ("settings", preface_with_closed_windows()),
        ("pings", [preface_with_closed_windows(), encode_frame(PING, 0, 0, [1; 8]).repeat(5_000)].concat()),
        (
            "an incomplete head over HTTP/2",
            [preface_with_closed_windows(), encode_frame(HEADERS, 0, 1, encode_head("GET", &[]))].concat(),
        ),
        ("a stream with a closed window", [preface_with_closed_windows(), get_frames(1, 1, &[])].concat()),
        (
            "many streams with a closed window",
            [preface_with_closed_windows(), get_frames(1, 250, &[])].concat(),
        ),
        ("a body that is not sent", post.into_bytes()),
        (
            "a body that is not sent over HTTP/2",
            [preface_with_closed_windows(), encode_frame(HEADERS, END_HEADERS, 1, encode_head("POST", &[]))]
                .concat(),
        ),
        ("a refused request", get.clone().into_bytes()),
        ("pipelined requests", get.repeat(20_000).into_bytes()),
    ]
}
