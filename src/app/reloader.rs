//! Reloads the configuration of a running proxy.

use std::{
    collections::BTreeMap,
    mem,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use arc_swap::ArcSwap;

use super::prepared_config::{PreparedConfig, SetupError};
use crate::{
    admin::ReloadReport,
    config::{self, Address, Config},
    directory::Directory,
    limits::RateLimiterFactory,
    server::{Server, tls::TlsTermination},
    telemetry::logs::LogHandle,
    tokens::TokenService,
};

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file does not pass `check`.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The file is valid, but names something unusable.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// The state that a reload replaces, and what it needs for that.
pub struct Reloader {
    /// The configuration at the start, without agents and clients, which are in the directory.
    pub(super) initial_config: Config,
    pub(super) directory: Arc<ArcSwap<Directory>>,
    pub(super) token_service: Arc<TokenService>,
    pub(super) limits: RateLimiterFactory,
    pub(super) server: Arc<Server>,
    pub(super) log_handle: OnceLock<LogHandle>,
    /// The bound addresses, which no reload changes.
    pub(super) bound_addresses: Vec<Address>,
    /// How many files each pattern of `include` matched at the last successful load. Locked during a reload: of two
    /// concurrent reloads, the one that read the file last must apply last.
    pub(super) include_counts: Mutex<BTreeMap<String, usize>>,
}

impl Reloader {
    /// Lets reloads change the level of the running log.
    pub fn attach_log_handle(&self, log_handle: &LogHandle) {
        let _ = self.log_handle.set(log_handle.clone());
    }

    /// Reads the file again and applies its agents, clients, certificates and log level from the next request on. An
    /// invalid file changes nothing and is logged. Blocks, for up to seconds with very many agents; not for a runtime
    /// thread.
    pub fn reload(&self) -> Result<ReloadReport, ReloadError> {
        self.try_reload().inspect_err(|error| {
            tracing::error!(%error, "configuration not reloaded, old configuration stays active");
        })
    }

    fn try_reload(&self) -> Result<ReloadReport, ReloadError> {
        let mut include_counts = self.include_counts.lock().unwrap_or_else(PoisonError::into_inner);
        let PreparedConfig { config: mut loaded, tls, .. } =
            PreparedConfig::new(load_on_own_thread(&self.initial_config.path)?)?;
        reject_lost_includes(&loaded, &include_counts)?;
        let was_open = self.directory.load().is_open();
        self.reject_unintended_open(&loaded, tls.as_deref(), was_open)?;
        let needs_restart = self.sections_needing_restart(&loaded);
        for section in &needs_restart {
            tracing::warn!(section, "section changed, restart needed to apply it");
        }
        let warnings: Vec<_> = mem::take(&mut loaded.warnings).iter().map(ToString::to_string).collect();
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let directory =
            Directory::new(&mut loaded, &self.token_service, &self.limits, Some(&self.directory.load()));
        let (agents, clients) = (directory.agents().count(), directory.client_count());
        if directory.is_open() && !was_open {
            tracing::warn!("server.open = true: callers without a key are served from now on");
        }
        let directory = Arc::new(directory);
        let replaced = self.directory.swap(directory.clone());
        self.token_service.retain_agents(|agent| directory.agent_by_name(agent).is_some());
        drop(directory);
        *include_counts = mem::take(&mut loaded.include_counts);
        let closed = self.server.replace_tls(tls);
        if closed > 0 {
            tracing::info!(closed, "closing connections that server.tls.client_ca no longer covers");
        }
        tracing::info!(agents, clients, "configuration reloaded");
        if let Some(log_handle) = self.log_handle.get() {
            log_handle.update_filter(loaded.log);
        }
        drop_in_background(replaced);
        Ok(ReloadReport { agents, clients, needs_restart, warnings })
    }

    /// The sections that differ from the configuration at the start and that a reload cannot apply.
    fn sections_needing_restart(&self, loaded: &Config) -> Vec<&'static str> {
        let initial = &self.initial_config;
        let server = config::ServerConfig {
            tls: initial.server.tls.clone(),
            open: initial.server.open,
            ..loaded.server.clone()
        };
        let sections = [
            ("server", server != initial.server),
            ("upstream", loaded.upstream != initial.upstream),
            ("tokens", loaded.tokens != initial.tokens),
            ("replay", loaded.replay != initial.replay),
            ("admin", loaded.admin != initial.admin),
            ("log", config::LogConfig { level: initial.log.level, ..loaded.log } != initial.log),
        ];
        sections.into_iter().filter(|(_, changed)| *changed).map(|(section, _)| section).collect()
    }

    /// Refuses a file without clients that would serve callers without a key where they were not served before, or on
    /// an address that other machines can reach. Decides by the bound addresses, because `server.listen` needs a
    /// restart.
    fn reject_unintended_open(
        &self,
        loaded: &Config,
        tls: Option<&TlsTermination>,
        was_open: bool,
    ) -> Result<(), config::Error> {
        if !loaded.clients.is_empty() || loaded.server.open {
            return Ok(());
        }
        let drops_client_ca =
            self.server.requires_certificate() && !tls.is_some_and(TlsTermination::requires_certificate);
        let exposed = self.bound_addresses.iter().find(|address| !address.is_loopback());
        let reason = match exposed {
            Some(address) => format!("this proxy listens on {address}, which other machines can reach"),
            None if !was_open => "this proxy serves only callers with a key".to_owned(),
            None if drops_client_ca => {
                "this proxy serves only callers with a certificate of server.tls.client_ca, which is gone"
                    .to_owned()
            }
            None => return Ok(()),
        };
        let advice = "a reload without [clients.*] would open it: keep a client, or set server.open = true to allow it";
        Err(config_error(loaded, "clients", format!("there is none, and {reason}; {advice}")))
    }
}

/// Refuses a pattern of `include` that matched files before and matches none now: they may be missing only briefly.
fn reject_lost_includes(loaded: &Config, before: &BTreeMap<String, usize>) -> Result<(), config::Error> {
    let missing = loaded.include_counts.iter().find_map(|(pattern, files)| {
        let before = *before.get(pattern)?;
        (*files == 0 && before > 0).then_some((pattern, before))
    });
    let Some((pattern, before)) = missing else { return Ok(()) };
    let message = format!(
        "{pattern:?} matches no file, and matched {before} before; put the files back, or take the pattern out of include"
    );
    Err(config_error(loaded, "include", message))
}

fn config_error(loaded: &Config, key: &str, message: String) -> config::Error {
    config::Error { file: loaded.path.clone(), line: None, key: Some(key.to_owned()), message }
}

/// Loads the file on a temporary thread. Parsing takes far more memory than its result, and the allocator returns a
/// thread's memory to the system only when none of it is in use.
fn load_on_own_thread(path: &Path) -> Result<Config, config::Error> {
    let loaded = thread::scope(|scope| scope.spawn(|| config::load(path)).join());
    loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Waits on a separate thread for the last request that uses a directory and frees it there: freeing a large one would
/// block a worker.
fn drop_in_background(directory: Arc<Directory>) {
    let drop_when_unused = move || {
        let mut directory = directory;
        while let Err(in_use) = Arc::try_unwrap(directory) {
            directory = in_use;
            thread::sleep(Duration::from_millis(100));
        }
    };
    let _ = thread::Builder::new().name("drop-directory".to_owned()).spawn(drop_when_unused);
}
