//! Where a request-target leads.

use super::{
    query::{unchanged_target, with_token},
    request,
    target::{ParsedTarget, TargetError},
};

pub use super::target::TargetKind;

/// What becomes of a target.
#[derive(Debug)]
pub struct ResolvedTarget {
    /// The agent that the path's first segment names.
    pub agent: Option<String>,
    /// What is done with the call.
    pub kind: TargetKind,
    /// The target as it is sent to the upstream, for a call that is sent.
    pub upstream_target: String,
}

/// Takes a target apart and puts it together for the upstream. An error has the words for the caller of a malformed one,
/// and none for one that leads nowhere.
pub fn resolve_target(target: &str, token: &str) -> Result<ResolvedTarget, Option<&'static str>> {
    let text = request::RequestTarget::new(target);
    let target = ParsedTarget::from_request(&text).map_err(|doubt| match doubt {
        TargetError::Malformed(words) => Some(words),
        TargetError::NoRoute => None,
    })?;
    let sent = match target.kind {
        TargetKind::Passthrough => unchanged_target(target.path, target.query).concat(),
        TargetKind::InjectToken | TargetKind::Gettoken => {
            with_token(target.path, &target.query_without_token(), token).concat()
        }
    };
    Ok(ResolvedTarget { agent: target.agent.map(str::to_owned), kind: target.kind, upstream_target: sent })
}
