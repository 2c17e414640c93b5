//! The connections to the admin listener, of which there are few: who has moved nothing for longest makes room for one that
//! comes, so that a health check always gets in.

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

/// How long whoever was asked to leave may take before another is asked.
const EVICT_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// All places.
pub struct AdminConnectionLimiter {
    permits: Arc<Semaphore>,
    created: Instant,
    active: Mutex<Vec<Weak<AdminConnectionPermit>>>,
}

/// One connection's place.
pub(super) struct AdminConnectionPermit {
    created: Instant,
    /// When a byte moved last, in microseconds since `born`.
    last_active_micros: AtomicU64,
    /// Requests whose answers are being made.
    requests_in_progress: AtomicUsize,
    /// It follows a stream, which has a rule of its own for readers that take nothing.
    is_streaming: AtomicBool,
    close_signal: Notify,
    _permit: OwnedSemaphorePermit,
}

impl AdminConnectionLimiter {
    /// So many places.
    pub fn new(most: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(most)), created: Instant::now(), active: Mutex::default() }
    }

    /// A place for a new connection; where there is none another has to leave.
    pub(super) async fn acquire(&self) -> Arc<AdminConnectionPermit> {
        loop {
            if self.permits.available_permits() == 0 {
                self.close_longest_idle();
            }
            if let Ok(Ok(place)) = timeout(EVICT_RETRY_INTERVAL, self.permits.clone().acquire_owned()).await {
                return self.admit(place);
            }
        }
    }

    fn admit(&self, place: OwnedSemaphorePermit) -> Arc<AdminConnectionPermit> {
        let seat = Arc::new(AdminConnectionPermit {
            created: self.created,
            last_active_micros: AtomicU64::new(0),
            requests_in_progress: AtomicUsize::new(0),
            is_streaming: AtomicBool::new(false),
            close_signal: Notify::new(),
            _permit: place,
        });
        seat.mark_active();
        let mut taken = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|seat| seat.strong_count() > 0);
        taken.push(Arc::downgrade(&seat));
        seat
    }

    /// Asks whoever has moved nothing for longest; those whose answer is being made only where there are no others.
    pub(super) fn close_longest_idle(&self) {
        let mut taken = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let all = taken.iter().enumerate().filter_map(|(place, seat)| Some((place, seat.upgrade()?)));
        let longest = all.min_by_key(|(_, seat)| (seat.is_busy(), seat.last_active_micros.load(Relaxed)));
        if let Some((place, seat)) = longest {
            taken.swap_remove(place);
            seat.close_signal.notify_one();
        }
    }
}

impl AdminConnectionPermit {
    /// A byte moved.
    fn mark_active(&self) {
        self.last_active_micros
            .store(u64::try_from(self.created.elapsed().as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    fn is_busy(&self) -> bool {
        self.requests_in_progress.load(Relaxed) > 0 || self.is_streaming.load(Relaxed)
    }

    /// A stream is followed from now on.
    pub(super) fn mark_streaming(&self) {
        self.is_streaming.store(true, Relaxed);
    }

    /// An answer is being made until this is dropped.
    pub(super) fn begin_request(&self) -> AdminRequestGuard<'_> {
        self.requests_in_progress.fetch_add(1, Relaxed);
        AdminRequestGuard(self)
    }

    /// Waits until the connection is to leave.
    pub(super) async fn close_requested(&self) {
        self.close_signal.notified().await;
    }
}

/// See [`Seat::busy`].
pub(super) struct AdminRequestGuard<'a>(&'a AdminConnectionPermit);

impl Drop for AdminRequestGuard<'_> {
    fn drop(&mut self) {
        self.0.requests_in_progress.fetch_sub(1, Relaxed);
    }
}

/// A connection's stream that tells its seat when bytes move, and fails when none of what is written was taken for too long.
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
        wrote: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if wrote.is_ready() {
            self.write_deadline.clear();
            self.permit.mark_active();
            return wrote;
        }
        if self.permit.is_streaming.load(Relaxed) {
            return wrote;
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
        let seats = AdminConnectionLimiter::new(2);
        let first = seats.acquire().await;
        tokio::time::advance(Duration::from_millis(1)).await;
        let second = seats.acquire().await;
        tokio::time::advance(Duration::from_millis(1)).await;
        first.mark_active();
        let leaves = async {
            second.close_requested().await;
            drop(second);
        };
        tokio::join!(seats.acquire(), leaves);
    }

    #[tokio::test(start_paused = true)]
    async fn blocked_write_times_out() {
        let (stream, _silent) = UnixStream::pair().expect("a pair");
        let seat = AdminConnectionLimiter::new(1).acquire().await;
        let mut watched = WriteTimeoutStream::new(Stream::Unix(stream), seat, Duration::from_secs(30));
        let began = Instant::now();
        let wrote = watched.write_all(&vec![0; 10 << 20]).await;
        assert_eq!(wrote.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        assert_eq!(began.elapsed().as_secs(), 30);
    }
}
