//! What the state keeps of an agent or client.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::DirectoryChange;
use crate::{
    config::{self, AgentConfig, ClientConfig, CorpConfig, JsonTable, KeyHash, Origin, UpstreamConfig},
    secret::{hex, random_u64},
    state::{Collection, Record},
    time::clock::unix_now,
};

/// A record of the state: an agent or client as the table of a file, and since when it exists.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEntry {
    /// Not 0; chosen at random when the name was created, so that nothing of a deleted entry serves for the next one of
    /// its name.
    pub generation: u64,
    /// The table, in which secrets are strings; of a client, without its keys.
    pub table: JsonTable,
    /// The keys of a client.
    pub keys: Vec<StoredKey>,
}

/// One key of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// Random; unique among the keys of the client.
    pub id: String,
    /// In seconds since 1970.
    pub created: u64,
    /// The key's hash.
    pub hash: KeyHash,
}

impl StoredKey {
    /// A key that is made now.
    pub fn create(hash: KeyHash) -> Self {
        Self { id: format!("{:016x}", random_u64()), created: unix_now(), hash }
    }

    fn parse(key: &Value) -> Option<Self> {
        let id = key.get("id")?.as_str()?.to_owned();
        let hash = KeyHash::from_hex(key.get("sha256")?.as_str()?)?;
        Some(Self { id, created: key.get("created")?.as_u64()?, hash })
    }

    fn to_json(&self) -> Value {
        json!({ "id": self.id, "created": self.created, "sha256": hex::encode(self.hash.as_bytes()) })
    }
}

impl StoredEntry {
    /// A new entry.
    pub fn create(table: JsonTable, keys: Vec<StoredKey>) -> Self {
        Self { generation: random_u64().max(1), table, keys }
    }

    /// Parses the value of a record; `None` for one of another version of the program.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut record = JsonTable::parse(value).ok()?;
        let generation = record.as_map().get("generation")?.as_str()?;
        let generation = u64::from_str_radix(generation, 16).ok().filter(|generation| *generation != 0)?;
        let keys = record.as_map().get("keys").and_then(Value::as_array);
        let keys = keys.into_iter().flatten().map(StoredKey::parse).collect::<Option<_>>()?;
        match record.as_map_mut().remove("table")? {
            Value::Object(table) => Some(Self { generation, table: table.into(), keys }),
            _ => None,
        }
    }

    /// The value of its record.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut record = Map::new();
        record.insert("generation".to_owned(), json!(format!("{:016x}", self.generation)));
        record.insert("table".to_owned(), Value::Object(self.table.as_map().clone()));
        if !self.keys.is_empty() {
            record.insert("keys".to_owned(), self.keys.iter().map(StoredKey::to_json).collect());
        }
        JsonTable::from(record).to_bytes()
    }

    /// The agent, as written by version `version` of the state, and what `check` would warn of.
    pub fn agent(
        &self,
        name: &str,
        version: u64,
        upstreams: &BTreeMap<String, UpstreamConfig>,
    ) -> Result<(AgentConfig, Vec<config::Warning>), config::Error> {
        config::agent_from_json(name, &self.table, self.origin(version), upstreams)
    }

    /// Whether it is an authorised corp with a name of its own.
    pub fn is_corp(&self) -> bool {
        self.table.as_map().contains_key("suite")
    }

    /// The corp, as written by version `version` of the state, and what `check` would warn of; its suite must be one of
    /// `suites`, if there are any given.
    pub fn corp(
        &self,
        name: &str,
        version: u64,
        suites: Option<&[&str]>,
    ) -> Result<(CorpConfig, Vec<config::Warning>), config::Error> {
        let own = self.table.as_map().get("suite").and_then(Value::as_str).unwrap_or_default();
        config::named_corp_from_json(name, &self.table, self.origin(version), suites.unwrap_or(&[own]))
    }

    /// The client, as written by version `version` of the state, and what `check` would warn of, where `agents` are those
    /// that there are.
    pub fn client(
        &self,
        name: &str,
        version: u64,
        agents: Option<&dyn config::AgentNames>,
    ) -> Result<(ClientConfig, Vec<config::Warning>), config::Error> {
        let mut table = self.table.clone();
        if !self.keys.is_empty() {
            let hashes = self.keys.iter().map(|key| Value::from(hex::encode(key.hash.as_bytes())));
            table.as_map_mut().insert("key_sha256".to_owned(), hashes.collect());
        }
        let (mut client, warnings) = config::client_from_json(name, &table, self.origin(version), agents)?;
        for (key, stored) in client.keys.iter_mut().zip(&self.keys) {
            (key.id, key.created) = (Some(stored.id.as_str().into()), Some(stored.created));
        }
        Ok((client, warnings))
    }

    fn origin(&self, version: u64) -> Origin {
        Origin::State { version, generation: self.generation }
    }
}

impl DirectoryChange {
    /// The change that a record makes; `None` if it is neither an agent nor a client. A record that is not valid is logged
    /// and deletes the entry: what is in force must not differ from what the state says.
    pub fn from_record(record: &Record, upstreams: &BTreeMap<String, UpstreamConfig>) -> Option<Self> {
        let Record { collection, name, version, value, .. } = record;
        let is_agent = match collection {
            Collection::Agents => true,
            Collection::Clients => false,
            _ => return None,
        };
        let reject = if is_agent { Self::DeleteAgent } else { Self::RejectClient };
        let Some(value) = value else {
            let delete = if is_agent { Self::DeleteAgent } else { Self::DeleteClient };
            return Some(delete(name.clone()));
        };
        let Some(entry) = StoredEntry::parse(value) else {
            tracing::error!(name, "record of the state was not written by this version and is not in force");
            return Some(reject(name.clone()));
        };
        let change = match is_agent {
            true if entry.is_corp() => entry.corp(name, *version, None).map(|(corp, _)| Self::PutCorp(corp)),
            true => entry.agent(name, *version, upstreams).map(|(agent, _)| Self::PutAgent(agent)),
            false => entry.client(name, *version, None).map(|(client, _)| Self::PutClient(client)),
        };
        Some(change.unwrap_or_else(|error| {
            tracing::error!(name, %error, "entry of the state is not valid and not in force");
            reject(name.clone())
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(collection: Collection, value: Option<&str>) -> Option<DirectoryChange> {
        let value = value.map(|value| Zeroizing::new(value.as_bytes().to_vec()));
        let record = Record { collection, name: "hr".to_owned(), version: 7, value, expires_at: None };
        DirectoryChange::from_record(&record, &BTreeMap::new())
    }

    #[test]
    fn entry_is_parsed_back() {
        let table = json!({ "corpid": "ww1", "secret": "a-secret" });
        let entry =
            StoredEntry::create(JsonTable::parse(table.to_string().as_bytes()).expect("a table"), Vec::new());
        assert_eq!(StoredEntry::parse(&entry.to_bytes()), Some(entry.clone()));
        let (agent, _) = entry.agent("hr", 7, &BTreeMap::new()).expect("an agent");
        assert_eq!(agent.origin, Origin::State { version: 7, generation: entry.generation });
        assert!(!format!("{entry:?}").contains("a-secret"));
    }

    #[test]
    fn record_becomes_a_change() {
        let value = r#"{"generation":"00000000000000ff","table":{"corpid":"ww1","secret":"s-of-hr"}}"#;
        match change(Collection::Agents, Some(value)) {
            Some(DirectoryChange::PutAgent(agent)) => assert_eq!(agent.origin.generation(), 255),
            other => panic!("{other:?}"),
        }
        for value in
            [None, Some("{}"), Some(""), Some(&*value.replace("ff", "00")), Some(&*value.replace("ww1", ""))]
        {
            match change(Collection::Agents, value) {
                Some(DirectoryChange::DeleteAgent(name)) => assert_eq!(name, "hr"),
                other => panic!("{value:?}: {other:?}"),
            }
        }
        assert!(change(Collection::Idempotency, None).is_none());
    }
}
