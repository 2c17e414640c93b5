//! Everybody at once, and most of them badly. Whoever behaves gets what is theirs, nothing panics, and when all have left
//! nothing stays behind.

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
    harness::{CONFIG_WITH_CLIENTS, ECHO, TestClient, TestProxy, client_key, wait_for, with_timeout},
    raw_http::RawConnection,
};

const CLIENT_COUNT: usize = 16;
const ROUNDS: usize = 24;
/// After so many calls that WeCom let in, the token is revoked. By their number and not by the clock: where a token lives
/// for less time than a call takes, each call is refused twice, and the agent is left alone.
const REQUESTS_PER_TOKEN: usize = 8;

/// What no client shall be told of: a thread of the proxy's own panicked.
fn panic_count() -> usize {
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            if thread::current().name().is_some_and(|name| name.starts_with("worker-") || name == "gettoken")
            {
                SEEN.fetch_add(1, Ordering::Relaxed);
            }
            before(what);
        }));
    });
    SEEN.load(Ordering::Relaxed)
}

/// One of them, and what it does next.
struct RandomClient {
    address: SocketAddr,
    key: String,
    /// In each of its requests, and in no other's.
    mark: String,
    random: u64,
    /// The proxy is there all the time.
    strict: bool,
    served: Arc<Notify>,
}

impl RandomClient {
    /// A number below `bound`, which looks random and is the same each time.
    fn random_below(&mut self, bound: usize) -> usize {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % bound
    }

    /// A head without the empty line behind it.
    fn head(&self, first: &str, version: &str) -> String {
        format!("{first}?mark={} HTTP/{version}\r\nHost: x\r\nX-Api-Key: {}\r\n", self.mark, self.key)
    }

    fn post(&self, length: usize) -> String {
        self.head(&format!("POST /hr{ECHO}"), "1.1") + &format!("Content-Length: {length}\r\n")
    }

    fn get(&self) -> String {
        self.head(&format!("GET /hr{ECHO}"), "1.1") + "\r\n"
    }

    /// An answer must come, and be to its own request. An error where it is the last on its connection.
    async fn expect_response(&self, line: &mut RawConnection) -> io::Result<()> {
        let head = line.read_head().await;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().expect("a number"));
        let body = line.try_read_exact(length).await.unwrap_or_default();
        let body = String::from_utf8_lossy(&body);
        let served = head.get(8..13) == Some(" 200 ") && body.contains(&format!("mark={}", self.mark));
        if served {
            self.served.notify_one();
        }
        // A token may be revoked twice under one request.
        let answered = served || body.contains("\"errcode\":40014,");
        assert!(answered || !self.strict && !head.contains(" 200 "), "{head}{body}");
        // WeCom refuses before the body has come, and what is left of that nobody reads.
        if answered && !head.contains("\r\nconnection: close\r\n") {
            return Ok(());
        }
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    async fn random_action(&mut self) -> io::Result<()> {
        if self.random_below(5) == 0 {
            return self.random_http2_action().await;
        }
        let mut line = RawConnection::from_stream(TcpStream::connect(self.address).await?);
        match self.random_below(10) {
            0..3 => {
                for _ in 0..1 + self.random_below(3) {
                    let body = "x".repeat(self.random_below(2000));
                    line.send(self.post(body.len()) + "\r\n" + &body).await?;
                    self.expect_response(&mut line).await?;
                }
            }
            3 | 4 => return self.upload(line).await,
            5 => {
                line.send(
                    self.head("GET /hr/cgi-bin/media/get", "1.1")
                        .replace('?', "?media_id=generated-3000000&")
                        + "\r\n",
                )
                .await?;
                // Where it is a refusal, no more comes than that.
                if line.read_head().await.contains("\r\ncontent-length: 3000000\r\n") {
                    let _ = line.try_read_exact(self.random_below(3_000_000)).await;
                }
            }
            6 => {
                let count = 1 + self.random_below(20);
                line.send(self.get().repeat(count)).await?;
                for _ in 0..self.random_below(count + 1) {
                    self.expect_response(&mut line).await?;
                }
            }
            7 => {
                let malformed = [
                    "GET / HTTP/3.0\r\n\r\n",
                    "GET /hr/cgi-bin/user/get\r\n\r\n",
                    "\0\0\0",
                    "GET /hr/cgi-bin/a HTTP/1.1\nHost: x\n\n",
                    "POST /hr/cgi-bin/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                ];
                let malformed = malformed[self.random_below(malformed.len())];
                line.send(malformed).await?;
                line.read_to_end().await.1?;
            }
            8 => {
                line.send(self.post(100_000) + "Expect: 100-continue\r\n\r\n").await?;
                if self.random_below(2) == 0
                    && line.read_head().await.starts_with("HTTP/1.1 100 ")
                    && self.random_below(2) == 0
                {
                    line.send(vec![b'y'; 100_000]).await?;
                    self.expect_response(&mut line).await?;
                }
            }
            _ => {
                let text = self.get();
                line.send(&text[..self.random_below(text.len())]).await?;
            }
        }
        if self.random_below(2) == 0 {
            line.reset();
        }
        Ok(())
    }

    /// Says how much comes, and sends all of it or less.
    async fn upload(&mut self, mut line: RawConnection) -> io::Result<()> {
        let length = 1 + self.random_below(600_000);
        let chunked = self.random_below(2) == 0;
        let head = match chunked {
            true => {
                self.head(&format!("PUT /hr{ECHO}"), "1.1")
                    + &format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n")
            }
            false => self.post(length) + "\r\n",
        };
        line.send(head).await?;
        let whole = self.random_below(3) == 0;
        let mut left = if whole { length } else { self.random_below(length) };
        while left > 0 {
            let now = left.min(1 + self.random_below(50_000));
            line.send(vec![b'x'; now]).await?;
            left -= now;
            if self.random_below(4) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        match self.random_below(3) {
            _ if whole => {
                line.send(if chunked { "\r\n0\r\n\r\n" } else { "" }).await?;
                self.expect_response(&mut line).await?;
                line.send(self.get()).await?;
                self.expect_response(&mut line).await
            }
            0 => {
                line.stream.shutdown().await?;
                line.read_to_end().await.1
            }
            1 => {
                line.reset();
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
        let mut caller = TestClient::Http2(sender);
        for _ in 0..1 + self.random_below(3) {
            let body = Full::new(Bytes::from(vec![b'z'; self.random_below(300_000)]));
            let target = format!("/hr{ECHO}?mark={}", self.mark);
            let request = Request::post(target).header("x-api-key", &self.key).body(body);
            let sent = caller.send(request.expect("a request"));
            if self.random_below(2) == 0 {
                let _ = timeout(Duration::from_millis(self.random_below(20) as u64), sent).await;
                continue;
            }
            match with_timeout(sent).await {
                Ok(answer) => assert!(!self.strict || answer.status() == 200, "{answer:?}"),
                Err(error) => assert!(!self.strict, "{error}"),
            }
        }
        Ok(())
    }
}

/// Has all of them come, and each act again and again.
fn start_clients(address: SocketAddr, strict: bool, served: &Arc<Notify>) -> Vec<JoinHandle<()>> {
    let clients = (0..CLIENT_COUNT).map(|who| {
        let key = client_key(["billing", "crm"][who % 2]);
        let mark = String::new();
        let mut client =
            RandomClient { address, key, mark, random: who as u64, strict, served: served.clone() };
        async move {
            for nth in 0..ROUNDS {
                client.mark = format!("{who}-{nth}-");
                // A connection that is closed over what it does is no news to it.
                let _ = client.random_action().await;
            }
        }
    });
    clients.map(tokio::spawn).collect()
}

/// A stage whose WeCom speaks this under TLS, or HTTP/1.1 without it.
async fn start_proxy(alpn: Option<&str>) -> (TestProxy, Authority) {
    let authority = Authority::new();
    let tls = alpn.map(|alpn| authority.issue_server("127.0.0.1").server_config(&[alpn]));
    let url = match alpn {
        Some(_) => format!("url = \"https://{{api}}\"\nca_file = \"{}\"", authority.ca_file().display()),
        None => "url = \"http://{api}\"".to_owned(),
    };
    let toml = CONFIG_WITH_CLIENTS.replace("url = \"http://{api}\"", &url);
    let toml = toml.replace("[admin]", "[replay]\nmemory = \"64KiB\"\n[admin]");
    (TestProxy::start_with_settings(Settings { tls, ..Settings::default() }, &toml).await, authority)
}

async fn run_load(alpn: Option<&str>) {
    let before = panic_count();
    let (stage, _authority) = start_proxy(alpn).await;
    let stage = Arc::new(stage);
    let served = Arc::new(Notify::new());
    let (troubled, heard) = (stage.clone(), served.clone());
    let trouble = tokio::spawn(async move {
        loop {
            for _ in 0..REQUESTS_PER_TOKEN {
                heard.notified().await;
            }
            troubled.wecom.revoke_tokens("hr").expect("an agent");
            troubled.app.reload().expect("a reload");
        }
    });
    for client in start_clients(stage.address(), true, &served) {
        client.await.expect("no panic");
    }
    trouble.abort();
    let _ = trouble.await;
    let (places, shelf) = (stage.app.concurrency_limit(), stage.app.replay_budget());
    wait_for("nobody in flight", async || places.in_use() == 0).await;
    wait_for("an empty shelf", async || shelf.memory_used() + shelf.disk_used() == 0).await;
    let Ok(stage) = Arc::try_unwrap(stage) else { panic!("nobody else has it") };
    assert!(with_timeout(stage.app.shutdown()).await, "nobody is left");
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
            let (stage, _authority) = start_proxy(alpn).await;
            let clients = start_clients(stage.address(), false, &Arc::new(Notify::new()));
            tokio::time::sleep(Duration::from_millis(after)).await;
            assert!(with_timeout(stage.app.shutdown()).await, "all of them were let go in time");
            for client in clients {
                client.await.expect("no panic");
            }
        }
    }
    assert_eq!(panic_count(), before);
}
