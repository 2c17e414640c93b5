//! Clients without a key: their connections use little memory, and they block no authenticated client.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use http::Request;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{Instant, timeout},
};
use wecom_proxy::simulator::Simulator;

use super::http2_frames::{
    ACK, DATA, END_HEADERS, END_STREAM, Frame, FrameClient, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, encode_frame, encode_setting, encode_string,
};
use crate::{
    harness::{CONFIG_WITH_CLIENTS, TestClient, TestProxy, USER_GET, client_key, with_timeout},
    process::Process,
    raw_http::RawConnection,
};

mod attacks;

use attacks::{
    attacks, encode_head, frames_of, get_frames, half_head, large_header_get_frames, long_target,
    preface_with_closed_windows,
};

const KIB: u64 = 1024;
/// Memory limit of a connection without a key. Futures are several times larger in an unoptimized build.
const MAX_BYTES_PER_CONNECTION: u64 = if cfg!(debug_assertions) { 128 * KIB } else { 64 * KIB };
/// The error code REFUSED_STREAM (RFC 9113, section 7).
const REFUSED_STREAM_CODE: [u8; 4] = [0, 0, 0, 7];
/// Time limit of a request with a key. It takes some milliseconds, on a busy machine or in an unoptimized build ten times as
/// long.
const MAX_LATENCY: Duration = Duration::from_secs(if cfg!(debug_assertions) { 3 } else { 1 });

/// Starts the real program with clients, and with these lines in `[server]`.
async fn start_program(lines: &str) -> (Simulator, tempfile::TempDir, Process, SocketAddr) {
    let toml = CONFIG_WITH_CLIENTS.replace("[upstream]", &format!("{lines}\n[upstream]"));
    let (wecom, dir, proxy) = Process::serve_with_simulator(&toml).await;
    let address = proxy.address().await;
    (wecom, dir, proxy, address)
}

/// The duration of a request with a valid key on a new connection.
async fn keyed_request_time(address: SocketAddr) -> Duration {
    let start = Instant::now();
    let mut client = TestClient::connect_http1(address).await;
    let request = Request::get(format!("/hr{USER_GET}")).header("x-api-key", client_key("billing"));
    client.request(request, "").await.assert_ok();
    start.elapsed()
}

/// Sends as many of these bytes as the proxy accepts, reads nothing, and leaves the connection open.
async fn send_without_reading<S: AsyncWrite + Unpin>(mut stream: S, bytes: &[u8]) -> S {
    let _ = timeout(Duration::from_millis(100), stream.write_all(bytes)).await;
    stream
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn unread_refused_streams_use_little_memory() {
    const CONNECTIONS: u64 = 40;
    let incomplete =
        [encode_head("GET", &[]), vec![0x40], encode_string(b"a"), encode_string(b""), vec![0xbe; 1900]]
            .concat();
    for (name, attack) in [
        ("bare", get_frames(1, 250, &[])),
        ("a large header", large_header_get_frames()),
        ("an incomplete head of small headers", encode_frame(HEADERS, END_STREAM, 1, incomplete)),
        (
            "bodies that are not sent",
            (0..250)
                .flat_map(|index| encode_frame(HEADERS, END_HEADERS, 2 * index + 1, encode_head("POST", &[])))
                .collect(),
        ),
        ("a long target", encode_frame(HEADERS, END_HEADERS | END_STREAM, 1, long_target(10_000))),
        ("most of a large head", half_head(1, 53_000)),
        ("most of a head of the maximum size", half_head(1, 64_500)),
        (
            "refused streams and an incomplete large head",
            [get_frames(1, 8, &[]), half_head(17, 53_000)].concat(),
        ),
        ("resets and an incomplete large head", [get_frames(1, 40, &[]), half_head(81, 53_000)].concat()),
        (
            "an incomplete large head that h2 reads",
            [encode_frame(PING, 0, 0, [1; 8]), half_head(1, 53_000)].concat(),
        ),
        (
            "an incomplete large DATA frame",
            [
                encode_frame(HEADERS, END_HEADERS, 1, encode_head("POST", &[])),
                encode_frame(DATA, 0, 1, [b'd'; 16_000])[..15_000].to_vec(),
            ]
            .concat(),
        ),
    ] {
        let (_wecom, _dir, proxy, address) = start_program("").await;
        keyed_request_time(address).await;
        let before = proxy.resident_bytes();
        let bytes = [preface_with_closed_windows(), attack].concat();
        let mut streams = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = with_timeout(TcpStream::connect(address)).await.expect("a connection");
            streams.push(send_without_reading(stream, &bytes).await);
        }
        keyed_request_time(address).await;
        let used = proxy.resident_bytes().saturating_sub(before) / CONNECTIONS;
        eprintln!("{name}: {} bytes sent use {} KiB", bytes.len(), used / KIB);
        assert!(used < MAX_BYTES_PER_CONNECTION, "{name}: {} bytes sent use {} KiB", bytes.len(), used / KIB);
    }
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn waves_of_refused_streams_leak_no_memory() {
    let (_wecom, _dir, proxy, address) = start_program("").await;
    keyed_request_time(address).await;
    let before = proxy.resident_bytes();
    let bytes = [preface_with_closed_windows(), large_header_get_frames()].concat();
    for _ in 0..8 {
        let mut streams = Vec::new();
        for _ in 0..20 {
            let stream = with_timeout(TcpStream::connect(address)).await.expect("a connection");
            streams.push(send_without_reading(stream, &bytes).await);
        }
        keyed_request_time(address).await;
    }
    keyed_request_time(address).await;
    let growth = proxy.resident_bytes().saturating_sub(before);
    assert!(growth < 32 << 20, "memory grew by {} KiB", growth / KIB);
}

#[tokio::test]
async fn refused_streams_beyond_a_few_are_reset() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = FrameClient::connect(proxy.address()).await;
    client.send([preface_with_closed_windows(), get_frames(1, 12, &[])].concat()).await;
    let mut ends = 0;
    let last = |frame: &Frame| {
        ends += u32::from([HEADERS, RST_STREAM].contains(&frame.kind));
        ends == 12
    };
    let frames = client.read_until(last).await;
    let resets = frames.iter().filter(|frame| frame.kind == RST_STREAM);
    assert!(resets.clone().all(|frame| frame.payload == REFUSED_STREAM_CODE));
    let response_count = frames.iter().filter(|frame| frame.kind == HEADERS).count();
    assert_eq!((response_count, resets.count()), (3, 9));
    let settings = frames.iter().filter(|frame| frame.kind == SETTINGS && frame.flags == 0);
    let max_streams =
        settings.flat_map(|frame| frame.payload.chunks(6)).find(|setting| setting[..2] == [0, 3]);
    assert_eq!(
        max_streams.map(|setting| &setting[2..]),
        Some(&[0, 0, 1, 0][..]),
        "SETTINGS_MAX_CONCURRENT_STREAMS is 256"
    );

    // A request with a valid key is served on the same connection, and no later stream is refused.
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
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = FrameClient::connect(proxy.address()).await;
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
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = FrameClient::connect(proxy.address()).await;
    let start = Instant::now();
    client.send([preface_with_closed_windows(), get_frames(1, 1, &[])].concat()).await;
    let frames = client.read_until(|frame| frame.kind == RST_STREAM).await;
    assert!(frames.last().is_some_and(|frame| frame.stream == 1), "{frames:?}");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}, as long as body_timeout", start.elapsed());
}

#[tokio::test]
async fn requests_with_a_key_behind_many_without_are_served() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = FrameClient::connect(proxy.address()).await;
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
    assert_eq!(refused, 27, "all except those whose response waits for the client's window");
}

#[tokio::test]
async fn requests_without_a_key_are_bounded_per_connection() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    // All responses are read: no stream is reset.
    let mut client = FrameClient::connect(proxy.address()).await;
    client.send([PREFACE, &encode_frame(SETTINGS, 0, 0, ""), &get_frames(1, 60, &[])].concat()).await;
    let frames = client.read_until(|frame| frame.stream == 119 && frame.flags & END_STREAM > 0).await;
    assert_eq!(frames.iter().filter(|frame| frame.kind == HEADERS).count(), 60);
    // No response can be sent: after many resets the connection ends with GOAWAY, which names the last processed stream.
    let mut client = FrameClient::connect(proxy.address()).await;
    client.send([preface_with_closed_windows(), get_frames(1, 50, &[])].concat()).await;
    let frames = client.read_until(|_| false).await;
    let ends = |kind| frames.iter().filter(move |frame| frame.kind == kind);
    assert!(ends(RST_STREAM).count() >= 40, "{}", ends(RST_STREAM).count());
    let last = ends(GOAWAY).next_back().expect("a GOAWAY frame");
    assert_eq!(last.payload, [0, 0, 0, 99, 0, 0, 0, 0]);
    // All responses are read: the connection ends with GOAWAY when the limit is reached.
    let mut client = FrameClient::connect(proxy.address()).await;
    client
        .send(
            [PREFACE, &encode_frame(SETTINGS, 0, 0, ""), &get_frames(1, 80, &[("x-a", &"y".repeat(400))])]
                .concat(),
        )
        .await;
    let frames = client.read_until(|_| false).await;
    let response_count = frames.iter().filter(|frame| frame.kind == HEADERS).count();
    assert_eq!(response_count, 80);
    let last = frames.iter().rfind(|frame| frame.kind == GOAWAY).expect("a GOAWAY frame");
    assert_eq!(last.payload, [0, 0, 0, 159, 0, 0, 0, 0]);
    // A single head of the maximum size stays below the limit.
    let mut client = FrameClient::connect(proxy.address()).await;
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

/// Number of SETTINGS frames, and of SETTINGS acknowledgements.
fn settings_of(frames: &[Frame]) -> (usize, usize) {
    let settings = frames.iter().filter(|frame| frame.kind == SETTINGS);
    let acks = settings.clone().filter(|frame| frame.flags & ACK > 0).count();
    (settings.count() - acks, acks)
}

#[tokio::test]
async fn settings_come_at_once_and_only_once() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = FrameClient::connect(proxy.address()).await;
    client.send([PREFACE, &encode_frame(SETTINGS, 0, 0, "")].concat()).await;
    let before = client.read_until(|frame| frame.kind == SETTINGS && frame.flags & ACK > 0).await;
    assert_eq!((before.len(), settings_of(&before)), (2, (1, 1)));
    // A head that starts later may be large too.
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
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = FrameClient::connect(proxy.address()).await;
    client.send([PREFACE, &encode_frame(SETTINGS, 0, 0, ""), &half_head(1, 70_000)].concat()).await;
    let frames = client.read_until(|_| false).await;
    let goaway = frames.iter().find(|frame| frame.kind == GOAWAY).expect("a GOAWAY frame");
    assert_eq!(goaway.payload, [0, 0, 0, 0, 0, 0, 0, 11]);
}

#[tokio::test]
async fn few_connections_without_a_key_hold_a_large_incomplete_head() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let head =
        |bytes: usize| format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\nX-Large: {}", "y".repeat(bytes));
    let mut responses = tokio::task::JoinSet::new();
    for _ in 0..80 {
        let mut connection = RawConnection::connect(proxy.address()).await;
        let sent = connection.send(head(50_000)).await;
        sent.expect("sent");
        responses.spawn(async move { connection.read_response().await.0 });
    }
    let first = with_timeout(responses.join_next()).await.expect("a connection").expect("a response");
    assert!(first.starts_with("HTTP/1.1 431 "), "{first}");
    // A smaller one is not among them, and gets its response.
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection.send(head(30_000)).await.expect("sent");
    let rest = format!("\r\nX-Api-Key: {}\r\n\r\n", client_key("billing"));
    connection.send(rest).await.expect("sent");
    let response = connection.read_response().await.0;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
}

#[tokio::test]
async fn unauthenticated_connections_block_no_authenticated_client() {
    let (_wecom, _dir, _proxy, address) = start_program("max_connections = 8").await;
    for (name, bytes) in attacks() {
        let mut streams = Vec::new();
        for _ in 0..8 {
            let stream = with_timeout(TcpStream::connect(address)).await.expect("a connection");
            streams.push(send_without_reading(stream, &bytes).await);
        }
        for _ in 0..3 {
            let duration = keyed_request_time(address).await;
            assert!(duration < MAX_LATENCY, "{name}: {duration:?}");
        }
    }
}

/// Opens a connection every 20 ms, sends these bytes on it, and keeps the last 16 open.
async fn reconnect_forever(address: SocketAddr, bytes: Vec<u8>) {
    let mut open = VecDeque::new();
    let mut interval = tokio::time::interval(Duration::from_millis(20));
    loop {
        interval.tick().await;
        let Ok(mut stream) = TcpStream::connect(address).await else { return };
        let _ = timeout(Duration::from_millis(2), stream.write_all(&bytes)).await;
        open.push_back(stream);
        if open.len() > 16 {
            open.pop_front();
        }
    }
}

#[tokio::test]
async fn reconnecting_clients_block_no_authenticated_client() {
    let (_wecom, _dir, _proxy, address) = start_program("max_connections = 64").await;
    for (name, bytes) in attacks() {
        let flood: Vec<_> = (0..8).map(|_| tokio::spawn(reconnect_forever(address, bytes.clone()))).collect();
        for _ in 0..5 {
            let duration = keyed_request_time(address).await;
            assert!(duration < MAX_LATENCY, "{name}: {duration:?}");
        }
        flood.iter().for_each(|task| task.abort());
    }
}

#[tokio::test]
async fn unix_socket_clients_block_no_authenticated_client() {
    let listen = "[\"127.0.0.1:0\", \"unix:{dir}/proxy.sock\"]\nmax_connections = 4";
    let toml = CONFIG_WITH_CLIENTS.replacen("\"127.0.0.1:0\"", listen, 1);
    let (_wecom, dir, proxy) = Process::serve_with_simulator(&toml).await;
    let line = proxy.err.wait_for_line("ready listen=").await;
    let listen = crate::process::log_field(&line, "listen");
    let address = listen.split(", ").find_map(|address| address.parse().ok()).expect("an address");
    for (name, bytes) in attacks() {
        let mut streams = Vec::new();
        for _ in 0..4 {
            let stream =
                with_timeout(UnixStream::connect(dir.path().join("proxy.sock"))).await.expect("a socket");
            streams.push(send_without_reading(stream, &bytes).await);
        }
        let duration = keyed_request_time(address).await;
        assert!(duration < MAX_LATENCY, "{name}: {duration:?}");
    }
}

#[tokio::test]
async fn authenticated_connection_is_not_evicted_for_others() {
    let (_wecom, _dir, _proxy, address) = start_program("max_connections = 4").await;
    let mut connection = RawConnection::connect(address).await;
    let request =
        format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {}\r\n\r\n", client_key("billing"));
    connection.send(&request).await.expect("sent");
    assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200"));
    tokio::time::sleep(Duration::from_millis(600)).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        let stream = with_timeout(TcpStream::connect(address)).await.expect("a connection");
        streams.push(send_without_reading(stream, &preface_with_closed_windows()).await);
    }
    keyed_request_time(address).await;
    connection.send(&request).await.expect("sent");
    assert!(
        connection.read_response().await.0.starts_with("HTTP/1.1 200"),
        "closed in favour of unauthenticated connections"
    );
}
