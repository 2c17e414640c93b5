//! §5: bodies stream in both directions, held back by whoever is slower.

use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use wecom_proxy::simulator::{Fault, generated_bytes};

use crate::{
    harness::{ECHO, OPEN_CONFIG, TestClient, TestProxy, USER_GET, with_timeout},
    raw_http::{ManualUpstream, RawConnection},
};

/// More than the sockets on the way and the proxy together may hold.
const LARGE_BODY_BYTES: usize = 40_000_000;
/// Nothing moved for so long: whoever writes is held back. There is no event that says so.
const STALL_TIMEOUT: Duration = Duration::from_millis(500);

/// Writes until it is held back; returns how much was taken.
async fn write_until_blocked(line: &mut RawConnection, most: usize) -> usize {
    let (piece, mut taken) = (vec![b'x'; 64 * 1024], 0);
    while taken < most && timeout(STALL_TIMEOUT, line.send(&piece)).await.is_ok_and(|said| said.is_ok()) {
        taken += piece.len();
    }
    taken
}

#[tokio::test]
async fn download_is_streamed() {
    for framing in ["Content-Length: 10", "Transfer-Encoding: chunked", "Connection: close"] {
        let chunked = framing.contains("chunked");
        for http2 in [false, true] {
            let mut puppet = ManualUpstream::new().await;
            let stage = TestProxy::start_with_upstream(puppet.address, OPEN_CONFIG).await;
            let mut caller = match http2 {
                true => TestClient::connect_http2(stage.address()).await,
                false => TestClient::connect_http1(stage.address()).await,
            };
            let request = Request::get(format!("/hr{USER_GET}")).body(Default::default()).expect("a request");
            let play = async {
                let mut call = puppet.next_call().await;
                let first = if chunked { "5\r\nfirst\r\n" } else { "first" };
                let head = format!("HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n{framing}\r\n\r\n{first}");
                call.connection.send(head).await.expect("it is taken");
                call
            };
            let (response, mut call) = tokio::join!(with_timeout(caller.send(request)), play);
            let mut body = response.expect("a head").into_body();
            let first =
                with_timeout(body.frame()).await.expect("a frame").expect("data").into_data().expect("data");
            assert_eq!(first, "first", "{framing}");
            call.connection
                .send(if chunked { "4\r\nlast\r\n0\r\n\r\n" } else { "-last" })
                .await
                .expect("it is taken");
            drop(call);
            let rest = with_timeout(body.collect()).await.expect("the rest").to_bytes();
            assert_eq!(rest, if chunked { "last" } else { "-last" }, "{framing}");
        }
    }
}

#[tokio::test]
async fn json_is_buffered_only_until_the_errcode_is_seen() {
    let mut puppet = ManualUpstream::new().await;
    let stage = TestProxy::start_with_upstream(puppet.address, OPEN_CONFIG).await;
    let mut line = RawConnection::connect(stage.address()).await;
    line.send(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("it is taken");
    let mut call = puppet.next_call().await;
    let begun = r#"{"errcode":0,"userlist":["#;
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n";
    call.connection.send(format!("{head}{begun}")).await.expect("it is taken");
    assert!(line.read_head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(line.read_exact(begun.len()).await, begun.as_bytes());
}

#[tokio::test]
async fn upload_is_streamed() {
    let mut puppet = ManualUpstream::new().await;
    let stage = TestProxy::start_with_upstream(puppet.address, OPEN_CONFIG).await;
    let mut line = RawConnection::connect(stage.address()).await;
    line.send("POST /hr/cgi-bin/media/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfirst")
        .await
        .expect("taken");
    let mut call = puppet.next_call().await;
    assert!(call.head.contains("content-length: 10\r\n"), "{}", call.head);
    assert_eq!(call.connection.read_exact(5).await, b"first");
    line.send("-last").await.expect("it is taken");
    assert_eq!(call.connection.read_exact(5).await, b"-last");
    call.connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("it is taken");
    assert_eq!(line.read_response().await.1, "ok");
}

#[tokio::test]
async fn large_download_arrives_complete() {
    let stage = TestProxy::start_open().await;
    for http2 in [false, true] {
        let mut caller = match http2 {
            true => TestClient::connect_http2(stage.address()).await,
            false => TestClient::connect_http1(stage.address()).await,
        };
        let reply = caller.get("/cgi-bin/media/get?media_id=generated-10485760").await;
        assert_eq!((reply.body.len(), reply.header("content-length")), (10_485_760, "10485760"));
        let mut at = 0;
        while at < reply.body.len() {
            let expected = generated_bytes(at as u64, reply.body.len() - at);
            assert!(reply.body[at..].starts_with(&expected), "at {at}");
            at += expected.len();
        }
    }
}

#[tokio::test]
async fn bytes_after_the_last_request_do_not_truncate_the_response() {
    let mut puppet = ManualUpstream::new().await;
    let stage = TestProxy::start_with_upstream(puppet.address, OPEN_CONFIG).await;
    // A caller that takes little at a time: the answer's end is long here when it takes it.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(16 * 1024).expect("a socket");
    let mut line = RawConnection::from_stream(
        with_timeout(socket.connect(stage.address())).await.expect("a connection"),
    );
    let request = format!("GET /hr{USER_GET} HTTP/1.0\r\nHost: x\r\n\r\n");
    line.send(&request).await.expect("it is taken");
    let mut call = puppet.next_call().await;
    call.connection.send("HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\n\r\n").await.expect("it is taken");
    let (piece, mut said) = (vec![b'x'; 64 * 1024], 0);
    while said < LARGE_BODY_BYTES && timeout(STALL_TIMEOUT, call.connection.stream.writable()).await.is_ok() {
        said += call.connection.stream.try_write(&piece).unwrap_or(0);
    }
    drop(call);
    line.send(&request).await.expect("it is taken");
    line.read_head().await;
    let (body, end) = line.read_to_end().await;
    end.expect("an orderly end");
    assert_eq!(body.len(), said);
}

#[tokio::test]
async fn client_not_reading_applies_backpressure_to_the_upstream() {
    let mut puppet = ManualUpstream::new().await;
    let stage = TestProxy::start_with_upstream(puppet.address, OPEN_CONFIG).await;
    let mut line = RawConnection::connect(stage.address()).await;
    line.send(format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n")).await.expect("it is taken");
    let mut call = puppet.next_call().await;
    let head = "HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: 9000000000\r\n\r\n";
    call.connection.send(head).await.expect("it is taken");
    let taken = write_until_blocked(&mut call.connection, LARGE_BODY_BYTES).await;
    assert!(taken < LARGE_BODY_BYTES, "the proxy took {taken} bytes that nobody read");
    assert!(line.read_head().await.starts_with("HTTP/1.1 200 "));
    line.read_exact(taken / 2).await;
    call.connection.send(vec![b'x'; 64 * 1024]).await.expect("it goes on once somebody reads");
}

#[tokio::test]
async fn upstream_not_reading_applies_backpressure_to_the_client() {
    let mut puppet = ManualUpstream::new().await;
    let stage = TestProxy::start_with_upstream(puppet.address, OPEN_CONFIG).await;
    let mut line = RawConnection::connect(stage.address()).await;
    line.send(format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n"))
        .await
        .expect("taken");
    let _call = puppet.next_call().await;
    let taken = write_until_blocked(&mut line, LARGE_BODY_BYTES).await;
    assert!(taken < LARGE_BODY_BYTES, "the proxy took {taken} bytes that nobody read");
}

#[tokio::test]
async fn aborted_upload_never_looks_complete_to_the_upstream() {
    let stage = TestProxy::start_open().await;
    stage.get(USER_GET).await.assert_ok();
    for lines in ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        stage.wecom.reset();
        let mut line = RawConnection::connect(stage.address()).await;
        line.send(format!("POST /hr{ECHO} HTTP/1.1\r\nHost: x\r\n{lines}")).await.expect("it is taken");
        stage.wecom.wait_until(|seen| seen.received_count(ECHO) == 1).await.expect("it arrives");
        drop(line);
        stage.wecom.wait_until(|seen| seen.in_flight() == 0).await.expect("it is let go");
        assert_eq!(stage.wecom.executed_count(ECHO), 0);
    }
}

#[tokio::test]
async fn one_byte_chunks_arrive_complete() {
    let stage = TestProxy::start_open().await;
    stage.wecom.inject(Fault::chunked(1)).expect("a fault");
    stage.get(USER_GET).await.assert_ok();
    let reply = stage.get("/cgi-bin/media/get?media_id=generated-3000").await;
    assert_eq!(reply.body, generated_bytes(0, 3000));
}

#[tokio::test]
async fn body_reset_with_no_error_is_never_complete() {
    let mut puppet = ManualUpstream::new().await;
    let stage = TestProxy::start_with_upstream(puppet.address, OPEN_CONFIG).await;
    let socket = with_timeout(TcpStream::connect(stage.address())).await.expect("a connection");
    let (mut client, connection) = h2::client::handshake(socket).await.expect("a connection");
    tokio::spawn(connection);
    let request = Request::post("http://proxy.test/hr/cgi-bin/x").body(()).expect("a request");
    let (_response, mut body) = client.send_request(request, false).expect("it is taken");
    body.send_data(bytes::Bytes::from_static(b"half"), false).expect("it is taken");
    let mut call = puppet.next_call().await;
    assert_eq!(call.connection.read_exact(9).await, b"4\r\nhalf\r\n");
    body.send_reset(h2::Reason::NO_ERROR);
    assert_eq!(call.connection.read_to_end().await.0, b"", "the last chunk would make it whole");
}
