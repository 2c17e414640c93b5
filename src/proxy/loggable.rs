//! Methods and paths in a form that is safe to log.

use std::borrow::Cow;

use http::Method;

use super::path_credential::{is_prefix_of_path_key, may_contain_path_key};
use crate::{inspector::redact::MASK, secret::credential_scan::may_be_credential};

/// Name of a registered method, else `-`: an unregistered one may be a misplaced key.
pub(super) fn loggable_method(method: &Method) -> &str {
    match *method {
        Method::GET | Method::POST => method.as_str(),
        _ if REGISTERED_METHODS.binary_search(&method.as_str()).is_ok() => method.as_str(),
        _ => "-",
    }
}

/// Methods registered with IANA (RFC 9110 §16.1).
#[rustfmt::skip]
const REGISTERED_METHODS: [&str; 40] = [
    "ACL", "BASELINE-CONTROL", "BIND", "CHECKIN", "CHECKOUT", "CONNECT", "COPY", "DELETE", "GET", "HEAD", "LABEL",
    "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MKREDIRECTREF", "MKWORKSPACE", "MOVE", "OPTIONS",
    "ORDERPATCH", "PATCH", "POST", "PRI", "PROPFIND", "PROPPATCH", "PUT", "QUERY", "REBIND", "REPORT", "SEARCH",
    "TRACE", "UNBIND", "UNCHECKOUT", "UNLINK", "UNLOCK", "UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL",
];

/// The path up to a mistyped query, encoded or not, with possible credentials masked. `agent` is the name of a known
/// agent, which is not masked.
pub(super) fn masked_path<'a>(path: &'a str, agent: Option<&str>) -> Cow<'a, str> {
    let path = strip_mistyped_query(path);
    let is_credential =
        |segment: &[u8]| may_be_credential(segment) && Some(segment) != agent.map(str::as_bytes);
    // Splitting bytes takes half as long as splitting text.
    if !path.as_bytes().split(|byte| *byte == b'/').any(is_credential) && !may_contain_path_key(path) {
        return Cow::Borrowed(path);
    }
    let mut follows_k = false;
    let segments = path.split('/').map(|segment| {
        let is_path_key = follows_k && !segment.is_empty();
        // Doubled slashes may stand between the two; an encoded one is part of this segment.
        follows_k = is_prefix_of_path_key(segment) || follows_k && segment.is_empty();
        let is_masked = is_path_key || may_contain_path_key(segment) || is_credential(segment.as_bytes());
        if is_masked { MASK } else { segment }
    });
    Cow::Owned(segments.collect::<Vec<_>>().join("/"))
}

/// The path before a mistyped query: what looks like a query without its question mark, from the first `&`, `=`, `%3F`,
/// `%3D` or `%26` on.
fn strip_mistyped_query(path: &str) -> &str {
    let encoded = |at: usize| {
        let digits = path.as_bytes().get(at + 1..at + 3).unwrap_or_default();
        [b"3f", b"3d", b"26"].iter().any(|code| digits.eq_ignore_ascii_case(*code))
    };
    let mut delimiters = memchr::memchr3_iter(b'&', b'=', b'%', path.as_bytes());
    let end = delimiters.find(|at| path.as_bytes()[*at] != b'%' || encoded(*at));
    &path[..end.unwrap_or(path.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unregistered_method_is_not_logged() {
        assert!(REGISTERED_METHODS.is_sorted());
        for name in REGISTERED_METHODS {
            assert_eq!(loggable_method(&Method::from_bytes(name.as_bytes()).expect("a method")), name);
        }
        for other in ["get", "GE", "key-of-crm", "-"] {
            assert_eq!(loggable_method(&Method::from_bytes(other.as_bytes()).expect("a method")), "-");
        }
    }

    #[test]
    fn mistyped_query_is_not_logged() {
        for (path, expected) in [
            ("/cgi-bin/user/%67et", "/cgi-bin/user/%67et"),
            ("/cgi-bin/a&access_token=x", "/cgi-bin/a"),
            ("/cgi-bin/a=x", "/cgi-bin/a"),
            ("/cgi-bin/a%3Faccess_token%3Dx", "/cgi-bin/a"),
            ("/cgi-bin/a%3daccess", "/cgi-bin/a"),
            ("/cgi-bin/a%26b", "/cgi-bin/a"),
            ("/cgi-bin/a%2", "/cgi-bin/a%2"),
            ("/cgi-bin/a%", "/cgi-bin/a%"),
        ] {
            assert_eq!(masked_path(path, None), expected);
        }
    }

    #[test]
    fn credential_in_path_is_masked() {
        let (secret, pass) = ("Z9x-yW8v_0123456789abcdefABCDEF-_0123456789a", "wp1-AAAAAGqxO4ABbgFu");
        for (path, expected) in [
            (format!("/{secret}/cgi-bin/user/get"), "/[masked]/cgi-bin/user/get"),
            (format!("/hr/cgi-bin/user/get/{pass}"), "/hr/cgi-bin/user/get/[masked]"),
            (format!("/cgi-bin/{secret}/{secret}&a=b"), "/cgi-bin/[masked]/[masked]"),
            ("/cgi-bin/%61ccess%5Ftoken%2Fx%2Fy".to_owned(), "/cgi-bin/[masked]"),
        ] {
            assert_eq!(masked_path(&path, Some("hr")), expected);
        }
        for path in [
            "/cgi-bin/idconvert/unionid_to_external_userid_3rd",
            "/cgi-bin/externalcontact/get_user_behavior_data",
            "/cgi-bin/checkin/getcheckinschedulist",
            "/contacts-sync-of-all-employees/cgi-bin/user/get",
            "/Agent-Number-2026/cgi-bin/user/get",
        ] {
            assert_eq!(masked_path(path, Some("Agent-Number-2026")), path);
        }
        assert_eq!(masked_path("/Agent-Number-2026/cgi-bin/user/get", None), "/[masked]/cgi-bin/user/get");
    }

    #[test]
    fn segment_after_a_mistyped_prefix_is_masked() {
        for (path, expected) in [
            ("/hr/k/my-key/cgi-bin/user/get", "/hr/k/[masked]/cgi-bin/user/get"),
            ("/K/my-key/cgi-bin/user/get", "/K/[masked]/cgi-bin/user/get"),
            ("/%6b/my-key/hr/cgi-bin/user/get", "/%6b/[masked]/hr/cgi-bin/user/get"),
            ("/%254B/my-key", "/%254B/[masked]"),
            ("/hr/k//my-key/cgi-bin", "/hr/k//[masked]/cgi-bin"),
            ("/k/k/my-key/x", "/k/[masked]/[masked]/x"),
            ("/k%2Fmy-key/cgi-bin", "/[masked]/cgi-bin"),
            ("/hr%2fk%2fmy-key", "/[masked]"),
            ("k/my-key", "k/[masked]"),
        ] {
            assert_eq!(masked_path(path, None), expected);
        }
        for path in ["/cgi-bin/k", "/cgi-bin/k/", "/kk/my/cgi-bin", "/cgi-bin/%6b%6b/x"] {
            assert_eq!(masked_path(path, None), path);
        }
    }
}
