//! What the models share: percent-encoding, header lines and cuts, each in the plainest way.

/// A text with every `%XX` as the byte that it stands for, and all else as it is.
pub fn percent_decode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match rest {
            [b'%', high, low, ..] => hex_digit(*high).zip(hex_digit(*low)).map(|(high, low)| high * 16 + low),
            _ => None,
        };
        out.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &rest[3..] } else { after };
    }
    out
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// A letter of an HTTP token (RFC 9110 §5.6.2).
pub fn is_token_letter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A byte of a header's value (RFC 9110 §5.5).
pub fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// A header line, its value without white space around it.
pub type HeaderLine<'a> = (&'a [u8], &'a [u8]);

/// A header line by RFC 9112 §5, without its line end.
pub fn parse_header_line(line: &[u8]) -> Option<HeaderLine<'_>> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let sound = !name.is_empty()
        && name.iter().all(|byte| is_token_letter(*byte))
        && value.iter().all(|byte| is_value_byte(*byte));
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !is_space(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    sound.then(|| (name, &value[start..end]))
}

/// How a body is framed.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyFraming {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

/// How the lines say that the body is framed; `Err` where two readers could disagree. A length said several times is one
/// for an answer only.
pub fn body_framing(lines: &[HeaderLine<'_>], is_answer: bool) -> Result<BodyFraming, ()> {
    let named = |name: &str| {
        let values = lines.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name.as_bytes()));
        values.map(|(_, value)| *value).collect::<Vec<_>>()
    };
    let (codings, lengths) = (named("transfer-encoding"), named("content-length"));
    match (&codings[..], &lengths[..]) {
        ([], []) => Ok(if is_answer { BodyFraming::UntilClose } else { BodyFraming::None }),
        ([coding], []) if coding.eq_ignore_ascii_case(b"chunked") => Ok(BodyFraming::Chunked),
        ([], [first, more @ ..]) => {
            let length = parse_length(first).ok_or(())?;
            let same = more.iter().all(|other| is_answer && parse_length(other) == Some(length));
            let sane = !is_answer || length <= i64::MAX as u64;
            match length {
                _ if !same || !sane => Err(()),
                0 => Ok(BodyFraming::None),
                length => Ok(BodyFraming::Length(length)),
            }
        }
        _ => Err(()),
    }
}

/// Up to 20 digits and nothing else.
fn parse_length(text: &[u8]) -> Option<u64> {
    let digits = (1..=20).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// The options of every `Connection` line, in small letters.
pub fn connection_options(lines: &[HeaderLine<'_>]) -> Vec<Vec<u8>> {
    let lines = lines.iter().filter(|(name, _)| name.eq_ignore_ascii_case(b"connection"));
    let options = lines.flat_map(|(_, value)| value.split(|byte| *byte == b','));
    options.map(|option| option.trim_ascii().to_ascii_lowercase()).collect()
}

/// The bytes with one of them changed, as the first byte of an input wants it.
pub fn mutate_byte(how: u8, bytes: &[u8]) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    if !changed.is_empty() {
        let at = usize::from(how) * 7 % changed.len();
        changed[at] = b"07\r\n: a"[usize::from(how) % 7];
    }
    changed
}

/// The bytes in pieces, as the first byte of an input wants them: whole, single, or of a few lengths in turn.
pub fn split_input(how: u8, bytes: &[u8]) -> Vec<&[u8]> {
    let lengths: &[usize] = match how % 4 {
        0 => &[usize::MAX],
        1 => &[1],
        2 => &[3, 1, 7],
        _ => &[64, 2],
    };
    let (mut pieces, mut rest) = (Vec::new(), bytes);
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at((*length).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}
