//! §5: bodies stream in both directions, with backpressure from the slower side.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use wecom_proxy::simulator::{Fault, generated_bytes};

use crate::{
    harness::{ECHO, OPEN_CONFIG, TestClient, TestProxy, USER_GET, with_timeout},
    raw_http::{ManualUpstream, RawConnection, raw_get},
};

/// More than the socket buffers and the proxy together may buffer.
const LARGE_BODY_BYTES: usize = 40_000_000;
/// A write that is blocked for this long counts as backpressure, which has no event of its own.
const STALL_TIMEOUT: Duration = Duration::from_millis(500);

/// Writes until backpressure blocks; returns the number of bytes written.
async fn write_until_blocked(connection: &mut RawConnection, limit: usize) -> usize {
    let (chunk, mut written) = (vec![b'x'; 64 * 1024], 0);
    while written < limit
        && timeout(STALL_TIMEOUT, connection.send(&chunk)).await.is_ok_and(|result| result.is_ok())
    {
        written += chunk.len();
    }
    written
}

#[tokio::test]
async fn download_is_streamed() {
    for framing in ["Content-Length: 10", "Transfer-Encoding: chunked", "Connection: close"] {
        let chunked = framing.contains("chunked");
        for http2 in [false, true] {
            let mut upstream = ManualUpstream::new().await;
            let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
            let mut client = match http2 {
                true => TestClient::connect_http2(proxy.address()).await,
                false => TestClient::connect_http1(proxy.address()).await,
            };
            let request = Request::get(format!("/hr{USER_GET}")).body(Default::default()).expect("a request");
            let respond = async {
                let mut call = upstream.next_call().await;
                let first = if chunked { "5\r\nfirst\r\n" } else { "first" };
                let head = format!("HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n{framing}\r\n\r\n{first}");
                call.connection.send(head).await.expect("sent");
                call
            };
            let (response, mut call) = tokio::join!(with_timeout(client.send(request)), respond);
            let mut body = response.expect("a head").into_body();
            let first =
                with_timeout(body.frame()).await.expect("a frame").expect("data").into_data().expect("data");
            assert_eq!(first, "first", "{framing}");
            call.connection
                .send(if chunked { "4\r\nlast\r\n0\r\n\r\n" } else { "-last" })
                .await
                .expect("sent");
            drop(call);
            let rest = with_timeout(body.collect()).await.expect("the rest").to_bytes();
            assert_eq!(rest, if chunked { "last" } else { "-last" }, "{framing}");
        }
    }
}

#[tokio::test]
async fn json_is_buffered_only_until_the_errcode_is_seen() {
    let mut upstream = ManualUpstream::new().await;
    let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection.send(raw_get(USER_GET)).await.expect("sent");
    let mut call = upstream.next_call().await;
    let prefix = r#"{"errcode":0,"userlist":["#;
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n";
    call.connection.send(format!("{head}{prefix}")).await.expect("sent");
    assert!(connection.read_head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(connection.read_exact(prefix.len()).await, prefix.as_bytes());
}

#[tokio::test]
async fn upload_is_streamed() {
    let mut upstream = ManualUpstream::new().await;
    let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection
        .send("POST /hr/cgi-bin/media/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfirst")
        .await
        .expect("sent");
    let mut call = upstream.next_call().await;
    assert!(call.head.contains("content-length: 10\r\n"), "{}", call.head);
    assert_eq!(call.connection.read_exact(5).await, b"first");
    connection.send("-last").await.expect("sent");
    assert_eq!(call.connection.read_exact(5).await, b"-last");
    call.connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("sent");
    assert_eq!(connection.read_response().await.1, "ok");
}

/// A body whose length its sender does not declare.
struct BodyWithoutLength(Option<Bytes>);

impl Body for BodyWithoutLength {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[tokio::test]
async fn small_body_without_a_length_gets_one() {
    let proxy = TestProxy::start_open().await;
    for (path, body) in [(ECHO, "twelve bytes"), (ECHO, ""), ("/cgi-bin/webhook/send?key=none", "{}")] {
        let uri = format!("/hr{path}");
        let request = |uri: &str| {
            let body = BodyWithoutLength(Some(Bytes::from_static(body.as_bytes())));
            Request::post(uri).header("host", "x").body(body).expect("a request")
        };
        let path = path.split('?').next().expect("a path");
        let expect_length = || {
            let record = proxy.last_request(path);
            assert_eq!(record.header_values("content-length"), [body.len().to_string()], "{path}");
            assert!(record.header_values("transfer-encoding").is_empty(), "{path}");
        };
        let stream = TcpStream::connect(proxy.address()).await.expect("a connection");
        let (mut http1, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a connection");
        tokio::spawn(connection);
        with_timeout(http1.send_request(request(&uri))).await.expect("a response");
        expect_length();

        let stream = TcpStream::connect(proxy.address()).await.expect("a connection");
        let (mut http2, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("a connection");
        tokio::spawn(connection);
        let uri = format!("http://{}{uri}", proxy.address());
        let mut request = request(&uri);
        request.headers_mut().remove("host");
        with_timeout(http2.send_request(request)).await.expect("a response");
        expect_length();
    }
}

/// A body that streams on is sent as it arrives; the second attempt has all of it.
#[tokio::test]
async fn second_attempt_of_a_streamed_body_has_a_length() {
    for chunk in ["5\r\nfirst\r\n".to_owned(), format!("{:x}\r\n{}\r\n", 70_000, "x".repeat(70_000))] {
        let mut upstream = ManualUpstream::new().await;
        let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
        let mut connection = RawConnection::connect(proxy.address()).await;
        let head = "POST /hr/cgi-bin/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        connection.send(format!("{head}{chunk}")).await.expect("sent");
        let mut call = upstream.next_call().await;
        assert!(call.head.contains("transfer-encoding: chunked\r\n"), "{}", call.head);
        let refusal = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 17\r\nConnection: close\r\n\r\n{\"errcode\":42001}";
        call.connection.send(refusal).await.expect("sent");
        connection.send("5\r\n-last\r\n0\r\n\r\n").await.expect("sent");
        let mut second = upstream.next_call().await;
        let length = chunk.len() - chunk.find('\n').expect("a line") - 3 + 5;
        assert!(second.head.contains(&format!("content-length: {length}\r\n")), "{}", second.head);
        assert!(second.connection.read_exact(length).await.ends_with(b"-last"));
        second.connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("sent");
        assert_eq!(connection.read_response().await.1, "ok");
    }
}

#[tokio::test]
async fn required_length_is_sent_for_slow_and_large_bodies() {
    let config =
        OPEN_CONFIG.replace("[admin]", "require_length = true\n[replay]\nmemory = \"64KiB\"\n[admin]");
    let proxy = TestProxy::start_with_config(&config).await;
    for path in [ECHO, "/cgi-bin/webhook/send?key=none"] {
        let mut connection = RawConnection::connect(proxy.address()).await;
        let head =
            format!("POST /hr{path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        connection.send(head).await.expect("sent");
        // Longer than a small body may take.
        tokio::time::sleep(Duration::from_millis(120)).await;
        let rest = format!("{:x}\r\n{}\r\n0\r\n\r\n", 100_000, "x".repeat(100_000));
        connection.send(rest).await.expect("sent");
        assert!(connection.read_response().await.0.starts_with("HTTP/1.1 200 "), "{path}");
        let record = proxy.last_request(path.split('?').next().expect("a path"));
        assert_eq!(record.header_values("content-length"), ["100005"], "{path}");
        // The simulator does not read the body of a call with an unknown webhook key.
        assert!(path != ECHO || record.body_bytes == 100_005, "{record:?}");
    }
}

#[tokio::test]
async fn large_download_arrives_complete() {
    let proxy = TestProxy::start_open().await;
    for http2 in [false, true] {
        let mut client = match http2 {
            true => TestClient::connect_http2(proxy.address()).await,
            false => TestClient::connect_http1(proxy.address()).await,
        };
        let response = client.get("/cgi-bin/media/get?media_id=generated-10485760").await;
        assert_eq!((response.body.len(), response.header("content-length")), (10_485_760, "10485760"));
        let mut at = 0;
        while at < response.body.len() {
            let expected = generated_bytes(at as u64, response.body.len() - at);
            assert!(response.body[at..].starts_with(&expected), "at {at}");
            at += expected.len();
        }
    }
}

#[tokio::test]
async fn bytes_after_the_last_request_do_not_truncate_the_response() {
    let mut upstream = ManualUpstream::new().await;
    let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
    // A client with a small receive buffer: the proxy has the end of the response long before the client reads it.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(16 * 1024).expect("a socket");
    let mut connection = RawConnection::from_stream(
        with_timeout(socket.connect(proxy.address())).await.expect("a connection"),
    );
    let request = format!("GET /hr{USER_GET} HTTP/1.0\r\nHost: x\r\n\r\n");
    connection.send(&request).await.expect("sent");
    let mut call = upstream.next_call().await;
    call.connection.send("HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\n\r\n").await.expect("sent");
    let (chunk, mut written) = (vec![b'x'; 64 * 1024], 0);
    while written < LARGE_BODY_BYTES
        && timeout(STALL_TIMEOUT, call.connection.stream.writable()).await.is_ok()
    {
        written += call.connection.stream.try_write(&chunk).unwrap_or(0);
    }
    drop(call);
    connection.send(&request).await.expect("sent");
    connection.read_head().await;
    let (body, end) = connection.read_to_end().await;
    end.expect("an orderly end");
    assert_eq!(body.len(), written);
}

#[tokio::test]
async fn client_not_reading_applies_backpressure_to_the_upstream() {
    let mut upstream = ManualUpstream::new().await;
    let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection.send(raw_get(USER_GET)).await.expect("sent");
    let mut call = upstream.next_download().await;
    let written = write_until_blocked(&mut call.connection, LARGE_BODY_BYTES).await;
    assert!(written < LARGE_BODY_BYTES, "the proxy took {written} unread bytes");
    assert!(connection.read_head().await.starts_with("HTTP/1.1 200 "));
    connection.read_exact(written / 2).await;
    call.connection.send(vec![b'x'; 64 * 1024]).await.expect("sent after the client reads");
}

#[tokio::test]
async fn upstream_not_reading_applies_backpressure_to_the_client() {
    let mut upstream = ManualUpstream::new().await;
    let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection
        .send(format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n"))
        .await
        .expect("sent");
    let _call = upstream.next_call().await;
    let written = write_until_blocked(&mut connection, LARGE_BODY_BYTES).await;
    assert!(written < LARGE_BODY_BYTES, "the proxy took {written} unread bytes");
}

#[tokio::test]
async fn aborted_upload_never_looks_complete_to_the_upstream() {
    let proxy = TestProxy::start_open().await;
    proxy.get(USER_GET).await.assert_ok();
    for framing in ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        proxy.wecom.reset();
        let mut connection = RawConnection::connect(proxy.address()).await;
        connection.send(format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\n{framing}")).await.expect("sent");
        proxy.wecom.wait_until(|observed| observed.received_count(ECHO) == 1).await.expect("a request");
        drop(connection);
        proxy.wecom.wait_until(|observed| observed.in_flight() == 0).await.expect("a released request");
        assert_eq!(proxy.wecom.executed_count(ECHO), 0);
    }
}

#[tokio::test]
async fn one_byte_chunks_arrive_complete() {
    let proxy = TestProxy::start_open().await;
    proxy.wecom.inject(Fault::chunked(1)).expect("a fault");
    proxy.get(USER_GET).await.assert_ok();
    let response = proxy.get("/cgi-bin/media/get?media_id=generated-3000").await;
    assert_eq!(response.body, generated_bytes(0, 3000));
}

#[tokio::test]
async fn body_reset_with_no_error_is_never_complete() {
    let mut upstream = ManualUpstream::new().await;
    let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
    let socket = with_timeout(TcpStream::connect(proxy.address())).await.expect("a connection");
    let (mut client, connection) = h2::client::handshake(socket).await.expect("a connection");
    tokio::spawn(connection);
    let request = Request::post("http://proxy.test/hr/cgi-bin/x").body(()).expect("a request");
    let (_response, mut body) = client.send_request(request, false).expect("sent");
    body.send_data(bytes::Bytes::from_static(b"half"), false).expect("sent");
    let mut call = upstream.next_call().await;
    assert_eq!(call.connection.read_exact(9).await, b"4\r\nhalf\r\n");
    body.send_reset(h2::Reason::NO_ERROR);
    assert_eq!(call.connection.read_to_end().await.0, b"", "the last chunk would complete the body");
}
