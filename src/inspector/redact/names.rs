//! Names: of secrets, whose values are masked, and of headers whose values are shown.

/// Names of fields, parameters and form parts with secret values, in lower case.
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
/// Headers whose values are shown, in lower case; those of all others are masked.
#[rustfmt::skip]
const SHOWN_HEADERS: [&str; 41] = [
    "accept", "accept-encoding", "accept-language", "accept-ranges", "age", "allow", "cache-control",
    "content-disposition", "content-encoding", "content-language", "content-length", "content-range", "content-type",
    "date", "error-code", "error-msg", "etag", "expect", "expires", "host", "if-match", "if-modified-since",
    "if-none-match", "if-range", "last-modified", "location", "pragma", "range", "retry-after", "server",
    "server-timing", "user-agent", "vary", "warning", "x-request-id", "x-wecom-agent", "x-wecom-debug",
    "x-wecom-hint", "x-wecom-proxy-error", "x-wecom-replica", "x-wecom-retried",
];

/// Whether a value with this name is secret.
pub(super) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.contains(&&*name) || SECRET_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// Whether the value of this header is shown.
pub(super) fn is_shown_header(name: &str) -> bool {
    SHOWN_HEADERS.binary_search(&&*name.to_ascii_lowercase()).is_ok()
}

/// Where the value of the first secret name begins in a text that is no JSON: form, XML, header lines, prose.
pub(super) fn secret_value_start(text: &str) -> Option<usize> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let mut at = 0;
    while let Some(start) = text[at..].find(is_part).map(|skipped| at + skipped) {
        let end = text[start..].find(|c| !is_part(c)).map_or(text.len(), |length| start + length);
        at = end;
        if is_secret_name(&text[start..end])
            && let Some(delimiter) = delimiter_after(&text[..start], &text[end..])
        {
            return Some(end + delimiter);
        }
    }
    None
}

/// Length of what separates a secret name from its value; `None` if no value follows.
fn delimiter_after(before: &str, after: &str) -> Option<usize> {
    let is_quote_or_space = |c: char| matches!(c, '\\' | '"' | '\'' | ' ' | '\t');
    let delimited = after.trim_start_matches(is_quote_or_space);
    let is_delimited = match delimited.chars().next()? {
        ':' | '=' => true,
        '>' => before.ends_with('<'),
        // A pair as a list, as some programs log headers.
        ',' => after.starts_with('"'),
        // The name of a form's part.
        ';' | '\r' | '\n' => before.ends_with("name=\"") || before.ends_with("name="),
        _ => false,
    };
    let value = delimited.get(1..)?.trim_start_matches(is_quote_or_space);
    (is_delimited && !value.is_empty() && !value.starts_with(super::MASK))
        .then(|| after.len() - delimited.len() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_names_are_sorted() {
        assert!(SHOWN_HEADERS.is_sorted());
        assert!(is_shown_header("Content-Type") && !is_shown_header("Authorization"));
    }
}
