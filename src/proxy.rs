//! The life of a request: authorize, get a token, attempt, and retry once if the token was refused.
//!
//! [`Proxy::handle`] maps every outcome to a response; `Proxy::handle_inner` contains the steps.

mod attempt_placement;
mod auth_cache;
mod authenticate;
mod authorize;
pub(crate) mod bench;
mod capture;
mod errcode_probe;
mod error;
pub(crate) mod fuzz;
mod gettoken;
mod head_check;
mod initial_response_headers;
mod loggable;
mod permissions;
mod presented_key;
mod query;
mod request;
mod request_context;
mod request_id;
mod response;
mod response_headers;
mod retry;
mod target;
mod ticket;
mod token;
mod wait;

use std::{cell::Cell, future::poll_fn, rc::Rc, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use http::{Method, StatusCode};

pub use self::{
    attempt_placement::{AttemptPlacement, Boxed, Inline},
    request::{Request, RequestTarget},
    request_context::Sinks,
    response::{Response, ResponseAborted, ResponseBody},
};
use self::{
    auth_cache::AuthCache,
    authorize::Decision,
    errcode_probe::{ErrcodeProbe, ProbedResponse},
    error::{ErrorKind, ProxyError},
    request_context::RequestContext,
    request_id::RequestIds,
    response_headers::{add_proxy_headers, wants_hint},
    retry::RefusedAttempt,
    target::ParsedTarget,
    token::mark_token_accepted,
};
use crate::{
    directory::{Agent, Client, Directory},
    http1::headers::{HeaderKind, Headers},
    limits::{concurrency_limit::ConcurrencyLimit, wait_limit::WaitLimit},
    request_body::{BodyLimits, Owner, ReplayBody, ReplayBudget, ReplayBudgetExceeded, RequestBody},
    telemetry::traces::Operation,
    time::deadline::Deadline,
    tokens::{PathKey, Token},
    upstream::{BodyLength, Upstream, UpstreamRequest},
};

/// Limits and settings shared by all workers.
pub struct ProxySettings {
    /// Errcodes that mean the token is no longer valid.
    pub refresh_errcodes: Vec<i64>,
    /// Limits of request bodies.
    pub body_limits: BodyLimits,
    /// Memory and disk budget of bodies buffered for a retry.
    pub replay_budget: Arc<ReplayBudget>,
    /// Limit of requests in flight at the upstream.
    pub in_flight: Arc<ConcurrencyLimit>,
    /// Limit of requests that wait for a token or a ticket.
    pub wait_limit: WaitLimit,
    /// Maximum wait for an in-flight permit.
    pub queue_timeout: Duration,
    /// `host[:port]` of the upstream, accepted in absolute-form targets: clients send these that are configured to use
    /// this proxy as a forward proxy.
    pub upstream_authority: String,
}

/// The proxy of one worker.
pub struct Proxy {
    directory: Arc<ArcSwap<Directory>>,
    settings: Arc<ProxySettings>,
    upstream: Upstream,
    request_ids: RequestIds,
    auth_cache: AuthCache,
    sinks: Rc<Sinks>,
}

impl Proxy {
    /// A proxy with its own upstream connections and sinks.
    pub fn new(
        directory: Arc<ArcSwap<Directory>>,
        settings: Arc<ProxySettings>,
        upstream: Upstream,
        sinks: Rc<Sinks>,
    ) -> Self {
        Self {
            directory,
            settings,
            upstream,
            request_ids: RequestIds::default(),
            auth_cache: AuthCache::default(),
            sinks,
        }
    }

    /// Handles one request; every error becomes a response in WeCom's format. `deadline` is lent for the duration of
    /// the call, so that a connection reuses one timer. `P` chooses where the future of an attempt is placed.
    pub async fn handle<P: AttemptPlacement>(
        &self,
        request: &Request,
        body: RequestBody,
        deadline: &mut Deadline,
    ) -> Response {
        let mut context =
            Box::new(RequestContext::new(request, self.request_ids.assign(request), self.sinks.clone()));
        std::mem::swap(&mut context.deadline, deadline);
        let result = self.handle_inner::<P>(request, body, &mut context).await;
        std::mem::swap(&mut context.deadline, deadline);
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                // The request may have failed before its pass was verified; `always_200` and the log need the client.
                let client_of_pass =
                    || authenticate::pass_client(&self.directory.load(), request.target.query());
                context.client = context.client.take().or_else(client_of_pass);
                error_response(error, &mut context)
            }
        };
        finish_response(response, context, wants_hint(request))
    }

    /// The steps of a request; every `?` returns an error response of the proxy itself.
    async fn handle_inner<P: AttemptPlacement>(
        &self,
        request: &Request,
        body: RequestBody,
        context: &mut RequestContext,
    ) -> Result<Response, ProxyError> {
        let (target, token_agent) = match self.authorize(request, context)? {
            Decision::Respond(response) => return Ok(response),
            Decision::Forward { target, token_agent } => (target, token_agent),
        };
        let body = match &context.capture {
            Some(capture) => capture.tap_request_body(body),
            None => body,
        };
        let (mut replay_body, body_length) =
            self.prepare_body(request, body, token_agent.is_some(), context.client.as_deref())?;
        let forwarded = ForwardedRequest {
            method: &request.method,
            headers: &request.headers,
            target: &target,
            received_target: &request.target,
            body_length,
            waiting: &request.waiting,
        };
        if let Some(replay_body) = &replay_body
            && replay_body.needs_admission()
        {
            Box::pin(self.admit_body(&forwarded, replay_body, context)).await?;
        }
        let result = match (token_agent, target.ticket_kind(&request.method)) {
            (None, _) => P::place(self.send_passthrough(&forwarded, &mut replay_body, context)).await,
            (Some(agent), Some(kind)) => Box::pin(self.serve_ticket(&forwarded, &agent, kind, context)).await,
            (Some(agent), None) => {
                let token = match agent.token.cached(context.cached_now) {
                    Some(token) => Ok(token),
                    // Waits here, not in `send_with_token`, so that a waiting request does not hold that larger future.
                    None => self.wait_for_token(&forwarded, &agent, replay_body.as_mut(), context).await,
                };
                match token {
                    Ok(token) => {
                        P::place(self.send_with_token(&forwarded, &agent, token, &mut replay_body, context))
                            .await
                    }
                    Err(error) => Err(*error),
                }
            }
        };
        context.request_bytes = replay_body.as_ref().map(ReplayBody::received_bytes);
        let probed = result?;
        context.errcode = probed.errcode;
        Ok(Response::from_upstream(probed, replay_body))
    }

    /// Wraps the request body for sending, buffered for a retry if `retryable` is set. Errors: the declared length exceeds
    /// `server.max_request_body`, or the replay budget is exhausted.
    fn prepare_body(
        &self,
        request: &Request,
        body: RequestBody,
        retryable: bool,
        client: Option<&Client>,
    ) -> Result<(Option<ReplayBody>, BodyLength), ProxyError> {
        let content_length = body.content_length();
        if content_length.is_some_and(|content_length| content_length > self.settings.body_limits.max_bytes) {
            return Err(ProxyError::body_too_large(self.settings.body_limits.max_bytes));
        }
        let needs_replay_buffer = retryable && matches!(body, RequestBody::Streamed(_));
        let owner = || Owner::of(client.map(|client| &*client.name));
        let budget = needs_replay_buffer.then(|| (&self.settings.replay_budget, owner()));
        let replay_body = ReplayBody::new(body, self.settings.body_limits, budget)
            .map_err(|ReplayBudgetExceeded| ProxyError::replay_budget_exhausted())?;
        let method_has_body = || matches!(request.method, Method::POST | Method::PUT | Method::PATCH);
        let body_length = match content_length {
            Some(0)
                if replay_body.is_none()
                    && !request.headers.contains(HeaderKind::ContentLength)
                    && !method_has_body() =>
            {
                BodyLength::Absent
            }
            Some(content_length) => BodyLength::Known(content_length),
            None => BodyLength::Unknown,
        };
        Ok((replay_body, body_length))
    }

    /// Forwards a request that carries its own credential unchanged.
    async fn send_passthrough(
        &self,
        forwarded: &ForwardedRequest<'_>,
        replay_body: &mut Option<ReplayBody>,
        context: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let target = query::unchanged_target(forwarded.target.path, forwarded.target.query);
        let permit = match self.settings.in_flight.try_acquire_uncontended() {
            Some(permit) => permit,
            None => {
                Box::pin(self.wait_for_in_flight_permit(forwarded, replay_body.as_mut(), context)).await?
            }
        };
        let response = self.attempt(forwarded, &target, None, replay_body.as_ref(), context).await?;
        context.upstream_time = response.time_to_header;
        Ok(response.with_permit(permit))
    }

    /// Sends a request with the agent's token, and retries once with a new token if this one is refused.
    async fn send_with_token(
        &self,
        forwarded: &ForwardedRequest<'_>,
        agent: &Arc<Agent>,
        token: Arc<Token>,
        replay_body: &mut Option<ReplayBody>,
        context: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let query = forwarded.target.query_without_token();

        // Acquired after the token, so that a request waiting for a token holds no permit.
        let permit = match self.settings.in_flight.try_acquire_uncontended() {
            Some(permit) => permit,
            None => {
                Box::pin(self.wait_for_in_flight_permit(forwarded, replay_body.as_mut(), context)).await?
            }
        };
        let replay_body = replay_body.as_ref();
        let target = query::with_token(forwarded.target.path, &query, token.value.expose());
        let first = self.attempt(forwarded, &target, Some(&token), replay_body, context).await?;
        let path = forwarded.path_key();
        context.upstream_time = first.time_to_header;
        let Some(errcode) = first.errcode.filter(|errcode| self.settings.refresh_errcodes.contains(errcode))
        else {
            mark_token_accepted(&first, &token, path);
            if let Some(replay_body) = replay_body {
                replay_body.commit();
            }
            return Ok(first.with_permit(permit));
        };
        // Boxed: rare, and the future is large.
        Box::pin(self.retry(
            forwarded,
            agent,
            replay_body,
            context,
            RefusedAttempt { response: first, token, errcode, permit },
        ))
        .await
    }

    /// Sends the request once and probes the response for an errcode.
    async fn attempt(
        &self,
        forwarded: &ForwardedRequest<'_>,
        target: &[&str],
        token: Option<&Token>,
        replay_body: Option<&ReplayBody>,
        context: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let sent_at = context.cached_now;
        context.set_route(&forwarded.target.normalized_path);
        context.begin_span(Operation::Attempt, sent_at);
        if let Some(capture) = &mut context.capture {
            capture.record_attempt(sent_at, token);
        }
        let upstream_request = UpstreamRequest {
            method: forwarded.method,
            target,
            headers: forwarded.headers,
            body_length: forwarded.body_length,
            now: sent_at,
        };
        let result = match self.upstream.send(&upstream_request, replay_body, &mut context.deadline).await {
            Ok(response) => {
                let mut probe = ErrcodeProbe::start(response, token, sent_at);
                poll_fn(|cx| probe.poll(cx)).await.map(|()| probe.finish())
            }
            Err(error) => Err(error),
        };
        let result =
            result.map_err(|error| ProxyError::from_upstream(&error, self.settings.body_limits.max_bytes));
        match &result {
            Ok(response) => {
                context.end_span_with_response(
                    response.time_to_header,
                    response.status.as_u16(),
                    response.errcode,
                );
                if let Some(capture) = &mut context.capture {
                    capture.record_attempt_response(response);
                }
            }
            Err(error) => context.end_span_now(Some(error.kind)),
        }
        result
    }

    /// Responds to a head that could not be parsed. `request` is a placeholder with the peer, for the log.
    pub fn reject_head(&self, status: StatusCode, message: &'static str, request: &Request) -> Response {
        let mut context =
            Box::new(RequestContext::new(request, self.request_ids.assign(request), self.sinks.clone()));
        let response =
            error_response(ProxyError::new(ErrorKind::BadRequest, message).with_status(status), &mut context);
        finish_response(response, context, false)
    }
}

/// What both attempts are built from: method, unfiltered client headers, parsed target.
struct ForwardedRequest<'a> {
    method: &'a Method,
    headers: &'a Headers,
    target: &'a ParsedTarget<'a>,
    /// The target as received, from which `target` was parsed.
    received_target: &'a RequestTarget,
    body_length: BodyLength,
    /// See [`Request::waiting`].
    waiting: &'a Cell<bool>,
}

impl ForwardedRequest<'_> {
    fn path_key(&self) -> PathKey {
        self.received_target.path_key(&self.target.normalized_path)
    }
}

/// Builds the response for an error, and records the error in the context.
fn error_response(error: ProxyError, context: &mut RequestContext) -> Response {
    let always_200 = context.client.as_ref().is_some_and(|client| client.always_200);
    context.errcode = Some(error.errcode);
    let response = Response::from_error(&error, always_200, context.request_id.as_str());
    context.error = Some((error.kind, error.into_log_message()));
    if let Some(capture) = &mut context.capture {
        capture.record_own_error();
    }
    response
}

/// Adds the proxy's headers to a response and attaches the context.
fn finish_response(mut response: Response, mut context: Box<RequestContext>, with_hint: bool) -> Response {
    context.status = response.status.as_u16();
    add_proxy_headers(&context, with_hint, &mut response.headers);
    if let Some(capture) = &mut context.capture {
        capture.record_response_headers(response.headers.as_bytes());
    }
    response.body.attach_context(context);
    response
}
