//! `[admin]`: the admin listener, for operators.

use std::net::{Ipv4Addr, SocketAddr};

use super::address::{self, Address};
use super::error::{Error, quote};
use super::key_hash::{self, KeyHash};
use super::otlp::{self, OtlpConfig};
use super::reader::{ConfigTable, ConfigValue};
use super::server::ServerConfig;
use super::url::{self, PrivateUrl};
use crate::{format_text, text};

pub(super) const KEYS: &[&str] =
    &["listen", "key_sha256", "reader_key_sha256", "recent", "otlp", "trace_url", "metrics"];

/// Bounds memory: each exchange is kept with its header blocks, so a million of them would take gigabytes.
const MAX_RECENT: u64 = 100_000;
/// Bounds the size of `/metrics`: an agent has about 65 series.
const MAX_AGENT_SERIES: u64 = 1_000_000;

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// At least one, different from the addresses in `[server]`.
    pub listen: Vec<Address>,
    /// The hash of the admin key; `None` only if every address is loopback.
    pub key_sha256: Option<KeyHash>,
    /// The hash of the key that may only read.
    pub reader_key_sha256: Option<KeyHash>,
    /// The number of exchanges kept for the inspector; may be 0.
    pub recent: usize,
    /// The collector for traces.
    pub otlp: Option<OtlpConfig>,
    /// Where a trace is shown: its id replaces `{trace_id}`, or follows.
    pub trace_url: Option<PrivateUrl>,
    /// `admin.metrics`
    pub metrics: MetricsConfig,
}

/// `admin.metrics`: bounds the series at `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsConfig {
    /// Whether requests are counted by client.
    pub per_client: bool,
    /// Most agents with series of their own; the others share those of `_other`.
    pub per_agent: usize,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { per_client: true, per_agent: 1000 }
    }
}

pub(super) fn read(root: &ConfigTable<'_>, server: &ServerConfig) -> Option<AdminConfig> {
    root.find("admin")?;
    let section = root.subtable("admin", KEYS);
    let default = Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)));
    let admin = AdminConfig {
        listen: section.read_or("listen", vec![default], |item| address::read(item, &server.listen)),
        key_sha256: section.read_optional("key_sha256", key_hash::read),
        reader_key_sha256: section.read_optional("reader_key_sha256", key_hash::read),
        recent: section.read_or("recent", 500, |item| item.count(0..=MAX_RECENT)),
        otlp: section.read_optional("otlp", otlp::read),
        trace_url: section.read_optional("trace_url", read_trace_url),
        metrics: section.read_or("metrics", MetricsConfig::default(), read_metrics),
    };
    let has_own_key = match &admin.key_sha256 {
        Some(key) => Some(*key) != admin.reader_key_sha256,
        // A wrong one is reported already.
        None => section.has("key_sha256"),
    };
    if admin.reader_key_sha256.is_some() && !has_own_key {
        let message = text!(
            "needs admin.key_sha256 beside it, of another key: that one may change things",
            "需要同时设置另一个密钥的 admin.key_sha256：有修改权限的是那一个"
        );
        let location = section.location_of("reader_key_sha256");
        location.record(location.error(message));
    }
    if let Some(public) =
        admin.listen.iter().find(|address| !address.is_loopback() && !section.has("key_sha256"))
    {
        let location = section.location_of("listen");
        location.record(location.error(format_text!("{} can be reached from other machines, so admin.key_sha256 is required: put the line of that name that \"wecom-proxy key NAME\" prints under [admin]", "{} 能从其他机器访问，因此必须设置 admin.key_sha256：运行 \"wecom-proxy key NAME\"，把它打印的 key_sha256 一行写到 [admin] 下",
            quote(&public.to_string()))));
    }
    Some(admin)
}

fn read_trace_url(item: &ConfigValue<'_>) -> Result<PrivateUrl, Error> {
    let example = "https://jaeger.example.com/trace/{trace_id}";
    url::read(item, &["http", "https"], example)?.require_no_userinfo(item)?;
    Ok(item.as_str().unwrap_or_default().to_owned().into())
}

fn read_metrics(item: &ConfigValue<'_>) -> Result<MetricsConfig, Error> {
    let section = item.table(
        text!(
            "a table like { per_client = true, per_agent = 1000 }",
            "{ per_client = true, per_agent = 1000 } 这样的表"
        ),
        &["per_client", "per_agent"],
    )?;
    let default = MetricsConfig::default();
    Ok(MetricsConfig {
        per_client: section.read_or("per_client", default.per_client, ConfigValue::boolean),
        per_agent: section.read_or("per_agent", default.per_agent, |item| item.count(0..=MAX_AGENT_SERIES)),
    })
}
