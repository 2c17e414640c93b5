//! `[upstream]`: the WeCom API, how it is reached, and how long it may take.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use super::duration::{self, POSITIVE_RANGE, RANGE_WITH_ZERO};
use super::error::Error;
use super::files;
use super::reader::{ConfigTable, ConfigValue, MAX_CONCURRENCY};
use super::url::{self, Url};
use crate::secret::Masked;

pub(super) const KEYS: &[&str] = &[
    "url",
    "ca_file",
    "via",
    "connect_timeout",
    "response_timeout",
    "body_timeout",
    "idle_timeout",
    "max_in_flight",
    "queue_timeout",
];

const DEFAULT_HOST: &str = "qyapi.weixin.qq.com";

/// `[upstream]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// Whether the URL is an `https` one.
    pub tls: bool,
    /// To connect to and to verify: in lower case, an IPv6 address without brackets.
    pub host: String,
    /// To connect to.
    pub port: u16,
    /// What goes into `Host`: the port left out where it is the scheme's own, an IPv6 address in brackets.
    pub authority: String,
    /// Roots instead of the built-in ones, PEM; was there and readable, not yet parsed.
    pub ca_file: Option<PathBuf>,
    /// The HTTP CONNECT proxy to leave through.
    pub via: Option<EgressProxy>,
    /// DNS, TCP, CONNECT and TLS together.
    pub connect_timeout: Duration,
    /// To the end of the response's head.
    pub response_timeout: Duration,
    /// The longest silence inside a response's body.
    pub body_timeout: Duration,
    /// After this a pooled connection is closed.
    pub idle_timeout: Duration,
    /// Requests at once; at least 1.
    pub max_in_flight: usize,
    /// How long a request waits for its turn; may be zero.
    pub queue_timeout: Duration,
}

/// An HTTP CONNECT proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressProxy {
    /// In lower case, an IPv6 address without brackets.
    pub host: String,
    /// To connect to.
    pub port: u16,
    /// The whole value of `Proxy-Authorization`, `Basic …`.
    pub authorization: Option<Masked>,
}

impl UpstreamConfig {
    /// `https://qyapi.weixin.qq.com`
    pub fn origin(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority)
    }
}

impl EgressProxy {
    /// `egress:3128`, without the user and password.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

struct Origin {
    tls: bool,
    host: String,
    port: u16,
    authority: String,
}

pub(super) fn read(root: &ConfigTable<'_>) -> Result<UpstreamConfig, Error> {
    let section = root.subtable("upstream", KEYS)?;
    let wait = |key, seconds| {
        section.read_or(key, Duration::from_secs(seconds), |item| duration::read(item, POSITIVE_RANGE))
    };
    let wecom = Origin { tls: true, host: DEFAULT_HOST.into(), port: 443, authority: DEFAULT_HOST.into() };
    let Origin { tls, host, port, authority } = section.read_or("url", wecom, read_origin)?;
    Ok(UpstreamConfig {
        tls,
        host,
        port,
        authority,
        ca_file: section.read_optional("ca_file", files::read_file_path)?,
        via: section.read_optional("via", read_via)?,
        connect_timeout: wait("connect_timeout", 5)?,
        response_timeout: wait("response_timeout", 30)?,
        body_timeout: wait("body_timeout", 60)?,
        idle_timeout: wait("idle_timeout", 55)?,
        max_in_flight: section.read_or("max_in_flight", 4096, |item| item.count(1..=MAX_CONCURRENCY))?,
        queue_timeout: section
            .read_or("queue_timeout", Duration::from_secs(2), |item| duration::read(item, RANGE_WITH_ZERO))?,
    })
}

fn read_origin(item: &ConfigValue<'_>) -> Result<Origin, Error> {
    let url = url::read(item, &["https", "http"], "https://qyapi.weixin.qq.com")?
        .require_no_userinfo(item)?
        .require_no_path(item)?;
    let tls = url.scheme == "https";
    if !tls && !is_loopback_host(&url.host) {
        item.location.warn("is not https, so secrets and tokens cross the network for everybody to read");
    }
    let default = if tls { 443 } else { 80 };
    let port = url.port.unwrap_or(default);
    let authority = match port == default {
        true => url.bracketed_host(),
        false => format!("{}:{port}", url.bracketed_host()),
    };
    Ok(Origin { tls, host: url.host, port, authority })
}

fn is_loopback_host(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn read_via(item: &ConfigValue<'_>) -> Result<EgressProxy, Error> {
    let url = url::read(item, &["http"], "http://egress:3128")?.require_no_path(item)?;
    Ok(EgressProxy {
        authorization: read_proxy_authorization(item, &url)?,
        port: url.port.unwrap_or(80),
        host: url.host,
    })
}

fn read_proxy_authorization(item: &ConfigValue<'_>, url: &Url<'_>) -> Result<Option<Masked>, Error> {
    let Some(userinfo) = url.userinfo else {
        return Ok(None);
    };
    // Told apart before they are decoded, since a colon may be escaped.
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let mut plain = Zeroizing::new(percent_decode_str(user).collect::<Vec<u8>>());
    if plain.is_empty() || plain.contains(&b':') {
        return Err(item.error(
            "must name a user without a colon before the \"@\", as in \"http://user:password@egress:3128\"",
        ));
    }
    plain.push(b':');
    plain.extend(percent_decode_str(password));
    let encoded = Zeroizing::new(STANDARD.encode(&*plain));
    if !password.is_empty() {
        item.location.warn("holds a password as plain text; keep this file from other readers");
    }
    Ok(Some(Masked::new(format!("Basic {}", *encoded))))
}
