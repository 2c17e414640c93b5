//! Who is calling and through which agent.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::Method;
use tokio::time::Instant;

use super::{
    gettoken::unix_now,
    query,
    refusal::{Kind, Refusal},
    request::Request,
    target::{self, Target},
};
use crate::{
    credential,
    directory::{Agent, Client, Directory},
    fields::{Fields, Known},
    limits::Bucket,
    passes::{BadPass, Claim, Scratch},
    secret::Masked,
};

/// Who calls, and what the call is made with.
#[derive(Debug)]
pub(super) struct Caller {
    /// The client that a pass names where no key does; `None` for a pass that was bought with an agent's secret, too.
    pub(super) by_pass: Option<Arc<Client>>,
    /// The agent; `None` where nothing says which.
    pub(super) agent: Option<Arc<Agent>>,
    /// Whether the call carries a credential of its own, and gets no token.
    pub(super) own_credential: bool,
}

/// What the `access_token` of a call says.
enum Shown {
    Nothing,
    Pass { agent: Arc<Agent>, client: Option<Arc<Client>> },
    Bad(BadPass),
}

/// The client whose key the headers show, if they show one.
pub(super) fn by_key(directory: &Directory, fields: &Fields) -> Result<Option<Arc<Client>>, Refusal> {
    if !directory.knows_keys() {
        return Ok(None);
    }
    let mut shown = None;
    for key in [authorization_key(fields)?, api_key(fields)?].into_iter().flatten() {
        let client = directory.client(key.expose()).ok_or_else(|| {
            let words = match directory.has_for_a_hash(key.expose()) {
                true => {
                    "this is what the proxy's file has as key_sha256: a caller sends the key, and the file has its \
                     SHA-256; \"wecom-proxy key NAME\" prints both"
                }
                false => "this key belongs to no client; ask the operator for a valid one",
            };
            Refusal::new(Kind::Unauthenticated, words).of_wrong_key()
        })?;
        if let Some(other) = shown.replace(client.clone())
            && !Arc::ptr_eq(&other, client)
        {
            return Err(two_clients());
        }
    }
    Ok(shown)
}

/// Who calls, by key or pass, and the agent: the pass's, the path's first segment, `X-Wecom-Agent`, the client's only
/// one, the only one there is. `by_key` is the client whose key the headers show.
pub(super) fn caller(
    directory: &Directory,
    by_key: Option<&Arc<Client>>,
    target: &Target<'_>,
    fields: &Fields,
) -> Result<Caller, Refusal> {
    let named = named_agent(target, fields)?;
    if let Some(place) = target.stray_pass {
        return Err(stray_pass(place));
    }
    let known = match named {
        Some(name) => directory.agent(name, by_key.map(|client| &**client)),
        None => directory.only_agent(by_key.map(|client| &**client)),
    };
    let own_credential = target.kind == target::Kind::OwnCredential
        || known.is_some_and(|agent| agent.is_plain(&target.route));
    if own_credential {
        refuse_pass(target)?;
    }
    let may_show = target.may_hold_token && !own_credential;
    let bad = match if may_show { shown_token(directory, target.query)? } else { Shown::Nothing } {
        Shown::Pass { agent, client } if !agent.is_plain(&target.route) => {
            return by_pass(by_key, named, agent, client);
        }
        Shown::Pass { .. } => return Err(bad_pass(BadPass::Forged)),
        Shown::Bad(bad) => Some(bad),
        Shown::Nothing => None,
    };
    if by_key.is_none() && !directory.is_open() {
        return Err(bad.map_or_else(unauthenticated, bad_pass));
    }
    match (known, named, bad) {
        (None, Some(_), _) => Err(unknown_agent()),
        (None, None, Some(bad)) => Err(bad_pass(bad)),
        (agent, _, _) => Ok(Caller { by_pass: None, agent: agent.cloned(), own_credential }),
    }
}

/// The caller that a good pass names, if nothing else in the request contradicts it.
fn by_pass(
    by_key: Option<&Arc<Client>>,
    named: Option<&str>,
    agent: Arc<Agent>,
    client: Option<Arc<Client>>,
) -> Result<Caller, Refusal> {
    if let (Some(by_key), Some(client)) = (by_key, &client)
        && !Arc::ptr_eq(by_key, client)
    {
        return Err(two_clients());
    }
    if named.is_some_and(|named| named != agent.name) {
        let words = "the pass and the path or X-Wecom-Agent name two different agents; name one";
        return Err(Refusal::new(Kind::BadRequest, words));
    }
    if by_key.or(client.as_ref()).is_some_and(|client| !client.may_use(&agent.name)) {
        return Err(unknown_agent());
    }
    let by_pass = client.filter(|_| by_key.is_none());
    Ok(Caller { by_pass, agent: Some(agent), own_credential: false })
}

/// The client that a good pass in the query names: who it is that is refused.
pub(super) fn client_of_pass(directory: &Directory, query: Option<&str>) -> Option<Arc<Client>> {
    match shown_token(directory, query) {
        Ok(Shown::Pass { client, .. }) => client,
        _ => None,
    }
}

/// Refuses a pass where it would leave, whatever the parameter is called: on a path that carries a credential of its own.
fn refuse_pass(target: &Target<'_>) -> Result<(), Refusal> {
    let query = target.query.unwrap_or_default();
    let marked = query::values(query).any(|value| credential::is_marked(&value));
    if marked || credential::holds_pass(query.as_bytes()) { Err(bad_pass(BadPass::Forged)) } else { Ok(()) }
}

/// Refuses a key that the caller shows in its place, and that would leave because it stands in the path or the query too.
pub(super) fn refuse_stray_key(
    fields: &Fields,
    target: &Target<'_>,
    own_credential: bool,
) -> Result<(), Refusal> {
    let query = target.query.unwrap_or_default();
    // Most keys are longer than most targets.
    if fields.are_keys_longer_than(target.path.len().max(query.len())) {
        return Ok(());
    }
    let repeats = |key: &[u8]| {
        let holds = |text: &str| credential::repeats_key(text.as_bytes(), key);
        // An access_token is taken out.
        holds(target.path) || holds(query) && (own_credential || holds(&target.query_without_token()))
    };
    if !fields.keys().any(repeats) {
        return Ok(());
    }
    let words = "the path or the query repeats the key, which must not go to WeCom; send it only as \"Authorization: \
                 Bearer KEY\" or \"X-Api-Key: KEY\"";
    Err(Refusal::new(Kind::BadRequest, words))
}

/// Refuses what the client's `allow` does not list.
pub(super) fn permit(client: Option<&Client>, method: &Method, path: &str) -> Result<(), Refusal> {
    let Some(client) = client.filter(|client| !client.may_call(method, path)) else { return Ok(()) };
    let key = format!("clients.{}.allow", client.name);
    let words =
        format!("this client may not call this path: it is not in {key}, where the operator can add it");
    Err(Refusal::new(Kind::Forbidden, words))
}

/// Counts a request that came at `now` against a limit.
pub(super) fn admit(limit: Option<&Arc<Bucket>>, now: Instant, whose: &str) -> Result<(), Refusal> {
    let Some(Err(wait)) = limit.map(|limit| limit.take(now)) else { return Ok(()) };
    let words = format!("{whose} has sent all that its limit allows; come again in {} s", seconds(wait));
    Err(Refusal::new(Kind::RateLimited, words).retry_after(wait))
}

fn seconds(wait: Duration) -> u64 {
    wait.as_secs_f64().ceil().max(1.0) as u64
}

/// The agent that the path or the header names.
pub(super) fn named_agent<'a>(target: &Target<'a>, fields: &'a Fields) -> Result<Option<&'a str>, Refusal> {
    let header = single(fields, Known::Agent, "X-Wecom-Agent")?;
    if let (Some(segment), Some(header)) = (target.agent, header)
        && segment != header
    {
        let words = "the path and X-Wecom-Agent name two different agents; name one";
        return Err(Refusal::new(Kind::BadRequest, words));
    }
    Ok(target.agent.or(header))
}

/// What to say of an agent that is not there, or not for this caller. What stands in its place may be a key: it is not
/// said back.
pub(super) fn unknown_agent() -> Refusal {
    Refusal::new(Kind::UnknownAgent, "there is no agent of this name for this caller")
}

/// What to say to a caller who chose no agent.
pub(super) fn no_agent() -> Refusal {
    let ways = "choose an agent: by the path (/NAME/cgi-bin/…), by the header X-Wecom-Agent: NAME, \
                or with the key of a client that has only one agent";
    Refusal::new(Kind::NoAgent, ways)
}

/// What to say to a caller who showed nothing.
fn unauthenticated() -> Refusal {
    let ways = "send your key as \"Authorization: Bearer KEY\", as \"X-Api-Key: KEY\", by HTTP Basic as the password, \
                or a pass that gettoken gave you as access_token";
    Refusal::new(Kind::Unauthenticated, ways)
}

fn two_clients() -> Refusal {
    Refusal::new(Kind::BadRequest, "the request shows the credentials of two clients; send only one")
}

/// What to say to a caller whose pass would go to the upstream.
fn stray_pass(place: target::Place) -> Refusal {
    match place {
        target::Place::Path => Refusal::new(
            Kind::BadRequest,
            "the path holds a pass, which must not go to WeCom; send it as the parameter access_token",
        ),
        target::Place::Query => Refusal::new(
            Kind::PassInvalid,
            "invalid access_token: a pass stands in another parameter, where it must not go to WeCom; send it as \
             access_token",
        ),
    }
}

fn bad_pass(bad: BadPass) -> Refusal {
    match bad {
        BadPass::Expired => {
            Refusal::new(Kind::PassExpired, "access_token expired: call gettoken for a new one")
        }
        BadPass::Forged => Refusal::new(
            Kind::PassInvalid,
            "invalid access_token: it is none that gettoken gave out here, or no longer one; call gettoken",
        ),
    }
}

/// What the call's `access_token` is worth. One good pass decides, whatever stands beside it.
fn shown_token(directory: &Directory, query: Option<&str>) -> Result<Shown, Refusal> {
    let mut shown = Shown::Nothing;
    for token in query::tokens(query.unwrap_or_default()) {
        match (believe(directory, &token), &shown) {
            (Ok((agent, client)), Shown::Pass { agent: other, client: other_client }) => {
                let same_client = client.as_ref().map(Arc::as_ptr) == other_client.as_ref().map(Arc::as_ptr);
                if !Arc::ptr_eq(&agent, other) || !same_client {
                    return Err(Refusal::new(
                        Kind::BadRequest,
                        "the query holds two different passes; send one",
                    ));
                }
            }
            (Ok((agent, client)), _) => shown = Shown::Pass { agent, client },
            (Err(_), Shown::Pass { .. } | Shown::Bad(BadPass::Expired)) => {}
            (Err(bad), _) => shown = Shown::Bad(bad),
        }
    }
    Ok(shown)
}

/// The agent and client of a pass, if it is a good one now.
fn believe(directory: &Directory, token: &str) -> Result<(Arc<Agent>, Option<Arc<Client>>), BadPass> {
    let mut scratch = Scratch::default();
    let claim = Claim::read(token, &mut scratch).ok_or(BadPass::Forged)?;
    let agent = directory.agent(claim.agent, None).ok_or(BadPass::Forged)?;
    let client = match claim.client {
        // Bought with the agent's own secret.
        "" if directory.is_open() || agent.accept_secret => None,
        "" => return Err(BadPass::Forged),
        name => Some(directory.client_named(name).ok_or(BadPass::Forged)?),
    };
    agent.pass_key.verify(&claim, client.map(|client| &client.key), unix_now())?;
    if client.is_some_and(|client| !client.may_use(&agent.name)) {
        return Err(BadPass::Forged);
    }
    Ok((agent.clone(), client.cloned()))
}

/// A key as it was shown: where it stood, or taken out of what it was encoded in.
enum Key<'a> {
    Plain(&'a str),
    Decoded(Masked),
}

impl Key<'_> {
    fn expose(&self) -> &str {
        match self {
            Self::Plain(key) => key,
            Self::Decoded(key) => key.expose(),
        }
    }
}

/// The key in `Authorization`, as Bearer or as the password of Basic.
fn authorization_key(fields: &Fields) -> Result<Option<Key<'_>>, Refusal> {
    let Some(value) = single(fields, Known::Authorization, "Authorization")? else { return Ok(None) };
    let space = memchr::memchr(b' ', value.as_bytes()).unwrap_or(value.len());
    let (scheme, rest) = (&value[..space], value[space..].trim_ascii());
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(Some(Key::Plain(rest)));
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let pair =
            BASE64_STANDARD.decode(rest).ok().and_then(|pair| String::from_utf8(pair).ok()).map(Masked::new);
        let password =
            pair.as_ref().and_then(|pair| pair.expose().split_once(':')).map(|(_, password)| password);
        return match password {
            Some(password) => Ok(Some(Key::Decoded(Masked::new(password)))),
            None => {
                Err(Refusal::new(Kind::Unauthenticated, "the Basic credentials are not base64 of USER:KEY"))
            }
        };
    }
    Err(Refusal::new(
        Kind::Unauthenticated,
        "this Authorization scheme is not known here; use Bearer or Basic",
    ))
}

fn api_key(fields: &Fields) -> Result<Option<Key<'_>>, Refusal> {
    Ok(single(fields, Known::ApiKey, "X-Api-Key")?.map(Key::Plain))
}

/// Whether a text is a pass, or a key that this very request shows.
pub(super) fn is_credential(request: &Request, text: &str) -> bool {
    let (fields, target) = (&request.fields, &request.target);
    // Whatever the scheme is: what follows it.
    let ends_authorization = |value: &[u8]| {
        let before = value.trim_ascii().strip_suffix(text.as_bytes());
        before.is_some_and(|before| before.is_empty() || before.ends_with(b" "))
    };
    credential::is_marked(text)
        || credential::holds_pass(text.as_bytes())
        || fields.keys().any(|key| credential::repeats_key(text.as_bytes(), key))
        || fields.all(Known::ApiKey).any(|value| value.trim_ascii() == text.as_bytes())
        || fields.all(Known::Authorization).any(ends_authorization)
        || matches!(authorization_key(fields), Ok(Some(Key::Decoded(key))) if key.expose() == text)
        || (target.path().ends_with("/gettoken")
            && query::values(target.query().unwrap_or_default()).any(|value| *value == text))
}

/// The value of a header that may stand only once.
fn single<'a>(fields: &'a Fields, known: Known, name: &str) -> Result<Option<&'a str>, Refusal> {
    let mut values = fields.all(known);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        let words = format!("the header {name} stands there twice; send it once");
        return Err(Refusal::new(Kind::BadRequest, words));
    }
    let visible = |so_far: bool, byte: &u8| so_far & (((*byte >= b' ') & (*byte <= b'~')) | (*byte == b'\t'));
    match std::str::from_utf8(value) {
        Ok(text) if value.iter().fold(true, visible) => Ok(Some(text)),
        _ => {
            let words = format!("the header {name} holds more than visible ASCII");
            Err(Refusal::new(Kind::BadRequest, words))
        }
    }
}
