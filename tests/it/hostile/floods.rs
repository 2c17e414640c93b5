//! Much work for little, over HTTP/2: it has a bound, and others are served meanwhile.

use super::{
    frames::{
        ACK, CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, End, Frame, GOAWAY, HEADERS, PADDED, PING,
        PREFACE, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, field, frame, integer, setting, string,
    },
    recorder::{Arrival, State},
    table::Scene,
};

/// The fields of a request for this path.
fn fields(method: &str, path: &str) -> Vec<u8> {
    let fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "proxy.test")];
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// A whole GET on this stream.
fn get(stream: u32) -> Vec<u8> {
    let path = format!("/hr/cgi-bin/case?n={stream}");
    frame(HEADERS, END_HEADERS | END_STREAM, stream, fields("GET", &path))
}

/// The head of a POST on this stream.
fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, fields("POST", &format!("/hr/cgi-bin/case?n={stream}")))
}

/// The first `count` streams of a client.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|nth| nth * 2 + 1)
}

/// The targets of the whole requests; anything else that came is no part of an honest answer.
fn targets(arrivals: &[Arrival]) -> Vec<&str> {
    let mut targets = Vec::new();
    for arrival in arrivals {
        match &arrival.state {
            State::Whole(seen) => targets.push(seen.target.as_str()),
            State::Part { head: true } => {}
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

/// A connection whose client has introduced itself with these settings.
async fn hello(scene: &Scene, settings: &[u8]) -> Client {
    let mut client = Client::to(scene.stage.address()).await;
    client.say([PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()).await;
    client
}

/// Sends a flood and a request on stream `last` behind it, and says how that one ends. Others are served before, while
/// it flows and after.
async fn flood(scene: &mut Scene, bytes: Vec<u8>, last: u32) -> End {
    let mut client = hello(scene, b"").await;
    let writing = client.say_meanwhile(bytes);
    scene.mark().await;
    let end = client.end(last).await;
    scene.mark().await;
    writing.abort();
    assert_ne!(end, End::Hung);
    end
}

#[tokio::test]
async fn rapid_resets_have_a_bound() {
    let mut scene = Scene::open().await;
    let cancel = [0, 0, 0, 8];
    for (what, heads) in [("whole", get as fn(u32) -> Vec<u8>), ("half", post)] {
        let before = scene.recorder.len();
        let bytes: Vec<u8> = streams(20_000)
            .flat_map(|nth| [heads(nth), frame(RST_STREAM, 0, nth, cancel)].concat())
            .collect();
        let end = flood(&mut scene, [bytes, get(40_001)].concat(), 40_001).await;
        let arrivals = scene.others_since(before).await;
        let targets = targets(&arrivals);
        assert!(matches!(end, End::Away(_) | End::Closed), "{what}: {end:?}");
        assert!(are_distinct(&targets) && arrivals.len() < 2000, "{what}: {} got through", arrivals.len());
    }
}

/// Asserts that nothing arrived.
async fn nothing_since(scene: &mut Scene, before: usize, what: &str) {
    let arrivals = scene.others_since(before).await;
    assert!(arrivals.is_empty(), "{what}: {arrivals:?}");
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let mut scene = Scene::open().await;
    let opening = frame(HEADERS, END_STREAM, 1, fields("GET", "/hr/cgi-bin/case"));
    let large = field("x", "y".repeat(16_000));
    let small = field("x", "y");
    for (what, piece, count) in [
        ("large", frame(CONTINUATION, 0, 1, &large), 2000),
        ("small", frame(CONTINUATION, 0, 1, &small), 200_000),
        ("empty", frame(CONTINUATION, 0, 1, ""), 200_000),
    ] {
        let before = scene.recorder.len();
        let end = flood(&mut scene, [opening.clone(), piece.repeat(count)].concat(), 1).await;
        assert!(matches!(end, End::Away(_) | End::Closed | End::Refused | End::Reset(_)), "{what}: {end:?}");
        nothing_since(&mut scene, before, what).await;
    }
}

#[tokio::test]
async fn a_small_head_that_becomes_a_large_one_is_refused() {
    let mut scene = Scene::open().await;
    // Kept in the table once, 3,900 bytes; each mention after it is one byte.
    let kept = [vec![0x40], string(b"x-bomb"), string(&[b'y'; 3900])].concat();
    for (what, block) in [
        ("mentions", [fields("GET", "/hr/cgi-bin/case"), kept.clone(), vec![0xbe; 12_000]].concat()),
        (
            "names",
            [
                fields("GET", "/hr/cgi-bin/case"),
                kept,
                [integer(62, 4, 0), string(b"z")].concat().repeat(4000),
            ]
            .concat(),
        ),
        ("small fields", [fields("GET", "/hr/cgi-bin/case"), field("x", "y").repeat(3000)].concat()),
        ("cookies", [fields("GET", "/hr/cgi-bin/case"), field("cookie", "a").repeat(3000)].concat()),
    ] {
        let before = scene.recorder.len();
        let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
        let end = flood(&mut scene, bytes, 1).await;
        assert!(matches!(end, End::Away(_) | End::Closed | End::Refused | End::Reset(_)), "{what}: {end:?}");
        nothing_since(&mut scene, before, what).await;
    }
}

#[tokio::test]
async fn frames_that_only_cost_work_are_worked_off_or_end_the_connection() {
    let mut scene = Scene::open().await;
    for (what, one, count) in [
        ("settings", frame(SETTINGS, 0, 0, setting(3, 100)), 50_000),
        ("empty settings", frame(SETTINGS, 0, 0, ""), 50_000),
        ("settings with many of a kind", frame(SETTINGS, 0, 0, setting(1, 4096).repeat(2000)), 500),
        (
            "windows to and fro",
            [frame(SETTINGS, 0, 0, setting(4, 0)), frame(SETTINGS, 0, 0, setting(4, 65_535))].concat(),
            10_000,
        ),
        ("pings", frame(PING, 0, 0, [1; 8]), 50_000),
        ("pongs", frame(PING, ACK, 0, [1; 8]), 50_000),
        ("acknowledged settings", frame(SETTINGS, ACK, 0, ""), 50_000),
        ("priorities", frame(PRIORITY, 0, 1, [0, 0, 0, 3, 1]), 50_000),
        (
            "priorities of many streams",
            streams(50_000).flat_map(|nth| frame(PRIORITY, 0, nth, [0, 0, 0, 0, 1])).collect(),
            1,
        ),
        ("unknown frames", frame(0x42, 0, 0, ""), 50_000),
        ("large unknown frames", frame(0x42, 0, 0, [0; 16_384]), 500),
        ("windows of the connection", frame(WINDOW_UPDATE, 0, 0, [0, 0, 0, 1]), 50_000),
        ("farewells", frame(GOAWAY, 0, 0, [0; 8]), 20_000),
    ] {
        let before = scene.recorder.len();
        let last = 200_001;
        let end = flood(&mut scene, [one.repeat(count), get(last)].concat(), last).await;
        let got = scene.others_since(before).await.len();
        assert!(got <= 1 && (end == End::Served) == (got == 1), "{what}: {end:?}, {got} got through");
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_while_it_pings_holds_nobody_up() {
    let mut scene = Scene::open().await;
    let mut client = hello(&scene, b"").await;
    // Answers to all of them would fill both sides' buffers many times over.
    let writing = client.say_meanwhile(frame(PING, 0, 0, [1; 8]).repeat(1_000_000));
    for _ in 0..20 {
        scene.mark().await;
    }
    writing.abort();
    drop(client);
    scene.mark().await;
}

#[tokio::test]
async fn a_body_of_nothing_has_a_bound() {
    let mut scene = Scene::open().await;
    let last = frame(DATA, END_STREAM, 1, "");
    let padded = frame(DATA, PADDED, 1, [&[250, b'x'][..], &[0; 250]].concat());
    for (what, one, count, body) in [
        ("empty frames", frame(DATA, 0, 1, ""), 50_000, String::new()),
        ("padding alone", frame(DATA, PADDED, 1, [&[250][..], &[0; 250]].concat()), 2000, String::new()),
        ("one byte at a time", frame(DATA, 0, 1, "x"), 20_000, "x".repeat(20_000)),
        ("one byte and its padding", padded, 2000, "x".repeat(2000)),
    ] {
        let before = scene.recorder.len();
        let end = flood(&mut scene, [post(1), one.repeat(count), last.clone()].concat(), 1).await;
        let arrivals = scene.others_since(before).await;
        match (&end, arrivals.as_slice()) {
            (End::Served, [Arrival { state: State::Whole(seen), .. }]) => {
                assert!(seen.body == body.as_bytes(), "{what}: {} bytes", seen.body.len());
            }
            (End::Away(_) | End::Closed | End::Reset(_) | End::Refused, []) => {}
            (
                End::Away(_) | End::Closed | End::Reset(_) | End::Refused,
                [Arrival { state: State::Part { .. }, .. }],
            ) => {}
            _ => panic!("{what}: {end:?}, {arrivals:?}"),
        }
    }
}

#[tokio::test]
async fn what_may_be_sent_ahead_has_a_bound() {
    let scene = Scene::open().await;
    let mut client = hello(&scene, b"").await;
    client.say([post(1), frame(PING, 0, 0, *b"answered")].concat()).await;
    let frames = client.until(|frame| frame.kind == PING && frame.flags == ACK).await;
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
    let (mut stream, mut connection) = (65_535, 65_535);
    for Frame { kind, flags, stream: of, payload } in &frames {
        match (*kind, *flags, *of) {
            (SETTINGS, 0, 0) => {
                let windows = payload.chunks_exact(6).filter(|setting| setting[..2] == [0, 4]);
                stream = windows.map(|setting| number(&setting[2..])).next_back().unwrap_or(stream);
            }
            (WINDOW_UPDATE, _, 0) => connection += number(payload),
            _ => {}
        }
    }
    assert!(stream <= 64 * 1024 && connection <= 256 * 1024, "{stream} a stream, {connection} in all");

    // Who sends more all the same is sent away.
    let more = frame(DATA, 0, 1, [0; 16_384]).repeat(40);
    client.say_meanwhile(more);
    let frames = client.until(|frame| [GOAWAY, RST_STREAM].contains(&frame.kind)).await;
    assert!(frames.last().is_some_and(|frame| frame.payload.ends_with(&[0, 0, 0, 3])), "{frames:?}");
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused_and_the_others_served() {
    let mut scene = Scene::open().await;
    let before = scene.recorder.len();
    let mut client = hello(&scene, b"").await;
    let count = 300;
    let heads: Vec<u8> = streams(count).flat_map(post).collect();
    client.say(heads).await;
    client.say(frame(PING, 0, 0, *b"answered")).await;
    let frames = client.until(|frame| frame.kind == PING && frame.flags == ACK).await;
    let refused: Vec<u32> =
        frames.iter().filter(|frame| frame.kind == RST_STREAM).map(|frame| frame.stream).collect();
    // 256 may be open at once.
    assert!(refused.len() == 44, "{} were refused", refused.len());
    scene.mark().await;
    let open: Vec<u32> = streams(count).filter(|nth| !refused.contains(nth)).collect();
    let ends: Vec<u8> = open.iter().flat_map(|nth| frame(DATA, END_STREAM, *nth, "hello")).collect();
    client.say(ends).await;
    let mut answered = 0;
    client
        .until(|frame| {
            answered += usize::from(frame.kind == HEADERS && !frame.payload.is_empty());
            answered == open.len()
        })
        .await;
    let arrivals = scene.others_since(before).await;
    let targets = targets(&arrivals);
    assert!(targets.len() == open.len() && are_distinct(&targets), "{} of {}", targets.len(), open.len());
}

#[tokio::test]
async fn windows_that_are_shut_hold_nobody_else_up() {
    let mut scene = Scene::open().await;
    let before = scene.recorder.len();
    let mut client = hello(&scene, &setting(4, 0)).await;
    let count = 100;
    client.say(streams(count).flat_map(get).collect::<Vec<u8>>()).await;
    let mut heads = 0;
    client
        .until(|frame| {
            heads += u32::from(frame.kind == HEADERS);
            heads == count
        })
        .await;
    for _ in 0..3 {
        scene.mark().await;
    }
    // One byte at a time for each, and then all that is left.
    client
        .say(streams(count).flat_map(|nth| frame(WINDOW_UPDATE, 0, nth, [0, 0, 0, 1])).collect::<Vec<u8>>())
        .await;
    client.say(frame(SETTINGS, 0, 0, setting(4, 65_535))).await;
    let mut ends = 0;
    let frames = client
        .until(|frame| {
            ends += u32::from(frame.kind == DATA && frame.flags & END_STREAM > 0);
            ends == count
        })
        .await;
    assert_eq!(ends, count, "the last was {:?}", frames.last());
    let arrivals = scene.others_since(before).await;
    let targets = targets(&arrivals);
    assert!(targets.len() == count as usize && are_distinct(&targets), "{}", targets.len());
}

#[tokio::test]
async fn more_data_than_the_window_holds_ends_the_stream_or_the_connection() {
    let mut scene = Scene::open().await;
    let before = scene.recorder.len();
    // Refused for its path, so that nobody takes what follows; ten times what may come unasked.
    let head = frame(HEADERS, END_HEADERS, 1, fields("POST", "/nowhere"));
    let data = frame(DATA, 0, 1, [b'x'; 16_384]).repeat(2000);
    let end = flood(&mut scene, [head, data].concat(), 1).await;
    assert!(matches!(end, End::Refused | End::Away(_) | End::Reset(_) | End::Closed), "{end:?}");
    nothing_since(&mut scene, before, "data").await;
}
