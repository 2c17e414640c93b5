//! Requests on HTTP/2 connections that all share. hyper speaks the protocol; here are our bounds.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use ::h2::Reason;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri, Version, uri};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, client::conn::http2, rt::Executor};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{task::spawn_local, time::Instant};

use super::{
    Delivery, Settings, UpstreamBody, UpstreamBodyKind, UpstreamError, UpstreamErrorKind, UpstreamRequest,
};
use crate::{
    http1::{
        framing::{copy_if_small, response_content_length},
        headers::{Headers, has_quotation_mark},
        io::Stream,
    },
    request_body::{BodyReader, RequestBodyError},
    time::deadline::Deadline,
};

/// How often a silent connection is pinged, and how long the answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// How much of an answer may come that nobody has taken yet.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The same of all answers on a connection: so large that it never binds, or who takes slowly would stop all others. h2 derives
/// its bound on small DATA frames that wait from it: each takes 255 bytes less its own of half the window, and beyond that the
/// connection ends.
const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Most requests at once on a connection, whatever the upstream would allow: with more, the windows of the streams would
/// exceed that of the connection.
const MAX_STREAMS: usize = (CONNECTION_WINDOW_BYTES / STREAM_WINDOW_BYTES) as usize;
/// Stands for what the upstream allows until it has said so; nobody says this.
const SETTINGS_NOT_RECEIVED: usize = usize::MAX - 1;
/// What each frame has beside its payload.
const FRAME_HEADER_BYTES: u64 = 9;
/// How often a fresh connection is asked whether the upstream has said it.
const SETTINGS_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Runs what hyper has to run beside a connection.
#[derive(Clone)]
struct LocalExecutor;

impl<F: Future + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        spawn_local(task);
    }
}

type Http2Connection = http2::Connection<TokioIo<Stream>, Http2RequestBody, LocalExecutor>;

/// A handle on a connection.
pub(super) struct Http2Sender {
    send_request: http2::SendRequest<Http2RequestBody>,
    counts: Rc<StreamCounts>,
}

/// How many requests a connection carries, and how many it may.
struct StreamCounts {
    open: Cell<usize>,
    max: Cell<usize>,
}

/// Which connection it is.
pub(super) struct ConnectionId(Rc<StreamCounts>);

impl Http2Sender {
    /// Says hello on a fresh connection, which is then driven by a task of its own. It waits for the upstream's hello
    /// too: that says how many requests fit.
    pub(super) async fn handshake(stream: Stream) -> Result<Self, UpstreamErrorKind> {
        let failed = |error: hyper::Error| UpstreamErrorKind::Http2(error.to_string());
        let (requests, mut connection) = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL)
            .max_header_list_size(64 * 1024)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_max_send_streams(SETTINGS_NOT_RECEIVED)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        while connection.current_max_send_streams() == SETTINGS_NOT_RECEIVED {
            if let Ok(ended) = tokio::time::timeout(SETTINGS_POLL_INTERVAL, &mut connection).await {
                return Err(ended.err().map_or(UpstreamErrorKind::ClosedBeforeResponse, failed));
            }
        }
        let load = Rc::new(StreamCounts { open: Cell::new(0), max: Cell::new(max_streams(&connection)) });
        spawn_local(drive_connection(connection, load.clone()));
        Ok(Self { send_request: requests, counts: load })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.send_request.is_closed()
    }

    pub(super) fn has_id(&self, connection: &ConnectionId) -> bool {
        Rc::ptr_eq(&self.counts, &connection.0)
    }

    /// How many requests it carries.
    pub(super) fn open_streams(&self) -> usize {
        self.counts.open.get()
    }

    /// Whether the upstream takes another request on it now.
    pub(super) fn has_capacity(&self) -> bool {
        self.open_streams() < self.counts.max.get()
    }

    /// A place for one request, whether there is room or not.
    pub(super) fn reserve_stream(&self) -> StreamSlot {
        self.counts.open.update(|open| open + 1);
        StreamSlot { send_request: self.send_request.clone(), guard: OpenStreamGuard(self.counts.clone()) }
    }
}

async fn drive_connection(mut connection: Http2Connection, load: Rc<StreamCounts>) {
    let ended = poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        if polled.is_pending() {
            load.max.set(max_streams(&connection));
        }
        polled
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "an HTTP/2 connection to the upstream ended");
    }
}

fn max_streams(connection: &Http2Connection) -> usize {
    connection.current_max_send_streams().clamp(1, MAX_STREAMS)
}

/// A place for one request on a connection.
pub(super) struct StreamSlot {
    send_request: http2::SendRequest<Http2RequestBody>,
    guard: OpenStreamGuard,
}

/// Counts a request as long as it lives.
struct OpenStreamGuard(Rc<StreamCounts>);

impl Drop for OpenStreamGuard {
    fn drop(&mut self) {
        self.0.open.update(|open| open - 1);
    }
}

impl StreamSlot {
    pub(super) fn connection_id(&self) -> ConnectionId {
        ConnectionId(self.guard.0.clone())
    }

    /// Sends a request and waits for the answer's head.
    pub(super) async fn send(
        mut self,
        settings: &Arc<Settings>,
        outgoing: &UpstreamRequest<'_>,
        reader: Option<BodyReader>,
    ) -> Result<super::UpstreamResponse, UpstreamError> {
        let progress = Rc::new(RequestProgress::new(self.guard));
        let request = build_request(settings, outgoing, reader, progress.clone())?;
        let mut sent = pin!(self.send_request.try_send_request(request));
        let response = loop {
            let before = progress.chunks.get();
            match tokio::time::timeout(settings.response_timeout, &mut sent).await {
                Ok(Ok(response)) => break response,
                Ok(Err(mut refused)) => {
                    let left = refused.take_message().is_none();
                    return Err(classify_error(&refused.into_error(), left));
                }
                // While the body moves, or the client is slow to send it, the upstream owes no answer.
                Err(_) if progress.awaits_client.get() => {}
                Err(_) if progress.chunks.get() != before => {}
                Err(_) => {
                    return Err(UpstreamError {
                        kind: UpstreamErrorKind::ResponseTimeout,
                        delivery: Delivery::MaybeSent,
                    });
                }
            }
        };
        let came = Instant::now();
        let (parts, body) = response.into_parts();
        if parts.headers.keys().any(has_quotation_mark) {
            return Err(UpstreamError {
                kind: UpstreamErrorKind::InvalidHead("it names a header that is none"),
                delivery: Delivery::MaybeSent,
            });
        }
        let fields = Headers::from_map(&parts.headers);
        let length = response_content_length(&fields).map_err(|error| UpstreamError {
            kind: UpstreamErrorKind::Framing(error),
            delivery: Delivery::MaybeSent,
        })?;
        let answer = Http2UpstreamBody {
            body,
            _progress: progress,
            idle_deadline: Deadline::unset(),
            body_timeout: settings.body_timeout,
            framing_overhead: 0,
        };
        let ended = answer.is_ended();
        let body = UpstreamBody(if ended {
            UpstreamBodyKind::Ended
        } else {
            UpstreamBodyKind::Http2(Box::new(answer))
        });
        Ok(super::UpstreamResponse {
            status: parts.status,
            headers: fields,
            content_length: length,
            body,
            received_at: came,
        })
    }
}

fn build_request(
    settings: &Settings,
    outgoing: &UpstreamRequest<'_>,
    reader: Option<BodyReader>,
    progress: Rc<RequestProgress>,
) -> Result<Request<Http2RequestBody>, UpstreamError> {
    let malformed = || UpstreamError {
        kind: UpstreamErrorKind::Http2("the request's target is not a URI".into()),
        delivery: Delivery::NotSent,
    };
    let path = uri::PathAndQuery::try_from(encode_target(outgoing.target)).map_err(|_| malformed())?;
    let mut parts = uri::Parts::default();
    parts.scheme = Some(uri::Scheme::HTTPS);
    parts.authority = settings.authority.parse().ok();
    parts.path_and_query = Some(path);
    let mut request = Request::new(Http2RequestBody {
        reader,
        content_length: outgoing.body_length.content_length(),
        progress,
    });
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() = outgoing.method.clone();
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| malformed())?;
    for field in outgoing.headers.forwarded_to_upstream() {
        let (name, value) = (HeaderName::from_bytes(field.name), HeaderValue::from_bytes(field.value));
        if let (Ok(name), Ok(value)) = (name, value) {
            request.headers_mut().append(name, value);
        }
    }
    Ok(request)
}

/// A target as the http crate takes it. Three letters that should not stand in a query as they are, and that HTTP/1 carries
/// all the same, are encoded.
fn encode_target(target: &[&str]) -> String {
    let target = target.concat();
    match memchr::memchr3(b'"', b'<', b'>', target.as_bytes()) {
        None => target,
        Some(_) => target.replace('"', "%22").replace('<', "%3C").replace('>', "%3E"),
    }
}

/// What it means that there is no answer. A stream's reset says nothing of its connection: the upstream may have acted on
/// the request, unless it says that it did not.
fn classify_error(error: &hyper::Error, left: bool) -> UpstreamError {
    if !left {
        return UpstreamError { kind: UpstreamErrorKind::ClosedBeforeResponse, delivery: Delivery::NotSent };
    }
    if let Some(upload) = find_source(error) {
        return UpstreamError {
            kind: UpstreamErrorKind::RequestBody(*upload),
            delivery: Delivery::MaybeSent,
        };
    }
    let (flaw, sent) = match find_source::<::h2::Error>(error) {
        Some(reset) if is_refused_stream(reset) => (UpstreamErrorKind::RefusedStream, Delivery::NotSent),
        // A connection told to go away in peace names the last stream it saw to; this one came after it.
        Some(away) if away.is_go_away() && away.is_remote() && away.reason() == Some(Reason::NO_ERROR) => {
            (UpstreamErrorKind::ClosedBeforeResponse, Delivery::NotSent)
        }
        Some(away) if away.is_io() || away.is_go_away() && away.is_remote() => {
            (UpstreamErrorKind::ClosedBeforeResponse, Delivery::MaybeSent)
        }
        // Nothing of the protocol: the connection broke or fell silent, or its end came first.
        None if find_source::<io::Error>(error).is_some()
            || error.is_timeout()
            || error.is_closed()
            || error.is_canceled() =>
        {
            (UpstreamErrorKind::ClosedBeforeResponse, Delivery::MaybeSent)
        }
        _ => (UpstreamErrorKind::Http2(error.to_string()), Delivery::MaybeSent),
    };
    UpstreamError { kind: flaw, delivery: sent }
}

fn is_refused_stream(error: &::h2::Error) -> bool {
    error.is_reset() && error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM)
}

/// The cause of this kind, if there is one.
fn find_source<E: std::error::Error + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(found) = cause.downcast_ref() {
            return Some(found);
        }
        source = cause.source();
    }
    None
}

/// A request's body as hyper wants it.
struct Http2RequestBody {
    reader: Option<BodyReader>,
    content_length: Option<u64>,
    progress: Rc<RequestProgress>,
}

/// What has become of a request's body, for whoever waits for the answer. The request counts until both bodies are gone.
struct RequestProgress {
    chunks: Cell<u64>,
    awaits_client: Cell<bool>,
    _guard: OpenStreamGuard,
}

impl RequestProgress {
    fn new(taken: OpenStreamGuard) -> Self {
        Self { chunks: Cell::new(0), awaits_client: Cell::new(false), _guard: taken }
    }
}

impl Body for Http2RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let this = &mut *self;
        let Some(reader) = &mut this.reader else { return Poll::Ready(None) };
        let piece = reader.poll_coalesced(cx);
        this.progress.awaits_client.set(piece.is_pending());
        this.progress.chunks.update(|pieces| pieces + 1);
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data)).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.reader.as_ref().is_none_or(BodyReader::is_ended)
    }

    fn size_hint(&self) -> SizeHint {
        self.content_length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// An answer's body.
pub(super) struct Http2UpstreamBody {
    body: Incoming,
    _progress: Rc<RequestProgress>,
    idle_deadline: Deadline,
    body_timeout: Duration,
    /// Bytes of framing so far.
    framing_overhead: u64,
}

impl Http2UpstreamBody {
    /// The next piece; `None` at the end.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        let failure =
            |flaw| Poll::Ready(Some(Err(UpstreamError { kind: flaw, delivery: Delivery::MaybeSent })));
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                self.idle_deadline.set_if_unset(self.body_timeout);
                ready!(self.idle_deadline.poll_elapsed(cx));
                return failure(UpstreamErrorKind::BodyTimeout);
            };
            self.idle_deadline.clear();
            match frame {
                None if self.body.is_end_stream() => return Poll::Ready(None),
                // hyper takes a stream that is reset with NO_ERROR for a body that ends.
                None => return failure(UpstreamErrorKind::Truncated),
                Some(Err(error)) => return failure(UpstreamErrorKind::Http2(error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.framing_overhead += FRAME_HEADER_BYTES;
                        return Poll::Ready(Some(Ok(copy_if_small(data))));
                    }
                }
            }
        }
    }

    /// How many bytes of framing came with what was taken so far. The padding of frames is not among them.
    pub(super) fn framing_overhead(&self) -> u64 {
        self.framing_overhead
    }

    pub(super) fn is_ended(&self) -> bool {
        self.body.is_end_stream()
    }
}
