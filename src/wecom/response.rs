//! WeCom's responses: which ones can carry an errcode, the errcode of a streamed one, and gettoken's response.
//!
//! A call failed if and only if its response is a JSON object with a **top-level** `errcode` that is not 0. The
//! key is often missing on success, is not always the first one, and occurs nested with other meanings.

mod content_encoding;
mod gettoken_response;
mod gzip;
mod inflater;
mod number;
mod scanner;

#[cfg(test)]
mod generate;
#[cfg(test)]
mod properties;

pub use content_encoding::{MAX_DECOMPRESSED_BYTES, ResponseScanner};
pub use gettoken_response::{GettokenError, GettokenResponse, caller_ip, parse_gettoken, parse_ok_response};
pub use scanner::{ErrcodeScanner, MAX_DEPTH, Verdict};

use http::StatusCode;

use crate::http1::headers::{HeaderKind, Headers};

/// Whether the body of a response with this head can carry an errcode, and is to be scanned.
///
/// That is a body of a JSON type, of `text/plain` or without a type. A download is never scanned, because it can
/// be a JSON file with an `errcode` of its own: it has a Content-Disposition (WeCom's errors have none) or is a
/// part (206).
pub fn may_carry_errcode(status: StatusCode, headers: &Headers) -> bool {
    let has_no_own_body =
        matches!(status, StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED);
    if has_no_own_body || status.is_informational() || headers.contains(HeaderKind::ContentDisposition) {
        return false;
    }
    headers.first(HeaderKind::ContentType).is_none_or(is_json_or_plain_text)
}

fn is_json_or_plain_text(content_type: &[u8]) -> bool {
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let is = |known: &[u8]| essence.eq_ignore_ascii_case(known);
    is(b"application/json")
        || is(b"text/json")
        || is(b"text/plain")
        || essence.is_empty()
        || essence.len() > 5 && essence[essence.len() - 5..].eq_ignore_ascii_case(b"+json")
}

/// The top-level errcode of a complete response body, by the rules of [`ErrcodeScanner`].
pub fn parse_errcode(body: &[u8]) -> Option<i64> {
    match ErrcodeScanner::new().feed(body) {
        Verdict::Found(errcode) => Some(errcode),
        Verdict::Undecided | Verdict::None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_scanned(content_type: &str) -> bool {
        may_carry_errcode(StatusCode::OK, &Headers::from_pairs(&[("Content-Type", content_type)]))
    }

    #[test]
    fn json_plain_text_and_untyped_bodies_are_scanned() {
        assert!(may_carry_errcode(StatusCode::OK, &Headers::default()));
        assert!(may_carry_errcode(StatusCode::BAD_REQUEST, &Headers::default()));
        for yes in [
            "application/json",
            "application/json; charset=UTF-8",
            "Application/JSON ;encoding=utf-8",
            "text/json",
            "text/plain",
            "application/problem+json",
            "",
        ] {
            assert!(is_scanned(yes), "{yes}");
        }
        for no in ["text/html", "image/jpeg", "application/octet-stream", "application/jsonp", "json", "*/*"]
        {
            assert!(!is_scanned(no), "{no}");
        }
    }

    #[test]
    fn downloads_parts_and_empty_bodies_are_not_scanned() {
        let json = ("Content-Type", "application/json");
        for status in [206, 204, 304, 101] {
            assert!(
                !may_carry_errcode(StatusCode::from_u16(status).unwrap(), &Headers::from_pairs(&[json])),
                "{status}"
            );
        }
        let download =
            Headers::from_pairs(&[json, ("Content-disposition", "attachment; filename=\"a.json\"")]);
        assert!(!may_carry_errcode(StatusCode::OK, &download));
    }

    #[test]
    fn errcode_of_a_complete_body_is_parsed() {
        assert_eq!(
            parse_errcode(br#"{"ip_list":[],"errcode":42001,"errmsg":"access_token expired"}"#),
            Some(42001)
        );
        assert_eq!(parse_errcode(br#"{"detail":{"errcode":42001}}"#), None);
        assert_eq!(parse_errcode(b""), None);
    }
}
