//! Timeouts of HTTP/2 connections from clients.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use wecom_proxy::simulator::Fault;

use crate::{
    harness::{ECHO, TestProxy, USER_GET, wait_for, with_timeout},
    raw_http::{ManualUpstream, RawConnection},
    timeouts::{config_with_timeouts, read_until_closed},
};

/// The preface of HTTP/2 and empty settings.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// The preface with SETTINGS_INITIAL_WINDOW_SIZE 0.
const HTTP2_PREFACE_CLOSED_WINDOWS: &[u8] =
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00";

/// The HEADERS frame of a complete GET on stream 1.
fn headers_frame(path: &str) -> Vec<u8> {
    // :method GET and :scheme http indexed; :path and :authority as literals.
    let header_block = [b"\x82\x86\x04", &[path.len() as u8][..], path.as_bytes(), b"\x01\x01x"].concat();
    [&[0, 0, header_block.len() as u8, 1, 5, 0, 0, 0, 1], &header_block[..]].concat()
}

#[tokio::test]
async fn idle_http2_connection_is_closed() {
    let proxy = TestProxy::start_with_config(&config_with_timeouts(
        "idle_timeout = \"2s\"\nheader_timeout = \"60s\"",
        "",
    ))
    .await;
    let mut without_streams = RawConnection::connect(proxy.address()).await;
    without_streams.send(HTTP2_PREFACE).await.expect("sent");

    let mut connection = RawConnection::connect(proxy.address()).await;
    let path = format!("/hr{USER_GET}");
    connection.send([HTTP2_PREFACE, &headers_frame(&path)].concat()).await.expect("sent");
    tokio::join!(read_until_closed(&mut without_streams), read_until_closed(&mut connection));
    assert_eq!(proxy.wecom.executed_count("/cgi-bin/user/get"), 1);
}

#[tokio::test]
async fn incomplete_http2_header_block_is_closed() {
    let proxy = TestProxy::start_with_config(&config_with_timeouts(
        "header_timeout = \"300ms\"\nidle_timeout = \"60s\"",
        "",
    ))
    .await;
    proxy.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let partial_headers = b"\0\0\x02\x01\x01\0\0\0\x03\x82\x86";
    let empty_continuation = b"\0\0\0\x09\0\0\0\0\x03";
    let path = format!("/hr{ECHO}");
    let complete_request = headers_frame(&path);
    // Another request in progress on the connection makes no difference.
    for prefix in [&b""[..], &complete_request] {
        for continuation in [&b""[..], empty_continuation] {
            let mut connection = RawConnection::connect(proxy.address()).await;
            connection.send([HTTP2_PREFACE, prefix, partial_headers].concat()).await.expect("sent");
            if continuation.is_empty() {
                read_until_closed(&mut connection).await;
                continue;
            }
            let mut interval = tokio::time::interval(Duration::from_millis(50));
            let send_until_closed = async {
                while connection.send(continuation).await.is_ok() {
                    interval.tick().await;
                }
            };
            with_timeout(send_until_closed).await;
        }
    }
}

#[tokio::test]
async fn header_timeout_is_for_each_http2_header_block() {
    let proxy = TestProxy::start_with_config(&config_with_timeouts(
        "header_timeout = \"500ms\"\nidle_timeout = \"60s\"",
        "",
    ))
    .await;
    let path = format!("/hr{USER_GET}");
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection.send(HTTP2_PREFACE).await.expect("sent");
    let mut interval = tokio::time::interval(Duration::from_millis(100));
    // Each write ends within a header block; none of them takes longer than 100 ms.
    let mut begun = Vec::new();
    for stream in 0..12_u8 {
        let mut frame = headers_frame(&path);
        frame[8] = 2 * stream + 1;
        let rest = frame.split_off(frame.len() - 4);
        begun.extend(frame);
        connection.send(std::mem::replace(&mut begun, rest)).await.expect("sent");
        interval.tick().await;
    }
    connection.send(begun).await.expect("sent");
    let wait = async || proxy.wecom.executed_count("/cgi-bin/user/get") == 12;
    wait_for("twelve requests", wait).await;
}

#[tokio::test]
async fn quiet_http2_client_is_pinged() {
    let proxy = TestProxy::start_with_config(&config_with_timeouts("idle_timeout = \"300ms\"", "")).await;
    proxy.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
    let path = format!("/hr{ECHO}");
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection.send([HTTP2_PREFACE, &headers_frame(&path)].concat()).await.expect("sent");
    // During a request, a silent client is not idle; a PING checks whether it is alive.
    while {
        let head = connection.read_exact(9).await;
        connection.read_exact(usize::from(head[1]) << 8 | usize::from(head[2])).await;
        (head[3], head[4]) != (6, 0)
    } {}
    proxy.wecom.release_held();
}

#[tokio::test]
async fn pinging_http2_connection_lives_until_idle_timeout() {
    let proxy = TestProxy::start_with_config(&config_with_timeouts("header_timeout = \"2s\"", "")).await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection.send(HTTP2_PREFACE).await.expect("sent");
    // Twice `header_timeout`: a PING is no header block.
    let mut pings = tokio::time::interval(Duration::from_millis(350));
    for _ in 0..12 {
        pings.tick().await;
        connection.send(b"\x00\x00\x08\x06\x00\x00\x00\x00\x00onetwo12").await.expect("an open connection");
    }
    let mut pongs = 0;
    while pongs < 12 {
        let head = connection.read_exact(9).await;
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        connection.read_exact(length).await;
        pongs += usize::from(head[3] == 6);
    }
}

#[tokio::test]
async fn http2_client_not_reading_is_reset() {
    let proxy =
        TestProxy::start_with_config(&config_with_timeouts("body_timeout = \"300ms\"", "max_in_flight = 1"))
            .await;
    // The proxy's own responses wait for the window as the upstream's do.
    for path in ["/nowhere".to_owned(), format!("/hr{ECHO}")] {
        let mut connection = RawConnection::connect(proxy.address()).await;
        connection.send([HTTP2_PREFACE_CLOSED_WINDOWS, &headers_frame(&path)].concat()).await.expect("sent");
        // The stream ends with RST_STREAM, which releases its in-flight permit.
        while {
            let head = connection.read_exact(9).await;
            connection.read_exact(usize::from(head[1]) << 8 | usize::from(head[2])).await;
            head[3] != 3
        } {}
        proxy.get(USER_GET).await.assert_ok();
    }
}

#[tokio::test]
async fn slow_http2_client_gets_the_complete_response() {
    let mut upstream = ManualUpstream::new().await;
    let proxy =
        TestProxy::start_with_upstream(upstream.address, &config_with_timeouts("body_timeout = \"5s\"", ""))
            .await;
    let tcp = tokio::net::TcpStream::connect(proxy.address()).await.expect("a connection");
    let handshake = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(20_000)
        .handshake(TokioIo::new(tcp));
    let (mut sender, connection) = handshake.await.expect("a handshake");
    tokio::spawn(connection);
    let request = Request::get(format!("http://proxy.test/hr{USER_GET}")).body(Empty::<Bytes>::new());
    let response = sender.send_request(request.expect("a request"));
    let respond = async {
        let mut call = upstream.next_call().await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: 100000\r\n\r\n";
        call.connection.send([head.as_bytes(), &[b'x'; 100_000]].concat()).await.expect("sent");
        call
    };
    let (response_head, _call) = with_timeout(async { tokio::join!(response, respond) }).await;
    let (mut body, mut received) = (response_head.expect("a response").into_body(), 0);
    while let Some(frame) = with_timeout(body.frame()).await {
        let before = received;
        received += frame.expect("more").data_ref().map_or(0, Bytes::len);
        // The at most 16 KiB that the proxy offers at once are read in half of the timeout, in frames of any size; the
        // complete body takes longer than the timeout.
        for _ in before / 10_000..received / 10_000 {
            tokio::time::sleep(Duration::from_millis(800)).await;
        }
    }
    assert_eq!(received, 100_000);
}
