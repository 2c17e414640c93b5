//! HTTP/2 floods: the work per connection is bounded, and other clients are served meanwhile.

use super::{
    cases::CaseRunner,
    http2_frames::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, FrameClient, GOAWAY, HEADERS, PADDED, PING,
        PREFACE, PRIORITY, RST_STREAM, SETTINGS, StreamEnd, WINDOW_UPDATE, encode_frame, encode_header,
        encode_integer, encode_setting, encode_string,
    },
    recorder::{ArrivalState, RecordedArrival},
};

/// The header block of a request for this path.
fn request_headers(method: &str, path: &str) -> Vec<u8> {
    let headers = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "proxy.test")];
    headers.iter().flat_map(|(name, value)| encode_header(name, value)).collect()
}

/// A complete GET on this stream.
fn get_frame(stream: u32) -> Vec<u8> {
    let path = format!("/hr/cgi-bin/case?n={stream}");
    encode_frame(HEADERS, END_HEADERS | END_STREAM, stream, request_headers("GET", &path))
}

/// The head of a POST on this stream.
fn post_head_frame(stream: u32) -> Vec<u8> {
    encode_frame(
        HEADERS,
        END_HEADERS,
        stream,
        request_headers("POST", &format!("/hr/cgi-bin/case?n={stream}")),
    )
}

/// The first `count` streams of a client.
fn stream_ids(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|index| index * 2 + 1)
}

/// The targets of the complete requests; panics on a non-canonical one.
fn complete_targets(arrivals: &[RecordedArrival]) -> Vec<&str> {
    let mut targets = Vec::new();
    for arrival in arrivals {
        match &arrival.state {
            ArrivalState::Complete(request) => targets.push(request.target.as_str()),
            ArrivalState::Partial { head: true } => {}
            other => panic!("{other:?}"),
        }
    }
    targets
}

fn are_distinct(targets: &[&str]) -> bool {
    let mut sorted = targets.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).all(|two| two[0] != two[1])
}

/// Connects and sends the preface with these settings.
async fn connect_with_settings(runner: &CaseRunner, settings: &[u8]) -> FrameClient {
    let mut client = FrameClient::connect(runner.proxy.address()).await;
    client.send([PREFACE, &encode_frame(SETTINGS, 0, 0, settings)].concat()).await;
    client
}

/// Sends a flood that ends in a request on stream `last`, and returns how that stream ends. Other clients are served during
/// and after the flood.
async fn flood_and_get(runner: &mut CaseRunner, bytes: Vec<u8>, last: u32) -> StreamEnd {
    let mut client = connect_with_settings(runner, b"").await;
    let send_task = client.send_in_background(bytes);
    runner.send_marker().await;
    let end = client.stream_end(last).await;
    runner.send_marker().await;
    send_task.abort();
    assert_ne!(end, StreamEnd::TimedOut);
    end
}

#[tokio::test]
async fn rapid_resets_are_bounded() {
    let mut runner = CaseRunner::start().await;
    let cancel = [0, 0, 0, 8];
    for (name, head) in [("whole", get_frame as fn(u32) -> Vec<u8>), ("half", post_head_frame)] {
        let before = runner.recorder.arrival_count();
        let bytes: Vec<u8> = stream_ids(20_000)
            .flat_map(|stream| [head(stream), encode_frame(RST_STREAM, 0, stream, cancel)].concat())
            .collect();
        let end = flood_and_get(&mut runner, [bytes, get_frame(40_001)].concat(), 40_001).await;
        let arrivals = runner.arrivals_without_marker(before).await;
        let targets = complete_targets(&arrivals);
        assert!(matches!(end, StreamEnd::GoAway(_) | StreamEnd::Closed), "{name}: {end:?}");
        assert!(
            are_distinct(&targets) && arrivals.len() < 2000,
            "{name}: {} reached the upstream",
            arrivals.len()
        );
    }
}

/// Asserts that nothing arrived.
async fn assert_nothing_since(runner: &mut CaseRunner, before: usize, name: &str) {
    let arrivals = runner.arrivals_without_marker(before).await;
    assert!(arrivals.is_empty(), "{name}: {arrivals:?}");
}

/// The stream, or the connection with it, ended without a response.
fn assert_refused(end: &StreamEnd, name: &str) {
    let is_refused =
        matches!(end, StreamEnd::GoAway(_) | StreamEnd::Closed | StreamEnd::Refused | StreamEnd::Reset(_));
    assert!(is_refused, "{name}: {end:?}");
}

#[tokio::test]
async fn endless_header_block_is_cut_off() {
    let mut runner = CaseRunner::start().await;
    let opening = encode_frame(HEADERS, END_STREAM, 1, request_headers("GET", "/hr/cgi-bin/case"));
    let large = encode_header("x", "y".repeat(16_000));
    let small = encode_header("x", "y");
    for (name, frame, count) in [
        ("large", encode_frame(CONTINUATION, 0, 1, &large), 2000),
        ("small", encode_frame(CONTINUATION, 0, 1, &small), 200_000),
        ("empty", encode_frame(CONTINUATION, 0, 1, ""), 200_000),
    ] {
        let before = runner.recorder.arrival_count();
        let end = flood_and_get(&mut runner, [opening.clone(), frame.repeat(count)].concat(), 1).await;
        assert_refused(&end, name);
        assert_nothing_since(&mut runner, before, name).await;
    }
}

#[tokio::test]
async fn hpack_bomb_is_refused() {
    let mut runner = CaseRunner::start().await;
    // Adds an entry of 3,900 bytes to the dynamic table; each reference to it is one byte.
    let inserted = [vec![0x40], encode_string(b"x-bomb"), encode_string(&[b'y'; 3900])].concat();
    for (name, block) in [
        (
            "references",
            [request_headers("GET", "/hr/cgi-bin/case"), inserted.clone(), vec![0xbe; 12_000]].concat(),
        ),
        (
            "names",
            [
                request_headers("GET", "/hr/cgi-bin/case"),
                inserted,
                [encode_integer(62, 4, 0), encode_string(b"z")].concat().repeat(4000),
            ]
            .concat(),
        ),
        (
            "small fields",
            [request_headers("GET", "/hr/cgi-bin/case"), encode_header("x", "y").repeat(3000)].concat(),
        ),
        (
            "cookies",
            [request_headers("GET", "/hr/cgi-bin/case"), encode_header("cookie", "a").repeat(3000)].concat(),
        ),
    ] {
        let before = runner.recorder.arrival_count();
        let bytes = encode_frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
        let end = flood_and_get(&mut runner, bytes, 1).await;
        assert_refused(&end, name);
        assert_nothing_since(&mut runner, before, name).await;
    }
}

#[tokio::test]
async fn useless_frames_are_processed_or_close_the_connection() {
    let mut runner = CaseRunner::start().await;
    for (name, frame, count) in [
        ("settings", encode_frame(SETTINGS, 0, 0, encode_setting(3, 100)), 50_000),
        ("empty settings", encode_frame(SETTINGS, 0, 0, ""), 50_000),
        (
            "settings with a repeated entry",
            encode_frame(SETTINGS, 0, 0, encode_setting(1, 4096).repeat(2000)),
            500,
        ),
        (
            "alternating windows",
            [
                encode_frame(SETTINGS, 0, 0, encode_setting(4, 0)),
                encode_frame(SETTINGS, 0, 0, encode_setting(4, 65_535)),
            ]
            .concat(),
            10_000,
        ),
        ("pings", encode_frame(PING, 0, 0, [1; 8]), 50_000),
        ("pongs", encode_frame(PING, ACK, 0, [1; 8]), 50_000),
        ("acknowledged settings", encode_frame(SETTINGS, ACK, 0, ""), 50_000),
        ("priorities", encode_frame(PRIORITY, 0, 1, [0, 0, 0, 3, 1]), 50_000),
        (
            "priorities of many streams",
            stream_ids(50_000)
                .flat_map(|stream| encode_frame(PRIORITY, 0, stream, [0, 0, 0, 0, 1]))
                .collect(),
            1,
        ),
        ("unknown frames", encode_frame(0x42, 0, 0, ""), 50_000),
        ("large unknown frames", encode_frame(0x42, 0, 0, [0; 16_384]), 500),
        ("windows of the connection", encode_frame(WINDOW_UPDATE, 0, 0, [0, 0, 0, 1]), 50_000),
        ("GOAWAY frames", encode_frame(GOAWAY, 0, 0, [0; 8]), 20_000),
    ] {
        let before = runner.recorder.arrival_count();
        let last = 200_001;
        let end = flood_and_get(&mut runner, [frame.repeat(count), get_frame(last)].concat(), last).await;
        let arrived = runner.arrivals_without_marker(before).await.len();
        assert!(
            arrived <= 1 && (end == StreamEnd::Served) == (arrived == 1),
            "{name}: {end:?}, {arrived} reached the upstream"
        );
    }
}

#[tokio::test]
async fn ping_flood_without_reading_blocks_no_other_client() {
    let mut runner = CaseRunner::start().await;
    let mut client = connect_with_settings(&runner, b"").await;
    // The acknowledgements of all of them would exceed both sides' socket buffers many times.
    let send_task = client.send_in_background(encode_frame(PING, 0, 0, [1; 8]).repeat(1_000_000));
    for _ in 0..20 {
        runner.send_marker().await;
    }
    send_task.abort();
    drop(client);
    runner.send_marker().await;
}

#[tokio::test]
async fn empty_data_frames_are_bounded() {
    let mut runner = CaseRunner::start().await;
    let last = encode_frame(DATA, END_STREAM, 1, "");
    let padded = encode_frame(DATA, PADDED, 1, [&[250, b'x'][..], &[0; 250]].concat());
    for (name, frame, count, body) in [
        ("empty frames", encode_frame(DATA, 0, 1, ""), 50_000, String::new()),
        (
            "padding alone",
            encode_frame(DATA, PADDED, 1, [&[250][..], &[0; 250]].concat()),
            2000,
            String::new(),
        ),
        ("one byte at a time", encode_frame(DATA, 0, 1, "x"), 20_000, "x".repeat(20_000)),
        ("one byte and its padding", padded, 2000, "x".repeat(2000)),
    ] {
        let before = runner.recorder.arrival_count();
        let end =
            flood_and_get(&mut runner, [post_head_frame(1), frame.repeat(count), last.clone()].concat(), 1)
                .await;
        let arrivals = runner.arrivals_without_marker(before).await;
        match (&end, arrivals.as_slice()) {
            (StreamEnd::Served, [RecordedArrival { state: ArrivalState::Complete(request), .. }]) => {
                assert!(request.body == body.as_bytes(), "{name}: {} bytes", request.body.len());
            }
            (StreamEnd::GoAway(_) | StreamEnd::Closed | StreamEnd::Reset(_) | StreamEnd::Refused, []) => {}
            (
                StreamEnd::GoAway(_) | StreamEnd::Closed | StreamEnd::Reset(_) | StreamEnd::Refused,
                [RecordedArrival { state: ArrivalState::Partial { .. }, .. }],
            ) => {}
            _ => panic!("{name}: {end:?}, {arrivals:?}"),
        }
    }
}

#[tokio::test]
async fn flow_control_windows_are_bounded() {
    let runner = CaseRunner::start().await;
    let mut client = connect_with_settings(&runner, b"").await;
    client.send([post_head_frame(1), encode_frame(PING, 0, 0, *b"response")].concat()).await;
    let frames = client.read_until(|frame| frame.kind == PING && frame.flags == ACK).await;
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
    let (mut stream, mut connection) = (65_535, 65_535);
    for Frame { kind, flags, stream: stream_id, payload } in &frames {
        match (*kind, *flags, *stream_id) {
            (SETTINGS, 0, 0) => {
                let windows = payload.chunks_exact(6).filter(|setting| setting[..2] == [0, 4]);
                stream = windows.map(|setting| number(&setting[2..])).next_back().unwrap_or(stream);
            }
            (WINDOW_UPDATE, _, 0) => connection += number(payload),
            _ => {}
        }
    }
    assert!(stream <= 64 * 1024 && connection <= 256 * 1024, "{stream} a stream, {connection} in all");

    // A client that sends beyond the windows is reset.
    let excess = encode_frame(DATA, 0, 1, [0; 16_384]).repeat(40);
    client.send_in_background(excess);
    let frames = client.read_until(|frame| [GOAWAY, RST_STREAM].contains(&frame.kind)).await;
    assert!(frames.last().is_some_and(|frame| frame.payload.ends_with(&[0, 0, 0, 3])), "{frames:?}");
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_others_served() {
    let mut runner = CaseRunner::start().await;
    let before = runner.recorder.arrival_count();
    let mut client = connect_with_settings(&runner, b"").await;
    let count = 300;
    let heads: Vec<u8> = stream_ids(count).flat_map(post_head_frame).collect();
    client.send(heads).await;
    client.send(encode_frame(PING, 0, 0, *b"response")).await;
    let frames = client.read_until(|frame| frame.kind == PING && frame.flags == ACK).await;
    let refused: Vec<u32> =
        frames.iter().filter(|frame| frame.kind == RST_STREAM).map(|frame| frame.stream).collect();
    // The limit is 256 concurrent streams.
    assert!(refused.len() == 44, "{} were refused", refused.len());
    runner.send_marker().await;
    let open: Vec<u32> = stream_ids(count).filter(|stream| !refused.contains(stream)).collect();
    let ends: Vec<u8> =
        open.iter().flat_map(|stream| encode_frame(DATA, END_STREAM, *stream, "hello")).collect();
    client.send(ends).await;
    let mut response_count = 0;
    client
        .read_until(|frame| {
            response_count += usize::from(frame.kind == HEADERS && !frame.payload.is_empty());
            response_count == open.len()
        })
        .await;
    let arrivals = runner.arrivals_without_marker(before).await;
    let targets = complete_targets(&arrivals);
    assert!(targets.len() == open.len() && are_distinct(&targets), "{} of {}", targets.len(), open.len());
}

#[tokio::test]
async fn closed_windows_block_no_other_client() {
    let mut runner = CaseRunner::start().await;
    let before = runner.recorder.arrival_count();
    let mut client = connect_with_settings(&runner, &encode_setting(4, 0)).await;
    let count = 100;
    client.send(stream_ids(count).flat_map(get_frame).collect::<Vec<u8>>()).await;
    let mut heads = 0;
    client
        .read_until(|frame| {
            heads += u32::from(frame.kind == HEADERS);
            heads == count
        })
        .await;
    for _ in 0..3 {
        runner.send_marker().await;
    }
    // One byte for each stream, then the rest.
    client
        .send(
            stream_ids(count)
                .flat_map(|stream| encode_frame(WINDOW_UPDATE, 0, stream, [0, 0, 0, 1]))
                .collect::<Vec<u8>>(),
        )
        .await;
    client.send(encode_frame(SETTINGS, 0, 0, encode_setting(4, 65_535))).await;
    let mut ends = 0;
    let frames = client
        .read_until(|frame| {
            ends += u32::from(frame.kind == DATA && frame.flags & END_STREAM > 0);
            ends == count
        })
        .await;
    assert_eq!(ends, count, "the last was {:?}", frames.last());
    let arrivals = runner.arrivals_without_marker(before).await;
    let targets = complete_targets(&arrivals);
    assert!(targets.len() == count as usize && are_distinct(&targets), "{}", targets.len());
}

#[tokio::test]
async fn data_beyond_the_window_resets_stream_or_connection() {
    let mut runner = CaseRunner::start().await;
    let before = runner.recorder.arrival_count();
    // Refused because of its path, so that the body is not read; about ten times the initial windows.
    let head = encode_frame(HEADERS, END_HEADERS, 1, request_headers("POST", "/nowhere"));
    let data = encode_frame(DATA, 0, 1, [b'x'; 16_384]).repeat(2000);
    let end = flood_and_get(&mut runner, [head, data].concat(), 1).await;
    assert!(
        matches!(end, StreamEnd::Refused | StreamEnd::GoAway(_) | StreamEnd::Reset(_) | StreamEnd::Closed),
        "{end:?}"
    );
    assert_nothing_since(&mut runner, before, "data").await;
}
