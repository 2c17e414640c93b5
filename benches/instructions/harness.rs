//! A proxy, a caller and an upstream on one thread, so that who waits for whom is the same in each run.

use std::{
    future::Future,
    io::{self, ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
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
    config::{self, Address, LogConfig, LogFormat},
    directory::{Agent, Directory},
    inspector::RecentExchanges,
    limits::{RateLimiterFactory, concurrency_limit::ConcurrencyLimit, wait_limit::WaitLimit},
    proxy::{Proxy, ProxySettings, Sinks},
    request_body::{BodyLimits, ReplayBudget},
    secret::Masked,
    server::{self, BoundListener, Server},
    telemetry::{
        access_log::AccessLog,
        logs::LogHandle,
        metrics::Metrics,
        traces::{CommonAttributes, Tracer, Traces},
    },
    tokens::{Credentials, FetchError, FetchToken, RefreshSettings, Token, TokenService},
    upstream::{Settings, Upstream},
    wecom::response::GettokenResponse,
};

use crate::counter::uncounted;

/// The key of the client `billing`.
pub const KEY: &str = "key-of-billing-0000000000";
/// As long as those of WeCom.
pub const TOKEN: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_ABCDEFGHIJKLMNOPQRSTUVWXYZ\
                         abcdefghijklmnopqrstuvwxyz0123456789-_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\
                         0123456789-_ABCDEFGHIJKLMNOPQRST";

/// A proxy that says nothing for so long never will.
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

/// Everything in one place.
pub struct TestProxy {
    runtime: LocalRuntime,
    /// Who may call.
    pub directory: Arc<Directory>,
    /// An access log that nobody reads.
    pub access: AccessLog,
    /// Where a worker writes down its requests.
    pub telemetry: Rc<Sinks>,
    upstream_listener: TcpListener,
    socket: PathBuf,
    // The listening socket, which goes when nobody holds it, and what says that the server goes on.
    _bound: (BoundListener, watch::Sender<bool>),
    _dir: TempDir,
}

/// Grants the same token to everybody.
struct FixedTokenSource;

impl FetchToken for FixedTokenSource {
    fn fetch<'a>(
        &'a self,
        _: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<GettokenResponse, FetchError>> + Send + 'a>> {
        let grant = GettokenResponse { token: Masked::new(TOKEN), expires_in: Duration::from_secs(7200) };
        Box::pin(std::future::ready(Ok(grant)))
    }
}

impl TestProxy {
    /// Sets it up, with a token for each agent.
    pub fn start() -> io::Result<Self> {
        Self::start_with(None)
    }

    /// The same, and each request has a trace, which nobody receives.
    pub fn start_traced() -> io::Result<Self> {
        let (host, port) = ("127.0.0.1".to_owned(), 80);
        let facts = CommonAttributes {
            scheme: "http",
            upstream_url: format!("http://{host}:{port}"),
            upstream_host: host,
            upstream_port: port,
        };
        Self::start_with(Some(Traces::new(facts, 1).tracer()))
    }

    fn start_with(tracer: Option<Tracer>) -> io::Result<Self> {
        let dir = TempDir::new()?;
        let upstream = TcpListener::bind("127.0.0.1:0")?;
        upstream.set_nonblocking(true)?;
        let socket = dir.path().join("socket");
        let text = CONFIG
            .replace("{socket}", &socket.display().to_string())
            .replace("{upstream}", &upstream.local_addr()?.to_string());
        let path = dir.path().join("proxy.toml");
        std::fs::write(&path, text)?;
        let mut config = config::load(&path).map_err(io::Error::other)?;
        // Without it nobody would want the access log's lines.
        LogHandle::start(config.log)?;

        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
        let bounds = RefreshSettings { refresh_ahead: config.tokens.refresh_ahead, renewals_per_hour: None };
        let issuer = TokenService::new(Box::new(FixedTokenSource), runtime.handle().clone(), bounds);
        let directory = Arc::new(Directory::new(&mut config, &issuer, &RateLimiterFactory::default(), None));
        let settings = Arc::new(Settings::new(&config.upstream).map_err(io::Error::other)?);
        let access = AccessLog::start(config.log, 1, false, Box::new(io::sink()))?;
        let books = Rc::new(Sinks {
            access_log: access.for_worker(),
            counter: Some(Metrics::default().worker_counter()),
            // Few, so that the slots are soon used again.
            recorder: RecentExchanges::new(10, 1).add_recorder(),
            tracer,
        });
        let rules = ProxySettings {
            refresh_errcodes: config.tokens.refresh_errcodes.clone(),
            body_limits: BodyLimits {
                max_bytes: config.server.max_request_body,
                idle_timeout: config.server.body_timeout,
            },
            replay_budget: Arc::new(ReplayBudget::new(
                config.replay.memory,
                config.replay.disk,
                dir.path().to_owned(),
            )),
            in_flight: Arc::new(ConcurrencyLimit::new(config.upstream.max_in_flight)),
            wait_limit: WaitLimit::new(config.upstream.max_in_flight),
            queue_timeout: config.upstream.queue_timeout,
            upstream_authority: config.upstream.authority.clone(),
        };
        let bound = BoundListener::open(&Address::Unix(socket.clone()))?;
        let (stopping, stop_seen) = watch::channel(false);
        runtime.block_on(async {
            for agent in directory.agents() {
                agent.token.current_or_fetch().await.map_err(io::Error::other)?;
            }
            let shared = Arc::new(ArcSwap::new(directory.clone()));
            let upstream = Upstream::new(settings);
            let proxy = Proxy::new(shared, Arc::new(rules), upstream, books.clone());
            let server = Server::new(&config.server, Arc::new(ArcSwapOption::empty()), stop_seen);
            spawn_local(server::serve(bound.worker_listener()?, Arc::new(server), Rc::new(proxy)));
            Ok::<_, io::Error>(())
        })?;
        Ok(Self {
            runtime,
            directory,
            access,
            telemetry: books,
            upstream_listener: upstream,
            socket,
            _bound: (bound, stopping),
            _dir: dir,
        })
    }

    /// The agent `hr`.
    pub fn agent(&self) -> Arc<Agent> {
        self.directory.agent("hr", None).expect("it stands in the configuration").clone()
    }

    /// Its token.
    pub fn token(&self) -> Arc<Token> {
        self.agent().token.cached(tokio::time::Instant::now()).expect("it was fetched")
    }

    /// An access log of the other layout.
    pub fn json_log(&self) -> io::Result<AccessLog> {
        let log = LogConfig { format: LogFormat::Json, level: config::LogLevel::Warn, access: true };
        AccessLog::start(log, 1, false, Box::new(io::sink()))
    }

    /// A caller with a connection, and an upstream that answers it with `answer`.
    pub fn open_session(&self, answer: String) -> io::Result<ClientSession<'_>> {
        let caller = UnixStream::connect(&self.socket)?;
        caller.set_nonblocking(true)?;
        Ok(ClientSession { proxy: self, client: caller, upstream: None, response: answer.into_bytes() })
    }
}

/// One caller, whose requests go all the way.
pub struct ClientSession<'a> {
    proxy: &'a TestProxy,
    client: UnixStream,
    upstream: Option<TcpStream>,
    response: Vec<u8>,
}

impl ClientSession<'_> {
    /// One request and its answer. What the caller and the upstream do is not counted; the proxy's runtime is.
    pub fn exchange(&mut self, request: &str) {
        let Self { proxy: stage, client: caller, upstream, response: answer } = self;
        uncounted(|| caller.write_all(request.as_bytes()).expect("the proxy takes the request"));
        stage.runtime.block_on(async {
            poll_until(|| {
                if upstream.is_none() {
                    *upstream = try_accept(&stage.upstream_listener);
                }
                let asked = upstream.as_mut().and_then(try_read);
                // What came with one write is there as a whole.
                asked.inspect(|asked| assert!(asked.contains(TOKEN), "{asked}")).is_some()
            })
            .await;
            uncounted(|| upstream.as_mut().map(|upstream| upstream.write_all(answer)));
            poll_until(|| {
                let reply = try_read(caller);
                reply.inspect(|reply| assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}")).is_some()
            })
            .await;
        });
    }
}

/// Has the runtime look at its sockets and tasks until it is so.
async fn poll_until(mut is_so: impl FnMut() -> bool) {
    for _ in 0..MAX_POLLS {
        if uncounted(&mut is_so) {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("nothing came in {MAX_POLLS} turns of the runtime");
}

/// The next connection, if there is one.
fn try_accept(listener: &TcpListener) -> Option<TcpStream> {
    let connected = ok_unless_would_block(listener.accept())?.0;
    connected.set_nonblocking(true).and_then(|()| connected.set_nodelay(true)).expect("an open socket");
    Some(connected)
}

/// What is there to be read, if anything is.
fn try_read(stream: &mut impl Read) -> Option<String> {
    let mut room = [0; 8 * 1024];
    let read = ok_unless_would_block(stream.read(&mut room))?;
    assert_ne!(read, 0, "the proxy closed the connection");
    Some(String::from_utf8_lossy(&room[..read]).into_owned())
}

fn ok_unless_would_block<T>(outcome: io::Result<T>) -> Option<T> {
    match outcome {
        Ok(done) => Some(done),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}
