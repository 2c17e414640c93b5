//! The life of one request: who calls, through which agent, with which token, what came back, and once more if the
//! token was refused.
//!
//! [`Proxy::handle`] turns every outcome into an answer; [`Proxy::relay`] is the way itself.

mod auth_cache;
mod authenticate;
pub(crate) mod bench;
mod capture;
mod errcode_probe;
mod error;
pub(crate) mod fuzz;
mod gettoken;
mod head_check;
mod query;
mod request;
mod request_context;
mod response;
mod response_headers;
mod retry;
mod target;
mod ticket;
mod token;
mod wait;

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{Method, StatusCode, Version};

use self::{
    auth_cache::AuthCache,
    capture::Capture,
    errcode_probe::{ErrcodeProbe, ProbedResponse},
    error::{ErrorKind, ProxyError},
    request_context::RequestContext,
    response_headers::{RequestIds, add_proxy_headers, wants_hint},
    retry::RefusedAttempt,
    target::{ParsedTarget, TargetError},
    token::mark_token_accepted,
};
pub use self::{
    request::{Request, RequestTarget},
    request_context::Sinks,
    response::{Response, ResponseAborted, ResponseBody},
};
use crate::{
    directory::{Agent, Client, Directory},
    http1::headers::{Headers, KnownHeader},
    limits::{concurrency_limit::ConcurrencyLimit, wait_limit::WaitLimit},
    request_body::{
        BodyLimits, Owner, ReplayBody, ReplayBudget, ReplayBudgetExceeded, RequestBody, RequestBodyError,
    },
    telemetry::traces::Operation,
    time::deadline::Deadline,
    tokens::{PathKey, Token},
    upstream::{BodyLength, Upstream, UpstreamError, UpstreamErrorKind, UpstreamRequest},
};

/// The bounds and settings that all workers share.
pub struct ProxySettings {
    /// The errcodes that mean: this token no longer serves.
    pub refresh_errcodes: Vec<i64>,
    /// What a request's body may be.
    pub body_limits: BodyLimits,
    /// Where bodies are kept for another attempt.
    pub replay_budget: Arc<ReplayBudget>,
    /// Requests that are with the upstream.
    pub in_flight: Arc<ConcurrencyLimit>,
    /// Requests that wait for a token or a ticket.
    pub wait_limit: WaitLimit,
    /// How long a request waits for a place among them.
    pub queue_timeout: Duration,
    /// The upstream's name, which a client that takes us for a forward proxy may use.
    pub upstream_authority: String,
}

/// The proxy as one worker sees it.
pub struct Proxy {
    directory: Arc<ArcSwap<Directory>>,
    settings: Arc<ProxySettings>,
    upstream: Upstream,
    request_ids: RequestIds,
    auth_cache: AuthCache,
    sinks: Rc<Sinks>,
}

impl Proxy {
    /// A proxy with an upstream and books of its own.
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

    /// Answers one request. Whatever happens, the caller learns it in WeCom's shape. `deadline` is for what takes time
    /// meanwhile; where the caller has one that it does not need now, it serves again and again.
    /// The transport chooses where the future of an attempt is stored, by `S`.
    pub async fn handle<S: AttemptStorage>(
        &self,
        request: &Request,
        body: RequestBody,
        deadline: &mut Deadline,
    ) -> Response {
        let mut record =
            Box::new(RequestContext::new(request, self.request_ids.assign(request), self.sinks.clone()));
        std::mem::swap(&mut record.deadline, deadline);
        let relayed = self.handle_inner::<S>(request, body, &mut record).await;
        std::mem::swap(&mut record.deadline, deadline);
        let reply = match relayed {
            Ok(reply) => reply,
            Err(refusal) => {
                // Not every refusal waits until a pass was looked at.
                let by_pass = || authenticate::pass_client(&self.directory.load(), request.target.query());
                record.client = record.client.take().or_else(by_pass);
                error_response(refusal, &mut record)
            }
        };
        finish_response(reply, record, wants_hint(request))
    }

    /// Answers what is no request: a head that cannot be trusted.
    pub fn reject_head(&self, status: StatusCode, words: &'static str, request: &Request) -> Response {
        let mut record =
            Box::new(RequestContext::new(request, self.request_ids.assign(request), self.sinks.clone()));
        let reply =
            error_response(ProxyError::new(ErrorKind::BadRequest, words).with_status(status), &mut record);
        finish_response(reply, record, false)
    }

    /// The way of a request; every `?` on it is an answer of the proxy's own.
    async fn handle_inner<S: AttemptStorage>(
        &self,
        request: &Request,
        body: RequestBody,
        record: &mut RequestContext,
    ) -> Result<Response, ProxyError> {
        let (target, agent) = match self.authorize(request, record)? {
            Decision::Respond(reply) => return Ok(reply),
            Decision::Forward { target, agent } => (target, agent),
        };
        let body = match &record.capture {
            Some(look) => look.tap_request_body(body),
            None => body,
        };
        let (mut upload, length) =
            self.prepare_body(request, body, agent.is_some(), record.client.as_deref())?;
        let forward = ForwardedRequest {
            method: &request.method,
            headers: &request.headers,
            target: &target,
            text: &request.target,
            body_length: length,
            waiting: &request.waiting,
        };
        let answer = match (agent, target.ticket_kind(&request.method)) {
            (None, _) => S::store(self.send_passthrough(&forward, &mut upload, record)).await,
            (Some(agent), Some(kind)) => Box::pin(self.serve_ticket(&forward, &agent, kind, record)).await,
            (Some(agent), None) => {
                // Nothing has taken time since the request began.
                let token = match agent.token.cached(record.started) {
                    Some(token) => Ok(token),
                    // The wait is over before what sends takes its room.
                    None => self.wait_for_token(&forward, &agent, upload.as_mut(), record).await,
                };
                match token {
                    Ok(token) => {
                        S::store(self.send_with_token(&forward, &agent, token, &mut upload, record)).await
                    }
                    Err(refusal) => Err(*refusal),
                }
            }
        };
        record.request_bytes = upload.as_ref().map(ReplayBody::received_bytes);
        let answer = answer?;
        record.errcode = answer.errcode;
        Ok(Response::from_upstream(answer, upload))
    }

    /// The same as [`Self::judge`], and whether the connection is authorized from now on.
    fn authorize<'a>(
        &self,
        request: &'a Request,
        record: &mut RequestContext,
    ) -> Result<Decision<'a>, ProxyError> {
        let judged = self.decide(request, record);
        // A credential may be good where the request is refused for something else.
        if judged.is_ok() || record.client.is_some() || self.directory.load().is_open() {
            request.authorized.set(true);
        }
        judged
    }

    /// Who calls, what for, and whether they may.
    fn decide<'a>(
        &self,
        request: &'a Request,
        record: &mut RequestContext,
    ) -> Result<Decision<'a>, ProxyError> {
        let directory = self.directory.load();
        let known = self.auth_cache.get(&request.headers, &directory);
        let is_here = |host: &str, local| self.is_own_authority(host, local);
        let sound = head_check::check_head(request, known.is_some(), is_here);
        let target = ParsedTarget::from_request(&request.target);
        // Who calls is asked first: a client may want even the refusal of a malformed request in HTTP 200.
        let is_new = known.is_none();
        let by_key = known.map_or_else(|| authenticate::authenticate_key(&directory, &request.headers), Ok);
        let by_key = by_key.map(|client| {
            if is_new && sound.is_ok() && request.version == Version::HTTP_11 {
                self.auth_cache.insert(&request.headers, &directory, client.as_ref());
            }
            record.client = client;
        });
        sound.map_err(|words| ProxyError::new(ErrorKind::BadRequest, words))?;
        // A wrong base URL is said to be one, and not a wrong key.
        let target = target.map_err(target_error)?;
        by_key?;
        if request.draining {
            return Err(ProxyError::shutting_down());
        }
        if target.kind == target::TargetKind::Gettoken {
            let shown = record.client.clone();
            return gettoken::respond(&directory, shown, &target, &request.headers, record)
                .map(Decision::Respond);
        }
        let caller =
            authenticate::authenticate(&directory, record.client.as_ref(), &target, &request.headers)?;
        if record.client.is_some() {
            authenticate::reject_repeated_key(&request.headers, &target, caller.passthrough)?;
        }
        if caller.pass_client.is_some() {
            record.client = caller.pass_client;
        }
        record.agent = caller.agent;
        record.capture = Capture::start(&directory, record.agent.as_ref(), request, record.started);
        authenticate::check_allowed(record.client.as_deref(), &request.method, &target.normalized_path)?;
        let (client, agent) = (record.client.as_ref(), record.agent.as_ref());
        authenticate::check_rate(
            client.and_then(|client| client.rate_limiter.as_ref()),
            record.started,
            "this client",
        )?;
        authenticate::check_rate(
            agent.and_then(|agent| agent.rate_limiter.as_ref()),
            record.started,
            "this agent",
        )?;
        let agent = match (&record.agent, caller.passthrough) {
            (Some(agent), false) => Some(agent.clone()),
            (None, false) => return Err(authenticate::no_agent_selected()),
            (_, true) => None,
        };
        Ok(Decision::Forward { target, agent })
    }

    /// Whether a target in absolute form means this proxy, or the upstream as a client sees it that takes us for its
    /// forward proxy.
    fn is_own_authority(&self, authority: &str, local: Option<SocketAddr>) -> bool {
        let is_local = local.is_some_and(|local| {
            let port = local.port();
            authority.parse::<SocketAddr>().is_ok_and(|named| named == local)
                || (local.ip().is_loopback() && authority.eq_ignore_ascii_case(&format!("localhost:{port}")))
        });
        is_local || authority.eq_ignore_ascii_case(&self.settings.upstream_authority)
    }

    /// The body as it will be sent, or the refusal of one that is declared too large.
    fn prepare_body(
        &self,
        request: &Request,
        body: RequestBody,
        keep: bool,
        client: Option<&Client>,
    ) -> Result<(Option<ReplayBody>, BodyLength), ProxyError> {
        let declared = body.content_length();
        if declared.is_some_and(|declared| declared > self.settings.body_limits.max_bytes) {
            return Err(body_too_large(self.settings.body_limits.max_bytes));
        }
        let keeps = keep && matches!(body, RequestBody::Streamed(_));
        let owner = || client.map(|client| Owner::of(&client.name)).unwrap_or_default();
        let shelf = keeps.then(|| (&self.settings.replay_budget, owner()));
        let upload = ReplayBody::new(body, self.settings.body_limits, shelf)
            .map_err(|ReplayBudgetExceeded| replay_budget_exhausted())?;
        let wants = || matches!(request.method, Method::POST | Method::PUT | Method::PATCH);
        let length = match declared {
            Some(0)
                if upload.is_none() && !request.headers.contains(KnownHeader::ContentLength) && !wants() =>
            {
                BodyLength::Absent
            }
            Some(length) => BodyLength::Known(length),
            None => BodyLength::Unknown,
        };
        Ok((upload, length))
    }

    /// Sends a request that carries a credential of its own, as it came.
    async fn send_passthrough(
        &self,
        forward: &ForwardedRequest<'_>,
        upload: &mut Option<ReplayBody>,
        record: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let target = query::unchanged_target(forward.target.path, forward.target.query);
        let place = match self.settings.in_flight.try_acquire_uncontended() {
            Some(place) => place,
            None => Box::pin(self.wait_for_in_flight_permit(forward, upload.as_mut(), record)).await?,
        };
        let answer = self.attempt(forward, &target, None, upload.as_ref(), record).await?;
        record.upstream_time = answer.time_to_header;
        Ok(answer.with_permit(place))
    }

    /// Sends a request with the agent's token; with the next token once more if this one was refused.
    async fn send_with_token(
        &self,
        forward: &ForwardedRequest<'_>,
        agent: &Arc<Agent>,
        token: Arc<Token>,
        upload: &mut Option<ReplayBody>,
        record: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let query = forward.target.query_without_token();

        // Who waits for a token takes no place from those who have one.
        let place = match self.settings.in_flight.try_acquire_uncontended() {
            Some(place) => place,
            None => Box::pin(self.wait_for_in_flight_permit(forward, upload.as_mut(), record)).await?,
        };
        let upload = upload.as_ref();
        let target = query::with_token(forward.target.path, &query, token.value.expose());
        let first = self.attempt(forward, &target, Some(&token), upload, record).await?;
        let path = forward.path_key();
        record.upstream_time = first.time_to_header;
        let Some(errcode) = first.errcode.filter(|errcode| self.settings.refresh_errcodes.contains(errcode))
        else {
            mark_token_accepted(&first, &token, path);
            if let Some(upload) = upload {
                upload.commit();
            }
            return Ok(first.with_permit(place));
        };
        // Seldom, and it takes much room.
        Box::pin(self.retry(
            forward,
            agent,
            upload,
            record,
            RefusedAttempt { response: first, token, errcode, permit: place },
        ))
        .await
    }

    /// Sends once and looks at the answer.
    async fn attempt(
        &self,
        forward: &ForwardedRequest<'_>,
        target: &[&str],
        token: Option<&Token>,
        upload: Option<&ReplayBody>,
        record: &mut RequestContext,
    ) -> Result<Box<ProbedResponse>, ProxyError> {
        let at = record.cached_now;
        record.set_route(&forward.target.normalized_path);
        record.begin_span(Operation::Attempt, at);
        if let Some(look) = &mut record.capture {
            look.record_attempt(at, token);
        }
        let outgoing = UpstreamRequest {
            method: forward.method,
            target,
            headers: forward.headers,
            body_length: forward.body_length,
            now: at,
        };
        let inspected = match self.upstream.send(&outgoing, upload, &mut record.deadline).await {
            Ok(answer) => {
                let mut inspection = ErrcodeProbe::start(answer, token, at);
                poll_fn(|cx| inspection.poll(cx)).await.map(|()| inspection.finish())
            }
            Err(failure) => Err(failure),
        };
        let inspected = inspected.map_err(|failure| self.map_upstream_error(failure));
        match &inspected {
            Ok(answer) => {
                record.end_span_with_response(answer.time_to_header, answer.status.as_u16(), answer.errcode);
                if let Some(look) = &mut record.capture {
                    look.record_attempt_response(answer);
                }
            }
            Err(refusal) => record.end_span_now(Some(refusal.kind)),
        }
        inspected
    }

    /// What the caller is told of a failure.
    fn map_upstream_error(&self, failure: UpstreamError) -> ProxyError {
        let kind = match &failure.kind {
            UpstreamErrorKind::Unreachable(_) => ErrorKind::UpstreamUnreachable,
            UpstreamErrorKind::ResponseTimeout | UpstreamErrorKind::BodyTimeout => ErrorKind::UpstreamTimeout,
            UpstreamErrorKind::RequestBody(RequestBodyError::TooLarge) => {
                return body_too_large(self.settings.body_limits.max_bytes);
            }
            UpstreamErrorKind::RequestBody(RequestBodyError::Stalled) => {
                return ProxyError::new(
                    ErrorKind::BadRequest,
                    "the request's body stalled for longer than server.body_timeout",
                );
            }
            UpstreamErrorKind::RequestBody(RequestBodyError::Aborted) => {
                return ProxyError::new(
                    ErrorKind::BadRequest,
                    "the request's body broke off or is not well formed",
                );
            }
            UpstreamErrorKind::RequestBody(RequestBodyError::ChunkOverhead) => {
                return ProxyError::new(
                    ErrorKind::BadRequest,
                    "the chunk framing of the request's body is more than 64 KiB and 16 times its data; \
                     send larger chunks, without extensions",
                );
            }
            _ => ErrorKind::UpstreamFailed,
        };
        let what = if kind == ErrorKind::UpstreamUnreachable {
            "cannot be reached"
        } else {
            "did not answer as it should"
        };
        ProxyError::new(kind, format!("WeCom {what}: {}", failure.kind.public_message()))
            .with_log_message(format!("WeCom {what}: {}", failure.kind))
    }
}

/// Where the future of an attempt is stored. It is far larger than that of a request which waits for its token.
pub trait AttemptStorage {
    /// The attempt as it is awaited.
    fn store<F: Future>(attempt: F) -> impl Future<Output = F::Output>;
}

/// Within the future of the request: for a transport that uses these again and again.
pub struct Inline;

/// In an allocation of its own, which exists only during the attempt.
pub struct Boxed;

impl AttemptStorage for Inline {
    fn store<F: Future>(attempt: F) -> impl Future<Output = F::Output> {
        attempt
    }
}

impl AttemptStorage for Boxed {
    fn store<F: Future>(attempt: F) -> impl Future<Output = F::Output> {
        Box::pin(attempt)
    }
}

/// What is to become of a request.
enum Decision<'a> {
    /// The answer is there already.
    Respond(Response),
    /// It goes to the upstream, with this agent's token or with a credential of its own.
    Forward { target: ParsedTarget<'a>, agent: Option<Arc<Agent>> },
}

/// A request on its way, as far as both tries share it.
struct ForwardedRequest<'a> {
    method: &'a Method,
    headers: &'a Headers,
    target: &'a ParsedTarget<'a>,
    /// What the target was parsed from.
    text: &'a RequestTarget,
    body_length: BodyLength,
    /// See [`Request::waits`].
    waiting: &'a Cell<bool>,
}

impl ForwardedRequest<'_> {
    fn path_key(&self) -> PathKey {
        self.text.path_key(&self.target.normalized_path)
    }
}

/// A refusal as an answer.
fn error_response(refusal: ProxyError, record: &mut RequestContext) -> Response {
    let always_200 = record.client.as_ref().is_some_and(|client| client.always_200);
    record.errcode = Some(refusal.errcode);
    let reply = refusal.to_response(always_200, record.request_id.as_str());
    record.error = Some((refusal.kind, refusal.into_log_message()));
    reply
}

/// What every answer gets before it leaves.
fn finish_response(mut reply: Response, mut record: Box<RequestContext>, explains: bool) -> Response {
    record.status = reply.status.as_u16();
    add_proxy_headers(&record, explains, &mut reply.headers);
    if let Some(look) = &mut record.capture {
        look.record_response_headers(reply.headers.as_bytes());
    }
    reply.body.attach_context(record);
    reply
}

fn target_error(doubt: TargetError) -> ProxyError {
    match doubt {
        TargetError::Malformed(words) => ProxyError::new(ErrorKind::BadRequest, words),
        TargetError::NoRoute => ProxyError::new(
            ErrorKind::NoRoute,
            "only /cgi-bin/… and /AGENT/cgi-bin/… lead anywhere; is the base URL right?",
        ),
    }
}

fn body_too_large(bound: u64) -> ProxyError {
    ProxyError::new(
        ErrorKind::BodyTooLarge,
        format!("the request's body is larger than server.max_request_body ({bound} bytes)"),
    )
}

/// The refusal of a body that could not be kept for a retry. Nothing of it was sent.
fn replay_budget_exhausted() -> ProxyError {
    let words = "request bodies that are kept for a retry leave no room for one of this length in replay.memory or \
                 replay.disk; send it again in a moment, or raise replay.disk";
    ProxyError::new(ErrorKind::Overloaded, words).with_retry_after(Duration::from_secs(1))
}
