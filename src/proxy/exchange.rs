//! Calls of a service provider's program for tokens and permanent codes: answered with passes and stand-ins, in WeCom's
//! exact form.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value};

use super::{
    Proxy,
    authenticate::{self, reject_pass},
    decision::{Exchange, TokenChoice, TokenParam},
    error::{ErrorKind, ProxyError},
    permissions::{charge_client, check_allow_and_rate},
    query,
    request::Request,
    request_context::RequestContext,
    response::Response,
    small_body::{self, SmallBody},
};
use crate::{
    directory::{Agent, AgentRole, Client, Directory, PassBuyer},
    request_body::RequestBody,
    secret::{Masked, constant_time, wipe_on_drop},
    time::clock::unix_now,
    tokens::passes::{ADVERTISED_TTL, DecodeBuf, UnverifiedPass},
    wecom::{errcode, provider_api::ProviderToken},
};

/// Largest body that is read.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// The same where only the body can authorize the request: three short texts.
const MAX_SECRET_BODY_BYTES: usize = 4 * 1024;

/// The outcome of an exchange.
pub(super) enum Exchanged {
    /// The proxy responds itself.
    Response(Response),
    /// The request is forwarded, with this body.
    Forward(TokenChoice, RequestBody),
}

impl Proxy {
    /// Carries out an exchange.
    pub(super) async fn exchange(
        &self,
        request: &Request,
        body: RequestBody,
        context: &mut RequestContext,
        exchange: Exchange,
    ) -> Result<Exchanged, ProxyError> {
        let max_bytes = match exchange {
            Exchange::FirstToken(_) => MAX_SECRET_BODY_BYTES,
            _ => MAX_BODY_BYTES,
        };
        let body = small_body::read(body, max_bytes).await?;
        match (exchange, body) {
            (Exchange::FirstToken(kind), SmallBody::Whole(body)) => {
                self.exchange_secret(request, body, context, kind)
            }
            (Exchange::CorpToken(suite), SmallBody::Whole(body)) => {
                self.exchange_permanent_code(request, &suite, &body, context)
            }
            (Exchange::PermanentCode { suite, is_v2 }, SmallBody::Whole(body)) => {
                self.redeem_auth_code(request, &suite, is_v2, &body, context).await
            }
            (Exchange::AuthInfo(suite), SmallBody::Whole(body)) => {
                self.forward_auth_info(request, suite, body, context)
            }
            (Exchange::AuthInfo(suite), SmallBody::Larger(body)) => {
                Ok(Exchanged::Forward(suite_route(request, suite), body))
            }
            (_, SmallBody::Larger(_)) => {
                let message =
                    format!("request body larger than the {max_bytes} bytes that such a call may have");
                Err(ErrorKind::BodyTooLarge.error(message))
            }
        }
    }

    /// `get_provider_token` and `get_suite_token`: a client's key as the secret is exchanged for a pass.
    fn exchange_secret(
        &self,
        request: &Request,
        body: Bytes,
        context: &mut RequestContext,
        kind: ProviderToken,
    ) -> Result<Exchanged, ProxyError> {
        let directory = self.directory.load();
        let members = json_members(&body);
        let fields = FirstTokenFields::of(kind);
        let id = string_member(&members, fields.id)
            .ok_or_else(|| refused(fields.missing_id, format!("{} missing", fields.id)))?;
        let secret = string_member(&members, fields.secret)
            .map(Masked::new)
            .ok_or_else(|| refused(fields.missing_secret, format!("{} missing", fields.secret)))?;
        let secret_client = directory.client_by_key(secret.expose()).cloned();
        reject_second_client(context.client.as_ref(), secret_client.as_ref())?;
        let agent = find_owner(&directory, kind, id);
        let is_authenticated = context.client.is_some() || directory.is_open();
        let agent = match agent {
            // Another provider's: a plain call, with a credential of its own.
            None if is_authenticated && secret_client.is_none() => {
                reject_pass(&request.target)?;
                request.authorized.set(true);
                check_allow_and_rate(request, context)?;
                let route = TokenChoice { token_agent: None, token_param: None };
                return Ok(Exchanged::Forward(route, RequestBody::Complete(body)));
            }
            agent => agent,
        };
        let client = match secret_client {
            Some(client) => Some(client),
            // An open proxy accepts the real secret, too.
            None if directory.is_open() && agent.as_ref().is_some_and(|agent| has_secret(agent, &secret)) => {
                context.client.clone()
            }
            None => {
                let message = format!("invalid {}: it is no client's key", fields.secret);
                return Err(refused(fields.wrong_secret, message).with_wrong_key());
            }
        };
        context.client.clone_from(&client);
        request.authorized.set(true);
        let is_usable = |agent: &Arc<Agent>| client.as_ref().is_none_or(|client| client.may_use_agent(agent));
        let agent = agent.filter(is_usable).ok_or_else(|| {
            refused(fields.wrong_id, format!("invalid {}: this key has none with this id", fields.id))
        })?;
        reject_other_agent(&directory, request, &agent)?;
        context.agent = Some(agent.clone());
        charge_client(client.as_deref(), context)?;
        let key = client.as_ref().and_then(|client| client.find_key(secret.expose()));
        let buyer = match (&client, key) {
            (Some(client), Some(key)) => PassBuyer::Client(client, key),
            _ => pass_buyer(&directory, request, client.as_deref()),
        };
        let pass = agent.issue_pass(buyer, unix_now());
        context.errcode = Some(errcode::OK);
        Ok(Exchanged::Response(token_response(fields.response_prefix, &pass)))
    }
}

/// The names and errcodes of a call for a provider's or a suite's token.
struct FirstTokenFields {
    id: &'static str,
    secret: &'static str,
    missing_id: i64,
    missing_secret: i64,
    wrong_id: i64,
    wrong_secret: i64,
    response_prefix: &'static str,
}

impl FirstTokenFields {
    fn of(kind: ProviderToken) -> Self {
        match kind {
            ProviderToken::Provider => Self {
                id: "corpid",
                secret: "provider_secret",
                missing_id: errcode::MISSING_CORPID,
                missing_secret: errcode::MISSING_SUITE_SECRET,
                wrong_id: errcode::INVALID_CORPID,
                wrong_secret: errcode::INVALID_SECRET,
                response_prefix: r#"{"provider_access_token":""#,
            },
            ProviderToken::Suite => Self {
                id: "suite_id",
                secret: "suite_secret",
                missing_id: errcode::MISSING_SUITE_ID,
                missing_secret: errcode::MISSING_SUITE_SECRET,
                wrong_id: errcode::INVALID_SUITE_ID,
                wrong_secret: errcode::INVALID_SUITE_SECRET,
                response_prefix: r#"{"errcode":0,"errmsg":"ok","suite_access_token":""#,
            },
        }
    }
}

/// The route of a call with the suite's token.
pub(super) fn suite_route(request: &Request, suite: Arc<Agent>) -> TokenChoice {
    let token_param = Some(TokenParam::of(ProviderToken::Suite, request.target.api_path()));
    TokenChoice { token_agent: Some(suite), token_param }
}

/// The provider or suite with this id.
fn find_owner(directory: &Directory, kind: ProviderToken, id: &str) -> Option<Arc<Agent>> {
    let is_kind = |agent: &&Arc<Agent>| match agent.role {
        AgentRole::Provider => kind == ProviderToken::Provider,
        AgentRole::Suite(_) => kind == ProviderToken::Suite,
        _ => false,
    };
    directory.suites_and_providers().iter().filter(is_kind).find(|agent| agent.corpid == id).cloned()
}

fn has_secret(agent: &Agent, secret: &Masked) -> bool {
    let is_it =
        |real: &Masked| constant_time::constant_time_eq(secret.expose().as_bytes(), real.expose().as_bytes());
    agent.token.entries().iter().any(|entry| is_it(&entry.credentials().secret))
}

/// Refuses a path or header that names another agent; a suite also stands for its provider.
fn reject_other_agent(
    directory: &Directory,
    request: &Request,
    agent: &Arc<Agent>,
) -> Result<(), ProxyError> {
    let Some(requested) = authenticate::requested_agent(&request.target, &request.headers)? else {
        return Ok(());
    };
    if authenticate::may_stand_for(directory, requested, agent) {
        return Ok(());
    }
    let message = "the body and the path or X-Wecom-Agent name two different agents; name one";
    Err(ErrorKind::BadRequest.error(message))
}

/// Refuses a request that presents the keys of two clients.
pub(super) fn reject_second_client(
    one: Option<&Arc<Client>>,
    other: Option<&Arc<Client>>,
) -> Result<(), ProxyError> {
    match one.zip(other).is_none_or(|(one, other)| Arc::ptr_eq(one, other)) {
        true => Ok(()),
        false => Err(ErrorKind::BadRequest.error("keys of two clients; send only one")),
    }
}

/// WeCom's error in HTTP 200, so that the program's own handling works.
pub(super) fn refused(errcode: i64, message: impl Into<String>) -> ProxyError {
    ErrorKind::GettokenRefused.error(message).with_errcode(errcode)
}

pub(super) fn json_members(body: &[u8]) -> Map<String, Value> {
    serde_json::from_slice(body).unwrap_or_default()
}

pub(super) fn string_member<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    members.get(name)?.as_str().filter(|text| !text.is_empty())
}

/// The beginning of a response with an access_token.
pub(super) const ACCESS_TOKEN_PREFIX: &str = r#"{"errcode":0,"errmsg":"ok","access_token":""#;

/// A response with WeCom's key order and no spaces, because some programs parse it by position.
pub(super) fn token_response(prefix: &str, pass: &Masked) -> Response {
    let expires_in = ADVERTISED_TTL.as_secs();
    // One allocation, which is wiped on drop.
    let body = [prefix, pass.expose(), &format!(r#"","expires_in":{expires_in}}}"#)].concat();
    json_response(wipe_on_drop(body.into_bytes()))
}

pub(super) fn json_response(body: Bytes) -> Response {
    let mut response = Response::local(StatusCode::OK, body);
    response.headers.append(b"cache-control", b"no-store");
    response
}

impl Proxy {
    /// `get_corp_token`: any permanent code is exchanged for a pass of the corp.
    fn exchange_permanent_code(
        &self,
        request: &Request,
        suite_agent: &Arc<Agent>,
        body: &Bytes,
        context: &mut RequestContext,
    ) -> Result<Exchanged, ProxyError> {
        let members = json_members(body);
        let corpid = string_member(&members, "auth_corpid")
            .ok_or_else(|| refused(errcode::MISSING_CORPID, "auth_corpid missing"))?;
        if string_member(&members, "permanent_code").is_none() {
            return Err(refused(errcode::MISSING_PERMANENT_CODE, "permanent_code missing"));
        }
        let client = context.client.clone();
        let corp = suite_agent.suite().and_then(|suite| suite.corp(corpid));
        let corp = corp.filter(|corp| client.as_ref().is_none_or(|client| client.may_use_agent(corp)));
        let corp = corp.ok_or_else(|| {
            let message = "invalid permanent_code: this suite has no such corp for this client";
            refused(errcode::INVALID_PERMANENT_CODE, message)
        })?;
        if suite_agent.suite().is_some_and(|suite| suite.is_customized_template()) {
            let message = "a customized app gets its token by gettoken, not by get_corp_token";
            return Err(refused(errcode::API_FORBIDDEN, message));
        }
        context.agent = Some(corp.clone());
        charge_client(client.as_deref(), context)?;
        let buyer = pass_buyer(&self.directory.load(), request, client.as_deref());
        let pass = corp.issue_pass(buyer, unix_now());
        context.errcode = Some(errcode::OK);
        Ok(Exchanged::Response(token_response(ACCESS_TOKEN_PREFIX, &pass)))
    }
}

/// Under which key of the client a pass is issued: the one that the request shows, or that of its own pass.
pub(super) fn pass_buyer<'a>(
    directory: &Directory,
    request: &Request,
    client: Option<&'a Client>,
) -> PassBuyer<'a> {
    let Some(client) = client else { return PassBuyer::OpenProxy };
    let mut shown = request.presented_keys().filter_map(|key| std::str::from_utf8(key).ok());
    let key = shown.find_map(|key| client.find_key(key)).or_else(|| {
        let mut passes = query::param_values(request.target.query().unwrap_or_default());
        passes.find_map(|pass| {
            let mut scratch = DecodeBuf::default();
            let pass = UnverifiedPass::parse(&pass, &mut scratch)?;
            directory.find_agent(pass.agent)?.client_key_of_pass(&pass, client, unix_now())
        })
    });
    let key = key.or(client.config.keys.first());
    key.map_or(PassBuyer::OpenProxy, |key| PassBuyer::Client(client, key))
}
