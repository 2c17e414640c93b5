//! The two kinds of entries, as they are shown and checked.

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::super::error::ApiError;
use crate::{
    config::{
        self, AgentConfig, AgentNames, AgentSettings, ClientConfig, ClientKey, CorpConfig, JsonTable,
        KeyHash, Origin, SourcedSecret, is_set,
    },
    directory::{Agent, Client, Directory, StoredEntry, StoredKey},
    state::Collection,
};

/// Keys that are shown and ignored when they are put back.
const SHOWN_KEYS: [&str; 2] = ["origin", "keys"];

/// Why a secret cannot be kept.
pub(super) const NOTHING_SET: &str =
    "is {\"set\":true}, which keeps what is set, and nothing is set yet; write the value";

/// The key of a client's table with its keys.
const KEY_SHA256: &str = "key_sha256";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    Agent,
    Client,
}

impl EntryKind {
    /// The name of its table in `proxy.toml`, and of its path.
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Agent => "agents",
            Self::Client => "clients",
        }
    }

    /// A key of an entry, as TOML writes it.
    pub(super) fn key(self, name: &str, key: &str) -> String {
        match name.contains(':') {
            true => format!("{}.\"{name}\".{key}", self.table()),
            false => format!("{}.{name}.{key}", self.table()),
        }
    }

    pub(super) fn collection(self) -> Collection {
        match self {
            Self::Agent => Collection::Agents,
            Self::Client => Collection::Clients,
        }
    }

    pub(super) fn not_found(self) -> ApiError {
        ApiError::new(
            StatusCode::NOT_FOUND,
            match self {
                Self::Agent => "there is no agent of this name",
                Self::Client => "there is no client of this name",
            },
        )
    }

    /// Where the entry in force is defined.
    pub(super) fn origin(self, name: &str, directory: &Directory) -> Option<Origin> {
        match self {
            Self::Agent => {
                let agent = directory.find_agent(name);
                let agent = agent.or_else(|| directory.find_cancelled_corp(name).cloned());
                agent.map(|agent| agent.origin.clone())
            }
            Self::Client => directory.client_by_name(name).map(|client| client.config.origin.clone()),
        }
    }
}

/// The entity tag of a version of the state.
pub(super) fn version_tag(version: u64) -> String {
    format!("v{version}")
}

/// The entity tag of an entry in force. It says nothing of secrets, and changes with them.
fn entity_tag(origin: &Origin, revision: u64) -> String {
    match origin {
        Origin::State { version, .. } => version_tag(*version),
        Origin::File { .. } => format!("file-{revision:016x}"),
    }
}

pub(super) fn agent_tag(agent: &Agent) -> String {
    entity_tag(&agent.origin, agent.revision)
}

pub(super) fn client_tag(client: &Client) -> String {
    entity_tag(&client.config.origin, client.revision)
}

/// The agent's table, and where it is defined.
pub(super) fn agent_json(agent: &AgentConfig) -> Map<String, Value> {
    let mut map = config::agent_to_json(agent);
    map.insert("origin".to_owned(), agent.origin.to_string().into());
    map
}

/// The table of an authorised corp, and where it is defined.
pub(super) fn corp_json(
    names: (&str, &str),
    settings: &AgentSettings,
    origin: &Origin,
) -> Map<String, Value> {
    let mut map = config::corp_to_json(names, settings);
    map.insert("origin".to_owned(), origin.to_string().into());
    map
}

/// The client's table, and where it is defined.
pub(super) fn client_json(client: &ClientConfig) -> Map<String, Value> {
    let mut map = config::client_to_json(client);
    let key = |(nth, key): (usize, &ClientKey)| {
        // A key of a file has no id of its own.
        let id = key.id.as_deref().map_or_else(|| format!("file-{}", nth + 1), str::to_owned);
        json!({ "id": id, "created": key.created })
    };
    map.insert("keys".to_owned(), client.keys.iter().enumerate().map(key).collect());
    map.insert("origin".to_owned(), client.origin.to_string().into());
    map
}

/// An entry that passed all checks.
pub(super) enum Checked {
    Agent(AgentConfig),
    /// An authorised corp with a name of its own.
    Corp(CorpConfig),
    Client(ClientConfig),
}

impl Checked {
    /// The entry as the API shows it.
    pub(super) fn to_json(&self) -> Map<String, Value> {
        match self {
            Self::Agent(agent) => agent_json(agent),
            Self::Corp(corp) => corp_json((&corp.suite, &corp.corpid), &corp.settings, &corp.origin),
            Self::Client(client) => client_json(client),
        }
    }
}

/// Checks an entry as `check` does, and against the entries in force. Also returns what `check` would warn of.
pub(super) fn check(
    kind: EntryKind,
    name: &str,
    entry: &StoredEntry,
    directory: &Directory,
) -> Result<(Checked, Vec<String>), ApiError> {
    if kind == EntryKind::Agent && entry.is_corp() {
        return check_corp(name, entry, directory);
    }
    if kind == EntryKind::Agent {
        let (agent, warnings) = entry.agent(name, 0, directory.upstreams())?;
        let mut warnings = texts(warnings);
        let same = |secret: &SourcedSecret| {
            let mut same = directory.agents_with_credentials(&agent.corpid, secret.value.expose());
            same.find(|other| other.name != name)
        };
        if let Some(other) = agent.secrets.iter().find_map(same) {
            let other = &other.name;
            warnings.push(format!("agents.{name}: has the corpid and secret of agents.{other}; make them one agent if nothing else differs"));
        }
        let mut hashes = agent.secrets.iter().map(|secret| KeyHash::of(secret.value.expose()));
        if let Some(client) = hashes.find_map(|hash| directory.client_by_key_hash(&hash)) {
            let client = &client.config.name;
            warnings.push(format!(
                "agents.{name}.secret: is the key of clients.{client}; give the client a key of its own"
            ));
        }
        return Ok((Checked::Agent(agent), warnings));
    }
    let (client, warnings) = entry.client(name, 0, Some(&KnownAgents(directory)))?;
    let mut same = client.keys.iter().filter_map(|key| directory.client_by_key_hash(&key.hash));
    if let Some(other) = same.find(|other| other.config.name != name) {
        return Err(same_key(name, &other.config.name));
    }
    let mut warnings = texts(warnings);
    let mut secrets = client.keys.iter().filter_map(|key| directory.agent_with_secret_as_key(&key.hash));
    if let Some(agent) = secrets.next() {
        let agent = &agent.name;
        warnings.push(format!("clients.{name}.key_sha256: is the real secret of agents.{agent}; give the client a key of its own"));
    }
    Ok((Checked::Client(client), warnings))
}

fn check_corp(
    name: &str,
    entry: &StoredEntry,
    directory: &Directory,
) -> Result<(Checked, Vec<String>), ApiError> {
    let suites = directory.suites_and_providers().iter().filter(|agent| agent.suite().is_some());
    let suites: Vec<_> = suites.map(|agent| &*agent.name).collect();
    let (corp, warnings) = entry.corp(name, 0, Some(&suites))?;
    match directory.find_corp(&corp.suite, &corp.corpid).filter(|other| !other.is_unnamed_corp()) {
        Some(other) if other.name != name => {
            let reason = format!("is the suite and corpid of agents.{} too; keep one of them", other.name);
            Err(ApiError::invalid(&format!("agents.{name}"), &reason))
        }
        _ => Ok((Checked::Corp(corp), texts(warnings))),
    }
}

/// 422: another client has the key.
pub(super) fn same_key(client: &str, owner: &str) -> ApiError {
    let reason = format!("is the same key as one of clients.{owner}; each client needs its own");
    ApiError::invalid(&EntryKind::Client.key(client, "key_sha256"), &reason)
}

/// The warnings with their keys.
pub(super) fn texts(warnings: Vec<config::Warning>) -> Vec<String> {
    let text =
        |config::Warning { key, message, .. }| format!("{}: {}", key.unwrap_or_default(), message.english());
    warnings.into_iter().map(text).collect()
}

/// The agents that a client may name.
struct KnownAgents<'a>(&'a Directory);

impl AgentNames for KnownAgents<'_> {
    fn contains(&self, name: &str) -> bool {
        self.0.may_list(name)
    }

    fn is_suite_or_provider(&self, name: &str) -> bool {
        self.0.find_agent(name).is_some_and(|agent| !agent.has_access_token())
    }

    fn names(&self) -> Vec<&str> {
        self.0.agents().map(|agent| &*agent.name).collect()
    }
}

/// The table that a merge patch is applied to; it keeps the keys that it does not mention.
pub(super) fn patchable(entry: &StoredEntry) -> JsonTable {
    let mut table = entry.table.clone();
    if !entry.keys.is_empty() {
        table.as_map_mut().insert(KEY_SHA256.to_owned(), is_set());
    }
    table
}

pub(super) fn remove_shown_keys(map: &mut Map<String, Value>) {
    for key in SHOWN_KEYS {
        map.remove(key);
    }
}

/// Makes of a body the table to store: what is shown only is left out, and `{"set":true}` is replaced by what is set.
pub(super) fn resolve(
    kind: EntryKind,
    name: &str,
    table: &mut JsonTable,
    current: Option<&StoredEntry>,
) -> Result<(), ApiError> {
    let map = table.as_map_mut();
    remove_shown_keys(map);
    // The list of clients shows it.
    if kind == EntryKind::Client && map.get("name").is_some_and(|shown| shown == name) {
        map.remove("name");
    }
    for (key, value) in map {
        let has_keys = key == KEY_SHA256 && current.is_some_and(|current| !current.keys.is_empty());
        if *value != is_set() || has_keys {
            continue;
        }
        let set = current.and_then(|current| current.table.as_map().get(key));
        *value = set.cloned().ok_or_else(|| ApiError::invalid(&kind.key(name, key), NOTHING_SET))?;
    }
    Ok(())
}

/// Takes the keys of a client out of its table. One that it had before keeps its id. What is no hash stays in the table,
/// where the check refuses it.
pub(super) fn take_keys(
    kind: EntryKind,
    table: &mut JsonTable,
    current: Option<&StoredEntry>,
) -> Vec<StoredKey> {
    let before = current.map_or(&[][..], |current| &current.keys);
    let map = table.as_map_mut();
    let (EntryKind::Client, Some(value)) = (kind, map.get(KEY_SHA256)) else { return Vec::new() };
    let keys = if *value == is_set() { Some(before.to_vec()) } else { keys_of(value, before) };
    if keys.is_some() {
        map.remove(KEY_SHA256);
    }
    keys.unwrap_or_default()
}

/// One hash, or a list of hashes.
fn keys_of(value: &Value, before: &[StoredKey]) -> Option<Vec<StoredKey>> {
    let texts = match value {
        Value::Array(texts) => &texts[..],
        text => std::slice::from_ref(text),
    };
    let hashes = texts.iter().map(|text| KeyHash::from_hex(text.as_str()?));
    let key = |hash: KeyHash| {
        let known = before.iter().find(|known| known.hash == hash);
        known.cloned().unwrap_or_else(|| StoredKey::create(hash))
    };
    let keys: Vec<_> = hashes.map(|hash| hash.map(key)).collect::<Option<_>>()?;
    (!keys.is_empty()).then_some(keys)
}
