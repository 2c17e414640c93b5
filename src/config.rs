//! `proxy.toml`: read, validated and resolved before anything starts. The result is valid as a whole; nothing here opens a
//! socket.

mod address;
mod admin;
mod agents;
mod clients;
mod duration;
mod error;
mod files;
mod include;
mod key_hash;
mod log;
mod named_tables;
mod otlp;
mod path_error;
mod pattern;
mod rate_limit;
mod reader;
mod replay;
mod secret;
mod server;
mod size;
mod source_file;
mod store;
mod suggest;
#[cfg(test)]
mod tests;
mod tokens;
mod upstream;
mod url;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use address::Address;
pub use admin::AdminConfig;
pub use agents::AgentConfig;
pub use clients::{AgentSet, ClientConfig};
pub use duration::{format as format_duration, parse as parse_duration};
pub use error::{Error, Warning};
pub use key_hash::KeyHash;
pub use log::{LogConfig, LogFormat, LogLevel};
pub use named_tables::is_valid_name;
pub use otlp::OtlpConfig;
pub use pattern::{AllowPattern, PathPattern};
pub use rate_limit::RateLimit;
pub use replay::ReplayConfig;
pub use server::{ServerConfig, ServerTlsConfig};
pub use size::format as format_size;
pub use store::{RedisConfig, StoreConfig, StoreNode, Topology};
pub use tokens::TokensConfig;
pub use upstream::{EgressProxy, UpstreamConfig};

use reader::ConfigTable;
use source_file::SourceFile;

const KEYS: &[&str] =
    &["include", "server", "upstream", "tokens", "replay", "log", "admin", "agents", "clients"];

/// The settings of `proxy.toml` and the files that it includes, with defaults for omitted ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file's path, as given by the caller.
    pub path: PathBuf,
    /// `[server]`
    pub server: ServerConfig,
    /// `[upstream]`
    pub upstream: UpstreamConfig,
    /// `[tokens]`
    pub tokens: TokensConfig,
    /// `[replay]`
    pub replay: ReplayConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[admin]`; without the table, there is no admin listener.
    pub admin: Option<AdminConfig>,
    /// `[agents.*]` by name; never empty.
    pub agents: BTreeMap<String, AgentConfig>,
    /// `[clients.*]` by name.
    pub clients: BTreeMap<String, ClientConfig>,
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
}

/// Reads the file and the files that it includes, resolves each secret and validates everything.
pub fn load(path: &Path) -> Result<Config, Error> {
    load_with_env(path, &|name| std::env::var(name).ok())
}

/// [`load`] with `env` as the source of environment variables.
pub fn load_with_env(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Error> {
    let main = SourceFile::read(path, env).map_err(|error| match path.exists() {
        true => error,
        false => Error { message: error.message + "; --config FILE selects another file", ..error },
    })?;
    let table = main.parse()?;
    let root = ConfigTable::root(&main, &table, KEYS)?;
    let include::Included { files: included, match_counts } = include::read(&root, &main)?;
    let tables = included.iter().map(SourceFile::parse).collect::<Result<Vec<_>, _>>()?;

    let mut roots = vec![root.clone()];
    for (file, table) in included.iter().zip(&tables) {
        roots.push(include::root_table(file, table)?);
    }
    let mut config = read_sections(path, &root, &roots)?;
    config.include_counts = match_counts;
    config.warnings = main.into_warnings();
    config.warnings.extend(included.into_iter().flat_map(SourceFile::into_warnings));
    Ok(config)
}

fn read_sections(path: &Path, root: &ConfigTable<'_>, roots: &[ConfigTable<'_>]) -> Result<Config, Error> {
    let server = server::read(root)?;
    let upstream = upstream::read(root)?;
    let tokens = tokens::read(root)?;
    let replay = replay::read(root, &server)?;
    let log = log::read(root)?;
    let admin = admin::read(root, &server)?;
    let agents = agents::read(roots)?;
    let clients = clients::read(roots, &agents)?;
    server::reject_open_on_public_address(root, &server, clients.is_empty())?;
    Ok(Config {
        path: path.to_owned(),
        server,
        upstream,
        tokens,
        replay,
        log,
        admin,
        agents,
        clients,
        include_counts: BTreeMap::new(),
        warnings: Vec::new(),
    })
}
