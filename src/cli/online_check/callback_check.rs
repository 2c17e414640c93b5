//! Checks callbacks: whether the token is one that WeCom's console takes, each target can be connected to, and the
//! addresses that pushed lately are WeCom's. Sends no message and changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use tokio::task::JoinSet;

use super::problem::Problem;
use crate::{
    callbacks::{caller_of, probe_target},
    config::{CallbackConfig, Config, DeliveryMethod, IpNetwork, SuiteUrl},
    format_text,
    secret::Masked,
    state::{Collection, maintenance},
    text,
    text::Text,
};

/// The longest token that WeCom's console takes.
const MAX_TOKEN_CHARS: usize = 32;
/// Addresses that are named at most.
const MAX_SHOWN_CALLERS: usize = 5;

/// The result for one callback.
#[derive(Debug)]
pub struct CallbackFinding {
    /// The callback's name.
    pub name: String,
    /// Its targets that are pushed to, in the order of the file.
    pub targets: Vec<TargetFinding>,
    /// The addresses that pushed in the last 7 days.
    pub callers: usize,
    /// What is wrong, or should be looked at.
    pub problems: Vec<CallbackProblem>,
}

/// The result for one target.
#[derive(Debug)]
pub struct TargetFinding {
    /// The target's name.
    pub name: String,
    /// Whether it can be connected to.
    pub is_reachable: bool,
}

/// What is wrong with a callback, and what to do. Contains no secret.
#[derive(Debug)]
pub struct CallbackProblem {
    /// A stable identifier for programs.
    pub kind: &'static str,
    /// What is wrong.
    pub message: Text,
    /// Whether it only should be looked at.
    pub is_note: bool,
    /// What to do.
    pub action: Text,
}

impl CallbackFinding {
    /// Whether nothing is wrong.
    pub fn is_ok(&self) -> bool {
        self.problems.iter().all(|problem| problem.is_note)
    }
}

/// The addresses from which WeCom pushes, or why they are not known.
pub(super) type CallbackAddresses = Result<Vec<String>, Option<Problem>>;

/// Checks all callbacks, both URLs of a suite as one.
pub(super) async fn check_callbacks(config: &Config, addresses: CallbackAddresses) -> Vec<CallbackFinding> {
    if config.callbacks.is_empty() {
        return Vec::new();
    }
    let mut callers = read_callers(config).await;
    let mut findings = Vec::new();
    for callback in config.callbacks.values() {
        if matches!(callback.suite, Some((_, SuiteUrl::Data))) {
            continue;
        }
        let mut problems: Vec<_> = token_problem(&callback.token).into_iter().collect();
        let targets = check_targets(callback, &mut problems).await;
        let callers = callers.as_mut().map(|callers| callers.remove(&callback.name).unwrap_or_default());
        let callers = match callers {
            Ok(callers) => {
                problems.extend(caller_problem(&callers, &addresses));
                callers.len()
            }
            Err(error) => {
                problems.push(state_problem(error));
                0
            }
        };
        findings.push(CallbackFinding { name: callback.name.clone(), targets, callers, problems });
    }
    findings
}

/// The addresses that pushed to each callback; the data URL of a suite counts as the suite.
async fn read_callers(config: &Config) -> Result<BTreeMap<String, BTreeSet<IpAddr>>, Text> {
    let mut callers: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    let Some(state) = &config.state else { return Ok(callers) };
    let names = maintenance::names(state, Collection::CallbackStatus).await;
    for name in names.map_err(|error| Text::of(&error))? {
        if let Some((callback, caller)) = caller_of(&name) {
            let callback = callback.strip_suffix(".data").unwrap_or(callback);
            callers.entry(callback.to_owned()).or_default().insert(caller.to_canonical());
        }
    }
    Ok(callers)
}

fn token_problem(token: &Masked) -> Option<CallbackProblem> {
    let token = token.expose();
    let is_valid = token.len() <= MAX_TOKEN_CHARS && token.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (!is_valid).then(|| CallbackProblem {
        kind: "token",
        message: format_text!(
            "token has {} characters; WeCom's console takes at most {MAX_TOKEN_CHARS} letters and digits",
            "token 有 {} 个字符；管理后台最多接受 {MAX_TOKEN_CHARS} 个字母和数字",
            token.chars().count()
        ),
        is_note: true,
        action: text!(
            "compare it with Token on the console's page of the receiver URL",
            "与管理后台“接收消息”页面上的 Token 核对"
        ),
    })
}

async fn check_targets(callback: &CallbackConfig, problems: &mut Vec<CallbackProblem>) -> Vec<TargetFinding> {
    let mut probes = JoinSet::new();
    for (place, target) in callback.targets.iter().enumerate() {
        if let DeliveryMethod::Push { url, .. } = &target.method {
            let (name, url) = (target.name.clone(), url.clone());
            probes.spawn(async move { (place, name, probe_target(&url).await) });
        }
    }
    let mut probed = probes.join_all().await;
    probed.sort_by_key(|(place, ..)| *place);
    let findings = probed.into_iter().map(|(_, name, outcome)| {
        let is_reachable = outcome.is_ok();
        problems.extend(outcome.err().map(|error| CallbackProblem {
            kind: "target",
            message: format_text!("target {name} cannot be reached: {}", "无法连接目标 {name}：{}", error),
            is_note: false,
            action: text!("check that the program runs and that its url, port and certificate are right; messages wait for it meanwhile", "确认目标程序在运行，且 url、端口和证书正确；在此之前消息会留在队列里"),
        }));
        TargetFinding { name, is_reachable }
    });
    findings.collect()
}

fn state_problem(error: &Text) -> CallbackProblem {
    CallbackProblem {
        kind: "state",
        message: format_text!("the callers are not known: {}", "无法得知推送来源：{}", error),
        is_note: false,
        action: text!(
            "without the state no callback is accepted; see docs/operations.md",
            "状态不可用时不接收任何回调；见 docs/operations.zh-CN.md"
        ),
    }
}

/// What the callers show that are none of WeCom's addresses.
fn caller_problem(callers: &BTreeSet<IpAddr>, addresses: &CallbackAddresses) -> Option<CallbackProblem> {
    if callers.is_empty() {
        return None;
    }
    let addresses = match addresses {
        Ok(addresses) => addresses,
        Err(problem) => {
            let reason = problem.as_ref().map_or(
                text!("no agent passed whose token could ask", "没有通过检查的应用可用来查询"),
                Problem::text,
            );
            return Some(CallbackProblem {
                kind: "address-list",
                message: format_text!(
                    "the callers were not compared with getcallbackip: {}",
                    "没有与 getcallbackip 核对推送来源：{}",
                    reason
                ),
                is_note: true,
                action: text!("run the check again once an agent passes", "待有应用检查通过后重新运行"),
            });
        }
    };
    let is_known = |caller: &IpAddr| addresses.iter().any(|entry| is_among(*caller, entry));
    let unknown: Vec<_> = callers.iter().filter(|caller| !is_known(caller)).collect();
    if unknown.is_empty() {
        return None;
    }
    let shown: Vec<_> = unknown.iter().take(MAX_SHOWN_CALLERS).map(ToString::to_string).collect();
    let more = match unknown.len().saturating_sub(MAX_SHOWN_CALLERS) {
        0 => Text::default(),
        more => format_text!(" and {more} more", " 等，另有 {more} 个"),
    };
    Some(CallbackProblem {
        kind: "callers",
        message: format_text!(
            "{}{} pushed valid messages in the last 7 days and are not among WeCom's addresses (getcallbackip)",
            "{}{} 在最近 7 天推送过有效消息，但不在企业微信的地址中（getcallbackip）",
            shown.join(", "),
            more
        ),
        is_note: true,
        action: text!(
            "if it is a web server in front of the proxy, name it in server.trusted_proxies; if it is nothing that you know, token and aes_key are in other hands: change both",
            "若是代理前面的 Web 服务器，请写入 server.trusted_proxies；若是未知地址，说明 Token 与 EncodingAESKey 已泄露，请更换两者"
        ),
    })
}

/// Whether an entry of getcallbackip covers an address: an address, one with stars, or a network.
fn is_among(address: IpAddr, entry: &str) -> bool {
    if entry.contains('*') {
        let (entry, address) = (entry.split('.'), address.to_string());
        let parts: Vec<_> = address.split('.').collect();
        let entry: Vec<_> = entry.collect();
        return entry.len() == parts.len()
            && entry.iter().zip(parts).all(|(pattern, part)| *pattern == "*" || *pattern == part);
    }
    IpNetwork::parse(entry).is_some_and(|network| network.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_compared_with_all_forms_of_entries() {
        for (address, entry, expected) in [
            ("192.0.2.10", "192.0.2.10", true),
            ("192.0.2.11", "192.0.2.10", false),
            ("101.226.103.7", "101.226.103.*", true),
            ("101.226.104.7", "101.226.103.*", false),
            ("198.51.100.9", "198.51.100.0/24", true),
            ("198.51.101.9", "198.51.100.0/24", false),
            ("198.51.101.9", "0.0.0.0/0", true),
            ("2001:db8::1", "2001:db8::/32", true),
            ("2001:db9::1", "2001:db8::/32", false),
            ("192.0.2.1", "2001:db8::/32", false),
            ("192.0.2.1", "x/24", false),
            ("192.0.2.1", "", false),
        ] {
            assert_eq!(is_among(address.parse().expect(address), entry), expected, "{address} {entry}");
        }
    }
}
