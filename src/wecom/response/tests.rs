//! Which responses are scanned.

pub(super) mod generate;
mod properties;

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
    for no in ["text/html", "image/jpeg", "application/octet-stream", "application/jsonp", "json", "*/*"] {
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
    let download = Headers::from_pairs(&[json, ("Content-disposition", "attachment; filename=\"a.json\"")]);
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
