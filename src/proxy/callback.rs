//! Requests to receiver URLs, `/callbacks/NAME`, from WeCom; and of clients that read events, `/callbacks/NAME/events`.

use std::{
    future::poll_fn,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::{sync::Semaphore, time::timeout};

use super::{
    Proxy,
    authenticate::{authenticate_key, presented_key_hashes},
    error::{ErrorKind, ProxyError},
    head_check::check_head,
    permissions::charge_client,
    request::Request,
    request_context::RequestContext,
    response::Response,
};
use crate::{
    callbacks::{self, CallbackResponse, Callbacks, Endpoint, ReadPermission, ReceiveResult, SubscribeError},
    config::data_callback_name,
    directory::Client,
    http1::headers::HeaderKind,
    request_body::{BodyLimits, ReplayBody, RequestBody, RequestBodyError},
};

/// Bounds the time in which a body arrives: WeCom waits 5 s for the response.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// When a client that cannot read events should try again.
const READERS_RETRY_AFTER: Duration = Duration::from_secs(30);
/// What a body may have without a share of [`RECEIVE_BUDGET`]; most messages are smaller.
const MAX_FREE_BYTES: usize = 4 * 1024;
/// The unit of the budget, and what the memory of a larger body grows by, in bytes.
const BUDGET_UNIT: usize = 16 * 1024;
/// What the memory of a smaller body grows by.
const GROWTH_BYTES: usize = 1024;
/// Memory for bodies whose signature is not verified yet, in all workers together: 32 MiB.
static RECEIVE_BUDGET: Semaphore = Semaphore::const_new(32 * 1024 * 1024 / BUDGET_UNIT);

/// The same for all refusals, so that a forger learns nothing; the reason is logged and counted.
const REFUSED_MESSAGE: &str = "callback refused: check token, aes_key, receiveid and clock on both sides";

impl Proxy {
    /// Responds to a request whose path is below `/callbacks/`; `path` is what follows.
    pub(super) async fn serve_callback(
        &self,
        request: &Request,
        path: &str,
        body: RequestBody,
        context: &mut RequestContext,
    ) -> Result<Response, ProxyError> {
        check_head(request, false, |host, local| self.is_own_authority(host, local))
            .map_err(|message| ErrorKind::BadRequest.error(message))?;
        if request.draining {
            return Err(ProxyError::shutting_down());
        }
        let (name, rest) = path.split_once('/').map_or((path, None), |(name, rest)| (name, Some(rest)));
        let callbacks = self.settings.callbacks.as_ref().ok_or_else(unknown_callback)?;
        let found = callbacks.endpoint(name).ok_or_else(unknown_callback);
        match (rest, &request.method) {
            (None, &Method::GET) => verify_url(&*found?, request),
            (None, &Method::POST) => receive(callbacks, &found?, request, body).await,
            (None, _) => {
                found?;
                let message = "a receiver URL takes GET, which verifies it, and POST, which pushes a message";
                Err(ErrorKind::BadRequest.error(message).with_status(StatusCode::METHOD_NOT_ALLOWED))
            }
            (Some("events"), &Method::GET) => self.stream_events(callbacks, found.ok(), request, context),
            (Some("authorized"), &Method::GET) => self.finish_install(request, name, context).await,
            (Some("data"), method) => {
                let data = callbacks.endpoint(&data_callback_name(name)).ok_or_else(unknown_callback)?;
                match *method {
                    Method::GET => verify_url(&data, request),
                    Method::POST => receive(callbacks, &data, request, body).await,
                    _ => Err(unknown_callback()),
                }
            }
            (Some(_), _) => Err(unknown_callback()),
        }
    }

    /// Events of the pull target that lists the client.
    fn stream_events(
        &self,
        callbacks: &Callbacks,
        endpoint: Option<Arc<Endpoint>>,
        request: &Request,
        context: &mut RequestContext,
    ) -> Result<Response, ProxyError> {
        let directory = self.directory.load();
        context.client = authenticate_key(&directory, &request.headers, request.path_credential.as_ref())?;
        let Some(client) = &context.client else {
            let message = "reading events needs a client's key: \"Authorization: Bearer KEY\"";
            return Err(ErrorKind::Unauthenticated.error(message));
        };
        request.authorized.set(true);
        charge_client(Some(client), context)?;
        let last_event_id = request
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(b"last-event-id"))
            .and_then(|header| String::from_utf8(header.value.to_vec()).ok());
        let endpoint = endpoint.ok_or_else(unknown_callback)?;
        let is_permitted = self.read_permission(client, request)?;
        let events = callbacks.subscribe(&endpoint, &client.config.name, is_permitted, last_event_id);
        let mut response = Response::events(events.map_err(|error| {
            match error {
                SubscribeError::NotListed => unknown_callback(),
                SubscribeError::TooManyReaders => ErrorKind::Overloaded
                    .error("too many clients read events; retry later")
                    .with_retry_after(READERS_RETRY_AFTER),
            }
        })?);
        response.headers.append(b"cache-control", b"no-store");
        // nginx holds responses back unless they say otherwise.
        response.headers.append(b"x-accel-buffering", b"no");
        Ok(response)
    }

    /// Whether all keys of a request are still keys of the client that sent it.
    fn read_permission(&self, client: &Client, request: &Request) -> Result<ReadPermission, ProxyError> {
        let keys = presented_key_hashes(&request.headers, request.path_credential.as_ref())?;
        let (directory, name) = (self.directory.clone(), client.config.name.clone());
        Ok(Box::new(move || {
            let directory = directory.load();
            let owner = |key| directory.client_by_key_hash(key);
            keys.iter().all(|key| owner(key).is_some_and(|owner| owner.config.name == name))
        }))
    }
}

pub(super) fn unknown_callback() -> ProxyError {
    ErrorKind::NoRoute.error("no callback of this name; check the receiver URL")
}

fn verify_url(endpoint: &Endpoint, request: &Request) -> Result<Response, ProxyError> {
    match endpoint.verify_url(request.target.query().unwrap_or_default()) {
        Ok(echo) => {
            request.authorized.set(true);
            endpoint.count(ReceiveResult::Verified);
            Ok(Response::with_type(StatusCode::OK, callbacks::TEXT, echo))
        }
        Err(reason) => Err(refuse(endpoint, reason)),
    }
}

async fn receive(
    callbacks: &Callbacks,
    endpoint: &Arc<Endpoint>,
    request: &Request,
    body: RequestBody,
) -> Result<Response, ProxyError> {
    let body = timeout(BODY_TIMEOUT, read_body(body)).await;
    let body = body.unwrap_or(Err(RequestBodyError::Stalled)).map_err(|error| body_error(endpoint, error))?;
    let content_type = request.headers.first(HeaderKind::ContentType);
    let content_type = content_type.and_then(|value| String::from_utf8(value.to_vec()).ok());
    let query = request.target.query().unwrap_or_default();
    let message = endpoint
        .open(query, content_type, body, SystemTime::now())
        .map_err(|reason| refuse(endpoint, reason))?;
    request.authorized.set(true);
    match callbacks.accept(endpoint, message, request.peer).await {
        Ok(CallbackResponse { body, content_type }) => {
            Ok(Response::with_type(StatusCode::OK, content_type, body))
        }
        Err(reason) => Err(refuse(endpoint, reason)),
    }
}

/// Receives a body of at most [`callbacks::MAX_BODY_BYTES`].
async fn read_body(body: RequestBody) -> Result<Bytes, RequestBodyError> {
    let limits = BodyLimits { max_bytes: callbacks::MAX_BODY_BYTES, idle_timeout: BODY_TIMEOUT };
    if body.content_length().is_some_and(|length| length > limits.max_bytes) {
        return Err(RequestBodyError::TooLarge);
    }
    let Ok(Some(body)) = ReplayBody::new(body, limits, None) else { return Ok(Bytes::new()) };
    let Some(reader) = body.reader() else { return Ok(Bytes::new()) };
    let mut reader = match reader.into_complete() {
        Ok(complete) => return Ok(complete),
        Err(reader) => reader,
    };
    let mut received = Vec::new();
    let mut permits = Vec::new();
    while let Some(chunk) = poll_fn(|cx| reader.poll_chunk(cx)).await? {
        let length = received.len() + chunk.len();
        // Not twice as much: many bodies may be incomplete for seconds.
        let growth = if length > MAX_FREE_BYTES { BUDGET_UNIT } else { GROWTH_BYTES };
        let capacity = length.next_multiple_of(growth);
        let units = capacity.saturating_sub(MAX_FREE_BYTES).div_ceil(BUDGET_UNIT);
        while permits.len() < units {
            permits.push(RECEIVE_BUDGET.try_acquire().map_err(|_| RequestBodyError::ReplayBudgetExceeded)?);
        }
        if length > received.capacity() {
            received.reserve_exact(capacity - received.len());
        }
        received.extend_from_slice(&chunk);
    }
    Ok(received.into())
}

fn body_error(endpoint: &Endpoint, error: RequestBodyError) -> ProxyError {
    match error {
        RequestBodyError::TooLarge => refuse(endpoint, ReceiveResult::TooLarge),
        RequestBodyError::ReplayBudgetExceeded => {
            endpoint.refuse(ReceiveResult::NotDurable);
            ErrorKind::Overloaded
                .error("too many large callbacks at the same time; send it again")
                .with_retry_after(Duration::from_secs(1))
        }
        _ => {
            endpoint.refuse(ReceiveResult::Malformed);
            ErrorKind::BadRequest.error("request body incomplete, malformed or too slow")
        }
    }
}

/// Counts the reason and makes the error.
fn refuse(endpoint: &Endpoint, reason: ReceiveResult) -> ProxyError {
    endpoint.refuse(reason);
    let error = match reason {
        ReceiveResult::TooLarge => ErrorKind::BodyTooLarge.error("callback larger than 1 MiB"),
        ReceiveResult::Malformed | ReceiveResult::Dtd => {
            let message = "callback malformed: XML without a document type, or JSON, with one encrypted message is needed";
            ErrorKind::BadRequest.error(message)
        }
        ReceiveResult::NotDurable => ErrorKind::Overloaded
            .error("the callback could not be stored; send it again")
            .with_retry_after(Duration::from_secs(1)),
        _ => ErrorKind::Forbidden.error(REFUSED_MESSAGE),
    };
    error.with_log_message(format!("callback {} refused: {}", endpoint.name, reason.as_str()))
}
