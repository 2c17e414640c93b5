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
    stage::{Caller, ECHO, KEYED, Stage, key, soon, wait_for},
    wire::Line,
};

const CLIENTS: usize = 16;
const ROUNDS: usize = 24;
/// After so many calls that WeCom let in, the token is revoked. By their number and not by the clock: where a token lives
/// for less time than a call takes, each call is refused twice, and the agent is left alone.
const A_TOKEN_SERVES: usize = 8;

/// What no client shall be told of: a thread of the proxy's own panicked.
fn panics() -> usize {
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
struct Client {
    address: SocketAddr,
    key: String,
    /// In each of its requests, and in no other's.
    mark: String,
    random: u64,
    /// The proxy is there all the time.
    strict: bool,
    served: Arc<Notify>,
}

impl Client {
    /// A number below `bound`, which looks random and is the same each time.
    fn roll(&mut self, bound: usize) -> usize {
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
    async fn is_answered(&self, line: &mut Line) -> io::Result<()> {
        let head = line.head().await;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().expect("a number"));
        let body = line.whole(length).await.unwrap_or_default();
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

    async fn act(&mut self) -> io::Result<()> {
        if self.roll(5) == 0 {
            return self.act_over_http2().await;
        }
        let mut line = Line::over(TcpStream::connect(self.address).await?);
        match self.roll(10) {
            0..3 => {
                for _ in 0..1 + self.roll(3) {
                    let body = "x".repeat(self.roll(2000));
                    line.say(self.post(body.len()) + "\r\n" + &body).await?;
                    self.is_answered(&mut line).await?;
                }
            }
            3 | 4 => return self.upload(line).await,
            5 => {
                line.say(
                    self.head("GET /hr/cgi-bin/media/get", "1.1")
                        .replace('?', "?media_id=generated-3000000&")
                        + "\r\n",
                )
                .await?;
                // Where it is a refusal, no more comes than that.
                if line.head().await.contains("\r\ncontent-length: 3000000\r\n") {
                    let _ = line.whole(self.roll(3_000_000)).await;
                }
            }
            6 => {
                let count = 1 + self.roll(20);
                line.say(self.get().repeat(count)).await?;
                for _ in 0..self.roll(count + 1) {
                    self.is_answered(&mut line).await?;
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
                let malformed = malformed[self.roll(malformed.len())];
                line.say(malformed).await?;
                line.rest().await.1?;
            }
            8 => {
                line.say(self.post(100_000) + "Expect: 100-continue\r\n\r\n").await?;
                if self.roll(2) == 0 && line.head().await.starts_with("HTTP/1.1 100 ") && self.roll(2) == 0 {
                    line.say(vec![b'y'; 100_000]).await?;
                    self.is_answered(&mut line).await?;
                }
            }
            _ => {
                let text = self.get();
                line.say(&text[..self.roll(text.len())]).await?;
            }
        }
        if self.roll(2) == 0 {
            line.reset();
        }
        Ok(())
    }

    /// Says how much comes, and sends all of it or less.
    async fn upload(&mut self, mut line: Line) -> io::Result<()> {
        let length = 1 + self.roll(600_000);
        let chunked = self.roll(2) == 0;
        let head = match chunked {
            true => {
                self.head(&format!("PUT /hr{ECHO}"), "1.1")
                    + &format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n")
            }
            false => self.post(length) + "\r\n",
        };
        line.say(head).await?;
        let whole = self.roll(3) == 0;
        let mut left = if whole { length } else { self.roll(length) };
        while left > 0 {
            let now = left.min(1 + self.roll(50_000));
            line.say(vec![b'x'; now]).await?;
            left -= now;
            if self.roll(4) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        match self.roll(3) {
            _ if whole => {
                line.say(if chunked { "\r\n0\r\n\r\n" } else { "" }).await?;
                self.is_answered(&mut line).await?;
                line.say(self.get()).await?;
                self.is_answered(&mut line).await
            }
            0 => {
                line.stream.shutdown().await?;
                line.rest().await.1
            }
            1 => {
                line.reset();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn act_over_http2(&mut self) -> io::Result<()> {
        let stream = TokioIo::new(TcpStream::connect(self.address).await?);
        let handshake = http2::handshake(TokioExecutor::new(), stream).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        tokio::spawn(connection);
        let mut caller = Caller::Http2(sender);
        for _ in 0..1 + self.roll(3) {
            let body = Full::new(Bytes::from(vec![b'z'; self.roll(300_000)]));
            let target = format!("/hr{ECHO}?mark={}", self.mark);
            let request = Request::post(target).header("x-api-key", &self.key).body(body);
            let sent = caller.send(request.expect("a request"));
            if self.roll(2) == 0 {
                let _ = timeout(Duration::from_millis(self.roll(20) as u64), sent).await;
                continue;
            }
            match soon(sent).await {
                Ok(answer) => assert!(!self.strict || answer.status() == 200, "{answer:?}"),
                Err(error) => assert!(!self.strict, "{error}"),
            }
        }
        Ok(())
    }
}

/// Has all of them come, and each act again and again.
fn come(address: SocketAddr, strict: bool, served: &Arc<Notify>) -> Vec<JoinHandle<()>> {
    let clients = (0..CLIENTS).map(|who| {
        let key = key(["billing", "crm"][who % 2]);
        let mark = String::new();
        let mut client = Client { address, key, mark, random: who as u64, strict, served: served.clone() };
        async move {
            for nth in 0..ROUNDS {
                client.mark = format!("{who}-{nth}-");
                // A connection that is closed over what it does is no news to it.
                let _ = client.act().await;
            }
        }
    });
    clients.map(tokio::spawn).collect()
}

/// A stage whose WeCom speaks this under TLS, or HTTP/1.1 without it.
async fn stage(alpn: Option<&str>) -> (Stage, Authority) {
    let authority = Authority::new();
    let tls = alpn.map(|alpn| authority.server("127.0.0.1").server_config(&[alpn]));
    let url = match alpn {
        Some(_) => format!("url = \"https://{{api}}\"\nca_file = \"{}\"", authority.file().display()),
        None => "url = \"http://{api}\"".to_owned(),
    };
    let toml = KEYED.replace("url = \"http://{api}\"", &url);
    let toml = toml.replace("[admin]", "[replay]\nmemory = \"64KiB\"\n[admin]");
    (Stage::set(Settings { tls, ..Settings::default() }, &toml).await, authority)
}

async fn play(alpn: Option<&str>) {
    let before = panics();
    let (stage, _authority) = stage(alpn).await;
    let stage = Arc::new(stage);
    let served = Arc::new(Notify::new());
    let (troubled, heard) = (stage.clone(), served.clone());
    let trouble = tokio::spawn(async move {
        loop {
            for _ in 0..A_TOKEN_SERVES {
                heard.notified().await;
            }
            troubled.wecom.revoke("hr").expect("an agent");
            troubled.proxy.reload().expect("a reload");
        }
    });
    for client in come(stage.address(), true, &served) {
        client.await.expect("no panic");
    }
    trouble.abort();
    let _ = trouble.await;
    let (places, shelf) = (stage.proxy.places(), stage.proxy.shelf());
    wait_for("nobody in flight", async || places.taken() == 0).await;
    wait_for("an empty shelf", async || shelf.in_memory() + shelf.in_files() == 0).await;
    let Ok(stage) = Arc::try_unwrap(stage) else { panic!("nobody else has it") };
    assert!(soon(stage.proxy.shut_down()).await, "nobody is left");
    assert_eq!(panics(), before);
}

#[tokio::test]
async fn a_crowd_before_an_upstream_of_http_1_1() {
    play(None).await;
}

#[tokio::test]
async fn a_crowd_before_an_upstream_of_http_1_1_under_tls() {
    play(Some("http/1.1")).await;
}

#[tokio::test]
async fn a_crowd_before_an_upstream_of_http_2() {
    play(Some("h2")).await;
}

#[tokio::test]
async fn a_crowd_that_meets_the_end() {
    let before = panics();
    for alpn in [None, Some("h2")] {
        for after in [1, 50, 300] {
            let (stage, _authority) = stage(alpn).await;
            let clients = come(stage.address(), false, &Arc::new(Notify::new()));
            tokio::time::sleep(Duration::from_millis(after)).await;
            assert!(soon(stage.proxy.shut_down()).await, "all of them were let go in time");
            for client in clients {
                client.await.expect("no panic");
            }
        }
    }
    assert_eq!(panics(), before);
}
