//! Shared parts of the reference implementations: percent-encoding, header lines and splits, in the simplest form.

/// Decodes every valid `%XX`; all other bytes are unchanged.
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

/// A character of an HTTP token (RFC 9110, section 5.6.2).
pub fn is_token_letter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A byte of a header value (RFC 9110, section 5.5).
pub fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// A header line: name, and value without surrounding whitespace.
pub type HeaderLine<'a> = (&'a [u8], &'a [u8]);

/// Parses a header line by RFC 9112, section 5, without its line end.
pub fn parse_header_line(line: &[u8]) -> Option<HeaderLine<'_>> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let valid = !name.is_empty()
        && name.iter().all(|byte| is_token_letter(*byte))
        && value.iter().all(|byte| is_value_byte(*byte));
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !is_space(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    valid.then(|| (name, &value[start..end]))
}

/// How a body is framed.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyFraming {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

/// The framing of a body by its headers; `Err` if two parsers could disagree. A repeated equal Content-Length is accepted only
/// in a response.
pub fn body_framing(lines: &[HeaderLine<'_>], is_response: bool) -> Result<BodyFraming, ()> {
    let values_of = |name: &str| {
        let values = lines.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name.as_bytes()));
        values.map(|(_, value)| *value).collect::<Vec<_>>()
    };
    let (codings, lengths) = (values_of("transfer-encoding"), values_of("content-length"));
    match (&codings[..], &lengths[..]) {
        ([], []) => Ok(if is_response { BodyFraming::UntilClose } else { BodyFraming::None }),
        ([coding], []) if coding.eq_ignore_ascii_case(b"chunked") => Ok(BodyFraming::Chunked),
        ([], [first, others @ ..]) => {
            let length = parse_length(first).ok_or(())?;
            let all_equal = others.iter().all(|other| is_response && parse_length(other) == Some(length));
            let in_range = !is_response || length <= i64::MAX as u64;
            match length {
                _ if !all_equal || !in_range => Err(()),
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

/// The options of all `Connection` headers, in lower case.
pub fn connection_options(lines: &[HeaderLine<'_>]) -> Vec<Vec<u8>> {
    let lines = lines.iter().filter(|(name, _)| name.eq_ignore_ascii_case(b"connection"));
    let options = lines.flat_map(|(_, value)| value.split(|byte| *byte == b','));
    options.map(|option| option.trim_ascii().to_ascii_lowercase()).collect()
}

/// Changes one byte, selected by the first byte of the input.
pub fn mutate_byte(selector: u8, bytes: &[u8]) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    if !changed.is_empty() {
        let position = usize::from(selector) * 7 % changed.len();
        changed[position] = b"07\r\n: a"[usize::from(selector) % 7];
    }
    changed
}

/// Splits the bytes by the first byte of the input: not at all, into single bytes, or into chunks of alternating lengths.
pub fn split_input(selector: u8, bytes: &[u8]) -> Vec<&[u8]> {
    let lengths: &[usize] = match selector % 4 {
        0 => &[usize::MAX],
        1 => &[1],
        2 => &[3, 1, 7],
        _ => &[64, 2],
    };
    let (mut chunks, mut rest) = (Vec::new(), bytes);
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (chunk, remaining) = rest.split_at((*length).min(rest.len()));
        chunks.push(chunk);
        rest = remaining;
    }
    chunks
}
