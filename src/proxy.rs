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
    server::{Busy, Link},
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
    pub async fn handle(&self, request: Request<Incoming>, link: &Link, busy: Busy) -> Response<ReplyBody> {
        let began = Instant::now();
        let (parts, body) = {
            let checked = target::check_head(&request, |authority| {
                authority.eq_ignore_ascii_case(&self.rules.upstream_authority) || link.is_local(authority)
            });
            let (parts, body) = request.into_parts();
            (checked.map(|()| parts), body)
        };
        let mut notes = Notes::default();
        todo!()
    }
}
