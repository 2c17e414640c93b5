//! Which request targets are forwarded, and as what: targets that must be forwarded, that must be refused, and others, for
//! which either is correct.

use wecom_proxy::{
    internals::{TargetError, TargetKind, unchanged_target, with_token},
    proxy::RequestTarget,
};

use super::reference::percent_decode;

const TOKEN: &str = "the-agents-own-TOKEN";

/// Input: a target that begins with a slash.
pub fn check(data: &[u8]) {
    let Ok(target) = std::str::from_utf8(data) else { return };
    if !target.starts_with('/') {
        return;
    }
    let (path, query) = match target.find('?') {
        Some(mark) => (&target[..mark], Some(&target[mark + 1..])),
        None => (target, None),
    };
    let plain_query = query.is_none_or(|query| query.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    match resolve_target(target, TOKEN) {
        Err(_) => assert!(!(must_be_forwarded(path) && plain_query), "refused: {target:?}"),
        // The proxy answers it itself.
        Ok(resolved) if resolved.kind == TargetKind::JssdkSignature => {
            assert!(resolved.upstream_target.starts_with("/jssdk/signature?"), "{target:?}");
        }
        Ok(resolved) => {
            assert!(!must_be_refused(path), "forwarded: {target:?} as {:?}", resolved.upstream_target);
            let expected = split_agent_and_path(path).expect("a path with a root");
            assert_eq!(resolved.agent.as_deref(), expected.0, "{target:?}");
            let sent = resolved.upstream_target.split('?').next().unwrap_or_default();
            assert_eq!(sent, expected.1, "the path changed");
            if let Some(kind) = expected_kind(sent) {
                assert_eq!(resolved.kind, kind, "{target:?}");
            }
            if matches!(resolved.kind, TargetKind::Passthrough | TargetKind::Service) {
                let client_query = query.map_or(String::new(), |query| format!("?{query}"));
                assert_eq!(resolved.upstream_target, format!("{sent}{client_query}"));
            }
        }
    }
}

/// A target as the proxy forwards it.
pub struct ResolvedTarget {
    /// The agent named by the first path segment.
    pub agent: Option<String>,
    /// How the request is handled.
    pub kind: TargetKind,
    /// The target as sent to the upstream.
    pub upstream_target: String,
}

/// Parses a target and builds that of the upstream request with this token.
pub fn resolve_target(target: &str, token: &str) -> Result<ResolvedTarget, TargetError> {
    let target = RequestTarget::new(target);
    target.check()?;
    let upstream_target = match target.kind() {
        TargetKind::Passthrough | TargetKind::Service => {
            unchanged_target(target.upstream_path(), target.query()).concat()
        }
        TargetKind::InjectToken | TargetKind::Gettoken | TargetKind::JssdkSignature => {
            with_token(target.upstream_path(), &target.query_without_token(), token).concat()
        }
    };
    Ok(ResolvedTarget { agent: target.agent().map(str::to_owned), kind: target.kind(), upstream_target })
}

/// The agent prefix, if any, and the path from `/cgi-bin/` on. Each may follow several slashes, as clients with a base URL
/// that ends in a slash send.
fn split_agent_and_path(path: &str) -> Option<(Option<&str>, &str)> {
    let root = |rest: &str| rest.starts_with("cgi-bin/").then(|| &path[path.len() - rest.len() - 1..]);
    let first = path.trim_start_matches('/');
    if let Some(root) = root(first) {
        return Some((None, root));
    }
    let (agent, rest) = first.split_once('/')?;
    // An authorised corp is named SUITE:CORPID.
    let (suite, corpid) = agent.split_once(':').unwrap_or((agent, agent));
    let valid_name = [suite, corpid].iter().all(|name| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
    });
    let root = root(rest.trim_start_matches('/'))?;
    valid_name.then_some((Some(agent), root))
}

/// A path of letters, digits and unreserved marks, some of them percent-encoded, below the root.
fn must_be_forwarded(path: &str) -> bool {
    let Some((_, root)) = split_agent_and_path(path).filter(|_| !path.starts_with("//")) else {
        return false;
    };
    let mut segments = root.split('/').skip(1);
    segments.all(|segment| {
        let decoded = percent_decode(segment.as_bytes());
        let plain = segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_~.%".contains(&byte));
        let unreserved = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_~.".contains(byte);
        plain && decoded.first().is_some_and(u8::is_ascii_alphanumeric) && decoded.iter().all(unreserved)
    })
}

/// A path that another parser could read as a different path, or that names no call.
fn must_be_refused(path: &str) -> bool {
    let Some((_, root)) = split_agent_and_path(path) else { return true };
    let (once, twice) = (percent_decode(path.as_bytes()), percent_decode(&percent_decode(path.as_bytes())));
    let slashes = |text: &[u8]| text.iter().filter(|byte| b"/\\".contains(byte)).count();
    let is_dots = |text: &[u8]| text.split(|byte| *byte == b'/').any(|part| part == b"." || part == b"..");
    let is_control = |byte: &u8| *byte < b' ' || *byte == 0x7f;
    path.contains(['\\', ' '])
        || slashes(&twice) != slashes(path.as_bytes())
        || [path.as_bytes(), &once, &twice].into_iter().any(is_dots)
        || once.iter().any(is_control)
        || root["/cgi-bin/".len()..].bytes().all(|byte| byte == b'/')
}

/// The kind of a call whose path is unambiguous.
fn expected_kind(path: &str) -> Option<TargetKind> {
    let route = String::from_utf8(percent_decode(path.as_bytes())).ok()?;
    let mut segments = route.split('/').filter(|segment| !segment.is_empty()).skip(1);
    let (first, second) = (segments.next()?, segments.next());
    let has_prefix =
        |prefixes: &[&str]| prefixes.iter().any(|name| first.to_ascii_lowercase().starts_with(name));
    match (first, second) {
        ("gettoken", None) => Some(TargetKind::Gettoken),
        ("webhook" | "openhw", Some(second))
            if second.starts_with(|letter: char| letter.is_ascii_alphanumeric()) =>
        {
            Some(TargetKind::Passthrough)
        }
        ("service" | "license" | "advanced_api" | "paytool", Some(second))
            if second.starts_with(|letter: char| letter.is_ascii_alphanumeric()) =>
        {
            Some(TargetKind::Service)
        }
        _ if has_prefix(&["gettoken", "webhook", "service", "license", "advanced_api", "paytool"]) => None,
        _ if has_prefix(&["openhw", "hardware", "aibot", "idconvert"]) => None,
        _ => Some(TargetKind::InjectToken),
    }
}
