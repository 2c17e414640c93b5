//! `[callbacks.*]`: the receiver URLs that WeCom pushes to, and the targets of what it pushes.

mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use target::{CallbackTarget, DeliveryMethod, ReencryptKeys, TargetAddress, TargetForm, TargetUrl};

use super::agent_names::AgentNames;
use super::clients::ClientConfig;
use super::duration;
use super::error::{Error, quote};
use super::file_agents::FileAgents;
use super::named_tables;
use super::reader::{ConfigTable, ConfigValue, read_all};
use super::secret;
use super::state;
use super::suggest::did_you_mean;
use super::suites::{self, SuiteConfig, SuitesConfig};
use crate::secret::Masked;
use crate::{format_text, text};

#[cfg(test)]
pub(super) use target::KEYS as TARGET_KEYS;

pub(super) const KEYS: &[&str] = &["agent", "receive_ids", "token", "aes_key", "answer", "max_age", "to"];

/// Default of `max_age`. WeCom sends a message again within seconds, so only clocks have to agree.
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(600);
/// Bounds `answer`, which stands in each response.
const MAX_ANSWER_BYTES: usize = 1024;

/// The receiver URLs of a suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuiteUrl {
    /// The command URL (指令回调URL), `/callbacks/NAME`.
    Command,
    /// The data URL (数据回调URL), `/callbacks/NAME/data`.
    Data,
}

/// `[callbacks.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallbackConfig {
    /// The table's name.
    pub name: String,
    /// The receiveids of its messages; for the data URL of a suite, the corps' instead.
    pub receive_ids: BTreeSet<String>,
    /// The receiveids with which the URL is verified; `None`: any.
    pub verify_ids: Option<BTreeSet<String>>,
    /// The suite whose URL it is, and which of the two.
    pub suite: Option<(String, SuiteUrl)>,
    /// The token of the signature.
    pub token: Masked,
    /// The EncodingAESKey: 43 characters of base64.
    pub aes_key: Masked,
    /// The body of the response to a message.
    pub answer: String,
    /// Messages whose timestamp is further from the clock are refused; zero accepts any.
    pub max_age: Duration,
    /// The receivers of its messages, in the order of the file; names are unique.
    pub targets: Vec<CallbackTarget>,
}

pub(super) fn read(
    root: &ConfigTable<'_>,
    agents: &FileAgents<'_>,
    clients: &BTreeMap<String, ClientConfig>,
    has_state: bool,
) -> BTreeMap<String, CallbackConfig> {
    let items = named_tables::collect_named(std::slice::from_ref(root), "callbacks");
    named_tables::read_each(&items, |name, item| {
        let section = item
            .table(text!("a table with agent, token and aes_key", "含 agent、token 和 aes_key 的表"), KEYS)?;
        let callback = read_callback(name, item, &section, agents)?;
        warn_of_unknown_clients(&section, &callback, clients);
        if !has_state {
            return Err(state::needs_state(item));
        }
        Ok(callback)
    })
}

fn read_callback(
    name: &str,
    item: &ConfigValue<'_>,
    section: &ConfigTable<'_>,
    agents: &FileAgents<'_>,
) -> Result<CallbackConfig, Error> {
    // All are read before the first error counts.
    let token = section.read_required("token", "token = { env = \"HR_CALLBACK_TOKEN\" }", secret::read);
    let example = "aes_key = { env = \"HR_CALLBACK_AES_KEY\" }";
    let aes_key = section.read_required("aes_key", example, secret::read_aes_key);
    let answer = section.read_or("answer", String::new(), |item| {
        let text = item.string(text!("a text like \"success\"", "\"success\" 这样的文本"))?;
        match text.len() <= MAX_ANSWER_BYTES {
            true => Ok(text.to_owned()),
            false => Err(item.error(format_text!(
                "is too long; at most {MAX_ANSWER_BYTES} bytes",
                "太长；最多 {MAX_ANSWER_BYTES} 字节"
            ))),
        }
    });
    let targets = target::read(section);
    let receive_ids = read_receive_ids(item, section, agents)?;
    Ok(CallbackConfig {
        name: name.to_owned(),
        verify_ids: Some(receive_ids.clone()),
        receive_ids,
        suite: None,
        token: token?,
        aes_key: aes_key?,
        answer,
        max_age: read_max_age(section),
        targets: targets?,
    })
}

fn read_max_age(section: &ConfigTable<'_>) -> Duration {
    section.read_or("max_age", DEFAULT_MAX_AGE, |item| duration::read(item, duration::RANGE_WITH_ZERO))
}

/// The name of the callback for the data URL of a suite; no name in a file has a dot.
pub fn data_callback_name(suite: &str) -> String {
    format!("{suite}.data")
}

/// Adds the command URL and the data URL of each suite.
pub(super) fn add_suites(
    root: &ConfigTable<'_>,
    suites: &SuitesConfig,
    clients: &BTreeMap<String, ClientConfig>,
    callbacks: &mut BTreeMap<String, CallbackConfig>,
) {
    let items = named_tables::collect_named(std::slice::from_ref(root), "suites");
    for (name, suite) in &suites.suites {
        let Some(item) = items.get(name.as_str()) else { continue };
        match read_suite(item, suite, suites, clients, callbacks) {
            Ok(of_suite) => callbacks.extend(of_suite.map(|callback| (callback.name.clone(), callback))),
            Err(error) => item.location.record(error),
        }
    }
}

/// The data URL and the command URL of a suite.
fn read_suite(
    item: &ConfigValue<'_>,
    suite: &SuiteConfig,
    suites: &SuitesConfig,
    clients: &BTreeMap<String, ClientConfig>,
    callbacks: &BTreeMap<String, CallbackConfig>,
) -> Result<[CallbackConfig; 2], Error> {
    let name = suite.name.as_str();
    if callbacks.contains_key(name) {
        return Err(item.error(text!(
            "is the name of a callback too; suites and callbacks share one set of names",
            "与一个回调同名；套件和回调不能重名"
        )));
    }
    let section = item.table(text!("a table", "表"), suites::SUITE_KEYS)?;
    let provider = suite.provider.as_ref().and_then(|provider| suites.providers.get(provider));
    let command = CallbackConfig {
        name: name.to_owned(),
        receive_ids: BTreeSet::from([suite.suite_id.clone()]),
        verify_ids: provider.map(|provider| BTreeSet::from([provider.corpid.clone()])),
        suite: Some((name.to_owned(), SuiteUrl::Command)),
        token: suite.token.clone(),
        aes_key: suite.aes_key.clone(),
        // Anything else counts as an error text.
        answer: "success".to_owned(),
        max_age: read_max_age(&section),
        targets: target::read(&section)?,
    };
    warn_of_unknown_clients(&section, &command, clients);
    let data = CallbackConfig {
        name: data_callback_name(name),
        receive_ids: BTreeSet::new(),
        suite: Some((name.to_owned(), SuiteUrl::Data)),
        answer: String::new(),
        ..command.clone()
    };
    Ok([data, command])
}

/// The corpid of `agent`, or `receive_ids`.
fn read_receive_ids(
    item: &ConfigValue<'_>,
    section: &ConfigTable<'_>,
    agents: &FileAgents<'_>,
) -> Result<BTreeSet<String>, Error> {
    match (section.find("agent"), section.find("receive_ids")) {
        (Some(agent), None) => {
            let name = agent.string(text!("an agent's name", "应用名"))?;
            if section.is_broken(&format!("agents.{name}")) {
                return Err(Error::recorded());
            }
            let corpid = agents.corpid(name).ok_or_else(|| {
                let hint = did_you_mean(name, agents.names());
                agent.error(format_text!("there is no agent {}; {}write receive_ids with its corpid if it is not in this file", "没有应用 {}；{}若它不在此文件中，请用 receive_ids 写它的 corpid", quote(name), hint))
            })?;
            Ok(BTreeSet::from([corpid]))
        }
        (None, Some(ids)) => {
            let ids = ids.list(text!("a list of corpids or suite_ids like [\"ww1234567890abcdef\"]", "corpid 或 suite_id 的列表，如 [\"ww1234567890abcdef\"]"))?;
            let ids = read_all(&ids, |id| Ok(id.string(text!("a corpid or suite_id, or \"\"", "corpid 或 suite_id，或 \"\""))?.to_owned()))?;
            let ids: BTreeSet<_> = ids.into_iter().collect();
            match ids.is_empty() {
                true => Err(section
                    .location_of("receive_ids")
                    .error(text!("is empty; name the corpid or suite_id of its messages, or \"\" for an AI bot", "为空；请写消息的 corpid 或 suite_id，智能机器人写 \"\""))),
                false => Ok(ids),
            }
        }
        (Some(_), Some(ids)) => Err(ids.error(text!("conflicts with agent; keep one of the two", "与 agent 冲突；两者只保留一个"))),
        (None, None) => Err(item.error(
            text!("names no receiveid; write agent = \"NAME\", or receive_ids = [\"ww…\"] with the corpid or suite_id", "没有 receiveid；请写 agent = \"NAME\"，或 receive_ids = [\"ww…\"]，值为 corpid 或 suite_id"),
        )),
    }
}

/// Warns of clients of pull targets that no file has: they may be in the state.
fn warn_of_unknown_clients(
    section: &ConfigTable<'_>,
    callback: &CallbackConfig,
    clients: &BTreeMap<String, ClientConfig>,
) {
    for target in &callback.targets {
        let DeliveryMethod::Pull { clients: named } = &target.method else { continue };
        for name in named.iter().filter(|name| !clients.contains_key(*name)) {
            let hint = did_you_mean(name, clients.keys().map(String::as_str));
            section.location_of("to").warn(format_text!("target {} names the client {}, which is not in this file; {}it cannot read events until it exists", "目标 {} 指定的调用方 {} 不在此文件中；{}在它存在之前无法读取事件", quote(&target.name), quote(name), hint));
        }
    }
}
