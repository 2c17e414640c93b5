//! Authentication of the client, and selection of the agent.

use std::sync::Arc;

use super::{
    error::{ErrorKind, ProxyError},
    presented_key::{api_key, authorization_key, single_value},
    query,
    request::Request,
    target::{PassLocation, RequestTarget},
};
use crate::{
    config::KeyHash,
    directory::{Agent, AgentRole, Client, Directory, Suite},
    http1::headers::{HeaderKind, Headers},
    secret::{
        Masked,
        credential_scan::{self, contains_key, is_base64url},
    },
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

/// The client whose key the headers or the path contain; `None` without a key. Errors: an unknown key, or the keys of
/// two clients.
pub(super) fn authenticate_key(
    directory: &Directory,
    headers: &Headers,
    path_credential: Option<&Masked>,
) -> Result<Option<Arc<Client>>, ProxyError> {
    if !directory.has_clients() {
        return Ok(None);
    }
    let mut presented = path_credential.map(|key| path_credential_client(directory, key)).transpose()?;
    for key in [authorization_key(headers)?, api_key(headers)?].into_iter().flatten() {
        let client = directory.client_by_key(key.expose()).ok_or_else(|| {
            let message = match directory.is_key_hash(key.expose()) {
                true => {
                    "key_sha256 sent instead of the key: send the key itself; \"wecom-proxy key NAME\" prints both"
                }
                false => "this key belongs to no client; ask the operator for a valid one",
            };
            ErrorKind::Unauthenticated.error(message).with_wrong_key()
        })?;
        if let Some(other) = presented.replace(client.clone())
            && !Arc::ptr_eq(&other, client)
        {
            return Err(conflicting_clients());
        }
    }
    Ok(presented)
}

/// The hashes of the keys in the headers and the path.
pub(super) fn presented_key_hashes(
    headers: &Headers,
    path_credential: Option<&Masked>,
) -> Result<Vec<KeyHash>, ProxyError> {
    let in_headers = [authorization_key(headers)?, api_key(headers)?].into_iter().flatten();
    let in_headers = in_headers.map(|key| KeyHash::of(key.expose()));
    Ok(path_credential.map(|key| KeyHash::of(key.expose())).into_iter().chain(in_headers).collect())
}

/// The client whose key stands in the path.
fn path_credential_client(directory: &Directory, key: &Masked) -> Result<Arc<Client>, ProxyError> {
    let unauthenticated = |message| ErrorKind::Unauthenticated.error(message);
    if !is_base64url(key.expose()) {
        let message =
            "the path begins with /k/ and no key: write /k/KEY/cgi-bin/…, a key of letters, digits, - and _";
        return Err(unauthenticated(message).with_wrong_key());
    }
    match directory.client_by_key(key.expose()) {
        Some(client) if client.config.key_in_path => Ok(client.clone()),
        Some(_) => Err(unauthenticated(
            "this client's key is not accepted in the path: send it as \"Authorization: Bearer KEY\" or \"X-Api-Key: KEY\", \
             or let the operator set key_in = \"path\" for this client",
        )),
        None => {
            Err(unauthenticated("the key in the path belongs to no client; ask the operator for a valid one")
                .with_wrong_key())
        }
    }
}

/// Authenticates by key or pass and selects the agent: the pass's, the first path segment, `X-Wecom-Agent`, the
/// client's only one, the only one configured. `key_client` is the client whose key the headers contain.
pub(super) fn authenticate(
    directory: &Directory,
    key_client: Option<&Arc<Client>>,
    target: &RequestTarget,
    headers: &Headers,
) -> Result<Authenticated, ProxyError> {
    let requested = requested_agent(target, headers)?;
    if let Some(location) = target.misplaced_pass() {
        return Err(misplaced_pass(location));
    }
    let selected = match requested {
        Some(name) => directory.permitted_agent(name, key_client.map(|client| &**client)),
        None => directory.only_agent(key_client.map(|client| &**client)),
    };
    let passthrough = target.is_passthrough()
        || selected.as_ref().is_some_and(|agent| agent.is_passthrough(target.normalized_path()));
    if passthrough {
        reject_pass(target)?;
    }
    let may_contain_pass = target.may_contain_token() && !passthrough;
    let presented =
        if may_contain_pass { presented_token(directory, target.query())? } else { PresentedToken::Absent };
    let pass_error = match presented {
        PresentedToken::Pass { agent, client } if !agent.is_passthrough(target.normalized_path()) => {
            return authenticated_by_pass(directory, key_client, requested, agent, client);
        }
        PresentedToken::Pass { .. } => return Err(invalid_pass(PassError::Invalid)),
        PresentedToken::Invalid(pass_error) => Some(pass_error),
        PresentedToken::Absent => None,
    };
    if key_client.is_none() && !directory.is_open() {
        return Err(pass_error.map_or_else(unauthenticated, invalid_pass));
    }
    match (selected, requested, pass_error) {
        (None, Some(name), _) => {
            Err(missing_agent(directory, name, key_client.map(|client| &**client), unknown_agent))
        }
        (None, None, Some(pass_error)) => Err(invalid_pass(pass_error)),
        (agent, _, _) => Ok(Authenticated { pass_client: None, agent, passthrough }),
    }
}

/// The client and agent of a valid pass, if the key and the requested agent agree with it.
fn authenticated_by_pass(
    directory: &Directory,
    key_client: Option<&Arc<Client>>,
    requested: Option<&str>,
    agent: Arc<Agent>,
    client: Option<Arc<Client>>,
) -> Result<Authenticated, ProxyError> {
    check_pass_agrees(directory, key_client, requested, &agent, client.as_ref())?;
    if key_client.or(client.as_ref()).is_some_and(|client| !client.may_use_agent(&agent)) {
        return Err(unknown_agent());
    }
    let pass_client = client.filter(|_| key_client.is_none());
    Ok(Authenticated { pass_client, agent: Some(agent), passthrough: false })
}

/// Refuses a pass of another client than the key's, or for another agent than the requested one.
#[inline]
pub(super) fn check_pass_agrees(
    directory: &Directory,
    key_client: Option<&Arc<Client>>,
    requested: Option<&str>,
    agent: &Arc<Agent>,
    client: Option<&Arc<Client>>,
) -> Result<(), ProxyError> {
    if let (Some(key_client), Some(client)) = (key_client, client)
        && !Arc::ptr_eq(key_client, client)
    {
        return Err(conflicting_clients());
    }
    if requested.is_some_and(|requested| !may_stand_for(directory, requested, agent)) {
        let message = "the pass and the path or X-Wecom-Agent name two different agents; name one";
        return Err(ErrorKind::BadRequest.error(message));
    }
    Ok(())
}

/// Whether a path or header that names `requested` agrees with a pass or a body that names this agent: the same one, of
/// which a corp in the file has two names; or a suite, and one of its corps or its provider.
pub(super) fn may_stand_for(directory: &Directory, requested: &str, agent: &Arc<Agent>) -> bool {
    if requested == agent.name {
        return true;
    }
    let Some(named) = directory.find_agent(requested) else { return false };
    let is_of_suite = |suite: &Arc<Suite>| match &agent.role {
        AgentRole::Corp { suite: name } => **name == *suite.name(),
        AgentRole::Provider => suite.config.provider.as_deref() == Some(&*agent.name),
        _ => false,
    };
    Arc::ptr_eq(&named, agent) || named.suite().is_some_and(is_of_suite)
}

/// The client of a valid pass in the query, for a request rejected before authentication.
pub(super) fn pass_client(directory: &Directory, query: Option<&str>) -> Option<Arc<Client>> {
    match presented_token(directory, query) {
        Ok(PresentedToken::Pass { client, .. }) => client,
        _ => None,
    }
}

/// Rejects a pass in any parameter of a passthrough request, which would forward it.
pub(super) fn reject_pass(target: &RequestTarget) -> Result<(), ProxyError> {
    let query = target.query().unwrap_or_default();
    let has_pass = query::param_values(query).any(|value| credential_scan::has_pass_prefix(&value));
    if has_pass || credential_scan::contains_pass(query.as_bytes()) {
        Err(invalid_pass(PassError::Invalid))
    } else {
        Ok(())
    }
}

/// Rejects a request whose path or query also contains the key, because both are forwarded.
#[inline(always)]
pub(super) fn reject_repeated_key(request: &Request, passthrough: bool) -> Result<(), ProxyError> {
    let Request { headers, target, .. } = request;
    // Fast path: no presented key fits into the path or the query.
    let longest = target.upstream_path().len().max(target.query().map_or(0, str::len));
    if request.path_credential.is_none() && !headers.can_contain_key(longest) {
        return Ok(());
    }
    reject_found_key(request, passthrough)
}

fn reject_found_key(request: &Request, passthrough: bool) -> Result<(), ProxyError> {
    let Request { headers, target, .. } = request;
    let query = target.query().unwrap_or_default();
    let repeats = |key: &[u8]| {
        let contains = |text: &str| contains_key(text.as_bytes(), key);
        // An `access_token` is removed before forwarding.
        contains(target.upstream_path())
            || contains(query) && (passthrough || contains(&target.query_without_token()))
    };
    let repeats_path_key = |key: &Masked| {
        let key = key.expose().as_bytes();
        repeats(key)
            || headers
                .forwarded_to_upstream()
                .any(|header| contains_key(header.value, key) || contains_key(header.name, key))
    };
    if !headers.presented_keys().any(repeats)
        && !request.path_credential.as_ref().is_some_and(repeats_path_key)
    {
        return Ok(());
    }
    let message = "the path, the query or a header contains the key once more, and would go to WeCom; send it only as \
                 \"Authorization: Bearer KEY\" or \"X-Api-Key: KEY\"";
    Err(ErrorKind::BadRequest.error(message))
}

/// The agent named by the path or by `X-Wecom-Agent`.
pub(super) fn requested_agent<'a>(
    target: &'a RequestTarget,
    headers: &'a Headers,
) -> Result<Option<&'a str>, ProxyError> {
    let header = single_value(headers, HeaderKind::WecomAgent, "X-Wecom-Agent")?;
    if let (Some(segment), Some(header)) = (target.agent(), header)
        && segment != header
    {
        let message = "the path and X-Wecom-Agent name two different agents; name one";
        return Err(ErrorKind::BadRequest.error(message));
    }
    Ok(target.agent().or(header))
}

/// Error for an agent that does not exist or that the client may not use. The name is not repeated: it may be a
/// misplaced key.
pub(super) fn unknown_agent() -> ProxyError {
    ErrorKind::UnknownAgent.error("no agent of this name for this client")
}

/// Error for a name that is no agent for this client: of a corp that it may use, why it is gone, else `unknown`.
pub(super) fn missing_agent(
    directory: &Directory,
    name: &str,
    client: Option<&Client>,
    unknown: fn() -> ProxyError,
) -> ProxyError {
    let cancelled = directory.find_cancelled_corp(name);
    match cancelled.filter(|corp| client.is_none_or(|client| client.may_use_agent(corp))) {
        Some(_) => {
            let message = "the corp withdrew its authorisation of the suite (cancel_auth), so it cannot be called; an \
                           administrator of the corp must install the application again";
            ErrorKind::UnknownAgent.error(message)
        }
        None => unknown(),
    }
}

/// Error for a request that selects no agent.
pub(super) fn no_agent_selected() -> ProxyError {
    let message = "choose an agent: by the path (/NAME/cgi-bin/…), by the header X-Wecom-Agent: NAME, \
                or with the key of a client that has only one agent";
    ErrorKind::NoAgent.error(message)
}

/// Error for a request without credentials.
pub(super) fn unauthenticated() -> ProxyError {
    let message = "send your key as \"Authorization: Bearer KEY\", as \"X-Api-Key: KEY\", by HTTP Basic as the password, \
                or call gettoken here and send the access_token that it returns";
    ErrorKind::Unauthenticated.error(message)
}

pub(super) fn conflicting_clients() -> ProxyError {
    ErrorKind::BadRequest.error("credentials of two clients; send only one")
}

/// Error for a pass that would be forwarded to the upstream.
pub(super) fn misplaced_pass(location: PassLocation) -> ProxyError {
    match location {
        PassLocation::Path => ErrorKind::BadRequest.error(
            "the path contains a pass (an access_token from this proxy's gettoken), which must not go to WeCom; send it as \
             the parameter access_token",
        ),
        PassLocation::Query => ErrorKind::PassInvalid.error(
            "invalid access_token: another parameter contains a pass (an access_token from this proxy's gettoken), which \
             must not go to WeCom; send it as access_token",
        ),
    }
}

pub(super) fn invalid_pass(pass_error: PassError) -> ProxyError {
    match pass_error {
        PassError::Expired => {
            ErrorKind::PassExpired.error("access_token expired: call gettoken for a new one")
        }
        PassError::Unverified => {
            let message = "access_token no longer valid: the key or the secret that it was issued under has changed; \
                           call gettoken for a new one";
            ErrorKind::PassExpired.error(message)
        }
        PassError::Invalid => ErrorKind::PassInvalid.error(
            "invalid access_token: not issued by this proxy for a present agent and client; call gettoken",
        ),
    }
}

/// Verifies the `access_token` parameters. One valid pass decides, whatever invalid tokens are present too; two
/// passes for different agents or clients are an error.
fn presented_token(directory: &Directory, query: Option<&str>) -> Result<PresentedToken, ProxyError> {
    let mut presented = PresentedToken::Absent;
    for token in query::token_values(query.unwrap_or_default()) {
        // A pass for a suite or a provider is good in its own parameter only.
        let verified = verify_pass(directory, &token)
            .and_then(|pass| if pass.0.has_access_token() { Ok(pass) } else { Err(PassError::Invalid) });
        match (verified, &presented) {
            (Ok((agent, client)), PresentedToken::Pass { agent: other, client: other_client }) => {
                let same_client = client.as_ref().map(Arc::as_ptr) == other_client.as_ref().map(Arc::as_ptr);
                if !Arc::ptr_eq(&agent, other) || !same_client {
                    return Err(
                        ErrorKind::BadRequest.error("the query contains two different passes; send one")
                    );
                }
            }
            (Ok((agent, client)), _) => presented = PresentedToken::Pass { agent, client },
            (Err(_), PresentedToken::Pass { .. }) => {}
            (Err(PassError::Invalid), PresentedToken::Invalid(_)) => {}
            (Err(pass_error), _) => presented = PresentedToken::Invalid(pass_error),
        }
    }
    Ok(presented)
}

/// The agent and client of a pass that is valid now.
pub(super) fn verify_pass(
    directory: &Directory,
    token: &str,
) -> Result<(Arc<Agent>, Option<Arc<Client>>), PassError> {
    let mut scratch = DecodeBuf::default();
    let unverified = UnverifiedPass::parse(token, &mut scratch).ok_or(PassError::Invalid)?;
    let agent = directory.find_agent(unverified.agent).ok_or(PassError::Invalid)?;
    let client = match unverified.client {
        // Issued for the agent's own secret.
        "" if directory.is_open() || agent.settings.accept_secret => None,
        "" => return Err(PassError::Unverified),
        name => {
            // For others the agent does not exist.
            let client = directory.client_by_name(name).filter(|client| client.may_use_agent(&agent));
            Some(client.ok_or(PassError::Invalid)?)
        }
    };
    agent.verify_pass(&unverified, client.map(|client| &**client), unix_now())?;
    Ok((agent, client.cloned()))
}
