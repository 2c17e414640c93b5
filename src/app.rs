//! Wires the rooms together from the configuration; the only file that knows all of them.
//!
//! One worker thread a core, each with a runtime, an upstream pool and a share of the connections of its own, so that a
//! request never crosses from one core to another. Renewals, the admin listener and signals live on the caller's
//! runtime, where they take no worker's time.

mod export_task;
mod reloader;
mod worker;

use std::{
    io,
    sync::{Arc, Mutex, OnceLock},
    thread,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, watch},
    time::{Instant, timeout},
};

pub use self::reloader::{ReloadError, Reloader};
use self::{export_task::ExportTask, worker::WorkerSpec};
use crate::{
    admin::{self, Admin, ReloadReport},
    config::{self, Address, Config},
    directory::Directory,
    inspector::RecentExchanges,
    limits::{RateLimiterFactory, concurrency_limit::ConcurrencyLimit, wait_limit::WaitLimit},
    proxy::{ProxySettings, Sinks},
    request_body::{BodyLimits, ReplayBudget},
    server::{self, BoundListener, Inherited, InheritedError, Server, tls},
    store::{self, Store},
    telemetry::{
        access_log::{self, AccessLog},
        metrics::Metrics,
        traces::{Collector, CollectorError, Traces},
    },
    tokens::{
        self, TokenService,
        fetch::{Fetcher, call_timeout},
    },
    upstream::{Settings, UpstreamSetupError},
};

/// How long closing the listeners may take before nobody waits for it.
const LISTENER_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A configuration whose files were read and found usable.
pub struct PreparedConfig {
    config: Config,
    upstream: Arc<Settings>,
    tls: Option<Arc<tls::TlsTermination>>,
    store: Option<store::Settings>,
    collector: Option<Collector>,
}

/// What the configuration names cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The upstream's part.
    #[error(transparent)]
    Upstream(#[from] UpstreamSetupError),
    /// The part of TLS towards clients.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The store that replicas share.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// The receiver of traces.
    #[error(transparent)]
    Collector(#[from] CollectorError),
}

impl PreparedConfig {
    /// Reads the certificates that the configuration names.
    pub fn new(config: Config) -> Result<Self, SetupError> {
        let upstream = Arc::new(Settings::new(&config.upstream)?);
        let tls = config.server.tls.as_ref().map(tls::load_termination).transpose()?;
        let store = match &config.tokens.store {
            config::StoreConfig::Memory => None,
            config::StoreConfig::Redis(redis) => Some(store::Settings::new(redis)?),
        };
        let otlp = config.admin.as_ref().and_then(|admin| admin.otlp.as_ref());
        let receiver = otlp.map(Collector::new).transpose()?;
        Ok(Self { config, upstream, tls, store, collector: receiver })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The way to WeCom.
    pub fn upstream(&self) -> &Arc<Settings> {
        &self.upstream
    }

    /// How to log.
    pub fn log(&self) -> config::LogConfig {
        self.config.log
    }

    /// What works but should not stay so.
    pub fn warnings(&self) -> &[config::Warning] {
        &self.config.warnings
    }
}

/// The proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}; {}", listen_hint(.error))]
    Listen {
        /// The address, as configured.
        address: Address,
        /// What the system says.
        error: io::Error,
    },
    /// A socket that was handed over cannot be used.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// A thread or runtime could not be made.
    #[error("cannot start a worker: {0}")]
    Worker(#[from] io::Error),
}

fn listen_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "a port below 1024 needs root or CAP_NET_BIND_SERVICE, a unix socket a directory that may be written to"
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address",
        io::ErrorKind::NotFound => "make the directory first",
        _ => "choose another address, or end what listens there",
    }
}

/// A running proxy.
pub struct App {
    reloader: Arc<Reloader>,
    shutdown_grace: Duration,
    server: Arc<Server>,
    /// Ends when all listeners are closed.
    listeners_closed: mpsc::Receiver<()>,
    in_flight: Arc<ConcurrencyLimit>,
    replay_budget: Arc<ReplayBudget>,
    stopping: watch::Sender<bool>,
    ended: watch::Sender<bool>,
    workers: Vec<thread::JoinHandle<()>>,
    addresses: Vec<Address>,
    admin_addresses: Vec<Address>,
    access_log: AccessLog,
    export_task: Option<ExportTask>,
}

/// What there is already when a proxy starts.
#[derive(Default)]
pub struct StartOptions {
    /// Sockets that are open, in place of those that it would open at their addresses.
    pub inherited: Inherited,
    /// An access log that somebody else has begun, in place of one to stderr.
    pub access_log: Option<AccessLog>,
}

/// A running proxy in a few words, for the log.
#[derive(Debug)]
pub struct Summary {
    /// Where requests go: a URL without any password.
    pub upstream: String,
    /// The egress proxy they leave through.
    pub via: Option<String>,
    /// How many agents there are.
    pub agents: usize,
    /// How many clients there are.
    pub clients: usize,
    /// Where tokens are kept: `memory` or `redis`.
    pub store: &'static str,
    /// Whether callers without a key are served.
    pub open: bool,
}

impl App {
    /// Opens every listener and starts the workers. Must be called on the runtime that renewals will live on.
    pub fn start(prepared: PreparedConfig) -> Result<Self, StartError> {
        Self::start_with(prepared, StartOptions::default())
    }

    /// The same with what there is already.
    pub fn start_with(prepared: PreparedConfig, surroundings: StartOptions) -> Result<Self, StartError> {
        let StartOptions { mut inherited, access_log: access } = surroundings;
        let PreparedConfig { mut config, upstream, tls, store, collector: receiver } = prepared;
        let bound = open_listeners(&config.server.listen, &mut inherited)?;
        let admin_listen = config.admin.as_ref().map_or(&[][..], |admin| &admin.listen);
        let admin_bound = open_listeners(admin_listen, &mut inherited)?;
        inherited.ensure_all_used()?;
        let addresses: Vec<_> = bound.iter().map(BoundListener::local_address).collect();
        let admin_addresses: Vec<_> = admin_bound.iter().map(BoundListener::local_address).collect();

        let gettoken = Fetcher::start(upstream.clone(), call_timeout(&config.upstream))?;
        let (refresh_ahead, renewals_per_hour) =
            (config.tokens.refresh_ahead, config.tokens.renewals_per_hour);
        let (runtime, bounds) =
            (Handle::current(), tokens::RefreshSettings { refresh_ahead, renewals_per_hour });
        let issuer = match store {
            None => TokenService::new(Box::new(gettoken), runtime, bounds),
            Some(settings) => {
                let store = Store::open(settings, &runtime);
                TokenService::with_store(Box::new(gettoken), runtime, bounds, store)
            }
        };
        let limits = issuer
            .store()
            .map(|store| RateLimiterFactory::with_store(store, &Handle::current()))
            .unwrap_or_default();
        let directory = Directory::new(&mut config, &issuer, &limits, None);
        let directory = Arc::new(ArcSwap::from_pointee(directory));
        config.warnings = Vec::new();
        let included = Mutex::new(std::mem::take(&mut config.include_counts));
        let shelf_dir = config.replay.dir.clone().unwrap_or_else(std::env::temp_dir);
        let shelf = Arc::new(ReplayBudget::new(config.replay.memory, config.replay.disk, shelf_dir));
        let in_flight = Arc::new(ConcurrencyLimit::new(config.upstream.max_in_flight));
        let rules = Arc::new(proxy_settings(&config, &shelf, &in_flight));
        let (stopping, stop_seen) = watch::channel(false);
        let (ended, end_seen) = watch::channel(false);

        let server = Arc::new(Server::new(&config.server, Arc::new(tls.into()), stop_seen.clone()));
        let bound = Arc::new(bound);
        let (open, listening) = mpsc::channel(1);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let access = access.map_or_else(|| AccessLog::start_on_stderr(config.log, cores), Ok)?;
        let metrics = Arc::new(Metrics::default());
        let recent =
            Arc::new(RecentExchanges::new(config.admin.as_ref().map_or(0, |admin| admin.recent), cores));
        let export = receiver.map(|receiver| ExportTask::start(receiver, &config, cores));
        let traces = export.as_ref().map(|export| export.traces.clone());
        let crew = WorkerSpec {
            server: server.clone(),
            bound,
            directory: directory.clone(),
            settings: rules.clone(),
            upstream,
            ended: end_seen.clone(),
            open_guard: open,
        };
        let workers = (0..cores).map(|nth| {
            let books = Sinks {
                access_log: access.for_worker(),
                // Without an admin listener nobody would ever ask.
                counter: config.admin.is_some().then(|| metrics.worker_counter()),
                recorder: recent.add_recorder(),
                tracer: traces.as_ref().map(Traces::tracer),
            };
            crew.clone().spawn(nth, books)
        });
        let workers = workers.collect::<io::Result<Vec<_>>>()?;
        // Only the workers hold the listeners now.
        drop(crew);
        let shutdown_grace = config.server.shutdown_grace;
        let key = config.admin.as_ref().and_then(|admin| admin.key_sha256);
        let reloader = Arc::new(Reloader {
            initial_config: config,
            directory: directory.clone(),
            token_service: issuer.clone(),
            limits,
            server: server.clone(),
            log_handle: OnceLock::new(),
            bound_addresses: addresses.clone(),
            include_counts: included,
        });
        let (orders, speaks_tls) = (reloader.clone(), reloader.initial_config.server.tls.is_some());
        let admin = Arc::new(Admin {
            key,
            directory,
            listeners: [&addresses[..], &admin_addresses[..]].concat(),
            tls: speaks_tls,
            stopping: stop_seen,
            metrics,
            recent,
            traces,
            connections: admin::AdminConnectionLimiter::new(server::max_admin_connections()),
            stream_permits: Arc::new(Semaphore::new(admin::MAX_STREAM_READERS)),
            token_service: issuer,
            server: server.clone(),
            settings: rules,
            access_log: access.clone(),
            reload: Box::new(move || orders.reload().map_err(|error| error.to_string())),
        });
        spawn_admin(&admin, admin_bound, &end_seen)?;
        Ok(Self {
            reloader,
            shutdown_grace,
            server,
            listeners_closed: listening,
            in_flight,
            replay_budget: shelf,
            stopping,
            ended,
            workers,
            addresses,
            admin_addresses,
            access_log: access,
            export_task: export,
        })
    }

    /// Where clients connect: the real addresses.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Where the admin listener is.
    pub fn admin_addresses(&self) -> &[Address] {
        &self.admin_addresses
    }

    /// What it serves, now.
    pub fn summary(&self) -> Summary {
        let settings = &self.reloader.initial_config;
        let directory = self.reloader.directory.load();
        Summary {
            upstream: settings.upstream.origin(),
            via: settings.upstream.via.as_ref().map(config::EgressProxy::authority),
            agents: directory.agents().count(),
            clients: directory.client_count(),
            store: settings.tokens.store.kind(),
            open: directory.is_open(),
        }
    }

    /// The access log.
    pub fn access_log(&self) -> &AccessLog {
        &self.access_log
    }

    /// The places among the requests in flight.
    pub fn concurrency_limit(&self) -> &ConcurrencyLimit {
        &self.in_flight
    }

    /// The room for kept request bodies.
    pub fn replay_budget(&self) -> &ReplayBudget {
        &self.replay_budget
    }

    /// Why the store that replicas share is away; `None` while it is there, and where there is none.
    pub fn store_error(&self) -> Option<String> {
        self.reloader.token_service.store_error()
    }

    /// See [`Reloader::reload`].
    pub fn reload(&self) -> Result<ReloadReport, ReloadError> {
        self.reloader.reload()
    }

    /// For a reload on another thread.
    pub fn reloader(&self) -> Arc<Reloader> {
        self.reloader.clone()
    }

    /// Takes no more requests, waits for those in flight as long as `server.shutdown_grace` allows, then ends. Returns
    /// whether all of them finished.
    pub async fn shutdown(mut self) -> bool {
        // The workers close the listeners: whoever connects is refused then, and can go elsewhere at once.
        self.stopping.send_replace(true);
        // Nothing of what waits has been sent: it can go elsewhere too.
        self.in_flight.close();
        // Before that somebody may still come.
        let _ = timeout(LISTENER_CLOSE_TIMEOUT, self.listeners_closed.recv()).await;
        let until = Instant::now() + self.shutdown_grace;
        let drained =
            timeout(self.shutdown_grace, self.server.connection_limiter.wait_drained()).await.is_ok();
        self.ended.send_replace(true);
        let (workers, access, export) = (self.workers, self.access_log, self.export_task);
        let _ = tokio::task::spawn_blocking(move || {
            for worker in workers {
                let _ = worker.join();
            }
            access.flush(access_log::FLUSH_TIMEOUT);
        })
        .await;
        if let Some(export) = export {
            export.finish(until).await;
        }
        drained
    }
}

fn open_listeners(
    addresses: &[Address],
    inherited: &mut Inherited,
) -> Result<Vec<BoundListener>, StartError> {
    let open = |address: &Address| match inherited.take_for_address(address) {
        Some(bound) => Ok(bound),
        None => BoundListener::open(address)
            .map_err(|error| StartError::Listen { address: address.clone(), error }),
    };
    addresses.iter().map(open).collect()
}

fn proxy_settings(
    config: &Config,
    shelf: &Arc<ReplayBudget>,
    in_flight: &Arc<ConcurrencyLimit>,
) -> ProxySettings {
    ProxySettings {
        refresh_errcodes: config.tokens.refresh_errcodes.clone(),
        body_limits: BodyLimits {
            max_bytes: config.server.max_request_body,
            idle_timeout: config.server.body_timeout,
        },
        replay_budget: shelf.clone(),
        in_flight: in_flight.clone(),
        wait_limit: WaitLimit::new(config.upstream.max_in_flight),
        queue_timeout: config.upstream.queue_timeout,
        upstream_authority: config.upstream.authority.clone(),
    }
}

/// Has the admin listener served, where there is one.
fn spawn_admin(
    admin: &Arc<Admin>,
    bound: Vec<BoundListener>,
    ended: &watch::Receiver<bool>,
) -> io::Result<()> {
    if !bound.is_empty() {
        tokio::spawn(admin.clone().run_maintenance(ended.clone()));
    }
    for bound in bound {
        tokio::spawn(admin.clone().serve(bound.worker_listener()?, bound, ended.clone()));
    }
    Ok(())
}
