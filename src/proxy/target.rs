//! The request target: agent, path, query and kind of request, parsed once. Rejects what is ambiguous. No I/O.

use std::{borrow::Cow, cell::OnceCell, rc::Rc};

use http::Method;
use percent_encoding::percent_decode_str;

pub use super::target_kind::TargetKind;
use super::{
    byte_classes::{
        ByteClasses, DOT, DOUBLED_SLASH, NOT_IN_PATH, NOT_IN_QUERY, PERCENT, PERHAPS_MASKED, UNDERSCORE,
    },
    query,
    target_kind::classify,
};
use crate::{
    secret::{
        credential_scan::{contains_pass, is_base64url},
        wipe,
    },
    tokens::{PathKey, kinds::ticket::TicketKind},
};

/// Path and query of a request, parsed when received. Clones share the text and its parts, because most programs repeat
/// their targets. No `Debug`: the query may contain secrets.
///
/// A target for which [`Self::check`] fails has only the text, the path and the query.
#[derive(Clone)]
pub struct RequestTarget(Rc<Inner>);

struct Inner {
    text: Box<str>,
    /// Offset of the question mark, or of the end. Targets are bounded far below 4 GiB.
    path_end: u32,
    error: Option<TargetError>,
    parts: Parts,
    path_classes: ByteClasses,
    path_key: OnceCell<PathKey>,
}

impl Drop for Inner {
    /// Wipes the text: the query may contain a secret or a pass.
    fn drop(&mut self) {
        wipe(&mut std::mem::take(&mut self.text).into_boxed_bytes());
    }
}

/// What a target consists of, as offsets into its text. The default stands for a target with an error.
#[derive(Default)]
struct Parts {
    /// Where the agent's name begins, and its length.
    agent: Option<(u32, u32)>,
    upstream_path_start: u32,
    /// The normalized path where it differs from the upstream path.
    normalized_path: Option<Box<str>>,
    may_contain_token: bool,
    kind: TargetKind,
    misplaced_pass: Option<PassLocation>,
}

/// Where in a target a misplaced pass was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PassLocation {
    /// The path as forwarded.
    Path,
    /// The query without `access_token`.
    Query,
}

/// Why a target is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetError {
    /// The upstream may interpret it differently: 400.
    Malformed(&'static str),
    /// Well-formed, but no route: 404.
    NoRoute,
}

/// Longest target that is cached.
const MAX_CACHED_TARGET_BYTES: usize = 1024;

/// Prefix of all forwarded paths.
const API_ROOT: &str = "/cgi-bin/";
/// Prefix of the paths that WeCom pushes to. An agent cannot have this name, so they are no route of the API.
const CALLBACKS_ROOT: &str = "/callbacks/";
/// The path of JS-SDK signatures, which the proxy makes itself.
const SIGNATURE_PATH: &str = "/jssdk/signature";

impl RequestTarget {
    /// Parses path and query. Never fails; [`Self::check`] reports a target that is not forwarded.
    pub fn new(text: &str) -> Self {
        let path_end = memchr::memchr(b'?', text.as_bytes()).unwrap_or(text.len());
        let path_classes = ByteClasses::of(&text[..path_end]);
        let parsed = Parts::parse(&text[..path_end], path_classes, text.get(path_end + 1..));
        let (parts, error) =
            parsed.map_or_else(|error| (Parts::default(), Some(error)), |parts| (parts, None));
        Self(Rc::new(Inner {
            text: text.into(),
            path_end: path_end as u32,
            error,
            parts,
            path_classes,
            path_key: OnceCell::new(),
        }))
    }

    /// Path and query as received.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// The path as received.
    pub fn path(&self) -> &str {
        &self.0.text[..self.0.path_end as usize]
    }

    /// The query as received, without its question mark.
    pub fn query(&self) -> Option<&str> {
        self.0.text.get(self.0.path_end as usize + 1..)
    }

    /// Whether it may be kept to be compared with the next request's. A gettoken is rare and contains a key, which must
    /// not stay in memory longer than needed.
    pub fn is_cacheable(&self) -> bool {
        self.as_str().len() <= MAX_CACHED_TARGET_BYTES && !self.may_be_gettoken()
    }

    /// Whether it is a gettoken, or one that is mistyped, as far as is known: its query contains a secret then.
    pub(super) fn may_be_gettoken(&self) -> bool {
        self.0.error.is_some() || self.kind() == TargetKind::Gettoken
    }

    /// Fails for a target that is ambiguous or has no route.
    pub fn check(&self) -> Result<(), TargetError> {
        self.0.error.map_or(Ok(()), Err)
    }

    /// What follows `/callbacks/` in the path of a receiver URL.
    pub(super) fn callback_path(&self) -> Option<&str> {
        match self.0.error {
            Some(TargetError::NoRoute) => self.path().strip_prefix(CALLBACKS_ROOT),
            _ => None,
        }
    }

    /// The path, if nothing in it can have to be masked in the log.
    pub(super) fn harmless_path(&self) -> Option<&str> {
        (!self.0.path_classes.contains(PERHAPS_MASKED | PERCENT)).then(|| self.path())
    }
}

/// What a target has for which `check` succeeds.
impl RequestTarget {
    /// The agent named by the first path segment.
    pub fn agent(&self) -> Option<&str> {
        self.0.parts.agent.map(|(start, length)| &self.0.text[start as usize..(start + length) as usize])
    }

    /// The path as forwarded: as received, without the agent's segment and doubled slashes before `/cgi-bin/`.
    pub fn upstream_path(&self) -> &str {
        &self.path()[self.0.parts.upstream_path_start as usize..]
    }

    /// The path decoded and without doubled slashes, which `allow`, `passthrough`, cooldowns, fair queues and tickets are
    /// matched by. Nearly always equal to the upstream path.
    pub fn normalized_path(&self) -> &str {
        self.0.parts.normalized_path.as_deref().unwrap_or_else(|| self.upstream_path())
    }

    /// Hash of the normalized path, computed once.
    pub(super) fn path_key(&self) -> PathKey {
        *self.0.path_key.get_or_init(|| PathKey::from_path(self.normalized_path()))
    }

    /// How the request is handled.
    pub fn kind(&self) -> TargetKind {
        self.0.parts.kind
    }

    /// Whether the request carries its own credential, unless it is called in the name of a suite or a provider.
    pub(super) fn is_passthrough(&self) -> bool {
        matches!(self.kind(), TargetKind::Passthrough | TargetKind::Service)
    }

    /// The normalized path below `/cgi-bin/`, without parameters after a semicolon.
    pub(super) fn api_path(&self) -> &str {
        let path = self.normalized_path().strip_prefix(API_ROOT).unwrap_or_default();
        path.split(';').next().unwrap_or_default()
    }

    /// Where a pass is that would be forwarded to the upstream.
    pub(super) fn misplaced_pass(&self) -> Option<PassLocation> {
        self.0.parts.misplaced_pass
    }

    /// Whether the query may contain an `access_token`.
    pub(super) fn may_contain_token(&self) -> bool {
        self.0.parts.may_contain_token
    }

    /// The query without any `access_token`.
    pub fn query_without_token(&self) -> Cow<'_, str> {
        match self.query().unwrap_or_default() {
            query if self.may_contain_token() => query::without_token(query),
            query => Cow::Borrowed(query),
        }
    }

    /// The ticket requested, if the query requests nothing else.
    pub(super) fn ticket_kind(&self, method: &Method) -> Option<TicketKind> {
        match *method == Method::GET {
            true => TicketKind::of_request(self.normalized_path(), || self.query_without_token()),
            false => None,
        }
    }
}

impl Parts {
    fn parse(path: &str, path_classes: ByteClasses, query: Option<&str>) -> Result<Self, TargetError> {
        // A base URL with a trailing slash doubles it; the upstream would not match the path then.
        let trimmed = match path.as_bytes() {
            [b'/', b'/', ..] => &path[path.len() - path.trim_start_matches('/').len() - 1..],
            _ => path,
        };
        let query = query.unwrap_or_default();
        let query_classes = ByteClasses::of(query);
        if query_classes.contains(NOT_IN_QUERY) {
            let message =
                "the query contains a space, a control character or a \"#\", which must be percent-encoded";
            return Err(TargetError::Malformed(message));
        }
        check_path(trimmed, path_classes)?;
        let (agent, upstream_path) = match trimmed.starts_with(API_ROOT) || trimmed == SIGNATURE_PATH {
            true => (None, trimmed),
            false => split_agent(trimmed)?,
        };
        let normalized_path = match path_classes.contains(DOUBLED_SLASH | PERCENT) {
            true => normalize_path(upstream_path)?,
            false => Cow::Borrowed(upstream_path),
        };
        let kind = match normalized_path.strip_prefix(API_ROOT) {
            Some(below) if !below.is_empty() => classify(below),
            None if normalized_path == SIGNATURE_PATH => TargetKind::JssdkSignature,
            _ => return Err(TargetError::NoRoute),
        };
        let agent_start = path.len() - trimmed.len() + 1;
        Ok(Self {
            agent: agent.map(|agent| (agent_start as u32, agent.len() as u32)),
            upstream_path_start: (path.len() - upstream_path.len()) as u32,
            // The name has an underscore, if it is not encoded.
            may_contain_token: query_classes.contains(PERCENT | UNDERSCORE)
                && query::may_contain_token(query),
            kind,
            misplaced_pass: find_misplaced_pass(upstream_path, query, kind),
            normalized_path: match normalized_path {
                Cow::Borrowed(_) => None,
                Cow::Owned(normalized_path) => Some(normalized_path.into_boxed_str()),
            },
        })
    }
}

/// Finds a pass that would be forwarded. One in a parameter that carries tokens is removed or rejected separately.
fn find_misplaced_pass(path: &str, query: &str, kind: TargetKind) -> Option<PassLocation> {
    if contains_pass(path.as_bytes()) {
        return Some(PassLocation::Path);
    }
    // Usually the query contains no pass at all.
    let is_misplaced = contains_pass(query.as_bytes())
        && query::parameters(query).any(|param| {
            let may_carry_pass = query::is_token_param(param)
                || (kind == TargetKind::Service && query::is_provider_token_param(param));
            !may_carry_pass && contains_pass(param.as_bytes())
        });
    is_misplaced.then_some(PassLocation::Query)
}

/// Splits the agent's name off the path.
fn split_agent(path: &str) -> Result<(Option<&str>, &str), TargetError> {
    let after =
        path.strip_prefix('/').ok_or(TargetError::Malformed("the path does not begin with a slash"))?;
    let (name, rest) = after.split_at(memchr::memchr(b'/', after.as_bytes()).ok_or(TargetError::NoRoute)?);
    let slashes = rest.bytes().take_while(|byte| *byte == b'/').count();
    let rest = &rest[slashes - 1..];
    let of_corp = |(suite, corpid)| is_base64url(suite) && is_base64url(corpid);
    let is_name = is_base64url(name) || name.split_once(':').is_some_and(of_corp);
    if is_name && (rest.starts_with(API_ROOT) || rest == SIGNATURE_PATH) {
        Ok((Some(name), rest))
    } else {
        Err(TargetError::NoRoute)
    }
}

/// The normalized path, or an error if the upstream may interpret it differently.
fn normalize_path(path: &str) -> Result<Cow<'_, str>, TargetError> {
    if !path.contains("//") && !path.contains('%') {
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

/// Rejects a path that the upstream, or a server behind it, may resolve differently.
fn check_path(path: &str, classes: ByteClasses) -> Result<(), TargetError> {
    if classes.contains(NOT_IN_PATH) {
        return Err(TargetError::Malformed("the path contains a character that must be percent-encoded"));
    }
    // Nearly all paths contain neither.
    if !classes.contains(DOT | PERCENT) {
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

#[cfg(test)]
mod tests;
