//! Authentication of the client, and selection of the agent.

use std::sync::Arc;

use super::{
    error::{ErrorKind, ProxyError},
    presented_key::{api_key, authorization_key, single_value},
    query,
    target::{ParsedTarget, PassLocation, TargetKind},
};
use crate::{
    directory::{Agent, Client, Directory},
    http1::headers::{HeaderKind, Headers},
    secret::credential_scan,
    time::clock::unix_now,
    tokens::passes::{DecodeBuf, PassError, UnverifiedPass},
};

/// Outcome of [`authenticate`]: the agent, and the client if only a pass names it.
#[derive(Debug)]
pub(super) struct Authenticated {
    /// The client named by a pass if no key was presented; `None` also for a pass issued for an agent's own secret.
    pub(super) pass_client: Option<Arc<Client>>,
    /// The selected agent; `None` if nothing selects one.
    pub(super) agent: Option<Arc<Agent>>,
    /// Whether the request carries its own credential and gets no token.
    pub(super) passthrough: bool,
}

/// The `access_token` presented by a request.
enum PresentedToken {
    Absent,
    Pass { agent: Arc<Agent>, client: Option<Arc<Client>> },
    Invalid(PassError),
}

/// The client whose key the headers contain; `None` without a key. Errors: an unknown key, or the keys of two
/// clients.
pub(super) fn authenticate_key(
    directory: &Directory,
    headers: &Headers,
) -> Result<Option<Arc<Client>>, ProxyError> {
    if !directory.has_clients() {
        return Ok(None);
    }
    let mut presented = None;
    for key in [authorization_key(headers)?, api_key(headers)?].into_iter().flatten() {
        let client = directory.client_by_key(key.expose()).ok_or_else(|| {
            let message = match directory.is_key_hash(key.expose()) {
                true => {
                    "key_sha256 sent instead of the key: send the key itself; \"wecom-proxy key NAME\" prints both"
                }
                false => "this key belongs to no client; ask the operator for a valid one",
            };
            ProxyError::new(ErrorKind::Unauthenticated, message).with_wrong_key()
        })?;
        if let Some(other) = presented.replace(client.clone())
            && !Arc::ptr_eq(&other, client)
        {
            return Err(conflicting_clients());
        }
    }
    Ok(presented)
}

/// Authenticates by key or pass and selects the agent: the pass's, the first path segment, `X-Wecom-Agent`, the
/// client's only one, the only one configured. `key_client` is the client whose key the headers contain.
pub(super) fn authenticate(
    directory: &Directory,
    key_client: Option<&Arc<Client>>,
    target: &ParsedTarget<'_>,
    headers: &Headers,
) -> Result<Authenticated, ProxyError> {
    let requested = requested_agent(target, headers)?;
    if let Some(location) = target.misplaced_pass {
        return Err(misplaced_pass(location));
    }
    let selected = match requested {
        Some(name) => directory.permitted_agent(name, key_client.map(|client| &**client)),
        None => directory.only_agent(key_client.map(|client| &**client)),
    };
    let passthrough = target.kind == TargetKind::Passthrough
        || selected.is_some_and(|agent| agent.is_passthrough(&target.normalized_path));
    if passthrough {
        reject_pass(target)?;
    }
    let may_contain_pass = target.may_contain_token && !passthrough;
    let presented =
        if may_contain_pass { presented_token(directory, target.query)? } else { PresentedToken::Absent };
    let pass_error = match presented {
        PresentedToken::Pass { agent, client } if !agent.is_passthrough(&target.normalized_path) => {
            return authenticated_by_pass(key_client, requested, agent, client);
        }
        PresentedToken::Pass { .. } => return Err(invalid_pass(PassError::Invalid)),
        PresentedToken::Invalid(pass_error) => Some(pass_error),
        PresentedToken::Absent => None,
    };
    if key_client.is_none() && !directory.is_open() {
        return Err(pass_error.map_or_else(unauthenticated, invalid_pass));
    }
    match (selected, requested, pass_error) {
        (None, Some(_), _) => Err(unknown_agent()),
        (None, None, Some(pass_error)) => Err(invalid_pass(pass_error)),
        (agent, _, _) => Ok(Authenticated { pass_client: None, agent: agent.cloned(), passthrough }),
    }
}

/// The client and agent of a valid pass, if the key and the requested agent agree with it.
fn authenticated_by_pass(
    key_client: Option<&Arc<Client>>,
    requested: Option<&str>,
    agent: Arc<Agent>,
    client: Option<Arc<Client>>,
) -> Result<Authenticated, ProxyError> {
    if let (Some(key_client), Some(client)) = (key_client, &client)
        && !Arc::ptr_eq(key_client, client)
    {
        return Err(conflicting_clients());
    }
    if requested.is_some_and(|requested| requested != agent.name) {
        let message = "the pass and the path or X-Wecom-Agent name two different agents; name one";
        return Err(ProxyError::new(ErrorKind::BadRequest, message));
    }
    if key_client.or(client.as_ref()).is_some_and(|client| !client.may_use_agent(&agent.name)) {
        return Err(unknown_agent());
    }
    let pass_client = client.filter(|_| key_client.is_none());
    Ok(Authenticated { pass_client, agent: Some(agent), passthrough: false })
}

/// The client of a valid pass in the query, for a request refused before authentication.
pub(super) fn pass_client(directory: &Directory, query: Option<&str>) -> Option<Arc<Client>> {
    match presented_token(directory, query) {
        Ok(PresentedToken::Pass { client, .. }) => client,
        _ => None,
    }
}

/// Rejects a pass in any parameter of a passthrough request, which would forward it.
fn reject_pass(target: &ParsedTarget<'_>) -> Result<(), ProxyError> {
    let query = target.query.unwrap_or_default();
    let has_pass = query::param_values(query).any(|value| credential_scan::has_pass_prefix(&value));
    if has_pass || credential_scan::contains_pass(query.as_bytes()) {
        Err(invalid_pass(PassError::Invalid))
    } else {
        Ok(())
    }
}

/// Rejects a request whose path or query also contains the key, because both are forwarded.
pub(super) fn reject_repeated_key(
    headers: &Headers,
    target: &ParsedTarget<'_>,
    passthrough: bool,
) -> Result<(), ProxyError> {
    let query = target.query.unwrap_or_default();
    // Fast path: no presented key fits into the path or the query.
    if !headers.can_contain_key(target.path.len().max(query.len())) {
        return Ok(());
    }
    let repeats = |key: &[u8]| {
        let contains = |text: &str| credential_scan::contains_key(text.as_bytes(), key);
        // An `access_token` is removed before forwarding.
        contains(target.path) || contains(query) && (passthrough || contains(&target.query_without_token()))
    };
    if !headers.presented_keys().any(repeats) {
        return Ok(());
    }
    let message = "the path or the query contains the key, which must not go to WeCom; send it only as \"Authorization: \
                 Bearer KEY\" or \"X-Api-Key: KEY\"";
    Err(ProxyError::new(ErrorKind::BadRequest, message))
}

/// The agent named by the path or by `X-Wecom-Agent`.
pub(super) fn requested_agent<'a>(
    target: &ParsedTarget<'a>,
    headers: &'a Headers,
) -> Result<Option<&'a str>, ProxyError> {
    let header = single_value(headers, HeaderKind::WecomAgent, "X-Wecom-Agent")?;
    if let (Some(segment), Some(header)) = (target.agent, header)
        && segment != header
    {
        let message = "the path and X-Wecom-Agent name two different agents; name one";
        return Err(ProxyError::new(ErrorKind::BadRequest, message));
    }
    Ok(target.agent.or(header))
}

/// Error for an agent that does not exist or that the client may not use. The name is not repeated: it may be a
/// misplaced key.
pub(super) fn unknown_agent() -> ProxyError {
    ProxyError::new(ErrorKind::UnknownAgent, "no agent of this name for this client")
}

/// Error for a request that selects no agent.
pub(super) fn no_agent_selected() -> ProxyError {
    let message = "choose an agent: by the path (/NAME/cgi-bin/…), by the header X-Wecom-Agent: NAME, \
                or with the key of a client that has only one agent";
    ProxyError::new(ErrorKind::NoAgent, message)
}

/// Error for a request without credentials.
fn unauthenticated() -> ProxyError {
    let message = "send your key as \"Authorization: Bearer KEY\", as \"X-Api-Key: KEY\", by HTTP Basic as the password, \
                or call gettoken here and send the access_token that it returns";
    ProxyError::new(ErrorKind::Unauthenticated, message)
}

fn conflicting_clients() -> ProxyError {
    ProxyError::new(ErrorKind::BadRequest, "credentials of two clients; send only one")
}

/// Error for a pass that would be forwarded to the upstream.
fn misplaced_pass(location: PassLocation) -> ProxyError {
    match location {
        PassLocation::Path => ProxyError::new(
            ErrorKind::BadRequest,
            "the path contains a pass (an access_token from this proxy's gettoken), which must not go to WeCom; send it as \
             the parameter access_token",
        ),
        PassLocation::Query => ProxyError::new(
            ErrorKind::PassInvalid,
            "invalid access_token: another parameter contains a pass (an access_token from this proxy's gettoken), which \
             must not go to WeCom; send it as access_token",
        ),
    }
}

fn invalid_pass(pass_error: PassError) -> ProxyError {
    match pass_error {
        PassError::Expired => {
            ProxyError::new(ErrorKind::PassExpired, "access_token expired: call gettoken for a new one")
        }
        PassError::Invalid => ProxyError::new(
            ErrorKind::PassInvalid,
            "invalid access_token: not issued by this proxy, or revoked; call gettoken",
        ),
    }
}

/// Verifies the `access_token` parameters. One valid pass decides, whatever invalid tokens are present too; two
/// passes for different agents or clients are an error.
fn presented_token(directory: &Directory, query: Option<&str>) -> Result<PresentedToken, ProxyError> {
    let mut presented = PresentedToken::Absent;
    for token in query::token_values(query.unwrap_or_default()) {
        match (verify_pass(directory, &token), &presented) {
            (Ok((agent, client)), PresentedToken::Pass { agent: other, client: other_client }) => {
                let same_client = client.as_ref().map(Arc::as_ptr) == other_client.as_ref().map(Arc::as_ptr);
                if !Arc::ptr_eq(&agent, other) || !same_client {
                    return Err(ProxyError::new(
                        ErrorKind::BadRequest,
                        "the query contains two different passes; send one",
                    ));
                }
            }
            (Ok((agent, client)), _) => presented = PresentedToken::Pass { agent, client },
            (Err(_), PresentedToken::Pass { .. } | PresentedToken::Invalid(PassError::Expired)) => {}
            (Err(pass_error), _) => presented = PresentedToken::Invalid(pass_error),
        }
    }
    Ok(presented)
}

/// The agent and client of a pass that is valid now.
fn verify_pass(directory: &Directory, token: &str) -> Result<(Arc<Agent>, Option<Arc<Client>>), PassError> {
    let mut scratch = DecodeBuf::default();
    let unverified = UnverifiedPass::parse(token, &mut scratch).ok_or(PassError::Invalid)?;
    let agent = directory.agent_by_name(unverified.agent).ok_or(PassError::Invalid)?;
    let client = match unverified.client {
        // Issued for the agent's own secret.
        "" if directory.is_open() || agent.accept_secret => None,
        "" => return Err(PassError::Invalid),
        name => Some(directory.client_by_name(name).ok_or(PassError::Invalid)?),
    };
    agent.pass_key.verify(&unverified, client.map(|client| &client.key_hash), unix_now())?;
    if client.is_some_and(|client| !client.may_use_agent(&agent.name)) {
        return Err(PassError::Invalid);
    }
    Ok((agent.clone(), client.cloned()))
}
