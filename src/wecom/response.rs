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
mod tests;

pub use content_encoding::{MAX_DECOMPRESSED_BYTES, ResponseScanner};
pub use gettoken_response::{
    GettokenError, GettokenResponse, caller_ip, parse_gettoken, parse_ok_response, parse_token_response,
};
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
    // WeCom's own spelling, without a search for the end and without regard to case.
    if matches!(content_type.strip_prefix(b"application/json"), Some([] | [b';', ..])) {
        return true;
    }
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
