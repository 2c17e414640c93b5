//! The query that goes to the upstream: what came, byte for byte and in order, less every parameter whose decoded name is
//! `access_token`, plus one at the end.

use wecom_proxy::fuzz::{TargetKind, resolve_target};

use super::reference::percent_decode;

const TOKEN: &str = "the-agents-own-TOKEN";

/// The input is a query.
pub fn check(data: &[u8]) {
    let Ok(query) = std::str::from_utf8(data) else { return };
    let came = resolve_target(&format!("/cgi-bin/user/get?{query}"), TOKEN);
    let odd = query.bytes().any(|byte| byte <= b' ' || byte == 0x7f || byte == b'#');
    match came {
        Ok(way) => {
            assert!(!odd, "what could end a request line went out: {query:?}");
            assert_eq!((way.kind, way.agent), (TargetKind::InjectToken, None));
            assert_eq!(
                way.upstream_target,
                format!("/cgi-bin/user/get?{}", reference_query(query)),
                "{query:?}"
            );
        }
        Err(words) => assert!(odd && words.is_some(), "refused: {query:?}"),
    }
    if !odd {
        let own = resolve_target(&format!("/cgi-bin/webhook/send?{query}"), TOKEN).expect("it is sent");
        assert_eq!(own.upstream_target, format!("/cgi-bin/webhook/send?{query}"), "changed");
    }
}

fn reference_query(query: &str) -> String {
    let is_token = |parameter: &&str| {
        let name = parameter.find('=').map_or(*parameter, |equals| &parameter[..equals]);
        percent_decode(name.as_bytes()) == b"access_token"
    };
    let mut kept: Vec<&str> = query.split('&').filter(|parameter| !is_token(parameter)).collect();
    // An ampersand that is there already parts the last from the token; one that is not there is not doubled.
    if kept.last() == Some(&"") {
        kept.pop();
    }
    let token = format!("access_token={TOKEN}");
    kept.push(&token);
    kept.join("&")
}
