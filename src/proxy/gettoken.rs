//! gettoken, handled by the proxy: a client's key, or an accepted secret of an agent, is exchanged for a pass.

use std::{borrow::Cow, sync::Arc};

use http::StatusCode;
use percent_encoding::percent_decode_str;

use super::{
    authenticate,
    error::{ErrorKind, ProxyError},
    permissions::charge_rate_limit,
    request_context::RequestContext,
    response::Response,
    target::ParsedTarget,
};
use crate::{
    directory::{Agent, Client, Directory},
    http1::headers::Headers,
    secret::{Masked, wipe_on_drop},
    time::clock::unix_now,
    tokens::passes::ADVERTISED_TTL,
    wecom::errcode,
};

/// Responds like WeCom, with a pass as token. `header_client` is the client whose key the headers contain; the client
/// whose key is sent as `corpsecret` must be the same.
pub(super) fn respond(
    directory: &Directory,
    header_client: Option<Arc<Client>>,
    target: &ParsedTarget<'_>,
    headers: &Headers,
    context: &mut RequestContext,
) -> Result<Response, ProxyError> {
    let query = target.query.unwrap_or_default();
    let corpid = query_param(query, "corpid");
    let corpsecret = query_param(query, "corpsecret").map(|secret| Masked::new(secret.into_owned()));
    let corpid = corpid.ok_or_else(|| gettoken_error(errcode::MISSING_CORPID, "corpid missing"))?;
    let corpsecret =
        corpsecret.ok_or_else(|| gettoken_error(errcode::MISSING_SECRET, "corpsecret missing"))?;

    let secret_client = directory.client_by_key(corpsecret.expose()).cloned();
    if let (Some(header_client), Some(secret_client)) = (&header_client, &secret_client)
        && !Arc::ptr_eq(header_client, secret_client)
    {
        return Err(ProxyError::new(ErrorKind::BadRequest, "keys of two clients; send only one"));
    }
    let requested = authenticate::requested_agent(target, headers)?;
    let (client, agent) = match secret_client {
        Some(client) => {
            context.client = Some(client.clone());
            let agent = select_agent(directory, &client, requested, &corpid)?;
            (Some(client), agent)
        }
        None => {
            context.client.clone_from(&header_client);
            let is_eligible = |agent: &&Arc<Agent>| {
                requested.is_none_or(|requested| requested == agent.name)
                    && header_client.as_ref().is_none_or(|client| client.may_use_agent(&agent.name))
            };
            let agent = directory.agents_by_secret(&corpid, corpsecret.expose()).find(is_eligible).cloned();
            (header_client, agent.ok_or_else(|| invalid_credential(directory, &corpid))?)
        }
    };
    context.agent = Some(agent.clone());
    if let Some(client) = &client {
        charge_rate_limit(client.rate_limiter.as_ref(), context.started, "this client")?;
    }
    let (name, key) =
        client.as_ref().map_or(("", None), |client| (client.name.as_str(), Some(&client.key_hash)));
    let pass = agent.pass_key.issue(&agent.name, name, key, unix_now());
    context.errcode = Some(errcode::OK);
    Ok(pass_response(&pass))
}

/// The agent that the client requests by name, else the only agent with this corpid that it may use.
fn select_agent(
    directory: &Directory,
    client: &Client,
    requested: Option<&str>,
    corpid: &str,
) -> Result<Arc<Agent>, ProxyError> {
    let invalid_corpid =
        || gettoken_error(errcode::INVALID_CORPID, "invalid corpid: this key has no agent with this corpid");
    if let Some(requested) = requested {
        let agent =
            directory.permitted_agent(requested, Some(client)).ok_or_else(authenticate::unknown_agent)?;
        return if agent.corpid == corpid { Ok(agent.clone()) } else { Err(invalid_corpid()) };
    }
    let mut agents = directory.allowed_agents(corpid, client);
    let first = agents.next().ok_or_else(invalid_corpid)?;
    if agents.next().is_some() {
        let message = "this key has several agents with this corpid; put the agent's name first in the path (/NAME/cgi-bin/gettoken)";
        return Err(gettoken_error(errcode::INVALID_CORPID, message));
    }
    Ok(first.clone())
}

/// WeCom's error for a wrong secret or corpid.
fn invalid_credential(directory: &Directory, corpid: &str) -> ProxyError {
    if directory.has_corpid(corpid) {
        gettoken_error(
            errcode::INVALID_SECRET,
            "invalid credential: corpsecret is neither a client's key nor a secret that is accepted here",
        )
        .with_wrong_key()
    } else {
        gettoken_error(errcode::INVALID_CORPID, "invalid corpid: no agent has this corpid").with_wrong_key()
    }
}

fn gettoken_error(errcode: i64, message: &str) -> ProxyError {
    ProxyError::new(ErrorKind::GettokenRefused, message).with_errcode(errcode)
}

/// Response with WeCom's key order and no spaces, because legacy programs parse it by position.
fn pass_response(pass: &Masked) -> Response {
    let expires_in = ADVERTISED_TTL.as_secs();
    let prefix = r#"{"errcode":0,"errmsg":"ok","access_token":""#;
    // One allocation, which is wiped on drop.
    let body = [prefix, pass.expose(), &format!(r#"","expires_in":{expires_in}}}"#)].concat();
    let mut response = Response::local(StatusCode::OK, wipe_on_drop(body.into_bytes()));
    response.headers.append(b"cache-control", b"no-store");
    response
}

/// The decoded value of a parameter; `None` if absent or empty. `+` is not decoded: keys and secrets contain no
/// spaces, and many programs send `+` unencoded.
fn query_param<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let mut values =
        pairs.filter(|(key, _)| percent_decode_str(key).eq(name.bytes())).map(|(_, value)| value);
    let value = percent_decode_str(values.next()?).decode_utf8().ok()?;
    (!value.is_empty()).then_some(value)
}
