//! What becomes known of a request beside its line in the access log, while somebody wants its trace.

use std::time::Duration;

use http::Version;
use tokio::time::Instant;

use super::context::Context;

/// Two tries, a wait for a token before each, and one wait for a place.
pub(super) const MOST_STEPS: usize = 5;

/// A request's trace, as far as it has come.
pub struct Trace {
    pub(super) context: Context,
    pub(super) version: Version,
    pub(super) began: Instant,
    /// The endpoint, where the request has been sent to one.
    pub(super) route: String,
    steps: [Step; MOST_STEPS],
    taken: usize,
}

/// What a request does beside being looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It waits for a place among those in flight.
    Queue,
    /// It waits for a token.
    Token,
    /// It is with WeCom.
    Try,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// WeCom's HTTP status; 0 where there was none.
    pub status: u16,
    /// WeCom's errcode.
    pub errcode: Option<i64>,
    /// The kind of the proxy's own error.
    pub error: Option<&'static str>,
}

#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) doing: Doing,
    pub(super) began: Instant,
    /// How long it took; `None` where the request ended before it did.
    pub(super) took: Option<Duration>,
    pub(super) outcome: Outcome,
}

impl Trace {
    pub(super) fn new(context: Context, version: Version, began: Instant) -> Self {
        let none = Step { doing: Doing::Queue, began, took: None, outcome: Outcome::default() };
        Self { context, version, began, route: String::new(), steps: [none; MOST_STEPS], taken: 0 }
    }

    /// Takes the next step.
    pub fn begin(&mut self, doing: Doing, at: Instant) {
        if let Some(step) = self.steps.get_mut(self.taken) {
            *step = Step { doing, began: at, took: None, outcome: Outcome::default() };
            self.taken += 1;
        }
    }

    /// Ends the step that was taken last.
    pub fn end(&mut self, took: Duration, outcome: Outcome) {
        if let Some(step) = self.taken.checked_sub(1).and_then(|last| self.steps.get_mut(last)) {
            (step.took, step.outcome) = (Some(took), outcome);
        }
    }

    /// The same, now.
    pub fn end_now(&mut self, outcome: Outcome) {
        if let Some(last) = self.steps().last() {
            self.end(last.began.elapsed(), outcome);
        }
    }

    /// Says where the request goes.
    pub fn set_route(&mut self, route: &str) {
        self.route.clear();
        self.route.push_str(route);
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.steps[..self.taken]
    }

    /// Its id, in hexadecimal digits.
    pub fn id(&self) -> [u8; 32] {
        let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
        let mut text = [0; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.context.trace_id) {
            (pair[0], pair[1]) = (digit(byte >> 4), digit(byte & 15));
        }
        text
    }
}
