//! What every story is played on: a simulated WeCom, the proxy before it, and a caller.

use std::{
    fs,
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    runtime::{Builder, Handle},
};
use wecom_proxy::{
    app::{App, PreparedConfig},
    config::{self, Address},
    simulator::{RecordedRequest, Settings, Simulator},
};

use crate::{
    leak_detector::{self, LeakCheck},
    raw_http::RawConnection,
};

/// A path that the simulator answers with what it was sent.
pub const ECHO: &str = "/cgi-bin/simulator/echo";
/// A call as most programs make them.
pub const USER_GET: &str = "/cgi-bin/user/get?userid=zhangsan";

/// Open, with the simulator's agents `hr` and `ops`.
pub const OPEN_CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
[upstream]
url = "http://{api}"
[admin]
listen = "127.0.0.1:0"
{agents}
"#;

/// The same four sections, with four clients; see [`key`] for what each shows.
pub const CONFIG_WITH_CLIENTS: &str = r#"
[server]
listen = "127.0.0.1:0"
[upstream]
url = "http://{api}"
[admin]
listen = "127.0.0.1:0"
{agents}
[clients.billing]
key = "key-of-billing-0000000000"
agents = ["hr"]
[clients.crm]
key = "key-of-crm-0000000000"
agents = ["*"]
[clients.narrow]
key = "key-of-narrow-0000000000"
agents = ["hr"]
allow = ["POST /cgi-bin/message/send", "/cgi-bin/user/*"]
[clients.alert]
key = "key-of-alert-0000000000"
agents = ["hr"]
allow = ["/cgi-bin/user/*", "/cgi-bin/simulator/*"]
always_200 = true
"#;

/// The key of a client of [`KEYED`].
pub fn client_key(client: &str) -> String {
    format!("key-of-{client}-0000000000")
}

/// Longer than anything here takes on a busy machine, and shorter than most of the proxy's own time-outs where a story sets
/// none: what is waited for comes by itself.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(25);

/// Waits for what must come, and fails where it does not.
#[track_caller]
pub fn with_timeout<T>(coming: impl Future<Output = T>) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(WAIT_TIMEOUT, coming).await {
            Ok(come) => come,
            Err(_) => panic!("waited in vain at {place}"),
        }
    }
}

/// The simulated WeCom and the proxy.
pub struct TestProxy {
    pub wecom: Simulator,
    pub app: App,
    pub dir: TempDir,
    _leak_check: LeakCheck,
}

impl TestProxy {
    /// An open proxy with the agents `hr` and `ops`.
    pub async fn start_open() -> Self {
        Self::start_with_config(OPEN_CONFIG).await
    }

    /// A proxy with this configuration, in which `{api}` stands for the simulator's address, `{agents}` for its agents'
    /// sections and `{dir}` for a directory of the stage's own.
    pub async fn start_with_config(toml: &str) -> Self {
        Self::start_with_settings(Settings::default(), toml).await
    }

    /// The same with another simulator.
    pub async fn start_with_settings(settings: Settings, toml: &str) -> Self {
        let wecom = leak_detector::start_simulator(settings.clone()).await;
        let api = wecom.api_addr();
        Self::start(wecom, api, &settings, toml)
    }

    /// The same before a simulator that has a thread of its own: what the story's thread does is not to wait for it.
    pub async fn start_with_simulator_thread(toml: &str) -> Self {
        static ASIDE: LazyLock<Handle> = LazyLock::new(|| {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            let handle = runtime.handle().clone();
            std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
            handle
        });
        let settings = Settings::default();
        let wecom = ASIDE.spawn(leak_detector::start_simulator(settings.clone())).await.expect("no panic");
        let api = wecom.api_addr();
        Self::start(wecom, api, &settings, toml)
    }

    /// A proxy whose upstream is not the simulator but whatever listens at `api`.
    pub async fn start_with_upstream(api: SocketAddr, toml: &str) -> Self {
        let settings = Settings::default();
        let wecom = leak_detector::start_simulator(settings.clone()).await;
        Self::start(wecom, api, &settings, toml)
    }

    fn start(wecom: Simulator, api: SocketAddr, settings: &Settings, toml: &str) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let path = write_config(&dir, api, settings, toml);
        let config = config::load(&path).unwrap_or_else(|error| panic!("{error}"));
        let (app, watch) =
            leak_detector::start_proxy(&path, PreparedConfig::new(config).expect("usable files"));
        Self { wecom, app, dir, _leak_check: watch }
    }

    /// Writes another configuration in place of the first, for a reload.
    pub fn rewrite_config(&self, toml: &str) -> PathBuf {
        write_config(&self.dir, self.wecom.api_addr(), &Settings::default(), toml)
    }

    /// The last request that WeCom got for this path.
    #[track_caller]
    pub fn last_request(&self, path: &str) -> RecordedRequest {
        let last =
            self.wecom.observe(|seen| seen.requests().rev().find(|record| record.path == path).cloned());
        last.unwrap_or_else(|| panic!("WeCom got nothing for {path}"))
    }

    /// How many requests WeCom got, gettoken aside.
    pub fn forwarded_count(&self) -> usize {
        self.wecom.observe(|seen| seen.requests().filter(|record| record.path != "/cgi-bin/gettoken").count())
    }

    /// Where the proxy listens.
    pub fn address(&self) -> SocketAddr {
        tcp_address(self.app.addresses())
    }

    /// Where its admin listener is.
    pub fn admin_address(&self) -> SocketAddr {
        tcp_address(self.app.admin_addresses())
    }

    /// A GET through the agent `hr`.
    pub async fn get(&self, path: &str) -> TestResponse {
        self.request(Request::get(format!("/hr{path}")), "").await
    }

    /// A POST through the agent `hr`.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> TestResponse {
        self.request(Request::post(format!("/hr{path}")), body).await
    }

    /// One request on a connection of its own.
    pub async fn request(&self, request: http::request::Builder, body: impl Into<Bytes>) -> TestResponse {
        let mut caller = TestClient::connect_http1(self.address()).await;
        caller.request(request, body).await
    }

    /// Bytes as they are, and all that comes back until the proxy closes the connection.
    pub async fn send_raw(&self, bytes: impl AsRef<[u8]>) -> String {
        send_raw(self.address(), bytes).await
    }
}

/// Writes a configuration as [`Stage::with`] understands it.
pub fn write_config(dir: &TempDir, api: SocketAddr, settings: &Settings, toml: &str) -> PathBuf {
    let agents: String = settings.agents.iter().map(|agent| agent_section(agent, "")).collect();
    let text = toml
        .replace("{api}", &api.to_string())
        .replace("{agents}", &agents)
        .replace("{dir}", &dir.path().display().to_string());
    let path = dir.path().join("proxy.toml");
    fs::write(&path, text).expect("the configuration is written");
    path
}

/// An agent of the simulator as a section of the configuration, with `more` lines.
pub fn agent_section(agent: &wecom_proxy::simulator::SimulatedAgent, more: &str) -> String {
    let wecom_proxy::simulator::SimulatedAgent { name, corpid, secret, agentid } = agent;
    format!("\n[agents.{name}]\ncorpid = \"{corpid}\"\nsecret = \"{secret}\"\nagentid = {agentid}\n{more}\n")
}

fn tcp_address(addresses: &[Address]) -> SocketAddr {
    let found = addresses.iter().find_map(|address| match address {
        Address::Tcp(address) => Some(*address),
        Address::Unix(_) => None,
    });
    found.expect("a TCP listener")
}

/// A whole answer.
#[derive(Debug)]
pub struct TestResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl TestResponse {
    /// Takes in an answer to its end.
    pub async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        Self { status: parts.status, headers: parts.headers, body }
    }

    /// A header's text; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("visible ASCII"))
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The errcode in the body.
    pub fn errcode(&self) -> i64 {
        self.json()["errcode"].as_i64().unwrap_or_else(|| panic!("no errcode: {}", self.text()))
    }

    /// Asserts that WeCom carried the call out.
    #[track_caller]
    pub fn assert_ok(&self) -> &Self {
        assert_eq!((self.status, self.errcode()), (StatusCode::OK, 0), "{}", self.text());
        self
    }

    /// Asserts that the proxy itself answered, with this kind, status and errcode.
    #[track_caller]
    pub fn assert_proxy_error(&self, kind: &str, status: u16, errcode: i64) -> &Self {
        let own = (self.header("x-wecom-proxy-error"), self.status.as_u16(), self.errcode());
        assert_eq!(own, (kind, status, errcode), "{}", self.text());
        assert!(self.json()["errmsg"].as_str().is_some_and(|words| words.starts_with("wecom-proxy: ")));
        self
    }
}

/// One connection of a client.
pub enum TestClient {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl TestClient {
    /// Over plain HTTP/1.1.
    pub async fn connect_http1(address: SocketAddr) -> Self {
        Self::http1_over(TcpStream::connect(address).await.expect("a connection")).await
    }

    /// Over HTTP/1.1 on any stream.
    pub async fn http1_over<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static>(
        stream: S,
    ) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
        tokio::spawn(connection);
        Self::Http1(sender)
    }

    /// Over HTTP/2 with prior knowledge.
    pub async fn connect_http2(address: SocketAddr) -> Self {
        Self::http2_over(TcpStream::connect(address).await.expect("a connection")).await
    }

    /// Over HTTP/2 on any stream.
    pub async fn http2_over<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static>(
        stream: S,
    ) -> Self {
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.expect("a handshake");
        tokio::spawn(connection);
        Self::Http2(sender)
    }

    /// A GET through the agent `hr`.
    pub async fn get(&mut self, path: &str) -> TestResponse {
        self.request(Request::get(format!("/hr{path}")), "").await
    }

    /// One request and its whole answer.
    pub async fn request(&mut self, request: http::request::Builder, body: impl Into<Bytes>) -> TestResponse {
        let request = request.body(Full::new(body.into())).expect("a request");
        let path = request.uri().path().to_owned();
        let reply =
            with_timeout(async { TestResponse::read(self.send(request).await.expect("an answer")).await })
                .await;
        leak_detector::record_output(&path, &format!("{:?}", reply.headers), &reply.body);
        reply
    }

    /// One request and its answer's head.
    pub async fn send(&mut self, mut request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let lines = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        leak_detector::add_credentials(&request.uri().to_string(), lines);
        match self {
            Self::Http1(sender) => {
                if !request.headers().contains_key(header::HOST) {
                    request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("localhost"));
                }
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                let target = format!("http://proxy.test{}", request.uri());
                *request.uri_mut() = target.parse().expect("a target");
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

/// Sends bytes as they are on a connection of their own, and returns all that comes back until the proxy closes it.
pub async fn send_raw(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut line = RawConnection::connect(address).await;
    // A proxy that refuses early may close before all was sent; what it said first is what counts.
    let _ = line.send(bytes).await;
    String::from_utf8_lossy(&line.read_to_end().await.0).into_owned()
}

/// Runs `callers` calls at once, each on a connection of its own. They have a thread of their own: what lives on the story's,
/// as the simulator and renewals do, is not to wait for all of them.
pub async fn get_concurrently(
    stage: &Arc<TestProxy>,
    callers: usize,
    path: &'static str,
) -> Vec<TestResponse> {
    let stage = stage.clone();
    let crowd = tokio::task::spawn_blocking(move || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut calls = Vec::with_capacity(callers);
            for _ in 0..callers {
                let stage = stage.clone();
                calls.push(tokio::spawn(async move { stage.get(path).await }));
            }
            let mut replies = Vec::with_capacity(callers);
            for call in calls {
                replies.push(call.await.expect("no panic"));
            }
            replies
        })
    });
    crowd.await.expect("no panic")
}

/// The simulator's POST counterpart of a request, for tests that need a method by name.
pub fn parse_method(name: &str) -> Method {
    name.parse().expect("a method")
}

/// Waits until a condition holds.
pub async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let met = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(WAIT_TIMEOUT, met).await;
    waited.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}
