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
    access::AccessLog,
    config::{self, Address, Log, LogFormat},
    directory::{Agent, Directory},
    limits::{Limits, places::Places, waiting::WaitLimit},
    metrics::Metrics,
    proxy::{Books, Proxy, Rules},
    recent::Recent,
    secret::Masked,
    server::{self, Bound, Server},
    telemetry::Telemetry,
    tokens::{Credentials, FetchError, Issuer, RenewalSettings, Source, Token},
    traces::{Facts, Tracer, Traces},
    upload::{Bounds, Shelf},
    upstream::{Settings, Upstream},
    wecom::reply::Grant,
};

use crate::count::aside;

/// The key of the client `billing`.
pub const KEY: &str = "key-of-billing-0000000000";
/// As long as those of WeCom.
pub const TOKEN: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_ABCDEFGHIJKLMNOPQRSTUVWXYZ\
                         abcdefghijklmnopqrstuvwxyz0123456789-_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\
                         0123456789-_ABCDEFGHIJKLMNOPQRST";

/// A proxy that says nothing for so long never will.
const MOST_TURNS: u32 = 1_000_000;

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
pub struct Stage {
    runtime: LocalRuntime,
    /// Who may call.
    pub directory: Arc<Directory>,
    /// An access log that nobody reads.
    pub access: AccessLog,
    /// Where a worker writes down its requests.
    pub books: Rc<Books>,
    upstream: TcpListener,
    socket: PathBuf,
    // The listening socket, which goes when nobody holds it, and what says that the server goes on.
    _bound: (Bound, watch::Sender<bool>),
    _dir: TempDir,
}

/// Grants the same token to everybody.
struct Granting;

impl Source for Granting {
    fn fetch<'a>(
        &'a self,
        _: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<Grant, FetchError>> + Send + 'a>> {
        let grant = Grant { token: Masked::new(TOKEN), expires_in: Duration::from_secs(7200) };
        Box::pin(std::future::ready(Ok(grant)))
    }
}

impl Stage {
    /// Sets it up, with a token for each agent.
    pub fn set() -> io::Result<Self> {
        Self::set_with(None)
    }

    /// The same, and each request has a trace, which nobody receives.
    pub fn set_traced() -> io::Result<Self> {
        let (host, port) = ("127.0.0.1".to_owned(), 80);
        let facts = Facts { scheme: "http", upstream: format!("http://{host}:{port}"), host, port };
        Self::set_with(Some(Traces::new(facts, 1).tracer()))
    }

    fn set_with(tracer: Option<Tracer>) -> io::Result<Self> {
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
        Telemetry::start(config.log)?;

        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
        let bounds = RenewalSettings { refresh_ahead: config.tokens.refresh_ahead, renewals_per_hour: None };
        let issuer = Issuer::new(Box::new(Granting), runtime.handle().clone(), bounds);
        let directory = Arc::new(Directory::new(&mut config, &issuer, &Limits::default(), None));
        let settings = Arc::new(Settings::new(&config.upstream).map_err(io::Error::other)?);
        let access = AccessLog::start(config.log, 1, false, Box::new(io::sink()))?;
        let books = Rc::new(Books {
            access: access.for_worker(),
            counter: Some(Metrics::default().counter()),
            // Few, so that the slots are soon used again.
            recorder: Recent::new(10, 1).recorder(),
            tracer,
        });
        let rules = Rules {
            refresh_errcodes: config.tokens.refresh_errcodes.clone(),
            bounds: Bounds { bytes: config.server.max_request_body, silence: config.server.body_timeout },
            shelf: Arc::new(Shelf::new(config.replay.memory, config.replay.disk, dir.path().to_owned())),
            in_flight: Arc::new(Places::new(config.upstream.max_in_flight)),
            waiting: WaitLimit::new(config.upstream.max_in_flight),
            queue_timeout: config.upstream.queue_timeout,
            upstream_authority: config.upstream.authority.clone(),
        };
        let bound = Bound::open(&Address::Unix(socket.clone()))?;
        let (stopping, stop_seen) = watch::channel(false);
        runtime.block_on(async {
            for agent in directory.agents() {
                agent.slot.current().await.map_err(io::Error::other)?;
            }
            let shared = Arc::new(ArcSwap::new(directory.clone()));
            let upstream = Upstream::new(settings);
            let proxy = Proxy::new(shared, Arc::new(rules), upstream, books.clone());
            let server = Server::new(&config.server, Arc::new(ArcSwapOption::empty()), stop_seen);
            spawn_local(server::serve(bound.listener()?, Arc::new(server), Rc::new(proxy)));
            Ok::<_, io::Error>(())
        })?;
        Ok(Self { runtime, directory, access, books, upstream, socket, _bound: (bound, stopping), _dir: dir })
    }

    /// The agent `hr`.
    pub fn agent(&self) -> Arc<Agent> {
        self.directory.agent("hr", None).expect("it stands in the configuration").clone()
    }

    /// Its token.
    pub fn token(&self) -> Arc<Token> {
        self.agent().slot.ready(tokio::time::Instant::now()).expect("it was fetched")
    }

    /// An access log of the other layout.
    pub fn json_log(&self) -> io::Result<AccessLog> {
        let log = Log { format: LogFormat::Json, level: config::Level::Warn, access: true };
        AccessLog::start(log, 1, false, Box::new(io::sink()))
    }

    /// A caller with a connection, and an upstream that answers it with `answer`.
    pub fn play(&self, answer: String) -> io::Result<Play<'_>> {
        let caller = UnixStream::connect(&self.socket)?;
        caller.set_nonblocking(true)?;
        Ok(Play { stage: self, caller, upstream: None, answer: answer.into_bytes() })
    }
}

/// One caller, whose requests go all the way.
pub struct Play<'a> {
    stage: &'a Stage,
    caller: UnixStream,
    upstream: Option<TcpStream>,
    answer: Vec<u8>,
}

impl Play<'_> {
    /// One request and its answer. What the caller and the upstream do is not counted; the proxy's runtime is.
    pub fn request(&mut self, request: &str) {
        let Self { stage, caller, upstream, answer } = self;
        aside(|| caller.write_all(request.as_bytes()).expect("the proxy takes the request"));
        stage.runtime.block_on(async {
            until(|| {
                if upstream.is_none() {
                    *upstream = connected(&stage.upstream);
                }
                let asked = upstream.as_mut().and_then(arrived);
                // What came with one write is there as a whole.
                asked.inspect(|asked| assert!(asked.contains(TOKEN), "{asked}")).is_some()
            })
            .await;
            aside(|| upstream.as_mut().map(|upstream| upstream.write_all(answer)));
            until(|| {
                let reply = arrived(caller);
                reply.inspect(|reply| assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}")).is_some()
            })
            .await;
        });
    }
}

/// Has the runtime look at its sockets and tasks until it is so.
async fn until(mut is_so: impl FnMut() -> bool) {
    for _ in 0..MOST_TURNS {
        if aside(&mut is_so) {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("nothing came in {MOST_TURNS} turns of the runtime");
}

/// The next connection, if there is one.
fn connected(listener: &TcpListener) -> Option<TcpStream> {
    let connected = unless_it_would_block(listener.accept())?.0;
    connected.set_nonblocking(true).and_then(|()| connected.set_nodelay(true)).expect("an open socket");
    Some(connected)
}

/// What is there to be read, if anything is.
fn arrived(stream: &mut impl Read) -> Option<String> {
    let mut room = [0; 8 * 1024];
    let read = unless_it_would_block(stream.read(&mut room))?;
    assert_ne!(read, 0, "the proxy closed the connection");
    Some(String::from_utf8_lossy(&room[..read]).into_owned())
}

fn unless_it_would_block<T>(outcome: io::Result<T>) -> Option<T> {
    match outcome {
        Ok(done) => Some(done),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}
