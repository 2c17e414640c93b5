//! Tells an observer of each call that fetches a token, and which request it was made for.

use std::{
    borrow::Cow,
    future::Future,
    time::{Duration, SystemTime},
};

use tokio::{task::futures::TaskLocalFuture, time::Instant};

use super::{CachedToken, FetchError, RefreshReason};
use crate::{time::clock, wecom::errcode};

tokio::task_local! {
    static CAUSE: FetchCause;
}

/// Is told of each call.
pub trait FetchObserver: Send + Sync {
    /// A call has ended; runs in the task that made it.
    fn observe(&self, fetch: EndedFetch);
}

/// The request that a token is fetched for, if it is traced.
#[derive(Debug, Clone, Copy, Default)]
pub struct FetchCause(Option<CausingRequest>);

/// The span of a request that waits for a token.
#[derive(Debug, Clone, Copy)]
pub struct CausingRequest {
    /// The trace that it belongs to.
    pub trace_id: [u8; 16],
    /// The id of its span.
    pub span_id: [u8; 8],
    /// Whether its trace is exported, however the request ends.
    pub sampled: bool,
}

impl FetchCause {
    /// This request.
    pub fn of(request: CausingRequest) -> Self {
        Self(Some(request))
    }

    /// That of the running task.
    pub fn current() -> Self {
        CAUSE.try_with(|cause| *cause).unwrap_or_default()
    }

    /// The request, if there is one.
    pub fn request(self) -> Option<CausingRequest> {
        self.0
    }

    /// Runs `future` with this cause.
    pub fn scope<F: Future>(self, future: F) -> TaskLocalFuture<Self, F> {
        CAUSE.scope(self, future)
    }
}

/// A call that fetched a token, or failed to.
pub struct EndedFetch {
    /// The agent.
    pub agent: Box<str>,
    /// The HTTP method.
    pub method: &'static str,
    /// The API path.
    pub path: &'static str,
    /// The index of the upstream.
    pub upstream: usize,
    /// Why it was made.
    pub reason: &'static str,
    /// Whether WeCom had refused the token before.
    pub is_refusal: bool,
    /// When it ended.
    pub ended_at: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// WeCom's errcode, if there was one.
    pub errcode: Option<i64>,
    /// The type and the message of its failure.
    pub error: Option<(Cow<'static, str>, String)>,
}

impl CachedToken {
    /// Counts a call, and tells the observer of it.
    pub(super) fn record_call<T>(
        &self,
        reason: RefreshReason,
        duration: Duration,
        outcome: &Result<T, FetchError>,
    ) {
        self.service.refresh_counts.record_call(self.counted_as(), duration, outcome);
        let failure = outcome.as_ref().err();
        let Some(observer) = self.service.fetch_observer.get() else { return };
        if failure.is_some_and(|failure| !failure.is_of_call()) {
            return;
        }
        let (method, path) = self.kind.call();
        observer.observe(EndedFetch {
            agent: self.agent_name.as_str().into(),
            method,
            path,
            upstream: self.credentials.upstream.index(),
            reason: reason.as_str(),
            is_refusal: reason.is_refusal(),
            ended_at: clock::wall_clock_at(Instant::now()),
            duration,
            errcode: match failure {
                None => Some(errcode::OK),
                Some(FetchError::Errcode { errcode, .. }) => Some(*errcode),
                Some(_) => None,
            },
            error: failure.map(|failure| (failure.error_type(), failure.public_message().into())),
        });
    }
}
