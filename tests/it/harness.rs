//! Test harness: a simulated WeCom, the proxy in front of it, and clients.

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

/// The simulator's endpoint that echoes the request.
pub const ECHO: &str = "/cgi-bin/simulator/echo";
/// A typical API call.
pub const USER_GET: &str = "/cgi-bin/user/get?userid=zhangsan";

/// An open proxy (no clients) with the simulator's agents `hr` and `ops`.
pub const OPEN_CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
[upstream]
url = "http://{api}"
[admin]
listen = "127.0.0.1:0"
{agents}
"#;

/// The same four sections, and four clients with the keys of [`client_key`].
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

/// The key of a client of [`CONFIG_WITH_CLIENTS`].
pub fn client_key(client: &str) -> String {
    format!("key-of-{client}-0000000000")
}

/// Bounds every wait of a test. Longer than any step takes on a busy machine, and shorter than most of the proxy's default
/// timeouts, so that no such timeout can end the wait.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(25);

/// Awaits a future for at most [`WAIT_TIMEOUT`]; panics on timeout.
#[track_caller]
pub fn with_timeout<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    let location = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(WAIT_TIMEOUT, future).await {
            Ok(output) => output,
            Err(_) => panic!("timed out at {location}"),
        }
    }
}

/// A simulated WeCom and a proxy in this process.
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

    /// A proxy with this configuration; `{api}` is replaced by the simulator's address, `{agents}` by its agents' sections and
    /// `{dir}` by a temporary directory.
    pub async fn start_with_config(toml: &str) -> Self {
        Self::start_with_settings(Settings::default(), toml).await
    }

    /// The same with these settings of the simulator.
    pub async fn start_with_settings(settings: Settings, toml: &str) -> Self {
        let wecom = leak_detector::start_simulator(settings.clone()).await;
        let api = wecom.api_addr();
        Self::start(wecom, api, &settings, toml)
    }

    /// The same with the simulator on its own thread, so that it does not block the test's runtime.
    pub async fn start_with_simulator_thread(toml: &str) -> Self {
        static SIMULATOR_RUNTIME: LazyLock<Handle> = LazyLock::new(|| {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            let handle = runtime.handle().clone();
            std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
            handle
        });
        let settings = Settings::default();
        let wecom = SIMULATOR_RUNTIME
            .spawn(leak_detector::start_simulator(settings.clone()))
            .await
            .expect("no panic");
        let api = wecom.api_addr();
        Self::start(wecom, api, &settings, toml)
    }

    /// A proxy whose upstream is the server at `api` instead of the simulator.
    pub async fn start_with_upstream(api: SocketAddr, toml: &str) -> Self {
        let settings = Settings::default();
        let wecom = leak_detector::start_simulator(settings.clone()).await;
        Self::start(wecom, api, &settings, toml)
    }

    fn start(wecom: Simulator, api: SocketAddr, settings: &Settings, toml: &str) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let path = write_config(&dir, api, settings, toml);
        let config = config::load(&path).unwrap_or_else(|error| panic!("{error}"));
        let (app, leak_check) =
            leak_detector::start_proxy(&path, PreparedConfig::new(config).expect("usable files"));
        Self { wecom, app, dir, _leak_check: leak_check }
    }

    /// Replaces the configuration file, for a reload.
    pub fn rewrite_config(&self, toml: &str) -> PathBuf {
        write_config(&self.dir, self.wecom.api_addr(), &Settings::default(), toml)
    }

    /// The last request to this path that WeCom received.
    #[track_caller]
    pub fn last_request(&self, path: &str) -> RecordedRequest {
        let last = self
            .wecom
            .observe(|observed| observed.requests().rev().find(|record| record.path == path).cloned());
        last.unwrap_or_else(|| panic!("WeCom received no request for {path}"))
    }

    /// The number of requests that WeCom received, without gettoken.
    pub fn forwarded_count(&self) -> usize {
        self.wecom.observe(|observed| {
            observed.requests().filter(|record| record.path != "/cgi-bin/gettoken").count()
        })
    }

    /// The TCP address of the proxy.
    pub fn address(&self) -> SocketAddr {
        tcp_address(self.app.addresses())
    }

    /// The TCP address of its admin listener.
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

    /// One request on a new connection.
    pub async fn request(&self, request: http::request::Builder, body: impl Into<Bytes>) -> TestResponse {
        let mut client = TestClient::connect_http1(self.address()).await;
        client.request(request, body).await
    }

    /// Sends raw bytes on a new connection; returns all bytes received until the proxy closes it.
    pub async fn send_raw(&self, bytes: impl AsRef<[u8]>) -> String {
        send_raw(self.address(), bytes).await
    }
}

/// Writes a configuration with the placeholders of [`TestProxy::start_with_config`].
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

/// The configuration section of a simulated agent, with `more` lines appended.
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

/// A response with its whole body.
#[derive(Debug)]
pub struct TestResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl TestResponse {
    /// Reads a response to its end.
    pub async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        Self { status: parts.status, headers: parts.headers, body }
    }

    /// A header's value; empty if absent.
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

    /// Asserts status 200 and errcode 0.
    #[track_caller]
    pub fn assert_ok(&self) -> &Self {
        assert_eq!((self.status, self.errcode()), (StatusCode::OK, 0), "{}", self.text());
        self
    }

    /// Asserts an error of the proxy's own, with this kind, status and errcode.
    #[track_caller]
    pub fn assert_proxy_error(&self, kind: &str, status: u16, errcode: i64) -> &Self {
        let actual = (self.header("x-wecom-proxy-error"), self.status.as_u16(), self.errcode());
        assert_eq!(actual, (kind, status, errcode), "{}", self.text());
        assert!(self.json()["errmsg"].as_str().is_some_and(|text| text.starts_with("wecom-proxy: ")));
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

    /// Sends a request; returns the response with its whole body.
    pub async fn request(&mut self, request: http::request::Builder, body: impl Into<Bytes>) -> TestResponse {
        let request = request.body(Full::new(body.into())).expect("a request");
        let path = request.uri().path().to_owned();
        let response =
            with_timeout(async { TestResponse::read(self.send(request).await.expect("a response")).await })
                .await;
        leak_detector::record_output(&path, &format!("{:?}", response.headers), &response.body);
        response
    }

    /// Sends a request; returns the response before its body.
    pub async fn send(&mut self, mut request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let headers = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        leak_detector::add_credentials(&request.uri().to_string(), headers);
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

/// Sends raw bytes on a new connection; returns all bytes received until the proxy closes it.
pub async fn send_raw(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut connection = RawConnection::connect(address).await;
    // A proxy that refuses the request early may close before all bytes are sent; only its response counts.
    let _ = connection.send(bytes).await;
    String::from_utf8_lossy(&connection.read_to_end().await.0).into_owned()
}

/// Runs `clients` GET requests at once, each on a new connection. They run on a separate thread, so that the tasks of the
/// test's runtime, such as the simulator and token refreshes, do not wait for them.
pub async fn get_concurrently(
    proxy: &Arc<TestProxy>,
    clients: usize,
    path: &'static str,
) -> Vec<TestResponse> {
    let proxy = proxy.clone();
    let load = tokio::task::spawn_blocking(move || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut calls = Vec::with_capacity(clients);
            for _ in 0..clients {
                let proxy = proxy.clone();
                calls.push(tokio::spawn(async move { proxy.get(path).await }));
            }
            let mut responses = Vec::with_capacity(clients);
            for call in calls {
                responses.push(call.await.expect("no panic"));
            }
            responses
        })
    });
    load.await.expect("no panic")
}

/// Parses an HTTP method, extension methods included.
pub fn parse_method(name: &str) -> Method {
    name.parse().expect("a method")
}

/// Polls a condition until it holds; panics after [`WAIT_TIMEOUT`].
pub async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let poll = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let result = tokio::time::timeout(WAIT_TIMEOUT, poll).await;
    result.unwrap_or_else(|_| panic!("timed out waiting for {what}"));
}
