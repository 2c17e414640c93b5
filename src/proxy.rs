//! The life of one request: who calls, through which agent, with which token, what came back, and once more if the
//! token was refused.
//!
//! [`Proxy::handle`] turns every outcome into an answer; [`Proxy::relay`] is the way itself.

mod access;
mod identify;
mod inspect;
mod query;
mod refusal;
mod reply;
mod target;

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Method, Request, Response, header, request};
use hyper::body::{Body as _, Incoming};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

pub use self::reply::{Broken, ReplyBody};
use self::{
    access::Entry,
    inspect::{Inspected, inspect},
    refusal::{Kind, Refusal},
    target::{Doubt, Target},
};
use crate::{
    directory::{Agent, Client, Directory},
    headers,
    server::Link,
    tokens::{FetchError, Replacement, Token},
    upload::{Bounds, Shelf, Upload, UploadError},
    upstream::{BodyLength, Failure, Flaw, Outgoing, Upstream},
    wecom::errcode,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const AGENT: HeaderName = HeaderName::from_static("x-wecom-agent");
const RETRIED: HeaderName = HeaderName::from_static("x-wecom-retried");
const HINT: HeaderName = HeaderName::from_static("x-wecom-hint");
const DEBUG: HeaderName = HeaderName::from_static("x-wecom-debug");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The bounds and settings that all workers share.
pub struct Rules {
    /// The errcodes that mean: this token no longer serves.
    pub refresh_errcodes: Vec<i64>,
    /// What a request's body may be.
    pub bounds: Bounds,
    /// Where bodies are kept for another attempt.
    pub shelf: Arc<Shelf>,
    /// Requests that are with the upstream.
    pub in_flight: Arc<Semaphore>,
    /// How long a request waits for a place among them.
    pub queue_timeout: Duration,
    /// The upstream's name, which a client that takes us for a forward proxy may use.
    pub upstream_authority: String,
    /// Whether each request is logged.
    pub access_log: bool,
}

/// The proxy as one worker sees it.
pub struct Proxy {
    directory: Arc<ArcSwap<Directory>>,
    rules: Arc<Rules>,
    upstream: Upstream,
    ids: Ids,
}

/// What becomes known of a request on its way.
#[derive(Default)]
struct Notes {
    client: Option<Arc<Client>>,
    agent: Option<Arc<Agent>>,
    retried: Option<i64>,
    errcode: Option<i64>,
    token: Duration,
    upstream: Duration,
}

impl Proxy {
    /// A proxy with an upstream of its own.
    pub fn new(directory: Arc<ArcSwap<Directory>>, rules: Arc<Rules>, upstream: Upstream) -> Self {
        Self { directory, rules, upstream, ids: Ids::default() }
    }

    /// Answers one request. Whatever happens, the caller learns it in WeCom's shape.
    pub async fn handle(&self, request: Request<Incoming>, link: &Link) -> Response<ReplyBody> {
        let (began, busy) = (Instant::now(), link.busy());
        let (parts, body) = request.into_parts();
        let mut notes = Notes::default();
        let answered = self.relay(&parts, body, link, &mut notes).await;
        let error = answered.as_ref().err().map(|refusal| refusal.kind.facts().0);
        let mut response = answered.unwrap_or_else(|refusal| {
            notes.errcode = Some(refusal.errcode);
            refusal.into_response(notes.client.as_ref().is_some_and(|client| client.always_200))
        });
        let request_id = self.request_id(&parts);
        let entry = self.rules.access_log.then(|| {
            let mut entry = Entry::new(began, parts.method.clone(), parts.uri.clone());
            entry.request_id = String::from_utf8_lossy(request_id.as_bytes()).into_owned();
            entry.client = notes.client.as_ref().map(|client| client.name.clone()).unwrap_or_default();
            entry.agent = notes.agent.as_ref().map(|agent| agent.name.clone()).unwrap_or_default();
            (entry.status, entry.errcode) = (response.status().as_u16(), notes.errcode);
            (entry.retried, entry.error) = (notes.retried, error);
            (entry.token, entry.upstream) = (notes.token, notes.upstream);
            Box::new(entry)
        });
        self.sign(&parts, &notes, request_id, response.headers_mut());
        response.map(|body| body.until_end(entry, busy))
    }

    /// The way of a request; every `?` on it is an answer of the proxy's own.
    async fn relay(
        &self,
        parts: &request::Parts,
        body: Incoming,
        link: &Link,
        notes: &mut Notes,
    ) -> Result<Response<ReplyBody>, Refusal> {
        let directory = self.directory.load_full();
        let is_here =
            |host: &str| host.eq_ignore_ascii_case(&self.rules.upstream_authority) || link.is_local(host);
        target::check_head(parts, is_here).map_err(|words| Refusal::new(Kind::BadRequest, words))?;
        let target = Target::parse(parts.uri.path(), parts.uri.query());
        notes.client = identify::client(&directory, &parts.headers)?;
        let client = notes.client.as_deref();
        let target = target.map_err(doubt)?;
        notes.agent = identify::agent(&directory, client, &target, &parts.headers)?;
        if client.is_some_and(|client| !client.may_call(&parts.method, &target.route)) {
            return Err(Refusal::new(
                Kind::Forbidden,
                "this client may not call this path; the operator's allow list says so",
            ));
        }
        let own_credential = match target.kind {
            target::Kind::Inject => notes.agent.as_ref().is_some_and(|agent| agent.is_plain(&target.route)),
            target::Kind::OwnCredential => true,
            target::Kind::Gettoken => {
                let words = "no token is handed out; leave gettoken out and call the API itself, the proxy adds the token";
                return Err(Refusal::new(Kind::NoRoute, words));
            }
        };
        let agent = match (&notes.agent, own_credential) {
            (Some(agent), false) => Some(agent.clone()),
            (None, false) => return Err(identify::no_agent()),
            (_, true) => None,
        };
        let (upload, length) = self.receive(parts, body, link, agent.is_some())?;
        let permit = self.admit().await?;
        let forward =
            Forward { parts, target: &target, nominated: headers::nominated(&parts.headers), length };
        let answer = match agent {
            None => self.send_plain(&forward, upload.as_ref(), notes).await?,
            Some(agent) => self.send_with_token(&forward, &agent, upload.as_ref(), notes).await?,
        };
        notes.errcode = answer.errcode;
        let mut response = Response::new(ReplyBody::streamed(answer.held, answer.rest, upload, permit));
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        Ok(response)
    }

    /// The body as it will be sent, or the refusal of one that is declared too large.
    fn receive(
        &self,
        parts: &request::Parts,
        body: Incoming,
        link: &Link,
        keep: bool,
    ) -> Result<(Option<Upload>, BodyLength), Refusal> {
        let declared = body.size_hint().exact();
        if body.is_end_stream() || declared == Some(0) {
            let says_so = parts.headers.contains_key(header::CONTENT_LENGTH);
            let wants = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH);
            return Ok((None, if says_so || wants { BodyLength::Known(0) } else { BodyLength::Absent }));
        }
        if declared.is_some_and(|declared| declared > self.rules.bounds.bytes) {
            link.linger();
            return Err(too_large(self.rules.bounds.bytes));
        }
        let upload = Upload::new(body, declared, self.rules.bounds, keep.then_some(&self.rules.shelf));
        upload.on_unread(link.lingerer());
        Ok((Some(upload), declared.map_or(BodyLength::Unknown, BodyLength::Known)))
    }

    /// A place among the requests in flight.
    async fn admit(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        if let Ok(permit) = self.rules.in_flight.clone().try_acquire_owned() {
            return Ok(permit);
        }
        match timeout(self.rules.queue_timeout, self.rules.in_flight.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => {
                let words = "too many requests are waiting for WeCom; come again in a moment";
                Err(Refusal::new(Kind::Overloaded, words).retry_after(Duration::from_secs(1)))
            }
        }
    }

    /// Sends a request that carries a credential of its own, as it came.
    async fn send_plain(
        &self,
        forward: &Forward<'_>,
        upload: Option<&Upload>,
        notes: &mut Notes,
    ) -> Result<Inspected, Refusal> {
        let mut target = forward.target.path.to_owned();
        if let Some(query) = forward.target.query {
            target.push('?');
            target.push_str(query);
        }
        let answer = self.exchange(forward, &target, upload).await?;
        notes.upstream = answer.took;
        Ok(answer)
    }

    /// Sends a request with the agent's token; with the next token once more if this one was refused.
    async fn send_with_token(
        &self,
        forward: &Forward<'_>,
        agent: &Arc<Agent>,
        upload: Option<&Upload>,
        notes: &mut Notes,
    ) -> Result<Inspected, Refusal> {
        let asked = Instant::now();
        let token = match agent.slot.ready(asked) {
            Some(token) => token,
            None => {
                let fetched = agent.slot.current().await;
                notes.token = asked.elapsed();
                fetched.map_err(|failure| token_unavailable(&failure))?
            }
        };
        let query = query::without_token(forward.target.query.unwrap_or_default());
        let target = |token: &Token| query::with_token(forward.target.path, &query, token.value.expose());

        let first = self.exchange(forward, &target(&token), upload).await?;
        notes.upstream = first.took;
        let Some(refused_with) =
            first.errcode.filter(|errcode| self.rules.refresh_errcodes.contains(errcode))
        else {
            if let Some(upload) = upload {
                upload.settle();
            }
            return Ok(first);
        };
        if upload.is_some_and(|upload| !upload.can_be_read_again()) {
            // It costs this request its retry; those after it need the next token all the same.
            let slot = agent.slot.clone();
            tokio::spawn(async move { slot.replace(&token).await });
            return Ok(first);
        }
        let asked = Instant::now();
        let replacement = agent.slot.replace(&token).await;
        notes.token += asked.elapsed();
        let next = match replacement {
            Replacement::Renewed(next) | Replacement::SameAgain(next) => next,
            Replacement::Held => return Ok(first),
            Replacement::Unavailable(failure) => return Err(token_unavailable(&failure)),
        };
        drop(first);
        notes.retried = Some(refused_with);
        let second = self.exchange(forward, &target(&next), upload).await?;
        notes.upstream += second.took;
        if let Some(upload) = upload {
            upload.settle();
        }
        if second.errcode.is_some_and(|errcode| self.rules.refresh_errcodes.contains(&errcode)) {
            agent.slot.refused_again(&next);
        }
        Ok(second)
    }

    /// Sends once and looks at the answer.
    async fn exchange(
        &self,
        forward: &Forward<'_>,
        target: &str,
        upload: Option<&Upload>,
    ) -> Result<Inspected, Refusal> {
        let sent = Instant::now();
        let outgoing = Outgoing {
            method: &forward.parts.method,
            target,
            headers: &forward.parts.headers,
            nominated: &forward.nominated,
            body: forward.length,
        };
        let failed = |failure: Failure| self.failed(failure);
        let answer = self.upstream.send(&outgoing, upload).await.map_err(failed)?;
        inspect(answer, sent.elapsed()).await.map_err(failed)
    }

    /// What the caller is told of a failure.
    fn failed(&self, failure: Failure) -> Refusal {
        let words = failure.flaw.to_string();
        let kind = match &failure.flaw {
            Flaw::Unreachable(_) => Kind::UpstreamUnreachable,
            Flaw::NoAnswer | Flaw::Stalled => Kind::UpstreamTimeout,
            Flaw::Upload(UploadError::TooLarge) => return too_large(self.rules.bounds.bytes),
            Flaw::Upload(UploadError::Silent) => {
                return Refusal::new(
                    Kind::BadRequest,
                    "the request's body stalled for longer than server.body_timeout",
                );
            }
            Flaw::Upload(UploadError::Broken) => {
                return Refusal::new(Kind::BadRequest, "the request's body broke off or is not well formed");
            }
            _ => Kind::UpstreamBroke,
        };
        tracing::warn!(failure = %failure.flaw, kind = kind.facts().0, "a request got no answer from the upstream");
        Refusal::new(kind, format!("WeCom did not answer as it should: {words}"))
    }

    /// Puts the proxy's own headers onto an answer.
    fn sign(
        &self,
        parts: &request::Parts,
        notes: &Notes,
        request_id: HeaderValue,
        headers: &mut http::HeaderMap,
    ) {
        headers.insert(REQUEST_ID, request_id);
        if let Some(agent) = &notes.agent {
            headers.insert(AGENT, agent.name_header.clone());
        }
        let (token, upstream) = (notes.token.as_secs_f64() * 1e3, notes.upstream.as_secs_f64() * 1e3);
        let mut timing = BytesMut::with_capacity(48);
        let _ = write!(timing, "token;dur={token:.3}, upstream;dur={upstream:.3}");
        if let Ok(timing) = HeaderValue::from_maybe_shared(timing.freeze()) {
            headers.append(SERVER_TIMING, timing);
        }
        if let Some(errcode) = notes.retried {
            headers.insert(RETRIED, HeaderValue::from(errcode));
        }
        let hint = notes.errcode.filter(|errcode| *errcode != errcode::OK).and_then(errcode::hint);
        if let Some(hint) = hint.filter(|_| parts.headers.get(DEBUG).is_some_and(|value| value == "1")) {
            headers.insert(HINT, HeaderValue::from_static(hint));
        }
    }

    /// The caller's own id if it sent a sane one, else a new one.
    fn request_id(&self, parts: &request::Parts) -> HeaderValue {
        let own = parts.headers.get(REQUEST_ID).filter(|value| {
            let text = value.as_bytes();
            let sane = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
            (1..=128).contains(&text.len()) && text.iter().all(sane)
        });
        own.cloned().unwrap_or_else(|| self.ids.next())
    }
}

/// A request on its way, as far as both tries share it.
struct Forward<'a> {
    parts: &'a request::Parts,
    target: &'a Target<'a>,
    nominated: Vec<HeaderName>,
    length: BodyLength,
}

/// Request ids: random where the process began, counted from there.
struct Ids {
    prefix: u64,
    next: AtomicU32,
}

impl Default for Ids {
    fn default() -> Self {
        Self { prefix: getrandom::u64().unwrap_or_default(), next: AtomicU32::new(0) }
    }
}

impl Ids {
    fn next(&self) -> HeaderValue {
        let nth = self.next.fetch_add(1, Ordering::Relaxed);
        let mut text = BytesMut::with_capacity(24);
        let _ = write!(text, "{:016x}{nth:08x}", self.prefix);
        HeaderValue::from_maybe_shared(text.freeze()).unwrap_or(HeaderValue::from_static("-"))
    }
}

fn doubt(doubt: Doubt) -> Refusal {
    match doubt {
        Doubt::Malformed(words) => Refusal::new(Kind::BadRequest, words),
        Doubt::NoRoute => Refusal::new(Kind::NoRoute, "only /cgi-bin/… and /AGENT/cgi-bin/… lead anywhere"),
    }
}

fn too_large(bound: u64) -> Refusal {
    Refusal::new(
        Kind::BodyTooLarge,
        format!("the request's body is larger than server.max_request_body ({bound} bytes)"),
    )
}

fn token_unavailable(failure: &FetchError) -> Refusal {
    let words = format!("there is no token for this agent: {failure}");
    Refusal::new(Kind::TokenUnavailable, words).with_errcode(failure.errcode())
}
