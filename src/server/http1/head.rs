//! The head of an HTTP/1 request, taken off what a client sent. Strict: what could be read in two ways is refused.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode, Version};

use crate::{
    fields::{Familiar, Fields, Found, Known, is_same},
    framing::{Framing, FramingError, has_bare_line_feed},
    proxy::RequestTarget,
    secret::wipe,
};

/// Most bytes of a head.
pub(super) const MAX_HEAD: usize = 64 * 1024;
/// Longest target that is remembered.
const LONGEST_USUAL: usize = 1024;
/// Most header lines.
const MAX_LINES: usize = 100;

/// A request's head.
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) version: Version,
    pub(super) target: RequestTarget,
    /// The authority of a target in absolute form.
    pub(super) authority: Option<Bytes>,
    pub(super) fields: Fields,
    /// How the body is framed, or why nobody can tell.
    pub(super) framing: Result<Framing, FramingError>,
}

impl Head {
    fn new(asked: Asked, fields: Fields) -> Self {
        let Asked { method, version, target, authority } = asked;
        let framing = Framing::of_request(version, &fields);
        Self { method, version, target, authority, fields, framing }
    }

    /// Whether the client wants to send more requests on this connection.
    pub(super) fn is_persistent(&self) -> bool {
        match self.version {
            Version::HTTP_11 => !self.fields.says_close(),
            _ => self.fields.says_keep_alive() && !self.fields.says_close(),
        }
    }

    /// Whether the client waits for a word before it sends the body.
    pub(super) fn expects_continue(&self) -> bool {
        self.version == Version::HTTP_11
            && self.fields.all(Known::Expect).any(|value| value.eq_ignore_ascii_case(b"100-continue"))
    }
}

/// A head that is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) status: StatusCode,
    pub(super) words: &'static str,
}

const fn malformed(words: &'static str) -> Malformed {
    Malformed { status: StatusCode::BAD_REQUEST, words }
}

const fn too_large(words: &'static str) -> Malformed {
    Malformed { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, words }
}

/// What a request line says.
struct Asked {
    method: Method,
    version: Version,
    target: RequestTarget,
    authority: Option<Bytes>,
}

/// What the requests of a connection have in common with those before them.
#[derive(Default)]
pub struct Habits {
    /// Their header lines.
    familiar: Familiar,
    /// What the last one asked for.
    last: Option<Usual>,
}

/// Asked in HTTP/1.1, without an authority.
struct Usual {
    method: Method,
    target: RequestTarget,
}

impl Habits {
    /// What a line asks for, if it is the line of the request before. How long it takes to see that it is another does not
    /// tell where they differ: there may be a pass in it.
    fn recall(&self, first_line: &[u8]) -> Option<Asked> {
        let Usual { method, target } = self.last.as_ref()?;
        let rest = first_line.strip_prefix(method.as_str().as_bytes())?.strip_prefix(b" ")?;
        let is_same = is_same(rest.strip_suffix(b" HTTP/1.1\r\n")?, target.text().as_bytes());
        is_same.then(|| Asked {
            method: method.clone(),
            version: Version::HTTP_11,
            target: target.clone(),
            authority: None,
        })
    }

    fn note(&mut self, asked: &Asked) {
        let Asked { method, version, target, authority } = asked;
        // A gettoken is rare, and there is a key in it: it is not kept in memory longer than it takes.
        let is_usual = target.text().len() <= LONGEST_USUAL && !target.path().ends_with("/gettoken");
        if *version == Version::HTTP_11 && authority.is_none() && is_usual {
            self.last = Some(Usual { method: method.clone(), target: target.clone() });
        }
    }
}

/// Takes a whole head off the buffer; `None` while it is not all there.
pub(super) fn take(buffer: &mut BytesMut, habits: &mut Habits) -> Result<Option<Head>, Malformed> {
    if let Some(head) = take_familiar(buffer, habits) {
        return Ok(Some(head));
    }
    let mut lines = [const { MaybeUninit::uninit() }; MAX_LINES];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(buffer, &mut lines) {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Partial) if !buffer.contains(&b'\n') => {
            let words = "the request's target is longer than 64 KiB";
            return Err(Malformed { status: StatusCode::URI_TOO_LONG, words });
        }
        Ok(_) => return Err(too_large("the request's head is longer than 64 KiB")),
        Err(error) => return Err(flaw(error)),
    };
    if has_bare_line_feed(&buffer[..length]) {
        return Err(malformed("a line of the head ends without a carriage return"));
    }
    let asked = asked(&request)?;
    habits.note(&asked);
    let fields = Found::new(&buffer[..length], request.headers).wipe_off(buffer, length);
    if fields.names_too_many() {
        return Err(too_large("Connection names more than 100 headers"));
    }
    Ok(Some(Head::new(asked, habits.familiar.note(fields))))
}

/// The same for a head of which only the first line is new. What is wrong with one is not said here.
fn take_familiar(buffer: &mut BytesMut, habits: &mut Habits) -> Option<Head> {
    let (first_line, fields, length) = habits.familiar.recognise_head(buffer)?;
    if length > MAX_HEAD {
        return None;
    }
    let asked = match habits.recall(first_line) {
        Some(asked) => asked,
        None => {
            let asked = first_line_alone(first_line)?;
            habits.note(&asked);
            asked
        }
    };
    wipe(&mut buffer[..length]);
    buffer.advance(length);
    Some(Head::new(asked, fields))
}

/// What a request line says whose header lines are known.
fn first_line_alone(line: &[u8]) -> Option<Asked> {
    if has_bare_line_feed(line) {
        return None;
    }
    let mut request = httparse::Request::new(&mut []);
    if request.parse(line).ok()?.is_complete() {
        return None;
    }
    asked(&request).ok()
}

/// Takes in the request line.
fn asked(request: &httparse::Request<'_, '_>) -> Result<Asked, Malformed> {
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(malformed("the request line is not complete"));
    };
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| malformed("the method is not one"))?;
    let version = if version == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let path_at =
        path_start(target).ok_or(malformed("the request's target is neither a path nor an http URL"))?;
    let authority =
        authority_start(target).map(|start| Bytes::copy_from_slice(&target.as_bytes()[start..path_at]));
    // `http://host` stands for `http://host/`.
    let target = if path_at == target.len() { "/" } else { &target[path_at..] };
    Ok(Asked { method, version, target: RequestTarget::new(target), authority })
}

/// Where in a request-target the path begins. What has none is for other kinds of server.
fn path_start(target: &str) -> Option<usize> {
    if target.starts_with('/') {
        return Some(0);
    }
    let authority = authority_start(target)?;
    Some(target[authority..].find(['/', '?', '#']).map_or(target.len(), |end| authority + end))
}

/// Where the authority begins, if the target is in absolute form.
fn authority_start(target: &str) -> Option<usize> {
    let begins =
        |scheme: &&str| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    ["http://", "https://"].iter().find(|scheme| begins(scheme)).map(|scheme| scheme.len())
}

/// What the caller is told of a head that cannot be parsed.
fn flaw(error: httparse::Error) -> Malformed {
    use httparse::Error;
    match error {
        Error::TooManyHeaders => too_large("the request has more than 100 header lines"),
        Error::HeaderName => malformed("a header's name is not one, or a header line is folded"),
        Error::HeaderValue => malformed("a header's value holds a control character"),
        Error::Version => malformed("the request line does not end in HTTP/1.0 or HTTP/1.1"),
        _ => malformed("the request line or a header line is malformed"),
    }
}

/// What the caller is told of a body that nobody knows the end of.
pub(super) fn words(error: FramingError) -> &'static str {
    match error {
        FramingError::Length => "Content-Length is not one number",
        FramingError::TransferEncoding => "Transfer-Encoding is not exactly \"chunked\"",
        FramingError::TwoFramings => {
            "Transfer-Encoding stands beside Content-Length, or in a request of HTTP/1.0"
        }
        FramingError::Chunk | FramingError::Overhead => "the body's chunks are not well formed",
    }
}
