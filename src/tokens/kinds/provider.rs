//! The token of a service provider. Fetched with its corpid and provider_secret, it waits for no other token.

use serde_json::json;

use super::json_call::{self, JsonCall};
use crate::{
    tokens::{Credentials, FetchError, FetchToken},
    upstream::Fetched,
    wecom::response::GettokenResponse,
};

/// Its kind in a `CredentialId`.
pub(in crate::tokens) const ID_KIND: &str = "provider";

/// Fetches a token once.
pub(in crate::tokens) async fn fetch(
    fetcher: &dyn FetchToken,
    credentials: &Credentials,
) -> Result<GettokenResponse, FetchError> {
    parse(credentials, fetcher.call(request(credentials)).await?)
}

/// The call for a token.
pub fn request(Credentials { corpid, secret, .. }: &Credentials) -> JsonCall {
    let body = json!({ "corpid": corpid, "provider_secret": secret.expose() });
    JsonCall::post(corpid, "/cgi-bin/service/get_provider_token", &body)
}

/// The token of its response.
pub fn parse(credentials: &Credentials, fetched: Fetched) -> Result<GettokenResponse, FetchError> {
    json_call::token_of_response(fetched, "provider_access_token", &[&credentials.secret])
}
