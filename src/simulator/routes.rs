//! The calls there are: what lets each in, and which function carries it out.

use std::net::IpAddr;

use bytes::Bytes;
use hyper::http::request::Parts;

use super::agents::Refused;
use super::answer::{Answer, Json};
use super::body::Taken;
use super::query::Query;
use super::state::State;
use super::{changes, directory, echo, media, messages, words};

use Credential::{Nothing, Secret, Token, WebhookKey};

const NOTHING: usize = 0;
const JSON: usize = 2 << 20;
const FILE: usize = 24 << 20;

/// One call of the API.
pub(super) struct Route {
    pub(super) path: &'static str,
    pub(super) credential: Credential,
    /// How much of a request's body the call needs in one piece.
    pub(super) keep: usize,
    pub(super) run: fn(&mut State, &Sent<'_>) -> Answer,
    /// The list that stands in front of errcode, an empty one in a failure.
    lead: Option<&'static str>,
}

/// What lets a call in.
pub(super) enum Credential {
    Token,
    Secret,
    WebhookKey,
    Nothing,
}

/// What a call works with.
pub(super) struct Sent<'a> {
    pub(super) seq: u64,
    pub(super) agent: Option<usize>,
    pub(super) head: &'a Parts,
    pub(super) query: Query<'a>,
    pub(super) body: &'a Taken,
}

impl Sent<'_> {
    /// The body; empty where it was longer than the call takes.
    pub(super) fn body(&self) -> Bytes {
        self.body.kept.clone().unwrap_or_default()
    }
}

const ROUTES: &[Route] = &[
    call("/cgi-bin/gettoken", Secret, NOTHING, gettoken),
    call("/cgi-bin/user/get", Token, NOTHING, directory::user),
    call("/cgi-bin/user/simplelist", Token, NOTHING, directory::simple_users),
    call("/cgi-bin/user/list", Token, NOTHING, directory::users),
    call("/cgi-bin/department/list", Token, NOTHING, directory::departments),
    call("/cgi-bin/tag/list", Token, NOTHING, directory::tags),
    call("/cgi-bin/tag/get", Token, NOTHING, directory::tag),
    call("/cgi-bin/user/create", Token, JSON, changes::create_user),
    call("/cgi-bin/user/update", Token, JSON, changes::update_user),
    call("/cgi-bin/user/delete", Token, NOTHING, changes::delete_user),
    call("/cgi-bin/department/create", Token, JSON, changes::create_department),
    call("/cgi-bin/department/update", Token, JSON, changes::update_department),
    call("/cgi-bin/department/delete", Token, NOTHING, changes::delete_department),
    call("/cgi-bin/tag/create", Token, JSON, changes::create_tag),
    call("/cgi-bin/tag/update", Token, JSON, changes::update_tag),
    call("/cgi-bin/tag/delete", Token, NOTHING, changes::delete_tag),
    call("/cgi-bin/tag/addtagusers", Token, JSON, changes::tag_users),
    call("/cgi-bin/tag/deltagusers", Token, JSON, changes::untag_users),
    call("/cgi-bin/agent/get", Token, NOTHING, app),
    call("/cgi-bin/message/send", Token, JSON, messages::send),
    call("/cgi-bin/media/upload", Token, FILE, media::upload),
    call("/cgi-bin/media/uploadimg", Token, FILE, media::upload_image),
    call("/cgi-bin/media/get", Token, NOTHING, media::download),
    call("/cgi-bin/get_jsapi_ticket", Token, NOTHING, jsapi_ticket),
    call("/cgi-bin/ticket/get", Token, NOTHING, agent_ticket),
    list("/cgi-bin/getcallbackip", "ip_list", addresses),
    list("/cgi-bin/get_api_domain_ip", "ip_list", addresses),
    call("/cgi-bin/webhook/send", WebhookKey, JSON, messages::webhook),
    call("/cgi-bin/webhook/upload_media", WebhookKey, FILE, media::upload),
    call("/cgi-bin/simulator/echo", Token, NOTHING, echo::echo),
    call("/cgi-bin/simulator/sink", Token, NOTHING, echo::sink),
    call("/cgi-bin/service/echo", Nothing, NOTHING, echo::echo),
    call("/cgi-bin/license/echo", Nothing, NOTHING, echo::echo),
];

const fn call(
    path: &'static str,
    credential: Credential,
    keep: usize,
    run: fn(&mut State, &Sent<'_>) -> Answer,
) -> Route {
    Route { path, credential, keep, run, lead: None }
}

const fn list(path: &'static str, lead: &'static str, run: fn(&mut State, &Sent<'_>) -> Answer) -> Route {
    Route { lead: Some(lead), ..call(path, Token, NOTHING, run) }
}

/// The call with this very path.
pub(super) fn find(path: &str) -> Option<&'static Route> {
    ROUTES.iter().find(|route| route.path == path)
}

impl Route {
    pub(super) fn is_gettoken(&self) -> bool {
        matches!(self.credential, Secret)
    }

    /// A failure as this call words it.
    pub(super) fn failure(&self, errcode: i64, peer: IpAddr) -> Json {
        let json = words::failure(errcode, peer);
        match self.lead {
            Some(lead) => json.led_by(lead, [(); 0]),
            None => json,
        }
    }
}

fn gettoken(state: &mut State, sent: &Sent<'_>) -> Answer {
    let Some(agent) = sent.agent else { return Json::new(40001, "").into() };
    let (token, expires_in) = state.agents.issue(agent);
    Json::ok().with("access_token", token).with("expires_in", expires_in).into()
}

/// `agent/get?agentid=`: an app may read itself and no other.
fn app(state: &mut State, sent: &Sent<'_>) -> Answer {
    let Some(agent) = sent.agent else { return Json::new(40014, "").into() };
    let wanted = sent.query.value("agentid").filter(|id| !id.is_empty());
    match wanted.map(|id| state.agents.judge_agentid(agent, &id)) {
        None => Json::new(41011, "").into(),
        Some(Err(Refused(errcode))) => Json::new(errcode, "").into(),
        Some(Ok(agentid)) => {
            let name = state.agents.name(agent);
            Json::ok().with("agentid", agentid).with("name", name).with("close", 0).into()
        }
    }
}

fn jsapi_ticket(state: &mut State, sent: &Sent<'_>) -> Answer {
    ticket(state, sent, "jsapi")
}

fn agent_ticket(state: &mut State, sent: &Sent<'_>) -> Answer {
    match sent.query.value("type").as_deref() {
        Some("agent_config") => ticket(state, sent, "agent_config"),
        _ => Json::new(40035, "").into(),
    }
}

fn ticket(state: &mut State, sent: &Sent<'_>, kind: &'static str) -> Answer {
    let Some(agent) = sent.agent else { return Json::new(40014, "").into() };
    Json::ok().with("ticket", state.agents.ticket(agent, kind)).with("expires_in", 7200).into()
}

fn addresses(_: &mut State, _: &Sent<'_>) -> Answer {
    Json::ok().led_by("ip_list", ["192.0.2.10", "192.0.2.11", "198.51.100.0/24"]).into()
}
