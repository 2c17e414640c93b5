//! A closer look at one exchange, where an operator has asked for it: header lines, and the beginnings of both bodies.
//!
//! It is taken from what passes by and changes nothing. What it saw is redacted when the exchange has ended.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use tokio::time::Instant;

use super::{
    inspect::Inspected,
    redact::{MASK, Secrets, is_secret_name, redact_query, secret_values},
    request::Request,
};
use crate::{
    directory::{Agent, Directory},
    fields::{Field, Fields, Known},
    recent::{Detail, Message, Try},
    secret::Masked,
    tokens::Token,
    upload::{Body, Cut, Source},
};

/// So much of a body is shown.
const BODY: usize = 4 * 1024;
/// So much more of it is read, for a secret that lies across the end.
const BEYOND: usize = 1024;
/// So much of all header lines is shown, and of one query.
const HEAD: usize = 8 * 1024;
/// The shortest credential of a caller that is searched for everywhere.
const SHORTEST_SHOWN: usize = 6;

/// What was seen of one exchange so far. It has no `Debug`: it holds credentials.
pub(super) struct Look {
    directory: Arc<Directory>,
    began: Instant,
    query: Option<String>,
    request_lines: Vec<(String, String)>,
    request_body: Rc<RefCell<Excerpt>>,
    answer_lines: Vec<(String, String)>,
    answer_body: Excerpt,
    waits: Vec<(Duration, Duration)>,
    tries: Vec<Sent>,
    /// What its caller showed, and the tokens that it was sent with.
    own: Vec<Masked>,
}

/// The beginning of a body.
#[derive(Default)]
struct Excerpt {
    bytes: Vec<u8>,
    cut: bool,
}

/// One try, and how its answer began.
struct Sent {
    facts: Try,
    lines: Vec<(String, String)>,
    body: Excerpt,
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
        Some(Box::new(Self {
            directory: directory.clone(),
            began,
            query: request.target.query().map(str::to_owned),
            request_lines: request_lines(&request.fields),
            request_body: Rc::default(),
            answer_lines: Vec::new(),
            answer_body: Excerpt::default(),
            waits: Vec::new(),
            tries: Vec::new(),
            own: credentials(request),
        }))
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
        self.waits.push((since.saturating_duration_since(self.began), since.elapsed()));
    }

    /// The request is being sent, with this token.
    pub(super) fn sends(&mut self, at: Instant, token: Option<&Token>) {
        let began = at.saturating_duration_since(self.began);
        self.own.extend(token.map(|token| token.value.clone()));
        let facts = Try { began, took: None, status: 0, errcode: None, refused: None };
        self.tries.push(Sent { facts, lines: Vec::new(), body: Excerpt::default() });
    }

    /// An answer has come.
    pub(super) fn got(&mut self, answer: &Inspected) {
        let Some(sent) = self.tries.last_mut() else { return };
        sent.facts.took = Some(answer.took);
        (sent.facts.status, sent.facts.errcode) = (answer.status.as_u16(), answer.errcode);
        sent.lines = block_lines(answer.lines.as_bytes());
        answer.held.pieces().for_each(|piece| sent.body.push(piece));
    }

    /// The header lines that go to the caller.
    pub(super) fn answers(&mut self, lines: &[u8]) {
        self.answer_lines = block_lines(lines);
    }

    /// A piece of the body that goes to the caller.
    pub(super) fn passes(&mut self, piece: &[u8]) {
        self.answer_body.push(piece);
    }

    /// What was seen, without anything secret.
    pub(super) fn end(self) -> Detail {
        let request_body = std::mem::take(&mut *self.request_body.borrow_mut());
        let own: Vec<_> = self.own.iter().map(Masked::expose).collect();
        let is_key = |word: &str| self.directory.client(word).is_some();
        let directory = &self.directory;
        let secrets =
            Secrets::among(&self.texts(&request_body), &own, |tell| directory.each_secret(tell), &is_key);
        // The last one's answer is what the caller got.
        let passed_on = self.tries.len().saturating_sub(1);
        let tries = self.tries.iter().enumerate().map(|(nth, sent)| {
            let refused = (nth < passed_on).then(|| message(&secrets, &sent.lines, &sent.body));
            Try { refused, ..sent.facts.clone() }
        });
        Detail {
            query: secrets.redact(&redact_query(self.query()), HEAD),
            request: message(&secrets, &self.request_lines, &request_body),
            answer: message(&secrets, &self.answer_lines, &self.answer_body),
            tries: tries.collect(),
            waits: self.waits.clone(),
        }
    }

    fn query(&self) -> &str {
        self.query.as_deref().unwrap_or_default()
    }

    /// All that may be shown.
    fn texts<'a>(&'a self, request_body: &'a Excerpt) -> Vec<&'a str> {
        let tried = self.tries.iter().map(|sent| (&sent.lines, &sent.body));
        let messages = [(&self.request_lines, request_body), (&self.answer_lines, &self.answer_body)];
        let mut texts = vec![self.query()];
        for (lines, body) in messages.into_iter().chain(tried) {
            texts.extend(lines.iter().flat_map(|(name, value)| [&**name, value]));
            texts.push(body.text().0);
        }
        texts
    }
}

/// A message as it may be shown.
fn message(secrets: &Secrets<'_>, lines: &[(String, String)], body: &Excerpt) -> Message {
    let mut room = HEAD;
    let lines = lines.iter().take_while(|(name, value)| {
        room = room.saturating_sub(name.len() + value.len());
        room > 0
    });
    let shown = lines.map(|(name, value)| {
        let value = if is_secret_name(name) { MASK.to_owned() } else { secrets.redact(value, HEAD) };
        (secrets.redact(name, HEAD), value)
    });
    let (text, binary) = body.text();
    // Behind the end of a text that was cut off a secret may go on which nobody has seen.
    let most = if body.cut && !binary { text.len().saturating_sub(BEYOND).min(BODY) } else { BODY };
    Message {
        headers: shown.collect(),
        body: secrets.redact(text, most),
        cut: body.cut || text.len() > most,
        binary,
    }
}

impl Excerpt {
    fn push(&mut self, piece: &[u8]) {
        let room = (BODY + BEYOND).saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
        self.cut |= piece.len() > room;
    }

    /// What of it is text, and whether something else follows.
    fn text(&self) -> (&str, bool) {
        let (text, binary) = match str::from_utf8(&self.bytes) {
            Ok(text) => (text, false),
            Err(error) => {
                let valid = str::from_utf8(&self.bytes[..error.valid_up_to()]).unwrap_or_default();
                (valid, error.error_len().is_some() || !self.cut)
            }
        };
        let is_odd = |it: char| it.is_control() && !matches!(it, '\t' | '\r' | '\n');
        text.find(is_odd).map_or((text, binary), |at| (&text[..at], true))
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
fn request_lines(fields: &Fields) -> Vec<(String, String)> {
    let shown = fields.beyond_connection().map(|Field { known, name, value }| {
        let value = match known {
            Known::Authorization | Known::ApiKey => MASK.to_owned(),
            _ => text_of(value),
        };
        (text_of(name), value)
    });
    shown.collect()
}

/// What a caller shows of itself, whether it was right or not: keys, passes and the like, as they are and as they were
/// written.
fn credentials(request: &Request) -> Vec<Masked> {
    let mut shown = Vec::new();
    for value in request.fields.all(Known::Authorization).chain(request.fields.all(Known::ApiKey)) {
        let value = text_of(value.trim_ascii());
        let bare = value.split_once(' ').map_or(&*value, |(_, rest)| rest.trim());
        let pair = BASE64_STANDARD.decode(bare).ok().and_then(|pair| String::from_utf8(pair).ok());
        let password = pair.as_deref().and_then(|pair| pair.split_once(':')).map(|(_, password)| password);
        shown.extend(password.map(Masked::new));
        shown.push(Masked::new(bare));
    }
    shown.extend(secret_values(request.target.query().unwrap_or_default()).map(Masked::new));
    // What is shorter is part of too much else; it is masked where it stood.
    shown.retain(|shown| shown.expose().len() >= SHORTEST_SHOWN);
    shown
}

/// The lines of a block.
fn block_lines(block: &[u8]) -> Vec<(String, String)> {
    let lines = block.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let pairs = lines.filter_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        Some((text_of(&line[..colon]), text_of(line[colon + 1..].trim_ascii())))
    });
    pairs.collect()
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excerpt(pieces: &[&[u8]]) -> Excerpt {
        let mut excerpt = Excerpt::default();
        pieces.iter().for_each(|piece| excerpt.push(piece));
        excerpt
    }

    #[test]
    fn a_body_is_seen_up_to_its_first_byte_that_is_no_text() {
        for (body, expected) in [
            (&b"plain\ttext\r\n"[..], ("plain\ttext\r\n", false)),
            (b"name=\"media\"\r\n\r\n\x89PNG", ("name=\"media\"\r\n\r\n", true)),
            (b"a\0b", ("a", true)),
            ("half \u{5f20}".as_bytes().split_last().expect("bytes").1, ("half ", true)),
        ] {
            assert_eq!(excerpt(&[body]).text(), expected);
        }
    }

    #[test]
    fn a_long_body_is_cut_wherever_its_pieces_end() {
        let long = "\u{5f20}".repeat(4000);
        let (one, other) = long.as_bytes().split_at(5000);
        let excerpt = excerpt(&[one, other]);
        assert!(excerpt.cut && excerpt.bytes.len() == BODY + BEYOND);
        let (text, binary) = excerpt.text();
        assert!(!binary && long.starts_with(text), "a character that was cut is no other kind of body");
    }
}
