//! Connections to the upstream over one route: directly, or through one egress proxy.

use std::{cell::Cell, net::SocketAddr, rc::Rc, sync::Arc};

use tokio::{sync::Semaphore, time::Instant};

use super::{
    ConnectError, Delivery, Settings, UpstreamError, UpstreamErrorKind, UpstreamRequest,
    connection::UpstreamConnection,
    dial::{DialedConnection, dial},
    h2,
    pool::Pool,
};

use crate::text;

/// Dials at a time for requests that have to be the first on their connection: an upstream that ends its connections is
/// not to be met by a handshake for each request at once.
const MAX_FIRST_DIALS: usize = 8;

/// The pooled connections of one route.
pub(super) struct Route {
    pub(super) pool: Rc<Pool>,
    /// The index of its egress proxy, if there is one.
    nth: usize,
    /// Whether ALPN last chose HTTP/2; then connections are dialled one at a time.
    speaks_http2: Cell<bool>,
    /// Held while dialling a connection that others can share; holds the time and error of the last failed dial.
    dial_lock: tokio::sync::Mutex<Option<(Instant, ConnectError)>>,
    /// Held while dialling a connection for a request that has to be the first on it.
    first_dials: Semaphore,
}

/// A connection checked out for one request.
pub(super) enum Checkout {
    Http1(Box<UpstreamConnection>),
    Http2(h2::StreamSlot),
}

impl Checkout {
    /// The connection's id if other requests share it.
    pub(super) fn connection_id(&self) -> Option<h2::ConnectionId> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(slot) => Some(slot.connection_id()),
        }
    }
}

impl Route {
    /// A route without open connections.
    pub(super) fn new(settings: &Arc<Settings>, nth: usize) -> Self {
        let speaks_http2 = Cell::new(settings.tls.is_some());
        Self {
            pool: Pool::new(settings.clone()),
            nth,
            speaks_http2,
            dial_lock: Default::default(),
            first_dials: Semaphore::new(MAX_FIRST_DIALS),
        }
    }

    /// An idle connection, or a stream of a shared one.
    pub(super) fn pooled(&self, request: &UpstreamRequest<'_>) -> Option<Checkout> {
        if self.speaks_http2.get()
            && let Some(slot) = self.pool.http2_slot()
        {
            return Some(Checkout::Http2(slot));
        }
        self.pool.take_idle(request.now, request.method.is_idempotent()).map(Checkout::Http1)
    }

    /// Returns a connection when none is pooled, and whether it has carried other requests already. `may_overflow`: if
    /// none can be opened, the request may share one that is full. `is_first`: it has to be the first on its connection.
    pub(super) async fn connect(
        &self,
        may_overflow: bool,
        is_first: bool,
    ) -> Result<(Checkout, bool), UpstreamError> {
        if !self.speaks_http2.get() {
            return Ok((self.dial().await?, false));
        }
        let overflow = || self.overflow().filter(|_| may_overflow);
        if is_first {
            // Waits without a bound of its own: each dial has one. It is never closed.
            let _permit = self.first_dials.acquire().await;
            return match self.dial().await {
                Ok(checkout) => Ok((checkout, false)),
                Err(error) => overflow().ok_or(error),
            };
        }
        // One HTTP/2 connection serves many requests: those that arrive during the dial wait for it and share its
        // failure.
        let arrived_at = Instant::now();
        let mut last_failure = self.dial_lock.lock().await;
        if let Some(slot) = self.pool.http2_slot() {
            return Ok((Checkout::Http2(slot), true));
        }
        if let Some((failed_at, connect_error)) = &*last_failure
            && *failed_at >= arrived_at
        {
            let error = UpstreamError {
                kind: UpstreamErrorKind::Unreachable(connect_error.clone()),
                delivery: Delivery::NotSent,
            };
            return overflow().ok_or(error);
        }
        if !self.speaks_http2.get() {
            drop(last_failure);
            return Ok((self.dial().await?, false));
        }
        let result = self.dial().await;
        *last_failure = result.as_ref().err().map(|error| (Instant::now(), (&error.kind).into()));
        match result {
            Ok(checkout) => Ok((checkout, false)),
            Err(error) => overflow().ok_or(error),
        }
    }

    /// When no connection can be opened, queues the request on the least loaded HTTP/2 connection.
    fn overflow(&self) -> Option<(Checkout, bool)> {
        self.pool.overflow_slot().map(|slot| (Checkout::Http2(slot), true))
    }

    async fn dial(&self) -> Result<Checkout, UpstreamError> {
        let mut dialed = self.dial_once().await;
        if matches!(dialed, Err(UpstreamErrorKind::Http11Required)) {
            dialed = self.dial_once().await;
        }
        dialed.map_err(|kind| UpstreamError { kind, delivery: Delivery::NotSent })
    }

    async fn dial_once(&self) -> Result<Checkout, UpstreamErrorKind> {
        let settings = &self.pool.settings;
        let dialed_at = Instant::now();
        let deadline = dialed_at + settings.connect_timeout;
        let DialedConnection { stream, http2, open } = dial(settings, self.nth).await?;
        self.speaks_http2.set(http2);
        let max_age = self.pool.max_age();
        if !http2 {
            return Ok(Checkout::Http1(Box::new(UpstreamConnection::new(stream, dialed_at, max_age, open))));
        }
        let peer = stream.peer_addr();
        let handshake =
            tokio::time::timeout_at(deadline, h2::Http2Sender::handshake(stream, dialed_at, max_age, open))
                .await;
        let sender = handshake.unwrap_or_else(|_| {
            let message = text!(
                "HTTP/2 handshake exceeded upstream.connect_timeout",
                "HTTP/2 握手超过 upstream.connect_timeout"
            );
            let error = ConnectError::new(message).in_section(&settings.id);
            Err(UpstreamErrorKind::Unreachable(error))
        });
        if matches!(sender, Err(UpstreamErrorKind::Http11Required)) {
            self.fall_back_to_http1(peer);
        }
        Ok(Checkout::Http2(self.pool.add_http2(sender?)))
    }

    /// Connections to this address use HTTP/1.1 for a while.
    pub(super) fn fall_back_to_http1(&self, peer: Option<SocketAddr>) {
        self.speaks_http2.set(false);
        if let Some(peer) = peer.filter(|peer| self.pool.settings.http1_only.add(*peer)) {
            tracing::info!(%peer, "upstream requires HTTP/1.1, using it for this address");
        }
    }
}
