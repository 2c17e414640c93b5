//! A request's head, against a strict reader of RFC 9112 that has all the bytes at once.

use bytes::BytesMut;
use http::Version;
use wecom_proxy::{
    fuzz::{FuzzedRequestHead, RequestHeadCache, request_head},
    http1::framing::Framing,
};

use super::reference::{
    BodyFraming, HeaderLine, body_framing, connection_options, is_token_letter, mutate_byte,
    parse_header_line, split_input,
};

const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADER_LINES: usize = 100;
/// Names in `Connection`.
const MAX_CONNECTION_OPTIONS: usize = 100;

/// The input is a byte that says how to cut, and what a client sends.
pub fn check(data: &[u8]) {
    let Some((how, wire)) = data.split_first() else { return };
    let (whole, left) = parse_split([wire], &mut RequestHeadCache::default());
    let (cut, left_of_cut) = parse_split(split_input(*how, wire), &mut RequestHeadCache::default());
    assert_eq!(summary(&whole), summary(&cut), "the cuts make a difference");
    check_with_warm_cache(*how, wire);
    let model = reference_parse(wire);
    match (&whole, &model) {
        (Ok(Some(head)), Some(model)) => {
            assert_matches_reference(head, model);
            assert_eq!(&left[..], model.rest, "what follows the head is not all there");
            assert_eq!(left_of_cut, left);
        }
        (Ok(Some(_)), None) => panic!("taken for a head: {:?}", String::from_utf8_lossy(wire)),
        (Ok(None) | Err(_), Some(model)) => {
            assert!(model.may_be_refused, "not taken: {:?}", String::from_utf8_lossy(wire));
        }
        (Ok(None) | Err(_), None) => {}
    }
}

type ParseResult = Result<Option<FuzzedRequestHead>, u16>;

/// What becomes of the head when it comes in these pieces, and what is left behind it.
fn parse_split<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    habits: &mut RequestHeadCache,
) -> (ParseResult, BytesMut) {
    let (mut buffer, mut outcome) = (BytesMut::new(), Ok(None));
    for piece in pieces {
        buffer.extend_from_slice(piece);
        if matches!(outcome, Ok(None)) {
            outcome = request_head(&mut buffer, habits).map_err(|status| status.as_u16());
        }
    }
    (outcome, buffer)
}

/// A connection that brought the same lines before, or nearly the same, is read no other way.
fn check_with_warm_cache(how: u8, wire: &[u8]) {
    let mut habits = RequestHeadCache::default();
    (0..3).for_each(|_| drop(parse_split([wire], &mut habits)));
    for wire in [wire, &mutate_byte(how, wire)] {
        let (again, left) = parse_split([wire], &mut habits);
        let (anew, left_anew) = parse_split([wire], &mut RequestHeadCache::default());
        assert_eq!(summary(&again), summary(&anew), "what came before makes a difference");
        assert_eq!(left, left_anew);
    }
}

fn summary(taken: &ParseResult) -> Result<Option<String>, ()> {
    let told = |head: &FuzzedRequestHead| {
        let lines: Vec<_> = head.headers.iter().map(|field| (field.name, field.value)).collect();
        let target = (head.target.path(), head.target.query(), &head.authority);
        format!("{:?} {:?} {target:?} {lines:?} {:?}", head.method, head.version, head.framing)
    };
    taken.as_ref().map(|head| head.as_ref().map(told)).map_err(|_| ())
}

struct ReferenceHead<'a> {
    method: &'a [u8],
    target: &'a [u8],
    is_http11: bool,
    header_lines: Vec<HeaderLine<'a>>,
    rest: &'a [u8],
    /// It is well formed, and beyond a bound, or of a form that a server need not serve.
    may_be_refused: bool,
}

/// A head by RFC 9112 §2 to §5, the lines of which end in CR LF, and nothing else does.
fn reference_parse(wire: &[u8]) -> Option<ReferenceHead<'_>> {
    let (mut wire, mut empty) = (wire, 0);
    while let Some(after) = wire.strip_prefix(b"\r\n") {
        (wire, empty) = (after, empty + 1);
    }
    let end = wire.windows(4).position(|four| four == b"\r\n\r\n")?;
    let mut lines = split_lines(&wire[..end])?.into_iter();
    let mut words = lines.next()?.split(|byte| *byte == b' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let is_new = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return None,
    };
    let sound = words.next().is_none()
        && !method.is_empty()
        && method.iter().all(|byte| is_token_letter(*byte))
        && !target.is_empty()
        && target.iter().all(|byte| *byte > b' ' && *byte != 0x7f);
    let lines = lines.map(parse_header_line).collect::<Option<Vec<_>>>().filter(|_| sound)?;
    let may_be_refused = empty > 1
        || end + 4 > MAX_HEAD_BYTES
        || lines.len() > MAX_HEADER_LINES
        || connection_options(&lines).len() > MAX_CONNECTION_OPTIONS
        || !target.is_ascii()
        || !(target.starts_with(b"/") || is_absolute_form(target));
    Some(ReferenceHead {
        method,
        target,
        is_http11: is_new,
        header_lines: lines,
        rest: &wire[end + 4..],
        may_be_refused,
    })
}

/// The lines of a head; `None` where a CR or an LF stands alone.
fn split_lines(head: &[u8]) -> Option<Vec<&[u8]>> {
    let (mut lines, mut start) = (Vec::new(), 0);
    for at in 0..head.len() {
        match (head[at], head.get(at + 1), at.checked_sub(1).map(|before| head[before])) {
            (b'\r', Some(b'\n'), _) => {
                lines.push(&head[start..at]);
                start = at + 2;
            }
            (b'\r', _, _) => return None,
            (b'\n', _, before) if before != Some(b'\r') => return None,
            _ => {}
        }
    }
    lines.push(&head[start..]);
    Some(lines)
}

fn is_absolute_form(target: &[u8]) -> bool {
    let text = target.to_ascii_lowercase();
    text.starts_with(b"http://") || text.starts_with(b"https://")
}

fn assert_matches_reference(head: &FuzzedRequestHead, model: &ReferenceHead<'_>) {
    assert_eq!(head.method.as_str().as_bytes(), model.method);
    assert_eq!(head.version, if model.is_http11 { Version::HTTP_11 } else { Version::HTTP_10 });
    let lines: Vec<_> = head.headers.iter().map(|field| (field.name, field.value)).collect();
    assert_eq!(lines, model.header_lines);
    let target = match head.target.query() {
        Some(query) => format!("{}?{query}", head.target.path()),
        None => head.target.path().to_owned(),
    };
    match &head.authority {
        None => assert_eq!(target.as_bytes(), model.target),
        Some(authority) => {
            assert!(is_absolute_form(model.target) && !authority.contains(&b'/'));
            let after = model.target.windows(3).position(|three| three == b"://").expect("a scheme") + 3;
            let said = [&authority[..], target.as_bytes()].concat();
            assert!(said == model.target[after..] || said == [&model.target[after..], b"/"].concat());
        }
    }
    let framing = match body_framing(&model.header_lines, false) {
        // No body of HTTP/1.0 has chunks.
        Ok(BodyFraming::Chunked) if !model.is_http11 => Err(()),
        framing => framing,
    };
    match (&head.framing, framing) {
        (Ok(Framing::Done), Ok(BodyFraming::None)) | (Ok(Framing::Chunked(_)), Ok(BodyFraming::Chunked)) => {}
        (Ok(Framing::Length(ours)), Ok(BodyFraming::Length(theirs))) if *ours == theirs => {}
        (Err(_), Err(())) => {}
        (ours, theirs) => panic!("{ours:?}, and by the model {theirs:?}"),
    }
    let options = connection_options(&model.header_lines);
    let says = |option: &[u8]| options.iter().any(|said| said == option);
    let persistent = !says(b"close") && (model.is_http11 || says(b"keep-alive"));
    assert_eq!(head.persistent, persistent, "{:?}", model.header_lines);
}
