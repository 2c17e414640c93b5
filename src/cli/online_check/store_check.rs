//! The store that replicas share: whether it is reached and does what it will be asked for, and whether what lies there can
//! be read.

use std::time::Duration;

use tokio::{
    runtime::Handle,
    time::{Instant, sleep, timeout},
};

use crate::{
    config::{Config, RedisConfig, StoreConfig as Configured},
    store::{Settings, Store},
    tokens::Credentials,
};

/// How long it may take to be there; longer than an attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(6);
/// How often it is looked whether it is.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Most agents whose token is looked for there.
const MAX_AGENTS: usize = 1000;

/// What was found of the store.
#[derive(Debug)]
pub struct StoreFinding {
    /// Where it is, by the configuration: hosts and ports.
    pub address: String,
    /// Why it cannot be used.
    pub error: Option<String>,
    /// How many agents have a token there that can be read.
    pub readable: usize,
    /// Those that have something there that cannot.
    pub unreadable: Vec<String>,
    /// How many agents it was looked for.
    pub checked: usize,
    /// How long all of it took.
    pub duration: Duration,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreHint {
    /// One word for programs.
    pub kind: &'static str,
    /// In English.
    pub action_en: &'static str,
    /// In Chinese.
    pub action_zh: &'static str,
}

/// By a part of what the store or the connection to it says, in the order in which they are looked for.
const HINTS: [(&[&str], StoreHint); 7] = [
    (
        &["NOAUTH", "WRONGPASS", "AuthenticationFailed", "Password authentication failed", "authentication"],
        StoreHint {
            kind: "password",
            action_en: "put user and password into tokens.store as the server has them (ACL LIST shows its users)",
            action_zh: "在 tokens.store 中填写与服务器一致的 user 和 password（ACL LIST 可列出服务器的用户）",
        },
    ),
    (
        &["NOPERM", "no permissions", "can't run this command", "ACL failure"],
        StoreHint {
            kind: "rights",
            action_en: "give the user what docs/scale.md lists under \"TLS and users\"",
            action_zh: "按 docs/scale.zh-CN.md 的“TLS 与用户”一节给该用户授权",
        },
    ),
    (
        &["certificate", "UnknownIssuer", "InvalidCertificate", "tls", "TLS"],
        StoreHint {
            kind: "certificate",
            action_en: "name the authority that signed the server's certificate with ca_file, and the server as its certificate does",
            action_zh: "用 ca_file 指定签发服务器证书的 CA，地址须与证书中的名称一致",
        },
    ),
    (
        &["READONLY", "read only replica"],
        StoreHint {
            kind: "read-only",
            action_en: "this is a replica; name the master, or the sentinels with sentinel = \"mymaster\"",
            action_zh: "这是从节点；请填写主节点，或用 sentinel = \"mymaster\" 填写哨兵",
        },
    ),
    (
        &["OOM", "maxmemory"],
        StoreHint {
            kind: "full",
            action_en: "the server is full; raise its maxmemory (1 KB for each agent is needed)",
            action_zh: "服务器内存已满；请调大 maxmemory（每个应用约需 1 KB）",
        },
    ),
    (
        &["sentinel", "Sentinel"],
        StoreHint {
            kind: "sentinel",
            action_en: "see whether these are sentinels, and know a master of this name (redis-cli -p 26379 SENTINEL MASTERS)",
            action_zh: "确认这些地址是哨兵，且知道该名称的主节点（redis-cli -p 26379 SENTINEL MASTERS）",
        },
    ),
    (
        &[""],
        StoreHint {
            kind: "unreachable",
            action_en: "see whether Redis or Valkey runs there and this machine may connect to it (redis-cli -h HOST -p PORT PING)",
            action_zh: "确认 Redis 或 Valkey 在该地址运行，且本机可以连接（redis-cli -h HOST -p PORT PING）",
        },
    ),
];

const KEY_MISMATCH_HINT: StoreHint = StoreHint {
    kind: "key",
    action_en: "another key wrote it: give every replica the same tokens.store.key, and change it as docs/scale.md says; what is there is replaced or gone within two hours",
    action_zh: "这些内容是用另一把密钥写入的：所有副本须使用相同的 tokens.store.key，更换方法见 docs/scale.zh-CN.md；旧内容会在两小时内被替换或过期",
};

impl StoreFinding {
    /// Whether it can be used, and all that is there be read.
    pub fn is_ok(&self) -> bool {
        self.error.is_none() && self.unreadable.is_empty()
    }

    /// What to do, where something is wrong.
    pub fn hint(&self) -> Option<StoreHint> {
        match &self.error {
            Some(trouble) => HINTS
                .iter()
                .find(|(parts, _)| parts.iter().any(|part| trouble.contains(part)))
                .map(|(_, hint)| *hint),
            None => (!self.unreadable.is_empty()).then_some(KEY_MISMATCH_HINT),
        }
    }
}

/// Tries the configured store, where there is one. It changes nothing there but two probes, which go by themselves.
pub(super) async fn check_store(config: &Config) -> Option<StoreFinding> {
    let Configured::Redis(redis) = &config.tokens.store else { return None };
    let began = Instant::now();
    let mut finding = StoreFinding {
        address: join_addresses(redis),
        error: None,
        readable: 0,
        unreadable: Vec::new(),
        checked: 0,
        duration: Duration::ZERO,
    };
    match Settings::new(redis) {
        Err(error) => finding.error = Some(error.to_string()),
        Ok(settings) => {
            let (store, _said) = Store::open(settings, &Handle::current());
            let tried = async {
                while !store.was_attempted() {
                    sleep(POLL_INTERVAL).await;
                }
            };
            let _ = timeout(CONNECT_TIMEOUT, tried).await;
            if store.last_error().is_none() {
                check_tokens(config, &store, &mut finding).await;
            }
            finding.error = store.last_error();
        }
    }
    finding.duration = began.elapsed();
    Some(finding)
}

async fn check_tokens(config: &Config, store: &Store, finding: &mut StoreFinding) {
    for agent in config.agents.values().take(MAX_AGENTS) {
        let credentials = Credentials { corpid: agent.corpid.clone(), secret: agent.secret.clone() };
        match store.is_readable(&credentials.store_name("")).await {
            Err(_) => return,
            Ok(None) => {}
            Ok(Some(true)) => finding.readable += 1,
            Ok(Some(false)) => finding.unreadable.push(agent.name.clone()),
        }
        finding.checked += 1;
    }
}

fn join_addresses(redis: &RedisConfig) -> String {
    let nodes = redis.nodes.iter().map(|node| match node.host.contains(':') {
        true => format!("[{}]:{}", node.host, node.port),
        false => format!("{}:{}", node.host, node.port),
    });
    nodes.collect::<Vec<_>>().join(", ")
}
