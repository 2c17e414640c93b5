//! `[upstream]`: the address of the WeCom API, and the limits and timeouts of requests to it.

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
    /// Whether the URL's scheme is `https`.
    pub tls: bool,
    /// The host to connect to and to verify; in lower case, an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The value of `Host`: without the scheme's default port, an IPv6 address in brackets.
    pub authority: String,
    /// Root certificates (PEM) in place of the built-in ones; readable, not yet parsed.
    pub ca_file: Option<PathBuf>,
    /// The HTTP CONNECT proxy to connect through.
    pub via: Option<EgressProxy>,
    /// Bounds DNS, TCP, CONNECT and TLS together.
    pub connect_timeout: Duration,
    /// Bounds the time to the end of the response's header block.
    pub response_timeout: Duration,
    /// Bounds the pause between two chunks of a response's body.
    pub body_timeout: Duration,
    /// A pooled connection is closed after this idle time.
    pub idle_timeout: Duration,
    /// Maximum of concurrent requests; at least 1.
    pub max_in_flight: usize,
    /// Bounds the wait for a permit; may be zero.
    pub queue_timeout: Duration,
}

/// An HTTP CONNECT proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressProxy {
    /// In lower case; an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The value of `Proxy-Authorization`, `Basic …`.
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
    let timeout = |key, seconds| {
        section.read_or(key, Duration::from_secs(seconds), |item| duration::read(item, POSITIVE_RANGE))
    };
    let default = Origin { tls: true, host: DEFAULT_HOST.into(), port: 443, authority: DEFAULT_HOST.into() };
    let Origin { tls, host, port, authority } = section.read_or("url", default, read_origin)?;
    Ok(UpstreamConfig {
        tls,
        host,
        port,
        authority,
        ca_file: section.read_optional("ca_file", files::read_file_path)?,
        via: section.read_optional("via", read_via)?,
        connect_timeout: timeout("connect_timeout", 5)?,
        response_timeout: timeout("response_timeout", 30)?,
        body_timeout: timeout("body_timeout", 60)?,
        idle_timeout: timeout("idle_timeout", 55)?,
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
        item.location.warn("is not https, so secrets and tokens cross the network in plain text");
    }
    let default_port = if tls { 443 } else { 80 };
    let port = url.port.unwrap_or(default_port);
    let authority = match port == default_port {
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
    // Split before decoding, because an escaped colon belongs to the user or password.
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let mut credentials = Zeroizing::new(percent_decode_str(user).collect::<Vec<u8>>());
    if credentials.is_empty() || credentials.contains(&b':') {
        return Err(item.error(
            "must name a user without a colon before the \"@\", as in \"http://user:password@egress:3128\"",
        ));
    }
    credentials.push(b':');
    credentials.extend(percent_decode_str(password));
    let encoded = Zeroizing::new(STANDARD.encode(&*credentials));
    if !password.is_empty() {
        item.location.warn("contains a password in plain text; keep this file from other readers");
    }
    Ok(Some(Masked::new(format!("Basic {}", *encoded))))
}
