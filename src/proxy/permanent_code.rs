//! `get_permanent_code` and `get_auth_info`: permanent codes stay here, and clients get stand-ins for them.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{
    Proxy,
    error::{ErrorKind, ProxyError},
    exchange::{Exchanged, json_members, json_response, pass_buyer, refused, string_member, suite_route},
    request::Request,
    request_context::RequestContext,
    token::token_unavailable,
};
use crate::{
    directory::{Agent, PassBuyer, Suite},
    request_body::RequestBody,
    secret::{Masked, wipe_on_drop},
    suites::{AuthorizeError, RedeemVersion, Redeemed, STAND_IN_PREFIX},
    time::clock::unix_now,
    tokens::{FetchError, passes::ADVERTISED_TTL},
    wecom::errcode,
};

impl Proxy {
    /// `get_permanent_code`: the response has a stand-in in place of the permanent code, and a pass in place of the token.
    pub(super) async fn redeem_auth_code(
        &self,
        request: &Request,
        suite_agent: &Arc<Agent>,
        is_v2: bool,
        body: &Bytes,
        context: &mut RequestContext,
    ) -> Result<Exchanged, ProxyError> {
        let members = json_members(body);
        let auth_code = string_member(&members, "auth_code")
            .map(Masked::new)
            .ok_or_else(|| refused(errcode::INVALID_AUTH_CODE, "auth_code missing"))?;
        let Some(suite) = suite_agent.suite() else { return Err(could_not_keep("no suite")) };
        let version = if is_v2 { RedeemVersion::V2 } else { RedeemVersion::V1 };
        let suites = &self.settings.suites;
        let redeemed = match suites.authorize(suite_agent, &auth_code, version).await {
            Ok(redeemed) => redeemed,
            Err(AuthorizeError::Fetch(FetchError::Errcode { errcode, errmsg })) => {
                context.errcode = Some(errcode);
                let body = json!({ "errcode": errcode, "errmsg": errmsg });
                return Ok(Exchanged::Response(json_response(Bytes::from(body.to_string()))));
            }
            Err(error) => return Err(authorize_error(error, suite_agent)),
        };
        let client = context.client.clone();
        let stand_in = suites.issue_stand_in(suite, &redeemed.corpid, client.as_deref()).await;
        let stand_in = stand_in.map_err(|error| could_not_keep(&error.to_string()))?;
        context.errcode = Some(errcode::OK);
        let body = without_secrets(
            &redeemed,
            suite,
            version,
            &stand_in,
            pass_buyer(&self.directory.load(), request, client.as_deref()),
        );
        Ok(Exchanged::Response(json_response(wipe_on_drop(body.into_bytes()))))
    }

    /// `get_auth_info`: the client's own stand-in in the body is exchanged for the permanent code.
    pub(super) fn forward_auth_info(
        &self,
        request: &Request,
        suite_agent: Arc<Agent>,
        body: Bytes,
        context: &RequestContext,
    ) -> Result<Exchanged, ProxyError> {
        let members = json_members(&body);
        let corpid = string_member(&members, "auth_corpid").unwrap_or_default();
        let shown =
            string_member(&members, "permanent_code").filter(|code| code.starts_with(STAND_IN_PREFIX));
        let body = match (shown, suite_agent.suite()) {
            (Some(stand_in), Some(suite)) => {
                let is_own =
                    self.settings.suites.is_stand_in(stand_in, suite, corpid, context.client.as_deref());
                let corp = suite.corp(corpid).filter(|_| is_own).ok_or_else(|| {
                    let message = "invalid permanent_code: it is no stand-in of this client for this corp";
                    refused(errcode::INVALID_PERMANENT_CODE, message)
                })?;
                let entries = corp.token.entries();
                let real = entries.first().map(|entry| entry.credentials().secret.expose());
                let mut members = members.clone();
                members.insert("permanent_code".to_owned(), real.unwrap_or_default().into());
                wipe_on_drop(Value::Object(members).to_string().into_bytes())
            }
            _ => body,
        };
        Ok(Exchanged::Forward(suite_route(request, suite_agent), RequestBody::Complete(body)))
    }
}

/// WeCom's response with a stand-in and a pass. Its bytes stay as they are, unless they spell a secret in another way.
fn without_secrets(
    redeemed: &Redeemed,
    suite: &Suite,
    version: RedeemVersion,
    stand_in: &Masked,
    buyer: PassBuyer<'_>,
) -> String {
    let corp = suite.corp(&redeemed.corpid);
    let pass = corp.filter(|_| version == RedeemVersion::V1 && !suite.is_customized_template());
    let pass = pass.map(|corp| corp.issue_pass(buyer, unix_now()));
    let mut body = redeemed.body.expose().replace(redeemed.permanent_code.expose(), stand_in.expose());
    if let (Some(token), Some(pass)) = (&redeemed.access_token, &pass) {
        body = body.replace(token.expose(), pass.expose());
    }
    let mut members: Map<String, Value> = serde_json::from_str(&body).unwrap_or_default();
    let is = |members: &Map<String, Value>, name: &str, value: Option<&Masked>| {
        members.get(name).and_then(Value::as_str) == value.map(Masked::expose)
    };
    if is(&members, "permanent_code", Some(stand_in)) && is(&members, "access_token", pass.as_ref()) {
        return body;
    }
    members.insert("permanent_code".to_owned(), stand_in.expose().into());
    match &pass {
        Some(pass) => {
            members.insert("access_token".to_owned(), pass.expose().into());
            members.insert("expires_in".to_owned(), ADVERTISED_TTL.as_secs().into());
        }
        None => {
            members.remove("access_token");
            members.remove("expires_in");
        }
    }
    Value::Object(members).to_string()
}

/// Error for an auth_code that was not redeemed.
pub(super) fn authorize_error(error: AuthorizeError, suite: &Agent) -> ProxyError {
    match error {
        AuthorizeError::Fetch(failure) => token_unavailable(&failure, suite),
        AuthorizeError::Invalid(reason) => {
            ErrorKind::UpstreamFailed.error(format!("request to WeCom failed: {reason}"))
        }
        AuthorizeError::State(error) => could_not_keep(&error.to_string()),
    }
}

fn could_not_keep(reason: &str) -> ProxyError {
    let message =
        "the permanent code could not be kept; call again with the same auth_code within 10 minutes";
    ErrorKind::Overloaded.error(message).with_log_message(format!("{message}: {reason}"))
}
