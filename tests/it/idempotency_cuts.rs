//! `Idempotency-Key` and an upstream that goes away at each point between request and response: it never executes a
//! request twice unless the client says `send-again`.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Request, Response};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    harness::{OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, wait_for, with_timeout},
    idempotency::{SEND, assert_replayed, message, send, send_again, with_state},
    raw_http::RawConnection,
    token_refresh_http2::{config_with_ca, http2_server_config},
};

const TOKEN_RESPONSE: &str =
    r#"{"errcode":0,"errmsg":"ok","access_token":"TOKEN-OF-THE-PEER","expires_in":7200}"#;
/// Larger than what arrives at once.
const CONTENT_BYTES: usize = 300 * 1024;

/// Where the upstream goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cut {
    /// The connection is accepted, and nothing happens on it.
    Silent,
    /// Right after the connection, and the handshakes on it, were made.
    Connected,
    /// After the request's head.
    Head,
    /// In the request's body.
    MidBody,
    /// After the request's body: it is executed from here on.
    Body,
    /// In the response's head, or over HTTP/2 before it.
    MidResponseHead,
    /// After the response's head.
    ResponseHead,
    /// In the response's body.
    MidResponseBody,
}

const CUTS: [Cut; 7] = [
    Cut::Connected,
    Cut::Head,
    Cut::MidBody,
    Cut::Body,
    Cut::MidResponseHead,
    Cut::ResponseHead,
    Cut::MidResponseBody,
];

/// An upstream that goes away once where a test says, and else responds.
#[derive(Default)]
struct CuttingUpstream {
    next_cut: Mutex<Option<Cut>>,
    accepted: AtomicUsize,
    /// Messages that it received completely.
    executed: AtomicUsize,
}

trait UpstreamStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> UpstreamStream for T {}

impl CuttingUpstream {
    fn cut_next(&self, cut: Cut) {
        *self.next_cut.lock().unwrap_or_else(PoisonError::into_inner) = Some(cut);
    }

    fn take_cut(&self, is_due: impl Fn(Cut) -> bool) -> Option<Cut> {
        self.next_cut.lock().unwrap_or_else(PoisonError::into_inner).take_if(|cut| is_due(*cut))
    }

    async fn listen(self: Arc<Self>, listener: TcpListener, tls: Option<TlsAcceptor>) {
        while let Ok((socket, _)) = listener.accept().await {
            self.accepted.fetch_add(1, SeqCst);
            if self.take_cut(|cut| cut == Cut::Silent).is_some() {
                tokio::spawn(async move {
                    let _kept = socket;
                    std::future::pending::<()>().await
                });
                continue;
            }
            let (upstream, tls) = (self.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => upstream.serve_http1(Box::pin(socket)).await.unwrap_or_default(),
                    Some(tls) => {
                        let Ok(stream) = tls.accept(socket).await else { return };
                        upstream.serve_http2(Box::pin(stream)).await;
                    }
                }
            });
        }
    }

    /// Serves one request of a connection, which is closed then.
    async fn serve_http1(&self, mut stream: Pin<Box<dyn UpstreamStream>>) -> io::Result<()> {
        if self.take_cut(|cut| cut == Cut::Connected).is_some() {
            return Ok(());
        }
        let mut received = Vec::new();
        let head_end = loop {
            if let Some(at) = memchr::memmem::find(&received, b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&received[..head_end]).to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
        let cut = if length > 0 { self.take_cut(|_| true) } else { None };
        if cut == Some(Cut::Head) {
            return Ok(());
        }
        let wanted = head_end + if cut == Some(Cut::MidBody) { length / 2 } else { length };
        while received.len() < wanted {
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        }
        if cut == Some(Cut::MidBody) {
            return Ok(());
        }
        self.executed.fetch_add(usize::from(length > 0), SeqCst);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            TOKEN_RESPONSE.len()
        );
        let sent = match cut {
            Some(Cut::Body) => 0,
            Some(Cut::MidResponseHead) => head.len() / 2,
            Some(Cut::ResponseHead) => head.len(),
            Some(Cut::MidResponseBody) => head.len() + TOKEN_RESPONSE.len() / 2,
            _ => head.len() + TOKEN_RESPONSE.len(),
        };
        stream.write_all(&(head + TOKEN_RESPONSE).as_bytes()[..sent]).await?;
        stream.shutdown().await
    }

    async fn serve_http2(self: Arc<Self>, stream: Pin<Box<dyn UpstreamStream>>) {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        if self.take_cut(|cut| cut == Cut::Connected).is_some() {
            return;
        }
        let mut next = None;
        loop {
            let accepted = match next.take() {
                Some(accepted) => Some(accepted),
                None => connection.accept().await,
            };
            let Some(Ok((request, respond))) = accepted else { return };
            let mut responding = tokio::spawn(self.clone().respond_http2(request.into_body(), respond));
            // Data arrives while the connection is polled. Where the response is not whole, the connection ends.
            let is_whole = loop {
                tokio::select! {
                    is_whole = &mut responding => break is_whole.unwrap_or(false),
                    accepted = connection.accept(), if next.is_none() => match accepted {
                        None => return,
                        accepted => next = accepted,
                    },
                }
            };
            if !is_whole {
                return;
            }
        }
    }

    /// Handles a request; whether the response is whole.
    async fn respond_http2(self: Arc<Self>, mut body: RecvStream, mut respond: SendResponse<Bytes>) -> bool {
        let has_body = !body.is_end_stream();
        // A connection that is used again was made before.
        let cut = if has_body { self.take_cut(|cut| cut != Cut::Silent) } else { None };
        if cut.is_some_and(|cut| cut <= Cut::Head) {
            return false;
        }
        let mut received = 0;
        while let Some(Ok(chunk)) = body.data().await {
            received += chunk.len();
            let _ = body.flow_control().release_capacity(chunk.len());
            if cut == Some(Cut::MidBody) && received >= CONTENT_BYTES / 2 {
                return false;
            }
        }
        self.executed.fetch_add(usize::from(has_body), SeqCst);
        if matches!(cut, Some(Cut::Body | Cut::MidResponseHead)) {
            return false;
        }
        let head = Response::builder().header("content-type", "application/json").body(()).expect("a head");
        let Ok(mut stream) = respond.send_response(head, false) else { return false };
        let (first, rest) = TOKEN_RESPONSE.split_at(TOKEN_RESPONSE.len() / 2);
        match cut {
            None => stream.send_data(TOKEN_RESPONSE.into(), true).is_ok(),
            Some(cut) => {
                if cut == Cut::MidResponseBody {
                    let _ = stream.send_data(first.into(), false);
                }
                // The rest is never sent: the connection ends when the client has read the head.
                let _ = rest;
                tokio::task::yield_now().await;
                false
            }
        }
    }
}

/// A proxy in front of the upstream, with a token. Over HTTP/2 the upstream has TLS.
async fn start(is_http2: bool) -> (TestProxy, Arc<CuttingUpstream>, impl Sized) {
    let (server, dir) = http2_server_config();
    let upstream = Arc::new(CuttingUpstream::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let tls = is_http2.then(|| TlsAcceptor::from(server));
    tokio::spawn(upstream.clone().listen(listener, tls));
    let toml = if is_http2 { config_with_ca(&dir) } else { OPEN_CONFIG.to_owned() };
    let proxy = TestProxy::start_with_upstream(address, &with_state(&toml)).await;
    // Fetched without a request, so that no worker has a connection.
    let refresh = Request::post("/api/agents/hr/refresh").header("x-requested-with", "test");
    let refreshed = TestClient::connect_http1(proxy.admin_address()).await.request(refresh, "").await;
    assert_eq!(refreshed.status, 200, "{}", refreshed.text());
    (proxy, upstream, dir)
}

fn is_in_doubt(response: &TestResponse) -> bool {
    response.header("x-wecom-proxy-error") == "in-doubt"
}

async fn assert_executed_once(proxy: &TestProxy, upstream: &CuttingUpstream, cut: Cut, key: &str) {
    let content = "x".repeat(CONTENT_BYTES);
    let before = upstream.executed.load(SeqCst);
    let executed = || upstream.executed.load(SeqCst) - before;
    upstream.cut_next(cut);
    let first = send(proxy, key, &content).await;
    let repeats = [send(proxy, key, &content).await, send(proxy, key, &content).await];
    assert!(executed() <= 1, "{cut:?}: {}", executed());
    if cut > Cut::Connected {
        assert_eq!(first.status, 502, "{cut:?}: {}", first.text());
        assert!(repeats.iter().all(is_in_doubt), "{cut:?}: {} {}", repeats[0].text(), repeats[1].text());
        assert_eq!(executed(), usize::from(cut >= Cut::Body), "{cut:?}");
    }
    let before_again = executed();
    if is_in_doubt(&repeats[1]) {
        let again = send_again(proxy, key, &content).await;
        assert_eq!(executed(), before_again + 1, "{cut:?}");
        assert_replayed(&send_again(proxy, key, &content).await, again.assert_ok());
        assert_replayed(&send(proxy, key, &content).await, &again);
    } else {
        // Nothing had been sent.
        assert_eq!((executed(), repeats[1].header("idempotency-replayed")), (1, "true"), "{cut:?}");
    }
    assert!(executed() <= before_again + 1, "{cut:?}");
}

#[tokio::test]
async fn upstream_that_ends_at_any_point_executes_once() {
    for is_http2 in [false, true] {
        let (proxy, upstream, _dir) = start(is_http2).await;
        for cut in CUTS {
            let key = format!("key-{is_http2}-{cut:?}");
            assert_executed_once(&proxy, &upstream, cut, &key).await;
        }
    }
}

/// Starts the upstream once more on the same address.
async fn listen_again(upstream: &Arc<CuttingUpstream>, address: SocketAddr) {
    let listener = TcpListener::bind(address).await.expect("the same port");
    tokio::spawn(upstream.clone().listen(listener, None));
}

#[tokio::test]
async fn connection_that_cannot_be_made_releases_the_key() {
    let upstream = Arc::new(CuttingUpstream::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let listening = tokio::spawn(upstream.clone().listen(listener, None));
    let proxy = TestProxy::start_with_upstream(address, &with_state(OPEN_CONFIG)).await;
    proxy.get(USER_GET).await.assert_ok();
    listening.abort();
    let _ = listening.await;
    for _ in 0..2 {
        let refused = send(&proxy, "key-1", "hello").await;
        refused.assert_proxy_error("upstream-unreachable", 502, -1);
    }
    listen_again(&upstream, address).await;
    let first = send(&proxy, "key-1", "hello").await;
    assert_eq!(first.assert_ok().header("idempotency-replayed"), "");
    assert_replayed(&send(&proxy, "key-1", "hello").await, &first);
    assert_eq!(upstream.executed.load(SeqCst), 1);
}

#[tokio::test]
async fn client_that_leaves_while_the_proxy_connects_releases_its_key() {
    let (proxy, upstream, _dir) = start(true).await;
    let accepted = upstream.accepted.load(SeqCst);
    upstream.cut_next(Cut::Silent);
    let mut client = RawConnection::connect(proxy.address()).await;
    let body = message("hello");
    let head = format!(
        "POST /hr{SEND} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nIdempotency-Key: key-1\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.send(head + &body).await.expect("sent");
    // The TLS handshake does not begin, so nothing of the request is sent.
    wait_for("the connection", async || upstream.accepted.load(SeqCst) == accepted + 1).await;
    client.reset();
    let repeated = with_timeout(send(&proxy, "key-1", "hello")).await;
    assert_eq!(repeated.assert_ok().header("idempotency-replayed"), "");
    assert_eq!(upstream.executed.load(SeqCst), 1);
}
