//! What is known of a shared connection: its streams, its age, and whether the upstream is silent on it.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::http1::{headers::HeaderCache, io::Stream};

/// No new stream begins on a connection with open streams on which the upstream has been silent for this time: another
/// connection costs less than a request on a dead one.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(4);
/// Interval of PING while streams are open and the upstream is silent. Some upstreams close a connection with many
/// PINGs, all its streams with it (ENHANCE_YOUR_CALM).
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A connection is closed, with its streams, when a PING has had no ACK for this time. Long, because an outage of some
/// seconds would cost all that is in flight.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// State of a shared connection.
pub(super) struct ConnectionActivity {
    /// Open streams, and their maximum.
    pub(super) open: Cell<usize>,
    pub(super) max: Cell<usize>,
    pub(super) peer: Option<SocketAddr>,
    /// When its dial began.
    pub(super) dialed_at: Instant,
    /// When its longest age ends; no stream begins after that.
    expires_at: Instant,
    /// Whether no stream is to begin although its age has not ended.
    pub(super) retired: Cell<bool>,
    /// Number of reads that returned bytes.
    pub(super) reads: Cell<u64>,
    /// When the last of them was.
    pub(super) last_read_at: Cell<Instant>,
    /// The number of reads when it last had changed, or no stream was open, and when that was seen.
    last_change: Cell<(u64, Instant)>,
    /// Whether a stream timed out on it without any byte from the upstream.
    pub(super) dead: Cell<bool>,
    /// The headers of its responses.
    pub(super) header_cache: RefCell<HeaderCache>,
}

impl ConnectionActivity {
    pub(super) fn new(stream: &Stream, dialed_at: Instant, max_age: Duration) -> Rc<Self> {
        Rc::new(Self {
            open: Cell::new(0),
            max: Cell::new(0),
            peer: stream.peer_addr(),
            dialed_at,
            expires_at: dialed_at + max_age,
            retired: Cell::new(false),
            reads: Cell::new(0),
            last_read_at: Cell::new(dialed_at),
            last_change: Cell::new((0, dialed_at)),
            dead: Cell::new(false),
            header_cache: RefCell::default(),
        })
    }

    /// Whether a new stream may begin.
    pub(super) fn accepts_stream(&self, now: Instant) -> bool {
        !self.is_retired(now) && self.open.get() < self.max.get() && !self.is_silent(now)
    }

    /// Whether no stream begins on it any more.
    pub(super) fn is_retired(&self, now: Instant) -> bool {
        self.is_unusable() || now >= self.expires_at
    }

    /// Whether no stream may begin on it even if no other connection can be opened.
    pub(super) fn is_unusable(&self) -> bool {
        self.dead.get() || self.retired.get()
    }

    pub(super) fn has_streams(&self) -> bool {
        self.open.get() > 0
    }

    /// Whether the upstream has sent nothing for [`SILENCE_TIMEOUT`], and a stream was open all that time.
    fn is_silent(&self, now: Instant) -> bool {
        let (reads, (reads_before, changed_at)) = (self.reads.get(), self.last_change.get());
        if reads != reads_before || self.open.get() == 0 {
            self.last_change.set((reads, now));
            return false;
        }
        now.saturating_duration_since(changed_at) > SILENCE_TIMEOUT
    }
}

/// Counts an open stream until it is dropped.
pub(super) struct OpenStreamGuard(Rc<ConnectionActivity>);

impl OpenStreamGuard {
    pub(super) fn new(activity: &Rc<ConnectionActivity>) -> Self {
        activity.open.update(|open| open + 1);
        Self(activity.clone())
    }

    pub(super) fn activity(&self) -> &Rc<ConnectionActivity> {
        &self.0
    }
}

impl Drop for OpenStreamGuard {
    fn drop(&mut self) {
        self.0.open.update(|open| open - 1);
    }
}

/// Counts the reads of a connection's stream.
pub(super) struct CountedStream {
    pub(super) stream: Stream,
    pub(super) activity: Rc<ConnectionActivity>,
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled_before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > filled_before {
            self.activity.reads.update(|reads| reads + 1);
            self.activity.last_read_at.set(Instant::now());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn silent_connection_takes_no_stream_until_a_byte_comes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let tcp = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        let activity = ConnectionActivity::new(&Stream::Tcp(tcp), Instant::now(), Duration::from_secs(60));
        activity.max.set(2);
        let (start, seconds) = (Instant::now(), Duration::from_secs);
        assert!(activity.accepts_stream(start + seconds(9)), "no stream is open");
        activity.open.set(1);
        assert!(activity.accepts_stream(start + seconds(12)));
        assert!(!activity.accepts_stream(start + seconds(14)));
        activity.reads.set(1);
        assert!(activity.accepts_stream(start + seconds(15)));
        assert!(activity.accepts_stream(start + seconds(18)));
        assert!(!activity.accepts_stream(start + seconds(20)));
    }
}
