//! An HTTP/2 upstream that resets, refuses, hangs or closes: one client's failure does not affect the others, and no request
//! that may have been executed is retried.

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
    harness::{TestClient, TestProxy, USER_GET, wait_for, wait_for_work, with_timeout},
    raw_http::RawConnection,
    token_refresh_http2::{config_with_ca, http2_server_config},
};

const CHUNK_BYTES: usize = 16 * 1024;

/// An HTTP/2 upstream that counts its requests and the bytes it sent.
#[derive(Default)]
struct Http2Upstream {
    request_lines: Mutex<Vec<String>>,
    connections: AtomicUsize,
    sent_bytes: AtomicUsize,
    /// Endless responses, and requests whose response was complete, that the proxy has cancelled.
    cancelled: AtomicUsize,
}

impl Http2Upstream {
    /// The number of requests with this method and path, over all connections.
    fn request_count(&self, line: &str) -> usize {
        let request_lines = self.request_lines.lock().unwrap_or_else(PoisonError::into_inner);
        request_lines.iter().filter(|entry| *entry == line).count()
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
            let request_line = format!("{} {}", request.method(), request.uri().path());
            let first = self.request_count(&request_line) == 0;
            self.request_lines.lock().unwrap_or_else(PoisonError::into_inner).push(request_line);
            match request.uri().path() {
                "/cgi-bin/closes-once" if first => return,
                "/cgi-bin/goaway-once" if first => connection.abrupt_shutdown(Reason::INTERNAL_ERROR),
                path => {
                    if path == "/cgi-bin/goaway-amid-upload" {
                        connection.graceful_shutdown();
                    }
                    drop(tokio::spawn(self.clone().respond(request, respond, first)));
                }
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
                // The task that sends the request body has seen the head by then, and waits for more data from the client.
                tokio::time::sleep(Duration::from_millis(50)).await;
                let body = r#"{"errcode":40014,"errmsg":"invalid access_token"}"#;
                let _ = sent.and_then(|mut stream| stream.send_data(body.into(), true));
                // Neither reads the request body nor resets the stream.
                let _kept = request;
                std::future::pending().await
            }
            "/cgi-bin/responds-first" => {
                let Ok(mut stream) = respond.send_response(Response::new(()), false) else { return };
                let _ = stream.send_data("{}".into(), true);
                let mut body = request.into_body();
                while let Some(Ok(chunk)) = body.data().await {
                    let _ = body.flow_control().release_capacity(chunk.len());
                }
                self.cancelled.fetch_add(1, Ordering::Relaxed);
            }
            "/cgi-bin/goaway-amid-upload" => {
                let Ok(mut stream) = respond.send_response(Response::new(()), false) else { return };
                // Follows the GOAWAY.
                let _ = stream.send_data("received ".into(), false);
                let received = read_to_end(request.into_body()).await;
                let _ = stream.send_data(received.to_string().into(), true);
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
                // The client has the head by then.
                tokio::time::sleep(Duration::from_millis(50)).await;
                stream.send_reset(Reason::NO_ERROR);
            }
            "/cgi-bin/media/get" => self.send_forever(respond, CHUNK_BYTES).await,
            "/cgi-bin/one-byte-frames" => self.send_forever(respond, 1).await,
            "/cgi-bin/events" => self.send_forever(respond, 20).await,
            "/cgi-bin/quotes" => {
                let name = HeaderName::from_lowercase(b"x\"y").expect("a header name");
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

    /// Sends an endless response in frames of at most `length` bytes.
    async fn send_forever(&self, mut respond: SendResponse<Bytes>, length: usize) {
        let Ok(mut stream) = respond.send_response(Response::new(()), false) else { return };
        loop {
            stream.reserve_capacity(length);
            let Some(Ok(capacity)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { break };
            let capacity = capacity.min(length);
            if stream.send_data(vec![b'x'; capacity].into(), false).is_err() {
                break;
            }
            let sent = self.sent_bytes.fetch_add(capacity, Ordering::Relaxed);
            if sent.is_multiple_of(64 * length) {
                tokio::task::yield_now().await;
            }
        }
        self.cancelled.fetch_add(1, Ordering::Relaxed);
    }
}

/// The number of bytes of a body that ends properly; 0 otherwise.
async fn read_to_end(mut body: RecvStream) -> usize {
    let mut received = 0;
    while let Some(chunk) = body.data().await {
        let Ok(chunk) = chunk else { return 0 };
        received += chunk.len();
        let _ = body.flow_control().release_capacity(chunk.len());
    }
    received
}

/// A proxy and an upstream with this SETTINGS_MAX_CONCURRENT_STREAMS.
async fn start_proxy(streams: u32) -> (TestProxy, Arc<Http2Upstream>, TempDir) {
    let (server, dir) = http2_server_config();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let upstream = Arc::new(Http2Upstream::default());
    tokio::spawn(upstream.clone().listen(listener, TlsAcceptor::from(server), streams));
    (TestProxy::start_with_upstream(address, &config_with_ca(&dir)).await, upstream, dir)
}

async fn request_status(proxy: &TestProxy, method: Method, path: &str) -> u16 {
    proxy.request(Request::builder().method(method).uri(format!("/hr{path}")), "").await.status.as_u16()
}

#[tokio::test]
async fn hanging_requests_do_not_block_others() {
    let (proxy, upstream, _dir) = start_proxy(4).await;
    let (proxy, count) = (Arc::new(proxy), 60);
    proxy.get(USER_GET).await.assert_ok();
    for _ in 0..count {
        let proxy = proxy.clone();
        tokio::spawn(async move { proxy.get("/cgi-bin/hangs").await });
    }
    wait_for("all calls", async || upstream.request_count("GET /cgi-bin/hangs") == count).await;
    for _ in 0..8 {
        proxy.get(USER_GET).await.assert_ok();
    }
    let connections = upstream.connections.load(Ordering::Relaxed);
    assert!((count / 4..count / 2).contains(&connections), "{connections}");
}

/// Starts downloads on one connection and reads nothing of them.
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
        let response = with_timeout(response).await.expect("a response");
        tokio::spawn(async move {
            let _kept = response;
            std::future::pending::<()>().await;
        });
    }
    sender
}

#[tokio::test]
async fn unread_downloads_do_not_block_others() {
    let (proxy, upstream, _dir) = start_proxy(1000).await;
    let mut sender = start_unread_downloads(proxy.address(), "/cgi-bin/media/get?media_id=1", 60).await;
    // Far more unread data than hyper buffers per connection by default.
    wait_for("full windows", async || upstream.sent_bytes.load(Ordering::Relaxed) > 12 << 20).await;
    let request = Request::get(format!("http://proxy.test/hr{USER_GET}")).body(Full::default());
    let response = with_timeout(sender.send_request(request.expect("a request"))).await.expect("a response");
    assert_eq!(response.status(), 200);
    proxy.get(USER_GET).await.assert_ok();
}

#[tokio::test]
async fn unread_one_byte_frames_are_bounded() {
    let (proxy, upstream, _dir) = start_proxy(1000).await;
    let _kept = start_unread_downloads(proxy.address(), "/cgi-bin/one-byte-frames", 1).await;
    wait_for_work("an end", async || upstream.cancelled.load(Ordering::Relaxed) == 1).await;
    // Another connection still serves requests.
    proxy.get(USER_GET).await.assert_ok();
}

#[tokio::test]
async fn consumed_small_events_are_not_bounded() {
    let (proxy, upstream, _dir) = start_proxy(1000).await;
    let stream = TcpStream::connect(proxy.address()).await.expect("a connection");
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("a handshake");
    tokio::spawn(connection);
    let request = Request::get("http://proxy.test/hr/cgi-bin/events").body(Full::<Bytes>::default());
    let response = with_timeout(sender.send_request(request.expect("a request"))).await.expect("a response");
    let (mut body, mut received) = (response.into_body(), 0);
    // Twice the bound for unread data.
    while received < 2 * 70_000 * 20 {
        let frame = with_timeout(body.frame()).await.expect("no end").expect("no error");
        received += frame.data_ref().map_or(0, Bytes::len);
    }
    assert_eq!(upstream.cancelled.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn body_refused_early_is_released_with_its_client() {
    // With the larger body, the task that sends it waits for the upstream's flow control instead of for the client.
    for half in [20_000, 120_000] {
        let (proxy, upstream, _dir) = start_proxy(100).await;
        proxy.get(USER_GET).await.assert_ok();
        let budget = proxy.app.replay_budget();
        // The first request is retried; then the refresh cooldown refuses the others at once.
        for nth in 1..4 {
            let mut connection = RawConnection::connect(proxy.address()).await;
            let head = "POST /hr/cgi-bin/refuses-early HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\n\r\n";
            connection.send(format!("{head}{}", "x".repeat(half))).await.expect("sent");
            let (head, body) = connection.read_response().await;
            assert!(head.contains("\r\nconnection: close\r\n") && body.contains("40014"), "{head}{body}");
            drop(connection);
            wait_for("an empty replay budget", async || budget.memory_used() + budget.disk_used() == 0).await;
            assert_eq!(upstream.request_count("POST /cgi-bin/refuses-early"), nth + 1);
        }
    }
}

/// Streams that the upstream never ends would stay counted, and their connection open, for ever.
#[tokio::test]
async fn body_refused_early_leaves_its_stream_to_others() {
    let (proxy, upstream, _dir) = start_proxy(2).await;
    proxy.get(USER_GET).await.assert_ok();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    // More than all streams of one connection for each worker.
    for _ in 0..4 * workers {
        let mut connection = RawConnection::connect(proxy.address()).await;
        let head = "POST /hr/cgi-bin/refuses-early HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\n\r\n";
        connection.send(format!("{head}{}", "x".repeat(120_000))).await.expect("sent");
        assert!(connection.read_response().await.1.contains("40014"));
    }
    // gettoken has another.
    assert!(upstream.connections.load(Ordering::Relaxed) <= workers + 1);
}

#[tokio::test]
async fn stream_with_a_complete_response_ends_while_its_client_sends_nothing() {
    let (proxy, upstream, _dir) = start_proxy(100).await;
    proxy.get(USER_GET).await.assert_ok();
    let socket = TcpStream::connect(proxy.address()).await.expect("a connection");
    let (sender, connection) = h2::client::handshake(socket).await.expect("a handshake");
    tokio::spawn(connection);
    let mut sender = sender.ready().await.expect("a stream");
    let request = Request::post("http://proxy.test/hr/cgi-bin/responds-first").body(()).expect("a request");
    let (response, mut body) = sender.send_request(request, false).expect("sent");
    body.send_data(vec![b'x'; 20_000].into(), false).expect("sent");
    let mut response = with_timeout(response).await.expect("a response").into_body();
    assert_eq!(with_timeout(response.data()).await.expect("a body").expect("no error"), "{}");
    wait_for_work("an end", async || upstream.cancelled.load(Ordering::Relaxed) == 1).await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    let head = "POST /hr/cgi-bin/responds-first HTTP/1.1\r\nHost: x\r\nContent-Length: 40000\r\n\r\n";
    connection.send(format!("{head}{}", "x".repeat(20_000))).await.expect("sent");
    let (head, body) = connection.read_response().await;
    assert!(head.contains("\r\nconnection: close\r\n") && body == "{}", "{head}{body}");
    wait_for_work("an end", async || upstream.cancelled.load(Ordering::Relaxed) == 2).await;
    drop(connection);
}

#[tokio::test]
async fn upload_goes_on_after_a_graceful_goaway() {
    let (proxy, _upstream, _dir) = start_proxy(100).await;
    proxy.get(USER_GET).await.assert_ok();
    let socket = TcpStream::connect(proxy.address()).await.expect("a connection");
    let (sender, connection) = h2::client::handshake(socket).await.expect("a handshake");
    tokio::spawn(connection);
    let mut sender = sender.ready().await.expect("a stream");
    let uri = "http://proxy.test/hr/cgi-bin/goaway-amid-upload";
    let request = Request::post(uri).body(()).expect("a request");
    let (response, mut body) = sender.send_request(request, false).expect("sent");
    body.send_data(vec![b'x'; 20_000].into(), false).expect("sent");
    let mut response = with_timeout(response).await.expect("a response").into_body();
    assert_eq!(with_timeout(response.data()).await.expect("a body").expect("no error"), "received ");
    body.send_data(vec![b'x'; 20_000].into(), true).expect("sent");
    assert_eq!(with_timeout(response.data()).await.expect("a body").expect("no error"), "40000");
}

#[tokio::test]
async fn reset_stream_is_not_retried_and_the_connection_stays() {
    let (proxy, upstream, _dir) = start_proxy(100).await;
    let mut client = TestClient::connect_http1(proxy.address()).await;
    client.get(USER_GET).await.assert_ok();
    let connections = upstream.connections.load(Ordering::Relaxed);
    for path in ["/cgi-bin/resets", "/cgi-bin/hints"] {
        for method in [Method::GET, Method::POST] {
            let request = Request::builder().method(method.clone()).uri(format!("/hr{path}"));
            assert_eq!(client.request(request, "").await.status, 502, "{method} {path}");
            assert_eq!(upstream.request_count(&format!("{method} {path}")), 1);
        }
    }
    client.get(USER_GET).await.assert_ok();
    assert_eq!(upstream.connections.load(Ordering::Relaxed), connections);
}

#[tokio::test]
async fn response_with_an_invalid_header_name_is_upstream_broke() {
    let (proxy, upstream, _dir) = start_proxy(100).await;
    proxy.get("/cgi-bin/quotes").await.assert_proxy_error("upstream-broke", 502, -1);
    assert_eq!(upstream.request_count("GET /cgi-bin/quotes"), 1);
    proxy.get(USER_GET).await.assert_ok();
}

#[tokio::test]
async fn refused_stream_is_retried_once() {
    let (proxy, upstream, _dir) = start_proxy(100).await;
    assert_eq!(request_status(&proxy, Method::POST, "/cgi-bin/refuses-once").await, 200);
    assert_eq!(upstream.request_count("POST /cgi-bin/refuses-once"), 2);
    assert_eq!(request_status(&proxy, Method::POST, "/cgi-bin/refuses").await, 502);
    assert_eq!(upstream.request_count("POST /cgi-bin/refuses"), 2);
}

#[tokio::test]
async fn closed_http2_connection_retries_get_and_fails_post() {
    for path in ["/cgi-bin/closes-once", "/cgi-bin/goaway-once"] {
        for (method, status, request_count) in [(Method::GET, 200, 2), (Method::POST, 502, 1)] {
            let (proxy, upstream, _dir) = start_proxy(100).await;
            let mut client = TestClient::connect_http1(proxy.address()).await;
            client.get(USER_GET).await.assert_ok();
            let request = Request::builder().method(method.clone()).uri(format!("/hr{path}"));
            assert_eq!(client.request(request, "").await.status, status, "{method} {path}");
            assert_eq!(upstream.request_count(&format!("{method} {path}")), request_count, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn response_reset_with_no_error_never_looks_complete() {
    let (proxy, _upstream, _dir) = start_proxy(100).await;
    let mut connection = RawConnection::connect(proxy.address()).await;
    connection.send("GET /hr/cgi-bin/ends-early HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
    let (response, _) = connection.read_to_end().await;
    let response = String::from_utf8_lossy(&response);
    assert!(!response.ends_with("0\r\n\r\n") || response.starts_with("HTTP/1.1 502 "), "{response}");
    proxy.get(USER_GET).await.assert_ok();
}
