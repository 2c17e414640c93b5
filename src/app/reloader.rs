//! The configuration read again while the proxy runs.

use std::{
    collections::BTreeMap,
    mem,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use arc_swap::ArcSwap;

use super::{PreparedConfig, SetupError};
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
    /// What it names cannot be used.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// What a reload replaces, and what it needs for that.
pub struct Reloader {
    /// As it was at the start; agents and clients are in the directory.
    pub(super) initial_config: Config,
    pub(super) directory: Arc<ArcSwap<Directory>>,
    pub(super) token_service: Arc<TokenService>,
    pub(super) limits: RateLimiterFactory,
    pub(super) server: Arc<Server>,
    pub(super) log_handle: OnceLock<LogHandle>,
    /// The sockets that are bound, which no reload changes.
    pub(super) bound_addresses: Vec<Address>,
    /// How many files each pattern of `include` matched when the file was last taken up. Held during a reload: of two, the
    /// one that read the file last must have the last word.
    pub(super) include_counts: Mutex<BTreeMap<String, usize>>,
}

impl Reloader {
    /// From now on the running log follows what a reload says of its level.
    pub fn attach_log_handle(&self, telemetry: &LogHandle) {
        let _ = self.log_handle.set(telemetry.clone());
    }

    /// Reads the file again. What it says of agents, clients, certificates and the log's level holds from the next request
    /// on. A file that does not pass changes nothing, which is logged too. With very many agents it takes a while, and so it
    /// is not for a thread that others wait for.
    pub fn reload(&self) -> Result<ReloadReport, ReloadError> {
        self.try_reload().inspect_err(|error| {
            tracing::error!(%error, "configuration was not reloaded; the old one goes on");
        })
    }

    fn try_reload(&self) -> Result<ReloadReport, ReloadError> {
        let mut included = self.include_counts.lock().unwrap_or_else(PoisonError::into_inner);
        let PreparedConfig { config: mut fresh, tls, .. } =
            PreparedConfig::new(load_on_own_thread(&self.initial_config.path)?)?;
        reject_lost_includes(&fresh, &included)?;
        let was_open = self.directory.load().is_open();
        self.reject_unintended_open(&fresh, tls.as_deref(), was_open)?;
        let before = &self.initial_config;
        let kept_server = config::ServerConfig {
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
            ("log", config::LogConfig { level: before.log.level, ..fresh.log } != before.log),
        ];
        let restart: Vec<_> =
            restart.into_iter().filter(|(_, changed)| *changed).map(|(section, _)| section).collect();
        for section in &restart {
            tracing::warn!(section, "a change in this section needs a restart; the old settings go on");
        }
        let warnings: Vec<_> = mem::take(&mut fresh.warnings).iter().map(ToString::to_string).collect();
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let directory =
            Directory::new(&mut fresh, &self.token_service, &self.limits, Some(&self.directory.load()));
        let (agents, clients) = (directory.agents().count(), directory.client_count());
        if directory.is_open() && !was_open {
            tracing::warn!("server.open = true: callers without a key are served from now on");
        }
        let directory = Arc::new(directory);
        let replaced = self.directory.swap(directory.clone());
        self.token_service.retain_agents(|agent| directory.agent(agent, None).is_some());
        drop(directory);
        *included = mem::take(&mut fresh.include_counts);
        let closed = self.server.replace_tls(tls);
        if closed > 0 {
            tracing::info!(closed, "closing connections that server.tls.client_ca no longer covers");
        }
        tracing::info!(agents, clients, "configuration reloaded");
        if let Some(telemetry) = self.log_handle.get() {
            telemetry.update_filter(fresh.log);
        }
        drop_in_background(replaced);
        Ok(ReloadReport { agents, clients, needs_restart: restart, warnings })
    }

    /// Refuses a file without clients that would serve callers without a key where they were not served before, or on a
    /// socket that other machines reach. What counts are the sockets that are bound: `server.listen` needs a restart.
    fn reject_unintended_open(
        &self,
        fresh: &Config,
        tls: Option<&TlsTermination>,
        was_open: bool,
    ) -> Result<(), config::Error> {
        if !fresh.clients.is_empty() || fresh.server.open {
            return Ok(());
        }
        let drops_client_ca =
            self.server.requires_certificate() && !tls.is_some_and(TlsTermination::requires_certificate);
        let exposed = self.bound_addresses.iter().find(|address| !address.is_loopback());
        let what = match exposed {
            Some(address) => format!("this proxy listens on {address}, which other machines can reach"),
            None if !was_open => "this proxy serves only callers with a key".to_owned(),
            None if drops_client_ca => {
                "this proxy serves only callers with a certificate of server.tls.client_ca, which is gone"
                    .to_owned()
            }
            None => return Ok(()),
        };
        let advice = "a reload without [clients.*] would open it: keep a client, or set server.open = true to allow it";
        Err(config_error(fresh, "clients", format!("there is none, and {what}; {advice}")))
    }
}

/// Refuses a pattern of `include` that matched files before and matches none now: they may be gone for a moment only.
fn reject_lost_includes(fresh: &Config, before: &BTreeMap<String, usize>) -> Result<(), config::Error> {
    let lost = fresh.include_counts.iter().find_map(|(pattern, files)| {
        let before = *before.get(pattern)?;
        (*files == 0 && before > 0).then_some((pattern, before))
    });
    let Some((pattern, before)) = lost else { return Ok(()) };
    let what = format!(
        "{pattern:?} matches no file, and matched {before} before; put the files back, or take the pattern out of include"
    );
    Err(config_error(fresh, "include", what))
}

fn config_error(fresh: &Config, key: &str, what: String) -> config::Error {
    config::Error { file: fresh.path.clone(), line: None, key: Some(key.to_owned()), message: what }
}

/// Loads the file on a thread that ends with it. Reading takes far more memory than what is kept, and the allocator gives
/// a thread's memory back to the system only where nothing in it is still in use.
fn load_on_own_thread(path: &Path) -> Result<Config, config::Error> {
    let loaded = thread::scope(|scope| scope.spawn(|| config::load(path)).join());
    loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Waits on a thread of its own until the last request has let go of a directory: freeing a large one takes a while, in
/// which a worker would serve nobody.
fn drop_in_background(directory: Arc<Directory>) {
    let wait = move || {
        let mut directory = directory;
        while let Err(in_use) = Arc::try_unwrap(directory) {
            directory = in_use;
            thread::sleep(Duration::from_millis(100));
        }
    };
    let _ = thread::Builder::new().name("retire".to_owned()).spawn(wait);
}
