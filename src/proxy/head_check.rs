//! Checks of the request head besides the path: method, `Host`, form of the target. Pure functions: no I/O, no shared
//! state.

use std::net::{Ipv6Addr, SocketAddr};

use http::{Method, Version};

use super::request::Request;
use crate::http1::headers::HeaderKind;

/// Refusal of CONNECT, which programs send to what they take for a forward proxy.
pub(crate) const CONNECT_MESSAGE: &str = "CONNECT is not served: this is no forward proxy. Leave HTTPS_PROXY and the like unset for this \
     program, and set this proxy's address as the base URL in place of https://qyapi.weixin.qq.com";

/// Refusal of an absolute-form target with another authority.
pub(super) const OTHER_HOST_MESSAGE: &str =
    "the target names another host: write it as a path, and set this proxy as base URL, not as forward proxy";

/// Checks the method, the form of the target, and `Host` unless a cached header block makes that redundant.
pub(super) fn check_head(
    request: &Request,
    host_is_checked: bool,
    is_own_authority: impl Fn(&str, Option<SocketAddr>) -> bool,
) -> Result<(), &'static str> {
    if request.method == Method::CONNECT {
        return Err(CONNECT_MESSAGE);
    }
    if !is_allowed_method(&request.method) {
        return Err(
            "the method must be GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS, in exactly these letters",
        );
    }
    if request.version < Version::HTTP_2 && !host_is_checked {
        let mut hosts = request.headers.values(HeaderKind::Host);
        match (hosts.next(), hosts.next()) {
            (None, _) if request.version == Version::HTTP_11 => return Err("missing Host header"),
            (_, Some(_)) => return Err("duplicate Host header"),
            (Some(host), None) if !is_valid_host(host) => return Err("invalid Host header"),
            _ => {}
        }
    }
    if let Some(message) = request.malformed {
        return Err(message);
    }
    // Clients send an absolute-form target to a forward proxy (RFC 9112 §3.2.2).
    if let Some((authority, local)) = request.absolute_form.as_deref()
        && !std::str::from_utf8(authority).is_ok_and(|authority| is_own_authority(authority, *local))
    {
        return Err(OTHER_HOST_MESSAGE);
    }
    Ok(())
}

/// Whether requests with this method are forwarded. Methods are case-sensitive (RFC 9110 §9.1), but a lenient
/// upstream may read `trace` as TRACE and reflect the token, so only an allow list is safe.
fn is_allowed_method(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET
            | Method::POST
            | Method::HEAD
            | Method::PUT
            | Method::PATCH
            | Method::DELETE
            | Method::OPTIONS
    )
}

/// Accepts `host` or `host:port`, or empty if the target has no authority (RFC 9112 §3.2). A comma would form a list,
/// equivalent to two headers.
fn is_valid_host(text: &[u8]) -> bool {
    let (host, port) = match text.iter().rposition(|byte| *byte == b':') {
        Some(colon) if !text[colon..].contains(&b']') => (&text[..colon], &text[colon + 1..]),
        _ => (text, &b""[..]),
    };
    let is_host_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%".contains(byte);
    let is_name = match host.strip_prefix(b"[").map(|literal| literal.strip_suffix(b"]")) {
        Some(literal) => {
            literal.and_then(|literal| std::str::from_utf8(literal).ok()).is_some_and(is_ipv6_literal)
        }
        None => host.iter().all(is_host_byte),
    };
    let is_digit = port.iter().all(u8::is_ascii_digit);
    let is_port = std::str::from_utf8(port).is_ok_and(|port| port.is_empty() || port.parse::<u16>().is_ok());
    is_name && is_digit && is_port
}

/// An IPv6 address, possibly with a zone (RFC 6874).
fn is_ipv6_literal(literal: &str) -> bool {
    let (address, zone) = match literal.split_once("%25") {
        Some((address, zone)) => (address, Some(zone)),
        None => (literal, None),
    };
    let is_zone = |zone: &str| {
        !zone.is_empty() && zone.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
    };
    address.parse::<Ipv6Addr>().is_ok() && zone.is_none_or(is_zone)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn host_may_be_an_ipv6_address_with_a_zone() {
        for host in ["[::1]", "[fe80::1%25eth0]", "[fe80::1%25eth0]:8080"] {
            assert!(is_valid_host(host.as_bytes()), "{host}");
        }
        for host in ["[fe80::1%25]", "[fe80::1%eth0]", "[fe80::1%25a%20b]", "[x%25eth0]", "[%25eth0]"] {
            assert!(!is_valid_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn allowed_methods_pass() {
        for name in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            assert!(is_allowed_method(&Method::from_bytes(name.as_bytes()).expect("a method")), "{name}");
        }
    }

    proptest! {
        #[test]
        fn other_method_is_rejected(name in "[A-Za-z!#$%&'*+.^_`|~-]{1,12}|[a-zA-Z]{3,7}") {
            let allowed = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"].contains(&&*name);
            let method = Method::from_bytes(name.as_bytes()).expect("a method");
            prop_assert_eq!(is_allowed_method(&method), allowed);
        }
    }
}
