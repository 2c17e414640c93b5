//! The API calls: the required credential and the handler of each.

use std::net::IpAddr;

use bytes::Bytes;
use hyper::http::request::Parts;

use super::body::HashedBody;
use super::query::Query;
use super::response::{ErrcodeJson, SimulatedResponse};
use super::state::State;
use super::{directory, directory_changes, echo, errors, media, messages, suites};

use RequiredCredential::{ProviderToken, Secret, SuiteToken, Token, Unauthenticated, WebhookKey};

const NO_BODY: usize = 0;
const MAX_JSON_BYTES: usize = 2 << 20;
const MAX_FILE_BYTES: usize = 24 << 20;

/// A response, or the errcode with which the call is refused.
pub(super) type HandlerResult = Result<SimulatedResponse, i64>;
type Handler = fn(&mut State, &ApiRequest<'_>) -> HandlerResult;

/// One call of the API.
pub(super) struct ApiRoute {
    pub(super) path: &'static str,
    pub(super) credential: RequiredCredential,
    /// How many bytes of the request body are buffered for the handler; 0 if it needs none.
    pub(super) max_body_bytes: usize,
    pub(super) handler: Handler,
    /// The list member in front of errcode; empty in error responses.
    leading_list: Option<&'static str>,
}

/// The credential that a call requires.
pub(super) enum RequiredCredential {
    Token,
    SuiteToken,
    ProviderToken,
    Secret,
    WebhookKey,
    Unauthenticated,
}

/// The request as a handler sees it.
pub(super) struct ApiRequest<'a> {
    pub(super) seq: u64,
    pub(super) agent: Option<usize>,
    pub(super) head: &'a Parts,
    pub(super) query: Query<'a>,
    pub(super) body: &'a HashedBody,
}

impl ApiRequest<'_> {
    /// The body; empty if it is longer than `max_body_bytes`.
    pub(super) fn body(&self) -> Bytes {
        self.body.content.clone().unwrap_or_default()
    }
}

const ROUTES: &[ApiRoute] = &[
    route("/cgi-bin/gettoken", Secret, NO_BODY, gettoken),
    route("/cgi-bin/user/get", Token, NO_BODY, directory::get_user),
    route("/cgi-bin/user/simplelist", Token, NO_BODY, directory::list_users_simple),
    route("/cgi-bin/user/list", Token, NO_BODY, directory::list_users),
    route("/cgi-bin/department/list", Token, NO_BODY, directory::list_departments),
    route("/cgi-bin/tag/list", Token, NO_BODY, directory::list_tags),
    route("/cgi-bin/tag/get", Token, NO_BODY, directory::get_tag),
    route("/cgi-bin/user/create", Token, MAX_JSON_BYTES, directory_changes::create_user),
    route("/cgi-bin/user/update", Token, MAX_JSON_BYTES, directory_changes::update_user),
    route("/cgi-bin/user/delete", Token, NO_BODY, directory_changes::delete_user),
    route("/cgi-bin/department/create", Token, MAX_JSON_BYTES, directory_changes::create_department),
    route("/cgi-bin/department/update", Token, MAX_JSON_BYTES, directory_changes::update_department),
    route("/cgi-bin/department/delete", Token, NO_BODY, directory_changes::delete_department),
    route("/cgi-bin/tag/create", Token, MAX_JSON_BYTES, directory_changes::create_tag),
    route("/cgi-bin/tag/update", Token, MAX_JSON_BYTES, directory_changes::update_tag),
    route("/cgi-bin/tag/delete", Token, NO_BODY, directory_changes::delete_tag),
    route("/cgi-bin/tag/addtagusers", Token, MAX_JSON_BYTES, directory_changes::add_tag_users),
    route("/cgi-bin/tag/deltagusers", Token, MAX_JSON_BYTES, directory_changes::remove_tag_users),
    route("/cgi-bin/agent/get", Token, NO_BODY, get_agent),
    route("/cgi-bin/message/send", Token, MAX_JSON_BYTES, messages::send),
    route("/cgi-bin/media/upload", Token, MAX_FILE_BYTES, media::upload),
    route("/cgi-bin/media/uploadimg", Token, MAX_FILE_BYTES, media::upload_image),
    route("/cgi-bin/media/get", Token, NO_BODY, media::download),
    route("/cgi-bin/get_jsapi_ticket", Token, NO_BODY, jsapi_ticket),
    route("/cgi-bin/ticket/get", Token, NO_BODY, agent_ticket),
    list_route("/cgi-bin/getcallbackip", "ip_list", ip_list),
    list_route("/cgi-bin/get_api_domain_ip", "ip_list", ip_list),
    route("/cgi-bin/webhook/send", WebhookKey, MAX_JSON_BYTES, messages::send_by_webhook),
    route("/cgi-bin/webhook/upload_media", WebhookKey, MAX_FILE_BYTES, media::upload),
    route("/cgi-bin/simulator/echo", Token, NO_BODY, echo::echo),
    route("/cgi-bin/simulator/sink", Token, NO_BODY, echo::sink),
    route("/cgi-bin/service/echo", Unauthenticated, NO_BODY, echo::echo),
    route("/cgi-bin/license/echo", Unauthenticated, NO_BODY, echo::echo),
    route("/cgi-bin/aibot/response", Unauthenticated, MAX_JSON_BYTES, echo::echo),
    route("/cgi-bin/openhw/echo", Unauthenticated, NO_BODY, echo::echo),
    route("/cgi-bin/service/get_provider_token", Unauthenticated, MAX_JSON_BYTES, suites::provider_token),
    route("/cgi-bin/service/get_suite_token", Unauthenticated, MAX_JSON_BYTES, suites::suite_token),
    route("/cgi-bin/service/get_pre_auth_code", SuiteToken, NO_BODY, suites::pre_auth_code),
    route("/cgi-bin/service/get_permanent_code", SuiteToken, MAX_JSON_BYTES, suites::permanent_code),
    route("/cgi-bin/service/v2/get_permanent_code", SuiteToken, MAX_JSON_BYTES, suites::permanent_code_v2),
    route("/cgi-bin/service/get_corp_token", SuiteToken, MAX_JSON_BYTES, suites::corp_token),
    route("/cgi-bin/service/get_auth_info", SuiteToken, MAX_JSON_BYTES, suites::auth_info),
    route("/cgi-bin/service/v2/get_auth_info", SuiteToken, MAX_JSON_BYTES, suites::auth_info),
    route("/cgi-bin/service/set_session_info", SuiteToken, MAX_JSON_BYTES, suites::succeed),
    route("/cgi-bin/service/something_new", SuiteToken, MAX_JSON_BYTES, suites::succeed),
    route("/cgi-bin/idconvert/upgrade_chatid_for_new_corp", SuiteToken, MAX_JSON_BYTES, suites::succeed),
    route("/cgi-bin/service/get_login_info", ProviderToken, MAX_JSON_BYTES, suites::succeed),
    route("/cgi-bin/service/corpid_to_opencorpid", ProviderToken, MAX_JSON_BYTES, suites::succeed),
    route("/cgi-bin/service/contact/search", ProviderToken, MAX_JSON_BYTES, suites::succeed),
    route("/cgi-bin/license/list_order", ProviderToken, MAX_JSON_BYTES, suites::succeed),
    route("/cgi-bin/advanced_api/list", ProviderToken, MAX_JSON_BYTES, suites::succeed),
    route("/cgi-bin/paytool/get_order_list", ProviderToken, MAX_JSON_BYTES, suites::succeed),
    route("/cgi-bin/hardware/get_device_feature", ProviderToken, MAX_JSON_BYTES, suites::succeed),
];

const fn route(
    path: &'static str,
    credential: RequiredCredential,
    max_body_bytes: usize,
    handler: Handler,
) -> ApiRoute {
    ApiRoute { path, credential, max_body_bytes, handler, leading_list: None }
}

const fn list_route(path: &'static str, leading_list: &'static str, handler: Handler) -> ApiRoute {
    ApiRoute { leading_list: Some(leading_list), ..route(path, Token, NO_BODY, handler) }
}

/// The call with exactly this path.
pub(super) fn find(path: &str) -> Option<&'static ApiRoute> {
    ROUTES.iter().find(|route| route.path == path)
}

impl ApiRoute {
    /// The query parameter that carries the token of this call.
    pub(super) fn token_param(&self) -> &'static str {
        match self.credential {
            SuiteToken => "suite_access_token",
            ProviderToken if self.path.ends_with("/get_login_info") => "access_token",
            ProviderToken => "provider_access_token",
            _ => "access_token",
        }
    }

    pub(super) fn is_gettoken(&self) -> bool {
        matches!(self.credential, Secret)
    }

    /// The error response of this call for an errcode.
    pub(super) fn error_json(&self, errcode: i64, peer: IpAddr) -> ErrcodeJson {
        let json = errors::error_json(errcode, peer);
        match self.leading_list {
            Some(list) => json.with_leading(list, [(); 0]),
            None => json,
        }
    }
}

fn gettoken(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let agent = request.agent.ok_or(40001)?;
    let (token, expires_in) = state.agents.issue_token(agent);
    ErrcodeJson::ok().with("access_token", token).with("expires_in", expires_in).into()
}

/// `agent/get?agentid=`: an application may read only itself.
fn get_agent(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    let agent = request.agent.ok_or(40014)?;
    let agentid = state.agents.check_agentid(agent, &request.query.non_empty("agentid").ok_or(41011)?)?;
    ErrcodeJson::ok().with("agentid", agentid).with("name", state.agents.name(agent)).with("close", 0).into()
}

fn jsapi_ticket(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    ticket(state, request, "jsapi")
}

fn agent_ticket(state: &mut State, request: &ApiRequest<'_>) -> HandlerResult {
    match request.query.value("type").as_deref() {
        Some("agent_config") => ticket(state, request, "agent_config"),
        _ => Err(40035),
    }
}

fn ticket(state: &mut State, request: &ApiRequest<'_>, kind: &'static str) -> HandlerResult {
    let agent = request.agent.ok_or(40014)?;
    ErrcodeJson::ok().with("ticket", state.agents.ticket(agent, kind)).with("expires_in", 7200).into()
}

fn ip_list(_: &mut State, _: &ApiRequest<'_>) -> HandlerResult {
    ErrcodeJson::ok().with_leading("ip_list", ["192.0.2.10", "192.0.2.11", "198.51.100.0/24"]).into()
}
