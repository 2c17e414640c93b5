//! Which agents `/api/agents` lists, and in which order.

use std::{cmp::Reverse, fmt::Write, sync::Arc};

use http::Response;
use serde_json::{Value, json};

use super::{
    overview::hour_of,
    query::{parameters, parse_limit},
    response::{AdminBody, with_content_type},
    trouble::Troubles,
};
use crate::{
    blocking,
    directory::{Agent, Directory, Suite},
    telemetry::metrics::HourStats,
};

/// The longest page.
const MAX_LIMIT: usize = 1000;
/// Rows that are made between two yields of the CPU, with some ten microseconds each.
const MAX_ROWS: usize = 4;
/// Between the rank and the name in `next`; a name does not contain it.
const CURSOR_DELIMITER: char = '~';

/// The order of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AgentOrder {
    /// By name.
    Name,
    /// Those in trouble first, by failed requests; then those whose token fails or is held back; then by name.
    Trouble,
    /// By requests of the last hour, the most first.
    Requests,
    /// By failed requests of the last hour, the most first.
    Failed,
}

/// Which agents to list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListQuery {
    /// Lists those after this one: its name, in another order with its rank.
    after: String,
    limit: usize,
    /// Lists those with this text in their name, corpid or agentid; in lower case.
    text: String,
    /// Lists only those that fail, are held back or are in trouble.
    failing: bool,
    /// Lists only those in trouble.
    trouble: bool,
    order: AgentOrder,
}

/// A page of the list.
#[derive(Default)]
pub(super) struct AgentPage {
    pub(super) agents: Vec<Arc<Agent>>,
    /// The `after` of the next page.
    pub(super) next: Option<String>,
    /// All that match, on any page.
    pub(super) total: usize,
}

impl AgentPage {
    /// The page as `name`, row by row: a list of all rows as values would be freed at once.
    pub(super) fn response(&self, name: &str, row: impl Fn(&Arc<Agent>) -> Value) -> Response<AdminBody> {
        let mut body = format!("{{\"{name}\":[");
        for (nth, agent) in blocking::in_slices_of(MAX_ROWS, &self.agents).enumerate() {
            let separator = if nth > 0 { "," } else { "" };
            // Writing to a String cannot fail.
            let _ = write!(body, "{separator}{}", row(agent));
        }
        let (next, total) = (json!(self.next), self.total);
        let _ = writeln!(body, "],\"next\":{next},\"total\":{total}}}");
        with_content_type("application/json", AdminBody::Full(body.into()))
    }
}

impl ListQuery {
    pub(super) fn parse(query: Option<&str>) -> Result<Self, String> {
        let mut parsed = Self {
            after: String::new(),
            limit: 100,
            text: String::new(),
            failing: false,
            trouble: false,
            order: AgentOrder::Name,
        };
        for (name, value) in parameters(query) {
            match name {
                "after" => parsed.after = value,
                "q" => parsed.text = value.to_lowercase(),
                "failing" => parsed.failing = value.is_empty() || parse_switch(name, &value)?,
                "trouble" => parsed.trouble = value.is_empty() || parse_switch(name, &value)?,
                "sort" => parsed.order = parse_order(&value)?,
                "limit" => parsed.limit = parse_limit(&value, MAX_LIMIT)?,
                _ => {
                    return Err("unknown parameter; use after, limit, q, sort, trouble or failing".to_owned());
                }
            }
        }
        Ok(parsed)
    }

    /// The page that is asked for.
    pub(super) fn page(&self, directory: &Directory, troubles: &Troubles, hour: &HourStats) -> AgentPage {
        if self.order == AgentOrder::Name && !self.trouble {
            return self.page_by_name(directory, troubles);
        }
        let after = self.after.split_once(CURSOR_DELIMITER);
        let after = after.and_then(|(rank, name)| Some((Reverse(rank.parse::<u64>().ok()?), name)));
        let mut ranked: Vec<_> = self
            .candidates(directory, troubles)
            .filter(|agent| self.matches(agent, directory, troubles))
            .map(|agent| (Reverse(self.rank(&agent, directory, troubles, hour)), agent))
            .collect();
        let total = ranked.len();
        ranked.retain(|(rank, agent)| after.is_none_or(|after| (*rank, agent.name.as_str()) > after));
        ranked.sort_by(|(one, first), (other, second)| (one, &first.name).cmp(&(other, &second.name)));
        let has_more = ranked.len() > self.limit;
        ranked.truncate(self.limit);
        let last = ranked.last().filter(|_| has_more);
        let next = last.map(|(Reverse(rank), agent)| format!("{rank}{CURSOR_DELIMITER}{}", agent.name));
        AgentPage { agents: ranked.into_iter().map(|(_, agent)| agent).collect(), next, total }
    }

    fn page_by_name(&self, directory: &Directory, troubles: &Troubles) -> AgentPage {
        let is_listed = |agent: &Arc<Agent>| self.matches(agent, directory, troubles);
        let is_filtered = self.failing || !self.text.is_empty();
        let agents = match is_filtered {
            true => blocking::in_slices(directory.agents()).filter(|agent| is_listed(agent)).count(),
            false => directory.agent_count(),
        };
        let mut others: Vec<_> = self.others(directory).filter(is_listed).collect();
        let total = agents + others.len();
        let is_after = |agent: &Arc<Agent>| *agent.name > *self.after;
        others.retain(is_after);
        let after = blocking::in_slices(directory.agents_after(&self.after));
        let matching = after.filter(|agent| is_listed(agent));
        others.extend(matching.take(self.limit + 1).cloned());
        self.page_of(others, total)
    }

    /// The first of these agents by name.
    fn page_of(&self, mut agents: Vec<Arc<Agent>>, total: usize) -> AgentPage {
        agents.sort_unstable_by(|left, right| left.name.cmp(&right.name));
        let has_more = agents.len() > self.limit;
        agents.truncate(self.limit);
        let next = agents.last().filter(|_| has_more).map(|last| last.name.to_string());
        AgentPage { agents, next, total }
    }

    /// A page of the corps of a suite, by name.
    pub(super) fn page_of_corps(
        &self,
        suite: &Suite,
        directory: &Directory,
        troubles: &Troubles,
    ) -> AgentPage {
        let mut corps = suite.corps();
        corps.extend(suite.cancelled_corps().cloned());
        corps.retain(|corp| self.matches(corp, directory, troubles));
        let total = corps.len();
        corps.retain(|corp| *corp.name > *self.after);
        self.page_of(corps, total)
    }

    /// The agents to look at.
    fn candidates<'a>(
        &self,
        directory: &'a Directory,
        troubles: &'a Troubles,
    ) -> Box<dyn Iterator<Item = Arc<Agent>> + 'a> {
        match self.trouble {
            true => {
                let found = troubles.iter().filter_map(|trouble| directory.find_agent(&trouble.agent));
                Box::new(blocking::in_slices(found))
            }
            false => Box::new(blocking::in_slices(directory.agents().cloned().chain(self.others(directory)))),
        }
    }

    /// Authorised corps; among those that fail, suites and providers too.
    fn others(&self, directory: &Directory) -> impl Iterator<Item = Arc<Agent>> + use<> {
        let mut others = directory.corps();
        if self.failing {
            others.extend(directory.suites_and_providers().iter().cloned());
        }
        others.into_iter()
    }

    fn rank(&self, agent: &Agent, directory: &Directory, troubles: &Troubles, hour: &HourStats) -> u64 {
        let hour = || hour_of(agent, hour);
        match self.order {
            AgentOrder::Name => 0,
            AgentOrder::Trouble => match troubles.of(&agent.name) {
                Some(trouble) => trouble.failed.saturating_add(2),
                None => u64::from(is_failing(agent, directory)),
            },
            AgentOrder::Requests => hour().map_or(0, |hour| hour.requests),
            AgentOrder::Failed => hour().map_or(0, |hour| hour.failures.total()),
        }
    }

    fn matches(&self, agent: &Agent, directory: &Directory, troubles: &Troubles) -> bool {
        let contains = |text: &str| text.to_lowercase().contains(&self.text);
        let is_found = self.text.is_empty()
            || contains(&agent.name)
            || contains(&agent.corpid)
            || agent.settings.agentid.is_some_and(|agentid| contains(&agentid.to_string()));
        let is_in_trouble = || troubles.of(&agent.name).is_some();
        is_found && (!self.failing || is_in_trouble() || is_failing(agent, directory))
    }
}

fn is_failing(agent: &Agent, directory: &Directory) -> bool {
    let status = agent.token.status();
    status.last_error.is_some() || status.throttled || directory.is_cancelled(agent)
}

fn parse_switch(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(format!("{name}: write 1 or 0")),
    }
}

fn parse_order(value: &str) -> Result<AgentOrder, String> {
    match value {
        "name" => Ok(AgentOrder::Name),
        "trouble" => Ok(AgentOrder::Trouble),
        "requests" => Ok(AgentOrder::Requests),
        "failed" => Ok(AgentOrder::Failed),
        _ => Err("sort: write name, trouble, requests or failed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_query_is_parsed_or_refused() {
        let query = |after: &str, limit, text: &str| ListQuery {
            after: after.to_owned(),
            limit,
            text: text.to_owned(),
            failing: false,
            trouble: false,
            order: AgentOrder::Name,
        };
        for (text, expected) in [
            (None, query("", 100, "")),
            (Some("after=hr&limit=1&q=WW%31+x"), query("hr", 1, "ww1 x")),
            (Some("limit=1000&failing=1&&"), ListQuery { failing: true, ..query("", 1000, "") }),
            (Some("failing"), ListQuery { failing: true, ..query("", 100, "") }),
            (Some("trouble"), ListQuery { trouble: true, ..query("", 100, "") }),
            (Some("trouble=0&sort=trouble"), ListQuery { order: AgentOrder::Trouble, ..query("", 100, "") }),
        ] {
            assert_eq!(ListQuery::parse(text), Ok(expected), "{text:?}");
        }
        for invalid in [
            "limit=0",
            "limit=1001",
            "limit=",
            "limit=-1",
            "limit=x",
            "failing=2",
            "name=hr",
            "=",
            "sort=",
            "sort=age",
            "trouble=2",
        ] {
            assert!(ListQuery::parse(Some(invalid)).is_err(), "{invalid}");
        }
    }
}
