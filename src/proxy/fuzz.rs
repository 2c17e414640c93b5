//! Entry points for fuzzing the request target.

use super::{
    query::{unchanged_target, with_token},
    request,
    target::TargetError,
};

pub use super::target::TargetKind;

/// The result of parsing a target.
#[derive(Debug)]
pub struct ResolvedTarget {
    /// The agent named by the first path segment.
    pub agent: Option<String>,
    /// How the request is handled.
    pub kind: TargetKind,
    /// The target as sent to the upstream.
    pub upstream_target: String,
}

/// Parses a target and builds the upstream target. The error is the message for a malformed target, `None` for one
/// without a route.
pub fn resolve_target(target: &str, token: &str) -> Result<ResolvedTarget, Option<&'static str>> {
    let request_target = request::RequestTarget::new(target);
    let target = request_target.parsed().map_err(|error| match error {
        TargetError::Malformed(message) => Some(message),
        TargetError::NoRoute => None,
    })?;
    let upstream_target = match target.kind {
        TargetKind::Passthrough => unchanged_target(target.path, target.query).concat(),
        TargetKind::InjectToken | TargetKind::Gettoken => {
            with_token(target.path, &target.query_without_token(), token).concat()
        }
    };
    Ok(ResolvedTarget { agent: target.agent.map(str::to_owned), kind: target.kind, upstream_target })
}
