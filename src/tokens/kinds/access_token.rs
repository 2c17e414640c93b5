//! The access_token of an agent. Fetched with corpid and secret, it waits for no other token; `tokens.refresh_errcodes`
//! void it.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    secret::{Masked, credential_scan},
    text,
    text::Text,
    tokens::{Credentials, FetchError},
    upstream::Fetched,
    wecom::response::{GettokenError, GettokenResponse, parse_gettoken},
};

/// Its kind in a `CredentialId`.
pub(in crate::tokens) const ID_KIND: &str = "";
/// The query parameter that carries it.
pub const PARAM: &str = "access_token";
/// The same behind other parameters, before the token.
pub const APPENDED_PARAM: &str = "&access_token=";

/// The reason if the access_token is a pass: gettoken's response came from a proxy.
const LOOP_REASON: &Text = &text!(
    "access_token is a pass of wecom-proxy: upstream.url leads back to a proxy; on this machine its host name must resolve \
     to WeCom",
    "access_token 是 wecom-proxy 的通行证：upstream.url 又指回了代理；在本机上它的主机名必须解析到企业微信"
);

/// Length of a WeCom secret. Tokens are longer; the hints and addresses in WeCom's messages contain no word this
/// long.
const SECRET_BYTES: usize = 43;

/// The request, with the secret in its query.
pub(in crate::tokens) fn request_target(Credentials { corpid, secret, .. }: &Credentials) -> Masked {
    let corpid = utf8_percent_encode(corpid, NON_ALPHANUMERIC);
    Masked::new(format!("/cgi-bin/gettoken?corpid={corpid}&corpsecret={}", percent_encoded(secret).expose()))
}

fn percent_encoded(secret: &Masked) -> Masked {
    Masked::new(utf8_percent_encode(secret.expose(), NON_ALPHANUMERIC).to_string())
}

/// Masks every word of WeCom's message that is long enough to be a secret, encoded or not, of any agent.
fn without_secrets(errmsg: &str) -> String {
    let is_word_char = |char: char| char.is_ascii_alphanumeric() || "-_%+".contains(char);
    let mut masked = String::with_capacity(errmsg.len());
    for part in errmsg.split_inclusive(|char| !is_word_char(char)) {
        let end = part.rfind(is_word_char).map_or(0, |last| last + 1);
        masked.push_str(if end < SECRET_BYTES { &part[..end] } else { "[masked]" });
        masked.push_str(&part[end..]);
    }
    masked
}

/// The error for a response that has no usable token.
pub(super) fn invalid_response(status: u16, reason: &'static Text) -> FetchError {
    FetchError::InvalidResponse { status, reason }
}

/// The error for a response without a token. WeCom is not known to echo a secret, but a gateway in front of it may echo
/// the URL: `secrets` are masked here.
pub(super) fn refusal_of(error: GettokenError, status: u16, secrets: &[&Masked]) -> FetchError {
    match error {
        GettokenError::Refused { errcode, errmsg } => {
            let masked = secrets.iter().fold(errmsg, |errmsg, secret| {
                let errmsg = errmsg.replace(secret.expose(), "[masked]");
                errmsg.replace(percent_encoded(secret).expose(), "[masked]")
            });
            FetchError::Errcode { errcode, errmsg: without_secrets(&masked) }
        }
        GettokenError::NotJson => invalid_response(status, const { &text!("not JSON", "不是 JSON") }),
        GettokenError::MissingToken => {
            invalid_response(status, const { &text!("no access_token", "没有 access_token") })
        }
        GettokenError::InvalidToken => invalid_response(
            status,
            const {
                &text!(
                    "access_token is not 1 to 512 characters allowed in a URL",
                    "access_token 不是 1 到 512 个 URL 允许的字符"
                )
            },
        ),
    }
}

/// The token of a response.
pub(in crate::tokens) fn parse_response(
    Credentials { secret, .. }: &Credentials,
    fetched: Fetched,
) -> Result<GettokenResponse, FetchError> {
    let status = fetched.status;
    let body = fetched.body.ok_or_else(|| {
        invalid_response(status, const { &text!("body exceeds 64 KiB", "正文超过 64 KiB") })
    })?;
    let response = parse_gettoken(&body).map_err(|error| refusal_of(error, status, &[secret]))?;
    // A pass as a token would make this proxy call itself without end.
    match credential_scan::has_pass_prefix(response.token.expose()) {
        true => Err(invalid_response(status, LOOP_REASON)),
        false => Ok(response),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errmsg_words_as_long_as_a_secret_are_masked() {
        let secret = "Kq3-5vXz_7bN1mPqRsTuVwXyZaBcDeFgHiJkLmNoPqR";
        assert_eq!(secret.len(), SECRET_BYTES);
        let message = "invalid credential, hint: [1523937387_46_b2dc8f6d4b9cc1a9e0a0d0], from ip: 1.2.3.4, more info at \
                       https://open.work.weixin.qq.com/devtool/query?e=40001";
        assert_eq!(without_secrets(message), message);
        let encoded = utf8_percent_encode(secret, NON_ALPHANUMERIC);
        for shown in [secret.to_owned(), encoded.to_string(), "T".repeat(512)] {
            let masked = without_secrets(&format!("bad corpsecret={shown}, 好 {shown}"));
            assert_eq!(masked, "bad corpsecret=[masked], 好 [masked]");
        }
        assert_eq!(without_secrets(""), "");
    }
}
