//! JS-SDK signatures: the proxy signs the URL of a page with the agent's tickets, which stay here.

mod browser;
mod page_url;

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::browser::BrowserRequest;
use super::{
    Proxy, RequestTemplate,
    authenticate::{self, requested_agent},
    authorize::complete_authentication,
    capture::Capture,
    error::{ErrorKind, ProxyError},
    error_response,
    permissions::check_allow_and_rate,
    presented_key::mask_credentials,
    query,
    request::Request,
    request_context::RequestContext,
    response::Response,
    response_headers::wants_hint,
    target::RequestTarget,
};
use crate::{
    config::WebOrigin,
    directory::{Agent, Directory},
    http1::headers::Headers,
    secret::{Masked, hex},
    time::clock::unix_now,
    tokens::{ceil_seconds, kinds::ticket::TicketKind},
    upstream::BodyLength,
    wecom::{errcode, jssdk::signature},
};

const ALLOWED_METHODS: &[u8] = b"GET, HEAD, OPTIONS";
/// Seconds that a browser may keep a preflight response.
const PREFLIGHT_MAX_AGE: &[u8] = b"600";

/// What a page passes to `wx.config` and `wx.agentConfig`, with WeCom's names.
#[derive(Serialize)]
struct SignatureResponse<'a> {
    errcode: i64,
    errmsg: &'static str,
    corpid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    agentid: Option<u64>,
    url: &'a str,
    config: Signature,
    #[serde(rename = "agentConfig", skip_serializing_if = "Option::is_none")]
    agent_config: Option<Signature>,
}

#[derive(Serialize)]
struct Signature {
    timestamp: u64,
    #[serde(rename = "nonceStr")]
    nonce: String,
    signature: String,
}

/// A request that may be answered with a signature.
struct Authorized {
    agent: Arc<Agent>,
    /// Whether a browser asks without a key; it gets no errmsg of WeCom's, which has this machine's address.
    is_keyless: bool,
}

impl Proxy {
    /// Responds with the signature, or to the preflight request for one. Errors have CORS headers too, so that the page
    /// can read them.
    pub(super) async fn serve_signature(&self, request: &Request, context: &mut RequestContext) -> Response {
        let browser = BrowserRequest::new(&request.headers);
        let (mut allowed_origin, mut is_other_method) = (None, false);
        let result = if request.method == Method::OPTIONS {
            self.preflight(request, &browser, context, &mut allowed_origin)
        } else {
            self.sign(request, &browser, context, &mut allowed_origin).await
        };
        let mut response = result.unwrap_or_else(|error| {
            is_other_method = error.status == Some(StatusCode::METHOD_NOT_ALLOWED);
            // WeCom's errmsg may echo a client's key that is an agent's secret, too.
            let error = error.map_messages(|text| mask_credentials(request, text));
            error_response(error, context, wants_hint(request))
        });
        let headers = &mut response.headers;
        headers.append(b"cache-control", b"no-store");
        headers.append(b"vary", b"Origin");
        if is_other_method {
            headers.append(b"allow", ALLOWED_METHODS);
        }
        if let Some(origin) = allowed_origin {
            headers.append(b"access-control-allow-origin", origin.as_str().as_bytes());
            headers.append(b"access-control-expose-headers", b"Retry-After, X-Request-Id");
        }
        response
    }

    /// The response to a preflight request, which has no credentials.
    fn preflight(
        &self,
        request: &Request,
        browser: &BrowserRequest<'_>,
        context: &mut RequestContext,
        allowed_origin: &mut Option<WebOrigin>,
    ) -> Result<Response, ProxyError> {
        let directory = self.directory.load();
        self.check_head_and_key(request, &directory, context)?;
        let Some(origin) = browser.origin()? else {
            let mut response = Response::local(StatusCode::NO_CONTENT, Bytes::new());
            response.headers.append(b"allow", ALLOWED_METHODS);
            return Ok(response);
        };
        let lists = |agent: &Arc<Agent>| agent.settings.jssdk_origins.contains(&origin);
        let is_allowed = match requested_agent(&request.target, &request.headers)? {
            Some(name) => directory.find_agent(name).as_ref().is_some_and(lists),
            // The header X-Wecom-Agent of the request that follows is not known yet.
            None => {
                self.charge_address(request, context)?;
                directory.agents().any(lists)
            }
        };
        if !is_allowed {
            return Err(browser::origin_not_allowed());
        }
        *allowed_origin = Some(origin);
        let mut response = Response::local(StatusCode::NO_CONTENT, Bytes::new());
        for (name, value) in [
            (&b"access-control-allow-methods"[..], &b"GET"[..]),
            (b"access-control-allow-headers", b"X-Wecom-Agent"),
            (b"access-control-max-age", PREFLIGHT_MAX_AGE),
        ] {
            response.headers.append(name, value);
        }
        Ok(response)
    }

    async fn sign(
        &self,
        request: &Request,
        browser: &BrowserRequest<'_>,
        context: &mut RequestContext,
        allowed_origin: &mut Option<WebOrigin>,
    ) -> Result<Response, ProxyError> {
        let authorized = self.authorize_signature(request, browser, context, allowed_origin)?;
        let Authorized { ref agent, is_keyless } = authorized;
        let url = page_url::page_url(request.target.query().unwrap_or_default())?;
        if is_keyless {
            browser.check_page(&url, &agent.settings.jssdk_origins)?;
            self.charge_address(request, context)?;
        }
        check_allow_and_rate(request, context)?;
        let result = self.signature_response(request, &authorized, &url, context).await;
        result.map_err(|error| if is_keyless { without_wecom_errmsg(error) } else { error })
    }

    /// Authenticates by key or pass. Without either, an agent with `jssdk_origins` serves browsers.
    fn authorize_signature(
        &self,
        request: &Request,
        browser: &BrowserRequest<'_>,
        context: &mut RequestContext,
        allowed_origin: &mut Option<WebOrigin>,
    ) -> Result<Authorized, ProxyError> {
        let directory = self.directory.load();
        self.check_head_and_key(request, &directory, context)?;
        if request.draining {
            return Err(ProxyError::shutting_down());
        }
        if !matches!(request.method, Method::GET | Method::HEAD) {
            let error = ErrorKind::BadRequest.error("use GET for a signature");
            return Err(error.with_status(StatusCode::METHOD_NOT_ALLOWED));
        }
        let has_credential = context.client.is_some()
            || query::token_values(request.target.query().unwrap_or_default()).next().is_some();
        let keyless_agent = if has_credential { None } else { keyless_agent(&directory, request)? };
        let is_keyless = keyless_agent.is_some();
        if let Some(agent) = keyless_agent {
            context.capture = Capture::start(&directory, Some(&agent), request, context.started);
            context.agent = Some(agent);
        } else {
            complete_authentication(&directory, request, context)?;
            request.authorized.set(true);
        }
        let agent = context.agent.clone().ok_or_else(authenticate::no_agent_selected)?;
        *allowed_origin = browser.origin()?.filter(|origin| agent.settings.jssdk_origins.contains(origin));
        if !has_credential && allowed_origin.is_none() {
            browser.reject_cross_site()?;
        }
        Ok(Authorized { agent, is_keyless })
    }

    /// Charges a request without a key to its address.
    fn charge_address(&self, request: &Request, context: &RequestContext) -> Result<(), ProxyError> {
        self.settings.signature_limit.try_acquire(request.peer, context.started).map_err(|wait| {
            let seconds = ceil_seconds(wait).max(1);
            let message = format!("too many signatures for this address without a key; retry in {seconds} s");
            ErrorKind::RateLimited.error(message).with_retry_after(wait)
        })
    }

    async fn signature_response(
        &self,
        request: &Request,
        authorized: &Authorized,
        url: &str,
        context: &mut RequestContext,
    ) -> Result<Response, ProxyError> {
        let config = self.signed(request, authorized, TicketKind::JSAPI, url, context).await?;
        let agentid = authorized.agent.settings.agentid;
        let agent_config = match agentid {
            Some(_) => Some(self.signed(request, authorized, TicketKind::AGENT_CONFIG, url, context).await?),
            None => None,
        };
        let corpid = &authorized.agent.corpid;
        let (errcode, errmsg) = (errcode::OK, "ok");
        let body = SignatureResponse { errcode, errmsg, corpid, agentid, url, config, agent_config };
        context.errcode = Some(errcode);
        let body = serde_json::to_vec(&body).map_err(|_| no_ticket("the response could not be encoded"))?;
        Ok(Response::local(StatusCode::OK, body.into()))
    }

    /// Signs `url` with a ticket, cached or fetched.
    async fn signed(
        &self,
        request: &Request,
        Authorized { agent, is_keyless }: &Authorized,
        kind: TicketKind,
        url: &str,
        context: &mut RequestContext,
    ) -> Result<Signature, ProxyError> {
        if *is_keyless && let Some(failed) = agent.token.failed_ticket_fetch(kind) {
            let wait = failed.retry_at.saturating_duration_since(Instant::now());
            let error =
                ticket_of(&failed.body).err().unwrap_or_else(|| no_ticket("no ticket for this agent"));
            return Err(error.with_retry_after(wait));
        }
        let target = RequestTarget::new(&kind.target());
        let template = RequestTemplate {
            method: &Method::GET,
            headers: &Headers::default(),
            target: &target,
            token_param: None,
            body_length: BodyLength::Absent,
            waiting: &request.waiting,
            upstream: context.upstream_index(),
            maybe_sent: None,
        };
        let response = Box::pin(self.serve_ticket(&template, agent, kind, context)).await?;
        let ticket = ticket_of(&response.complete_body().unwrap_or_default())?;
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|_| no_ticket("the system has no random numbers"))?;
        let (timestamp, nonce) = (unix_now(), hex::encode(&random));
        let signature = signature(ticket.expose(), &nonce, timestamp, url);
        Ok(Signature { timestamp, nonce, signature })
    }
}

/// The agent that serves a request without a key, if it has `jssdk_origins`.
fn keyless_agent(directory: &Directory, request: &Request) -> Result<Option<Arc<Agent>>, ProxyError> {
    let agent = match requested_agent(&request.target, &request.headers)? {
        Some(name) => directory.find_agent(name),
        None => directory.only_agent(None),
    };
    Ok(agent.filter(|agent| !agent.settings.jssdk_origins.is_empty()))
}

/// The ticket of WeCom's response.
fn ticket_of(body: &[u8]) -> Result<Masked, ProxyError> {
    #[derive(Deserialize)]
    struct TicketResponse<'a> {
        #[serde(default)]
        errcode: i64,
        #[serde(default, borrow)]
        errmsg: Cow<'a, str>,
        #[serde(default, borrow)]
        ticket: Cow<'a, str>,
    }
    match serde_json::from_slice::<TicketResponse<'_>>(body) {
        Ok(response) if response.errcode != errcode::OK => {
            let message = format!("no ticket for this agent: {}", response.errmsg);
            Err(no_ticket(&message).with_wecom_errcode(response.errcode))
        }
        Ok(response) if !response.ticket.is_empty() => Ok(Masked::new(response.ticket.into_owned())),
        _ => Err(no_ticket("no ticket for this agent: WeCom's response has none; retry later")),
    }
}

fn no_ticket(message: &str) -> ProxyError {
    ErrorKind::TokenUnavailable.error(message)
}

/// The error for a browser without a key. The log keeps WeCom's errmsg.
fn without_wecom_errmsg(mut error: ProxyError) -> ProxyError {
    if error.kind == ErrorKind::TokenUnavailable {
        let message =
            format!("no signature now: WeCom's errcode is {}; the proxy's log has more", error.errcode);
        let detailed = std::mem::replace(&mut error.message, message);
        error = error.or_log_message(detailed);
    }
    error
}
