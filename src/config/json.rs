//! Agents and clients as JSON, for the admin API and the state: the tables of `proxy.toml`, checked by the same code.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value, json};
use zeroize::{Zeroize, Zeroizing};

use super::agent_names::{AgentNames, UnknownAgents};
use super::agents::{self, AgentConfig, AgentSettings};
use super::clients::{self, ClientConfig};
use super::error::{Error, Warning, quote};
use super::named_tables;
use super::origin::Origin;
use super::pattern::AllowPattern;
use super::reader::{ConfigTable, ConfigValue, ParsedText};
use super::source_file::SourceFile;
use super::suites::{self, CorpConfig};
use super::upstream::UpstreamConfig;
use crate::text;
use crate::text::Text;

/// What is read in place of a file.
const SOURCE_NAME: &str = "state";

/// A JSON object without duplicate keys, which is read like a table of a file. Wiped on drop, because it can contain
/// secrets.
#[derive(Clone, Default, PartialEq)]
pub struct JsonTable(Map<String, Value>);

impl JsonTable {
    /// Parses a JSON object; the error says what is wrong with the text, and nothing of its values.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let UniqueKeys(mut value) = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        match &mut value {
            Value::Object(map) => Ok(Self(std::mem::take(map))),
            other => {
                wipe(other);
                Err("must be a JSON object".to_owned())
            }
        }
    }

    /// The object.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The object, for a change.
    pub fn as_map_mut(&mut self) -> &mut Map<String, Value> {
        &mut self.0
    }

    /// Its text, for storing it.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(serde_json::to_vec(&self.0).unwrap_or_default())
    }
}

impl From<Map<String, Value>> for JsonTable {
    fn from(map: Map<String, Value>) -> Self {
        Self(map)
    }
}

impl fmt::Debug for JsonTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[table]")
    }
}

impl Drop for JsonTable {
    fn drop(&mut self) {
        self.0.values_mut().for_each(wipe);
    }
}

/// Overwrites the strings of a value.
pub fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(map) => map.values_mut().for_each(wipe),
        _ => {}
    }
}

/// Reads `[agents.NAME]` from JSON; the warnings are those of `check`. `upstreams` is `[upstreams.*]`.
pub fn agent_from_json(
    name: &str,
    table: &JsonTable,
    origin: Origin,
    upstreams: &BTreeMap<String, UpstreamConfig>,
) -> Result<(AgentConfig, Vec<Warning>), Error> {
    let read = |item: &ConfigValue<'_>| agents::read_agent(name, item, upstreams);
    let (mut agent, warnings) = read_table("agents", name, table, read)?;
    agent.origin = origin;
    Ok((agent, warnings))
}

/// Reads `[clients.NAME]` from JSON. The warnings are those of `check`, where `agents` are those that there are.
pub fn client_from_json(
    name: &str,
    table: &JsonTable,
    origin: Origin,
    agents: Option<&dyn AgentNames>,
) -> Result<(ClientConfig, Vec<Warning>), Error> {
    let unknown = agents.map_or(UnknownAgents::Accept, UnknownAgents::Warn);
    let (mut client, warnings) =
        read_table("clients", name, table, |item| Ok(clients::read_client(name, item, &unknown)?.0))?;
    client.origin = origin;
    Ok((client, warnings))
}

/// Reads the authorised corp `SUITE:CORPID` from JSON. `suite` and `corpid` may be left out, since its name has them.
pub fn corp_from_json(
    (suite, corpid): (&str, &str),
    table: &JsonTable,
    origin: Origin,
) -> Result<(CorpConfig, Vec<Warning>), Error> {
    let name = format!("{suite}:{corpid}");
    let mut table = table.clone();
    for (key, expected) in [("suite", suite), ("corpid", corpid)] {
        let value = table.0.entry(key).or_insert_with(|| expected.into());
        if value.as_str() != Some(expected) {
            let message = text!(
                "is another one than in the name of the agent; write the same",
                "与应用名中的不同；请写成一样"
            );
            return Err(error("agents", &format!("\"{name}\".{key}"), message));
        }
    }
    // A corpid is a valid name of a table; with the suite before it, it is none.
    let renamed = |key: String| key.replacen(&format!("agents.{corpid}"), &format!("agents.\"{name}\""), 1);
    let read = |item: &ConfigValue<'_>| suites::read_corp(corpid, item, &[suite]);
    let (mut corp, mut warnings) = read_table("agents", corpid, &table, read)
        .map_err(|error| Error { key: error.key.map(renamed), ..error })?;
    for warning in &mut warnings {
        warning.key = warning.key.take().map(renamed);
    }
    (corp.name, corp.origin) = (name, origin);
    Ok((corp, warnings))
}

/// Reads `[agents.NAME]` with a `suite`, which must be one of `suites`: an authorised corp.
pub fn named_corp_from_json(
    name: &str,
    table: &JsonTable,
    origin: Origin,
    suites: &[&str],
) -> Result<(CorpConfig, Vec<Warning>), Error> {
    let read = |item: &ConfigValue<'_>| {
        agents::reject_reserved_name(name, item)?;
        suites::read_corp(name, item, suites)
    };
    let (mut corp, warnings) = read_table("agents", name, table, read)?;
    corp.origin = origin;
    Ok((corp, warnings))
}

fn read_table<T>(
    kind: &'static str,
    name: &str,
    table: &JsonTable,
    read: impl FnOnce(&ConfigValue<'_>) -> Result<T, Error>,
) -> Result<(T, Vec<Warning>), Error> {
    let text = to_toml(kind, name, table)?;
    let source = SourceFile::of_text(SOURCE_NAME, text);
    let parsed = source.parse()?;
    let root = ConfigTable::root((&source, ParsedText::Whole), &parsed, &["agents", "clients"]);
    let items = named_tables::collect_named(&[root], kind);
    let value = match items.values().next() {
        Some(item) => read(item),
        // Its name is wrong, which is recorded.
        None => Err(Error::recorded()),
    };
    // The first mistake comes first: what is recorded was found before the error with which reading ended.
    let mut errors = source.take_errors();
    errors.extend(value.as_ref().err().filter(|error| !error.is_recorded()).cloned());
    match (value, Error::combine(errors, &[])) {
        (Ok(value), None) => Ok((value, source.take_warnings())),
        (_, Some(error)) => Err(error),
        (Err(error), None) => Err(error),
    }
}

fn error(kind: &str, key: &str, message: Text) -> Error {
    Error { key: Some(format!("{kind}.{key}")), ..Error::of_file(SOURCE_NAME, message) }
}

/// The table as TOML, one line for each of its keys.
fn to_toml(kind: &str, name: &str, table: &JsonTable) -> Result<Zeroizing<String>, Error> {
    // A larger text would be moved, and what it leaves behind is not wiped.
    let longest = table.to_bytes().len() * 6 + 256;
    let mut text = Zeroizing::new(String::with_capacity(longest));
    text.push('[');
    text.push_str(kind);
    text.push('.');
    write_string(&mut text, name);
    text.push_str("]\n");
    for (key, value) in &table.0 {
        write_string(&mut text, key);
        text.push_str(" = ");
        write_value(&mut text, value).map_err(|NullValue| {
            error(
                kind,
                &format!("{name}.{key}"),
                text!("must not be null; leave the key out", "不能为 null；请去掉此键"),
            )
        })?;
        text.push('\n');
    }
    Ok(text)
}

/// TOML has no null.
struct NullValue;

fn write_value(text: &mut String, value: &Value) -> Result<(), NullValue> {
    match value {
        Value::Null => return Err(NullValue),
        Value::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => text.push_str(&number.to_string()),
        Value::String(value) => write_string(text, value),
        Value::Array(items) => {
            text.push('[');
            for item in items {
                write_value(text, item)?;
                text.push(',');
            }
            text.push(']');
        }
        Value::Object(map) => {
            text.push('{');
            for (nth, (key, value)) in map.iter().enumerate() {
                if nth > 0 {
                    text.push(',');
                }
                write_string(text, key);
                text.push('=');
                write_value(text, value)?;
            }
            text.push('}');
        }
    }
    Ok(())
}

fn write_string(text: &mut String, value: &str) {
    text.push('"');
    for letter in value.chars() {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            letter if letter.is_ascii_control() => text.push_str(&format!("\\u{:04x}", u32::from(letter))),
            letter => text.push(letter),
        }
    }
    text.push('"');
}

/// The table of an agent as JSON; a secret shows only that it is set.
pub fn agent_to_json(agent: &AgentConfig) -> Map<String, Value> {
    let upstream = agent.upstream.name();
    let mut map = table(json!({ "corpid": agent.corpid, "secret": is_set(), "upstream": upstream }));
    map.extend(settings_to_json(&agent.settings));
    map
}

fn settings_to_json(settings: &AgentSettings) -> Map<String, Value> {
    let AgentSettings { agentid, accept_secret, limit, passthrough, jssdk_origins } = settings;
    table(json!({
        "agentid": agentid,
        "accept_secret": accept_secret.then_some(true),
        "limit": limit.map(|limit| limit.to_string()),
        "plain": non_empty(texts(passthrough)),
        "jssdk_origins": non_empty(texts(jssdk_origins)),
    }))
}

/// The table of an authorised corp as JSON; its permanent code shows only that it is set.
pub fn corp_to_json((suite, corpid): (&str, &str), settings: &AgentSettings) -> Map<String, Value> {
    let mut map = table(json!({ "suite": suite, "corpid": corpid, "permanent_code": is_set() }));
    map.extend(settings_to_json(settings));
    map
}

/// The table of a client as JSON; a key shows only that it is set.
pub fn client_to_json(client: &ClientConfig) -> Map<String, Value> {
    let is_default = client.allow == AllowPattern::everything();
    table(json!({
        "key_sha256": is_set(),
        "agents": client.agents.listed(),
        "key_in": client.key_in_path.then_some("path"),
        "allow": (!is_default).then(|| texts(&client.allow)),
        "limit": client.limit.map(|limit| limit.to_string()),
        "always_200": client.always_200.then_some(true),
    }))
}

/// An object without the keys whose value is null, of which TOML has none.
pub(super) fn table(object: Value) -> Map<String, Value> {
    let Value::Object(mut map) = object else { return Map::new() };
    map.retain(|_, value| !value.is_null());
    map
}

/// What is shown in place of a secret.
pub fn is_set() -> Value {
    json!({ "set": true })
}

pub(super) fn texts<T: ToString>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

/// A list that is left out where it is empty.
pub(super) fn non_empty<T>(items: Vec<T>) -> Option<Vec<T>> {
    Some(items).filter(|items| !items.is_empty())
}

/// A JSON value whose objects have no key twice: two readers could take different ones.
struct UniqueKeys(Value);

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor).map(Self)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(UniqueKeys(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(array.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("{} is a duplicate key; keep one", quote(&key))));
            }
            let UniqueKeys(value) = entries.next_value()?;
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests;
