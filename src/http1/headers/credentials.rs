//! Keys that a request presents in its headers, and headers that would carry a credential to the upstream.

use std::cell::OnceCell;

use super::{HeaderKind, HeaderLines, Headers};
use crate::secret::{
    Masked,
    credential_scan::{MIN_KEY_BYTES, contains_key, contains_pass},
    http_basic::basic_password,
};

/// Credentials of a message, each determined on first use.
#[derive(Default)]
pub(super) struct HeaderCredentials {
    /// The passwords of HTTP Basic.
    basic_passwords: OnceCell<Vec<Masked>>,
    /// Length of the shortest presented key of at least [`MIN_KEY_BYTES`], as shorter ones are not searched for;
    /// `usize::MAX` if there is none.
    min_key_bytes: OnceCell<usize>,
    /// Indexes of the lines that repeat a pass or a presented key.
    withheld_lines: OnceCell<Vec<usize>>,
}

impl Headers {
    /// The keys in `Authorization` and `X-Api-Key`, valid or not: verbatim, and the password of Basic.
    pub fn presented_keys(&self) -> impl Iterator<Item = &[u8]> {
        self.lines.presented_keys()
    }

    /// Whether a text of this length may contain one of them, apart from keys too short to be searched for.
    pub fn can_contain_key(&self, length: usize) -> bool {
        self.lines.min_key_bytes() <= length
    }
}

impl HeaderLines {
    fn values(&self, kind: HeaderKind) -> impl Iterator<Item = &[u8]> {
        let entries = if self.kind_mask & kind.mask() == 0 { &[][..] } else { &self.entries };
        entries.iter().filter(move |line| line.kind == kind).map(|line| line.value.slice(&self.text))
    }

    fn presented_keys(&self) -> impl Iterator<Item = &[u8]> {
        let presented = self
            .values(HeaderKind::Authorization)
            .map(strip_auth_scheme)
            .chain(self.values(HeaderKind::ApiKey).map(<[u8]>::trim_ascii));
        let basic = self.basic_passwords().iter().map(|key| key.expose().as_bytes());
        presented.chain(basic).filter(|key| !key.is_empty())
    }

    fn min_key_bytes(&self) -> usize {
        let lengths = || self.presented_keys().map(<[u8]>::len).filter(|length| *length >= MIN_KEY_BYTES);
        let measure = || lengths().min().unwrap_or(usize::MAX);
        *self.credentials.min_key_bytes.get_or_init(measure)
    }

    fn basic_passwords(&self) -> &[Masked] {
        let is_basic =
            |value: &&[u8]| value.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"basic "));
        self.credentials.basic_passwords.get_or_init(|| {
            let basic = self.values(HeaderKind::Authorization).filter(is_basic);
            basic.filter_map(|value| basic_password(strip_auth_scheme(value))).collect()
        })
    }

    /// Indexes of the lines that are withheld because they repeat a pass or a key that the message presents.
    pub(super) fn withheld_lines(&self) -> &[usize] {
        self.credentials.withheld_lines.get_or_init(|| {
            // Nearly no message contains a pass, and one search is cheaper than one per line.
            let may_contain_pass = contains_pass(&self.text);
            let min_bytes = if may_contain_pass { 0 } else { self.min_key_bytes() };
            if min_bytes == usize::MAX {
                return Vec::new();
            }
            let repeats_credential = |text: &[u8]| {
                text.len() >= min_bytes
                    && ((may_contain_pass && contains_pass(text))
                        || self.presented_keys().any(|key| contains_key(text, key)))
            };
            let repeats = |nth: &usize| {
                let line = &self.entries[*nth];
                let (name, value) = (line.name.slice(&self.text), line.value.slice(&self.text));
                line.is_forwarded_to_upstream() && (repeats_credential(value) || repeats_credential(name))
            };
            (0..self.entries.len()).filter(repeats).collect()
        })
    }
}

/// The credential in a value of `Authorization`.
fn strip_auth_scheme(value: &[u8]) -> &[u8] {
    let space = memchr::memchr(b' ', value).map_or(0, |space| space + 1);
    value[space..].trim_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASS: &str = "wp1-AAAAAGqxO4ACaHIHYmlsbGluZ2FiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6MDE";

    fn forwarded_names(pairs: &[(&str, &str)]) -> Vec<String> {
        let headers = Headers::from_pairs(pairs);
        headers
            .forwarded_to_upstream()
            .map(|header| String::from_utf8_lossy(header.name).into_owned())
            .collect()
    }

    #[test]
    fn header_repeating_a_credential_is_not_forwarded() {
        let long = "key-of-crm-0000000000";
        let encoded = PASS.replace('-', "%2D");
        let url = format!("https://app.example.com/?access_token={PASS}");
        for (presented, value) in [
            (("Host", "x"), PASS),
            (("Host", "x"), &encoded),
            (("Host", "x"), &url),
            (("Authorization", &*format!("Bearer {long}")), long),
            (("Authorization", &*format!("bearer  {long}")), &*format!("token={long};")),
            (("X-Api-Key", long), "key-of-crm%2D0000000000"),
            (("Authorization", "Basic Y3JtOmtleS1vZi1jcm0tMQ=="), "key-of-crm-1"),
            (("Authorization", "Basic Y3JtOmtleS1vZi1jcm0tMQ=="), "Basic Y3JtOmtleS1vZi1jcm0tMQ=="),
        ] {
            assert_eq!(
                forwarded_names(&[presented, ("X-Other", value), ("Accept", "*/*")]),
                ["Accept"],
                "{value}"
            );
        }
        assert_eq!(forwarded_names(&[(PASS, "1"), ("Accept", "*/*")]), ["Accept"]);
        let forwarded =
            [("X-Api-Key", "short"), ("X-Other", "short"), ("X-Version", "wp1-2"), ("X-Empty", "")];
        assert_eq!(forwarded_names(&forwarded), ["X-Other", "X-Version", "X-Empty"]);
    }

    #[test]
    fn presented_keys_cover_bearer_basic_and_api_key() {
        let headers = Headers::from_pairs(&[
            ("Authorization", "Basic Y3JtOmtleS1vZi1jcm0tMQ=="),
            ("X-Api-Key", "other"),
            ("X-Else", "none"),
        ]);
        let keys: Vec<_> =
            headers.presented_keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect();
        assert_eq!(keys, ["Y3JtOmtleS1vZi1jcm0tMQ==", "other", "key-of-crm-1"]);
        for none in ["Basic", "Basic !", "Basic Y3Jt", "Basic Y3JtOg==", ""] {
            let headers = Headers::from_pairs(&[("Authorization", none)]);
            assert!(headers.presented_keys().all(|key| none.as_bytes().ends_with(key)), "{none}");
        }
    }
}
