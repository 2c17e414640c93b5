//! An upstream of HTTP/2 that resets, refuses, hangs up and lets wait: what one caller suffers is no other's concern, and
//! nothing is sent twice that may have been done.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderName, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::{
    harness::{TestClient, TestProxy, USER_GET, wait_for, with_timeout},
    raw_http::RawConnection,
    token_refresh_http2::{config_with_ca, http2_server_config},
};

const CHUNK_BYTES: usize = 16 * 1024;

/// What the upstream was asked, and what it sent.
#[derive(Default)]
struct Http2Upstream {
    request_lines: Mutex<Vec<String>>,
    connections: AtomicUsize,
    sent_bytes: AtomicUsize,
    /// Responses without an end of which no more is taken.
    cut: AtomicUsize,
}

impl Http2Upstream {
    /// How often this was asked, over all connections.
    fn request_count(&self, line: &str) -> usize {
        let heard = self.request_lines.lock().unwrap_or_else(PoisonError::into_inner);
        heard.iter().filter(|other| *other == line).count()
    }

    async fn listen(self: Arc<Self>, listener: TcpListener, acceptor: TlsAcceptor, streams: u32) {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(self.clone().serve(socket, acceptor.clone(), streams));
        }
    }

    async fn serve(self: Arc<Self>, socket: TcpStream, acceptor: TlsAcceptor, streams: u32) {
        let Ok(stream) = acceptor.accept(socket).await else { return };
        let mut builder = h2::server::Builder::new();
        let Ok(mut connection) = builder.max_concurrent_streams(streams).handshake(stream).await else {
            return;
        };
        self.connections.fetch_add(1, Ordering::Relaxed);
        while let Some(Ok((request, respond))) = connection.accept().await {
            let line = format!("{} {}", request.method(), request.uri().path());
            let first = self.request_count(&line) == 0;
            self.request_lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            match request.uri().path() {
                "/cgi-bin/closes-once" if first => return,
                "/cgi-bin/goes-once" if first => connection.abrupt_shutdown(Reason::INTERNAL_ERROR),
                _ => drop(tokio::spawn(self.clone().respond(request, respond, first))),
            }
        }
    }

    async fn respond(
        self: Arc<Self>,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        first: bool,
    ) {
        match request.uri().path() {
            "/cgi-bin/hangs" => std::future::pending().await,
            "/cgi-bin/refuses-early" => {
                let head = Response::builder().header("content-type", "application/json").body(());
                let sent = respond.send_response(head.expect("a head"), false);
                // Whoever sends the request's body has heard of the head by then, and waits for more of the body.
                tokio::time::sleep(Duration::from_millis(50)).await;
                let body = r#"{"errcode":40014,"errmsg":"invalid access_token"}"#;
                let _ = sent.and_then(|mut stream| stream.send_data(body.into(), true));
                // It neither takes the body nor says that it will not.
                let _kept = request;
                std::future::pending().await
            }
            "/cgi-bin/resets" => respond.send_reset(Reason::INTERNAL_ERROR),
            "/cgi-bin/hints" => {
                let hint = Response::builder().status(103).body(()).expect("a hint");
                respond.send_informational(hint).expect("sent");
                respond.send_reset(Reason::INTERNAL_ERROR);
            }
            "/cgi-bin/refuses" => respond.send_reset(Reason::REFUSED_STREAM),
            "/cgi-bin/refuses-once" if first => respond.send_reset(Reason::REFUSED_STREAM),
            "/cgi-bin/ends-early" => {
                let Ok(mut stream) = respond.send_response(Response::new(()), false) else { return };
                let _ = stream.send_data("half".into(), false);
                // The caller has the head by then.
                tokio::time::sleep(Duration::from_millis(50)).await;
                stream.send_reset(Reason::NO_ERROR);
            }
            "/cgi-bin/media/get" => self.send_forever(respond, CHUNK_BYTES).await,
            "/cgi-bin/crumbs" => self.send_forever(respond, 1).await,
            "/cgi-bin/events" => self.send_forever(respond, 20).await,
            "/cgi-bin/quotes" => {
                let name = HeaderName::from_lowercase(b"x\"y").expect("the library takes it");
                let head = Response::builder().header(name, "z").body(()).expect("a head");
                let _ = respond.send_response(head, true);
            }
            _ => {
                let body = r#"{"errcode":0,"access_token":"TOKEN-OF-THE-PEER","expires_in":7200}"#;
                let head = Response::builder().header("content-type", "application/json").body(());
                let sent = respond.send_response(head.expect("a head"), false);
                let _ = sent.and_then(|mut stream| stream.send_data(body.into(), true));
            }
        }
    }

    /// A response without an end, in frames of at most this length.
    async fn send_forever(&self, mut respond: SendResponse<Bytes>, length: usize) {
        let Ok(mut stream) = respond.send_response(Response::new(()), false) else { return };
        loop {
            stream.reserve_capacity(length);
            let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { break };
            let room = room.min(length);
            if stream.send_data(vec![b'x'; room].into(), false).is_err() {
                break;
            }
            let sent = self.sent_bytes.fetch_add(room, Ordering::Relaxed);
            if sent.is_multiple_of(64 * length) {
                tokio::task::yield_now().await;
            }
        }
        self.cut.fetch_add(1, Ordering::Relaxed);
    }
}

/// A proxy before an upstream that takes this many requests at once on a connection.
async fn start_proxy(streams: u32) -> (TestProxy, Arc<Http2Upstream>, TempDir) {
    let (server, dir) = http2_server_config();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let peer = Arc::new(Http2Upstream::default());
    tokio::spawn(peer.clone().listen(listener, TlsAcceptor::from(server), streams));
    (TestProxy::start_with_upstream(address, &config_with_ca(&dir)).await, peer, dir)
}

async fn request_status(stage: &TestProxy, method: Method, path: &str) -> u16 {
    stage.request(Request::builder().method(method).uri(format!("/hr{path}")), "").await.status.as_u16()
}

#[tokio::test]
async fn hanging_requests_do_not_block_others() {
    let (stage, peer, _dir) = start_proxy(4).await;
    let (stage, calls) = (Arc::new(stage), 60);
    stage.get(USER_GET).await.assert_ok();
    for _ in 0..calls {
        let stage = stage.clone();
        tokio::spawn(async move { stage.get("/cgi-bin/hangs").await });
    }
    wait_for("all calls", async || peer.request_count("GET /cgi-bin/hangs") == calls).await;
    for _ in 0..8 {
        stage.get(USER_GET).await.assert_ok();
    }
    let connections = peer.connections.load(Ordering::Relaxed);
    assert!((calls / 4..calls / 2).contains(&connections), "{connections}");
}

/// Many downloads of which nothing is taken, all on one connection.
async fn start_unread_downloads(
    proxy: SocketAddr,
    path: &str,
    downloads: usize,
) -> http2::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(proxy).await.expect("a connection");
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1024);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.expect("a handshake");
    tokio::spawn(connection);
    for _ in 0..downloads {
        let request = Request::get(format!("http://proxy.test/hr{path}"));
        let response = sender.send_request(request.body(Full::default()).expect("a request"));
        let response = with_timeout(response).await.expect("an answer");
        tokio::spawn(async move {
            let _kept = response;
            std::future::pending::<()>().await;
        });
    }
    sender
}

#[tokio::test]
async fn unread_downloads_do_not_block_others() {
    let (stage, peer, _dir) = start_proxy(1000).await;
    let mut sender = start_unread_downloads(stage.address(), "/cgi-bin/media/get?media_id=1", 60).await;
    // What waits for its taker is far more than what hyper lets wait on a connection by itself.
    wait_for("full windows", async || peer.sent_bytes.load(Ordering::Relaxed) > 12 << 20).await;
    let request = Request::get(format!("http://proxy.test/hr{USER_GET}")).body(Full::default());
    let response = with_timeout(sender.send_request(request.expect("a request"))).await.expect("an answer");
    assert_eq!(response.status(), 200);
    stage.get(USER_GET).await.assert_ok();
}

#[tokio::test]
async fn frames_of_one_byte_that_nobody_takes_have_a_bound() {
    let (stage, peer, _dir) = start_proxy(1000).await;
    let _kept = start_unread_downloads(stage.address(), "/cgi-bin/crumbs", 1).await;
    wait_for("an end", async || peer.cut.load(Ordering::Relaxed) == 1).await;
    // Another connection serves on.
    stage.get(USER_GET).await.assert_ok();
}

#[tokio::test]
async fn small_events_that_are_taken_have_no_bound() {
    let (stage, peer, _dir) = start_proxy(1000).await;
    let stream = TcpStream::connect(stage.address()).await.expect("a connection");
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("a handshake");
    tokio::spawn(connection);
    let request = Request::get("http://proxy.test/hr/cgi-bin/events").body(Full::<Bytes>::default());
    let response = with_timeout(sender.send_request(request.expect("a request"))).await.expect("a response");
    let (mut body, mut taken) = (response.into_body(), 0);
    // Twice what would be too much if it were not taken.
    while taken < 2 * 70_000 * 20 {
        let frame = with_timeout(body.frame()).await.expect("no end").expect("no error");
        taken += frame.data_ref().map_or(0, Bytes::len);
    }
    assert_eq!(peer.cut.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn early_answered_body_is_released_with_its_client() {
    let (stage, peer, _dir) = start_proxy(100).await;
    stage.get(USER_GET).await.assert_ok();
    let (half, shelf) = ("x".repeat(20_000), stage.app.replay_budget());
    // The first one is sent twice; then the agent is left alone, and the others are told at once.
    for nth in 1..4 {
        let mut line = RawConnection::connect(stage.address()).await;
        let head = "POST /hr/cgi-bin/refuses-early HTTP/1.1\r\nHost: x\r\nContent-Length: 40000\r\n\r\n";
        line.send(format!("{head}{half}")).await.expect("it is taken");
        let (head, body) = line.read_response().await;
        assert!(head.contains("\r\nconnection: close\r\n") && body.contains("40014"), "{head}{body}");
        drop(line);
        wait_for("an empty shelf", async || shelf.memory_used() + shelf.disk_used() == 0).await;
        assert_eq!(peer.request_count("POST /cgi-bin/refuses-early"), nth + 1);
    }
}

#[tokio::test]
async fn reset_stream_is_not_retried_and_the_connection_stays() {
    let (stage, peer, _dir) = start_proxy(100).await;
    let mut caller = TestClient::connect_http1(stage.address()).await;
    caller.get(USER_GET).await.assert_ok();
    let connections = peer.connections.load(Ordering::Relaxed);
    for path in ["/cgi-bin/resets", "/cgi-bin/hints"] {
        for method in [Method::GET, Method::POST] {
            let request = Request::builder().method(method.clone()).uri(format!("/hr{path}"));
            assert_eq!(caller.request(request, "").await.status, 502, "{method} {path}");
            assert_eq!(peer.request_count(&format!("{method} {path}")), 1);
        }
    }
    caller.get(USER_GET).await.assert_ok();
    assert_eq!(peer.connections.load(Ordering::Relaxed), connections);
}

#[tokio::test]
async fn response_with_an_invalid_header_name_is_upstream_broke() {
    let (stage, peer, _dir) = start_proxy(100).await;
    stage.get("/cgi-bin/quotes").await.assert_proxy_error("upstream-broke", 502, -1);
    assert_eq!(peer.request_count("GET /cgi-bin/quotes"), 1);
    stage.get(USER_GET).await.assert_ok();
}

#[tokio::test]
async fn refused_stream_is_retried_once() {
    let (stage, peer, _dir) = start_proxy(100).await;
    assert_eq!(request_status(&stage, Method::POST, "/cgi-bin/refuses-once").await, 200);
    assert_eq!(peer.request_count("POST /cgi-bin/refuses-once"), 2);
    assert_eq!(request_status(&stage, Method::POST, "/cgi-bin/refuses").await, 502);
    assert_eq!(peer.request_count("POST /cgi-bin/refuses"), 2);
}

#[tokio::test]
async fn closed_http2_connection_retries_get_and_fails_post() {
    for path in ["/cgi-bin/closes-once", "/cgi-bin/goes-once"] {
        for (method, answered, heard) in [(Method::GET, 200, 2), (Method::POST, 502, 1)] {
            let (stage, peer, _dir) = start_proxy(100).await;
            let mut caller = TestClient::connect_http1(stage.address()).await;
            caller.get(USER_GET).await.assert_ok();
            let request = Request::builder().method(method.clone()).uri(format!("/hr{path}"));
            assert_eq!(caller.request(request, "").await.status, answered, "{method} {path}");
            assert_eq!(peer.request_count(&format!("{method} {path}")), heard, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn response_reset_with_no_error_never_looks_complete() {
    let (stage, _peer, _dir) = start_proxy(100).await;
    let mut line = RawConnection::connect(stage.address()).await;
    line.send("GET /hr/cgi-bin/ends-early HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("it is taken");
    let (came, _) = line.read_to_end().await;
    let came = String::from_utf8_lossy(&came);
    assert!(!came.ends_with("0\r\n\r\n") || came.starts_with("HTTP/1.1 502 "), "{came}");
    stage.get(USER_GET).await.assert_ok();
}
