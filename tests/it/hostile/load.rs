//! Load by concurrent clients, most of them misbehaving. Valid requests get their own responses, nothing panics, and all
//! resources are released when the clients have left.

use std::{
    io,
    net::SocketAddr,
    panic,
    sync::{
        Arc, Once,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::Notify, task::JoinHandle, time::timeout};
use wecom_proxy::simulator::Settings;

use crate::{
    certificates::Authority,
    harness::{
        CONFIG_WITH_CLIENTS, ECHO, TestClient, TestProxy, client_key, wait_for, with_timeout,
        with_upstream_tls,
    },
    raw_http::RawConnection,
};

const CLIENT_COUNT: usize = 16;
const ROUNDS: usize = 24;
/// Served requests after which the token is revoked. Counted, not timed: if a token lived for less time than a call takes,
/// each call would be refused twice, and the agent's refresh would be in cooldown.
const REQUESTS_PER_TOKEN: usize = 8;

/// Bytes that are no valid request.
const MALFORMED_REQUESTS: &[&str] = &[
    "GET / HTTP/3.0\r\n\r\n",
    "GET /hr/cgi-bin/user/get\r\n\r\n",
    "\0\0\0",
    "GET /hr/cgi-bin/a HTTP/1.1\nHost: x\n\n",
    "POST /hr/cgi-bin/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
];

/// Number of panics on the proxy's threads.
fn panic_count() -> usize {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous_hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name().is_some_and(|name| name.starts_with("worker-") || name == "gettoken")
            {
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            previous_hook(info);
        }));
    });
    PANICS.load(Ordering::Relaxed)
}

/// A client with random actions.
struct RandomClient {
    address: SocketAddr,
    key: String,
    /// Identifies the request of the current action.
    mark: String,
    random: u64,
    /// Whether the proxy runs during the whole test.
    strict: bool,
    served: Arc<Notify>,
}

impl RandomClient {
    /// A deterministic pseudorandom number below `bound`.
    fn random_below(&mut self, bound: usize) -> usize {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % bound
    }

    /// A head without its final empty line.
    fn head(&self, method_and_path: &str, version: &str) -> String {
        format!(
            "{method_and_path}?mark={} HTTP/{version}\r\nHost: x\r\nX-Api-Key: {}\r\n",
            self.mark, self.key
        )
    }

    fn post(&self, length: usize) -> String {
        self.head(&format!("POST /hr{ECHO}"), "1.1") + &format!("Content-Length: {length}\r\n")
    }

    fn get(&self) -> String {
        self.head(&format!("GET /hr{ECHO}"), "1.1") + "\r\n"
    }

    /// Reads a response, which must belong to the current request. Returns an error if the connection closes after it.
    async fn expect_response(&self, connection: &mut RawConnection) -> io::Result<()> {
        let head = connection.read_head().await;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().expect("a number"));
        let body = connection.try_read_exact(length).await.unwrap_or_default();
        let body = String::from_utf8_lossy(&body);
        let served = head.get(8..13) == Some(" 200 ") && body.contains(&format!("mark={}", self.mark));
        if served {
            self.served.notify_one();
        }
        // The token may be revoked twice during one request.
        let accepted = served || body.contains("\"errcode\":40014,");
        assert!(accepted || !self.strict && !head.contains(" 200 "), "{head}{body}");
        // WeCom may refuse before it has the body, whose rest is then not read.
        if accepted && !head.contains("\r\nconnection: close\r\n") {
            return Ok(());
        }
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    async fn random_action(&mut self) -> io::Result<()> {
        if self.random_below(5) == 0 {
            return self.random_http2_action().await;
        }
        let mut connection = RawConnection::from_stream(TcpStream::connect(self.address).await?);
        match self.random_below(10) {
            0..3 => {
                for _ in 0..1 + self.random_below(3) {
                    let body = "x".repeat(self.random_below(2000));
                    connection.send(self.post(body.len()) + "\r\n" + &body).await?;
                    self.expect_response(&mut connection).await?;
                }
            }
            3 | 4 => return self.upload(connection).await,
            5 => {
                connection
                    .send(
                        self.head("GET /hr/cgi-bin/media/get", "1.1")
                            .replace('?', "?media_id=generated-3000000&")
                            + "\r\n",
                    )
                    .await?;
                // A refusal has another body.
                if connection.read_head().await.contains("\r\ncontent-length: 3000000\r\n") {
                    let _ = connection.try_read_exact(self.random_below(3_000_000)).await;
                }
            }
            6 => {
                let count = 1 + self.random_below(20);
                connection.send(self.get().repeat(count)).await?;
                for _ in 0..self.random_below(count + 1) {
                    self.expect_response(&mut connection).await?;
                }
            }
            7 => {
                let malformed = MALFORMED_REQUESTS[self.random_below(MALFORMED_REQUESTS.len())];
                connection.send(malformed).await?;
                connection.read_to_end().await.1?;
            }
            8 => {
                connection.send(self.post(100_000) + "Expect: 100-continue\r\n\r\n").await?;
                if self.random_below(2) == 0
                    && connection.read_head().await.starts_with("HTTP/1.1 100 ")
                    && self.random_below(2) == 0
                {
                    connection.send(vec![b'y'; 100_000]).await?;
                    self.expect_response(&mut connection).await?;
                }
            }
            _ => {
                let text = self.get();
                connection.send(&text[..self.random_below(text.len())]).await?;
            }
        }
        if self.random_below(2) == 0 {
            connection.reset();
        }
        Ok(())
    }

    /// Declares a length, and sends all of the body or a part.
    async fn upload(&mut self, mut connection: RawConnection) -> io::Result<()> {
        let length = 1 + self.random_below(600_000);
        let chunked = self.random_below(2) == 0;
        let head = match chunked {
            true => {
                self.head(&format!("PUT /hr{ECHO}"), "1.1")
                    + &format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n")
            }
            false => self.post(length) + "\r\n",
        };
        connection.send(head).await?;
        let complete = self.random_below(3) == 0;
        let mut remaining = if complete { length } else { self.random_below(length) };
        while remaining > 0 {
            let count = remaining.min(1 + self.random_below(50_000));
            connection.send(vec![b'x'; count]).await?;
            remaining -= count;
            if self.random_below(4) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        match self.random_below(3) {
            _ if complete => {
                connection.send(if chunked { "\r\n0\r\n\r\n" } else { "" }).await?;
                self.expect_response(&mut connection).await?;
                connection.send(self.get()).await?;
                self.expect_response(&mut connection).await
            }
            0 => {
                connection.stream.shutdown().await?;
                connection.read_to_end().await.1
            }
            1 => {
                connection.reset();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn random_http2_action(&mut self) -> io::Result<()> {
        let stream = TokioIo::new(TcpStream::connect(self.address).await?);
        let handshake = http2::handshake(TokioExecutor::new(), stream).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        tokio::spawn(connection);
        let mut client = TestClient::Http2(sender);
        for _ in 0..1 + self.random_below(3) {
            let body = Full::new(Bytes::from(vec![b'z'; self.random_below(300_000)]));
            let target = format!("/hr{ECHO}?mark={}", self.mark);
            let request = Request::post(target).header("x-api-key", &self.key).body(body);
            let response = client.send(request.expect("a request"));
            if self.random_below(2) == 0 {
                let _ = timeout(Duration::from_millis(self.random_below(20) as u64), response).await;
                continue;
            }
            match with_timeout(response).await {
                Ok(response) => assert!(!self.strict || response.status() == 200, "{response:?}"),
                Err(error) => assert!(!self.strict, "{error}"),
            }
        }
        Ok(())
    }
}

/// Starts the clients, each with [`ROUNDS`] actions.
fn start_clients(address: SocketAddr, strict: bool, served: &Arc<Notify>) -> Vec<JoinHandle<()>> {
    let clients = (0..CLIENT_COUNT).map(|index| {
        let key = client_key(["billing", "crm"][index % 2]);
        let mark = String::new();
        let mut client =
            RandomClient { address, key, mark, random: index as u64, strict, served: served.clone() };
        async move {
            for round in 0..ROUNDS {
                client.mark = format!("{index}-{round}-");
                // Errors are expected: many actions end in a closed connection.
                let _ = client.random_action().await;
            }
        }
    });
    clients.map(tokio::spawn).collect()
}

/// Starts a proxy whose upstream speaks this ALPN protocol over TLS, or cleartext HTTP/1.1.
async fn start_proxy(alpn: Option<&str>) -> (TestProxy, Authority) {
    let authority = Authority::new();
    let tls = alpn.map(|alpn| authority.issue_server("127.0.0.1").server_config(&[alpn]));
    let toml = match alpn {
        Some(_) => with_upstream_tls(CONFIG_WITH_CLIENTS, &authority.ca_file()),
        None => CONFIG_WITH_CLIENTS.to_owned(),
    };
    let toml = toml.replace("[admin]", "[replay]\nmemory = \"64KiB\"\n[admin]");
    (TestProxy::start_with_settings(Settings { tls, ..Settings::default() }, &toml).await, authority)
}

async fn run_load(alpn: Option<&str>) {
    let before = panic_count();
    let (proxy, _authority) = start_proxy(alpn).await;
    let proxy = Arc::new(proxy);
    let served = Arc::new(Notify::new());
    let (disturbed_proxy, served_requests) = (proxy.clone(), served.clone());
    let disturbance = tokio::spawn(async move {
        loop {
            for _ in 0..REQUESTS_PER_TOKEN {
                served_requests.notified().await;
            }
            disturbed_proxy.wecom.revoke_tokens("hr").expect("an agent");
            disturbed_proxy.app.reload().expect("a reload");
        }
    });
    for client in start_clients(proxy.address(), true, &served) {
        client.await.expect("no panic");
    }
    disturbance.abort();
    let _ = disturbance.await;
    let (concurrency_limit, replay_budget) = (proxy.app.concurrency_limit(), proxy.app.replay_budget());
    wait_for("released permits", async || concurrency_limit.in_use() == 0).await;
    wait_for("a released replay budget", async || {
        replay_budget.memory_used() + replay_budget.disk_used() == 0
    })
    .await;
    let Ok(proxy) = Arc::try_unwrap(proxy) else { panic!("another reference to the proxy") };
    assert!(with_timeout(proxy.app.shutdown()).await, "shutdown did not drain");
    assert_eq!(panic_count(), before);
}

#[tokio::test]
async fn load_on_an_http1_upstream_leaves_nothing_behind() {
    run_load(None).await;
}

#[tokio::test]
async fn load_on_an_http1_tls_upstream_leaves_nothing_behind() {
    run_load(Some("http/1.1")).await;
}

#[tokio::test]
async fn load_on_an_http2_upstream_leaves_nothing_behind() {
    run_load(Some("h2")).await;
}

#[tokio::test]
async fn load_during_shutdown_drains_in_time() {
    let before = panic_count();
    for alpn in [None, Some("h2")] {
        for after in [1, 50, 300] {
            let (proxy, _authority) = start_proxy(alpn).await;
            let clients = start_clients(proxy.address(), false, &Arc::new(Notify::new()));
            tokio::time::sleep(Duration::from_millis(after)).await;
            assert!(with_timeout(proxy.app.shutdown()).await, "shutdown did not drain in time");
            for client in clients {
                client.await.expect("no panic");
            }
        }
    }
    assert_eq!(panic_count(), before);
}
