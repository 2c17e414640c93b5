//! `proxy.toml`: read, checked and resolved before anything starts. What comes out is right as a whole; nothing
//! here opens a socket.

mod address;
mod admin;
mod agents;
mod clients;
mod document;
mod duration;
mod error;
mod files;
mod include;
mod keyhash;
mod limit;
mod log;
mod named;
mod near;
mod otlp;
mod pattern;
mod replay;
mod secret;
mod section;
mod server;
mod size;
mod store;
#[cfg(test)]
mod tests;
mod tokens;
mod upstream;
mod url;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use address::Address;
pub use admin::Admin;
pub use agents::Agent;
pub use clients::{AgentSet, Client};
pub use duration::{parse as parse_duration, write as write_duration};
pub use error::{Error, Warning};
pub use keyhash::KeyHash;
pub use limit::Limit;
pub use log::{Level, Log, LogFormat};
pub use named::is_name;
pub use otlp::Otlp;
pub use pattern::{AllowPattern, PathPattern};
pub use replay::Replay;
pub use server::{Server, ServerTls};
pub use size::write as write_size;
pub use store::{Node, Redis, Store, Topology};
pub use tokens::Tokens;
pub use upstream::{Upstream, Via};

use document::Document;
use section::Section;

const KEYS: &[&str] =
    &["include", "server", "upstream", "tokens", "replay", "log", "admin", "agents", "clients"];

/// Everything that `proxy.toml` and the files it includes say, with the defaults for what they leave out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file, as it was named by the caller.
    pub path: PathBuf,
    /// `[server]`
    pub server: Server,
    /// `[upstream]`
    pub upstream: Upstream,
    /// `[tokens]`
    pub tokens: Tokens,
    /// `[replay]`
    pub replay: Replay,
    /// `[log]`
    pub log: Log,
    /// `[admin]`; the table absent: no admin listener.
    pub admin: Option<Admin>,
    /// `[agents.*]` by name; never empty.
    pub agents: BTreeMap<String, Agent>,
    /// `[clients.*]` by name.
    pub clients: BTreeMap<String, Client>,
    /// How many files each pattern of `include` matched.
    pub included: BTreeMap<String, usize>,
    /// What works but should not stay so, in the order of the files.
    pub warnings: Vec<Warning>,
}

impl Config {
    /// Whether callers without a key are served: there is no client at all, or `server.open` says so.
    pub fn is_open(&self) -> bool {
        self.clients.is_empty() || self.server.open
    }
}

/// Reads the file and what it includes, resolves each secret and validates everything.
pub fn load(path: &Path) -> Result<Config, Error> {
    load_with(path, &|name| std::env::var(name).ok())
}

/// [`load`], with `env` asked for environment variables.
pub fn load_with(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Error> {
    let main = Document::read(path, env).map_err(|error| match path.exists() {
        true => error,
        false => Error { what: error.what + "; --config FILE names another", ..error },
    })?;
    let table = main.parse()?;
    let root = Section::root(&main, &table, KEYS)?;
    let include::Included { documents: included, matched } = include::read(&root, &main)?;
    let tables = included.iter().map(Document::parse).collect::<Result<Vec<_>, _>>()?;

    let mut roots = vec![root.clone()];
    for (document, table) in included.iter().zip(&tables) {
        roots.push(include::section(document, table)?);
    }
    let mut config = read(path, &root, &roots)?;
    config.included = matched;
    config.warnings = main.into_warnings();
    config.warnings.extend(included.into_iter().flat_map(Document::into_warnings));
    Ok(config)
}

fn read(path: &Path, root: &Section<'_>, roots: &[Section<'_>]) -> Result<Config, Error> {
    let server = server::read(root)?;
    let upstream = upstream::read(root)?;
    let tokens = tokens::read(root)?;
    let replay = replay::read(root, &server)?;
    let log = log::read(root)?;
    let admin = admin::read(root, &server)?;
    let agents = agents::read(roots)?;
    let clients = clients::read(roots, &agents)?;
    server::refuse_open_to_the_world(root, &server, clients.is_empty())?;
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
        included: BTreeMap::new(),
        warnings: Vec::new(),
    })
}
