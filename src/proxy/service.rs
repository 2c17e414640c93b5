//! Calls in the name of a suite or a provider: which one, and with whose token. Such a call names it by the path, by
//! `X-Wecom-Agent`, or by a pass in its own parameter; without that its path is passthrough.

use std::sync::Arc;

use super::{
    authenticate::{
        check_pass_agrees, invalid_pass, misplaced_pass, reject_repeated_key, requested_agent,
        unauthenticated, unknown_agent, verify_pass,
    },
    capture::Capture,
    decision::{Decision, Exchange, TokenChoice, TokenParam, takes_access_token},
    error::{ErrorKind, ProxyError},
    permissions::check_allow_and_rate,
    query,
    request::Request,
    request_context::RequestContext,
};
use crate::{
    directory::{Agent, AgentRole, Client, Directory},
    secret::credential_scan,
    tokens::passes::PassError,
    wecom::provider_api::{self, ExchangeCall, ProviderToken, WantedToken},
};

/// The suite or provider that a call names, and the client of its pass.
struct Chosen {
    agent: Arc<Agent>,
    pass_client: Option<Arc<Client>>,
}

/// Decides about a call on a service provider's path; `None`: it names neither a suite nor a provider.
pub(super) fn decide(
    directory: &Arc<Directory>,
    request: &Request,
    context: &mut RequestContext,
) -> Result<Option<Decision>, ProxyError> {
    let path = request.target.api_path();
    let exchange = provider_api::exchange_call(path);
    match exchange {
        Some(ExchangeCall::ProviderToken) => {
            return Ok(Some(Decision::Exchange(Exchange::FirstToken(ProviderToken::Provider))));
        }
        Some(ExchangeCall::SuiteToken) => {
            return Ok(Some(Decision::Exchange(Exchange::FirstToken(ProviderToken::Suite))));
        }
        _ => {}
    }
    let wanted = wanted_token(request, path);
    let Some(Chosen { agent: chosen, pass_client }) = choose(directory, request, context, wanted)? else {
        return Ok(None);
    };
    if context.client.is_some() {
        reject_repeated_key(request, true)?;
    }
    if pass_client.is_some() {
        context.client = pass_client;
    }
    request.authorized.set(true);
    let owner = token_owner(directory, &chosen, wanted, context.client.as_deref())?;
    context.agent = Some(owner.clone());
    context.capture = Capture::start(directory, context.agent.as_ref(), request, context.started);
    if exchange != Some(ExchangeCall::CorpToken) {
        check_allow_and_rate(request, context)?;
    }
    Ok(Some(match (exchange, wanted) {
        (Some(ExchangeCall::CorpToken), _) => Decision::Exchange(Exchange::CorpToken(owner)),
        (Some(ExchangeCall::PermanentCode { is_v2 }), _) => {
            Decision::Exchange(Exchange::PermanentCode { suite: owner, is_v2 })
        }
        (Some(ExchangeCall::AuthInfo), _) => Decision::Exchange(Exchange::AuthInfo(owner)),
        (_, Some(token)) => Decision::Forward(TokenChoice {
            token_agent: Some(owner),
            token_param: Some(TokenParam::of(token, path)),
        }),
        (_, None) => Decision::Forward(TokenChoice { token_agent: None, token_param: None }),
    }))
}

/// The token that a call wants. A path that WeCom's documents lack gets the one whose parameter the caller named, else the
/// suite's.
fn wanted_token(request: &Request, path: &str) -> Option<ProviderToken> {
    match provider_api::wanted_token(path) {
        WantedToken::Of(token) => Some(token),
        WantedToken::Unlisted => {
            let query = request.target.query().unwrap_or_default();
            let names = |token: ProviderToken| {
                query::parameters(query).any(|parameter| query::is_named(parameter, token.param()))
            };
            let is_provider = names(ProviderToken::Provider) && !names(ProviderToken::Suite);
            Some(if is_provider { ProviderToken::Provider } else { ProviderToken::Suite })
        }
        WantedToken::Access | WantedToken::Own => None,
    }
}

/// Whose token a call in the name of `chosen` gets.
fn token_owner(
    directory: &Directory,
    chosen: &Arc<Agent>,
    wanted: Option<ProviderToken>,
    client: Option<&Client>,
) -> Result<Arc<Agent>, ProxyError> {
    match (&chosen.role, wanted) {
        (AgentRole::Suite(_), Some(ProviderToken::Suite))
        | (AgentRole::Provider, Some(ProviderToken::Provider))
        | (_, None) => Ok(chosen.clone()),
        (AgentRole::Suite(suite), Some(ProviderToken::Provider)) => {
            let provider = suite.config.provider.as_deref();
            provider.and_then(|name| directory.permitted_agent(name, client)).ok_or_else(|| {
                let message = "this path wants the provider's token: call it in the provider's name, or let the operator name \
                               the provider in suites.NAME.provider and in the client's agents";
                ErrorKind::UnknownAgent.error(message)
            })
        }
        _ => {
            let message =
                "this path wants the token of a suite: name the suite in the path (/SUITE/cgi-bin/…)";
            Err(ErrorKind::UnknownAgent.error(message))
        }
    }
}

/// Error for an ordinary path in the name of a suite or a provider.
pub(super) fn needs_corp(agent: &Agent) -> ProxyError {
    let kind = match agent.role {
        AgentRole::Suite(_) => "a suite",
        _ => "a provider",
    };
    let message = format!(
        "this path is called in the name of a corp, and {kind} was named: name the corp by the path (/SUITE:CORPID/cgi-bin/…) \
         or by X-Wecom-Agent: SUITE:CORPID"
    );
    ErrorKind::UnknownAgent.error(message)
}

/// The suite or provider that a call names by a pass, by the path, or by the header.
fn choose(
    directory: &Directory,
    request: &Request,
    context: &RequestContext,
    wanted: Option<ProviderToken>,
) -> Result<Option<Chosen>, ProxyError> {
    let requested = requested_agent(&request.target, &request.headers)?;
    if let Some(location) = request.target.misplaced_pass() {
        return Err(misplaced_pass(location));
    }
    let key_client = context.client.as_ref();
    let named =
        requested.and_then(|name| directory.permitted_agent(name, key_client.map(|client| &**client)));
    let named = named.filter(|agent| !agent.has_access_token());
    let is_authenticated = key_client.is_some() || directory.is_open();
    match (presented_pass(directory, request, wanted), named) {
        (Some(Ok(pass)), _) => chosen_by_pass(directory, key_client, requested, pass).map(Some),
        // A token that is no valid pass is replaced.
        (_, Some(agent)) if is_authenticated => Ok(Some(Chosen { agent, pass_client: None })),
        (Some(Err(PassConflict::Invalid(error))), _) => Err(invalid_pass(error)),
        (Some(Err(PassConflict::Two)), _) => {
            Err(ErrorKind::BadRequest.error("the query contains two different passes; send one"))
        }
        (None, Some(_)) => Err(unauthenticated()),
        (None, None) => Ok(None),
    }
}

fn chosen_by_pass(
    directory: &Directory,
    key_client: Option<&Arc<Client>>,
    requested: Option<&str>,
    (agent, client): VerifiedPass,
) -> Result<Chosen, ProxyError> {
    check_pass_agrees(directory, key_client, requested, &agent, client.as_ref())?;
    if key_client.is_some_and(|client| !client.may_use_agent(&agent)) {
        return Err(unknown_agent());
    }
    Ok(Chosen { agent, pass_client: client.filter(|_| key_client.is_none()) })
}

type VerifiedPass = (Arc<Agent>, Option<Arc<Client>>);

/// Why the passes of a call choose nothing.
enum PassConflict {
    Invalid(PassError),
    Two,
}

/// The pass in one of the parameters that carry tokens of suites and providers; `None` without a pass. Some programs
/// send one of each kind: then the path decides.
fn presented_pass(
    directory: &Directory,
    request: &Request,
    wanted: Option<ProviderToken>,
) -> Option<Result<VerifiedPass, PassConflict>> {
    let with_access_token = takes_access_token(request.target.api_path());
    let mut presented: Option<Result<VerifiedPass, PassConflict>> = None;
    for parameter in query::parameters(request.target.query().unwrap_or_default()) {
        let Some(value) =
            query::param_values(parameter).next().filter(|value| credential_scan::has_pass_prefix(value))
        else {
            continue;
        };
        let is_named = |token: ProviderToken| query::is_named(parameter, token.param());
        let is_right = |agent: &Agent| match agent.role {
            AgentRole::Suite(_) => is_named(ProviderToken::Suite),
            AgentRole::Provider => {
                is_named(ProviderToken::Provider) || with_access_token && query::is_token_param(parameter)
            }
            _ => false,
        };
        let verified = verify_pass(directory, &value)
            .and_then(|pass| if is_right(&pass.0) { Ok(pass) } else { Err(PassError::Invalid) })
            .map_err(PassConflict::Invalid);
        presented = Some(match (presented, verified) {
            (Some(Ok(first)), Ok(second)) => one_of(first, second, wanted),
            (Some(Err(error)), _) | (_, Err(error)) => Err(error),
            (None, Ok(pass)) => Ok(pass),
        });
    }
    presented
}

/// Which of two passes of one client is meant.
fn one_of(
    first: VerifiedPass,
    second: VerifiedPass,
    wanted: Option<ProviderToken>,
) -> Result<VerifiedPass, PassConflict> {
    let kind = |pass: &VerifiedPass| match pass.0.role {
        AgentRole::Suite(_) => ProviderToken::Suite,
        _ => ProviderToken::Provider,
    };
    let is_same_client = first.1.as_ref().map(Arc::as_ptr) == second.1.as_ref().map(Arc::as_ptr);
    match (kind(&first) == kind(&second), is_same_client) {
        (true, true) if Arc::ptr_eq(&first.0, &second.0) => Ok(first),
        (false, true) if wanted == Some(kind(&second)) => Ok(second),
        (false, true) => Ok(first),
        _ => Err(PassConflict::Two),
    }
}
