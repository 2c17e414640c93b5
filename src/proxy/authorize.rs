//! Authorization of a request: head check, authentication, permissions and rate limits, in this order.

use std::{net::SocketAddr, sync::Arc};

use http::Version;

use super::{
    Proxy, auth_cache,
    authenticate::{self, authenticate_key},
    capture::Capture,
    decision::{Decision, Exchange, TokenChoice},
    error::{ErrorKind, ProxyError},
    gettoken,
    head_check::{OTHER_HOST_MESSAGE, check_head},
    permissions::check_allow_and_rate,
    request::Request,
    request_context::RequestContext,
    service,
    target::{TargetError, TargetKind},
};
use crate::directory::Directory;

impl Proxy {
    /// Authorizes the request with [`Self::decide`]. Sets `request.authorized` if the request was authenticated, a
    /// credential named a client, or the proxy is open; the server then lifts the limits of its connection. The secret of a
    /// suite or a provider stands in the body, which is not read yet.
    pub(super) fn authorize(
        &self,
        request: &Request,
        context: &mut RequestContext,
    ) -> Result<Decision, ProxyError> {
        let decision = self.decide(request, context).map_err(|error| self.without_state(error));
        // A credential that names a client counts even if the request is rejected for another reason.
        let awaits_secret = matches!(decision, Ok(Decision::Exchange(Exchange::FirstToken(_))));
        if decision.is_ok() && !awaits_secret || context.client.is_some() || self.directory.load().is_open() {
            request.authorized.set(true);
        }
        decision
    }

    /// While the state is not known, a name or key that is not known may be right.
    pub(super) fn without_state(&self, error: ProxyError) -> ProxyError {
        use ErrorKind::{GettokenRefused, NoAgent, PassExpired, PassInvalid, Unauthenticated, UnknownAgent};
        let is_of_a_name = matches!(
            error.kind,
            Unauthenticated | UnknownAgent | NoAgent | GettokenRefused | PassInvalid | PassExpired
        );
        if is_of_a_name && !self.directory.load().is_complete() { ProxyError::state_unknown() } else { error }
    }

    /// Authenticates, authorizes and rate-limits a request, and decides what happens with it.
    fn decide(&self, request: &Request, context: &mut RequestContext) -> Result<Decision, ProxyError> {
        let directory = self.directory.load();
        self.check_head_and_key(request, &directory, context)?;
        if request.draining {
            return Err(ProxyError::shutting_down());
        }
        if request.target.kind() == TargetKind::Gettoken {
            let header_client = context.client.clone();
            let suites = &self.settings.suites;
            return gettoken::respond(&directory, suites, header_client, request, context)
                .map(Decision::Respond);
        }
        if request.target.kind() == TargetKind::Service
            && directory.has_suites()
            && let Some(decision) = service::decide(&directory, request, context)?
        {
            return Ok(decision);
        }
        let passthrough = complete_authentication(&directory, request, context)?;
        self.check_upstream_authority(request, context)?;
        // A pass for an agent's own secret names no client; a limit that refuses the request does not void it.
        request.authorized.set(true);
        check_allow_and_rate(request, context)?;
        let token_agent = match (&context.agent, passthrough) {
            (Some(agent), false) if agent.has_access_token() => Some(agent.clone()),
            (Some(agent), false) => return Err(service::needs_corp(agent)),
            (None, false) => return Err(authenticate::no_agent_selected()),
            (_, true) => None,
        };
        Ok(Decision::Forward(TokenChoice { token_agent, token_param: None }))
    }

    /// Checks head and target and authenticates by key, all of them before the first error is returned.
    #[inline(always)]
    pub(super) fn check_head_and_key(
        &self,
        request: &Request,
        directory: &Arc<Directory>,
        context: &mut RequestContext,
    ) -> Result<(), ProxyError> {
        // Headers alone do not say which client it is if the path names a key.
        let is_cacheable = request.path_credential.is_none();
        let cached = auth_cache::get(&request.headers, request.version, directory).filter(|_| is_cacheable);
        let is_own_authority = |host: &str, local| self.is_own_authority(host, local);
        let head_result = check_head(request, cached.is_some(), is_own_authority);
        // Authentication precedes the head check's error, because a client's `always_200` applies to that error too.
        let is_cache_miss = cached.is_none();
        let key_result = cached.map_or_else(
            || authenticate_key(directory, &request.headers, request.path_credential.as_ref()),
            Ok,
        );
        let key_result = key_result.map(|client| {
            // A hit skips the `Host` check, so only headers that passed it are cached. HTTP/1.0 may lack one.
            if is_cache_miss && is_cacheable && head_result.is_ok() && request.version >= Version::HTTP_11 {
                auth_cache::insert(&request.headers, request.version, directory, client.as_ref());
            }
            context.client = client;
        });
        head_result.map_err(|message| ErrorKind::BadRequest.error(message))?;
        // A wrong base URL is reported as such, not as a wrong key.
        request.target.check().map_err(target_error)?;
        key_result
    }

    /// Refuses an absolute-form target that names another upstream than the agent's.
    fn check_upstream_authority(
        &self,
        request: &Request,
        context: &RequestContext,
    ) -> Result<(), ProxyError> {
        let Some((authority, local)) = request.absolute_form.as_deref() else { return Ok(()) };
        let own = &self.settings.upstreams[context.upstream_index()].authority;
        let is_own = std::str::from_utf8(authority)
            .is_ok_and(|named| named.eq_ignore_ascii_case(own) || is_local_authority(named, *local));
        if is_own { Ok(()) } else { Err(ErrorKind::BadRequest.error(OTHER_HOST_MESSAGE)) }
    }

    /// Whether an absolute-form authority is the connection's local address and port (or localhost), or an upstream
    /// as seen by a client with this proxy as forward proxy.
    pub(super) fn is_own_authority(&self, authority: &str, local: Option<SocketAddr>) -> bool {
        let mut upstreams = self.settings.upstreams.iter();
        is_local_authority(authority, local)
            || upstreams.any(|upstream| authority.eq_ignore_ascii_case(&upstream.authority))
    }
}

fn is_local_authority(authority: &str, local: Option<SocketAddr>) -> bool {
    local.is_some_and(|local| {
        let port = local.port();
        authority.parse::<SocketAddr>().is_ok_and(|named| named == local)
            || (local.ip().is_loopback() && authority.eq_ignore_ascii_case(&format!("localhost:{port}")))
    })
}

/// Completes the authentication by pass, selects the agent and starts a capture. Returns whether the request carries
/// its own credential.
#[inline(always)]
pub(super) fn complete_authentication(
    directory: &Arc<Directory>,
    request: &Request,
    context: &mut RequestContext,
) -> Result<bool, ProxyError> {
    let Request { target, headers, .. } = request;
    let authenticated = authenticate::authenticate(directory, context.client.as_ref(), target, headers)?;
    if context.client.is_some() {
        authenticate::reject_repeated_key(request, authenticated.passthrough)?;
    }
    if authenticated.pass_client.is_some() {
        context.client = authenticated.pass_client;
    }
    context.agent = authenticated.agent;
    context.capture = Capture::start(directory, context.agent.as_ref(), request, context.started);
    Ok(authenticated.passthrough)
}

fn target_error(error: TargetError) -> ProxyError {
    match error {
        TargetError::Malformed(message) => ErrorKind::BadRequest.error(message),
        TargetError::NoRoute => ErrorKind::NoRoute
            .error("no route: the path must begin with /cgi-bin/ or /AGENT/cgi-bin/; check the base URL"),
    }
}
