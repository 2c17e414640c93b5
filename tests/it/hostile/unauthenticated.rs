//! Callers without a key: what their connections hold is little, and they take no place from callers with one.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use http::Request;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{Instant, timeout},
};
use wecom_proxy::simulator::{Settings, Simulator};

use super::http2_frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, FrameClient, GOAWAY, HEADERS, PING, PREFACE,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, encode_frame, encode_header, encode_setting, encode_string,
};
use crate::{
    harness::{CONFIG_WITH_CLIENTS, TestClient, TestProxy, USER_GET, client_key, with_timeout, write_config},
    process::Process,
    raw_http::RawConnection,
};

const KIB: u64 = 1024;
/// What a connection without a key may hold. Futures take several times their room where nothing is optimized.
const MAX_BYTES_PER_CONNECTION: u64 = if cfg!(debug_assertions) { 128 * KIB } else { 64 * KIB };
/// The code of RST_STREAM with which a stream is refused.
const REFUSED_STREAM_CODE: [u8; 4] = [0, 0, 0, 7];
/// How soon a caller with a key is to be answered. It takes a few milliseconds; the machine may be busy, and what is not
/// optimized takes ten times as long.
const MAX_LATENCY: Duration = Duration::from_secs(if cfg!(debug_assertions) { 3 } else { 1 });

/// The preface and settings that let the proxy send no byte of a body.
fn preface_with_closed_windows() -> Vec<u8> {
    [PREFACE, &encode_frame(SETTINGS, 0, 0, encode_setting(4, 0))].concat()
}

/// A head of these fields, without a key unless one is among them.
fn encode_head(method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let path = format!("/hr{USER_GET}");
    let fields = [(":method", method), (":scheme", "http"), (":path", &path), (":authority", "proxy.test")];
    fields.iter().chain(more).flat_map(|(name, value)| encode_header(name, value)).collect()
}

/// `count` GETs with these fields, each on a stream of its own from `first` on.
fn get_frames(first: u32, count: u32, more: &[(&str, &str)]) -> Vec<u8> {
    let block = encode_head("GET", more);
    (0..count)
        .flat_map(|nth| encode_frame(HEADERS, END_HEADERS | END_STREAM, first + 2 * nth, &block))
        .collect()
}

/// The same 250 times, with an id of the caller's own and a header of 3,600 bytes that HPACK repeats by its index.
fn large_header_get_frames() -> Vec<u8> {
    let block = encode_head("GET", &[("x-request-id", "abc")]);
    let kept = [vec![0x40], encode_string(b"x-a"), encode_string(&[b'a'; 3600])].concat();
    let heads = (0..250).flat_map(|nth| {
        let large = if nth == 0 { kept.clone() } else { vec![0xbe] };
        encode_frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            2 * nth + 1,
            [&block[..], &large, &[0xbe; 15]].concat(),
        )
    });
    heads.collect()
}

/// The real program with clients, and these lines in `[server]`.
async fn start_program(lines: &str) -> (Simulator, tempfile::TempDir, Process, SocketAddr) {
    let wecom = crate::leak_detector::start_simulator(Settings::default()).await;
    let dir = tempfile::TempDir::new().expect("a directory");
    let toml = CONFIG_WITH_CLIENTS.replace("[upstream]", &format!("{lines}\n[upstream]"));
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), &toml)).await;
    let address = proxy.address().await;
    (wecom, dir, proxy, address)
}

fn resident_bytes(proxy: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * KIB
}

/// A call with a good key on a connection of its own, and how long it took.
async fn keyed_request_time(address: SocketAddr) -> Duration {
    let began = Instant::now();
    let mut caller = TestClient::connect_http1(address).await;
    let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", client_key("billing"));
    caller.request(request, "").await.assert_ok();
    began.elapsed()
}

/// Sends these bytes, as far as they are taken, without reading anything, and leaves the connection open.
async fn send_without_reading<S: AsyncWrite + Unpin>(mut stream: S, bytes: &[u8]) -> S {
    let _ = timeout(Duration::from_millis(100), stream.write_all(bytes)).await;
    stream
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn unread_refused_streams_use_little_memory() {
    const CONNECTIONS: u64 = 40;
    let half =
        [encode_head("GET", &[]), vec![0x40], encode_string(b"a"), encode_string(b""), vec![0xbe; 1900]]
            .concat();
    for (what, attack) in [
        ("bare", get_frames(1, 250, &[])),
        ("a large header", large_header_get_frames()),
        ("half a head of small headers", encode_frame(HEADERS, END_STREAM, 1, half)),
        (
            "bodies that do not come",
            (0..250)
                .flat_map(|nth| encode_frame(HEADERS, END_HEADERS, 2 * nth + 1, encode_head("POST", &[])))
                .collect(),
        ),
        ("a long target", encode_frame(HEADERS, END_HEADERS | END_STREAM, 1, long_target(10_000))),
        ("most of a large head", half_head(1, 53_000)),
        ("refused streams and half a large head", [get_frames(1, 8, &[]), half_head(17, 53_000)].concat()),
        ("resets and half a large head", [get_frames(1, 40, &[]), half_head(81, 53_000)].concat()),
        (
            "half a large head that hyper sees",
            [encode_frame(PING, 0, 0, [1; 8]), half_head(1, 53_000)].concat(),
        ),
    ] {
        let (_wecom, _dir, proxy, address) = start_program("").await;
        keyed_request_time(address).await;
        let before = resident_bytes(&proxy);
        let bytes = [preface_with_closed_windows(), attack].concat();
        let mut crowd = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = with_timeout(TcpStream::connect(address)).await.expect("a connection");
            crowd.push(send_without_reading(stream, &bytes).await);
        }
        keyed_request_time(address).await;
        let held = resident_bytes(&proxy).saturating_sub(before) / CONNECTIONS;
        eprintln!("{what}: {} bytes sent hold {} KiB", bytes.len(), held / KIB);
        assert!(
            held < MAX_BYTES_PER_CONNECTION,
            "{what}: {} bytes sent hold {} KiB",
            bytes.len(),
            held / KIB
        );
    }
}

/// The frames of a GET with a head of any size.
fn frames_of(stream: u32, block: &[u8]) -> Vec<u8> {
    let (first, rest) = block.split_at(16_000);
    let mut bytes = encode_frame(HEADERS, END_STREAM, stream, first);
    for piece in rest.chunks(16_000) {
        bytes.extend(encode_frame(
            CONTINUATION,
            if piece.len() < 16_000 { END_HEADERS } else { 0 },
            stream,
            piece,
        ));
    }
    bytes
}

/// The frames of so many bytes of a GET's head, without its end.
fn half_head(stream: u32, bytes: usize) -> Vec<u8> {
    let mut block = encode_head("GET", &[("x-large", &"y".repeat(bytes))]);
    block.truncate(bytes);
    let (first, rest) = block.split_at(16_000.min(bytes));
    let rest = rest.chunks(16_000).flat_map(|piece| encode_frame(CONTINUATION, 0, stream, piece));
    encode_frame(HEADERS, END_STREAM, stream, first).into_iter().chain(rest).collect()
}

/// A head with a target of this length.
fn long_target(length: usize) -> Vec<u8> {
    let path = format!("/hr/cgi-bin/{}", "x".repeat(length));
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", &path), (":authority", "proxy.test")];
    fields.iter().flat_map(|(name, value)| encode_header(name, value)).collect()
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn waves_of_refused_streams_leak_no_memory() {
    let (_wecom, _dir, proxy, address) = start_program("").await;
    keyed_request_time(address).await;
    let before = resident_bytes(&proxy);
    let bytes = [preface_with_closed_windows(), large_header_get_frames()].concat();
    for _ in 0..8 {
        let mut crowd = Vec::new();
        for _ in 0..20 {
            let stream = with_timeout(TcpStream::connect(address)).await.expect("a connection");
            crowd.push(send_without_reading(stream, &bytes).await);
        }
        keyed_request_time(address).await;
    }
    keyed_request_time(address).await;
    let left = resident_bytes(&proxy).saturating_sub(before);
    assert!(left < 32 << 20, "{} KiB are left", left / KIB);
}

#[tokio::test]
async fn refused_streams_beyond_a_few_are_reset() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = FrameClient::connect(stage.address()).await;
    client.send([preface_with_closed_windows(), get_frames(1, 12, &[])].concat()).await;
    let mut ends = 0;
    let last = |frame: &Frame| {
        ends += u32::from([HEADERS, RST_STREAM].contains(&frame.kind));
        ends == 12
    };
    let frames = client.read_until(last).await;
    let resets = frames.iter().filter(|frame| frame.kind == RST_STREAM);
    assert!(resets.clone().all(|frame| frame.payload == REFUSED_STREAM_CODE));
    let answered = frames.iter().filter(|frame| frame.kind == HEADERS).count();
    assert_eq!((answered, resets.count()), (6, 6));
    let settings = frames.iter().filter(|frame| frame.kind == SETTINGS && frame.flags == 0);
    let most = settings.flat_map(|frame| frame.payload.chunks(6)).find(|one| one[..2] == [0, 3]);
    assert_eq!(most.map(|one| &one[2..]), Some(&[0, 0, 1, 0][..]), "256 are allowed");

    // A good key is served on the same connection all the same, and no stream is refused from then on.
    let with_key = get_frames(201, 60, &[("x-api-key", &client_key("billing"))]);
    client.send([with_key, encode_frame(SETTINGS, 0, 0, encode_setting(4, 65_535))].concat()).await;
    let mut ends = 0;
    let last = |frame: &Frame| {
        ends += u32::from(frame.stream >= 201 && frame.kind == DATA && frame.flags & END_STREAM > 0);
        ends == 60
    };
    let frames = client.read_until(last).await;
    assert!(!frames.iter().any(|frame| frame.kind == RST_STREAM), "{frames:?}");
}

#[tokio::test]
async fn concurrent_streams_with_a_valid_key_are_all_served() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = FrameClient::connect(stage.address()).await;
    client
        .send(
            [preface_with_closed_windows(), get_frames(1, 100, &[("x-api-key", &client_key("billing"))])]
                .concat(),
        )
        .await;
    let mut heads = 0;
    let last = |frame: &Frame| {
        heads += u32::from(frame.kind == HEADERS);
        heads == 100
    };
    let frames = client.read_until(last).await;
    assert_eq!(frames.iter().filter(|frame| frame.kind == RST_STREAM).count(), 0);
    assert!(frames.iter().filter(|frame| frame.kind == HEADERS).all(|frame| frame.payload[0] == 0x88));
}

#[tokio::test]
async fn unread_refused_stream_is_reset_quickly() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = FrameClient::connect(stage.address()).await;
    let began = Instant::now();
    client.send([preface_with_closed_windows(), get_frames(1, 1, &[])].concat()).await;
    let frames = client.read_until(|frame| frame.kind == RST_STREAM).await;
    assert!(frames.last().is_some_and(|frame| frame.stream == 1), "{frames:?}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}, and not body_timeout", began.elapsed());
}

#[tokio::test]
async fn requests_with_a_key_behind_many_without_are_served() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = FrameClient::connect(stage.address()).await;
    let with_key = get_frames(201, 3, &[("x-api-key", &client_key("billing"))]);
    client.send([preface_with_closed_windows(), get_frames(1, 30, &[]), with_key].concat()).await;
    let mut served = 0;
    let last = |frame: &Frame| {
        served += u32::from(frame.stream >= 201 && frame.kind == HEADERS && frame.payload[0] == 0x88);
        served == 3
    };
    let frames = client.read_until(last).await;
    assert_eq!(served, 3);
    assert!(!frames.iter().any(|frame| frame.kind == GOAWAY));
    let resets: Vec<_> = frames.iter().filter(|frame| frame.kind == RST_STREAM).collect();
    assert!(resets.iter().all(|frame| frame.stream < 201), "{resets:?}");
    let refused = resets.iter().filter(|frame| frame.payload == REFUSED_STREAM_CODE).count();
    assert_eq!(refused, 24, "all but those whose response waits for the client");
}

#[tokio::test]
async fn requests_without_a_key_are_bounded_per_connection() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    // All of them are taken: none is reset.
    let mut client = FrameClient::connect(stage.address()).await;
    client.send([PREFACE, &encode_frame(SETTINGS, 0, 0, ""), &get_frames(1, 60, &[])].concat()).await;
    let frames = client.read_until(|frame| frame.stream == 119 && frame.flags & END_STREAM > 0).await;
    assert_eq!(frames.iter().filter(|frame| frame.kind == HEADERS).count(), 60);
    // None of them is taken: after many that are reset the connection ends, and names the last stream that it saw.
    let mut client = FrameClient::connect(stage.address()).await;
    client.send([preface_with_closed_windows(), get_frames(1, 50, &[])].concat()).await;
    let frames = client.read_until(|_| false).await;
    let ends = |kind| frames.iter().filter(move |frame| frame.kind == kind);
    assert!(ends(RST_STREAM).count() >= 40, "{}", ends(RST_STREAM).count());
    let last = ends(GOAWAY).next_back().expect("the client is told so");
    assert_eq!(last.payload, [0, 0, 0, 99, 0, 0, 0, 0]);
    // All of them are taken: it ends all the same when there are no more.
    let mut client = FrameClient::connect(stage.address()).await;
    client
        .send(
            [PREFACE, &encode_frame(SETTINGS, 0, 0, ""), &get_frames(1, 80, &[("x-a", &"y".repeat(400))])]
                .concat(),
        )
        .await;
    let frames = client.read_until(|_| false).await;
    let answered = frames.iter().filter(|frame| frame.kind == HEADERS).count();
    assert_eq!(answered, 80);
    let last = frames.iter().rfind(|frame| frame.kind == GOAWAY).expect("the client is told so");
    assert_eq!(last.payload, [0, 0, 0, 159, 0, 0, 0, 0]);
    // One head of the largest size is no more than that.
    let mut client = FrameClient::connect(stage.address()).await;
    let block =
        encode_head("GET", &[("x-api-key", &client_key("billing")), ("x-large", &"y".repeat(50_000))]);
    let bytes = [PREFACE, &encode_frame(SETTINGS, 0, 0, ""), &frames_of(1, &block)].concat();
    client.send([bytes, get_frames(3, 1, &[("x-api-key", &client_key("billing"))])].concat()).await;
    let mut served = 0;
    client
        .read_until(|frame| {
            served += u32::from(frame.kind == HEADERS && frame.payload[0] == 0x88);
            served == 2
        })
        .await;
    assert_eq!(served, 2);
}

/// The frames of a connection's settings: those of SETTINGS, those that acknowledge.
fn settings_of(frames: &[Frame]) -> (usize, usize) {
    let settings = frames.iter().filter(|frame| frame.kind == SETTINGS);
    let acks = settings.clone().filter(|frame| frame.flags & ACK > 0).count();
    (settings.count() - acks, acks)
}

#[tokio::test]
async fn settings_come_at_once_and_only_once() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = FrameClient::connect(stage.address()).await;
    client.send([PREFACE, &encode_frame(SETTINGS, 0, 0, "")].concat()).await;
    let before = client.read_until(|frame| frame.kind == SETTINGS && frame.flags & ACK > 0).await;
    assert_eq!((before.len(), settings_of(&before)), (2, (1, 1)));
    // A head that begins late may be large all the same.
    client.send(encode_frame(SETTINGS, ACK, 0, "")).await;
    let block =
        encode_head("GET", &[("x-api-key", &client_key("billing")), ("x-large", &"y".repeat(50_000))]);
    client.send(frames_of(1, &block)).await;
    let last = |frame: &Frame| frame.stream == 1 && frame.flags & END_STREAM > 0;
    let after = client.read_until(last).await;
    assert!(after.iter().any(|frame| frame.kind == HEADERS && frame.payload[0] == 0x88), "{after:?}");
    assert_eq!(settings_of(&after), (0, 0), "{after:?}");
    assert!(after.iter().any(|frame| frame.kind == WINDOW_UPDATE && frame.stream == 0));
}

#[tokio::test]
async fn a_first_head_that_is_too_large_ends_the_connection() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = FrameClient::connect(stage.address()).await;
    client.send([PREFACE, &encode_frame(SETTINGS, 0, 0, ""), &half_head(1, 64_000)].concat()).await;
    let frames = client.read_until(|_| false).await;
    let away = frames.iter().find(|frame| frame.kind == GOAWAY).expect("the client is told so");
    assert_eq!(away.payload, [0, 0, 0, 0, 0, 0, 0, 11]);
}

/// What callers without a key may leave a connection with.
fn attacks() -> Vec<(&'static str, Vec<u8>)> {
    let get = format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n");
    let post = format!("POST /hr{USER_GET} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n");
    vec![
        ("nothing", Vec::new()),
        ("half a request", get.as_bytes()[..20].to_vec()),
        ("half a preface", PREFACE[..10].to_vec()),
        ("settings", preface_with_closed_windows()),
        ("pings", [preface_with_closed_windows(), encode_frame(PING, 0, 0, [1; 8]).repeat(5_000)].concat()),
        (
            "half a head over HTTP/2",
            [preface_with_closed_windows(), encode_frame(HEADERS, 0, 1, encode_head("GET", &[]))].concat(),
        ),
        ("a stream with a shut window", [preface_with_closed_windows(), get_frames(1, 1, &[])].concat()),
        ("many of them", [preface_with_closed_windows(), get_frames(1, 250, &[])].concat()),
        ("a body that does not come", post.into_bytes()),
        (
            "such a body over HTTP/2",
            [preface_with_closed_windows(), encode_frame(HEADERS, END_HEADERS, 1, encode_head("POST", &[]))]
                .concat(),
        ),
        ("a request that was refused", get.clone().into_bytes()),
        ("requests sent ahead", get.repeat(20_000).into_bytes()),
    ]
}

#[tokio::test]
async fn unauthenticated_connections_block_no_authenticated_client() {
    let (_wecom, _dir, _proxy, address) = start_program("max_connections = 8").await;
    for (what, bytes) in attacks() {
        let mut crowd = Vec::new();
        for _ in 0..8 {
            let stream = with_timeout(TcpStream::connect(address)).await.expect("a connection");
            crowd.push(send_without_reading(stream, &bytes).await);
        }
        for _ in 0..3 {
            let took = keyed_request_time(address).await;
            assert!(took < MAX_LATENCY, "{what}: {took:?}");
        }
    }
}

/// Opens a connection every few milliseconds, says this on it, and keeps the last ones.
async fn reconnect_forever(address: SocketAddr, bytes: Vec<u8>) {
    let mut kept = VecDeque::new();
    let mut next = tokio::time::interval(Duration::from_millis(20));
    loop {
        next.tick().await;
        let Ok(mut stream) = TcpStream::connect(address).await else { return };
        let _ = timeout(Duration::from_millis(2), stream.write_all(&bytes)).await;
        kept.push_back(stream);
        if kept.len() > 16 {
            kept.pop_front();
        }
    }
}

#[tokio::test]
async fn reconnecting_clients_block_no_authenticated_client() {
    let (_wecom, _dir, _proxy, address) = start_program("max_connections = 64").await;
    for (what, bytes) in attacks() {
        let flood: Vec<_> = (0..8).map(|_| tokio::spawn(reconnect_forever(address, bytes.clone()))).collect();
        for _ in 0..5 {
            let took = keyed_request_time(address).await;
            assert!(took < MAX_LATENCY, "{what}: {took:?}");
        }
        flood.iter().for_each(|one| one.abort());
    }
}

#[tokio::test]
async fn unix_socket_clients_block_no_authenticated_client() {
    let wecom = crate::leak_detector::start_simulator(Settings::default()).await;
    let dir = tempfile::TempDir::new().expect("a directory");
    let listen = "[\"127.0.0.1:0\", \"unix:{dir}/proxy.sock\"]\nmax_connections = 4";
    let toml = CONFIG_WITH_CLIENTS.replacen("\"127.0.0.1:0\"", listen, 1);
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), &toml)).await;
    let line = proxy.err.wait_for_line("ready listen=").await;
    let listen = crate::process::log_field(&line, "listen");
    let address = listen.split(", ").find_map(|address| address.parse().ok()).expect("an address");
    for (what, bytes) in attacks() {
        let mut crowd = Vec::new();
        for _ in 0..4 {
            let stream =
                with_timeout(UnixStream::connect(dir.path().join("proxy.sock"))).await.expect("a socket");
            crowd.push(send_without_reading(stream, &bytes).await);
        }
        let took = keyed_request_time(address).await;
        assert!(took < MAX_LATENCY, "{what}: {took:?}");
    }
}

#[tokio::test]
async fn authenticated_connection_is_not_evicted_for_others() {
    let (_wecom, _dir, _proxy, address) = start_program("max_connections = 4").await;
    let mut kept = RawConnection::connect(address).await;
    let call =
        format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {}\r\n\r\n", client_key("billing"));
    kept.send(&call).await.expect("it is taken");
    assert!(kept.read_response().await.0.starts_with("HTTP/1.1 200"));
    tokio::time::sleep(Duration::from_millis(600)).await;
    let mut crowd = Vec::new();
    for _ in 0..20 {
        let stream = with_timeout(TcpStream::connect(address)).await.expect("a connection");
        crowd.push(send_without_reading(stream, &preface_with_closed_windows()).await);
    }
    keyed_request_time(address).await;
    kept.send(&call).await.expect("it is taken");
    assert!(kept.read_response().await.0.starts_with("HTTP/1.1 200"), "it is not closed for theirs");
}
