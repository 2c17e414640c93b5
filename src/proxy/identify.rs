//! Who is calling and through which agent.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderName, header};

use super::{
    refusal::{Kind, Refusal},
    target::Target,
};
use crate::{
    directory::{Agent, Client, Directory},
    secret::Masked,
};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const AGENT: HeaderName = HeaderName::from_static("x-wecom-agent");

/// The client whose key the headers show; `None` for a caller without one where the proxy is open.
pub(super) fn client(directory: &Directory, headers: &HeaderMap) -> Result<Option<Arc<Client>>, Refusal> {
    if !directory.knows_keys() {
        return Ok(None);
    }
    let mut shown = None;
    for key in [authorization_key(headers)?, api_key(headers)?].into_iter().flatten() {
        let client = directory.client(key.expose()).ok_or_else(|| {
            Refusal::new(
                Kind::Unauthenticated,
                "this key belongs to no client; ask the operator for a valid one",
            )
        })?;
        if let Some(other) = shown.replace(client.clone())
            && !Arc::ptr_eq(&other, client)
        {
            return Err(Refusal::new(
                Kind::BadRequest,
                "the request shows the keys of two clients; send only one",
            ));
        }
    }
    if shown.is_none() && !directory.is_open() {
        let ways = "send your key as \"Authorization: Bearer KEY\", as \"X-Api-Key: KEY\" or by HTTP Basic as the password";
        return Err(Refusal::new(Kind::Unauthenticated, ways));
    }
    Ok(shown)
}

/// The agent: the path's first segment, `X-Wecom-Agent`, the client's only one, the only one there is. `None` where
/// nothing says which.
pub(super) fn agent(
    directory: &Directory,
    client: Option<&Client>,
    target: &Target<'_>,
    headers: &HeaderMap,
) -> Result<Option<Arc<Agent>>, Refusal> {
    let header = single(headers, &AGENT)?;
    if let (Some(segment), Some(header)) = (target.agent, header)
        && segment != header
    {
        let words = "the path and X-Wecom-Agent name two different agents; name one";
        return Err(Refusal::new(Kind::BadRequest, words));
    }
    match target.agent.or(header) {
        Some(name) => match directory.agent(name, client) {
            Some(agent) => Ok(Some(agent.clone())),
            None => {
                Err(Refusal::new(Kind::UnknownAgent, format!("there is no agent {name:?} for this caller")))
            }
        },
        None => Ok(directory.only_agent(client).cloned()),
    }
}

/// What to say to a caller who chose no agent.
pub(super) fn no_agent() -> Refusal {
    let ways = "choose an agent: by the path (/NAME/cgi-bin/…), by the header X-Wecom-Agent: NAME, \
                or with the key of a client that has only one agent";
    Refusal::new(Kind::NoAgent, ways)
}

/// The key in `Authorization`, as Bearer or as the password of Basic.
fn authorization_key(headers: &HeaderMap) -> Result<Option<Masked>, Refusal> {
    let Some(value) = single(headers, &header::AUTHORIZATION)? else { return Ok(None) };
    let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(Some(Masked::new(rest)));
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let pair =
            BASE64_STANDARD.decode(rest).ok().and_then(|pair| String::from_utf8(pair).ok()).map(Masked::new);
        let password =
            pair.as_ref().and_then(|pair| pair.expose().split_once(':')).map(|(_, password)| password);
        return match password {
            Some(password) => Ok(Some(Masked::new(password))),
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

fn api_key(headers: &HeaderMap) -> Result<Option<Masked>, Refusal> {
    Ok(single(headers, &API_KEY)?.map(|key| Masked::new(key.trim())))
}

/// The value of a header that may stand only once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Refusal::new(
            Kind::BadRequest,
            format!("the header {name} stands there twice; send it once"),
        ));
    }
    match value.to_str() {
        Ok(text) => Ok(Some(text)),
        Err(_) => {
            Err(Refusal::new(Kind::BadRequest, format!("the header {name} holds more than visible ASCII")))
        }
    }
}
