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
use http::{Method, Request};
use tempfile::TempDir;
use tokio::runtime::{Builder, Handle};
use wecom_proxy::{
    app::{App, PreparedConfig},
    config::{self, Address},
    simulator::{RecordedRequest, Settings, Simulator},
};

use crate::{
    leak_detector::{self, LeakCheck},
    raw_http::RawConnection,
};

mod client;

pub use client::{TestClient, TestResponse};

/// The simulator's echo call: its response describes the request.
pub const ECHO: &str = "/cgi-bin/simulator/echo";
/// A typical call.
pub const USER_GET: &str = "/cgi-bin/user/get?userid=zhangsan";

/// An open proxy (without clients) with the simulator's agents `hr` and `ops`.
pub const OPEN_CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
[upstream]
url = "http://{api}"
[admin]
listen = "127.0.0.1:0"
{agents}
"#;

/// As [`OPEN_CONFIG`], with four clients; [`client_key`] returns their keys.
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

/// Time limit for expected events: enough on a busy machine, and shorter than most of the proxy's default time-outs, so that
/// an event caused by such a time-out fails the test.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(25);

/// Waits for an expected event; panics after [`WAIT_TIMEOUT`] with the caller's location.
#[track_caller]
pub fn with_timeout<T>(event: impl Future<Output = T>) -> impl Future<Output = T> {
    let location = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(WAIT_TIMEOUT, event).await {
            Ok(value) => value,
            Err(_) => panic!("timed out at {location}"),
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

    /// A proxy with this configuration, in which `{api}` is replaced by the simulator's address, `{agents}` by its agents'
    /// sections and `{dir}` by the test's temporary directory.
    pub async fn start_with_config(toml: &str) -> Self {
        Self::start_with_settings(Settings::default(), toml).await
    }

    /// As [`start_with_config`](Self::start_with_config), with other settings of the simulator.
    pub async fn start_with_settings(settings: Settings, toml: &str) -> Self {
        let wecom = leak_detector::start_simulator(settings.clone()).await;
        let api = wecom.api_addr();
        Self::start(wecom, api, &settings, toml)
    }

    /// As [`start_with_config`](Self::start_with_config), with the simulator on its own thread, so that work on the test's
    /// thread does not delay it.
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

    /// A proxy whose upstream is the listener at `api`, not the simulator.
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

    /// The last request that the simulator received for this path.
    #[track_caller]
    pub fn last_request(&self, path: &str) -> RecordedRequest {
        let last = self
            .wecom
            .observe(|observed| observed.requests().rev().find(|record| record.path == path).cloned());
        last.unwrap_or_else(|| panic!("no request for {path} reached the simulator"))
    }

    /// Number of requests that reached the simulator, without gettoken.
    pub fn forwarded_count(&self) -> usize {
        self.wecom.observe(|observed| {
            observed.requests().filter(|record| record.path != "/cgi-bin/gettoken").count()
        })
    }

    /// The proxy's address.
    pub fn address(&self) -> SocketAddr {
        tcp_address(self.app.addresses())
    }

    /// The address of its admin listener.
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

    /// Sends raw bytes on a new connection; returns all bytes until the proxy closes it.
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

/// The configuration section of a simulated agent, with `more` lines.
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

/// Sends raw bytes on a new connection; returns all bytes until the proxy closes it.
pub async fn send_raw(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut connection = RawConnection::connect(address).await;
    // A proxy that refuses early may close before all is sent; its response is readable all the same.
    let _ = connection.send(bytes).await;
    String::from_utf8_lossy(&connection.read_to_end().await.0).into_owned()
}

/// Runs `count` concurrent calls, each on its own connection. They run on another thread, so that tasks on the test's thread
/// (simulator, refreshes) do not wait for all of them.
pub async fn get_concurrently(proxy: &Arc<TestProxy>, count: usize, path: &'static str) -> Vec<TestResponse> {
    let proxy = proxy.clone();
    let calls_thread = tokio::task::spawn_blocking(move || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut calls = Vec::with_capacity(count);
            for _ in 0..count {
                let proxy = proxy.clone();
                calls.push(tokio::spawn(async move { proxy.get(path).await }));
            }
            let mut responses = Vec::with_capacity(count);
            for call in calls {
                responses.push(call.await.expect("no panic"));
            }
            responses
        })
    });
    calls_thread.await.expect("no panic")
}

/// A method by name.
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
    let outcome = tokio::time::timeout(WAIT_TIMEOUT, met).await;
    outcome.unwrap_or_else(|_| panic!("timed out waiting for {what}"));
}
