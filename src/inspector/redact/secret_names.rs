//! The values that have the name of a secret.

use std::ops::Range;

/// Names of fields, parameters and header lines whose values are secret, in lower case.
const SECRET_NAMES: [&str; 17] = [
    "access_token",
    "corpsecret",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "key",
    "permanent_code",
    "auth_code",
    "pre_auth_code",
    "js_code",
    "register_code",
    "credential",
    "credentials",
    "authorization",
    "cookie",
];
/// And so is whatever ends like this.
const SECRET_SUFFIXES: [&str; 14] = [
    "token",
    "secret",
    "ticket",
    "_key",
    "-key",
    "apikey",
    "appkey",
    "aeskey",
    "accesskey",
    "secretkey",
    "privatekey",
    "password",
    "-cookie",
    "authorization",
];

/// Nanoseconds that it takes to compare a name with all of these.
const NAME_COST_NANOS: usize = 150;

/// Whether what has this name is secret.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.contains(&&*name) || SECRET_SUFFIXES.iter().any(|ending| name.ends_with(ending))
}

/// The values that follow the name of a secret, as in JSON, in a JSON text inside of one, in a form, in a form of several
/// parts, and in XML.
/// Each name costs nanoseconds, which `spend` takes off what may be spent; nothing is looked for when that is all spent.
pub(super) fn find_named_values(bytes: &[u8], spend: &dyn Fn(usize) -> bool) -> Vec<Range<usize>> {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let length = bytes[at..].iter().take_while(|byte| is_part(byte)).count();
        let end = at + length;
        // A name is of ASCII letters only.
        let name = str::from_utf8(&bytes[at..end]).unwrap_or_default();
        if length > 0 && !spend(NAME_COST_NANOS) {
            break;
        }
        // A value is looked for through all of the rest.
        if length > 0
            && is_secret_name(name)
            && spend((bytes.len() - end) / 4)
            && let Some(value) = value_range(bytes, at..end)
        {
            at = value.end.max(end);
            found.push(value);
        } else {
            at = end.max(at + 1);
        }
    }
    found
}

/// Where the value stands that belongs to this name.
fn value_range(bytes: &[u8], name: Range<usize>) -> Option<Range<usize>> {
    let (before, name_end) = (&bytes[..name.start], name.end);
    if before.ends_with(b"name=\"") || before.ends_with(b"name=") {
        return multipart_value(bytes, name_end);
    }
    if before.ends_with(b"<") && bytes.get(name_end) == Some(&b'>') {
        let start = name_end + 1;
        return Some(start..find_or_end(bytes, start, b"</"));
    }
    let skip =
        |from: usize, what: &[u8]| from + bytes[from..].iter().take_while(|byte| what.contains(byte)).count();
    let sign = skip(name_end, b"\\\"' \t\r\n");
    let next = bytes.get(sign + 1);
    match bytes.get(sign) {
        Some(b':') => {}
        // At the end of a text, which is not the beginning of one.
        Some(b'=')
            if next == Some(&b'"') && bytes.get(sign + 2).is_none_or(|it| b",}] \r\n".contains(it)) =>
        {
            return None;
        }
        Some(b'=') => {}
        // A pair as a list, as some write header lines.
        Some(b',') if bytes.get(name_end) == Some(&b'"') && next == Some(&b'"') => {}
        _ => return None,
    }
    let opening = skip(sign + 1, b" \t\r\n");
    let quote = skip(opening, b"\\");
    let start = quote + 1;
    Some(match bytes.get(quote) {
        Some(mark @ (b'"' | b'\'')) => start..quoted_end(bytes, start, *mark, quote - opening),
        Some(b'{' | b'[') if quote == opening => opening..nested_end(bytes, opening),
        _ => opening..unquoted_end(bytes, opening),
    })
}

/// Where a value ends that has no quotes. A scheme that stands before a credential is none.
fn unquoted_end(bytes: &[u8], start: usize) -> usize {
    let is_end = |byte: &u8| byte.is_ascii_whitespace() || b"&,;}]\"'<>\\".contains(byte);
    let end = bytes[start..].iter().position(is_end).map_or(bytes.len(), |length| start + length);
    let is_scheme =
        [&b"bearer"[..], b"basic"].iter().any(|scheme| bytes[start..end].eq_ignore_ascii_case(scheme));
    if is_scheme && bytes.get(end) == Some(&b' ') { unquoted_end(bytes, end + 1) } else { end }
}

/// What a part of a form holds whose name ends here: behind its header lines, and before the next part.
fn multipart_value(bytes: &[u8], name_end: usize) -> Option<Range<usize>> {
    let rest = &bytes[name_end..];
    let lines = [&b"\r\n\r\n"[..], b"\n\n"];
    let gap = lines.iter().filter_map(|gap| Some((memchr::memmem::find(rest, gap)?, gap.len()))).min()?;
    let start = name_end + gap.0 + gap.1;
    Some(start..find_or_end(bytes, start, b"\r\n--").min(find_or_end(bytes, start, b"\n--")))
}

/// Where the next of these stands, or the text ends.
fn find_or_end(bytes: &[u8], from: usize, what: &[u8]) -> usize {
    memchr::memmem::find(&bytes[from..], what).map_or(bytes.len(), |at| from + at)
}

/// Where a quoted text ends whose quotes stand behind so many backslashes.
fn quoted_end(bytes: &[u8], start: usize, mark: u8, backslashes: usize) -> usize {
    let mut run = 0;
    for (at, byte) in bytes.iter().enumerate().skip(start) {
        match *byte {
            b'\\' => run += 1,
            byte if byte == mark && (run <= backslashes || (backslashes == 0 && run % 2 == 0)) => {
                return at - run.min(backslashes);
            }
            _ => run = 0,
        }
    }
    bytes.len()
}

/// Where an object or a list ends; brackets inside of texts may make it longer.
fn nested_end(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in bytes.iter().enumerate().skip(start) {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 1 => return at + 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    bytes.len()
}
