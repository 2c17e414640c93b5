//! `If-Match` and `If-None-Match` (RFC 9110 §13).

use http::{HeaderMap, HeaderName, header};

/// What to do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::admin) enum Evaluation {
    /// All conditions hold.
    Proceed,
    /// A read of what the client has already: 304.
    NotModified,
    /// 412.
    Failed,
}

/// The conditions of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::admin) struct Preconditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

/// What a condition names.
#[derive(Debug, PartialEq, Eq)]
enum Tags {
    /// `*`
    Any,
    /// Entity tags, perhaps none.
    List(Vec<EntityTag>),
}

/// An entity tag; `opaque` without its quotes.
#[derive(Debug, PartialEq, Eq)]
struct EntityTag {
    weak: bool,
    opaque: Vec<u8>,
}

impl Preconditions {
    /// Parses the conditions; the error says which header is not valid.
    pub(in crate::admin) fn from_headers(headers: &HeaderMap) -> Result<Self, &'static str> {
        let if_match = parse_header(headers, header::IF_MATCH)
            .ok_or("If-Match must be * or a list of entity tags like \"v7\"")?;
        let if_none_match = parse_header(headers, header::IF_NONE_MATCH)
            .ok_or("If-None-Match must be * or a list of entity tags like \"v7\"")?;
        Ok(Self { if_match, if_none_match })
    }

    /// Evaluates the conditions in the order of RFC 9110 §13.2.2. `current` is the strong entity tag of the target,
    /// without quotes; `None`: there is no such resource. There are no modification dates, so conditions on these are
    /// ignored.
    pub(in crate::admin) fn evaluate(&self, current: Option<&str>, is_read: bool) -> Evaluation {
        // A weak tag never matches here (§13.1.1).
        if let Some(tags) = &self.if_match
            && !tags.contains(current, |tag| !tag.weak)
        {
            return Evaluation::Failed;
        }
        match &self.if_none_match {
            Some(tags) if tags.contains(current, |_| true) => match is_read {
                true => Evaluation::NotModified,
                false => Evaluation::Failed,
            },
            _ => Evaluation::Proceed,
        }
    }
}

impl Tags {
    fn contains(&self, current: Option<&str>, is_comparable: impl Fn(&EntityTag) -> bool) -> bool {
        let Some(current) = current else { return false };
        match self {
            Self::Any => true,
            Self::List(tags) => tags.iter().any(|tag| is_comparable(tag) && tag.opaque == current.as_bytes()),
        }
    }
}

/// The tags of a header, of all its lines together. The inner `None`: there is no such header; the outer: it is not
/// valid.
#[expect(clippy::option_option, reason = "absent and invalid differ")]
fn parse_header(headers: &HeaderMap, name: HeaderName) -> Option<Option<Tags>> {
    let lines: Vec<_> = headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect();
    if lines.is_empty() {
        return Some(None);
    }
    let joined = lines.join(&b", "[..]);
    if joined.trim_ascii() == b"*" {
        return Some(Some(Tags::Any));
    }
    parse_tags(&joined).map(|tags| Some(Tags::List(tags)))
}

/// Parses `#entity-tag`; empty elements are allowed (§5.6.1.2).
fn parse_tags(text: &[u8]) -> Option<Vec<EntityTag>> {
    let (mut rest, mut tags) = (text, Vec::new());
    loop {
        rest = trim_start(rest);
        match rest {
            [] => return Some(tags),
            [b',', after @ ..] => {
                rest = after;
                continue;
            }
            _ => {}
        }
        let (weak, quoted) = match rest.strip_prefix(b"W/") {
            Some(quoted) => (true, quoted),
            None => (false, rest),
        };
        let quoted = quoted.strip_prefix(b"\"")?;
        let end = quoted.iter().position(|byte| *byte == b'"')?;
        let (opaque, after) = (&quoted[..end], &quoted[end + 1..]);
        if !opaque.iter().all(|byte| matches!(byte, 0x21 | 0x23..=0x7E | 0x80..)) {
            return None;
        }
        tags.push(EntityTag { weak, opaque: opaque.to_vec() });
        rest = trim_start(after);
        if !rest.is_empty() && rest[0] != b',' {
            return None;
        }
    }
}

fn trim_start(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|byte| !matches!(byte, b' ' | b'\t')).unwrap_or(text.len());
    &text[start..]
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn evaluate(lines: &[(&'static str, &str)], current: Option<&str>, is_read: bool) -> Option<Evaluation> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        Preconditions::from_headers(&headers).ok().map(|conditions| conditions.evaluate(current, is_read))
    }

    #[test]
    fn if_match_compares_strongly() {
        use Evaluation::{Failed, Proceed};
        for (value, present, absent) in [
            ("*", Proceed, Failed),
            ("\"v7\"", Proceed, Failed),
            ("\"v6\", \"v7\"", Proceed, Failed),
            (",, \"v6\" ,\t\"v7\",", Proceed, Failed),
            ("\"v6\"", Failed, Failed),
            ("W/\"v7\"", Failed, Failed),
            ("\"v6,\", \"v7\"", Proceed, Failed),
            ("\"V7\"", Failed, Failed),
            ("\"\"", Failed, Failed),
            ("", Failed, Failed),
        ] {
            assert_eq!(evaluate(&[("if-match", value)], Some("v7"), false), Some(present), "{value}");
            assert_eq!(evaluate(&[("if-match", value)], None, false), Some(absent), "{value}");
        }
        assert_eq!(
            evaluate(&[("if-match", "\"v6\""), ("if-match", "\"v7\"")], Some("v7"), false),
            Some(Proceed)
        );
    }

    #[test]
    fn if_none_match_compares_weakly() {
        use Evaluation::{Failed, NotModified, Proceed};
        for (value, write, read) in [
            ("*", Failed, NotModified),
            ("\"v7\"", Failed, NotModified),
            ("W/\"v7\"", Failed, NotModified),
            ("\"v6\", W/\"v7\"", Failed, NotModified),
            ("\"v6\"", Proceed, Proceed),
        ] {
            assert_eq!(evaluate(&[("if-none-match", value)], Some("v7"), false), Some(write), "{value}");
            assert_eq!(evaluate(&[("if-none-match", value)], Some("v7"), true), Some(read), "{value}");
            assert_eq!(evaluate(&[("if-none-match", value)], None, false), Some(Proceed), "{value}");
        }
    }

    #[test]
    fn if_match_takes_precedence() {
        let both = [("if-match", "\"v6\""), ("if-none-match", "\"v7\"")];
        assert_eq!(evaluate(&both, Some("v7"), true), Some(Evaluation::Failed));
        let both = [("if-match", "\"v7\""), ("if-none-match", "\"v7\"")];
        assert_eq!(evaluate(&both, Some("v7"), true), Some(Evaluation::NotModified));
    }

    #[test]
    fn malformed_tags_are_invalid() {
        for value in
            ["v7", "\"v7", "v7\"", "\"v6\" \"v7\"", "w/\"v7\"", "W/ \"v7\"", "*, \"v7\"", "\"a b\"", "**"]
        {
            for name in ["if-match", "if-none-match"] {
                assert_eq!(evaluate(&[(name, value)], Some("v7"), false), None, "{value}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_list_holds_as_its_tags_do(
            tags in prop::collection::vec((any::<bool>(), "[!#-~]{0,3}"), 0..5),
            separator in "[ \t]{0,2},[ \t]{0,2}(,[ ]?)?",
            current in "[!#-~]{0,3}",
        ) {
            let texts = tags.iter().map(|(weak, tag)| format!("{}\"{tag}\"", if *weak { "W/" } else { "" }));
            let value = texts.collect::<Vec<_>>().join(&separator);
            let strong = tags.iter().any(|(weak, tag)| !weak && *tag == current);
            let any = tags.iter().any(|(_, tag)| *tag == current);
            let expected = if strong { Evaluation::Proceed } else { Evaluation::Failed };
            prop_assert_eq!(evaluate(&[("if-match", &value)], Some(&current), false), Some(expected));
            let expected = if any { Evaluation::Failed } else { Evaluation::Proceed };
            prop_assert_eq!(evaluate(&[("if-none-match", &value)], Some(&current), false), Some(expected));
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(value in prop::collection::vec(prop_oneof![9u8..10, 32u8..127, 128u8..=255], 0..40)) {
            let mut headers = HeaderMap::new();
            headers.append("if-match", HeaderValue::from_bytes(&value).expect("a value"));
            let _ = Preconditions::from_headers(&headers);
        }
    }
}
