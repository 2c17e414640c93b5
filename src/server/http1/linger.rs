//! How an HTTP/1 connection is closed whose client may still be sending.

use std::{future::poll_fn, task::Poll};

use super::wire::Wire;
use crate::{
    deadline::Deadline,
    server::{LINGER, LINGER_BYTES, house::Seat},
};

/// Closes. A client that is still sending would lose the answer in a reset: what it sends is read for a while.
pub(super) async fn close(wire: &Wire, still_sending: bool, seat: &Seat) {
    let (mut deadline, mut left, mut shut) = (Deadline::idle(), LINGER_BYTES, false);
    poll_fn(|cx| {
        let mut wire = wire.inner();
        if seat.is_cut() {
            return Poll::Ready(());
        }
        if !shut {
            match wire.poll_shutdown(cx) {
                Poll::Ready(Ok(())) => shut = true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                // The last word under TLS has no room behind what the client does not take.
                Poll::Pending => {
                    deadline.set_if_idle(LINGER);
                    return deadline.poll_passed(cx);
                }
            }
        }
        if !still_sending {
            return Poll::Ready(());
        }
        deadline.set_if_idle(LINGER);
        wire.poll_drain(cx, &mut deadline, &mut left)
    })
    .await;
}
