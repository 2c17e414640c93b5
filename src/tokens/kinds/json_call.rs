//! Calls of the proxy's own with a JSON body, for the tokens and codes of service providers.

use std::sync::Arc;

use serde_json::Value;

use super::access_token::{invalid_response, refusal_of};
use crate::{
    secret::{Masked, credential_scan},
    text,
    tokens::{CachedToken, FetchError, PathKey, ReplaceOutcome},
    upstream::Fetched,
    wecom::{
        provider_api,
        response::{GettokenError, GettokenResponse, parse_errcode, parse_token_response},
    },
};

/// A call with its secrets. No `Debug`: the body and the query contain them.
#[derive(Clone)]
pub struct JsonCall {
    /// The corpid or suite_id whose egress proxy carries it.
    pub corpid: String,
    /// Path and query.
    pub target: Masked,
    /// The body of a POST; `None`: a GET.
    pub body: Option<Masked>,
}

impl JsonCall {
    /// A POST without a token.
    pub fn post(corpid: &str, path: &str, body: &Value) -> Self {
        Self {
            corpid: corpid.to_owned(),
            target: Masked::new(path),
            body: Some(Masked::new(body.to_string())),
        }
    }

    /// A POST with the token of a suite.
    pub fn post_with_suite_token(suite: &CachedToken, path: &str, token: &Masked, body: &Value) -> Self {
        Self {
            corpid: suite.credentials().corpid.to_string(),
            target: target_with_token(path, token),
            body: Some(Masked::new(body.to_string())),
        }
    }

    /// A GET with the token of a suite.
    pub fn get_with_suite_token(suite: &CachedToken, path: &str, token: &Masked) -> Self {
        Self {
            corpid: suite.credentials().corpid.to_string(),
            target: target_with_token(path, token),
            body: None,
        }
    }
}

fn target_with_token(path: &str, token: &Masked) -> Masked {
    Masked::new(format!("{path}?suite_access_token={}", token.expose()))
}

/// Makes a call with the token of a suite, and once more if WeCom refuses the token: the entry renews it once, for all
/// callers. Returns the body of the last response.
pub async fn call_with_suite_token(
    suite: &Arc<CachedToken>,
    path: PathKey,
    call: impl Fn(&Masked) -> JsonCall,
) -> Result<Vec<u8>, FetchError> {
    let token = suite.current_or_fetch().await.map_err(FetchError::SuiteToken)?;
    let first = body_of(suite.call(call(&token.value)).await?)?;
    if !is_refusal(&first) {
        token.mark_accepted_on(path);
        return Ok(first);
    }
    let next = match suite.replace_refused(&token, path).await {
        ReplaceOutcome::Refreshed(next) | ReplaceOutcome::Unchanged(next) => next,
        ReplaceOutcome::Throttled(_) => return Ok(first),
        ReplaceOutcome::Unavailable(failure) => return Err(FetchError::SuiteToken(failure)),
    };
    let second = body_of(suite.call(call(&next.value)).await?)?;
    if is_refusal(&second) {
        suite.mark_refused_again(&next, path)
    } else {
        next.mark_accepted_on(path)
    }
    Ok(second)
}

fn is_refusal(body: &[u8]) -> bool {
    parse_errcode(body).is_some_and(provider_api::voids_provider_token)
}

/// The error for a response to such a call. `secrets` are masked in WeCom's errmsg.
pub fn call_error(error: GettokenError, secrets: &[&Masked]) -> FetchError {
    refusal_of(error, 200, secrets)
}

/// The token in `member` of a response. `secrets` are masked in WeCom's errmsg.
pub(super) fn token_of_response(
    fetched: Fetched,
    member: &'static str,
    secrets: &[&Masked],
) -> Result<GettokenResponse, FetchError> {
    let status = fetched.status;
    token_of(&body_of(fetched)?, status, member, secrets)
}

/// The token in `member` of a body.
pub(super) fn token_of(
    body: &[u8],
    status: u16,
    member: &'static str,
    secrets: &[&Masked],
) -> Result<GettokenResponse, FetchError> {
    let response = parse_token_response(body, member).map_err(|error| refusal_of(error, status, secrets))?;
    match credential_scan::has_pass_prefix(response.token.expose()) {
        true => Err(invalid_response(
            status,
            const {
                &text!(
                    "the token is a pass: upstream.url leads back to a proxy",
                    "得到的 token 是通行证：upstream.url 又指回了代理"
                )
            },
        )),
        false => Ok(response),
    }
}

/// The body of a response.
pub(in crate::tokens) fn body_of(fetched: Fetched) -> Result<Vec<u8>, FetchError> {
    fetched.body.ok_or_else(|| {
        invalid_response(fetched.status, const { &text!("body exceeds 64 KiB", "正文超过 64 KiB") })
    })
}
