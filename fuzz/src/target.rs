//! Which request-targets go out, and as what. What must go, must not, and what a careful proxy may decide either way.

use wecom_proxy::fuzz::{TargetKind, resolve_target};

use super::reference::percent_decode;

const TOKEN: &str = "the-agents-own-TOKEN";

/// The input is a target that begins with a slash.
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
        Ok(way) => {
            assert!(!must_be_refused(path), "went out: {target:?} as {:?}", way.upstream_target);
            let root = split_agent_and_path(path).expect("the root was found");
            assert_eq!(way.agent.as_deref(), root.0, "{target:?}");
            let sent = way.upstream_target.split('?').next().unwrap_or_default();
            assert_eq!(sent, root.1, "the path is changed");
            if let Some(kind) = expected_kind(sent) {
                assert_eq!(way.kind, kind, "{target:?}");
            }
            if way.kind == TargetKind::Passthrough {
                let came = query.map_or(String::new(), |query| format!("?{query}"));
                assert_eq!(way.upstream_target, format!("{sent}{came}"));
            }
        }
    }
}

/// The agent that is named in front, and the path from the root on. More slashes than one in front of either are a base
/// URL's doing.
fn split_agent_and_path(path: &str) -> Option<(Option<&str>, &str)> {
    let root = |rest: &str| rest.starts_with("cgi-bin/").then(|| &path[path.len() - rest.len() - 1..]);
    let first = path.trim_start_matches('/');
    if let Some(root) = root(first) {
        return Some((None, root));
    }
    let (agent, rest) = first.split_once('/')?;
    let named = !agent.is_empty()
        && agent.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    let root = root(rest.trim_start_matches('/'))?;
    named.then_some((Some(agent), root))
}

/// Letters, digits and a few marks, some of the letters encoded, below the root.
fn must_be_forwarded(path: &str) -> bool {
    let Some((_, root)) = split_agent_and_path(path).filter(|_| !path.starts_with("//")) else {
        return false;
    };
    let mut segments = root.split('/').skip(1);
    segments.all(|segment| {
        let encoded = percent_decode(segment.as_bytes());
        let plain = segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_~.%".contains(&byte));
        let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_~.".contains(byte);
        plain && encoded.first().is_some_and(u8::is_ascii_alphanumeric) && encoded.iter().all(good)
    })
}

/// What the next reader could take for another path, or what is no call at all.
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

/// What is done with a call, where its spelling leaves no doubt.
fn expected_kind(path: &str) -> Option<TargetKind> {
    let route = String::from_utf8(percent_decode(path.as_bytes())).ok()?;
    let mut segments = route.split('/').filter(|segment| !segment.is_empty()).skip(1);
    let (first, second) = (segments.next()?, segments.next());
    let named = |names: &[&str]| names.iter().any(|name| first.to_ascii_lowercase().starts_with(name));
    match (first, second) {
        ("gettoken", None) => Some(TargetKind::Gettoken),
        ("webhook" | "service" | "license", Some(second))
            if second.starts_with(|letter: char| letter.is_ascii_alphanumeric()) =>
        {
            Some(TargetKind::Passthrough)
        }
        _ if named(&["gettoken", "webhook", "service", "license"]) => None,
        _ => Some(TargetKind::InjectToken),
    }
}
