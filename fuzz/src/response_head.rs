//! Response heads, against a strict parser of RFC 9112 that has the complete input. The proxy may also accept unusual heads,
//! but an accepted head must be safe to forward to the client.

use bytes::BytesMut;
use http::Method;
use wecom_proxy::{
    http1::{framing::Framing, headers::HeaderCache},
    internals::{ResponseHead, parse_response_head},
};

use super::reference::{
    BodyFraming, HeaderLine, body_framing, connection_options, is_token_letter, is_value_byte, mutate_byte,
    parse_header_line, split_input,
};

/// Input: a byte that selects the split, then the bytes from the upstream.
pub fn check(data: &[u8]) {
    let Some((selector, wire)) = data.split_first() else { return };
    let (whole, rest) = parse_split([wire], &mut HeaderCache::default());
    let (split, _) = parse_split(split_input(*selector, wire), &mut HeaderCache::default());
    assert_eq!(summary(&whole), summary(&split), "the split changes the result");
    check_with_warm_cache(*selector, wire);
    let reference = reference_parse(wire);
    match (&whole, &reference) {
        (Ok(Some(head)), reference) => {
            assert_safe_to_forward(head);
            if let Some(reference) = reference {
                assert_matches_reference(head, reference);
                assert_eq!(&rest[..], reference.rest, "bytes after the head are missing");
            }
        }
        (_, Some(reference)) => {
            assert!(reference.may_be_refused, "refused: {:?}", String::from_utf8_lossy(wire));
        }
        (_, None) => {}
    }
}

type ParseResult = Result<Option<ResponseHead>, String>;

fn parse_split<'a>(
    chunks: impl IntoIterator<Item = &'a [u8]>,
    cache: &mut HeaderCache,
) -> (ParseResult, BytesMut) {
    let (mut buffer, mut result) = (BytesMut::new(), Ok(None));
    for chunk in chunks {
        buffer.extend_from_slice(chunk);
        if matches!(result, Ok(None)) {
            result = parse_response_head(&mut buffer, cache).map_err(|error| error.to_string());
        }
    }
    (result, buffer)
}

/// A cache that holds the same or nearly the same headers does not change the result.
fn check_with_warm_cache(selector: u8, wire: &[u8]) {
    let mut cache = HeaderCache::default();
    (0..3).for_each(|_| drop(parse_split([wire], &mut cache)));
    for wire in [wire, &mutate_byte(selector, wire)] {
        let (cached, cached_rest) = parse_split([wire], &mut cache);
        let (uncached, uncached_rest) = parse_split([wire], &mut HeaderCache::default());
        assert_eq!(summary(&cached), summary(&uncached), "the cache changes the result");
        assert_eq!(cached_rest, uncached_rest);
    }
}

fn summary(result: &ParseResult) -> Result<Option<String>, ()> {
    let describe = |head: &ResponseHead| {
        let lines: Vec<_> = head.headers.iter().map(|field| (field.name, field.value)).collect();
        format!("{:?} {:?} {lines:?}", head.status, head.keep_alive)
    };
    result.as_ref().map(|head| head.as_ref().map(describe)).map_err(|_| ())
}

/// No name or value contains a byte that could end a line or the head when it is written.
fn assert_safe_to_forward(head: &ResponseHead) {
    for field in head.headers.iter() {
        assert!(!field.name.is_empty() && field.name.iter().all(|byte| is_token_letter(*byte)));
        assert!(field.value.iter().all(|byte| is_value_byte(*byte)), "{:?}", field.value);
    }
    assert!((100..1000).contains(&head.status.as_u16()) && head.status.as_u16() != 101);
}

struct ReferenceHead<'a> {
    status: u16,
    is_http11: bool,
    header_lines: Vec<HeaderLine<'a>>,
    rest: &'a [u8],
    may_be_refused: bool,
}

/// Parses a head by RFC 9112, sections 2 to 5; lines end only in CR LF.
fn reference_parse(wire: &[u8]) -> Option<ReferenceHead<'_>> {
    let end = wire.windows(4).position(|four| four == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&wire[..end]).ok()?;
    let mut lines = text.split("\r\n");
    let mut parts = lines.next()?.splitn(3, ' ');
    let (version, status, reason) = (parts.next()?, parts.next()?, parts.next()?);
    let is_http11 = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        _ => return None,
    };
    let digits = status.len() == 3 && status.bytes().all(|digit| digit.is_ascii_digit());
    let status = status.parse().ok().filter(|_| digits && reason.bytes().all(is_value_byte))?;
    let lines = lines.map(|line| parse_header_line(line.as_bytes())).collect::<Option<Vec<_>>>()?;
    let may_be_refused = lines.len() > 128
        || connection_options(&lines).len() > 100
        || end + 4 > 64 * 1024
        || status < 100
        || status == 101
        // obs-text in the reason phrase is obsolete and unused.
        || !reason.is_ascii();
    Some(ReferenceHead { status, is_http11, header_lines: lines, rest: &wire[end + 4..], may_be_refused })
}

fn assert_matches_reference(head: &ResponseHead, reference: &ReferenceHead<'_>) {
    assert_eq!(head.status.as_u16(), reference.status);
    let lines: Vec<_> = head.headers.iter().map(|field| (field.name, field.value)).collect();
    assert_eq!(lines, reference.header_lines);
    let bodiless = matches!(reference.status, 204 | 304);
    match (
        Framing::of_response(&Method::GET, head.status, &head.headers),
        body_framing(&reference.header_lines, true),
    ) {
        (Err(_), Err(())) => {}
        (Ok(Framing::Done), Ok(expected)) if bodiless || expected == BodyFraming::None => {}
        (Ok(Framing::Length(actual)), Ok(BodyFraming::Length(expected))) if actual == expected => {}
        (Ok(Framing::Chunked(_)), Ok(BodyFraming::Chunked))
        | (Ok(Framing::UntilClose), Ok(BodyFraming::UntilClose)) => {}
        (actual, expected) => panic!("{actual:?}, reference: {expected:?}"),
    }
    let close = connection_options(&reference.header_lines).iter().any(|option| option == b"close");
    assert_eq!(head.keep_alive, reference.is_http11 && !close);
}
