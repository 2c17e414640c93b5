//! Which headers stop here. A header that speaks of one connection, or of one proxy, never crosses to the other side.

use http::{HeaderMap, HeaderName, header};

/// Whether a header belongs to one connection only (RFC 9110 §7.6.1), in either direction.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-authentication-info"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// Whether a request's header stays here: hop-by-hop ones, the client's credentials, what is said to this proxy, and what
/// the client's network would tell of itself. `Host`, `Content-Length` and `Expect` are written anew or answered here.
pub fn stays_here(name: &HeaderName) -> bool {
    let name_text = name.as_str();
    is_hop_by_hop(name)
        || matches!(
            name_text,
            "host"
                | "content-length"
                | "expect"
                | "authorization"
                | "x-api-key"
                | "cookie"
                | "forwarded"
                | "via"
        )
        || name_text.starts_with("x-wecom-")
        || name_text.starts_with("x-forwarded-")
}

/// The headers that `Connection` names as belonging to this connection.
pub fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let options = values.flat_map(|value| value.split(',')).map(str::trim);
    options
        .filter(|option| !option.eq_ignore_ascii_case("close") && !option.eq_ignore_ascii_case("keep-alive"))
        .filter_map(|option| HeaderName::from_bytes(option.as_bytes()).ok())
        .collect()
}

/// Takes out of a response what belonged to the upstream's connection.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in nominated(headers) {
        // The framing is this proxy's to decide, whatever the upstream nominates.
        if name != header::CONTENT_LENGTH {
            headers.remove(name);
        }
    }
    let found: Vec<_> = headers.keys().filter(|name| is_hop_by_hop(name)).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}
