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

use super::{Prepared, Unusable};
use crate::{
    admin::Reloaded,
    config::{self, Address, Config},
    directory::Directory,
    limits::Limits,
    server::{Server, tls::TlsTermination},
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
    pub(super) server: Arc<Server>,
    pub(super) telemetry: OnceLock<Telemetry>,
    /// The sockets that are bound, which no reload changes.
    pub(super) listening: Vec<Address>,
    /// How many files each pattern of `include` matched when the file was last taken up. Held during a reload: of two, the
    /// one that read the file last must have the last word.
    pub(super) included: Mutex<BTreeMap<String, usize>>,
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
            tracing::error!(%error, "configuration was not reloaded; the old one goes on");
        })
    }

    fn read_again(&self) -> Result<Reloaded, ReloadError> {
        let mut included = self.included.lock().unwrap_or_else(PoisonError::into_inner);
        let Prepared { config: mut fresh, tls, .. } = Prepared::new(load_apart(&self.settings.path)?)?;
        refuse_lost_includes(&fresh, &included)?;
        let was_open = self.directory.load().is_open();
        self.refuse_opening(&fresh, tls.as_deref(), was_open)?;
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
        if directory.is_open() && !was_open {
            tracing::warn!("server.open = true: callers without a key are served from now on");
        }
        let directory = Arc::new(directory);
        let replaced = self.directory.swap(directory.clone());
        self.issuer.keep_only(|agent| directory.agent(agent, None).is_some());
        drop(directory);
        *included = mem::take(&mut fresh.included);
        let closed = self.server.replace_tls(tls);
        if closed > 0 {
            tracing::info!(closed, "closing connections that server.tls.client_ca no longer covers");
        }
        tracing::info!(agents, clients, "configuration reloaded");
        if let Some(telemetry) = self.telemetry.get() {
            telemetry.follow(fresh.log);
        }
        retire(replaced);
        Ok(Reloaded { agents, clients, restart, warnings })
    }

    /// Refuses a file without clients that would serve callers without a key where they were not served before, or on a
    /// socket that other machines reach. What counts are the sockets that are bound: `server.listen` needs a restart.
    fn refuse_opening(
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
        let exposed = self.listening.iter().find(|address| !address.is_loopback());
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
        Err(refusal(fresh, "clients", format!("there is none, and {what}; {advice}")))
    }
}

/// Refuses a pattern of `include` that matched files before and matches none now: they may be gone for a moment only.
fn refuse_lost_includes(fresh: &Config, before: &BTreeMap<String, usize>) -> Result<(), config::Error> {
    let lost = fresh.included.iter().find_map(|(pattern, files)| {
        let before = *before.get(pattern)?;
        (*files == 0 && before > 0).then_some((pattern, before))
    });
    let Some((pattern, before)) = lost else { return Ok(()) };
    let what = format!(
        "{pattern:?} matches no file, and matched {before} before; put the files back, or take the pattern out of include"
    );
    Err(refusal(fresh, "include", what))
}

fn refusal(fresh: &Config, key: &str, what: String) -> config::Error {
    config::Error { file: fresh.path.clone(), line: None, key: Some(key.to_owned()), what }
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
