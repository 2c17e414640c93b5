//! The life of a request: authorize, get a token, attempt, and retry once if the token was refused.
//!
//! [`Proxy::handle`] maps every outcome to a response; `Proxy::handle_inner` contains the steps.

mod auth_cache;
mod authenticate;
mod authorize;
mod body_tap;
mod byte_classes;
mod callback;
mod capture;
mod decision;
mod errcode_probe;
mod error;
mod exchange;
mod gettoken;
mod head_check;
mod idempotency;
mod initial_response_headers;
mod install;
pub(crate) mod internals;
mod jssdk;
mod loggable;
mod message_body;
mod path_credential;
mod permanent_code;
mod permissions;
mod prepare_body;
mod presented_key;
pub(crate) mod query;
mod quota;
mod recipients;
mod request;
mod request_context;
mod request_id;
mod request_template;
mod response;
mod response_headers;
mod retry;
mod service;
mod settings;
mod small_body;
pub(crate) mod target;
mod target_kind;
mod ticket;
mod token;
mod wait;

use std::{future::poll_fn, rc::Rc, sync::Arc};

use arc_swap::ArcSwap;
use http::{Method, StatusCode};

use self::{
    decision::{Decision, TokenChoice, TokenParam},
    errcode_probe::{ErrcodeProbe, ProbedResponse},
    error::{ErrorKind, ProxyError},
    exchange::Exchanged,
    presented_key::mask_credentials,
    request_context::RequestContext,
    request_id::RequestIds,
    request_template::RequestTemplate,
    response_headers::{add_proxy_headers, wants_hint},
    retry::RefusedAttempt,
    target::TargetKind,
    token::mark_token_accepted,
};
pub(crate) use self::{head_check::CONNECT_MESSAGE, path_credential::split_path_credential};
pub use self::{
    request::Request,
    request_context::Sinks,
    response::{Response, ResponseAborted, ResponseBody},
    settings::{ProxySettings, UpstreamSettings},
    target::RequestTarget,
};
use crate::{
    config::QuotaMode,
    directory::{Agent, Directory},
    http1::headers::HeaderKind,
    limits::quotas::WorkerQuotas,
    request_body::{ReplayBody, RequestBody},
    telemetry::traces::Operation,
    time::deadline::Deadline,
    tokens::Token,
    upstream::{BodyLength, Upstream, UpstreamRequest},
    wecom::{errcode, provider_api},
};

/// The proxy of one worker.
pub struct Proxy {
    directory: Arc<ArcSwap<Directory>>,
    settings: Arc<ProxySettings>,
    /// In the order of `settings.upstreams`.
    upstreams: Box<[Upstream]>,
    request_ids: RequestIds,
    quotas: WorkerQuotas,
    sinks: Rc<Sinks>,
}

impl Proxy {
    /// A proxy with its own upstream connections and sinks.
    pub fn new(directory: Arc<ArcSwap<Directory>>, settings: Arc<ProxySettings>, sinks: Rc<Sinks>) -> Self {
        let upstreams = settings.upstreams.iter().map(|upstream| Upstream::new(upstream.connections.clone()));
        Self {
            upstreams: upstreams.collect(),
            quotas: WorkerQuotas::new(&settings.quotas),
            directory,
            settings,
            request_ids: RequestIds::default(),
            sinks,
        }
    }

    /// Handles one request; every error becomes a response in WeCom's format. `deadline` is lent for the duration of
    /// the call, so that a connection reuses one timer. The future is large: `server::http1::handler_pool` reuses it.
    pub async fn handle(&self, request: &Request, body: RequestBody, deadline: &mut Deadline) -> Response {
        let mut context =
            Box::new(RequestContext::new(request, self.request_ids.assign(request), self.sinks.clone()));
        std::mem::swap(&mut context.deadline, deadline);
        let result = self.handle_inner(request, body, &mut context).await;
        std::mem::swap(&mut context.deadline, deadline);
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                // The request may have failed before its pass was verified; `always_200` and the log need the client.
                let client_of_pass =
                    || authenticate::pass_client(&self.directory.load(), request.target.query());
                context.client = context.client.take().or_else(client_of_pass);
                let error = match error.kind {
                    // It contains WeCom's errmsg, which may echo a client's key that is an agent's secret, too.
                    ErrorKind::TokenUnavailable => error.map_messages(|text| mask_credentials(request, text)),
                    _ => error,
                };
                error_response(error, &mut context, wants_hint(request))
            }
        };
        finish_response(response, context, wants_hint(request))
    }

    /// The steps of a request; every `?` returns an error response of the proxy itself.
    async fn handle_inner(
        &self,
        request: &Request,
        body: RequestBody,
        context: &mut RequestContext,
    ) -> Result<Response, ProxyError> {
        if request.target.kind() == TargetKind::JssdkSignature || request.target.callback_path().is_some() {
            return Box::pin(self.serve_own_path(request, body, context)).await;
        }
        let (route, body) = match self.authorize(request, context)? {
            Decision::Respond(response) => return Ok(response),
            Decision::Forward(route) => (route, body),
            Decision::Exchange(exchange) => {
                let exchanged = Box::pin(self.exchange(request, body, context, exchange)).await;
                match exchanged.map_err(|error| self.without_state(error))? {
                    Exchanged::Response(response) => return Ok(response),
                    Exchanged::Forward(route, body) => (route, body),
                }
            }
        };
        let mut body = context.begin_forwarding(body);
        if request.method == Method::POST {
            body = self.tap_recipients(request, body, context).await?;
            if request.headers.contains(HeaderKind::IdempotencyKey) {
                return Box::pin(self.handle_once(request, body, route, context)).await;
            }
        }
        let TokenChoice { token_agent, token_param } = route;
        let (mut replay_body, body_length) =
            self.prepare_body(request, body, token_agent.is_some(), context.client.as_deref())?;
        let mut template = RequestTemplate::new(request, token_param, body_length, context.upstream_index());
        if let Some(replay_body) = &replay_body {
            if replay_body.needs_admission() {
                Box::pin(self.admit_body(&template, replay_body, context)).await?;
            } else if body_length == BodyLength::Unknown {
                let retryable = token_agent.is_some();
                template.body_length =
                    Box::pin(self.receive_body(&template, replay_body, retryable, context)).await?;
            }
        }
        let result = match (token_agent, request.target.ticket_kind(&request.method)) {
            (None, _) => self.send_passthrough(&template, &mut replay_body, context).await,
            (Some(agent), Some(kind)) => Box::pin(self.serve_ticket(&template, &agent, kind, context)).await,
            (Some(agent), None) => {
                let token = match agent.token.cached(context.cached_now) {
                    Some(token) => Ok(token),
                    // Waits here, not in `send_with_token`, so that a waiting request does not hold that larger future.
                    None => self.wait_for_token(&template, &agent, replay_body.as_mut(), context).await,
                };
                match token {
                    Ok(token) => {
                        self.send_with_token(&template, &agent, token, &mut replay_body, context).await
                    }
                    Err(error) => Err(*error),
                }
            }
        };
        context.request_bytes = replay_body.as_ref().map(ReplayBody::received_bytes);
        let probed = result?;
        if let Some(message) = context.message_body.take() {
            self.count_recipients(message, request, &probed, context);
        }
        context.errcode = probed.errcode;
        Ok(Response::from_upstream(*probed, replay_body))
    }

    /// Serves a path that is not WeCom's.
    async fn serve_own_path(
        &self,
        request: &Request,
        body: RequestBody,
        context: &mut RequestContext,
    ) -> Result<Response, ProxyError> {
        match request.target.callback_path() {
            Some(path) => self.serve_callback(request, path, body, context).await,
            None => Ok(self.serve_signature(request, context).await),
        }
    }

    /// Forwards a request that carries its own credential unchanged.
    async fn send_passthrough(
        &self,
        template: &RequestTemplate<'_>,
        replay_body: &mut Option<ReplayBody>,
        context: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        if self.quotas.mode() == QuotaMode::Shape {
            Box::pin(self.pass_quotas(template, false, context)).await?;
        }
        let target = query::unchanged_target(template.target.upstream_path(), template.target.query());
        let permit = match self.upstream_settings(template).in_flight.try_acquire_uncontended() {
            Some(permit) => permit,
            None => Box::pin(self.wait_for_in_flight_permit(template, replay_body.as_mut(), context)).await?,
        };
        let response = self.attempt(template, &target, None, replay_body.as_ref(), context).await?;
        Ok(response.with_permit(permit))
    }

    /// Sends a request with the agent's token, and retries once with a new token if this one is refused.
    async fn send_with_token(
        &self,
        template: &RequestTemplate<'_>,
        agent: &Arc<Agent>,
        token: Arc<Token>,
        replay_body: &mut Option<ReplayBody>,
        context: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let query = template.query_without_token();
        if self.quotas.mode() == QuotaMode::Shape {
            Box::pin(self.pass_quotas(template, true, context)).await?;
        }
        // Acquired after the token, so that a request waiting for a token holds no permit.
        let permit = match self.upstream_settings(template).in_flight.try_acquire_uncontended() {
            Some(permit) => permit,
            None => Box::pin(self.wait_for_in_flight_permit(template, replay_body.as_mut(), context)).await?,
        };
        let replay_body = replay_body.as_ref();
        let target = template.target_with_token(&query, token.value.expose());
        let first = self.attempt(template, &target, Some(&token), replay_body, context).await?;
        let path = template.target.path_key();
        let Some(errcode) = first.errcode.filter(|errcode| self.voids_token(*errcode, template.token_param))
        else {
            mark_token_accepted(&first, &token, path);
            if let Some(replay_body) = replay_body {
                replay_body.commit();
            }
            return Ok(first.with_permit(permit));
        };
        // Boxed: rare, and the future is large.
        Box::pin(self.retry(
            template,
            agent,
            replay_body,
            context,
            RefusedAttempt { response: first, token, errcode, permit },
        ))
        .await
    }

    /// Whether an errcode says that the token in this parameter (`None`: an access_token) no longer serves.
    fn voids_token(&self, errcode: i64, token_param: Option<TokenParam>) -> bool {
        match token_param {
            None => self.settings.refresh_errcodes.contains(&errcode),
            Some(_) => provider_api::voids_provider_token(errcode),
        }
    }

    /// Sends the request once and probes the response for an errcode.
    async fn attempt(
        &self,
        template: &RequestTemplate<'_>,
        target: &[&str],
        token: Option<&Token>,
        replay_body: Option<&ReplayBody>,
        context: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let sent_at = context.cached_now;
        context.begin(Operation::Attempt, sent_at);
        if let Some(capture) = &mut context.capture {
            capture.record_attempt(sent_at, token);
        }
        self.observe_attempt(template.target, token.is_some(), context);
        let upstream_request = UpstreamRequest {
            method: template.method,
            corpid: context.agent.as_ref().map_or("", |agent| &agent.corpid),
            target,
            headers: template.headers,
            body_length: template.body_length,
            now: sent_at,
            maybe_sent: template.maybe_sent,
        };
        let upstream = &self.upstreams[template.upstream];
        let result = match upstream.send(&upstream_request, replay_body, &mut context.deadline).await {
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
                match response.errcode {
                    Some(errcode::RATE_LIMITED) => {
                        self.on_rate_limited(template.target, token.is_some(), context);
                    }
                    Some(errcode::UNTRUSTED_IP) => context.untrusted_address = response.untrusted_address(),
                    _ => {}
                }
                context.end_with_response(
                    response.time_to_header,
                    response.status.as_u16(),
                    response.errcode,
                );
                if let Some(capture) = &mut context.capture {
                    capture.record_attempt_response(response);
                }
            }
            Err(error) => context.end_now(Some(error.kind)),
        }
        result
    }

    /// Limits and settings of the upstream of a request.
    fn upstream_settings(&self, template: &RequestTemplate<'_>) -> &UpstreamSettings {
        &self.settings.upstreams[template.upstream]
    }

    /// Responds to a head that could not be parsed. `request` is a placeholder with the peer, for the log.
    pub fn reject_head(&self, status: StatusCode, message: impl Into<String>, request: &Request) -> Response {
        let mut context =
            Box::new(RequestContext::new(request, self.request_ids.assign(request), self.sinks.clone()));
        let response =
            error_response(ErrorKind::BadRequest.error(message).with_status(status), &mut context, false);
        finish_response(response, context, false)
    }
}

/// Builds the response for an error, and records the error in the context.
fn error_response(error: ProxyError, context: &mut RequestContext, with_hint: bool) -> Response {
    let always_200 = context.client.as_ref().is_some_and(|client| client.config.always_200);
    (context.errcode, context.error_has_wecom_errcode) = (Some(error.errcode), error.has_wecom_errcode);
    let response = Response::from_error(&error, always_200, context.request_id.as_str(), with_hint);
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
