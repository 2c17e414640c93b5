//! Who is calling and through which agent.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::Method;
use tokio::time::Instant;

use super::{
    error::{ErrorKind, ProxyError},
    gettoken::unix_now,
    query,
    request::Request,
    target::{self, ParsedTarget},
};
use crate::{
    directory::{Agent, Client, Directory},
    http1::headers::{Headers, KnownHeader},
    limits::RateLimiter,
    secret::{Masked, credential_scan},
    tokens::passes::{DecodeBuf, PassError, UnverifiedPass},
};

/// Who calls, and what the call is made with.
#[derive(Debug)]
pub(super) struct Caller {
    /// The client that a pass names where no key does; `None` for a pass that was bought with an agent's secret, too.
    pub(super) pass_client: Option<Arc<Client>>,
    /// The agent; `None` where nothing says which.
    pub(super) agent: Option<Arc<Agent>>,
    /// Whether the call carries a credential of its own, and gets no token.
    pub(super) passthrough: bool,
}

/// What the `access_token` of a call says.
enum PresentedToken {
    Absent,
    Pass { agent: Arc<Agent>, client: Option<Arc<Client>> },
    Invalid(PassError),
}

/// The client whose key the headers show, if they show one.
pub(super) fn authenticate_key(
    directory: &Directory,
    fields: &Headers,
) -> Result<Option<Arc<Client>>, ProxyError> {
    if !directory.has_clients() {
        return Ok(None);
    }
    let mut shown = None;
    for key in [authorization_key(fields)?, api_key(fields)?].into_iter().flatten() {
        let client = directory.client_by_key(key.expose()).ok_or_else(|| {
            let words = match directory.is_key_hash(key.expose()) {
                true => {
                    "this is what the proxy's file has as key_sha256: a caller sends the key, and the file has its \
                     SHA-256; \"wecom-proxy key NAME\" prints both"
                }
                false => "this key belongs to no client; ask the operator for a valid one",
            };
            ProxyError::new(ErrorKind::Unauthenticated, words).with_wrong_key()
        })?;
        if let Some(other) = shown.replace(client.clone())
            && !Arc::ptr_eq(&other, client)
        {
            return Err(conflicting_clients());
        }
    }
    Ok(shown)
}

/// Who calls, by key or pass, and the agent: the pass's, the path's first segment, `X-Wecom-Agent`, the client's only
/// one, the only one there is. `by_key` is the client whose key the headers show.
pub(super) fn authenticate(
    directory: &Directory,
    by_key: Option<&Arc<Client>>,
    target: &ParsedTarget<'_>,
    fields: &Headers,
) -> Result<Caller, ProxyError> {
    let named = requested_agent(target, fields)?;
    if let Some(place) = target.misplaced_pass {
        return Err(misplaced_pass(place));
    }
    let known = match named {
        Some(name) => directory.agent(name, by_key.map(|client| &**client)),
        None => directory.only_agent(by_key.map(|client| &**client)),
    };
    let own_credential = target.kind == target::TargetKind::Passthrough
        || known.is_some_and(|agent| agent.is_passthrough(&target.normalized_path));
    if own_credential {
        reject_pass(target)?;
    }
    let may_show = target.may_contain_token && !own_credential;
    let bad = match if may_show { presented_token(directory, target.query)? } else { PresentedToken::Absent }
    {
        PresentedToken::Pass { agent, client } if !agent.is_passthrough(&target.normalized_path) => {
            return caller_from_pass(by_key, named, agent, client);
        }
        PresentedToken::Pass { .. } => return Err(invalid_pass(PassError::Invalid)),
        PresentedToken::Invalid(bad) => Some(bad),
        PresentedToken::Absent => None,
    };
    if by_key.is_none() && !directory.is_open() {
        return Err(bad.map_or_else(unauthenticated, invalid_pass));
    }
    match (known, named, bad) {
        (None, Some(_), _) => Err(unknown_agent()),
        (None, None, Some(bad)) => Err(invalid_pass(bad)),
        (agent, _, _) => Ok(Caller { pass_client: None, agent: agent.cloned(), passthrough: own_credential }),
    }
}

/// The caller that a good pass names, if nothing else in the request contradicts it.
fn caller_from_pass(
    by_key: Option<&Arc<Client>>,
    named: Option<&str>,
    agent: Arc<Agent>,
    client: Option<Arc<Client>>,
) -> Result<Caller, ProxyError> {
    if let (Some(by_key), Some(client)) = (by_key, &client)
        && !Arc::ptr_eq(by_key, client)
    {
        return Err(conflicting_clients());
    }
    if named.is_some_and(|named| named != agent.name) {
        let words = "the pass and the path or X-Wecom-Agent name two different agents; name one";
        return Err(ProxyError::new(ErrorKind::BadRequest, words));
    }
    if by_key.or(client.as_ref()).is_some_and(|client| !client.may_use_agent(&agent.name)) {
        return Err(unknown_agent());
    }
    let by_pass = client.filter(|_| by_key.is_none());
    Ok(Caller { pass_client: by_pass, agent: Some(agent), passthrough: false })
}

/// The client that a good pass in the query names: who it is that is refused.
pub(super) fn pass_client(directory: &Directory, query: Option<&str>) -> Option<Arc<Client>> {
    match presented_token(directory, query) {
        Ok(PresentedToken::Pass { client, .. }) => client,
        _ => None,
    }
}

/// Refuses a pass where it would leave, whatever the parameter is called: on a path that carries a credential of its own.
fn reject_pass(target: &ParsedTarget<'_>) -> Result<(), ProxyError> {
    let query = target.query.unwrap_or_default();
    let marked = query::param_values(query).any(|value| credential_scan::has_pass_prefix(&value));
    if marked || credential_scan::contains_pass(query.as_bytes()) {
        Err(invalid_pass(PassError::Invalid))
    } else {
        Ok(())
    }
}

/// Refuses a key that the caller shows in its place, and that would leave because it stands in the path or the query too.
pub(super) fn reject_repeated_key(
    fields: &Headers,
    target: &ParsedTarget<'_>,
    own_credential: bool,
) -> Result<(), ProxyError> {
    let query = target.query.unwrap_or_default();
    // Most keys are longer than most targets.
    if fields.all_keys_longer_than(target.path.len().max(query.len())) {
        return Ok(());
    }
    let repeats = |key: &[u8]| {
        let holds = |text: &str| credential_scan::contains_key(text.as_bytes(), key);
        // An access_token is taken out.
        holds(target.path) || holds(query) && (own_credential || holds(&target.query_without_token()))
    };
    if !fields.presented_keys().any(repeats) {
        return Ok(());
    }
    let words = "the path or the query repeats the key, which must not go to WeCom; send it only as \"Authorization: \
                 Bearer KEY\" or \"X-Api-Key: KEY\"";
    Err(ProxyError::new(ErrorKind::BadRequest, words))
}

/// Refuses what the client's `allow` does not list.
pub(super) fn check_allowed(client: Option<&Client>, method: &Method, path: &str) -> Result<(), ProxyError> {
    let Some(client) = client.filter(|client| !client.may_call(method, path)) else { return Ok(()) };
    let key = format!("clients.{}.allow", client.name);
    let words =
        format!("this client may not call this path: it is not in {key}, where the operator can add it");
    Err(ProxyError::new(ErrorKind::Forbidden, words))
}

/// Counts a request that came at `now` against a limit.
pub(super) fn check_rate(
    limit: Option<&Arc<RateLimiter>>,
    now: Instant,
    whose: &str,
) -> Result<(), ProxyError> {
    let Some(Err(wait)) = limit.map(|limit| limit.try_acquire(now)) else { return Ok(()) };
    let words = format!("{whose} has sent all that its limit allows; come again in {} s", ceil_seconds(wait));
    Err(ProxyError::new(ErrorKind::RateLimited, words).with_retry_after(wait))
}

fn ceil_seconds(wait: Duration) -> u64 {
    wait.as_secs_f64().ceil().max(1.0) as u64
}

/// The agent that the path or the header names.
pub(super) fn requested_agent<'a>(
    target: &ParsedTarget<'a>,
    fields: &'a Headers,
) -> Result<Option<&'a str>, ProxyError> {
    let header = single_value(fields, KnownHeader::WecomAgent, "X-Wecom-Agent")?;
    if let (Some(segment), Some(header)) = (target.agent, header)
        && segment != header
    {
        let words = "the path and X-Wecom-Agent name two different agents; name one";
        return Err(ProxyError::new(ErrorKind::BadRequest, words));
    }
    Ok(target.agent.or(header))
}

/// What to say of an agent that is not there, or not for this caller. What stands in its place may be a key: it is not
/// said back.
pub(super) fn unknown_agent() -> ProxyError {
    ProxyError::new(ErrorKind::UnknownAgent, "there is no agent of this name for this caller")
}

/// What to say to a caller who chose no agent.
pub(super) fn no_agent_selected() -> ProxyError {
    let ways = "choose an agent: by the path (/NAME/cgi-bin/…), by the header X-Wecom-Agent: NAME, \
                or with the key of a client that has only one agent";
    ProxyError::new(ErrorKind::NoAgent, ways)
}

/// What to say to a caller who showed nothing.
fn unauthenticated() -> ProxyError {
    let ways = "send your key as \"Authorization: Bearer KEY\", as \"X-Api-Key: KEY\", by HTTP Basic as the password, \
                or a pass that gettoken gave you as access_token";
    ProxyError::new(ErrorKind::Unauthenticated, ways)
}

fn conflicting_clients() -> ProxyError {
    ProxyError::new(ErrorKind::BadRequest, "the request shows the credentials of two clients; send only one")
}

/// What to say to a caller whose pass would go to the upstream.
fn misplaced_pass(place: target::PassLocation) -> ProxyError {
    match place {
        target::PassLocation::Path => ProxyError::new(
            ErrorKind::BadRequest,
            "the path holds a pass, which must not go to WeCom; send it as the parameter access_token",
        ),
        target::PassLocation::Query => ProxyError::new(
            ErrorKind::PassInvalid,
            "invalid access_token: a pass stands in another parameter, where it must not go to WeCom; send it as \
             access_token",
        ),
    }
}

fn invalid_pass(bad: PassError) -> ProxyError {
    match bad {
        PassError::Expired => {
            ProxyError::new(ErrorKind::PassExpired, "access_token expired: call gettoken for a new one")
        }
        PassError::Invalid => ProxyError::new(
            ErrorKind::PassInvalid,
            "invalid access_token: it is none that gettoken gave out here, or no longer one; call gettoken",
        ),
    }
}

/// What the call's `access_token` is worth. One good pass decides, whatever stands beside it.
fn presented_token(directory: &Directory, query: Option<&str>) -> Result<PresentedToken, ProxyError> {
    let mut shown = PresentedToken::Absent;
    for token in query::token_values(query.unwrap_or_default()) {
        match (verify_pass(directory, &token), &shown) {
            (Ok((agent, client)), PresentedToken::Pass { agent: other, client: other_client }) => {
                let same_client = client.as_ref().map(Arc::as_ptr) == other_client.as_ref().map(Arc::as_ptr);
                if !Arc::ptr_eq(&agent, other) || !same_client {
                    return Err(ProxyError::new(
                        ErrorKind::BadRequest,
                        "the query holds two different passes; send one",
                    ));
                }
            }
            (Ok((agent, client)), _) => shown = PresentedToken::Pass { agent, client },
            (Err(_), PresentedToken::Pass { .. } | PresentedToken::Invalid(PassError::Expired)) => {}
            (Err(bad), _) => shown = PresentedToken::Invalid(bad),
        }
    }
    Ok(shown)
}

/// The agent and client of a pass, if it is a good one now.
fn verify_pass(directory: &Directory, token: &str) -> Result<(Arc<Agent>, Option<Arc<Client>>), PassError> {
    let mut scratch = DecodeBuf::default();
    let claim = UnverifiedPass::parse(token, &mut scratch).ok_or(PassError::Invalid)?;
    let agent = directory.agent(claim.agent, None).ok_or(PassError::Invalid)?;
    let client = match claim.client {
        // Bought with the agent's own secret.
        "" if directory.is_open() || agent.accept_secret => None,
        "" => return Err(PassError::Invalid),
        name => Some(directory.client_by_name(name).ok_or(PassError::Invalid)?),
    };
    agent.pass_key.verify(&claim, client.map(|client| &client.key_hash), unix_now())?;
    if client.is_some_and(|client| !client.may_use_agent(&agent.name)) {
        return Err(PassError::Invalid);
    }
    Ok((agent.clone(), client.cloned()))
}

/// A key as it was shown: where it stood, or taken out of what it was encoded in.
enum PresentedKey<'a> {
    Verbatim(&'a str),
    Decoded(Masked),
}

impl PresentedKey<'_> {
    fn expose(&self) -> &str {
        match self {
            Self::Verbatim(key) => key,
            Self::Decoded(key) => key.expose(),
        }
    }
}

/// The key in `Authorization`, as Bearer or as the password of Basic.
fn authorization_key(fields: &Headers) -> Result<Option<PresentedKey<'_>>, ProxyError> {
    let Some(value) = single_value(fields, KnownHeader::Authorization, "Authorization")? else {
        return Ok(None);
    };
    let space = memchr::memchr(b' ', value.as_bytes()).unwrap_or(value.len());
    let (scheme, rest) = (&value[..space], value[space..].trim_ascii());
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(Some(PresentedKey::Verbatim(rest)));
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let pair =
            BASE64_STANDARD.decode(rest).ok().and_then(|pair| String::from_utf8(pair).ok()).map(Masked::new);
        let password =
            pair.as_ref().and_then(|pair| pair.expose().split_once(':')).map(|(_, password)| password);
        return match password {
            Some(password) => Ok(Some(PresentedKey::Decoded(Masked::new(password)))),
            None => Err(ProxyError::new(
                ErrorKind::Unauthenticated,
                "the Basic credentials are not base64 of USER:KEY",
            )),
        };
    }
    Err(ProxyError::new(
        ErrorKind::Unauthenticated,
        "this Authorization scheme is not known here; use Bearer or Basic",
    ))
}

fn api_key(fields: &Headers) -> Result<Option<PresentedKey<'_>>, ProxyError> {
    Ok(single_value(fields, KnownHeader::ApiKey, "X-Api-Key")?.map(PresentedKey::Verbatim))
}

/// Whether a text is a pass, or a key that this very request shows.
pub(super) fn is_credential(request: &Request, text: &str) -> bool {
    let (fields, target) = (&request.headers, &request.target);
    // Whatever the scheme is: what follows it.
    let ends_authorization = |value: &[u8]| {
        let before = value.trim_ascii().strip_suffix(text.as_bytes());
        before.is_some_and(|before| before.is_empty() || before.ends_with(b" "))
    };
    credential_scan::has_pass_prefix(text)
        || credential_scan::contains_pass(text.as_bytes())
        || fields.presented_keys().any(|key| credential_scan::contains_key(text.as_bytes(), key))
        || fields.values(KnownHeader::ApiKey).any(|value| value.trim_ascii() == text.as_bytes())
        || fields.values(KnownHeader::Authorization).any(ends_authorization)
        || matches!(authorization_key(fields), Ok(Some(PresentedKey::Decoded(key))) if key.expose() == text)
        || (target.path().ends_with("/gettoken")
            && query::param_values(target.query().unwrap_or_default()).any(|value| *value == text))
}

/// The value of a header that may stand only once.
fn single_value<'a>(
    fields: &'a Headers,
    known: KnownHeader,
    name: &str,
) -> Result<Option<&'a str>, ProxyError> {
    let mut values = fields.values(known);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        let words = format!("the header {name} stands there twice; send it once");
        return Err(ProxyError::new(ErrorKind::BadRequest, words));
    }
    let visible = |so_far: bool, byte: &u8| so_far & (((*byte >= b' ') & (*byte <= b'~')) | (*byte == b'\t'));
    match std::str::from_utf8(value) {
        Ok(text) if value.iter().fold(true, visible) => Ok(Some(text)),
        _ => {
            let words = format!("the header {name} holds more than visible ASCII");
            Err(ProxyError::new(ErrorKind::BadRequest, words))
        }
    }
}
