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

use super::{AnswerBody, Failure, Flaw, Outgoing, Sent, Settings, Source};
use crate::{
    deadline::Deadline,
    fields::{Fields, is_quoted},
    framing::{answer_length, detached},
    io::Stream,
    upload::{Reader, UploadError},
};

/// How often a silent connection is pinged, and how long the answer may take.
const PING: Duration = Duration::from_secs(20);

/// How much of an answer may come that nobody has taken yet.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same of all answers on a connection: so large that it never binds, or who takes slowly would stop all others. h2 derives
/// its bound on small DATA frames that wait from it: each takes 255 bytes less its own of half the window, and beyond that the
/// connection ends.
const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
/// Most requests at once on a connection, whatever the upstream would allow: with more, the windows of the streams would
/// exceed that of the connection.
const MOST_STREAMS: usize = (CONNECTION_WINDOW / STREAM_WINDOW) as usize;
/// Stands for what the upstream allows until it has said so; nobody says this.
const UNSAID: usize = usize::MAX - 1;
/// What each frame has beside its payload.
const FRAME_HEAD_BYTES: u64 = 9;
/// How often a fresh connection is asked whether the upstream has said it.
const ASK: Duration = Duration::from_millis(1);

/// Runs what hyper has to run beside a connection.
#[derive(Clone)]
struct OnThisThread;

impl<F: Future + 'static> Executor<F> for OnThisThread {
    fn execute(&self, task: F) {
        spawn_local(task);
    }
}

type Connection = http2::Connection<TokioIo<Stream>, UploadBody, OnThisThread>;

/// A handle on a connection.
pub(super) struct Sender {
    requests: http2::SendRequest<UploadBody>,
    load: Rc<Load>,
}

/// How many requests a connection carries, and how many it may.
struct Load {
    open: Cell<usize>,
    most: Cell<usize>,
}

/// Which connection it is.
pub(super) struct Mark(Rc<Load>);

impl Sender {
    /// Says hello on a fresh connection, which is then driven by a task of its own. It waits for the upstream's hello
    /// too: that says how many requests fit.
    pub(super) async fn handshake(stream: Stream) -> Result<Self, Flaw> {
        let failed = |error: hyper::Error| Flaw::Http2(error.to_string());
        let (requests, mut connection) = http2::Builder::new(OnThisThread)
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .max_header_list_size(64 * 1024)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(UNSAID)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        while connection.current_max_send_streams() == UNSAID {
            if let Ok(ended) = tokio::time::timeout(ASK, &mut connection).await {
                return Err(ended.err().map_or(Flaw::Closed, failed));
            }
        }
        let load = Rc::new(Load { open: Cell::new(0), most: Cell::new(most(&connection)) });
        spawn_local(drive(connection, load.clone()));
        Ok(Self { requests, load })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    pub(super) fn is_on(&self, connection: &Mark) -> bool {
        Rc::ptr_eq(&self.load, &connection.0)
    }

    /// How many requests it carries.
    pub(super) fn open(&self) -> usize {
        self.load.open.get()
    }

    /// Whether the upstream takes another request on it now.
    pub(super) fn has_room(&self) -> bool {
        self.open() < self.load.most.get()
    }

    /// A place for one request, whether there is room or not.
    pub(super) fn place(&self) -> Place {
        self.load.open.update(|open| open + 1);
        Place { requests: self.requests.clone(), taken: Taken(self.load.clone()) }
    }
}

async fn drive(mut connection: Connection, load: Rc<Load>) {
    let ended = poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        if polled.is_pending() {
            load.most.set(most(&connection));
        }
        polled
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "an HTTP/2 connection to the upstream ended");
    }
}

fn most(connection: &Connection) -> usize {
    connection.current_max_send_streams().clamp(1, MOST_STREAMS)
}

/// A place for one request on a connection.
pub(super) struct Place {
    requests: http2::SendRequest<UploadBody>,
    taken: Taken,
}

/// Counts a request as long as it lives.
struct Taken(Rc<Load>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.open.update(|open| open - 1);
    }
}

impl Place {
    pub(super) fn mark(&self) -> Mark {
        Mark(self.taken.0.clone())
    }

    /// Sends a request and waits for the answer's head.
    pub(super) async fn send(
        mut self,
        settings: &Arc<Settings>,
        outgoing: &Outgoing<'_>,
        reader: Option<Reader>,
    ) -> Result<super::Answer, Failure> {
        let progress = Rc::new(Progress::of(self.taken));
        let request = request(settings, outgoing, reader, progress.clone())?;
        let mut sent = pin!(self.requests.try_send_request(request));
        let response = loop {
            let before = progress.pieces.get();
            match tokio::time::timeout(settings.response_timeout, &mut sent).await {
                Ok(Ok(response)) => break response,
                Ok(Err(mut refused)) => {
                    let left = refused.take_message().is_none();
                    return Err(judge(&refused.into_error(), left));
                }
                // While the body moves, or the client is slow to send it, the upstream owes no answer.
                Err(_) if progress.awaits_client.get() => {}
                Err(_) if progress.pieces.get() != before => {}
                Err(_) => return Err(Failure { flaw: Flaw::NoAnswer, sent: Sent::Perhaps }),
            }
        };
        let came = Instant::now();
        let (parts, body) = response.into_parts();
        if parts.headers.keys().any(is_quoted) {
            return Err(Failure { flaw: Flaw::Head("it names a header that is none"), sent: Sent::Perhaps });
        }
        let fields = Fields::of_map(&parts.headers);
        let length = answer_length(&fields)
            .map_err(|error| Failure { flaw: Flaw::Framing(error), sent: Sent::Perhaps })?;
        let answer = Answer {
            body,
            _progress: progress,
            silence: Deadline::idle(),
            body_timeout: settings.body_timeout,
            overhead: 0,
        };
        let ended = answer.is_ended();
        let body = AnswerBody(if ended { Source::Ended } else { Source::Http2(Box::new(answer)) });
        Ok(super::Answer { status: parts.status, fields, length, body, came })
    }
}

fn request(
    settings: &Settings,
    outgoing: &Outgoing<'_>,
    reader: Option<Reader>,
    progress: Rc<Progress>,
) -> Result<Request<UploadBody>, Failure> {
    let malformed =
        || Failure { flaw: Flaw::Http2("the request's target is not a URI".into()), sent: Sent::Nothing };
    let path = uri::PathAndQuery::try_from(encoded(outgoing.target)).map_err(|_| malformed())?;
    let mut parts = uri::Parts::default();
    parts.scheme = Some(uri::Scheme::HTTPS);
    parts.authority = settings.authority.parse().ok();
    parts.path_and_query = Some(path);
    let mut request = Request::new(UploadBody { reader, length: outgoing.body.known(), progress });
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() = outgoing.method.clone();
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| malformed())?;
    for field in outgoing.fields.to_upstream() {
        let (name, value) = (HeaderName::from_bytes(field.name), HeaderValue::from_bytes(field.value));
        if let (Ok(name), Ok(value)) = (name, value) {
            request.headers_mut().append(name, value);
        }
    }
    Ok(request)
}

/// A target as the http crate takes it. Three letters that should not stand in a query as they are, and that HTTP/1 carries
/// all the same, are encoded.
fn encoded(target: &[&str]) -> String {
    let target = target.concat();
    match memchr::memchr3(b'"', b'<', b'>', target.as_bytes()) {
        None => target,
        Some(_) => target.replace('"', "%22").replace('<', "%3C").replace('>', "%3E"),
    }
}

/// What it means that there is no answer. A stream's reset says nothing of its connection: the upstream may have acted on
/// the request, unless it says that it did not.
fn judge(error: &hyper::Error, left: bool) -> Failure {
    if !left {
        return Failure { flaw: Flaw::Closed, sent: Sent::Nothing };
    }
    if let Some(upload) = cause(error) {
        return Failure { flaw: Flaw::Upload(*upload), sent: Sent::Perhaps };
    }
    let (flaw, sent) = match cause::<::h2::Error>(error) {
        Some(reset) if is_refusal(reset) => (Flaw::Refused, Sent::Nothing),
        // A connection told to go away in peace names the last stream it saw to; this one came after it.
        Some(away) if away.is_go_away() && away.is_remote() && away.reason() == Some(Reason::NO_ERROR) => {
            (Flaw::Closed, Sent::Nothing)
        }
        Some(away) if away.is_io() || away.is_go_away() && away.is_remote() => (Flaw::Closed, Sent::Perhaps),
        // Nothing of the protocol: the connection broke or fell silent, or its end came first.
        None if cause::<io::Error>(error).is_some()
            || error.is_timeout()
            || error.is_closed()
            || error.is_canceled() =>
        {
            (Flaw::Closed, Sent::Perhaps)
        }
        _ => (Flaw::Http2(error.to_string()), Sent::Perhaps),
    };
    Failure { flaw, sent }
}

fn is_refusal(error: &::h2::Error) -> bool {
    error.is_reset() && error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM)
}

/// The cause of this kind, if there is one.
fn cause<E: std::error::Error + 'static>(error: &hyper::Error) -> Option<&E> {
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
struct UploadBody {
    reader: Option<Reader>,
    length: Option<u64>,
    progress: Rc<Progress>,
}

/// What has become of a request's body, for whoever waits for the answer. The request counts until both bodies are gone.
struct Progress {
    pieces: Cell<u64>,
    awaits_client: Cell<bool>,
    _taken: Taken,
}

impl Progress {
    fn of(taken: Taken) -> Self {
        Self { pieces: Cell::new(0), awaits_client: Cell::new(false), _taken: taken }
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let this = &mut *self;
        let Some(reader) = &mut this.reader else { return Poll::Ready(None) };
        let piece = reader.poll_gathered(cx);
        this.progress.awaits_client.set(piece.is_pending());
        this.progress.pieces.update(|pieces| pieces + 1);
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data)).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.reader.as_ref().is_none_or(Reader::is_ended)
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// An answer's body.
pub(super) struct Answer {
    body: Incoming,
    _progress: Rc<Progress>,
    silence: Deadline,
    body_timeout: Duration,
    /// Bytes of framing so far.
    overhead: u64,
}

impl Answer {
    /// The next piece; `None` at the end.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        let failure = |flaw| Poll::Ready(Some(Err(Failure { flaw, sent: Sent::Perhaps })));
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                self.silence.set_if_idle(self.body_timeout);
                ready!(self.silence.poll_passed(cx));
                return failure(Flaw::Stalled);
            };
            self.silence.clear();
            match frame {
                None if self.body.is_end_stream() => return Poll::Ready(None),
                // hyper takes a stream that is reset with NO_ERROR for a body that ends.
                None => return failure(Flaw::Truncated),
                Some(Err(error)) => return failure(Flaw::Http2(error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.overhead += FRAME_HEAD_BYTES;
                        return Poll::Ready(Some(Ok(detached(data))));
                    }
                }
            }
        }
    }

    /// How many bytes of framing came with what was taken so far. The padding of frames is not among them.
    pub(super) fn overhead(&self) -> u64 {
        self.overhead
    }

    pub(super) fn is_ended(&self) -> bool {
        self.body.is_end_stream()
    }
}
