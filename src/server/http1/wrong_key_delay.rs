//! The wait before a wrong key is refused.

use std::{future::poll_fn, task::Poll};

use super::Http1Connection;

impl Http1Connection {
    /// Lets the time pass that a wrong key costs. The connection gives way to any other meanwhile, at once and without its
    /// answer: false, as where the client left.
    pub(super) async fn delay_wrong_key(&mut self) -> bool {
        let delay = self.server.wrong_key_delay(self.peer);
        if delay.is_zero() {
            return true;
        }
        self.timer.set(delay);
        self.permit.mark_evictable();
        let goes_on = poll_fn(|cx| {
            if self.permit.is_close_requested()
                || self.transport.shared().poll_disconnected(cx, false, false).is_ready()
            {
                return Poll::Ready(false);
            }
            if self.server.is_stopping() {
                return Poll::Ready(true);
            }
            self.timer.poll_elapsed(cx).map(|()| true)
        });
        let goes_on = goes_on.await;
        self.timer.clear();
        self.permit.mark_active();
        goes_on
    }
}
