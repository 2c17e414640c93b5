//! A request's head, against a strict reader of RFC 9112 that has all the bytes at once.

use bytes::BytesMut;
use http::Version;
use wecom_proxy::{
    framing::Framing,
    fuzz::{Habits, RequestHead, request_head},
};

use super::model::{Body, Line, body, changed, connection_options, header_line, is_token_letter, pieces};

const LONGEST: usize = 64 * 1024;
const MOST_LINES: usize = 100;
/// Names in `Connection`.
const MOST_OPTIONS: usize = 100;

/// The input is a byte that says how to cut, and what a client sends.
pub fn check(data: &[u8]) {
    let Some((how, wire)) = data.split_first() else { return };
    let (whole, left) = taken([wire], &mut Habits::default());
    let (cut, left_of_cut) = taken(pieces(*how, wire), &mut Habits::default());
    assert_eq!(summary(&whole), summary(&cut), "the cuts make a difference");
    check_again(*how, wire);
    let model = read(wire);
    match (&whole, &model) {
        (Ok(Some(head)), Some(model)) => {
            agree(head, model);
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

type Taken = Result<Option<RequestHead>, u16>;

/// What becomes of the head when it comes in these pieces, and what is left behind it.
fn taken<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, habits: &mut Habits) -> (Taken, BytesMut) {
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
fn check_again(how: u8, wire: &[u8]) {
    let mut habits = Habits::default();
    (0..3).for_each(|_| drop(taken([wire], &mut habits)));
    for wire in [wire, &changed(how, wire)] {
        let (again, left) = taken([wire], &mut habits);
        let (anew, left_anew) = taken([wire], &mut Habits::default());
        assert_eq!(summary(&again), summary(&anew), "what came before makes a difference");
        assert_eq!(left, left_anew);
    }
}

fn summary(taken: &Taken) -> Result<Option<String>, ()> {
    let told = |head: &RequestHead| {
        let lines: Vec<_> = head.fields.iter().map(|field| (field.name, field.value)).collect();
        let target = (head.target.path(), head.target.query(), &head.authority);
        format!("{:?} {:?} {target:?} {lines:?} {:?}", head.method, head.version, head.framing)
    };
    taken.as_ref().map(|head| head.as_ref().map(told)).map_err(|_| ())
}

struct Model<'a> {
    method: &'a [u8],
    target: &'a [u8],
    is_new: bool,
    lines: Vec<Line<'a>>,
    rest: &'a [u8],
    /// It is well formed, and beyond a bound, or of a form that a server need not serve.
    may_be_refused: bool,
}

/// A head by RFC 9112 §2 to §5, the lines of which end in CR LF, and nothing else does.
fn read(wire: &[u8]) -> Option<Model<'_>> {
    let (mut wire, mut empty) = (wire, 0);
    while let Some(after) = wire.strip_prefix(b"\r\n") {
        (wire, empty) = (after, empty + 1);
    }
    let end = wire.windows(4).position(|four| four == b"\r\n\r\n")?;
    let mut lines = split(&wire[..end])?.into_iter();
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
    let lines = lines.map(header_line).collect::<Option<Vec<_>>>().filter(|_| sound)?;
    let may_be_refused = empty > 1
        || end + 4 > LONGEST
        || lines.len() > MOST_LINES
        || connection_options(&lines).len() > MOST_OPTIONS
        || !target.is_ascii()
        || !(target.starts_with(b"/") || is_http(target));
    Some(Model { method, target, is_new, lines, rest: &wire[end + 4..], may_be_refused })
}

/// The lines of a head; `None` where a CR or an LF stands alone.
fn split(head: &[u8]) -> Option<Vec<&[u8]>> {
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

fn is_http(target: &[u8]) -> bool {
    let text = target.to_ascii_lowercase();
    text.starts_with(b"http://") || text.starts_with(b"https://")
}

fn agree(head: &RequestHead, model: &Model<'_>) {
    assert_eq!(head.method.as_str().as_bytes(), model.method);
    assert_eq!(head.version, if model.is_new { Version::HTTP_11 } else { Version::HTTP_10 });
    let lines: Vec<_> = head.fields.iter().map(|field| (field.name, field.value)).collect();
    assert_eq!(lines, model.lines);
    let target = match head.target.query() {
        Some(query) => format!("{}?{query}", head.target.path()),
        None => head.target.path().to_owned(),
    };
    match &head.authority {
        None => assert_eq!(target.as_bytes(), model.target),
        Some(authority) => {
            assert!(is_http(model.target) && !authority.contains(&b'/'));
            let after = model.target.windows(3).position(|three| three == b"://").expect("a scheme") + 3;
            let said = [&authority[..], target.as_bytes()].concat();
            assert!(said == model.target[after..] || said == [&model.target[after..], b"/"].concat());
        }
    }
    let framing = match body(&model.lines, false) {
        // No body of HTTP/1.0 has chunks.
        Ok(Body::Chunked) if !model.is_new => Err(()),
        framing => framing,
    };
    match (&head.framing, framing) {
        (Ok(Framing::Done), Ok(Body::None)) | (Ok(Framing::Chunked(_)), Ok(Body::Chunked)) => {}
        (Ok(Framing::Length(ours)), Ok(Body::Length(theirs))) if *ours == theirs => {}
        (Err(_), Err(())) => {}
        (ours, theirs) => panic!("{ours:?}, and by the model {theirs:?}"),
    }
    let options = connection_options(&model.lines);
    let says = |option: &[u8]| options.iter().any(|said| said == option);
    let persistent = !says(b"close") && (model.is_new || says(b"keep-alive"));
    assert_eq!(head.persistent, persistent, "{:?}", model.lines);
}
