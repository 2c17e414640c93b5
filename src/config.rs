//! `proxy.toml`: read, validated and resolved before anything starts. The result is valid as a whole; nothing here opens a
//! socket.

mod address;
mod admin;
mod agent_names;
mod agent_texts;
mod agents;
mod callbacks;
mod clients;
mod cut_text;
mod duration;
mod effective;
mod egress;
mod error;
mod file_agents;
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
mod parsed_file;
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
mod table_name;
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
pub use agent_texts::AgentTexts;
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
pub use table_name::is_valid_name;
pub use text_encoding::{NotUtf8, decode_utf8};
pub use tokens::TokensConfig;
pub use traces::{TraceSampler, TracesConfig};
pub use trusted_proxies::{ClientAddressHeader, IpNetwork, TrustedProxies};
pub use upstream::{UpstreamConfig, UpstreamId};
pub use url::{PrivateUrl, authority, bracketed};
pub use web_origin::WebOrigin;

use cut_text::CutText;
use file_agents::FileAgents;
use loaded_files::Inputs;
use parsed_file::{ParsedFile, cut};
use reader::ConfigTable;
use source_file::SourceFile;

use crate::format_text;
use crate::text::SharedStr;

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
    /// `[agents.*]` without a suite, by name, but for those whose text is the same as at the load before.
    pub agents: BTreeMap<SharedStr, AgentConfig>,
    /// What the load has found of the texts of agents, for the next one.
    pub agent_texts: AgentTexts,
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

/// Reads the file again; also returns the files that were read or tried. A pipe has nothing more to read. Leaves out agents
/// that are as `known` says.
pub fn load_recording(path: &Path, known: &AgentTexts) -> (Result<Config, Error>, LoadedFiles) {
    let inputs = Inputs::new(&process_env, SecretMode::Required);
    let result = SourceFile::read(path, &inputs).and_then(|main| load_from(path, &main, &inputs, known));
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
    let config = load_from(path, &read_main(path, &inputs)?, &inputs, &AgentTexts::default())?;
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
    let main = SourceFile::read_from(path, || Ok(input), &inputs)?;
    load_from(path, &main, &inputs, &AgentTexts::default())
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

/// Reads everything; the error has all mistakes. The agents are read one by one, unless that may be something else.
fn load_from<'a>(
    path: &Path,
    main: &SourceFile<'a>,
    inputs: &'a Inputs<'a>,
    known: &AgentTexts,
) -> Result<Config, Error> {
    debug_assert!(main.inputs().is_some_and(|of_main| std::ptr::eq(of_main, inputs)));
    if let Some(outcome) = read_files(path, main, inputs, Some(known)) {
        return outcome;
    }
    main.restart();
    inputs.restart();
    match read_files(path, main, inputs, None) {
        Some(outcome) => outcome,
        None => unreachable!("files are parsed as a whole"),
    }
}

/// Reads all files: agents one by one, or without `known` each file as a whole. `None`: they have to be read as a whole.
fn read_files<'a>(
    path: &Path,
    main: &SourceFile<'a>,
    inputs: &'a Inputs<'a>,
    known: Option<&AgentTexts>,
) -> Option<Result<Config, Error>> {
    let cut_main = cut(main, known)?;
    let main_file = match ParsedFile::new(main, cut_main.as_ref())? {
        Ok(file) => file,
        Err(error) => return Some(Err(error)),
    };
    let root = ConfigTable::root(main_file.text(), &main_file.table, KEYS);
    let include::Included { files: included, match_counts } = include::read(&root, main);
    let cuts = included.iter().map(|file| cut(file, known)).collect::<Option<Vec<_>>>()?;
    let mut errors = Vec::new();
    let mut files = Vec::new();
    for (source, cut) in included.iter().zip(&cuts) {
        match ParsedFile::new(source, cut.as_ref())? {
            Ok(file) => files.push(file),
            Err(error) => {
                inputs.mark_incomplete();
                errors.extend(error.all().cloned());
            }
        }
    }
    let included_roots = files.iter().map(|file| include::root_table(file.text(), &file.table));
    let roots: Vec<_> = std::iter::once(root).chain(included_roots).collect();
    let parts = std::iter::once(&main_file).chain(&files).filter_map(|file| Some((file.source, file.cut?)));
    let parts: Vec<_> = parts.collect();
    let unknown = AgentTexts::default();
    let mut config = read_sections(path, &roots, &parts, known.unwrap_or(&unknown))?;
    let sources = || std::iter::once(main).chain(&included);
    errors.extend(sources().flat_map(SourceFile::take_errors));
    let order: Vec<_> = sources().map(|file| file.path().to_owned()).collect();
    if let Some(error) = Error::combine(errors, &order) {
        return Some(Err(error));
    }
    config.include_counts = match_counts;
    let otlp = config.admin.as_ref().and_then(|admin| admin.otlp.as_ref());
    let (traces, of_environment) = traces::read(main, otlp);
    (config.traces, config.warnings) = (traces, main.take_warnings());
    config.warnings.extend(of_environment);
    config.warnings.extend(included.iter().flat_map(SourceFile::take_warnings));
    Some(Ok(config))
}

/// `None`: the files have to be read as a whole.
fn read_sections<'a>(
    path: &Path,
    roots: &[ConfigTable<'a>],
    parts: &[(&'a SourceFile<'a>, &'a CutText<'a>)],
    known: &AgentTexts,
) -> Option<Config> {
    let root = &roots[0];
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
    let agents = file_agents::read(roots, parts, known, &upstreams, has_state)?;
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
    let FileAgents { read: agents, texts: agent_texts, .. } = agents;
    Some(Config {
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
        agent_texts,
        suites,
        clients,
        callbacks,
        loaded_files: LoadedFiles::default(),
        include_counts: BTreeMap::new(),
        warnings: Vec::new(),
    })
}
