//! Lingering close of an HTTP/1 connection whose client may still be sending.

use std::{future::poll_fn, task::Poll};

use super::transport::Transport;
use crate::{
    server::{LINGER_TIMEOUT, MAX_LINGER_BYTES, connection_limit::ConnectionPermit},
    time::deadline::Deadline,
};

/// Shuts the connection down. While a client is still sending, its bytes are read and discarded for a bounded time: a
/// reset would destroy the response.
pub(super) async fn lingering_close(transport: &Transport, may_be_sending: bool, permit: &ConnectionPermit) {
    let (mut deadline, mut remaining_bytes, mut is_shut_down) = (Deadline::unset(), MAX_LINGER_BYTES, false);
    poll_fn(|cx| {
        let mut state = transport.state();
        if permit.must_close_now() {
            return Poll::Ready(());
        }
        if !is_shut_down {
            match state.poll_shutdown(cx) {
                Poll::Ready(Ok(())) => is_shut_down = true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                // TLS close_notify is queued behind bytes that the client does not read.
                Poll::Pending => return deadline.poll_stalled(cx, LINGER_TIMEOUT),
            }
        }
        if !may_be_sending {
            return Poll::Ready(());
        }
        deadline.set_if_unset(LINGER_TIMEOUT);
        state.poll_drain(cx, &mut deadline, &mut remaining_bytes)
    })
    .await;
}
