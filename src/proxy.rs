//! The life of one request: who calls, through which agent, with which token, what came back, and once more if the
//! token was refused.
//!
//! [`Proxy::handle`] turns every outcome into an answer; [`Proxy::relay`] is the way itself.

mod acquaintances;
pub(crate) mod bench;
pub(crate) mod fuzz;
mod gettoken;
mod head_check;
mod identify;
mod inspect;
mod look;
mod query;
mod record;
mod redact;
mod refusal;
mod reply;
mod request;
mod retry;
mod sign;
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
    acquaintances::Acquaintances,
    inspect::{Inspected, Inspection},
    look::Look,
    record::Record,
    refusal::{Kind, Refusal},
    retry::Refused,
    sign::{Ids, sign, wants_explanation},
    target::{Doubt, Target},
    token::accepted,
};
pub use self::{
    record::Books,
    reply::{Broken, Reply, ReplyBody},
    request::{Request, Target as RequestTarget},
};
use crate::{
    deadline::Deadline,
    directory::{Agent, Client, Directory},
    fields::{Fields, Known},
    limits::{places::Places, waiting::WaitLimit},
    tokens::{PathKey, Token},
    traces::Doing,
    upload::{Body, Bounds, Full, Owner, Shelf, Upload, UploadError},
    upstream::{BodyLength, Failure, Flaw, Outgoing, Upstream},
};

/// The bounds and settings that all workers share.
pub struct Rules {
    /// The errcodes that mean: this token no longer serves.
    pub refresh_errcodes: Vec<i64>,
    /// What a request's body may be.
    pub bounds: Bounds,
    /// Where bodies are kept for another attempt.
    pub shelf: Arc<Shelf>,
    /// Requests that are with the upstream.
    pub in_flight: Arc<Places>,
    /// Requests that wait for a token or a ticket.
    pub waiting: WaitLimit,
    /// How long a request waits for a place among them.
    pub queue_timeout: Duration,
    /// The upstream's name, which a client that takes us for a forward proxy may use.
    pub upstream_authority: String,
}

/// The proxy as one worker sees it.
pub struct Proxy {
    directory: Arc<ArcSwap<Directory>>,
    rules: Arc<Rules>,
    upstream: Upstream,
    ids: Ids,
    acquaintances: Acquaintances,
    books: Rc<Books>,
}

impl Proxy {
    /// A proxy with an upstream and books of its own.
    pub fn new(
        directory: Arc<ArcSwap<Directory>>,
        rules: Arc<Rules>,
        upstream: Upstream,
        books: Rc<Books>,
    ) -> Self {
        Self {
            directory,
            rules,
            upstream,
            ids: Ids::default(),
            acquaintances: Acquaintances::default(),
            books,
        }
    }

    /// Answers one request. Whatever happens, the caller learns it in WeCom's shape. `deadline` is for what takes time
    /// meanwhile; where the caller has one that it does not need now, it serves again and again.
    /// The transport chooses where the future of an attempt is stored, by `S`.
    pub async fn handle<S: AttemptStorage>(
        &self,
        request: &Request,
        body: Body,
        deadline: &mut Deadline,
    ) -> Reply {
        let mut record = Box::new(Record::new(request, self.ids.of(request), self.books.clone()));
        std::mem::swap(&mut record.deadline, deadline);
        let relayed = self.relay::<S>(request, body, &mut record).await;
        std::mem::swap(&mut record.deadline, deadline);
        let reply = match relayed {
            Ok(reply) => reply,
            Err(refusal) => {
                // Not every refusal waits until a pass was looked at.
                let by_pass = || identify::client_of_pass(&self.directory.load(), request.target.query());
                record.client = record.client.take().or_else(by_pass);
                refuse(refusal, &mut record)
            }
        };
        finish(reply, record, wants_explanation(request))
    }

    /// Answers what is no request: a head that cannot be trusted.
    pub fn refuse_head(&self, status: StatusCode, words: &'static str, request: &Request) -> Reply {
        let mut record = Box::new(Record::new(request, self.ids.of(request), self.books.clone()));
        let reply = refuse(Refusal::new(Kind::BadRequest, words).with_status(status), &mut record);
        finish(reply, record, false)
    }

    /// The way of a request; every `?` on it is an answer of the proxy's own.
    async fn relay<S: AttemptStorage>(
        &self,
        request: &Request,
        body: Body,
        record: &mut Record,
    ) -> Result<Reply, Refusal> {
        let (target, agent) = match self.authorize(request, record)? {
            Judged::Answered(reply) => return Ok(reply),
            Judged::Sendable { target, agent } => (target, agent),
        };
        let body = match &record.look {
            Some(look) => look.tap(body),
            None => body,
        };
        let (mut upload, length) = self.receive(request, body, agent.is_some(), record.client.as_deref())?;
        let forward = Forward {
            method: &request.method,
            fields: &request.fields,
            target: &target,
            text: &request.target,
            length,
            waits: &request.waits,
        };
        let answer = match (agent, target.ticket(&request.method)) {
            (None, _) => S::store(self.send_plain(&forward, &mut upload, record)).await,
            (Some(agent), Some(kind)) => Box::pin(self.ticket(&forward, &agent, kind, record)).await,
            (Some(agent), None) => {
                // Nothing has taken time since the request began.
                let token = match agent.slot.ready(record.began) {
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
        record.request_bytes = upload.as_ref().map(Upload::received);
        let answer = answer?;
        record.errcode = answer.errcode;
        Ok(Reply::passed_on(answer, upload))
    }

    /// The same as [`Self::judge`], and whether the connection is authorized from now on.
    fn authorize<'a>(&self, request: &'a Request, record: &mut Record) -> Result<Judged<'a>, Refusal> {
        let judged = self.judge(request, record);
        // A credential may be good where the request is refused for something else.
        if judged.is_ok() || record.client.is_some() || self.directory.load().is_open() {
            request.authorized.set(true);
        }
        judged
    }

    /// Who calls, what for, and whether they may.
    fn judge<'a>(&self, request: &'a Request, record: &mut Record) -> Result<Judged<'a>, Refusal> {
        let directory = self.directory.load();
        let known = self.acquaintances.recall(&request.fields, &directory);
        let is_here = |host: &str, local| self.is_here(host, local);
        let sound = head_check::check_head(request, known.is_some(), is_here);
        let target = Target::of(&request.target);
        // Who calls is asked first: a client may want even the refusal of a malformed request in HTTP 200.
        let is_new = known.is_none();
        let by_key = known.map_or_else(|| identify::by_key(&directory, &request.fields), Ok);
        let by_key = by_key.map(|client| {
            if is_new && sound.is_ok() && request.version == Version::HTTP_11 {
                self.acquaintances.remember(&request.fields, &directory, client.as_ref());
            }
            record.client = client;
        });
        sound.map_err(|words| Refusal::new(Kind::BadRequest, words))?;
        // A wrong base URL is said to be one, and not a wrong key.
        let target = target.map_err(doubt)?;
        by_key?;
        if request.late {
            return Err(Refusal::shutting_down());
        }
        if target.kind == target::Kind::Gettoken {
            let shown = record.client.clone();
            return gettoken::answer(&directory, shown, &target, &request.fields, record)
                .map(Judged::Answered);
        }
        let caller = identify::caller(&directory, record.client.as_ref(), &target, &request.fields)?;
        if record.client.is_some() {
            identify::refuse_stray_key(&request.fields, &target, caller.own_credential)?;
        }
        if caller.by_pass.is_some() {
            record.client = caller.by_pass;
        }
        record.agent = caller.agent;
        record.look = Look::begin(&directory, record.agent.as_ref(), request, record.began);
        identify::permit(record.client.as_deref(), &request.method, &target.route)?;
        let (client, agent) = (record.client.as_ref(), record.agent.as_ref());
        identify::admit(client.and_then(|client| client.limit.as_ref()), record.began, "this client")?;
        identify::admit(agent.and_then(|agent| agent.limit.as_ref()), record.began, "this agent")?;
        let agent = match (&record.agent, caller.own_credential) {
            (Some(agent), false) => Some(agent.clone()),
            (None, false) => return Err(identify::no_agent()),
            (_, true) => None,
        };
        Ok(Judged::Sendable { target, agent })
    }

    /// Whether a target in absolute form means this proxy, or the upstream as a client sees it that takes us for its
    /// forward proxy.
    fn is_here(&self, authority: &str, local: Option<SocketAddr>) -> bool {
        let is_local = local.is_some_and(|local| {
            let port = local.port();
            authority.parse::<SocketAddr>().is_ok_and(|named| named == local)
                || (local.ip().is_loopback() && authority.eq_ignore_ascii_case(&format!("localhost:{port}")))
        });
        is_local || authority.eq_ignore_ascii_case(&self.rules.upstream_authority)
    }

    /// The body as it will be sent, or the refusal of one that is declared too large.
    fn receive(
        &self,
        request: &Request,
        body: Body,
        keep: bool,
        client: Option<&Client>,
    ) -> Result<(Option<Upload>, BodyLength), Refusal> {
        let declared = body.declared();
        if declared.is_some_and(|declared| declared > self.rules.bounds.bytes) {
            return Err(too_large(self.rules.bounds.bytes));
        }
        let keeps = keep && matches!(body, Body::Streamed(_));
        let owner = || client.map(|client| Owner::of(&client.name)).unwrap_or_default();
        let shelf = keeps.then(|| (&self.rules.shelf, owner()));
        let upload = Upload::new(body, self.rules.bounds, shelf).map_err(|Full| replay_full())?;
        let wants = || matches!(request.method, Method::POST | Method::PUT | Method::PATCH);
        let length = match declared {
            Some(0) if upload.is_none() && !request.fields.contains(Known::ContentLength) && !wants() => {
                BodyLength::Absent
            }
            Some(length) => BodyLength::Known(length),
            None => BodyLength::Unknown,
        };
        Ok((upload, length))
    }

    /// Sends a request that carries a credential of its own, as it came.
    async fn send_plain(
        &self,
        forward: &Forward<'_>,
        upload: &mut Option<Upload>,
        record: &mut Record,
    ) -> Result<Box<Inspected>, Refusal> {
        let target = query::as_it_came(forward.target.path, forward.target.query);
        let place = match self.rules.in_flight.take() {
            Some(place) => place,
            None => Box::pin(self.wait_for_place(forward, upload.as_mut(), record)).await?,
        };
        let answer = self.exchange(forward, &target, None, upload.as_ref(), record).await?;
        record.upstream = answer.took;
        Ok(answer.at(place))
    }

    /// Sends a request with the agent's token; with the next token once more if this one was refused.
    async fn send_with_token(
        &self,
        forward: &Forward<'_>,
        agent: &Arc<Agent>,
        token: Arc<Token>,
        upload: &mut Option<Upload>,
        record: &mut Record,
    ) -> Result<Box<Inspected>, Refusal> {
        let query = forward.target.query_without_token();

        // Who waits for a token takes no place from those who have one.
        let place = match self.rules.in_flight.take() {
            Some(place) => place,
            None => Box::pin(self.wait_for_place(forward, upload.as_mut(), record)).await?,
        };
        let upload = upload.as_ref();
        let target = query::with_token(forward.target.path, &query, token.value.expose());
        let first = self.exchange(forward, &target, Some(&token), upload, record).await?;
        let path = forward.path_key();
        record.upstream = first.took;
        let Some(errcode) = first.errcode.filter(|errcode| self.rules.refresh_errcodes.contains(errcode))
        else {
            accepted(&first, &token, path);
            if let Some(upload) = upload {
                upload.settle();
            }
            return Ok(first.at(place));
        };
        // Seldom, and it takes much room.
        Box::pin(self.retry(forward, agent, upload, record, Refused { answer: first, token, errcode, place }))
            .await
    }

    /// Sends once and looks at the answer.
    async fn exchange(
        &self,
        forward: &Forward<'_>,
        target: &[&str],
        token: Option<&Token>,
        upload: Option<&Upload>,
        record: &mut Record,
    ) -> Result<Box<Inspected>, Refusal> {
        let at = record.now;
        record.goes_to(&forward.target.route);
        record.begin(Doing::Try, at);
        if let Some(look) = &mut record.look {
            look.sends(at, token);
        }
        let outgoing =
            Outgoing { method: forward.method, target, fields: forward.fields, body: forward.length, at };
        let inspected = match self.upstream.send(&outgoing, upload, &mut record.deadline).await {
            Ok(answer) => {
                let mut inspection = Inspection::begin(answer, token, at);
                poll_fn(|cx| inspection.poll(cx)).await.map(|()| inspection.end())
            }
            Err(failure) => Err(failure),
        };
        let inspected = inspected.map_err(|failure| self.failed(failure));
        match &inspected {
            Ok(answer) => {
                record.answered(answer.took, answer.status.as_u16(), answer.errcode);
                if let Some(look) = &mut record.look {
                    look.got(answer);
                }
            }
            Err(refusal) => record.end_now(Some(refusal.kind)),
        }
        inspected
    }

    /// What the caller is told of a failure.
    fn failed(&self, failure: Failure) -> Refusal {
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
            Flaw::Upload(UploadError::Overhead) => {
                return Refusal::new(
                    Kind::BadRequest,
                    "the chunk framing of the request's body is more than 64 KiB and 16 times its data; \
                     send larger chunks, without extensions",
                );
            }
            _ => Kind::UpstreamBroke,
        };
        let what = if kind == Kind::UpstreamUnreachable {
            "cannot be reached"
        } else {
            "did not answer as it should"
        };
        Refusal::new(kind, format!("WeCom {what}: {}", failure.flaw.public()))
            .with_detail(format!("WeCom {what}: {}", failure.flaw))
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
enum Judged<'a> {
    /// The answer is there already.
    Answered(Reply),
    /// It goes to the upstream, with this agent's token or with a credential of its own.
    Sendable { target: Target<'a>, agent: Option<Arc<Agent>> },
}

/// A request on its way, as far as both tries share it.
struct Forward<'a> {
    method: &'a Method,
    fields: &'a Fields,
    target: &'a Target<'a>,
    /// What the target was parsed from.
    text: &'a RequestTarget,
    length: BodyLength,
    /// See [`Request::waits`].
    waits: &'a Cell<bool>,
}

impl Forward<'_> {
    fn path_key(&self) -> PathKey {
        self.text.path_key(&self.target.route)
    }
}

/// A refusal as an answer.
fn refuse(refusal: Refusal, record: &mut Record) -> Reply {
    let always_200 = record.client.as_ref().is_some_and(|client| client.always_200);
    record.errcode = Some(refusal.errcode);
    let reply = refusal.to_reply(always_200, record.request_id.as_str());
    record.error = Some((refusal.kind, refusal.into_reason()));
    reply
}

/// What every answer gets before it leaves.
fn finish(mut reply: Reply, mut record: Box<Record>, explains: bool) -> Reply {
    record.status = reply.status.as_u16();
    sign(&record, explains, &mut reply.lines);
    if let Some(look) = &mut record.look {
        look.answers(reply.lines.as_bytes());
    }
    reply.body.until_end(record);
    reply
}

fn doubt(doubt: Doubt) -> Refusal {
    match doubt {
        Doubt::Malformed(words) => Refusal::new(Kind::BadRequest, words),
        Doubt::NoRoute => Refusal::new(
            Kind::NoRoute,
            "only /cgi-bin/… and /AGENT/cgi-bin/… lead anywhere; is the base URL right?",
        ),
    }
}

fn too_large(bound: u64) -> Refusal {
    Refusal::new(
        Kind::BodyTooLarge,
        format!("the request's body is larger than server.max_request_body ({bound} bytes)"),
    )
}

/// The refusal of a body that could not be kept for a retry. Nothing of it was sent.
fn replay_full() -> Refusal {
    let words = "request bodies that are kept for a retry leave no room for one of this length in replay.memory or \
                 replay.disk; send it again in a moment, or raise replay.disk";
    Refusal::new(Kind::Overloaded, words).retry_after(Duration::from_secs(1))
}
