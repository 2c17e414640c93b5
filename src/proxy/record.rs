//! What becomes known of one request on its way, and where it is written down when its answer has ended.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::Method;
use tokio::time::Instant;

use super::{
    look::Look,
    refusal::Kind,
    request::{Request, Target},
    sign::RequestId,
};
use crate::{
    access::{AccessLog, Level, Line},
    directory::{Agent, Client},
    metrics::Counter,
    recent::{Detail, Recorder},
};

/// Where one worker writes down what became of each request.
pub struct Books {
    /// The access log.
    pub access: AccessLog,
    /// The metrics, where somebody can ask for them.
    pub counter: Option<Counter>,
    /// The recent exchanges, where somebody can ask for them.
    pub recorder: Option<Recorder>,
}

impl Books {
    fn enter(
        &self,
        line: &Line<'_>,
        agent: Option<&Arc<Agent>>,
        client: Option<&Arc<Client>>,
        detail: Option<Arc<Detail>>,
    ) {
        if let Some(counter) = &self.counter {
            counter.count(line, agent, client);
        }
        if let Some(recorder) = &self.recorder {
            recorder.keep(line, detail);
        }
        if self.access.wants(line.level) {
            self.access.write(line);
        }
    }

    /// Whether anybody wants to know of a request.
    fn are_kept(&self, level: Level) -> bool {
        self.counter.is_some() || self.recorder.is_some() || self.access.wants(level)
    }
}

/// One request. Dropped when its answer has been handed over, or when its caller has left.
pub(super) struct Record {
    pub(super) began: Instant,
    pub(super) request_id: RequestId,
    /// Where the caller is.
    pub(super) peer: Option<IpAddr>,
    pub(super) client: Option<Arc<Client>>,
    pub(super) agent: Option<Arc<Agent>>,
    /// The answer's HTTP status; 0 where the caller left before there was one.
    pub(super) status: u16,
    pub(super) errcode: Option<i64>,
    /// The errcode for which the request was sent once more.
    pub(super) retried: Option<i64>,
    /// The proxy's own error: its kind, and its words.
    pub(super) error: Option<(Kind, String)>,
    /// Time spent waiting for a token.
    pub(super) token: Duration,
    /// Time spent waiting for the heads of the upstream's answers.
    pub(super) upstream: Duration,
    /// Bytes of the answer's body that went to the caller.
    pub(super) bytes: u64,
    /// Whether the whole answer was handed over.
    pub(super) whole: bool,
    /// What an operator wants to see of it besides.
    pub(super) look: Option<Box<Look>>,
    method: Method,
    target: Target,
    books: Arc<Books>,
}

impl Record {
    /// A request that begins now, and which will be entered in `books`.
    pub(super) fn new(request: &Request, request_id: RequestId, books: Arc<Books>) -> Self {
        Self {
            began: Instant::now(),
            request_id,
            peer: request.peer,
            client: None,
            agent: None,
            status: 0,
            errcode: None,
            retried: None,
            error: None,
            token: Duration::ZERO,
            upstream: Duration::ZERO,
            bytes: 0,
            whole: false,
            look: None,
            method: request.method.clone(),
            target: request.target.clone(),
            books,
        }
    }
}

impl Record {
    /// It has waited for a token since then.
    pub(super) fn waited_for_token(&mut self, since: Instant) {
        self.token += since.elapsed();
        if let Some(look) = &mut self.look {
            look.waited(since);
        }
    }

    /// The path without its query, and without what a mistyped query left in it: both may hold secrets.
    fn path(&self) -> &str {
        shown(self.target.path())
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let failed = self.error.as_ref().is_some_and(|(kind, _)| kind.facts().1.is_server_error());
        let level = if failed { Level::Warn } else { Level::Info };
        if !self.books.are_kept(level) {
            return;
        }
        let detail = self.look.take().map(|look| Arc::new(look.end()));
        let line = Line {
            level,
            at: SystemTime::now(),
            request_id: self.request_id.as_str(),
            peer: self.peer,
            client: self.client.as_ref().map(|client| client.name.as_str()),
            agent: self.agent.as_ref().map(|agent| agent.name.as_str()),
            method: self.method.as_str(),
            path: self.path(),
            status: self.status,
            errcode: self.errcode,
            retried: self.retried,
            error: self.error.as_ref().map(|(kind, _)| kind.facts().0),
            reason: self.error.as_ref().map(|(_, words)| words.as_str()),
            bytes: self.bytes,
            whole: self.whole,
            token: self.token,
            upstream: self.upstream,
            total: self.began.elapsed(),
        };
        self.books.enter(&line, self.agent.as_ref(), self.client.as_ref(), detail);
    }
}

/// A path up to where a mistyped query begins, encoded or not.
fn shown(path: &str) -> &str {
    let encoded = |at: usize| {
        let code = path.as_bytes().get(at + 1..at + 3).unwrap_or_default();
        [b"3f", b"3d", b"26"].iter().any(|mark| code.eq_ignore_ascii_case(*mark))
    };
    let mut marks = memchr::memchr3_iter(b'&', b'=', b'%', path.as_bytes());
    let end = marks.find(|at| path.as_bytes()[*at] != b'%' || encoded(*at));
    &path[..end.unwrap_or(path.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_query_is_not_shown() {
        for (path, expected) in [
            ("/cgi-bin/user/%67et", "/cgi-bin/user/%67et"),
            ("/cgi-bin/a&access_token=x", "/cgi-bin/a"),
            ("/cgi-bin/a=x", "/cgi-bin/a"),
            ("/cgi-bin/a%3Faccess_token%3Dx", "/cgi-bin/a"),
            ("/cgi-bin/a%3daccess", "/cgi-bin/a"),
            ("/cgi-bin/a%26b", "/cgi-bin/a"),
            ("/cgi-bin/a%2", "/cgi-bin/a%2"),
            ("/cgi-bin/a%", "/cgi-bin/a%"),
        ] {
            assert_eq!(shown(path), expected);
        }
    }
}
