//! Reloads the configuration of a running proxy.

use std::{
    collections::BTreeMap,
    io, mem,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;

use super::{
    prepared_config::{PreparedConfig, SetupError},
    reload_threads::{drop_in_background, load_on_own_thread},
};
use crate::{
    admin::{LastReload, ReloadReport},
    blocking,
    callbacks::Callbacks,
    config::{
        self, Address, AgentTexts, Config, LoadedFiles, ReloadTrigger, StateConfig, StoreConfig, UpstreamId,
    },
    directory::DirectoryUpdater,
    display_text, format_text,
    limits::quotas::Quotas,
    server::{Server, tls::TlsTermination},
    state::State,
    store::DialerChange,
    suites::Suites,
    telemetry::logs::LogHandle,
    text,
    text::Text,
    tokens::TokenCache,
    upstream::Settings,
};

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file does not pass `check`.
    Config(#[from] config::Error),
    /// The file is valid, but names something unusable.
    Setup(#[from] SetupError),
    /// The file is valid, but its callbacks cannot be served.
    Callbacks(#[source] io::Error),
}

display_text!(ReloadError);

impl ReloadError {
    /// What is wrong with the file.
    pub fn text(&self) -> Text {
        match self {
            Self::Config(error) => Text::of(error),
            Self::Setup(error) => Text::of(error),
            Self::Callbacks(error) => format_text!("callbacks: {}", "callbacks：{}", error),
        }
    }
}

/// The state that a reload replaces, and what it needs for that.
pub struct Reloader {
    /// The configuration at the start, without agents and clients, which are in the directory.
    pub(super) initial_config: Config,
    pub(super) directory: Arc<DirectoryUpdater>,
    pub(super) token_cache: Arc<TokenCache>,
    pub(super) quotas: Arc<Quotas>,
    pub(super) server: Arc<Server>,
    /// By their indexes.
    pub(super) upstreams: Vec<Arc<Settings>>,
    pub(super) log_handle: OnceLock<LogHandle>,
    /// The bound addresses, which no reload changes.
    pub(super) bound_addresses: Vec<Address>,
    /// What the last successful load has found. Locked during a reload: of two concurrent reloads, the one that read the
    /// file last must apply last.
    pub(super) last_applied: Mutex<AppliedFiles>,
    /// What outlives the process, where it is configured.
    pub(super) state: Option<Arc<State>>,
    pub(super) callbacks: Option<Arc<Callbacks>>,
    pub(super) suites: Arc<Suites>,
    /// What the last load has read.
    pub(super) last_load: Mutex<LoadRecord>,
    /// For the admin listener.
    pub(super) last_reload: Arc<LastReload>,
}

/// What a load has found of the files that are in force.
pub(super) struct AppliedFiles {
    /// How many files each pattern of `include` matched.
    include_counts: BTreeMap<String, usize>,
    agent_texts: AgentTexts,
}

impl AppliedFiles {
    /// Takes it out of the configuration that is in force.
    pub(super) fn of(config: &mut Config) -> Self {
        let mut agent_texts = mem::take(&mut config.agent_texts);
        agent_texts.forget_moves();
        Self { include_counts: mem::take(&mut config.include_counts), agent_texts }
    }
}

/// The files of a load, whether or not it succeeded.
#[derive(Clone, Default)]
pub(super) struct LoadRecord {
    /// Counts loads.
    pub(super) generation: u64,
    pub(super) files: Arc<LoadedFiles>,
}

impl LoadRecord {
    /// Takes what the start has read out of `config`; empty unless files are watched.
    pub(super) fn of_start(config: &mut Config) -> Self {
        let files = mem::take(&mut config.loaded_files);
        match config.server.reload {
            ReloadTrigger::Signal => Self::default(),
            ReloadTrigger::Watch => Self { generation: 0, files: Arc::new(files) },
        }
    }
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
        let outcome = self.try_reload();
        self.last_reload.record(&outcome);
        outcome.inspect_err(|error| {
            tracing::error!(%error, "configuration was not reloaded, the old one stays active");
        })
    }

    fn try_reload(&self) -> Result<ReloadReport, ReloadError> {
        let mut applied = self.last_applied.lock();
        let (loaded, mut warnings) = self.load(&applied.agent_texts)?;
        let PreparedConfig { config: mut loaded, tls, upstreams, .. } = PreparedConfig::new(loaded)?;
        reject_lost_includes(&loaded, &applied.include_counts)?;
        self.resolve_upstreams(&mut loaded)?;
        let was_open = self.directory.load().is_open();
        self.reject_unintended_open(&loaded, tls.as_deref(), was_open)?;
        let certificates = self.prepare_trusted_certificates(&loaded)?;
        let callbacks = self.callbacks.as_ref().map(|callbacks| callbacks.prepare(&loaded.callbacks));
        let callbacks = callbacks.transpose().map_err(ReloadError::Callbacks)?;
        // From here on nothing can fail: a reload that fails changes nothing.
        let needs_restart = self.sections_needing_restart(&loaded);
        for section in &needs_restart {
            tracing::warn!(section, "section changed, restart needed to apply it");
        }
        self.last_reload.settings.reload(&loaded);
        warnings.extend(config::summarize_warnings(&mem::take(&mut loaded.warnings)));
        for warning in &warnings {
            tracing::warn!("{}", warning.english());
        }
        self.replace_trusted_certificates(certificates, &upstreams);
        if let Some(callbacks) = callbacks {
            callbacks.commit();
        }
        let replaced = self.directory.replace_files(&mut loaded);
        let directory = self.directory.load();
        let (agents, clients) = (directory.agent_count(), directory.client_count());
        if directory.is_open() && !was_open {
            tracing::warn!("server.open = true: callers without a key are served from now on");
        }
        match self.directory.take_prune() {
            true => self.token_cache.retain_agents(|agent| self.directory.load().find_agent(agent).is_some()),
            false => self.token_cache.drop_stale_backoffs(),
        }
        let is_gone = |name: &&str| directory.client_by_name(name).is_none();
        let clients_before = blocking::in_slices(replaced.clients()).map(|client| &*client.config.name);
        let gone: Vec<_> = clients_before.filter(is_gone).map(str::to_owned).collect();
        drop(directory);
        self.suites.forget_clients(&gone);
        self.suites.apply_all();
        let applied_before = mem::replace(&mut *applied, AppliedFiles::of(&mut loaded));
        self.quotas.reload(&loaded.quotas);
        self.server.replace_trusted_proxies(mem::take(&mut loaded.server.trusted));
        let closed = self.server.replace_tls(tls);
        if closed > 0 {
            tracing::info!(closed, "closing connections that server.tls.client_ca no longer covers");
        }
        tracing::info!(agents, clients, "configuration reloaded");
        if let Some(log_handle) = self.log_handle.get() {
            log_handle.update_filter(&loaded.log);
        }
        drop_in_background(replaced, applied_before);
        Ok(ReloadReport { agents, clients, needs_restart, warnings })
    }

    /// Whether a changed file causes a reload.
    pub(super) fn watches_files(&self) -> bool {
        self.initial_config.server.reload == ReloadTrigger::Watch
    }

    /// What the last load has read; the same while a reload is running.
    pub(super) fn last_load(&self) -> LoadRecord {
        self.last_load.lock().clone()
    }

    /// Reads the file, and records what was read where files are watched. Returns its warnings as texts.
    fn load(&self, known: &AgentTexts) -> Result<(Config, Vec<Text>), config::Error> {
        let (result, files) = load_on_own_thread(&self.initial_config.path, known);
        if self.watches_files() {
            let mut last_load = self.last_load.lock();
            *last_load = LoadRecord { generation: last_load.generation + 1, files: Arc::new(files) };
        }
        result.map(|(config, warnings)| (Config { loaded_files: LoadedFiles::default(), ..config }, warnings))
    }

    /// Binds each agent to one of the running upstreams. Fails if one names an upstream that was added to the file.
    fn resolve_upstreams(&self, loaded: &mut Config) -> Result<(), config::Error> {
        for agent in loaded.agents.values_mut() {
            let Some(name) = agent.upstream.name() else { continue };
            let running = UpstreamId::find(name, &self.initial_config.upstreams);
            let Some(running) = running else {
                let (key, name) = (format!("agents.{}.upstream", agent.name), name.to_owned());
                let message = format_text!(
                    "[upstreams.{name}] is new, and needs a restart before an agent can use it",
                    "[upstreams.{name}] 是新增的，重启之后应用才能使用它"
                );
                return Err(config_error(loaded, &key, message));
            };
            agent.upstream = running;
        }
        Ok(())
    }

    /// Reads the `ca_file` of the store.
    fn prepare_trusted_certificates(&self, loaded: &Config) -> Result<Vec<DialerChange<'_>>, SetupError> {
        match (&loaded.tokens.store, self.token_cache.store()) {
            (StoreConfig::Redis(redis), Some(store))
                if same_but_for_ca_file(&loaded.tokens, &self.initial_config.tokens) =>
            {
                let of_state = self.state.as_ref().map(|state| state.prepare_ca(redis)).transpose()?;
                Ok([store.prepare_ca(redis)?].into_iter().chain(of_state.flatten()).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Takes up the contents of the store's `ca_file` and of each upstream's.
    fn replace_trusted_certificates(&self, of_store: Vec<DialerChange<'_>>, upstreams: &[Arc<Settings>]) {
        let mut has_changed = false;
        for change in of_store {
            has_changed |= change();
        }
        if has_changed {
            tracing::info!("tokens.store.ca_file changed, new connections trust its certificates");
        }
        for running in &self.upstreams {
            // By name, because the order may have changed.
            let loaded = upstreams.iter().find(|loaded| loaded.id().name() == running.id().name());
            if loaded.is_some_and(|loaded| running.replace_trust(loaded)) {
                let section = running.id().section();
                tracing::info!("{section}.ca_file changed, new connections trust its certificates");
            }
        }
    }

    /// The sections that differ from the configuration at the start and that a reload cannot apply.
    fn sections_needing_restart(&self, loaded: &Config) -> Vec<&'static str> {
        let initial = &self.initial_config;
        let server = config::ServerConfig {
            tls: initial.server.tls.clone(),
            open: initial.server.open,
            trusted: initial.server.trusted.clone(),
            ..loaded.server.clone()
        };
        let with_ca_file_of = |loaded: &config::UpstreamConfig, initial: &config::UpstreamConfig| {
            config::UpstreamConfig { ca_file: initial.ca_file.clone(), ..loaded.clone() }
        };
        let upstream = with_ca_file_of(&loaded.upstream, &initial.upstream);
        let upstreams = loaded.upstreams.iter().map(|(name, loaded)| {
            let initial = initial.upstreams.get(name).unwrap_or(loaded);
            (name.clone(), with_ca_file_of(loaded, initial))
        });
        let upstreams: BTreeMap<_, _> = upstreams.collect();
        let sections = [
            ("server", server != initial.server),
            ("upstream", upstream != initial.upstream),
            ("upstreams", upstreams != initial.upstreams),
            ("tokens", !same_but_for_ca_file(&loaded.tokens, &initial.tokens)),
            ("replay", loaded.replay != initial.replay),
            ("admin", loaded.admin != initial.admin),
            ("state", !same_but_for_store(loaded, initial)),
            ("log", config::LogConfig { level: initial.log.level, ..loaded.log.clone() } != initial.log),
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
        if !loaded.clients.is_empty() || loaded.server.open || self.directory.has_clients_of_state() {
            return Ok(());
        }
        let drops_client_ca =
            self.server.requires_certificate() && !tls.is_some_and(TlsTermination::requires_certificate);
        let directory = self.directory.load();
        if !directory.is_complete() && !directory.has_clients() && !drops_client_ca {
            // As at the start: it is closed until it is known what clients the state has.
            return Ok(());
        }
        let exposed = self.bound_addresses.iter().find(|address| !address.is_loopback());
        let reason = match exposed {
            Some(address) => format_text!(
                "this proxy listens on {address}, which other machines can reach",
                "此代理监听 {address}，其他机器可以访问"
            ),
            None if !was_open => {
                text!("this proxy serves only callers with a key", "此代理只为有密钥的调用方服务")
            }
            None if drops_client_ca => text!(
                "this proxy serves only callers with a certificate of server.tls.client_ca, which is gone",
                "此代理只为持有 server.tls.client_ca 所签证书的调用方服务，而该项已去掉"
            ),
            None => return Ok(()),
        };
        let message = format_text!(
            "there is none, and {}; a reload without [clients.*] would open it: keep a client, or set server.open = true to \
             allow it",
            "一个也没有，而{}；没有 [clients.*] 的重新加载会使它开放：请保留一个调用方，或设置 server.open = true 明确允许",
            reason
        );
        Err(config_error(loaded, "clients", message))
    }
}

/// Whether two sections `[tokens]` differ at most in the store's `ca_file`, which a reload applies.
fn same_but_for_ca_file(loaded: &config::TokensConfig, initial: &config::TokensConfig) -> bool {
    let mut loaded = loaded.clone();
    if let (StoreConfig::Redis(loaded), StoreConfig::Redis(initial)) = (&mut loaded.store, &initial.store) {
        loaded.ca_file.clone_from(&initial.ca_file);
    }
    loaded == *initial
}

/// Whether two sections `[state]` differ at most in the store that they share, a change of which is that of `[tokens]`.
fn same_but_for_store(loaded: &Config, initial: &Config) -> bool {
    match (&loaded.state, &initial.state) {
        (Some(StateConfig::Shared(_)), Some(StateConfig::Shared(_))) => true,
        (loaded, initial) => loaded == initial,
    }
}

/// Refuses a pattern of `include` that matched files before and matches none now: they may be missing only briefly.
fn reject_lost_includes(loaded: &Config, before: &BTreeMap<String, usize>) -> Result<(), config::Error> {
    let missing = loaded.include_counts.iter().find_map(|(pattern, files)| {
        let before = *before.get(pattern)?;
        (*files == 0 && before > 0).then_some((pattern, before))
    });
    let Some((pattern, before)) = missing else { return Ok(()) };
    let message = format_text!(
        "{pattern:?} matches no file, and matched {before} before; put the files back, or take the pattern out of include",
        "{pattern:?} 没有匹配任何文件，而之前匹配了 {before} 个；请把文件放回，或从 include 中去掉它"
    );
    Err(config_error(loaded, "include", message))
}

fn config_error(loaded: &Config, key: &str, message: Text) -> config::Error {
    config::Error { key: Some(key.to_owned()), ..config::Error::of_file(&loaded.path, message) }
}
