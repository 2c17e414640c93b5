//! Request heads, against a strict parser of RFC 9112 that has the complete input.

use bytes::BytesMut;
use http::Version;
use wecom_proxy::{
    http1::framing::Framing,
    internals::{RequestHead, RequestHeadCache, parse_request_head},
};

use super::reference::{
    BodyFraming, HeaderLine, body_framing, connection_options, is_token_letter, mutate_byte,
    parse_header_line, split_input,
};

const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADER_LINES: usize = 100;
/// Limit of the options in `Connection`.
const MAX_CONNECTION_OPTIONS: usize = 100;

/// Input: a byte that selects the split, then the bytes from the client.
pub fn check(data: &[u8]) {
    let Some((selector, wire)) = data.split_first() else { return };
    let (whole, rest) = parse_split([wire], &mut RequestHeadCache::default());
    let (split, split_rest) = parse_split(split_input(*selector, wire), &mut RequestHeadCache::default());
    assert_eq!(summary(&whole), summary(&split), "the split changes the result");
    check_with_warm_cache(*selector, wire);
    let reference = reference_parse(wire);
    match (&whole, &reference) {
        (Ok(Some(head)), Some(reference)) => {
            assert_matches_reference(head, reference);
            assert_eq!(&rest[..], reference.rest, "bytes after the head are missing");
            assert_eq!(split_rest, rest);
        }
        (Ok(Some(_)), None) => panic!("accepted: {:?}", String::from_utf8_lossy(wire)),
        (Ok(None) | Err(_), Some(reference)) => {
            assert!(reference.may_be_refused, "refused: {:?}", String::from_utf8_lossy(wire));
        }
        (Ok(None) | Err(_), None) => {}
    }
}

type ParseResult = Result<Option<RequestHead>, u16>;

/// The result of parsing a head received in these chunks, and the bytes after it.
fn parse_split<'a>(
    chunks: impl IntoIterator<Item = &'a [u8]>,
    cache: &mut RequestHeadCache,
) -> (ParseResult, BytesMut) {
    let (mut buffer, mut result) = (BytesMut::new(), Ok(None));
    for chunk in chunks {
        buffer.extend_from_slice(chunk);
        if matches!(result, Ok(None)) {
            result = parse_request_head(&mut buffer, cache).map_err(|error| error.status.as_u16());
        }
    }
    (result, buffer)
}

/// A cache that holds the same or nearly the same head does not change the result.
fn check_with_warm_cache(selector: u8, wire: &[u8]) {
    let mut cache = RequestHeadCache::default();
    (0..3).for_each(|_| drop(parse_split([wire], &mut cache)));
    for wire in [wire, &mutate_byte(selector, wire)] {
        let (cached, cached_rest) = parse_split([wire], &mut cache);
        let (uncached, uncached_rest) = parse_split([wire], &mut RequestHeadCache::default());
        assert_eq!(summary(&cached), summary(&uncached), "the cache changes the result");
        assert_eq!(cached_rest, uncached_rest);
    }
}

fn summary(result: &ParseResult) -> Result<Option<String>, ()> {
    let describe = |head: &RequestHead| {
        let lines: Vec<_> = head.headers.iter().map(|field| (field.name, field.value)).collect();
        let target = (head.target.path(), head.target.query(), &head.authority);
        format!("{:?} {:?} {target:?} {lines:?} {:?}", head.method, head.version, head.framing)
    };
    result.as_ref().map(|head| head.as_ref().map(describe)).map_err(|_| ())
}

struct ReferenceHead<'a> {
    method: &'a [u8],
    target: &'a [u8],
    is_http11: bool,
    header_lines: Vec<HeaderLine<'a>>,
    rest: &'a [u8],
    /// Whether the head is valid, but exceeds a limit or has a form that a server need not support.
    may_be_refused: bool,
}

/// Parses a head by RFC 9112, sections 2 to 5; lines end only in CR LF.
fn reference_parse(wire: &[u8]) -> Option<ReferenceHead<'_>> {
    let (mut wire, mut empty_lines) = (wire, 0);
    while let Some(rest) = wire.strip_prefix(b"\r\n") {
        (wire, empty_lines) = (rest, empty_lines + 1);
    }
    let end = wire.windows(4).position(|four| four == b"\r\n\r\n")?;
    let mut lines = split_lines(&wire[..end])?.into_iter();
    let mut parts = lines.next()?.split(|byte| *byte == b' ');
    let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    let is_http11 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return None,
    };
    let valid = parts.next().is_none()
        && !method.is_empty()
        && method.iter().all(|byte| is_token_letter(*byte))
        && !target.is_empty()
        && target.iter().all(|byte| *byte > b' ' && *byte != 0x7f);
    let lines = lines.map(parse_header_line).collect::<Option<Vec<_>>>().filter(|_| valid)?;
    let may_be_refused = empty_lines > 1
        || end + 4 > MAX_HEAD_BYTES
        || lines.len() > MAX_HEADER_LINES
        || connection_options(&lines).len() > MAX_CONNECTION_OPTIONS
        || !target.is_ascii()
        || !(target.starts_with(b"/") || is_absolute_form(target));
    Some(ReferenceHead {
        method,
        target,
        is_http11,
        header_lines: lines,
        rest: &wire[end + 4..],
        may_be_refused,
    })
}

/// The lines of a head; `None` if it contains a bare CR or LF.
fn split_lines(head: &[u8]) -> Option<Vec<&[u8]>> {
    let (mut lines, mut start) = (Vec::new(), 0);
    for index in 0..head.len() {
        match (head[index], head.get(index + 1), index.checked_sub(1).map(|before| head[before])) {
            (b'\r', Some(b'\n'), _) => {
                lines.push(&head[start..index]);
                start = index + 2;
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

fn assert_matches_reference(head: &RequestHead, reference: &ReferenceHead<'_>) {
    assert_eq!(head.method.as_str().as_bytes(), reference.method);
    assert_eq!(head.version, if reference.is_http11 { Version::HTTP_11 } else { Version::HTTP_10 });
    let lines: Vec<_> = head.headers.iter().map(|field| (field.name, field.value)).collect();
    assert_eq!(lines, reference.header_lines);
    let target = match head.target.query() {
        Some(query) => format!("{}?{query}", head.target.path()),
        None => head.target.path().to_owned(),
    };
    match &head.authority {
        None => assert_eq!(target.as_bytes(), reference.target),
        Some(authority) => {
            assert!(is_absolute_form(reference.target) && !authority.contains(&b'/'));
            let after = reference.target.windows(3).position(|three| three == b"://").expect("a scheme") + 3;
            let rebuilt = [&authority[..], target.as_bytes()].concat();
            assert!(
                rebuilt == reference.target[after..]
                    || rebuilt == [&reference.target[after..], b"/"].concat()
            );
        }
    }
    let framing = match body_framing(&reference.header_lines, false) {
        // HTTP/1.0 has no chunked coding.
        Ok(BodyFraming::Chunked) if !reference.is_http11 => Err(()),
        framing => framing,
    };
    match (&head.framing, framing) {
        (Ok(Framing::Done), Ok(BodyFraming::None)) | (Ok(Framing::Chunked(_)), Ok(BodyFraming::Chunked)) => {}
        (Ok(Framing::Length(actual)), Ok(BodyFraming::Length(expected))) if *actual == expected => {}
        (Err(_), Err(())) => {}
        (actual, expected) => panic!("{actual:?}, reference: {expected:?}"),
    }
    let options = connection_options(&reference.header_lines);
    let has_option = |option: &[u8]| options.iter().any(|known| known == option);
    let persistent = !has_option(b"close") && (reference.is_http11 || has_option(b"keep-alive"));
    assert_eq!(head.is_persistent(), persistent, "{:?}", reference.header_lines);
}
