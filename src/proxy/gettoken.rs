//! gettoken, handled by the proxy: a client's key, or an accepted secret of an agent, is exchanged for a pass.

use std::sync::Arc;

use super::{
    authenticate,
    error::{ErrorKind, ProxyError},
    exchange::{ACCESS_TOKEN_PREFIX, pass_buyer, refused, reject_second_client, token_response},
    permissions::charge_client,
    query::param_value,
    request::Request,
    request_context::RequestContext,
    response::Response,
};
use crate::{
    directory::{Agent, Client, Directory, PassBuyer},
    secret::Masked,
    suites::{STAND_IN_PREFIX, Suites},
    time::clock::unix_now,
    wecom::errcode,
};

/// Responds like WeCom, with a pass as token. `header_client` is the client whose key the headers contain; the client
/// whose key is sent as `corpsecret` must be the same.
pub(super) fn respond(
    directory: &Directory,
    suites: &Suites,
    header_client: Option<Arc<Client>>,
    request: &Request,
    context: &mut RequestContext,
) -> Result<Response, ProxyError> {
    let query = request.target.query().unwrap_or_default();
    let corpid = param_value(query, "corpid");
    let corpsecret = param_value(query, "corpsecret").map(|secret| Masked::new(&**secret));
    // WeCom looks for the secret first.
    let corpsecret = corpsecret.ok_or_else(|| {
        refused(errcode::MISSING_SECRET, "corpsecret missing: corpid and corpsecret belong in the query")
    })?;
    let corpid = corpid.ok_or_else(|| {
        refused(errcode::MISSING_CORPID, "corpid missing: corpid and corpsecret belong in the query")
    })?;

    let secret_client = directory.client_by_key(corpsecret.expose()).cloned();
    reject_second_client(header_client.as_ref(), secret_client.as_ref())?;
    let requested = authenticate::requested_agent(&request.target, &request.headers)?;
    let is_stand_in = corpsecret.expose().starts_with(STAND_IN_PREFIX);
    let by_stand_in = stand_in_owner(directory, suites, &corpid, &corpsecret);
    let (client, agent) = match secret_client {
        None if let Some((client, corp)) = by_stand_in => {
            reject_other_owner(directory, &header_client, &client, requested, &corp)?;
            context.client.clone_from(&client);
            (client, corp)
        }
        Some(client) => {
            context.client = Some(client.clone());
            let agent = select_agent(directory, &client, requested, &corpid)?;
            (Some(client), agent)
        }
        None => {
            context.client.clone_from(&header_client);
            let is_eligible = |agent: &&Arc<Agent>| {
                requested.is_none_or(|requested| requested == agent.name)
                    && header_client.as_ref().is_none_or(|client| client.may_use_agent(agent))
            };
            let agent = directory.agents_by_secret(&corpid, corpsecret.expose()).find(is_eligible).cloned();
            (header_client, agent.ok_or_else(|| invalid_credential(directory, &corpid, requested))?)
        }
    };
    context.agent = Some(agent.clone());
    charge_client(client.as_deref(), context)?;
    let key = client.as_ref().and_then(|client| {
        let in_headers = request.presented_keys().filter_map(|key| std::str::from_utf8(key).ok());
        std::iter::once(corpsecret.expose()).chain(in_headers).find_map(|key| client.find_key(key))
    });
    let buyer = match (&client, key) {
        (Some(client), Some(key)) => PassBuyer::Client(client, key),
        (client, _) if is_stand_in => pass_buyer(directory, request, client.as_deref()),
        _ => PassBuyer::OwnSecret(&corpsecret),
    };
    let pass = agent.issue_pass(buyer, unix_now());
    context.errcode = Some(errcode::OK);
    Ok(token_response(ACCESS_TOKEN_PREFIX, &pass))
}

/// The client and the corp of a stand-in for the permanent code of a customized app's corp.
fn stand_in_owner(
    directory: &Directory,
    suites: &Suites,
    corpid: &str,
    secret: &Masked,
) -> Option<(Option<Arc<Client>>, Arc<Agent>)> {
    if !secret.expose().starts_with(STAND_IN_PREFIX) {
        return None;
    }
    let all = directory.suites_and_providers().iter().filter_map(|agent| agent.suite());
    let mut templates = all.filter(|suite| suite.is_customized_template());
    templates.find_map(|suite| {
        let corp = suite.corp(corpid)?;
        let client = match &*suites.stand_in_client(secret.expose(), suite, corpid)? {
            "" => None,
            name => Some(directory.client_by_name(name)?.clone()),
        };
        let is_allowed = client.as_ref().map_or(directory.is_open(), |client| client.may_use_agent(&corp));
        is_allowed.then_some((client, corp))
    })
}

fn reject_other_owner(
    directory: &Directory,
    header_client: &Option<Arc<Client>>,
    client: &Option<Arc<Client>>,
    requested: Option<&str>,
    corp: &Arc<Agent>,
) -> Result<(), ProxyError> {
    reject_second_client(header_client.as_ref(), client.as_ref())?;
    let is_other = |name| !authenticate::may_stand_for(directory, name, corp);
    match requested.is_some_and(is_other) {
        true => Err(refused(errcode::INVALID_CORPID, "invalid corpid: the path names another agent")),
        false => Ok(()),
    }
}

/// The agent that the client requests by name, else the only agent with this corpid that it may use.
fn select_agent(
    directory: &Directory,
    client: &Client,
    requested: Option<&str>,
    corpid: &str,
) -> Result<Arc<Agent>, ProxyError> {
    let invalid_corpid =
        || refused(errcode::INVALID_CORPID, "invalid corpid: this key has no agent with this corpid");
    let corps = |suite: Option<&str>| {
        let is_of_suite =
            |corp: &Arc<Agent>| suite.is_none_or(|suite| authenticate::may_stand_for(directory, suite, corp));
        let corps = directory.allowed_corps(corpid, client).into_iter().filter(is_of_suite);
        // gettoken is the call of customized apps; a third-party app in the same corp has get_corp_token.
        let (customized, others): (Vec<_>, Vec<_>) =
            corps.partition(|corp| directory.is_of_customized_template(corp));
        if customized.is_empty() { others } else { customized }
    };
    let is_suite = |name: &&str| directory.suite_by_name(name).is_some();
    if let Some(requested) = requested.filter(|requested| !is_suite(requested)) {
        let agent = directory.permitted_agent(requested, Some(client));
        let agent = agent
            .ok_or_else(|| authenticate::missing_agent(directory, requested, Some(client), unknown_prefix))?;
        let is_right = agent.corpid == corpid && agent.has_access_token();
        return if is_right { Ok(agent) } else { Err(invalid_corpid()) };
    }
    let mut agents: Vec<_> = match requested {
        Some(_) => Vec::new(),
        None => directory.allowed_agents(corpid, client).cloned().collect(),
    };
    for corp in corps(requested) {
        if !agents.iter().any(|agent| Arc::ptr_eq(agent, &corp)) {
            agents.push(corp);
        }
    }
    let mut agents = agents.into_iter();
    let first = agents.next().ok_or_else(invalid_corpid)?;
    if agents.next().is_some() {
        let message = "this key has several agents with this corpid; put the agent's name first in the path (/NAME/cgi-bin/gettoken)";
        return Err(refused(errcode::INVALID_CORPID, message));
    }
    Ok(first)
}

/// WeCom's error for a wrong secret or corpid, or for a `requested` agent that an open proxy does not have: to others it
/// says nothing about the agents that there are.
fn invalid_credential(directory: &Directory, corpid: &str, requested: Option<&str>) -> ProxyError {
    let is_unknown = |name| directory.is_open() && directory.find_agent(name).is_none();
    if requested.is_some_and(is_unknown) {
        return unknown_prefix();
    }
    if directory.has_corpid(corpid) || directory.has_corp(corpid) {
        refused(
            errcode::INVALID_SECRET,
            match requested {
                None => "invalid credential: corpsecret is neither a client's key nor a secret that is accepted here",
                Some(_) => {
                    "invalid credential: corpsecret is neither a client's key nor a secret that is accepted here for the \
                     agent that the path or X-Wecom-Agent names; what stands before /cgi-bin/ must be an agent's name"
                }
            },
        )
        .with_wrong_key()
    } else {
        refused(errcode::INVALID_CORPID, "invalid corpid: no agent has this corpid").with_wrong_key()
    }
}

/// The name is not repeated: it may be a misplaced key.
fn unknown_prefix() -> ProxyError {
    let message = "no agent of this name for this client: what stands before /cgi-bin/gettoken (or in X-Wecom-Agent) must be \
                   an agent's name; without it, corpid chooses the agent";
    ErrorKind::UnknownAgent.error(message)
}
