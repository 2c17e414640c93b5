//! `tokens.store`: where tokens and tickets are stored, and shared by replicas.

use std::fmt;
use std::path::PathBuf;

use super::error::Error;
use super::reader::{ConfigTable, ConfigValue, read_all};
use super::secret;
use super::url;
use crate::secret::Masked;
use crate::text::Text;
use crate::{format_text, text};

pub(super) const KEYS: &[&str] = &[
    "redis",
    "cluster",
    "sentinel",
    "sentinel_user",
    "sentinel_password",
    "user",
    "password",
    "ca_file",
    "prefix",
    "key",
    "old_key",
];

const EXAMPLE_URL: &str = "redis://127.0.0.1:6379/0";

const EXPECTED: Text = text!(
    "\"memory\" or { redis = \"redis://127.0.0.1:6379/0\", key = { env = \"STORE_KEY\" } }",
    "\"memory\" 或 { redis = \"redis://127.0.0.1:6379/0\", key = { env = \"STORE_KEY\" } }"
);

/// Where tokens and tickets are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreConfig {
    /// In this process.
    Memory,
    /// In Redis or Valkey, shared with other replicas.
    Redis(Box<RedisConfig>),
}

impl StoreConfig {
    /// `memory` or `redis`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redis(_) => "redis",
        }
    }
}

/// `tokens.store` with `redis`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisConfig {
    /// The addresses to connect to: the server, some nodes of the cluster, or the sentinels.
    pub nodes: Vec<StoreNode>,
    /// The kind of these nodes.
    pub topology: Topology,
    /// Whether to connect with TLS.
    pub tls: bool,
    /// Root certificates (PEM) in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// The user name, for servers with ACL users.
    pub user: Option<String>,
    /// The server's password.
    pub password: Option<Masked>,
    /// The database's number.
    pub database: u32,
    /// The prefix of every key in the store.
    pub prefix: String,
    /// The secret that encrypts the values; at least 32 characters.
    pub key: Masked,
    /// The user of the sentinels, if they have users.
    pub sentinel_user: Option<String>,
    /// The password of the sentinels; they get neither `user` nor `password`.
    pub sentinel_password: Option<Masked>,
    /// The previous `key`, with which existing values can still be decrypted.
    pub old_key: Option<Masked>,
}

/// One address of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreNode {
    /// In lower case; an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for StoreNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&url::authority(&self.host, self.port))
    }
}

/// The topology of the store's servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topology {
    /// One server, or one address that always leads to the current master.
    Single,
    /// A Redis Cluster.
    Cluster,
    /// Sentinels that know the master of this name.
    Sentinel(String),
}

pub(super) fn read(item: &ConfigValue<'_>) -> Result<StoreConfig, Error> {
    match item.as_str() {
        Some("memory") => Ok(StoreConfig::Memory),
        // The value is not shown: it may be a URL with a password.
        Some(_) => Err(item.error(format_text!("must be {}", "必须是 {}", EXPECTED))),
        None => read_redis(&item.table(EXPECTED, KEYS)?).map(|redis| StoreConfig::Redis(Box::new(redis))),
    }
}

fn read_redis(section: &ConfigTable<'_>) -> Result<RedisConfig, Error> {
    // All are read before the first error counts.
    let servers = section.read_required("redis", &format!("redis = {EXAMPLE_URL:?}"), read_urls);
    let key = section.read_required("key", "key = { env = \"STORE_KEY\" }", secret::read_long);
    let topology = read_topology(section);
    let ca_file = section.read_optional("ca_file", ConfigValue::path);
    let user = section.read_optional("user", read_user);
    let password = section.read_optional("password", secret::read);
    let prefix = section.read_or("prefix", "wecom-proxy:".to_owned(), read_prefix);
    let sentinel_user = section.read_optional("sentinel_user", read_user);
    let sentinel_password = section.read_optional("sentinel_password", secret::read);
    let old_key = section.read_optional("old_key", secret::read_long);
    let servers = servers?;
    check_topology(section, &topology, &servers);
    let default_port = if matches!(topology, Topology::Sentinel(_)) { 26379 } else { 6379 };
    let nodes = servers
        .iter()
        .map(|server| StoreNode { host: server.host.clone(), port: server.port.unwrap_or(default_port) });
    let nodes = nodes.collect();
    let Some(first) = servers.into_iter().next() else {
        return Err(section.location_of("redis").error(format_text!(
            "is empty; write one like {EXAMPLE_URL:?}",
            "为空；请写成 {EXAMPLE_URL:?}"
        )));
    };
    check_passwords(section, first.password.is_some());
    Ok(RedisConfig {
        nodes,
        topology,
        tls: first.tls,
        ca_file,
        user: user.or(first.user),
        password: password.or(first.password),
        database: first.database,
        prefix,
        key: key?,
        sentinel_user,
        sentinel_password,
        old_key,
    })
}

fn read_topology(section: &ConfigTable<'_>) -> Topology {
    let cluster = section.read_or("cluster", false, ConfigValue::boolean);
    match (cluster, section.read_optional("sentinel", read_master_name)) {
        (is_cluster, Some(master)) => {
            if is_cluster {
                section.location_of("cluster").record_text(text!(
                    "conflicts with sentinel; a store is one or the other",
                    "与 sentinel 冲突；存储只能是其中一种"
                ));
            }
            Topology::Sentinel(master)
        }
        (true, None) => Topology::Cluster,
        (false, None) => Topology::Single,
    }
}

/// Records what does not fit the topology.
fn check_topology(section: &ConfigTable<'_>, topology: &Topology, servers: &[RedisUrl]) {
    // A wrong one is reported already.
    let is_known = !["cluster", "sentinel"].into_iter().any(|key| section.is_broken_here(key));
    let location = section.location_of("redis");
    if *topology == Topology::Single && servers.len() > 1 && is_known {
        location.record_text(text!(
            "lists several servers; set cluster = true, or sentinel = \"mymaster\"",
            "列出了多台服务器；请设置 cluster = true，或 sentinel = \"mymaster\""
        ));
    }
    if *topology == Topology::Cluster && servers.iter().any(|server| server.database != 0) {
        location.record_text(text!(
            "names a database, but a cluster has only number 0",
            "指定了数据库编号，但集群只有 0 号"
        ));
    }
    for key in ["sentinel_user", "sentinel_password"] {
        let is_sentinel = matches!(topology, Topology::Sentinel(_));
        if let Some(item) = section.find(key).filter(|_| !is_sentinel && is_known) {
            item.location.record_text(text!(
                "is only for sentinels; set sentinel = \"mymaster\"",
                "只用于哨兵；请设置 sentinel = \"mymaster\""
            ));
        }
    }
}

/// Records users without a password, with whom the Redis client would log in as the default user.
fn check_passwords(section: &ConfigTable<'_>, is_in_url: bool) {
    for (user, password, is_given) in
        [("user", "password", is_in_url), ("sentinel_user", "sentinel_password", false)]
    {
        if let Some(item) = section.find(user).filter(|_| !is_given && section.find(password).is_none()) {
            item.location.record_text(format_text!(
                "needs {password} beside it; write {password} = {{ env = \"NAME\" }}",
                "需要同时写 {password}；请写 {password} = {{ env = \"NAME\" }}"
            ));
        }
    }
}

fn read_user(item: &ConfigValue<'_>) -> Result<String, Error> {
    Ok(item.string(text!("a user's name", "用户名"))?.to_owned())
}

/// One URL of `redis`.
struct RedisUrl {
    tls: bool,
    host: String,
    port: Option<u16>,
    user: Option<String>,
    password: Option<Masked>,
    database: u32,
}

fn read_urls(item: &ConfigValue<'_>) -> Result<Vec<RedisUrl>, Error> {
    let items = item.one_or_list(format_text!(
        "a URL like {EXAMPLE_URL:?}, or a list of them",
        "{EXAMPLE_URL:?} 这样的 URL，或它们的列表"
    ))?;
    let servers = read_all(&items, read_url)?;
    let like_first = |server: &RedisUrl| {
        let Some(first) = servers.first() else { return true };
        (server.tls, &server.user, &server.password, server.database)
            == (first.tls, &first.user, &first.password, first.database)
    };
    if !servers.iter().all(like_first) {
        return Err(item.error(text!(
            "must name the same scheme, user, password and database in every URL",
            "的各个 URL 中，协议、用户名、密码和数据库编号必须相同"
        )));
    }
    Ok(servers)
}

fn read_url(item: &ConfigValue<'_>) -> Result<RedisUrl, Error> {
    let url = url::read(item, &["redis", "rediss"], EXAMPLE_URL)?;
    let (user, password) = url.login(item)?.unzip();
    let password = password.filter(|password| !password.expose().is_empty());
    if password.is_some() {
        item.location.warn(text!(
            "contains a password in plain text; write password = { env = \"NAME\" } beside it",
            "含有明文密码；请在旁边写 password = { env = \"NAME\" }"
        ));
    }
    Ok(RedisUrl {
        tls: url.scheme == "rediss",
        database: read_database(item, url.rest)?,
        port: url.port,
        host: url.host,
        user: user.map(|user| user.expose().to_owned()).filter(|user| !user.is_empty()),
        password,
    })
}

fn read_database(item: &ConfigValue<'_>, rest: &str) -> Result<u32, Error> {
    let number = rest.strip_prefix('/').unwrap_or(rest);
    if number.is_empty() {
        return Ok(0);
    }
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse().ok().filter(|_| digits).ok_or_else(|| {
        item.error(format_text!(
            "must contain nothing but the database's number after the host, as in {EXAMPLE_URL:?}",
            "的主机之后只能有数据库编号，如 {EXAMPLE_URL:?}"
        ))
    })
}

fn read_master_name(item: &ConfigValue<'_>) -> Result<String, Error> {
    let text = item.string(text!("the master's name, like \"mymaster\"", "主节点名，如 \"mymaster\""))?;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(item.error(text!(
            "must be the name under which the sentinels know the master",
            "必须是哨兵所知的主节点名"
        )));
    }
    Ok(text.to_owned())
}

/// Braces are refused: hash tags in braces keep a lock on the same cluster node as its value.
fn read_prefix(item: &ConfigValue<'_>) -> Result<String, Error> {
    let text = item.string(text!("a string like \"wecom-proxy:\"", "\"wecom-proxy:\" 这样的字符串"))?;
    if text.len() > 64 || !text.bytes().all(|b| b.is_ascii_graphic() && !b"{}*?[]\\".contains(&b)) {
        return Err(item.error(text!(
            "must be at most 64 visible ASCII characters, none of { } [ ] * ? \\",
            "最多 64 个可见 ASCII 字符，且不含 { } [ ] * ? \\"
        )));
    }
    Ok(text.to_owned())
}
