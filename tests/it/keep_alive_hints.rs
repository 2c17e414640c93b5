//! What an upstream says, or fails to say, about closing a connection after a response.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::net::{TcpListener, TcpStream};

use crate::{
    harness::{OPEN_CONFIG, TestClient, TestProxy},
    raw_http::RawConnection,
};

const SEND: &str = "/cgi-bin/message/send";
const BODY: &str = r#"{"errcode":0,"access_token":"TOKEN-OF-THE-PEER","expires_in":7200}"#;

/// An upstream with this header line in each response; it closes after the response to HEAD, which has no length.
async fn start(header_line: &'static str) -> (TestProxy, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (address, connections): (SocketAddr, _) =
        (listener.local_addr().expect("an address"), Arc::<AtomicUsize>::default());
    let counter = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(serve(stream, header_line));
        }
    });
    (TestProxy::start_with_upstream(address, OPEN_CONFIG).await, connections)
}

async fn serve(stream: TcpStream, header_line: &'static str) {
    stream.set_nodelay(true).expect("a socket");
    let mut connection = RawConnection::accepted(stream);
    loop {
        let head = connection.read_head().await;
        if head.is_empty() {
            return;
        }
        if head.starts_with("HEAD ") {
            let response = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{header_line}\r\n");
            let _ = connection.send(response).await;
            return;
        }
        let length = head.to_ascii_lowercase();
        let length = length.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        connection.read_exact(length.unwrap_or(0)).await;
        let length = BODY.len();
        let response = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{header_line}\r\n{BODY}"
        );
        if connection.send(response).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn post_pipelined_behind_an_unsized_head_is_not_lost() {
    let (proxy, _connections) = start("").await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    for nth in 0..60 {
        let request = format!(
            "HEAD /hr{SEND} HTTP/1.1\r\nHost: x\r\n\r\nPOST /hr{SEND} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        connection.send(request).await.expect("sent");
        let head = connection.read_head().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{nth}: {head}");
        let (head, body) = connection.read_response().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{nth}: {head}{body}");
    }
}

#[tokio::test]
async fn keep_alive_timeout_of_the_upstream_is_kept_to() {
    for (header_line, reuses) in [
        ("", true),
        ("Keep-Alive: timeout=60\r\n", true),
        ("Keep-Alive: max=9, Timeout=\"60\"\r\n", true),
        ("Keep-Alive: timeout=soon\r\n", true),
        // A second is the margin, so there is no time left.
        ("Keep-Alive: timeout=1\r\n", false),
        ("keep-alive: timeout=1, max=100\r\n", false),
    ] {
        let (proxy, connections) = start(header_line).await;
        let mut client = TestClient::connect_http1(proxy.address()).await;
        for _ in 0..5 {
            let request = http::Request::post(format!("/hr{SEND}"));
            client.request(request, "{}").await.assert_ok();
        }
        // One is gettoken's.
        let expected = if reuses { 2 } else { 6 };
        assert_eq!(connections.load(Ordering::Relaxed), expected, "{header_line}");
    }
}
