//! Checks the shared store: whether it is reachable, accepts the proxy's commands, and holds only entries that this key
//! can decrypt.

use std::time::Duration;

use tokio::{
    runtime::Handle,
    time::{Instant, sleep, timeout},
};

use crate::{
    config::{Config, StoreConfig},
    directory,
    store::{PreparedStore, Store},
    text,
    text::Text,
    tokens::CredentialId,
};

/// How long the first attempt to connect may take; longer than the store's own connect timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(6);
/// How often the state of the first attempt is read.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// The number of agents whose stored token is checked.
const MAX_AGENTS: usize = 1000;

/// The result of the store check.
#[derive(Debug)]
pub struct StoreFinding {
    /// Hosts and ports from the configuration.
    pub address: String,
    /// Why it cannot be used.
    pub error: Option<String>,
    /// The number of agents with a stored token that this key can decrypt.
    pub readable: usize,
    /// The agents with a stored entry that this key cannot decrypt.
    pub unreadable: Vec<String>,
    /// The number of agents checked.
    pub checked: usize,
    /// The duration of the whole check.
    pub duration: Duration,
}

/// Advice for a store that fails the check.
#[derive(Debug, PartialEq, Eq)]
pub struct StoreHint {
    /// A stable identifier for programs.
    pub kind: &'static str,
    /// What to do.
    pub action: Text,
}

const SENTINEL_HINT: StoreHint = StoreHint {
    kind: "sentinel",
    action: text!(
        "check that these are sentinels and that they know a master of this name (redis-cli -p 26379 SENTINEL MASTERS); if they have a login, set sentinel_user and sentinel_password to theirs",
        "确认这些地址是哨兵，且知道该名称的主节点（redis-cli -p 26379 SENTINEL MASTERS）；哨兵设有密码时，填写哨兵自己的 sentinel_user 和 sentinel_password"
    ),
};

/// Hints by a substring of the error text. The first match counts: `authentication` and `tls` occur in later errors
/// too.
static HINTS: [(&[&str], StoreHint); 8] = [
    (&["the sentinel refused or failed"], SENTINEL_HINT),
    (
        &["NOAUTH", "WRONGPASS", "AuthenticationFailed", "Password authentication failed", "authentication"],
        StoreHint {
            kind: "password",
            action: text!(
                "set user and password in tokens.store to those of the server (ACL LIST shows its users)",
                "在 tokens.store 中填写与服务器一致的 user 和 password（ACL LIST 可列出服务器的用户）"
            ),
        },
    ),
    (
        &["NOPERM", "no permissions", "can't run this command", "ACL failure"],
        StoreHint {
            kind: "rights",
            action: text!(
                "give the user the permissions that docs/scale.md lists under \"TLS and users\"",
                "按 docs/scale.zh-CN.md 的“TLS 与用户”一节给该用户授权"
            ),
        },
    ),
    (
        &["certificate", "UnknownIssuer", "InvalidCertificate", "tls", "TLS"],
        StoreHint {
            kind: "certificate",
            action: text!(
                "set ca_file to the CA that signed the server's certificate, and use the host name from that certificate",
                "用 ca_file 指定签发服务器证书的 CA，地址须与证书中的名称一致"
            ),
        },
    ),
    (
        &["READONLY", "read only replica"],
        StoreHint {
            kind: "read-only",
            action: text!(
                "this is a replica; name the master, or the sentinels with sentinel = \"mymaster\"",
                "这是从节点；请填写主节点，或用 sentinel = \"mymaster\" 填写哨兵"
            ),
        },
    ),
    (
        &["OOM", "maxmemory"],
        StoreHint {
            kind: "full",
            action: text!(
                "the server is full; raise its maxmemory (1 KB for each agent is needed)",
                "服务器内存已满；请调大 maxmemory（每个应用约需 1 KB）"
            ),
        },
    ),
    (&["sentinel", "Sentinel"], SENTINEL_HINT),
    (
        &[""],
        StoreHint {
            kind: "unreachable",
            action: text!(
                "check that Redis or Valkey runs there and that this machine may connect to it (redis-cli -h HOST -p PORT PING)",
                "确认 Redis 或 Valkey 在该地址运行，且本机可以连接（redis-cli -h HOST -p PORT PING）"
            ),
        },
    ),
];

static KEY_MISMATCH_HINT: StoreHint = StoreHint {
    kind: "key",
    action: text!(
        "the entries were written with another key: give every replica the same tokens.store.key, and change it as docs/scale.md says; the old entries are replaced or expire within two hours",
        "这些内容是用另一把密钥写入的：所有副本须使用相同的 tokens.store.key，更换方法见 docs/scale.zh-CN.md；旧内容会在两小时内被替换或过期"
    ),
};

impl StoreFinding {
    /// Whether the store works and every checked entry can be decrypted.
    pub fn is_ok(&self) -> bool {
        self.error.is_none() && self.unreadable.is_empty()
    }

    /// The advice, if the check failed.
    pub fn hint(&self) -> Option<&'static StoreHint> {
        match &self.error {
            Some(error) => HINTS
                .iter()
                .find(|(parts, _)| parts.iter().any(|part| error.contains(part)))
                .map(|(_, hint)| hint),
            None => (!self.unreadable.is_empty()).then_some(&KEY_MISMATCH_HINT),
        }
    }
}

/// Checks the configured store, if there is one. Writes only two probe entries, which expire.
pub(super) async fn check_store(config: &Config) -> Option<StoreFinding> {
    let StoreConfig::Redis(redis) = &config.tokens.store else { return None };
    let start = Instant::now();
    let mut finding = StoreFinding {
        address: redis.nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        error: None,
        readable: 0,
        unreadable: Vec::new(),
        checked: 0,
        duration: Duration::ZERO,
    };
    match PreparedStore::new(redis) {
        Err(error) => finding.error = Some(error.to_string()),
        Ok(prepared) => {
            let (store, _events) = Store::open(prepared, &Handle::current());
            let attempted = async {
                while !store.was_attempted() {
                    sleep(POLL_INTERVAL).await;
                }
            };
            let _ = timeout(CONNECT_TIMEOUT, attempted).await;
            if store.last_error().is_none() {
                check_tokens(config, &store, &mut finding).await;
            }
            finding.error = store.last_error();
        }
    }
    finding.duration = start.elapsed();
    Some(finding)
}

async fn check_tokens(config: &Config, store: &Store, finding: &mut StoreFinding) {
    for agent in config.agents.values().take(MAX_AGENTS) {
        for secret in &agent.secrets {
            let credentials = directory::credentials(agent, secret);
            match store.is_readable(&CredentialId::new("", &credentials).store_name()).await {
                Err(_) => return,
                Ok(None) => {}
                Ok(Some(true)) => finding.readable += 1,
                Ok(Some(false)) => finding.unreadable.push(agent.name.to_string()),
            }
        }
        finding.checked += 1;
    }
}
