//! Corps with a name of their own that stand in the state as agents: they come and go while the program runs, with what
//! the state says of them by the rules for corps of a file.

use std::sync::Arc;

use dashmap::DashMap;
use foldhash::fast::RandomState;

use super::{Agent, Directory, Shared, Suite, secret_lookup::secret_hash};
use crate::{
    config::{CorpConfig, KeyHash, Origin},
    secret::Masked,
    tokens::TokenCache,
};

/// The suite's name and the corpid of each, by its own name.
pub(super) type CorpNames = DashMap<String, (String, String), RandomState>;

/// A corp with a name of its own.
#[derive(Clone)]
pub(super) struct NamedCorp {
    /// The agent with the permanent code that stands with its name.
    pub(super) agent: Arc<Agent>,
    /// The hash of that code.
    pub(super) code: KeyHash,
}

impl NamedCorp {
    pub(super) fn new(agent: Arc<Agent>, code: &Masked) -> Self {
        let code = secret_hash(&agent.corpid, code.expose());
        Self { agent, code }
    }
}

impl Suite {
    /// The corp, if the file or the state has a name for it.
    pub(super) fn named(&self, corpid: &str) -> Option<NamedCorp> {
        let in_file = self.file_corps.get(corpid).cloned();
        in_file.or_else(|| self.state.named.get(corpid).map(|named| named.clone()))
    }

    /// The name of this corp, if it is another one than `name`.
    pub fn other_name(&self, corpid: &str, name: &str) -> Option<String> {
        let named = self.named(corpid).filter(|named| named.agent.name != name);
        named.map(|named| named.agent.name.to_string())
    }

    /// The name under which the state has this corp as an agent.
    pub fn name_in_state(&self, corpid: &str) -> Option<String> {
        let named = self.state.named.get(corpid).filter(|_| !self.is_file_corp(corpid));
        named.map(|named| named.agent.name.to_string())
    }
}

/// Changes of the corps of the state, which are shared by all snapshots.
impl Directory {
    /// Why a corp cannot be in force: what the file has in place of it, or the agent that is the same corp.
    pub(super) fn corp_in_the_way(&self, corp: &CorpConfig) -> Option<String> {
        let of_file = self.agent_by_name(&corp.name).map(|agent| agent.origin.clone());
        let of_file = of_file.filter(Origin::is_file).or_else(|| self.suite_origin(&corp.name));
        if let Some(origin) = of_file {
            return Some(origin.to_string());
        }
        let Some(suite) = self.suite_by_name(&corp.suite) else {
            return Some(format!("there is no suite {:?}", corp.suite));
        };
        suite.other_name(&corp.corpid, &corp.name).map(|other| format!("agents.{other}"))
    }

    /// Puts a corp in force, in place of the one of its name and corpid.
    pub(super) fn put_named_corp(&self, corp: CorpConfig, shared: &Shared<'_>) {
        let Some(suite) = self.suite_by_name(&corp.suite) else { return };
        let (name, corpid, code) = (corp.name.clone(), corp.corpid.clone(), corp.permanent_code.clone());
        let previous = suite.state.named.get(&*corpid).map(|named| named.agent.clone());
        let previous = previous.filter(|previous| previous.origin.generation() == corp.origin.generation());
        let agent = shared.named_corp(&suite, corp, previous.as_ref());
        let named = NamedCorp::new(agent.clone(), &code);
        let replaced = suite.state.named.insert(corpid.as_str().into(), named);
        if let Some(replaced) = replaced.filter(|replaced| !replaced.agent.token.is_same_as(&agent.token)) {
            replaced.agent.token.entries().iter().for_each(|entry| shared.tokens.remove(entry));
        }
        self.suites.names_in_state().insert(name, (suite.name().to_owned(), corpid));
    }

    /// Takes a corp out of force; returns its suite and corpid.
    pub(super) fn remove_named_corp(&self, name: &str, tokens: &TokenCache) -> Option<(String, String)> {
        let (_, (suite_name, corpid)) = self.suites.names_in_state().remove(name)?;
        if let Some(suite) = self.suite_by_name(&suite_name)
            && let Some((_, named)) =
                suite.state.named.remove_if(&*corpid, |_, named| named.agent.name == name)
        {
            let overridden = suite.state.overridden.remove(&*corpid).and_then(|(_, corp)| corp.agent);
            for agent in overridden.iter().chain([&named.agent]) {
                agent.token.entries().iter().for_each(|entry| tokens.discard(entry));
            }
        }
        Some((suite_name, corpid))
    }
}
