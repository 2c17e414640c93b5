//! The replies of WeCom: which ones can carry an errcode, the errcode of one that streams past, and gettoken's answer.
//!
//! A call failed if and only if its reply is a JSON object with a **top-level** `errcode` that is not 0. That key is
//! often missing on success, is not always the first one, and occurs nested with other meanings.

mod coded;
mod grant;
mod gzip;
mod inflater;
mod number;
mod scanner;

#[cfg(test)]
mod generate;
#[cfg(test)]
mod properties;

pub use coded::{MAX_DECOMPRESSED, ReplyScanner};
pub use grant::{Grant, GrantError, caller_in, parse_grant, parse_success};
pub use scanner::{ErrcodeScanner, MAX_DEPTH, Verdict};

use http::StatusCode;

use crate::fields::{Fields, Known};

/// Whether a response with this head is one whose body may carry an errcode, and is to be scanned.
///
/// Its type is JSON of some kind, `text/plain`, or not given. A download is never scanned, for it may itself be a JSON
/// file with an `errcode` of its own: it has a Content-Disposition (WeCom's errors have none) or is a part (206).
pub fn may_carry_errcode(status: StatusCode, fields: &Fields) -> bool {
    let no_body_of_its_own =
        matches!(status, StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED);
    if no_body_of_its_own || status.is_informational() || fields.contains(Known::ContentDisposition) {
        return false;
    }
    fields.first(Known::ContentType).is_none_or(is_json_or_plain)
}

fn is_json_or_plain(content_type: &[u8]) -> bool {
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let is = |known: &[u8]| essence.eq_ignore_ascii_case(known);
    is(b"application/json")
        || is(b"text/json")
        || is(b"text/plain")
        || essence.is_empty()
        || essence.len() > 5 && essence[essence.len() - 5..].eq_ignore_ascii_case(b"+json")
}

/// The top-level errcode of a whole reply, by the rules of [`ErrcodeScanner`].
pub fn errcode_of(body: &[u8]) -> Option<i64> {
    match ErrcodeScanner::new().feed(body) {
        Verdict::Found(errcode) => Some(errcode),
        Verdict::Undecided | Verdict::None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(content_type: &str) -> bool {
        may_carry_errcode(StatusCode::OK, &Fields::of(&[("Content-Type", content_type)]))
    }

    #[test]
    fn json_plain_text_and_untyped_replies_are_scanned() {
        assert!(may_carry_errcode(StatusCode::OK, &Fields::default()));
        assert!(may_carry_errcode(StatusCode::BAD_REQUEST, &Fields::default()));
        for yes in [
            "application/json",
            "application/json; charset=UTF-8",
            "Application/JSON ;encoding=utf-8",
            "text/json",
            "text/plain",
            "application/problem+json",
            "",
        ] {
            assert!(typed(yes), "{yes}");
        }
        for no in ["text/html", "image/jpeg", "application/octet-stream", "application/jsonp", "json", "*/*"]
        {
            assert!(!typed(no), "{no}");
        }
    }

    #[test]
    fn downloads_parts_and_empty_answers_are_not() {
        let json = ("Content-Type", "application/json");
        for status in [206, 204, 304, 101] {
            assert!(
                !may_carry_errcode(StatusCode::from_u16(status).unwrap(), &Fields::of(&[json])),
                "{status}"
            );
        }
        let download = Fields::of(&[json, ("Content-disposition", "attachment; filename=\"a.json\"")]);
        assert!(!may_carry_errcode(StatusCode::OK, &download));
    }

    #[test]
    fn a_whole_body_at_once() {
        assert_eq!(
            errcode_of(br#"{"ip_list":[],"errcode":42001,"errmsg":"access_token expired"}"#),
            Some(42001)
        );
        assert_eq!(errcode_of(br#"{"detail":{"errcode":42001}}"#), None);
        assert_eq!(errcode_of(b""), None);
    }
}
