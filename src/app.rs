//! Wires the rooms together from the configuration; the only file that knows all of them.
//!
//! One worker thread a core, each with a runtime, an upstream pool and a share of the connections of its own, so that a
//! request never crosses from one core to another. Renewals, the admin listener and signals live on the caller's
//! runtime, where they take no worker's time.

use std::{
    io, mem,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{
    runtime::{Builder, Handle},
    sync::{Semaphore, watch},
    time::timeout,
};

use crate::{
    access::{self, AccessLog},
    admin::Admin,
    config::{self, Address, Config},
    directory::Directory,
    limits::Limits,
    proxy::{Proxy, Rules},
    server::{self, Bound, Server, tls},
    store::{self, Store},
    tokens::{Issuer, fetch::Gettoken},
    upload::{Bounds, Shelf},
    upstream::{Settings, SettingsError, Upstream},
};

/// Beside connecting and waiting for the head, so long may a gettoken take for its few bytes of body.
const GETTOKEN_BODY: Duration = Duration::from_secs(5);

/// A configuration whose files were read and found usable.
pub struct Prepared {
    config: Config,
    upstream: Arc<Settings>,
    tls: Option<Arc<rustls::ServerConfig>>,
    store: Option<store::Settings>,
}

/// What the configuration names cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The upstream's part.
    #[error(transparent)]
    Upstream(#[from] SettingsError),
    /// The part of TLS towards clients.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The store that replicas share.
    #[error(transparent)]
    Store(#[from] store::StoreError),
}

impl Prepared {
    /// Reads the certificates that the configuration names.
    pub fn new(config: Config) -> Result<Self, Unusable> {
        let upstream = Arc::new(Settings::new(&config.upstream)?);
        let tls = config.server.tls.as_ref().map(tls::server_config).transpose()?;
        let store = match &config.tokens.store {
            config::Store::Memory => None,
            config::Store::Redis(redis) => Some(store::Settings::new(redis)?),
        };
        Ok(Self { config, upstream, tls, store })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How to log.
    pub fn log(&self) -> config::Log {
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
    #[error("cannot listen on {address}: {error}; choose another address, or end what listens there")]
    Listen {
        /// The address, as configured.
        address: Address,
        /// What the system says.
        error: io::Error,
    },
    /// A thread or runtime could not be made.
    #[error("cannot start a worker: {0}")]
    Worker(#[from] io::Error),
}

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file does not pass `check`.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// What it names cannot be used.
    #[error(transparent)]
    Unusable(#[from] Unusable),
}

/// A running proxy.
pub struct App {
    reloader: Arc<Reloader>,
    shutdown_grace: Duration,
    max_connections: usize,
    places: Arc<Semaphore>,
    shelf: Arc<Shelf>,
    bound: Arc<Vec<Bound>>,
    stopping: watch::Sender<bool>,
    ended: watch::Sender<bool>,
    workers: Vec<thread::JoinHandle<()>>,
    addresses: Vec<Address>,
    admin_addresses: Vec<Address>,
    access: AccessLog,
}

/// What a reload replaces, and what it needs for that.
pub struct Reloader {
    /// As it was at the start; agents and clients are in the directory.
    settings: Config,
    directory: Arc<ArcSwap<Directory>>,
    issuer: Arc<Issuer>,
    limits: Limits,
    tls: Arc<ArcSwapOption<rustls::ServerConfig>>,
    /// Of two reloads the one that read the file last must have the last word.
    turn: Mutex<()>,
}

impl App {
    /// Opens every listener and starts the workers. Must be called on the runtime that renewals will live on.
    pub fn start(prepared: Prepared) -> Result<Self, StartError> {
        let Prepared { mut config, upstream, tls, store } = prepared;
        let bound = open_all(&config.server.listen)?;
        let admin_bound = open_all(config.admin.as_ref().map_or(&[][..], |admin| &admin.listen))?;
        let addresses: Vec<_> = bound.iter().map(Bound::address).collect();
        let admin_addresses: Vec<_> = admin_bound.iter().map(Bound::address).collect();

        let patience = config.upstream.connect_timeout + config.upstream.response_timeout + GETTOKEN_BODY;
        let gettoken = Gettoken::new(Upstream::new(upstream.clone()), patience);
        let (runtime, ahead) = (Handle::current(), config.tokens.refresh_ahead);
        let issuer = match store {
            None => Issuer::new(Box::new(gettoken), runtime, ahead),
            Some(settings) => {
                let store = Store::open(settings, &runtime);
                Issuer::sharing(Box::new(gettoken), runtime, ahead, store)
            }
        };
        let limits =
            issuer.store().map(|store| Limits::sharing(store, &Handle::current())).unwrap_or_default();
        let directory = Directory::new(&mut config, &issuer, &limits, None);
        let directory = Arc::new(ArcSwap::from_pointee(directory));
        config.warnings = Vec::new();
        let shelf_dir = config.replay.dir.clone().unwrap_or_else(std::env::temp_dir);
        let shelf = Arc::new(Shelf::new(config.replay.memory, shelf_dir));
        let rules = Arc::new(rules(&config, &shelf));
        let tls = Arc::new(ArcSwapOption::from(tls));
        let places = Arc::new(Semaphore::new(config.server.max_connections));
        let (stopping, stop_seen) = watch::channel(false);
        let (ended, end_seen) = watch::channel(false);

        let admin = Arc::new(Admin::new(
            config.admin.as_ref().and_then(|admin| admin.key_sha256),
            directory.clone(),
            issuer.clone(),
            [&addresses[..], &admin_addresses[..]].concat(),
            stop_seen.clone(),
        ));
        for bound in admin_bound {
            tokio::spawn(admin.clone().serve(bound.listener()?, bound, end_seen.clone()));
        }
        let server = Arc::new(Server::new(&config.server, tls.clone(), places.clone(), stop_seen));
        let bound = Arc::new(bound);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let access = AccessLog::stderr(config.log, cores)?;
        let workers = (0..cores).map(|nth| {
            let (server, bound, ended) = (server.clone(), bound.clone(), end_seen.clone());
            let (directory, rules, upstream) = (directory.clone(), rules.clone(), upstream.clone());
            let access = access.for_worker();
            let work = move || -> io::Result<()> {
                let runtime = Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let proxy = Arc::new(Proxy::new(directory, rules, Upstream::new(upstream), access));
                    work(bound, &server, &proxy, ended).await
                })
            };
            thread::Builder::new().name(format!("worker-{nth}")).spawn(move || {
                if let Err(error) = work() {
                    tracing::error!(%error, "a worker ended");
                }
            })
        });
        let workers = workers.collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            shutdown_grace: config.server.shutdown_grace,
            max_connections: config.server.max_connections,
            reloader: Arc::new(Reloader {
                settings: config,
                directory,
                issuer,
                limits,
                tls,
                turn: Mutex::new(()),
            }),
            places,
            shelf,
            bound,
            stopping,
            ended,
            workers,
            addresses,
            admin_addresses,
            access,
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

    /// The access log.
    pub fn access(&self) -> &AccessLog {
        &self.access
    }

    /// The room for kept request bodies.
    pub fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    /// Why the store that replicas share is away; `None` while it is there, and where there is none.
    pub fn store_trouble(&self) -> Option<String> {
        self.reloader.issuer.store_trouble()
    }

    /// See [`Reloader::reload`].
    pub fn reload(&self) -> Result<config::Log, ReloadError> {
        self.reloader.reload()
    }

    /// For a reload on another thread.
    pub fn reloader(&self) -> Arc<Reloader> {
        self.reloader.clone()
    }

    /// Takes no more requests, waits for those in flight as long as `server.shutdown_grace` allows, then ends. Returns
    /// whether all of them finished.
    pub async fn shut_down(self) -> bool {
        self.stopping.send_replace(true);
        // With the workers' handles gone too, whoever connects is refused and can go elsewhere at once.
        drop(self.bound);
        let all = u32::try_from(self.max_connections).unwrap_or(u32::MAX);
        let drained = timeout(self.shutdown_grace, self.places.acquire_many(all)).await.is_ok();
        self.ended.send_replace(true);
        let (workers, access) = (self.workers, self.access);
        let _ = tokio::task::spawn_blocking(move || {
            for worker in workers {
                let _ = worker.join();
            }
            access.flush(access::LAST_LINES);
        })
        .await;
        drained
    }
}

impl Reloader {
    /// Reads the file again. What it says of agents, clients and certificates holds from the next request on; the new
    /// log settings are returned. A file that does not pass changes nothing. With very many agents it takes a while, and so
    /// it is not for a thread that others wait for.
    pub fn reload(&self) -> Result<config::Log, ReloadError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Prepared { config: mut fresh, tls, .. } = Prepared::new(load_apart(&self.settings.path)?)?;
        let before = &self.settings;
        let kept_server = config::Server {
            tls: before.server.tls.clone(),
            open: before.server.open,
            ..fresh.server.clone()
        };
        let restart = [
            ("server", kept_server != before.server),
            ("upstream", fresh.upstream != before.upstream),
            ("tokens", fresh.tokens != before.tokens),
            ("replay", fresh.replay != before.replay),
            ("admin", fresh.admin != before.admin),
            ("log", config::Log { level: before.log.level, ..fresh.log } != before.log),
        ];
        for (section, _) in restart.iter().filter(|(_, changed)| *changed) {
            tracing::warn!(section, "a change in this section needs a restart; the old settings go on");
        }
        for warning in mem::take(&mut fresh.warnings) {
            tracing::warn!("{warning}");
        }
        let directory = Directory::new(&mut fresh, &self.issuer, &self.limits, Some(&self.directory.load()));
        let (agents, clients) = (directory.agents().count(), directory.client_count());
        let replaced = self.directory.swap(Arc::new(directory));
        self.tls.store(tls);
        tracing::info!(agents, clients, "configuration reloaded");
        retire(replaced);
        Ok(fresh.log)
    }
}

/// Loads the file on a thread that ends with it. Reading takes far more memory than what is kept, and the allocator gives
/// a thread's memory back to the system only where nothing in it is still in use.
fn load_apart(path: &Path) -> Result<Config, config::Error> {
    let loaded = thread::scope(|scope| scope.spawn(|| config::load(path)).join());
    loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Waits on a thread of its own until the last request has let go of a directory: freeing a large one takes a while, in
/// which a worker would serve nobody.
fn retire(directory: Arc<Directory>) {
    let wait = move || {
        let mut directory = directory;
        while let Err(in_use) = Arc::try_unwrap(directory) {
            directory = in_use;
            thread::sleep(Duration::from_millis(100));
        }
    };
    let _ = thread::Builder::new().name("retire".to_owned()).spawn(wait);
}

fn open_all(addresses: &[Address]) -> Result<Vec<Bound>, StartError> {
    let open = |address: &Address| {
        Bound::open(address).map_err(|error| StartError::Listen { address: address.clone(), error })
    };
    addresses.iter().map(open).collect()
}

fn rules(config: &Config, shelf: &Arc<Shelf>) -> Rules {
    Rules {
        refresh_errcodes: config.tokens.refresh_errcodes.clone(),
        bounds: Bounds { bytes: config.server.max_request_body, silence: config.server.body_timeout },
        shelf: shelf.clone(),
        in_flight: Arc::new(Semaphore::new(config.upstream.max_in_flight)),
        queue_timeout: config.upstream.queue_timeout,
        upstream_authority: config.upstream.authority.clone(),
    }
}

/// One worker's life: accept from every listener until told to stop, then serve what is open until told to end.
async fn work(
    bound: Arc<Vec<Bound>>,
    server: &Arc<Server>,
    proxy: &Arc<Proxy>,
    mut ended: watch::Receiver<bool>,
) -> io::Result<()> {
    for bound in bound.iter() {
        tokio::spawn(server::serve(bound.listener()?, server.clone(), proxy.clone()));
    }
    drop(bound);
    let _ = ended.wait_for(|ended| *ended).await;
    Ok(())
}
