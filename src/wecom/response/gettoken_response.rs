//! gettoken's response.

use std::{net::IpAddr, time::Duration};

use serde_json::{Map, Value};

use super::parse_errcode;
use crate::secret::Masked;

/// The lifetime of a token if WeCom sends no valid one: the documented one.
const DEFAULT_TOKEN_TTL: Duration = Duration::from_secs(7200);
/// The longest lifetime accepted.
const MAX_TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// WeCom documents tokens of up to 512 bytes.
const MAX_TOKEN_BYTES: usize = 512;
const MAX_ERRMSG_CHARS: usize = 512;

/// A token that WeCom issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GettokenResponse {
    /// 1 to 512 bytes that need no escaping in a query.
    pub token: Masked,
    /// From one second to 24 hours.
    pub expires_in: Duration,
}

impl GettokenResponse {
    /// A token that came by another way than gettoken, such as the store; `None` if it is no valid token.
    pub fn from_parts(token: &str, expires_in: Duration) -> Option<Self> {
        let expires_in = expires_in.min(MAX_TOKEN_TTL);
        is_valid_token(token).then(|| Self { token: Masked::new(token), expires_in })
    }
}

/// Why a gettoken response has no token. No text of it contains the response, except WeCom's errmsg.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GettokenError {
    /// WeCom returned an errcode.
    #[error("errcode {errcode}: {errmsg}")]
    Refused {
        /// WeCom's errcode, not 0.
        errcode: i64,
        /// WeCom's errmsg: at most 512 characters, control characters replaced by spaces.
        errmsg: String,
    },
    /// The response is not a JSON object: the HTML page of a gateway, or truncated JSON.
    #[error("response is not a JSON object")]
    NotJson,
    /// A JSON object with neither an errcode nor a token.
    #[error("response has no access_token")]
    MissingToken,
    /// The access_token is no string, empty, too long, or has characters that must not be in a URL.
    #[error("access_token in the response is not fit for a URL")]
    InvalidToken,
}

/// Parses gettoken's response.
///
/// Bytes that are not UTF-8 are replaced, because an errmsg in another charset must not hide the errcode.
/// `expires_in` is an integer number of seconds, also spelled `7200.0` or `"7200"`; if it is missing, not
/// positive or not an integer, the documented 7200 s are used; it is capped at 24 h.
pub fn parse_gettoken(body: &[u8]) -> Result<GettokenResponse, GettokenError> {
    parse_token_response(body, "access_token")
}

/// The same for a response with the token in `member`.
pub fn parse_token_response(body: &[u8], member: &str) -> Result<GettokenResponse, GettokenError> {
    let mut response = parse_ok_response(body)?;
    let token = match response.remove(member) {
        None | Some(Value::Null) => return Err(GettokenError::MissingToken),
        Some(Value::String(token)) if is_valid_token(&token) => Masked::new(token),
        Some(_) => return Err(GettokenError::InvalidToken),
    };
    Ok(GettokenResponse { token, expires_in: parse_expires_in(response.get("expires_in")) })
}

/// Parses a small response to one of the proxy's own calls: the JSON object, unless WeCom returned an errcode.
///
/// Bytes that are not UTF-8 are replaced, as in [`parse_gettoken`].
pub fn parse_ok_response(body: &[u8]) -> Result<Map<String, Value>, GettokenError> {
    let text = String::from_utf8_lossy(body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body));
    let response: Map<String, Value> = serde_json::from_str(&text).map_err(|_| GettokenError::NotJson)?;
    match parse_errcode(text.as_bytes()) {
        None | Some(0) => Ok(response),
        Some(errcode) => {
            let errmsg = response.get("errmsg").and_then(Value::as_str).unwrap_or_default();
            Err(GettokenError::Refused { errcode, errmsg: sanitize_errmsg(errmsg) })
        }
    }
}

/// The caller's address as WeCom saw it, if the errmsg contains it. For people, like the errmsg itself.
pub fn caller_ip(errmsg: &str) -> Option<IpAddr> {
    let (_, rest) = errmsg.split_once("from ip: ")?;
    rest.split([',', ' ']).next()?.parse().ok()
}

fn sanitize_errmsg(errmsg: &str) -> String {
    errmsg.chars().take(MAX_ERRMSG_CHARS).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// Whether `token` can be put into a query unescaped: RFC 3986's query characters without `&` and `+`, which
/// have a meaning in queries, and without `?`.
fn is_valid_token(token: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~=/:@!$'()*,;".contains(&byte);
    (1..=MAX_TOKEN_BYTES).contains(&token.len()) && token.bytes().all(is_allowed)
}

fn parse_expires_in(expires_in: Option<&Value>) -> Duration {
    let seconds = match expires_in {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    match seconds {
        Some(seconds) if seconds.is_finite() && seconds >= 1.0 && seconds.fract() == 0.0 => {
            Duration::try_from_secs_f64(seconds).unwrap_or(MAX_TOKEN_TTL).min(MAX_TOKEN_TTL)
        }
        _ => DEFAULT_TOKEN_TTL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_with_token(token: &str) -> Result<GettokenResponse, GettokenError> {
        parse_gettoken(serde_json::json!({ "errcode": 0, "access_token": token }).to_string().as_bytes())
    }

    fn expires_in_of(expires_in: &str) -> u64 {
        let body = format!("{{\"access_token\":\"T\",\"expires_in\":{expires_in}}}");
        parse_gettoken(body.as_bytes()).unwrap().expires_in.as_secs()
    }

    #[test]
    fn documented_response_is_parsed() {
        let body = br#"{"errcode":0,"errmsg":"ok","access_token":"accesstoken000001-_x","expires_in":7200}"#;
        let response = parse_gettoken(body).unwrap();
        assert_eq!(response.token.expose(), "accesstoken000001-_x");
        assert_eq!(response.expires_in, Duration::from_secs(7200));
        assert!(!format!("{response:?}").contains("accesstoken"));
    }

    #[test]
    fn any_expires_in_is_tolerated() {
        for (expires_in, seconds) in [
            ("60", 60),
            ("7000.0", 7000),
            ("\"3600\"", 3600),
            ("\" 3600.0 \"", 3600),
            ("0", 7200),
            ("-5", 7200),
            ("0.5", 7200),
            ("null", 7200),
            ("\"soon\"", 7200),
            ("\"NaN\"", 7200),
            ("\"inf\"", 7200),
            ("[7200]", 7200),
            ("true", 7200),
            ("86401", 86400),
            ("18446744073709551616", 86400),
            ("1e300", 86400),
        ] {
            assert_eq!(expires_in_of(expires_in), seconds, "{expires_in}");
        }
        assert_eq!(parse_with_token("T").unwrap().expires_in, Duration::from_secs(7200));
    }

    #[test]
    fn refusal_carries_errcode_and_errmsg() {
        let refused = |body: &[u8]| match parse_gettoken(body) {
            Err(GettokenError::Refused { errcode, errmsg }) => (errcode, errmsg),
            other => panic!("{other:?}"),
        };
        let body = br#"{"errcode":40001,"errmsg":"invalid credential\n\u001b[31m","access_token":"T"}"#;
        assert_eq!(refused(body), (40001, "invalid credential  [31m".to_owned()));
        assert_eq!(refused(b"\xEF\xBB\xBF{\"errcode\":-1}"), (-1, String::new()));
        assert_eq!(refused(b"{\"errmsg\":\"\xCF\xB5\",\"errcode\":45009}").0, 45009);
        assert_eq!(refused(b"{\"errmsg\":7,\"errcode\":45009.0}"), (45009, String::new()));
        let long = format!("{{\"errcode\":1,\"errmsg\":\"{}\"}}", "错".repeat(600));
        assert_eq!(refused(long.as_bytes()).1.chars().count(), 512);
    }

    #[test]
    fn caller_ip_is_read_from_errmsg() {
        let ip_of = |from: &str| caller_ip(&format!("not allow to access from your ip, hint: [1], {from}"));
        let more = "more info at https://open.work.weixin.qq.com/devtool/query?e=60020";
        for address in ["203.0.113.7", "2001:db8::7"] {
            assert_eq!(ip_of(&format!("from ip: {address}, {more}")), address.parse().ok());
            assert_eq!(ip_of(&format!("from ip: {address}")), address.parse().ok());
        }
        for from in ["", "from ip: ", "from ip: nowhere", "from ip: 203.0.113.777, more"] {
            assert_eq!(ip_of(from), None, "{from}");
        }
    }

    #[test]
    fn response_without_token_is_an_error() {
        for body in
            ["", "<html>secret</html>", "[]", "\"x\"", "{\"access_token\":\"T\"", "{\"errcode\":40001,"]
        {
            assert_eq!(parse_gettoken(body.as_bytes()), Err(GettokenError::NotJson), "{body}");
        }
        for body in ["{}", "{\"errcode\":0,\"errmsg\":\"ok\"}", "{\"access_token\":null}"] {
            assert_eq!(parse_gettoken(body.as_bytes()), Err(GettokenError::MissingToken), "{body}");
        }
        assert_eq!(parse_gettoken(b"{\"access_token\":7}"), Err(GettokenError::InvalidToken));
    }

    #[test]
    fn only_a_url_safe_token_is_accepted() {
        for token in ["T", "aZ09-._~", "a=b/c:d@e!$'()*,;==", &"t".repeat(512)] {
            assert_eq!(parse_with_token(token).unwrap().token.expose(), token);
        }
        let long = "t".repeat(513);
        for token in [
            "", "a b", "a&b", "a#b", "a%20", "a+b", "a?b", "a\"b", "a\r\nb", "a\0", "a\\b", "a<b", "a[b",
            "ключ", "\u{7f}", &long,
        ] {
            assert_eq!(parse_with_token(token), Err(GettokenError::InvalidToken), "{token}");
        }
    }

    #[test]
    fn error_text_does_not_reveal_the_body() {
        for body in [
            "s3cret",
            "{\"x\":\"s3cret\"}",
            "{\"access_token\":\"s3cret \"}",
            "{\"errcode\":1,\"x\":\"s3cret\"}",
        ] {
            let error = parse_gettoken(body.as_bytes()).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{body}");
        }
    }
}
