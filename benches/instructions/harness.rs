//! A proxy, a client and an upstream on one thread, so that the order of events is the same in each run.

use std::{
    future::Future,
    io::{self, ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, LocalOptions, LocalRuntime},
    sync::watch,
    task::spawn_local,
};
use wecom_proxy::{
    config::{self, Address, Config, LogConfig, LogFormat, RateLimit, SocketAccess, UpstreamId},
    directory::{Agent, Directory},
    inspector::RecentExchanges,
    limits::{RateLimiterFactory, address_limit::AddressLimit, quotas::Quotas},
    proxy::{Proxy, ProxySettings, Sinks, UpstreamSettings},
    request_body::{BodyLimits, ReplayBudget},
    secret::Masked,
    server::{self, BoundListener, Server},
    telemetry::{
        access_log::AccessLog,
        logs::LogHandle,
        metrics::Metrics,
        traces::{CommonAttributes, Tracer, Traces, UpstreamAttributes},
    },
    tokens::{Credentials, FetchError, FetchToken, RefreshSettings, Token, TokenCache},
    upstream::Settings,
    wecom::response::GettokenResponse,
};

use crate::counter::uncounted;

/// The key of the client `billing`.
pub const KEY: &str = "key-of-billing-0000000000";
/// A token of WeCom's length.
pub const TOKEN: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_ABCDEFGHIJKLMNOPQRSTUVWXYZ\
                         abcdefghijklmnopqrstuvwxyz0123456789-_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\
                         0123456789-_ABCDEFGHIJKLMNOPQRST";

/// Polls of the runtime after which an expected event counts as missing.
const MAX_POLLS: u32 = 1_000_000;

const CONFIG: &str = r#"
[server]
listen = "unix:{socket}"
[upstream]
url = "http://{upstream}"
[log]
level = "warn"
[agents.hr]
corpid = "ww1234567890abcdef"
secret = "secret-of-hr-000000000000000000000000000000"
agentid = 1000002
[agents.ops]
corpid = "ww1234567890abcdef"
secret = "secret-of-ops-00000000000000000000000000000"
agentid = 1000003
[clients.billing]
key = "key-of-billing-0000000000"
agents = ["hr", "ops"]
allow = ["POST /cgi-bin/message/send", "/cgi-bin/department/*", "/cgi-bin/user/*", "/cgi-bin/*/get_*_detail"]
[clients.crm]
key = "key-of-crm-0000000000000"
agents = ["*"]
"#;

/// The proxy under test with its upstream listener.
pub struct TestProxy {
    runtime: LocalRuntime,
    /// Agents and clients.
    pub directory: Arc<Directory>,
    /// An access log whose output is discarded.
    pub access: AccessLog,
    /// The telemetry sinks of the worker.
    pub telemetry: Rc<Sinks>,
    upstream_listener: TcpListener,
    socket: PathBuf,
    // Keeps the listening socket open, and the shutdown channel from closing.
    _bound: (BoundListener, watch::Sender<bool>),
    _dir: TempDir,
}

/// Returns the same token for every agent.
struct FixedTokenSource;

impl FetchToken for FixedTokenSource {
    fn fetch<'a>(
        &'a self,
        _: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<GettokenResponse, FetchError>> + Send + 'a>> {
        let response = GettokenResponse { token: Masked::new(TOKEN), expires_in: Duration::from_secs(7200) };
        Box::pin(std::future::ready(Ok(response)))
    }
}

impl TestProxy {
    /// Starts the proxy, with a token for each agent.
    pub fn start() -> io::Result<Self> {
        Self::start_with("", None)
    }

    /// The same without quotas, which are observed by default.
    pub fn start_without_quotas() -> io::Result<Self> {
        Self::start_with("[quotas]\nmode = \"off\"\n", None)
    }

    /// Starts the proxy with a trace per request, whose spans are discarded.
    pub fn start_traced() -> io::Result<Self> {
        let (host, port) = ("127.0.0.1".to_owned(), 80);
        let attributes = CommonAttributes {
            scheme: "http",
            upstreams: vec![UpstreamAttributes { url: format!("http://{host}:{port}"), host, port }],
        };
        Self::start_with("", Some(Traces::new(attributes, config::TraceSampler::default(), 1).tracer()))
    }

    fn start_with(more_config: &str, tracer: Option<Tracer>) -> io::Result<Self> {
        let dir = TempDir::new()?;
        let upstream = TcpListener::bind("127.0.0.1:0")?;
        upstream.set_nonblocking(true)?;
        let socket = dir.path().join("socket");
        let text = CONFIG
            .replace("{socket}", &socket.display().to_string())
            .replace("{upstream}", &upstream.local_addr()?.to_string());
        let path = dir.path().join("proxy.toml");
        std::fs::write(&path, text + more_config)?;
        let mut config = config::load(&path).map_err(io::Error::other)?;
        // Without the log task the access log is disabled.
        LogHandle::start(&config.log)?;

        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
        let refresh_settings =
            RefreshSettings { refresh_ahead: config.tokens.refresh_ahead, renewals_per_hour: None };
        let tokens = TokenCache::new(Box::new(FixedTokenSource), runtime.handle().clone(), refresh_settings);
        let directory = Arc::new(Directory::new(&mut config, &tokens, &RateLimiterFactory::default()));
        let upstream_settings =
            Arc::new(Settings::new(UpstreamId::default(), &config.upstream).map_err(io::Error::other)?);
        let access = AccessLog::start(&config.log, 1, false, Box::new(io::sink()))?;
        let sinks = Rc::new(Sinks {
            access_log: access.for_worker(),
            counter: Some(Metrics::default().worker_counter()),
            // Small, so that its slots are soon reused.
            recorder: RecentExchanges::new(10, 1).add_recorder(),
            tracer,
        });
        let proxy_settings = proxy_settings(&config, upstream_settings, dir.path());
        let bound = BoundListener::open(&Address::Unix(socket.clone()), &SocketAccess::default())?;
        let (stop, stopped) = watch::channel(false);
        runtime.block_on(async {
            for agent in directory.agents() {
                agent.token.current_or_fetch().await.map_err(io::Error::other)?;
            }
            let shared = Arc::new(ArcSwap::new(directory.clone()));
            let proxy = Proxy::new(shared, Arc::new(proxy_settings), sinks.clone());
            let server = Server::new(&config.server, Arc::new(ArcSwapOption::empty()), stopped);
            spawn_local(server::serve(bound.worker_listener()?, Arc::new(server), Rc::new(proxy)));
            Ok::<_, io::Error>(())
        })?;
        Ok(Self {
            runtime,
            directory,
            access,
            telemetry: sinks,
            upstream_listener: upstream,
            socket,
            _bound: (bound, stop),
            _dir: dir,
        })
    }

    /// The agent `hr`.
    pub fn agent(&self) -> Arc<Agent> {
        self.directory.agent_by_name("hr").expect("a configured agent").clone()
    }

    /// The token of the agent `hr`.
    pub fn token(&self) -> Arc<Token> {
        self.agent().token.cached(tokio::time::Instant::now()).expect("a fetched token")
    }

    /// An access log in JSON.
    pub fn json_log(&self) -> io::Result<AccessLog> {
        let log = LogConfig {
            format: LogFormat::Json,
            level: config::LogLevel::Warn,
            access: config::LoggedRequests::All,
            access_file: None,
        };
        AccessLog::start(&log, 1, false, Box::new(io::sink()))
    }

    /// A client connection, and an upstream that sends `response` for each request.
    pub fn open_session(&self, response: String) -> io::Result<ClientSession<'_>> {
        let client = self.connect()?;
        Ok(ClientSession { proxy: self, client, upstream: None, response: response.into_bytes() })
    }

    /// A client connection.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let client = UnixStream::connect(&self.socket)?;
        client.set_nonblocking(true)?;
        Ok(client)
    }

    /// The upstream's socket, nonblocking.
    pub fn upstream_listener(&self) -> &TcpListener {
        &self.upstream_listener
    }

    /// Runs a future on the proxy's runtime.
    pub fn block_on(&self, future: impl Future<Output = ()>) {
        self.runtime.block_on(future);
    }
}

fn proxy_settings(config: &Config, upstream: Arc<Settings>, dir: &Path) -> ProxySettings {
    ProxySettings {
        suites: Default::default(),
        refresh_errcodes: config.tokens.refresh_errcodes.clone(),
        body_limits: BodyLimits {
            max_bytes: config.server.max_request_body,
            idle_timeout: config.server.body_timeout,
        },
        replay_budget: Arc::new(ReplayBudget::new(config.replay.memory, config.replay.disk, dir.to_owned())),
        signature_limit: AddressLimit::new(RateLimit { requests: 60, per: Duration::from_secs(60) }),
        quotas: Quotas::new(&config.quotas),
        state: None,
        upstreams: vec![UpstreamSettings::new(upstream, &config.upstream)],
        callbacks: None,
    }
}

/// A client whose requests are forwarded to the upstream.
pub struct ClientSession<'a> {
    proxy: &'a TestProxy,
    client: UnixStream,
    upstream: Option<TcpStream>,
    response: Vec<u8>,
}

impl ClientSession<'_> {
    /// One request and its response. Counts the proxy's runtime, but not the client and the upstream.
    pub fn exchange(&mut self, request: &str) {
        let Self { proxy, client, upstream, response } = self;
        uncounted(|| client.write_all(request.as_bytes()).expect("the proxy accepts the request"));
        proxy.runtime.block_on(async {
            poll_until(|| {
                if upstream.is_none() {
                    *upstream = try_accept(&proxy.upstream_listener);
                }
                let request = upstream.as_mut().and_then(try_read);
                // A request sent in one write is received in one read.
                request.inspect(|request| assert!(request.contains(TOKEN), "{request}")).is_some()
            })
            .await;
            uncounted(|| upstream.as_mut().map(|upstream| upstream.write_all(response)));
            poll_until(|| {
                let client_response = try_read(client);
                client_response
                    .inspect(|client_response| {
                        assert!(client_response.starts_with("HTTP/1.1 200 "), "{client_response}")
                    })
                    .is_some()
            })
            .await;
        });
    }
}

/// Runs the runtime's sockets and tasks until the condition holds.
pub async fn poll_until(mut condition: impl FnMut() -> bool) {
    for _ in 0..MAX_POLLS {
        if uncounted(&mut condition) {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("no event in {MAX_POLLS} polls of the runtime");
}

/// The next connection; `None` if none is pending.
pub fn try_accept(listener: &TcpListener) -> Option<TcpStream> {
    let connected = ok_unless_would_block(listener.accept())?.0;
    connected.set_nonblocking(true).and_then(|()| connected.set_nodelay(true)).expect("an open socket");
    Some(connected)
}

/// Reads the available bytes; `None` if there are none.
pub fn try_read(stream: &mut impl Read) -> Option<String> {
    try_read_bytes(stream).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads the available bytes, up to a bound; `None` if there are none.
pub fn try_read_bytes(stream: &mut impl Read) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 8 * 1024];
    let read = ok_unless_would_block(stream.read(&mut buffer))?;
    assert_ne!(read, 0, "the proxy closed the connection");
    buffer.truncate(read);
    Some(buffer)
}

fn ok_unless_would_block<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}
