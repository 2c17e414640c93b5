//! An answer's head, against a strict reader of RFC 9112 that has all the bytes at once. What is only oddly spelled may be
//! taken; what is taken can do no harm on the caller's side.

use bytes::BytesMut;
use http::Method;
use wecom_proxy::{
    fuzz::{UpstreamResponseHead, response_head},
    http1::{framing::Framing, headers::HeaderCache},
};

use super::reference::{
    BodyFraming, HeaderLine, body_framing, connection_options, is_token_letter, is_value_byte, mutate_byte,
    parse_header_line, split_input,
};

/// The input is a byte that says how to cut, and what an upstream sends.
pub fn check(data: &[u8]) {
    let Some((how, wire)) = data.split_first() else { return };
    let (whole, left) = parse_split([wire], &mut HeaderCache::default());
    let (cut, _) = parse_split(split_input(*how, wire), &mut HeaderCache::default());
    assert_eq!(summary(&whole), summary(&cut), "the cuts make a difference");
    check_with_warm_cache(*how, wire);
    let model = reference_parse(wire);
    match (&whole, &model) {
        (Ok(Some(head)), model) => {
            assert_safe_to_forward(head);
            if let Some(model) = model {
                assert_matches_reference(head, model);
                assert_eq!(&left[..], model.rest, "what follows the head is not all there");
            }
        }
        (_, Some(model)) => {
            assert!(model.may_be_refused, "not taken: {:?}", String::from_utf8_lossy(wire));
        }
        (_, None) => {}
    }
}

type ParseResult = Result<Option<UpstreamResponseHead>, String>;

fn parse_split<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    familiar: &mut HeaderCache,
) -> (ParseResult, BytesMut) {
    let (mut buffer, mut outcome) = (BytesMut::new(), Ok(None));
    for piece in pieces {
        buffer.extend_from_slice(piece);
        if matches!(outcome, Ok(None)) {
            outcome = response_head(&mut buffer, familiar);
        }
    }
    (outcome, buffer)
}

/// A connection that brought the same lines before, or nearly the same, is read no other way.
fn check_with_warm_cache(how: u8, wire: &[u8]) {
    let mut familiar = HeaderCache::default();
    (0..3).for_each(|_| drop(parse_split([wire], &mut familiar)));
    for wire in [wire, &mutate_byte(how, wire)] {
        let (again, left) = parse_split([wire], &mut familiar);
        let (anew, left_anew) = parse_split([wire], &mut HeaderCache::default());
        assert_eq!(summary(&again), summary(&anew), "what came before makes a difference");
        assert_eq!(left, left_anew);
    }
}

fn summary(taken: &ParseResult) -> Result<Option<String>, ()> {
    let told = |head: &UpstreamResponseHead| {
        let lines: Vec<_> = head.headers.iter().map(|field| (field.name, field.value)).collect();
        format!("{:?} {:?} {lines:?}", head.status, head.keep_alive)
    };
    taken.as_ref().map(|head| head.as_ref().map(told)).map_err(|_| ())
}

/// Nothing of it can end a line or a head where it is written again.
fn assert_safe_to_forward(head: &UpstreamResponseHead) {
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

/// A head by RFC 9112 §2 to §5, the lines of which end in CR LF, and nothing else does.
fn reference_parse(wire: &[u8]) -> Option<ReferenceHead<'_>> {
    let end = wire.windows(4).position(|four| four == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&wire[..end]).ok()?;
    let mut lines = text.split("\r\n");
    let mut words = lines.next()?.splitn(3, ' ');
    let (version, status, reason) = (words.next()?, words.next()?, words.next()?);
    let is_new = match version {
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
        // Obsolete, and in nobody's status line.
        || !reason.is_ascii();
    Some(ReferenceHead {
        status,
        is_http11: is_new,
        header_lines: lines,
        rest: &wire[end + 4..],
        may_be_refused,
    })
}

fn assert_matches_reference(head: &UpstreamResponseHead, model: &ReferenceHead<'_>) {
    assert_eq!(head.status.as_u16(), model.status);
    let lines: Vec<_> = head.headers.iter().map(|field| (field.name, field.value)).collect();
    assert_eq!(lines, model.header_lines);
    let bodiless = matches!(model.status, 204 | 304);
    match (
        Framing::of_response(&Method::GET, head.status, &head.headers),
        body_framing(&model.header_lines, true),
    ) {
        (Err(_), Err(())) => {}
        (Ok(Framing::Done), Ok(said)) if bodiless || said == BodyFraming::None => {}
        (Ok(Framing::Length(ours)), Ok(BodyFraming::Length(theirs))) if ours == theirs => {}
        (Ok(Framing::Chunked(_)), Ok(BodyFraming::Chunked))
        | (Ok(Framing::UntilClose), Ok(BodyFraming::UntilClose)) => {}
        (ours, theirs) => panic!("{ours:?}, and by the model {theirs:?}"),
    }
    let close = connection_options(&model.header_lines).iter().any(|option| option == b"close");
    assert_eq!(head.keep_alive, model.is_http11 && !close);
}
