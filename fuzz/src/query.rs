//! The query of the upstream request: the client's query, unchanged and in order, without the parameters whose decoded name
//! is `access_token`, and with the agent's token appended.

use wecom_proxy::internals::{TargetError, TargetKind};

use super::{reference::percent_decode, target::resolve_target};

const TOKEN: &str = "the-agents-own-TOKEN";

/// Input: a query.
pub fn check(data: &[u8]) {
    let Ok(query) = std::str::from_utf8(data) else { return };
    let result = resolve_target(&format!("/cgi-bin/user/get?{query}"), TOKEN);
    let invalid = query.bytes().any(|byte| byte <= b' ' || byte == 0x7f || byte == b'#');
    match result {
        Ok(resolved) => {
            assert!(!invalid, "forwarded bytes that could end a request line: {query:?}");
            assert_eq!((resolved.kind, resolved.agent), (TargetKind::InjectToken, None));
            assert_eq!(
                resolved.upstream_target,
                format!("/cgi-bin/user/get?{}", reference_query(query)),
                "{query:?}"
            );
        }
        Err(error) => {
            assert!(invalid && matches!(error, TargetError::Malformed(_)), "refused: {query:?}");
        }
    }
    if !invalid {
        let passthrough = resolve_target(&format!("/cgi-bin/webhook/send?{query}"), TOKEN)
            .unwrap_or_else(|error| panic!("refused: {error:?}"));
        assert_eq!(passthrough.upstream_target, format!("/cgi-bin/webhook/send?{query}"), "changed");
    }
}

fn reference_query(query: &str) -> String {
    let is_token = |parameter: &&str| {
        let name = parameter.find('=').map_or(*parameter, |equals| &parameter[..equals]);
        percent_decode(name.as_bytes()) == b"access_token"
    };
    let mut parameters: Vec<&str> = query.split('&').filter(|parameter| !is_token(parameter)).collect();
    // A trailing ampersand serves as the separator before the token; it is not doubled.
    if parameters.last() == Some(&"") {
        parameters.pop();
    }
    let token = format!("access_token={TOKEN}");
    parameters.push(&token);
    parameters.join("&")
}
