//! A request's body before anybody has decided to read it.

use hyper::body::{Body, Incoming};

use crate::link::Link;

/// A body that nobody has begun to read. Where it is dropped like that, the connection is closed with care: the client
/// may still be sending.
pub(super) struct Unread<'a> {
    body: Option<Incoming>,
    link: &'a Link,
}

impl<'a> Unread<'a> {
    pub(super) fn new(body: Incoming, link: &'a Link) -> Self {
        Self { body: Some(body).filter(|body| !body.is_end_stream()), link }
    }

    /// How long it is, as far as its head says.
    pub(super) fn declared(&self) -> Option<u64> {
        self.body.as_ref().map_or(Some(0), |body| body.size_hint().exact())
    }

    /// The body, to be read.
    pub(super) fn take(mut self) -> Option<Incoming> {
        self.body.take()
    }
}

impl Drop for Unread<'_> {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            self.link.leave(body);
        }
    }
}
