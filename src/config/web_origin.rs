//! Web origins (RFC 6454): `jssdk_origins` of an agent, and the origin of a URL or of an `Origin` header.

use std::{fmt, net::Ipv6Addr};

use super::error::{Error, quote};
use super::reader::{ConfigValue, read_all};
use crate::{format_text, text};

/// An origin in the form that browsers send: in small letters, without a default port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebOrigin(String);

impl WebOrigin {
    /// Parses an origin without anything after it, such as the value of an `Origin` header.
    pub fn parse(text: &str) -> Option<Self> {
        let (origin, rest) = Self::split(text)?;
        rest.is_empty().then_some(origin)
    }

    /// The origin of an absolute http or https URL. `None` for any other URL, and for one with a user name, which hides
    /// the host from readers.
    pub fn of_url(url: &str) -> Option<Self> {
        Self::split(url).map(|(origin, _)| origin)
    }

    /// The origin as in an `Origin` header.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn split(url: &str) -> Option<(Self, &str)> {
        let (scheme, after) = url.split_once("://")?;
        let default_port = match scheme.to_ascii_lowercase().as_str() {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let (authority, rest) = after.split_at(after.find(['/', '?', '#']).unwrap_or(after.len()));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(parse_port(port)?)),
            _ => (authority, None),
        };
        let host = normalize_host(host)?;
        let port = port.filter(|port| *port != default_port).map_or(String::new(), |port| format!(":{port}"));
        Some((Self(format!("{}://{host}{port}", scheme.to_ascii_lowercase())), rest))
    }

    /// Whether what a page of this origin shows can be trusted to come from it: https, or http that does not leave the
    /// machine.
    fn is_trustworthy(&self) -> bool {
        let Some(authority) = self.0.strip_prefix("http://") else { return true };
        let is_at = |host: &str| {
            authority.strip_prefix(host).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        };
        let host = authority.split(':').next().unwrap_or_default();
        let is_loopback = host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback());
        is_loopback || is_at("localhost") || is_at("[::1]")
    }
}

impl fmt::Display for WebOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn parse_port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn normalize_host(host: &str) -> Option<String> {
    if let Some(literal) = host.strip_prefix('[') {
        let address: Ipv6Addr = literal.strip_suffix(']')?.parse().ok()?;
        return Some(format!("[{address}]"));
    }
    let is_name = !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    is_name.then(|| host.to_ascii_lowercase())
}

/// Reads an agent's `jssdk_origins`.
pub(super) fn read_list(item: &ConfigValue<'_>) -> Result<Vec<WebOrigin>, Error> {
    let items = item.list(text!(
        "a list of origins like [\"https://app.example.com\"]",
        "来源列表，如 [\"https://app.example.com\"]"
    ))?;
    if items.is_empty() {
        return Err(item.error(text!(
            "is empty; leave the key out where no browser may ask without a client's key",
            "为空；不允许浏览器在没有调用方密钥时请求的话，请去掉此键"
        )));
    }
    read_all(&items, read_origin)
}

fn read_origin(item: &ConfigValue<'_>) -> Result<WebOrigin, Error> {
    let text = item.string(text!(
        "an origin like \"https://app.example.com\"",
        "\"https://app.example.com\" 这样的来源"
    ))?;
    let Some(origin) = WebOrigin::parse(text) else {
        return Err(item.error(format_text!("{} is not an origin: write scheme, host and port as \"https://app.example.com:8443\", without a path, a \
             slash at the end or a wildcard", "{} 不是来源：请写协议、主机和端口，如 \"https://app.example.com:8443\"，不含路径、末尾斜杠和通配符",
            quote(text))));
    };
    match origin.is_trustworthy() {
        true => Ok(origin),
        false => Err(item.error(format_text!(
            "{} is http, which is allowed for localhost, 127.0.0.1 and [::1] only; use https",
            "{} 是 http，只允许用于 localhost、127.0.0.1 和 [::1]；请用 https",
            quote(text)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of_url(url: &str) -> Option<String> {
        WebOrigin::of_url(url).map(|origin| origin.0)
    }

    #[test]
    fn origin_of_url_is_what_a_browser_sends() {
        for (url, expected) in [
            ("https://app.example.com", Some("https://app.example.com")),
            ("HTTPS://App.Example.com:443/a?b#c", Some("https://app.example.com")),
            ("http://localhost:80/x", Some("http://localhost")),
            ("https://a.example:8443?x=1", Some("https://a.example:8443")),
            ("https://[2001:DB8::1]:9/", Some("https://[2001:db8::1]:9")),
            ("https://[::1]", Some("https://[::1]")),
            ("https://a.example@b.example/", None),
            ("https://a.example:x@b.example/", None),
            ("https://a.example\\@b.example/", None),
            ("https://a.example:+1/", None),
            ("https://a.example:65536/", None),
            ("https://a.example:/", None),
            ("https:///x", None),
            ("//a.example/", None),
            ("ftp://a.example/", None),
            ("javascript://a.example/", None),
            ("null", None),
            ("", None),
        ] {
            assert_eq!(of_url(url).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn origin_with_anything_behind_it_is_none() {
        for text in ["https://a.example/", "https://a.example?", "https://a.example#", "https://*.example"] {
            assert_eq!(WebOrigin::parse(text), None, "{text}");
        }
    }

    #[test]
    fn http_is_trustworthy_on_loopback_only() {
        for (text, expected) in [
            ("https://app.example.com", true),
            ("http://localhost", true),
            ("http://localhost:3000", true),
            ("http://127.0.0.1:3000", true),
            ("http://127.1.2.3", true),
            ("http://[::1]:3000", true),
            ("http://localhost.example.com", false),
            ("http://127.0.0.1.example.com", false),
            ("http://app.example.com", false),
            ("http://192.0.2.1", false),
        ] {
            assert_eq!(WebOrigin::parse(text).expect("an origin").is_trustworthy(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn origin_of_an_origin_is_itself(text in "(https?)://[a-zA-Z0-9.-]{1,20}(:[0-9]{1,5})?(/[a-z]{0,3})?") {
            if let Some(origin) = WebOrigin::of_url(&text) {
                prop_assert_eq!(WebOrigin::parse(origin.as_str()), Some(origin));
            }
        }

        #[test]
        fn any_text_is_parsed_without_panic(text in "\\PC{0,40}") {
            let _ = WebOrigin::of_url(&format!("https://{text}"));
            let _ = WebOrigin::of_url(&text);
        }
    }
}
