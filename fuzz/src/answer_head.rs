//! An answer's head, against a strict reader of RFC 9112 that has all the bytes at once. What is only oddly spelled may be
//! taken; what is taken can do no harm on the caller's side.

use bytes::BytesMut;
use http::Method;
use wecom_proxy::{
    fields::Familiar,
    framing::Framing,
    fuzz::{AnswerHead, answer_head},
};

use super::model::{
    Body, Line, body, changed, connection_options, header_line, is_token_letter, is_value_byte, pieces,
};

/// The input is a byte that says how to cut, and what an upstream sends.
pub fn check(data: &[u8]) {
    let Some((how, wire)) = data.split_first() else { return };
    let (whole, left) = taken([wire], &mut Familiar::default());
    let (cut, _) = taken(pieces(*how, wire), &mut Familiar::default());
    assert_eq!(summary(&whole), summary(&cut), "the cuts make a difference");
    check_again(*how, wire);
    let model = read(wire);
    match (&whole, &model) {
        (Ok(Some(head)), model) => {
            harmless(head);
            if let Some(model) = model {
                agree(head, model);
                assert_eq!(&left[..], model.rest, "what follows the head is not all there");
            }
        }
        (_, Some(model)) => {
            assert!(model.may_be_refused, "not taken: {:?}", String::from_utf8_lossy(wire));
        }
        (_, None) => {}
    }
}

type Taken = Result<Option<AnswerHead>, String>;

fn taken<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, familiar: &mut Familiar) -> (Taken, BytesMut) {
    let (mut buffer, mut outcome) = (BytesMut::new(), Ok(None));
    for piece in pieces {
        buffer.extend_from_slice(piece);
        if matches!(outcome, Ok(None)) {
            outcome = answer_head(&mut buffer, familiar);
        }
    }
    (outcome, buffer)
}

/// A connection that brought the same lines before, or nearly the same, is read no other way.
fn check_again(how: u8, wire: &[u8]) {
    let mut familiar = Familiar::default();
    (0..3).for_each(|_| drop(taken([wire], &mut familiar)));
    for wire in [wire, &changed(how, wire)] {
        let (again, left) = taken([wire], &mut familiar);
        let (anew, left_anew) = taken([wire], &mut Familiar::default());
        assert_eq!(summary(&again), summary(&anew), "what came before makes a difference");
        assert_eq!(left, left_anew);
    }
}

fn summary(taken: &Taken) -> Result<Option<String>, ()> {
    let told = |head: &AnswerHead| {
        let lines: Vec<_> = head.fields.iter().map(|field| (field.name, field.value)).collect();
        format!("{:?} {:?} {lines:?}", head.status, head.persistent)
    };
    taken.as_ref().map(|head| head.as_ref().map(told)).map_err(|_| ())
}

/// Nothing of it can end a line or a head where it is written again.
fn harmless(head: &AnswerHead) {
    for field in head.fields.iter() {
        assert!(!field.name.is_empty() && field.name.iter().all(|byte| is_token_letter(*byte)));
        assert!(field.value.iter().all(|byte| is_value_byte(*byte)), "{:?}", field.value);
    }
    assert!((100..1000).contains(&head.status.as_u16()) && head.status.as_u16() != 101);
}

struct Model<'a> {
    status: u16,
    is_new: bool,
    lines: Vec<Line<'a>>,
    rest: &'a [u8],
    may_be_refused: bool,
}

/// A head by RFC 9112 §2 to §5, the lines of which end in CR LF, and nothing else does.
fn read(wire: &[u8]) -> Option<Model<'_>> {
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
    let lines = lines.map(|line| header_line(line.as_bytes())).collect::<Option<Vec<_>>>()?;
    let may_be_refused = lines.len() > 128
        || connection_options(&lines).len() > 100
        || end + 4 > 64 * 1024
        || status < 100
        || status == 101
        // Obsolete, and in nobody's status line.
        || !reason.is_ascii();
    Some(Model { status, is_new, lines, rest: &wire[end + 4..], may_be_refused })
}

fn agree(head: &AnswerHead, model: &Model<'_>) {
    assert_eq!(head.status.as_u16(), model.status);
    let lines: Vec<_> = head.fields.iter().map(|field| (field.name, field.value)).collect();
    assert_eq!(lines, model.lines);
    let bodiless = matches!(model.status, 204 | 304);
    match (Framing::of_answer(&Method::GET, head.status, &head.fields), body(&model.lines, true)) {
        (Err(_), Err(())) => {}
        (Ok(Framing::Done), Ok(said)) if bodiless || said == Body::None => {}
        (Ok(Framing::Length(ours)), Ok(Body::Length(theirs))) if ours == theirs => {}
        (Ok(Framing::Chunked(_)), Ok(Body::Chunked)) | (Ok(Framing::UntilClose), Ok(Body::UntilClose)) => {}
        (ours, theirs) => panic!("{ours:?}, and by the model {theirs:?}"),
    }
    let close = connection_options(&model.lines).iter().any(|option| option == b"close");
    assert_eq!(head.persistent, model.is_new && !close);
}
