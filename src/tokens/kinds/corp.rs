//! The token of an authorised corp of a third-party app. Fetched with the suite's token and the corp's permanent code; it
//! waits for the suite's token, and a refusal of that renews it once for all corps.

use std::sync::{Arc, LazyLock};

use serde_json::json;

use super::json_call::{JsonCall, call_with_suite_token, token_of};
use crate::{
    tokens::{CachedToken, Credentials, FetchError, PathKey},
    wecom::response::GettokenResponse,
};

/// Its kind in a `CredentialId`.
pub(in crate::tokens) const ID_KIND: &str = "corp";

const PATH: &str = "/cgi-bin/service/get_corp_token";

static PATH_KEY: LazyLock<PathKey> = LazyLock::new(|| PathKey::from_path(PATH));

/// Fetches a token once; once more after a refusal of the suite's token.
pub(in crate::tokens) async fn fetch(
    Credentials { corpid, secret, .. }: &Credentials,
    suite: Arc<CachedToken>,
) -> Result<GettokenResponse, FetchError> {
    let body = json!({ "auth_corpid": corpid, "permanent_code": secret.expose() });
    let call = |token: &_| JsonCall::post_with_suite_token(&suite, PATH, token, &body);
    let response = call_with_suite_token(&suite, *PATH_KEY, call).await?;
    token_of(&response, 200, "access_token", &[secret])
}
