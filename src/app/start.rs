//! Starts everything that the configuration specifies.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
    thread,
};

use arc_swap::ArcSwap;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, watch},
};

use super::{
    App, export_task::ExportTask, prepared_config::PreparedConfig, reloader::Reloader, worker::WorkerSpec,
};
use crate::{
    admin::{self, Admin},
    config::{Address, Config},
    directory::Directory,
    inspector::RecentExchanges,
    limits::{RateLimiterFactory, concurrency_limit::ConcurrencyLimit, wait_limit::WaitLimit},
    proxy::{ProxySettings, Sinks},
    request_body::{BodyLimits, ReplayBudget},
    server::{self, BoundListener, Inherited, InheritedError, Server},
    store::{self, Store},
    telemetry::{
        access_log::AccessLog,
        metrics::Metrics,
        traces::{Collector, Traces},
    },
    tokens::{
        self, TokenService,
        fetch::{GettokenThread, call_timeout},
    },
    upstream::Settings,
};

/// The proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}; {}", listen_hint(.error))]
    Listen {
        /// The address, as configured.
        address: Address,
        /// The error of bind or listen.
        error: io::Error,
    },
    /// An inherited socket cannot be used.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// A thread or runtime could not be created.
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
        _ => "choose another address, or stop what listens there",
    }
}

/// Replacements for what the proxy would open itself.
#[derive(Default)]
pub struct StartOptions {
    /// Listening sockets from the process that started this one; an address without one is bound.
    pub inherited: Inherited,
    /// A running access log; without it, one to stderr is started.
    pub access_log: Option<AccessLog>,
}

impl App {
    /// Opens every listener and starts the workers. Must be called on the runtime that token refreshes will run on.
    pub fn start(prepared: PreparedConfig) -> Result<Self, StartError> {
        Self::start_with(prepared, StartOptions::default())
    }

    /// [`App::start`] with inherited sockets or a running access log.
    pub fn start_with(prepared: PreparedConfig, options: StartOptions) -> Result<Self, StartError> {
        let StartOptions { mut inherited, access_log } = options;
        let PreparedConfig { mut config, upstream, tls, store, collector } = prepared;
        let listeners = Listeners::open(&config, &mut inherited)?;
        inherited.ensure_all_used()?;

        let token_service = build_token_service(&config, &upstream, store)?;
        let limits = rate_limiters(&token_service);
        let directory = Directory::new(&mut config, &token_service, &limits, None);
        let directory = Arc::new(ArcSwap::from_pointee(directory));
        config.warnings = Vec::new();
        let include_counts = Mutex::new(std::mem::take(&mut config.include_counts));
        let replay_dir = config.replay.dir.clone().unwrap_or_else(std::env::temp_dir);
        let settings = Arc::new(proxy_settings(&config, replay_dir));
        let (stopping, stop_seen) = watch::channel(false);
        let (ended, end_seen) = watch::channel(false);
        let server = Arc::new(Server::new(&config.server, Arc::new(tls.into()), stop_seen.clone()));
        let (open_guard, listeners_closed) = mpsc::channel(1);
        let observers = Observers::start(&config, access_log, collector)?;
        let spec = WorkerSpec {
            server: server.clone(),
            bound: Arc::new(listeners.proxy),
            directory: directory.clone(),
            settings: settings.clone(),
            upstream,
            ended: end_seen.clone(),
            open_guard,
        };
        let workers = spawn_workers(spec, &observers, config.admin.is_some())?;
        let shutdown_grace = config.server.shutdown_grace;
        let reloader = Arc::new(Reloader {
            initial_config: config,
            directory,
            token_service,
            limits,
            server: server.clone(),
            log_handle: OnceLock::new(),
            bound_addresses: listeners.addresses.clone(),
            include_counts,
        });
        let addresses = [&listeners.addresses[..], &listeners.admin_addresses[..]].concat();
        let admin = Arc::new(build_admin(&reloader, &settings, &observers, addresses, stop_seen));
        spawn_admin(&admin, listeners.admin, &end_seen)?;
        Ok(Self {
            reloader,
            shutdown_grace,
            server,
            listeners_closed,
            settings,
            stopping,
            ended,
            workers,
            addresses: listeners.addresses,
            admin_addresses: listeners.admin_addresses,
            access_log: observers.access_log,
            export_task: observers.export_task,
        })
    }
}

/// The open listeners, and their addresses with the ports that the system chose.
struct Listeners {
    proxy: Vec<BoundListener>,
    admin: Vec<BoundListener>,
    addresses: Vec<Address>,
    admin_addresses: Vec<Address>,
}

impl Listeners {
    fn open(config: &Config, inherited: &mut Inherited) -> Result<Self, StartError> {
        let proxy = open_listeners(&config.server.listen, inherited)?;
        let admin_listen = config.admin.as_ref().map_or(&[][..], |admin| &admin.listen);
        let admin = open_listeners(admin_listen, inherited)?;
        let addresses = proxy.iter().map(BoundListener::local_address).collect();
        let admin_addresses = admin.iter().map(BoundListener::local_address).collect();
        Ok(Self { proxy, admin, addresses, admin_addresses })
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

fn build_token_service(
    config: &Config,
    upstream: &Arc<Settings>,
    store: Option<store::PreparedStore>,
) -> Result<Arc<TokenService>, StartError> {
    let fetcher = GettokenThread::start(upstream.clone(), call_timeout(&config.upstream))?;
    let settings = tokens::RefreshSettings {
        refresh_ahead: config.tokens.refresh_ahead,
        renewals_per_hour: config.tokens.renewals_per_hour,
    };
    let runtime = Handle::current();
    Ok(match store {
        None => TokenService::new(Box::new(fetcher), runtime, settings),
        Some(store) => {
            let store = Store::open(store, &runtime);
            TokenService::with_store(Box::new(fetcher), runtime, settings, store)
        }
    })
}

/// The rate limiters of the replicas together where there is a store, else of this process.
fn rate_limiters(token_service: &TokenService) -> RateLimiterFactory {
    token_service
        .store()
        .map(|store| RateLimiterFactory::with_store(store, &Handle::current()))
        .unwrap_or_default()
}

fn proxy_settings(config: &Config, replay_dir: PathBuf) -> ProxySettings {
    ProxySettings {
        refresh_errcodes: config.tokens.refresh_errcodes.clone(),
        body_limits: BodyLimits {
            max_bytes: config.server.max_request_body,
            idle_timeout: config.server.body_timeout,
        },
        replay_budget: Arc::new(ReplayBudget::new(config.replay.memory, config.replay.disk, replay_dir)),
        in_flight: Arc::new(ConcurrencyLimit::new(config.upstream.max_in_flight)),
        wait_limit: WaitLimit::new(config.upstream.max_in_flight),
        queue_timeout: config.upstream.queue_timeout,
        upstream_authority: config.upstream.authority.clone(),
    }
}

/// The sinks that observe requests, shared by all workers.
struct Observers {
    /// The number of workers.
    workers: usize,
    access_log: AccessLog,
    metrics: Arc<Metrics>,
    recent: Arc<RecentExchanges>,
    export_task: Option<ExportTask>,
}

impl Observers {
    fn start(
        config: &Config,
        access_log: Option<AccessLog>,
        collector: Option<Collector>,
    ) -> io::Result<Self> {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let access_log = access_log.map_or_else(|| AccessLog::start_on_stderr(config.log, workers), Ok)?;
        let metrics = Arc::new(Metrics::default());
        let capacity = config.admin.as_ref().map_or(0, |admin| admin.recent);
        let recent = Arc::new(RecentExchanges::new(capacity, workers));
        let export_task = collector.map(|collector| ExportTask::start(collector, config, workers));
        Ok(Self { workers, access_log, metrics, recent, export_task })
    }

    fn traces(&self) -> Option<&Traces> {
        self.export_task.as_ref().map(|task| &task.traces)
    }
}

/// Starts the workers. Takes `spec`, so that from then on only the workers keep the listeners open.
fn spawn_workers(
    spec: WorkerSpec,
    observers: &Observers,
    has_admin: bool,
) -> io::Result<Vec<thread::JoinHandle<()>>> {
    let workers = (0..observers.workers).map(|nth| {
        let sinks = Sinks {
            access_log: observers.access_log.for_worker(),
            // Without an admin listener, no client can read the metrics.
            counter: has_admin.then(|| observers.metrics.worker_counter()),
            recorder: observers.recent.add_recorder(),
            tracer: observers.traces().map(Traces::tracer),
        };
        spec.clone().spawn(nth, sinks)
    });
    workers.collect()
}

fn build_admin(
    reloader: &Arc<Reloader>,
    settings: &Arc<ProxySettings>,
    observers: &Observers,
    addresses: Vec<Address>,
    stopping: watch::Receiver<bool>,
) -> Admin {
    let config = &reloader.initial_config;
    let reload = reloader.clone();
    Admin {
        key: config.admin.as_ref().and_then(|admin| admin.key_sha256),
        directory: reloader.directory.clone(),
        listeners: addresses,
        tls: config.server.tls.is_some(),
        stopping,
        metrics: observers.metrics.clone(),
        recent: observers.recent.clone(),
        traces: observers.traces().cloned(),
        connections: admin::AdminConnectionLimiter::new(server::max_admin_connections()),
        stream_permits: Arc::new(Semaphore::new(admin::MAX_STREAM_READERS)),
        token_service: reloader.token_service.clone(),
        server: reloader.server.clone(),
        settings: settings.clone(),
        access_log: observers.access_log.clone(),
        reload: Box::new(move || reload.reload().map_err(|error| error.to_string())),
    }
}

/// Serves the admin listeners on the current runtime.
fn spawn_admin(
    admin: &Arc<Admin>,
    listeners: Vec<BoundListener>,
    ended: &watch::Receiver<bool>,
) -> io::Result<()> {
    if !listeners.is_empty() {
        tokio::spawn(admin.clone().run_maintenance(ended.clone()));
    }
    for listener in listeners {
        tokio::spawn(admin.clone().serve(listener.worker_listener()?, listener, ended.clone()));
    }
    Ok(())
}
