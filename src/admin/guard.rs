//! Who may ask, and whose browser was talked into asking.

use std::net::{IpAddr, Ipv6Addr};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, Request, header, uri::Authority};

use crate::config::KeyHash;

/// Why a request is not answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AccessDenied {
    /// The key is missing, or what is shown is another.
    Unauthenticated {
        presented: bool,
    },
    Forbidden(&'static str),
}

/// Lets a request in that shows the key, if there is one. Without a key whoever is here is let in; a foreign name that leads
/// here brings a page from elsewhere.
pub(super) fn authorize<B>(key: Option<&KeyHash>, request: &Request<B>) -> Result<(), AccessDenied> {
    match key {
        Some(key) if !presents_key(request.headers(), key) => {
            let shown = request.headers().contains_key(header::AUTHORIZATION);
            Err(AccessDenied::Unauthenticated { presented: shown })
        }
        None if !has_local_host(request) => {
            let words =
                "without a key this listener is asked by an address or as localhost, and by no other name";
            Err(AccessDenied::Forbidden(words))
        }
        _ => Ok(()),
    }
}

fn presents_key(headers: &HeaderMap, key: &KeyHash) -> bool {
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((scheme, rest)) = shown.and_then(|shown| shown.split_once(' ')) else { return false };
    if scheme.eq_ignore_ascii_case("bearer") {
        return KeyHash::of(rest.trim()) == *key;
    }
    let pair = BASE64_STANDARD.decode(rest.trim()).ok().and_then(|pair| String::from_utf8(pair).ok());
    let password = pair.as_deref().and_then(|pair| pair.split_once(':')).map(|(_, password)| password);
    scheme.eq_ignore_ascii_case("basic") && password.is_some_and(|password| KeyHash::of(password) == *key)
}

/// Whether the request's host is an address or localhost. Browsers always name one.
fn has_local_host<B>(request: &Request<B>) -> bool {
    let by_target = request.uri().authority().map(Authority::as_str);
    let mut by_header =
        request.headers().get_all(header::HOST).iter().map(|value| value.to_str().unwrap_or("?"));
    by_header.all(is_local_authority) && by_target.is_none_or(is_local_authority)
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

/// What is told here is not for other sites' pages. Browsers say where from.
pub(super) fn check_same_origin<B>(request: &Request<B>) -> Result<(), AccessDenied> {
    let foreign = AccessDenied::Forbidden("this comes from another site's page");
    if !matches!(header_value(request, "sec-fetch-site"), None | Some("same-origin" | "none")) {
        return Err(foreign);
    }
    if let Some(origin) = header_value(request, "origin") {
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        if authority.is_none() || authority != header_value(request, "host") {
            return Err(foreign);
        }
    }
    Ok(())
}

fn header_value<'a, B>(request: &'a Request<B>, name: &str) -> Option<&'a str> {
    request.headers().get(name).map(|value| value.to_str().unwrap_or("?"))
}

/// An order must not come from another site's page either, and browsers ask before they send a header that no form can.
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
        "an order needs the header \"Content-Type: application/json\" or \"X-Requested-With\", which no other site's form can send",
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
        let own = ("origin", "http://127.0.0.1:9090");
        assert_eq!(authorize_action(&[host, json, own, ("sec-fetch-site", "same-origin")]), Ok(()));
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
