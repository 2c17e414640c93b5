//! The keys that a request's header lines show, and the lines that would carry a credential to the upstream.

use std::cell::OnceCell;

use base64::{Engine, prelude::BASE64_STANDARD};

use super::{Fields, Known, Lines};
use crate::{
    credential::{MIN_KEY_BYTES, holds_pass, repeats_key},
    secret::Masked,
};

/// What was found out about credentials in a message's lines, each when it is first asked for.
#[derive(Default)]
pub(super) struct Credentials {
    /// The password of HTTP Basic.
    password: OnceCell<Option<Masked>>,
    /// How long the shortest of the shown keys is; more than any text where there is none.
    shortest_key: OnceCell<usize>,
    /// The numbers of lines that repeat a pass or a shown key.
    withheld: OnceCell<Vec<usize>>,
}

impl Fields {
    /// The keys that `Authorization` and `X-Api-Key` show, right or wrong: as they stand, and the password of Basic.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.lines.keys()
    }

    /// Whether a text of this length is too short to hold one of them.
    pub fn are_keys_longer_than(&self, length: usize) -> bool {
        self.lines.shortest_key() > length
    }
}

impl Lines {
    fn values(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        let each = if self.kinds & known.bit() == 0 { &[][..] } else { &self.each };
        each.iter().filter(move |line| line.known == known).map(|line| line.value.of_text(&self.text))
    }

    fn keys(&self) -> impl Iterator<Item = &[u8]> {
        let shown = self.values(Known::Authorization).map(behind_scheme).chain(self.values(Known::ApiKey));
        shown.filter(|key| !key.is_empty()).chain(self.password().map(|key| key.expose().as_bytes()))
    }

    fn shortest_key(&self) -> usize {
        let lengths = || self.keys().map(<[u8]>::len).filter(|length| *length >= MIN_KEY_BYTES);
        let measure = || lengths().min().unwrap_or(usize::MAX);
        *self.credentials.shortest_key.get_or_init(measure)
    }

    fn password(&self) -> Option<&Masked> {
        let mut values = self.values(Known::Authorization);
        let basic =
            values.find(|value| value.get(..6).is_some_and(|it| it.eq_ignore_ascii_case(b"basic ")))?;
        let read = || {
            let pair = BASE64_STANDARD.decode(behind_scheme(basic)).ok();
            let pair = Masked::new(pair.and_then(|pair| String::from_utf8(pair).ok())?);
            let (_, password) = pair.expose().split_once(':')?;
            (!password.is_empty()).then(|| Masked::new(password))
        };
        self.credentials.password.get_or_init(read).as_ref()
    }

    /// The numbers of the lines that must not go on because they repeat a pass or a key that the message shows.
    pub(super) fn withheld(&self) -> &[usize] {
        self.credentials.withheld.get_or_init(|| {
            // Nearly no message has one, and one search is cheaper than one for each line.
            let may_hold_pass = holds_pass(&self.text);
            let shortest = if may_hold_pass { 0 } else { self.shortest_key() };
            if shortest == usize::MAX {
                return Vec::new();
            }
            let holds = |text: &[u8]| {
                text.len() >= shortest
                    && ((may_hold_pass && holds_pass(text)) || self.keys().any(|key| repeats_key(text, key)))
            };
            let repeats = |nth: &usize| {
                let line = &self.each[*nth];
                let (name, value) = (line.name.of_text(&self.text), line.value.of_text(&self.text));
                line.leaves() && (holds(value) || holds(name))
            };
            (0..self.each.len()).filter(repeats).collect()
        })
    }
}

/// The credential in a value of `Authorization`.
fn behind_scheme(value: &[u8]) -> &[u8] {
    let space = memchr::memchr(b' ', value).map_or(0, |space| space + 1);
    value[space..].trim_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASS: &str = "wp1-AAAAAGqxO4ACaHIHYmlsbGluZ2FiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6MDE";

    fn going(lines: &[(&str, &str)]) -> Vec<String> {
        let fields = Fields::of(lines);
        fields.to_upstream().map(|field| String::from_utf8_lossy(field.name).into_owned()).collect()
    }

    #[test]
    fn a_line_that_repeats_a_credential_stays_here() {
        let long = "key-of-crm-0000000000";
        let encoded = PASS.replace('-', "%2D");
        let url = format!("https://app.example.com/?access_token={PASS}");
        for (shown, value) in [
            (("Host", "x"), PASS),
            (("Host", "x"), &encoded),
            (("Host", "x"), &url),
            (("Authorization", &*format!("Bearer {long}")), long),
            (("Authorization", &*format!("bearer  {long}")), &*format!("token={long};")),
            (("X-Api-Key", long), "key-of-crm%2D0000000000"),
            (("Authorization", "Basic Y3JtOmtleS1vZi1jcm0tMQ=="), "key-of-crm-1"),
            (("Authorization", "Basic Y3JtOmtleS1vZi1jcm0tMQ=="), "Basic Y3JtOmtleS1vZi1jcm0tMQ=="),
        ] {
            assert_eq!(going(&[shown, ("X-Other", value), ("Accept", "*/*")]), ["Accept"], "{value}");
        }
        assert_eq!(going(&[(PASS, "1"), ("Accept", "*/*")]), ["Accept"]);
        let kept = [("X-Api-Key", "short"), ("X-Other", "short"), ("X-Version", "wp1-2"), ("X-Empty", "")];
        assert_eq!(going(&kept), ["X-Other", "X-Version", "X-Empty"]);
    }

    #[test]
    fn shown_keys_are_those_of_every_way_to_show_one() {
        let fields = Fields::of(&[
            ("Authorization", "Basic Y3JtOmtleS1vZi1jcm0tMQ=="),
            ("X-Api-Key", "other"),
            ("X-Else", "none"),
        ]);
        let keys: Vec<_> = fields.keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect();
        assert_eq!(keys, ["Y3JtOmtleS1vZi1jcm0tMQ==", "other", "key-of-crm-1"]);
        for none in ["Basic", "Basic !", "Basic Y3Jt", "Basic Y3JtOg==", ""] {
            let fields = Fields::of(&[("Authorization", none)]);
            assert!(fields.keys().all(|key| none.as_bytes().ends_with(key)), "{none}");
        }
    }
}
