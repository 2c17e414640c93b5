//! How an HTTP/1 connection is closed whose client may still be sending.

use std::{future::poll_fn, task::Poll};

use super::transport::Transport;
use crate::{
    server::{LINGER_TIMEOUT, MAX_LINGER_BYTES, connection_limit::ConnectionPermit},
    time::deadline::Deadline,
};

/// Closes. A client that is still sending would lose the answer in a reset: what it sends is read for a while.
pub(super) async fn lingering_close(wire: &Transport, still_sending: bool, seat: &ConnectionPermit) {
    let (mut deadline, mut left, mut shut) = (Deadline::unset(), MAX_LINGER_BYTES, false);
    poll_fn(|cx| {
        let mut wire = wire.shared();
        if seat.is_abort_requested() {
            return Poll::Ready(());
        }
        if !shut {
            match wire.poll_shutdown(cx) {
                Poll::Ready(Ok(())) => shut = true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                // The last word under TLS has no room behind what the client does not take.
                Poll::Pending => {
                    deadline.set_if_unset(LINGER_TIMEOUT);
                    return deadline.poll_elapsed(cx);
                }
            }
        }
        if !still_sending {
            return Poll::Ready(());
        }
        deadline.set_if_unset(LINGER_TIMEOUT);
        wire.poll_drain(cx, &mut deadline, &mut left)
    })
    .await;
}
