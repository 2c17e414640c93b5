//! The futures of a connection's streams. They run in the connection's own task, so that what several of them have to
//! send leaves in one write; each has its own waker, so that only those that can go on are polled.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Wake, Waker},
};

/// Number of words of [`WakeFlags`].
const FLAG_WORDS: usize = 5;
/// Maximum number of futures. More than the concurrent streams: a stream that its client has reset no longer counts as
/// one, but its future still exists until it is polled.
const MAX_STREAMS: usize = FLAG_WORDS * 64 - 1;
/// Index of the connection itself, before those of the streams.
const CONNECTION_INDEX: usize = 0;

/// What was woken: one bit for each stream, and one for the connection.
struct WakeFlags {
    /// Waker of the connection's task.
    task: Waker,
    /// The task is being polled and checks the flags at the end, so it need not be woken.
    polling: AtomicBool,
    words: [AtomicU64; FLAG_WORDS],
}

/// The waker of one stream, or of the connection.
struct FlagWaker {
    flags: Arc<WakeFlags>,
    index: usize,
}

impl Wake for FlagWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let bit = 1 << (self.index % 64);
        let before = self.flags.words[self.index / 64].fetch_or(bit, Ordering::SeqCst);
        if before & bit == 0 && !self.flags.polling.load(Ordering::SeqCst) {
            self.flags.task.wake_by_ref();
        }
    }
}

/// A future with its waker. The waker stays when the future has ended, for the next one in this place.
struct Entry {
    future: Option<StreamFuture>,
    waker: Waker,
}

/// Future of one stream.
type StreamFuture = Pin<Box<dyn Future<Output = ()>>>;

/// The futures of one connection's streams.
pub(super) struct StreamSet {
    flags: Arc<WakeFlags>,
    connection_waker: Waker,
    entries: Vec<Entry>,
    /// Indices of entries without a future.
    free: Vec<usize>,
}

impl StreamSet {
    /// Creates an empty set. `task`: the waker of the connection's task.
    pub(super) fn new(task: Waker) -> Self {
        let flags = Arc::new(WakeFlags {
            task,
            polling: AtomicBool::new(false),
            words: [const { AtomicU64::new(0) }; FLAG_WORDS],
        });
        let connection_waker = new_waker(&flags, CONNECTION_INDEX);
        Self { flags, connection_waker, entries: Vec::new(), free: Vec::new() }
    }

    /// The connection's own waker. When it wakes, [`StreamSet::has_woken`] is true.
    pub(super) fn connection_waker(&self) -> Waker {
        self.connection_waker.clone()
    }

    /// Whether another future fits in.
    pub(super) fn has_capacity(&self) -> bool {
        !self.free.is_empty() || self.entries.len() < MAX_STREAMS
    }

    /// Whether there is no future.
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.entries.len()
    }

    /// Adds a future, which the next [`StreamSet::poll_woken`] polls.
    pub(super) fn insert(&mut self, future: StreamFuture) {
        let index = self.free.pop().unwrap_or_else(|| {
            let waker = new_waker(&self.flags, self.entries.len() + 1);
            self.entries.push(Entry { future: None, waker });
            self.entries.len() - 1
        });
        self.entries[index].future = Some(future);
        self.entries[index].waker.wake_by_ref();
    }

    /// Begins a poll of the connection's task; wakes are only recorded until [`StreamSet::end_poll`], which wakes the task once.
    pub(super) fn begin_poll(&self) {
        self.flags.polling.store(true, Ordering::SeqCst);
    }

    /// Ends a poll of the connection's task, which is woken if anything was woken meanwhile.
    pub(super) fn end_poll(&self) {
        self.flags.polling.store(false, Ordering::SeqCst);
        if self.has_woken() {
            self.flags.task.wake_by_ref();
        }
    }

    /// Whether a stream or the connection was woken.
    pub(super) fn has_woken(&self) -> bool {
        self.flags.words.iter().any(|word| word.load(Ordering::SeqCst) != 0)
    }

    /// Takes the connection's flag.
    pub(super) fn clear_connection_flag(&self) {
        let (word, bit) = (&self.flags.words[CONNECTION_INDEX / 64], 1 << (CONNECTION_INDEX % 64));
        if word.load(Ordering::Relaxed) & bit != 0 {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// Polls the futures that were woken, each once.
    pub(super) fn poll_woken(&mut self) {
        for word_index in 0..FLAG_WORDS {
            let word = &self.flags.words[word_index];
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut woken = word.swap(0, Ordering::SeqCst);
            while woken != 0 {
                let index = word_index * 64 + woken.trailing_zeros() as usize;
                woken &= woken - 1;
                if index != CONNECTION_INDEX {
                    self.poll_entry(index - 1);
                }
            }
        }
    }

    fn poll_entry(&mut self, index: usize) {
        let Entry { future, waker } = &mut self.entries[index];
        let Some(running) = future else { return };
        if running.as_mut().poll(&mut Context::from_waker(waker)).is_ready() {
            *future = None;
            self.free.push(index);
        }
    }
}

fn new_waker(flags: &Arc<WakeFlags>, index: usize) -> Waker {
    Arc::new(FlagWaker { flags: flags.clone(), index }).into()
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn, rc::Rc, sync::atomic::AtomicUsize, task::Poll};

    use super::*;

    #[derive(Default)]
    struct WakeCount(AtomicUsize);

    impl Wake for WakeCount {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn only_woken_futures_are_polled() {
        let count = Arc::new(WakeCount::default());
        let mut set = StreamSet::new(count.clone().into());
        let (polls, wakers) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(Vec::new())));
        while set.has_capacity() {
            let (polls, wakers) = (polls.clone(), wakers.clone());
            set.insert(Box::pin(poll_fn(move |cx| {
                polls.set(polls.get() + 1);
                let mut known = wakers.take();
                known.push(cx.waker().clone());
                wakers.set(known);
                if polls.get() > MAX_STREAMS { Poll::Ready(()) } else { Poll::Pending }
            })));
        }
        assert!(set.has_woken());
        set.begin_poll();
        set.poll_woken();
        set.poll_woken();
        assert_eq!((polls.get(), set.has_woken(), set.is_empty()), (MAX_STREAMS, false, false));
        let (wakers, before) = (wakers.take(), count.0.load(Ordering::Relaxed));
        // While the task is polled it is woken at the end only, and once.
        wakers[3].wake_by_ref();
        wakers[300].wake_by_ref();
        assert_eq!(count.0.load(Ordering::Relaxed), before);
        set.end_poll();
        assert_eq!(count.0.load(Ordering::Relaxed), before + 1);
        set.poll_woken();
        assert_eq!((polls.get(), set.has_capacity()), (MAX_STREAMS + 2, true));
        // The waker of an ended future polls nothing; that of the connection wakes the task.
        wakers[3].wake_by_ref();
        set.connection_waker().wake_by_ref();
        assert!(count.0.load(Ordering::Relaxed) > before + 1 && set.has_woken());
        set.clear_connection_flag();
        set.poll_woken();
        assert_eq!((polls.get(), set.has_woken()), (MAX_STREAMS + 2, false));
    }
}
