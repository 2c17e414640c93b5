//! The removal of what is no longer in the files.

use std::{collections::BTreeMap, sync::Arc};

use super::Update;
use crate::{
    blocking,
    config::{AgentConfig, AgentTexts, ClientConfig},
    directory::{Agent, Client},
    text::SharedStr,
};

impl Update<'_> {
    /// Removes the agents of the files that are no longer there.
    pub(super) fn remove_agents_of_files(
        &mut self,
        agents: &BTreeMap<SharedStr, AgentConfig>,
        texts: &AgentTexts,
    ) {
        let is_of_file =
            |name: &&SharedStr| self.next.agent_by_name(name).is_some_and(|of| of.origin.is_file());
        let known = texts.unchanged_count() + blocking::in_slices(agents.keys()).filter(is_of_file).count();
        if known == self.next.agent_count() {
            return;
        }
        let is_unchanged = texts.unchanged_names();
        let is_gone = |agent: &&Arc<Agent>| {
            agent.origin.is_file() && !agents.contains_key(&*agent.name) && !is_unchanged(&agent.name)
        };
        let gone: Vec<_> = blocking::in_slices(self.next.agents()).filter(is_gone).cloned().collect();
        for agent in blocking::in_slices(gone) {
            self.remove_agent(&agent.name);
        }
    }

    /// Takes over the line of an agent that is unchanged.
    pub(super) fn move_agent(&self, name: &str, line: usize) {
        if let Some(agent) = self.next.agent_by_name(name) {
            agent.origin.move_to(line);
        }
    }

    pub(super) fn remove_clients_of_files(&mut self, clients: &BTreeMap<String, ClientConfig>) {
        let is_gone = |client: &&Arc<Client>| {
            client.config.origin.is_file() && !clients.contains_key(&client.config.name)
        };
        let gone: Vec<_> = blocking::in_slices(self.next.clients()).filter(is_gone).cloned().collect();
        for client in blocking::in_slices(gone) {
            self.next.remove_client(&client.config.name);
        }
    }
}
