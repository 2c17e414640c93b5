//! The request-target, taken apart and doubted: which agent, which path, what kind of call. Pure.

use std::{borrow::Cow, fmt, ops::Range};

use http::Method;
use percent_encoding::percent_decode_str;

use super::{query, request};
use crate::{secret::credential_scan::contains_pass, tokens::tickets::TicketKind};

/// What is done with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// The agent's token is put into its query.
    InjectToken,
    /// It carries a credential of its own and goes through as it came.
    Passthrough,
    /// It asks for a token; answered here, with a pass.
    Gettoken,
}

/// A target that can be sent on.
#[derive(PartialEq, Eq)]
pub(super) struct ParsedTarget<'a> {
    /// The agent that the path's first segment names.
    pub(super) agent: Option<&'a str>,
    /// The path as it goes to the upstream, byte for byte as it came.
    pub(super) path: &'a str,
    /// The path as rules see it: decoded, without doubled slashes. Equal to `path` for nearly all calls.
    pub(super) normalized_path: Cow<'a, str>,
    /// The query as it came.
    pub(super) query: Option<&'a str>,
    /// Whether an `access_token` may stand in it.
    pub(super) may_contain_token: bool,
    /// What is done with it.
    pub(super) kind: TargetKind,
    /// Where a pass stands in it that would go to the upstream.
    pub(super) misplaced_pass: Option<PassLocation>,
}

/// A part of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PassLocation {
    /// What goes on of the path.
    Path,
    /// The query, but for its `access_token`.
    Query,
}

impl fmt::Debug for ParsedTarget<'_> {
    /// Without the query, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("agent", &self.agent)
            .field("path", &self.path)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// The same without the text: where in it things stand.
pub(super) struct TargetSpans {
    agent: Option<Range<usize>>,
    path_start: usize,
    /// The route, where it is not the path.
    normalized_path: Option<Box<str>>,
    may_contain_token: bool,
    kind: TargetKind,
    misplaced_pass: Option<PassLocation>,
}

/// Why a target is not sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TargetError {
    /// It may mean something else to the next reader: 400.
    Malformed(&'static str),
    /// It is well formed and leads nowhere: 404.
    NoRoute,
}

/// The root of all that is sent on.
const API_ROOT: &str = "/cgi-bin/";

impl TargetSpans {
    /// Takes a path and query apart.
    pub(super) fn parse(path: &str, query: Option<&str>) -> Result<Self, TargetError> {
        let ParsedTarget {
            agent,
            path: rest,
            normalized_path: route,
            may_contain_token: may_hold_token,
            kind,
            misplaced_pass: stray_pass,
            ..
        } = ParsedTarget::parse(path, query)?;
        let agent = agent.map(|agent| {
            let start = agent.as_ptr().addr() - path.as_ptr().addr();
            start..start + agent.len()
        });
        let route = match route {
            Cow::Borrowed(_) => None,
            Cow::Owned(route) => Some(route.into_boxed_str()),
        };
        Ok(Self {
            agent,
            path_start: path.len() - rest.len(),
            normalized_path: route,
            may_contain_token: may_hold_token,
            kind,
            misplaced_pass: stray_pass,
        })
    }
}

impl<'a> ParsedTarget<'a> {
    /// Takes a target apart, if that was not done before.
    pub(super) fn from_request(target: &'a request::RequestTarget) -> Result<Self, TargetError> {
        let (course, path) = (target.spans()?, target.path());
        let rest = &path[course.path_start..];
        Ok(Self {
            agent: course.agent.clone().map(|agent| &path[agent]),
            path: rest,
            normalized_path: Cow::Borrowed(course.normalized_path.as_deref().unwrap_or(rest)),
            query: target.query(),
            may_contain_token: course.may_contain_token,
            kind: course.kind,
            misplaced_pass: course.misplaced_pass,
        })
    }

    /// Takes a path and query apart.
    pub(super) fn parse(path: &'a str, query: Option<&'a str>) -> Result<Self, TargetError> {
        // The upstream would read a doubled slash before the root as a part of the path; it is a base URL's doing.
        let trimmed = match path.as_bytes() {
            [b'/', b'/', ..] => &path[path.len() - path.trim_start_matches('/').len() - 1..],
            _ => path,
        };
        let is_odd = |byte: u8| (byte <= b' ') | (byte == 0x7f) | (byte == b'#');
        if query.is_some_and(|query| query.bytes().fold(false, |odd, byte| odd | is_odd(byte))) {
            let words =
                "the query holds a space, a control character or a \"#\", which must be percent-encoded";
            return Err(TargetError::Malformed(words));
        }
        check_path(trimmed)?;
        let (agent, rest) = match trimmed.starts_with(API_ROOT) {
            true => (None, trimmed),
            false => split_agent(trimmed)?,
        };
        let route = normalize_path(rest)?;
        if !route.starts_with(API_ROOT) || route.len() == API_ROOT.len() {
            return Err(TargetError::NoRoute);
        }
        let kind = classify(&route[API_ROOT.len()..]);
        let may_hold_token = query.is_some_and(query::may_contain_token);
        let stray_pass = find_misplaced_pass(rest, query.unwrap_or_default());
        Ok(Self {
            agent,
            path: rest,
            normalized_path: route,
            query,
            may_contain_token: may_hold_token,
            kind,
            misplaced_pass: stray_pass,
        })
    }

    /// How long its path and query are.
    pub(super) fn bytes(&self) -> usize {
        self.path.len() + self.query.map_or(0, str::len)
    }

    /// The query without any `access_token`.
    pub(super) fn query_without_token(&self) -> Cow<'a, str> {
        match self.query.unwrap_or_default() {
            query if self.may_contain_token => query::without_token(query),
            query => Cow::Borrowed(query),
        }
    }

    /// The ticket that the call asks for, and nothing else with it.
    pub(super) fn ticket_kind(&self, method: &Method) -> Option<TicketKind> {
        if method != Method::GET {
            return None;
        }
        let (kind, wanted): (_, &[&str]) = match &*self.normalized_path {
            "/cgi-bin/get_jsapi_ticket" => (TicketKind::Jsapi, &[]),
            "/cgi-bin/ticket/get" => (TicketKind::AgentConfig, &["type=agent_config"]),
            _ => return None,
        };
        let query = self.query_without_token();
        query.split('&').filter(|parameter| !parameter.is_empty()).eq(wanted.iter().copied()).then_some(kind)
    }
}

/// Where a pass would go to the upstream. One in `access_token` is taken out or refused by itself.
fn find_misplaced_pass(path: &str, query: &str) -> Option<PassLocation> {
    if contains_pass(path.as_bytes()) {
        return Some(PassLocation::Path);
    }
    // Nearly no query holds one anywhere.
    let strays = contains_pass(query.as_bytes())
        && query.split('&').any(|it| !query::is_token_param(it) && contains_pass(it.as_bytes()));
    strays.then_some(PassLocation::Query)
}

/// Takes the agent's name off the front of a path.
fn split_agent(path: &str) -> Result<(Option<&str>, &str), TargetError> {
    let after =
        path.strip_prefix('/').ok_or(TargetError::Malformed("the path does not begin with a slash"))?;
    let (name, rest) = after.split_at(memchr::memchr(b'/', after.as_bytes()).ok_or(TargetError::NoRoute)?);
    let slashes = rest.bytes().take_while(|byte| *byte == b'/').count();
    let rest = &rest[slashes - 1..];
    let named =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if named && rest.starts_with(API_ROOT) { Ok((Some(name), rest)) } else { Err(TargetError::NoRoute) }
}

/// The path that rules are applied to, or the doubt that it may mean another one to the upstream.
fn normalize_path(path: &str) -> Result<Cow<'_, str>, TargetError> {
    // Without a way out in the middle, for that is what lets it be done sixteen bytes at a time.
    let doubled = path
        .as_bytes()
        .windows(2)
        .fold(false, |doubled, pair| doubled | ((pair[0] == b'/') & (pair[1] == b'/')));
    if !doubled && memchr::memchr(b'%', path.as_bytes()).is_none() {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = percent_decode_str(path)
        .decode_utf8()
        .map_err(|_| TargetError::Malformed("the path is not UTF-8 once decoded"))?;
    let mut route = String::with_capacity(decoded.len());
    for letter in decoded.chars() {
        if !(letter == '/' && route.ends_with('/')) {
            route.push(letter);
        }
    }
    Ok(Cow::Owned(route))
}

/// Whether a byte may not stand in a path as it is.
fn must_be_encoded(byte: u8) -> bool {
    (byte <= b' ')
        | (byte >= 0x7f)
        | (byte == b'\\')
        | (byte == b'"')
        | (byte == b'<')
        | (byte == b'>')
        | (byte == b'^')
        | (byte == b'`')
        | (byte == b'{')
        | (byte == b'|')
        | (byte == b'}')
        | (byte == b'#')
}

/// Refuses what could be read as another path further on.
fn check_path(path: &str) -> Result<(), TargetError> {
    if path.bytes().fold(false, |odd, byte| odd | must_be_encoded(byte)) {
        return Err(TargetError::Malformed("the path holds a character that must be percent-encoded"));
    }
    // Nearly all paths are plain letters and slashes.
    if memchr::memchr2(b'.', b'%', path.as_bytes()).is_none() {
        return Ok(());
    }
    let mut text = Cow::Borrowed(path);
    // Once as it came, once decoded, once decoded twice: someone behind may decode once more.
    for _ in 0..3 {
        if text.split('/').any(is_dot_segment) {
            return Err(TargetError::Malformed("the path holds a dot segment"));
        }
        if !text.contains('%') {
            return Ok(());
        }
        let decoded = percent_decode_str(&text).collect::<Vec<u8>>();
        let encoded = text.bytes().filter(|byte| b"/\\".contains(byte)).count();
        if decoded.iter().filter(|byte| b"/\\".contains(byte)).count() != encoded {
            return Err(TargetError::Malformed("the path holds an encoded slash or backslash"));
        }
        let decoded = String::from_utf8(decoded)
            .map_err(|_| TargetError::Malformed("the path is not UTF-8 once decoded"))?;
        if decoded.chars().any(char::is_control) {
            return Err(TargetError::Malformed("the path holds an encoded control character"));
        }
        if decoded == *text {
            return Ok(());
        }
        text = Cow::Owned(decoded);
    }
    Err(TargetError::Malformed("the path is percent-encoded more than twice"))
}

/// `.` and `..`, with or without parameters behind a semicolon, which some servers cut off first.
fn is_dot_segment(segment: &str) -> bool {
    matches!(segment.split(';').next(), Some("." | ".."))
}

/// What kind of call a route below the root is. Servers differ in case and in trailing marks; a call that may be meant
/// as gettoken is taken for one.
fn classify(route: &str) -> TargetKind {
    let bare = &route[..memchr::memchr(b';', route.as_bytes()).unwrap_or(route.len())];
    let bare = if bare.ends_with('/') { bare.trim_end_matches('/') } else { bare };
    let under = |root: &str| {
        let head =
            bare.as_bytes().get(..root.len()).is_some_and(|head| head.eq_ignore_ascii_case(root.as_bytes()));
        head && bare.as_bytes().get(root.len()) == Some(&b'/')
    };
    if bare.eq_ignore_ascii_case("gettoken") {
        TargetKind::Gettoken
    } else if under("webhook") || under("service") || under("license") {
        TargetKind::Passthrough
    } else {
        TargetKind::InjectToken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(target: &str) -> Result<(Option<&str>, &str, String, TargetKind), TargetError> {
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        ParsedTarget::parse(path, query)
            .map(|target| (target.agent, target.path, target.normalized_path.into_owned(), target.kind))
    }

    #[test]
    fn valid_path_is_parsed() {
        for (given, agent, path, route, kind) in [
            (
                "/cgi-bin/user/get?a=1",
                None,
                "/cgi-bin/user/get",
                "/cgi-bin/user/get",
                TargetKind::InjectToken,
            ),
            (
                "/hr/cgi-bin/user/get",
                Some("hr"),
                "/cgi-bin/user/get",
                "/cgi-bin/user/get",
                TargetKind::InjectToken,
            ),
            ("//cgi-bin/user/get", None, "/cgi-bin/user/get", "/cgi-bin/user/get", TargetKind::InjectToken),
            (
                "/hr//cgi-bin/user/get",
                Some("hr"),
                "/cgi-bin/user/get",
                "/cgi-bin/user/get",
                TargetKind::InjectToken,
            ),
            ("/cgi-bin/oa//book", None, "/cgi-bin/oa//book", "/cgi-bin/oa/book", TargetKind::InjectToken),
            (
                "/cgi-bin/user/%67et",
                None,
                "/cgi-bin/user/%67et",
                "/cgi-bin/user/get",
                TargetKind::InjectToken,
            ),
            ("/cgi-bin/gettoken", None, "/cgi-bin/gettoken", "/cgi-bin/gettoken", TargetKind::Gettoken),
            (
                "/hr/cgi-bin//GetToken/",
                Some("hr"),
                "/cgi-bin//GetToken/",
                "/cgi-bin/GetToken/",
                TargetKind::Gettoken,
            ),
            (
                "/cgi-bin/%67ettoken;a",
                None,
                "/cgi-bin/%67ettoken;a",
                "/cgi-bin/gettoken;a",
                TargetKind::Gettoken,
            ),
            (
                "/cgi-bin/webhook/send?key=1",
                None,
                "/cgi-bin/webhook/send",
                "/cgi-bin/webhook/send",
                TargetKind::Passthrough,
            ),
            ("/cgi-bin/service/x", None, "/cgi-bin/service/x", "/cgi-bin/service/x", TargetKind::Passthrough),
            (
                "/cgi-bin/services/x",
                None,
                "/cgi-bin/services/x",
                "/cgi-bin/services/x",
                TargetKind::InjectToken,
            ),
        ] {
            assert_eq!(parse(given), Ok((agent, path, route.to_owned(), kind)), "{given}");
        }
    }

    #[test]
    fn invalid_path_is_rejected() {
        for given in [
            "/",
            "/hr",
            "/cgi-bin",
            "/cgi-bin/",
            "/hr/cgi-bin/",
            "/foo/bar",
            "/a/b/cgi-bin/user/get",
            "/cgi-binx/a",
            "/h.r/cgi-bin/a",
        ] {
            assert_eq!(parse(given), Err(TargetError::NoRoute), "{given}");
        }
        for given in [
            "/cgi-bin/../a",
            "/cgi-bin/a/..",
            "/cgi-bin/./a",
            "/cgi-bin/%2e%2e/a",
            "/cgi-bin/%2E/a",
            "/cgi-bin/.%2e/a",
            "/cgi-bin/%252e%252e/a",
            "/cgi-bin/..;a=b/c",
            "/cgi-bin/a%2fb",
            "/cgi-bin/a%5cb",
            "/cgi-bin/a\\b",
            "/cgi-bin/a%252fb",
            "/cgi-bin/a%00",
            "/cgi-bin/a%0d%0a",
            "/cgi-bin/a%7f",
            "/cgi-bin/a%c2%85",
            "/cgi-bin/a%25c2%2585",
            "/cgi-bin/%c0%ae%c0%ae/a",
            "/cgi-bin/\u{e9}",
            "/cgi-bin/a b",
            "/hr/../cgi-bin/a",
            "/%2e%2e/cgi-bin/a",
            "/cgi-bin/%25252525",
            "/cgi-bin/a?b\x01",
            "/../cgi-bin/a",
        ] {
            assert!(matches!(parse(given), Err(TargetError::Malformed(_))), "{given}: {:?}", parse(given));
        }
    }

    proptest! {
        #[test]
        fn decoded_path_stays_below_the_api_root(path in "/[a-z./%2eEfF5cC;\\\\-]{0,40}") {
            let path = format!("/cgi-bin{path}");
            if let Ok(target) = ParsedTarget::parse(&path, None) {
                let mut text = target.path.to_owned();
                for _ in 0..4 {
                    let mut depth = 0;
                    for segment in text.split('/').filter(|segment| !segment.is_empty()) {
                        let is_dots = segment.split(';').next() == Some("..");
                        depth += if is_dots { -1 } else { 1 };
                        prop_assert!(depth > 0 && !is_dots, "{}", text);
                    }
                    prop_assert!(!text.contains('\\'));
                    text = percent_decode_str(&text).decode_utf8_lossy().into_owned();
                }
            }
        }
    }
}
