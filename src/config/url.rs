//! Parses the URLs in settings. No error shows the URL, because it may contain a password.
//!
//! Ours: the `url` crate reads a browser's way what parsers read in different ways, such as `http://1.2.3` or
//! `http:\\\\a`, and gives no way to see what was written. Refusing that takes the 45 lines that it would save.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    ops::Deref,
};

use percent_encoding::percent_decode_str;
use rustls::pki_types::ServerName;

use super::error::Error;
use super::reader::ConfigValue;
use crate::secret::Masked;
use crate::text::Text;
use crate::{format_text, text};

/// A URL, or a path with a query, in which there may be a user, a password or a token.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateUrl(String);

impl PrivateUrl {
    /// It with `***` in place of the user, the password and the query's values.
    pub fn masked(&self) -> String {
        let (before, query) = match self.0.split_once('?') {
            Some((before, query)) => (before, Some(query)),
            None => (&*self.0, None),
        };
        let mut text = match before.split_once("://") {
            Some((scheme, rest)) => {
                let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                match authority.rsplit_once('@') {
                    Some((_, host)) => format!("{scheme}://***@{host}{path}"),
                    None => before.to_owned(),
                }
            }
            None => before.to_owned(),
        };
        if let Some(query) = query {
            let items = query.split('&').map(|item| match item.split_once('=') {
                Some((name, value)) if value == "{trace_id}" => format!("{name}={value}"),
                Some((name, _)) => format!("{name}=***"),
                None => "***".to_owned(),
            });
            text = format!("{text}?{}", items.collect::<Vec<_>>().join("&"));
        }
        text
    }
}

impl From<String> for PrivateUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl Deref for PrivateUrl {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PrivateUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.masked())
    }
}

pub(super) struct Url<'a> {
    pub(super) scheme: &'a str,
    /// The part before the `@`.
    pub(super) userinfo: Option<&'a str>,
    /// In lower case; an IPv6 address without its brackets, a name without the dot at its end.
    pub(super) host: String,
    /// Whether the name ends with a dot, which keeps DNS from appending search domains.
    pub(super) is_absolute: bool,
    pub(super) port: Option<u16>,
    /// Path, query and fragment.
    pub(super) rest: &'a str,
}

/// Reads a URL with one of `schemes`; errors show `example`.
pub(super) fn read<'a>(item: &ConfigValue<'a>, schemes: &[&str], example: &str) -> Result<Url<'a>, Error> {
    let text = item.string(format_text!("a URL like {example:?}", "{example:?} 这样的 URL"))?;
    let scheme = text.split_once("://").map(|(scheme, _)| scheme);
    if !scheme.is_some_and(|scheme| schemes.contains(&scheme)) {
        let schemes: Vec<_> = schemes.iter().map(|scheme| format!("{scheme}://")).collect();
        let schemes = Text::formatted(schemes.join(" or "), schemes.join(" 或 "));
        return Err(item.error(format_text!(
            "must start with {}, as in {example:?}",
            "必须以 {} 开头，如 {example:?}",
            schemes
        )));
    }
    let url = parse(text).map_err(|reason| {
        item.error(format_text!("{}; write one like {example:?}", "{}；请写成 {example:?}", reason))
    })?;
    if scheme == Some("https") && ServerName::try_from(&*url.host).is_err() {
        return Err(item.error(text!(
            "has a host that is no valid TLS server name: no label may begin or end with a hyphen",
            "的主机不是有效的 TLS 服务器名：各段不能以连字符开头或结尾"
        )));
    }
    Ok(url)
}

impl Url<'_> {
    /// Refuses a path, query or fragment.
    pub(super) fn require_no_path(self, item: &ConfigValue<'_>) -> Result<Self, Error> {
        if !matches!(self.rest, "" | "/") {
            return Err(item.error(text!(
                "must contain nothing after the host and port: no path, no query",
                "的主机和端口之后不能再有内容：不能有路径和查询参数"
            )));
        }
        Ok(self)
    }

    /// User and password, decoded; without a colon, the password is empty.
    pub(super) fn login(&self, item: &ConfigValue<'_>) -> Result<Option<(Masked, Masked)>, Error> {
        let Some(userinfo) = self.userinfo else { return Ok(None) };
        // Split before decoding, because an escaped colon belongs to the user or password.
        let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
        let decode = |text| {
            let decoded = percent_decode_str(text).decode_utf8().map(|text| Masked::new(&*text));
            decoded.map_err(|_| {
                item.error(text!("has a user or password that is not UTF-8", "的用户名或密码不是 UTF-8"))
            })
        };
        Ok(Some((decode(user)?, decode(password)?)))
    }

    /// Refuses a user or password.
    pub(super) fn require_no_userinfo(self, item: &ConfigValue<'_>) -> Result<Self, Error> {
        match self.userinfo {
            Some(_) => Err(item.error(text!(
                "must contain no user or password before the host",
                "的主机之前不能有用户名或密码"
            ))),
            None => Ok(self),
        }
    }
}

/// The host, in brackets if it is an IPv6 address.
pub fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// `host:port`, with brackets around an IPv6 address.
pub fn authority(host: &str, port: u16) -> String {
    format!("{}:{port}", bracketed(host))
}

pub(super) fn parse(text: &str) -> Result<Url<'_>, Text> {
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(text!("contains a space or a character that is not ASCII", "含有空格或非 ASCII 字符"));
    }
    let (scheme, after) = text.split_once("://").ok_or(text!("has no scheme", "没有协议"))?;
    let (authority, rest) = after.split_at(after.find(['/', '?', '#', '\\']).unwrap_or(after.len()));
    let (userinfo, host_port) = match authority.rsplit_once('@') {
        Some((userinfo, host_port)) => (Some(userinfo), host_port),
        None => (None, authority),
    };
    let (host, port) = match host_port.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (host_port, None),
    };
    let port = port.map(parse_port).transpose()?;
    let name = host.strip_suffix('.').filter(|name| name.parse::<Ipv4Addr>().is_err());
    let (is_absolute, host) = (name.is_some(), parse_host(name.unwrap_or(host))?);
    Ok(Url { scheme, userinfo, host, is_absolute, port, rest })
}

fn parse_port(text: &str) -> Result<u16, Text> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0).ok_or(text!(
        "must have a port from 1 to 65535 after the host",
        "的主机之后必须有 1 到 65535 之间的端口"
    ))
}

fn parse_host(text: &str) -> Result<String, Text> {
    if let Some(inner) = text.strip_prefix('[') {
        let inner = inner
            .strip_suffix(']')
            .ok_or(text!("has a host with an unclosed bracket", "的主机有未闭合的方括号"))?;
        let address = inner.parse::<Ipv6Addr>().map_err(|_| {
            text!("has brackets around a host that is not an IPv6 address", "的方括号中不是 IPv6 地址")
        })?;
        return Ok(address.to_string());
    }
    let is_name = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if text.len() > 253 || !text.split('.').all(is_name) {
        return Err(text!(
            "has no host, or one that is neither a name nor an address",
            "没有主机，或主机既不是名字也不是地址"
        ));
    }
    // Some parsers take a name whose last label is a number for an IPv4 address, others for a name.
    let numeric = text.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
    if numeric && text.parse::<Ipv4Addr>().is_err() {
        return Err(text!(
            "has a host that looks like an IPv4 address but is not one",
            "的主机像 IPv4 地址，但不是"
        ));
    }
    Ok(text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parse_splits_url_into_parts() {
        let url = parse("http://u:p@s@Egress.Example:3128/x?y").unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!((url.scheme, url.userinfo, url.rest), ("http", Some("u:p@s"), "/x?y"));
        assert_eq!((url.host.as_str(), url.port), ("egress.example", Some(3128)));
        let url = parse("https://[::1]").unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!((url.host.as_str(), url.port, bracketed(&url.host).as_str()), ("::1", None, "[::1]"));
        let url = parse("https://QYAPI.weixin.qq.com.:443").unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!((url.host.as_str(), url.is_absolute), ("qyapi.weixin.qq.com", true));
        let url = parse("https://[2001:DB8::1]:8443/").unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!((url.host.as_str(), url.port), ("2001:db8::1", Some(8443)));
    }

    #[test]
    fn parse_refuses_invalid_hosts_and_ports() {
        for text in [
            "http://",
            "http:///x",
            "http://:80",
            "http://a:",
            "http://a:0",
            "http://a:+80",
            "http://a:65536",
            "http://a..b",
            "http://a..",
            "http://.",
            "http://1.2.3.4.",
            "http://a b",
            "http://a%2f",
            "http://999.1.1.1",
            "http://1.2.3",
            "http://[::1",
            "http://::1",
            "http://[1.2.3.4]",
            "http://例え",
            "http://a,b",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parse_never_panics(text in "(https?://)?[ -~é]{0,40}") {
            let _ = parse(&text);
        }
    }
}
