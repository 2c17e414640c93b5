//! The wait before a wrong key is refused.

use std::{future::poll_fn, task::Poll};

use super::Conversation;

impl Conversation {
    /// Lets the time pass that a wrong key costs. The connection gives way to any other meanwhile, at once and without its
    /// answer: false, as where the client left.
    pub(super) async fn hold_back(&mut self) -> bool {
        let delay = self.server.wrong_key_delay(self.peer);
        if delay.is_zero() {
            return true;
        }
        self.waiting.set(delay);
        self.seat.give_way();
        let goes_on = poll_fn(|cx| {
            if self.seat.is_asked() || self.wire.inner().poll_left(cx, false, false).is_ready() {
                return Poll::Ready(false);
            }
            if self.server.is_stopping() {
                return Poll::Ready(true);
            }
            self.waiting.poll_passed(cx).map(|()| true)
        });
        let goes_on = goes_on.await;
        self.waiting.clear();
        self.seat.stir();
        goes_on
    }
}
