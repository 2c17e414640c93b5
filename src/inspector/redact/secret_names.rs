//! Names of secrets, and the values that belong to them.

use std::ops::Range;

/// Names of fields, parameters and headers with secret values, in lower case.
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
/// Suffixes of names with secret values.
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

/// Cost in nanoseconds of comparing a name with all of these.
const NAME_COST_NANOS: usize = 150;

/// Whether a value with this name is secret.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.contains(&&*name) || SECRET_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// Finds the values of secret names in JSON, nested JSON, forms, multipart forms and XML. Each name spends
/// nanoseconds of the budget; the search ends when it is exhausted.
pub(super) fn find_named_values(bytes: &[u8], spend: &dyn Fn(usize) -> bool) -> Vec<Range<usize>> {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let length = bytes[at..].iter().take_while(|byte| is_part(byte)).count();
        let end = at + length;
        // Names consist of ASCII letters.
        let name = str::from_utf8(&bytes[at..end]).unwrap_or_default();
        if length > 0 && !spend(NAME_COST_NANOS) {
            break;
        }
        // The search for a value may scan the whole rest.
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

/// Range of the value that belongs to a name.
fn value_range(bytes: &[u8], name: Range<usize>) -> Option<Range<usize>> {
    let (before, name_end) = (&bytes[..name.start], name.end);
    if before.ends_with(b"name=\"") || before.ends_with(b"name=") {
        return multipart_value(bytes, name_end);
    }
    if before.ends_with(b"<") && bytes.get(name_end) == Some(&b'>') {
        let start = name_end + 1;
        return Some(start..find_or_end(bytes, start, b"</"));
    }
    let skip = |from: usize, chars: &[u8]| {
        from + bytes[from..].iter().take_while(|byte| chars.contains(byte)).count()
    };
    let separator = skip(name_end, b"\\\"' \t\r\n");
    let next = bytes.get(separator + 1);
    match bytes.get(separator) {
        Some(b':') => {}
        // `=` before a closing quote ends a text; no value follows.
        Some(b'=')
            if next == Some(&b'"')
                && bytes.get(separator + 2).is_none_or(|byte| b",}] \r\n".contains(byte)) =>
        {
            return None;
        }
        Some(b'=') => {}
        // A pair as a list, as some programs log headers.
        Some(b',') if bytes.get(name_end) == Some(&b'"') && next == Some(&b'"') => {}
        _ => return None,
    }
    let opening = skip(separator + 1, b" \t\r\n");
    let quote = skip(opening, b"\\");
    let start = quote + 1;
    Some(match bytes.get(quote) {
        Some(quote_mark @ (b'"' | b'\'')) => start..quoted_end(bytes, start, *quote_mark, quote - opening),
        Some(b'{' | b'[') if quote == opening => opening..nested_end(bytes, opening),
        _ => opening..unquoted_end(bytes, opening),
    })
}

/// End of an unquoted value. A scheme before a credential is skipped.
fn unquoted_end(bytes: &[u8], start: usize) -> usize {
    let is_end = |byte: &u8| byte.is_ascii_whitespace() || b"&,;}]\"'<>\\".contains(byte);
    let end = bytes[start..].iter().position(is_end).map_or(bytes.len(), |length| start + length);
    let is_scheme =
        [&b"bearer"[..], b"basic"].iter().any(|scheme| bytes[start..end].eq_ignore_ascii_case(scheme));
    if is_scheme && bytes.get(end) == Some(&b' ') { unquoted_end(bytes, end + 1) } else { end }
}

/// Body of a multipart part whose name ends at `name_end`: after its headers and before the next part.
fn multipart_value(bytes: &[u8], name_end: usize) -> Option<Range<usize>> {
    let rest = &bytes[name_end..];
    let separators = [&b"\r\n\r\n"[..], b"\n\n"];
    let gap =
        separators.iter().filter_map(|gap| Some((memchr::memmem::find(rest, gap)?, gap.len()))).min()?;
    let start = name_end + gap.0 + gap.1;
    Some(start..find_or_end(bytes, start, b"\r\n--").min(find_or_end(bytes, start, b"\n--")))
}

/// Position of the next `needle`, or the end of the text.
fn find_or_end(bytes: &[u8], from: usize, needle: &[u8]) -> usize {
    memchr::memmem::find(&bytes[from..], needle).map_or(bytes.len(), |at| from + at)
}

/// End of a quoted text whose quotes are preceded by this many backslashes.
fn quoted_end(bytes: &[u8], start: usize, quote_mark: u8, backslashes: usize) -> usize {
    let mut run = 0;
    for (at, byte) in bytes.iter().enumerate().skip(start) {
        match *byte {
            b'\\' => run += 1,
            byte if byte == quote_mark && (run <= backslashes || (backslashes == 0 && run % 2 == 0)) => {
                return at - run.min(backslashes);
            }
            _ => run = 0,
        }
    }
    bytes.len()
}

/// End of an object or list; brackets inside strings may extend it.
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
