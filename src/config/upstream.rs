//! `[upstream]` and `[upstreams.*]`: the addresses of the WeCom API, and the limits and timeouts of requests to each.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::duration::{self, POSITIVE_RANGE, RANGE_WITH_ZERO};
use super::egress::{self, EgressProxy};
use super::error::{Error, quote};
use super::files;
use super::named_tables;
use super::reader::{ConfigTable, ConfigValue, MAX_CONCURRENCY};
use super::suggest::did_you_mean;
use super::url::{self, Url};
use crate::{format_text, text};

pub(super) const KEYS: &[&str] = &[
    "url",
    "ca_file",
    "via",
    "connect_timeout",
    "response_timeout",
    "body_timeout",
    "idle_timeout",
    "tcp_keepalive",
    "max_age",
    "max_in_flight",
    "queue_timeout",
    "require_length",
];

const DEFAULT_HOST: &str = "qyapi.weixin.qq.com";

const EXAMPLE: &str = "https://qyapi.weixin.qq.com";

/// The name of `[upstream]` in metrics, which no `[upstreams.*]` may have.
const DEFAULT_NAME: &str = "default";

/// Which upstream an agent uses: `[upstream]`, the default, or one of `[upstreams.*]`.
/// One pointer wide, because there can be very many agents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamId(Option<Arc<NamedUpstream>>);

/// The index and name of one of `[upstreams.*]`.
#[derive(Debug, PartialEq, Eq)]
struct NamedUpstream {
    index: usize,
    name: Box<str>,
}

impl UpstreamId {
    /// All upstreams with their configuration, in the order of their indexes.
    pub fn all<'a>(
        default: &'a UpstreamConfig,
        named: &'a BTreeMap<String, UpstreamConfig>,
    ) -> impl Iterator<Item = (Self, &'a UpstreamConfig)> {
        let named =
            named.iter().enumerate().map(|(nth, (name, upstream))| (Self::named(nth, name), upstream));
        std::iter::once((Self::default(), default)).chain(named)
    }

    /// The one of this name among `named`.
    pub fn find(name: &str, named: &BTreeMap<String, UpstreamConfig>) -> Option<Self> {
        named.keys().position(|other| other == name).map(|nth| Self::named(nth, name))
    }

    /// The one of this name, which is the `nth` of `[upstreams.*]`.
    pub(crate) fn named(nth: usize, name: &str) -> Self {
        Self(Some(Arc::new(NamedUpstream { index: nth + 1, name: name.into() })))
    }

    /// 0 for `[upstream]`; the others follow in the order of their names.
    pub fn index(&self) -> usize {
        self.0.as_ref().map_or(0, |upstream| upstream.index)
    }

    /// Its name; `None` for `[upstream]`.
    pub fn name(&self) -> Option<&str> {
        self.0.as_ref().map(|upstream| &*upstream.name)
    }

    /// Its name in metrics.
    pub fn label(&self) -> &str {
        self.name().unwrap_or(DEFAULT_NAME)
    }

    /// Its table in the file: `upstream` or `upstreams.NAME`.
    pub fn section(&self) -> String {
        self.name().map_or_else(|| "upstream".to_owned(), |name| format!("upstreams.{name}"))
    }
}

/// `[upstream]` or one of `[upstreams.*]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// Whether the URL's scheme is `https`.
    pub tls: bool,
    /// The host to connect to and, less a dot at its end, to verify; in lower case, an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The value of `Host`: without the scheme's default port, an IPv6 address in brackets.
    pub authority: String,
    /// What stands before `/cgi-bin/` in each path: empty, or it begins with a slash and does not end with one.
    pub path_prefix: String,
    /// Root certificates (PEM) in place of the built-in ones; readable, not yet parsed.
    pub ca_file: Option<PathBuf>,
    /// The egress proxies to connect through, without duplicates; empty: connects without one.
    pub via: Vec<EgressProxy>,
    /// Bounds DNS, TCP, CONNECT and TLS together.
    pub connect_timeout: Duration,
    /// Bounds the time to the end of the response's header block.
    pub response_timeout: Duration,
    /// Bounds the pause between two chunks of a response's body.
    pub body_timeout: Duration,
    /// A pooled connection is closed after this idle time.
    pub idle_timeout: Duration,
    /// A silent connection is probed after this time; zero: never.
    pub tcp_keepalive: Duration,
    /// About the longest age of a connection at the start of a request.
    pub max_age: Duration,
    /// Maximum of concurrent requests; at least 1.
    pub max_in_flight: usize,
    /// Bounds the wait for a permit; may be zero.
    pub queue_timeout: Duration,
    /// Whether each request goes out with `Content-Length`, its body being received completely before.
    pub require_length: bool,
}

impl UpstreamConfig {
    /// `https://qyapi.weixin.qq.com`, with the path prefix.
    pub fn base_url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority, self.path_prefix)
    }
}

struct Origin {
    tls: bool,
    host: String,
    port: u16,
    authority: String,
    path_prefix: String,
}

/// Reads `[upstream]`.
pub(super) fn read(root: &ConfigTable<'_>) -> UpstreamConfig {
    let section = root.subtable("upstream", KEYS);
    let default = Origin {
        tls: true,
        host: DEFAULT_HOST.into(),
        port: 443,
        authority: DEFAULT_HOST.into(),
        path_prefix: String::new(),
    };
    read_section(&section, section.read_or("url", default, read_origin))
}

/// Reads `[upstreams.*]`. Keys that one omits have the defaults of `[upstream]`, not its values.
pub(super) fn read_named(root: &ConfigTable<'_>) -> BTreeMap<String, UpstreamConfig> {
    let items = named_tables::collect_named(std::slice::from_ref(root), "upstreams");
    named_tables::read_each(&items, |name, item| {
        if name == DEFAULT_NAME {
            return Err(item.error(text!(
                "cannot be an upstream's name, since metrics call [upstream] so",
                "不能用作上游名，因为指标中用它表示 [upstream]"
            )));
        }
        let section = item.table(text!("a table with url", "含 url 的表"), KEYS)?;
        let url_example = "url = \"https://wecom.corp.example\"";
        let origin = section.read_required("url", url_example, read_origin)?;
        Ok(read_section(&section, origin))
    })
}

/// Reads the name of an agent's upstream.
pub(super) fn read_id(
    item: &ConfigValue<'_>,
    named: &BTreeMap<String, UpstreamConfig>,
) -> Result<UpstreamId, Error> {
    let name = item.string(text!("the NAME of one of [upstreams.NAME]", "某个 [upstreams.NAME] 的 NAME"))?;
    if item.location.source.is_broken(&format!("upstreams.{name}")) {
        return Ok(UpstreamId::default());
    }
    UpstreamId::find(name, named).ok_or_else(|| {
        let name_shown = quote(name);
        let names = || named.keys().map(String::as_str);
        match named.is_empty() {
            true => item.error(format_text!(
                "{name_shown} does not exist; there is no table [upstreams.NAME]",
                "{name_shown} 不存在；没有 [upstreams.NAME] 这样的表"
            )),
            false => item.error(format_text!(
                "{name_shown} does not exist; {}there are: {}; without this key, [upstream] is used",
                "{name_shown} 不存在；{}现有：{}；不写此键则使用 [upstream]",
                did_you_mean(name, names()),
                names().collect::<Vec<_>>().join(", ")
            )),
        }
    })
}

fn read_section(section: &ConfigTable<'_>, origin: Origin) -> UpstreamConfig {
    let timeout = |key, seconds| {
        section.read_or(key, Duration::from_secs(seconds), |item| duration::read(item, POSITIVE_RANGE))
    };
    let Origin { tls, host, port, authority, path_prefix } = origin;
    let via = section.read_or("via", Vec::new(), |item| egress::read(item, &host));
    UpstreamConfig {
        tls,
        host,
        port,
        authority,
        path_prefix,
        ca_file: section.read_optional("ca_file", files::read_file_path),
        via,
        connect_timeout: timeout("connect_timeout", 5),
        response_timeout: timeout("response_timeout", 30),
        body_timeout: timeout("body_timeout", 60),
        idle_timeout: timeout("idle_timeout", 55),
        tcp_keepalive: section
            .read_or("tcp_keepalive", Duration::from_secs(15), |item| duration::read(item, RANGE_WITH_ZERO)),
        max_age: timeout("max_age", 5 * 60),
        max_in_flight: section.read_or("max_in_flight", 4096, |item| item.count(1..=MAX_CONCURRENCY)),
        queue_timeout: section
            .read_or("queue_timeout", Duration::from_secs(2), |item| duration::read(item, RANGE_WITH_ZERO)),
        require_length: section.read_or("require_length", false, ConfigValue::boolean),
    }
}

fn read_origin(item: &ConfigValue<'_>) -> Result<Origin, Error> {
    let url = url::read(item, &["https", "http"], EXAMPLE)?.require_no_userinfo(item)?;
    let path_prefix = read_path_prefix(item, &url)?;
    let tls = url.scheme == "https";
    if !tls && !is_loopback_host(&url.host) {
        item.location.warn(text!(
            "is not https, so secrets and tokens cross the network in plain text",
            "不是 https，因此 secret 和 token 在网络上明文传输"
        ));
    }
    let default_port = if tls { 443 } else { 80 };
    let port = url.port.unwrap_or(default_port);
    let authority = match port == default_port {
        true => url::bracketed(&url.host),
        false => url::authority(&url.host, port),
    };
    let host = if url.is_absolute { url.host + "." } else { url.host };
    Ok(Origin { tls, host, port, authority, path_prefix })
}

/// The path of a URL. Only segments that no server reads in two ways.
fn read_path_prefix(item: &ConfigValue<'_>, url: &Url<'_>) -> Result<String, Error> {
    let prefix = url.rest.strip_suffix('/').unwrap_or(url.rest);
    if prefix.is_empty() {
        return Ok(String::new());
    }
    let is_plain = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&b))
    };
    if !prefix.strip_prefix('/').is_some_and(|path| path.split('/').all(is_plain)) {
        return Err(item.error(text!(
            "may have a path like /prefix after the host and port: no query, no %, no empty or dot segments",
            "的主机和端口之后可以有 /prefix 这样的路径：不能有查询参数、% 、空的路径段或点"
        )));
    }
    if prefix.split('/').any(|segment| segment.eq_ignore_ascii_case("cgi-bin")) {
        return Err(item.error(text!(
            "must end before /cgi-bin, which each request has",
            "必须在 /cgi-bin 之前结束，因为每个请求都带有它"
        )));
    }
    Ok(prefix.to_owned())
}

fn is_loopback_host(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}
