//! Starts everything that the configuration specifies.

use std::{
    io,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;

use arc_swap::ArcSwap;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};

use super::{
    App,
    directory_with_state::DirectoryWithState,
    export_task::ExportTask,
    file_watch, instance,
    prepared_config::PreparedConfig,
    proxy_settings::proxy_settings,
    reloader::{AppliedFiles, LoadRecord, Reloader},
    start_error::StartError,
    worker::WorkerSpec,
};
use crate::{
    admin::{self, Admin, LastReload},
    callbacks::Callbacks,
    config::{Address, Config, LogConfig, SocketAccess},
    directory::Directory,
    inspector::RecentExchanges,
    proxy::{ProxySettings, Sinks},
    server::{self, BoundListener, Inherited, Server},
    state::State,
    store::{self, Store},
    suites::Suites,
    telemetry::{
        access_log::AccessLog,
        metrics::Metrics,
        traces::{Collector, Traces},
    },
    tokens::{self, TokenCache, fetch::GettokenThread},
    upstream::Settings,
};

/// Replacements for what the proxy would open itself.
#[derive(Default)]
pub struct StartOptions {
    /// Listening sockets from the process that started this one; an address without one is bound.
    pub inherited: Inherited,
    /// A running access log; without it, one to stderr is started.
    pub access_log: Option<AccessLog>,
    /// The time between two polls of watched files, for tests; `None`: 5 s.
    pub watch_interval: Option<Duration>,
}

impl App {
    /// Opens every listener and starts the workers. Must be called on the runtime that token refreshes will run on.
    pub fn start(prepared: PreparedConfig) -> Result<Self, StartError> {
        Self::start_with(prepared, StartOptions::default())
    }

    /// [`App::start`] with inherited sockets or a running access log.
    pub fn start_with(prepared: PreparedConfig, options: StartOptions) -> Result<Self, StartError> {
        let StartOptions { mut inherited, access_log, watch_interval } = options;
        let PreparedConfig { mut config, upstreams, tls, store, collector } = prepared;
        let token_cache = build_token_cache(&config, &upstreams, store)?;
        let opened = DirectoryWithState::open(&mut config, &token_cache)?;
        opened.reject_unintended_open(&config)?;
        let DirectoryWithState { directory, updater, suites, state } = opened;
        let listeners = Listeners::open(&config, &mut inherited)?;
        let callbacks = start_callbacks(&config, &suites, state.as_ref())?;
        let settings = Arc::new(proxy_settings(&config, &upstreams, callbacks, state.clone(), suites));
        settings.quotas.spawn_merging(token_cache.store().cloned(), &Handle::current());
        let (stopping, stop_seen) = watch::channel(false);
        let (ended, end_seen) = watch::channel(false);
        let server = Arc::new(Server::new(&config.server, Arc::new(tls.into()), stop_seen.clone()));
        let (open_guard, listeners_closed) = mpsc::channel(1);
        let observers = Observers::start(&config, access_log, collector)?;
        observers.observe_fetches(&token_cache);
        let spec = WorkerSpec {
            server: server.clone(),
            bound: Arc::new(listeners.proxy),
            directory: directory.clone(),
            settings: settings.clone(),
            ended: end_seen.clone(),
            open_guard,
        };
        let workers = spawn_workers(spec, &observers, config.admin.is_some())?;
        let reloader = Arc::new(Reloader {
            last_load: Mutex::new(LoadRecord::of_start(&mut config)),
            last_applied: Mutex::new(AppliedFiles::of(&mut config)),
            last_reload: Arc::new(LastReload::of_start(&config)),
            initial_config: config,
            directory: updater,
            quotas: settings.quotas.clone(),
            token_cache,
            server: server.clone(),
            upstreams: upstreams.clone(),
            log_handle: OnceLock::new(),
            bound_addresses: listeners.addresses.clone(),
            state,
            callbacks: settings.callbacks.clone(),
            suites: settings.suites.clone(),
        });
        file_watch::start(&reloader, watch_interval, &stop_seen);
        let addresses = [&listeners.addresses[..], &listeners.admin_addresses[..]].concat();
        let admin = Arc::new(build_admin(&reloader, directory, &settings, &observers, addresses, stop_seen));
        spawn_admin(&admin, listeners.admin, &end_seen)?;
        Ok(Self {
            shutdown_grace: reloader.initial_config.server.shutdown_grace,
            reloader,
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
            _probes: spawn_probes(&upstreams),
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
        let admin_listen = config.admin.as_ref().map_or(&[][..], |admin| &admin.listen);
        // Before any address is bound: one that overlaps with an inherited socket could not be.
        inherited.ensure_configured(&[&config.server.listen[..], admin_listen].concat())?;
        let proxy = open_listeners(&config.server.listen, inherited, &config.server.socket_access)?;
        let admin = open_listeners(admin_listen, inherited, &SocketAccess::default())?;
        let addresses = proxy.iter().map(BoundListener::local_address).collect();
        let admin_addresses = admin.iter().map(BoundListener::local_address).collect();
        Ok(Self { proxy, admin, addresses, admin_addresses })
    }
}

fn open_listeners(
    addresses: &[Address],
    inherited: &mut Inherited,
    socket_access: &SocketAccess,
) -> Result<Vec<BoundListener>, StartError> {
    let open = |address: &Address| match inherited.take_for_address(address) {
        Some(bound) => Ok(bound),
        None => BoundListener::open(address, socket_access)
            .map_err(|error| StartError::Listen { address: address.clone(), error }),
    };
    addresses.iter().map(open).collect()
}

fn build_token_cache(
    config: &Config,
    upstreams: &[Arc<Settings>],
    store: Option<store::PreparedStore>,
) -> Result<Arc<TokenCache>, StartError> {
    let fetcher = GettokenThread::start(upstreams.to_vec())?;
    let settings = tokens::RefreshSettings {
        refresh_ahead: config.tokens.refresh_ahead,
        renewals_per_hour: config.tokens.renewals_per_hour,
    };
    let runtime = Handle::current();
    Ok(match store {
        None => TokenCache::new(Box::new(fetcher), runtime, settings),
        Some(store) => {
            let store = Store::open(store, &runtime);
            TokenCache::with_store(Box::new(fetcher), runtime, settings, store)
        }
    })
}

/// The service for callbacks; where there is a state, a reload can add some.
fn start_callbacks(
    config: &Config,
    suites: &Arc<Suites>,
    state: Option<&Arc<State>>,
) -> Result<Option<Arc<Callbacks>>, StartError> {
    let start = |state: &Arc<State>| Callbacks::start(state.clone(), suites.clone(), &config.callbacks);
    state.map(start).transpose().map_err(StartError::Callbacks)
}

/// Starts a task for each egress proxy, which probes it when it is down. They end when the set is dropped.
fn spawn_probes(upstreams: &[Arc<Settings>]) -> JoinSet<()> {
    let mut probes = JoinSet::new();
    for upstream in upstreams {
        for nth in 0..upstream.egress_proxies().count() {
            let upstream = upstream.clone();
            probes.spawn(async move { upstream.probe_egress_proxy(nth).await });
        }
    }
    probes
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
    ) -> Result<Self, StartError> {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let access_log = match access_log {
            Some(running) => running,
            None => start_access_log(&config.log, workers)?,
        };
        let series = config.admin.as_ref().map(|admin| admin.metrics).unwrap_or_default();
        let metrics = Arc::new(Metrics::new(series));
        let capacity = config.admin.as_ref().map_or(0, |admin| admin.recent);
        let recent = Arc::new(RecentExchanges::new(capacity, workers));
        let export_task = collector.zip(config.traces.as_ref());
        let export_task =
            export_task.map(|(collector, traces)| ExportTask::start(collector, traces, config, workers));
        Ok(Self { workers, access_log, metrics, recent, export_task })
    }

    fn observe_fetches(&self, token_cache: &TokenCache) {
        if let Some(traces) = self.traces() {
            token_cache.set_observer(traces.fetch_tracer());
        }
    }

    fn traces(&self) -> Option<&Traces> {
        self.export_task.as_ref().map(|task| &task.traces)
    }
}

fn start_access_log(log: &LogConfig, workers: usize) -> Result<AccessLog, StartError> {
    AccessLog::start_configured(log, workers).map_err(|error| match &log.access_file {
        Some(path) => StartError::AccessLog { path: path.clone(), error },
        None => StartError::Worker(error),
    })
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
    directory: Arc<ArcSwap<Directory>>,
    settings: &Arc<ProxySettings>,
    observers: &Observers,
    addresses: Vec<Address>,
    stopping: watch::Receiver<bool>,
) -> Admin {
    let config = &reloader.initial_config;
    let reload = reloader.clone();
    Admin {
        keys: admin::AdminKeys {
            operator: config.admin.as_ref().and_then(|admin| admin.key_sha256),
            reader: config.admin.as_ref().and_then(|admin| admin.reader_key_sha256),
        },
        replica: instance::configured_name(config).map(str::to_owned),
        trace_url: config.admin.as_ref().and_then(|admin| admin.trace_url.as_deref().map(str::to_owned)),
        directory,
        listeners: addresses,
        proxy_listeners: reloader.bound_addresses.clone(),
        tls: config.server.tls.is_some(),
        stopping,
        started_at: SystemTime::now(),
        metrics: observers.metrics.clone(),
        recent: observers.recent.clone(),
        traces: observers.traces().cloned(),
        connections: server::ConnectionLimiter::new(
            server::max_admin_connections(),
            server::EvictionPolicy::EvictActive,
        ),
        stream_permits: Arc::new(Semaphore::new(admin::MAX_STREAM_READERS)),
        token_cache: reloader.token_cache.clone(),
        state: reloader.state.clone(),
        server: reloader.server.clone(),
        settings: settings.clone(),
        access_log: observers.access_log.clone(),
        reload: Box::new(move || reload.reload().map_err(|error| error.text())),
        last_reload: reloader.last_reload.clone(),
        pruned: Mutex::default(),
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
