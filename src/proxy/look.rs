//! A closer look at one exchange, where an operator has asked for it: header lines, and the beginnings of both bodies.
//!
//! It is copied from what passes by and changes nothing. When the exchange has ended, what was seen is redacted on another
//! thread: that may take long, and a worker has other callers.

mod seen;

use std::{
    cell::RefCell,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::time::Instant;

use self::seen::{Excerpt, Lines, Seen, Sent};
use super::{inspect::Inspected, redact::MASK, request::Request};
use crate::{
    directory::{Agent, Directory},
    fields::{Field, Fields, Known},
    recent::{Capture, Try},
    secret::Masked,
    tokens::Token,
    upload::{Body, Cut, Source},
};

/// What was seen of one exchange so far. It has no `Debug`: it holds credentials.
pub(super) struct Look {
    began: Instant,
    request_body: Rc<RefCell<Excerpt>>,
    seen: Seen,
}

impl Look {
    /// Looks at a request of this agent, if somebody wants to.
    pub(super) fn begin(
        directory: &Arc<Directory>,
        agent: Option<&Arc<Agent>>,
        request: &Request,
        began: Instant,
    ) -> Option<Box<Self>> {
        agent.filter(|agent| agent.inspection.is_on())?;
        let seen = Seen {
            directory: directory.clone(),
            query: request.target.query().unwrap_or_default().to_owned(),
            request_lines: request_lines(&request.fields),
            request_body: Excerpt::default(),
            answer_lines: Lines::default(),
            answer_body: Excerpt::default(),
            waits: Vec::new(),
            tries: Vec::new(),
            shown: credentials(&request.fields),
            tokens: Vec::new(),
        };
        Some(Box::new(Self { began, request_body: Rc::default(), seen }))
    }

    /// The same body, whose beginning is seen while it is read.
    pub(super) fn tap(&self, body: Body) -> Body {
        match body {
            Body::None => Body::None,
            Body::Whole(whole) => {
                self.request_body.borrow_mut().push(&whole);
                Body::Whole(whole)
            }
            Body::Streamed(source) => {
                Body::Streamed(Box::new(Tapped { source, seen: self.request_body.clone() }))
            }
        }
    }

    /// The request has waited for a token since then.
    pub(super) fn waited(&mut self, since: Instant) {
        self.seen.waits.push((since.saturating_duration_since(self.began), since.elapsed()));
    }

    /// The request is being sent, with this token.
    pub(super) fn sends(&mut self, at: Instant, token: Option<&Token>) {
        let began = at.saturating_duration_since(self.began);
        self.seen.tokens.extend(token.map(|token| token.value.clone()));
        let facts = Try { began, took: None, status: 0, errcode: None, refused: None };
        self.seen.tries.push(Sent { facts, lines: Lines::default(), body: Excerpt::default() });
    }

    /// An answer has come.
    pub(super) fn got(&mut self, answer: &Inspected) {
        let Some(sent) = self.seen.tries.last_mut() else { return };
        sent.facts.took = Some(answer.took);
        (sent.facts.status, sent.facts.errcode) = (answer.status.as_u16(), answer.errcode);
        sent.lines = block_lines(answer.lines.as_bytes());
        answer.held.pieces().for_each(|piece| sent.body.push(piece));
    }

    /// The header lines that go to the caller.
    pub(super) fn answers(&mut self, lines: &[u8]) {
        self.seen.answer_lines = block_lines(lines);
    }

    /// A piece of the body that goes to the caller.
    pub(super) fn passes(&mut self, piece: &[u8]) {
        self.seen.answer_body.push(piece);
    }

    /// What was seen, to be redacted.
    pub(super) fn end(self) -> Capture {
        let Self { request_body, mut seen, .. } = self;
        seen.request_body = std::mem::take(&mut *request_body.borrow_mut());
        Capture { bytes: seen.size(), redact: Box::new(move || seen.redacted()) }
    }
}

/// A body that is seen while it is read.
struct Tapped {
    source: Box<dyn Source>,
    seen: Rc<RefCell<Excerpt>>,
}

impl Source for Tapped {
    fn declared(&self) -> Option<u64> {
        self.source.declared()
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Cut>> {
        let piece = ready!(self.source.poll_piece(cx));
        if let Ok(Some(piece)) = &piece {
            self.seen.borrow_mut().push(piece);
        }
        Poll::Ready(piece)
    }

    fn is_ended(&self) -> bool {
        self.source.is_ended()
    }
}

/// What a caller's lines say, but for those that belong to its connection. Of its credentials only the names are taken.
fn request_lines(fields: &Fields) -> Lines {
    Lines::new(fields.beyond_connection().map(|Field { known, name, value }| match known {
        Known::Authorization | Known::ApiKey => (name, MASK.as_bytes()),
        _ => (name, value),
    }))
}

/// What a caller's lines say that show credentials.
fn credentials(fields: &Fields) -> Vec<Masked> {
    let values = fields.all(Known::Authorization).chain(fields.all(Known::ApiKey));
    values.map(|value| Masked::new(String::from_utf8_lossy(value).into_owned())).collect()
}

/// The lines of a block.
fn block_lines(block: &[u8]) -> Lines {
    let lines = block.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    Lines::new(lines.filter_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    }))
}
