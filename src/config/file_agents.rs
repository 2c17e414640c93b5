//! The agents of the files while they are read.

use std::collections::{BTreeMap, HashMap, HashSet};

use foldhash::fast::RandomState;
use toml::de::DeTable;

use super::agent_names::AgentNames;
use super::agent_texts::{AgentTexts, KnownTexts, short_hash};
use super::agents::{self, AgentConfig};
use super::cut_text::{AgentPart, CutText};
use super::key_hash::KeyHash;
use super::named_tables;
use super::reader::{ConfigTable, ConfigValue, Location, ParsedText};
use super::secret;
use super::source_file::SourceFile;
use super::upstream::UpstreamConfig;
use crate::text::{SharedStr, Text};
use crate::{blocking, format_text, text};

const NO_AGENT_MESSAGE: Text = text!(
    "no agent is configured; add one like this:

[agents.hr]
corpid = \"ww1234567890abcdef\"
secret = { env = \"WECOM_HR_SECRET\" }",
    "没有配置任何应用；请这样添加：\n\n[agents.hr]\ncorpid = \"ww1234567890abcdef\"\nsecret = { env = \"WECOM_HR_SECRET\" }"
);

/// `[agents.*]` without a suite.
pub(super) struct FileAgents<'a> {
    /// Those that were read.
    pub(super) read: BTreeMap<SharedStr, AgentConfig>,
    /// All names; with the part of the file where the text is the same as at the load before, and was not read again.
    names: HashMap<&'a str, Option<&'a AgentPart<'a>>, RandomState>,
    secrets: Vec<AgentSecret<'a>>,
    /// For the next load.
    pub(super) texts: AgentTexts,
}

/// A secret of an agent, as hashes, and where the agent is.
#[derive(Clone, Copy)]
struct AgentSecret<'a> {
    /// Of all that the token is fetched with.
    credentials: u64,
    /// See [`short_hash`].
    secret: u64,
    name: &'a str,
    source: &'a SourceFile<'a>,
    line: usize,
}

impl<'a> FileAgents<'a> {
    pub(super) fn new(known: &AgentTexts) -> Self {
        Self {
            read: BTreeMap::new(),
            names: HashMap::default(),
            secrets: Vec::new(),
            texts: known.successor(),
        }
    }

    /// Whether there is an agent, valid or not.
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The names of agents by the short hashes of their secrets; of several with one secret, the first by name.
    pub(super) fn names_by_secret(&self) -> HashMap<u64, &'a str> {
        let mut names = HashMap::with_capacity(self.secrets.len());
        for of in blocking::in_slices(&self.secrets) {
            names
                .entry(of.secret)
                .and_modify(|name: &mut &str| *name = of.name.min(*name))
                .or_insert(of.name);
        }
        names
    }

    /// The corpid of an agent.
    pub(super) fn corpid(&self, name: &str) -> Option<String> {
        if let Some(agent) = self.read.get(name) {
            return Some(agent.corpid.to_string());
        }
        let unchanged = (*self.names.get(name)?)?;
        let table = DeTable::parse(unchanged.part.text).ok()?;
        let agent = table.get_ref().get("agents")?.get_ref().get(name)?.get_ref();
        agent.get("corpid")?.get_ref().as_str().map(str::to_owned)
    }

    /// Takes note of the name of a corp of a suite.
    pub(super) fn insert_corp(&mut self, name: &'a str) {
        self.names.insert(name, None);
    }

    /// Reads an agent of a file. `None`: the file cannot be read table by table.
    pub(super) fn read_item(
        &mut self,
        name: &'a str,
        item: &ConfigValue<'a>,
        upstreams: &BTreeMap<String, UpstreamConfig>,
    ) -> Option<()> {
        if self.names.insert(name, None).is_some() {
            return None;
        }
        match agents::read_agent(name, item, upstreams) {
            Ok(agent) => self.insert(agent, name, (item.location.source, item.location.line)),
            Err(error) => item.location.record(error),
        }
        Some(())
    }

    /// Reads the agents of a file one by one, but for those that are known. `None`: the file cannot be read so.
    pub(super) fn read_parts(
        &mut self,
        source: &'a SourceFile<'a>,
        cut: &'a CutText<'a>,
        known: &mut KnownTexts<'_>,
        upstreams: &BTreeMap<String, UpstreamConfig>,
    ) -> Option<()> {
        self.names.reserve(cut.agents.len());
        self.secrets.reserve(cut.agents.len());
        for agent in blocking::in_slices(&cut.agents) {
            let AgentPart { name, part } = *agent;
            let hash = self.texts.text_hash(source.path(), part.text);
            let known = known.find(hash);
            if self.names.insert(name, known.map(|_| agent)).is_some() {
                return None;
            }
            let Some(known) = known else {
                self.read_part(source, agent, hash, upstreams)?;
                continue;
            };
            self.texts.insert_unchanged(*known, name, part.line);
            let (credentials, secret, line) = (known.credentials, known.secret, part.line);
            self.secrets.push(AgentSecret { credentials, secret, name, source, line });
            if known.plain_secret_line > 0 {
                let line = part.line + usize::from(known.plain_secret_line);
                secret::warn_of_plain_text(source, line, format!("agents.{name}.secret"));
            }
        }
        Some(())
    }

    fn read_part(
        &mut self,
        source: &'a SourceFile<'a>,
        AgentPart { name, part }: &AgentPart<'a>,
        hash: u64,
        upstreams: &BTreeMap<String, UpstreamConfig>,
    ) -> Option<()> {
        let table = DeTable::parse(part.text).ok()?.into_inner();
        let root = ConfigTable::root((source, ParsedText::Table(*part)), &table, &["agents"]);
        let entries = root.entries("agents");
        let ([(found, item)], 1) = (&entries[..], table.len()) else { return None };
        if found != name {
            return None;
        }
        let warnings = source.warning_count();
        match agents::read_agent(name, item, upstreams) {
            Ok(agent) => {
                let plain_secret = source.expected_warning_after(warnings, &secret::PLAIN_TEXT);
                if let Some(lines) = plain_secret.and_then(|line| lines_below(part.line, line))
                    && agent.is_of_text_alone()
                {
                    self.texts.insert(hash, part.line, &agent, lines);
                }
                self.insert(agent, name, (source, item.location.line));
            }
            Err(error) => item.location.record(error),
        }
        Some(())
    }

    fn insert(
        &mut self,
        agent: AgentConfig,
        name: &'a str,
        (source, line): (&'a SourceFile<'a>, Option<usize>),
    ) {
        let line = line.unwrap_or_default();
        for secret in &agent.secrets {
            let secret = secret.value.expose();
            let credentials = self.texts.credentials_hash(&agent, secret);
            let secret = short_hash(&KeyHash::of(secret));
            self.secrets.push(AgentSecret { credentials, secret, name, source, line });
        }
        self.read.insert(agent.name.clone(), agent);
    }

    /// Warns of agents with the same corpid and secret at one upstream, which share one token: it may be a mistake.
    /// One warning covers all such agents, because there may be very many.
    pub(super) fn warn_of_shared_credentials(&mut self) {
        let mut seen: HashSet<u64, RandomState> = HashSet::default();
        seen.reserve(self.secrets.len());
        if blocking::in_slices(&self.secrets).all(|of| seen.insert(of.credentials)) {
            return;
        }
        self.secrets.sort_by_key(|of| of.name);
        let mut first: HashMap<u64, &str> = HashMap::new();
        let mut duplicates: Vec<(AgentSecret<'_>, &str)> = Vec::new();
        for of in &self.secrets {
            let original = *first.entry(of.credentials).or_insert(of.name);
            if original != of.name && duplicates.last().is_none_or(|(last, _)| last.name != of.name) {
                duplicates.push((*of, original));
            }
        }
        let Some((AgentSecret { name, source, line, .. }, original)) = duplicates.first() else { return };
        let others = match duplicates.len() - 1 {
            0 => Text::default(),
            count => format_text!(" (as have {count} more agents)", "（另有 {count} 个应用也是如此）"),
        };
        let key = format!("agents.{name}");
        let location = Location { source, text: ParsedText::Whole, line: Some(*line), key };
        location.warn(format_text!("has the corpid and secret of agents.{original}{}; they share one token and its budget of refreshes; make them one agent if nothing else differs", "的 corpid 和 secret 与 agents.{original} 相同{}；它们共用一个 token 和续期额度；若没有其他区别，请合并为一个应用", others));
    }
}

/// Reads what stands in the roots, and then the parts of files that were cut. `has_state`: there is a state, which may have
/// agents. `None`: the files cannot be read table by table.
pub(super) fn read<'a>(
    roots: &[ConfigTable<'a>],
    parts: &[(&'a SourceFile<'a>, &'a CutText<'a>)],
    known: &AgentTexts,
    upstreams: &BTreeMap<String, UpstreamConfig>,
    has_state: bool,
) -> Option<FileAgents<'a>> {
    let items = named_tables::collect_named(roots, "agents");
    let may_serve_without =
        !items.is_empty() || roots.iter().any(|root| has_suites(root) || root.is_broken("agents"));
    let mut found = FileAgents::new(known);
    for (name, item) in &items {
        match agents::is_corp(item) {
            true => found.insert_corp(name),
            false => found.read_item(name, item, upstreams)?,
        }
    }
    let mut known = KnownTexts::new(known);
    for (source, cut) in parts {
        found.read_parts(source, cut, &mut known, upstreams)?;
    }
    found.warn_of_shared_credentials();
    if let Some(root) = roots.first().filter(|_| found.is_empty() && !may_serve_without && !has_state) {
        let location = root.location_of("agents");
        location.record(location.error(NO_AGENT_MESSAGE));
    }
    Some(found)
}

/// Whether a file has suites or providers, which serve without agents.
fn has_suites(root: &ConfigTable<'_>) -> bool {
    ["suites", "providers"].iter().any(|key| root.has(key))
}

/// How many lines below a header a plain secret is; 0 for none.
fn lines_below(header: usize, plain_secret: Option<usize>) -> Option<u16> {
    plain_secret
        .map_or(Some(0), |line| u16::try_from(line.checked_sub(header)?).ok().filter(|lines| *lines > 0))
}

impl AgentNames for FileAgents<'_> {
    fn contains(&self, name: &str) -> bool {
        self.read.contains_key(name) || self.names.get(name).is_some_and(Option::is_some)
    }

    fn names(&self) -> Vec<&str> {
        let unchanged = self.names.iter().filter(|(_, part)| part.is_some()).map(|(name, _)| *name);
        let mut names: Vec<_> = self.read.keys().map(SharedStr::as_str).chain(unchanged).collect();
        names.sort_unstable();
        names
    }
}
