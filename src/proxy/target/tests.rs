use proptest::prelude::*;

use super::*;

fn parse(target: &str) -> Result<(Option<String>, String, String, TargetKind), TargetError> {
    let target = RequestTarget::new(target);
    target.check()?;
    let agent = target.agent().map(str::to_owned);
    let path = target.upstream_path().to_owned();
    Ok((agent, path, target.normalized_path().to_owned(), target.kind()))
}

#[test]
fn valid_path_is_parsed() {
    use TargetKind::{Gettoken, InjectToken, JssdkSignature, Passthrough, Service};
    for (given, agent, path, route, kind) in [
        ("/cgi-bin/user/get?a=1", None, "/cgi-bin/user/get", "/cgi-bin/user/get", InjectToken),
        ("/hr/cgi-bin/user/get", Some("hr"), "/cgi-bin/user/get", "/cgi-bin/user/get", InjectToken),
        ("//cgi-bin/user/get", None, "/cgi-bin/user/get", "/cgi-bin/user/get", InjectToken),
        ("/hr//cgi-bin/user/get", Some("hr"), "/cgi-bin/user/get", "/cgi-bin/user/get", InjectToken),
        ("/cgi-bin/oa//book", None, "/cgi-bin/oa//book", "/cgi-bin/oa/book", InjectToken),
        ("/cgi-bin/user/%67et", None, "/cgi-bin/user/%67et", "/cgi-bin/user/get", InjectToken),
        ("/cgi-bin/gettoken", None, "/cgi-bin/gettoken", "/cgi-bin/gettoken", Gettoken),
        ("/hr/cgi-bin//GetToken/", Some("hr"), "/cgi-bin//GetToken/", "/cgi-bin/GetToken/", Gettoken),
        ("/cgi-bin/%67ettoken;a", None, "/cgi-bin/%67ettoken;a", "/cgi-bin/gettoken;a", Gettoken),
        ("/cgi-bin/webhook/send?key=1", None, "/cgi-bin/webhook/send", "/cgi-bin/webhook/send", Passthrough),
        ("/jssdk/signature?url=x", None, "/jssdk/signature", "/jssdk/signature", JssdkSignature),
        ("//hr//jssdk/signature", Some("hr"), "/jssdk/signature", "/jssdk/signature", JssdkSignature),
        ("/cgi-bin/service/x", None, "/cgi-bin/service/x", "/cgi-bin/service/x", Service),
        ("/cgi-bin/license/x", None, "/cgi-bin/license/x", "/cgi-bin/license/x", Service),
        ("/cgi-bin/openhw/x", None, "/cgi-bin/openhw/x", "/cgi-bin/openhw/x", Passthrough),
        ("/cgi-bin/oa/x", None, "/cgi-bin/oa/x", "/cgi-bin/oa/x", InjectToken),
        (
            "/crm:wp-1_A/cgi-bin/user/get",
            Some("crm:wp-1_A"),
            "/cgi-bin/user/get",
            "/cgi-bin/user/get",
            InjectToken,
        ),
        ("/cgi-bin/services/x", None, "/cgi-bin/services/x", "/cgi-bin/services/x", InjectToken),
    ] {
        let expected = (agent.map(str::to_owned), path.to_owned(), route.to_owned(), kind);
        assert_eq!(parse(given), Ok(expected), "{given}");
    }
}

#[test]
fn invalid_path_is_rejected() {
    for given in [
        "/",
        "/hr",
        "/cgi-bin",
        "/cgi-bin/",
        "/hr/cgi-bin/",
        "/foo/bar",
        "/a/b/cgi-bin/user/get",
        "/a/b/jssdk/signature",
        "/jssdk/signature/",
        "/jssdk/signatures",
        "/jssdk",
        "/hr/jssdk",
        "/jssdk/cgi-binx",
        "/cgi-binx/a",
        "/h.r/cgi-bin/a",
        "/crm:/cgi-bin/a",
        "/:wp1/cgi-bin/a",
        "/crm:a:b/cgi-bin/a",
    ] {
        assert_eq!(parse(given), Err(TargetError::NoRoute), "{given}");
    }
    for given in [
        "/cgi-bin/../a",
        "/cgi-bin/a/..",
        "/cgi-bin/./a",
        "/cgi-bin/%2e%2e/a",
        "/cgi-bin/%2E/a",
        "/cgi-bin/.%2e/a",
        "/cgi-bin/%252e%252e/a",
        "/cgi-bin/..;a=b/c",
        "/cgi-bin/a%2fb",
        "/cgi-bin/a%5cb",
        "/cgi-bin/a\\b",
        "/cgi-bin/a%252fb",
        "/cgi-bin/a%00",
        "/cgi-bin/a%0d%0a",
        "/cgi-bin/a%7f",
        "/cgi-bin/a%c2%85",
        "/cgi-bin/a%25c2%2585",
        "/cgi-bin/%c0%ae%c0%ae/a",
        "/cgi-bin/\u{e9}",
        "/cgi-bin/a b",
        "/hr/../cgi-bin/a",
        "/%2e%2e/cgi-bin/a",
        "/cgi-bin/%25252525",
        "/cgi-bin/a?b\x01",
        "/../cgi-bin/a",
    ] {
        assert!(matches!(parse(given), Err(TargetError::Malformed(_))), "{given}: {:?}", parse(given));
    }
}

#[test]
fn gettoken_in_any_spelling_is_not_cached() {
    for path in ["gettoken", "gettoken/", "/GetToken", "%67ettoken", "gettoken;a", "GETTOKEN/;a=b"] {
        let target = RequestTarget::new(&format!("/hr/cgi-bin/{path}?corpsecret=s"));
        assert!(target.check().is_ok() && !target.is_cacheable(), "{path}");
    }
    for (target, expected) in [
        ("/hr/cgi-bin/user/get?userid=gettoken", true),
        ("/hr/cgi-bin/user/gettokens", true),
        ("/gettoken?corpsecret=s", false),
        ("/a/b/cgi-bin/gettoken?corpsecret=s", false),
    ] {
        assert_eq!(RequestTarget::new(target).is_cacheable(), expected, "{target}");
    }
}

proptest! {
    #[test]
    fn decoded_path_stays_below_the_api_root(path in "/[a-z./%2eEfF5cC;\\\\-]{0,40}") {
        let path = format!("/cgi-bin{path}");
        let target = RequestTarget::new(&path);
        if target.check().is_ok() {
            let mut text = target.upstream_path().to_owned();
            for _ in 0..4 {
                let mut depth = 0;
                for segment in text.split('/').filter(|segment| !segment.is_empty()) {
                    let is_dots = segment.split(';').next() == Some("..");
                    depth += if is_dots { -1 } else { 1 };
                    prop_assert!(depth > 0 && !is_dots, "{}", text);
                }
                prop_assert!(!text.contains('\\'));
                text = percent_decode_str(&text).decode_utf8_lossy().into_owned();
            }
        }
    }
}
