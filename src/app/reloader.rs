//! The configuration read again while the proxy runs.

use std::{
    mem,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::{Prepared, Unusable};
use crate::{
    admin::Reloaded,
    config::{self, Config},
    directory::Directory,
    limits::Limits,
    telemetry::Telemetry,
    tokens::Issuer,
};

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

/// What a reload replaces, and what it needs for that.
pub struct Reloader {
    /// As it was at the start; agents and clients are in the directory.
    pub(super) settings: Config,
    pub(super) directory: Arc<ArcSwap<Directory>>,
    pub(super) issuer: Arc<Issuer>,
    pub(super) limits: Limits,
    pub(super) tls: Arc<ArcSwapOption<rustls::ServerConfig>>,
    pub(super) telemetry: OnceLock<Telemetry>,
    /// Of two reloads the one that read the file last must have the last word.
    pub(super) turn: Mutex<()>,
}

impl Reloader {
    /// From now on the running log follows what a reload says of its level.
    pub fn lead(&self, telemetry: &Telemetry) {
        let _ = self.telemetry.set(telemetry.clone());
    }

    /// Reads the file again. What it says of agents, clients, certificates and the log's level holds from the next request
    /// on. A file that does not pass changes nothing, which is logged too. With very many agents it takes a while, and so it
    /// is not for a thread that others wait for.
    pub fn reload(&self) -> Result<Reloaded, ReloadError> {
        self.read_again().inspect_err(|error| {
            tracing::error!(%error, "the configuration was not reloaded; the old one goes on");
        })
    }

    fn read_again(&self) -> Result<Reloaded, ReloadError> {
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
        let restart: Vec<_> =
            restart.into_iter().filter(|(_, changed)| *changed).map(|(section, _)| section).collect();
        for section in &restart {
            tracing::warn!(section, "a change in this section needs a restart; the old settings go on");
        }
        let warnings: Vec<_> = mem::take(&mut fresh.warnings).iter().map(ToString::to_string).collect();
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let directory = Directory::new(&mut fresh, &self.issuer, &self.limits, Some(&self.directory.load()));
        let (agents, clients) = (directory.agents().count(), directory.client_count());
        let directory = Arc::new(directory);
        let replaced = self.directory.swap(directory.clone());
        self.issuer.keep_only(|agent| directory.agent(agent, None).is_some());
        drop(directory);
        self.tls.store(tls);
        tracing::info!(agents, clients, "configuration reloaded");
        if let Some(telemetry) = self.telemetry.get() {
            telemetry.follow(fresh.log);
        }
        retire(replaced);
        Ok(Reloaded { agents, clients, restart, warnings })
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
