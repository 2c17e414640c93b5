//! What a load has found of agents that it read one by one, so that the next load need not read those whose text is the same.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use foldhash::quality::RandomState;

use super::agents::AgentConfig;
use super::key_hash::KeyHash;
use crate::blocking;

/// The texts of agents, in the order of the files, as hashes: the secrets are in them.
#[derive(Clone, Debug, Default)]
pub struct AgentTexts {
    hasher: RandomState,
    texts: Vec<AgentText>,
    /// The agents whose text is the same at another line: name and line.
    moved: Vec<(String, usize)>,
    /// How many agents were not read again.
    unchanged_count: usize,
}

/// It is no setting.
impl PartialEq for AgentTexts {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for AgentTexts {}

/// What was found of one agent.
#[derive(Clone, Copy, Debug)]
pub(super) struct AgentText {
    /// Hash of the file's path and the text.
    text: u64,
    name: u64,
    /// Hash of what the token is fetched with.
    pub(super) credentials: u64,
    /// See [`short_hash`].
    pub(super) secret: u64,
    line: u32,
    /// How many lines below its header a secret is in plain text, of which is warned; 0: nowhere.
    pub(super) plain_secret_line: u16,
    is_unchanged: bool,
}

/// The agents that the load before has found.
pub(super) struct KnownTexts<'a> {
    known: &'a AgentTexts,
    /// The index that is expected next: as a rule, the order is the same.
    next: usize,
    by_text: OnceCell<HashMap<u64, usize, RandomState>>,
}

impl AgentTexts {
    /// For the next load, which compares with this one.
    pub(super) fn successor(&self) -> Self {
        Self { hasher: self.hasher.clone(), texts: Vec::with_capacity(self.texts.len()), ..Self::default() }
    }

    pub(super) fn text_hash(&self, file: &Path, text: &str) -> u64 {
        self.hasher.hash_one((file.as_os_str().as_bytes(), text))
    }

    pub(super) fn credentials_hash(&self, agent: &AgentConfig, secret: &str) -> u64 {
        self.hasher.hash_one((agent.corpid.as_str(), secret, agent.upstream.index()))
    }

    /// Keeps what was found of an agent at this line.
    pub(super) fn insert(&mut self, text: u64, line: usize, agent: &AgentConfig, plain_secret_line: u16) {
        let [secret] = &agent.secrets[..] else { return };
        let secret = secret.value.expose();
        let (name, credentials) =
            (self.hasher.hash_one(agent.name.as_str()), self.credentials_hash(agent, secret));
        self.texts.push(AgentText {
            text,
            name,
            credentials,
            secret: short_hash(&KeyHash::of(secret)),
            line: u32::try_from(line).unwrap_or(u32::MAX),
            plain_secret_line,
            is_unchanged: false,
        });
    }

    /// Keeps what the load before has found of an agent that is at this line now.
    pub(super) fn insert_unchanged(&mut self, known: AgentText, name: &str, line: usize) {
        let at = u32::try_from(line).unwrap_or(u32::MAX);
        if known.line != at {
            self.moved.push((name.to_owned(), line));
        }
        self.texts.push(AgentText { line: at, is_unchanged: true, ..known });
        self.unchanged_count += 1;
    }

    /// The agents that were not read again and are at another line now: name and line.
    pub fn moved(&self) -> impl Iterator<Item = (&str, usize)> {
        self.moved.iter().map(|(name, line)| (name.as_str(), *line))
    }

    /// Forgets the lines before, once they are taken over.
    pub fn forget_moves(&mut self) {
        self.moved = Vec::new();
    }

    /// How many agents were not read again.
    pub fn unchanged_count(&self) -> usize {
        self.unchanged_count
    }

    /// Whether an agent of this name was not read again.
    pub fn unchanged_names(&self) -> impl Fn(&str) -> bool + use<> {
        let unchanged = blocking::in_slices(&self.texts).filter(|text| text.is_unchanged);
        let (names, hasher): (HashSet<_>, _) =
            (unchanged.map(|text| text.name).collect(), self.hasher.clone());
        move |name| names.contains(&hasher.hash_one(name))
    }
}

impl<'a> KnownTexts<'a> {
    pub(super) fn new(known: &'a AgentTexts) -> Self {
        Self { known, next: 0, by_text: OnceCell::new() }
    }

    /// What is known of a text with this hash.
    pub(super) fn find(&mut self, text: u64) -> Option<&'a AgentText> {
        let texts = &self.known.texts;
        let is_next = texts.get(self.next).is_some_and(|known| known.text == text);
        let found = match is_next {
            true => self.next,
            false => {
                let texts = || blocking::in_slices(texts).enumerate();
                let indexes = || texts().map(|(index, known)| (known.text, index));
                *self.by_text.get_or_init(|| indexes().collect()).get(&text)?
            }
        };
        self.next = found + 1;
        texts.get(found)
    }
}

/// The first bytes of a hash: enough for a warning.
pub(super) fn short_hash(hash: &KeyHash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}
