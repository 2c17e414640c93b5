//! The delay before a wrong key is rejected.

use std::{future::poll_fn, net::IpAddr, task::Poll};

use super::Http1Connection;

impl Http1Connection {
    /// Waits as long as the wrong-key throttle demands. An unauthorized connection is from then on the first to be
    /// evicted, an authorized one meanwhile the first of its rank, without a response. Returns false if it is to
    /// close or its client has reset it.
    pub(super) async fn delay_wrong_key(&mut self, peer: Option<IpAddr>) -> bool {
        let delay = self.server.count_wrong_key(peer);
        if delay.is_zero() {
            return true;
        }
        self.timer.set(delay);
        self.permit.mark_evictable();
        let may_respond = poll_fn(|cx| {
            // After FIN nothing more is watched: without a valid key, a connection takes one descriptor only.
            if self.permit.is_close_requested() || self.transport.state().poll_read_ahead(cx).is_ready() {
                return Poll::Ready(false);
            }
            if self.server.is_stopping() {
                return Poll::Ready(true);
            }
            self.timer.poll_elapsed(cx).map(|()| true)
        });
        let may_respond = may_respond.await;
        self.timer.clear();
        self.permit.mark_active();
        may_respond
    }
}
