//! Authorization of a request: head check, authentication, permissions and rate limits, in this order.

use std::{net::SocketAddr, sync::Arc};

use http::Version;

use super::{
    Proxy,
    authenticate::{self, authenticate_key},
    capture::Capture,
    error::{ErrorKind, ProxyError},
    gettoken,
    head_check::check_head,
    permissions::{charge_rate_limit, check_allowed},
    request::Request,
    request_context::RequestContext,
    response::Response,
    target::{ParsedTarget, TargetError, TargetKind},
};
use crate::directory::{Agent, Directory};

/// What happens with an authorized request.
pub(super) enum Decision<'a> {
    /// The proxy responds itself.
    Respond(Response),
    /// The request is forwarded with the token of `token_agent`; with `None`, which means passthrough, with its own
    /// credential.
    Forward { target: ParsedTarget<'a>, token_agent: Option<Arc<Agent>> },
}

impl Proxy {
    /// Authorizes the request with [`Self::decide`]. Sets `request.authorized` if the request was authorized, a
    /// credential named a client, or the proxy is open; the server then lifts the limits of its connection.
    pub(super) fn authorize<'a>(
        &self,
        request: &'a Request,
        context: &mut RequestContext,
    ) -> Result<Decision<'a>, ProxyError> {
        let decision = self.decide(request, context);
        // A credential that names a client counts even if the request is refused for another reason.
        if decision.is_ok() || context.client.is_some() || self.directory.load().is_open() {
            request.authorized.set(true);
        }
        decision
    }

    /// Authenticates, authorizes and rate-limits a request, and decides what happens with it.
    fn decide<'a>(
        &self,
        request: &'a Request,
        context: &mut RequestContext,
    ) -> Result<Decision<'a>, ProxyError> {
        let directory = self.directory.load();
        let target = self.check_head_and_key(request, &directory, context)?;
        if request.draining {
            return Err(ProxyError::shutting_down());
        }
        if target.kind == TargetKind::Gettoken {
            let header_client = context.client.clone();
            return gettoken::respond(&directory, header_client, &target, &request.headers, context)
                .map(Decision::Respond);
        }
        let passthrough = complete_authentication(&directory, request, &target, context)?;
        check_allow_and_rate(request, &target, context)?;
        let token_agent = match (&context.agent, passthrough) {
            (Some(agent), false) => Some(agent.clone()),
            (None, false) => return Err(authenticate::no_agent_selected()),
            (_, true) => None,
        };
        Ok(Decision::Forward { target, token_agent })
    }

    /// Checks the head, parses the target and authenticates by key, all of them before the first error is returned.
    fn check_head_and_key<'a>(
        &self,
        request: &'a Request,
        directory: &Arc<Directory>,
        context: &mut RequestContext,
    ) -> Result<ParsedTarget<'a>, ProxyError> {
        let cached = self.auth_cache.get(&request.headers, directory);
        let is_own_authority = |host: &str, local| self.is_own_authority(host, local);
        let head_result = check_head(request, cached.is_some(), is_own_authority);
        let target = request.target.parsed();
        // Authentication precedes the head check's error, because a client's `always_200` applies to that error too.
        let is_cache_miss = cached.is_none();
        let key_result = cached.map_or_else(|| authenticate_key(directory, &request.headers), Ok);
        let key_result = key_result.map(|client| {
            // A hit skips the `Host` check, so only headers that passed it under HTTP/1.1 are cached.
            if is_cache_miss && head_result.is_ok() && request.version == Version::HTTP_11 {
                self.auth_cache.insert(&request.headers, directory, client.as_ref());
            }
            context.client = client;
        });
        head_result.map_err(|message| ProxyError::new(ErrorKind::BadRequest, message))?;
        // A wrong base URL is reported as such, not as a wrong key.
        let target = target.map_err(target_error)?;
        key_result?;
        Ok(target)
    }

    /// Whether an absolute-form authority is the connection's local address and port (or localhost), or the upstream
    /// as seen by a client with this proxy as forward proxy.
    fn is_own_authority(&self, authority: &str, local: Option<SocketAddr>) -> bool {
        let is_local = local.is_some_and(|local| {
            let port = local.port();
            authority.parse::<SocketAddr>().is_ok_and(|named| named == local)
                || (local.ip().is_loopback() && authority.eq_ignore_ascii_case(&format!("localhost:{port}")))
        });
        is_local || authority.eq_ignore_ascii_case(&self.settings.upstream_authority)
    }
}

/// Completes the authentication by pass, selects the agent and starts a capture. Returns whether the request carries
/// its own credential.
fn complete_authentication(
    directory: &Arc<Directory>,
    request: &Request,
    target: &ParsedTarget<'_>,
    context: &mut RequestContext,
) -> Result<bool, ProxyError> {
    let authenticated =
        authenticate::authenticate(directory, context.client.as_ref(), target, &request.headers)?;
    if context.client.is_some() {
        authenticate::reject_repeated_key(&request.headers, target, authenticated.passthrough)?;
    }
    if authenticated.pass_client.is_some() {
        context.client = authenticated.pass_client;
    }
    context.agent = authenticated.agent;
    context.capture = Capture::start(directory, context.agent.as_ref(), request, context.started);
    Ok(authenticated.passthrough)
}

/// Checks the client's `allow`, then the rate limits of client and agent.
fn check_allow_and_rate(
    request: &Request,
    target: &ParsedTarget<'_>,
    context: &RequestContext,
) -> Result<(), ProxyError> {
    check_allowed(context.client.as_deref(), &request.method, &target.normalized_path)?;
    let (client, agent) = (context.client.as_ref(), context.agent.as_ref());
    charge_rate_limit(
        client.and_then(|client| client.rate_limiter.as_ref()),
        context.started,
        "this client",
    )?;
    charge_rate_limit(agent.and_then(|agent| agent.rate_limiter.as_ref()), context.started, "this agent")
}

fn target_error(error: TargetError) -> ProxyError {
    match error {
        TargetError::Malformed(message) => ProxyError::new(ErrorKind::BadRequest, message),
        TargetError::NoRoute => ProxyError::new(
            ErrorKind::NoRoute,
            "no route: the path must begin with /cgi-bin/ or /AGENT/cgi-bin/; check the base URL",
        ),
    }
}
