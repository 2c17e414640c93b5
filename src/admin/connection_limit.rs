//! Caps the connections to the admin listener; when full, closes the longest-idle one, so that a health check always
//! gets a connection.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use crate::{http1::io::Stream, time::deadline::Deadline};

/// How long a connection may take to close before another one is closed.
const EVICT_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The limit of connections.
pub struct AdminConnectionLimiter {
    permits: Arc<Semaphore>,
    created: Instant,
    active: Mutex<Vec<Weak<AdminConnectionPermit>>>,
}

/// The permit of a connection.
pub(super) struct AdminConnectionPermit {
    created: Instant,
    /// When a byte was last read or written, in microseconds since `created`.
    last_active_micros: AtomicU64,
    /// Requests whose responses are being generated.
    requests_in_progress: AtomicUsize,
    /// Whether the connection serves a stream, which has its own timeout for stalled readers.
    is_streaming: AtomicBool,
    close_signal: Notify,
    _permit: OwnedSemaphorePermit,
}

impl AdminConnectionLimiter {
    /// A limit of `max_connections`.
    pub fn new(max_connections: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(max_connections)),
            created: Instant::now(),
            active: Mutex::default(),
        }
    }

    /// A permit for a new connection; when full, closes the longest-idle one and waits.
    pub(super) async fn acquire(&self) -> Arc<AdminConnectionPermit> {
        loop {
            if self.permits.available_permits() == 0 {
                self.close_longest_idle();
            }
            if let Ok(Ok(permit)) = timeout(EVICT_RETRY_INTERVAL, self.permits.clone().acquire_owned()).await
            {
                return self.admit(permit);
            }
        }
    }

    fn admit(&self, semaphore_permit: OwnedSemaphorePermit) -> Arc<AdminConnectionPermit> {
        let permit = Arc::new(AdminConnectionPermit {
            created: self.created,
            last_active_micros: AtomicU64::new(0),
            requests_in_progress: AtomicUsize::new(0),
            is_streaming: AtomicBool::new(false),
            close_signal: Notify::new(),
            _permit: semaphore_permit,
        });
        permit.mark_active();
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.retain(|permit| permit.strong_count() > 0);
        active.push(Arc::downgrade(&permit));
        permit
    }

    /// Closes the longest-idle connection; a busy one only if all are busy.
    pub(super) fn close_longest_idle(&self) {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let open = active.iter().enumerate().filter_map(|(index, permit)| Some((index, permit.upgrade()?)));
        let longest_idle =
            open.min_by_key(|(_, permit)| (permit.is_busy(), permit.last_active_micros.load(Relaxed)));
        if let Some((index, permit)) = longest_idle {
            active.swap_remove(index);
            permit.close_signal.notify_one();
        }
    }
}

impl AdminConnectionPermit {
    /// A byte was read or written.
    fn mark_active(&self) {
        self.last_active_micros
            .store(u64::try_from(self.created.elapsed().as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    fn is_busy(&self) -> bool {
        self.requests_in_progress.load(Relaxed) > 0 || self.is_streaming.load(Relaxed)
    }

    /// The connection serves a stream from now on.
    pub(super) fn mark_streaming(&self) {
        self.is_streaming.store(true, Relaxed);
    }

    /// The connection is busy until the guard is dropped.
    pub(super) fn begin_request(&self) -> AdminRequestGuard<'_> {
        self.requests_in_progress.fetch_add(1, Relaxed);
        AdminRequestGuard(self)
    }

    /// Waits until the connection must close.
    pub(super) async fn close_requested(&self) {
        self.close_signal.notified().await;
    }
}

/// See [`AdminConnectionPermit::begin_request`].
pub(super) struct AdminRequestGuard<'a>(&'a AdminConnectionPermit);

impl Drop for AdminRequestGuard<'_> {
    fn drop(&mut self) {
        self.0.requests_in_progress.fetch_sub(1, Relaxed);
    }
}

/// A connection's stream that marks its permit active, and fails when a write makes no progress for the timeout.
pub(super) struct WriteTimeoutStream {
    stream: Stream,
    permit: Arc<AdminConnectionPermit>,
    write_deadline: Deadline,
    write_timeout: Duration,
}

impl WriteTimeoutStream {
    pub(super) fn new(stream: Stream, permit: Arc<AdminConnectionPermit>, write_timeout: Duration) -> Self {
        Self { stream, permit, write_deadline: Deadline::unset(), write_timeout }
    }

    fn apply_write_timeout(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if result.is_ready() {
            self.write_deadline.clear();
            self.permit.mark_active();
            return result;
        }
        if self.permit.is_streaming.load(Relaxed) {
            return result;
        }
        self.write_deadline.set_if_unset(self.write_timeout);
        self.write_deadline.poll_elapsed(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for WriteTimeoutStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if read.is_ready() {
            this.permit.mark_active();
        }
        read
    }
}

impl AsyncWrite for WriteTimeoutStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.apply_write_timeout(cx, wrote)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.apply_write_timeout(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::UnixStream};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn acquire_when_full_closes_longest_idle() {
        let limiter = AdminConnectionLimiter::new(2);
        let first = limiter.acquire().await;
        tokio::time::advance(Duration::from_millis(1)).await;
        let second = limiter.acquire().await;
        tokio::time::advance(Duration::from_millis(1)).await;
        first.mark_active();
        let close_second = async {
            second.close_requested().await;
            drop(second);
        };
        tokio::join!(limiter.acquire(), close_second);
    }

    #[tokio::test(start_paused = true)]
    async fn blocked_write_times_out() {
        let (stream, _unread) = UnixStream::pair().expect("a pair");
        let permit = AdminConnectionLimiter::new(1).acquire().await;
        let mut stream = WriteTimeoutStream::new(Stream::Unix(stream), permit, Duration::from_secs(30));
        let start = Instant::now();
        let result = stream.write_all(&vec![0; 10 << 20]).await;
        assert_eq!(result.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        assert_eq!(start.elapsed().as_secs(), 30);
    }
}
