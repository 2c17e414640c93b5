//! A simulated WeCom and the proxy in front of it, in this process.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::runtime::{Builder, Handle};
use wecom_proxy::{
    app::{App, PreparedConfig, StartOptions},
    config::{self, Address},
    simulator::{RecordedRequest, Settings, Simulator},
};

use super::{
    TestClient, TestResponse,
    leak_detector::{self, LeakCheck},
    raw_http::RawConnection,
    wait_for,
};

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

/// A configuration with the upstream over TLS, whose authority's certificate is in this file.
pub fn with_upstream_tls(config: &str, ca_file: &Path) -> String {
    let ca_file = ca_file.display();
    config.replace("\"http://{api}\"", &format!("\"https://{{api}}\"\nca_file = \"{ca_file}\""))
}

/// The key of a client of [`CONFIG_WITH_CLIENTS`].
pub fn client_key(client: &str) -> String {
    format!("key-of-{client}-0000000000")
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

    /// A proxy with this directory and configuration, that looks at watched files every `watch_interval`.
    pub async fn start_watching(dir: TempDir, toml: &str, watch_interval: Duration) -> Self {
        let settings = Settings::default();
        let wecom = leak_detector::start_simulator(settings.clone()).await;
        let options = StartOptions { watch_interval: Some(watch_interval), ..StartOptions::default() };
        let api = wecom.api_addr();
        Self::start_in(dir, wecom, (api, &settings, toml), options)
    }

    fn start(wecom: Simulator, api: SocketAddr, settings: &Settings, toml: &str) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        Self::start_in(dir, wecom, (api, settings, toml), StartOptions::default())
    }

    fn start_in(
        dir: TempDir,
        wecom: Simulator,
        (api, settings, toml): (SocketAddr, &Settings, &str),
        options: StartOptions,
    ) -> Self {
        let path = write_config(&dir, api, settings, toml);
        let (app, leak_check) = start_app(&path, options);
        Self { wecom, app, dir, _leak_check: leak_check }
    }

    /// Ends the proxy and starts another one with the same file and directory.
    pub async fn restart(self) -> Self {
        let Self { wecom, app, dir, _leak_check } = self;
        app.shutdown().await;
        drop(_leak_check);
        let (app, leak_check) = start_app(&dir.path().join("proxy.toml"), StartOptions::default());
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

fn start_app(path: &Path, options: StartOptions) -> (App, LeakCheck) {
    let config = config::load(path).unwrap_or_else(|error| panic!("{error}"));
    leak_detector::start_proxy(path, PreparedConfig::new(config).expect("usable files"), options)
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

/// A GET at the admin listener.
pub async fn admin_get(proxy: &TestProxy, path: &str) -> TestResponse {
    TestClient::connect_http1(proxy.admin_address()).await.request(Request::get(path), "").await
}

/// A GET with the key of a client of [`CONFIG_WITH_CLIENTS`].
pub async fn get_as_client(proxy: &TestProxy, client: &str, path: &str) -> TestResponse {
    let request = Request::get(path).header("authorization", format!("Bearer {}", client_key(client)));
    proxy.request(request, "").await
}

/// Waits until the proxy is connected to its store.
pub async fn wait_for_store(proxy: &TestProxy) {
    wait_for("the store", async || proxy.app.store_error().is_none()).await;
}

/// A simulator, and the directory and path of a configuration for it.
pub async fn start_simulator_with_config(toml: &str) -> (Simulator, TempDir, PathBuf) {
    let settings = Settings::default();
    let (wecom, dir) =
        (leak_detector::start_simulator(settings.clone()).await, TempDir::new().expect("a directory"));
    let path = write_config(&dir, wecom.api_addr(), &settings, toml);
    (wecom, dir, path)
}

/// An address without a listener.
pub fn closed_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

/// The SHA-256 of some bytes, in hex.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
