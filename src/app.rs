//! Connects all modules as the configuration specifies; the only module that knows all of them.
//!
//! Each CPU core has one worker thread with its own runtime, upstream pool and share of the connections, so that a
//! request never crosses from one core to another. Token refreshes, the admin listener and signals run on the caller's
//! runtime, where they take no time from a worker.

mod directory_with_state;
mod export_task;
mod file_watch;
mod instance;
mod prepared_config;
mod proxy_settings;
mod reload_threads;
mod reloader;
mod start;
mod start_error;
mod worker;

use std::{sync::Arc, thread, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

use self::export_task::ExportTask;
pub use self::{
    prepared_config::{PreparedConfig, SetupError},
    reloader::{ReloadError, Reloader},
    start::StartOptions,
    start_error::StartError,
};
use crate::{
    admin::ReloadReport,
    blocking,
    config::{self, Address},
    directory::Directory,
    limits::concurrency_limit::ConcurrencyLimit,
    proxy::ProxySettings,
    request_body::ReplayBudget,
    server::Server,
    suites::Suites,
    telemetry::access_log::{self, AccessLog},
};

/// How long a shutdown waits for the listeners to close.
const LISTENER_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A running proxy.
pub struct App {
    reloader: Arc<Reloader>,
    shutdown_grace: Duration,
    server: Arc<Server>,
    /// Ends when all listeners are closed.
    listeners_closed: mpsc::Receiver<()>,
    settings: Arc<ProxySettings>,
    stopping: watch::Sender<bool>,
    ended: watch::Sender<bool>,
    workers: Vec<thread::JoinHandle<()>>,
    addresses: Vec<Address>,
    admin_addresses: Vec<Address>,
    access_log: AccessLog,
    export_task: Option<ExportTask>,
    /// Held until the proxy ends.
    _probes: JoinSet<()>,
}

/// A summary of a running proxy, for the log.
#[derive(Debug)]
pub struct Summary {
    /// The upstream's URL, without a password.
    pub upstream: String,
    /// The authorities of its egress proxies, with commas between them.
    pub via: Option<String>,
    /// The names of the other upstreams, with commas between them.
    pub upstreams: Option<String>,
    /// The number of agents.
    pub agents: usize,
    /// The number of clients.
    pub clients: usize,
    /// The kind of the token store: `memory` or `redis`.
    pub store: &'static str,
    /// Whether callers without a key are served.
    pub open: bool,
}

impl App {
    /// The bound addresses of the proxy's listeners.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The bound addresses of the admin listeners.
    pub fn admin_addresses(&self) -> &[Address] {
        &self.admin_addresses
    }

    /// A summary of the current configuration.
    pub fn summary(&self) -> Summary {
        let config = &self.reloader.initial_config;
        let directory = self.reloader.directory.load();
        Summary {
            upstream: config.upstream.base_url(),
            via: join_names(config.upstream.via.iter().map(config::EgressProxy::authority)),
            upstreams: join_names(config.upstreams.keys().cloned()),
            agents: directory.agent_count(),
            clients: directory.client_count(),
            store: config.tokens.store.kind(),
            open: directory.is_open(),
        }
    }

    /// The access log.
    pub fn access_log(&self) -> &AccessLog {
        &self.access_log
    }

    /// The limit of requests in flight to `[upstream]`.
    pub fn concurrency_limit(&self) -> &ConcurrencyLimit {
        &self.settings.upstreams[0].in_flight
    }

    /// The memory and disk budget of buffered request bodies.
    pub fn replay_budget(&self) -> &ReplayBudget {
        &self.settings.replay_budget
    }

    /// Why the shared store is unavailable; `None` if it is reachable or none is configured.
    pub fn store_error(&self) -> Option<String> {
        self.reloader.token_cache.store_error()
    }

    /// The suites at run time.
    pub fn suites(&self) -> &Arc<Suites> {
        &self.reloader.suites
    }

    /// The agents and clients of the present configuration.
    pub fn directory(&self) -> Arc<Directory> {
        self.reloader.directory.load()
    }

    /// See [`Reloader::reload`].
    pub fn reload(&self) -> Result<ReloadReport, ReloadError> {
        self.reloader.reload()
    }

    /// For a reload on another thread.
    pub fn reloader(&self) -> Arc<Reloader> {
        self.reloader.clone()
    }

    /// Closes the listeners, waits for requests in flight for at most `server.shutdown_grace`, then ends. Returns
    /// whether all of them finished.
    pub async fn shutdown(mut self) -> bool {
        // The workers close the listeners, so that new connections are refused and clients can try another replica at
        // once.
        self.stopping.send_replace(true);
        // Streams of events would never end by themselves.
        if let Some(callbacks) = &self.settings.callbacks {
            callbacks.begin_stop();
        }
        // Nothing of a queued request has been sent upstream, so it can go to another replica too.
        self.settings.upstreams.iter().for_each(|upstream| upstream.in_flight.close());
        // Until all listeners are closed, a connection may still be accepted.
        let _ = timeout(LISTENER_CLOSE_TIMEOUT, self.listeners_closed.recv()).await;
        let deadline = Instant::now() + self.shutdown_grace;
        let drained =
            timeout(self.shutdown_grace, self.server.connection_limiter.wait_drained()).await.is_ok();
        self.ended.send_replace(true);
        let (workers, access_log, export_task) = (self.workers, self.access_log, self.export_task);
        let _ = blocking::spawn(move || {
            for worker in workers {
                let _ = worker.join();
            }
            access_log.flush(access_log::FLUSH_TIMEOUT);
        })
        .await;
        if let Some(export_task) = export_task {
            export_task.finish(deadline).await;
        }
        if let Some(callbacks) = &self.settings.callbacks {
            callbacks.finish_stop().await;
        }
        // Last, because requests in flight may still write to it.
        if let Some(state) = &self.reloader.state {
            state.close().await;
        }
        drained
    }
}

/// The names with commas between them; `None` without any.
fn join_names(names: impl Iterator<Item = String>) -> Option<String> {
    Some(names.collect::<Vec<_>>().join(",")).filter(|joined| !joined.is_empty())
}
