//! How a request is handled, by its path alone.

use crate::wecom::provider_api::{self, WantedToken};

/// How a request is handled, by WeCom's own paths; an agent's `passthrough` list may say otherwise (`authenticate.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetKind {
    /// Forwarded with the agent's token in the query.
    #[default]
    InjectToken,
    /// Forwarded unchanged, with its own credential.
    Passthrough,
    /// The same, unless it is called in the name of a suite or a provider: it wants the token of one.
    Service,
    /// gettoken: the proxy responds with a pass.
    Gettoken,
    /// The proxy responds with a JS-SDK signature.
    JssdkSignature,
}

/// Classifies a path below the root. Servers differ in case and trailing characters, so anything that may mean
/// gettoken counts as gettoken.
pub(super) fn classify(path: &str) -> TargetKind {
    let trimmed = &path[..memchr::memchr(b';', path.as_bytes()).unwrap_or(path.len())];
    let trimmed = if trimmed.ends_with('/') { trimmed.trim_end_matches('/') } else { trimmed };
    if trimmed.eq_ignore_ascii_case("gettoken") {
        return TargetKind::Gettoken;
    }
    // By the first letter, because most paths begin with none of these.
    let roots: &[&str] = match trimmed.as_bytes().first().map(u8::to_ascii_lowercase) {
        Some(b's') => &["service"],
        Some(b'w') => &["webhook"],
        Some(b'l') => &["license"],
        Some(b'a') => &["advanced_api", "aibot"],
        Some(b'p') => &["paytool"],
        Some(b'o') => &["openhw"],
        Some(b'h') => &["hardware"],
        Some(b'i') => &["idconvert"],
        _ => &[],
    };
    let root = roots.iter().find(|root| {
        let prefix = trimmed.as_bytes().get(..root.len());
        prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(root.as_bytes()))
            && trimmed.as_bytes().get(root.len()) == Some(&b'/')
    });
    match root.map(|root| (*root, provider_api::wanted_token(trimmed))) {
        None | Some((_, WantedToken::Access)) => TargetKind::InjectToken,
        Some(("service", _) | (_, WantedToken::Of(_) | WantedToken::Unlisted)) => TargetKind::Service,
        Some((_, WantedToken::Own)) => TargetKind::Passthrough,
    }
}
