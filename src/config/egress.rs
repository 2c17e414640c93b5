//! `upstream.via`: the egress proxies that connections to WeCom go through.

use std::net::IpAddr;

use super::error::{Error, quote};
use super::reader::ConfigValue;
use super::secret;
use super::url::{self, Url};
use crate::secret::Masked;
use crate::text::Text;
use crate::{format_text, text};

pub(super) const KEYS: &[&str] = &["url", "user", "password"];

const EXAMPLE: &str = "http://egress:3128";
const EXPECTED: Text = text!(
    "a URL like \"http://egress:3128\", a table like { url = \"http://egress:3128\", user = \"…\", password = { env = \"NAME\" } }, or a list of these",
    "\"http://egress:3128\" 这样的 URL，或 { url = \"http://egress:3128\", user = \"…\", password = { env = \"NAME\" } } 这样的表，或它们的列表"
);

/// Most egress proxies of one upstream.
const MAX_EGRESS_PROXIES: usize = 16;

/// Maximum bytes of user, password and address together. hyper-util writes the messages of SOCKS5 into one buffer of
/// 262 bytes, of which the rest takes 12.
const MAX_SOCKS_BYTES: usize = 250;

/// An egress proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressProxy {
    /// How it is asked for a connection.
    pub protocol: EgressProtocol,
    /// In lower case; an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What it is shown, if it asks for a login.
    pub login: Option<EgressLogin>,
}

/// The protocol of an egress proxy, by the URL's scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EgressProtocol {
    /// `http`: CONNECT (RFC 9110 §9.3.6).
    HttpConnect,
    /// `socks5`: SOCKS5 (RFC 1928) with an address that is resolved here.
    Socks5,
    /// `socks5h`: SOCKS5 with the name, which the egress proxy resolves.
    Socks5Hostname,
}

/// User and password for an egress proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressLogin {
    /// Never empty, and without a colon.
    pub user: Masked,
    /// May be empty.
    pub password: Masked,
}

impl EgressProxy {
    /// `egress:3128`, without the user and password.
    pub fn authority(&self) -> String {
        url::authority(&self.host, self.port)
    }
}

/// One egress proxy or a list of them. `upstream_host`: the host that they are asked for.
pub(super) fn read(item: &ConfigValue<'_>, upstream_host: &str) -> Result<Vec<EgressProxy>, Error> {
    let items = if item.is_list() { item.list(EXPECTED)? } else { vec![item.clone()] };
    if !(1..=MAX_EGRESS_PROXIES).contains(&items.len()) {
        return Err(item.error(format_text!(
            "must list from 1 to {MAX_EGRESS_PROXIES} egress proxies; leave it out to connect without one",
            "必须列出 1 到 {MAX_EGRESS_PROXIES} 个出口代理；直接连接请去掉此项"
        )));
    }
    let mut proxies: Vec<EgressProxy> = Vec::with_capacity(items.len());
    for item in &items {
        let proxy = read_proxy(item)?;
        check_socks_login(item, &proxy, upstream_host)?;
        if proxies.iter().any(|other| other.authority() == proxy.authority()) {
            return Err(item.error(format_text!(
                "lists {} twice",
                "把 {} 列出了两次",
                quote(&proxy.authority())
            )));
        }
        proxies.push(proxy);
    }
    Ok(proxies)
}

fn read_proxy(item: &ConfigValue<'_>) -> Result<EgressProxy, Error> {
    if item.as_str().is_some() {
        return read_url(item);
    }
    let section = item.table(EXPECTED, KEYS)?;
    let mut proxy = section.read_required("url", &format!("url = {EXAMPLE:?}"), read_url)?;
    let Some(user) = section.find("user") else {
        return match section.find("password") {
            Some(password) => Err(password.error(text!("needs a user beside it", "需要同时写 user"))),
            None => Ok(proxy),
        };
    };
    if proxy.login.is_some() {
        return Err(
            user.error(text!("stands in the url too; keep one of the two", "在 url 中也有；两者只保留一个"))
        );
    }
    let name = user.string(text!("a user's name", "用户名"))?;
    if !is_user(name) {
        return Err(user.error(text!("must be a user's name without a colon", "必须是不含冒号的用户名")));
    }
    let password = section.read_required("password", "password = { env = \"NAME\" }", secret::read)?;
    proxy.login = Some(EgressLogin { user: Masked::new(name), password });
    Ok(proxy)
}

fn read_url(item: &ConfigValue<'_>) -> Result<EgressProxy, Error> {
    let url = url::read(item, &["http", "socks5", "socks5h"], EXAMPLE)?.require_no_path(item)?;
    let (protocol, default_port) = match url.scheme {
        "socks5" => (EgressProtocol::Socks5, 1080),
        "socks5h" => (EgressProtocol::Socks5Hostname, 1080),
        _ => (EgressProtocol::HttpConnect, 80),
    };
    let login = read_userinfo(item, &url)?;
    let port = url.port.unwrap_or(default_port);
    Ok(EgressProxy { protocol, host: url.host, port, login })
}

fn read_userinfo(item: &ConfigValue<'_>, url: &Url<'_>) -> Result<Option<EgressLogin>, Error> {
    let Some((user, password)) = url.login(item)? else { return Ok(None) };
    let login = EgressLogin { user, password };
    if !is_user(login.user.expose()) {
        return Err(item.error(text!(
            "must name a user without a colon before the \"@\", as in \"http://user:password@egress:3128\"",
            "必须在 \"@\" 前写不含冒号的用户名，如 \"http://user:password@egress:3128\""
        )));
    }
    if !login.password.expose().is_empty() {
        item.location.warn(
            text!("contains a password in plain text; write via = { url = \"…\", user = \"…\", password = { env = \"NAME\" } }", "含有明文密码；请写 via = { url = \"…\", user = \"…\", password = { env = \"NAME\" } }"),
        );
    }
    Ok(Some(login))
}

fn is_user(name: &str) -> bool {
    !name.is_empty() && !name.contains([':', '\r', '\n', '\0'])
}

fn check_socks_login(item: &ConfigValue<'_>, proxy: &EgressProxy, upstream_host: &str) -> Result<(), Error> {
    let Some(login) = proxy.login.as_ref().filter(|_| proxy.protocol != EgressProtocol::HttpConnect) else {
        return Ok(());
    };
    let address_bytes = match upstream_host.parse() {
        Ok(IpAddr::V4(_)) => 4,
        // A name that is resolved here may have an IPv6 address.
        Ok(IpAddr::V6(_)) => 16,
        Err(_) if proxy.protocol == EgressProtocol::Socks5 => 16,
        Err(_) => 1 + upstream_host.trim_end_matches('.').len(),
    };
    let max_bytes = MAX_SOCKS_BYTES.saturating_sub(address_bytes);
    if login.user.expose().len() + login.password.expose().len() <= max_bytes {
        return Ok(());
    }
    Err(item.error(format_text!("has a user and password over {max_bytes} bytes together, the most that fit beside the host of upstream.url over SOCKS5", "的用户名和密码合计超过 {max_bytes} 字节，SOCKS5 中除 upstream.url 的主机名外放不下更多")))
}
