//! The agents that a client can name.

use super::error::{Error, quote};
use super::reader::ConfigValue;
use super::suggest::did_you_mean;
use crate::{format_text, text, text::Text};

/// The agents that there are.
pub trait AgentNames {
    /// Whether there is an agent of this name.
    fn contains(&self, name: &str) -> bool;

    /// All names, sorted.
    fn names(&self) -> Vec<&str>;

    /// Whether it is the name of a suite or a provider, which may stand beside `"*"`.
    fn is_suite_or_provider(&self, _: &str) -> bool {
        false
    }
}

/// What becomes of a client that names an agent that does not exist.
pub(super) enum UnknownAgents<'a> {
    /// An error; these exist.
    Refuse(&'a dyn AgentNames),
    /// A warning; these exist, and there may be others later.
    Warn(&'a dyn AgentNames),
    /// Nothing: for it, the agent does not exist.
    Accept,
}

impl UnknownAgents<'_> {
    /// Where it is not known what there is, it may be one.
    pub(super) fn is_suite_or_provider(&self, name: &str) -> bool {
        match self {
            Self::Refuse(agents) | Self::Warn(agents) => agents.is_suite_or_provider(name),
            Self::Accept => true,
        }
    }

    pub(super) fn check(&self, item: &ConfigValue<'_>, name: &str) -> Result<(), Error> {
        let agents = match self {
            Self::Refuse(agents) | Self::Warn(agents) if !agents.contains(name) => agents,
            _ => return Ok(()),
        };
        let table = name.split(':').next().unwrap_or(name);
        let is_broken = |kind: &str| item.location.source.is_broken(&format!("{kind}.{table}"));
        if ["agents", "suites", "providers"].into_iter().any(is_broken) {
            return Ok(());
        }
        let names = agents.names();
        let hint = did_you_mean(name, names.iter().copied());
        if matches!(self, Self::Warn(_)) {
            let place = if item.location.source.is_file() {
                text!(" in the files", "（指各文件中）")
            } else {
                Text::default()
            };
            let name = quote(name);
            item.location.warn(format_text!(
                "there is no agent {name}{}; {}for this client, it does not exist until the state has it",
                "没有应用 {name}{}；{}在状态中有它之前，对该调用方来说它不存在",
                place,
                hint
            ));
            return Ok(());
        }
        Err(item.error(format_text!(
            "there is no agent {}; {}there are: {}",
            "没有应用 {}；{}现有：{}",
            quote(name),
            hint,
            name_list(&names)
        )))
    }
}

/// The names of the first agents, as many as fit on a line.
fn name_list(names: &[&str]) -> String {
    const MAX_NAMES: usize = 10;
    let listed = names[..names.len().min(MAX_NAMES)].join(", ");
    format!("{listed}{}", if names.len() > MAX_NAMES { ", …" } else { "" })
}
