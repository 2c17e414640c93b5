//! The API calls: the required credential and the handler of each.

use std::net::IpAddr;

use bytes::Bytes;
use hyper::http::request::Parts;

use super::agents::ErrcodeError;
use super::body::HashedBody;
use super::query::Query;
use super::response::{ErrcodeJson, SimulatedResponse};
use super::state::State;
use super::{directory, directory_changes, echo, errors, media, messages};

use RequiredCredential::{Secret, Token, Unauthenticated, WebhookKey};

const NO_BODY: usize = 0;
const MAX_JSON_BYTES: usize = 2 << 20;
const MAX_FILE_BYTES: usize = 24 << 20;

/// One call of the API.
pub(super) struct Route {
    pub(super) path: &'static str,
    pub(super) credential: RequiredCredential,
    /// How many bytes of the request body are buffered for the handler; 0 if it needs none.
    pub(super) max_body_bytes: usize,
    pub(super) handler: fn(&mut State, &ApiRequest<'_>) -> SimulatedResponse,
    /// The list member in front of errcode; empty in error responses.
    leading_list: Option<&'static str>,
}

/// The credential that a call requires.
pub(super) enum RequiredCredential {
    Token,
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

const ROUTES: &[Route] = &[
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
];

const fn route(
    path: &'static str,
    credential: RequiredCredential,
    max_body_bytes: usize,
    handler: fn(&mut State, &ApiRequest<'_>) -> SimulatedResponse,
) -> Route {
    Route { path, credential, max_body_bytes, handler, leading_list: None }
}

const fn list_route(
    path: &'static str,
    leading_list: &'static str,
    handler: fn(&mut State, &ApiRequest<'_>) -> SimulatedResponse,
) -> Route {
    Route { leading_list: Some(leading_list), ..route(path, Token, NO_BODY, handler) }
}

/// The call with exactly this path.
pub(super) fn find(path: &str) -> Option<&'static Route> {
    ROUTES.iter().find(|route| route.path == path)
}

impl Route {
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

fn gettoken(state: &mut State, request: &ApiRequest<'_>) -> SimulatedResponse {
    let Some(agent) = request.agent else { return ErrcodeJson::new(40001, "").into() };
    let (token, expires_in) = state.agents.issue_token(agent);
    ErrcodeJson::ok().with("access_token", token).with("expires_in", expires_in).into()
}

/// `agent/get?agentid=`: an application may read only itself.
fn get_agent(state: &mut State, request: &ApiRequest<'_>) -> SimulatedResponse {
    let Some(agent) = request.agent else { return ErrcodeJson::new(40014, "").into() };
    let wanted = request.query.value("agentid").filter(|id| !id.is_empty());
    match wanted.map(|id| state.agents.check_agentid(agent, &id)) {
        None => ErrcodeJson::new(41011, "").into(),
        Some(Err(ErrcodeError(errcode))) => ErrcodeJson::new(errcode, "").into(),
        Some(Ok(agentid)) => {
            let name = state.agents.name(agent);
            ErrcodeJson::ok().with("agentid", agentid).with("name", name).with("close", 0).into()
        }
    }
}

fn jsapi_ticket(state: &mut State, request: &ApiRequest<'_>) -> SimulatedResponse {
    ticket(state, request, "jsapi")
}

fn agent_ticket(state: &mut State, request: &ApiRequest<'_>) -> SimulatedResponse {
    match request.query.value("type").as_deref() {
        Some("agent_config") => ticket(state, request, "agent_config"),
        _ => ErrcodeJson::new(40035, "").into(),
    }
}

fn ticket(state: &mut State, request: &ApiRequest<'_>, kind: &'static str) -> SimulatedResponse {
    let Some(agent) = request.agent else { return ErrcodeJson::new(40014, "").into() };
    ErrcodeJson::ok().with("ticket", state.agents.ticket(agent, kind)).with("expires_in", 7200).into()
}

fn ip_list(_: &mut State, _: &ApiRequest<'_>) -> SimulatedResponse {
    ErrcodeJson::ok().with_leading("ip_list", ["192.0.2.10", "192.0.2.11", "198.51.100.0/24"]).into()
}
