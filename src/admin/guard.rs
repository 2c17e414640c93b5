//! Access control: the admin key, and protection from cross-site requests and DNS rebinding.

use std::net::{IpAddr, Ipv6Addr};

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header, uri::Authority};

use super::error::ApiError;
use crate::{config::KeyHash, secret::http_basic::basic_password};

/// The hashes of the admin keys.
#[derive(Debug, Clone, Copy, Default)]
pub struct AdminKeys {
    /// The operator's, `admin.key_sha256`; without it, every request is allowed.
    pub operator: Option<KeyHash>,
    /// The reader's, `admin.reader_key_sha256`; it may change nothing.
    pub reader: Option<KeyHash>,
}

/// What a request's key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyRole {
    /// No key is configured.
    Open,
    Operator,
    Reader,
}

impl KeyRole {
    /// Its name in the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Open => "none",
            Self::Operator => "operator",
            Self::Reader => "reader",
        }
    }
}

impl AdminKeys {
    /// What the key in these headers allows; `None` if it is missing or wrong.
    pub(super) fn role(&self, headers: &HeaderMap) -> Option<KeyRole> {
        let Some(operator) = self.operator else { return Some(KeyRole::Open) };
        let presented = presented_key(headers)?;
        if presented == operator {
            return Some(KeyRole::Operator);
        }
        (Some(presented) == self.reader).then_some(KeyRole::Reader)
    }
}

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AccessDenied {
    /// The key is missing, or the `presented` one is wrong.
    Unauthenticated {
        presented: bool,
    },
    /// The key is missing or wrong, or not sent as a Bearer token.
    WriteUnauthenticated,
    Forbidden(&'static str),
}

impl From<AccessDenied> for ApiError {
    fn from(denied: AccessDenied) -> Self {
        let (message, challenges) = match denied {
            AccessDenied::Forbidden(message) => return Self::new(StatusCode::FORBIDDEN, message),
            AccessDenied::WriteUnauthenticated => (
                "admin key required: send the key whose hash is admin.key_sha256 as \"Authorization: Bearer KEY\"; for changes it is \
                 accepted in no other way",
                &[BEARER_CHALLENGE][..],
            ),
            AccessDenied::Unauthenticated { presented: true } => (
                "wrong admin key: send the key whose hash is admin.key_sha256 as \"Authorization: Bearer KEY\" or by HTTP Basic \
                 as the password",
                &[BASIC_CHALLENGE, BEARER_CHALLENGE][..],
            ),
            AccessDenied::Unauthenticated { presented: false } => (
                "admin key required: send it as \"Authorization: Bearer KEY\" or by HTTP Basic as the password",
                &[BASIC_CHALLENGE, BEARER_CHALLENGE][..],
            ),
        };
        // One header per challenge: Chromium ignores all but the first challenge of a header.
        challenges.iter().fold(Self::new(StatusCode::UNAUTHORIZED, message), |error, challenge| {
            error.with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
        })
    }
}

const BASIC_CHALLENGE: &str = "Basic realm=\"wecom-proxy admin\", charset=\"UTF-8\"";
const BEARER_CHALLENGE: &str = "Bearer realm=\"wecom-proxy admin\"";

const READER_MESSAGE: &str = "this key may only read; send the operator's, whose hash is admin.key_sha256";

/// Requires a key that allows it, if one is configured. Without a key, requires a local `Host`, because a foreign name that resolves
/// to this address (DNS rebinding) would let another site's page read responses.
pub(super) fn authorize<B>(keys: &AdminKeys, request: &Request<B>) -> Result<(), AccessDenied> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    match keys.role(request.headers()) {
        None => {
            let presented = request.headers().contains_key(header::AUTHORIZATION);
            Err(AccessDenied::Unauthenticated { presented })
        }
        Some(KeyRole::Reader) if !is_read => Err(AccessDenied::Forbidden(READER_MESSAGE)),
        Some(KeyRole::Open) if !has_local_host(request) => {
            let message = "without admin.key_sha256, Host must be an IP address or localhost";
            Err(AccessDenied::Forbidden(message))
        }
        Some(_) => Ok(()),
    }
}

/// Requires the key as a Bearer token: a browser sends no such header by itself, as it does for Basic or a cookie.
pub(super) fn authorize_write<B>(keys: &AdminKeys, request: &Request<B>) -> Result<(), AccessDenied> {
    let Some(key) = keys.operator else {
        return Err(AccessDenied::Forbidden(
            "this needs admin.key_sha256 in the configuration; \"wecom-proxy key admin\" makes a key and prints its hash",
        ));
    };
    let value = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = value
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match bearer {
        Some((_, token)) if KeyHash::of(token.trim()) == key => Ok(()),
        _ if keys.role(request.headers()) == Some(KeyRole::Reader) => {
            Err(AccessDenied::Forbidden(READER_MESSAGE))
        }
        _ => Err(AccessDenied::WriteUnauthenticated),
    }
}

/// The hash of the key that is presented as a Bearer token or a Basic password.
fn presented_key(headers: &HeaderMap) -> Option<KeyHash> {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, credentials) = value?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(KeyHash::of(credentials.trim()));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    basic_password(credentials.trim().as_bytes()).map(|password| KeyHash::of(password.expose()))
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
    let own_site =
        header_values(request, "sec-fetch-site").all(|site| matches!(site, "same-origin" | "none"));
    let own_origin = header_values(request, "origin").all(|origin| {
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        let mut hosts = header_values(request, "host").map(Some).chain([None]);
        authority.is_some() && hosts.next() == Some(authority) && hosts.next() == Some(None)
    });
    if own_site && own_origin { Ok(()) } else { Err(AccessDenied::Forbidden("cross-site request refused")) }
}

/// All values of a header, because each could be the one that counts.
fn header_values<'a, B>(request: &'a Request<B>, name: &str) -> impl Iterator<Item = &'a str> {
    request.headers().get_all(name).iter().map(|value| value.to_str().unwrap_or("?"))
}

/// Refuses actions of other sites' pages also in browsers without these headers: requires a header that an HTML form
/// cannot send and for which browsers send a CORS preflight.
pub(super) fn check_csrf<B>(request: &Request<B>) -> Result<(), AccessDenied> {
    check_same_origin(request)?;
    let is_json = |kind: &str| {
        kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
    };
    if header_values(request, "content-type").next().is_some_and(is_json)
        || header_values(request, "x-requested-with").next().is_some()
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
        authorize(&AdminKeys::default(), &request).and_then(|()| check_csrf(&request))
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
            &[host, json, ("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
            &[host, json, same_origin, ("origin", "https://elsewhere.example")],
            &[host, ("host", "elsewhere.example"), json, ("origin", "http://elsewhere.example")],
            &[host, ("host", "127.0.0.1:9090"), json, same_origin],
            &[("host", "rebind.example"), json],
        ] {
            assert!(authorize_action(refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn reader_may_read_and_change_nothing() {
        let keys = AdminKeys { operator: Some(KeyHash::of("o")), reader: Some(KeyHash::of("r")) };
        let request = |method: Method, key: &str| {
            let request = Request::builder().method(method).uri("/api/reload");
            request.header("authorization", format!("Bearer {key}")).body(()).expect("a request")
        };
        let forbidden = || Err(AccessDenied::Forbidden(READER_MESSAGE));
        assert_eq!(authorize(&keys, &request(Method::GET, "r")), Ok(()));
        assert_eq!(authorize(&keys, &request(Method::POST, "r")), forbidden());
        assert_eq!(authorize_write(&keys, &request(Method::PUT, "r")), forbidden());
        assert_eq!(authorize(&keys, &request(Method::POST, "o")), Ok(()));
        assert_eq!(authorize_write(&keys, &request(Method::PUT, "o")), Ok(()));
        let wrong = request(Method::GET, "x");
        assert_eq!(authorize(&keys, &wrong), Err(AccessDenied::Unauthenticated { presented: true }));
        assert_eq!(authorize_write(&keys, &wrong), Err(AccessDenied::WriteUnauthenticated));
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
