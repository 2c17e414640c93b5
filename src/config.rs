//! `proxy.toml`: read, validated and resolved before anything starts. The result is valid as a whole; nothing here opens a
//! socket.

mod address;
mod admin;
mod agent_names;
mod agents;
mod callbacks;
mod clients;
mod duration;
mod effective;
mod egress;
mod error;
mod files;
mod glob;
mod include;
mod json;
mod key_hash;
mod loaded_files;
mod location;
mod log;
mod named_tables;
mod origin;
mod otlp;
mod path_error;
mod pattern;
mod quotas;
mod rate_limit;
mod reader;
mod regular_file;
mod replay;
mod schema;
mod secret;
mod server;
mod size;
mod socket_access;
mod source_file;
mod state;
mod store;
mod suggest;
mod suites;
#[cfg(test)]
mod tests;
mod text_encoding;
mod tokens;
mod traces;
mod trusted_proxies;
mod units;
mod upstream;
mod url;
mod web_origin;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

pub use address::Address;
pub use admin::{AdminConfig, MetricsConfig};
pub use agent_names::AgentNames;
pub use agents::{AgentConfig, AgentSettings};
pub use callbacks::{
    CallbackConfig, CallbackTarget, DeliveryMethod, ReencryptKeys, SuiteUrl, TargetAddress, TargetForm,
    TargetUrl, data_callback_name,
};
pub use clients::{AgentSet, ClientConfig, ClientKey, MAX_CLIENT_KEYS};
pub use duration::{format as format_duration, parse as parse_duration};
pub use effective::{effective, effective_settings};
pub use egress::{EgressLogin, EgressProtocol, EgressProxy};
pub use error::{Error, Warning, summarize_warnings};
pub use json::{
    JsonTable, agent_from_json, agent_to_json, client_from_json, client_to_json, corp_from_json,
    corp_to_json, is_set, named_corp_from_json, wipe as wipe_json,
};
pub use key_hash::KeyHash;
pub use loaded_files::{FileStamp, IncludePattern, LoadedFiles, SecretMode};
pub use log::{LogConfig, LogFormat, LogLevel, LoggedRequests};
pub use named_tables::is_valid_name;
pub use origin::Origin;
pub use otlp::OtlpConfig;
pub use pattern::{AllowPattern, PathPattern};
pub use quotas::{QuotaLimit, QuotaMode, QuotaScope, QuotasConfig};
pub use rate_limit::RateLimit;
pub use regular_file::open_regular;
pub use replay::ReplayConfig;
pub use schema::SCHEMA;
pub use secret::{SourcedSecret, is_unread, read_secret_again};
pub use server::{ReloadTrigger, ServerConfig, ServerTlsConfig};
pub use size::format as format_size;
pub use socket_access::SocketAccess;
pub use state::{StateConfig, StateFileConfig};
pub use store::{RedisConfig, StoreConfig, StoreNode, Topology};
pub use suites::{CorpConfig, ProviderConfig, SuiteConfig, SuitesConfig, is_corpid};
pub use text_encoding::{NotUtf8, decode_utf8};
pub use tokens::TokensConfig;
pub use traces::{TraceSampler, TracesConfig};
pub use trusted_proxies::{ClientAddressHeader, IpNetwork, TrustedProxies};
pub use upstream::{UpstreamConfig, UpstreamId};
pub use url::{PrivateUrl, authority, bracketed};
pub use web_origin::WebOrigin;

use loaded_files::Inputs;
use reader::ConfigTable;
use source_file::SourceFile;

use crate::format_text;

const KEYS: &[&str] = &[
    "include",
    "server",
    "upstream",
    "upstreams",
    "tokens",
    "replay",
    "quotas",
    "log",
    "admin",
    "state",
    "agents",
    "clients",
    "callbacks",
    "providers",
    "suites",
];

/// The settings of `proxy.toml` and the files that it includes, with defaults for omitted ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file's path, as given by the caller.
    pub path: PathBuf,
    /// `[server]`
    pub server: ServerConfig,
    /// `[upstream]`
    pub upstream: UpstreamConfig,
    /// `[upstreams.*]` by name.
    pub upstreams: BTreeMap<String, UpstreamConfig>,
    /// `[tokens]`
    pub tokens: TokensConfig,
    /// `[replay]`
    pub replay: ReplayConfig,
    /// `[quotas]`
    pub quotas: QuotasConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[admin]`; without the table, there is no admin listener.
    pub admin: Option<AdminConfig>,
    /// Traces, by `admin.otlp` and the environment; `None`: there are none.
    pub traces: Option<TracesConfig>,
    /// `[state]`; without the table, nothing outlives the process.
    pub state: Option<StateConfig>,
    /// `[agents.*]` without a suite, by name; empty only with a state, suites or providers.
    pub agents: BTreeMap<String, AgentConfig>,
    /// `[providers.*]`, `[suites.*]` and the `[agents.*]` with a suite.
    pub suites: SuitesConfig,
    /// `[clients.*]` by name.
    pub clients: BTreeMap<String, ClientConfig>,
    /// `[callbacks.*]` by name.
    pub callbacks: BTreeMap<String, CallbackConfig>,
    /// The files that it was read from.
    pub loaded_files: LoadedFiles,
    /// How many files each pattern of `include` matched.
    pub include_counts: BTreeMap<String, usize>,
    /// Settings that are valid but not advisable, in the order of the files.
    pub warnings: Vec<Warning>,
}

impl Config {
    /// Whether callers without a key are served: there are no clients, or `server.open` is set.
    pub fn is_open(&self) -> bool {
        self.clients.is_empty() || self.server.open
    }

    /// The upstream of an agent of this configuration.
    pub fn upstream_of(&self, agent: &AgentConfig) -> &UpstreamConfig {
        agent.upstream.name().and_then(|name| self.upstreams.get(name)).unwrap_or(&self.upstream)
    }

    /// `[upstream]` and `[upstreams.*]`, in the order of their indexes.
    pub fn all_upstreams(&self) -> impl Iterator<Item = (UpstreamId, &UpstreamConfig)> {
        UpstreamId::all(&self.upstream, &self.upstreams)
    }

    /// The error for a proxy that is open on an address that other machines can reach, if `server.open` is not set.
    pub fn reject_open_on_public_address(&self) -> Result<(), Error> {
        match server::open_on_public_address(&self.server) {
            None => Ok(()),
            Some(message) => {
                let key = Some("server.listen".to_owned());
                Err(Error { key, ..Error::of_file(&self.path, message) })
            }
        }
    }
}

/// Reads the file and the files that it includes, resolves each secret and validates everything.
pub fn load(path: &Path) -> Result<Config, Error> {
    load_with_env(path, &process_env)
}

fn process_env(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Reads the file again; also returns the files that were read or tried. A pipe has nothing more to read.
pub fn load_recording(path: &Path) -> (Result<Config, Error>, LoadedFiles) {
    let inputs = Inputs::new(&process_env, SecretMode::Required);
    let result = SourceFile::read(path, &inputs).and_then(|main| load_from(path, main, &inputs));
    let files = inputs.into_files();
    (result.map(|config| Config { loaded_files: files.clone(), ..config }), files)
}

/// [`load`] with `env` as the source of environment variables.
pub fn load_with_env(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Error> {
    load_with(path, env, SecretMode::Required)
}

/// [`load_with_env`], where secrets need not be there.
pub fn load_with(
    path: &Path,
    env: &dyn Fn(&str) -> Option<String>,
    secrets: SecretMode,
) -> Result<Config, Error> {
    let inputs = Inputs::new(env, secrets);
    let config = load_from(path, read_main(path, &inputs)?, &inputs)?;
    Ok(Config { loaded_files: inputs.into_files(), ..config })
}

/// [`load_with`] for what is no file; paths in it are relative to the current directory.
pub fn load_input(
    name: &str,
    input: impl Read,
    env: &dyn Fn(&str) -> Option<String>,
    secrets: SecretMode,
) -> Result<Config, Error> {
    let (path, inputs) = (Path::new(name), Inputs::new(env, secrets));
    load_from(path, SourceFile::read_from(path, || Ok(input), &inputs)?, &inputs)
}

fn read_main<'a>(path: &Path, inputs: &'a Inputs<'a>) -> Result<SourceFile<'a>, Error> {
    SourceFile::read_once(path, inputs).map_err(|error| match path.exists() {
        true => error,
        false => Error {
            message: format_text!(
                "{}; --config FILE selects another file",
                "{}；--config FILE 可指定另一个文件",
                error.message
            ),
            ..error
        },
    })
}

/// Reads everything; the error has all mistakes.
fn load_from<'a>(path: &Path, main: SourceFile<'a>, inputs: &'a Inputs<'a>) -> Result<Config, Error> {
    debug_assert!(main.inputs().is_some_and(|of_main| std::ptr::eq(of_main, inputs)));
    let table = main.parse()?;
    let root = ConfigTable::root(&main, &table, KEYS);
    let include::Included { files: included, match_counts } = include::read(&root, &main);
    let mut roots = vec![root.clone()];
    let tables: Vec<_> = included.iter().map(SourceFile::parse).collect();
    let mut errors = Vec::new();
    for (file, table) in included.iter().zip(&tables) {
        match table {
            Ok(table) => roots.push(include::root_table(file, table)),
            Err(error) => {
                inputs.mark_incomplete();
                errors.extend(error.all().cloned());
            }
        }
    }
    let config = read_sections(path, &root, &roots);
    let files = || std::iter::once(&main).chain(&included);
    errors.extend(files().flat_map(SourceFile::take_errors));
    let order: Vec<_> = files().map(|file| file.path().to_owned()).collect();
    if let Some(error) = Error::combine(errors, &order) {
        return Err(error);
    }
    let mut config = config;
    config.include_counts = match_counts;
    let otlp = config.admin.as_ref().and_then(|admin| admin.otlp.as_ref());
    let (traces, of_environment) = traces::read(&main, otlp);
    (config.traces, config.warnings) = (traces, main.into_warnings());
    config.warnings.extend(of_environment);
    config.warnings.extend(included.into_iter().flat_map(SourceFile::into_warnings));
    Ok(config)
}

fn read_sections(path: &Path, root: &ConfigTable<'_>, roots: &[ConfigTable<'_>]) -> Config {
    let server = server::read(root);
    let upstream = upstream::read(root);
    let upstreams = upstream::read_named(root);
    let tokens = tokens::read(root);
    let replay = replay::read(root, &server);
    let quotas = quotas::read(root);
    let log = log::read(root);
    let admin = admin::read(root, &server);
    let state = state::read(root, &tokens);
    let has_state = root.has("state");
    let agents = agents::read(roots, &upstreams, has_state);
    let suites = suites::read(root, roots, &agents, has_state);
    let clients = clients::read(roots, &agents, &suites, has_state);
    let mut callbacks = callbacks::read(root, &agents, &clients, has_state);
    callbacks::add_suites(root, &suites, &clients, &mut callbacks);
    // With a state it is judged at the start, when its clients are known.
    // A file that cannot be read may have some.
    let has_clients =
        root.is_broken("clients") || roots.iter().any(|root| !root.entries("clients").is_empty());
    if clients.is_empty() && !has_clients && !has_state {
        server::reject_open_on_public_address(root, &server);
    }
    server::warn_of_trusted_proxies_when_open(root, &server, clients.is_empty() || server.open);
    Config {
        path: path.to_owned(),
        server,
        upstream,
        upstreams,
        tokens,
        replay,
        quotas,
        log,
        admin,
        traces: None,
        state,
        agents,
        suites,
        clients,
        callbacks,
        loaded_files: LoadedFiles::default(),
        include_counts: BTreeMap::new(),
        warnings: Vec::new(),
    }
}
