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

use crate::{deadline::Deadline, io::Stream};

/// How long whoever was asked to leave may take before another is asked.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// All places.
pub struct Seats {
    places: Arc<Semaphore>,
    born: Instant,
    taken: Mutex<Vec<Weak<Seat>>>,
}

/// One connection's place.
pub(super) struct Seat {
    born: Instant,
    /// When a byte moved last, in microseconds since `born`.
    moved: AtomicU64,
    /// Requests whose answers are being made.
    busy: AtomicUsize,
    /// It follows a stream, which has a rule of its own for readers that take nothing.
    follows: AtomicBool,
    leave: Notify,
    _place: OwnedSemaphorePermit,
}

impl Seats {
    /// So many places.
    pub fn new(most: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(most)), born: Instant::now(), taken: Mutex::default() }
    }

    /// A place for a new connection; where there is none another has to leave.
    pub(super) async fn seat(&self) -> Arc<Seat> {
        loop {
            if self.places.available_permits() == 0 {
                self.ask_one_to_leave();
            }
            if let Ok(Ok(place)) = timeout(LOOK_AGAIN, self.places.clone().acquire_owned()).await {
                return self.sit_down(place);
            }
        }
    }

    fn sit_down(&self, place: OwnedSemaphorePermit) -> Arc<Seat> {
        let seat = Arc::new(Seat {
            born: self.born,
            moved: AtomicU64::new(0),
            busy: AtomicUsize::new(0),
            follows: AtomicBool::new(false),
            leave: Notify::new(),
            _place: place,
        });
        seat.stir();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|seat| seat.strong_count() > 0);
        taken.push(Arc::downgrade(&seat));
        seat
    }

    /// Asks whoever has moved nothing for longest; those whose answer is being made only where there are no others.
    pub(super) fn ask_one_to_leave(&self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let all = taken.iter().enumerate().filter_map(|(place, seat)| Some((place, seat.upgrade()?)));
        let longest = all.min_by_key(|(_, seat)| (seat.is_needed(), seat.moved.load(Relaxed)));
        if let Some((place, seat)) = longest {
            taken.swap_remove(place);
            seat.leave.notify_one();
        }
    }
}

impl Seat {
    /// A byte moved.
    fn stir(&self) {
        self.moved.store(u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    fn is_needed(&self) -> bool {
        self.busy.load(Relaxed) > 0 || self.follows.load(Relaxed)
    }

    /// A stream is followed from now on.
    pub(super) fn follow(&self) {
        self.follows.store(true, Relaxed);
    }

    /// An answer is being made until this is dropped.
    pub(super) fn busy(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Relaxed);
        Busy(self)
    }

    /// Waits until the connection is to leave.
    pub(super) async fn asked(&self) {
        self.leave.notified().await;
    }
}

/// See [`Seat::busy`].
pub(super) struct Busy<'a>(&'a Seat);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Relaxed);
    }
}

/// A connection's stream that tells its seat when bytes move, and fails when none of what is written was taken for too long.
pub(super) struct Watched {
    stream: Stream,
    seat: Arc<Seat>,
    stall: Deadline,
    patience: Duration,
}

impl Watched {
    pub(super) fn new(stream: Stream, seat: Arc<Seat>, patience: Duration) -> Self {
        Self { stream, seat, stall: Deadline::idle(), patience }
    }

    fn bounded(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if wrote.is_ready() {
            self.stall.clear();
            self.seat.stir();
            return wrote;
        }
        if self.seat.follows.load(Relaxed) {
            return wrote;
        }
        self.stall.set_if_idle(self.patience);
        self.stall.poll_passed(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if read.is_ready() {
            this.seat.stir();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.bounded(cx, wrote)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.bounded(cx, wrote)
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
    async fn who_has_moved_nothing_for_longest_makes_room() {
        let seats = Seats::new(2);
        let first = seats.seat().await;
        tokio::time::advance(Duration::from_millis(1)).await;
        let second = seats.seat().await;
        tokio::time::advance(Duration::from_millis(1)).await;
        first.stir();
        let leaves = async {
            second.asked().await;
            drop(second);
        };
        tokio::join!(seats.seat(), leaves);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_nothing_is_given_up() {
        let (stream, _silent) = UnixStream::pair().expect("a pair");
        let seat = Seats::new(1).seat().await;
        let mut watched = Watched::new(Stream::Unix(stream), seat, Duration::from_secs(30));
        let began = Instant::now();
        let wrote = watched.write_all(&vec![0; 10 << 20]).await;
        assert_eq!(wrote.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        assert_eq!(began.elapsed().as_secs(), 30);
    }
}
