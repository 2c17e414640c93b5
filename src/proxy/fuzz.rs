//! Where a request-target leads.

use super::{
    query::{as_it_came, with_token},
    request,
    target::{Doubt, Target},
};

pub use super::target::Kind;

/// What becomes of a target.
#[derive(Debug)]
pub struct Way {
    /// The agent that the path's first segment names.
    pub agent: Option<String>,
    /// What is done with the call.
    pub kind: Kind,
    /// The target as it is sent to the upstream, for a call that is sent.
    pub sent: String,
}

/// Takes a target apart and puts it together for the upstream. An error has the words for the caller of a malformed one,
/// and none for one that leads nowhere.
pub fn way(target: &str, token: &str) -> Result<Way, Option<&'static str>> {
    let text = request::Target::new(target);
    let target = Target::of(&text).map_err(|doubt| match doubt {
        Doubt::Malformed(words) => Some(words),
        Doubt::NoRoute => None,
    })?;
    let sent = match target.kind {
        Kind::OwnCredential => as_it_came(target.path, target.query).concat(),
        Kind::Inject | Kind::Gettoken => {
            with_token(target.path, &target.query_without_token(), token).concat()
        }
    };
    Ok(Way { agent: target.agent.map(str::to_owned), kind: target.kind, sent })
}
