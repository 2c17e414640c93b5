//! Access control: the admin key, and protection from cross-site requests and DNS rebinding.

use std::net::{IpAddr, Ipv6Addr};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, Request, header, uri::Authority};

use crate::config::KeyHash;

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AccessDenied {
    /// The key is missing, or the `presented` one is wrong.
    Unauthenticated {
        presented: bool,
    },
    Forbidden(&'static str),
}

/// Requires the key, if one is configured. Without a key, requires a local `Host`, because a foreign name that resolves
/// to this address (DNS rebinding) would let another site's page read responses.
pub(super) fn authorize<B>(key: Option<&KeyHash>, request: &Request<B>) -> Result<(), AccessDenied> {
    match key {
        Some(key) if !presents_key(request.headers(), key) => {
            let presented = request.headers().contains_key(header::AUTHORIZATION);
            Err(AccessDenied::Unauthenticated { presented })
        }
        None if !has_local_host(request) => {
            let message = "without admin.key_sha256, Host must be an IP address or localhost";
            Err(AccessDenied::Forbidden(message))
        }
        _ => Ok(()),
    }
}

fn presents_key(headers: &HeaderMap, key: &KeyHash) -> bool {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((scheme, credentials)) = value.and_then(|value| value.split_once(' ')) else { return false };
    if scheme.eq_ignore_ascii_case("bearer") {
        return KeyHash::of(credentials.trim()) == *key;
    }
    let pair = BASE64_STANDARD.decode(credentials.trim()).ok().and_then(|pair| String::from_utf8(pair).ok());
    let password = pair.as_deref().and_then(|pair| pair.split_once(':')).map(|(_, password)| password);
    scheme.eq_ignore_ascii_case("basic") && password.is_some_and(|password| KeyHash::of(password) == *key)
}

/// Whether the request's host is an IP address or localhost, or absent: browsers always send one.
fn has_local_host<B>(request: &Request<B>) -> bool {
    let from_target = request.uri().authority().map(Authority::as_str);
    let mut from_headers =
        request.headers().get_all(header::HOST).iter().map(|value| value.to_str().unwrap_or("?"));
    from_headers.all(is_local_authority) && from_target.is_none_or(is_local_authority)
}

fn is_local_authority(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else { return false };
    let host = authority.host().trim_end_matches('.');
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_address = match address {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<IpAddr>().is_ok(),
    };
    let is_local = |host: &str| host == "localhost" || host.ends_with(".localhost");
    is_address || is_local(&host.to_ascii_lowercase())
}

/// Refuses requests of other sites' pages, by the headers with which browsers name the origin.
pub(super) fn check_same_origin<B>(request: &Request<B>) -> Result<(), AccessDenied> {
    let cross_site = AccessDenied::Forbidden("cross-site request refused");
    if !matches!(header_value(request, "sec-fetch-site"), None | Some("same-origin" | "none")) {
        return Err(cross_site);
    }
    if let Some(origin) = header_value(request, "origin") {
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        if authority.is_none() || authority != header_value(request, "host") {
            return Err(cross_site);
        }
    }
    Ok(())
}

fn header_value<'a, B>(request: &'a Request<B>, name: &str) -> Option<&'a str> {
    request.headers().get(name).map(|value| value.to_str().unwrap_or("?"))
}

/// Refuses actions of other sites' pages also in browsers without these headers: requires a header that an HTML form
/// cannot send and for which browsers send a CORS preflight.
pub(super) fn check_csrf<B>(request: &Request<B>) -> Result<(), AccessDenied> {
    check_same_origin(request)?;
    let is_json = |kind: &str| {
        kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
    };
    if header_value(request, "content-type").is_some_and(is_json)
        || header_value(request, "x-requested-with").is_some()
    {
        return Ok(());
    }
    Err(AccessDenied::Forbidden(
        "this action needs the header \"Content-Type: application/json\" or \"X-Requested-With\", which no other site's form can send",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authorize_action(headers: &[(&str, &str)]) -> Result<(), AccessDenied> {
        let mut request = Request::post("/api/reload");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        authorize(None, &request).and_then(|()| check_csrf(&request))
    }

    #[test]
    fn only_addresses_and_localhost_are_local_authorities() {
        for host in
            ["127.0.0.1:9090", "127.0.0.1", "[::1]:9090", "localhost:9090", "LocalHost", "x.localhost."]
        {
            assert!(is_local_authority(host), "{host}");
        }
        for host in ["rebind.example:9090", "localhost.example", "127.0.0.1.example", "[::1", "", "a b", "?"]
        {
            assert!(!is_local_authority(host), "{host}");
        }
    }

    #[test]
    fn cross_site_action_is_forbidden() {
        let json = ("content-type", "application/json");
        let host = ("host", "127.0.0.1:9090");
        assert_eq!(authorize_action(&[host, json]), Ok(()));
        assert_eq!(authorize_action(&[host, ("content-type", "Application/JSON; charset=utf-8")]), Ok(()));
        assert_eq!(authorize_action(&[host, ("x-requested-with", "curl")]), Ok(()));
        let same_origin = ("origin", "http://127.0.0.1:9090");
        assert_eq!(authorize_action(&[host, json, same_origin, ("sec-fetch-site", "same-origin")]), Ok(()));
        for refused in [
            &[host][..],
            &[host, ("content-type", "text/plain")],
            &[host, ("content-type", "application/x-www-form-urlencoded")],
            &[host, json, ("sec-fetch-site", "cross-site")],
            &[host, json, ("sec-fetch-site", "same-site")],
            &[host, json, ("origin", "http://127.0.0.1:8080")],
            &[host, json, ("origin", "https://elsewhere.example")],
            &[host, json, ("origin", "null")],
            &[("host", "rebind.example"), json],
        ] {
            assert!(authorize_action(refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn cross_site_read_is_forbidden() {
        let read = |name, value| {
            let request = Request::get("/api/overview").header("host", "127.0.0.1:9090").header(name, value);
            check_same_origin(&request.body(()).expect("a request"))
        };
        for (name, value) in [
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-site", "none"),
            ("origin", "http://127.0.0.1:9090"),
        ] {
            assert_eq!(read(name, value), Ok(()), "{value}");
        }
        for (name, value) in
            [("sec-fetch-site", "cross-site"), ("sec-fetch-site", "same-site"), ("origin", "null")]
        {
            assert!(read(name, value).is_err(), "{value}");
        }
    }
}
