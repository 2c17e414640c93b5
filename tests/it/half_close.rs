//! Clients that shut down their sending side after a complete request, and read their whole response.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use wecom_proxy::simulator::Fault;

use crate::{
    certificates::Authority,
    harness::{ECHO, OPEN_CONFIG, TestClient, TestProxy, USER_GET, with_timeout},
    raw_http::{ManualUpstream, RawConnection, raw_get},
};

const SINK: &str = "/cgi-bin/simulator/sink";
/// Half of a streamed body.
const HALF_BYTES: usize = 150_000;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// How clients connect to the proxy.
#[derive(Clone, Copy, Debug)]
enum Listener {
    Tcp,
    Unix,
    Tls,
}

impl Listener {
    const ALL: [Self; 3] = [Self::Tcp, Self::Unix, Self::Tls];

    fn config(self, authority: &Authority) -> String {
        let listen = "listen = \"127.0.0.1:0\"";
        let other = match self {
            Self::Tcp => listen.to_owned(),
            Self::Unix => "listen = [\"127.0.0.1:0\", \"unix:{dir}/proxy.sock\"]".to_owned(),
            Self::Tls => format!("{listen}\n{}", authority.tls_config_line("localhost")),
        };
        OPEN_CONFIG.replacen(listen, &other, 1)
    }

    async fn connect(self, proxy: &TestProxy, authority: &Authority) -> Box<dyn Stream> {
        match self {
            Self::Tcp => Box::new(RawConnection::connect(proxy.address()).await.stream),
            Self::Unix => {
                let path = proxy.dir.path().join("proxy.sock");
                Box::new(tokio::net::UnixStream::connect(path).await.expect("a connection"))
            }
            Self::Tls => {
                Box::new(authority.connect_tls(proxy.address(), &[], None).await.expect("a handshake"))
            }
        }
    }
}

/// Sends all of it and, under TLS, close_notify; then FIN.
async fn send_and_stop(stream: &mut dyn Stream, bytes: &[u8]) {
    with_timeout(stream.write_all(bytes)).await.expect("sent");
    with_timeout(stream.shutdown()).await.expect("sent");
}

/// All that comes until an orderly end, which under TLS is close_notify.
async fn read_to_end(stream: &mut dyn Stream, what: &str) -> String {
    let mut received = Vec::new();
    let end = with_timeout(stream.read_to_end(&mut received)).await;
    let received = String::from_utf8_lossy(&received).into_owned();
    assert!(end.is_ok(), "{what}: {end:?} after {received}");
    received
}

/// Waits until the proxy has handled what its sockets had received before.
async fn settle(proxy: &TestProxy) {
    for _ in 0..3 {
        TestClient::connect_http1(proxy.admin_address()).await.get("/healthz").await;
    }
}

#[tokio::test]
async fn fin_with_the_request_gets_a_whole_response() {
    let authority = Authority::new();
    for listener in Listener::ALL {
        let proxy = TestProxy::start_with_config(&listener.config(&authority)).await;
        let mut calls = 0;
        for version in ["1.0", "1.1"] {
            for (method, body) in [("GET", ""), ("POST", "Content-Length: 2\r\n\r\n{}")] {
                let what = format!("{listener:?}, {method}, HTTP/{version}");
                proxy.wecom.inject(Fault::hold().on_path(SINK)).expect("a fault");
                let mut stream = listener.connect(&proxy, &authority).await;
                let end = if body.is_empty() { "\r\n" } else { body };
                let request = format!("{method} /hr{SINK} HTTP/{version}\r\nHost: x\r\n{end}");
                send_and_stop(&mut *stream, request.as_bytes()).await;
                calls += 1;
                proxy.wecom.wait_until(|seen| seen.received_count(SINK) == calls).await.expect("a request");
                settle(&proxy).await;
                proxy.wecom.release_held();
                let response = read_to_end(&mut *stream, &what).await;
                assert!(response.starts_with(&format!("HTTP/{version} 200 ")), "{what}: {response}");
                assert!(response.ends_with('}'), "{what}: {response}");
            }
        }
    }
}

#[tokio::test]
async fn fin_before_a_local_response_gets_an_orderly_end() {
    let authority = Authority::new();
    for listener in Listener::ALL {
        let proxy = TestProxy::start_with_config(&listener.config(&authority)).await;
        let mut stream = listener.connect(&proxy, &authority).await;
        send_and_stop(&mut *stream, b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let response = read_to_end(&mut *stream, &format!("{listener:?}")).await;
        assert!(response.starts_with("HTTP/1.1 4") && response.ends_with('}'), "{listener:?}: {response}");
    }
}

#[tokio::test]
async fn fin_during_a_streamed_response_leaves_it_whole() {
    let authority = Authority::new();
    for listener in Listener::ALL {
        for version in ["1.0", "1.1"] {
            for chunked in [false, true] {
                let what = format!("{listener:?}, HTTP/{version}, chunked: {chunked}");
                stop_during_response(listener, &authority, version, chunked, &what).await;
            }
        }
    }
}

async fn stop_during_response(
    listener: Listener,
    authority: &Authority,
    version: &str,
    chunked: bool,
    what: &str,
) {
    let mut upstream = ManualUpstream::new().await;
    let proxy = TestProxy::start_with_upstream(upstream.address, &listener.config(authority)).await;
    let mut stream = listener.connect(&proxy, authority).await;
    let request = format!("GET /hr{USER_GET} HTTP/{version}\r\nHost: x\r\n\r\n");
    with_timeout(stream.write_all(request.as_bytes())).await.expect("sent");
    with_timeout(stream.flush()).await.expect("sent");
    let mut call = upstream.next_call().await;
    let (framing, [first, second]) = match chunked {
        false => {
            (format!("Content-Length: {}", 2 * HALF_BYTES), ["x", "y"].map(|byte| byte.repeat(HALF_BYTES)))
        }
        true => (
            "Transfer-Encoding: chunked".to_owned(),
            [("x", ""), ("y", "0\r\n\r\n")]
                .map(|(byte, end)| format!("{HALF_BYTES:x}\r\n{}\r\n{end}", byte.repeat(HALF_BYTES))),
        ),
    };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\n{framing}\r\n\r\n");
    call.connection.send(head + &first).await.expect("sent");
    let mut received = vec![0; HALF_BYTES / 2];
    with_timeout(stream.read_exact(&mut received)).await.expect("half of the first half");
    send_and_stop(&mut *stream, b"").await;
    settle(&proxy).await;
    call.connection.send(&second).await.expect("sent");
    let response = String::from_utf8_lossy(&received).into_owned() + &read_to_end(&mut *stream, what).await;
    let (head, body) = response.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with(&format!("HTTP/{version} 200 ")), "{what}: {head}");
    let count = |byte| body.bytes().filter(|other| *other == byte).count();
    assert_eq!((count(b'x'), count(b'y')), (HALF_BYTES, HALF_BYTES), "{what}");
    assert_eq!(body.ends_with("\r\n0\r\n\r\n"), chunked && version == "1.1", "{what}");
}

#[tokio::test]
async fn pipelined_requests_before_fin_are_all_answered() {
    let authority = Authority::new();
    for listener in Listener::ALL {
        let proxy = TestProxy::start_with_config(&listener.config(&authority)).await;
        proxy.wecom.inject(Fault::hold().on_path(ECHO)).expect("a fault");
        let mut stream = listener.connect(&proxy, &authority).await;
        let post = format!("POST /hr{SINK} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}");
        send_and_stop(&mut *stream, (raw_get(ECHO) + &post + &raw_get(USER_GET)).as_bytes()).await;
        proxy.wecom.wait_until(|seen| seen.received_count(ECHO) == 1).await.expect("a request");
        settle(&proxy).await;
        proxy.wecom.release_held();
        let responses = read_to_end(&mut *stream, &format!("{listener:?}")).await;
        assert_eq!(responses.matches("HTTP/1.1 200 ").count(), 3, "{listener:?}: {responses}");
        assert_eq!(responses.matches("\r\nconnection: close\r\n").count(), 1, "{listener:?}: {responses}");
        assert_eq!(proxy.wecom.executed_count(SINK), 1, "{listener:?}");
    }
}

#[tokio::test]
async fn reset_after_fin_ends_the_upstream_request() {
    for version in ["1.0", "1.1"] {
        let proxy = TestProxy::start_open().await;
        proxy.wecom.inject(Fault::hold().on_path(SINK)).expect("a fault");
        let mut connection = RawConnection::connect(proxy.address()).await;
        let request = format!("GET /hr{SINK} HTTP/{version}\r\nHost: x\r\n\r\n");
        send_and_stop(&mut connection.stream, request.as_bytes()).await;
        proxy.wecom.wait_until(|seen| seen.received_count(SINK) == 1).await.expect("a request");
        settle(&proxy).await;
        assert_eq!(proxy.wecom.observe(|seen| seen.in_flight()), 1, "HTTP/{version}");
        connection.reset();
        proxy.wecom.wait_until(|seen| seen.in_flight() == 0).await.expect("a cancelled request");
    }
}

#[tokio::test]
async fn closed_client_ends_its_streamed_response() {
    let mut upstream = ManualUpstream::new().await;
    let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection.send(raw_get(USER_GET)).await.expect("sent");
    let mut call = upstream.next_download().await;
    assert!(connection.read_head().await.starts_with("HTTP/1.1 200 "));
    drop(connection);
    // A failed write to the client ends the call.
    let sending = async { while call.connection.send(vec![b'x'; 64 * 1024]).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), sending).await.expect("the call ends");
}
