//! `[agents.*]`: the WeCom applications.

use std::collections::{BTreeMap, HashMap};

use super::error::{Error, quoted};
use super::limit::{self, Limit};
use super::named;
use super::pattern::{self, PathPattern};
use super::secret::{self, asks_to_be_replaced};
use super::section::{Item, Section};
use crate::secret::Masked;

pub(super) const KEYS: &[&str] = &["corpid", "secret", "agentid", "accept_secret", "limit", "plain"];

/// The first path segment names an agent, so this one would hide every path without a name.
const RESERVED: &str = "cgi-bin";

const NONE_AT_ALL: &str = "no agent is configured; add one like this:

[agents.hr]
corpid = \"ww1234567890abcdef\"
secret = { env = \"WECOM_HR_SECRET\" }
";

/// `[agents.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The table's name.
    pub name: String,
    /// Visible ASCII, not empty.
    pub corpid: String,
    /// Visible ASCII, not empty.
    pub secret: Masked,
    /// Its number within the corp.
    pub agentid: Option<u64>,
    /// Whether its real secret serves as a key for this agent.
    pub accept_secret: bool,
    /// Its requests, whoever sends them.
    pub limit: Option<Limit>,
    /// Paths that carry a credential of their own, besides webhook, service and license.
    pub plain: Vec<PathPattern>,
}

pub(super) fn read(roots: &[Section<'_>]) -> Result<BTreeMap<String, Agent>, Error> {
    let items = named::gather(roots, "agents")?;
    let agents = items.iter().map(|(name, item)| Ok(((*name).to_owned(), read_one(name, item)?)));
    let agents: BTreeMap<_, _> = agents.collect::<Result<_, Error>>()?;
    warn_of_twins(&items, &agents);
    match roots.first() {
        Some(root) if agents.is_empty() => Err(root.place("agents").error(NONE_AT_ALL.trim_end())),
        _ => Ok(agents),
    }
}

/// Two agents of one application have one token each, and where a gettoken voids the token before it, each voids the other's.
/// One warning tells of all, of which there may be very many.
fn warn_of_twins(items: &BTreeMap<&str, Item<'_>>, agents: &BTreeMap<String, Agent>) {
    let mut first: HashMap<_, &str> = HashMap::with_capacity(agents.len());
    let mut twins = Vec::new();
    for (name, agent) in agents {
        let twin = *first.entry((&*agent.corpid, agent.secret.expose())).or_insert(name);
        if twin != name {
            twins.push((name, twin));
        }
    }
    let Some((name, twin)) = twins.first() else { return };
    let Some(item) = items.get(name.as_str()) else { return };
    let more = match twins.len() - 1 {
        0 => String::new(),
        more => format!(" (so have {more} more)"),
    };
    item.place.warn(format!(
        "has the corpid and secret of agents.{twin}{more}; make them one agent, or each renewal may void the other's token"
    ));
}

fn read_one(name: &str, item: &Item<'_>) -> Result<Agent, Error> {
    if name == RESERVED {
        return Err(item.error("cannot be an agent's name, since every path of WeCom starts with it"));
    }
    let section = item.section("a table with corpid and secret", KEYS)?;
    Ok(Agent {
        name: name.to_owned(),
        corpid: section.need("corpid", "corpid = \"ww1234567890abcdef\"", read_corpid)?,
        secret: section.need("secret", "secret = { env = \"WECOM_HR_SECRET\" }", secret::read)?,
        agentid: section.maybe("agentid", |item| item.number(0..=u64::MAX))?,
        accept_secret: section.or("accept_secret", false, Item::boolean)?,
        limit: section.maybe("limit", limit::read)?,
        plain: section.or("plain", Vec::new(), pattern::read_paths)?,
    })
}

fn read_corpid(item: &Item<'_>) -> Result<String, Error> {
    let text = item.text("a string like \"ww1234567890abcdef\"")?;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(item.error(format!("{} is no corpid; it is visible ASCII without spaces", quoted(text))));
    }
    // Each begins with these two letters, and so does most of what stands for one.
    let crossed_out = text.len() > 4 && text.trim_start_matches('w').bytes().all(|byte| byte == b'x');
    if crossed_out || asks_to_be_replaced(text) {
        return Err(item.error("is a placeholder; put the real one in its place"));
    }
    Ok(text.to_owned())
}
