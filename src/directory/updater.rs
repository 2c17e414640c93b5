//! The one place where the directory in use is replaced, by a reload of the files and by changes of the state.

mod removal;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::{Agent, Client, Directory, Shared};
use crate::{
    blocking,
    config::{self, AgentConfig, ClientConfig, CorpConfig},
    limits::RateLimiterFactory,
    state::StateDelivery,
    tokens::TokenCache,
};

/// Changes that are made between two yields of the CPU, with some ten microseconds each.
const MAX_CHANGES: usize = 4;

/// Replaces the directory that requests use.
pub struct DirectoryUpdater {
    directory: Arc<ArcSwap<Directory>>,
    tokens: Arc<TokenCache>,
    limits: RateLimiterFactory,
    /// Locked during an update, which has the ordinary priority for that.
    shadowed: Mutex<Shadowed>,
    /// How often what is counted of removed agents is to be dropped.
    prunes_due: AtomicU8,
}

/// What stands in the state and is not in force, because a file has an entry of that name or key.
#[derive(Default)]
struct Shadowed {
    agents: BTreeMap<String, AgentConfig>,
    corps: BTreeMap<String, CorpConfig>,
    /// The corps with a name of their own that are in force.
    corps_in_force: BTreeMap<String, CorpConfig>,
    clients: BTreeMap<String, ClientConfig>,
    /// The clients whose records are not valid here, as those of a newer version may be: they keep the proxy closed.
    invalid_clients: BTreeSet<String>,
}

/// A change of the state.
#[derive(Debug)]
pub enum DirectoryChange {
    /// An agent was added or changed.
    PutAgent(AgentConfig),
    /// An authorised corp was added or changed under a name of its own.
    PutCorp(CorpConfig),
    /// The agent of this name was deleted.
    DeleteAgent(String),
    /// A client was added or changed.
    PutClient(ClientConfig),
    /// The client of this name was deleted.
    DeleteClient(String),
    /// The record of the client of this name is not valid.
    RejectClient(String),
}

impl DirectoryUpdater {
    /// For the directory that requests use, which has the entries of the files.
    pub fn new(
        directory: Arc<ArcSwap<Directory>>,
        tokens: Arc<TokenCache>,
        limits: RateLimiterFactory,
    ) -> Self {
        Self { directory, tokens, limits, shadowed: Mutex::default(), prunes_due: AtomicU8::default() }
    }

    /// The directory that requests use.
    pub fn load(&self) -> Arc<Directory> {
        self.directory.load_full()
    }

    /// Whether what is counted of removed agents is to be dropped now. Most changes remove none, and looking for them costs a
    /// lookup for each agent.
    pub fn take_prune(&self) -> bool {
        let due = self.prunes_due.fetch_update(Relaxed, Relaxed, |due| due.checked_sub(1));
        due.is_ok() || self.load().has_suites()
    }

    /// Whether the state has a client, which a reload does not remove.
    pub fn has_clients_of_state(&self) -> bool {
        // One that has the name or key of a client of a file comes in force when that one goes.
        let shadowed = self.shadowed.lock();
        !shadowed.clients.is_empty()
            || !shadowed.invalid_clients.is_empty()
            || self.load().clients().any(|client| !client.config.origin.is_file())
    }

    /// Keeps the proxy closed until `server.open` is set, whatever the state has.
    pub fn forbid_open(&self) {
        let mut update = self.begin();
        (update.next.may_open, update.next.is_open) = (false, false);
        update.commit();
    }

    /// Applies changes of the state, in their order. Requests that begin afterwards see all of them. `is_complete`: see
    /// [`Directory::is_complete`].
    fn apply(
        &self,
        changes: impl IntoIterator<Item = DirectoryChange>,
        is_complete: bool,
    ) -> Vec<(String, String)> {
        let mut update = self.begin();
        update.next.is_complete = is_complete;
        for change in blocking::in_slices_of(MAX_CHANGES, changes) {
            match change {
                DirectoryChange::PutAgent(agent) => {
                    update.delete_corp_of_state(&agent.name);
                    update.put_agent_of_state(agent, true);
                }
                DirectoryChange::PutCorp(corp) => {
                    update.delete_agent_of_state(&corp.name);
                    update.put_corp_of_state(corp, true);
                }
                DirectoryChange::DeleteAgent(name) => {
                    update.delete_agent_of_state(&name);
                    update.delete_corp_of_state(&name);
                }
                DirectoryChange::PutClient(client) => update.put_client_of_state(client, true),
                DirectoryChange::DeleteClient(name) => update.delete_client_of_state(&name),
                DirectoryChange::RejectClient(name) => {
                    update.delete_client_of_state(&name);
                    update.shadowed.invalid_clients.insert(name);
                }
            }
        }
        update.commit().1
    }

    /// Applies records of the state. Requests that begin afterwards see all of them. Returns suite and corpid of the corps
    /// that got or lost a name of their own.
    pub fn apply_records(
        &self,
        StateDelivery { records, is_complete }: StateDelivery<'_>,
    ) -> Vec<(String, String)> {
        let directory = self.directory.load();
        let change = |record| DirectoryChange::from_record(record, directory.upstreams());
        let changes: Vec<_> = records.iter().filter_map(change).collect();
        if !changes.is_empty() || directory.is_complete() != is_complete {
            let was_complete = directory.is_complete();
            drop(directory);
            let corps = self.apply(changes, is_complete);
            if is_complete && !was_complete {
                self.log_completion();
            }
            return corps;
        }
        Vec::new()
    }

    fn log_completion(&self) {
        let directory = self.directory.load();
        let (agents, clients) = (directory.agent_count(), directory.client_count());
        tracing::debug!(agents, clients, "all agents and clients of the state are known");
        if !directory.has_clients() && !directory.is_open() {
            tracing::error!(
                "there is no client, and this proxy may not be open: make a client by the API, or set server.open = true"
            );
        }
    }

    /// Replaces the entries of the files by those of `config`, which are taken out of it. Returns the directory before.
    pub fn replace_files(&self, config: &mut config::Config) -> Arc<Directory> {
        let mut update = self.begin();
        update.next.allow_open = config.server.open;
        let (agents, clients) = (mem::take(&mut config.agents), mem::take(&mut config.clients));
        let texts = &config.agent_texts;
        update.remove_agents_of_files(&agents, texts);
        update.remove_clients_of_files(&clients);
        blocking::in_slices(texts.moved()).for_each(|(name, line)| update.move_agent(name, line));
        for agent in blocking::in_slices_of(MAX_CHANGES, agents.into_values()) {
            update.put_agent_of_file(agent);
        }
        for client in blocking::in_slices_of(MAX_CHANGES, clients.into_values()) {
            update.put_client_of_file(client);
        }
        update.next.replace_suites(mem::take(&mut config.suites), &update.shared);
        update.shadow_agents_named_as_suites();
        update.put_corps_of_state_again();
        update.commit().0
    }

    fn begin(&self) -> Update<'_> {
        let shadowed = self.shadowed.lock();
        let next = Directory::clone(&self.directory.load());
        let shared = Shared { tokens: &self.tokens, limits: &self.limits, pass_key: next.pass_key.clone() };
        let (directory, prunes_due) = (&self.directory, &self.prunes_due);
        Update { next, shadowed, shared, directory, prunes_due, replaced: Vec::new(), corps: Vec::new() }
    }
}

/// An update in progress.
struct Update<'a> {
    next: Directory,
    shadowed: parking_lot::MutexGuard<'a, Shadowed>,
    shared: Shared<'a>,
    directory: &'a ArcSwap<Directory>,
    prunes_due: &'a AtomicU8,
    /// Agents that are no longer there, or not as they were: another one may have their tokens in the end.
    replaced: Vec<Arc<Agent>>,
    /// Suite and corpid of the corps that got or lost a name of their own.
    corps: Vec<(String, String)>,
}

impl Update<'_> {
    /// Returns the directory before, and the corps that got or lost a name of their own.
    fn commit(mut self) -> (Arc<Directory>, Vec<(String, String)>) {
        self.restore_shadowed();
        // A proxy that was closed stays so when its last client goes, unless the file allows it to be open.
        let has_clients = self.next.has_clients() || !self.shadowed.invalid_clients.is_empty();
        self.next.may_open = (self.next.may_open || self.next.is_open) && !has_clients;
        self.next.is_open = self.next.allow_open || self.next.may_open && self.next.is_complete;
        for agent in blocking::in_slices_of(MAX_CHANGES, &self.replaced) {
            self.next.release_token(agent, self.shared.tokens);
        }
        (self.directory.swap(Arc::new(self.next)), self.corps)
    }

    fn put_agent(&mut self, agent: AgentConfig) {
        let replaced = self.next.put_agent(agent, &self.shared);
        self.replaced.extend(replaced);
    }

    fn remove_agent(&mut self, name: &str) {
        self.replaced.extend(self.next.remove_agent(name));
        // What was under way may be counted afterwards, so once more.
        self.prunes_due.store(2, Relaxed);
    }

    fn put_client(&mut self, client: ClientConfig) {
        self.next.put_client(client, &self.shared);
    }

    fn put_agent_of_state(&mut self, agent: AgentConfig, is_new: bool) {
        let of_file = self.next.agent_by_name(&agent.name).map(|other| other.origin.clone());
        let of_file = of_file.filter(config::Origin::is_file).or_else(|| self.next.suite_origin(&agent.name));
        match of_file {
            Some(origin) => {
                if is_new {
                    warn_of_shadowed("agent", &agent.name, &origin);
                }
                self.shadowed.agents.insert(agent.name.to_string(), agent);
            }
            None => self.put_agent(agent),
        }
    }

    fn delete_agent_of_state(&mut self, name: &str) {
        let is_shadowed = self.shadowed.agents.remove(name).is_some();
        if !is_shadowed && self.next.agent_by_name(name).is_some_and(|agent| !agent.origin.is_file()) {
            self.remove_agent(name);
        }
    }

    fn put_corp_of_state(&mut self, corp: CorpConfig, is_new: bool) {
        let is_other = |known: &CorpConfig| (&known.suite, &known.corpid) != (&corp.suite, &corp.corpid);
        let in_the_way = self.next.corp_in_the_way(&corp);
        if in_the_way.is_some() || self.shadowed.corps_in_force.get(&corp.name).is_some_and(is_other) {
            self.delete_corp_of_state(&corp.name);
        }
        self.shadowed.corps.remove(&corp.name);
        match in_the_way {
            Some(by) => {
                if is_new {
                    let name = &corp.name;
                    tracing::warn!(name, by, "agent of the state is not in force; delete one of them");
                }
                self.shadowed.corps.insert(corp.name.clone(), corp);
            }
            None => {
                self.corps.push((corp.suite.clone(), corp.corpid.clone()));
                self.shadowed.corps_in_force.insert(corp.name.clone(), corp.clone());
                self.next.put_named_corp(corp, &self.shared);
            }
        }
    }

    fn delete_corp_of_state(&mut self, name: &str) {
        self.shadowed.corps.remove(name);
        self.shadowed.corps_in_force.remove(name);
        self.corps.extend(self.next.remove_named_corp(name, self.shared.tokens));
    }

    /// Puts them in force with the suites of the files as they are now.
    fn put_corps_of_state_again(&mut self) {
        let corps: Vec<_> = self.shadowed.corps_in_force.values().cloned().collect();
        for corp in corps {
            self.put_corp_of_state(corp, true);
        }
    }

    fn put_client_of_state(&mut self, client: ClientConfig, is_new: bool) {
        self.shadowed.clients.remove(&client.name);
        self.shadowed.invalid_clients.remove(&client.name);
        match self.client_in_the_way(&client) {
            Some(other) => {
                if is_new {
                    warn_of_shadowed("client", &client.name, &other.config.origin);
                }
                self.remove_client_of_state(&client.name);
                self.shadowed.clients.insert(client.name.clone(), client);
            }
            None => self.put_client(client),
        }
    }

    /// The client because of which this one of the state cannot be in force: one of a file with the same name, or
    /// another one with the same key.
    fn client_in_the_way(&self, client: &ClientConfig) -> Option<Arc<Client>> {
        let same_name = self.next.client_by_name(&client.name).filter(|other| other.config.origin.is_file());
        let mut same_key = client.keys.iter().filter_map(|key| self.next.client_by_key_hash(&key.hash));
        same_name.or_else(|| same_key.find(|other| other.config.name != client.name)).cloned()
    }

    fn delete_client_of_state(&mut self, name: &str) {
        self.shadowed.invalid_clients.remove(name);
        if self.shadowed.clients.remove(name).is_none() {
            self.remove_client_of_state(name);
        }
    }

    fn remove_client_of_state(&mut self, name: &str) {
        if self.next.client_by_name(name).is_some_and(|client| !client.config.origin.is_file()) {
            self.next.remove_client(name);
        }
    }

    fn put_agent_of_file(&mut self, agent: AgentConfig) {
        let other = self.next.agent_by_name(&agent.name).filter(|other| !other.origin.is_file());
        if let Some(other) = other.map(|other| other.config()) {
            warn_of_shadowed("agent", &agent.name, &agent.origin);
            self.shadowed.agents.insert(agent.name.to_string(), other);
        }
        self.put_agent(agent);
    }

    /// Takes agents of the state out of force whose names suites, providers or corps of the files have now.
    fn shadow_agents_named_as_suites(&mut self) {
        if !self.next.has_suites() {
            return;
        }
        let of_state = self.next.agents().filter(|agent| !agent.origin.is_file());
        let shadowed =
            of_state.filter_map(|agent| Some((agent.clone(), self.next.suite_origin(&agent.name)?)));
        for (agent, origin) in shadowed.collect::<Vec<_>>() {
            warn_of_shadowed("agent", &agent.name, &origin);
            self.remove_agent(&agent.name);
            self.shadowed.agents.insert(agent.name.to_string(), agent.config());
        }
    }

    fn put_client_of_file(&mut self, client: ClientConfig) {
        let same_name = self.next.client_by_name(&client.name);
        let same_key = client.keys.iter().filter_map(|key| self.next.client_by_key_hash(&key.hash));
        let others = same_name.into_iter().chain(same_key);
        let of_state = others.filter(|other| !other.config.origin.is_file());
        for other in of_state.cloned().collect::<Vec<_>>() {
            warn_of_shadowed("client", &other.config.name, &client.origin);
            self.next.remove_client(&other.config.name);
            self.shadowed.clients.insert(other.config.name.clone(), other.config.clone());
        }
        self.put_client(client);
    }

    /// Puts in force what stands in the state and has no other entry in its way any more.
    fn restore_shadowed(&mut self) {
        for agent in blocking::in_slices_of(MAX_CHANGES, mem::take(&mut self.shadowed.agents).into_values()) {
            self.put_agent_of_state(agent, false);
        }
        for corp in mem::take(&mut self.shadowed.corps).into_values() {
            self.put_corp_of_state(corp, false);
        }
        for client in blocking::in_slices_of(MAX_CHANGES, mem::take(&mut self.shadowed.clients).into_values())
        {
            self.put_client_of_state(client, false);
        }
    }
}

fn warn_of_shadowed(kind: &str, name: &str, by: &config::Origin) {
    tracing::warn!(
        name,
        by = %by,
        "{kind} of the state is not in force, since another one has its name or key; delete one of them"
    );
}

#[cfg(test)]
mod tests;
