//! gettoken, answered here: a client's key, or an agent's real secret where that is allowed, buys a pass.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use http::StatusCode;
use percent_encoding::percent_decode_str;

use super::{
    authenticate,
    error::{ErrorKind, ProxyError},
    request_context::RequestContext,
    response::Response,
    target::ParsedTarget,
};
use crate::{
    directory::{Agent, Client, Directory},
    http1::headers::Headers,
    secret::{Masked, wipe_on_drop},
    tokens::passes::CLAIMED_TTL,
    wecom::errcode,
};

/// Answers as WeCom does, with a pass in place of a token. `shown` is the client whose key the headers show.
pub(super) fn respond(
    directory: &Directory,
    shown: Option<Arc<Client>>,
    target: &ParsedTarget<'_>,
    fields: &Headers,
    record: &mut RequestContext,
) -> Result<Response, ProxyError> {
    let query = target.query.unwrap_or_default();
    let corpid = query_param(query, "corpid");
    let corpsecret = query_param(query, "corpsecret").map(|secret| Masked::new(secret.into_owned()));
    let corpid = corpid.ok_or_else(|| gettoken_error(errcode::MISSING_CORPID, "corpid missing"))?;
    let corpsecret =
        corpsecret.ok_or_else(|| gettoken_error(errcode::MISSING_SECRET, "corpsecret missing"))?;

    let by_key = directory.client_by_key(corpsecret.expose()).cloned();
    if let (Some(shown), Some(by_key)) = (&shown, &by_key)
        && !Arc::ptr_eq(shown, by_key)
    {
        return Err(ProxyError::new(
            ErrorKind::BadRequest,
            "the request shows the keys of two clients; send only one",
        ));
    }
    let named = authenticate::requested_agent(target, fields)?;
    let (client, agent) = match by_key {
        Some(client) => {
            record.client = Some(client.clone());
            let agent = select_agent(directory, &client, named, &corpid)?;
            (Some(client), agent)
        }
        None => {
            record.client.clone_from(&shown);
            let is_meant = |agent: &&Arc<Agent>| {
                named.is_none_or(|named| named == agent.name)
                    && shown.as_ref().is_none_or(|client| client.may_use_agent(&agent.name))
            };
            let agent = directory.agents_by_secret(&corpid, corpsecret.expose()).find(is_meant).cloned();
            (shown, agent.ok_or_else(|| invalid_credential(directory, &corpid))?)
        }
    };
    record.agent = Some(agent.clone());
    if let Some(client) = &client {
        authenticate::check_rate(client.rate_limiter.as_ref(), record.started, "this client")?;
    }
    let (name, key) =
        client.as_ref().map_or(("", None), |client| (client.name.as_str(), Some(&client.key_hash)));
    let pass = agent.pass_key.issue(&agent.name, name, key, unix_now());
    record.errcode = Some(errcode::OK);
    Ok(pass_response(&pass))
}

/// Seconds since 1970.
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The agent that a client means: the one it names, else the only one of this company that it may use.
fn select_agent(
    directory: &Directory,
    client: &Client,
    named: Option<&str>,
    corpid: &str,
) -> Result<Arc<Agent>, ProxyError> {
    let unknown =
        || gettoken_error(errcode::INVALID_CORPID, "invalid corpid: this key has no agent of this company");
    if let Some(named) = named {
        let agent = directory.agent(named, Some(client)).ok_or_else(authenticate::unknown_agent)?;
        return if agent.corpid == corpid { Ok(agent.clone()) } else { Err(unknown()) };
    }
    let mut agents = directory.allowed_agents(corpid, client);
    let first = agents.next().ok_or_else(unknown)?;
    if agents.next().is_some() {
        let words = "this key has several agents of this company; put the agent's name first in the path (/NAME/cgi-bin/gettoken)";
        return Err(gettoken_error(errcode::INVALID_CORPID, words));
    }
    Ok(first.clone())
}

/// WeCom's own answer to a wrong secret or company.
fn invalid_credential(directory: &Directory, corpid: &str) -> ProxyError {
    if directory.has_corpid(corpid) {
        gettoken_error(
            errcode::INVALID_SECRET,
            "invalid credential: corpsecret is neither a client's key nor a secret that is accepted here",
        )
        .with_wrong_key()
    } else {
        gettoken_error(errcode::INVALID_CORPID, "invalid corpid: no agent here is of this company")
            .with_wrong_key()
    }
}

fn gettoken_error(errcode: i64, words: &str) -> ProxyError {
    ProxyError::new(ErrorKind::GettokenRefused, words).with_errcode(errcode)
}

/// The answer that legacy programs take apart by position: this key order, no spaces.
fn pass_response(pass: &Masked) -> Response {
    let life = CLAIMED_TTL.as_secs();
    let start = r#"{"errcode":0,"errmsg":"ok","access_token":""#;
    // In one piece of memory, which is wiped.
    let body = [start, pass.expose(), &format!(r#"","expires_in":{life}}}"#)].concat();
    let mut reply = Response::local(StatusCode::OK, wipe_on_drop(body.into_bytes()));
    reply.headers.append(b"cache-control", b"no-store");
    reply
}

/// A parameter's value, decoded; `None` where it is absent or empty. A plus stays a plus: neither keys nor secrets hold
/// spaces, and many programs send them as they are.
fn query_param<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let mut values =
        pairs.filter(|(key, _)| percent_decode_str(key).eq(name.bytes())).map(|(_, value)| value);
    let value = percent_decode_str(values.next()?).decode_utf8().ok()?;
    (!value.is_empty()).then_some(value)
}
