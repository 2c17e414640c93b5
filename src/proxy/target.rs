//! Parser of the request target: agent, path, kind of request. Rejects what is ambiguous. Pure functions: no I/O, no
//! shared state.

use std::{borrow::Cow, fmt, ops::Range};

use http::Method;
use percent_encoding::percent_decode_str;

use super::query;
use crate::{secret::credential_scan::contains_pass, tokens::tickets::TicketKind};

/// How a request is handled, by WeCom's own paths; an agent's `passthrough` list may say otherwise (`authenticate.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// Forwarded with the agent's token in the query.
    InjectToken,
    /// Forwarded unchanged, with its own credential.
    Passthrough,
    /// gettoken: the proxy responds with a pass.
    Gettoken,
}

/// A well-formed target; one with `misplaced_pass`, or of gettoken, is answered by the proxy itself.
#[derive(PartialEq, Eq)]
pub(super) struct ParsedTarget<'a> {
    /// The agent named by the first path segment.
    pub(super) agent: Option<&'a str>,
    /// The path as forwarded: as received, without the agent's segment and doubled slashes before `/cgi-bin/`.
    pub(super) path: &'a str,
    /// The path decoded and without doubled slashes, which `allow`, `passthrough`, cooldowns, fair queues and tickets
    /// are matched by. Nearly always equal to `path`.
    pub(super) normalized_path: Cow<'a, str>,
    /// The query as received.
    pub(super) query: Option<&'a str>,
    /// Whether the query may contain an `access_token`.
    pub(super) may_contain_token: bool,
    /// How the request is handled.
    pub(super) kind: TargetKind,
    /// Location of a pass that would be forwarded to the upstream.
    pub(super) misplaced_pass: Option<PassLocation>,
}

/// Where in a target a misplaced pass was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PassLocation {
    /// The forwarded part of the path.
    Path,
    /// The query without `access_token`.
    Query,
}

impl fmt::Debug for ParsedTarget<'_> {
    /// Omits the query, which may contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParsedTarget")
            .field("agent", &self.agent)
            .field("path", &self.path)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// A parsed target as offsets into its text, to be cached beside it in a `RequestTarget`.
///
/// `RequestTarget`, `TargetSpans` and [`ParsedTarget`] remain three types: the first also holds what cannot be
/// parsed, a cached result cannot borrow from its own text, and the view saves the slicing and its checks at each
/// use.
pub(super) struct TargetSpans {
    agent: Option<Range<usize>>,
    path_start: usize,
    /// The normalized path where it differs from the path.
    normalized_path: Option<Box<str>>,
    may_contain_token: bool,
    kind: TargetKind,
    misplaced_pass: Option<PassLocation>,
}

/// Why a target is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TargetError {
    /// The upstream may interpret it differently: 400.
    Malformed(&'static str),
    /// Well-formed, but no route: 404.
    NoRoute,
}

/// Prefix of all forwarded paths.
const API_ROOT: &str = "/cgi-bin/";

impl TargetSpans {
    /// Parses a path and query into offsets.
    pub(super) fn parse(path: &str, query: Option<&str>) -> Result<Self, TargetError> {
        let ParsedTarget {
            agent,
            path: upstream_path,
            normalized_path,
            may_contain_token,
            kind,
            misplaced_pass,
            ..
        } = ParsedTarget::parse(path, query)?;
        let agent = agent.map(|agent| {
            let start = agent.as_ptr().addr() - path.as_ptr().addr();
            start..start + agent.len()
        });
        let normalized_path = match normalized_path {
            Cow::Borrowed(_) => None,
            Cow::Owned(normalized_path) => Some(normalized_path.into_boxed_str()),
        };
        Ok(Self {
            agent,
            path_start: path.len() - upstream_path.len(),
            normalized_path,
            may_contain_token,
            kind,
            misplaced_pass,
        })
    }
}

impl<'a> ParsedTarget<'a> {
    /// The target that `spans` were parsed from.
    pub(super) fn from_spans(spans: &'a TargetSpans, path: &'a str, query: Option<&'a str>) -> Self {
        let upstream_path = &path[spans.path_start..];
        Self {
            agent: spans.agent.clone().map(|agent| &path[agent]),
            path: upstream_path,
            normalized_path: Cow::Borrowed(spans.normalized_path.as_deref().unwrap_or(upstream_path)),
            query,
            may_contain_token: spans.may_contain_token,
            kind: spans.kind,
            misplaced_pass: spans.misplaced_pass,
        }
    }

    /// Parses a path and query.
    pub(super) fn parse(path: &'a str, query: Option<&'a str>) -> Result<Self, TargetError> {
        // A base URL with a trailing slash doubles it; the upstream would not match the path then.
        let trimmed = match path.as_bytes() {
            [b'/', b'/', ..] => &path[path.len() - path.trim_start_matches('/').len() - 1..],
            _ => path,
        };
        let is_invalid = |byte: u8| (byte <= b' ') | (byte == 0x7f) | (byte == b'#');
        if query.is_some_and(|query| query.bytes().fold(false, |invalid, byte| invalid | is_invalid(byte))) {
            let message =
                "the query contains a space, a control character or a \"#\", which must be percent-encoded";
            return Err(TargetError::Malformed(message));
        }
        check_path(trimmed)?;
        let (agent, upstream_path) = match trimmed.starts_with(API_ROOT) {
            true => (None, trimmed),
            false => split_agent(trimmed)?,
        };
        let normalized_path = normalize_path(upstream_path)?;
        if !normalized_path.starts_with(API_ROOT) || normalized_path.len() == API_ROOT.len() {
            return Err(TargetError::NoRoute);
        }
        let kind = classify(&normalized_path[API_ROOT.len()..]);
        let may_contain_token = query.is_some_and(query::may_contain_token);
        let misplaced_pass = find_misplaced_pass(upstream_path, query.unwrap_or_default());
        Ok(Self {
            agent,
            path: upstream_path,
            normalized_path,
            query,
            may_contain_token,
            kind,
            misplaced_pass,
        })
    }

    /// Length of path and query in bytes.
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

    /// The ticket requested, if the query requests nothing else.
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

/// Finds a pass that would be forwarded. One in `access_token` is removed or rejected separately.
fn find_misplaced_pass(path: &str, query: &str) -> Option<PassLocation> {
    if contains_pass(path.as_bytes()) {
        return Some(PassLocation::Path);
    }
    // Usually the query contains no pass at all.
    let is_misplaced = contains_pass(query.as_bytes())
        && query.split('&').any(|param| !query::is_token_param(param) && contains_pass(param.as_bytes()));
    is_misplaced.then_some(PassLocation::Query)
}

/// Splits the agent's name off the path.
fn split_agent(path: &str) -> Result<(Option<&str>, &str), TargetError> {
    let after =
        path.strip_prefix('/').ok_or(TargetError::Malformed("the path does not begin with a slash"))?;
    let (name, rest) = after.split_at(memchr::memchr(b'/', after.as_bytes()).ok_or(TargetError::NoRoute)?);
    let slashes = rest.bytes().take_while(|byte| *byte == b'/').count();
    let rest = &rest[slashes - 1..];
    let is_agent_name =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if is_agent_name && rest.starts_with(API_ROOT) {
        Ok((Some(name), rest))
    } else {
        Err(TargetError::NoRoute)
    }
}

/// The normalized path, or an error if the upstream may interpret it differently.
fn normalize_path(path: &str) -> Result<Cow<'_, str>, TargetError> {
    // No early exit: lets LLVM vectorise.
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
    let mut normalized = String::with_capacity(decoded.len());
    for char in decoded.chars() {
        if !(char == '/' && normalized.ends_with('/')) {
            normalized.push(char);
        }
    }
    Ok(Cow::Owned(normalized))
}

/// Whether a byte must be percent-encoded in a path.
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

/// Rejects a path that the upstream, or a server behind it, may resolve differently.
fn check_path(path: &str) -> Result<(), TargetError> {
    if path.bytes().fold(false, |invalid, byte| invalid | must_be_encoded(byte)) {
        return Err(TargetError::Malformed("the path contains a character that must be percent-encoded"));
    }
    // Nearly all paths contain neither.
    if memchr::memchr2(b'.', b'%', path.as_bytes()).is_none() {
        return Ok(());
    }
    let mut text = Cow::Borrowed(path);
    // As received, decoded once and decoded twice: a server behind the upstream may decode once more.
    for _ in 0..3 {
        if text.split('/').any(is_dot_segment) {
            return Err(TargetError::Malformed("the path contains a dot segment"));
        }
        if !text.contains('%') {
            return Ok(());
        }
        let decoded = percent_decode_str(&text).collect::<Vec<u8>>();
        let separators = text.bytes().filter(|byte| b"/\\".contains(byte)).count();
        if decoded.iter().filter(|byte| b"/\\".contains(byte)).count() != separators {
            return Err(TargetError::Malformed("the path contains an encoded slash or backslash"));
        }
        let decoded = String::from_utf8(decoded)
            .map_err(|_| TargetError::Malformed("the path is not UTF-8 once decoded"))?;
        if decoded.chars().any(char::is_control) {
            return Err(TargetError::Malformed("the path contains an encoded control character"));
        }
        if decoded == *text {
            return Ok(());
        }
        text = Cow::Owned(decoded);
    }
    Err(TargetError::Malformed("the path is percent-encoded more than twice"))
}

/// `.` and `..`, also with parameters after a semicolon, which some servers strip first.
fn is_dot_segment(segment: &str) -> bool {
    matches!(segment.split(';').next(), Some("." | ".."))
}

/// Classifies a path below the root. Servers differ in case and trailing characters, so anything that may mean
/// gettoken counts as gettoken.
fn classify(path: &str) -> TargetKind {
    let trimmed = &path[..memchr::memchr(b';', path.as_bytes()).unwrap_or(path.len())];
    let trimmed = if trimmed.ends_with('/') { trimmed.trim_end_matches('/') } else { trimmed };
    let is_below = |root: &str| {
        let has_prefix = trimmed
            .as_bytes()
            .get(..root.len())
            .is_some_and(|prefix| prefix.eq_ignore_ascii_case(root.as_bytes()));
        has_prefix && trimmed.as_bytes().get(root.len()) == Some(&b'/')
    };
    if trimmed.eq_ignore_ascii_case("gettoken") {
        TargetKind::Gettoken
    } else if is_below("webhook") || is_below("service") || is_below("license") {
        // WeCom authenticates these by another credential in the query: the robot's `key`, `suite_access_token`,
        // `provider_access_token`.
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
        use TargetKind::{Gettoken, InjectToken, Passthrough};
        for (given, agent, path, route, kind) in [
            ("/cgi-bin/user/get?a=1", None, "/cgi-bin/user/get", "/cgi-bin/user/get", InjectToken),
            ("/hr/cgi-bin/user/get", Some("hr"), "/cgi-bin/user/get", "/cgi-bin/user/get", InjectToken),
            ("//cgi-bin/user/get", None, "/cgi-bin/user/get", "/cgi-bin/user/get", InjectToken),
            ("/hr//cgi-bin/user/get", Some("hr"), "/cgi-bin/user/get", "/cgi-bin/user/get", InjectToken),
            ("/cgi-bin/oa//book", None, "/cgi-bin/oa//book", "/cgi-bin/oa/book", InjectToken),
            ("/cgi-bin/user/%67et", None, "/cgi-bin/user/%67et", "/cgi-bin/user/get", InjectToken),
            ("/cgi-bin/gettoken", None, "/cgi-bin/gettoken", "/cgi-bin/gettoken", Gettoken),
            ("/hr/cgi-bin//GetToken/", Some("hr"), "/cgi-bin//GetToken/", "/cgi-bin/GetToken/", Gettoken),
            ("/cgi-bin/%67ettoken;a", None, "/cgi-bin/%67ettoken;a", "/cgi-bin/gettoken;a", Gettoken),
            (
                "/cgi-bin/webhook/send?key=1",
                None,
                "/cgi-bin/webhook/send",
                "/cgi-bin/webhook/send",
                Passthrough,
            ),
            ("/cgi-bin/service/x", None, "/cgi-bin/service/x", "/cgi-bin/service/x", Passthrough),
            ("/cgi-bin/services/x", None, "/cgi-bin/services/x", "/cgi-bin/services/x", InjectToken),
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
