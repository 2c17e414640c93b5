//! `/callbacks/SUITE/authorized`: where the browser of a corp's administrator comes back from WeCom after an installation.

use bytes::Bytes;
use http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::json;

use super::{
    Proxy,
    callback::unknown_callback,
    error::{ErrorKind, ProxyError},
    exchange::json_response,
    permanent_code::authorize_error,
    query,
    request::Request,
    request_context::RequestContext,
    response::Response,
};
use crate::{secret::Masked, suites::InstallStateError, time::clock::unix_now, wecom::errcode};

impl Proxy {
    /// Redeems the auth_code of an installation that began with an install link of this suite, then sends the browser on
    /// to `after_install`. WeCom is asked only with a `state` of such a link.
    pub(super) async fn finish_install(
        &self,
        request: &Request,
        suite: &str,
        context: &mut RequestContext,
    ) -> Result<Response, ProxyError> {
        let suites = &self.settings.suites;
        let agent = suites.suite_agent(suite).ok_or_else(unknown_callback)?;
        let suite = agent.suite().ok_or_else(unknown_callback)?;
        suites.admit_redirect(request.peer).map_err(|wait| {
            let message = "too many installations from this address; try again later";
            ErrorKind::RateLimited.error(message).with_retry_after(wait)
        })?;
        let query = request.target.query().unwrap_or_default();
        let forbidden = || {
            let message =
                "state is not from an install link of this suite, or was used before; begin with a new link";
            ErrorKind::Forbidden.error(message)
        };
        let (state, auth_code) = (param(query, "state"), param(query, "auth_code").map(Masked::new));
        let (state, auth_code) = state.zip(auth_code).ok_or_else(forbidden)?;
        let opened = suites.open_install_state(suite, &state, unix_now()).map_err(|_| forbidden())?;
        request.authorized.set(true);
        match suites.use_install_state(suite, &opened).await {
            Ok(()) => {}
            Err(InstallStateError::Invalid) => return Err(forbidden()),
            Err(InstallStateError::State(error)) => {
                let message = "the installation could not be recorded; try again with a new link";
                return Err(ErrorKind::Overloaded.error(message).with_log_message(error.to_string()));
            }
        }
        context.agent = Some(agent.clone());
        let redeemed = suites.redeem_redirect(&agent, &auth_code).await;
        let redeemed = redeemed.map_err(|error| authorize_error(error, &agent))?;
        context.errcode = Some(errcode::OK);
        let body = json!({ "errcode": 0, "errmsg": "ok", "corpid": redeemed.corpid });
        let mut response = json_response(Bytes::from(body.to_string()));
        if let Some(after_install) = &suite.config.after_install {
            let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            let separator = if after_install.contains('?') { '&' } else { '?' };
            let mut location = format!("{}{separator}corpid={}", &**after_install, encode(&redeemed.corpid));
            if !opened.caller_state.is_empty() {
                location += &format!("&state={}", encode(&opened.caller_state));
            }
            response.status = StatusCode::FOUND;
            response.headers.append(b"location", location.as_bytes());
        }
        // The URL of this page has the auth_code.
        response.headers.append(b"referrer-policy", b"no-referrer");
        Ok(response)
    }
}

/// The decoded value of a parameter that occurs once and is not empty.
fn param(query: &str, name: &str) -> Option<String> {
    let mut values = query::parameters(query).filter(|parameter| query::is_named(parameter, name));
    let value = values.next().filter(|_| values.next().is_none())?.split_once('=')?.1;
    let value = percent_decode_str(value).decode_utf8().ok()?;
    (!value.is_empty()).then(|| value.into_owned())
}
