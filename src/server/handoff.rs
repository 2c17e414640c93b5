//! Slot that passes a value to a parked future, so that connection tasks and handler futures are reused, not rebuilt.
//!
//! A producer calls [`Handoff::put`] and then resumes the consumer, which is parked in [`Handoff::poll_take`]. A slot
//! stays on one thread and holds one value at most: each `put` is followed by one take. The uses:
//!
//! | value | put by | taken by | the consumer is resumed by |
//! |---|---|---|---|
//! | accepted connection | `TaskPool::serve` | `open_connection`, its task new or in `TaskPool::parked` | the waker of its task |
//! | head of a request | `poll_read_request` | future of `new_handler`, parked in `IDLE` | the poll that follows |
//! | connection with a request | `handler_pool::run` | the same | the poll that follows |
//! | the same, request handled | future of `new_handler` | `handler_pool::run` | the return of that poll |

use std::{cell::Cell, task::Poll};

/// A slot for one value.
pub(super) struct Handoff<T>(Cell<Option<T>>);

impl<T> Handoff<T> {
    pub(super) const fn empty() -> Self {
        Self(Cell::new(None))
    }

    /// Stores a value for the consumer, which the caller must resume.
    #[inline]
    pub(super) fn put(&self, value: T) {
        self.0.set(Some(value));
    }

    /// Takes the value. Pending registers no waker: the producer knows how to resume the consumer.
    #[inline]
    pub(super) fn poll_take(&self) -> Poll<T> {
        self.0.take().map_or(Poll::Pending, Poll::Ready)
    }
}
